"""Tables of a run as the page shows them: figures beside the paper's, costs, versions, and the CSV files."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_methods.cli.figures import CIRCUMSTANCES, published
from lit_methods.cli.report.comparing import Recipe
from lit_methods.cli.report.reading import Run
from lit_methods.cli.report.words import chosen, duration, figure, in_order, size
from lit_methods.functional.suggestions import first_line

FIRST = 6  # rows of a CSV file that are shown at once
MOST = 200  # rows that the page holds
LONGEST = 80  # characters of a cell
MAIN = 18  # figures that are shown at once

_NAMING = re.compile(r"(^|_)(id|ids|pid|camid|index|label|seed)$")  # columns of integers that count nothing
_COST = re.compile(r"(^|[_/])(macs|flops|params|latency|bytes|hours|queries|seconds|memory)([_/@]|$)|images_per_second")


@dataclass(frozen=True)
class Paper:
    """Published figures that stand beside those of some runs.

    Args:
        title: of the column.
        figures: summary key to what was published.
        text: what else the recipe tells, name to text.
        others: the settings are not the runs' own.
    """

    title: str
    figures: dict[str, Any]
    text: dict[str, Any]
    others: bool


@dataclass(frozen=True)
class FigureRow:
    """A figure of all runs.

    Args:
        key: of the summary.
        cells: a text for each run.
        papers: a text for each column of published figures.
        main: the figure that a checkpoint is chosen by.
        before: of a cost, a text for each run: what it was for the network before surgery; none of other rows.
    """

    key: str
    cells: list[str]
    papers: list[str]
    main: bool = False
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sheet:
    """A CSV file.

    Args:
        run: the number of its run.
        name: in words.
        columns: the header.
        first: the rows that are shown at once.
        rest: the following ones.
        omitted: how many more the file has.
        numeric: for each column, whether it holds numbers.
        told: all its numbers are figures of the run, which stand above it.
        note: why it cannot be read.
    """

    run: int
    name: str
    columns: list[str]
    first: list[list[str]]
    rest: list[list[str]]
    omitted: int
    numeric: list[bool]
    told: bool = False
    note: str = ""


def papers(runs: Sequence[Run], scales: Sequence[Recipe | None]) -> list[Paper]:
    """The columns of published figures: each run's own, or those of the recipe with the paper's settings.

    Args:
        runs: one or more.
        scales: for each the recipe with the paper's settings.
    """
    known = {key for run in runs for key in run.figures}
    found: dict[str, Paper] = {}
    for run, scale in zip(runs, scales, strict=True):
        told, name, others = (run.paper, run.recipe, False) if run.paper else (scale.paper if scale else {}, "", True)
        name = name or (scale.name if scale else "")
        if told and name not in found:
            figures = published(told, known)
            text = {key: value for key, value in told.items() if key not in figures}
            found[name] = Paper(f"paper: {name}" if others or len(runs) > 1 else "paper", figures, text, others)
    return list(found.values())


def figure_rows(runs: Sequence[Run], columns: Sequence[Paper]) -> tuple[list[FigureRow], list[FigureRow]]:
    """The figures that are shown at once, and all others; costs have a table of their own.

    First come those that were published and the one that the checkpoint is chosen by, then the test's and the
    method's own; training, validation and data are behind them, and so is what was published of other data. A standard
    deviation stands in the row of its figure.

    Args:
        runs: one or more.
        columns: the published figures.
    """
    known = in_order(
        key for source in (*(run.figures for run in runs), *(c.figures for c in columns)) for key in source
    )
    wanted = {key for column in columns for key in column.figures}
    monitored = {key for run in runs if (key := chosen(run))}
    keys = [key for key in known if key not in CIRCUMSTANCES and (key in wanted or _is_figure(runs, key))]
    rows = {
        key: FigureRow(
            key,
            [_with_deviation(run, key) for run in runs],
            [figure(column.figures.get(key)) for column in columns],
            key in monitored,
        )
        for key in keys
    }
    of_others = [key for key in keys if not any(rows[key].cells)]
    first = [key for key in keys if key in monitored] + [
        key for key in keys if key in wanted - {*monitored, *of_others}
    ]
    likely = [key for key in keys if not key.startswith(("train/", "val/", "data/")) and key not in of_others]
    main = list(dict.fromkeys([*first, *likely]))[: max(MAIN, len(first))] or keys[:MAIN]
    main += [key for key in of_others if key not in main]
    return [rows[key] for key in main], [row for key, row in rows.items() if key not in main]


def _with_deviation(run: Run, key: str) -> str:
    deviation = run.figures.get(f"{key}_std")
    return figure(run.figures.get(key)) + ("" if deviation is None else f" \u00b1 {figure(deviation)}")


def _is_figure(runs: Sequence[Run], key: str) -> bool:
    if any(key.removesuffix("_std") in run.figures for run in runs if key.endswith("_std")):
        return False
    return not (_COST.search(key) and not key.startswith("test/")) and any(run.figures.get(key) != [] for run in runs)


def costs(runs: Sequence[Run], columns: Sequence[Paper] = ()) -> list[FigureRow]:
    """Time, sizes, operations, queries: whatever the summaries and the directories have.

    What a network cost before surgery stands beside it; what two parts of the method have counted alike, and what
    stands beside a published figure, is told once.

    Args:
        runs: one or more.
        columns: the published figures.
    """
    rows = [FigureRow("duration", [duration(run.figures.get("duration_s", "")) for run in runs], [])]
    keys = in_order(key for run in runs for key in run.figures if _COST.search(key))
    told: set[tuple[str, ...]] = set()
    wanted = {key for column in columns for key in column.figures}
    for key in keys:
        if key in wanted and key.replace("/", "/dense_", 1) not in keys:
            continue
        if key.replace("/dense_", "/", 1) in keys and "/dense_" in key:
            continue
        cells = _costs(runs, key)
        if (key.rpartition("/")[2], *cells) not in told:
            dense = _costs(runs, key.replace("/", "/dense_", 1))
            rows.append(FigureRow(key, cells, [], before=tuple(dense)))
        told.add((key.rpartition("/")[2], *cells))
    kept = [sorted(run.path.glob("checkpoints/*.ckpt")) for run in runs]
    rows.append(FigureRow("checkpoints", [_files(files) for files in kept], []))
    return [row for row in rows if any(row.cells)]


def _costs(runs: Sequence[Run], key: str) -> list[str]:
    values = [run.figures.get(key) for run in runs]
    return [size(v) if key.endswith("bytes") and isinstance(v, int | float) else figure(v) for v in values]


def _files(files: list[Path]) -> str:
    return f"{size(sum(file.stat().st_size for file in files))} in {len(files)}" if files else ""


def versions(runs: Sequence[Run]) -> list[FigureRow]:
    """A row for each package, ``main`` where the runs differ.

    Args:
        runs: one or more.
    """
    told = []
    for run in runs:
        lines = run.figures.get("versions")
        words = [str(line).split(" ", 1) for line in (lines if isinstance(lines, list) else [])]
        told.append({pair[0]: pair[-1] for pair in words})
    rows = []
    for name in dict.fromkeys(name for found in told for name in found):
        cells = [found.get(name, "") for found in told]
        rows.append(FigureRow(name, cells, [], len({cell for cell in cells if cell}) > 1))
    return rows


def sheets(runs: Sequence[Run]) -> list[Sheet]:
    """The CSV files of some runs, those of one name together.

    Args:
        runs: one or more.
    """
    found = [(path.name, number, path) for number, run in enumerate(runs) for path in run.tables]
    known = [frozenset(map(figure, run.figures.values())) for run in runs]
    return [read_sheet(path, number, known[number]) for _, number, path in sorted(found)]


def read_sheet(path: Path, run: int = 0, known: frozenset[str] = frozenset()) -> Sheet:
    """One CSV file.

    Args:
        path: the file.
        run: the number of its run.
        known: the figures of the run, as the page writes them.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp(), "prune_kept.csv")
        >>> _ = path.write_text("layer,kept\\nconv1,4\\n")
        >>> sheet = read_sheet(path)
        >>> sheet.name, sheet.columns, sheet.first, sheet.numeric
        ('prune kept', ['layer', 'kept'], [['conv1', '4']], [False, True])
    """
    name = path.stem.replace("_", " ")
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            columns, *rows = list(csv.reader(file)) or [[]]
    except (OSError, csv.Error) as ex:
        return Sheet(run, name, [], [], [], 0, [], note=f"{path.name} cannot be read: {first_line(ex)}")
    width = max(map(len, [columns, *rows]))
    columns += [""] * (width - len(columns))
    naming = [bool(_NAMING.search(column)) for column in columns]
    shown = [[*map(_cell, row, naming)] + [""] * (width - len(row)) for row in rows[:MOST]]
    numeric = [all(_is_number(row[i]) for row in shown if row[i]) for i in range(width)] if shown else [False] * width
    few = shown if len(rows) <= FIRST + 2 else shown[:FIRST]  # two rows are not worth a click
    numbers = [cell for row in shown for cell in row if _is_number(cell)]
    # three and more, one of them long: a table of ones has not been told because some figure is 1
    told = len(rows) <= MOST and len(numbers) > 2 and max(map(len, numbers)) > 3 and known.issuperset(numbers)
    return Sheet(run, name, columns, few, shown[len(few) :], max(0, len(rows) - MOST), numeric, told)


def _cell(text: str, naming: bool = False) -> str:
    if naming and text.isdigit():
        return text
    if len(text) > LONGEST:
        return f"{text[: LONGEST - 3]}..."
    try:
        return figure(int(text) if text.lstrip("-").isdigit() else float(text))
    except (ValueError, OverflowError):
        return text


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True
