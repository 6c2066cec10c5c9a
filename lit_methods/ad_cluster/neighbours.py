"""Nearest rows by Euclidean distance in bounded memory, exact and with ties in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

SPARE = 8  # candidates beyond those asked for, whose distances are computed exactly as well


class Neighbours(NamedTuple):
    """``rows`` (N, k) int64, nearest first; ``distance`` (N, k) and ``farthest`` (N,), squared, float64."""

    rows: Tensor
    distance: Tensor
    farthest: Tensor


def features64(feats: Tensor, name: str = "feats") -> Tensor:
    """Check features and take them to float64, in which differences of float32 values are all but exact.

    Args:
        feats: (N, D), any floating type.
        name: of the argument, for the message.

    Raises:
        ValueError: another shape, a type that is not floating, no rows or columns, or NaN and infinities.

    Example:
        >>> features64(torch.ones(1, 2, dtype=torch.float16))
        tensor([[1., 1.]], dtype=torch.float64)
    """
    if feats.ndim != 2 or not feats.is_floating_point() or not feats.numel():
        raise ValueError(
            f"{name} must be floating numbers (N, D), N and D above 0, got {feats.dtype} {tuple(feats.shape)}"
        )
    wide = feats.detach().double()
    bad = ~wide.sum(1).isfinite()  # a NaN or an infinity is still there in the sum
    if bad.any():
        raise ValueError(
            f"{name} must be finite, row {int(bad.nonzero()[0])} and {int(bad.sum()) - 1} others are not; "
            "look for a diverged encoder"
        )
    return wide


def blocks(count: int, width: int, device: torch.device, chunk: int | None = None) -> Iterator[tuple[int, int]]:
    """Cut rows into blocks of ``chunk``, or of a few dozen megabytes (on a GPU a few hundred).

    Args:
        count: number of rows.
        width: numbers in one row.
        device: where they are.
        chunk: rows per block, ``None`` for as many as that memory holds.

    Returns:
        pairs of first and last + 1.

    Raises:
        ValueError: ``chunk`` is below 1.

    Example:
        >>> list(blocks(5, 9, torch.device("cpu"), 2))
        [(0, 2), (2, 4), (4, 5)]
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk} must be 1 or more rows per block, or None")
    rows = chunk or max(1, budget(device) // max(1, width))
    return ((a, min(a + rows, count)) for a in range(0, count, rows))


def budget(device: torch.device) -> int:
    """Numbers of eight bytes that one block may have."""
    return 2**25 if device.type == "cuda" else 2**22


def pair_distance(x: Tensor, i: Tensor, y: Tensor, j: Tensor) -> Tensor:
    """Squared distances of ``x[i]`` and ``y[j]`` from their differences: zero for equal rows, and symmetric, exactly.

    Args:
        x: (N, D).
        i: (P,) int64.
        y: (M, D).
        j: (P,) int64.

    Returns:
        (P,) of the type of ``x``.

    Example:
        >>> pair_distance(torch.eye(2), torch.tensor([0, 1]), torch.eye(2), torch.tensor([1, 1]))
        tensor([2., 0.])
    """
    found = x.new_empty(len(i))
    for a, b in blocks(len(i), 32 * x.shape[1], x.device):  # on a CPU about a megabyte, which its cache holds
        torch.sum(x.index_select(0, i[a:b]).sub_(y.index_select(0, j[a:b])).square_(), 1, out=found[a:b])
    return found


@torch.no_grad()
def nearest(x: Tensor, y: Tensor, k: int, *, itself: bool = False, chunk: int | None = None) -> Neighbours:
    """The ``k`` rows of ``y`` that are nearest to each row of ``x``, and the distance of the farthest.

    A product of matrices screens; the ``k + 8`` best are compared by exact differences. Where rounding could have kept
    a nearer one out (many coincident rows, or many equally far), the row is done again without the product. Equal
    distances, that is equal float64 sums of squared differences, come in the order of their index.

    Args:
        x: (N, D) finite float64.
        y: (M, D) float64.
        k: how many, cut at M.
        itself: ``x`` and ``y`` are the same rows: each comes first in its own list, also before coincident ones.
        chunk: rows per block; sets memory, not values.

    Returns:
        neighbours on the device of ``x``.

    Raises:
        ValueError: ``chunk`` is below 1.

    Source:
        ours. The public code sorts all distances, and leaves coincident points to the sort.

    Example:
        >>> x = torch.tensor([[0.0], [3.0], [1.0]]).double()
        >>> nearest(x, x, 2, itself=True).rows.tolist()
        [[0, 2], [1, 2], [2, 0]]
    """
    k, width = min(k, len(y)), min(k + SPARE, len(y))
    middle = y.mean(0)  # far from the origin the product would lose digits
    x0, y0 = x - middle, y - middle
    size, other = x0.square().sum(1), y0.square().sum(1)
    slack = 4 * (x.shape[1] + 4) * 2.0**-53 * (size.sqrt() + other.max().sqrt()).square()  # bound of the rounding error
    index = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    distance, farthest = x.new_empty(len(x), k), x.new_empty(len(x))
    unsure = [index.new_empty(0)]
    for a, b in blocks(len(x), len(y), x.device, chunk):
        rows = torch.arange(a, b, device=x.device)
        screen = torch.addmm(other, x0[a:b], y0.T, alpha=-2)  # without the row's own size, which orders nothing
        farthest[a:b] = pair_distance(x, rows, y, screen.argmax(1))
        if itself:
            screen[rows - a, rows] = -torch.inf
        found, candidate = screen.topk(width, largest=False)
        exact = pair_distance(x, rows.repeat_interleave(width), y, candidate.flatten()).view(-1, width)
        index[a:b], distance[a:b] = _in_order(candidate, exact, k, rows if itself else None)
        if width < len(y):
            rest = found[:, -1] + size[a:b] - slack[a:b]  # no other one is nearer than this
            unsure.append(rows[~(distance[a:b, -1] < rest)])
    doubt = torch.cat(unsure)
    for a, b in blocks(len(doubt), len(y), x.device, chunk):
        rows = doubt[a:b]
        whole = torch.cdist(x[rows], y, compute_mode="donot_use_mm_for_euclid_dist")
        index[rows], distance[rows] = _exactly(whole, k, rows if itself else None)
    return Neighbours(index, distance, farthest)


def _in_order(index: Tensor, distance: Tensor, k: int, first: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sort a few candidates per row by distance, then index; ``first`` comes before all."""
    index, order = index.sort(1)
    distance = distance.gather(1, order)
    key = distance if first is None else distance.masked_fill(index == first[:, None], -1)
    order = key.sort(stable=True, dim=1).indices[:, :k]
    return index.gather(1, order), distance.gather(1, order)


def _exactly(distance: Tensor, k: int, first: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same from whole rows of (not squared) distances; of those equal to the last, the smallest indices."""
    key = distance if first is None else distance.scatter(1, first[:, None], -1)
    value, index = key.topk(k, largest=False)
    last, count = value[:, -1:], distance.shape[1]
    tied = torch.where(key == last, torch.arange(count, device=key.device), count).topk(k, largest=False).values
    index = torch.cat([index.masked_fill(value == last, count), tied], 1)  # count stands for nothing
    value = distance.square().gather(1, index.clamp(max=count - 1)).masked_fill(index == count, torch.inf)
    return _in_order(index, value, k, first)
