"""How well a gallery is ranked for each query: CMC, mAP and mINP with the Market-1501 rules.

Per query, gallery images with id -1 (junk) are dropped, and so are those of the query's own id and camera; what is left
is ranked by ascending distance, equal distances in the gallery's order. A query whose every match is dropped is not
valid. Every id from 0 on is one like any other: Market-1501's distractors have id 0, which no query has.

Nothing but the places of the matches is needed. On a CPU only values are sorted, and where a match shares its distance
with other images, those before it are counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

JUNK = -1


class RankingResult(NamedTuple):
    """What :func:`evaluate_ranking` finds; rows of queries are in the order given."""

    mAP: Tensor
    cmc: Tensor
    ap: Tensor
    first_hit: Tensor
    valid: Tensor


class QueryRanks(NamedTuple):
    """What :func:`rank_queries` finds for each query, (Q,) each; -1 where a query is not valid, 0 for ``matches``.

    ``ap`` is float64; ``first_hit`` and ``last_hit`` are places of matches counted from 0 after the removals, and
    ``matches`` their number, int64.
    """

    ap: Tensor
    first_hit: Tensor
    last_hit: Tensor
    matches: Tensor

    @property
    def valid(self) -> Tensor:
        """Queries with at least one match, (Q,) bool."""
        return self.matches > 0

    @property
    def inverse_penalty(self) -> Tensor:
        """Number of matches over the position of the last, counted from 1; (Q,) float64, -1 where not valid.

        Source:
            Ye et al., arXiv 2001.04193: INP; its mean over valid queries is mINP.
        """
        return torch.where(self.valid, self.matches.double() / (self.last_hit + 1).clamp(min=1), -1.0)

    def summary(self, max_rank: int = 50, invalid_as_zero: bool = False) -> RankingResult:
        """Means over queries; see :func:`evaluate_ranking`."""
        valid = self.valid
        count = len(valid) if invalid_as_zero else valid.sum()
        firsts = self.first_hit[valid & (self.first_hit < max_rank)]
        cmc = torch.bincount(firsts, minlength=max_rank).cumsum(0).double() / count
        return RankingResult(self.ap[valid].sum() / count, cmc, self.ap, self.first_hit, valid)


@torch.no_grad()
def evaluate_ranking(
    dist: Tensor,
    q_pid: Tensor,
    q_cam: Tensor,
    g_pid: Tensor,
    g_cam: Tensor,
    ap: str = "step",
    *,
    max_rank: int = 50,
    invalid_as_zero: bool = False,
    chunk: int = 256,
) -> RankingResult:
    """CMC and mAP of single queries against the whole gallery, by the Market-1501 rules at the top of this file.

    Args:
        dist: (Q, G) distances, floating point without NaN in what is ranked; smaller is nearer.
        q_pid: (Q,) whole numbers, ids of the queries.
        q_cam: (Q,) whole numbers, their cameras.
        g_pid: (G,) whole numbers, ids of the gallery, -1 for junk.
        g_cam: (G,) whole numbers, their cameras.
        ap: ``"step"``, the mean of the precisions at the matches; or ``"trapezoid"``, each averaged with the precision
            one place before it (1 before the first place), as in the dataset's MATLAB code.
        max_rank: length of ``cmc``, at least 1.
        invalid_as_zero: queries without a valid match count as 0 in ``mAP`` and ``cmc``, as in the MATLAB code; else
            they are left out.
        chunk: queries that are ranked at a time; bounds the memory and changes no value.

    Returns:
        ``mAP`` (0-d float64); ``cmc`` (max_rank,) float64, the share of queries whose first match is among the r + 1
        nearest; ``ap`` (Q,) float64; ``first_hit`` (Q,) int64, the place of the first match, counted from 0 after the
        removals; ``valid`` (Q,) bool. ``ap`` and ``first_hit`` are -1 where a query is not valid. All on the device of
        ``dist``.

    Raises:
        ValueError: shapes or types that do not fit, ``ap``, ``max_rank`` or ``chunk`` out of range, NaN, or no query
            with a valid match.

    Source:
        Market-1501's evaluation, as in open-reid (step) and in the MATLAB code of Zhong et al. (trapezoid). Ours: equal
        distances are ranked in the gallery's order, where open-reid's AP merges them.

    Example:
        >>> dist = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5]])
        >>> g_pid, g_cam = torch.tensor([7, -1, 0, 7, 7]), torch.tensor([0, 1, 1, 1, 2])
        >>> result = evaluate_ranking(dist, torch.tensor([7]), torch.tensor([0]), g_pid, g_cam, max_rank=3)
        >>> result.cmc, result.first_hit  # left are 0, 7, 7: own camera and junk are gone
        (tensor([0., 1., 1.], dtype=torch.float64), tensor([1]))
        >>> round(float(result.mAP), 4)  # (1/2 + 2/3) / 2
        0.5833
    """
    if dist.ndim != 2 or dist.shape != (q_pid.numel(), g_pid.numel()):
        raise ValueError(
            f"dist must be (queries, gallery) = ({q_pid.numel()}, {g_pid.numel()}) for these ids, got "
            f"{tuple(dist.shape)}"
        )
    if max_rank < 1:
        raise ValueError(f"max_rank={max_rank} must be at least 1")
    ids = [part.to(dist.device) for part in (q_pid, q_cam, g_pid, g_cam)]
    return rank_queries(lambda rows: dist[rows], *ids, ap=ap, chunk=chunk).summary(max_rank, invalid_as_zero)


@torch.no_grad()
def rank_queries(
    distances: Callable[[slice], Tensor],
    q_pid: Tensor,
    q_cam: Tensor,
    g_pid: Tensor,
    g_cam: Tensor,
    *,
    ap: str = "step",
    chunk: int = 256,
) -> QueryRanks:
    """Places of the matches of each query, with distances that are asked for block by block.

    Args:
        distances: gives the rows of the (Q, G) distances that belong to a slice of queries, on the device of the ids.
        q_pid: see :func:`evaluate_ranking`, here and below.
        q_cam: (Q,).
        g_pid: (G,).
        g_cam: (G,).
        ap: ``"step"`` or ``"trapezoid"``.
        chunk: queries that are asked for at a time.

    Returns:
        One row per query.

    Raises:
        ValueError: see :func:`evaluate_ranking`.

    Example:
        >>> dist, pid, cam = torch.tensor([[0.3, 0.1, 0.2]]), torch.tensor([5, 6, 5]), torch.tensor([1, 1, 2])
        >>> ranks = rank_queries(lambda rows: dist[rows], torch.tensor([5]), torch.tensor([0]), pid, cam)
        >>> ranks.first_hit, ranks.last_hit, ranks.inverse_penalty
        (tensor([1]), tensor([2]), tensor([0.6667], dtype=torch.float64))
    """
    if ap not in ("step", "trapezoid"):
        raise ValueError(f'ap must be "step" or "trapezoid", got {ap!r}')
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1, the queries ranked at a time")
    q_pid, q_cam = _ids("q_pid", q_pid, "q_cam", q_cam)
    g_pid, g_cam = _ids("g_pid", g_pid, "g_cam", g_cam)
    kept = (g_pid != JUNK).nonzero().squeeze(1)
    if not len(q_pid) or not len(kept):
        raise ValueError(f"nothing to rank: {len(q_pid)} queries and {len(kept)} gallery images without junk (id -1)")
    pid, cam = g_pid[kept], g_cam[kept]
    by_id = pid.argsort(stable=True)  # images of one id stand together, in the gallery's order
    start, stop = (torch.searchsorted(pid[by_id], q_pid, right=right)[:, None] for right in (False, True))
    most = torch.arange(max(1, int((stop - start).max())), device=pid.device)
    parts = []
    for first in range(0, len(q_pid), chunk):
        rows = slice(first, first + chunk)
        place = start[rows] + most
        own = by_id[place.clamp(max=len(pid) - 1)]  # (q, K) images of each query's id, filled up with others
        exists = place < stop[rows]
        removed = exists & (cam[own] == q_cam[rows, None])
        dist = distances(rows).detach()
        if dist.shape != (len(own), len(g_pid)) or not dist.is_floating_point():
            raise ValueError(
                f"dist must be floating point, {len(own)} rows of {len(g_pid)} for this block of queries, got "
                f"{tuple(dist.shape)} of {dist.dtype}"
            )
        parts.append(_rank_block(_ranked_columns(dist, kept), own, exists, removed, ap))
    ranks = QueryRanks(*map(torch.cat, zip(*parts, strict=True)))
    if not ranks.valid.any():
        raise ValueError(_why_none(q_pid, q_cam, pid, cam))
    return ranks


def _rank_block(dist: Tensor, own: Tensor, exists: Tensor, removed: Tensor, ap: str) -> QueryRanks:
    """Rank (q, G) distances without junk, given which of their columns have each query's id, (q, K)."""
    near, order = dist.gather(1, own).sort(dim=1, stable=True)
    own, exists, removed = (part.gather(1, order) for part in (own, exists, removed))
    hit = exists & ~removed
    before = _places(dist, near, own, exists) - removed.cumsum(1)  # of a match, counted from 0 after the removals
    number = hit.cumsum(1)
    precision = number.double() / (before + 1)
    if ap == "trapezoid":
        previous = torch.where(before > 0, (number - 1).double() / before, 1.0)
        precision = (previous + precision) / 2
    matches = hit.sum(1)
    none = matches == 0
    total = torch.where(hit, precision, 0.0).cumsum(1)[:, -1]  # one after the other, so that no block changes it
    mean = total / matches.clamp(min=1)
    first = before.masked_fill(~hit, torch.iinfo(torch.int64).max).amin(1)
    last = before.masked_fill(~hit, -1).amax(1)
    return QueryRanks(mean.masked_fill(none, -1), first.masked_fill(none, -1), last, matches)


