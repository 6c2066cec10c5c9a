"""What every attack owes: an exact account, the bounds, and results that do not depend on company; and PPBA's walk."""

import gc
import math
import re
import sys
import tracemalloc
from collections import Counter
from functools import cache, partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lit_methods.ppba import (
    NES,
    Bandits,
    Ledger,
    LowFrequencyProjection,
    ModelBlackBox,
    PPBAAttack,
    SimBA,
    label_score_loss,
    margin_loss,
)
from tests.methods.toy_models import (
    CLASSES,
    PIXELS,
    SIDE,
    Killed,
    Linear,
    NaNs,
    Recorder,
    low_frequencies,
    owners,
    picture_batch,
    small_conv_net,
)

LINEAR = Linear()
HOPELESS = Linear(lead=12.0)  # class 0 for good, and its cross entropy still has a slope
LOW = low_frequencies()
PPBA = partial(PPBAAttack, LOW, rho=0.05, eps=1.0)
SIMBA = partial(SimBA, LOW, step=0.1, eps=1.0)
ATTACKS = {
    "ppba": PPBA,
    "ppba_3": partial(PPBA, n_samples=3),
    "ppba_linf": partial(PPBA, norm="linf", eps=0.04),
    "nes": partial(NES, eps=1.0, lr=0.1),
    "nes_lf": partial(NES, LOW, eps=1.0, lr=0.2),
    "bandits": partial(Bandits, tile=4, eps=1.0, lr=0.05),
    "bandits_lf": partial(Bandits, LOW, eps=1.0, lr=0.2),
    "simba": SIMBA,
}
COUNT_THE_CLEAN_IMAGE = ("ppba", "ppba_3", "ppba_linf", "simba")
each_attack = pytest.mark.parametrize("name", ATTACKS)
each_walk = pytest.mark.parametrize("name", ["ppba", "ppba_3", "nes", "bandits", "simba"])
one_of_each = pytest.mark.parametrize("name", ["ppba", "nes", "bandits", "simba"])


def load(vectors, name):
    return {k: torch.as_tensor(v) for k, v in np.load(vectors / "ppba" / f"{name}.npz").items()}


def linear_of(case):
    return lambda x: (
        ((x - case["mean"].to(x)) / case["std"].to(x)).flatten(1) @ case["weight"].T.to(x) + case["bias"].to(x)
    )


def assert_same_row(one, i, many, j):
    """Row i of a result is row j of another, bit for bit, in all its fields."""
    for field in (
        "adv",
        "success",
        "queries",
        "l2",
        "l2_unclipped",
        "skipped",
        "success_uint8",
        "failed",
        "preds",
        "checks",
    ):
        assert torch.equal(getattr(one, field)[i], getattr(many, field)[j]), field
    mine, other = one.history["loss"][:, i], many.history["loss"][:, j]
    lived = int((~other.isnan()).sum())
    assert torch.equal(mine[:lived], other[:lived])
    assert mine[lived:].isnan().all()
    assert torch.equal(one.history["accepted"][:lived, i], many.history["accepted"][:lived, j])
    for key in ("z", "probabilities"):
        if key in many.history:
            assert torch.equal(one.history[key][..., i, :], many.history[key][..., j, :]), key


# -- reference values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "count_update"), [("paper", "both"), ("legacy", "ineffective_only")])
@pytest.mark.parametrize("name", ["attack_trajectory", "attack_trajectory_fail"])
def test_the_walk_is_the_reference_walk(vectors, name, mode, count_update):
    case = load(vectors, name)
    projection = LowFrequencyProjection(case["indices"], SIDE, dtype=torch.float64)
    options = {"rho": case["rho"].item(), "eps": case["eps"].item(), "max_queries": int(case["max_iter"]) + 1}
    attack = PPBAAttack(projection, count_update=count_update, **options)
    images, labels, draws = case["x"][None], case["label"][None], case["draws"][:, None, None]
    result = attack(linear_of(case), images, labels, draws=draws)
    close = partial(assert_close, rtol=0, atol=1e-9)
    assert result.queries.item() == case[f"{mode}_queries"]
    assert result.success.item() == bool(case[f"{mode}_success"])
    assert result.history["accepted"][:, 0].tolist() == case[f"{mode}_accepted"].bool().tolist()
    close(result.history["loss"][:, 0], case[f"{mode}_loss"])
    close(result.history["z"][0], case[f"{mode}_z"])
    close(result.history["probabilities"][:, 0], case[f"{mode}_final_prob"])
    close(result.l2[0], case[f"{mode}_l2_clipped"])
    close(result.l2_unclipped[0], case[f"{mode}_l2"])
    if mode == "legacy":
        delta = projection(result.history["z"]).flatten()
        assert_close(delta, case["official_perturbation"].double(), rtol=0, atol=1e-6)
    for i in (1, 2, 4):  # the vectors hold z after 1, 11, 21, ... iterations
        part = attack(linear_of(case), images, labels, draws=draws[: 10 * i + 1])
        close(part.history["z"][0], case[f"{mode}_z_every_10"][i])


