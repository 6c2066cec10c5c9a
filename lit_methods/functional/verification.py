"""How well pairs of faces are told apart: accuracy over folds, TAR at FAR, and the gap between two kinds of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

THRESHOLDS = np.arange(0, 4, 0.01)  # of squared distances of unit vectors


class KFoldResult(NamedTuple):
    """What :func:`kfold_pair_accuracy` finds; float64 apart from ``false_rejects``."""

    accuracy: Tensor
    std: Tensor
    threshold: Tensor
    fold_accuracy: Tensor
    fold_threshold: Tensor
    tpr: Tensor
    fpr: Tensor
    false_rejects: Tensor


class GapReport(NamedTuple):
    """What :func:`gap_report` finds; float64."""

    gaps: Tensor
    differences: Tensor


@torch.no_grad()
def kfold_pair_accuracy(distances: Tensor, same: Tensor, n_folds: int = 10) -> KFoldResult:
    """Accuracy of "same iff the distance is below a threshold" that is chosen on the other folds.

    Folds are contiguous blocks in the order given, and the first ``N mod n_folds`` have one pair more. The threshold of
    a fold is the first of 0.00, 0.01, ..., 3.99 that is most accurate on all others.

    Args:
        distances: (N,) floating point, squared Euclidean distances of unit vectors (0 to 4).
        same: (N,) bool or 0 and 1, whether a pair is of one identity.
        n_folds: at least 2.

    Returns:
        ``accuracy``, ``std`` and ``threshold`` (0-d): means over folds, and the population's standard deviation of the
        accuracy; ``fold_accuracy`` and ``fold_threshold`` (n_folds,); ``tpr`` and ``fpr`` (400,), on the left-out fold
        at each threshold, averaged over folds, where a fold without such pairs has 0; ``false_rejects``, int64,
        ascending: places of the pairs of one identity that the threshold of their fold rejects. Rates are fractions of
        1; all on the device of ``distances``.

    Raises:
        ValueError: shapes or types that do not fit, fewer pairs than folds, or distances that are not finite.

    Source:
        The official evaluation (TFace), which loops over folds and thresholds; here pairs are counted once by the first
        threshold that accepts them. Means of folds are taken in NumPy, so that every device has the same.

    Example:
        >>> distances = torch.tensor([0.2, 1.6, 0.3, 1.5, 0.4, 1.7])
        >>> result = kfold_pair_accuracy(distances, torch.tensor([1, 0, 1, 0, 1, 0]), n_folds=3)
        >>> result.fold_accuracy, result.false_rejects
        (tensor([1.0000, 1.0000, 0.5000], dtype=torch.float64), tensor([4]))
        >>> round(float(result.accuracy), 4), round(float(result.threshold), 4)
        (0.8333, 0.3767)
    """
    same = checked_pairs("distances", distances, "same", same)
    count = len(distances)
    if n_folds < 2:
        raise ValueError(f"n_folds={n_folds} must be at least 2: thresholds are chosen on the other folds")
    if count < n_folds:
        raise ValueError(f"{count} pairs are fewer than n_folds={n_folds}; give all pairs of the file, or fewer folds")
    size, more = divmod(count, n_folds)
    place = torch.arange(count, device=distances.device)
    fold = torch.where(place < more * (size + 1), place // (size + 1), (place - more) // size)
    # the first threshold above the distance accepts the pair, and so does every later one
    first = torch.bucketize(distances.double(), torch.from_numpy(THRESHOLDS).to(distances.device), right=True)
    kinds = (n_folds, 2, len(THRESHOLDS) + 1)
    counts = torch.bincount((fold * 2 + same) * kinds[2] + first, minlength=int(np.prod(kinds)))
    table = counts.view(kinds).cpu().numpy()
    accepted, pairs = table.cumsum(2)[..., :-1], table.sum(2)
    correct = accepted[:, 1] + pairs[:, :1] - accepted[:, 0]
    best = (correct.sum(0) - correct).argmax(1)  # NumPy's is the first of equals
    fold_accuracy = correct[np.arange(n_folds), best] / pairs.sum(1)
    fold_threshold = THRESHOLDS[best]
    tpr, fpr = ((accepted[:, k] / pairs[:, k, None].clip(min=1)).mean(0) for k in (1, 0))
    means = (fold_accuracy.mean(), fold_accuracy.std(), fold_threshold.mean(), fold_accuracy, fold_threshold, tpr, fpr)
    rejected = same & (first > torch.from_numpy(best).to(fold.device)[fold])
    parts = [torch.as_tensor(part, device=distances.device) for part in means]
    return KFoldResult._make([*parts, rejected.nonzero().squeeze(1)])


@torch.no_grad()
def tar_at_far(
    scores: Tensor, labels: Tensor, targets: Sequence[float] | Tensor, method: str = "nearest"
) -> tuple[Tensor, Tensor]:
    """Share of genuine pairs that are accepted (TAR) where so many impostors are (FAR).

    ``"nearest"`` takes the point of the ROC curve whose FAR is nearest to the target, of two equally near the one that
    accepts more; a point between two equal steps of the curve is left out before, as scikit-learn's ``roc_curve`` does.
    So the FAR may be above the target. ``"conservative"`` takes the lowest score whose FAR is at most the target, which
    gives the largest such TAR.

    Args:
        scores: (N,) finite floating point, higher = same.
        labels: (N,) bool or 0 and 1, 1 = same.
        targets: (T,) false accept rates, 0 to 1. One below 1 / impostors lies between FAR 0 and one impostor.
        method: ``"nearest"`` or ``"conservative"``.

    Returns:
        TAR and the lowest score that is accepted, infinite where none is; (T,) float64 each, on the device of
        ``scores``.

    Raises:
        ValueError: shapes or types that do not fit, an unknown method, a target out of range, scores that are not
            finite, or pairs of one kind alone, with which one of the two rates means nothing.

    Source:
        "nearest": the official evaluation of IJB (TFace); "conservative": ours.

    Example:
        >>> scores, labels = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), torch.tensor([1, 1, 0, 1, 0, 0])
        >>> tar, threshold = tar_at_far(scores, labels, [0.3, 0.5])
        >>> tar, threshold  # the nearest FAR is that of one of three impostors
        (tensor([1., 1.], dtype=torch.float64), tensor([0.6000, 0.6000], dtype=torch.float64))
        >>> tar_at_far(scores, labels, [0.3], method="conservative")[1]
        tensor([0.8000], dtype=torch.float64)
    """
    labels = checked_pairs("scores", scores, "labels", labels)
    wanted = checked_targets(targets, method).to(scores.device)
    genuine, impostors = int(labels.sum()), int((~labels).sum())
    if not genuine or not impostors:
        raise ValueError(
            f"labels has {genuine} genuine (1) and {impostors} impostor pairs (0), and TAR at FAR needs both; give the "
            "whole list of pairs"
        )
    threshold, tps, fps = _roc_counts(scores.double(), labels)
    if method == "nearest" and len(fps) > 2:
        corner = (fps.diff(n=2) != 0) | (tps.diff(n=2) != 0)
        kept = torch.nn.functional.pad(corner, (1, 1), value=True)
        threshold, tps, fps = threshold[kept], tps[kept], fps[kept]
    threshold = torch.cat([threshold.new_full((1,), torch.inf), threshold])  # where nothing is accepted
    tpr, fpr = (torch.nn.functional.pad(n.double() / total, (1, 0)) for n, total in ((tps, genuine), (fps, impostors)))
    if method == "conservative":
        at = torch.searchsorted(fpr, wanted, right=True) - 1
    else:
        above = torch.searchsorted(fpr, wanted).clamp(max=len(fpr) - 1)
        below = (above - 1).clamp(min=0)
        at = torch.where((fpr[above] - wanted).abs() <= (fpr[below] - wanted).abs(), above, below)
        at = torch.searchsorted(fpr, fpr[at], right=True) - 1
    return tpr[at], threshold[at]


def _roc_counts(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct scores, descending, and how many genuine pairs and impostors have such a score or a higher one."""
    values, genuine = _ascending(scores), _ascending(scores[labels])
    start = torch.ones_like(values, dtype=torch.bool)
    torch.ne(values[1:], values[:-1], out=start[1:])
    first = start.nonzero().squeeze(1)
    distinct = values[first]
    # values alone are sorted, and looked up in the shorter of the two lists
    if len(genuine) < len(distinct):
        place = torch.searchsorted(distinct, genuine)
        tps = torch.bincount(place, minlength=len(distinct)).flip(0).cumsum(0)
    else:
        tps = (len(genuine) - torch.searchsorted(genuine, distinct)).flip(0)
    return distinct.flip(0), tps, (len(values) - first).flip(0) - tps


