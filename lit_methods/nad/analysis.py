"""What a set of sub-architectures tells: an order of the classes, confusions against similarity, mosaics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from scipy.stats import binomtest, rankdata
from torch import Tensor

from lit_methods.functional.draws import permutation, purpose
from lit_methods.nad.functional import most_similar

_OPTIMAL = 300  # classes, up to which the order of the leaves is worth its time
_PERMUTATIONS = purpose("nad/permutations")


def cluster_order(similarity: Tensor) -> list[int]:
    """An order of the classes in which similar ones are next to each other, for a heat map.

    Average linkage on ``1 - similarity``; up to 300 classes the branches are turned so that neighbours are as similar
    as they can be.

    Args:
        similarity: (K, K), from ``subarchitecture_similarity``; NaN counts as 0.

    Returns:
        The numbers 0 to K - 1.

    Raises:
        ValueError: another shape.

    Source:
        ours.

    Example:
        >>> cluster_order(torch.tensor([[1.0, 0.1, 0.8], [0.1, 1.0, 0.2], [0.8, 0.2, 1.0]]))
        [0, 2, 1]
    """
    _check_similarity(similarity)
    classes = len(similarity)
    if classes < 3:
        return list(range(classes))
    distance = 1 - _plain(similarity)
    distance = (distance + distance.T) / 2
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=classes <= _OPTIMAL)
    order: list[int] = leaves_list(tree).tolist()
    return order if order[0] < order[-1] else order[::-1]


class ConfusionReport(NamedTuple):
    """Whether a network confuses classes whose sub-architectures are similar.

    Args:
        errors: misclassified images whose true and predicted class both have gates.
        hits: those whose predicted class is among the ``top`` most similar ones of the true class.
        rate: ``hits / errors``; NaN without errors, as the four figures that follow from it.
        low: lower end of Wilson's 95 % interval of ``rate``, which takes images for independent.
        high: its upper end.
        chance: ``rate`` where similarity says nothing, ``top / (K - 1)``.
        p_value: how often permuted classes have as many hits, one-sided.
        correlation: Spearman's, over the pairs of tested classes, of similarity and confusion rate; NaN where one of
            them is the same for all pairs, or without tests.
        correlation_p_value: how often permuted classes have as large a one, one-sided.
    """

    errors: int
    hits: int
    rate: float
    low: float
    high: float
    chance: float
    p_value: float
    correlation: float
    correlation_p_value: float


def confusion_report(
    confusion: Tensor,
    similarity: Tensor,
    class_ids: Sequence[int],
    top: int = 3,
    permutations: int = 2000,
    seed: int = 0,
) -> ConfusionReport:
    """Test the claim that misclassified images fall to classes whose sub-architecture is like the right one.

    Args:
        confusion: (C, C) int64, how many images of class (row) were taken for class (column).
        similarity: (K, K), from ``subarchitecture_similarity``; NaN is like nothing.
        class_ids: K classes, whose gates the rows of ``similarity`` are.
        top: how many of the most similar classes count, below K.
        permutations: of the classes in ``similarity``, for the p-values ``(1 + #) / (1 + permutations)``; images of
            one pair of classes depend on each other, so it is not they that are permuted. 0: NaN for these and for the
            correlation.
        seed: of the permutations.

    Raises:
        ValueError: shapes that do not fit, a class outside of ``confusion``, ``top`` not below K.

    Source:
        ours; the claim is the abstract's.

    Example:
        >>> similarity = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))
        >>> report = confusion_report(3 * similarity + 7 * torch.eye(4), similarity, [0, 1, 2, 3], top=1)
        >>> report.errors, report.hits, round(report.low, 2), round(report.chance, 2), round(report.p_value, 2)
        (12, 12, 0.76, 0.33, 0.36)
    """
    counts = _counts(confusion, similarity, class_ids)
    near = np.zeros(counts.shape, bool)
    np.put_along_axis(near, most_similar(similarity.cpu(), top).numpy(), True, axis=1)
    np.fill_diagonal(counts, 0)
    true, predicted = counts.nonzero()
    number = counts[true, predicted]
    errors, hits = int(number.sum()), int(number[near[true, predicted]].sum())
    rate = hits / errors if errors else math.nan
    low, high = _wilson(hits, errors)
    p_value = correlation = correlation_p = math.nan
    if permutations and errors:
        orders = _orders(len(counts), permutations, seed)
        reached = sum(int(number[near[order[true], order[predicted]]].sum()) >= hits for order in orders)
        p_value = (1 + reached) / (1 + permutations)
    if permutations:
        rates = pair_confusion(confusion, class_ids).numpy()
        correlation, correlation_p = _rank_correlation(rates, _plain(similarity), permutations, seed)
    chance = top / (len(counts) - 1)
    return ConfusionReport(errors, hits, rate, low, high, chance, p_value, correlation, correlation_p)


def pair_confusion(confusion: Tensor, class_ids: Sequence[int]) -> Tensor:
    """Which part of the images of any two classes was taken for the other of the two.

    Args:
        confusion: (C, C) int64, how many images of class (row) were taken for class (column).
        class_ids: K of them.

    Returns:
        (K, K) float64, symmetric; 0 on the diagonal, NaN for a class without images.

    Source:
        ours.

    Example:
        >>> pair_confusion(torch.tensor([[8, 2, 0], [1, 9, 0], [0, 0, 10]]), [0, 1])
        tensor([[0.0000, 0.1500],
                [0.1500, 0.0000]], dtype=torch.float64)
    """
    chosen = torch.as_tensor(class_ids)
    counts = confusion.cpu().double()
    images = counts.sum(1)[chosen]
    images = torch.where(images > 0, images, math.nan)
    mutual = counts[chosen][:, chosen]
    return ((mutual + mutual.T) / (images[:, None] + images)).fill_diagonal_(0)


def mosaic_image(pictures: Sequence[Image.Image], size: int) -> Tensor:
    """Four pictures in one: upper left, upper right, lower left, lower right.

    Each is resized to a square of ``size`` (Lanczos, whatever its shape), and the whole of them back to it (bilinear).

    Args:
        pictures: four RGB pictures.
        size: side in pixels, even.

    Returns:
        (3, size, size) uint8.

    Raises:
        ValueError: another number of pictures, or an odd size.

    Source:
        official code, cam_2x2.py.

    Example:
        >>> mosaic_image([Image.new("RGB", (9, 5), (level, 0, 0)) for level in (10, 20, 30, 40)], 8)[0, ::7, ::7]
        tensor([[10, 20],
                [30, 40]], dtype=torch.uint8)
    """
    if len(pictures) != 4:
        raise ValueError(f"pictures must be four, got {len(pictures)}")
    if size < 2 or size % 2:
        raise ValueError(f"size={size} must be even, so that a mosaic has quarters")
    sheet = Image.new("RGB", (2 * size, 2 * size))
    for i, picture in enumerate(pictures):
        tile = picture.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
        sheet.paste(tile, (i % 2 * size, i // 2 * size))
    pixels = np.array(sheet.resize((size, size), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _check_similarity(similarity: Tensor) -> None:
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1] or not len(similarity):
        raise ValueError(f"similarity must be (K, K), got {tuple(similarity.shape)}")


def _plain(similarity: Tensor) -> NDArray[np.float64]:
    """A copy on the CPU, without NaN."""
    return np.nan_to_num(similarity.detach().cpu().double().numpy(), nan=0.0)


def _counts(confusion: Tensor, similarity: Tensor, class_ids: Sequence[int]) -> NDArray[np.int64]:
    """The part of the confusion matrix between classes with gates, (K, K)."""
    _check_similarity(similarity)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"confusion must be (C, C), got {tuple(confusion.shape)}")
    if len(class_ids) != len(similarity):
        raise ValueError(f"class_ids must name the {len(similarity)} classes of similarity, got {len(class_ids)}")
    if not 0 <= min(class_ids) <= max(class_ids) < len(confusion):
        raise ValueError(f"class_ids must lie between 0 and {len(confusion) - 1}, the classes of confusion")
    return confusion.cpu().numpy().astype(np.int64)[np.ix_(class_ids, class_ids)]


def _wilson(hits: int, number: int) -> tuple[float, float]:
    """The 95 % interval of a share; NaN of nothing."""
    if not number:
        return math.nan, math.nan
    interval = binomtest(hits, number).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def _orders(classes: int, number: int, seed: int) -> Iterator[NDArray[np.int64]]:
    return (permutation(classes, _PERMUTATIONS, seed, i) for i in range(number))


def _rank_correlation(
    rates: NDArray[np.float64], similarity: NDArray[np.float64], permutations: int, seed: int
) -> tuple[float, float]:
    """Spearman's correlation over pairs of classes that have images, and its p-value when classes are permuted."""
    tested = np.flatnonzero(np.isfinite(rates).sum(1) > 1)
    i, j = np.triu_indices(len(tested), 1)
    x, y = (rankdata(values[np.ix_(tested, tested)][i, j]) for values in (similarity, rates))
    if len(i) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan, math.nan
    x, scale = x - x.mean(), len(x) * x.std() * y.std()
    ranks = np.zeros((len(tested), len(tested)))
    ranks[i, j] = ranks[j, i] = x
    y = y - y.min()  # most pairs are never confused: sums over the others are the same, since x has mean 0
    often = y.nonzero()[0]
    i, j, y = i[often], j[often], y[often]
    found = float(ranks[i, j] @ y / scale)
    orders = _orders(len(tested), permutations, seed)
    reached = sum(bool(ranks[order[i], order[j]] @ y / scale >= found - 1e-9) for order in orders)
    return found, (1 + reached) / (1 + permutations)