def test_the_same_decisions_in_float32(vectors):
    case = load(vectors, "attack_trajectory")
    projection = LowFrequencyProjection(case["indices"], SIDE)
    attack = PPBAAttack(projection, rho=case["rho"].item(), eps=case["eps"].item(), max_queries=301)
    result = attack(linear_of(case), case["x"][None].float(), case["label"][None], draws=case["draws"][:, None, None])
    assert result.adv.dtype == torch.float32
    assert result.history["accepted"][:, 0].tolist() == case["paper_accepted"].bool().tolist()
    assert_close(result.history["z"][0], case["paper_z"].float(), rtol=0, atol=1e-5)


def toy_service(case):
    most, least = int(case["max_labels"]), case["score_threshold"]

    def answer(images):
        eight_bit = torch.floor(255 * images.clamp(0, 1) + 0.5)
        scores = torch.sigmoid(((eight_bit / 255 - 0.5) / 0.25).flatten(1) @ case["weight"].T)
        best = [row.sort(descending=True, stable=True) for row in scores]
        return [[(str(int(j)), s.item()) for s, j in zip(*row, strict=True) if s >= least][:most] for row in best]

    return answer


def test_the_attack_of_a_service_is_the_reference_attack(vectors):
    case = load(vectors, "label_service")
    projection = LowFrequencyProjection(case["indices"], SIDE, dtype=torch.float64)
    attack = PPBAAttack(
        projection, rho=case["rho"].item(), eps=case["linf"].item(), norm="linf", max_queries=121,
        loss_fn=label_score_loss,
    )  # fmt: skip
    best = {str(label) for label in case["top3"].tolist()}
    service = Recorder(toy_service(case))
    result = attack(service, case["x"][None], [best], draws=case["draws"][:, None, None])
    assert result.queries.item() == case["queries"]
    assert result.success.item() == bool(case["success"])
    assert result.history["accepted"][:, 0].tolist() == case["accepted"].bool().tolist()
    assert_close(result.history["loss"][:, 0], case["loss"], rtol=0, atol=1e-9)
    assert_close(result.history["z"][0], case["z"], rtol=0, atol=1e-9)
    assert result.success_uint8.item()  # the service rounds to 8 bits itself
    assert len(service.images) == result.queries.item() + result.checks.item()
    asked = torch.stack(service.images)
    assert (asked - case["x"]).abs().max() <= case["linf"] + 1e-12
    assert asked.min() >= 0
    assert asked.max() <= 1


def slow_walk(model, image, label, rows, draws, rho, eps, n, momentum, norm, budget):
    """Sections 2.2 and 2.3 of the specification, one image, one coordinate after the other, dense matrix."""
    dim = len(rows)
    effective, ineffective = np.ones((3, dim)), np.ones((3, dim))
    z, queries, trace = np.zeros(dim), 1, []

    def delta_of(z):
        delta = (z @ rows).reshape(image.shape)
        return np.clip(delta, -eps, eps) if norm == "linf" else delta

    def loss_of(z):
        logits = model(torch.from_numpy(np.clip(image + delta_of(z), 0, 1))[None])[0].numpy()
        return max(0.0, logits[label] - np.delete(logits, label).max())

    incumbent = loss_of(z)
    for step in draws:
        if incumbent <= 0 or queries + n > budget:
            break
        share = effective / (effective + ineffective)
        probability = share / share.sum(0)
        moves, candidates, losses = [], [], []
        for r in step:
            down, stay = probability[0], probability[1]
            move = np.where(r < down, -1, np.where(r >= down + stay, 1, 0))
            candidate = z + rho * move
            if norm == "l2" and np.linalg.norm(candidate) > eps:
                candidate = candidate * eps / np.linalg.norm(candidate)
            moves.append(move)
            candidates.append(candidate)
            losses.append(loss_of(candidate))
            queries += 1
        better = min(losses) < incumbent
        if better:
            effective, ineffective = momentum * effective, momentum * ineffective
        for move, loss in zip(moves, losses, strict=True):
            for v in (-1, 0, 1):
                if better and loss < incumbent:
                    effective[v + 1] += move == v
                elif not better or n > 1:
                    ineffective[v + 1] += move == v
        if better:
            z, incumbent = candidates[int(np.argmin(losses))], min(losses)
        trace.append((min(losses), better))
    return np.clip(image + delta_of(z), 0, 1), queries, incumbent <= 0, trace


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(("n", "momentum"), [(1, 1.0), (1, 0.9), (3, 0.9)])
def test_the_walk_against_a_slow_one(n, momentum, norm):
    images, labels = picture_batch(4)
    eps, budget = (0.6, 50) if norm == "l2" else (0.04, 50)
    draws = torch.rand(60, 4, n, LOW.dim, dtype=torch.float64)
    rows = LOW(torch.eye(LOW.dim, dtype=torch.float64)).flatten(1).numpy()
    attack = PPBA(eps=eps, n_samples=n, momentum=momentum, norm=norm, max_queries=budget)
    result = attack(LINEAR, images, labels, draws=draws)
    assert 0 < result.success.sum() < 4
    for i in range(4):
        adv, queries, success, trace = slow_walk(
            LINEAR, images[i].numpy(), labels[i].item(), rows, draws[:, i].numpy(), 0.05, eps, n, momentum, norm, budget
        )
        assert (result.queries[i], result.success[i]) == (queries, success)
        losses, accepted = zip(*trace, strict=True)
        assert_close(result.history["loss"][: len(trace), i], torch.tensor(losses, dtype=torch.float64))
        assert result.history["accepted"][: len(trace), i].tolist() == list(accepted)
        assert_close(result.adv[i], torch.from_numpy(adv), rtol=0, atol=1e-12)


