"""Metrics as torchmetrics classes: they add up over batches and over processes."""

from lit_methods.metrics.attack import (
    AttackSuccessRate,
    ImageCount,
    MeanDistance,
    MeanQueries,
    MedianQueries,
    SuccessAUC,
)
from lit_methods.metrics.face_detection import WIDERFaceAP
from lit_methods.metrics.fddb import FDDBScore
from lit_methods.metrics.pruning import RankScore
from lit_methods.metrics.referring import GroundingAccuracy, InconsistencyError, MaskIoU, MaskPrecision
from lit_methods.metrics.reid import ReIDRanking
from lit_methods.metrics.tracking import OPENormPrecision, OPEPrecision, OPESuccess, VOTReset
from lit_methods.metrics.verification import PairVerificationAccuracy, Rank1Identification, TARAtFAR

__all__ = [
    "AttackSuccessRate",
    "FDDBScore",
    "GroundingAccuracy",
    "ImageCount",
    "InconsistencyError",
    "MaskIoU",
    "MaskPrecision",
    "MeanDistance",
    "MeanQueries",
    "MedianQueries",
    "OPENormPrecision",
    "OPEPrecision",
    "OPESuccess",
    "PairVerificationAccuracy",
    "Rank1Identification",
    "RankScore",
    "ReIDRanking",
    "SuccessAUC",
    "TARAtFAR",
    "VOTReset",
    "WIDERFaceAP",
]
