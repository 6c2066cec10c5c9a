"""Files of results as the toolkits of trackers have them: a line for each frame of a video.

One pass: ``<tracker>/<video>.txt``, lines x,y,w,h. VOT: ``<tracker>/baseline/<video>/<video>_001.txt``, where a line is
such a box, or a code: 1 where the tracker was started, 2 where it failed, 0 where it was not asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_methods.functional.suggestions import shorten
from lit_methods.functional.text_lines import quick_rows, read_lines
from lit_methods.functional.vot import FAILURE, INIT, SKIPPED, TRACKED

_CODES = (SKIPPED, INIT, FAILURE)
_RUN = "_001"  # of several on the same video, which differ where a tracker is not deterministic


def result_path(folder: Path, name: str, resets: bool = False) -> Path:
    """Where the results of a video belong in the folder of a tracker.

    Args:
        folder: of the tracker.
        name: of the video.
        resets: whether they are of a VOT run with resets.

    Raises:
        ValueError: the name is none of a file.

    Example:
        >>> result_path(Path("mine"), "dog-1").as_posix(), result_path(Path("mine"), "ants1", resets=True).as_posix()
        ('mine/dog-1.txt', 'mine/baseline/ants1/ants1_001.txt')
    """
    if not name or name.startswith(".") or "/" in name or "\\" in name:
        raise ValueError(f"a video called {name!r} cannot have a file of results: the name must be one of a file")
    return folder / "baseline" / name / f"{name}{_RUN}.txt" if resets else folder / f"{name}.txt"


def write_boxes(path: Path, boxes_xywh: Tensor) -> None:
    """Write the boxes of one pass, with as many digits as give the same numbers again.

    Args:
        path: of the file; its folder is made.
        boxes_xywh: (n, 4) float64.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_boxes(Path(folder, "dog-1.txt"), torch.tensor([[0.1, 2.0, 30.0, 4.0]], dtype=torch.float64))
        ...     Path(folder, "dog-1.txt").read_text()
        '0.1,2.0,30.0,4.0\\n'
    """
    _write(path, (",".join(map(repr, row)) for row in boxes_xywh.double().tolist()))


def read_boxes(path: Path) -> Tensor:
    """Read the boxes of one pass; numbers may have commas, tabs or blanks between them.

    Args:
        path: of the file.

    Returns:
        (n, 4) float64 x, y, w, h.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, or a line is not four finite numbers; names the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.txt").write_text("1,2,3,4\\n5\\t6\\t7\\t8.5\\n")
        ...     read_boxes(Path(folder, "a.txt")).tolist()
        [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.5]]
    """
    quick = quick_rows(path)
    if quick is not None and quick.shape[1] == 4 and np.isfinite(quick).all():
        return torch.from_numpy(quick)
    rows = []
    for line in read_lines(path):
        row = line.numbers()
        if len(row) != 4 or not np.isfinite(row).all():
            raise line.fault("expected a box x,y,w,h of four finite numbers, which a tracker gives for every frame")
        rows.append(row)
    return torch.tensor(_filled(rows, path), dtype=torch.float64)


def write_vot_run(path: Path, boxes_xywh: Tensor, state: Tensor) -> None:
    """Write a VOT run with resets, boxes with four decimals as the toolkit does.

    Args:
        path: of the file; its folder is made.
        boxes_xywh: (n, 4); counts where ``state`` is 9.
        state: (n,) codes: 9 tracked, 1 started, 2 failure, 0 skipped.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_vot_run(Path(folder, "a_001.txt"), torch.tensor([[1.0, 2, 3, 4]] * 2), torch.tensor([1, 9]))
        ...     Path(folder, "a_001.txt").read_text()
        '1\\n1.0000,2.0000,3.0000,4.0000\\n'
    """
    rows = zip(boxes_xywh.double().tolist(), state.tolist(), strict=True)
    _write(path, (",".join(f"{v:.4f}" for v in row) if code == TRACKED else str(int(code)) for row, code in rows))


def read_vot_run(path: Path) -> tuple[Tensor, Tensor]:
    """Read a VOT run with resets.

    Args:
        path: of the file.

    Returns:
        Boxes (n, 4) float64, NaN where there is a code; codes (n,) int64, 9 where there is a box.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, does not begin with a start, or a line is neither a code nor a box; names the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a_001.txt").write_text("1\\n1.5,2,3,4\\n2\\n0\\n")
        ...     boxes, state = read_vot_run(Path(folder, "a_001.txt"))
        >>> boxes[1].tolist(), state.tolist()
        ([1.5, 2.0, 3.0, 4.0], [1, 9, 2, 0])
    """
    rows: list[list[float]] = []
    codes: list[int] = []
    for line in read_lines(path):
        row = line.numbers()
        if len(row) == 1 and row[0] in _CODES:
            codes.append(int(row[0]))
            row = [float("nan")] * 4
        elif len(row) == 4 and np.isfinite(row).all():
            codes.append(TRACKED)
        else:
            raise line.fault("expected a code 0, 1 or 2, or a box x,y,w,h of four finite numbers; no polygon")
        rows.append(row)
        if codes[0] != INIT:
            raise line.fault("a run with resets begins with the code 1, where the tracker is started")
    return torch.tensor(_filled(rows, path), dtype=torch.float64), torch.tensor(codes)


def tracker_folder(folder: Path, names: Iterable[str], resets: bool = False) -> Path:
    """The folder with the files of a tracker: this one, or the only one in it that has any.

    Args:
        folder: what the user named.
        names: of the videos.
        resets: whether VOT runs are wanted, below ``baseline`` or directly in the folder.

    Raises:
        FileNotFoundError: there is no such folder, or no file of any of these videos in it.
        ValueError: it holds the folders of several trackers.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "mine").mkdir()
        ...     Path(folder, "mine", "dog-1.txt").touch()
        ...     tracker_folder(Path(folder), ["dog-1"]).name
        'mine'
    """
    names, said = list(names), f"results={str(folder)!r}"
    layout = f"<video>/<video>{_RUN}.txt, perhaps below baseline" if resets else "<video>.txt with lines x,y,w,h"
    if not folder.is_dir():
        raise FileNotFoundError(f"{said} is no folder; it must hold the files of a tracker, {layout}")
    if _within(folder, names, resets):
        return folder
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    trackers = [path for path in inner if _within(path, names, resets)]
    if len(trackers) > 1:
        named = shorten(path.name for path in trackers)
        raise ValueError(f"{said} has results of {len(trackers)} trackers: {named}; give the folder of one")
    if not trackers:
        raise FileNotFoundError(
            f"{said} has no file of any of the {len(names)} videos, such as {names[0]!r}; it must have {layout}"
        )
    return trackers[0]


def find_results(folder: Path, names: Iterable[str], resets: bool = False) -> dict[str, Path]:
    """The files of a tracker for these videos.

    Args:
        folder: see :func:`tracker_folder`, here and below.
        names: of the videos.
        resets: whether VOT runs are wanted.

    Returns:
        Name to file.

    Raises:
        FileNotFoundError: files are missing; names all of them.
        ValueError: there are several trackers.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "dog-1.txt").touch()
        ...     find_results(Path(folder), ["dog-1", "dog-2"])
        Traceback (most recent call last):
        FileNotFoundError: results='...' lacks the files of 1 of 2 videos: dog-2. ...
    """
    names = list(names)
    found = _within(tracker_folder(folder, names, resets), names, resets)
    if missing := [name for name in names if name not in found]:
        raise FileNotFoundError(
            f"results={str(folder)!r} lacks the files of {len(missing)} of {len(names)} videos: {', '.join(missing)}. "
            "Complete it, or have the data give the other videos alone"
        )
    return found


def read_results(
    folder: Path, frames: Mapping[str, int], resets: bool = False
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Read what a tracker left of these videos.

    A file that is longer than its video is cut, as the LaSOT toolkit does for ``monkey-17``, with one warning for all.

    Args:
        folder: see :func:`tracker_folder`.
        frames: name of a video to the number of its frames.
        resets: whether VOT runs are wanted.

    Returns:
        Name to boxes (n, 4) float64, and codes (n,) int64 of a VOT run or ``None``.

    Raises:
        FileNotFoundError: see :func:`find_results`.
        ValueError: a line does not parse, a file is shorter than its video, or there are several trackers.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_boxes(Path(folder, "dog-1.txt"), torch.ones(3, 4))
        ...     read_results(Path(folder), {"dog-1": 3})["dog-1"][0].shape
        torch.Size([3, 4])
    """
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    cut = []
    for name, path in find_results(folder, frames, resets).items():
        boxes, state = read_vot_run(path) if resets else (read_boxes(path), None)
        count = frames[name]
        if len(boxes) < count:
            raise ValueError(
                f"{str(path)!r} has {len(boxes)} lines, but the video {name!r} has {count} frames; a tracker leaves a "
                "line for each"
            )
        if len(boxes) > count:
            cut.append(f"{name} (lines {len(boxes)}, frames {count})")
        found[name] = boxes[:count], None if state is None else state[:count]
    if cut:
        rank_zero_warn(f"results={str(folder)!r}: cut to the frames of their videos: {shorten(cut)}")
    return found


def _within(folder: Path, names: list[str], resets: bool) -> dict[str, Path]:
    found = {}
    for name in names:
        path = result_path(folder, name, resets)
        places = (path, folder / name / path.name) if resets else (path,)
        if there := next((place for place in places if place.is_file()), None):
            found[name] = there
    return found


def _filled(rows: list[list[float]], path: Path) -> list[list[float]]:
    if not rows:
        raise ValueError(f"{str(path)!r} is empty; it must have a line for each frame")
    return rows


def _write(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), "ascii")
