"""Lists of rates in the short form of the papers' command lines."""

import re

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
