"""Lists of rates in the short form of the papers' command lines, and channel counts that hardware likes."""

import math
import re
from collections.abc import Sequence
from itertools import groupby

import numpy as np

_TERM = re.compile(r"\[\s*([+-]?\d*\.\d*)\s*\](?:\s*\*\s*(\d+))?")


def parse_rates(text: str) -> list[float]:
    """The rates that a string such as ``"[0.1]+[0.60]*35+[0.0]*2"`` stands for, whatever their range.

    Args:
        text: terms ``[number]`` or ``[number]*times`` joined by ``+``; every number has a decimal point.

    Raises:
        ValueError: a term has another form.

    Source:
        Command lines of HRank (arXiv 2002.10179) and FilterSketch (arXiv 2001.08514).

    Example:
        >>> parse_rates("[0.1]+[0.60]*3")
        [0.1, 0.6, 0.6, 0.6]
    """
    rates: list[float] = []
    for term in text.split("+"):
        match = _TERM.fullmatch(term.strip())
        if match is None or match[1].strip("+-") == ".":
            raise ValueError(
                f"rates {text!r}: cannot read the term {term.strip()!r}; write [0.5] or [0.5]*3, joined by +, "
                "each number with a decimal point"
            )
        rates += [float(match[1])] * int(match[2] or 1)
    return rates


def format_rates(rates: Sequence[float]) -> str:
    """The short form of a list of rates; ``parse_rates`` gives the same numbers back.

    Args:
        rates: numbers that are not negative.

    Example:
        >>> format_rates([0.1, 0.6, 0.6, 0.6, 1.0])
        '[0.1]+[0.6]*3+[1.0]'
    """
    runs = [(rate, len(list(run))) for rate, run in groupby(map(float, rates))]
    return "+".join(f"[{_decimal(rate)}]" + (f"*{times}" if times > 1 else "") for rate, times in runs)


def _decimal(rate: float) -> str:
    return np.format_float_positional(rate, trim="0")  # as few digits as tell it apart, never an exponent


def round_rate_up(rate: float) -> float:
    """To four decimals, never below ``rate``: what a cut-off product with a width takes for the whole number meant.

    Args:
        rate: in [0, 1].

    Example:
        >>> round_rate_up(1 / 12), round_rate_up(1 - 1 / 12), round_rate_up(1 - 0.7)
        (0.0834, 0.9167, 0.3)
    """
    return math.ceil(round(10_000 * rate, 6)) / 10_000


def round_up(channels: int, multiple: int, most: int) -> int:
    """The next multiple, but never more than there are.

    Args:
        channels: how many are wanted.
        multiple: of what number, at least 1, such as 8.
        most: how many there are.

    Example:
        >>> round_up(9, 8, 64), round_up(16, 8, 64), round_up(9, 8, 12)
        (16, 16, 12)
    """
    return min(most, -(-channels // multiple) * multiple)
