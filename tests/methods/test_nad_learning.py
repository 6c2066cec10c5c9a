"""Steps of NAD's gates: the official code's, one class at a time or many, and what they find in a planted network."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lit_methods.nad.functional import nad_loss
from lit_methods.nad.gating import GatedModel
from lit_methods.nad.learning import set_gradients
from lit_methods.nad.metrics import Selectivity
from lit_methods.nad.optimizer import NormalizedDescent

EXACT = {"rtol": 0, "atol": 1e-10}


class OfficialToy(nn.Module):
    """The vectors' network: convolutions, the second of stride 2, each with ReLU, perhaps a shortcut, and a gate."""

    def __init__(self, official):
        super().__init__()
        self.residual, number = bool(official["residual"]), int(official["num_layers"])
        self.convs, self.gates = nn.ModuleList(), nn.ModuleList(nn.Identity() for _ in range(number))
        for i in range(number):
            weight = official[f"conv{i}_weight"]
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, stride=2 if i == 1 else 1, padding=1).double()
            conv.weight.data, conv.bias.data = weight, official[f"conv{i}_bias"]
            self.convs.append(conv)
        self.fc = nn.Linear(*reversed(official["fc_weight"].shape)).double()
        self.fc.weight.data, self.fc.bias.data = official["fc_weight"], official["fc_bias"]
        self.points = [f"gates.{i}" for i in range(number)]

    def forward(self, x):
        for conv, gate in zip(self.convs, self.gates, strict=True):
            y = conv(x).relu()
            x = gate(y + x if self.residual and y.shape == x.shape else y)
        return self.fc(x.mean((2, 3)))


@pytest.fixture(params=["train_step_toy", "train_step_residual"])
def official(request, vectors):
    with np.load(vectors / "nad" / f"{request.param}.npz") as file:
        return {key: torch.from_numpy(value) for key, value in file.items()}


def official_gated(official, num_tasks=1):
    network = OfficialToy(official)
    gated = GatedModel(network, network.points, num_tasks, input_size=official["s0_images"].shape[1:])
    network.requires_grad_(False)
    return gated


def steps(official):
    return list(itertools.takewhile(lambda t: f"s{t}_images" in official, itertools.count()))


def start(official, t):
    """Gates before step t, L tensors (C_l,)."""
    names = (f"mask{i}_init" if t == 0 else f"s{t - 1}_mask{i}_after" for i in range(int(official["num_layers"])))
    return [official[name].flatten() for name in names]


def expect(official, t, name):
    """L tensors (C_l,), zeros for the gradients of a step that the official code skips."""
    keys = [f"s{t}_mask{i}_{name}" for i in range(int(official["num_layers"]))]
    return [
        official[k].flatten() if k in official else torch.zeros_like(start(official, t)[i]) for i, k in enumerate(keys)
    ]


def test_the_vectors_have_a_step_without_a_correct_image(official):
    counts = [int(official[f"s{t}_n_correct"]) for t in steps(official)]
    assert len(counts) == (4 if official["residual"] else 5)
    assert any(0 < n < len(official["s0_images"]) for n in counts)
    assert official["residual"] or counts[3] == 0


def test_steps_are_the_official_ones(official):
    gated, beta = official_gated(official), float(official["beta"])
    optimizer = NormalizedDescent(gated.gate_logits.parameters(), float(official["lr"]))
    for gate, value in zip(gated.gate_logits, start(official, 0), strict=True):
        gate.data = value[None].clone()
    for t in steps(official):
        images, label = official[f"s{t}_images"], official[f"s{t}_labels"]
        assert_close(gated(images, mode="off"), official[f"s{t}_logits_orig"], **EXACT)
        assert_close(gated(images), official[f"s{t}_logits_mask"], **EXACT)
        before = [gate.detach().clone() for gate in gated.gate_logits]
        learned = set_gradients(gated, images, label, torch.zeros_like(label), beta)
        assert learned.active.tolist() == [int(official[f"s{t}_n_correct"]) > 0]
        for gate, grad in zip(gated.gate_logits, expect(official, t, "grad"), strict=True):
            assert_close(gate.grad, grad[None], **EXACT)
        optimizer.step()
        for gate, after, old in zip(gated.gate_logits, expect(official, t, "after"), before, strict=True):
            assert_close(gate.detach(), after[None], **EXACT)
            assert learned.active.item() or torch.equal(gate.view(torch.int64), old.view(torch.int64))
        if learned.active:
            assert_close(learned.loss, official[f"s{t}_losses"][2:], **EXACT)
            assert_close(learned.ce, official[f"s{t}_ce"][None], **EXACT)
            assert_close(learned.mse, official[f"s{t}_mse"].mean()[None], **EXACT)


