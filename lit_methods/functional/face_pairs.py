"""Lists of face pairs in the layout of LFW's ``pairs.txt``."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_methods.functional.pictures import list_images
from lit_methods.functional.text_lines import TextLine, read_lines


class FacePairs(NamedTuple):
    """What :func:`read_pairs` finds: each picture once, and the pairs as rows of these."""

    files: list[str]  # relative to the list's folder
    first: NDArray[np.int64]  # (N,) row of the first picture of each pair, in the order of the list
    second: NDArray[np.int64]  # (N,)
    same: NDArray[np.bool_]  # (N,) the same person
    folds: int


def read_pairs(path: Path) -> FacePairs:
    r"""Read a list of pairs; the pictures are beside it, as ``<name>/<name>_<number, 4 digits>.<any picture ending>``.

    The first line is ``folds<TAB>n``, or ``n`` alone for one fold. Each fold is n lines ``name<TAB>number<TAB>number``,
    the same person twice, and n lines ``name<TAB>number<TAB>name<TAB>number``, two persons. A line without a tab may
    have single blanks in their place. Each folder is listed once; no picture is opened.

    Args:
        path: of the list.

    Returns:
        Files and pairs.

    Raises:
        FileNotFoundError: there is no such list, or a picture of it is not there.
        ValueError: a line is not what its place wants; names file and line.

    Source:
        Labeled Faces in the Wild, ``pairs.txt`` (view 2) and ``pairsDevTrain.txt`` (view 1).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("Ada", "Bob"):
        ...         Path(folder, name).mkdir()
        ...         for number in (1, 2):
        ...             Path(folder, name, f"{name}_000{number}.jpg").touch()
        ...     _ = Path(folder, "pairs.txt").write_text("1\nAda\t1\t2\nAda\t1\tBob\t2\n")
        ...     read_pairs(Path(folder, "pairs.txt"))
        FacePairs(files=['Ada/Ada_0001.jpg', 'Ada/Ada_0002.jpg', 'Bob/Bob_0002.jpg'],
                  first=array([0, 0]), second=array([1, 2]), same=array([ True, False]), folds=1)
    """
    lines = read_lines(path)
    if not lines:
        raise ValueError(f"{str(path)!r} is empty. Its first line must be folds<TAB>pairs, such as 10<TAB>300.")
    folds, size = _header(lines[0])
    pairs = [_pair(line, number, size) for number, line in enumerate(lines[1:])]
    _check_length(path, lines, folds, size)
    rows: dict[str, int] = {}  # file to row
    found = _Listings(path.parent)
    table = np.array(
        [
            [rows.setdefault(found.file(line, *picture), len(rows)) for picture in pair]
            for line, pair in zip(lines[1:], pairs, strict=True)
        ],
        np.int64,
    )
    same = np.arange(len(pairs)) % (2 * size) < size
    return FacePairs(list(rows), table[:, 0].copy(), table[:, 1].copy(), same, folds)


class _Listings:
    """Finds pictures whatever their ending, with one look into each person's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders: dict[str, dict[str, list[str]]] = {}  # person to stem to file names

    def file(self, line: TextLine, name: str, number: int) -> str:
        stem = f"{name}_{number:04d}"
        names = self._folder(name).get(stem, [])
        if not names:
            raise FileNotFoundError(
                f"{line.where}: no picture {str(self.root / name / stem)!r} with .jpg, .jpeg, .png or another ending. "
                "Unpack the pictures beside the list."
            )
        if len(names) > 1:
            raise line.fault(f"{' and '.join(names)} of {name} are both picture {number}; keep one of them")
        return f"{name}/{names[0]}"

    def _folder(self, name: str) -> dict[str, list[str]]:
        if name not in self.folders:
            stems: dict[str, list[str]] = {}
            try:
                files = list_images(self.root / name)
            except OSError:  # not there: the picture that is wanted is named
                files = []
            for file in files:
                stems.setdefault(os.path.splitext(file)[0], []).append(file)
            self.folders[name] = stems
        return self.folders[name]


def _header(line: TextLine) -> tuple[int, int]:
    fields = line.fields()
    if len(fields) not in (1, 2):
        raise line.fault("the first line must be folds<TAB>pairs, such as 10<TAB>300, or the number of pairs alone")
    numbers = [line.whole(field, "the number of folds or pairs", least=1) for field in fields]
    return (1, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])


def _check_length(path: Path, lines: list[TextLine], folds: int, size: int) -> None:
    expected = 2 * folds * size
    if len(lines) - 1 != expected:
        last = lines[-1].number
        raise ValueError(
            f"{str(path)!r}, line {last}: the list ends here after {len(lines) - 1} pairs, but its first line promises "
            f"{expected} ({folds} folds of {size} same and {size} different). Correct the first line or the list."
        )


def _pair(line: TextLine, number: int, size: int) -> tuple[tuple[str, int], tuple[str, int]]:
    """Names and numbers of pair ``number`` of the list, where a fold has ``size`` pairs of each kind."""
    fields = line.fields()
    fold, place = divmod(number, 2 * size)
    same = place < size
    wanted = "name<TAB>number<TAB>number (same)" if same else "name<TAB>number<TAB>name<TAB>number (different)"
    if len(fields) != (3 if same else 4):
        raise line.fault(
            f"{len(fields)} fields where pair {place + 1} of fold {fold + 1} must be {wanted}; each fold has its same "
            "pairs first, then as many different ones, and all folds have the size that the first line says"
        )
    names = [fields[0], fields[0] if same else fields[2]]
    numbers = [line.whole(field, "the number of a picture") for field in (fields[1], fields[-1])]
    if any(name in ("", ".", "..") or "/" in name or "\\" in name for name in names):
        raise line.fault(f"{names[0]!r} or {names[1]!r} is no name of a folder beside the list")
    if same and numbers[0] == numbers[1]:
        raise line.fault("a picture is paired with itself; name two")
    if not same and names[0] == names[1]:
        raise line.fault(f"a pair of different persons is {names[0]!r} twice; name two")
    return (names[0], numbers[0]), (names[1], numbers[1])
