"""Rules that say which pictures of faces are easy and which are hard: tables, pose, groups, resolution.

A rule gives ``kinds``, ``(N,)`` int64 with the branch of each picture, 0 for easy and ``UNUSED`` for none, and the
names of the branches.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.face_lists import FaceFiles, read_column
from lit_methods.functional.pictures import BadImageError

EASY, HARD = "easy", "hard"
UNUSED = -1  # branch of a picture that is neither

Rule = tuple[NDArray[np.int64], list[str]]


def by_difficulty(files: FaceFiles, table: Path) -> Rule:
    """Split by a column ``difficulty``: ``easy``, ``hard``, or ``hard:<name>`` for a hard branch of its own.

    Args:
        files: the pictures.
        table: a CSV table with columns ``path`` and ``difficulty``.

    Returns:
        Kinds and names of the branches: easy, hard, and the named ones, sorted.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it does not parse, a difficulty is none of these, or nothing is easy or nothing is hard.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     files = FaceFiles(Path(root), np.array([b"1", b"2", b"3"]), np.arange(3), ["A", "B", "C"], "")
        ...     table = Path(root, "faces.csv")
        ...     _ = table.write_text("path,difficulty\\n1,easy\\n2,hard\\n3,hard:mask\\n")
        ...     by_difficulty(files, table)
        (array([0, 1, 2]), ['easy', 'hard', 'mask'])
    """

    def branch(line: int, value: str) -> str:
        word, colon, name = value.partition(":")
        if value in (EASY, HARD) or (word == HARD and colon and name.strip() not in ("", EASY, HARD)):
            return name.strip() or value
        raise ValueError(f"{table}, line {line}: the difficulty must be easy, hard or hard:<name>, got {value!r}")

    return _by_column(files, table, "difficulty", branch)


def by_group(files: FaceFiles, table: Path, easy_group: str) -> Rule:
    """Split by a column ``group``: one group is easy, each other is a hard branch of that name.

    Args:
        files: the pictures.
        table: a CSV table with columns ``path`` and ``group``.
        easy_group: name of the easy group.

    Returns:
        Kinds and names of the branches: easy, then the other groups, sorted.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it does not parse, there is no such group or no other, or another one is called ``"easy"``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     files = FaceFiles(Path(root), np.array([b"1", b"2", b"3"]), np.arange(3), ["A", "B", "C"], "")
        ...     table = Path(root, "faces.csv")
        ...     _ = table.write_text("path,group\\n1,b\\n2,a\\n3,c\\n")
        ...     by_group(files, table, easy_group="c")
        (array([2, 1, 0]), ['easy', 'a', 'b'])
    """

    def branch(line: int, value: str) -> str:
        if not value or (value == EASY and value != easy_group):
            raise ValueError(
                f"{table}, line {line}: the group must be a name, and easy only that of easy_group={easy_group!r}, got "
                f"{value!r}; leave out the line of a picture that is not to be used"
            )
        return EASY if value == easy_group else value

    return _by_column(files, table, "group", branch, f"easy_group={easy_group!r}: ")


def by_pose(files: FaceFiles, table: Path, easy_yaw: float = 15.0, hard_yaw: float = 45.0) -> Rule:
    """Split by a column ``yaw``, in degrees; pictures between the thresholds are not used.

    Args:
        files: the pictures.
        table: a CSV table with columns ``path`` and ``yaw``.
        easy_yaw: largest absolute yaw that is easy.
        hard_yaw: smallest one that is hard.

    Returns:
        Kinds and names of the branches.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it does not parse, or nothing is easy or nothing is hard.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     files = FaceFiles(Path(root), np.array([b"1", b"2", b"3"]), np.arange(3), ["A", "B", "C"], "")
        ...     table = Path(root, "faces.csv")
        ...     _ = table.write_text("path,yaw\\n1,-9.5\\n2,60\\n3,20\\n")
        ...     by_pose(files, table)
        (array([ 0,  1, -1]), ['easy', 'hard'])
    """

    def branch(line: int, value: str) -> str | None:
        try:
            yaw = abs(float(value))
        except ValueError:
            yaw = math.nan
        if not yaw <= 180:
            raise ValueError(
                f"{table}, line {line}: the yaw must be degrees from -180 to 180, got {value!r}; leave out the line of "
                "a picture whose pose is not known"
            )
        return EASY if yaw <= easy_yaw else HARD if yaw >= hard_yaw else None

    return _by_column(files, table, "yaw", branch, f"easy_yaw={easy_yaw:g} and hard_yaw={hard_yaw:g}: ")


def by_resolution(sides: NDArray[np.int64], easy_side: int, hard_side: int) -> Rule:
    """Split by the short side of the pictures as they are stored; those between the thresholds are not used.

    Args:
        sides: ``(N,)`` in pixels, as :func:`short_sides` finds them; 0 is never used.
        easy_side: smallest one that is easy.
        hard_side: smallest one that is no longer hard.

    Returns:
        Kinds and names of the branches.

    Raises:
        ValueError: nothing is easy or nothing is hard.

    Example:
        >>> by_resolution(np.array([112, 20, 50, 0]), easy_side=64, hard_side=32)
        (array([ 0,  1, -1, -1]), ['easy', 'hard'])
    """
    easy, hard = sides >= easy_side, (sides < hard_side) & (sides > 0)
    kinds = np.where(easy, 0, np.where(hard, 1, UNUSED))
    known = sides[sides > 0]
    found = f"; short sides are {known.min()} to {known.max()} pixels" if len(known) else ""
    _require_both(kinds, f"easy_side={easy_side} and hard_side={hard_side}: ", found)
    return kinds, [EASY, HARD]


def short_sides(files: FaceFiles, skip: bool = False) -> NDArray[np.int64]:
    """The short side of each picture as it is stored; only the beginning of a file is read.

    Args:
        files: the pictures.
        skip: a file that cannot be read is 0 pixels.

    Returns:
        ``(N,)`` int64.

    Raises:
        BadImageError: a file cannot be read.
    """

    def side(row: int) -> int:
        try:
            with Image.open(files.path(row)) as image:
                return min(image.size)
        except Exception as error:  # readers of picture formats raise nearly anything
            if skip:
                return 0
            raise BadImageError(
                f'cannot read the image {str(files.path(row))!r}: {error}. Remove the file, or set on_bad_image="skip".'
            ) from error

    with ThreadPoolExecutor() as pool:  # most of the time is waiting for the disk
        return np.fromiter(pool.map(side, range(len(files))), np.int64, len(files))


def _by_column(
    files: FaceFiles, table: Path, column: str, branch: Callable[[int, str], str | None], why: str = ""
) -> Rule:
    found: dict[str, list[int]] = {}
    for line, row, value in read_column(table, column, files):
        if (name := branch(line, value)) is not None:
            found.setdefault(name, []).append(row)
    names = [EASY, *([HARD] if HARD in found else []), *sorted(found.keys() - {EASY, HARD})]
    kinds = np.full(len(files), UNUSED)
    for number, name in enumerate(names):
        kinds[found.get(name, [])] = number
    _require_both(kinds, why, f" by column {column} of {table}")
    return kinds, names


def _require_both(kinds: NDArray[np.int64], why: str, where: str) -> None:
    if missing := [word for word, some in ((EASY, kinds == 0), (HARD, kinds > 0)) if not some.any()]:
        raise ValueError(f"{why}no picture is {' and none is '.join(missing)}{where}")
