"""PPBA: attack a classifier through its scores, with few queries (arXiv 2005.03837).

The names below are imported when they are first used.
"""

from typing import TYPE_CHECKING

from lit_methods.functional.lazy import lazy_names

if TYPE_CHECKING:
    from lit_methods.ppba.attack import Attack as Attack, AttackResult as AttackResult
    from lit_methods.ppba.baselines import NES as NES, Bandits as Bandits, SimBA as SimBA
    from lit_methods.ppba.black_box import BlackBox as BlackBox, ModelBlackBox as ModelBlackBox
    from lit_methods.ppba.functional import (
        LowFrequencyProjection as LowFrequencyProjection,
        MoveProbability as MoveProbability,
        clip_l2 as clip_l2,
        dct_basis as dct_basis,
        label_score_loss as label_score_loss,
        low_frequency_indices as low_frequency_indices,
        margin_loss as margin_loss,
        success_curve as success_curve,
    )
    from lit_methods.ppba.ledger import Ledger as Ledger
    from lit_methods.ppba.random_walk import PPBAAttack as PPBAAttack
    from lit_methods.ppba.service import HTTPLabelService as HTTPLabelService

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
