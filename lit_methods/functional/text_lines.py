"""Lines of small text files, each of which knows its number for the message about what is wrong with it."""

import re
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_WHOLE = re.compile(r"[0-9]{1,18}")
_SEPARATORS = re.compile(r"\s*,\s*|\s+")


@dataclass(frozen=True)
class TextLine:
    """A line of a file.

    Args:
        path: the file.
        number: from 1.
        text: without its end.
    """

    path: Path
    number: int
    text: str

    @property
    def where(self) -> str:
        """The place, for a message."""
        return f"{str(self.path)!r}, line {self.number}"

    def fault(self, what: str) -> ValueError:
        """The error that says what is wrong with this line.

        Args:
            what: fault and cure.
        """
        return ValueError(f"{self.where}: {what}. The line is {self.text!r}.")

    def fields(self) -> list[str]:
        r"""What tabs separate, or single blanks where there is no tab.

        Example:
            >>> TextLine(Path("a"), 1, "Ada van A\t1\t2").fields(), TextLine(Path("a"), 1, "Ada 1 2").fields()
            (['Ada van A', '1', '2'], ['Ada', '1', '2'])
        """
        return [field.strip() for field in self.text.split("\t" if "\t" in self.text else " ")]

    def numbers(self) -> list[float]:
        r"""What commas, tabs or blanks separate, a comma at the end left out; nothing where something is no number.

        Example:
            >>> TextLine(Path("a"), 1, "1, 2\t3 NaN,").numbers(), TextLine(Path("a"), 1, "1,,2").numbers()
            ([1.0, 2.0, 3.0, nan], [])
        """
        try:
            return [float(part) for part in _SEPARATORS.split(self.text.strip().rstrip(", \t"))]
        except ValueError:
            return []

    def whole(self, text: str, what: str, least: int = 0) -> int:
        """A whole number.

        Args:
            text: a field of this line.
            what: what the number means.
            least: the smallest allowed.

        Raises:
            ValueError: it is none, or too small.
        """
        if not _WHOLE.fullmatch(text) or int(text) < least:
            raise self.fault(f"{what} must be a whole number from {least} up, got {text!r}")
        return int(text)


def quick_rows(path: Path) -> NDArray[np.float64] | None:
    """The numbers of a file without a fault, quickly.

    Line by line takes several times as long, and LaSOT has 3.5 million lines.

    Args:
        path: ASCII, with commas, tabs or blanks between the numbers of a line.

    Returns:
        ``(n, k)``, NaN where a line says so; ``None`` where a fault has to be looked for line by line.

    Raises:
        FileNotFoundError: there is no such file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "boxes.txt")
        ...     _ = path.write_text("1,2\\n3,4\\n")
        ...     quick_rows(path).tolist()
        [[1.0, 2.0], [3.0, 4.0]]
    """
    try:
        text = path.read_bytes().decode("ascii").rstrip()
        if not text:
            return None
        rows = np.loadtxt(StringIO(text), delimiter="," if "," in text else None, comments=None, ndmin=2)
    except ValueError:
        return None
    # an empty line is left out by NumPy: all rows after it would belong to other frames
    return rows if len(rows) == text.count("\n") + 1 and not np.isinf(rows).any() else None


def read_lines(path: Path) -> list[TextLine]:
    """The lines of a text file, white space at their ends and empty lines at its end left out.

    Args:
        path: the file, UTF-8, with or without a byte order mark.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8; names the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "list")
        ...     _ = path.write_bytes(b"one\\r\\ntwo\\n\\n")
        ...     [line.text for line in read_lines(path)]
        ['one', 'two']
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{str(path)!r}, line {number}: not UTF-8 text; save the file as UTF-8") from None
    lines = [TextLine(path, number, line.rstrip()) for number, line in enumerate(text.rstrip().split("\n"), 1)]
    return lines if text.strip() else []
