"""A gated network: what the gates do to it, and what they leave alone."""

import copy
import gc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from lit_methods.backbones import build_backbone
from lit_methods.backbones.darts import darts_imagenet as backbones_darts_imagenet
from lit_methods.nad.gating import GATE_POINTS, GatedModel, darts_imagenet
from tests.nad_probes import MODES, fill, gate_logits, probe_image
from tests.nad_small import SIZE, Strange, gated_small, hooks_of, images, small

CHANNELS = {  # of the paper's networks, first gate to last
    "vgg16": [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512],
    "resnet50": [64, *[256] * 3, *[512] * 4, *[1024] * 6, *[2048] * 3],
    "densenet121": [64, 256, 128, 512, 256, 1024, 512, 1024],
    "darts": [48, 48, *[192] * 4, *[384] * 5, *[768] * 5],
}


def small_by_hand(network, x, gates):
    """The same network with gates written into it, and the maps behind them."""
    first = network.norm1(network.conv1(x)).relu() * gates[0].view(-1, gates[0].shape[-1], 1, 1)
    second = network.norm2(network.conv2(first)).relu() * gates[1].view(-1, gates[1].shape[-1], 1, 1)
    return network.fc(second.mean((2, 3))), [first, second]


class Rectified(nn.Module):
    """Like the end of a DenseNet, or the start of a DARTS cell: a functional ReLU works on the gated tensor."""

    def __init__(self, change=lambda x: F.relu(x, inplace=True)):
        super().__init__()
        self.conv, self.norm, self.fc, self.change = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(5, 4), change

    def forward(self, x):
        return self.fc(self.change(self.norm(self.conv(x))).mean((2, 3)))


def add_in_place(x):
    x += 1.5
    return x


def rectify_and_add(x):
    return add_in_place(F.relu(x, inplace=True))


# what it computes


@pytest.mark.parametrize("mode", ["off", "soft", "hard"])
def test_gates_do_what_they_would_do_written_into_the_network(mode):
    gated, x = gated_small(num_tasks=2), images()
    rows = [m[1].detach() for m in gated.gate_logits]
    gates = {"off": [torch.ones_like(m) for m in rows], "soft": [m.sigmoid() for m in rows]}
    gates["hard"] = [(m > 0).float() for m in rows]
    logits, maps = gated(x, task=1, mode=mode, return_activations=True)
    expected, expected_maps = small_by_hand(gated.model, x, gates[mode])
    assert_close(logits, expected)
    assert len(maps) == 2
    for found, wanted in zip(maps, expected_maps, strict=True):
        assert_close(found, wanted)
    assert torch.equal(gated(x, task=1, mode=mode), logits)


def test_hard_gates_are_soft_ones_that_are_saturated():
    gated, x = gated_small(num_tasks=3), images()
    hard = gated(x, task=2, mode="hard")
    for gate in gated.gate_logits:
        gate.data = torch.where(gate > 0, 1000.0, -1000.0)
    soft = gated(x, task=2)
    assert torch.equal(soft, hard)
    assert not torch.equal(soft, gated(x, mode="off"))
    soft.sum().backward()
    assert all(not gate.grad.any() for gate in gated.gate_logits)


def networks():
    cifar = build_backbone("resnet20", 10).eval()
    for part in cifar.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(std=0.2), part.running_var.uniform_(0.5, 2)
    line = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    return {
        "small": (small(), ["relu1", "relu2"], SIZE),
        "before an in-place ReLU": (small(), ["norm1", "conv2", "norm2"], SIZE),
        "rectified in place": (Rectified().eval(), ["conv", "norm"], SIZE),
        "added to in place": (Rectified(add_in_place).eval(), ["norm"], SIZE),
        "both": (Rectified(rectify_and_add).eval(), ["norm"], SIZE),
        "vectors": (line, ["1"], (6,)),
        "resnet20": (cifar, GATE_POINTS["resnet20"], (3, 32, 32)),
    }


