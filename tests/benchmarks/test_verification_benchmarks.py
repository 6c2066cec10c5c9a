"""Verification of 6,000 pairs, millions of scores and IJB's templates, beside plain loops and scikit-learn.

python -m pytest tests/benchmarks/test_verification_benchmarks.py -m benchmark -s
"""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve

from lit_methods.metrics.verification import (
    PairVerificationAccuracy,
    aggregate_templates,
    kfold_pair_accuracy,
    tar_at_far,
    template_scores,
)
from tests.benchmarks.side_by_side import side_by_side

pytestmark = pytest.mark.benchmark
FARS = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]


def lfw(count=6000):
    """Ten folds of as many pairs of one identity as of two."""
    draw = np.random.default_rng(0)
    same = np.arange(count) // (count // 20) % 2 == 0
    distances = np.where(same, 0.9, 1.8) + 0.25 * draw.standard_normal(count)
    return distances.clip(0, 4), same


def counts(threshold, distances, same):
    below = distances < threshold
    tp, fp = np.sum(below & same), np.sum(below & ~same)
    fn, tn = np.sum(~below & same), np.sum(~below & ~same)
    tpr = 0 if tp + fn == 0 else tp / (tp + fn)
    fpr = 0 if fp + tn == 0 else fp / (fp + tn)
    return tpr, fpr, (tp + tn) / len(distances)


def loop(distances, same, n_folds=10):
    """400 thresholds times ten folds, twice, as in the official evaluation."""
    thresholds = np.arange(0, 4, 0.01)
    tprs, fprs = np.zeros((2, n_folds, len(thresholds)))
    accuracy = np.zeros(n_folds)
    for i, fold in enumerate(np.array_split(np.arange(len(same)), n_folds)):
        others = np.ones(len(same), dtype=bool)
        others[fold] = False
        on_others = [counts(threshold, distances[others], same[others])[2] for threshold in thresholds]
        for k, threshold in enumerate(thresholds):
            tprs[i, k], fprs[i, k], _ = counts(threshold, distances[fold], same[fold])
        accuracy[i] = counts(thresholds[np.argmax(on_others)], distances[fold], same[fold])[2]
    return accuracy, tprs.mean(0), fprs.mean(0)


def test_ten_folds_of_6000_pairs():
    """The goal is 100 times, with the same result."""
    distances, same = lfw()
    given = torch.from_numpy(distances), torch.from_numpy(same)
    reference, ours = side_by_side(
        "10 folds, 6,000 pairs", lambda: loop(distances, same), lambda: kfold_pair_accuracy(*given), repeats=3
    )
    for theirs, mine in zip(reference, (ours.fold_accuracy, ours.tpr, ours.fpr), strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs)


def test_the_metric_with_embeddings_of_512():
    _, same = lfw()
    a, b = torch.randn(2, 6000, 512)

    def ours():
        metric = PairVerificationAccuracy()
        for batch in zip(*(part.split(200) for part in (a, b, torch.from_numpy(same))), strict=True):
            metric.update(*batch)
        return metric.compute()

    def distances_alone():
        parts = zip(a.split(200), b.split(200), strict=True)
        unit = torch.nn.functional.normalize
        return torch.cat([(unit(x.double()) - unit(y.double())).square().sum(1) for x, y in parts])

    side_by_side("6,000 pairs of 512, update and compute; reference: the distances alone", distances_alone, ours)


@pytest.mark.parametrize("count", [10**6, 10**7])
@pytest.mark.parametrize("genuine", [0.002, 0.5])
def test_tar_at_far(count, genuine):
    draw = np.random.default_rng(0)
    labels = (draw.random(count) < genuine).astype(np.int64)
    scores = draw.standard_normal(count) * 0.1 + 0.3 * labels
    given = torch.from_numpy(scores), torch.from_numpy(labels)

    def reference():
        fpr, tpr, thresholds = (np.flipud(part) for part in roc_curve(labels, scores))
        places = [np.argmin(np.abs(fpr - far)) for far in FARS]  # the first of the reversed, as the official one
        return tpr[places], thresholds[places]

    title = f"TAR at {len(FARS)} FARs, {count:,} scores, {genuine:.1%} genuine, scikit-learn"
    theirs, ours = side_by_side(title, reference, lambda: tar_at_far(*given, FARS), repeats=3 if count < 10**7 else 1)
    np.testing.assert_array_equal(torch.stack(ours).numpy(), np.stack(theirs))


def test_templates_of_50000_images():
    draw = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(50_000, 512, generator=draw))
    templates, medias = (torch.randint(n, (50_000,), generator=draw) for n in (2500, 15_000))
    p1, p2 = torch.randint(2500, (2, 100_000), generator=draw)

    def reference():
        f, t, m = features.double().numpy(), templates.numpy(), medias.numpy()
        ids = np.unique(t)
        rows = np.zeros((len(ids), 512))
        for k, one in enumerate(ids):
            (mine,) = np.where(t == one)
            media = m[mine]
            rows[k] = sum(f[mine[media == each]].mean(0) for each in np.unique(media))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    title = "templates of 50,000 x 512"
    rows, (ours, ids) = side_by_side(
        title, reference, lambda: aggregate_templates(features, templates, medias), repeats=3
    )
    np.testing.assert_allclose(ours.numpy(), rows, rtol=1e-12, atol=1e-13)
    assert len(ids) == 2500

    def dots():
        place = {int(each): k for k, each in enumerate(ids)}
        return np.array([rows[place[a]] @ rows[place[b]] for a, b in zip(p1.tolist(), p2.tolist(), strict=True)])

    theirs, mine = side_by_side(
        "scores of 100,000 pairs of templates", dots, lambda: template_scores(ours, ids, p1, p2), repeats=3
    )
    np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-11, atol=1e-13)
