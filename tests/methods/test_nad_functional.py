"""NAD's arithmetic without a network: gates, loss, step and similarity, against the official code and plain loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lit_methods.nad import functional, maps
from lit_methods.nad.functional import (
    channel_gate,
    concept_diversity,
    most_similar,
    nad_loss,
    normalized_step_,
    open_channels,
    subarchitecture_similarity,
)
from tests.vector_files import tensors

NAN = float("nan")


def load(vectors, name):
    return tensors(vectors / "nad" / f"{name}.npz")


# gates


def test_gate_and_its_gradients_are_the_official_ones(vectors):
    official = load(vectors, "gate")
    x, logit = official["x"].clone().requires_grad_(), official["logit"].flatten().clone().requires_grad_()
    out = channel_gate(x, logit)
    grad_x, grad_logit = torch.autograd.grad((out * official["cotangent"]).sum(), (x, logit))
    assert_close(out, official["out_soft"], rtol=0, atol=1e-12)
    assert_close(grad_x, official["grad_x"], rtol=0, atol=1e-12)
    assert_close(grad_logit, official["grad_logit"].flatten(), rtol=0, atol=1e-12)


def test_hard_gates_are_the_official_ones(vectors):
    official = load(vectors, "gate")
    logit = official["logit"].flatten()
    assert torch.equal(open_channels(logit), official["binary"].flatten().bool())
    assert torch.equal(channel_gate(official["x"], logit, hard=True), official["out_hard"])


def test_step_along_the_official_gradient_is_the_official_one(vectors):
    official = load(vectors, "gate")
    moved = torch.zeros(7, dtype=torch.float64)
    normalized_step_([moved], [official["grad_logit"].flatten()], lr=1.0)
    assert_close(-moved, official["grad_normalized"].flatten(), rtol=0, atol=1e-12)


def test_a_gate_of_exactly_one_half_is_off():
    logits = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1.0])
    assert open_channels(logits).tolist() == [False, False, True, False, True]
    assert channel_gate(torch.ones(1, 5), logits, hard=True).tolist() == [[0, 0, 1, 0, 1]]


def test_threshold_is_one_of_the_sigmoid():
    logits = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    for threshold in (0.02, 0.3, 0.5, 0.9):
        assert torch.equal(open_channels(logits, threshold), logits.sigmoid() > threshold)
    assert open_channels(torch.tensor([0.1]), 0.9).item() is False
    assert channel_gate(torch.ones(1, 1), torch.tensor([0.1]), hard=True, threshold=0.9).item() == 0


def test_each_image_has_the_gates_of_its_own_row():
    x, logits = torch.randn(3, 4, 2, 5), torch.randn(3, 4)
    for hard in (False, True):
        expected = torch.cat([channel_gate(x[i : i + 1], logits[i], hard=hard) for i in range(3)])
        assert torch.equal(channel_gate(x, logits, hard=hard), expected)
        flat = channel_gate(x[..., 0, 0], logits, hard=hard)
        assert torch.equal(flat, expected[..., 0, 0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_gate_keeps_the_type_of_its_input(dtype):
    x = torch.randn(2, 3, 4, 4).to(dtype)
    for hard in (False, True):
        assert channel_gate(x, torch.randn(3, dtype=torch.float64), hard=hard).dtype == dtype
        assert channel_gate(x, torch.randn(3), hard=hard).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_saturated_gates_give_no_nan(dtype):
    logits = torch.tensor([1000.0, -1000.0, math.inf, -math.inf], dtype=dtype, requires_grad=True)
    x = torch.randn(2, 4, 3, 3, dtype=dtype)
    out = channel_gate(x, logits)
    out.square().sum().backward()
    assert torch.equal(out[:, [0, 2]], x[:, [0, 2]])
    assert not out[:, [1, 3]].any()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


# loss


def terms_of(
    sizes=(4, 3, 5), beta=0.3, dtype=torch.float64, seed=0, wrong=(), shape=(2, 3), classes=4, channels=(5, 2)
):
    """A random batch of one task per entry of ``sizes``, and leaves for gradients."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    task = torch.cat([torch.full((n,), k) for k, n in enumerate(sizes)])
    number = len(task)
    correct = torch.rand(number, generator=generator) > 0.4
    for k in range(len(sizes)):
        correct[(task == k).nonzero()[0]] = True
    for k in wrong:
        correct[task == k] = False
    return {
        "logits": rand(number, classes).requires_grad_(),
        "targets": task % classes,
        "gated_acts": [rand(number, c, *shape).requires_grad_() for c in channels],
        "orig_acts": [rand(number, c, *shape) for c in channels],
        "gate_logits": [rand(len(sizes), c).requires_grad_() for c in channels],
        "correct": correct,
        "beta": beta,
        "task": task,
    }


