"""Pure tensor code with two users or more."""

from lit_methods.functional.complexity import Complexity, count_macs, measure_complexity, measure_latency
from lit_methods.functional.feature_rank import feature_map_rank
from lit_methods.functional.modes import evaluating
from lit_methods.functional.rates import parse_rates

__all__ = [
    "Complexity",
    "count_macs",
    "evaluating",
    "feature_map_rank",
    "measure_complexity",
    "measure_latency",
    "parse_rates",
]
