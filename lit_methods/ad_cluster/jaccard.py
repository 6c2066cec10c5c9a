"""k-reciprocal Jaccard distance and re-ranking, exact, in memory that an argument bounds (Zhong et al., CVPR 2017).

The public code loops over points in Python and sorts all N x N distances. Here only the nearest ``k1 + 1`` of each
point are sorted, and the sums of minima run over pairs of points that share a neighbour; all other distances are 1.
Coincident points share their weights, so that one of them stands for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from lit_methods.ad_cluster.neighbours import blocks, budget, features64, nearest, spread
from lit_methods.ad_cluster.reciprocal import Encoding, encode_neighbours
from lit_methods.ad_cluster.sparse_jaccard import SparseJaccard as SparseJaccard

RUN = 32  # weights of one column that are taken together


@overload
def k_reciprocal_jaccard(
    feats: Tensor, k1: int = ..., k2: int = ..., *, chunk: int | None = ..., sparse: Literal[False] = ...
) -> Tensor: ...
@overload
def k_reciprocal_jaccard(
    feats: Tensor, k1: int = ..., k2: int = ..., *, chunk: int | None = ..., sparse: Literal[True]
) -> SparseJaccard: ...
@overload
def k_reciprocal_jaccard(
    feats: Tensor, k1: int = ..., k2: int = ..., *, chunk: int | None = ..., sparse: bool
) -> Tensor | SparseJaccard: ...
@torch.no_grad()
def k_reciprocal_jaccard(
    feats: Tensor, k1: int = 20, k2: int = 6, *, chunk: int | None = None, sparse: bool = False
) -> Tensor | SparseJaccard:
    """Jaccard distance of the points' k-reciprocal neighbours.

    Distances and weights are computed in float64 whatever the type of ``feats``. Each point comes first in its own
    list; equal distances are in the order of the index. Coincident points are at 0, however many there are.

    Args:
        feats: (N, D), finite; scaling, shifting and rotating them changes nothing.
        k1: neighbours of the reciprocal test, cut at N - 1.
        k2: lists to average, the point's own among them; 1 does without.
        chunk: rows per block, for memory; the values are the same. ``None`` takes a few dozen megabytes per block.
        sparse: keep only the pairs below 1.

    Returns:
        (N, N) symmetric, in [0, 1], 0 on the diagonal, on the device of ``feats`` and of its type (float32 for half
        precision, in which the smallest distances would be lost); or ``SparseJaccard``, whose ``to_dense()`` is that.

    Raises:
        ValueError: ``feats`` is not (N, D), empty or not finite; ``k1``, ``k2`` or ``chunk`` is below 1.

    Source:
        section 3 of Zhong et al., and its public code, with two differences: float64 for float16, and coincident points
        (there left to the sort).

    Example:
        >>> k_reciprocal_jaccard(torch.tensor([[0.0], [1.0], [9.0]]), k1=1, k2=1).round(decimals=2)
        tensor([[0.0000, 0.0100, 1.0000],
                [0.0100, 0.0000, 1.0000],
                [1.0000, 1.0000, 0.0000]])
    """
    code = encode_neighbours(features64(feats), k1, k2, chunk)
    count, dtype = len(feats), _dtype(feats)
    size = code.total.double()
    if sparse:
        length, columns, values = [], [], []
        for a, _, shared in _shared_weights(code, count, 0, chunk):
            i, j, value = _pairs(shared, size[a:])
            length.append(torch.bincount(i, minlength=len(shared)))
            columns.append((j + a).int())
            values.append(value.to(dtype))
        ends = torch.cat(length).cumsum(0)
        return SparseJaccard(torch.cat([ends.new_zeros(1), ends]), torch.cat(columns), torch.cat(values))
    found = torch.ones(count, count, dtype=dtype, device=feats.device)
    for a, b, shared in _shared_weights(code, count, 0, chunk):
        if 8 * int(shared.count_nonzero()) < shared.numel():
            i, j, value = _pairs(shared, size[a:])
            at, value = a * (count + 1) + i * count + j, value.to(dtype)
            found.view(-1)[at] = value
            found.view(-1)[at + (j - i) * (count - 1)] = value
        else:
            block = _distance(shared.double(), size[a:b, None], size[a:]).to(dtype)
            found[a:b, a:] = block
            found[a:, a:b] = block.T.contiguous()
            found[a:b, a:b] = torch.minimum(block[:, : b - a], block[:, : b - a].T)  # 1 below the diagonal
    return found.fill_diagonal_(0)


@torch.no_grad()
def k_reciprocal_rerank(
    query_feats: Tensor,
    gallery_feats: Tensor,
    k1: int = 20,
    k2: int = 6,
    lam: float = 0.3,
    *,
    chunk: int | None = None,
) -> Tensor:
    """Distances of queries to a gallery, re-ranked: ``(1 - lam) J + lam D``.

    J is the Jaccard distance over queries and gallery together, D the squared Euclidean distance divided by the largest
    one of the query's row, over both as well.

    Args:
        query_feats: (Q, D), finite.
        gallery_feats: (G, D), finite.
        k1: neighbours of the reciprocal test.
        k2: lists to average.
        lam: in [0, 1], weight of D.
        chunk: rows per block, for memory.

    Returns:
        (Q, G) in [0, 1], of the wider of the two types, float32 at least, on the features' device.

    Raises:
        ValueError: features that ``k_reciprocal_jaccard`` does not take, of two sizes or on two devices; ``lam`` out
            of range.

    Source:
        Zhong et al., equation 12, and the public code, which computes all (Q + G) x (Q + G).

    Example:
        >>> k_reciprocal_rerank(torch.tensor([[0.0]]), torch.tensor([[1.0], [10.0]]), k1=1, k2=1, lam=0.5)
        tensor([[0.0106, 1.0000]])
    """
    query, gallery = features64(query_feats, "query_feats"), features64(gallery_feats, "gallery_feats")
    _check_same(query, gallery, "query_feats", "gallery_feats")
    if not 0 <= lam <= 1:
        raise ValueError(f"lam={lam} must lie in [0, 1]; 0.3 is the public code's")
    both, first = torch.cat([query, gallery]), len(query)
    code = encode_neighbours(both, k1, k2, chunk)
    found = both.new_empty(first, len(gallery), dtype=torch.promote_types(_dtype(query_feats), _dtype(gallery_feats)))
    middle = both.mean(0)
    query, gallery = query - middle, gallery - middle
    other = gallery.square().sum(1)
    scale = torch.where(code.farthest > 0, code.farthest, 1)[:, None]
    size = code.total.double()
    for a, b, shared in _shared_weights(code, first, first, chunk):
        plain = torch.addmm(other, query[a:b], gallery.T, alpha=-2).add_(query[a:b].square().sum(1, keepdim=True))
        block = _distance(shared.double(), size[a:b, None], size[first:])
        found[a:b] = plain.clamp_(min=0).div_(scale[a:b]).mul_(lam).add_(block, alpha=1 - lam)
    return found


@torch.no_grad()
def source_distance_term(feats: Tensor, source_feats: Tensor, *, chunk: int | None = None) -> Tensor:
    """How far each point is from the nearest one of the source: ``1 - exp(-|f - f_source|^2)``, over its maximum.

    The caller forms ``(1 - lam) J + lam (s_i + s_j)``, or ``SparseJaccard.with_source_term(s, lam)``. Distances that
    are large beside 1, as those of 2048 features that are not normalised, all give 1.

    Args:
        feats: (N, D), finite.
        source_feats: (S, D), finite.
        chunk: rows per block, for memory.

    Returns:
        (N,) in [0, 1], of the type of ``feats``, float32 at least; all 0 where each point coincides with one of the
        source (the public code gives NaN).

    Raises:
        ValueError: features that are not (N, D), empty, not finite, of two sizes or on two devices; ``chunk`` below 1.

    Source:
        the public code of "Theory and Practice", there for all pairs.

    Example:
        >>> source_distance_term(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [9.0]]))
        tensor([0., 1.])
    """
    x, y = features64(feats), features64(source_feats, "source_feats")
    _check_same(x, y, "feats", "source_feats")
    s = -torch.expm1(-nearest(x, y, 1, chunk=chunk).distance[:, 0])
    return (s / torch.where(s.max() > 0, s.max(), 1)).to(_dtype(feats))


def _dtype(feats: Tensor) -> torch.dtype:
    return torch.promote_types(feats.dtype, torch.float32)


def _check_same(a: Tensor, b: Tensor, name: str, other: str) -> None:
    if a.shape[1] != b.shape[1] or a.device != b.device:
        raise ValueError(
            f"{name} and {other} must have the same number of features on one device, got {a.shape[1]} on {a.device} "
            f"and {b.shape[1]} on {b.device}"
        )


def _pairs(shared: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column of what is not 0 in the block, in order, and the distances; ``size`` from its first row on."""
    at = shared.view(-1).nonzero()[:, 0]
    i = at // shared.shape[1]
    j = at - i * shared.shape[1]
    return i, j, _distance(shared.view(-1)[at].double(), size[i], size[j])


