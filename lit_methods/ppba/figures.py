"""The figures of an attack on a whole test set."""

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lit_methods.metrics.attack import (
    AttackSuccessRate,
    ImageCount,
    MeanDistance,
    MeanQueries,
    MedianQueries,
    SuccessAUC,
)
from lit_methods.ppba.account import AttackResult


class AttackFigures(nn.Module):
    """Metrics by name, updated from results; images that were wrong from the start count for ``top1`` alone.

    Args:
        max_queries: budget of the attack.
        fixed: have figures of a second attack, with names that end in ``_fixed``.

    Example:
        >>> sorted(AttackFigures(100).metrics)[:4]
        ['adversarial_top1', 'attacked', 'auc', 'failed']
    """

    def __init__(self, max_queries: int, fixed: bool = False) -> None:
        metrics: dict[str, Metric] = {
            "success_rate": AttackSuccessRate(max_queries),
            "success_rate_uint8": AttackSuccessRate(max_queries),
            "mean_queries": MeanQueries("success", max_queries),
            "median_queries": MedianQueries(max_queries),
            "mean_queries_all": MeanQueries("all", max_queries),
            "auc": SuccessAUC(max_queries),
            "l2": MeanDistance(),
            "top1": AttackSuccessRate(max_queries),  # a share of images, too
            "adversarial_top1": AttackSuccessRate(max_queries),
            "attacked": ImageCount(),
            "skipped": ImageCount(),
            "failed": ImageCount(),
        }
        if fixed:
            metrics["success_rate_fixed"] = AttackSuccessRate(max_queries)
            metrics["mean_queries_fixed"] = MeanQueries("success", max_queries)
        super().__init__()
        self._metrics = nn.ModuleDict(metrics)

    @property
    def metrics(self) -> dict[str, Metric]:
        """Name -> metric."""
        return dict(self._metrics.items())  # type: ignore[arg-type]

    def update(self, result: AttackResult, labels: Tensor) -> None:
        """Update with the results of a batch; ``labels`` (N,) are the true classes."""
        metrics, tried = self.metrics, ~result.skipped
        for name in ("success_rate", "mean_queries", "median_queries", "mean_queries_all", "auc"):
            metrics[name].update(result.success[tried], result.queries[tried])
        metrics["success_rate_uint8"].update(result.success_uint8[tried], result.queries[tried])
        metrics["l2"].update(result.l2[result.success])
        right = tried & ~result.failed  # without an answer nothing was right
        free = torch.zeros_like(result.queries)
        metrics["top1"].update(right, free)
        still = torch.where(result.preds >= 0, result.preds == labels, ~result.success)
        metrics["adversarial_top1"].update(right & still, free)
        for name, which in (("attacked", tried), ("skipped", result.skipped), ("failed", result.failed)):
            metrics[name].update(which)

    def update_fixed(self, result: AttackResult) -> None:
        """Update with the results of the second attack."""
        metrics = self.metrics
        for name in ("success_rate_fixed", "mean_queries_fixed"):
            metrics[name].update(result.success[~result.skipped], result.queries[~result.skipped])
