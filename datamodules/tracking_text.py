"""Text files and folders of tracking data sets: numbers, flags, frames in their order, and whether these agree."""

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from lit_methods.functional import frames
from lit_methods.functional.suggestions import shorten
from lit_methods.functional.text_lines import quick_rows, read_lines


def list_frames(folder: Path) -> tuple[str, ...]:
    """Paths of the pictures in a folder, in natural order; hidden files are left out.

    Args:
        folder: of the frames of one video.

    Raises:
        FileNotFoundError: there is no such folder, or no picture in it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("10.jpg", "9.jpg"):
        ...         Path(folder, name).touch()
        ...     [Path(path).name for path in list_frames(Path(folder))]
        ['9.jpg', '10.jpg']
    """
    names = frames.list_frames(folder) if folder.is_dir() else []
    if not names:
        problem = "holds no pictures" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(f"the folder of frames {str(folder)!r} {problem}")
    return tuple(f"{folder}/{name}" for name in names)


def read_rows(path: Path, widths: Sequence[int] = (4,)) -> NDArray[np.float64]:
    """Read lines of numbers with commas, tabs or blanks between them.

    Args:
        path: the file.
        widths: how many numbers a line may have; all lines have equally many.

    Returns:
        ``(n, k)``, k one of ``widths``; NaN where a line says so.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, or a line does not parse; names the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "groundtruth.txt")
        ...     _ = path.write_text("1,2,3,4\\n5\\t6\\t7\\t8\\nNaN NaN NaN NaN\\n")
        ...     read_rows(path).tolist()
        [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0], [nan, nan, nan, nan]]
    """
    quick = quick_rows(path)
    if quick is not None and quick.shape[1] in widths:
        return quick
    lines = read_lines(path)
    if not lines:
        raise ValueError(f"{str(path)!r} is empty; it must have a line for each frame")
    rows: list[list[float]] = []
    for line in lines:
        numbers = line.numbers()
        wanted = widths if not rows else (len(rows[0]),)
        if len(numbers) not in wanted or np.isinf(numbers).any():
            words = " or ".join(map(str, wanted))
            raise line.fault(f"expected {words} numbers with commas, tabs or blanks between them")
        rows.append(numbers)
    return np.array(rows, np.float64)


def read_flags(path: Path) -> NDArray[np.bool_]:
    """Read a 0 or a 1 for each frame: all on one line with commas between them, or one on each line.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: something is neither 0 nor 1; names the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "full_occlusion.txt")
        ...     _ = path.write_text("0,1,0\\n")
        ...     read_flags(path).tolist()
        [False, True, False]
    """
    words = path.read_bytes().removeprefix(codecs.BOM_UTF8).replace(b",", b" ").split()
    if set(words) <= {b"0", b"1"}:
        return np.array([word == b"1" for word in words], bool)
    for line in read_lines(path):
        if wrong := [word for word in line.text.replace(",", " ").split() or [""] if word not in ("0", "1")]:
            shown = shorten(map(repr, wrong), 3)
            raise ValueError(f"{line.where}: expected a 0 or a 1 for each frame, got {shown}")
    raise ValueError(f"{str(path)!r}: expected a 0 or a 1 for each frame")


@dataclass
class Lengths:
    """Whether the parts of a video have equally many frames, and what was cut because they did not.

    Up to two frames, or one per cent, are a slip of whoever made the data set, as in a few videos of LaSOT: the video
    is cut to the shortest part, and :meth:`tell` warns once of all videos. More is an incomplete download or a wrong
    file.

    Args:
        cut: what was cut, in words.

    Example:
        >>> lengths = Lengths()
        >>> lengths.shortest("a", {"lines in a.txt": 101, "images in a/img": 100}), lengths.cut
        (100, ['a (101 lines in a.txt, 100 images in a/img)'])
        >>> lengths.shortest("b", {"lines in b.txt": 30, "images in b/img": 100})
        Traceback (most recent call last):
        ValueError: 'b' has 30 lines in b.txt, 100 images in b/img: ...
    """

    cut: list[str] = field(default_factory=list)

    def shortest(self, name: str, counts: dict[str, int]) -> int:
        """The number of frames that all parts have.

        Args:
            name: of the video.
            counts: what is counted, with its place, to how many there are.

        Raises:
            ValueError: they differ too much, or a part has none.
        """
        least, most = min(counts.values()), max(counts.values())
        words = ", ".join(f"{count} {what}" for what, count in counts.items())
        if not least or most - least > max(2, most // 100):
            raise ValueError(
                f"{name!r} has {words}: each frame needs one of each. Complete the download or correct the file; only "
                "a difference of up to two frames, or one per cent, is cut off."
            )
        if most > least:
            self.cut.append(f"{name} ({words})")
        return least

    def tell(self) -> None:
        """Warn of what was cut, if anything was."""
        if self.cut:
            rank_zero_warn(f"cut to the shorter of frames and annotation: {shorten(self.cut)}")


def flags_of(names: Sequence[str], flags: Iterable[bool]) -> tuple[str, ...]:
    """The names that are flagged.

    Example:
        >>> flags_of(("IV", "OCC"), [False, True])
        ('OCC',)
    """
    return tuple(name for name, flag in zip(names, flags, strict=True) if flag)
