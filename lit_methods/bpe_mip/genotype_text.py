"""Genotypes as people write them down: JSON, or the text form of DARTS. Nothing in them is ever run."""

import ast
import json
import re
from typing import Any

FORM = (
    "a genotype has 'normal' and 'reduce', each a list of 4 nodes, each node a list of up to 5 pairs such as "
    '["sep_conv_3x3", 0]: an operation and the state that it reads'
)


def genotype_dicts(text: str) -> list[Any]:
    """What stands in a text, before it is checked: dictionaries with ``normal`` and ``reduce``.

    Args:
        text: JSON with one genotype, a list of them, or either under the key ``genotype``; or the form of DARTS,
            ``Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), reduce=[...], ...)``, once or
            several times, also as ``NAME = Genotype(...)``. Two pairs after one another belong to one node there.

    Returns:
        One entry per genotype, at least one.

    Raises:
        ValueError: it is neither.

    Example:
        >>> genotype_dicts('{"normal": [[], [], [], []], "reduce": [[], [], [], []]}')
        [{'normal': [[], [], [], []], 'reduce': [[], [], [], []]}]
        >>> genotype_dicts("A = Genotype(normal=[('skip_connect', 0), ('skip_connect', 1)], reduce=[])")
        [{'normal': [[('skip_connect', 0), ('skip_connect', 1)]], 'reduce': []}]
    """
    try:
        found = _calls(text) if _is_python(text) else _json(text)
    except (SyntaxError, RecursionError, MemoryError, json.JSONDecodeError) as error:
        raise ValueError(f"no genotype can be read here: {str(error) or type(error).__name__}; {FORM}") from error
    if not found:
        raise ValueError(f"there is no genotype here; {FORM}")
    return found


def _is_python(text: str) -> bool:
    """``[Genotype(...)]`` begins like JSON; JSON may have the word in a string."""
    return "Genotype(" in re.sub(r'"[^"]*"', "", text)


def _json(text: str) -> list[Any]:
    found = json.loads(text)
    if isinstance(found, dict) and "genotype" in found:
        found = found["genotype"]
    items = found if isinstance(found, list) else [found]
    return [item["genotype"] if isinstance(item, dict) and "genotype" in item else item for item in items]


def _calls(text: str) -> list[Any]:
    found: list[Any] = []
    for line in ast.parse(text.strip()).body:
        value = line.value if isinstance(line, ast.Expr | ast.Assign) else line
        calls = value.elts if isinstance(value, ast.List | ast.Tuple) else [value]
        found.extend(_call(call) for call in calls)
    return found


def _call(node: ast.AST) -> dict[str, Any]:
    """One ``Genotype(...)``; of all that Python allows here, literals and ``range`` of literals."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Genotype"):
        raise ValueError(f"only Genotype(...) can be read here, not {ast.unparse(node)[:60]!r}; {FORM}")
    if node.args or any(word.arg is None for word in node.keywords):
        raise ValueError("Genotype(...) must name its arguments: write normal=[...], reduce=[...]")
    words = {str(word.arg): _literal(word.value) for word in node.keywords}
    for name in ("normal_concat", "reduce_concat"):
        if name in words and words[name] != [2, 3, 4, 5]:
            raise ValueError(f"{name}={words[name]} is not in this space; both cells put out the states 2, 3, 4, 5")
    return {name: _nodes(words[name]) for name in ("normal", "reduce") if name in words}


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range" and not node.keywords:
        ends = [_literal(arg) for arg in node.args]
        if 1 <= len(ends) <= 2 and all(type(end) is int and 0 <= end < 100 for end in ends):
            return list(range(*ends))
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError) as error:
        raise ValueError(f"Genotype(...) may have only literals, not {ast.unparse(node)[:60]!r}; {FORM}") from error
    return list(value) if isinstance(value, tuple) else value


def _nodes(pairs: Any) -> Any:
    """Two flat pairs make a node; what has nodes already stays."""
    flat = isinstance(pairs, list) and pairs and all(isinstance(p, tuple | list) and p for p in pairs)
    if flat and all(isinstance(p[0], str) for p in pairs):
        return [pairs[i : i + 2] for i in range(0, len(pairs), 2)]
    return pairs
