"""Pairs of faces: the official results, plain loops and scikit-learn give the same numbers."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve
from torch.testing import assert_close

from lit_methods.functional.verification import (
    gap_report,
    kfold_pair_accuracy,
    race_summary,
    similarity_gap,
    tar_at_far,
)


def pairs(count, spread=0.6, seed=0, decimals=None):
    """Distances and labels, the former possibly of few values, many of them exactly on thresholds."""
    draw = np.random.default_rng(seed)
    same = draw.random(count) < 0.5
    distances = np.clip(np.where(same, 1.0, 1.6) + spread * draw.standard_normal(count), 0, 4)
    return torch.from_numpy(distances if decimals is None else distances.round(decimals)), torch.from_numpy(same)


def plain_kfold(distances, same, n_folds):
    """Fold after fold, threshold after threshold, as the official evaluation does it."""
    distances, same = distances.numpy(), same.numpy().astype(bool)
    thresholds = np.arange(0, 4, 0.01)
    folds = np.array_split(np.arange(len(same)), n_folds)
    accuracies, chosen, rates, rejects = [], [], [], []
    for fold in folds:
        others = np.setdiff1d(np.arange(len(same)), fold)
        on_others = np.mean((distances[others, None] < thresholds) == same[others, None], axis=0)
        best = thresholds[int(np.argmax(on_others))]
        accuracies.append(np.mean((distances[fold] < best) == same[fold]))
        chosen.append(best)
        rejects += [i for i in fold if same[i] and not distances[i] < best]
        d, s = distances[fold], same[fold]
        below = d[:, None] < thresholds
        rates.append([below[kind].mean(0) if kind.any() else np.zeros(len(thresholds)) for kind in (s, ~s)])
    return accuracies, chosen, np.mean(rates, axis=0), rejects


@pytest.mark.parametrize("name", ["kfold_lfw_order", "kfold_uneven"])
def test_folds_give_the_official_results(vectors, name):
    file = np.load(vectors / "ddl" / f"{name}.npz")
    unit = file["embeddings"] / np.linalg.norm(file["embeddings"], axis=1, keepdims=True)
    distances = torch.from_numpy(np.square(unit[::2] - unit[1::2]).sum(1))
    result = kfold_pair_accuracy(distances, torch.from_numpy(file["issame"]))
    expected = {"std": "accuracy_std", "threshold": "threshold_mean"}
    for field in result._fields:
        theirs = file[expected.get(field, field)]
        np.testing.assert_array_equal(getattr(result, field).numpy(), theirs, err_msg=field)
    assert {part.dtype for part in result[:-1]} == {torch.float64}
    assert result.false_rejects.dtype == torch.int64


@pytest.mark.parametrize("decimals", [None, 1, 2])
@pytest.mark.parametrize(("count", "n_folds"), [(10, 10), (11, 10), (99, 10), (60, 7), (9, 2)])
def test_folds_give_what_a_plain_loop_gives(count, n_folds, decimals):
    distances, same = pairs(count, seed=count, decimals=decimals)
    if decimals == 2:  # the very numbers of the thresholds
        distances = torch.from_numpy(np.arange(0, 4, 0.01)[(distances * 100).round().long().clamp(max=399)])
    accuracies, chosen, (tpr, fpr), rejects = plain_kfold(distances, same, n_folds)
    result = kfold_pair_accuracy(distances, same, n_folds)
    assert result.fold_accuracy.tolist() == accuracies
    assert result.fold_threshold.tolist() == chosen
    assert result.false_rejects.tolist() == rejects
    assert float(result.accuracy) == np.mean(accuracies)
    assert float(result.std) == np.std(accuracies)
    assert float(result.threshold) == np.mean(chosen)
    np.testing.assert_allclose(result.tpr, tpr, rtol=1e-14)
    np.testing.assert_allclose(result.fpr, fpr, rtol=1e-14)


def test_a_fold_without_positives_has_no_true_ones():
    distances, same = pairs(40)
    same[:8], same[8:] = False, True  # two of ten folds without the one kind, eight without the other
    result = kfold_pair_accuracy(distances, same)
    assert result.tpr[-1] == 0.8
    assert result.fpr[-1] == 0.2


def test_a_distance_on_the_threshold_is_not_below_it():
    thresholds = np.arange(0, 4, 0.01)
    distances = torch.full((20,), thresholds[123], dtype=torch.float64)
    result = kfold_pair_accuracy(distances, torch.ones(20).long(), n_folds=2)
    assert result.fold_threshold.tolist() == [thresholds[124]] * 2
    assert result.fpr.sum() == 0
    below = kfold_pair_accuracy(distances - 1e-12, torch.ones(20).long(), n_folds=2)
    assert below.fold_threshold.tolist() == [thresholds[123]] * 2


def test_the_first_of_equally_good_thresholds_is_taken():
    distances = torch.tensor([0.505, 3.0] * 10)
    result = kfold_pair_accuracy(distances, torch.tensor([1, 0] * 10))
    assert result.fold_threshold.tolist() == [0.51] * 10
    assert result.accuracy == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_distances_of_any_precision_are_taken_as_they_are(dtype):
    distances, same = pairs(100)
    given = distances.to(dtype)
    for ours, theirs in zip(kfold_pair_accuracy(given, same), kfold_pair_accuracy(given.double(), same), strict=True):
        assert torch.equal(ours, theirs)


def official_points(scores, labels, targets):
    """The official picks from scikit-learn's curve, reversed."""
    fpr, tpr, thresholds = (np.flipud(part) for part in roc_curve(labels, scores))
    places = [min(zip(np.abs(fpr - target), range(len(fpr)), strict=True))[1] for target in targets]
    return [tpr[places], thresholds[places]]


