"""The first predictions in a few lines: what stands in ``predictions.csv``, for somebody at a terminal."""

from typing import Any

from lit_methods.cli.card import show

_MOST = 10
_CELLS = 3  # of a row without a name and a score


def preview(rows: list[dict[str, Any]]) -> list[str]:
    """A line per row, ten at most, and how many there are besides.

    Args:
        rows: those of ``predictions.csv``; ``file`` is empty where a result has none, and its number is shown.

    Example:
        >>> preview([{"file": "a.png", "label_1": 3, "name_1": "cat", "score_1": 0.812, "label_2": 1}])
        ['a.png  cat 0.81']
        >>> preview([{"file": "", "queries": 120, "boxes": "[[1, 2]]", "success": True}])
        ['0  queries 120, success True']
    """
    shown = [(row.get("file") or str(number), _answer(row)) for number, row in enumerate(rows[:_MOST])]
    width = max((len(name) for name, _ in shown), default=0)
    lines = [f"{name:{width}}  {answer}".rstrip() for name, answer in shown]
    return [*lines, f"... and {len(rows) - _MOST} more in predictions.csv"] if len(rows) > _MOST else lines


def _answer(row: dict[str, Any]) -> str:
    label = next((row[key] for key in ("name_1", "name", "label_1", "label") if key in row), None)
    score = next((row[key] for key in ("score_1", "score") if key in row), None)
    if label is not None and isinstance(score, int | float):
        return f"{label} {score:.2f}"
    told = [key for key in row if key not in ("file", "id") and not _has_name(key, row)]
    cells = [f"{key} {show(row[key])}" for key in told if not str(row[key]).startswith(("[", "{"))]  # lists, as JSON
    return ", ".join(cells[:_CELLS])


def _has_name(key: str, row: dict[str, Any]) -> bool:
    """Whether a label's name stands in the row as well."""
    return "label" in key and key.replace("label", "name") in row
