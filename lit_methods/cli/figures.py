"""How figures are written, and which of the paper's stand beside them; shared by ``card.md`` and the report."""

from collections.abc import Container, Mapping
from typing import Any

CIRCUMSTANCES = ("seed", "duration_s", "versions")  # of the run itself, no figures


def show(value: Any) -> str:
    """A figure with four decimals at most; text as it is.

    Example:
        >>> show(0.98765), show(12), show(1234567.0), show("wide")
        ('0.9877', '12', '1234567', 'wide')
    """
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def published(paper: Mapping[str, Any], summary: Container[str]) -> dict[str, Any]:
    """What of a recipe's ``paper`` are figures that stand beside the run's; the rest is text.

    Args:
        paper: as the recipe has it.
        summary: the run's keys.

    Example:
        >>> published({"test/top1": 0.93, "source": "HRank, CVPR 2020", "seeds": 3}, {"seeds": 1})
        {'test/top1': 0.93, 'seeds': 3}
    """
    return {key: value for key, value in paper.items() if key in summary or "/" in key}