def _places(dist: Tensor, near: Tensor, own: Tensor, exists: Tensor) -> Tensor:
    """Places, (q, K) int64 from 0, of some columns in the stable order of each row.

    Args:
        dist: (q, G).
        near: (q, K), the distances of these columns.
        own: (q, K) int64, which columns.
        exists: (q, K), which places are asked for; the others mean nothing.
    """
    places, last = (_places_by_counting if dist.device.type == "cpu" else _places_by_order)(dist, near, own, exists)
    if last.isnan().any():  # NaN sorts behind everything
        raise ValueError("dist has NaN; look for NaN in the features, as after a diverged training")
    return places


def _places_by_order(dist: Tensor, near: Tensor, own: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
    """Those of a whole stable order, and the last value of each row."""
    values, order = dist.sort(dim=1, stable=True)
    columns = torch.arange(dist.shape[1], device=dist.device)
    return torch.empty_like(order).scatter_(1, order, columns.expand_as(order)).gather(1, own), values[:, -1]


def _places_by_counting(dist: Tensor, near: Tensor, own: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
    """The same on a CPU, where NumPy sorts values alone many times faster than anything finds an order."""
    values = torch.from_numpy(np.sort(dist.numpy(), axis=1))
    places = torch.searchsorted(values, near)
    behind = (places + 1).clamp(max=values.shape[1] - 1)
    tied = exists & (behind > places) & (values.gather(1, behind) == near)
    table, value, column, place = (part.numpy() for part in (dist, near, own, places))
    for at in zip(*tied.numpy().nonzero(), strict=True):
        place[at] += np.count_nonzero(table[at[0], : column[at]] == value[at])
    return places, values[:, -1]


def _ranked_columns(dist: Tensor, kept: Tensor) -> Tensor:
    """The columns that are not junk, in a type that NumPy sorts."""
    dist = dist.float() if dist.dtype in (torch.float16, torch.bfloat16) else dist  # exact
    if len(kept) == dist.shape[1]:
        return dist
    if dist.device.type == "cpu":
        return torch.from_numpy(np.take(dist.numpy(), kept.numpy(), axis=1))  # three times as fast as torch
    return dist[:, kept]


def _ids(pid_name: str, pid: Tensor, cam_name: str, cam: Tensor) -> tuple[Tensor, Tensor]:
    """Both as int64, (N,) each."""
    if pid.ndim != 1 or pid.shape != cam.shape:
        raise ValueError(
            f"{pid_name} and {cam_name} must be (N,) each, one entry per image, got {tuple(pid.shape)} and "
            f"{tuple(cam.shape)}"
        )
    for name, part in ((pid_name, pid), (cam_name, cam)):
        if part.is_floating_point() or part.is_complex() or part.dtype == torch.bool:
            raise ValueError(f"{name} must be whole numbers such as int64, got {part.dtype}")
    return pid.long().contiguous(), cam.long().contiguous()


def _why_none(q_pid: Tensor, q_cam: Tensor, g_pid: Tensor, g_cam: Tensor) -> str:
    """What is wrong where no query has a valid match; the gallery is without junk."""
    known = torch.isin(q_pid, g_pid)
    start = f"none of the {len(q_pid)} queries has a valid match: "
    if not known.any():
        ids = [len(part.unique()) for part in (q_pid, g_pid)]
        return (
            f"{start}the {ids[0]} ids of the queries and the {ids[1]} of the gallery (without junk) have none in "
            "common; take queries and gallery of the same set, with their raw ids"
        )
    cameras = torch.cat([q_cam, g_cam]).unique()
    if len(cameras) == 1:
        return (
            f"{start}all cameras are equal ({int(cameras)}), and images of a query's own id "
            "and camera do not count; read the camera ids from the file names"
        )
    return (
        f"{start}{int(known.sum())} have images of their id in the gallery, all from the query's own camera, which do "
        "not count; take a gallery in which an id is seen by a second camera"
    )