def _ascending(values: Tensor) -> Tensor:
    """Sorted values; on a CPU NumPy sorts them several times faster than torch, which sorts places with them."""
    return torch.from_numpy(np.sort(values.numpy())) if values.device.type == "cpu" else values.sort().values


def similarity_gap(pos: Tensor, neg: Tensor) -> Tensor:
    """Mean similarity of positive pairs minus that of negative ones.

    Args:
        pos: (P,) floating point, similarities of pairs of one identity.
        neg: (M,) floating point, those of different identities.

    Returns:
        0-d float64; with cosines between -2 and 2.

    Raises:
        ValueError: not vectors, empty, or not finite.

    Source:
        DDL, arXiv 2002.03662, figure 1.

    Example:
        >>> similarity_gap(torch.tensor([0.5, 0.7]), torch.tensor([0.1, 0.0, 0.2]))
        tensor(0.5000, dtype=torch.float64)
    """
    for name, part in (("pos", pos), ("neg", neg)):
        if part.ndim != 1 or not part.is_floating_point() or not len(part):
            raise ValueError(f"{name} must be (N,) floating point, N > 0, got {tuple(part.shape)} of {part.dtype}")
        check_finite(name, part)
    return pos.double().mean() - neg.double().mean()


def gap_report(pos: Sequence[Tensor], neg: Sequence[Tensor]) -> GapReport:
    """Gap of each branch, and by how much the easy one is wider than each hard one.

    Args:
        pos: similarities of positive pairs, one (P_k,) per branch; the first is the easy one (the teacher).
        neg: similarities of negative pairs, (M_k,) in the same order.

    Returns:
        ``gaps`` (K + 1,), see :func:`similarity_gap`, and ``differences`` (K,), the first gap minus each other.

    Raises:
        ValueError: no branch, not as many of one as of the other; see also :func:`similarity_gap`.

    Source:
        DDL, arXiv 2002.03662, figure 1: on SCface 0.52 - 0.31 = 0.21 before and 0.56 - 0.49 = 0.07 with DDL.

    Example:
        >>> report = gap_report([torch.tensor([0.52]), torch.tensor([0.31])], [torch.zeros(1), torch.zeros(1)])
        >>> report.differences
        tensor([0.2100], dtype=torch.float64)
    """
    if not len(pos) or len(pos) != len(neg):
        raise ValueError(
            f"pos and neg must have one vector per branch, the easy one first, got {len(pos)} and {len(neg)}"
        )
    gaps = torch.stack([similarity_gap(a, b) for a, b in zip(pos, neg, strict=True)])
    return GapReport(gaps, gaps[0] - gaps[1:])