@pytest.mark.parametrize("many", [False, True])
def test_terms_are_the_official_ones(official, many):
    gated, beta = official_gated(official), float(official["beta"])
    for t in steps(official):
        images, label = official[f"s{t}_images"], official[f"s{t}_labels"]
        for gate, value in zip(gated.gate_logits, start(official, t), strict=True):
            gate.data = value[None].clone()
        plain, orig = gated(images, mode="off", return_activations=True)
        logits, acts = gated(images, return_activations=True)
        correct = plain.argmax(1) == label
        assert int(correct.sum()) == int(official[f"s{t}_n_correct"])
        gates = list(gated.gate_logits) if many else [gate[0] for gate in gated.gate_logits]
        terms = nad_loss(logits, label, acts, orig, gates, correct, beta, torch.zeros_like(label) if many else None)
        grads = torch.autograd.grad(terms["loss"], list(gated.gate_logits))
        for grad, expected in zip(grads, expect(official, t, "grad"), strict=True):
            assert_close(grad[0], expected, **EXACT)
        if correct.any():
            found = torch.stack([terms["act"].view(()), terms["gate"].view(()), terms["loss"]])
            assert_close(found, official[f"s{t}_losses"], **EXACT)
            assert_close(terms["ce"].view(()), official[f"s{t}_ce"], **EXACT)
            assert_close(terms["mse"].view(-1), official[f"s{t}_mse"], **EXACT)
        else:
            assert terms["loss"].item() == 0
            assert official[f"s{t}_losses"].isnan().all()


@pytest.mark.parametrize("chunk_size", [1, 20, 1000])
def test_all_official_steps_at_once_are_each_one_alone(official, chunk_size):
    every = steps(official)
    gated = official_gated(official, num_tasks=len(every) + 1)  # the last row has no image
    for i, gate in enumerate(gated.gate_logits):
        gate.data[:-1] = torch.stack([start(official, t)[i] for t in every])
    idle = [gate[-1].detach().clone() for gate in gated.gate_logits]
    row = torch.cat([torch.full_like(official[f"s{t}_labels"], t) for t in every])
    shuffled = torch.randperm(len(row), generator=torch.Generator().manual_seed(1))
    images, label = (torch.cat([official[f"s{t}_{name}"] for t in every])[shuffled] for name in ("images", "labels"))
    learned = set_gradients(gated, images, label, row[shuffled], float(official["beta"]), chunk_size)
    NormalizedDescent(gated.gate_logits.parameters(), float(official["lr"])).step()
    assert learned.row.tolist() == every
    assert learned.images.tolist() == torch.bincount(row).tolist()
    assert learned.active.tolist() == [int(official[f"s{t}_n_correct"]) > 0 for t in every]
    for t in every:
        for i, (grad, after) in enumerate(zip(expect(official, t, "grad"), expect(official, t, "after"), strict=True)):
            assert_close(gated.gate_logits[i].grad[t], grad, **EXACT)
            assert_close(gated.gate_logits[i][t].detach(), after, **EXACT)
        if learned.active[t]:
            assert_close(learned.loss[t], official[f"s{t}_losses"][2], **EXACT)
            assert_close(learned.ce[t], official[f"s{t}_ce"], **EXACT)
            assert_close(learned.mse[t], official[f"s{t}_mse"].mean(), **EXACT)
    for gate, old in zip(gated.gate_logits, idle, strict=True):
        assert torch.equal(gate[-1].view(torch.int64), old.view(torch.int64))


# many classes at once


SIZES = (4, 1, 7, 3)


