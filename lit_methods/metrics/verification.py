"""Faces: do two show one person, and which person of a gallery; metrics, beside the functions that they rest on."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_methods.functional.identification import (
    aggregate_templates,
    rank1_identification,
    template_scores,
    unit_rows,
)
from lit_methods.functional.verification import (
    GapReport,
    KFoldResult,
    check_finite,
    checked_targets,
    gap_report,
    kfold_pair_accuracy,
    race_summary,
    similarity_gap,
    tar_at_far,
)
from lit_methods.metrics.rows import DTYPES, RowMetric, check_column, in_order, index_or_none

__all__ = [
    "GapReport",
    "KFoldResult",
    "PairVerificationAccuracy",
    "Rank1Identification",
    "TARAtFAR",
    "aggregate_templates",
    "gap_report",
    "kfold_pair_accuracy",
    "race_summary",
    "rank1_identification",
    "similarity_gap",
    "tar_at_far",
    "template_scores",
]


class PairVerificationAccuracy(RowMetric):
    """Accuracy over folds of pairs of embeddings, by the distance of their unit vectors.

    Squared distances are kept, in float64, not embeddings. After ``compute``, ``result``
    (:class:`~lit_methods.functional.verification.KFoldResult`) has the folds and the curve; its ``false_rejects`` are
    values of ``index`` where it was given. It is ``None`` before and stays until the next ``compute``.

    Args:
        n_folds: at least 2.
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: ``n_folds`` out of range; from ``update``: shapes or types that do not fit; from ``compute``: fewer
            pairs than folds, embeddings that are not finite, ``same`` that is neither 0 nor 1, one index with two
            answers, or an index for some pairs only.

    Source:
        See :func:`~lit_methods.functional.verification.kfold_pair_accuracy`.

    Example:
        >>> metric = PairVerificationAccuracy(n_folds=2)
        >>> a, b = torch.tensor([[1.0, 0.0]]).expand(4, 2), torch.tensor([[2.0, 0.1], [0, 1], [1, 0.1], [-1, 0]])
        >>> metric.update(a, b, torch.tensor([True, False, True, False]), torch.arange(4))
        >>> {name: round(float(value), 4) for name, value in metric.compute().items()}
        {'accuracy': 1.0, 'std': 0.0, 'threshold': 0.01}
    """

    higher_is_better = True
    columns = {"distances": torch.float64, "same": torch.int64, "index": torch.int64}

    def __init__(self, n_folds: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if n_folds < 2:
            raise ValueError(f"n_folds={n_folds} must be at least 2: thresholds are chosen on the other folds")
        self.n_folds = n_folds
        self.result: KFoldResult | None = None

    def update(self, embeddings_a: Tensor, embeddings_b: Tensor, same: Tensor, index: Tensor | None = None) -> None:
        """Add pairs, possibly none.

        Args:
            embeddings_a: (B, D) floating point, of any length.
            embeddings_b: (B, D) floating point.
            same: (B,) bool or 0 and 1, whether both are of one identity.
            index: (B,) whole numbers, the place of each pair in its file: folds follow it, and one that comes twice, as
                where a sampler evens out processes, counts once. ``None`` is the order of arrival, that of the first
                process before that of the second.
        """
        for name, part in (("embeddings_a", embeddings_a), ("embeddings_b", embeddings_b)):
            _check_embeddings(name, part)
        if embeddings_a.shape != embeddings_b.shape:
            raise ValueError(
                f"embeddings_a and embeddings_b must have one shape (B, D), got {tuple(embeddings_a.shape)} and "
                f"{tuple(embeddings_b.shape)}"
            )
        check_column("same", same, len(embeddings_a), flags=True)
        column = index_or_none(index, len(embeddings_a), embeddings_a.device)
        difference = unit_rows(embeddings_a.detach()) - unit_rows(embeddings_b.detach().to(embeddings_a.device))
        self.keep(difference.square().sum(1), same, column)

    def compute(self) -> dict[str, Tensor]:
        """``accuracy``, ``std`` and ``threshold``: 0-d float64, means over folds and the deviation of the accuracy."""
        if not (table := self.table()) or not len(table[0]):
            raise ValueError("PairVerificationAccuracy has seen no pair; call update before compute")
        distances, same, index = table
        rows, index = in_order("pairs", index, {"same": same})
        distances = distances[rows]
        check_finite("embeddings of pairs", distances, where=index)
        result = kfold_pair_accuracy(distances, same[rows], self.n_folds)
        self.result = result._replace(false_rejects=index[result.false_rejects])
        return {"accuracy": result.accuracy, "std": result.std, "threshold": result.threshold}


class TARAtFAR(RowMetric):
    """Share of genuine pairs that are accepted where so many impostors are, from scores.

    Args:
        targets: false accept rates, 0 to 1, that differ when written with one digit.
        method: ``"nearest"`` or ``"conservative"``, see :func:`~lit_methods.functional.verification.tar_at_far`.
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: an argument out of range; from ``update``: shapes or types that do not fit; from ``compute``: no
            pairs of one kind, scores that are not finite, labels that are neither 0 nor 1, one index with two answers,
            or an index for some pairs only.

    Source:
        See :func:`~lit_methods.functional.verification.tar_at_far`.

    Example:
        >>> metric = TARAtFAR(targets=(0.3, 0.01), method="conservative")
        >>> metric.update(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 1, 0]))
        >>> metric.update(torch.tensor([0.6, 0.5, 0.4]), torch.tensor([1, 0, 0]))
        >>> {name: round(float(value), 4) for name, value in metric.compute().items()}
        {'tar@3e-01': 0.6667, 'tar@1e-02': 0.6667}
    """

    higher_is_better = True
    columns = {"scores": torch.float64, "labels": torch.int64, "index": torch.int64}

    def __init__(
        self,
        targets: Sequence[float] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
        method: str = "nearest",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.targets = tuple(checked_targets(targets, method).tolist())
        self.method = method
        self.names = [f"tar@{far:.0e}" for far in self.targets]
        if twice := [name for name in self.names if self.names.count(name) > 1]:
            raise ValueError(
                f"targets={self.targets} gives {twice[0]!r} more than once; two metrics can tell such targets apart"
            )

    def update(self, scores: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        """Add pairs, possibly none.

        Args:
            scores: (B,) floating point, higher = same.
            labels: (B,) bool or 0 and 1, 1 = same.
            index: (B,) whole numbers; one that comes twice, as where a sampler evens out processes, counts once.
        """
        if scores.ndim != 1 or not scores.is_floating_point():
            raise ValueError(f"scores must be (B,) floating point, got {tuple(scores.shape)} of {scores.dtype}")
        check_column("labels", labels, len(scores), flags=True)
        self.keep(scores, labels, index_or_none(index, len(scores), scores.device))

    def compute(self) -> dict[str, Tensor]:
        """``tar@1e-06`` and so on, in the order of ``targets``: 0-d float64 fractions of 1."""
        if not (table := self.table()) or not len(table[0]):
            raise ValueError("TARAtFAR has seen no pair; call update before compute")
        scores, labels, index = table
        rows, index = in_order("pairs", index, {"label": labels})
        check_finite("scores", scores[rows], where=index)
        tar, _ = tar_at_far(scores[rows], labels[rows], self.targets, self.method)
        return dict(zip(self.names, tar, strict=True))


class Rank1Identification(RowMetric):
    """Share of probes whose nearest gallery entry has their identity, per group of probes.

    Embeddings are kept as they come. Gallery entries are compared in ascending ``index``, so that the first of equally
    near ones does not depend on batches or processes.

    Args:
        groups: names of the groups of probes, such as distances to the camera.
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: ``groups`` is empty, has a name twice or ``"mean"``; from ``update``: shapes or types that do not
            fit; from ``compute``: an unknown group, no gallery, a group without probes, embeddings that are not finite,
            one index with two labels, or an index for some images only; from synchronising: embeddings of several sizes
            or types.

    Source:
        SCface as in DDL, arXiv 2002.03662; see :func:`~lit_methods.functional.identification.rank1_identification`.

    Example:
        >>> metric = Rank1Identification(groups=("near", "far"))
        >>> metric.update(torch.eye(2), torch.tensor([7, 8]), torch.tensor([-1, -1]))
        >>> metric.update(torch.tensor([[3.0, 1.0], [2.0, 1.0]]), torch.tensor([7, 8]), torch.tensor([0, 1]))
        >>> {name: float(value) for name, value in metric.compute().items()}
        {'near': 1.0, 'far': 0.0, 'mean': 0.5}
    """

    higher_is_better = True
    columns = {"embeddings": None, "labels": torch.int64, "group": torch.int64, "index": torch.int64}

    def __init__(self, groups: Sequence[str] = ("d1", "d2", "d3"), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.groups = (groups,) if isinstance(groups, str) else tuple(groups)
        if not self.groups or len({*self.groups, "mean"}) <= len(self.groups):
            raise ValueError(f'groups must be names that differ, at least one and none "mean", got {groups!r}')

    def update(self, embeddings: Tensor, labels: Tensor, group: Tensor, index: Tensor | None = None) -> None:
        """Add images, possibly none.

        Args:
            embeddings: (B, D) floating point, of any length.
            labels: (B,) whole numbers, identities.
            group: (B,) whole numbers, -1 for the gallery, g >= 0 for probes of ``groups[g]``.
            index: (B,) whole numbers, unique within the gallery and within each group; one that comes twice, as where a
                sampler evens out processes, counts once. ``None`` is the order of arrival, that of the first process
                before that of the second.
        """
        _check_embeddings("embeddings", embeddings)
        for name, part in (("labels", labels), ("group", group)):
            check_column(name, part, len(embeddings))
        self.keep(embeddings, labels, group, index_or_none(index, len(embeddings), embeddings.device))

    def compute(self) -> dict[str, Tensor]:
        """One value for each of ``groups`` and their ``mean``: 0-d float64 fractions of 1."""
        if not (table := self.table()) or not len(table[0]):
            raise ValueError(
                "Rank1Identification has seen no image; call update with gallery and probes before compute"
            )
        embeddings, labels, group, index = table
        if (unknown := (group < -1) | (group >= len(self.groups))).any():
            raise ValueError(
                f"group={int(group[unknown][0])} is not one of -1 (gallery) to {len(self.groups) - 1}, the last of "
                f"groups={self.groups}"
            )
        parts = []
        for g, name in enumerate(("gallery", *self.groups), start=-1):
            rows, shown = in_order(
                f"images of {name}", index, {"label": labels}, (group == g).nonzero().squeeze(1)
            )  # fmt: skip
            if not len(rows):
                raise ValueError(
                    f"Rank1Identification has seen no image of {name}; update it with the gallery (group -1) and with "
                    f"probes of each of {self.groups} before compute"
                )
            check_finite(f"embeddings of {name}", embeddings[rows], where=shown)
            parts.append((embeddings[rows], labels[rows]))
        gallery, *probes = parts
        found = torch.stack([rank1_identification(*gallery, *part) for part in probes])
        return dict(zip(self.groups, found, strict=True)) | {"mean": found.mean()}


def _check_embeddings(name: str, embeddings: Tensor) -> None:
    if embeddings.ndim != 2 or embeddings.dtype not in DTYPES:
        raise ValueError(f"{name} must be (B, D) floating point, got {tuple(embeddings.shape)} of {embeddings.dtype}")
