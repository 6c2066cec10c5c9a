"""What lies between a command and the Trainer; knows no method.

This module, :mod:`.recipes` and :mod:`.usage` need the standard library alone, so that ``--list``, ``--help`` and a
mistyped recipe are answered before torch is imported. Everything else is imported inside :func:`main`.
"""

import gc
import os
import signal
import sys

from lit_methods.cli.recipes import find_recipes, list_recipes, no_such_recipe
from lit_methods.cli.usage import usage

__all__ = ["main"]


def main(entry: str, argv: list[str] | None = None) -> int:
    """Run one entry: ``python -m lit_methods.<entry> [RECIPE] [--config F]... [dotted overrides]``.

    Args:
        entry: ``"fit"``, ``"validate"``, ``"test"``, ``"predict"``, ``"export"``, ``"doctor"``, ``"dashboard"`` or
            ``"report"``; the last two have words of their own (:mod:`.dashboard`, :mod:`.report`).
        argv: the words after the command; ``None`` takes ``sys.argv[1:]``, which stays as it is (ddp starts the other
            processes from it).

    Returns:
        The exit code: 0; 1 for pictures that could not be read, a full disk, checks that failed, or an export that
        differs; 2 for a mistake in what the user gave, after one line on stderr; 130 and 143 after Ctrl-C and SIGTERM.

    Raises:
        Exception: what the method's own code raises once it is running, with its traceback (Python's exit code 1).
    """
    alone = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    if "-h" in argv or "--help" in argv:
        print(usage(entry))
        return 0
    if entry == "dashboard":
        from lit_methods.cli.dashboard import dashboard

        return dashboard(argv)
    if entry == "report":
        from lit_methods.cli.report import report

        return report(argv)
    if (not argv and entry != "doctor") or "--list" in argv:
        print(list_recipes())
        return 0
    if argv and not argv[0].startswith("-"):
        recipes = find_recipes()
        if argv[0] not in recipes:
            print(f"error: {no_such_recipe(argv[0], recipes)}", file=sys.stderr)
            return 2
        argv[:1] = ["--config", str(recipes[argv[0]])]

    if alone:  # the imports take seconds, and would be shown as a traceback
        signal.signal(signal.SIGINT, _leave)
        gc.disable()  # a quarter of these seconds: what is imported stays, and need not be searched for garbage
    if entry == "doctor":
        from lit_methods.cli.doctor import examine

        if alone:
            gc.enable()
        return examine(argv)
    from lit_methods.cli.runtime import run

    if alone:
        gc.enable()
    code = run(entry, argv)
    if alone and code > 128:  # a signal ended the run: another one must not change how the process ends
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    return code


def _leave(signum: int, frame: object) -> None:
    os.write(2, b"stopped by SIGINT\n")
    os._exit(128 + signum)