@pytest.mark.parametrize("name", networks())
def test_gates_that_are_off_leave_exactly_the_plain_network(name):
    network, points, size = networks()[name]
    x = images(2, size)
    before = network(x)
    gated = GatedModel(network, points, num_tasks=2, input_size=size)
    logits, maps = gated(x, task=1, mode="off", return_activations=True)
    assert torch.equal(logits, before)
    assert torch.equal(gated(x, mode="off"), before)
    assert torch.equal(network(x), before)
    assert len(maps) == len(points)
    assert [a.shape[1] for a in maps] == [m.shape[1] for m in gated.gate_logits]
    assert not torch.equal(gated(x, task=1), before)
    for gate in gated.gate_logits:
        gate.data.fill_(1000)
    assert torch.equal(gated(x, task=1), before)
    assert torch.equal(gated(x, task=1, mode="hard"), before)


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_images_with_tasks_of_their_own_are_the_images_one_by_one(mode):
    gated, x = gated_small(num_tasks=3, dtype=torch.float64), images(6, dtype=torch.float64)
    task = [2, 0, 1, 1, 2, 0]
    logits, maps = gated(x, torch.tensor(task), mode, return_activations=True)
    for i, k in enumerate(task):
        alone, alone_maps = gated(x[i : i + 1], k, mode, return_activations=True)
        assert_close(logits[i : i + 1], alone, rtol=1e-12, atol=1e-14)
        for found, wanted in zip(maps, alone_maps, strict=True):
            assert_close(found[i : i + 1], wanted, rtol=1e-12, atol=1e-14)
    assert not torch.equal(gated(x, 0, mode), gated(x, 1, mode))
    assert torch.equal(gated(x, torch.tensor(2), mode), gated(x, 2, mode))
    assert torch.equal(gated(x, torch.tensor(task, dtype=torch.int32), mode), logits)


def test_gradients_reach_the_rows_of_the_tasks_alone():
    gated = gated_small(num_tasks=4)
    gated(images(), torch.tensor([1, 3, 1])).square().sum().backward()
    for gate in gated.gate_logits:
        assert gate.grad[[1, 3]].any(1).all()
        assert not gate.grad[[0, 2]].any()


def test_activations_carry_gradients_to_the_gates():
    gated = gated_small()
    _, maps = gated(images(), return_activations=True)
    first = torch.autograd.grad(maps[1].sum(), list(gated.gate_logits))
    assert all(grad.any() for grad in first)


def test_points_may_be_given_in_any_order():
    network, x = small(), images()
    one = GatedModel(network, ["relu1", "relu2"], input_size=SIZE)
    other = GatedModel(network, ["relu2", "relu1"], input_size=SIZE)
    other.gate_logits[0].data, other.gate_logits[1].data = one.gate_logits[1].data, one.gate_logits[0].data
    (logits, maps), (swapped, swapped_maps) = (g(x, return_activations=True) for g in (one, other))
    assert torch.equal(logits, swapped)
    assert all(torch.equal(a, b) for a, b in zip(maps, swapped_maps[::-1], strict=True))


def test_what_is_recorded_is_rectified_where_the_network_rectifies_in_place():
    network, x = Rectified().eval(), images()
    gated = GatedModel(network, ["norm"], input_size=SIZE)
    behind = network.norm(network.conv(x))
    assert behind.min() < 0
    gate = gated.gate_logits[0].detach().sigmoid().view(1, -1, 1, 1)
    for mode, expected in (("off", behind.relu()), ("soft", (behind * gate).relu())):
        logits, (found,) = gated(x, mode=mode, return_activations=True)
        assert torch.equal(found, expected)
        assert_close(logits, network.fc(expected.mean((2, 3))))
    grad = torch.autograd.grad(found.sum(), gated.gate_logits[0])[0]
    assert_close(grad[0], (behind.relu().sum((0, 2, 3)) * (gate * (1 - gate)).flatten()))


