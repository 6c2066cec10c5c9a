"""Sub-architectures as networks of their own: logits of the gated network, fewer parameters."""

import copy
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torchvision import models
from torchvision.models.vgg import cfgs, make_layers

from lit_methods.backbones import BACKBONES, build_backbone, prune_model, read_plan
from lit_methods.backbones.trial import randomised
from lit_methods.nad import removal
from lit_methods.nad.removal import GatedLayer
from lit_methods.nad.structure import gated_plan, sub_network

VGG16 = [f"features.{i}" for i in (1, 4, 6, 9, 11, 13, 16, 18, 20, 23, 25, 27)] + ["avgpool"]
DENSENET = [f"features.{part}" for part in ("pool0", "denseblock1", "transition1", "denseblock2", "transition2")]
DENSENET += ["features.denseblock3", "features.transition3", "features.norm5"]
MOBILENET = [f"features.{i}" for i in range(19)]


def random_network(build, seed=0):
    """In float64 and eval mode; batch norms have statistics and biases, so that closed channels would show."""
    torch.manual_seed(seed)
    return randomised(build(), torch.Generator().manual_seed(seed)).requires_grad_(False).eval()


def gated(model, masks):
    """A copy whose outputs hooks multiply."""
    model = copy.deepcopy(model)
    for point, mask in masks.items():
        model.get_submodule(point).register_forward_hook(
            lambda _, __, output, mask=mask: output * mask.to(output).view(-1, *[1] * (output.ndim - 2))
        )
    return model


def random_masks(model, points, size, share=0.6, seed=0):
    widths, draw = {}, torch.Generator().manual_seed(seed)
    probe = copy.deepcopy(model)
    for point in points:
        probe.get_submodule(point).register_forward_hook(
            lambda _, __, output, point=point: widths.update({point: output.shape[1]})
        )
    probe(torch.zeros(1, 3, size, size, dtype=torch.float64))
    masks = {point: torch.rand(widths[point], generator=draw) < share for point in points}
    return {point: mask if mask.any() else ~mask for point, mask in masks.items()}


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def check(model, masks, size, arch=None):
    """The sub-network, after comparing its logits with those of the gated one; ``model`` stays as it was."""
    state = copy.deepcopy(model.state_dict())
    drawn = torch.get_rng_state()
    small = sub_network(model, masks, arch=arch, input_size=(3, size, size))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(part.training or part._forward_hooks or part._forward_pre_hooks for part in small.modules())
    x = torch.randn(3, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    expected = gated(model, masks)(x)
    scale = expected.abs().max().item()
    assert (expected - model(x)).abs().max() > 1e-4 * scale  # the gates do something
    assert_close(small(x), expected, rtol=1e-10, atol=1e-10 * scale)
    return small


def own_vgg16():
    """torchvision's VGG-16 with a small head."""
    net = models.VGG(make_layers(cfgs["D"]), num_classes=4, init_weights=False)
    net.classifier = nn.Sequential(nn.Linear(512 * 49, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 4))
    return net


TABLES = [
    ("resnet20", 32),
    ("vgg16_bn_cifar", 32),
    *[pytest.param(arch, size, marks=pytest.mark.slow) for arch, size in (("resnet56", 32), ("resnet50", 64))],
    *[pytest.param(arch, 64, marks=pytest.mark.slow) for arch in ("resnet18", "resnet34")],
]


@pytest.mark.parametrize(("arch", "size"), TABLES)
def test_a_network_with_a_table_loses_all_that_is_closed(arch, size):
    model = random_network(lambda: build_backbone(arch, 5))
    filters = BACKBONES[arch].gates()
    masks = random_masks(model, filters, size)
    small = check(model, masks, size, arch)
    assert not any(isinstance(part, GatedLayer) for part in small.modules())
    for point, convs in filters.items():
        assert {small.get_submodule(conv).out_channels for conv in convs} == {int(masks[point].sum())}
    assert parameters(small) < 0.85 * parameters(model)


def test_a_shortcut_that_vanishes():
    model = random_network(lambda: build_backbone("resnet20", 5))
    masks = random_masks(model, BACKBONES["resnet20"].gates(), 32, share=0.2)
    masks["layer2.0"] = torch.arange(32) < 4  # the shortcut comes in the middle
    even = torch.arange(32) % 2 == 0
    masks["layer2.1"], masks["layer2.2"] = even, ~even
    small = check(model, masks, 32, "resnet20")
    assert small.layer2[0].sum.spread_shortcut.empty
    assert small.layer2[2].sum.spread_shortcut.empty


def test_the_plan_of_the_masks_builds_the_same_shapes():
    model = random_network(lambda: build_backbone("resnet20", 5))
    masks = random_masks(model, BACKBONES["resnet20"].gates(), 32) | {"relu": torch.ones(16, dtype=torch.bool)}
    plan = gated_plan("resnet20", masks)
    assert "conv1" not in plan.keep
    assert "relu" not in plan.gates
    rebuilt = build_backbone("resnet20", 5, read_plan(plan.to_dict())).double().eval()
    small = sub_network(model, masks, arch="resnet20")
    rebuilt.load_state_dict(small.state_dict())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert torch.equal(rebuilt(x), small(x))
    assert rebuilt.kept_channels == small.kept_channels == prune_model(model, plan).kept_channels


@pytest.mark.parametrize("residual", [pytest.param(True, marks=pytest.mark.slow), False])
def test_export_of_a_sub_network(residual):
    if residual:
        model = random_network(lambda: build_backbone("resnet20", 5))
        masks = random_masks(model, BACKBONES["resnet20"].gates(), 32, share=0.3)
        masks["layer2.0"] = torch.arange(32) < 4
        small = sub_network(model, masks, arch="resnet20")
    else:
        model = random_network(Own)
        small = sub_network(model, random_masks(model, ["act", "again", "pool"], 16), input_size=(3, 16, 16))
        assert any(isinstance(part, GatedLayer) for part in small.modules())
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64) if residual else torch.randn(3, 3, 16, 16, dtype=torch.float64)
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(small, (x[:2],), dynamic_shapes=({0: batch},)).module()
    assert_close(exported(x), small(x))


