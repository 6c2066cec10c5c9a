"""Callbacks of the collection: pruning, reports and loggers.

The names below are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from callbacks.attack_logger import AttackLogger
    from callbacks.complexity_logger import ComplexityLogger
    from callbacks.filter_sketch_pruning import FilterSketchPruning
    from callbacks.hrank_pruning import HRankPruning
    from callbacks.interruption import Interruption
    from callbacks.nan_guard import NaNGuard
    from callbacks.prediction_logger import PredictionLogger
    from callbacks.report import RunReport

__all__ = [
    "AttackLogger",
    "ComplexityLogger",
    "FilterSketchPruning",
    "HRankPruning",
    "Interruption",
    "NaNGuard",
    "PredictionLogger",
    "RunReport",
]

_HOME = {
    "AttackLogger": "callbacks.attack_logger",
    "ComplexityLogger": "callbacks.complexity_logger",
    "FilterSketchPruning": "callbacks.filter_sketch_pruning",
    "HRankPruning": "callbacks.hrank_pruning",
    "Interruption": "callbacks.interruption",
    "NaNGuard": "callbacks.nan_guard",
    "PredictionLogger": "callbacks.prediction_logger",
    "RunReport": "callbacks.report",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
