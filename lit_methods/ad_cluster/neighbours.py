"""Nearest rows by Euclidean distance in bounded memory, exact and with ties in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

SPARE = 8  # candidates beyond those asked for, whose distances are computed exactly as well
COPIES = 64  # so few coincident rows are not worth lists of their own


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


def spread(start: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Unroll runs of consecutive positions.

    Args:
        start: (R,) int64, where each begins.
        count: (R,) int64, how long it is.

    Returns:
        for each position of each run: the run and the position, both (sum of ``count``,).

    Example:
        >>> [x.tolist() for x in spread(torch.tensor([7, 2]), torch.tensor([1, 2]))]
        [[0, 1, 1], [7, 2, 3]]
    """
    run = torch.repeat_interleave(count)
    shift = start - count.cumsum(0) + count
    return run, shift.index_select(0, run).add_(torch.arange(len(run), device=run.device))


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

    A product of matrices screens (on a CPU in float32, unless that is set to be rounded further); the ``k + 8`` best
    are compared by exact differences. Where rounding could have kept a nearer one out (many equally far), the row is
    done again without the product; many coincident rows of ``y`` are screened as one. Equal distances, that is equal
    float64 sums of squared differences, come in the order of their index.

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
    k = min(k, len(y))
    if len(y) - len(y.sum(1).unique()) <= COPIES:  # equal rows have equal sums
        return _screened(x, y, k, itself, chunk)
    different, kind = torch.unique(y, dim=0, return_inverse=True)
    if len(y) - len(different) <= COPIES:
        return _screened(x, y, k, itself, chunk)
    own = torch.arange(len(y), device=y.device)
    first = own.new_full((len(different),), len(y)).scatter_reduce_(0, kind, own, "amin")
    first, order = first.sort()  # of equally far ones that with the smaller index comes first
    kind = order.argsort()[kind]
    few = _screened(y[first] if itself else x, y[first], min(k, len(first)), itself, chunk)
    rows, distance = _with_copies(few, kind, k)
    if not itself:
        return Neighbours(rows, distance, few.farthest)
    rows, distance = rows[kind], distance[kind]
    missing = (rows != own[:, None]).all(1)
    rows[missing, -1], distance[missing, -1] = own[missing], 0
    return Neighbours(*_in_order(rows, distance, k, own), few.farthest[kind])


def _screened(x: Tensor, y: Tensor, k: int, itself: bool, chunk: int | None) -> Neighbours:
    """``nearest``, at its best where few rows coincide."""
    width = min(k + SPARE, len(y))
    middle, dtype = y.mean(0), _screening(x.device)  # far from the origin the product would lose digits
    unit = torch.stack(
        [part.abs().max() for z in ((y,) if itself else (x, y)) for part in (z - middle).aminmax()]
    ).max()
    unit = torch.where(unit > 0, unit, 1)  # numbers up to 1 keep float32 in its range
    y0, other = _scaled(y, middle, unit, dtype)
    x0, size = (y0, other) if itself else _scaled(x, middle, unit, dtype)
    # bound of the rounding error: of D products and sums, of the types' change, and of what is too small for the type
    slack = (x.shape[1] / 2 + 8) * torch.finfo(dtype).eps / 2 * (size.sqrt() + other.max().sqrt()).square() + 2.0**-120
    unit, other = unit.square(), other.to(dtype)
    index = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    distance, farthest = x.new_empty(len(x), k), x.new_zeros(len(x))
    unsure = [index.new_empty(0)]
    for a, b in blocks(len(x), 2 * len(y), x.device, chunk):
        rows = torch.arange(a, b, device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            screen = torch.addmm(other, x0[a:b], y0.T, alpha=-2)  # without the row's own size, which orders nothing
        far = screen >= (screen.amax(1).double() - 2 * slack[a:b]).to(dtype)[:, None]
        row, at = far.nonzero(as_tuple=True)
        crowded = torch.bincount(row, minlength=b - a) > SPARE
        row, at = row[~crowded[row]] + a, at[~crowded[row]]
        farthest.scatter_reduce_(0, row, pair_distance(x, row, y, at), "amax")
        if itself:
            screen[rows - a, rows] = -torch.inf
        found, candidate = screen.topk(width, largest=False)
        exact = pair_distance(x, rows.repeat_interleave(width), y, candidate.flatten()).view(-1, width)
        index[a:b], distance[a:b] = _in_order(candidate, exact, k, rows if itself else None)
        if width < len(y):
            rest = (found[:, -1].double() + size[a:b] - slack[a:b]) * unit  # no other one is nearer than this
            crowded |= ~(distance[a:b, -1] < rest)
        unsure.append(rows[crowded])
    doubt = torch.cat(unsure)
    for a, b in blocks(len(doubt), len(y), x.device, chunk):
        rows = doubt[a:b]
        whole = torch.cdist(x[rows], y, compute_mode="donot_use_mm_for_euclid_dist")
        farthest[rows] = pair_distance(x, rows, y, whole.argmax(1))
        index[rows], distance[rows] = _exactly(whole, k, rows if itself else None)
    return Neighbours(index, distance, farthest)


def _scaled(x: Tensor, middle: Tensor, unit: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows beside ``middle`` in ``unit``s, in a type, and their squared lengths in float64."""
    x = (x - middle).div_(unit)
    low = x.to(dtype, copy=True)
    return low, x.square_().sum(1)


def _screening(device: torch.device) -> torch.dtype:
    """float32 where products of float32 are those of IEEE: not on a GPU, where float64 is quick enough as well."""
    onednn: Any = torch.backends.mkldnn  # its settings are attributes that type checkers do not see
    exact = device.type == "cpu" and onednn.matmul.fp32_precision in ("none", "ieee")
    return torch.float32 if exact else torch.float64


def _with_copies(few: Neighbours, kind: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Lists of ``k`` rows from lists of kinds of rows; ``kind`` (M,) int64 numbers them by their first row."""
    member = kind.argsort(stable=True)
    count = torch.bincount(kind)
    start, count = count.cumsum(0) - count, count.clamp(max=k)
    listed = few.rows.flatten()
    run, at = spread(start[listed], count[listed])
    row, distance, index = run // few.rows.shape[1], few.distance.flatten()[run], member[at]
    order = index.argsort()
    order = order[distance[order].argsort(stable=True)]
    order = order[row[order].argsort(stable=True)]
    length = torch.bincount(row, minlength=len(few.rows))
    best = order[(length.cumsum(0) - length)[:, None] + torch.arange(k, device=kind.device)]
    return index[best], distance[best]


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