def of_task(batch, k):
    """The same batch's images of one task, with gates (C,)."""
    chosen = batch["task"] == k
    part = {name: batch[name][chosen] for name in ("logits", "targets", "correct")}
    part |= {name: [a[chosen] for a in batch[name]] for name in ("gated_acts", "orig_acts")}
    return part | {"gate_logits": [m[k] for m in batch["gate_logits"]], "beta": batch["beta"]}


def leaves(batch):
    return [batch["logits"], *batch["gated_acts"], *batch["gate_logits"]]


def test_terms_of_one_task_are_those_of_a_plain_loop():
    batch = of_task(terms_of(), 2)
    found = {name: value.detach() for name, value in nad_loss(**batch).items()}
    images, right = range(len(batch["targets"])), [i for i, ok in enumerate(batch["correct"]) if ok]
    assert 0 < len(right) < len(images)
    ce = sum(-F.log_softmax(batch["logits"][i], 0)[batch["targets"][i]] for i in images) / len(images)
    mse = []
    for a, b in zip(batch["gated_acts"], batch["orig_acts"], strict=True):
        squares = [(a[i] - b[i]).detach().square().flatten().tolist() for i in right]
        mse.append(sum(map(sum, squares)) / sum(map(len, squares)))
    ce = float(ce.detach())
    gate = sum(sum(1 / (1 + math.exp(-float(v))) ** 2 for v in m.tolist()) / len(m) for m in batch["gate_logits"]) / 2
    assert_close(float(found["ce"]), ce, rtol=1e-12, atol=0)
    assert_close(found["mse"].tolist(), mse, rtol=1e-12, atol=0)
    assert_close(float(found["gate"]), gate, rtol=1e-12, atol=0)
    assert_close(float(found["act"]), (ce + sum(mse)) / 2, rtol=1e-12, atol=0)
    assert_close(float(found["loss"]), (ce + sum(mse)) / 2 + 0.3 * gate, rtol=1e-12, atol=0)
    assert found["active"].dtype == torch.bool
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "loss": (),
        "act": (),
        "gate": (),
        "ce": (),
        "active": (),
        "mse": (2,),
    }


@pytest.mark.parametrize("sizes", [(4, 3, 5), (1, 7, 2), (6,)])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("shape", [(2, 3), ()])
def test_many_tasks_at_once_are_each_one_alone(sizes, seed, shape):
    # whole vectors of channels: for the rest of a row, sigmoids may differ in the last bit with its place in memory
    wrong = [1] if seed == 1 and len(sizes) > 1 else []
    batch = terms_of(sizes, seed=seed, shape=shape, wrong=wrong, channels=(32, 16))
    shuffled = torch.randperm(len(batch["task"]), generator=torch.Generator().manual_seed(seed))
    mixed = batch | {name: batch[name][shuffled] for name in ("logits", "targets", "correct", "task")}
    mixed |= {name: [a[shuffled] for a in batch[name]] for name in ("gated_acts", "orig_acts")}
    found = nad_loss(**mixed)
    together = torch.autograd.grad(found["loss"], leaves(batch), retain_graph=True)
    alone = [torch.zeros_like(leaf) for leaf in leaves(batch)]
    total = 0.0
    for k in range(len(sizes)):
        single = nad_loss(**of_task(mixed, k))
        for name in ("act", "gate", "ce", "active"):
            assert torch.equal(found[name][k], single[name]), name
        assert torch.equal(found["mse"][:, k], single["mse"])
        grads = torch.autograd.grad(single["loss"], leaves(batch), retain_graph=True)
        for value, grad in zip(alone, grads, strict=True):
            value += grad
        total += float(single["loss"].detach())
    for one, many in zip(alone, together, strict=True):
        assert float((one - many).abs().max()) == 0.0
    assert_close(float(found["loss"].detach()), total, rtol=1e-14, atol=0)
    assert found["mse"].shape == (2, len(sizes))


