"""Which faces there are and whose: folders of identities, index lists, and tables that say more of each picture.

Every fault of a list or a table is told with the file and the line.
"""

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_methods.functional.pictures import list_images
from lit_methods.functional.suggestions import shorten

_DIGITS = 18  # of the largest label: more do not fit into 64 bits


@dataclass(frozen=True)
class FaceFiles:
    """Picture files with an identity each.

    Args:
        root: paths count from it.
        names: ``(N,)`` paths of the files, as bytes.
        ids: ``(N,)`` int64, number of the identity of each in ``identities``.
        identities: names of the folders, sorted; or the labels of a list as text, in the order of the numbers.
        source: the argument that named the place and its value, for messages.
        prefix: what all paths begin with; paths in tables about these files count from there.
        labelled: the identities are the labels of a list.
    """

    root: Path
    names: NDArray[np.bytes_]  # one array: workers would copy many strings, page by page, as they count references
    ids: NDArray[np.int64]
    identities: list[str]
    source: str
    prefix: str = ""
    labelled: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def path(self, row: int) -> Path:
        """The file of a row."""
        return self.root / os.fsdecode(self.names[row])


def read_faces(root: Path, place: str, argument: str = "train") -> FaceFiles:
    """Read a folder of identity folders, or an index list.

    A folder has ``<identity>/<picture>``, no deeper. A line of a list is ``path<TAB>label``, or
    ``pathA<TAB>pathB<TAB>label`` for a pair of pictures of one identity; a list of pairs stands for the pictures in it,
    each once, and which of them make a pair is drawn anew. Labels are whole numbers from 0. Paths in a list count from
    ``root``.

    Args:
        root: of the data set.
        place: the folder or the list, from ``root`` or absolute.
        argument: that named it, for messages.

    Raises:
        FileNotFoundError: there is neither such a folder nor such a file, or a picture of a list is not there.
        ValueError: a folder has no pictures, or a line does not parse, or names a picture a second time.

    Source:
        The layouts of TFace's ``distfc`` and ``ddl`` tasks, without their TFRecord files.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Path(root, "Ada").mkdir()
        ...     for name in ("Ada/2.jpg", "Ada/1.jpg"):
        ...         Path(root, name).touch()
        ...     _ = Path(root, "list.txt").write_text("Ada/2.jpg\\t7\\n")
        ...     folders, listed = read_faces(Path(root), "."), read_faces(Path(root), "list.txt")
        >>> folders.names.tolist(), folders.identities, listed.names.tolist(), listed.identities
        ([b'Ada/1.jpg', b'Ada/2.jpg'], ['Ada'], [b'Ada/2.jpg'], ['7'])
    """
    source = f"{argument}={place!r}"
    if (root / place).is_dir():
        return _read_folder(root, place, source)
    if (root / place).is_file():
        return _read_list(root, root / place, source)
    raise FileNotFoundError(
        f"{source} is not in root={str(root)!r}: it must be a folder with <identity>/<picture>, or a list of "
        "path<TAB>label"
    )


def read_column(path: Path, column: str, files: FaceFiles) -> Iterator[tuple[int, int, str]]:
    """Read a column of a CSV table about pictures.

    The first line names the columns, ``path`` among them; others may be there. Paths count from the folder of the
    pictures, or are as in their list. Pictures without a line are none of the table's.

    Args:
        path: the table.
        column: to read.
        files: the pictures.

    Yields:
        Number of the line, row in ``files``, and what the column says.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: a column is missing, a line has too few fields, or its picture is unknown or comes a second time.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     files = FaceFiles(Path(root), np.array([b"a.jpg"]), np.array([0]), ["0"], "train='list.txt'")
        ...     _ = Path(root, "d.csv").write_text("path,difficulty\\na.jpg,hard\\n")
        ...     list(read_column(Path(root, "d.csv"), "difficulty", files))
        [(2, 0, 'hard')]
    """
    if not path.is_file():
        raise FileNotFoundError(f"difficulty={str(path)!r} is not there; it must be a CSV table with path,{column}")
    rows = {os.fsdecode(name): row for row, name in enumerate(files.names.tolist())}
    lines: dict[int, int] = {}  # of the rows that came so far
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        table = csv.reader(file)
        header = [name.strip() for name in next(table, [])]
        if missing := [name for name in ("path", column) if name not in header]:
            raise ValueError(
                f"{path} has no column {' and no column '.join(missing)}; its first line must name its columns, with "
                f"commas between them, got {shorten(map(repr, header)) or 'an empty file'}"
            )
        where, what = header.index("path"), header.index(column)
        for fields in _rows(table, path):
            place = f"{path}, line {table.line_num}"
            if len(fields) <= max(where, what):
                raise ValueError(f"{place}: expected {len(header)} fields with commas between them, got {_cut(fields)}")
            name = fields[where].strip()
            row = rows.get(os.path.normpath(os.path.join(files.prefix, name)))
            if row is None:
                at = f"{files.prefix} in root" if files.prefix else "root"
                raise ValueError(
                    f"{place}: {name!r} is none of the {len(files)} pictures of {files.source}; paths count from {at}"
                )
            if row in lines:
                raise ValueError(f"{place}: {name!r} stands in line {lines[row]} already; name each picture once")
            lines[row] = table.line_num
            yield table.line_num, row, fields[what].strip()


