"""Pseudo-labels: the radius, DBSCAN and the clusters' centroids.

Distances are a dense (N, N) tensor, of which the upper triangle is read, or the sparse ``k_reciprocal_jaccard``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from lit_methods.ad_cluster.neighbours import blocks
from lit_methods.ad_cluster.sparse_jaccard import SparseJaccard

ZERO = 1e-9  # distances below are rounding noise of coincident points


@torch.no_grad()
def select_eps(dist: Tensor | SparseJaccard, rho: float = 1.6e-3) -> float:
    """Radius for DBSCAN: the mean of the smallest ``round(rho M)`` of the M distances between two points.

    Pairs below 1e-9 coincide and do not count. One distance is taken at the least, and 1e-9 is returned where all
    points coincide, so that they form one cluster.

    Args:
        dist: (N, N) symmetric, or sparse.
        rho: share of the pairs, in (0, 1]; a tie in rounding goes to the even number.

    Returns:
        a radius above 0.

    Raises:
        ValueError: ``rho`` out of range, ``dist`` not square or with NaN, or a sparse ``dist`` that leaves out pairs
            that belong to the smallest.

    Source:
        the public code of "Theory and Practice" and SSG; it drops exact zeros alone and gives NaN where ``rho M``
        rounds to 0.

    Example:
        >>> dist = torch.tensor([[0.0, 0.2, 0.4], [0.2, 0.0, 0.9], [0.4, 0.9, 0.0]])
        >>> round(select_eps(dist, rho=0.7), 4)
        0.3
    """
    if not 0 < rho <= 1:
        raise ValueError(f"rho={rho} must lie in (0, 1]; 1.6e-3 is the public code's")
    count = _size(dist)
    number = count * (count - 1) // 2 - sum(int((value < ZERO).sum()) for value in _values(dist))
    if isinstance(dist, SparseJaccard) and dist.least_absent < ZERO:
        raise ValueError("the pairs that the sparse dist leaves out may be at 0; give select_eps dist.to_dense()")
    if not number:
        return ZERO
    top = max(1, round(rho * number))
    best = torch.empty(0, dtype=torch.float64, device=dist.device)
    for value in _values(dist):
        value = value[(value >= ZERO) & (value < best[-1])] if len(best) == top else value[value >= ZERO]
        best = torch.cat([best, value.double()])
        best = best.topk(min(top, len(best)), largest=False).values
    if isinstance(dist, SparseJaccard):
        if dist.term is not None and (len(best) < top or float(best[-1]) > dist.least_absent):
            raise ValueError(
                f"rho={rho} takes {top} distances, among them pairs that the sparse dist leaves out (from "
                f"{dist.least_absent:.4g}); take a smaller rho, or dist.to_dense()"
            )
        return float((best.sum() + (top - len(best)) * dist.absent) / top)
    return float(best.mean())


@torch.no_grad()
def dbscan_pseudo_labels(dist: Tensor | SparseJaccard, eps: float, min_samples: int = 4) -> Tensor:
    """DBSCAN on given distances.

    The number of clusters is that of distinct labels >= 0; with outliers or without, ``labels.max() + 1``.

    Args:
        dist: (N, N) symmetric, or sparse.
        eps: neighbours are at ``dist <= eps``.
        min_samples: neighbours that make a core point, itself among them, whatever the diagonal says.

    Returns:
        (N,) int64 on the device of ``dist``, -1 for outliers. Clusters are numbered by their first core point, and a
        border point goes to the lowest of its clusters, as in scikit-learn.

    Raises:
        ValueError: ``eps`` not above 0, ``min_samples`` below 1, ``dist`` not square or with NaN, or an ``eps`` that
            reaches pairs that a sparse ``dist`` leaves out.

    Source:
        Ester et al. 1996; the labels of scikit-learn's ``DBSCAN(metric="precomputed")``, here as connected components
        of the graph of neighbours.

    Example:
        >>> line = torch.tensor([0.0, 1.0, 2.0, 9.0])
        >>> dbscan_pseudo_labels((line[:, None] - line).abs(), eps=1.0, min_samples=3)
        tensor([ 0,  0,  0, -1])
    """
    if not eps > 0:
        raise ValueError(f"eps={eps} must be above 0; select_eps(dist) finds one")
    if min_samples < 1:
        raise ValueError(f"min_samples={min_samples} must be 1 or more")
    count = _size(dist)
    if isinstance(dist, SparseJaccard) and eps >= dist.least_absent:
        raise ValueError(
            f"eps={eps} reaches the pairs that the sparse dist leaves out (from {dist.least_absent:.4g}); take a "
            "smaller eps, or dist.to_dense()"
        )
    pairs = torch.cat([torch.empty(0, 2, dtype=torch.int64, device=dist.device), *_close(dist, eps)]).cpu().numpy()
    return torch.from_numpy(_components(count, pairs[:, 0], pairs[:, 1], min_samples)).to(dist.device)


@torch.no_grad()
def cluster_centroids(feats: Tensor, labels: Tensor) -> Tensor:
    """Mean of the features of each cluster, without the outliers.

    Args:
        feats: (N, D).
        labels: (N,) int64, -1 for outliers.

    Returns:
        (C, D) with C = ``labels.max() + 1``, 0 rows where all are outliers; of the type of ``feats``, float32 at least,
        and summed in float64. A label that nobody has gives NaN.

    Raises:
        ValueError: shapes that do not fit, labels that are not whole numbers or below -1.

    Source:
        ours: the paper's diversity needs a centre per cluster.

    Example:
        >>> cluster_centroids(torch.tensor([[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]]), torch.tensor([0, 0, -1]))
        tensor([[2., 4.]])
    """
    if feats.ndim != 2 or labels.shape != feats.shape[:1]:
        raise ValueError(f"labels must be (N,) for feats (N, D), got {tuple(labels.shape)} for {tuple(feats.shape)}")
    if labels.is_floating_point() or labels.dtype == torch.bool or bool((labels < -1).any()):
        raise ValueError(f"labels must be whole numbers from -1, got {labels.dtype} {labels.unique().tolist()[:5]}")
    member = labels >= 0
    place = labels[member].long()
    count = int(place.max()) + 1 if len(place) else 0
    total = feats.new_zeros(count, feats.shape[1], dtype=torch.float64).index_add_(0, place, feats[member].double())
    mean = total / torch.bincount(place, minlength=count)[:, None]
    return mean.to(torch.promote_types(feats.dtype, torch.float32))


def _size(dist: Tensor | SparseJaccard) -> int:
    if len(dist.shape) != 2 or dist.shape[0] != dist.shape[1] or not dist.dtype.is_floating_point:
        raise ValueError(f"dist must be floating numbers (N, N), got {dist.dtype} {tuple(dist.shape)}")
    return int(dist.shape[0])


def _upper(dist: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Blocks of rows: the first row, its columns behind the diagonal, and which of them are in the upper triangle."""
    for a, b in blocks(len(dist), 2 * len(dist), dist.device):
        block = dist[a:b, a + 1 :]
        if block.isnan().any():
            raise ValueError("dist must not have NaN; look at the features it was made of")
        yield a, block, torch.ones_like(block, dtype=torch.bool).triu()


