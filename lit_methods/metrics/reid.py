"""Re-identification: how well features rank a gallery for each query, over batches and processes."""

from typing import Any

import torch
from torch import Tensor

from lit_methods.functional.ranking import JUNK, QueryRanks, RankingResult, rank_queries
from lit_methods.metrics.rows import DTYPES, RowMetric, once


class ReIDRanking(RowMetric):
    """CMC, mAP and mINP of single queries against a gallery, by Euclidean distance and the Market-1501 rules.

    Features are kept as they come, on their device (``compute_on_cpu=True`` moves them); distances exist for some
    queries at a time only. The result does not depend on the order, the batches or the processes in which rows came:
    they are sorted by ``index``, and one that comes twice, as where a sampler evens out processes, counts once.

    After ``compute``, ``ranks`` (:class:`~lit_methods.functional.ranking.QueryRanks`) and ``ranking``
    (:class:`~lit_methods.functional.ranking.RankingResult`, with the whole CMC) hold what belongs to each query, in
    ascending ``index``, and ``invalid_queries`` how many had no valid match; all are ``None`` before and stay until the
    next ``compute``. A subclass may override :meth:`distances`.

    Args:
        max_rank: length of ``ranking.cmc``, at least 1; ranks 1, 5 and 10 are always there.
        ap: ``"step"`` or ``"trapezoid"``, see :func:`~lit_methods.functional.ranking.evaluate_ranking`.
        invalid_as_zero: queries without a valid match count as 0 in mAP and ranks; else they are left out. mINP is a
            mean over valid queries either way.
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: an argument out of range; from ``update``: shapes or types that do not fit; from ``compute``: no
            query or no gallery, features that are not finite, one index with two ids or cameras, or no query with a
            valid match.

    Source:
        Market-1501's evaluation; mINP: Ye et al., arXiv 2001.04193.

    Example:
        >>> metric = ReIDRanking()
        >>> metric.update(torch.tensor([[0.0]]), *torch.tensor([[7], [0], [0]]), is_query=True)
        >>> pid, camid = torch.tensor([[7, 5, 7], [0, 1, 1]])
        >>> metric.update(torch.tensor([[0.1], [0.2], [0.3]]), pid, camid, torch.arange(3), is_query=False)
        >>> {name: float(value) for name, value in metric.compute().items()}  # id 5, then 7; the first has its camera
        {'mAP': 0.5, 'mINP': 0.5, 'rank1': 0.0, 'rank5': 1.0, 'rank10': 1.0}
    """

    higher_is_better = True
    chunk = 256  # queries whose distances exist at a time
    columns = {
        "features": None,
        "pid": torch.int64,
        "camid": torch.int64,
        "index": torch.int64,
        "query": torch.bool,
    }
    features: list[Tensor] | Tensor
    pid: list[Tensor] | Tensor
    camid: list[Tensor] | Tensor
    index: list[Tensor] | Tensor
    query: list[Tensor] | Tensor

    def __init__(self, max_rank: int = 50, ap: str = "step", invalid_as_zero: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if max_rank < 1:
            raise ValueError(f"max_rank={max_rank} must be at least 1")
        if ap not in ("step", "trapezoid"):
            raise ValueError(f'ap must be "step" or "trapezoid", got {ap!r}')
        self.max_rank, self.ap, self.invalid_as_zero = max_rank, ap, invalid_as_zero
        self.ranks: QueryRanks | None = None
        self.ranking: RankingResult | None = None

    @property
    def invalid_queries(self) -> int | None:
        """How many queries had no valid match when ``compute`` ran; ``None`` before."""
        return None if self.ranks is None else int((~self.ranks.valid).sum())

    def update(self, features: Tensor, pid: Tensor, camid: Tensor, index: Tensor, is_query: bool | Tensor) -> None:
        """Add images, possibly none.

        Args:
            features: (B, D) floating point.
            pid: (B,) int64, ids; -1 is junk, which is never ranked.
            camid: (B,) int64, cameras.
            index: (B,) int64, unique within the queries and within the gallery.
            is_query: whether the images are queries, for all or (B,) bool.
        """
        if features.ndim != 2 or features.dtype not in DTYPES:
            raise ValueError(f"features must be (B, D) floating point, got {tuple(features.shape)} of {features.dtype}")
        query = torch.as_tensor(is_query, device=features.device)
        if query.dtype != torch.bool:
            raise ValueError(f"is_query must be bool, got {query.dtype}")
        query = query.expand(len(features)) if query.ndim == 0 else query
        for name, part in (("pid", pid), ("camid", camid), ("index", index), ("is_query", query)):
            if part.shape != features.shape[:1]:
                raise ValueError(f"{name} must be ({len(features)},), as many as features, got {tuple(part.shape)}")
            if name != "is_query" and (part.is_floating_point() or part.dtype == torch.bool):
                raise ValueError(f"{name} must be whole numbers such as int64, got {part.dtype}")
        self.keep(features, pid, camid, index, query)

    def compute(self) -> dict[str, Tensor]:
        """``mAP``, ``mINP``, ``rank1``, ``rank5`` and ``rank10``: 0-d float64 fractions of 1."""
        if not len(self.features):
            raise ValueError("ReIDRanking has seen no image; call update with queries and gallery before compute")
        features, pid, camid, index, query = self.table()
        answers = {"pid": pid, "camid": camid}
        q, g = (
            once(f"{name} images", index, answers, which.nonzero().squeeze(1))
            for which, name in ((query, "query"), (~query, "gallery"))
        )
        g = g[pid[g] != JUNK]
        if not len(q) or not len(g):
            raise ValueError(
                f"ReIDRanking has {len(q)} queries and {len(g)} gallery images without junk (id -1) and needs both; "
                "update it with every image of both before compute (a limit on validation batches leaves some out)"
            )
        q_features, g_features = features[q], features[g]
        for name, part, where in (("query", q_features, index[q]), ("gallery", g_features, index[g])):
            if not (finite := part.isfinite().all(1)).all():
                first = int(where[~finite][0])
                raise ValueError(
                    f"features of {int((~finite).sum())} {name} images are not finite, the first has index={first}; "
                    "a diverged training or half precision that overflows gives such"
                )
        self.ranks = rank_queries(
            lambda block: self.distances(q_features[block], g_features),
            pid[q], camid[q], pid[g], camid[g], ap=self.ap, chunk=self.chunk,
        )  # fmt: skip
        result = self.ranks.summary(max(10, self.max_rank), self.invalid_as_zero)
        self.ranking = result._replace(cmc=result.cmc[: self.max_rank])
        penalty = self.ranks.inverse_penalty[result.valid].mean()
        return {"mAP": result.mAP, "mINP": penalty} | {f"rank{k}": result.cmc[k - 1] for k in (1, 5, 10)}

    def distances(self, query_features: Tensor, gallery_features: Tensor) -> Tensor:
        """Distances of some queries to the whole gallery; here Euclidean ones in float64.

        Args:
            query_features: (q, D), some of the queries at a time.
            gallery_features: (G, D), without junk, the same each time.

        Returns:
            (q, G) floating point without NaN, smaller is nearer.

        Source:
            |a|^2 + |b|^2 - 2ab with the first gallery image as the origin. In float32, and far from the origin, the
            subtraction loses what tells near images apart.
        """
        origin = gallery_features[0].double()
        a = query_features.double() - origin
        dist = torch.empty(len(a), len(gallery_features), dtype=torch.float64, device=a.device)
        for part, out in zip(gallery_features.split(1024), dist.split(1024, dim=1), strict=True):
            b = part.double() - origin
            out.copy_(torch.addmm(b.square().sum(1), a, b.T, alpha=-2))
        return dist.add_(a.square().sum(1, keepdim=True)).clamp_(min=0).sqrt_()
