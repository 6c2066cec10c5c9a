"""Constructor arguments that are out of range, refused in one line that names argument and value."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

Rules = Mapping[str, tuple[Callable[[Any], bool], str]]


def check_ranges(values: Mapping[str, Any], rules: Rules) -> None:
    """Refuse the first value whose rule does not hold.

    Args:
        values: argument to value; those without a rule are not looked at.
        rules: argument to whether a value will do, and what it must be.

    Raises:
        ValueError: names argument, value and rule.

    Example:
        >>> check_ranges({"lr": -1}, {"lr": (lambda v: v > 0, "must be positive")})
        Traceback (most recent call last):
        ValueError: lr=-1 must be positive
    """
    for name, (holds, text) in rules.items():
        if not holds(values[name]):
            raise ValueError(f"{name}={values[name]} {text}")


def check_choices(values: Mapping[str, Any], choices: Mapping[str, Collection[str]]) -> None:
    """Refuse the first value that is none of its choices.

    Args:
        values: argument to value.
        choices: argument to what it may be.

    Raises:
        ValueError: names argument, value and choices.

    Example:
        >>> check_choices({"mode": "mean"}, {"mode": ("min", "max")})
        Traceback (most recent call last):
        ValueError: mode='mean' must be one of min, max
    """
    for name, known in choices.items():
        if values[name] not in known:
            raise ValueError(f"{name}={values[name]!r} must be one of {', '.join(known)}")