@cache
def usual(name):
    """An attack that several tests look at: images, what the model saw, how many were left at each step, the result."""
    images, labels = picture_batch(6)
    labels[4] = (labels[4] + 1) % CLASSES  # wrong from the start
    model, left = Recorder(LINEAR), []
    attack = ATTACKS[name](max_queries=100)
    result = attack(model, images, labels, films=range(6), on_step=lambda number, n: left.append((number, n)))
    assert 0 < result.success.sum() < 5
    return images, labels, model, left, result


# -- the account ------------------------------------------------------------------------------------------------------


def expected_cost(name, result):
    """Images shown to the model, per image, by the specification: what is free is shown all the same."""
    free_clean = ~result.skipped if name not in COUNT_THE_CLEAN_IMAGE else torch.zeros_like(result.skipped)
    return result.queries + result.checks + result.skipped.long() + free_clean.long()


@each_attack
def test_every_image_that_the_model_sees_is_accounted_for(name):
    images, _, model, _, result = usual(name)
    seen = torch.bincount(owners(model.images, images), minlength=6)
    assert seen.tolist() == expected_cost(name, result).tolist()
    steps = (~result.history["loss"].isnan()).sum(0)
    verified = result.success.long()
    if name in COUNT_THE_CLEAN_IMAGE:
        assert (
            result.queries.tolist()
            == torch.where(result.skipped, 0, 1 + steps * (3 if name == "ppba_3" else 1)).tolist()
        )
        assert result.checks.tolist() == verified.tolist()
    else:
        assert result.queries.tolist() == (steps * (10 if name.startswith("nes") else 2)).tolist()
        assert result.checks.tolist() == (steps + verified).tolist()  # the test for success after each step
    assert (result.history["loss"].isnan() == (torch.arange(len(result.history["loss"]))[:, None] >= steps)).all()


@each_attack
def test_a_finished_image_leaves_the_batch(name):
    images, _, model, left, result = usual(name)
    steps = (~result.history["loss"].isnan()).sum(0)
    assert left == [(t, int((steps > t).sum())) for t in range(len(left))]
    assert left[0][1] > left[-1][1] > 0
    owner = owners(model.images, images)
    for i in result.success.nonzero().flatten():  # nothing about it after its own last question
        last = (owner == i).nonzero().max()
        assert_close(model.images[last], torch.floor(result.adv[i] * 255 + 0.5) / 255)
    assert model.sizes[-1] <= left[-1][1] * 10


@each_attack
def test_the_cap_holds_for_every_budget(name):
    step = {"ppba_3": 3, "nes": 10, "nes_lf": 10, "bandits": 2, "bandits_lf": 2}.get(name, 1)
    first = int(name in COUNT_THE_CLEAN_IMAGE)
    images, _ = picture_batch(2)
    labels = torch.zeros(2, dtype=torch.int64)
    for budget in [*range(first + step, first + step + 11), 47]:
        model = Recorder(HOPELESS)
        result = ATTACKS[name](max_queries=budget)(model, images, labels)
        best = first + (budget - first) // step * step
        assert result.queries.tolist() == [best, best], budget
        assert len(model.images) == expected_cost(name, result).sum()
        assert not result.success.any()
    with pytest.raises(ValueError, match=rf"max_queries={first + step - 1} .*; give more"):
        ATTACKS[name](max_queries=first + step - 1)


@each_attack
def test_a_success_in_the_last_query_counts(name):
    images, labels, *_, free = usual(name)
    i = torch.where(free.success, free.queries, 0).argmax()
    just = ATTACKS[name](max_queries=free.queries[i].item())(
        LINEAR, images[i, None], labels[i, None], image_ids=i[None]
    )
    assert_same_row(just, 0, free, i)


# -- the bounds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.3, 1.0])
@each_attack
def test_nothing_leaves_the_ball_nor_the_range(name, eps):
    eps *= 0.05 if name == "ppba_linf" else 1
    images, _ = picture_batch(4)
    images[0], images[1] = 0.0, 1.0  # at the edge: clipping has work to do
    model = Recorder(HOPELESS)
    result = ATTACKS[name](eps=eps, max_queries=50)(model, images, torch.zeros(4, dtype=torch.int64))
    assert ((result.adv >= 0) & (result.adv <= 1)).all()
    assert_close(result.l2, (result.adv - images).flatten(1).norm(dim=1))
    assert (result.l2 <= result.l2_unclipped + 1e-9).all()
    assert result.l2.max() > 0
    if name == "ppba_linf":
        assert (result.adv - images).abs().max() <= eps + 1e-12
    else:
        assert result.l2_unclipped.max() <= eps + 1e-5
    if name in COUNT_THE_CLEAN_IMAGE:  # the others look around without bounds, as their authors do
        asked = torch.stack(model.images)
        moved = asked - images[owners(model.images, images)]
        assert ((asked >= 0) & (asked <= 1)).all()
        size = moved.abs().amax() if name == "ppba_linf" else moved.flatten(1).norm(dim=1).max()
        assert size <= eps + 1e-5