def _distance(shared: Tensor, size: Tensor, other: Tensor) -> Tensor:
    """1 - sum of minima / sum of maxima, in float64, exactly 0 for equal rows."""
    both = size + other
    return (both - shared).reciprocal_().mul_(both.sub_(shared, alpha=2))


class _Columns(NamedTuple):
    """Weights by column, in each by row; behind ``begin`` of each weight of a row are ``length`` that it meets."""

    row: Tensor
    weight: Tensor
    begin: Tensor
    length: Tensor


def _columns(code: Encoding, least: int, later: bool) -> _Columns:
    """Each weight meets those of its column in rows from ``least``, where ``later`` those of larger rows alone."""
    count = int(code.column.max()) + 1
    row = code.rows
    order = code.column.argsort(stable=True)
    ends = torch.bincount(code.column, minlength=count).cumsum(0)
    begin = (ends - torch.bincount(code.column[row >= least], minlength=count))[code.column]
    if later:
        behind = torch.empty_like(order)
        behind[order] = torch.arange(1, len(order) + 1, device=order.device)
        begin = torch.maximum(begin, behind)
    return _Columns(row[order], code.weight[order], begin, ends[code.column] - begin)


def _shared_weights(code: Encoding, rows: int, least: int, chunk: int | None) -> Iterator[tuple[int, int, Tensor]]:
    """Sums of minima of pairs i < j, i among the first ``rows`` points, j from ``least`` (0 or ``rows``).

    Yields, per block of rows: its first and last + 1, and int64 sums of these rows with all from the larger of
    ``least`` and the first on; 0 for pairs that share nothing, and where j is not above i.
    """
    count, device = len(code.first), code.weight.device
    cut = blocks(rows, 16 * (count - least), device, chunk)  # a block takes several numbers per pair
    kept, kind = code.first.unique(return_inverse=True)
    if len(kept) == count:
        columns = _columns(code, least, later=True)
        for a, b in cut:
            left = max(least, a)
            shared = torch.zeros(b - a, count - left, dtype=torch.int64, device=device)
            at = torch.arange(int(code.start[a]), int(code.start[b]), device=device)
            place = torch.repeat_interleave(code.start[a : b + 1].diff()) * (count - left) - left
            _add_minima(shared, columns, at, code.weight[at], place)
            yield a, b, shared
        return
    _, at = spread(code.start[kept], code.start.diff()[kept])
    ends = code.start.diff()[kept].cumsum(0)
    few = code._replace(start=torch.cat([ends.new_zeros(1), ends]), column=code.column[at], weight=code.weight[at])
    columns = _columns(few, 0, later=False)
    for a, b in cut:
        left = max(least, a)
        mine, which = kind[a:b].unique(return_inverse=True)
        run, at = spread(few.start[mine], few.start.diff()[mine])
        part = torch.zeros(len(mine), len(kept), dtype=torch.int64, device=device)
        _add_minima(part, columns, at, few.weight[at], run * len(kept))
        yield a, b, part[which][:, kind[left:]].triu_(a - left + 1)