def test_a_task_without_a_correct_image_adds_nothing():
    batch = terms_of(wrong=[1])
    found = nad_loss(**batch)
    assert found["active"].tolist() == [True, False, True]
    assert found["mse"][:, 1].tolist() == [0, 0]
    assert_close(found["loss"], (found["act"] + 0.3 * found["gate"])[[0, 2]].sum())
    found["loss"].backward()
    still = batch["task"] == 1
    for leaf in (batch["logits"], *batch["gated_acts"]):
        assert not leaf.grad[still].any()
        assert leaf.grad[~still].any()
    assert all(not m.grad[1].any() and m.grad[[0, 2]].all() for m in batch["gate_logits"])


def test_a_row_without_images_adds_nothing():
    batch = terms_of()
    rows = [torch.cat([m.detach(), torch.full_like(m[:1], 9.0)]).requires_grad_() for m in batch["gate_logits"]]
    found = nad_loss(**batch | {"gate_logits": rows})
    assert found["active"].tolist() == [True, True, True, False]
    assert torch.equal(found["loss"], nad_loss(**batch)["loss"])
    assert all(not grad[3].any() for grad in torch.autograd.grad(found["loss"], rows))


@pytest.mark.parametrize("many", [True, False])
def test_without_any_correct_image_the_loss_is_a_finite_zero_that_moves_nothing(many):
    batch = terms_of(wrong=[0, 1, 2])
    parts = leaves(batch)
    found = nad_loss(**batch if many else of_task(batch, 1))
    assert found["loss"].item() == 0
    assert found["loss"].requires_grad
    assert not found["active"].any()
    for grad in torch.autograd.grad(found["loss"], parts):
        assert not grad.any()  # NaN would count


def test_activations_of_images_that_the_network_gets_wrong_do_not_matter():
    batch = terms_of()
    wild = [a.detach().clone() for a in batch["gated_acts"]]
    for a in wild:
        a[~batch["correct"]] *= 1e6
        a.requires_grad_()
    found = nad_loss(**batch | {"gated_acts": wild})
    assert torch.equal(found["mse"], nad_loss(**batch)["mse"])
    for grad in torch.autograd.grad(found["loss"], wild):
        assert not grad[~batch["correct"]].any()
        assert grad[batch["correct"]].any()


def test_the_original_activations_are_constants():
    batch = terms_of()
    batch["orig_acts"] = [a.requires_grad_() for a in batch["orig_acts"]]
    nad_loss(**batch)["loss"].backward()
    assert all(a.grad is None for a in batch["orig_acts"])
    assert all(a.grad.any() for a in batch["gated_acts"])