@pytest.mark.parametrize("name", COUNT_THE_CLEAN_IMAGE)
def test_losses_of_accepted_states_strictly_fall(name):
    *_, result = usual(name)
    history = result.history
    for i in (~result.skipped).nonzero().flatten():
        accepted = history["loss"][history["accepted"][:, i], i]
        assert len(accepted) > 3
        assert (accepted.diff() < 0).all()
        best = math.inf
        for loss, kept in zip(history["loss"][:, i].tolist(), history["accepted"][:, i].tolist(), strict=True):
            assert not (kept and loss >= best)
            best = loss if kept else best


# -- starts and ends --------------------------------------------------------------------------------------------------


@each_attack
def test_images_that_are_wrong_from_the_start_cost_nothing(name):
    images, labels = picture_batch(5)
    wrong = (labels + 1) % CLASSES
    model = Recorder(LINEAR)
    result = ATTACKS[name](max_queries=60)(model, images, wrong)
    assert result.skipped.all()
    assert not (result.success | result.success_uint8 | result.failed).any()
    assert not (result.queries | result.checks).any()
    assert torch.equal(result.adv, images)
    assert not (result.l2 + result.l2_unclipped).any()
    assert torch.equal(result.preds, labels)
    assert result.history["loss"].shape == result.history["accepted"].shape == (0, 5)
    assert len(model.images) == 5


@pytest.mark.parametrize("number", [0, 3])
@pytest.mark.parametrize("name", ["ppba", "ppba_3", "ppba_linf"])
def test_the_state_is_told_of_batches_without_a_walk_too(name, number):
    images, labels = picture_batch(number)
    history = ATTACKS[name](max_queries=60)(LINEAR, images, (labels + 1) % CLASSES).history
    assert history["z"].shape == (number, 24)
    assert history["probabilities"].shape == (3, number, 24)
    assert not history["z"].any()


@each_attack
def test_an_empty_batch(name):
    images, labels = picture_batch(0)
    model = Recorder(LINEAR)
    result = ATTACKS[name](max_queries=60)(model, images, labels)
    assert not model.sizes
    assert result.adv.shape == (0, 3, SIDE, SIDE)
    assert result.history["loss"].shape == (0, 0)
    for field in ("success", "queries", "l2", "l2_unclipped", "skipped", "success_uint8", "failed", "preds", "checks"):
        assert getattr(result, field).shape == (0,), field


@each_walk
def test_a_batch_that_is_all_solved(name):
    images, _ = picture_batch(4)
    labels = LINEAR(images).argmax(1)
    result = ATTACKS[name](eps=0.3 if name == "ppba_linf" else 4.0, max_queries=2000)(LINEAR, images, labels)
    assert result.success.all()
    assert len(result.history["loss"]) == (~result.history["loss"].isnan()).sum(0).max()
    assert torch.equal(LINEAR(result.adv).argmax(1), result.preds)
    assert (result.preds != labels).all()


@each_attack
def test_targets_that_are_reached_already(name):
    images, labels = picture_batch(4)
    model = Recorder(LINEAR)
    result = ATTACKS[name](max_queries=60, targeted=True)(model, images, labels)
    assert result.success.all()
    assert not result.skipped.any()
    assert result.queries.tolist() == [int(name in COUNT_THE_CLEAN_IMAGE)] * 4
    assert result.checks.tolist() == [1] * 4
    assert torch.equal(result.adv, images)
    assert len(model.images) == 8


def test_a_loss_that_is_zero_at_the_start_costs_one_query():
    images, _ = picture_batch(2)
    attack = PPBA(loss_fn=label_score_loss, max_queries=20)
    result = attack(lambda x: [[("cat", 0.9)]] * len(x), images, [{"cat"}, {"dog"}])
    assert result.success.tolist() == [False, True]
    assert result.queries.tolist() == [20, 1]


@each_attack
def test_targets(name):
    images, labels = picture_batch(8)
    targets = LINEAR(images).topk(2).indices[:, 1]
    true = labels.clone()
    true[3] = targets[3]
    attack = ATTACKS[name](eps=0.3 if name == "ppba_linf" else 3.0, max_queries=600, targeted=True)
    model = Recorder(LINEAR)
    result = attack(model, images, targets, true_labels=true)
    assert result.skipped.tolist() == [i == 3 for i in range(8)]
    assert result.queries[3] == 0
    assert result.success.sum() >= 3
    assert torch.equal(LINEAR(result.adv).argmax(1) == targets, result.success)
    assert torch.bincount(owners(model.images, images), minlength=8).tolist() == expected_cost(name, result).tolist()


def _two_logits(image_to_margin):
    """Class 0 against class 1 by a margin that a function gives."""
    return lambda x: torch.stack([image_to_margin(x), torch.zeros(len(x), dtype=x.dtype)], 1)


