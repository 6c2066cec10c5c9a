"""Networks without a table: how channels hang together, and that removing them changes nothing else."""

import copy
import json
import sys
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from lit_methods.backbones.groups import ChannelGroup, select_channels, traced_plan
from lit_methods.backbones.plan import PrunePoint, TracedPlan
from lit_methods.backbones.slicing import slice_network
from lit_methods.backbones.traced import channel_groups, score_points
from lit_methods.backbones.trial import randomised, sound_groups
from lit_methods.hrank.functional import rank_scores

SIZE = (3, 16, 16)


class Own(nn.Module):
    """A residual sum, a grouped convolution, a concatenation, a depthwise convolution, flattened 2x2 maps."""

    def __init__(self, classes=5):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 6, 3, padding=1, groups=2)
        self.left = nn.Conv2d(6, 4, 1)
        self.right = nn.Conv2d(6, 2, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.head = nn.Linear(24, classes)

    def forward(self, x):
        x = self.act(self.norm(self.stem(x)))
        x = F.relu(self.again(x)) + x
        x = F.relu(self.grouped(x))
        x = torch.cat([F.relu(self.left(x)), self.right(x)], 1)
        x = F.adaptive_avg_pool2d(F.relu(self.depthwise(x)), 2)
        return self.head(torch.flatten(x, 1))


def same(n):
    return tuple((i,) for i in range(n))


def own_groups():
    """Read off the class above by hand."""
    first, second = ((0,), (1,), (2,), (3,), (), ()), ((), (), (), (), (0,), (1,))
    flat = tuple(tuple(range(4 * i, 4 * i + 4)) for i in range(6))
    return [
        ChannelGroup(
            "stem",
            8,
            {"stem": same(8), "again": same(8)},
            {"norm": same(8)},
            {"again": same(8), "grouped": same(8)},
            2,
        ),
        ChannelGroup("grouped", 6, {"grouped": same(6)}, {}, {"left": same(6), "right": same(6)}, 2),
        ChannelGroup("depthwise", 6, {"left": first, "right": second, "depthwise": same(6)}, {}, {"head": flat}),
    ]


def family(name, size):
    return pytest.param(
        lambda: getattr(torchvision.models, name)(weights=None, num_classes=7), size, id=name, marks=pytest.mark.slow
    )


NETWORKS = [
    pytest.param(Own, 16, id="own"),
    pytest.param(lambda: torchvision.models.mobilenet_v3_small(num_classes=7), 32, id="mobilenet_v3_small"),
    *[family(name, 64) for name in ("resnet18", "resnet50", "resnext50_32x4d", "regnet_x_400mf", "mobilenet_v2")],
    *[family(name, 64) for name in ("mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s", "mnasnet0_5")],
    family("regnet_y_400mf", 32),
    *[family(name, 64) for name in ("densenet121", "squeezenet1_1", "alexnet", "vgg11_bn")],
]


def random_keep(groups):
    return select_channels(
        {group.root: torch.rand(group.channels) for group in groups}, groups, [group.channels // 2 for group in groups]
    )


def zeroed(model, groups, keep):
    """The full network whose removed channels are exactly 0 wherever they are written."""
    model = copy.deepcopy(model)
    for group in groups:
        for name, places in [*group.writers.items(), *group.norms.items()]:
            for channel in {*range(group.channels)}.difference(keep[group.root]):
                for parameter in model.get_submodule(name).parameters():
                    parameter.data[list(places[channel])] = 0
    return model


@pytest.mark.parametrize(("build", "size"), NETWORKS)
def test_the_sliced_network_equals_the_zeroed_one(build, size):
    model = randomised(build(), torch.Generator().manual_seed(3))
    state = copy.deepcopy(model.state_dict())
    drawn = torch.get_rng_state()
    groups = channel_groups(model, (3, size, size))
    assert torch.equal(torch.get_rng_state(), drawn)

    keep = random_keep(groups)
    small = slice_network(model, traced_plan(model, groups, keep))
    assert model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    for group in groups:
        root = small.get_submodule(group.root)
        assert root.out_channels == len(root.weight) == len(keep[group.root]) < group.channels

    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        expected, actual = zeroed(model, groups, keep).eval()(images), small.eval()(images)
    assert expected.std(0).max() > 1e-6 * expected.abs().max()  # it does look at the images
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10 * expected.abs().max().item())
    small.train()(images).sum().backward()
    assert all(parameter.grad.shape == parameter.shape for parameter in small.parameters())


def test_groups_of_a_network_known_by_hand():
    assert channel_groups(Own(), SIZE) == own_groups()


def test_a_frozen_network_inside_inference_mode():
    model = Own().requires_grad_(False)
    model.norm.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        groups, points = score_points(model, channel_groups(model, SIZE), SIZE)
    assert (groups, len(points)) == (own_groups(), 6)
    assert (model.training, model.norm.training) == (True, False)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_points_lie_behind_norm_and_activation():
    groups, points = score_points(Own(), own_groups(), SIZE)
    assert groups == own_groups()
    assert points == [
        PrunePoint("stem", "1_1", "act", (0, 8)),
        PrunePoint("again", "1_2", "again", (0, 8)),
        PrunePoint("grouped", "2_1", "grouped", (0, 6)),
        PrunePoint("left", "3_1", "left", (0, 4)),
        PrunePoint("right", "3_2", "right", (0, 2)),
        PrunePoint("depthwise", "3_3", "depthwise", (0, 6)),
    ]
    some = [replace(own_groups()[2], writers={"left": own_groups()[2].writers["left"]}), own_groups()[1]]
    groups_left, _ = score_points(Own(), some, SIZE)
    assert groups_left == some[1:]  # two channels of the other one would have no score

    model = Own()
    scores = rank_scores(model, [torch.rand(2, *SIZE)], points)
    plan = traced_plan(model, groups, select_channels(scores, groups, [4, 2, 3]))
    assert slice_network(model, plan)(torch.rand(1, *SIZE)).shape == (1, 5)


def test_points_of_torchvision_networks():
    resnet = torchvision.models.resnet18(num_classes=3)  # one ReLU per block, called twice, once behind a sum in place
    groups, points = score_points(resnet, channel_groups(resnet, (3, 32, 32))[:2], (3, 32, 32))
    assert [point.module for point in points] == ["relu", "layer1.0.bn2", "layer1.1.bn2", "layer1.0.bn1"]
    mobile = torchvision.models.mobilenet_v3_small(num_classes=3)
    every = channel_groups(mobile, (3, 64, 64))
    groups, points = score_points(mobile, every, (3, 64, 64))
    assert len(groups) < len(every)
    assert not any("fc1" in point.conv or "fc2" in point.conv for point in points)  # maps of squeeze-and-excitation
    assert points[0] == PrunePoint("features.0.0", "1_1", "features.0.2", (0, 16))


def test_a_convolution_that_is_called_twice_has_no_point():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.second(self.second(F.relu(self.first(x)))).mean((2, 3)))

    model = Twice()
    groups, points = score_points(model, channel_groups(model, SIZE), SIZE)
    assert [(point.conv, point.module) for point in points] == [("first", "first")]
    assert list(groups[0].writers) == ["first", "second"]


