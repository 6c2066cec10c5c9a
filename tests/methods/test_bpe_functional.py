"""BPE/MIP's arithmetic: rank agreement, the two picking statistics, schedules."""

import csv
import itertools
import math

import numpy as np
import pytest
import torch

from lit_methods.bpe_mip.functional import cosine_lr, drop_path_at, expected_pick, spearman, top_mean
from lit_methods.bpe_mip.table import read_table


@pytest.fixture
def table(shared):
    return read_table(shared / "data/bpe_mip")


def test_what_lives_in_files_of_its_own_can_be_imported_from_here():
    from lit_methods.bpe_mip import architecture_gradient, functional, importance
    from lit_methods.functional import cutout

    assert functional.cutout is cutout.cutout
    assert functional.architecture_gradient is architecture_gradient.architecture_gradient
    for name in ("fanova_tree", "fanova_importance", "eliminate"):
        assert getattr(functional, name) is getattr(importance, name)


def test_spearman_is_that_of_the_reference(vectors):
    stored = np.load(vectors / "bpe_mip/spearman.npz")
    for i in range(5):
        assert spearman(stored[f"a{i}"], stored[f"b{i}"]) == pytest.approx(float(stored[f"rho{i}"]), abs=1e-12)


def test_spearman_counts_ranks_of_ties_as_a_plain_loop_does():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 4, (2, 9)).astype(float)
        ranks = [[sum(v < w for v in x) + (sum(v == w for v in x) + 1) / 2 for w in x] for x in (a, b)]
        assert spearman(a, b) == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-12)


def test_spearman_knows_only_the_order():
    a, b = torch.rand(30).double(), torch.rand(30).double()
    assert spearman(a, b) == spearman(a.exp(), 3 * b + 1) == spearman(b, a) == -spearman(-a, b)
    assert spearman(a, a.exp()) == 1


def test_spearman_of_nothing_to_compare_is_nan():
    for a, b in (([], []), ([1], [2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [0.5, 0.5, 0.5])):
        assert math.isnan(spearman(a, b))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1, 2], [1, 2, 3], r"same length, got \(2,\) and \(3,\)"),
        ([[1, 2]], [[1, 2]], "must be lists"),
        ([1, math.nan], [1, 2], r"a\[1\] is nan; leave out"),
        ([1, 2], [math.inf, 2], r"b\[0\] is inf"),
    ],
)
def test_spearman_refuses_what_has_no_order(a, b, message):
    with pytest.raises(ValueError, match=message):
        spearman(a, b)


def test_every_published_correlation_follows_from_the_accuracies(table):
    off = dict(zip(table.names, np.abs(table.scores() - table.published), strict=True))
    assert len(off) == 26
    assert max(off.pop("test1"), off.pop("test31")) < 5e-4  # printed with three decimals, or wrongly
    assert max(off.values()) < 1e-4


def test_correlation_of_recipes_agrees_with_what_darts_finds(shared):
    with (shared / "data/bpe_mip/darts_search.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = [[float(row[name]) for row in rows] for name in ("spearman", "retrained_accuracy")]
    assert len(rows) == 15
    assert spearman(*columns) == pytest.approx(0.6465, abs=1e-3)


@pytest.mark.parametrize(
    ("trial", "top", "pick"), [("test5", 97.11, 97.13), ("test32", 97.13, 97.16), ("test22", 97.28, 97.24)]
)
def test_picking_statistics_are_the_printed_ones(table, trial, top, pick):
    scores, truth = table.accuracies[table.names.index(trial)], 100 * table.truth
    assert top_mean(scores, truth) == pytest.approx(top, abs=0.01)
    assert expected_pick(scores, truth) == pytest.approx(pick, abs=0.014)  # the workbook cuts off after two decimals


def test_expected_pick_is_the_mean_over_all_draws():
    scores, truth = [5, 1, 4, 2, 3, 0], np.array([0.9, 0.2, 0.5, 0.8, 0.1, 0.4])
    for n in range(1, 7):
        picks = [truth[max(draw, key=lambda i: scores[i])] for draw in itertools.combinations(range(6), n)]
        assert expected_pick(scores, truth, n) == pytest.approx(np.mean(picks), abs=1e-12)
    assert expected_pick(scores, truth, 1) == pytest.approx(truth.mean())
    assert expected_pick(scores, truth, 6) == pytest.approx(0.9)


def test_equal_scores_stand_for_their_mean_whatever_their_order():
    scores, truth = np.array([2.0, 1, 1, 1, 0]), np.array([0.1, 0.2, 0.4, 0.9, 0.3])
    tops, picks = [], []
    for order in itertools.permutations((1, 2, 3)):  # every way to break the ties
        broken = scores.copy()
        broken[list(order)] += [0.3, 0.2, 0.1]
        tops.append(top_mean(broken, truth, 3))
        picks.append(expected_pick(broken, truth, 2))
    assert top_mean(scores, truth, 3) == pytest.approx(np.mean(tops))
    assert expected_pick(scores, truth, 2) == pytest.approx(np.mean(picks))


def test_expected_pick_is_exact_for_many_architectures():
    truth = np.arange(3000.0)
    assert expected_pick(truth, truth, 10) == pytest.approx(10 / 11 * 3001 - 1, rel=1e-12)  # the mean of a maximum


@pytest.mark.parametrize("count", [0, 4])
def test_more_picks_than_architectures_are_refused(count):
    with pytest.raises(ValueError, match=f"k={count} must lie between 1 and 3"):
        top_mean([1, 2, 3], [1, 2, 3], k=count)
    with pytest.raises(ValueError, match=f"n={count} must lie between 1 and 3"):
        expected_pick([1, 2, 3], [1, 2, 3], n=count)
    with pytest.raises(ValueError, match="empty"):
        top_mean([], [])


def test_schedules_are_those_of_the_reference(vectors):
    stored = np.load(vectors / "bpe_mip/cutout_schedule.npz")
    epochs, lr, low = int(stored["epochs"]), float(stored["lr0"]), float(stored["eta_min"])
    found = np.array([[cosine_lr(e, epochs, lr, low, legacy) for legacy in (False, True)] for e in range(epochs)])
    np.testing.assert_allclose(found, np.stack([stored["lr_standard"], stored["lr_official"]], 1), rtol=0, atol=1e-12)
    drop = [drop_path_at(e, epochs) for e in range(epochs)]
    np.testing.assert_allclose(drop, stored["drop_path"], rtol=0, atol=1e-12)


def test_the_rate_is_that_of_the_scheduler_and_ends_at_its_floor():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.025)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7, eta_min=0.001)
    for epoch in range(8):
        assert cosine_lr(epoch, 7, 0.025, 0.001) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()
    assert cosine_lr(6, 7, 0.025, 0.001, legacy=True) == cosine_lr(7, 7, 0.025, 0.001) == 0.001


@pytest.mark.parametrize(("epoch", "epochs"), [(-1, 10), (11, 10), (0, 0)])
def test_epochs_out_of_range_are_refused(epoch, epochs):
    for schedule in (lambda: cosine_lr(epoch, epochs, 0.1), lambda: drop_path_at(epoch, epochs)):
        with pytest.raises(ValueError, match=f"epoch={epoch} of epochs={epochs}"):
            schedule()
    with pytest.raises(ValueError, match=r"p_max=1\.0 must lie in"):
        drop_path_at(0, 10, 1.0)
