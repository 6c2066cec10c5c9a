"""Small pure code with two users or more, most of it on tensors; imported when it is first used."""

from typing import TYPE_CHECKING

from lit_methods.functional.lazy import lazy_names

if TYPE_CHECKING:
    from lit_methods.functional.complexity import (
        Complexity as Complexity,
        count_macs as count_macs,
        measure_complexity as measure_complexity,
        measure_latency as measure_latency,
    )
    from lit_methods.functional.feature_rank import feature_map_rank as feature_map_rank
    from lit_methods.functional.modes import evaluating as evaluating
    from lit_methods.functional.rates import parse_rates as parse_rates

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