def test_the_lowest_means_go():
    group = own_groups()[2]
    scores = {"left": torch.tensor([1.0, 5.0, 2.0, 2.0]), "depthwise": torch.tensor([3.0, 0.0, 4.0, 4.0, 3.0, 0.5])}
    scores["right"] = torch.tensor([2.0, 3.0])
    # means: 2, 2.5, 3, 3, 2.5, 1.75; of two equal ones the lower id goes first; 4 is the best that "right" writes
    for removed, expected in enumerate([None, [0, 1, 2, 3, 4], [1, 2, 3, 4], [2, 3, 4], [3, 4], [3, 4], [3, 4]]):
        assert select_channels(scores, [group], [removed]) == ({} if expected is None else {"depthwise": expected})


def test_every_part_loses_its_own_lowest():
    group = own_groups()[1]
    scores = {"grouped": torch.tensor([9.0, 8.0, 7.0, 1.0, 3.0, 2.0])}
    assert select_channels(scores, [group], [1]) == {}  # no equal number of channels in two parts
    assert select_channels(scores, [group], [3]) == {"grouped": [0, 1, 4, 5]}
    assert select_channels(scores, [group], [6]) == {"grouped": [0, 4]}


@pytest.mark.parametrize(
    "scores", [{}, {"left": torch.ones(4)}, {"depthwise": torch.ones(4)}, {"depthwise": torch.full((6,), torch.nan)}]
)
def test_selection_needs_scores(scores):
    with pytest.raises(ValueError, match="depthwise"):
        select_channels(scores, own_groups()[2:], [1])
    with pytest.raises(ValueError, match="one number per group"):
        select_channels(scores, own_groups(), [1])


def test_a_checkpoint_is_rebuilt_without_torch_pruning(tmp_path, monkeypatch):
    model = Own()
    plan = traced_plan(model, own_groups(), random_keep(own_groups()))
    small = slice_network(model, plan).eval()
    torch.save({"weights": small.state_dict(), "plan": json.dumps(plan.to_dict())}, tmp_path / "small.pt")

    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    saved = torch.load(tmp_path / "small.pt")
    fresh = slice_network(Own(), TracedPlan.from_dict(json.loads(saved["plan"]))).eval()
    fresh.load_state_dict(saved["weights"])
    images = torch.rand(2, *SIZE)
    assert torch.equal(fresh(images), small(images))


def test_the_sliced_network_keeps_all_else():
    model = Own().half().to(memory_format=torch.channels_last)
    model.norm.eval()
    model.again.requires_grad_(False)
    small = slice_network(model, traced_plan(model, own_groups(), random_keep(own_groups())))
    assert small.training
    assert not small.norm.training
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]
    assert {p.dtype for p in small.parameters()} == {torch.float16}
    assert small.again.weight.is_contiguous(memory_format=torch.channels_last)
    assert (small.depthwise.groups, small.grouped.groups) == (3, 2)
    assert (small.stem.out_channels, small.norm.num_features, small.head.in_features) == (4, 4, 12)