def race_summary(accuracies: Sequence[float] | Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sample standard deviation (ddof 1) of the accuracies of RFW's races.

    Args:
        accuracies: (R,), R of 2 or more, fractions of 1.

    Returns:
        Mean and deviation, 0-d float64, fractions of 1; published ones are in percent.

    Raises:
        ValueError: fewer than two, or not a vector.

    Source:
        RFW's protocol: :func:`kfold_pair_accuracy` per race. Its official script has other thresholds, which end
        below a squared distance of 1, and is not followed.

    Example:
        >>> mean, std = race_summary([0.9, 0.8, 0.85, 0.85])
        >>> round(float(mean), 4), round(float(std), 4)
        (0.85, 0.0408)
    """
    values = torch.as_tensor(accuracies, dtype=torch.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"accuracies must be (R,) with at least two, one per race, got {tuple(values.shape)}")
    return values.mean(), values.std(correction=1)


def checked_pairs(name: str, values: Tensor, kind_name: str, kind: Tensor) -> Tensor:
    """Raise ValueError where values of pairs and their 0/1 do not fit; returns the latter as bool, on one device."""
    if values.ndim != 1 or not values.is_floating_point():
        raise ValueError(f"{name} must be (N,) floating point, got {tuple(values.shape)} of {values.dtype}")
    if kind.shape != values.shape or kind.is_floating_point() or kind.is_complex():
        raise ValueError(
            f"{kind_name} must be bool, or whole numbers 0 and 1, of the shape {tuple(values.shape)} of {name}, got "
            f"{tuple(kind.shape)} of {kind.dtype}"
        )
    check_finite(name, values)
    kind = kind.to(values.device)
    if kind.dtype != torch.bool and (other := (kind != 0) & (kind != 1)).any():
        at = int(other.nonzero()[0])
        raise ValueError(f"{kind_name} must be 0 or 1, got {int(kind[at])} at index {at} ({int(other.sum())} such)")
    return kind.bool()


def check_finite(name: str, values: Tensor, where: Tensor | None = None) -> None:
    """Raise ValueError where rows of values are not finite, with their number and the index of the first.

    Args:
        name: what they are.
        values: (N, ...).
        where: (N,), the index of each row, else its place.
    """
    if not values.numel() or all(bound.isfinite() for bound in values.aminmax()):  # many times faster on a CPU
        return
    finite = values.isfinite()
    finite = finite if values.ndim == 1 else finite.all(1)
    if not finite.all():
        bad = (~finite).nonzero().squeeze(1)
        first = int(bad[0] if where is None else where[bad[0]])
        raise ValueError(
            f"{name} has {len(bad)} of {len(values)} rows that are not finite, the first has index {first}; a diverged "
            "training or half precision that overflows gives such"
        )


def checked_targets(targets: Sequence[float] | Tensor, method: str) -> Tensor:
    """Raise ValueError for an unknown method or rates out of range; returns the rates, (T,) float64."""
    if method not in ("nearest", "conservative"):
        raise ValueError(f'method must be "nearest" or "conservative", got {method!r}')
    wanted = torch.as_tensor(targets, dtype=torch.float64)
    if wanted.ndim != 1 or not len(wanted):
        raise ValueError(f"targets must be a list of false accept rates, at least one, got {targets!r}")
    if not ((wanted >= 0) & (wanted <= 1)).all():
        raise ValueError(f"targets must be false accept rates between 0 and 1, got {wanted.tolist()}")
    return wanted