def conservative_points(scores, labels, targets):
    """Of all thresholds the lowest whose FAR is at most the target."""
    points = [(0.0, 0.0, np.inf)]
    for threshold in np.unique(scores)[::-1]:
        accepted = scores >= threshold
        points.append((np.mean(accepted[labels == 0]), np.mean(accepted[labels == 1]), threshold))
    return np.array([[point for point in points if point[0] <= target][-1][1:] for target in targets]).T


@pytest.mark.parametrize("name", ["tar_at_far", "tar_at_far_ties"])
@pytest.mark.parametrize(("method", "key"), [("nearest", "official"), ("conservative", "conservative")])
def test_tar_at_far_is_the_official_one(vectors, name, method, key):
    file = np.load(vectors / "ddl" / f"{name}.npz")
    scores, labels = torch.from_numpy(file["scores"]), torch.from_numpy(file["labels"])
    tar, threshold = tar_at_far(scores, labels, file["far_targets"].tolist(), method)
    np.testing.assert_array_equal(tar, file[f"tar_{key}"])
    np.testing.assert_array_equal(threshold, file[f"threshold_{key}"])


@pytest.mark.parametrize(("method", "points"), [("nearest", official_points), ("conservative", conservative_points)])
def test_tar_at_far_on_many_small_lists(method, points):
    targets = [0, 1e-6, 0.01, 0.05, 0.1, 0.125, 0.25, 1 / 3, 0.5, 0.75, 0.9, 1]
    infinite = 0
    for seed in range(90):
        draw = np.random.default_rng(seed)
        labels = (draw.random(draw.integers(2, 60)) < draw.random()).astype(int)
        labels[:2] = [0, 1]
        scores = draw.standard_normal(len(labels)) + draw.choice([0, 1, 3]) * labels
        if seed % 3:  # few values, so that many are equal
            scores = scores.round(seed % 3 - 1)
        found = tar_at_far(torch.from_numpy(scores), torch.from_numpy(labels), targets, method)
        expected = points(scores, labels, targets)
        np.testing.assert_array_equal(torch.stack(found).numpy(), expected, err_msg=str(seed))
        infinite += np.isinf(expected).sum()
    assert infinite > 10  # lists whose first score accepts too many


def test_a_target_below_one_impostor_is_far_zero():
    scores, labels = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([1, 0, 1, 0])
    for method in ("nearest", "conservative"):
        tar, threshold = tar_at_far(scores.double(), labels, [1e-6], method)
        assert (float(tar), float(threshold)) == (0.5, float(scores[0]))
    tar, threshold = tar_at_far(scores, 1 - labels, [1e-6])  # the best score is an impostor's
    assert (float(tar), float(threshold)) == (0, np.inf)


