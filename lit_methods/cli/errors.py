"""One line for what the code complained of: the argument that an exception speaks of, weights that do not fit."""

import re

from lit_methods.cli.classes import BASES
from lit_methods.cli.given import Given, as_option
from lit_methods.functional.suggestions import shorten


def root(error: BaseException) -> BaseException:
    """The innermost cause of an exception: jsonargparse wraps what constructors raise in a ``ValueError``."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def blame(error: BaseException, given: list[Given]) -> str:
    """A constructor's own complaint, with the option of the argument it speaks of, where it names one.

    Indented lines that follow the complaint are a table (weights that do not fit) and stay as they are.

    Example:
        >>> blame(ValueError("lr must be positive, got -1.0"), [Given("model.lr", "-1"), Given("data.root", "x")])
        "model.lr='-1': lr must be positive, got -1.0"
        >>> blame(ValueError("root='x' does not exist"), [Given("data.root", "x")])
        "data.root='x' does not exist"
    """
    complaint, indent, table = str(root(error)).partition("\n  ")
    return _with_key(complaint, error, given) + indent + table


def _with_key(complaint: str, error: BaseException, given: list[Given]) -> str:
    text = " ".join(complaint.split()) or type(root(error)).__name__
    pairs = [pair for pair in given if pair.value is not None]
    if any(text.startswith(f"{pair.key}=") for pair in pairs):
        return text
    named = [pair for pair in pairs if _speaks_of(text, pair)] or [
        pair for pair in pairs if isinstance(pair.value, str) and f"{pair.value!r}" in text
    ]
    if not named:
        maker = _maker(root(error))
        return f"{maker}: {text}" if maker else text
    # rather the argument that the text begins with than the last one it mentions, rather one with a value in the text
    named.sort(key=lambda pair: (text.startswith(pair.leaf), str(pair.value) in text))
    option = as_option(named[-1], given)
    parent, _, _ = option.key.rpartition(".")
    if parent and text.startswith(option.shown.removeprefix(f"{parent}.")):  # root='x' ... becomes data.root='x' ...
        return f"{parent}.{text}"
    return f"{option.shown}: {text}"


def _maker(error: BaseException) -> str | None:
    """The method, datamodule or callback whose constructor an exception came out of."""
    maker, trace = None, error.__traceback__
    while trace is not None:
        built = trace.tb_frame.f_locals.get("self")
        if trace.tb_frame.f_code.co_name == "__init__" and isinstance(built, tuple(BASES.values())):
            maker = type(built).__name__
        trace = trace.tb_next
    return maker


def _speaks_of(text: str, pair: Given) -> bool:
    if pair.key.startswith("data.") and pair.plain_key.count(".") > 1:
        return False  # a name in a mapping, such as that of a set, is no argument; its value may still be found
    leaf = re.escape(pair.leaf)
    if not re.search(rf"\b{leaf}\b", text):
        return False  # a word such as "name" alone proves nothing: its value, quotes or the first place do
    return str(pair.value) in text or re.search(rf"^{leaf}\b|\b{leaf}=|[`'\"]{leaf}[`'\"]", text) is not None


def mismatch(error: BaseException, ckpt_path: str | None) -> str | None:
    """What to say when weights do not fit the network; ``None`` for any other error."""
    text = str(error)
    if not text.startswith("Error(s) in loading state_dict"):
        return None
    parts = []
    for title, pattern in (
        ("missing", r"Missing key\(s\)[^:]*: (.*?)\. *$"),
        ("unexpected", r"Unexpected key\(s\)[^:]*: (.*?)\. *$"),
    ):
        if match := re.search(pattern, text, re.MULTILINE):
            names = re.findall(r'"([^"]+)"', match[1])
            parts.append(f"{title} {shorten(names, 3)}")
    if sizes := re.findall(r"size mismatch for ([^:\s]+)", text):
        parts.append(f"other shape {shorten(sizes, 3)}")
    where = f"ckpt_path={ckpt_path!r} holds" if ckpt_path else "the weights are of"
    return f"{where} another network than the recipe's: {'; '.join(parts)}"