class Own(nn.Module):
    """A sum, a grouped convolution, a concatenation, a depthwise convolution, flattened 2x2 maps; looks into layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 6, 3, padding=1, groups=2)
        self.left = nn.Conv2d(6, 4, 1)
        self.right = nn.Conv2d(6, 2, 3, padding=1)
        self.join = nn.Identity()
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = self.act(self.norm(self.stem(x.to(self.stem.weight.dtype))))
        x = F.relu_(self.again(x)) + x
        x = F.relu(self.grouped(x))
        x = self.join(torch.cat([F.relu(self.left(x)), self.right(x)], 1))
        x = self.pool(F.relu(self.depthwise(x)))
        return self.head(torch.flatten(x, 1))


def only(full, *ids):
    mask = torch.zeros(full, dtype=torch.bool)
    mask[list(ids)] = True
    return mask


@pytest.mark.parametrize(
    ("masks", "widths"),
    [
        ({"pool": only(6, 1, 4)}, {"left": 1, "right": 1, "depthwise": 2, "head": 8}),
        ({"join": only(6, 0, 1, 5)}, {"left": 2, "right": 1, "depthwise": 3, "head": 12}),
        ({"left": only(4, 2), "join": only(6, 2, 3, 4)}, {"left": 1, "right": 1, "head": 8}),
        # two blocks of four lose two each; one channel too many stays, masked
        ({"act": only(8, 0, 5, 6), "again": only(8, 0, 5, 6)}, {"stem": 4, "again": 4, "grouped": 6}),
        ({"act": only(8, 0, 5), "again": only(8, 1, 6)}, {"stem": 4, "again": 4}),
        ({"again": only(8, 1, 6)}, {"stem": 8, "again": 8}),  # the shortcut stays open
        ({"stem": only(8, 1, 6)}, {"stem": 8}),  # its norm makes constants of zeros
        ({"head": only(5, 0, 1)}, {"head": 24}),  # vectors
    ],
)
def test_channels_that_arrive_as_zeros_go(masks, widths):
    small = check(random_network(Own), masks, 16)
    for name, width in widths.items():
        layer = small.get_submodule(name)
        assert (layer.in_features if name == "head" else layer.out_channels) == width, name


def test_a_network_given_as_an_object_is_named_by_numbers():
    model = random_network(
        lambda: nn.Sequential(
            nn.Conv2d(3, 10, 3),
            nn.BatchNorm2d(10),
            nn.ReLU(True),
            nn.MaxPool2d(2),
            nn.Conv2d(10, 12, 3),
            nn.ReLU(True),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(48, 3),
        )
    )
    small = check(model, {"3": only(10, 0, 7, 9), "5": only(12, 1, 2), "6": only(12, 1, 11)}, 16)
    assert (small[0].out_channels, small[4].out_channels, small[8].in_features) == (3, 1, 4)
    assert not any(isinstance(part, GatedLayer) for part in small)


def test_open_gates_change_nothing():
    model = random_network(Own)
    small = sub_network(model, {"act": torch.ones(8, dtype=torch.bool)}, input_size=(3, 16, 16))
    assert [name for name, _ in small.named_modules()] == [name for name, _ in model.named_modules()]
    assert all(torch.equal(value, small.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
def test_vgg16_of_torchvision_shrinks():
    model = random_network(own_vgg16)
    masks = random_masks(model, VGG16, 32)
    small = check(model, masks, 32)
    assert not any(isinstance(part, GatedLayer) for part in small.modules())
    assert [part.out_channels for part in small.features if isinstance(part, nn.Conv2d)] == [
        int(mask.sum()) for mask in masks.values()
    ]


STRANGERS = {  # what torchvision builds is traced also where we have a table
    "densenet121": (lambda: models.densenet121(num_classes=5), DENSENET),
    "mobilenet_v2": (lambda: models.mobilenet_v2(num_classes=5), MOBILENET),
    "mobilenet_v3_small": (lambda: models.mobilenet_v3_small(num_classes=5), [f"features.{i}" for i in range(13)]),
    "resnet18": (lambda: models.resnet18(num_classes=5), [f"layer{s}.{i}" for s in (1, 2, 3, 4) for i in (0, 1)]),
    **{
        arch: (lambda arch=arch: build_backbone(arch, 5), list(BACKBONES[arch].gates()))
        for arch in ("mobilenet_v1_x025", "densenet40_cifar", "googlenet_cifar", "darts")
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STRANGERS)
def test_networks_without_a_table(name):
    build, points = STRANGERS[name]
    model = random_network(build)
    small = check(model, random_masks(model, points, 64), 64)
    shrinks = not name.startswith("densenet")  # where the norm behind a gate makes constants of zeros
    assert (parameters(small) < 0.95 * parameters(model)) == shrinks


def hidden(channels=32):
    """Vectors behind the pool, of which random weights leave many dead."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(8, channels, 1),
        nn.ReLU(),
        nn.Conv2d(channels, 4, 1),
        nn.Flatten(),
    )


