"""What a run directory holds, as plain values; whatever is missing or damaged is told, and does not stop the page."""

import csv
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lit_methods.cli.given import Given, flatten, last
from lit_methods.functional.suggestions import first_line, shorten

Points = list[tuple[float, float]]  # step and value

_SIGNS = ("config.yaml", "summary.json", "metrics.csv")  # one of them makes a folder a run
_PICTURES = (".png", ".gif", ".jpg", ".jpeg", ".webp")
_FACT = re.compile(r"- ([\w, %/@.-]+?): (.*)")


@dataclass
class Run:
    """One run directory.

    Args:
        path: where it lies.
        label: what the page calls it, different from all other runs of the page.
        config: ``config.yaml``; empty where there is none.
        summary: ``summary.json``; ``None`` where there is none, as in a run that has not ended.
        facts: the lines of ``card.md``, name to text.
        series: ``metrics.csv``, log key to its points; a value that is no number is NaN.
        epochs: how many epochs were logged in training or validation.
        pictures: in the order of their names.
        tables: likewise.
        notes: what could not be read, a sentence each.
    """

    path: Path
    label: str
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] | None = None
    facts: dict[str, str] = field(default_factory=dict)
    series: dict[str, Points] = field(default_factory=dict)
    epochs: int = 0
    pictures: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def pairs(self) -> list[Given]:
        """The configuration as flat pairs."""
        return flatten(self.config)

    @property
    def figures(self) -> dict[str, Any]:
        """The summary, empty where there is none."""
        return self.summary or {}

    @property
    def recipe(self) -> str:
        """Under which name it was run."""
        return str(self.config.get("recipe") or self.facts.get("recipe") or self.path.name)

    @property
    def description(self) -> str:
        """What its recipe says of itself; empty where nothing tells."""
        return str(self.config.get("description") or self.facts.get("description") or "")

    @property
    def changed(self) -> str:
        """What the command line said beside the recipe; empty where nothing, or where the run has not ended."""
        return self.facts.get("changed", "")

    @property
    def paper(self) -> dict[str, Any]:
        """The published figures of its own recipe."""
        paper = self.config.get("paper")
        return paper if isinstance(paper, dict) else {}

    def named(self, part: str) -> str:
        """The class of a part, ``"model"`` or ``"data"``, without its modules; empty where nothing tells."""
        told = last(self.pairs, f"{part}.class_path") or self.facts.get({"model": "method"}.get(part, part), "")
        return str(told).rpartition(".")[2]


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """The runs of some directories, each once.

    Args:
        folders: as the user named them.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: it is none of a run.
    """
    paths = list(dict.fromkeys(folder.resolve() for folder in folders if _is_run(folder)))
    return [read_run(path, label) for path, label in zip(paths, _labels(paths), strict=True)]


def read_run(path: Path, label: str) -> Run:
    """One run; ``path`` is known to be one.

    Args:
        path: its directory.
        label: what the page calls it.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = Path(mkdtemp())
        >>> _ = (folder / "metrics.csv").write_text("epoch,step,train/loss\\n0,9,1.5\\n1,19,nan\\n")
        >>> run = read_run(folder, "mine")
        >>> run.series, run.epochs, run.summary
        ({'train/loss': [(9.0, 1.5), (19.0, nan)]}, 2, None)
    """
    run = Run(path, label)
    run.config = _read(run, "config.yaml", lambda text: yaml.load(text, _LOADER)) or {}
    run.summary = _read(run, "summary.json", json.loads)
    if (path / "card.md").is_file():
        lines = (path / "card.md").read_text("utf-8", errors="replace").splitlines()
        run.facts = {match[1]: match[2] for line in lines if (match := _FACT.fullmatch(line))}
    if (path / "metrics.csv").is_file():
        try:
            with (path / "metrics.csv").open(newline="", encoding="utf-8", errors="replace") as file:
                run.series, run.epochs = _series(csv.DictReader(file))
        except (OSError, csv.Error) as ex:
            run.notes.append(f"metrics.csv cannot be read: {first_line(ex)}")
    run.pictures = [file for file in sorted(path.glob("pictures/*")) if file.suffix.lower() in _PICTURES]
    run.tables = sorted(path.glob("tables/*.csv"))
    return run


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _is_run(folder: Path) -> bool:
    if not folder.exists():
        raise FileNotFoundError(f"RUN_DIR={str(folder)!r}: there is no such directory")
    if not folder.is_dir():
        raise ValueError(f"RUN_DIR={str(folder)!r} is a file; name the run's directory")
    if not any((folder / sign).is_file() for sign in _SIGNS):
        below = sorted(path.parent for sign in _SIGNS for path in folder.glob(f"*/{sign}"))
        cure = f"; runs lie in {shorten(dict.fromkeys(below), 3)}" if below else "; fit prints one as its last line"
        raise ValueError(f"RUN_DIR={str(folder)!r} is no run: it has no {', '.join(_SIGNS[:-1])} or {_SIGNS[-1]}{cure}")
    return True


def _labels(paths: list[Path]) -> list[str]:
    """The names of the folders, with as many parents as it takes to tell them apart.

    Example:
        >>> _labels([Path("/a/x/run"), Path("/a/y/run"), Path("/b")])
        ['x/run', 'y/run', 'b']
    """
    labels = []
    for path in paths:
        parts = [part for part in path.parts if part != path.anchor] or [str(path)]
        size = 1
        while size < len(parts) and sum(other.parts[-size:] == tuple(parts[-size:]) for other in paths) > 1:
            size += 1
        labels.append("/".join(parts[-size:]))
    return labels


def _read(run: Run, name: str, parse: Any) -> dict[str, Any] | None:
    """A file of keys and values; ``None`` where there is none, or it is damaged, which is noted."""
    path = run.path / name
    if not path.is_file():
        return None
    try:
        content = parse(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as ex:
        run.notes.append(f"{name} cannot be read: {first_line(ex)}")
        return None
    if isinstance(content, dict):
        return {str(key): value for key, value in content.items()}
    run.notes.append(f"{name} holds no keys and values")
    return None


def _series(rows: Iterable[dict[str, Any]]) -> tuple[dict[str, Points], int]:
    series: dict[str, Points] = {}
    epochs = 0
    for number, row in enumerate(rows):
        step = _number(row.get("step"))
        epoch = _number(row.get("epoch"))
        for key, cell in row.items():
            value = None if key in (None, "", "step", "epoch") else _number(cell)
            if value is not None:
                series.setdefault(key, []).append((number if step is None else step, value))
                if epoch is not None and math.isfinite(epoch) and not key.startswith("test/"):
                    epochs = max(epochs, int(epoch) + 1)
    return {key: sorted(points, key=lambda point: point[0]) for key, points in series.items()}, epochs


def _number(cell: Any) -> float | None:
    try:
        return float(cell)
    except (TypeError, ValueError):  # empty, or text
        return None