def test_a_tie_is_no_success_until_the_prediction_changes():
    images = torch.full((1, 3, SIDE, SIDE), 0.5, dtype=torch.float64)
    moved = lambda x: (x - images).flatten(1).norm(dim=1)  # noqa: E731
    tie = Recorder(_two_logits(lambda x: (0.2 - moved(x)).clamp_min(0)))  # 0 against 0: argmax stays class 0
    label = torch.tensor([0])
    result = PPBA(max_queries=40)(tie, images, label)
    assert not result.success.item()
    assert result.queries.item() == 40
    assert result.history["loss"][:, 0].nan_to_num(9).min() == 0  # it stood at a tie, and went on
    through = _two_logits(lambda x: torch.where(moved(x) > 0.9, -1.0, (0.2 - moved(x)).clamp_min(0)))
    result = PPBA(rho=0.2, max_queries=40)(through, images, label)
    assert result.success.item() == (through(result.adv).argmax().item() == 1)
    start = PPBA(max_queries=40)(_two_logits(lambda x: 0 * moved(x)), images, label)
    assert not (start.success | start.skipped).item()  # a tie at the start is neither a success nor wrong
    assert start.queries.item() == 40


def test_a_step_beyond_a_tie_is_taken():
    images = torch.full((1, 3, SIDE, SIDE), 0.5, dtype=torch.float64)
    flat = _two_logits(lambda x: torch.where((x - images).flatten(1).norm(dim=1) > 0, -1.0, 0.0).to(x.dtype))
    result = PPBA(max_queries=40)(flat, images, torch.tensor([0]))  # margin 0 before and after; only argmax tells
    assert result.success.item()
    assert result.queries.item() == 2
    assert flat(result.adv).argmax() == 1


@each_attack
def test_success_is_tried_again_after_rounding(name):
    _, labels, *_, result = usual(name)
    rounded = LINEAR(torch.round(result.adv * 255) / 255).argmax(1) != labels
    assert torch.equal(result.success_uint8, result.success & rounded)


@each_attack
def test_a_success_that_does_not_survive_rounding(name):
    images = torch.full((2, 3, SIDE, SIDE), 102 / 255, dtype=torch.float64)

    def model(x):  # class 1 is whatever does not lie on the grid of 8 bits
        off = ((x * 255 - (x * 255).round()).abs() > 1e-6).flatten(1).any(1)
        slope = 1e-3 * x.flatten(1).sum(1)  # or those that follow a gradient would not move
        return torch.stack([0.5 - off.to(x.dtype) + slope, 2 * slope], 1)

    result = ATTACKS[name](max_queries=60)(model, images, torch.zeros(2, dtype=torch.int64))
    assert result.success.all()  # what rounding does is reported alone
    assert not result.success_uint8.any()
    assert (model(result.adv).argmax(1) == 1).all()


# -- company ----------------------------------------------------------------------------------------------------------


@each_attack
def test_a_batch_equals_its_images_bit_for_bit(name):
    images, labels = picture_batch(6)
    labels[2] = (labels[2] + 1) % CLASSES
    ids = torch.tensor([5, -3, 2**40, 0, 11, 7])
    attack = ATTACKS[name](max_queries=120 if name == "nes" else 50, seed=4)
    together = attack(LINEAR, images, labels, image_ids=ids)
    assert 0 < together.success.sum() < 5
    for split in ([[0], [1], [2], [3], [4], [5]], [[5, 4, 3, 2, 1, 0]], [[3, 0], [1, 2, 5, 4]]):
        for rows in split:
            part = attack(LINEAR, images[rows], labels[rows], image_ids=ids[rows])
            for i, row in enumerate(rows):
                assert_same_row(part, i, together, row)


DRAWS = {
    "ppba": (1, 24),
    "ppba_3": (3, 24),
    "ppba_linf": (1, 24),
    "nes": (5, PIXELS),
    "nes_lf": (5, 24),
    "bandits": (48,),
} | {
    "bandits_lf": (24,),
    "simba": (1,),
}


@each_attack
def test_a_batch_equals_its_images_with_given_draws(name):
    images, labels = picture_batch(5)
    draw = torch.rand if "ppba" in name or name == "simba" else torch.randn
    draws = draw(12, 5, *DRAWS[name], dtype=torch.float64)
    attack = ATTACKS[name]()
    together = attack(LINEAR, images, labels, draws=draws)
    for i in range(5):
        single = attack(LINEAR, images[i, None], labels[i, None], draws=draws[:, i, None])
        assert_same_row(single, 0, together, i)
    assert len(together.history["loss"]) == 12  # the end of the draws is the end of the attack
    assert not together.success.all()


@each_walk
def test_seeds_and_ids_draw_differently(name):
    images, labels = picture_batch(1)
    attack = ATTACKS[name]
    run = lambda seed, i: attack(max_queries=31, seed=seed)(HOPELESS, images, 0 * labels, image_ids=torch.tensor([i]))  # noqa: E731
    advs = [run(seed, i).adv for seed, i in ((0, 0), (1, 0), (0, 1), (2**40, 0))]
    assert torch.equal(run(0, 0).adv, advs[0])
    for a in range(4):
        assert all(not torch.equal(advs[a], advs[b]) for b in range(a))