def test_activations_that_are_dead_by_chance_are_no_closed_channels():
    small = check(random_network(hidden), {"1": only(8, 2), "4": torch.arange(32) % 2 == 0}, 8)
    assert (small[0].out_channels, small[3].out_channels) == (1, 16)


def test_groups_that_spoil_the_outputs_stay_whole(monkeypatch):
    removable = removal._removable
    monkeypatch.setattr(
        removal, "_removable", lambda group, zero: {0, 1} if group.root == "3" else removable(group, zero)
    )
    small = check(random_network(hidden), {"1": only(8, 2), "4": only(32, *range(20))}, 8)
    assert (small[0].out_channels, small[3].out_channels) == (1, 32)
    assert isinstance(small[4], GatedLayer)


def test_what_cannot_be_followed_is_masked():
    def perceptron():
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))

    small = check(random_network(perceptron), {"2": only(6, 1, 2), "4": only(6, 0, 5)}, 4)
    assert small[2].mask.tolist() == [[0, 1, 1, 0, 0, 0]]
    assert parameters(small) == parameters(perceptron())


class Twice(nn.Module):
    """One ReLU under two names, and a stage whose end and whose inside have gates."""

    def __init__(self):
        super().__init__()
        self.a = self.b = nn.ReLU()
        self.conv = nn.Conv2d(3, 6, 3)
        self.stage = nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3), nn.Tanh(), nn.BatchNorm2d(6))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.b(self.stage(self.a(self.conv(x)))).mean((2, 3)))