@pytest.mark.parametrize("change", [add_in_place, rectify_and_add])
def test_what_is_recorded_does_not_see_additions_in_place(change):
    network, x = Rectified(change).eval(), images()
    gated = GatedModel(network, ["norm"], input_size=SIZE)
    behind = network.norm(network.conv(x))
    gate = gated.gate_logits[0].detach().sigmoid().view(1, -1, 1, 1)
    for mode, expected in (("off", behind), ("soft", behind * gate), ("hard", behind * (gate > 0.5))):
        logits, (found,) = gated(x, mode=mode, return_activations=True)
        assert torch.equal(found, expected)
        assert_close(logits, network.fc(change(expected.clone()).mean((2, 3))))
    if change is add_in_place:  # the other network has no gradients by itself
        gated(x).sum().backward()
        assert gated.gate_logits[0].grad.any()


@pytest.mark.parametrize(
    ("dtype", "gates"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_gates_fit_the_type_of_the_network(dtype, gates):
    gated, x = gated_small(dtype=dtype), images(dtype=dtype)
    assert {gate.dtype for gate in gated.gate_logits} == {gates}
    for mode in ("off", "soft", "hard"):
        logits, maps = gated(x, mode=mode, return_activations=True)
        assert {t.dtype for t in (logits, *maps)} == {dtype}
    assert torch.equal(gated(x, mode="off"), gated.model(x))
    gated(x).float().square().sum().backward()
    for gate in gated.gate_logits:
        assert gate.grad.dtype == gates
        assert gate.grad.isfinite().all()
        assert gate.grad.any()


# the gates themselves


def test_gates_start_from_a_normal_distribution_that_the_seed_decides():
    torch.manual_seed(3)
    network = small()
    torch.manual_seed(7)
    first = GatedModel(network, ["relu1", "relu2"], 3000, input_size=SIZE).gate_logits
    torch.manual_seed(7)
    again = GatedModel(network, ["relu1", "relu2"], 3000, input_size=SIZE).gate_logits
    for gate, same, channels in zip(first, again, (5, 6), strict=True):
        assert gate.shape == (3000, channels)
        assert gate.requires_grad
        assert torch.equal(gate, same)
        assert abs(float(gate.detach().mean())) < 0.05
        assert abs(float(gate.detach().std()) - 1) < 0.05


def test_masks_are_what_hard_gates_keep():
    gated = GatedModel(small(), ["relu1", "relu2"], 2, input_size=SIZE, threshold=0.7)
    assert gated.num_tasks == 2
    assert gated.num_classes == 4
    gated.gate_logits[0].data[1] = torch.tensor([0.5, 0.9, -1.0, 0.0, 5.0])  # sigmoids .62 .71 .27 .5 .99
    masks = gated.masks(1)
    assert list(masks) == gated.gate_points == ["relu1", "relu2"]
    assert masks["relu1"].tolist() == [False, True, False, False, True]
    for point, mask, kept in zip(masks.values(), gated.open_gates(), (5, 6), strict=True):
        assert mask.dtype == torch.bool
        assert mask.shape == (2, kept)
        assert torch.equal(point, mask[1])
        assert not mask.requires_grad
    x = images()
    expected, _ = small_by_hand(gated.model, x, [m.float() for m in masks.values()])
    assert_close(gated(x, 1, "hard"), expected)


def test_gates_travel_with_the_state_and_with_copies():
    gated, x = gated_small(num_tasks=2), images()
    other = gated_small(num_tasks=2)
    assert not torch.equal(other(x, 1), gated(x, 1))
    other.load_state_dict(gated.state_dict())
    twin = copy.deepcopy(gated)
    for one in (other, twin):
        assert torch.equal(one(x, 1), gated(x, 1))
    twin.gate_logits[0].data.zero_()
    assert not torch.equal(twin(x, 1), gated(x, 1))


# what it leaves alone


@pytest.mark.parametrize("training", [True, False])
def test_weights_buffers_and_modes_are_left_alone(training):
    network = small().train(training)
    network.norm2.train(not training)
    network.conv1.weight.requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    modes = [part.training for part in network.modules()]
    wants = [p.requires_grad for p in network.parameters()]
    gated = GatedModel(network, ["relu1", "relu2"], 2, input_size=SIZE)
    assert [part.training for part in network.modules()] == modes
    network.eval()
    for mode in ("off", "soft", "hard"):
        gated(images(), 1, mode)
    assert gated.model is network
    assert [p.requires_grad for p in network.parameters()] == wants
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert hooks_of(gated) == 0


def test_a_look_that_fails_leaves_the_network_as_it_was():
    network = small().train()
    network.norm1.eval()
    modes = [part.training for part in network.modules()]
    with pytest.raises(ValueError, match=r"does not run at input_size=\(4, 8, 8\)"):
        GatedModel(network, ["relu1"], input_size=(4, 8, 8))
    with pytest.raises(ValueError, match="no maps"):
        GatedModel(Strange("triple"), ["odd"], input_size=SIZE)
    assert [part.training for part in network.modules()] == modes
    assert hooks_of(network) == 0


def test_no_hook_is_left_after_an_error_in_the_network():
    gated = gated_small()
    with pytest.raises(RuntimeError, match="channels"):
        gated(images(size=(4, 8, 8)))
    assert hooks_of(gated) == 0
    assert torch.equal(gated(images(1) * 0, mode="off"), gated.model(images(1) * 0))


def test_hundreds_of_calls_leave_no_hook_and_no_object_behind():
    gated, x = gated_small(num_tasks=2), images(1)

    def passes(number):
        for i in range(number):
            gated(x, i % 2, ("off", "soft", "hard")[i % 3], return_activations=i % 2 == 0)
        gc.collect()
        return len(gc.get_objects())

    before = passes(6)
    assert passes(300) - before < 60
    assert hooks_of(gated) == 0


def test_a_network_without_batch_norm_or_dropout_may_be_in_training_mode():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).train()
    gated, x = GatedModel(network, ["2"], input_size=SIZE), images()
    assert torch.equal(gated(x, mode="off"), network.eval()(x))


# the paper's networks


@pytest.mark.parametrize("arch", [pytest.param("vgg16", marks=pytest.mark.slow), "resnet50", "densenet121", "darts"])
def test_the_papers_networks_have_the_papers_gates(arch):
    with torch.device("meta"):
        network = build_backbone(arch, 7)
    network.to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.zero_()
    gated = GatedModel(network, GATE_POINTS[arch], input_size=(3, 32, 32))
    assert [gate.shape[1] for gate in gated.gate_logits] == CHANNELS[arch]
    assert gated.num_classes == 7


@pytest.mark.slow
@pytest.mark.parametrize("arch", list(CHANNELS))
def test_gated_networks_say_what_the_official_ones_do(arch, vectors):
    expected = np.load(vectors / "nad" / f"arch_probe_{arch}.npz")
    with torch.device("meta"):
        network = build_backbone(arch, 1000)
    gated = GatedModel(fill(network), GATE_POINTS[arch], input_size=(3, 64, 64))
    shift = float(expected["input_shift"])
    for gate, value in zip(gated.gate_logits, gate_logits(expected["gate_sizes"], shift), strict=True):
        gate.data = value[None]
    for name, mode in zip(MODES, ("off", "soft", "hard"), strict=True):
        with torch.no_grad():
            (logits,), maps = gated(probe_image(shift), mode=mode, return_activations=True)
        official = torch.from_numpy(expected[f"logits_{name}"])
        assert_close(logits, official, rtol=1e-9, atol=1e-9 * float(official.abs().max()))
        found = {
            "mean": [a.mean() for a in maps],
            "l2": [a.flatten().norm() for a in maps],
            "min": [a.min() for a in maps],
        }
        for what, values in found.items():
            official = torch.from_numpy(expected[f"gate_out_{what}_{name}"])
            assert_close(torch.stack(values), official, rtol=1e-9, atol=1e-12)


def test_darts_can_be_had_from_where_the_gates_are():
    assert darts_imagenet is backbones_darts_imagenet
