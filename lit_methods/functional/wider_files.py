"""Detections of faces in the text files that WIDER FACE's evaluation tool reads.

``<event>/<image>.txt``: the name of the image, the number of detections, and a line ``x y w h score`` for each.
"""

import warnings
from collections.abc import Iterable
from io import StringIO
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from lit_methods.functional.suggestions import shorten
from lit_methods.functional.text_lines import read_lines

_COLUMNS = 5
_LAYOUT = (
    "<event>/<image>.txt: a line with the name of the image, one with the number of detections, then x y w h score"
)


def prediction_path(folder: Path, name: str) -> Path:
    """Where the detections in an image belong.

    Args:
        folder: of the detector.
        name: of the image without ending, ``event/stem``.

    Raises:
        ValueError: the name would lead out of the folder, or is none of a file.

    Example:
        >>> prediction_path(Path("mine"), "0--Parade/0_Parade_marchingband_1_465").as_posix()
        'mine/0--Parade/0_Parade_marchingband_1_465.txt'
    """
    parts = name.split("/")
    if "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise ValueError(
            f"an image called {name!r} cannot have a file of detections; its name must be like "
            "'0--Parade/0_Parade_marchingband_1_465'"
        )
    return folder.joinpath(*parts[:-1], f"{parts[-1]}.txt")


def write_predictions(path: Path, name: str, boxes_xywh: Tensor, scores: Tensor) -> None:
    """Write the detections in an image, highest score first and equal ones in their order, with six decimals.

    Args:
        path: of the file; its folder is made.
        name: of the image, its first line.
        boxes_xywh: (n, 4) in pixels; n may be 0.
        scores: (n,).

    Raises:
        ValueError: shapes that do not fit, or numbers that are not finite.

    Source:
        The layout of WIDER FACE's tool, whose common Python port needs them in this order. DSFD's code rounds boxes to
        whole pixels and scores to three decimals.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_predictions(Path(folder, "a.txt"), "a", torch.tensor([[1.0, 2, 3, 4.5]]), torch.tensor([0.75]))
        ...     Path(folder, "a.txt").read_text()
        'a\\n1\\n1.000000 2.000000 3.000000 4.500000 0.750000\\n'
    """
    if boxes_xywh.ndim != 2 or boxes_xywh.shape[1] != 4 or scores.shape != boxes_xywh.shape[:1]:
        raise ValueError(
            f"boxes_xywh and scores of {name!r} must be (n, 4) and (n,), got {tuple(boxes_xywh.shape)} and "
            f"{tuple(scores.shape)}"
        )
    rows = torch.cat([boxes_xywh.detach().cpu().double(), scores.detach().cpu().double()[:, None]], 1)
    if not rows.isfinite().all():
        raise ValueError(
            f"detections in {name!r} have NaN or infinity in {int((~rows.isfinite().all(1)).sum())} of {len(rows)} "
            "rows, which no tool reads; leave such rows out"
        )
    rows = rows[rows[:, 4].argsort(descending=True, stable=True)]
    lines = [name, str(len(rows)), *(" ".join(f"{value:.6f}" for value in row) for row in rows.tolist())]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def read_predictions(path: Path) -> Tensor:
    """Read the detections in an image, of any detector.

    The name in the first line is not compared with anything: some write it with ending or folder, some without. Numbers
    may have blanks, tabs or commas between them.

    Args:
        path: of the file.

    Returns:
        (n, 5) float64 x, y, w, h, score, in the order of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line does not parse, or there are more or fewer than the second line says; names the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.txt").write_text("0--Parade/a.jpg\\n2\\n1.0 2.0 3.0 4.0 0.999\\n5 6 7 8 .5 \\n\\n")
        ...     read_predictions(Path(folder, "a.txt")).tolist()
        [[1.0, 2.0, 3.0, 4.0, 0.999], [5.0, 6.0, 7.0, 8.0, 0.5]]
    """
    if (quick := _quick_predictions(path)) is not None:
        return quick
    lines = read_lines(path)
    if len(lines) < 2:
        raise ValueError(
            f"{str(path)!r} has {len(lines)} lines; a file of detections has the name of the image, their number (0 "
            "where there are none), and a line x y w h score for each"
        )
    count = lines[1].whole(lines[1].text.strip(), "the number of detections")
    rows = []
    for line in lines[2:]:
        row = line.numbers()
        if len(row) != _COLUMNS or not np.isfinite(row).all():
            raise line.fault("expected a detection x y w h score of five finite numbers")
        rows.append(row)
    if len(rows) != count:
        raise lines[1].fault(f"it announces {count} detections, but {len(rows)} lines follow; the file may be cut off")
    return torch.tensor(rows, dtype=torch.float64).view(-1, _COLUMNS)