def test_beta_weighs_the_gates_alone():
    batch = terms_of()
    free, dear = (nad_loss(**batch | {"beta": beta}) for beta in (0.0, 2.0))
    assert torch.equal(free["act"], dear["act"])
    assert torch.equal(free["gate"], dear["gate"])
    assert_close(dear["loss"] - free["loss"], 2 * free["gate"].sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("many", [True, False])
def test_half_precision_gives_terms_in_float32(dtype, many):
    batch = terms_of(dtype=dtype)
    wide = nad_loss(**terms_of(dtype=dtype) if many else of_task(terms_of(dtype=dtype), 0))
    batch = batch if many else of_task(batch, 0)
    exact = nad_loss(
        **batch
        | {"logits": batch["logits"].double()}
        | {n: [a.double() for a in batch[n]] for n in ("gated_acts", "orig_acts", "gate_logits")}
    )
    for name in ("loss", "act", "gate", "ce", "mse"):
        assert wide[name].dtype == torch.float32
        assert_close(wide[name].double(), exact[name], rtol=1e-5, atol=1e-7)


def test_terms_are_float32_under_autocast_too():
    batch = terms_of(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = nad_loss(**batch)
    expected = nad_loss(**batch)
    for name in ("loss", "act", "gate", "ce", "mse"):
        assert found[name].dtype == torch.float32
        assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_gates_that_are_saturated_leave_the_loss_finite():
    batch = terms_of()
    rows = [torch.full_like(m, 1000.0) for m in batch["gate_logits"]]
    rows[1][:] = -1000
    rows = [m.requires_grad_() for m in rows]
    found = nad_loss(**batch | {"gate_logits": rows})
    assert found["gate"].tolist() == [0.5, 0.5, 0.5]
    assert all(not grad.any() for grad in torch.autograd.grad(found["loss"], rows))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gated_acts": []}, ["gated_acts", "one entry per layer", "(0, 2, 2)"]),
        ({"gate_logits": [torch.zeros(3, 5)]}, ["gate_logits", "one entry per layer", "(2, 2, 1)"]),
        ({"gated_acts": [], "orig_acts": [], "gate_logits": []}, ["one entry per layer", "(0, 0, 0)"]),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, ["targets", "same images", "[12, 3, 12"]),
        ({"correct": torch.ones(5).bool()}, ["correct", "same images", "[12, 12, 5"]),
        ({"task": torch.zeros(4, dtype=torch.int64)}, ["task", "same images", "4]"]),
        ({"orig_acts": [torch.zeros(11, 5), torch.zeros(12, 2)]}, ["activations", "same images", "11"]),
        ({"gate_logits": [torch.zeros(3, 6), torch.zeros(3, 2)]}, ["layer 0", "gate_logits", "(3, 5)", "(3, 6)"]),
        ({"gate_logits": [torch.zeros(3, 5), torch.zeros(2, 2)]}, ["layer 1", "gate_logits", "(3, 2)", "(2, 2)"]),
        ({"gate_logits": [torch.zeros(5), torch.zeros(2)]}, ["layer 0", "gate_logits", "(5,)"]),
        ({"task": None}, ["layer 0", "gate_logits", "(5,)", "(3, 5)"]),
        ({"orig_acts": [torch.zeros(12, 5, 2, 2), torch.zeros(12, 2, 2, 3)]}, ["layer 0", "orig_acts", "5, 2, 2)"]),
    ],
)
def test_loss_says_what_does_not_fit(change, words):
    with pytest.raises(ValueError, match=r"must (be|have)") as error:
        nad_loss(**terms_of() | change)
    assert all(word in str(error.value) for word in words), str(error.value)


# step


def test_every_layer_and_row_moves_by_the_rate():
    params = [torch.randn(3, 5, dtype=torch.float64), torch.randn(4, dtype=torch.float64)]
    before = [p.clone() for p in params]
    grads = [torch.randn(3, 5, dtype=torch.float64) * torch.tensor([[1e-9], [1.0], [1e9]]), torch.ones(4).double()]
    normalized_step_(params, grads, lr=0.1)
    for p, old, grad in zip(params, before, grads, strict=True):
        length = (p - old).norm(dim=-1)
        assert_close(length, torch.full_like(length, 0.1), rtol=1e-12, atol=0)
        assert_close((old - p) / 0.1, grad / grad.norm(dim=-1, keepdim=True), rtol=1e-9, atol=1e-12)


def test_a_gradient_below_eps_is_divided_by_eps():
    moved = torch.zeros(2, dtype=torch.float64)
    normalized_step_([moved], [torch.tensor([0.0, 1e-13], dtype=torch.float64)], lr=0.1)
    assert_close(moved, torch.tensor([0, -0.01], dtype=torch.float64), rtol=1e-12, atol=0)
    moved = torch.zeros(1)
    normalized_step_([moved], [torch.ones(1)], lr=0.1, eps=10.0)
    assert_close(moved, torch.tensor([-0.01]))


def test_zero_and_missing_gradients_leave_values_bit_for_bit():
    values = torch.tensor([[0.1, -0.0, 1e-40, -1e30], [1 / 3, 2.0, math.inf, 5.0]])
    for grad in (None, torch.zeros(2, 4)):
        after = values.clone()
        normalized_step_([after], [grad], lr=0.1)
        assert torch.equal(after.view(torch.int32), values.view(torch.int32))
    after = values.clone()
    normalized_step_([after], [torch.tensor([[0.0] * 4, [1.0] * 4])], lr=0.1)
    assert torch.equal(after[0].view(torch.int32), values[0].view(torch.int32))
    assert after[1, 1] < values[1, 1]


def test_step_works_on_parameters_that_want_gradients():
    gate = torch.nn.Parameter(torch.zeros(2))
    gate.square().sum().add(gate.sum()).backward()
    normalized_step_([gate], [gate.grad], lr=math.sqrt(2))
    assert_close(gate.detach(), -torch.ones(2))
    assert gate.requires_grad
    assert gate.is_leaf


