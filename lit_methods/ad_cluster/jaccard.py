"""k-reciprocal Jaccard distance and re-ranking, exact, in memory that an argument bounds (Zhong et al., CVPR 2017).

The public code loops over points in Python and sorts all N x N distances. Here only the nearest ``k1 + 1`` of each
point are sorted, and the sums of minima run over pairs of points that share a neighbour; all other distances are 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, overload

import torch
from torch import Tensor

from lit_methods.ad_cluster.neighbours import blocks, budget, features64, nearest
from lit_methods.ad_cluster.reciprocal import Encoding, encode_neighbours, spread
from lit_methods.ad_cluster.sparse_jaccard import SparseJaccard as SparseJaccard


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
    pairs = _pairs_below_one(code, count, 0, chunk)
    if sparse:
        length, columns, values = [], [], []
        for a, b, i, j, value in pairs:
            length.append(torch.bincount(i - a, minlength=b - a))
            columns.append(j.int())
            values.append(value.to(dtype))
        ends = torch.cat(length).cumsum(0)
        return SparseJaccard(torch.cat([ends.new_zeros(1), ends]), torch.cat(columns), torch.cat(values))
    found = torch.ones(count, count, dtype=dtype, device=feats.device)
    for _, _, i, j, value in pairs:
        found.view(-1).scatter_(0, i * count + j, value.to(dtype))
        found.view(-1).scatter_(0, j * count + i, value.to(dtype))
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
    for a, b, i, j, value in _pairs_below_one(code, first, first, chunk):
        plain = torch.addmm(other, query[a:b], gallery.T, alpha=-2).add_(query[a:b].square().sum(1, keepdim=True))
        mixed = plain.clamp_(min=0).div_(scale[a:b]).mul_(lam).add_(1 - lam)
        mixed[i - a, j - first] += (1 - lam) * (value - 1)
        found[a:b] = mixed
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


def _pairs_below_one(
    code: Encoding, rows: int, least: int, chunk: int | None
) -> Iterator[tuple[int, int, Tensor, Tensor, Tensor]]:
    """Jaccard distances of pairs i < j that share a neighbour, i among the first ``rows`` points, j from ``least``.

    Yields, per block of rows: its first and last + 1; i, j and float64 distance of each pair, ordered by i, then j.
    """
    count, device = len(code.farthest), code.weight.device
    row = code.rows
    order = code.column.argsort(stable=True)  # by column, and in each by row
    by_row, by_weight = row[order], code.weight[order]
    ends = torch.bincount(code.column, minlength=count).cumsum(0)
    begin = torch.empty_like(order)
    begin[order] = torch.arange(1, len(order) + 1, device=device)  # behind each weight are those of larger rows
    if least:
        behind = torch.bincount(code.column[row >= least], minlength=count)
        begin = torch.maximum(begin, (ends - behind)[code.column])
    length = ends[code.column] - begin
    total = torch.cat([length.new_zeros(1), length.cumsum(0)])
    sums = length.new_zeros(count).index_add_(0, row, code.weight)
    for a, b in blocks(rows, 16 * (count - least), device, chunk):  # pairs take several numbers each
        left = max(least, a)
        width = count - left
        shared = torch.zeros(b - a, width, dtype=torch.int64, device=device)
        at, stop = int(code.start[a]), int(code.start[b])
        while at < stop:  # as many weights as unroll to what a CPU's cache holds, at least one
            goal = total[at] + budget(device) // 64
            until = min(stop, max(at + 1, int(torch.searchsorted(total, goal, right=True)) - 1))
            run, other = spread(begin[at:until], length[at:until])
            smaller = code.weight[at:until].index_select(0, run)
            torch.minimum(smaller, by_weight.index_select(0, other), out=smaller)
            corner = (row[at:until] - a) * width - left
            key = corner.index_select(0, run).add_(by_row.index_select(0, other))
            shared.view(-1).scatter_add_(0, key, smaller)
            at = until
        i, j = shared.nonzero(as_tuple=True)
        common, i, j = shared[i, j], i + a, j + left
        both = sums.index_select(0, i).add_(sums.index_select(0, j))
        yield a, b, i, j, both.sub(common, alpha=2).double().div_(both.sub_(common))
