"""The lists of WIDER FACE: which pictures there are and where their faces are."""

import re
from dataclasses import dataclass
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lit_methods.functional.pictures import SUFFIXES, require_files as require_files
from lit_methods.functional.text_lines import TextLine, read_lines

ATTRIBUTES = ("blur", "expression", "illumination", "invalid", "occlusion", "pose")
INVALID = ATTRIBUTES.index("invalid")
COLUMNS = ("x", "y", "w", "h", *ATTRIBUTES)

_LIMIT = 10**9
_PLAIN = re.compile(r"[-0-9\s]*")
_FACE = re.compile(r"(?:-?[0-9]{1,9}\s+){9}-?[0-9]{1,9}")


@dataclass(frozen=True)
class FaceList:
    """The pictures of a list, and their faces.

    Args:
        path: the list itself.
        files: paths of the pictures, from their folder.
        ends: ``(N,)`` int64, where the faces of each picture end in ``faces``.
        faces: ``(M, 10)`` int64: x, y, w, h, blur, expression, illumination, invalid, occlusion, pose.
    """

    path: Path
    files: list[str]
    ends: NDArray[np.int64]
    faces: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def names(self) -> list[str]:
        """What pictures are called in evaluation: their paths without ending, event and stem."""
        return [file.rpartition(".")[0] for file in self.files]

    def faces_of(self, number: int) -> NDArray[np.int64]:
        """The faces of a picture, ``(n, 10)``.

        Args:
            number: of the picture.
        """
        return self.faces[self.ends[number - 1] if number else 0 : self.ends[number]]

    def faces_in(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of ``faces`` that belong to some pictures.

        Args:
            numbers: of the pictures, rising.
        """
        chosen = np.zeros(len(self), bool)
        chosen[numbers] = True
        return np.flatnonzero(np.repeat(chosen, np.diff(self.ends, prepend=0)))

    def part(self, numbers: NDArray[np.int64]) -> Self:
        """A list of some of the pictures.

        Args:
            numbers: of the pictures, rising.
        """
        ends = np.cumsum(np.diff(self.ends, prepend=0)[numbers])
        return type(self)(self.path, [self.files[n] for n in numbers], ends, self.faces[self.faces_in(numbers)])


def read_face_list(path: Path) -> FaceList:
    r"""Read ``wider_face_train_bbx_gt.txt`` or another list of this layout.

    For each picture there is a line with its path, one with the number of faces, and one for each face, ten whole
    numbers: x, y, w, h in pixels, blur, expression, illumination, invalid, occlusion, pose. Where the number is 0, a
    line of ten zeros follows, which is no face; lists that leave this line out are read as well. Sizes that are 0 or
    below are data, the official lists have some: who reads the faces decides what to do with them.

    Args:
        path: the list.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: a line does not parse, or a picture comes twice; names file and line.

    Source:
        ``readme.txt`` of wider_face_split for the columns. Torchvision's ``WIDERFace`` takes the last three for
        occlusion, pose, invalid, and keeps the line of zeros as a face.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "list.txt")
        ...     lines = ["a/1.jpg", "1", "10 20 30 40 0 0 0 0 2 1 ", "b/2.jpg", "0", "0 0 0 0 0 0 0 0 0 0 "]
        ...     _ = path.write_text("\n".join(lines))
        ...     found = read_face_list(path)
        >>> found.names, found.faces_of(0).tolist(), found.faces_of(1).shape
        (['a/1', 'b/2'], [[10, 20, 30, 40, 0, 0, 0, 0, 2, 1]], (0, 10))
    """
    lines = read_lines(path)
    if not lines:
        raise ValueError(f"the list {str(path)!r} is empty; expected paths of pictures, each with its faces")
    files: list[str] = []
    counts: list[int] = []
    faces: list[TextLine] = []
    try:
        _take_apart(lines, files, counts, faces)
    except ValueError:
        _rows(faces)  # a wrong line before that one is what misled it
        raise
    return FaceList(path, files, np.cumsum(counts, dtype=np.int64), _rows(faces))


def _take_apart(lines: list[TextLine], files: list[str], counts: list[int], faces: list[TextLine]) -> None:
    names: dict[str, int] = {}  # to the line
    place = 0
    while place < len(lines):
        line = lines[place]
        files.append(_picture(line, names))
        if place + 1 == len(lines):
            raise line.fault("the list ends before the number of faces of this picture")
        count = lines[place + 1].whole(lines[place + 1].text.strip(), f"the number of faces of {files[-1]!r}")
        place += 2
        faces += lines[place : place + count]
        if len(lines) < place + count:
            raise lines[place - 1].fault(f"so many faces were to follow, but the list ends after {len(lines) - place}")
        counts.append(count)
        place += count
        place += count == 0 and place < len(lines) and _zeros(lines[place])


def _picture(line: TextLine, names: dict[str, int]) -> str:
    """The path in a line; its name goes to the others."""
    file = line.text.strip()
    if not file.lower().endswith(SUFFIXES):
        raise line.fault("expected the path of a picture here; is the number of faces above it right?")
    if file.startswith("/") or ".." in PurePosixPath(file).parts:
        raise line.fault("the path of a picture must lead into the folder of the pictures, such as event/1.jpg")
    name = file.rpartition(".")[0]
    if (other := names.setdefault(name, line.number)) != line.number:
        raise line.fault(f"the picture {name!r} was in line {other} already; leave one of them out")
    return file


def _rows(lines: list[TextLine]) -> NDArray[np.int64]:
    """All faces, ``(M, 10)``: at once where nothing is wrong with them, as the list of training has 159,000."""
    text = "\n".join(line.text for line in lines)
    if text and _PLAIN.fullmatch(text):
        try:
            rows = np.loadtxt(StringIO(text), np.int64, comments=None, ndmin=2)
        except (ValueError, OverflowError):
            rows = np.empty((0, 0), np.int64)
        if rows.shape == (len(lines), len(COLUMNS)) and (np.abs(rows) < _LIMIT).all():
            return rows
    return np.array([_face(line) for line in lines], np.int64).reshape(-1, len(COLUMNS))


def _face(line: TextLine) -> list[int]:
    text = line.text.strip()
    if not _FACE.fullmatch(text):
        raise line.fault(f"expected a face, ten whole numbers: {' '.join(COLUMNS)}")
    return [int(number) for number in text.split()]


def _zeros(line: TextLine) -> bool:
    """Whether this is the line that stands for no faces."""
    if not _FACE.fullmatch(line.text.strip()):
        return False
    if any(_face(line)):
        raise line.fault("a face follows the number 0; where there is none, ten zeros or the next picture should")
    return True
