"""Word vectors in the text format of GloVe."""

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from lit_methods.functional.suggestions import first_line

_HEADER = re.compile(rb"([0-9]+)[ \t]([0-9]+)")
_LOOKED_AT = 1000  # lines that decide how many numbers a vector has
_GZIP, _ZIP, _MARK = b"\x1f\x8b", b"PK", b"\xef\xbb\xbf"

Line = tuple[int, bytes]  # number from 1, text without its end


def read_glove(path: str | Path, words: Collection[str] | None = None) -> tuple[list[str], NDArray[np.float32]]:
    r"""Read word vectors from a text file, all of them or those of some words.

    A line is a word and the numbers of its vector, with blanks between them. The words of the Common Crawl files may
    have blanks themselves, so that lines are taken apart from their end; how many numbers a vector has is what most of
    the first lines say. A first line "count dimension", as word2vec and fastText write it, is accepted. Of a word that
    comes twice the first line counts. Lines of other words are counted and held against the number of their fields,
    while their numbers are not read.

    Args:
        path: the file, UTF-8, plain or compressed by gzip (told by its first bytes).
        words: wanted; ``None`` is all.

    Returns:
        The words that the file has, in its order, and their vectors, ``(n, E)``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, cut off or damaged; names the line.

    Source:
        Layout of https://nlp.stanford.edu/projects/glove.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "glove.txt")
        ...     _ = path.write_text("red 1 0.5\n. . 0 1\nblue -1 2e-1\n")
        ...     found, vectors = read_glove(path, ["blue", "red", "mauve"])
        >>> found, vectors.shape, vectors[1].tolist() == np.float32([-1, 0.2]).tolist()
        (['red', 'blue'], (2, 2), True)
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no file of word vectors {str(path)!r}; unpack one of https://nlp.stanford.edu/projects/glove there, or "
            "name another"
        )
    with _opened(path) as file:
        try:
            return _read(path, _lines(file), None if words is None else {word.encode() for word in words})
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"the word vectors {str(path)!r} are damaged or cut off ({first_line(error)}); get the file again"
            ) from None


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        start = file.read(2)
        file.seek(0)
        if start == _ZIP:
            raise ValueError(f"the word vectors {str(path)!r} are a zip archive; unpack it and name the text file")
        if start != _GZIP:
            yield file
            return
        with gzip.open(file) as plain:
            yield cast(IO[bytes], plain)


def _lines(file: IO[bytes]) -> Iterator[Line]:
    for number, line in enumerate(file, 1):
        yield number, (line.removeprefix(_MARK) if number == 1 else line).rstrip()


def _read(path: Path, lines: Iterator[Line], wanted: set[bytes] | None) -> tuple[list[str], NDArray[np.float32]]:
    head = list(islice(lines, _LOOKED_AT))
    header = _HEADER.fullmatch(head[0][1]) if head else None
    if header and int(header[2]) == _size(head[1:]) > 1:
        head = head[1:]
    else:
        header = None
    size = _size(head)
    if size == 0:
        raise ValueError(f"{str(path)!r} has no word vectors; expected lines of a word and its numbers, with blanks")
    starts = None if wanted is None else {word.partition(b" ")[0] for word in wanted}
    rows: dict[bytes, NDArray[np.float32]] = {}
    count, empty = 0, 0
    for number, line in chain(head, lines):
        if not line:  # fine at the end of the file
            empty = empty or number
            continue
        if empty or line.count(b" ") < size:
            raise _damaged(path, empty or number, size)
        count += 1
        if starts is not None and line[: line.index(b" ")] not in starts:
            continue
        word, *fields = line.rsplit(b" ", size)
        if word not in rows and (wanted is None or word in wanted):
            rows[word] = _numbers(path, number, fields)
    if header and count != int(header[1]):
        raise ValueError(
            f"the first line of {str(path)!r} promises {int(header[1])} words, but it has {count}; get the file again"
        )
    vectors = np.stack(list(rows.values())) if rows else np.zeros((0, size), np.float32)
    return [_text(path, word) for word in rows], vectors


def _size(lines: list[Line]) -> int:
    """How many numbers most of these lines have; of several the first."""
    counted = Counter(line.count(b" ") for _, line in lines if line)
    return counted.most_common(1)[0][0] if counted else 0


def _numbers(path: Path, number: int, fields: list[bytes]) -> NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):
            vector = np.array([float(field) for field in fields], np.float32)
    except ValueError:
        raise _damaged(path, number, len(fields)) from None
    if not np.isfinite(vector).all():
        raise _damaged(path, number, len(fields))
    return vector


def _text(path: Path, word: bytes) -> str:
    try:
        return word.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{str(path)!r}: the word {word!r} is not UTF-8 text; save the file as UTF-8") from None


def _damaged(path: Path, number: int, size: int) -> ValueError:
    return ValueError(
        f"{str(path)!r}, line {number}: expected a word and {size} finite numbers, with blanks between them; get the "
        "file again, or take the line out"
    )
