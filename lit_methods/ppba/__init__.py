"""PPBA: attack a classifier through its scores, with few queries (arXiv 2005.03837).

The names below are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_methods.ppba.attack import Attack, AttackResult
    from lit_methods.ppba.baselines import NES, Bandits, SimBA
    from lit_methods.ppba.black_box import BlackBox, ModelBlackBox
    from lit_methods.ppba.functional import (
        LowFrequencyProjection,
        MoveProbability,
        clip_l2,
        dct_basis,
        label_score_loss,
        low_frequency_indices,
        margin_loss,
        success_curve,
    )
    from lit_methods.ppba.ledger import Ledger
    from lit_methods.ppba.random_walk import PPBAAttack
    from lit_methods.ppba.service import HTTPLabelService

_HOME = {
    "Attack": "attack",
    "AttackResult": "attack",
    "Bandits": "baselines",
    "BlackBox": "black_box",
    "HTTPLabelService": "service",
    "Ledger": "ledger",
    "LowFrequencyProjection": "functional",
    "ModelBlackBox": "black_box",
    "MoveProbability": "functional",
    "NES": "baselines",
    "PPBAAttack": "random_walk",
    "SimBA": "baselines",
    "clip_l2": "functional",
    "dct_basis": "functional",
    "label_score_loss": "functional",
    "low_frequency_indices": "functional",
    "margin_loss": "functional",
    "success_curve": "functional",
}

__all__ = [
    "NES",
    "Attack",
    "AttackResult",
    "Bandits",
    "BlackBox",
    "HTTPLabelService",
    "Ledger",
    "LowFrequencyProjection",
    "ModelBlackBox",
    "MoveProbability",
    "PPBAAttack",
    "SimBA",
    "clip_l2",
    "dct_basis",
    "label_score_loss",
    "low_frequency_indices",
    "margin_loss",
    "success_curve",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"lit_methods.ppba.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
