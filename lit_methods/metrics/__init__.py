"""Metrics as torchmetrics classes: they add up over batches and over processes."""

from lit_methods.metrics.attack import AttackSuccessRate, MeanQueries, MedianQueries, SuccessAUC
from lit_methods.metrics.pruning import RankScore

__all__ = ["AttackSuccessRate", "MeanQueries", "MedianQueries", "RankScore", "SuccessAUC"]
