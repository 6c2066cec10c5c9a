"""What was found in each frame of a clip: rows of a CSV file, from which a run goes on exactly."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from io import StringIO
from pathlib import Path
from typing import NamedTuple


class ClipRow(NamedTuple):
    """One frame; numbers are written so that reading gives the same ones.

    Args:
        file: the video, or of a folder the frame's own file.
        frame: index in the video, from 0.
        x: left side of the box, pixels.
        y: its upper side.
        w: its width.
        h: its height.
        score: of the box, from 0 to 1; 1 in the first frame, 0 in one that could not be read.
        cx: centre as the tracker holds it: ``x + w / 2`` to within rounding, which an exact continuation needs.
        cy: likewise.
    """

    file: str
    frame: int
    x: float
    y: float
    w: float
    h: float
    score: float
    cx: float
    cy: float


def read_clip_rows(path: str | Path) -> list[ClipRow]:
    r"""Read the rows that ``predict`` wrote, also those of an interrupted run.

    Args:
        path: CSV with the columns of ``ClipRow``; ``cx`` and ``cy`` may be missing. A last line without its end, as a
            run that was killed leaves it, is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, or a value is no number; names file and line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "predictions.csv")
        ...     _ = path.write_text("file,frame,x,y,w,h,score\na.mp4,0,1.5,2,4,6,1\na.mp4,1,1.")
        ...     [(row.frame, row.x, row.cx) for row in read_clip_rows(path)]
        [(0, 1.5, 3.5)]
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"resume={str(path)!r} does not exist; give predictions.csv of an earlier run")
    text = path.read_text("utf-8")
    reader = csv.DictReader(StringIO(text[: text.rfind("\n") + 1], newline=""))
    needed = ClipRow._fields[:7]
    if missing := [name for name in needed if name not in (reader.fieldnames or ())]:
        raise ValueError(f"resume={str(path)!r} has no column {', '.join(missing)}; it must have {', '.join(needed)}")
    rows = []
    for cells in reader:
        where = f"resume={str(path)!r}, line {reader.line_num}"
        try:
            x, y, w, h, score = (float(cells[name]) for name in needed[2:])
            cx, cy = (float(cells.get(c) or corner + side / 2) for c, corner, side in (("cx", x, w), ("cy", y, h)))
            row = ClipRow(cells["file"], int(cells["frame"]), x, y, w, h, score, cx, cy)
        except (TypeError, ValueError):
            raise ValueError(f"{where}: a cell is missing or no number; the row is {list(cells.values())}") from None
        if not all(map(math.isfinite, row[2:])) or w <= 0 or h <= 0:
            raise ValueError(f"{where}: {[x, y, w, h]} is no box of finite numbers with an area")
        rows.append(row)
    return rows


def write_clip_rows(path: Path, rows: Iterable[ClipRow]) -> None:
    """Write rows with their header.

    Args:
        path: of the CSV file.
        rows: may be empty.

    Example:
        >>> import tempfile
        >>> row = ClipRow("a.mp4", 0, 0.1, 2.0, 4.0, 6.0, 1.0, 2.1, 5.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_clip_rows(Path(folder, "rows.csv"), [row])
        ...     read_clip_rows(Path(folder, "rows.csv")) == [row]
        True
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(ClipRow._fields)
        writer.writerows(rows)
