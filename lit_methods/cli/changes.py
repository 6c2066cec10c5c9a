"""How a run differs from its recipe, and a run that goes on from what it was."""

import re
import shlex
from pathlib import Path
from typing import Any

from lit_methods.cli.given import Given, last
from lit_methods.functional.suggestions import shorten

_ELSEWHERE = ("run_dir", "ckpt_path", "logger", "input")  # told in lines of their own, or no part of the recipe
_DATA = (("data", "data.class_path"), ("data.name", "data.init_args.name"))
_COMPARED = ("model.", "data.", "trainer.callbacks")
_LONGEST = 40


def command_line_changes(argv: list[str], recipe: str) -> str:
    """What the command line says beside the recipe and the places where a run reads and writes, for a shell.

    Args:
        argv: the words after the command, the recipe's name replaced by ``--config FILE``.
        recipe: its name.

    Example:
        >>> command_line_changes(["--config", "toy.yaml", "--model.lr", "0.2", "--run_dir=x", "--config=b.yaml"], "toy")
        '--model.lr 0.2 --config=b.yaml'
    """
    options: list[list[str]] = []
    for word in argv:
        if word.startswith("--") or not options:
            options.append([])
        options[-1].append(word)
    told = []
    for words in options:
        name, _, value = words[0].removeprefix("--").partition("=")
        own = name == "config" and Path(value or words[-1]).stem == recipe
        if name not in _ELSEWHERE and not own:
            told.append(shlex.join(words))
    return " ".join(told)


def is_outdated(given: list[Given], name: str) -> bool:
    """Whether a recipe's ``description`` or ``paper`` speaks of other data than what was given after it.

    Args:
        given: everything the user gave.
        name: the key.

    Example:
        >>> recipe = [Given("description", "digits", "a.yaml"), Given("data.init_args.name", "digits", "a.yaml")]
        >>> [is_outdated([*recipe, Given("data.name", name)], "description") for name in ("digits", "cifar10")]
        [False, True]
    """
    file = next((p.file for p in reversed(given) if p.key == name or p.key.startswith(f"{name}.")), None)
    of_file = [pair for pair in given if pair.file == file]
    if file is None or all(last(of_file, *keys) is None for keys in _DATA):
        return False
    return not all(equal(keys[-1], last(of_file, *keys), last(given, *keys)) for keys in _DATA)


def equal(key: str, told: Any, used: Any) -> bool:
    """Whether two values are one; a class may be spelt by its short name, or by another path into the same package.

    Args:
        key: ends with ``class_path`` where the values are classes.
        told: one value.
        used: the other.

    Example:
        >>> equal("model.class_path", "lit_methods.HRank", "HRank"), equal("model.lr", 0.1, 0.2)
        (True, False)
    """
    if told == used or not key.endswith("class_path"):
        return bool(told == used)
    (home, _, name), (package, _, bare) = str(told).rpartition("."), str(used).rpartition(".")
    return name == bare and (not home or not package or home.partition(".")[0] == package.partition(".")[0])


def config_changes(old: list[Given], new: list[Given]) -> str:
    """Where the method, its data or its callbacks are other ones in a second configuration; empty where nowhere.

    Args:
        old: the pairs of the first.
        new: those of the second.

    Example:
        >>> config_changes([Given("model.init_args.lr", 0.1)], [Given("model.init_args.lr", 0.2)])
        'model.lr 0.1 -> 0.2'
    """
    before, after = values(old), values(new)
    if not before:  # damaged, say
        return ""
    keys = [key for key in dict.fromkeys([*before, *after]) if not equal(key, before.get(key), after.get(key))]
    others = [f"{key.removesuffix('.class_path')}." for key in keys if key.endswith(".class_path")]
    lines = [
        f"{Given(key, None).plain_key} {short(before.get(key))} -> {short(after.get(key))}"
        for key in keys  # of another class the arguments need not be told
        if not any(key.startswith(other) and key != f"{other}class_path" for other in others)
    ]
    return shorten(lines)


def values(pairs: list[Given], compared: tuple[str, ...] = _COMPARED) -> dict[str, Any]:
    """Key to value, a callback's under the name of its class: one more in the list does not rename the others.

    Args:
        pairs: of a configuration.
        compared: how the keys begin that are wanted.

    Example:
        >>> from lit_methods.cli.given import flatten
        >>> callback = {"class_path": "callbacks.HRankPruning", "init_args": {"at_epoch": 8}}
        >>> list(values(flatten({"trainer": {"callbacks": [callback]}})))[1:]
        ['trainer.callbacks.HRankPruning.class_path', 'trainer.callbacks.HRankPruning.init_args',
         'trainer.callbacks.HRankPruning.init_args.at_epoch']
    """
    names: dict[str, str] = {}
    for pair in pairs:
        if item := re.fullmatch(r"(trainer\.callbacks)\[\d+\]\.class_path", pair.key):
            name = f"{item[1]}.{str(pair.value).rpartition('.')[2]}"
            same = sum(known.partition("#")[0] == name for known in names.values())
            names[pair.key.removesuffix(".class_path")] = f"{name}#{same + 1}" if same else name
    found = {}
    for pair in pairs:
        start, bracket, rest = pair.key.partition("]")
        found[names.get(start + bracket, start + bracket) + rest] = pair.value
    return {key: value for key, value in found.items() if key.startswith(compared)}


def short(value: Any) -> str:
    """A value in a line of text.

    Example:
        >>> short(None), short([0.1, 0.2])
        ('none', '[0.1, 0.2]')
    """
    text = "none" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