def _values(dist: Tensor | SparseJaccard) -> Iterator[Tensor]:
    """The distances of all pairs i < j, of a sparse result of those that it keeps, in parts."""
    if isinstance(dist, SparseJaccard):
        yield from (dist.value[a:b] for a, b in blocks(len(dist.value), 1, dist.device))
    else:
        yield from (block[upper] for _, block, upper in _upper(dist))


def _close(dist: Tensor | SparseJaccard, eps: float) -> Iterator[Tensor]:
    """Pairs i < j within ``eps``, (P, 2) int64, in parts."""
    if isinstance(dist, SparseJaccard):
        for a, b in blocks(len(dist.value), 1, dist.device):
            at = a + (dist.value[a:b].double() <= eps).nonzero()[:, 0]
            yield torch.stack([dist.row_of(at), dist.column[at].long()], 1)
    else:
        for a, block, upper in _upper(dist):
            yield ((block.double() <= eps) & upper).nonzero() + torch.tensor([a, a + 1], device=dist.device)


def _components(count: int, i: NDArray[np.int64], j: NDArray[np.int64], min_samples: int) -> NDArray[np.int64]:
    """Labels from the pairs of neighbours: core points that hang together, then their borders."""
    core = np.bincount(i, minlength=count) + np.bincount(j, minlength=count) + 1 >= min_samples
    both = core[i] & core[j]
    graph = coo_array((np.ones(both.sum(), bool), (i[both], j[both])), shape=(count, count))
    part = connected_components(graph, directed=False)[1][core]
    _, first, part = np.unique(part, return_index=True, return_inverse=True)
    labels = np.full(count, count, np.int64)  # count stands for none
    labels[core] = first.argsort().argsort()[part]
    for inner, outer in ((i, j), (j, i)):
        border = core[inner] & ~core[outer]
        np.minimum.at(labels, outer[border], labels[inner[border]])
    return np.where(labels == count, -1, labels)
