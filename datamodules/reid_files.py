"""Files of person re-identification sets: one parser for the names of Market-1501 and DukeMTMC-reID, and what to check.

The names carry everything: ``0002_c1s1_000451_03.jpg`` is person 2 in camera 1 of Market-1501, ``0005_c2_f0046985.jpg``
is person 5 in camera 2 of DukeMTMC-reID.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from lit_methods.functional.suggestions import shorten

TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"
FOLDERS = (TRAIN, QUERY, GALLERY)
JUNK = -1  # Market-1501's id of boxes that no figure counts

_PERSON_AND_CAMERA = re.compile(r"(-?\d+)_c([1-9]\d*)(?!\d)")


@dataclass(frozen=True)
class ReIDLayout:
    """What distinguishes a data set in these folders.

    Args:
        name: as people call it.
        data_module: name of its class.
        archive: what to unpack.
        shape: pattern of the beginning of its file names, which no other layout has.
        counts: folder to well-known number of images and of persons, those numbered -1 and 0 not among them.
    """

    name: str
    data_module: str
    archive: str
    shape: re.Pattern[str]
    counts: dict[str, tuple[int, int]]


MARKET = ReIDLayout(
    "Market-1501",
    "Market1501DataModule",
    "Market-1501-v15.09.15",
    re.compile(r"-?\d+_c\d+s\d"),
    {TRAIN: (12936, 751), QUERY: (3368, 750), GALLERY: (19732, 750)},
)
DUKE = ReIDLayout(
    "DukeMTMC-reID",
    "DukeMTMCDataModule",
    "your copy of DukeMTMC-reID",
    re.compile(r"-?\d+_c\d+_f\d"),
    {TRAIN: (16522, 702), QUERY: (2228, 702), GALLERY: (17661, 1110)},
)
LAYOUTS = (MARKET, DUKE)


@dataclass(frozen=True)
class ReIDFiles:
    """Picture files with their persons and cameras.

    Args:
        root: holds the files.
        names: their paths in it.
        pids: ``(N,)`` int64 person of each, -1 for junk.
        camids: ``(N,)`` int64 camera of each, from 0.
    """

    root: Path
    names: NDArray[np.bytes_]  # one array: workers would copy many strings, page by page, as they count references
    pids: NDArray[np.int64]
    camids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)

    def path(self, row: int) -> Path:
        """The file of a row."""
        return self.root / os.fsdecode(self.names[row])

    def paths(self) -> list[Path]:
        """All files, in the order of the rows."""
        return [self.path(row) for row in range(len(self))]

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Self:
        """Some of the files."""
        return type(self)(self.root, self.names[rows], self.pids[rows], self.camids[rows])

    def beside(self, other: "ReIDFiles") -> "ReIDFiles":
        """These files and then others of the same root."""
        joined = (np.concatenate(pair) for pair in zip(self._columns(), other._columns(), strict=True))
        return ReIDFiles(self.root, *joined)

    def _columns(self) -> tuple[NDArray, NDArray, NDArray]:
        return self.names, self.pids, self.camids


class EvaluationFiles(NamedTuple):
    """Pictures that are looked for, and those they are looked for among."""

    query: ReIDFiles
    gallery: ReIDFiles


def parse_names(
    names: Sequence[str], layout: ReIDLayout | None = None, where: str = "names"
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Read persons and cameras from file names.

    A name begins with the person (``-1`` for junk), ``_c`` and the camera, counted from 1; what follows is not read,
    except to tell the two sets apart. Cameras may have several digits.

    Args:
        names: file names without folders.
        layout: the set that they must not contradict; ``None`` takes names of any.
        where: what a message calls the place of the names.

    Returns:
        Persons and cameras, both ``(N,)`` int64; cameras from 0.

    Raises:
        ValueError: names are those of the other set, or do not parse.

    Example:
        >>> parse_names(["0002_c1s1_000451_03.jpg", "-1_c3s1_000401_00.jpg"], MARKET)
        (array([ 2, -1]), array([0, 2]))
    """
    others = [other for other in LAYOUTS if other != layout] if layout else []
    foreign = {other.name: [name for name in names if other.shape.match(name)] for other in others}
    for other in others:
        assert layout is not None
        if 2 * len(foreign[other.name]) > len(names):
            raise ValueError(
                f"{where} holds files of {other.name}, such as {foreign[other.name][0]}, not of {layout.name}. Use "
                f"{other.data_module} for it, or point root at {layout.archive}."
            )
    wrong = {name for found in foreign.values() for name in found}
    matches = [None if name in wrong else _PERSON_AND_CAMERA.match(name) for name in names]
    if bad := [name for name, match in zip(names, matches, strict=True) if match is None]:
        raise ValueError(
            f"{where} has {len(bad)} of {len(names)} file names that do not parse: {shorten(bad)}. They must begin "
            "with person, _c and camera, such as 0002_c1s1_000451_03.jpg (Market-1501) or 0005_c2_f0046985.jpg "
            "(DukeMTMC-reID); rename or remove the others."
        )
    found = np.array([[int(text) for text in match.groups()] for match in matches if match], np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1] - 1