def test_a_transposed_convolution():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.PReLU(4),
        nn.ConvTranspose2d(4, 6, 2),
        nn.InstanceNorm2d(6, affine=True),
        nn.Conv2d(6, 2, 1),
    )
    groups = channel_groups(model, SIZE)
    assert [(g.root, list(g.norms), list(g.readers)) for g in groups] == [("0", ["1"], ["2"]), ("2", ["3"], ["4"])]
    small = slice_network(model, traced_plan(model, groups, {"0": [1, 2, 3], "2": [0, 5]}))
    assert torch.equal(small[2].weight, model[2].weight[1:][:, [0, 5]])
    assert small[1].num_parameters == 3


class Branch(nn.Module):
    """A network in which only the channels of ``free`` can be removed; the other ones are used as ``use`` says."""

    def __init__(self, use):
        super().__init__()
        self.use = use
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.free, self.last = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 5, 1)
        self.scale, self.aux = nn.Parameter(torch.ones(8, 1, 1)), nn.Linear(8, 5)
        self.register_buffer("fixed", torch.rand(8, 1, 1))

    def forward(self, x):
        x = self.first(x)
        y = self.use(self, x)
        return self.last(F.relu(self.free(y))).mean((2, 3))


def in_training_only(net, x):
    if net.training:
        net.aux(x.mean((2, 3)))
    return x


@pytest.mark.parametrize(
    "use",
    [
        lambda net, x: x.flip(1),
        lambda net, x: x[:, [0, 2, 4, 6, 1, 3, 5, 7]],
        lambda net, x: x - x.mean(1, keepdim=True),
        lambda net, x: net.norm(x),
        lambda net, x: x * net.scale,
        lambda net, x: x * net.fixed,
        in_training_only,
    ],
)
def test_channels_that_cannot_be_removed_are_left_out(use):
    assert [group.root for group in channel_groups(Branch(use), SIZE)] == ["free"]


def test_the_trial_finds_a_wrong_place():
    trial = randomised(Own(), torch.Generator().manual_seed(0)).eval()
    images, groups = torch.randn(2, *SIZE, dtype=torch.float64), own_groups()
    assert sound_groups(trial, groups, images) == groups
    for kind, layer in [("readers", "head"), ("norms", "norm"), ("writers", "again"), ("writers", "depthwise")]:
        at = next(i for i, group in enumerate(groups) if layer in getattr(group, kind))
        table = getattr(groups[at], kind)
        wrong = replace(groups[at], **{kind: {**table, layer: table[layer][::-1]}})
        tried = [*groups[:at], wrong, *groups[at + 1 :]]
        assert sound_groups(trial, tried, images) == [group for group in groups if group.root != wrong.root]


def test_without_torch_pruning(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ValueError, match=r"bare Own has no table.*lit-methods\[prune\].*BACKBONES"):
        channel_groups(Own(), SIZE)


def test_networks_that_cannot_be_pruned():
    with pytest.raises(ValueError, match=r"Own cannot be pruned at input_size=\(1, 16, 16\)"):
        channel_groups(Own(), (1, 16, 16))
    with pytest.raises(ValueError, match="Sequential has no channels"):
        channel_groups(nn.Sequential(nn.Conv2d(3, 4, 3)), SIZE)
    with pytest.raises(ValueError, match="ShuffleNetV2"):  # torch-pruning divides by zero
        channel_groups(torchvision.models.shufflenet_v2_x0_5(), (3, 64, 64))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"steam": [0]}, "did you mean 'stem'"),
        ({"stem": [1, 0]}, "rising"),
        ({"stem": []}, "at least one"),
        ({"stem": [0, 4, 8]}, "channel 8 of 'stem'"),
        ({"stem": [0, 1, 4]}, r"equal numbers.*\[2, 1\]"),
        ({"stem": [0, 1]}, r"equal numbers.*\[2, 0\]"),
    ],
)
def test_wrong_ids_to_keep(keep, message):
    with pytest.raises(ValueError, match=message):
        traced_plan(Own(), own_groups(), keep)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"arch": "Own"}, "keys 'arch' and 'layers'"),
        ({"arch": "Own", "layers": {"stem": [[0]]}}, "'stem' must be"),
        ({"arch": "Own", "layers": {"stem": [[1, 1], None]}}, "rising"),
        ({"arch": "Own", "layers": {"stem": [[], None]}}, "at least one"),
        ({"arch": "ResNet", "layers": {}}, "for a ResNet, the network is a Own"),
        ({"arch": "Own", "layers": {"steam": [[0], None]}}, "did you mean 'stem'"),
        ({"arch": "Own", "layers": {"act": [[0], None]}}, "ReLU cannot be cut"),
        ({"arch": "Own", "layers": {"stem": [[0, 8], None]}}, "channel 8 at 'stem', which has 8"),
    ],
)
def test_wrong_plans(plan, message):
    with pytest.raises(ValueError, match=message):
        slice_network(Own(), TracedPlan.from_dict(plan))
