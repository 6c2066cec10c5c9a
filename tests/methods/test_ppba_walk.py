"""PPBA's random walk against the reference attack and a slow loop; what all attacks owe is in ``test_attacks``."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lit_methods.ppba import (
    LowFrequencyProjection,
    PPBAAttack,
    label_score_loss,
    margin_loss,
)
from tests.methods.toy_attacks import (
    ATTACKS,
    COUNT_THE_CLEAN_IMAGE,
    LINEAR,
    LOW,
    PPBA,
    assert_same_row,
    usual,
)
from tests.methods.toy_models import (
    CLASSES,
    PIXELS,
    SIDE,
    Recorder,
    load,
    picture_batch,
)

# -- reference values --------------------------------------------------------------------------------------------------


def linear_of(case):
    return lambda x: (
        ((x - case["mean"].to(x)) / case["std"].to(x)).flatten(1) @ case["weight"].T.to(x) + case["bias"].to(x)
    )


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


# -- what is accepted --------------------------------------------------------------------------------------------------


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


def test_a_success_beside_a_useless_answer_is_not_both():
    images = torch.full((1, 3, SIDE, SIDE), 0.5, dtype=torch.float64)

    def model(x):  # the clean image is class 0; of three candidates the first is a success, the second of no use
        scores = torch.tensor([[0.0, 1.0], [math.nan, 0.0], [2.0, 0.0]]) if len(x) == 3 else torch.tensor([[2.0, 0.0]])
        return scores.to(x)

    result = PPBA(n_samples=3, max_queries=40)(model, images, torch.tensor([0]))
    assert (result.success ^ result.failed).item()


def test_a_loss_that_is_zero_at_the_start_costs_one_query():
    images, _ = picture_batch(2)
    attack = PPBA(loss_fn=label_score_loss, max_queries=20)
    result = attack(lambda x: [[("cat", 0.9)]] * len(x), images, [{"cat"}, {"dog"}])
    assert result.success.tolist() == [False, True]
    assert result.queries.tolist() == [20, 1]


@pytest.mark.parametrize("number", [0, 3])
@pytest.mark.parametrize("name", ["ppba", "ppba_3", "ppba_linf"])
def test_the_state_is_told_of_batches_without_a_walk_too(name, number):
    images, labels = picture_batch(number)
    history = ATTACKS[name](max_queries=60)(LINEAR, images, (labels + 1) % CLASSES).history
    assert history["z"].shape == (number, 24)
    assert history["probabilities"].shape == (3, number, 24)
    assert not history["z"].any()


# -- scores and arguments ----------------------------------------------------------------------------------------------


def test_arrays_are_scores_too():
    images, labels = picture_batch(3)
    attack = PPBA(max_queries=40)
    result, tensors = attack(lambda x: LINEAR(x).numpy(), images, labels), attack(LINEAR, images, labels)
    for i in range(3):
        assert_same_row(result, i, tensors, i)


def test_a_network_is_asked_in_its_own_precision():
    network = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, CLASSES))
    images, _ = picture_batch(2)
    with torch.no_grad():
        labels = network(images.float()).argmax(1)
    result = PPBA(max_queries=30)(network, images, labels)
    assert result.adv.dtype == torch.float64
    assert not result.skipped.any()
    assert margin_loss(network(result.adv.float()), labels)[result.success].max() == 0 if result.success.any() else True


def test_bad_arguments_of_ppba():
    for argument, value in (("rho", 0), ("n_samples", 0), ("norm", "l1"), ("momentum", 0), ("count_update", "none")):
        with pytest.raises(ValueError, match=f"{argument}={value!r} must "):
            PPBA(**{argument: value})
    with pytest.raises(ValueError, match="targeted=True is for margin_loss"):
        PPBA(loss_fn=label_score_loss, targeted=True)
    with pytest.raises(ValueError, match=r"loss_fn must give one value per image, \(3,\), got \(3, 5\)"):
        PPBA(loss_fn=lambda scores, labels: scores)(LINEAR, *picture_batch(3))