def _rows(table: Any, path: Path) -> Iterator[list[str]]:
    """The lines that are not empty."""
    try:
        yield from filter(None, table)
    except csv.Error as error:
        raise ValueError(f"{path}, line {table.line_num}: {error}") from error


def _read_folder(root: Path, place: str, source: str) -> FaceFiles:
    folder, prefix = root / place, os.path.normpath(place)
    prefix = "" if prefix == os.curdir else prefix
    with os.scandir(folder) as entries:
        identities = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not identities:
        loose = " Its pictures lie loose: sort them into one folder per identity." if list_images(folder) else ""
        raise ValueError(f"{source} of root={str(root)!r} has no folders of identities.{loose}")
    found = [list_images(folder / name) for name in identities]
    if empty := [name for name, pictures in zip(identities, found, strict=True) if not pictures]:
        raise ValueError(
            f"no pictures in these identity folders of {source}: {shorten(empty)}. Remove or fill them; folders inside "
            "them are not looked into."
        )
    names = [
        os.path.join(prefix, name, picture)
        for name, pictures in zip(identities, found, strict=True)
        for picture in pictures
    ]
    ids = np.repeat(np.arange(len(found)), [len(pictures) for pictures in found])
    return FaceFiles(root, _as_bytes(names), ids, identities, source, prefix)


def _read_list(root: Path, path: Path, source: str) -> FaceFiles:
    names: list[str] = []
    labels: list[int] = []
    first: dict[str, tuple[int, int]] = {}  # of each picture the line that named it first, and its label
    width = 0
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            *pictures, text = line.rstrip("\r\n").split("\t")
            width = width or len(pictures)
            label = _label(place, pictures, text, width)
            for name in pictures:
                name = os.path.normpath(name)
                if name not in first:
                    first[name] = (number, label)
                    names.append(name)
                    labels.append(label)
                elif width == 1 or first[name][1] != label or first[name][0] == number:
                    raise ValueError(_repeated(place, name, number, label, *first[name]))
    if not names:
        raise ValueError(f"{path} ({source}) names no pictures; its lines must be path<TAB>label")
    if missing := _missing(root, names):
        number, _ = first[missing]
        raise FileNotFoundError(
            f"{path}, line {number}: there is no picture {missing!r} in root={str(root)!r}, where the paths in lists "
            "begin; correct the path, or take the line out"
        )
    distinct, ids = np.unique(np.array(labels, np.int64), return_inverse=True)
    return FaceFiles(
        root, _as_bytes(names), ids.astype(np.int64), [*map(str, distinct.tolist())], source, labelled=True
    )


def _label(place: str, pictures: list[str], text: str, width: int) -> int:
    """The label of a line, once its fields are what they should be."""
    if len(pictures) in (3, 7):
        raise ValueError(
            f"{place}: {len(pictures) + 1} fields, as in lists of TFRecord files, which are not read here; unpack the "
            "pictures in them and list these as path<TAB>label"
        )
    if len(pictures) != width or width not in (1, 2) or not all(name.strip() for name in pictures):
        form = "pathA<TAB>pathB<TAB>label, as the lines before it" if width == 2 else "path<TAB>label"
        raise ValueError(f"{place}: expected {form}, got {_cut(chr(9).join([*pictures, text]))}")
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        raise ValueError(f"{place}: the label must be a whole number from 0, got {_cut(text)}")
    return int(text)


def _repeated(place: str, name: str, number: int, label: int, at: int, known: int) -> str:
    if known != label:
        return f"{place}: {name!r} has label {label}, in line {at} it has {known}; a picture shows one identity"
    if at == number:
        return f"{place}: {name!r} makes a pair with itself"
    return f"{place}: {name!r} stands in line {at} already; name each picture once"


def _missing(root: Path, names: list[str]) -> str | None:
    """The first file that is not there. Each folder is listed once, as millions of single questions take long."""
    missing = len(names)
    listed, inside = None, frozenset[str]()
    for row in sorted(range(len(names)), key=names.__getitem__):
        folder, name = os.path.split(names[row])
        if folder != listed:
            try:
                listed, inside = folder, frozenset(os.listdir(root / folder))
            except OSError:
                listed, inside = folder, frozenset()
        if name not in inside:
            missing = min(missing, row)
    return names[missing] if missing < len(names) else None


def _as_bytes(names: list[str]) -> NDArray[np.bytes_]:
    return np.array([os.fsencode(name) for name in names], dtype=np.bytes_)


def _cut(text: object, most: int = 80) -> str:
    """What a line says, in a message."""
    shown = repr(text)
    return shown if len(shown) <= most else shown[:most] + "..."
