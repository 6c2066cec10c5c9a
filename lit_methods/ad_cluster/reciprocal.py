"""k-reciprocal neighbours and the sparse rows that encode them (Zhong et al., CVPR 2017)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_methods.ad_cluster.neighbours import Neighbours, blocks, nearest, pair_distance, spread

UNIT = 2.0**60  # weights are whole multiples of its inverse: their sums do not depend on an order, nor on the device


class Encoding(NamedTuple):
    """Sparse weights in rows: those of row i are at ``start[i]`` to ``start[i + 1]``, by ascending ``column``.

    ``weight`` is int64, in units of 2^-60; a row's sum is one. ``farthest`` (N,) is its largest squared distance.
    ``first`` (N,) is the first row with the same features, whose weights it has; mostly the row itself.
    """

    start: Tensor
    column: Tensor
    weight: Tensor
    farthest: Tensor
    first: Tensor

    @property
    def rows(self) -> Tensor:
        """The row of each weight."""
        return torch.repeat_interleave(self.start.diff())

    @property
    def total(self) -> Tensor:
        """(N,) int64, the sum of each row: one, up to the rounding of its weights."""
        return self.weight.new_zeros(len(self.first)).index_add_(0, self.rows, self.weight)


@torch.no_grad()
def encode_neighbours(x: Tensor, k1: int, k2: int, chunk: int | None = None) -> Encoding:
    """Each row's expanded k-reciprocal neighbours, weighted by exp(-distance) and averaged over its ``k2`` nearest.

    Coincident rows share the weights of the first among them, which differ only where there are more than ``k1 + 1`` of
    them, so that the lists of ``k1 + 1`` cannot hold all.

    Args:
        x: (N, D) finite float64.
        k1: neighbours of the reciprocal test.
        k2: rows to average, the row itself among them.
        chunk: rows per block; sets memory, not values.

    Returns:
        N sparse rows.

    Raises:
        ValueError: ``k1``, ``k2`` or ``chunk`` is below 1.

    Source:
        Zhong et al., section 3, steps 1 to 6 of the public re-ranking code.

    Example:
        >>> code = encode_neighbours(torch.tensor([[0.0], [1.0], [9.0]]).double(), 1, 1)
        >>> code.start.tolist(), code.column.tolist()
        ([0, 2, 4, 5], [0, 1, 0, 1, 2])
    """
    if k1 < 1 or k2 < 1:
        raise ValueError(f"k1={k1} and k2={k2} must be 1 or more")
    found = nearest(x, x, max(k1 + 1, k2), itself=True, chunk=chunk)
    count = len(x)
    key = _expanded(found.rows[:, : k1 + 1], round(k1 / 2), chunk)
    row, column = key // count, key % count
    scale = torch.where(found.farthest > 0, found.farthest, 1)  # all coincide
    weight = torch.exp(-_distances(x, key, found) / scale[row])
    weight /= weight.new_zeros(count).index_add_(0, row, weight)[row]
    start = _starts(row, count)
    if k2 > 1:
        row, column, weight = _averaged(start, column, weight, found.rows[:, :k2], chunk)
        start = _starts(row, count)
    return _shared(Encoding(start, column, (weight * UNIT).round().long(), found.farthest, found.rows[:, 0]), found)


def _distances(x: Tensor, key: Tensor, found: Neighbours) -> Tensor:
    """Squared distances of pairs row * N + column, of which the lists know the most."""
    count = len(x)
    known, order = (torch.arange(count, device=x.device)[:, None] * count + found.rows).flatten().sort()
    at = torch.searchsorted(known, key).clamp_(max=len(known) - 1)
    distance = found.distance.flatten()[order[at]]
    new = (known[at] != key).nonzero()[:, 0]
    distance[new] = pair_distance(x, key[new] // count, x, key[new] % count)
    return distance


def _starts(row: Tensor, count: int) -> Tensor:
    ends = torch.bincount(row, minlength=count).cumsum(0)
    return torch.cat([ends.new_zeros(1), ends])


def _reciprocal(top: Tensor, chunk: int | None) -> Tensor:
    """(N, k) bool: whether each row is in the list of the one that its own list names."""
    found, narrow = torch.empty_like(top, dtype=torch.bool), top.int()
    for a, b in blocks(len(top), top.shape[1] ** 2, top.device, chunk):
        own = torch.arange(a, b, dtype=torch.int32, device=top.device)[:, None, None]
        found[a:b] = (narrow[top[a:b]] == own).any(2)
    return found


def _expanded(top: Tensor, half: int, chunk: int | None) -> Tensor:
    """R* of all rows, as sorted keys row * N + column (steps 3 and 4)."""
    count, width = top.shape
    short, narrow = top[:, : half + 1], top.int()
    mutual, mutual_short = _reciprocal(top, chunk), _reciprocal(short, chunk)
    keys = []
    for a, b in blocks(count, width * width * short.shape[1], top.device, chunk):
        mine = mutual[a:b]
        member, valid = (
            narrow[:, : half + 1][top[a:b]],
            mutual_short[top[a:b]],
        )  # (n, width, half + 1), of each neighbour
        own = narrow[a:b].masked_fill(~mine, -1)
        inside = torch.zeros_like(valid)
        for p in range(width):
            inside |= member == own[:, p, None, None]
        joined = mine & (3 * (valid & inside).sum(2) > 2 * valid.sum(2))
        row = torch.arange(a, b, device=top.device) * count
        more = (row[:, None, None] + member)[valid & joined[..., None]]
        keys.append(torch.cat([(row[:, None] + top[a:b])[mine], more]).unique())
    return torch.cat(keys)


def _averaged(
    start: Tensor, column: Tensor, weight: Tensor, near: Tensor, chunk: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of the rows that ``near`` (N, k2) names (step 6), as row, column, weight."""
    count, parts = near.shape
    length = start.diff()
    most = parts * int(length.max())
    found = []
    for a, b in blocks(count, 4 * most, near.device, chunk):
        source = near[a:b].flatten()
        run, at = spread(start[source], length[source])
        key, place = torch.unique((a + run // parts) * count + column[at], return_inverse=True)
        mean = weight.new_zeros(len(key)).index_add_(0, place, weight[at] / parts)
        found.append((key // count, key % count, mean))
    row, column, weight = (torch.cat(part) for part in zip(*found, strict=True))
    return row, column, weight


def _shared(code: Encoding, found: Neighbours) -> Encoding:
    """Give coincident rows the weights of the first of them."""
    if found.rows.shape[1] < 2:
        return code
    own = found.rows[:, 0]
    first = torch.where(found.distance[:, 1] == 0, torch.minimum(own, found.rows[:, 1]), own)
    length = code.start.diff()[first]
    run, at = spread(code.start[first], length)
    return Encoding(_starts(run, len(own)), code.column[at], code.weight[at], code.farthest, first)
