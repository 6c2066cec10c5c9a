"""Surgery by sketches: the published sizes, and tensor by tensor what is sketched, copied or starts afresh."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from lit_methods.backbones import (
    BACKBONES,
    Backbone,
    Chain,
    PrunePlan,
    WidthPlan,
    build_backbone,
    inner_blocks,
    planned_network,
    prune_model,
    read_plan,
    resnet20,
    resnet56,
)
from lit_methods.backbones.wiring import Channels, Wiring
from lit_methods.filter_sketch.functional import frequent_directions, sketch_conv_weight
from lit_methods.filter_sketch.model import Sketcher, arch_of, sketch_model, sketch_to_plan, widths_at
from lit_methods.filter_sketch.structure import TableStructure
from tests.hrank_vectors import randomised

ROLES = {  # inside a block: dims of the weight that are sketched, in this order
    "resnet20": {"conv1": (0,), "conv2": (1,)},
    "resnet18": {"conv1": (0,), "conv2": (1,)},
    "resnet50": {"conv1": (0,), "conv2": (0, 1), "conv3": (1,)},
    "googlenet_cifar": {
        "n3x3.conv1": (0,), "n3x3.conv2": (1,),
        "n5x5.conv1": (0,), "n5x5.conv2": (0, 1), "n5x5.conv3": (1,),
    },
}  # fmt: skip


def seen(arch, classes=10):
    """A network whose batch norms are not neutral, nor their settings the usual ones."""
    model = randomised(arch, classes)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.num_batches_tracked += 7
            part.eps, part.momentum = 2e-5, 0.2
    return model.eval()


def sketched(arch, model, rates, **options):
    """``sketch_model`` without the search for the name."""
    return sketch_to_plan(model, widths_at(arch, rates), Sketcher(**options, with_report=False))


def stages(name):
    """The block that a layer of GoogLeNet or of a ResNet lies in, and its place there."""
    if name.startswith("stages."):
        _, stage, rest = name.split(".", 2)
        return f"stages.{stage}", rest
    return ".".join(name.split(".")[:2]), name.rpartition(".")[2] if ".downsample" not in name else "downsample"


# -- what becomes of every tensor -----------------------------------------------------------------------------------


def assert_surgery(arch, model, small, rates, **options):
    """Every tensor of ``small`` is what the specification makes of ``model``'s."""
    normalize = options.get("normalize", "l2")
    names = list(dict.fromkeys(stages(conv)[0] for block in inner_blocks(arch) for c in block for conv in c.convs))
    rate_of = dict(zip(names, rates, strict=True))
    assert [n for n, _ in small.named_modules() if n in rate_of] == names  # forward order
    kinds = set()
    for name, layer in small.named_modules():
        if not any(True for _ in layer.parameters(recurse=False)):
            continue
        source, (block, place) = model.get_submodule(name), stages(name)
        conv = place.replace("bn", "conv")  # whose norm it may be
        dims = ROLES[arch].get(conv, ()) if block in rate_of and (rate_of[block] < 1 or normalize) else ()
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.eps, layer.momentum) == (source.eps, source.momentum), name
            if 0 in dims:
                kinds.add("fresh")
                values = {key: set(tensor.flatten().tolist()) for key, tensor in layer.state_dict().items()}
                assert values == {"weight": {1.0}, "bias": {0.0}, "running_mean": {0.0}, "running_var": {1.0},
                                  "num_batches_tracked": {0}}, name  # fmt: skip
                continue
        elif dims:
            kinds.add(f"sketched {dims}")
            expected, full = source.weight.detach(), source.weight.shape
            for dim in dims:
                expected = sketch_conv_weight(expected, int(rate_of[block] * full[dim]), dim, **options)
            assert torch.equal(layer.weight, expected), name
            if layer.bias is not None:
                assert torch.equal(layer.bias, torch.zeros(len(layer.bias)) if 0 in dims else source.bias), name
            continue
        kinds.add(type(layer).__name__)
        for key, tensor in source.state_dict().items():
            assert torch.equal(layer.state_dict()[key], tensor), f"{name}.{key}"
    return kinds


