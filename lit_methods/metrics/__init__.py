"""Metrics as torchmetrics classes: they add up over batches and over processes."""

from lit_methods.metrics.attack import (
    AttackSuccessRate,
    ImageCount,
    MeanDistance,
    MeanQueries,
    MedianQueries,
    SuccessAUC,
)
from lit_methods.metrics.pruning import RankScore
from lit_methods.metrics.reid import ReIDRanking

__all__ = [
    "AttackSuccessRate",
    "ImageCount",
    "MeanDistance",
    "MeanQueries",
    "MedianQueries",
    "RankScore",
    "ReIDRanking",
    "SuccessAUC",
]
