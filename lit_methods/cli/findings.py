"""Findings of the doctor: a level, a topic, a line; printed as they come and counted.

The standard library alone, like :mod:`.environment`: a broken package must not keep the doctor from saying so.
"""

import os
import traceback
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from lit_methods.functional.suggestions import first_line


class Finding(NamedTuple):
    """One line of the doctor.

    Args:
        level: ``ok``; ``warning`` for what may go wrong; ``FAIL`` for what will.
        topic: what was looked at.
        text: what was found and, behind the semicolon, the cure.
    """

    level: Literal["ok", "warning", "FAIL"]
    topic: str
    text: str


class Report:
    """Prints findings as they come, and counts them."""

    def __init__(self) -> None:
        self.levels: list[str] = []

    def add(self, finding: Finding) -> None:
        """Print one line."""
        self.levels.append(finding.level)
        print(f"{finding.level:<8}{finding.topic + ':':<14}{' '.join(finding.text.split())}", flush=True)

    def ok(self, topic: str, text: str) -> None:
        """All is well."""
        self.add(Finding("ok", topic, text))

    def warn(self, topic: str, text: str) -> None:
        """Something may go wrong."""
        self.add(Finding("warning", topic, text))

    def fail(self, topic: str, text: str) -> None:
        """Something will go wrong."""
        self.add(Finding("FAIL", topic, text))

    def run(self, topic: str, check: Callable[[], Iterator[Finding]]) -> None:
        """Run one check to its end, whatever it raises."""
        try:
            for finding in check():
                self.add(finding)
        except Exception as ex:  # of a broken package, or a fault of the check
            self.fail(topic, describe(ex))

    def close(self) -> int:
        """The last line, and the exit code."""
        counts = ", ".join(f"{self.levels.count(level)} {level}" for level in ("ok", "warning", "FAIL"))
        print(f"doctor: {counts}", flush=True)
        return 1 if "FAIL" in self.levels else 0


def describe(error: BaseException) -> str:
    """An exception that nobody foresaw, on one line; its traceback goes to stderr where it is asked for."""
    if os.environ.get("LIT_METHODS_DEBUG"):
        traceback.print_exception(error)
    return f"{type(error).__name__}: {first_line(error)}; LIT_METHODS_DEBUG=1 shows where it comes from"