EVERYTHING = {"fresh", "sketched (0,)", "sketched (1,)", "Conv2d", "BatchNorm2d", "Linear"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize": None},
        {"tail": "drop", "channel_layout": "official"},
        {"normalize": None, "tail": "zero"},
    ],
    ids=str,
)
def test_basic_blocks(options):
    rates = [0.1, 0.3, 1.0, 0.4, 0.5, 1.0, 0.6, 0.7, 0.9]
    model = seen("resnet20")
    small = sketch_model(model, rates, **options)
    assert assert_surgery("resnet20", model, small, rates, **options) == EVERYTHING
    assert small.layer1[2].conv1.weight.shape == (16, 16, 3, 3)


@pytest.mark.parametrize(
    ("arch", "rates"),
    [
        ("googlenet_cifar", [0.1, 1.0, 0.25, 1.0, 1.0, 0.07, 1.0, 1.0, 0.1]),
        pytest.param("resnet50", [0.1, 1.0, 0.2, 0.05, *[1.0] * 11, 0.02], marks=pytest.mark.slow),
        pytest.param("resnet18", [0.1, 1.0, 0.2, 1.0, 1.0, 0.3, 0.1, 1.0], marks=pytest.mark.slow),
    ],
)
def test_other_blocks(arch, rates):
    model = seen(arch)
    small = sketch_model(model, rates, normalize=None)
    both = set() if arch == "resnet18" else {"sketched (0, 1)"}
    assert assert_surgery(arch, model, small, rates, normalize=None) == EVERYTHING | both
    with torch.no_grad():
        assert small(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "blocks"), [("googlenet_cifar", 9), ("resnet50", 16), ("resnet18", 8)])
def test_other_blocks_normalised(arch, blocks):
    model = seen(arch)
    assert_surgery(arch, model, sketch_model(model, [0.25] * blocks), [0.25] * blocks)


def test_filters_go_first_and_each_step_is_normalised():
    """The middle of a chain of three, in numbers: the second sketch sees what the first one left."""
    model = seen("tiny")
    small = sketched("tiny", model, [0.5])
    weight = model.body.conv2.weight.detach().double().numpy()
    filters = frequent_directions(torch.from_numpy(weight.reshape(12, -1)), 6).numpy()
    filters = (filters / np.linalg.norm(filters)).reshape(6, 8, 3, 3)
    channels = frequent_directions(torch.from_numpy(filters.transpose(1, 0, 2, 3).reshape(8, -1)), 4).numpy()
    expected = (channels / np.linalg.norm(channels)).reshape(4, 6, 3, 3).transpose(1, 0, 2, 3)
    np.testing.assert_allclose(small.body.conv2.weight.detach().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("arch", ["resnet20", "tiny", "tiny_nobn"])
def test_rate_one_is_the_identity_unless_normalised(arch):
    model, x = seen(arch), torch.randn(4, 3, 32, 32)
    blocks = len(inner_blocks(arch))
    whole = sketched(arch, model, [1.0] * blocks, normalize=None)
    with torch.no_grad():
        assert torch.equal(whole(x), model(x))
    rescaled = sketched(arch, model, [1.0] * blocks)
    first, _, last = inner_blocks(arch)[0][0].convs[0], *inner_blocks(arch)[-1][0].convs[-2:]
    for conv in (first, last):
        ours, theirs = rescaled.get_parameter(f"{conv}.weight"), model.get_parameter(f"{conv}.weight")
        assert_close(ours, theirs / torch.linalg.vector_norm(theirs))
    if arch != "tiny_nobn":
        assert (rescaled.get_parameter(inner_blocks(arch)[0][0].norms[0] + ".weight") == 1).all()


def test_result_has_dtype_modes_flags_and_leaves_all_else_alone():
    model = seen("resnet20", 7).double().train()
    model.layer1[0].bn1.eval()
    for frozen in (model.conv1.weight, model.layer1[0].conv1.weight, model.layer1[0].bn1.bias):
        frozen.requires_grad_(False)
    before, state = copy.deepcopy(model), torch.get_rng_state()
    small = sketch_model(model, [0.5] * 9)
    assert torch.equal(torch.get_rng_state(), state)
    for key, tensor in before.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key
    for reference in (model, small):
        modes = {name: part.training for name, part in before.named_modules()}
        assert {name: part.training for name, part in reference.named_modules() if name in modes} == modes
        flags = {name: parameter.requires_grad for name, parameter in before.named_parameters()}
        assert {name: parameter.requires_grad for name, parameter in reference.named_parameters()} == flags
    assert {p.dtype for p in small.parameters()} == {torch.float64}
    assert small.fc.out_features == 7
    assert all(p.grad_fn is None and p.is_leaf for p in small.parameters())
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in small.parameters()}
    assert not shared
    half = sketch_model(model.bfloat16(), [0.5] * 9)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_sketched_networks_train_and_load():
    small = sketch_model(resnet20(), [0.5] * 9).train()
    F.cross_entropy(small(torch.randn(4, 3, 16, 16)), torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in small.parameters())
    plan = read_plan(widths_at("resnet20", [0.5] * 9).to_dict())
    again = build_backbone("resnet20", plan=plan.to_dict()).eval()
    again.load_state_dict(small.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), small.eval()(x))