@pytest.mark.parametrize("name", ["ppba_3", "nes_lf", "bandits", "simba"])
def test_a_real_network_in_company_and_alone(name):
    network = small_conv_net()
    images = torch.rand(10, 3, SIDE, SIDE)
    with torch.no_grad():
        scores, labels = network(images), network(images).argmax(1)
        alone = torch.cat([network(image[None]) for image in images])
    assert_close(alone, scores, rtol=1e-6, atol=1e-6)
    for pad in (False, True):
        attack = ATTACKS[name](max_queries=40, pad_batch=pad)
        together = attack(network, images, labels)
        odd = 0
        for i in (0, 4, 9):
            single = attack(network, images[i, None], labels[i, None], image_ids=torch.tensor([i]))
            odd += not (torch.equal(single.adv[0], together.adv[i]) and single.queries[0] == together.queries[i])
        print(f"{name}, pad_batch={pad}: {odd} of 3 images end differently alone")
        assert together.success.any()
        assert not (pad and odd)


@pytest.mark.parametrize(("pad", "limit", "sizes"), [(True, None, {8}), (5, None, {5}), (True, 3, {3}), (2, 3, {2})])
@pytest.mark.parametrize("name", ["ppba_3", "nes"])
def test_padding_keeps_the_size_and_is_not_counted(name, pad, limit, sizes):
    images, labels = picture_batch(6)
    model = Recorder(LINEAR)
    if limit:
        model.max_batch = limit
    padded = ATTACKS[name](max_queries=40, pad_batch=pad)(model, images, labels)
    plain = ATTACKS[name](max_queries=40)(LINEAR, images, labels)
    assert set(model.sizes) == sizes
    for i in range(6):
        assert_same_row(padded, i, plain, i)


@one_of_each
def test_a_black_box_that_takes_few_images_at_once(name):
    images, labels = picture_batch(5)
    model = Recorder(LINEAR)
    model.max_batch = 3
    parts = ATTACKS[name](max_queries=40)(model, images, labels)
    whole = ATTACKS[name](max_queries=40)(LINEAR, images, labels)
    assert max(model.sizes) == 3
    for i in range(5):
        assert_same_row(parts, i, whole, i)


# -- black boxes that misbehave ---------------------------------------------------------------------------------------


@each_walk
def test_not_a_number_fails_its_image_and_no_other(name):
    images, labels = picture_batch(4)
    others = [0, 2, 3]
    attack = ATTACKS[name](max_queries=90)
    without = attack(LINEAR, images[others], labels[others], image_ids=torch.tensor(others))
    for distance, least in ((0.0, 0), (1e-9, 1), (0.25, 2)):  # the clean image; the first step; later
        model = Recorder(NaNs(LINEAR, images, 1, distance))
        result = attack(model, images, labels)
        for i, row in enumerate(others):
            assert_same_row(without, i, result, row)
        assert result.failed.tolist() == [False, True, False, False]
        assert not (result.success | result.success_uint8 | result.skipped)[1]
        steps, odd = divmod(result.queries[1].item() - (name in COUNT_THE_CLEAN_IMAGE), attack.step_queries)
        assert odd == 0
        assert steps >= least if distance == 0.25 else steps == least
        assert ((result.adv >= 0) & (result.adv <= 1)).all()  # false for NaN
        assert result.l2.isfinite().all()
        assert result.l2_unclipped.isfinite().all()
        assert all(image.isfinite().all() for image in model.images)  # the model is never shown such an image


def test_a_success_beside_a_useless_answer_is_not_both():
    images = torch.full((1, 3, SIDE, SIDE), 0.5, dtype=torch.float64)

    def model(x):  # the clean image is class 0; of three candidates the first is a success, the second of no use
        scores = torch.tensor([[0.0, 1.0], [math.nan, 0.0], [2.0, 0.0]]) if len(x) == 3 else torch.tensor([[2.0, 0.0]])
        return scores.to(x)

    result = PPBA(n_samples=3, max_queries=40)(model, images, torch.tensor([0]))
    assert (result.success ^ result.failed).item()


@each_attack
def test_what_is_not_a_score(name):
    images, labels = picture_batch(2)
    attack = ATTACKS[name](max_queries=60)
    with pytest.raises(ValueError, match=r"model_fn returns probabilities .* leave the softmax out"):
        attack(lambda x: LINEAR(x).softmax(1), images, labels)
    for wrong in (lambda x: LINEAR(x)[:, 0], lambda x: LINEAR(x)[:1], lambda x: LINEAR(x)[..., None]):
        with pytest.raises(ValueError, match=r"model_fn returned scores of shape .* give \(N, classes\)"):
            attack(wrong, images, labels)
    log = attack(lambda x: LINEAR(x).log_softmax(1), images, labels)  # the cure that the message names
    assert not log.failed.any()


def test_arrays_are_scores_too():
    images, labels = picture_batch(3)
    attack = PPBA(max_queries=40)
    result, tensors = attack(lambda x: LINEAR(x).numpy(), images, labels), attack(LINEAR, images, labels)
    for i in range(3):
        assert_same_row(result, i, tensors, i)


# -- bad input --------------------------------------------------------------------------------------------------------