def test_step_wants_one_gradient_per_parameter():
    with pytest.raises(ValueError, match=r"params and grads must go together, got 1 and 2"):
        normalized_step_([torch.zeros(2)], [None, None], lr=0.1)


# all of them


def test_maps_can_be_had_from_functional_too():
    for name in ("activation_map", "focus_mask", "overlay_focus", "quadrant_hit_rate"):
        assert getattr(functional, name) is getattr(maps, name)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: channel_gate(torch.ones(2, 3, 4, 4), torch.zeros(4)), ["logits", "(4,)", "(2, 3, 4, 4)"]),
        (lambda: channel_gate(torch.ones(2, 3, 4, 4), torch.zeros(3, 3)), ["logits must be (C,) or (N, C)"]),
        (lambda: channel_gate(torch.ones(2, 3, 4), torch.zeros(3)), ["(N, C, H, W) or (N, C)", "(2, 3, 4)"]),
        (lambda: channel_gate(torch.ones(3), torch.zeros(3)), ["(N, C, H, W) or (N, C)"]),
        (lambda: channel_gate(torch.ones(2, 3), torch.zeros(1, 3, 1, 1)), ["logits", "(1, 3, 1, 1)"]),
        (lambda: channel_gate(torch.ones(1, 1), torch.zeros(1), True, 1.0), ["threshold=1.0", "(0, 1)", "0.5"]),
        (lambda: open_channels(torch.zeros(1), 0.0), ["threshold=0.0", "(0, 1)", "0.5"]),
        (lambda: open_channels(torch.zeros(1), -0.5), ["threshold=-0.5"]),
        (lambda: open_channels(torch.zeros(1), NAN), ["threshold=nan"]),
        (lambda: subarchitecture_similarity([]), ["masks must be one (K, C) per layer", "[]"]),
        (lambda: subarchitecture_similarity([torch.ones(3)]), ["masks", "(K, C)", "(3,)"]),
        (lambda: subarchitecture_similarity([torch.ones(3, 2), torch.ones(2, 2)]), ["masks", "(2, 2)"]),
        (lambda: subarchitecture_similarity([torch.full((2, 2), 0.5)]), ["masks must be 0 and 1", "open_channels"]),
        (lambda: subarchitecture_similarity([torch.full((2, 2), NAN)]), ["masks must be 0 and 1"]),
        (lambda: most_similar(torch.ones(3, 3), 3), ["number=3", "between 1 and 2"]),
        (lambda: most_similar(torch.ones(3, 3), 0), ["number=0", "between 1 and 2"]),
        (lambda: concept_diversity(torch.ones(1, 1)), ["sim must be (K, K)", "two classes", "(1, 1)"]),
        (lambda: concept_diversity(torch.ones(3)), ["sim must be (K, K)", "(3,)"]),
    ],
)
def test_bad_arguments_are_named_with_their_cure(call, words):
    with pytest.raises(ValueError, match=r"must") as error:
        call()
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_zero_gradient_leaves_half_precision_alone():
    gates = torch.tensor([[1.0, -0.0], [0.5, 2.0]]).half()
    before = gates.clone()
    normalized_step_([gates], [torch.tensor([[0.0, -0.0], [3.0, 4.0]]).half()], lr=0.5)
    assert torch.equal(gates[0].view(torch.int16), before[0].view(torch.int16))
    assert_close(gates[1].float(), torch.tensor([0.2, 1.6]), rtol=0, atol=2e-3)


def test_the_error_of_the_activations_can_be_differentiated_twice():
    generator = torch.Generator().manual_seed(0)
    acts = torch.randn(3, 2, 2, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    orig = torch.randn(3, 2, 2, 2, dtype=torch.float64, generator=generator)
    logits, targets = torch.zeros(3, 4, dtype=torch.float64), torch.tensor([1, 1, 1])

    def loss(a):
        return nad_loss(logits, targets, [a], [orig], [a.new_zeros(2)], torch.tensor([True, False, True]), 0.1)["loss"]

    assert torch.autograd.gradgradcheck(loss, (acts,))
    assert_close(torch.func.grad(loss)(acts.detach()), torch.autograd.grad(loss(acts), acts)[0])
