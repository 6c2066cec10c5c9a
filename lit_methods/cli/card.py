"""What a run leaves for people and programs: ``summary.json``, ``card.md`` and the closing table."""

import json
import math
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lit_methods.cli.figures import CIRCUMSTANCES, published as published_in, show as show
from lit_methods.cli.run_directory import command_for

Summary = dict[str, float | int | str | list]

_PACKAGES = ("lit-methods", "torch", "torchvision", "lightning", "torchmetrics", "numpy")


def plain(value: Any) -> Any:
    """Tensors and NumPy scalars as Python values; what JSON has no number for (NaN, infinity) as text.

    Example:
        >>> plain(torch.tensor([1, 2])), plain(float("nan"))
        ([1, 2], 'nan')
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, int | float | str | list | bool) else str(value)


def gather(metrics: Mapping[str, Any], parts: Iterable[Any]) -> Summary:
    """Logged values and what modules, data and callbacks add through ``summary()``; the latter win.

    Args:
        metrics: log key to value.
        parts: anything; those without ``summary`` are passed over.
    """
    summary = {key: plain(value) for key, value in metrics.items()}
    for part in parts:
        if callable(getattr(part, "summary", None)):
            summary |= {key: plain(value) for key, value in part.summary().items()}
    return summary


def versions() -> list[str]:
    """``"package version"`` of what a run's figures depend on."""
    found = [f"python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:  # used from a source tree
            continue
    return found


def write_summary(run_dir: Path, summary: Summary, keep: bool = False) -> None:
    """Write ``summary.json``.

    Args:
        run_dir: where.
        summary: flat.
        keep: entries of an existing file stay unless given anew (an evaluation in the directory of its run);
            what describes the run itself stays in any case.
    """
    path = run_dir / "summary.json"
    if keep and path.is_file():
        old = json.loads(path.read_text("utf-8"))
        summary = old | summary | {key: old[key] for key in CIRCUMSTANCES if key in old}
    path.write_text(json.dumps(summary, indent=2) + "\n", "utf-8")


def write_card(
    run_dir: Path, recipe: str, facts: Mapping[str, Any], paper: Mapping[str, Any], summary: Summary
) -> None:
    """Write ``card.md``: what was run, its figures beside the paper's where the recipe has them, its pictures.

    Args:
        run_dir: where.
        recipe: its name, the title.
        facts: lines of the list under the title (empty ones are left out).
        paper: the recipe's ``paper``: summary key to published figure; anything else is told as text.
        summary: the run's.
    """
    lines = [f"# {recipe}", ""]
    if facts.get("description"):
        lines += [str(facts["description"]), ""]
    lines += [f"- {name}: {value}" for name, value in facts.items() if value and name != "description"]
    lines += [f"- seed: {summary.get('seed')}", f"- duration: {summary.get('duration_s')} s"]
    lines += [f"- versions: {', '.join(map(str, summary.get('versions', [])))}", ""]  # type: ignore[arg-type]
    published = published_in(paper, summary)
    lines += [f"- paper, {key}: {value}" for key, value in paper.items() if key not in published]
    lines += [""] if len(published) < len(paper) else []
    rows = {key: value for key, value in summary.items() if key not in CIRCUMSTANCES and value != []}
    head = ["figure", "this run", "paper"] if published else ["figure", "this run"]
    lines += [_row(head), _row(["---", *["---:"] * (len(head) - 1)])]
    for key in dict.fromkeys([*published, *rows]):
        cells = [f"`{key}`", show(rows.get(key, "")), show(published.get(key, ""))]
        lines.append(_row(cells[: len(head)]))
    tables = [f"[{path.stem}](tables/{path.name})" for path in sorted(run_dir.glob("tables/*.csv"))]
    lines += ["", f"Tables: {', '.join(tables)}"] if tables else []
    for path in sorted([*run_dir.glob("pictures/*.png"), *run_dir.glob("pictures/*.gif")]):
        lines += ["", f"![{path.stem}](pictures/{path.name})"]
    if (entry := facts.get("command", "fit")) != "predict":
        checkpoint = ["--ckpt_path", facts["checkpoint"]] if facts.get("checkpoint") else []
        lines += ["", f"Again: `{command_for(entry, run_dir, *checkpoint)}`"]
    lines.append("")
    (run_dir / "card.md").write_text("\n".join(lines), "utf-8")


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def print_table(title: str, summary: Summary, stage: str) -> None:
    """The closing table on stdout: numbers of one stage and what else is a number, without the other stages.

    A figure of the network before surgery, ``stage/dense_name``, stands beside ``stage/name``.

    Args:
        title: above it.
        summary: the run's.
        stage: ``"test"`` leaves out ``train/...`` and ``val/...``; likewise the others.
    """
    others = tuple(f"{name}/" for name in ("train", "val", "test") if name != stage)
    figures = {
        key: show(value)
        for key, value in summary.items()
        if isinstance(value, int | float) and not key.startswith(others) and (key == "duration_s" or "/" in key)
    }
    twins = {key: twin for key in figures if (twin := key.replace("/", "/dense_", 1)) in figures and twin != key}
    rows = [
        [key, value, figures.get(twins.get(key, ""), "")] for key, value in figures.items() if key not in twins.values()
    ]
    header = ["", "value", "dense"] if twins else ["", "value"]
    _print_rows(title, [header, *(row[: len(header)] for row in rows)])


def _print_rows(title: str, rows: list[list[str]]) -> None:
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(rows[0][0], title=title)
        for name in rows[0][1:]:
            table.add_column(name, justify="right")
        for row in rows[1:]:
            table.add_row(*row)
        Console().print(table)
        return
    print(title)
    for line in align(rows):
        print(f"  {line}")


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line per row: the first column to the left, the others to the right.

    Example:
        >>> align([["name", "ms"], ["a", "12.5"]])
        ['name    ms', 'a     12.5']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"{first:{widths[0]}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        for first, *cells in rows
    ]


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """``trainer.callback_metrics`` as plain numbers, taken before Lightning clears them."""
    return {
        key: float(value) for key, value in metrics.items() if not isinstance(value, torch.Tensor) or value.numel() == 1
    }