GOOD, LABELS = picture_batch(3)
BAD_CALLS = {
    "negative": ({"images": GOOD - 1}, r"images must lie in \[0, 1\], not -.*ModelBlackBox\(model, mean, std\)"),
    "above one": ({"images": GOOD * 255}, r"images must lie in \[0, 1\], not .*; do not normalise"),
    "not a number": ({"images": GOOD.where(GOOD < 0.9, math.nan)}, r"images must lie in \[0, 1\], not nan"),
    "whole numbers": ({"images": (GOOD * 255).byte()}, r"images must be float \(N, C, S, S\).* got torch.uint8"),
    "not square": ({"images": GOOD[..., :6]}, r"images must be .* square, got .*\(3, 3, 8, 6\)"),
    "one image": ({"images": GOOD[0]}, r"images must be float \(N, C, S, S\).*\(3, 8, 8\)"),
    "fewer labels": ({"labels": LABELS[:2]}, r"labels must have one entry for each of the 3 images, got 2"),
    "labels as scores": ({"labels": torch.eye(3)}, r"labels must be \(N,\) whole numbers, got torch.float32 \(3, 3\)"),
    "labels as fractions": ({"labels": LABELS.double()}, r"labels must be \(N,\) whole numbers, got torch.float64"),
    "labels as a column": ({"labels": LABELS[:, None]}, r"labels must be \(N,\) whole numbers, got .*\(3, 1\)"),
    "labels as sets": ({"labels": [{"cat"}, {"dog"}, {"cow"}]}, r"labels .*"),
    "a label too high": ({"labels": LABELS + CLASSES}, r"labels holds the class [5-9], .* 5 classes, 0 to 4"),
    "a label below zero": ({"labels": LABELS - CLASSES}, r"labels holds the class -\d, .* 5 classes, 0 to 4"),
    "ids of another number": ({"image_ids": torch.arange(4)}, r"image_ids must have one entry .* 3 images, got 4"),
    "an id twice": ({"image_ids": torch.tensor([1, 2, 1])}, r"image_ids holds an id twice"),
    "true labels": ({"true_labels": LABELS}, r"true_labels are for targeted attacks"),
}


@pytest.mark.parametrize("fault", BAD_CALLS)
@one_of_each
def test_bad_calls_are_refused_by_name(name, fault):
    arguments, message = BAD_CALLS[fault]
    arguments = {"images": GOOD, "labels": LABELS} | arguments
    with pytest.raises(ValueError, match=message):
        ATTACKS[name](max_queries=60)(LINEAR, arguments.pop("images"), arguments.pop("labels"), **arguments)


@one_of_each
def test_true_labels_of_another_shape_or_class(name):
    attack = ATTACKS[name](max_queries=60, targeted=True)
    with pytest.raises(ValueError, match="true_labels must have one entry for each of the 3 images, got 2"):
        attack(LINEAR, GOOD, LABELS, true_labels=LABELS[:2])
    with pytest.raises(ValueError, match=r"true_labels holds the class \d, .* 5 classes"):
        attack(LINEAR, GOOD, LABELS, true_labels=LABELS + CLASSES)


@pytest.mark.parametrize("name", ["ppba", "nes_lf", "bandits_lf", "simba"])
def test_a_projection_for_other_images(name):
    images = torch.rand(2, 3, 16, 16)
    flat = lambda x: x.flatten(1)[:, :5]  # noqa: E731
    with pytest.raises(ValueError, match=r"images are \(3, 16, 16\), but the projection is for \(3, 8, 8\); make one"):
        ATTACKS[name](max_queries=60)(flat, images, flat(images).argmax(1))


@pytest.mark.parametrize("fault", [{"eps": 0}, {"eps": -1.0}, {"eps": math.nan}, {"pad_batch": -1}])
@each_attack
def test_bad_arguments_of_every_attack(name, fault):
    (argument, value), = fault.items()  # fmt: skip
    with pytest.raises(ValueError, match=f"{argument}={value} must be"):
        ATTACKS[name](**fault)


def test_bad_arguments_of_ppba():
    for argument, value in (("rho", 0), ("n_samples", 0), ("norm", "l1"), ("momentum", 0), ("count_update", "none")):
        with pytest.raises(ValueError, match=f"{argument}={value!r} must "):
            PPBA(**{argument: value})
    with pytest.raises(ValueError, match="targeted=True is for margin_loss"):
        PPBA(loss_fn=label_score_loss, targeted=True)
    with pytest.raises(ValueError, match=r"loss_fn must give one value per image, \(3,\), got \(3, 5\)"):
        PPBA(loss_fn=lambda scores, labels: scores)(LINEAR, GOOD, LABELS)


