"""The annotation of FDDB: faces as ellipses, in a list for each of the ten folds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from lit_methods.functional.text_lines import TextLine, read_lines

FOLDS = tuple(range(1, 11))
ENDING = ".jpg"


@dataclass(frozen=True)
class EllipseList:
    """Pictures and the ellipses of their faces.

    Args:
        names: paths of the pictures without ending, such as ``2002/08/11/big/img_591``.
        ellipses: (n, 5) float64 each: major radius, minor radius, angle in radians, x and y of the centre.
    """

    names: list[str]
    ellipses: list[NDArray[np.float64]]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def files(self) -> list[str]:
        """Paths of the pictures."""
        return [name + ENDING for name in self.names]


def read_folds(folder: Path, folds: Sequence[int] = FOLDS) -> EllipseList:
    """Read the lists of some folds, one after the other.

    Args:
        folder: holds ``FDDB-fold-01-ellipseList.txt`` and so on.
        folds: their numbers.

    Raises:
        FileNotFoundError: a list is missing.
        ValueError: a line does not parse, or a picture comes twice; names file and line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     text = "2002/08/11/big/img_591\\n1\\n123.5 85.5 1.25 269.5 161.75  1\\n"
        ...     _ = Path(folder, "FDDB-fold-03-ellipseList.txt").write_text(text)
        ...     found = read_folds(Path(folder), [3])
        >>> found.files, found.ellipses[0].tolist()
        (['2002/08/11/big/img_591.jpg'], [[123.5, 85.5, 1.25, 269.5, 161.75]])
    """
    names: dict[str, TextLine] = {}
    ellipses: list[NDArray[np.float64]] = []
    for fold in folds:
        lines = read_lines(folder / f"FDDB-fold-{fold:02d}-ellipseList.txt")
        place = 0
        while place < len(lines):
            place = _picture(lines, place, names, ellipses)
    return EllipseList(list(names), ellipses)


def _picture(lines: list[TextLine], place: int, names: dict[str, TextLine], ellipses: list[NDArray[np.float64]]) -> int:
    """Read the picture at a line; where the next one is."""
    line = lines[place]
    name = line.text.strip()
    path = PurePosixPath(name)
    if not name or line.numbers() or path.is_absolute() or ".." in path.parts:
        raise line.fault("expected the path of a picture here; is the number of faces above it right?")
    if name in names:
        raise line.fault(f"the picture was in {names[name].where} already; leave one of them out")
    if place + 1 == len(lines):
        raise line.fault("the list ends before the number of faces of this picture")
    count = lines[place + 1].whole(lines[place + 1].text.strip(), f"the number of faces of {name!r}")
    rows = lines[place + 2 : place + 2 + count]
    if len(rows) < count:
        raise lines[place + 1].fault(f"so many faces were to follow, but the list ends after {len(rows)}")
    names[name] = line
    ellipses.append(np.array([_ellipse(row) for row in rows], np.float64).reshape(-1, 5))
    return place + 2 + count


def _ellipse(line: TextLine) -> list[float]:
    numbers = line.numbers()
    if len(numbers) != 6 or not np.isfinite(numbers).all():
        raise line.fault("expected a face, six numbers: major radius, minor radius, angle, x and y of the centre, 1")
    if min(numbers[:2]) <= 0:
        raise line.fault("an ellipse must have radii above 0")
    return numbers[:5]