def test_equal_scores_are_accepted_together():
    tar, threshold = tar_at_far(torch.full((6,), 0.5), torch.tensor([1, 0] * 3), [0.1, 0.9], "conservative")
    assert tar.tolist() == [0, 0]
    assert threshold.tolist() == [np.inf] * 2
    assert tar_at_far(torch.full((6,), 0.5), torch.tensor([1, 0] * 3), [0.1, 0.9])[0].tolist() == [0, 1]


def test_order_does_not_matter_to_tar_at_far():
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(500) % 5 == 0
    scores = (torch.randn(500, generator=draw) + labels.float()).round(decimals=1)
    order = torch.randperm(500, generator=draw)
    targets = torch.tensor([0.01, 0.1], dtype=torch.float64)
    for ours, theirs in zip(
        tar_at_far(scores, labels, targets), tar_at_far(scores[order], labels[order], targets), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_gaps_are_differences_of_means():
    pos = [torch.tensor([0.6, 0.8]), torch.tensor([0.5]), torch.tensor([0.1, 0.2, 0.6])]
    neg = [torch.tensor([0.1]), torch.tensor([0.2, 0.0]), torch.tensor([0.1, -0.1])]
    report = gap_report(pos, neg)
    assert_close(report.gaps, torch.tensor([0.6, 0.4, 0.3], dtype=torch.float64), rtol=1e-6, atol=0)
    assert_close(report.differences, torch.tensor([0.2, 0.3], dtype=torch.float64), rtol=1e-6, atol=0)
    assert similarity_gap(pos[1], neg[1]) == report.gaps[1]


def test_races_are_summed_up_with_the_deviation_of_a_sample():
    mean, std = race_summary(torch.tensor([0.9, 0.7, 0.8, 0.8], dtype=torch.float64))
    assert_close([float(mean), float(std)], [0.8, np.sqrt(0.02 / 3)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d, s: kfold_pair_accuracy(d[:9], s[:9]), "9 pairs are fewer than n_folds=10; give all pairs"),
        (lambda d, s: kfold_pair_accuracy(d, s, n_folds=1), "n_folds=1 must be at least 2"),
        (lambda d, s: kfold_pair_accuracy(d[:, None], s), r"distances must be \(N,\) floating point, got \(20, 1\)"),
        (lambda d, s: kfold_pair_accuracy(d.long(), s), "distances must be .* torch.int64"),
        (lambda d, s: kfold_pair_accuracy(d, s[:5]), r"same must be .* shape \(20,\) of distances, got \(5,\)"),
        (lambda d, s: kfold_pair_accuracy(d, s.float()), "whole numbers 0 and 1.*torch.float32"),
        (lambda d, s: kfold_pair_accuracy(d, s + 4), r"same must be 0 or 1, got [45] at index 0 \(20 such\)"),
        (lambda d, s: tar_at_far(d, s, [0.1], "exact"), '"nearest" or "conservative", got \'exact\''),
        (lambda d, s: tar_at_far(d, s, [0.1, 1.5]), "between 0 and 1, got .*1.5"),
        (lambda d, s: tar_at_far(d, s, [float("nan")]), "between 0 and 1, got .*nan"),
        (lambda d, s: tar_at_far(d, s, []), "at least one"),
        (lambda d, s: tar_at_far(d, s * 0, [0.1]), "labels has 0 genuine .* and 20 impostor pairs"),
        (lambda d, s: tar_at_far(d[:0], s[:0], [0.1]), "labels has 0 genuine .* and 0 impostor pairs"),
        (lambda d, s: similarity_gap(d[:0], d), r"pos must be \(N,\) floating point, N > 0, got \(0,\)"),
        (lambda d, s: gap_report([d], [d, d]), "one vector per branch, the easy one first, got 1 and 2"),
        (lambda d, s: race_summary([0.9]), "at least two, one per race"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    distances, same = pairs(20)
    with pytest.raises(ValueError, match=message):
        call(distances, same.long())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_are_counted(bad):
    distances, same = pairs(20)
    distances[[7, 11]] = bad
    for call in (kfold_pair_accuracy, lambda d, s: tar_at_far(d, s, [0.1])):
        with pytest.raises(ValueError, match="2 of 20 rows that are not finite, the first has index 7"):
            call(distances, same)