def test_torchvisions_network_can_be_sketched():
    from torchvision.models import resnet18

    model = resnet18(num_classes=5).eval()
    small = sketch_model(model, [0.1, *[1.0] * 7], normalize=None)
    assert small.layer1[0].conv1.out_channels == 6
    assert torch.equal(small.layer4[1].conv2.weight, model.layer4[1].conv2.weight)


# -- layers with few numbers per filter -----------------------------------------------------------------------------


class Pointwise(nn.Module):
    """A 1x1 convolution of 16 filters with 3 numbers each, then a 3x3 one."""

    def __init__(self, num_classes=10, plan=None):
        super().__init__()
        wiring = Wiring(plan)
        self.conv1, stream = wiring.conv("conv1", Channels(3), 16, 1)
        self.norm = wiring.norm("norm", stream)
        self.conv2, stream = wiring.conv("conv2", stream, 8, 3)
        self.fc = wiring.linear("fc", stream, num_classes)
        self.kept_channels = wiring.finish()

    def forward(self, x):
        return self.fc(self.conv2(self.norm(self.conv1(x)).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize("normalize", [None, "l2"])
def test_filters_with_fewer_numbers_than_the_sketch_has_rows_stay(monkeypatch, normalize):
    block = (Chain(("conv1", "conv2"), ("norm",), (16,)),)
    monkeypatch.setitem(BACKBONES, "pointwise", Backbone(Pointwise, list, inner_blocks=lambda: [block]))
    model = Pointwise(4)
    model(torch.randn(4, 3, 8, 8))
    for rate in (1.0, 0.5, 3 / 16):  # 16, 8 and 3 rows
        assert widths_at("pointwise", [rate]).mid == {}
        small = sketched("pointwise", model, [rate], normalize=normalize)
        for key, tensor in model.state_dict().items():
            assert torch.equal(small.state_dict()[key], tensor), key
    assert sketched("pointwise", model, [2 / 16], normalize=normalize).conv2.weight.shape == (8, 2, 3, 3)


# -- report ---------------------------------------------------------------------------------------------------------


def covariance_error(a, b):
    return np.linalg.norm(a.T @ a - b.T @ b, 2) / np.linalg.norm(a) ** 2


def test_report():
    model = seen("tiny")
    plan = WidthPlan("tiny", {"body.conv1": 4, "body.conv2": 6})
    sketcher, silent = Sketcher(), Sketcher(with_report=False)
    small, same = (sketch_to_plan(model, plan, by) for by in (sketcher, silent))
    report = sketcher.report
    assert [(r["layer"], r["dim"], r["n"], r["l"]) for r in report] == [
        ("body.conv1", 0, 8, 4), ("body.conv2", 0, 12, 6), ("body.conv2", 1, 8, 4), ("body.conv3", 1, 12, 6),
    ]  # fmt: skip
    filters = sketch_conv_weight(model.body.conv2.weight, 6, 0)
    for row, weight in zip(report, (model.body.conv1.weight, model.body.conv2.weight, filters, model.body.conv3.weight),
                           strict=True):  # fmt: skip
        array = weight.detach().double().numpy()
        a = (array.transpose(1, 0, 2, 3) if row["dim"] else array).reshape(row["n"], -1)
        b, stats = frequent_directions(torch.from_numpy(a), row["l"], return_stats=True)
        assert row["covariance_error"] == pytest.approx(covariance_error(a, b.numpy()), rel=1e-6)
        assert (row["rows_used"], row["shrinks"]) == (stats.rows_used, len(stats.deltas))
        assert row["delta_sum"] == pytest.approx(stats.deltas.sum().item())
        assert row["covariance_error"] <= row["delta_sum"] / np.linalg.norm(a) ** 2 + 1e-12
        assert all(type(value) in (int, float, str) for value in row.values())
    assert silent.report == []
    for key, tensor in small.state_dict().items():
        assert torch.equal(same.state_dict()[key], tensor), key


def test_dropped_rows_are_reported():
    report = sketch_model(seen("resnet20"), [0.9] * 9, tail="drop", return_report=True)[1]
    assert [(r["rows_used"], r["shrinks"]) for r in report if r["n"] == 64] == [(57, 0)] * 6  # "the first l filters"


# -- structure ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["resnet20", "googlenet_cifar", "tiny_deep"])
def test_lowest_rates_leave_a_filter_and_nothing_below_does(arch):
    structure = TableStructure(arch, 10)
    mid = structure.plan(structure.lowest).mid
    for block, rate in zip(inner_blocks(arch), structure.lowest, strict=True):
        widths = {conv: n for chain in block for conv, n in zip(chain.convs, chain.widths, strict=False)}
        assert min(mid.get(conv, n) for conv, n in widths.items()) == 1
        assert int(round(rate - 1e-4, 4) * min(widths.values())) == 0


def test_every_width_has_a_lowest_rate_that_survives_the_way_through_a_removed_fraction():
    for n in range(1, 2049):
        rate = -(-10_000 // n) / 10_000
        assert int(round(1 - (1 - rate), 4) * n) >= 1, n


# -- names ----------------------------------------------------------------------------------------------------------


def test_arch_of_knows_networks_by_their_layers():
    with torch.device("meta"):
        assert arch_of(BACKBONES["tiny_deep"].build(3)) == "tiny_deep"  # the last of them


@pytest.mark.parametrize(
    "model",
    [
        planned_network(PrunePlan("vgg16_bn_cifar", {})),
        resnet20(mid_channels=[8] + [16] * 2 + [32] * 3 + [64] * 3),
        prune_model(resnet20(), PrunePlan("resnet20", {"layer1.0.conv2": [0, 2]}), "scatter"),
        prune_model(resnet20(), PrunePlan("resnet20", {"layer1.0.conv2": [3]}), "scatter"),
    ],
    ids=["no table", "sketched", "hrank scatter", "hrank scatter, one filter"],
)
def test_what_is_no_full_network_with_a_table(model):
    with pytest.raises(ValueError, match=r"no full network with a table of inner blocks \(.*resnet56.*pruned"):
        sketch_model(model, [0.5] * 9)


# -- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "rates", "message"),
    [
        ("resnet20", [0.5] * 8, "resnet20 takes 9 rates, got 8; give the kept fraction of each block"),
        ("resnet20", [0.5] * 8 + [0.0], r"rate=0\.0 must lie in \(0, 1\]"),
        ("resnet20", [1.1] + [0.5] * 8, r"rate=1\.1 must lie in"),
        ("resnet20", [float("nan")] + [0.5] * 8, "rate=nan must lie in"),
        ("resnet20", [0.05] + [0.5] * 8, r"rate=0\.05 keeps none of 16 channels; the smallest usable rate is 0\.0625"),
        ("googlenet_cifar", [0.5] * 8 + [0.02], r"none of 48 channels; the smallest usable rate is 0\.02084"),
        ("densenet40_cifar", [0.5], r"densenet40_cifar has no table of blocks.*there is one for .*resnet56"),
        ("resnet57", [0.5], r"unknown arch 'resnet57'; did you mean"),
    ],
)
def test_rates_that_do_not_fit(arch, rates, message):
    with pytest.raises(ValueError, match=message):
        widths_at(arch, rates)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("conv", ["layer2.1.conv1", "layer3.0.conv2"])
def test_weights_that_are_not_finite_name_their_layer(conv, value):
    model = resnet20()
    with torch.no_grad():
        model.get_parameter(f"{conv}.weight")[3, 2] = value
    with pytest.raises(ValueError, match=rf"^{conv}: .*NaN or infinity"):
        sketch_model(model, [0.5] * 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": "l1"}, "normalize='l1' must be None or 'l2'"),
        ({"tail": "keep"}, "tail='keep' must be one of"),
        ({"channel_layout": "rows"}, "channel_layout='rows' must be one of"),
    ],
)
def test_options_that_do_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        sketch_model(resnet20(), [0.5] * 9, **options)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"arch": "resnet20", "mid": {"layer1.0.conv1": 17}}, r"'layer1\.0\.conv1' 17 filters, the full network has"),
        ({"arch": "resnet20", "mid": {"layer1.0.conv1": 0}}, r"'layer1\.0\.conv1' 0 filters; a convolution needs"),
        ({"arch": "resnet20", "mid": {"layer1.0.conv3": 4}}, r"'layer1\.0\.conv3'.*did you mean 'layer1\.0\.conv"),
        ({"arch": "resnet56", "mid": {}}, "the plan is for arch 'resnet56', the network is 'resnet20'"),
        ({"arch": "resnet20", "mid": {}, "keep": {}}, "keys 'arch' and 'mid'; got .*keep"),
        ({"arch": "resnet20", "mid": {}, "residual": "live"}, "keys 'arch' and 'mid'; got .*residual"),
        ({"mid": {}}, r"keys 'arch' and 'mid'; got \['mid'\]"),
        ({"arch": "resnet20"}, r"a plan has the keys 'arch', 'keep'.*got \['arch'\]"),
        ({"arch": "resnet20", "keep": {}, "widths": {}}, "a plan has the keys .*widths"),
    ],
)
def test_plans_that_do_not_fit(plan, message):
    with pytest.raises(ValueError, match=message):
        build_backbone("resnet20", plan=plan)


@pytest.mark.parametrize(
    ("arch", "conv"),
    [("resnet20", "conv1"), ("resnet20", "layer1.0.conv2"), ("googlenet_cifar", "stages.a3.n1x1.conv1"),
     ("vgg16_bn_cifar", "features.conv1")],
)  # fmt: skip
def test_plans_of_widths_for_what_is_not_inside_a_block(arch, conv):
    with pytest.raises(ValueError, match=conv if arch != "vgg16_bn_cifar" else "no table of blocks"):
        build_backbone(arch, plan={"arch": arch, "mid": {conv: 4}})


@pytest.mark.parametrize(("have", "wanted", "blocks"), [(resnet20, "resnet56", 27), (resnet56, "resnet20", 9)])
def test_a_plan_for_another_network(have, wanted, blocks):
    with pytest.raises(ValueError, match="another network"):
        sketch_to_plan(have(), widths_at(wanted, [0.5] * blocks), Sketcher())