def _add_minima(shared: Tensor, columns: _Columns, at: Tensor, weight: Tensor, place: Tensor) -> None:
    """Add the minimum of each weight, found ``at`` in its row, and all that it meets to ``shared`` at ``place`` + row.

    Long runs are taken in pieces of ``RUN``, which need no index of their own; a pass is what a CPU's cache holds.
    """
    flat, most = shared.view(-1), budget(shared.device) // 64
    begin, length = columns.begin[at], columns.length[at]
    pieces = length // RUN
    if bool((pieces > 0).any()):
        by_row, by_weight = columns.row.unfold(0, RUN, 1), columns.weight.unfold(0, RUN, 1)
        run, piece = spread(torch.zeros_like(pieces), pieces)
        source = begin[run] + RUN * piece
        for a, b in ((a, a + most // RUN) for a in range(0, len(run), most // RUN)):
            mine = run[a:b]
            smaller = by_weight.index_select(0, source[a:b])
            torch.minimum(smaller, weight.index_select(0, mine)[:, None], out=smaller)
            key = by_row.index_select(0, source[a:b]).add_(place.index_select(0, mine)[:, None])
            flat.scatter_add_(0, key.view(-1), smaller.view(-1))
    begin, length = begin + RUN * pieces, length - RUN * pieces
    for a, b in ((a, a + most // RUN) for a in range(0, len(at), most // RUN)):
        run, other = spread(begin[a:b], length[a:b])
        smaller = torch.minimum(weight[a:b].index_select(0, run), columns.weight.index_select(0, other))
        key = place[a:b].index_select(0, run).add_(columns.row.index_select(0, other))
        flat.scatter_add_(0, key, smaller)
