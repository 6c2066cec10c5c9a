"""PPBA's counts and the probability of every move against the reference walk and a slow one."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lit_methods.ppba import (
    MoveProbability,
    clip_l2,
)
from lit_methods.ppba.functional import check_walk
from tests.methods.toy_models import load


@pytest.mark.parametrize("case", range(4))
def test_reference_walk(vectors, case):
    reference = load(vectors, "probability_steps")
    rho, eps, offset = (float(reference[key]) for key in ("rho", "eps", "offset"))
    names = ("w", "draws", "prob", "u", "candidate", "loss", "accepted", "z", "eff", "ineff", "queries")
    w, draws, prob, u, candidate, loss, accepted, z, eff, ineff, queries = (
        reference[f"{name}{case}"] for name in names
    )
    mode = "ineffective_only" if reference[f"legacy{case}"] else "both"
    walk = MoveProbability(1, len(w), momentum=float(reference[f"momentum{case}"]), count_update=mode)
    now, incumbent, asked = torch.zeros_like(w), torch.tensor([max(0.0, offset)], dtype=torch.float64), 1
    for t, drawn in enumerate(draws):
        same = {"rtol": 0, "atol": 1e-12}
        assert_close(walk.probabilities()[:, 0], prob[t], **same)
        moves = walk.moves(drawn[None])
        assert torch.equal(moves[0], u[t])
        candidates = clip_l2(now + rho * moves, eps)
        assert_close(candidates[0], candidate[t], **same)
        losses = (offset + candidates @ w).clamp_min(0)
        assert_close(losses[0], loss[t], **same)
        moved = walk.update(moves, losses, incumbent)
        assert moved.tolist() == [bool(accepted[t])]
        if moved:
            incumbent, best = losses.min(1)
            now = candidates[0, best[0]]
        assert_close(now, z[t], **same)
        assert_close(walk.effective[:, 0], eff[t], **same)
        assert_close(walk.ineffective[:, 0], ineff[t], **same)
        asked += len(drawn)
    assert asked == queries


class SlowWalk:
    """Counts of one image, one coordinate after the other, from the specification."""

    def __init__(self, dim, momentum, mode, prior):
        self.momentum, self.mode = momentum, mode
        self.effective, self.ineffective = np.full((3, dim), prior), np.full((3, dim), prior)

    def probabilities(self):
        rates = self.effective / (self.effective + self.ineffective)
        return np.array([[p / sum(column) for p in column] for column in rates.T]).T

    def moves(self, draws):
        down, stay, _ = self.probabilities()
        return [
            [-1 if r < a else 1 if r >= a + b else 0 for r, a, b in zip(row, down, stay, strict=True)] for row in draws
        ]

    def update(self, moves, losses, incumbent):
        accepted = min(losses) < incumbent
        if self.mode == "fixed":
            return accepted
        if accepted:
            self.ineffective *= self.momentum
            if self.mode == "both":
                self.effective *= self.momentum
        for row, loss in zip(moves, losses, strict=True):
            helped = accepted and loss < incumbent
            for d, move in enumerate(row):
                if not helped:
                    self.ineffective[int(move) + 1, d] += 1
                elif self.mode == "both":
                    self.effective[int(move) + 1, d] += 1
        return accepted


@pytest.mark.parametrize("mode", ["both", "ineffective_only", "fixed"])
@pytest.mark.parametrize(("samples", "momentum", "prior"), [(1, 1.0, 1.0), (1, 0.8, 0.5), (4, 1.0, 3.0), (3, 0.9, 1.0)])
def test_counts_against_a_slow_walk(mode, samples, momentum, prior):
    images, dim = 3, 5
    walk = MoveProbability(images, dim, momentum=momentum, count_update=mode, prior=prior)
    slow = [SlowWalk(dim, momentum, mode, prior) for _ in range(images)]
    outcomes = set()
    for _ in range(25):
        draws = torch.rand(images, samples, dim, dtype=torch.float64)
        losses, incumbent = torch.rand(images, samples).double(), torch.rand(images).double()
        losses[0, 0] = incumbent[0]  # as good is not better
        active = torch.rand(images) < 0.8
        moves = walk.moves(draws)
        assert moves.dtype == torch.float64
        accepted = walk.update(moves, losses, incumbent, active)
        for i, one in enumerate(slow):
            assert moves[i].tolist() == one.moves(draws[i].tolist())
            if active[i]:
                moved = one.update(moves[i].tolist(), losses[i].tolist(), incumbent[i].item())
            assert accepted[i].item() == (active[i].item() and moved)
            outcomes.add((active[i].item(), accepted[i].item()))
        for name in ("effective", "ineffective", "probabilities"):
            value = getattr(walk, name) if name != "probabilities" else walk.probabilities()
            expected = [getattr(one, name) if name != "probabilities" else one.probabilities() for one in slow]
            np.testing.assert_allclose(value, np.stack(expected, 1), rtol=1e-12, err_msg=name)
    assert outcomes == {(False, False), (True, False), (True, True)}


@pytest.mark.parametrize("mode", ["both", "ineffective_only", "fixed"])
@pytest.mark.parametrize("momentum", [1.0, 0.9, 0.1])
def test_probabilities_stay_probabilities(mode, momentum):
    walk = MoveProbability(2, 20, momentum=momentum, count_update=mode)
    assert_close(walk.probabilities(), torch.full((3, 2, 20), 1 / 3, dtype=torch.float64), rtol=0, atol=1e-15)
    for _ in range(800 if momentum == 0.1 else 100):  # there, counts not drawn reach the smallest numbers there are
        moves = walk.moves(torch.rand(2, 1, 20, dtype=torch.float64))
        walk.update(moves, torch.rand(2, 1, dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64))
    probabilities = walk.probabilities()
    assert_close(probabilities.sum(0), torch.ones(2, 20, dtype=torch.float64), rtol=0, atol=1e-12)
    assert ((probabilities > 0) & (probabilities < 1)).all()


def test_where_one_move_ends_and_the_next_begins():
    walk = MoveProbability(1, 1)
    walk.ineffective[:, 0, 0] = torch.tensor([3.0, 1.0, 3.0])  # probabilities of exactly 1/4, 1/2 and 1/4
    assert walk.probabilities().flatten().tolist() == [0.25, 0.5, 0.25]
    below = 2.0**-53  # a float64 near 1 has no finer step
    draws = torch.tensor([0.0, 0.25 - below, 0.25, 0.75 - below, 0.75, 1 - below], dtype=torch.float64)
    assert walk.moves(draws[None, :, None]).flatten().tolist() == [-1, -1, 0, 0, 1, 1]
    single = walk.moves(draws[None, [0, 2, 4], None].float())
    assert single.dtype == torch.float32
    assert single.flatten().tolist() == [-1, 0, 1]


def test_an_answer_that_is_no_number_is_no_improvement():
    walk = MoveProbability(2, 3)
    moves = torch.ones(2, 2, 3, dtype=torch.float64)
    losses = torch.tensor([[math.nan, 0.5], [math.nan, math.nan]], dtype=torch.float64)
    accepted = walk.update(moves, losses, torch.ones(2, dtype=torch.float64))
    assert accepted.tolist() == [True, False]
    assert walk.effective[2, :, 0].tolist() == [2.0, 1.0]
    assert walk.ineffective[2, :, 0].tolist() == [2.0, 3.0]


@pytest.mark.parametrize("mode", ["both", "ineffective_only", "fixed"])
def test_the_one_coordinate_that_matters(mode):
    """A linear model in which coordinate 3 decides: going up lowers the loss, going down raises it."""
    walk = MoveProbability(1, 8, count_update=mode)
    z, incumbent = torch.zeros(8, dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    for _ in range(200):
        moves = walk.moves(torch.rand(1, 1, 8, dtype=torch.float64))
        candidate = z + 0.001 * moves[0, 0]
        loss = (1.0 - candidate[3]).view(1, 1)
        if walk.update(moves, loss, incumbent):
            z, incumbent = candidate, loss[0]
    probabilities = walk.probabilities()[:, 0]
    if mode == "fixed":
        assert_close(probabilities, torch.full((3, 8), 1 / 3, dtype=torch.float64))
        return
    assert probabilities[2, 3] > 0.9 if mode == "both" else probabilities[2, 3] > 0.5
    assert probabilities[:2, 3].max() < 0.25
    others = probabilities[:, [d for d in range(8) if d != 3]]
    assert (others < 0.5).all()


@pytest.mark.parametrize("rows", [[2, 0], [True, False, True], []], ids=str)
def test_keeping_some_images(rows):
    walk = MoveProbability(3, 4)
    draws = torch.rand(3, 1, 4, dtype=torch.float64)
    walk.update(walk.moves(draws), torch.rand(3, 1), torch.tensor([1.0, 0.0, 1.0]))
    before = walk.effective.clone(), walk.ineffective.clone()
    which = torch.tensor(rows, dtype=torch.bool if rows and rows[0] is True else torch.int64)
    walk.keep(which)
    kept = [i for i, keep in enumerate(rows) if keep] if which.dtype == torch.bool else rows
    for now, then in zip((walk.effective, walk.ineffective), before, strict=True):
        assert torch.equal(now, then[:, kept])
    left = len(kept)
    accepted = walk.update(walk.moves(draws[which]), torch.rand(left, 1), torch.ones(left))
    assert accepted.tolist() == [True] * left


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"momentum": 0.0}, r"momentum=0.0 must lie in \(0, 1\]"),
        ({"momentum": 1.1}, r"momentum=1.1 must lie in \(0, 1\]"),
        ({"momentum": math.nan}, r"momentum=nan must lie in"),
        ({"count_update": "all"}, "count_update='all' must be 'both', 'ineffective_only' or 'fixed'"),
        ({"prior": 0.0}, "prior=0.0 must be positive"),
        ({"prior": -1.0}, "prior=-1.0 must be positive"),
    ],
    ids=str,
)
def test_counting_refuses(changed, message):
    with pytest.raises(ValueError, match=message):
        MoveProbability(1, 2, **changed)
    if "prior" not in changed:
        with pytest.raises(ValueError, match=message):
            check_walk(**{"momentum": 1.0, "count_update": "both"} | changed)
