"""``--model.help`` and its siblings without the name of a class: of the class that was given, or which there are."""

import inspect

from lit_methods.cli.classes import BASES, offered
from lit_methods.cli.given import Given


def asked_for(given: list[Given]) -> str | None:
    """The key whose help is wanted, such as ``"model"``, where ``--model.help`` names no class.

    Example:
        >>> asked_for([Given("model", "HRank"), Given("model.help", None)]), asked_for([Given("model.help", "HRank")])
        ('model', None)
    """
    return next((key for key in BASES if Given(f"{key}.help", None) in given), None)


def list_classes(key: str) -> str:
    """One line per class of this project that may stand under a key: its name, and what its docstring begins with."""
    classes = offered(key)
    width = max(map(len, classes))
    return "\n".join(f"{name:{width}}  {_first_line(found)}".rstrip() for name, found in classes.items())


def _first_line(found: type) -> str:
    return (inspect.getdoc(found) or "").partition("\n")[0]
