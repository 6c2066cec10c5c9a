"""Sets for face identification: a gallery of known persons, and groups of probes that are looked up in it."""

import csv
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_methods.functional.suggestions import nearest, shorten
from lit_methods.functional.text_lines import TextLine, read_lines

GALLERY = "gallery"
COLUMNS = ("path", "label", "group")


class FaceProbes(NamedTuple):
    """What :func:`read_probes` and :func:`~datamodules.scface.read_scface` find, in the order of the file or folder."""

    files: list[str]  # relative to the folder
    labels: NDArray[np.int64]  # (N,) number of each picture's person in identities
    group: NDArray[np.int64]  # (N,) -1 for the gallery, else a number of groups
    identities: list[str]
    groups: tuple[str, ...]


def read_probes(path: Path) -> FaceProbes:
    r"""Read a CSV of gallery and probes: columns ``path``, ``label`` and ``group``; others are not looked at.

    ``path`` is relative to the file's folder, ``label`` any name of the person, ``group`` the word ``gallery`` or the
    name of a group of probes. Groups and persons are numbered in the order in which they come. Each folder is listed
    once; no picture is opened.

    Args:
        path: of the file.

    Returns:
        Files with persons and groups.

    Raises:
        FileNotFoundError: there is no such file, or a picture of it is not there; names file and line.
        ValueError: a column is missing, a line does not parse, a picture comes twice in a group or under two persons,
            one of the gallery is a probe, or the gallery is not fit for the probes, see :func:`check_probes`.

    Example:
        >>> import tempfile
        >>> text = "path,label,group\n1.png,Ada,gallery\n2.png,Bob,gallery\n3.png,Bob,far\n"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("1.png", "2.png", "3.png"):
        ...         Path(folder, name).touch()
        ...     _ = Path(folder, "probes.csv").write_text(text)
        ...     found = read_probes(Path(folder, "probes.csv"))
        >>> found.labels, found.group, found.identities, found.groups
        (array([0, 1, 1]), array([-1, -1,  0]), ['Ada', 'Bob'], ('far',))
    """
    lines = [line for line in read_lines(path) if line.text]
    places = _columns(path, lines)
    files, labels, groups = [], [], []
    identities: dict[str, int] = {}
    names: dict[str, int] = {}
    seen: dict[str, _Use] = {}
    folders = Folders(path.parent)
    for line in lines[1:]:
        file, label, group = _values(line, places)
        if not folders.has(file):
            raise FileNotFoundError(
                f"{line.where}: no picture {str(path.parent / file)!r}; correct the path, or unpack"
            )
        _check_use(line, seen, file, label, group)
        files.append(file)
        labels.append(identities.setdefault(label, len(identities)))
        groups.append(-1 if group == GALLERY else names.setdefault(group, len(names)))
    found = FaceProbes(files, np.array(labels, np.int64), np.array(groups, np.int64), list(identities), tuple(names))
    check_probes(found, path)
    return found


def check_probes(probes: FaceProbes, path: Path) -> None:
    """Make sure that the probes can be found, and that finding them says something.

    Args:
        probes: gallery and probes.
        path: what a message names.

    Raises:
        ValueError: there are no probes, the gallery has fewer than two persons, or a probe's person is not in it.
    """
    gallery = np.unique(probes.labels[probes.group == -1])
    if not probes.groups:
        raise ValueError(f"{str(path)!r} has no probes, only the gallery; add pictures of another group")
    if len(gallery) < 2:
        raise ValueError(
            f"{str(path)!r} has a gallery of {len(gallery)} persons; looking up a face needs at least two with a "
            "gallery picture"
        )
    if len(strangers := np.setdiff1d(probes.labels[probes.group >= 0], gallery)):
        names = shorten(probes.identities[label] for label in strangers.tolist())
        raise ValueError(
            f"{str(path)!r}: these persons have probes but no gallery picture, so nobody could find them: {names}. Add "
            "one for each, or remove the probes."
        )


class Folders:
    """Says whether files are there, with one listing per folder instead of a question per file.

    Args:
        root: what paths are relative to.

    Example:
        >>> Folders(Path("nowhere")).has("a.png")
        False
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.listed: dict[str, set[str]] = {}

    def has(self, file: str) -> bool:
        """Whether there is this file."""
        folder, name = os.path.split(file)
        if folder not in self.listed:
            try:
                self.listed[folder] = set(os.listdir(self.root / folder))
            except OSError:
                self.listed[folder] = set()
        return name in self.listed[folder]


class _Use(NamedTuple):
    label: str
    groups: dict[str, int]  # to the line


def _check_use(line: TextLine, seen: dict[str, _Use], file: str, label: str, group: str) -> None:
    use = seen.setdefault(file, _Use(label, {}))
    if use.groups:
        before = next(iter(use.groups.values()))
        if use.label != label:
            raise line.fault(f"the picture was {use.label!r} in line {before}; it can be of one person only")
        if group in use.groups:
            raise line.fault(f"the picture is in group {group!r} already, in line {use.groups[group]}; remove one")
        if GALLERY in (group, *use.groups):
            raise line.fault(f"a picture of the gallery is a probe, too (line {before}), and would find itself")
    use.groups[group] = line.number


def _columns(path: Path, lines: list[TextLine]) -> dict[str, int]:
    header = [name.strip() for name in _split(lines[0])] if lines else []
    if missing := [name for name in COLUMNS if name not in header]:
        hints = "".join(nearest(name, header) for name in missing)
        raise ValueError(
            f"{str(path)!r}, line 1: no column {', '.join(missing)} in {','.join(header)!r}{hints}. The first line is "
            f"{','.join(COLUMNS)}."
        )
    return {name: header.index(name) for name in COLUMNS} | {"": len(header)}


def _values(line: TextLine, places: dict[str, int]) -> tuple[str, str, str]:
    fields = _split(line)
    if len(fields) != places[""]:
        raise line.fault(f"{len(fields)} fields where the first line has {places['']}")
    file, label, group = (fields[places[name]].strip() for name in COLUMNS)
    for name, value in zip(COLUMNS, (file, label, group), strict=True):
        if not value:
            raise line.fault(f"{name} is empty")
    if group == "mean":
        raise line.fault("group 'mean' is what the mean of all groups is called; name it otherwise")
    return file, label, group


def _split(line: TextLine) -> list[str]:
    rows: Iterable[list[str]] = csv.reader([line.text], strict=True)
    try:
        return next(iter(rows))
    except (csv.Error, StopIteration) as error:
        raise line.fault(f"it is no line of comma-separated values ({error})") from None