# -- what is looked at on the way -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "budget"),
    [*((name, 20) for name in ATTACKS), ("ppba", 100), ("bandits_lf", 200), ("simba", 49), ("simba", 50)],
)
def test_films(name, budget):
    images, _ = picture_batch(3)
    ids = torch.tensor([4, 9, 6])
    hard = partial(
        ATTACKS[name](max_queries=budget), HOPELESS, images, torch.zeros(3, dtype=torch.int64), image_ids=ids
    )
    result = hard(films=(4, 6, 77))
    films, steps = result.history["films"], len(result.history["loss"])
    assert set(films) == {4, 6}
    for row, image in ((0, 4), (2, 6)):
        frames = films[image].frames
        numbers = [number for number, _ in frames]
        assert 1 < len(frames) <= 49
        assert len(frames) == steps or steps > 48
        assert (numbers[0], numbers[-1]) == (0, steps - 1)
        assert numbers == sorted(set(numbers))
        assert len(set(np.diff(numbers[:-1]).tolist())) <= 1  # evenly spaced, but for the last
        assert all(frame.dtype == torch.uint8 and frame.shape == (3, SIDE, SIDE) for _, frame in frames)
        assert torch.equal(frames[-1][1], (result.adv[row] * 255).round().byte())
    assert torch.equal(result.adv, hard().adv)


@each_attack
def test_a_film_ends_with_the_success(name):
    *_, result = usual(name)
    steps = (~result.history["loss"].isnan()).sum(0)
    assert set(result.history["films"]) == set((~result.skipped).nonzero().flatten().tolist())
    for i in result.history["films"]:
        number, frame = result.history["films"][i].frames[-1]
        assert number == steps[i] - 1
        assert torch.equal(frame, (result.adv[i] * 255).round().byte())


@each_walk
def test_an_attack_object_keeps_nothing(name):
    images, labels = picture_batch(3)
    attack = ATTACKS[name](max_queries=40)
    before = dict(vars(attack))
    first, again = attack(LINEAR, images, labels), attack(LINEAR, images, labels)
    assert vars(attack) == before
    for i in range(3):
        assert_same_row(again, i, first, i)


@one_of_each
def test_no_gradients_hooks_or_modes_are_left(name):
    network = small_conv_net().train()
    network[1].eval()
    images = torch.rand(3, 3, SIDE, SIDE, requires_grad=True)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with torch.no_grad():
        labels = ModelBlackBox(network)(images).argmax(1)
    result = ATTACKS[name](max_queries=40)(network, images, labels)
    assert [m.training for m in network] == [i != 1 for i in range(len(network))]
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in network.modules())
    assert images.grad is None
    assert not any(t.requires_grad for t in vars(result).values() if isinstance(t, Tensor))


def test_a_network_is_asked_in_its_own_precision():
    network = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, CLASSES))
    images, _ = picture_batch(2)
    with torch.no_grad():
        labels = network(images.float()).argmax(1)
    result = PPBA(max_queries=30)(network, images, labels)
    assert result.adv.dtype == torch.float64
    assert not result.skipped.any()
    assert margin_loss(network(result.adv.float()), labels)[result.success].max() == 0 if result.success.any() else True


@each_attack
def test_what_on_step_raises_comes_out(name):
    images, labels = picture_batch(3)

    def stop(number, left):
        if number == 2:
            raise Killed

    model = Recorder(HOPELESS)
    with pytest.raises(Killed):
        ATTACKS[name](max_queries=60)(model, images, 0 * labels, on_step=stop)
    asked = Counter(owners(model.images, images).tolist())
    per_step = {"ppba_3": 3, "nes": 11, "nes_lf": 11, "bandits": 3, "bandits_lf": 3}.get(name, 1)
    assert asked == dict.fromkeys(range(3), 1 + 2 * per_step)


def memory_at(iterations, name, folder, measure):
    """What an attack that never ends takes before some of its iterations: ``measure()``, and its tensors."""
    images, sizes = picture_batch(2)[0], []

    def look(number, left):
        if number == 0:
            gc.freeze()  # what was there before is not looked through
        if number in iterations:
            gc.collect()
            tensors = [o for o in gc.get_objects() if issubclass(type(o), Tensor)]
            sizes.append((measure(), len(tensors), sum(t.nbytes for t in tensors)))
        if number == iterations[-1]:
            raise Killed

    attack, labels = ATTACKS[name](max_queries=16_000), torch.zeros(2, dtype=torch.int64)
    try:
        with Ledger(folder / "ledger.jsonl") as ledger, pytest.raises(Killed):
            attack(HOPELESS, images, labels, ledger=ledger, on_step=look)
    finally:
        gc.unfreeze()
    return sizes


@one_of_each
def test_memory_does_not_grow(name, tmp_path):
    (early, *tensors), (late, *same) = memory_at((60, 160), name, tmp_path, sys.getallocatedblocks)
    print(f"{name}: {early} Python objects in iteration 60, {late} in iteration 160")
    assert same == tensors
    assert late - early < 90  # less than one in an iteration; lists that Python keeps for later fill up at first


@pytest.mark.slow
@one_of_each
def test_memory_does_not_grow_in_the_long_run(name, tmp_path):
    tracemalloc.start()
    try:
        sizes = memory_at((300, 1500), name, tmp_path, lambda: tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    (early, *tensors), (late, *same) = sizes
    print(
        f"{name}: {early} bytes beside tensors of {tensors[1]} in iteration 300; {late - early} more in iteration 1500"
    )
    assert same == tensors
    assert late - early < 24 * 1200  # the smallest object takes 24 bytes: less than one in an iteration


def test_messages_are_one_line():
    with pytest.raises(ValueError, match=re.compile(r"^[^\n]*$")):
        PPBA(max_queries=1)