@pytest.mark.parametrize("points", [["a"], ["b"], ["stage", "stage.1"], ["stage.2", "stage"]])
def test_gates_inside_gates_and_modules_with_two_names(points):
    check(random_network(Twice), {point: only(6, i, 3, 4) for i, point in enumerate(points)}, 8)


def test_type_and_flags_are_the_networks():
    model = Own().half().train().requires_grad_(False)
    model.norm.eval()
    small = sub_network(model, {"act": only(8, 0, 5), "stem": only(8, 0, 1)}, input_size=(3, 16, 16))
    assert {tensor.dtype for tensor in (*small.parameters(), small.act.mask)} == {torch.float16}
    assert not any(parameter.requires_grad for parameter in small.parameters())
    assert (small.training, small.act.training, small.norm.training) == (True, True, False)


def test_a_network_that_was_narrowed_before_has_channels_of_its_own():
    whole = random_network(lambda: build_backbone("resnet20", 5))
    model = prune_model(whole, gated_plan("resnet20", {"layer3.2": torch.arange(64) < 8}))
    check(model, {"layer3.2": only(8, 0, 7)}, 32, "resnet20")


def test_a_gate_beside_the_table_is_traced():
    model = random_network(lambda: build_backbone("resnet20", 5))
    small = check(model, {"layer1.0.relu1": only(16, 3), "layer1.0": torch.arange(16) > 0}, 32, "resnet20")
    assert small.layer1[0].conv1.out_channels == 1


@pytest.mark.parametrize("arch", [None, "resnet20"])
@pytest.mark.parametrize(
    ("point", "mask", "message"),
    [
        ("layer1.0", torch.zeros(16, dtype=torch.bool), "no gate of 'layer1.0' is open.* lower beta.* more epochs"),
        ("layer1.7", torch.ones(16, dtype=torch.bool), "masks names 'layer1.7', which is no module .*'layer1.2'"),
        ("layer1.0", torch.ones(32, dtype=torch.bool), "mask of 'layer1.0' has 32 entries, its output 16 channels"),
        ("layer1.0", torch.ones(16), r"mask of 'layer1.0' must be \(C,\) bool, got torch.float32 \(16,\)"),
    ],
)
def test_masks_that_fit_no_gate(arch, point, mask, message):
    with pytest.raises(ValueError, match=message):
        sub_network(build_backbone("resnet20"), {point: mask}, arch=arch, input_size=(3, 32, 32))


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def test_what_cannot_be_rebuilt():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Noise(), nn.Conv2d(4, 2, 1)).eval()
    with pytest.raises(ValueError, match=r"cannot be rebuilt with masks behind 0: .* other outputs each time"):
        sub_network(net, {"0": only(4, 1)}, input_size=(3, 8, 8))
    with pytest.raises(ValueError, match=r"input_size=\(1, 8, 8\): the network does not run on such images"):
        sub_network(net, {"0": only(4, 1)}, input_size=(1, 8, 8))
    with pytest.raises(ValueError, match="no table tells which filters of vgg16 go with its gates; there is one for"):
        gated_plan("vgg16", {})
    with pytest.raises(ValueError, match=r"resnet20 has no gate point 'layer1.0.relu1'"):
        gated_plan("resnet20", {"layer1.0.relu1": only(16, 1)})


def test_without_torch_pruning_the_cure_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ValueError, match=r"pip install 'lit-methods\[prune\]'"):
        sub_network(Own(), {"act": only(8, 1)}, input_size=(3, 16, 16))