def predictions_folder(folder: Path, names: Iterable[str]) -> Path:
    """The folder with the files of a detector: this one, or the only one in it that has any.

    Args:
        folder: what the user named.
        names: of images, ``event/stem``.

    Raises:
        FileNotFoundError: there is no such folder, or no file of any of these images in it.
        ValueError: it holds the folders of several detectors.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_predictions(Path(folder, "mine", "0--Parade", "a.txt"), "a", torch.ones(1, 4), torch.ones(1))
        ...     predictions_folder(Path(folder), ["0--Parade/a"]).name
        'mine'
    """
    names, said = list(names), f"predictions={str(folder)!r}"
    if not folder.is_dir():
        raise FileNotFoundError(f"{said} is no folder; it must hold the files of a detector, {_LAYOUT}")
    if not names or _has_any(folder, names):
        return folder
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    detectors = [path for path in inner if _has_any(path, names)]
    if len(detectors) > 1:
        named = shorten(path.name for path in detectors)
        raise ValueError(f"{said} has files of {len(detectors)} detectors: {named}; give the folder of one")
    if not detectors:
        raise FileNotFoundError(
            f"{said} has no file of any of the {len(names)} images, such as {names[0]!r}; it must have {_LAYOUT}, "
            "for the images that data.root has"
        )
    return detectors[0]


def read_prediction_folder(folder: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Read what a detector found in these images.

    Files of other images are left alone, with one warning that counts them.

    Args:
        folder: see :func:`predictions_folder`.
        names: of the images, ``event/stem``.

    Returns:
        Name to (n, 5) float64 x, y, w, h, score, in the order of ``names``.

    Raises:
        FileNotFoundError: images have no file, not even one that says 0 detections; names the first.
        ValueError: a line does not parse, or there are several detectors.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_predictions(Path(folder, "0--Parade", "a.txt"), "a", torch.ones(3, 4), torch.ones(3))
        ...     read_prediction_folder(Path(folder), ["0--Parade/a", "0--Parade/b"])
        Traceback (most recent call last):
        FileNotFoundError: predictions='...' lacks the files of 1 of 2 images: 0--Parade/b. ...
    """
    names = list(names)
    home = predictions_folder(folder, names)
    paths = {name: prediction_path(home, name) for name in names}
    said = f"predictions={str(folder)!r}"
    if missing := [name for name, path in paths.items() if not path.is_file()]:
        raise FileNotFoundError(
            f"{said} lacks the files of {len(missing)} of {len(names)} images: {shorten(missing)}. "
            "An image without detections has a file too, with the number 0; where most lack, the files may be of "
            "other data, see data.root"
        )
    depths = {len(PurePosixPath(name).parts) for name in names}
    known = set(paths.values())
    others = sum(path not in known for depth in depths for path in home.glob("/".join(["*"] * (depth - 1) + ["*.txt"])))
    if others:
        warnings.warn(
            f"{said} has {others} files of images that are not among the {len(names)} evaluated; they are left out",
            stacklevel=2,
        )
    return {name: read_predictions(path) for name, path in paths.items()}


def _has_any(folder: Path, names: list[str]) -> bool:
    return any(prediction_path(folder, name).is_file() for name in names)


def _quick_predictions(path: Path) -> Tensor | None:
    """The detections of a file without a fault, several times as quickly; ``None`` where one has to be looked for."""
    try:
        _, number, rest = (path.read_bytes().decode("utf-8").rstrip() + "\n").split("\n", 2)
        count = int(number.strip()) if number.strip().isdecimal() else -1
        if rest.count("\n") != count or not count:
            return None
        rows = np.loadtxt(StringIO(rest), comments=None, ndmin=2)  # leaves empty lines out
    except ValueError:
        return None
    return torch.from_numpy(rows) if rows.shape == (count, _COLUMNS) and np.isfinite(rows).all() else None
