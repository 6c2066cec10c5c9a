"""Files of the IJB-B and IJB-C protocols: which picture belongs to which template, which templates are compared."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LANDMARKS = 5


class IJBTemplates(NamedTuple):
    """What :func:`read_templates` finds, a row per picture."""

    images: NDArray[np.bytes_]  # (N,) file names; one array, for there are half a million
    templates: NDArray[np.int64]  # (N,)
    medias: NDArray[np.int64]  # (N,)


class IJBPairs(NamedTuple):
    """What :func:`read_template_pairs` finds, a row per comparison."""

    p1: NDArray[np.int64]  # (P,) template
    p2: NDArray[np.int64]  # (P,) template
    same: NDArray[np.bool_]  # (P,)


class IJBLandmarks(NamedTuple):
    """What :func:`read_landmarks` finds, a row per picture."""

    images: NDArray[np.bytes_]  # (N,) file names
    points: NDArray[np.float64]  # (N, 5, 2) x and y in pixels: eyes, nose, corners of the mouth
    scores: NDArray[np.float64]  # (N,) of the detector


def read_templates(path: Path) -> IJBTemplates:
    r"""Read ``ijbb_face_tid_mid.txt``: lines of ``image template media``, separated by blanks.

    Args:
        path: of the file.

    Returns:
        Names, templates and medias.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line does not parse; names file and line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "ijbb_face_tid_mid.txt")
        ...     _ = path.write_text("1.jpg 17 4020\n2.jpg 17 4021\n")
        ...     read_templates(path)
        IJBTemplates(images=array([b'1.jpg', b'2.jpg'], dtype='|S5'), templates=array([17, 17]),
                     medias=array([4020, 4021]))
    """
    names, numbers = _names_and_numbers(path, ["image", "template", "media"], np.int64)
    return IJBTemplates(names, numbers[:, 0].copy(), numbers[:, 1].copy())


def read_template_pairs(path: Path) -> IJBPairs:
    r"""Read ``ijbb_template_pair_label.txt``: lines of ``template template label``, 1 for the same person, else 0.

    Args:
        path: of the file; that of IJB-C has 15,658,489 lines.

    Returns:
        Templates and labels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line does not parse; names file and line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "ijbb_template_pair_label.txt")
        ...     _ = path.write_text("1 11065 1\n1 11066 0\n")
        ...     read_template_pairs(path)
        IJBPairs(p1=array([1, 1]), p2=array([11065, 11066]), same=array([ True, False]))
    """
    columns = ["template", "template", "label"]
    table = _table(path, np.dtype([("row", np.int64, (3,))]), columns, [int] * 3)["row"]
    labels = table[:, 2]
    if len(wrong := np.flatnonzero((labels != 0) & (labels != 1))):
        line = _line_of_row(path, int(wrong[0]))
        raise ValueError(f"{str(path)!r}, line {line}: label must be 1 (same) or 0, got {labels[wrong[0]]}")
    return IJBPairs(table[:, 0].copy(), table[:, 1].copy(), labels == 1)


def read_landmarks(path: Path) -> IJBLandmarks:
    r"""Read ``ijbb_name_5pts_score.txt``: lines of ``image x1 y1 .. x5 y5 score``, separated by blanks.

    Args:
        path: of the file.

    Returns:
        Names, points and scores.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line does not parse; names file and line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "ijbb_name_5pts_score.txt")
        ...     _ = path.write_text("1.jpg 46.1 62.0 87.9 62.7 68.0 89.7 49.0 108.0 85.2 108.5 0.99\n")
        ...     found = read_landmarks(path)
        >>> found.points[0, 2], found.scores
        (array([68. , 89.7]), array([0.99]))
    """
    columns = ["image", *(f"{axis}{point}" for point in range(1, LANDMARKS + 1) for axis in "xy"), "score"]
    names, numbers = _names_and_numbers(path, columns, np.float64)
    if len(wrong := np.flatnonzero(~np.isfinite(numbers).all(1))):
        raise ValueError(f"{str(path)!r}, line {_line_of_row(path, int(wrong[0]))}: a number is not finite")
    return IJBLandmarks(names, numbers[:, :-1].reshape(-1, LANDMARKS, 2).copy(), numbers[:, -1].copy())


def _names_and_numbers(
    path: Path, columns: Sequence[str], dtype: type[np.int64] | type[np.float64]
) -> tuple[NDArray[np.bytes_], NDArray]:
    """First column as names, the others as numbers."""
    with path.open("rb") as file:
        width = max(map(len, file), default=1)  # no name is longer than the longest line
    row = np.dtype([("name", f"S{width}"), ("numbers", dtype, (len(columns) - 1,))])
    table = _table(path, row, columns, [bytes, *[int if dtype is np.int64 else float] * (len(columns) - 1)])
    names = table["name"]
    return names.astype(f"S{np.char.str_len(names).max()}"), table["numbers"]


def _table(path: Path, dtype: np.dtype, columns: Sequence[str], kinds: Sequence[type]) -> NDArray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # no lines at all; fractions, which would be cut off
            return np.loadtxt(path, dtype, comments=None, ndmin=1, encoding="latin1")
    except (ValueError, Warning):
        raise _fault(path, columns, kinds) from None


def _fault(path: Path, columns: Sequence[str], kinds: Sequence[type]) -> ValueError:
    """What is wrong with the first line that is: read again, slowly, once something is known to be wrong."""
    wanted = f"a line is {' '.join(columns)}, separated by blanks"
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{str(path)!r}, line {number}"
            fields = line.split()
            if fields and len(fields) != len(columns):
                return ValueError(f"{where}: {len(fields)} fields; {wanted}")
            for name, kind, field in zip(columns, kinds, fields, strict=False):
                try:
                    kind(field) if kind is not int else np.int64(int(field))
                except (ValueError, OverflowError):
                    text = field.decode(errors="replace")
                    what = "a whole number" if kind is int else "a number"
                    return ValueError(f"{where}: {name} must be {what}, got {text!r}; {wanted}")
    return ValueError(f"{str(path)!r} cannot be read; {wanted}, and there must be one at least")


def _line_of_row(path: Path, row: int) -> int:
    """Line, from 1, of the row of this number among lines that are not empty."""
    with path.open("rb") as file:
        full = (number for number, line in enumerate(file, 1) if line.split())
        return next(number for count, number in enumerate(full) if count == row)
