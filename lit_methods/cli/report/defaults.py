"""The defaults of this project's classes, read from their sources: importing them would import torch."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_PACKAGES = ("lit_methods", "datamodules", "callbacks")


def defaults_of(class_path: str) -> dict[str, Any]:
    """Argument to default of a class; empty for one that is not of this project.

    Arguments behind ``**kwargs`` are those of the base classes. A default that is no literal is left out.

    Args:
        class_path: dotted, or a short name.

    Example:
        >>> found = defaults_of("lit_methods.HRank")
        >>> found["backbone"], found["finetune_lr"] is None, defaults_of("torch.nn.Linear")
        ('resnet56', True, {})
    """
    package, _, name = class_path.rpartition(".")
    if package and package.partition(".")[0] not in _PACKAGES:
        return {}
    return dict(_defaults(name))


@cache
def _defaults(name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    node = _definition(name)
    if node is None:
        return found
    own = next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
    if own is None or own.args.kwarg:
        for base in node.bases:
            found = _defaults(ast.unparse(base).rpartition(".")[2]) | found
    return found | dict(_literals(own.args)) if own else found


def _literals(arguments: ast.arguments) -> Iterator[tuple[str, Any]]:
    named = [*arguments.posonlyargs, *arguments.args]
    pairs = [*zip(named[len(named) - len(arguments.defaults) :], arguments.defaults, strict=True)]
    pairs += [(arg, value) for arg, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if value]
    for argument, node in pairs:
        try:
            value = ast.literal_eval(node)
        except ValueError:
            continue
        yield argument.arg, list(value) if isinstance(value, tuple) else value


@cache
def _files() -> dict[str, Path]:
    """Class to the file that defines it."""
    files: dict[str, Path] = {}
    for package in _PACKAGES:
        spec = find_spec(package)
        for path in sorted(Path(spec.origin).parent.rglob("*.py")) if spec and spec.origin else ():
            for name in re.findall(r"^class (\w+)", path.read_text("utf-8"), re.MULTILINE):
                files.setdefault(name, path)
    return files


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def _definition(name: str) -> ast.ClassDef | None:
    path = _files().get(name)
    nodes = _tree(path).body if path else []
    return next((node for node in nodes if isinstance(node, ast.ClassDef) and node.name == name), None)