def small(seed, num_tasks=6, dtype=torch.float64, widths=(5, 6)):
    """Ends in a convolution, as a linear layer may round an image otherwise in another batch."""
    torch.manual_seed(seed)
    first, second = widths
    network = nn.Sequential(
        nn.Conv2d(3, first, 3, padding=1), nn.BatchNorm2d(first), nn.ReLU(inplace=True),
        nn.Conv2d(first, second, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(second, 4, 1), nn.Flatten(),
    ).to(dtype).eval()  # fmt: skip
    network[1].running_mean.normal_(), network[1].running_var.uniform_(0.5, 2)
    gated = GatedModel(network, ["2", "4"], num_tasks, input_size=(3, 8, 8))
    network.requires_grad_(False)
    return gated


def batch_of(gated, sizes=SIZES, rows=(5, 0, 2, 3), dtype=torch.float64):
    """Images, labels and rows in a mixed order; a class's first image counts as correct, some others do not."""
    images = torch.randn(sum(sizes), 3, 8, 8).to(dtype)
    row = torch.cat([torch.full((n,), r) for n, r in zip(sizes, rows, strict=True)])
    said = gated(images, mode="off").argmax(1)
    label = torch.cat([part[:1].expand(len(part)) for part in said.split(list(sizes))])
    mixed = torch.randperm(len(row))
    return images[mixed], label[mixed], row[mixed]


def gradients(gated):
    return [gate.grad.clone() for gate in gated.gate_logits]


def class_by_class(gated, images, label, row, beta, gates_per_image):
    """The official procedure: each class with a gated network of its own, with one set of gates."""
    found = [torch.zeros_like(gate) for gate in gated.gate_logits]
    for r in row.unique().tolist():
        chosen = row == r
        alone = GatedModel(gated.model, gated.gate_points, input_size=(3, 8, 8))
        for gate, many in zip(alone.gate_logits, gated.gate_logits, strict=True):
            gate.data = many.detach()[r : r + 1].clone()
        plain, orig = alone(images[chosen], mode="off", return_activations=True)
        task = torch.zeros_like(row[chosen]) if gates_per_image else 0
        logits, acts = alone(images[chosen], task, return_activations=True)
        gates = [gate[0] for gate in alone.gate_logits]
        terms = nad_loss(logits, label[chosen], acts, orig, gates, plain.argmax(1) == label[chosen], beta)
        for into, grad in zip(found, torch.autograd.grad(terms["loss"], list(alone.gate_logits)), strict=True):
            into[r] = grad[0]
    return found


@pytest.mark.parametrize("chunk_size", [1, 8, 256])
@pytest.mark.parametrize("seed", range(4))
def test_many_classes_at_once_are_exactly_the_loop_over_classes(seed, chunk_size):
    gated = small(seed, widths=(16, 32))  # whole vectors: what is left over may be rounded otherwise
    images, label, row = batch_of(gated)
    expected = class_by_class(gated, images, label, row, 0.3, gates_per_image=True)
    set_gradients(gated, images, label, row, 0.3, chunk_size)
    for found, alone in zip(gradients(gated), expected, strict=True):
        assert float((found - alone).abs().max()) == 0.0
        assert alone[[0, 2, 3, 5]].any(1).all()
        assert not found[[1, 4]].any()


@pytest.mark.parametrize("chunk_size", [1, 8, 256])
def test_one_set_of_gates_for_a_whole_batch_adds_up_to_the_same(chunk_size):
    """Gradients of (C,) gates are sums over images in another order, so the last bits differ."""
    gated = small(4)
    images, label, row = batch_of(gated)
    expected = class_by_class(gated, images, label, row, 0.3, gates_per_image=False)
    set_gradients(gated, images, label, row, 0.3, chunk_size)
    for found, alone in zip(gradients(gated), expected, strict=True):
        assert_close(found, alone, rtol=1e-12, atol=1e-16)


def test_chunks_hold_whole_classes_and_at_most_so_many_images():
    gated = small(0)
    images, label, row = batch_of(gated)
    seen = []
    handle = gated.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    for chunk_size, expected in ((1, [1, 7, 3, 4]), (8, [8, 7]), (10, [8, 7]), (11, [11, 4]), (256, [15])):
        seen.clear()
        learned = set_gradients(gated, images, label, row, 0.3, chunk_size)
        assert seen == [n for n in expected for _ in range(2)]  # original and gated
        assert learned.row.tolist() == [0, 2, 3, 5]
        assert learned.images.tolist() == [1, 7, 3, 4]
    handle.remove()


def test_a_class_without_a_correct_image_keeps_its_gates_bit_for_bit():
    gated = small(1)
    images, label, row = batch_of(gated)
    wrong = row == 2
    label[wrong] = gated(images, mode="off")[wrong].argmin(1)
    before = [gate.detach().clone() for gate in gated.gate_logits]
    learned = set_gradients(gated, images, label, row, 0.3)
    assert learned.active.tolist() == [True, False, True, True]
    NormalizedDescent(gated.gate_logits.parameters(), lr=0.1).step()
    for gate, old in zip(gated.gate_logits, before, strict=True):
        still = [1, 2, 4]
        assert torch.equal(gate[still].view(torch.int64), old[still].view(torch.int64))
        length = (gate - old).detach()[[0, 3, 5]].norm(dim=1)
        assert_close(length, torch.full_like(length, 0.1), rtol=1e-12, atol=0)


def test_without_any_correct_image_there_are_finite_zeros():
    gated = small(2)
    images, _, row = batch_of(gated)
    learned = set_gradients(gated, images, gated(images, mode="off").argmin(1), row, 0.3)
    assert not learned.active.any()
    assert all(bool(term.isfinite().all()) for term in learned)
    assert all(not grad.any() for grad in gradients(gated))


def test_an_empty_batch_gives_nothing_and_moves_nothing():
    gated = small(0)
    set_gradients(gated, *batch_of(gated), 0.3)
    before = [gate.detach().clone() for gate in gated.gate_logits]
    none = torch.zeros(0, dtype=torch.int64)
    assert set_gradients(gated, torch.zeros(0, 3, 8, 8).double(), none, none, 0.3) is None
    assert all(gate.grad is None for gate in gated.gate_logits)
    NormalizedDescent(gated.gate_logits.parameters(), lr=0.1).step()
    assert all(torch.equal(gate, old) for gate, old in zip(gated.gate_logits, before, strict=True))


def test_images_that_are_not_finite_spoil_their_own_class_alone():
    gated = small(0)
    images, label, row = batch_of(gated)
    set_gradients(gated, images, label, row, 0.3)
    expected = gradients(gated)
    images[(row == 2).nonzero()[0]] = float("nan")
    set_gradients(gated, images, label, row, 0.3)
    for found, before in zip(gradients(gated), expected, strict=True):
        assert torch.equal(found[[0, 1, 3, 4, 5]], before[[0, 1, 3, 4, 5]])
        assert found[2].isnan().any()


def test_gradients_from_before_are_replaced_and_the_network_gets_none():
    gated = small(3)
    gated.model.requires_grad_(True)
    batch = batch_of(gated)
    set_gradients(gated, *batch, 0.3)
    first = gradients(gated)
    learned = set_gradients(gated, *batch, 0.3)
    assert all(torch.equal(a, b) for a, b in zip(first, gradients(gated), strict=True))
    assert all(p.grad is None for p in gated.model.parameters())
    assert not any(term.requires_grad for term in learned)


def test_saturated_gates_give_finite_gradients_and_stay():
    gated = small(0)
    for gate in gated.gate_logits:
        gate.data = torch.where(torch.rand_like(gate) > 0.5, 1000.0, -1000.0).double()
    before = [gate.detach().clone() for gate in gated.gate_logits]
    learned = set_gradients(gated, *batch_of(gated), 0.3)
    assert all(bool(term.isfinite().all()) for term in learned)
    assert all(not grad.any() for grad in gradients(gated))
    NormalizedDescent(gated.gate_logits.parameters(), lr=0.1).step()
    assert all(torch.equal(gate, old) for gate, old in zip(gated.gate_logits, before, strict=True))


def test_a_network_in_half_precision_teaches_gates_in_float32():
    gated = small(0, dtype=torch.bfloat16)
    learned = set_gradients(gated, *batch_of(gated, dtype=torch.bfloat16), 0.3)
    assert {term.dtype for term in learned[3:]} == {torch.float32}
    assert all(grad.dtype == torch.float32 and grad[[0, 2, 3, 5]].any(1).all() for grad in gradients(gated))


# the planted network


CLASSES, WIDTH = 4, 4


def planted():
    """Two layers in which class k reads and writes channels 4k to 4k + 3 alone."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(
        nn.Linear(CLASSES, CLASSES * WIDTH, bias=False), nn.ReLU(),
        nn.Linear(CLASSES * WIDTH, CLASSES * WIDTH, bias=False), nn.ReLU(),
        nn.Linear(CLASSES * WIDTH, CLASSES, bias=False),
    )  # fmt: skip
    for layer, block in ((network[0], (WIDTH, 1)), (network[2], (WIDTH, WIDTH)), (network[4], (1, WIDTH))):
        weights = 0.5 + torch.rand(layer.weight.shape, generator=generator)
        layer.weight.data = torch.block_diag(*[torch.ones(block)] * CLASSES) * weights
    return network.requires_grad_(False).eval()


def planted_images(number):
    """(classes * number, classes), one hot and a little positive noise, and their classes."""
    label = torch.arange(CLASSES).repeat_interleave(number)
    return nn.functional.one_hot(label, CLASSES) + 0.05 * torch.rand(len(label), CLASSES), label


def learn_planted(beta):
    """Shares of own and of other channels kept, and accuracy on images of the own class and of others."""
    gated = GatedModel(planted(), ["1", "3"], CLASSES, input_size=(CLASSES,))
    optimizer = NormalizedDescent(gated.gate_logits.parameters(), lr=0.1)
    for _ in range(200):
        images, label = planted_images(16)
        set_gradients(gated, images, label, label, beta)
        optimizer.step()
    own = torch.eye(CLASSES).repeat_interleave(WIDTH, dim=1).bool()
    kept = torch.stack(gated.open_gates())
    images, label = planted_images(25)
    hit = torch.stack([gated(images, task=k, mode="hard").detach().argmax(1) == label for k in range(CLASSES)])
    mine = torch.arange(CLASSES)[:, None] == label
    return [float(part.double().mean()) for part in (kept[:, own], kept[:, ~own], hit[mine], hit[~mine])]


@pytest.mark.parametrize("beta", [0.02, 0.1, 0.5])
def test_planted_paths_are_found(beta):
    assert learn_planted(beta) == [1, 0, 1, 0]


def test_a_large_beta_closes_channels_that_a_class_needs():
    own, others, *_ = learn_planted(2.0)
    assert 0.5 < own < 1
    assert others == 0


# optimiser and metric


def test_a_rate_that_leads_nowhere_is_refused():
    for lr in (0.0, -0.1):
        with pytest.raises(ValueError, match=rf"lr={lr} must be positive"):
            NormalizedDescent([nn.Parameter(torch.zeros(2))], lr=lr)


def test_optimiser_takes_groups_and_a_closure_and_passes_over_what_has_no_gradient():
    slow, fast, idle = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(3))
    optimizer = NormalizedDescent([{"params": [slow, idle]}, {"params": [fast], "lr": 1.0}], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (slow * torch.tensor([3, 4])).sum() + 7 * fast[0]
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 0
    assert_close(slow.detach(), torch.tensor([-0.06, -0.08], dtype=torch.float64))
    assert_close(fast.detach(), torch.tensor([-1.0, 0.0], dtype=torch.float64))
    assert not idle.any()


def test_selectivity_is_own_accuracy_times_what_others_miss_over_all_batches():
    metric = Selectivity()
    own = torch.rand(40) > 0.2
    others = torch.rand(70) > 0.7
    for part in own.split(9):
        metric.update(part, own=True)
    for part in others.split(16):
        metric.update(part, own=False)
    expected = float(own.float().mean() * (1 - others.float().mean()))
    assert_close(float(metric.compute()), expected, rtol=1e-6, atol=0)
    halves = Selectivity(), Selectivity()
    halves[0].update(own, own=True)
    halves[1].update(others, own=False)
    for name in ("hits", "asked"):
        assert torch.equal(getattr(halves[0], name) + getattr(halves[1], name), getattr(metric, name))


def test_selectivity_is_between_zero_and_one_and_an_accuracy_without_images_is_zero():
    hit, miss = torch.ones(3).bool(), torch.zeros(3).bool()
    for own, others, expected in (
        (hit, miss, 1),
        (miss, hit, 0),
        (hit, hit, 0),
        (miss, miss, 0),
        (hit, None, 1),
        (None, miss, 0),
    ):
        metric = Selectivity()
        if own is not None:
            metric.update(own, own=True)
        if others is not None:
            metric.update(others, own=False)
        assert metric.compute() == expected
        metric.reset()
        assert not metric.asked.any()
