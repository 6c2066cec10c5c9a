"""Removing filters gives exactly what masking them gives."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lit_methods.backbones import (
    BACKBONES,
    Backbone,
    PrunePlan,
    PrunePoint,
    WidthPlan,
    apply_masks,
    build_backbone,
    cut_network,
    prune_model,
    prune_points,
)
from lit_methods.backbones.wiring import Channels, Wiring
from lit_methods.functional import count_macs
from tests.hrank_vectors import FILES, RATES, fill, random_plan, randomised

SIZES = {"resnet50": 64, "googlenet_cifar": 16, "vgg16_bn_cifar": 16}
LARGE = ("resnet110", "resnet50", "densenet40_cifar")
CASES = [
    pytest.param(arch, residual, marks=pytest.mark.slow if arch in LARGE else ())
    for arch in FILES
    for residual in (("live", "scatter") if arch.startswith("resnet") else ("live",))
]


def cut(tensor, rows, columns):
    """An independent slice of a full tensor, by ids."""
    array = tensor.detach().numpy()
    if rows is not None and array.ndim:
        array = array[rows]
    if columns is not None and array.ndim > 1:
        array = array[:, columns]
    return torch.from_numpy(np.array(array))


@pytest.mark.parametrize(("arch", "residual"), CASES)
def test_masked_equals_physical(arch, residual):
    size = SIZES.get(arch, 32)
    model = randomised(arch)
    plan = random_plan(arch, RATES[arch])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    thin = prune_model(model.eval(), plan, residual)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    apply_masks(model, plan)

    x = torch.randn(3, 3, size, size)
    with torch.no_grad():
        expected, actual = model(x), thin(x)
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()

    masked, thin, x = model.double(), thin.double(), x.double()
    with torch.no_grad():
        torch.testing.assert_close(thin(x), masked(x), rtol=1e-10, atol=1e-10)
    if residual == "scatter":
        return
    target = torch.tensor([0, 1, 2])
    outputs = []
    for net in (masked.train(), thin.train()):
        outputs.append(net(x))
        F.cross_entropy(outputs[-1], target).backward()
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-9)
    for name, (rows, columns) in thin.kept_channels.items():
        full, small = masked.get_submodule(name), thin.get_submodule(name)
        for key, parameter in small.named_parameters():
            gradient = cut(full.get_parameter(key).grad, rows, columns)
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-7, atol=1e-9, msg=f"{name}.{key}")
        for key, buffer in small.named_buffers():
            torch.testing.assert_close(buffer, cut(full.get_buffer(key), rows, columns), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("arch", ["vgg16_bn_cifar", "resnet56"])
def test_pruned_network_of_the_vectors(arch, vectors):
    reference = np.load(vectors / "hrank" / f"forward_{FILES[arch]}.npz")
    conv_of = {point.number: point.conv for point in prune_points(arch)}
    keep = {conv_of[key[5:]]: reference[key].tolist() for key in reference if key.startswith("keep_")}
    plan = PrunePlan(arch, keep)
    model = fill(build_backbone(arch), damped=arch == "resnet56").double().eval()
    x, expected = torch.from_numpy(reference["x"]).double(), torch.from_numpy(reference["logits_masked"])
    thin = prune_model(model, plan)
    scatter = prune_model(model, plan, "scatter")
    apply_masks(model, plan)
    for net in (model, thin, scatter):
        with torch.no_grad():
            assert (net(x) - expected).abs().max() < 1e-9 * expected.abs().max()
    assert count_macs(thin) == reference["physical_macs"]
    assert sum(p.numel() for p in thin.parameters()) == reference["physical_params"]
    if arch == "resnet56":
        assert count_macs(scatter) == reference["scatter_macs"]
        assert sum(p.numel() for p in scatter.parameters()) == reference["scatter_params"]


TRUE_COUNTS = {  # macs, params of the pruned network, residual streams at full width
    "vgg16_bn_cifar": (43_232_112, 1_353_859),
    "resnet56": (48_443_968, 414_917),
    "resnet110": (126_869_248, 853_295),
    "densenet40_cifar": (157_654_724, 656_941),
    "googlenet_cifar": (248_687_884, 902_693),
}


@pytest.mark.parametrize("arch", list(TRUE_COUNTS))
def test_true_counts(arch):
    plan = random_plan(arch, RATES[arch])
    thin = build_backbone(arch, plan=plan.to_dict() | {"residual": "scatter"})
    assert (count_macs(thin), sum(p.numel() for p in thin.parameters())) == TRUE_COUNTS[arch]


def resnet50_plan():
    """Kept filters whose unions along the streams have the sizes that the published rates led to."""
    sizes = [[52, 80, 110], [103, 148, 191, 257], [461, 604, 736, 805, 844, 904], [1127, 1361, 1489]]
    counts = {p.conv: len(k) for p, k in _kept(random_plan("resnet50", RATES["resnet50"]))}
    keep = {conv: list(range(n)) for conv, n in counts.items()}
    for stage, unions in enumerate(sizes, start=1):
        for block in range(1, len(unions)):
            conv, new = f"layer{stage}.{block}.conv3", unions[block] - unions[block - 1]
            keep[conv] = [*range(counts[conv] - new), *range(unions[block - 1], unions[block])]
    return PrunePlan("resnet50", keep)


def _kept(plan):
    return [(p, plan.keep[p.conv]) for p in prune_points(plan.arch) if p.conv in plan.keep]


def test_true_counts_of_resnet50():
    plan = resnet50_plan()
    live, scatter = (
        build_backbone("resnet50", 1000, plan.to_dict() | {"residual": residual}) for residual in ("live", "scatter")
    )
    assert live.layer4[2].channels.full == 2048
    assert live.fc.in_features == 1489
    assert count_macs(live, (3, 224, 224)) == 804_899_762
    assert sum(p.numel() for p in live.parameters()) == 8_265_732
    assert count_macs(scatter, (3, 224, 224)) == 989_070_190
    assert sum(p.numel() for p in scatter.parameters()) == 9_841_121


@pytest.mark.parametrize(
    "arch", ["resnet20", "densenet40_cifar", pytest.param("googlenet_cifar", marks=pytest.mark.slow)]
)
def test_pruning_twice_is_pruning_once(arch):
    model = randomised(arch, 4).eval()
    groups = dict.fromkeys(point.group for point in prune_points(arch))
    plan = random_plan(arch, f"[0.5]*{len(groups)}")
    first = PrunePlan(arch, dict(list(plan.keep.items())[::2]))
    once, twice = prune_model(model, plan), prune_model(prune_model(model, first), plan)
    assert once.kept_channels == twice.kept_channels
    for key, value in once.state_dict().items():
        assert torch.equal(twice.state_dict()[key], value), key
    masked = prune_model(model, first)
    apply_masks(masked, plan)  # masks on a network that is thin already
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(masked(x), twice(x))


def test_masks_keep_bits_and_zero_the_rest():
    model = randomised("densenet40_cifar")
    before = copy.deepcopy(model.state_dict())
    apply_masks(model, PrunePlan("densenet40_cifar", {"conv1": [1, 4], "dense1.0.conv1": [0, 11]}))
    after = model.state_dict()
    kept = [1, 4, 24, 35]  # in the concatenation behind the first layer
    gone = [i for i in range(36) if i not in kept]
    assert torch.equal(after["dense1.1.bn1.weight"][kept], before["dense1.1.bn1.weight"][kept])
    assert (after["dense1.1.bn1.weight"][gone] == 0).all()
    assert (after["dense1.1.bn1.bias"][gone] == 0).all()
    assert torch.equal(after["dense1.1.bn1.running_mean"], before["dense1.1.bn1.running_mean"])
    assert torch.equal(after["dense1.1.conv1.weight"], before["dense1.1.conv1.weight"])
    assert torch.equal(after["conv1.weight"][[1, 4]], before["conv1.weight"][[1, 4]])
    assert after["conv1.weight"].count_nonzero() == before["conv1.weight"][[1, 4]].count_nonzero()


def test_masking_after_each_step_trains_like_the_small_network():
    model = randomised("resnet20").double()
    plan = random_plan("resnet20", "[0.5]*19")
    thin = prune_model(model, plan)
    apply_masks(model, plan)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4) for m in (model, thin)]
    for step in range(3):
        x = torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        for net, optimizer in zip((model, thin), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(net(x), torch.arange(4)).backward()
            optimizer.step()
        apply_masks(model, plan)
    for name, (rows, columns) in thin.kept_channels.items():
        full, small = model.get_submodule(name), thin.get_submodule(name)
        for key, parameter in small.named_parameters():
            wide = full.get_parameter(key)
            torch.testing.assert_close(parameter.data, cut(wide, rows, columns), rtol=1e-8, atol=1e-10)
            if rows is not None:
                gone = [i for i in range(len(wide)) if i not in rows]
                assert wide[gone].count_nonzero() == 0


def test_result_has_dtype_modes_flags_and_leaves_random_numbers_alone():
    model = build_backbone("resnet20", 7).half().train()
    model.layer1[0].bn1.eval()
    model.conv1.weight.requires_grad_(False)
    model.layer2[0].bn2.eps = 0.25
    model.to(memory_format=torch.channels_last)
    state = torch.get_rng_state()
    thin = prune_model(model, PrunePlan("resnet20", {"layer1.0.conv1": [3], "layer3.2.conv2": [5, 63]}))
    assert torch.equal(torch.get_rng_state(), state)
    assert {p.dtype for p in thin.parameters()} == {torch.float16}
    assert thin.training
    assert not thin.layer1[0].bn1.training
    assert not thin.conv1.weight.requires_grad
    assert thin.fc.weight.requires_grad
    assert thin.fc.out_features == 7
    assert thin.layer2[0].bn2.eps == 0.25
    assert thin.layer1[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert thin.conv1.weight.data_ptr() != model.conv1.weight.data_ptr()


def test_torchvisions_resnet50_can_be_pruned():
    from torchvision.models import resnet50

    model, plan = resnet50(num_classes=5).eval(), random_plan("resnet50", RATES["resnet50"])
    thin = prune_model(model, plan)
    apply_masks(model, plan)
    assert thin.layer1[0].conv3.weight.stride() == (13, 1, 1, 1)  # not taken for channels_last
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, actual = model(x), thin(x)
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()


def test_plan_round_trip_through_the_builder():
    plan = random_plan("resnet20", "[0.5]*19")
    assert PrunePlan.from_dict(plan.to_dict()) == plan
    model = randomised("resnet20").eval()
    thin = prune_model(model, plan)
    again = build_backbone("resnet20", plan=plan.to_dict()).eval()
    again.load_state_dict(thin.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), thin(x))


@pytest.mark.parametrize("plan", [None, PrunePlan("resnet20", {"layer1.0.conv2": [3, 9], "conv1": [0, 9, 15]})])
def test_export(plan):
    model = build_backbone("resnet20", plan=plan).eval()
    x = torch.randn(2, 3, 32, 32)
    exported = torch.export.export(model, (x,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(x), model(x))
    if plan is None:
        assert all("index" not in name for name, _ in model.named_buffers())


def test_a_network_of_ones_own(monkeypatch):
    class Tiny(nn.Module):
        def __init__(self, num_classes=10, plan=None):
            super().__init__()
            wiring = Wiring(plan)
            self.conv, stream = wiring.conv("conv", Channels(3), 6, 3)
            self.norm = wiring.norm("norm", stream)
            self.head = wiring.linear("head", stream, num_classes)
            self.kept_channels = wiring.finish()

        def forward(self, x):
            return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))

    monkeypatch.setitem(BACKBONES, "tiny", Backbone(Tiny, lambda: [PrunePoint("conv", "1", "norm", (0, 6))]))
    model, plan = Tiny(3).eval(), PrunePlan("tiny", {"conv": [1, 5]})
    thin = prune_model(model, plan)
    apply_masks(model, plan)
    x = torch.randn(2, 3, 8, 8)
    assert thin.conv.out_channels == 2
    torch.testing.assert_close(thin(x), model(x))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"conv1": []}, "keeps no channel of 'conv1'"),
        ({"conv1": [2, 1]}, "must be rising"),
        ({"conv1": [1, 1]}, "must be rising"),
        ({"conv1": [-1, 2]}, "rising numbers from 0"),
        ({"conv1": [0, 16]}, "channel 16 of 'conv1', which has 16 channels"),
        ({"layer1.0.conv3": [0]}, r"no such convolution; did you mean 'layer1\.0\.conv"),
    ],
)
def test_bad_ids(keep, message):
    with pytest.raises(ValueError, match=message):
        build_backbone("resnet20", plan=PrunePlan("resnet20", keep).to_dict())


def test_bad_models_and_plans():
    plan = PrunePlan("resnet20", {"conv1": [0, 1]})
    with pytest.raises(ValueError, match="'live' or 'scatter'"):
        PrunePlan("resnet20", {}, residual="aligned")
    with pytest.raises(ValueError, match="'live' or 'scatter'"):
        prune_model(build_backbone("resnet20"), plan, "aligned")
    for act in (prune_model, apply_masks):
        with pytest.raises(ValueError, match="another network: only one of the two has a layer"):
            act(build_backbone("resnet56"), plan)
    thin = prune_model(build_backbone("resnet20"), plan)
    with pytest.raises(ValueError, match=r"keeps channels \[2\] at 'conv1', which an earlier pruning already removed"):
        prune_model(thin, PrunePlan("resnet20", {"conv1": [0, 2]}))
    with pytest.raises(ValueError, match="keeps all channels at 'conv1', but the model has only 2"):
        prune_model(thin, PrunePlan("resnet20", {}))
    wide = build_backbone("resnet20")
    wide.layer1[0].conv1 = nn.Conv2d(16, 4, 3, padding=1, bias=False)
    with pytest.raises(ValueError, match=r"'layer1\.0\.conv1' has \(4, 16, 3, 3\)"):
        prune_model(wide, plan)
    with pytest.raises(ValueError, match="Sequential has no linear layer, whose outputs would tell"):
        prune_model(nn.Sequential(nn.Conv2d(3, 4, 3)), plan)
    with pytest.raises(ValueError, match="gives widths of resnet20, not the filters that stay"):
        cut_network(build_backbone("resnet20"), WidthPlan("resnet20", {"layer1.0.conv1": 4}))
