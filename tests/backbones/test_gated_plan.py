"""A plan with gates: what is closed behind a residual sum is gone, shortcut and all."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from lit_methods.backbones import BACKBONES, PrunePlan, apply_masks, build_backbone, prune_model, read_plan
from lit_methods.backbones.kept import GatedPlan
from lit_methods.backbones.wiring import Channels, ResidualSum, Spread, Wiring
from tests.hrank_vectors import randomised


def gate(model, gates):
    """Multiply outputs in the full network."""
    for point, ids in gates.items():

        def close(_, __, output, ids=ids):
            mask = torch.zeros(output.shape[1], dtype=output.dtype)
            mask[ids] = 1
            return output * mask[:, None, None]

        model.get_submodule(point).register_forward_hook(close)
    return model


def channels(draw, full):
    ids = [i for i in range(full) if torch.rand((), generator=draw) < 0.5]
    return Channels.of(full, ids or [int(torch.randint(full, (), generator=draw))])


def wide(x, where):
    """(N, len, H, W) at their places among all channels."""
    out = torch.zeros(x.shape[0], where.full, *x.shape[2:])
    out[:, list(where.listed())] = x
    return out


def test_spread_and_sum_drop_what_the_target_lacks():
    draw = torch.Generator().manual_seed(0)
    full = 5
    runs = [Channels.of(full, range(a, b)) for a in range(full) for b in range(a + 1, full + 1)]  # consecutive ids
    cases = [tuple(channels(draw, full) for _ in range(3)) for _ in range(100)]
    cases += [(a, b, c) for a in runs[::2] for b in runs[::4] for c in runs]
    for source, other, target in cases:
        x, y = (torch.rand(2, len(part), 3, 4, generator=draw) for part in (source, other))
        places = list(target.listed())
        assert_close(Spread(source, target)(x), wide(x, source)[:, places], rtol=0, atol=0)
        total = ResidualSum(source, other, target)(x, y)
        assert_close(total, (wide(x, source) + wide(y, other))[:, places])


def test_nothing_to_do_costs_nothing():
    x = torch.rand(1, 3, 2, 2)
    spread = Spread(Channels(5, (0, 2, 4)), Channels(5, (0, 2, 4)))
    assert spread(x) is x
    assert not list(spread.buffers())
    apart = ResidualSum(Channels(4, (0,)), Channels(4, (2,)), Channels(4, (2,)))
    y = torch.rand(1, 1, 2, 2)
    assert apart(x[:, :1], y) is y  # nothing of the shortcut is left


@pytest.mark.parametrize("shortcut", [(0, 2), (1, 2), (3,), (1, 2, 4)])
@pytest.mark.parametrize("branch", [(0, 2, 4), (1, 2), (2,)])
def test_sums_that_drop_channels_can_be_exported(shortcut, branch):
    parts = [Channels(5, shortcut), Channels(5, branch)]
    total = ResidualSum(*parts, Channels(5, (0, 2, 4)))
    inputs = tuple(torch.rand(2, len(part), 3, 4) for part in parts)
    batch = {0: torch.export.Dim("batch", min=1)}
    exported = torch.export.export(total, inputs, dynamic_shapes=(batch, batch)).module()
    more = [torch.rand(3, len(part), 3, 4) for part in parts]
    assert_close(exported(*more), total(*more))


GATES = {"resnet20": 10, "resnet18": 9, "vgg16_bn_cifar": 13}
LONG = {"resnet56": 28, "resnet110": 55, "resnet34": 17, "resnet50": 17}


@pytest.mark.parametrize(
    ("arch", "number"), [*GATES.items(), *[pytest.param(*row, marks=pytest.mark.slow) for row in LONG.items()]]
)
def test_gates_of_the_tables_go_with_their_filters(arch, number):
    with torch.device("meta"):
        model = build_backbone(arch)
    modules, filters = dict(model.named_modules()), BACKBONES[arch].gates()
    assert len(filters) == number
    order = list(modules)
    assert list(filters) == sorted(filters, key=order.index)
    widths = {}
    for name in filters:
        modules[name].register_forward_hook(lambda _, __, output, name=name: widths.update({name: output.shape[1]}))
    model(torch.zeros(2, *BACKBONES[arch].input_size, device="meta"))
    assert list(widths) == list(filters)  # each is called, in this order
    for name, convs in filters.items():
        assert {modules[conv].out_channels for conv in convs} == {widths[name]}


def test_a_closed_shortcut_is_gone():
    """The middle of the wider stream is all that the shortcut brings; no gate there is open."""
    model = randomised("resnet20").double().eval()
    ids = [0, 3, 7, 24, 31]
    plan = GatedPlan("resnet20", {"layer2.0.conv2": ids}, gates={"layer2.0": ids})
    small = prune_model(model, plan)
    assert small.layer2[0].sum.spread_shortcut.empty
    assert small.layer2[0].channels.ids == tuple(ids)
    assert small.layer2[1].conv1.in_channels == 5
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    without = prune_model(model, PrunePlan("resnet20", plan.keep))(x)
    gated = gate(model, plan.gates)
    assert_close(small(x), gated(x), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(without, gated(x))  # the filters alone leave the shortcut open
    F.cross_entropy(small.train()(x), torch.arange(3)).backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_a_shortcut_is_closed_in_part_and_filters_go_beside_gates():
    model = randomised("resnet20").double().eval()
    keep = {"conv1": [1, 2, 9], "layer1.0.conv1": [4], "layer1.0.conv2": [2, 5], "layer3.1.conv2": [0, 60]}
    gates = {"relu": [1, 9], "layer1.0": [5, 9], "layer2.1": [8, 9, 30], "layer3.1": [7, 60, 63]}
    small = prune_model(model, GatedPlan("resnet20", keep, gates=gates))
    assert small.layer1[0].channels.ids == (5, 9)
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    apply_masks(model, PrunePlan("resnet20", keep))
    assert_close(small(x), gate(model, gates)(x), rtol=1e-10, atol=1e-10)


def test_round_trip_through_the_builder():
    ids = [0, 2, 63]
    plan = GatedPlan("resnet20", {"layer3.0.conv2": tuple(ids)}, gates={"layer3.0": tuple(ids)})
    plain = plan.to_dict()
    assert plain == {
        "arch": "resnet20",
        "keep": {"layer3.0.conv2": ids},
        "residual": "live",
        "gates": {"layer3.0": ids},
    }
    again = read_plan(plain)
    assert type(again) is GatedPlan
    assert again == plan
    model = randomised("resnet20").eval()
    small = prune_model(model, plan)
    rebuilt = build_backbone("resnet20", plan=plain).eval()
    rebuilt.load_state_dict(small.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(rebuilt(x), small(x))
    assert type(read_plan({"arch": "resnet20", "keep": {}})) is PrunePlan
    assert PrunePlan("resnet20", {}).to_dict() == {"arch": "resnet20", "keep": {}, "residual": "live"}


def test_a_gated_network_is_pruned_further_by_the_whole_plan():
    model = randomised("resnet20").eval()
    first = GatedPlan("resnet20", {"layer2.0.conv2": [1, 8, 9]}, gates={"layer2.0": [1, 8, 9]})
    both = GatedPlan("resnet20", first.keep | {"layer1.0.conv1": [3]}, gates=first.gates)
    once, twice = prune_model(model, both), prune_model(prune_model(model, first), both)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(once(x), twice(x))
    with pytest.raises(ValueError, match="plans are cumulative"):
        prune_model(prune_model(model, first), PrunePlan("resnet20", {"layer1.0.conv1": [3]}))


@pytest.mark.parametrize(
    ("keep", "gates", "message"),
    [
        ({}, {"layer1.0": []}, "plan keeps no channel of 'layer1.0'"),
        ({}, {"layer1.0": [3, 1]}, "rising numbers"),
        ({}, {"layer1.0": [16]}, "opens channel 16 behind 'layer1.0', which has 16; ids run from 0 to 15"),
        ({}, {"layer1.3": [1]}, "behind 'layer1.3', where the network has no gate; did you mean 'layer1.2'"),
        ({"conv1": [0]}, {"relu": [1]}, "opens only channels behind 'relu' whose filters are gone"),
    ],
)
def test_gates_that_do_not_exist(keep, gates, message):
    with pytest.raises(ValueError, match=message):
        build_backbone("resnet20", plan={"arch": "resnet20", "keep": keep, "gates": gates})


def test_a_network_without_sums_wants_its_filters_named():
    with pytest.raises(ValueError, match=r"closes channels behind 'features.relu1' whose filters it keeps"):
        build_backbone("vgg16_bn_cifar", plan=GatedPlan("vgg16_bn_cifar", {}, gates={"features.relu1": [0]}))
    thin = {"features.conv1": [0]}
    plan = GatedPlan("vgg16_bn_cifar", thin, gates={"features.relu1": [0]})
    assert build_backbone("vgg16_bn_cifar", plan=plan).features[0].out_channels == 1


def test_what_a_plan_with_gates_refuses():
    with pytest.raises(ValueError, match="must be 'live', got 'scatter'"):
        GatedPlan("resnet20", {}, "scatter", gates={})
    with pytest.raises(ValueError, match="a plan of gates has the keys"):
        read_plan({"arch": "resnet20", "gates": {}})
    with pytest.raises(ValueError, match="use prune_model"):
        apply_masks(build_backbone("resnet20"), GatedPlan("resnet20", {}, gates={"relu": [0]}))


def test_a_network_without_that_plan_is_not_asked_for_gates():
    wiring = Wiring(PrunePlan("mine", {}))
    stream = Channels(4, (1, 2))
    assert wiring.gate("here", stream) is stream
    assert isinstance(wiring.conv("a", stream, 3, 1)[0], nn.Conv2d)