def require_folders(root: Path, layout: ReIDLayout | None = None, folders: Sequence[str] = FOLDERS) -> None:
    """Look for the folders of a set.

    Args:
        root: should hold them.
        layout: the set that is expected; ``None`` is any.
        folders: those that are needed.

    Raises:
        FileNotFoundError: some are missing; names them and what to do.

    Example:
        >>> require_folders(Path("nowhere"), MARKET, ["query"])
        Traceback (most recent call last):
        FileNotFoundError: Market-1501 is incomplete in root='nowhere': no query. Unpack ...
    """
    if missing := [name for name in folders if not (root / name).is_dir()]:
        option, name, archive = (
            ("root", layout.name, layout.archive)
            if layout
            else ("source_root", "the source", "a set in the layout of Market-1501 or DukeMTMC-reID")
        )
        raise FileNotFoundError(
            f"{name} is incomplete in {option}={str(root)!r}: no {', '.join(missing)}. Unpack {archive} and point "
            f"{option} at the folder that holds {missing[0]}."
        )


def read_folder(root: Path, folder: str, layout: ReIDLayout | None = None) -> ReIDFiles:
    """List the pictures of a folder, sorted by name.

    Files other than ``.jpg`` and ``.jpeg`` (``Thumbs.db``) and hidden ones are left out.

    Args:
        root: of the set.
        folder: one of ``FOLDERS``.
        layout: the set that is expected; ``None`` is any.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no pictures, those of the other set, or names that do not parse.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Path(root, "query").mkdir()
        ...     for name in ("0001_c2s1_000151_00.jpg", "Thumbs.db"):
        ...         Path(root, "query", name).touch()
        ...     files = read_folder(Path(root), "query", MARKET)
        >>> files.names.tolist(), files.pids, files.camids
        ([b'query/0001_c2s1_000151_00.jpg'], array([1]), array([1]))
    """
    require_folders(root, layout, [folder])
    with os.scandir(root / folder) as entries:
        names = sorted(e.name for e in entries if e.name.lower().endswith((".jpg", ".jpeg")) and e.name[0] != ".")
    where = f"{'root' if layout else 'source_root'}={str(root)!r}: {folder}"
    if not names:
        archive = layout.archive if layout else "the source set"
        raise ValueError(f"{where} has no .jpg files. Unpack {archive} there.")
    pids, camids = parse_names(names, layout, where)
    return ReIDFiles(root, np.array([os.fsencode(f"{folder}/{name}") for name in names], np.bytes_), pids, camids)


def unusual_counts(files: ReIDFiles, folder: str, layout: ReIDLayout) -> str | None:
    """Say in which way a folder differs in size from the published set; ``None`` if it does not.

    Args:
        files: of the folder, junk among them.
        folder: one of ``FOLDERS``.
        layout: the set.

    Source:
        The well-known counts; another one is no fault, as in a set of one's own in this layout.

    Example:
        >>> files = ReIDFiles(Path(), np.array([b"a", b"b"]), np.array([5, -1]), np.array([0, 1]))
        >>> unusual_counts(files, "query", MARKET)
        'query has 2 images of 1 persons, where Market-1501 has 3368 of 750'
    """
    images, persons = layout.counts[folder]
    seen = len(np.unique(files.pids[files.pids > 0]))
    if (len(files), seen) == (images, persons):
        return None
    return f"{folder} has {len(files)} images of {seen} persons, where {layout.name} has {images} of {persons}"


def has_match(evaluation: EvaluationFiles) -> NDArray[np.bool_]:
    """Which queries have a picture of their person from another camera in the gallery.

    Args:
        evaluation: queries and gallery; junk in the latter does not count.

    Returns:
        ``(Q,)`` bool.

    Example:
        >>> def files(pids, camids):
        ...     return ReIDFiles(Path(), np.array([b""] * len(pids)), np.array(pids), np.array(camids))
        >>> has_match(EvaluationFiles(files([1, 2, -1], [0, 0, 0]), files([1, 1, 2, -1], [0, 1, 0, 1])))
        array([ True, False, False])
    """
    query, gallery = evaluation
    seen = np.unique(np.stack([gallery.pids, gallery.camids], 1)[gallery.pids != JUNK], axis=0)
    persons, cameras = np.unique(seen[:, 0], return_counts=True)
    found = np.concatenate([cameras, [0]])  # the last is for persons who are not in the gallery
    where = np.searchsorted(persons, query.pids)
    where = np.where(np.isin(query.pids, persons), where, len(persons))
    pairs = set(map(tuple, seen.tolist()))
    own = [pair in pairs for pair in zip(query.pids.tolist(), query.camids.tolist(), strict=True)]
    return found[where] > np.array(own, np.int64)


def check_evaluation(evaluation: EvaluationFiles, where: str) -> int:
    """Make sure that there is something to evaluate.

    Args:
        evaluation: queries and gallery.
        where: what a message calls them.

    Returns:
        The number of queries without a match from another camera, which no figure counts.

    Raises:
        ValueError: there are no queries or no gallery, all pictures are from one camera, or no query has a match.
    """
    query, gallery = evaluation
    if not (len(query) and len(gallery)):
        raise ValueError(f"{where}: {len(query)} queries and {len(gallery)} gallery pictures are left; it needs both")
    cameras = np.union1d(query.camids, gallery.camids)
    if len(cameras) < 2:
        raise ValueError(
            f"{where}: all pictures are from camera {int(cameras[0]) + 1}. Matches from the camera of the query do not "
            "count, so the evaluation would be empty; it needs pictures of two cameras (_c1, _c2 in the names)."
        )
    valid = has_match(evaluation)
    if not valid.any():
        raise ValueError(
            f"{where}: none of the {len(query)} queries has a picture of its person from another camera in the "
            "gallery, so the evaluation would be empty. Put some into bounding_box_test."
        )
    return int((~valid).sum())


def hold_out(
    files: ReIDFiles, held: NDArray[np.int64], keys: NDArray[np.uint64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    """Part the training pictures into those to train on, and queries and gallery of the persons held out.

    Args:
        files: training pictures.
        held: persons to hold out.
        keys: ``(N,)`` random numbers; of each person the one with the smallest in each camera is a query.

    Returns:
        ``(N,)`` bool of those to train on, then the rows of queries and of the gallery, both sorted.

    Example:
        >>> files = ReIDFiles(Path(), np.array([b""] * 4), np.array([3, 3, 3, 8]), np.array([0, 0, 1, 0]))
        >>> hold_out(files, np.array([3]), np.array([7, 6, 5, 4], np.uint64))
        (array([False, False, False,  True]), array([1, 2]), array([0]))
    """
    out = np.isin(files.pids, held)
    rows = np.lexsort((keys, files.camids, files.pids))
    rows = rows[out[rows]]
    pairs = np.stack([files.pids[rows], files.camids[rows]], 1)
    first = np.append(True, (pairs[1:] != pairs[:-1]).any(1))[: len(rows)]
    return ~out, np.sort(rows[first]), np.sort(rows[~first])


def can_be_held_out(files: ReIDFiles) -> NDArray[np.int64]:
    """Persons who leave a valid query when they are held out: two cameras, and two pictures in one of these.

    Args:
        files: training pictures.

    Returns:
        Persons, sorted.

    Example:
        >>> pids, camids = np.array([1, 1, 1, 2, 2, 3, 3]), np.array([0, 0, 1, 0, 1, 0, 0])
        >>> can_be_held_out(ReIDFiles(Path(), np.array([b""] * 7), pids, camids))
        array([1])
    """
    pairs, counts = np.unique(np.stack([files.pids, files.camids], 1), axis=0, return_counts=True)
    persons, first, cameras = np.unique(pairs[:, 0], return_index=True, return_counts=True)
    if not len(persons):
        return persons
    return persons[(cameras >= 2) & (np.maximum.reduceat(counts, first) >= 2) & (persons != JUNK)]
