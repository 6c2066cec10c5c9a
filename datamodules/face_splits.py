"""The pictures of a training set of faces in branches, easy and hard, and how identities are numbered for training."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.branches import Branch
from datamodules.face_lists import FaceFiles
from datamodules.face_rules import UNUSED
from lit_methods.functional.suggestions import shorten


@dataclass(frozen=True)
class FaceSplit:
    """The pictures of a training set, each of one branch or of none.

    Args:
        root: paths count from it.
        names: ``(N,)`` paths of the files, as bytes.
        persons: ``(N,)`` int64 identity of each, from 0; one number is one person in all branches.
        identities: what the persons are called, for messages.
        kinds: ``(N,)`` int64 branch of each, as numbered in ``branch_names``; ``UNUSED`` is none.
        branch_names: ``"easy"`` first.
        separate: each branch numbers its classes by itself, for a head of its own.
        copies: the second branch is one of degraded copies of the pictures of the first.
        unreadable: rows of files that turned out to be broken when the split was made; they are of no branch.

    Raises:
        ValueError: a branch has no pictures, or shows fewer than two identities.
    """

    root: Path
    names: NDArray[np.bytes_]
    persons: NDArray[np.int64]
    identities: list[str]
    kinds: NDArray[np.int64]
    branch_names: list[str]
    separate: bool = False
    copies: bool = False
    unreadable: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        for number, name in enumerate(self.branch_names):
            persons = np.unique(self.persons[self._rows(number)])
            if len(persons) == 0:
                raise ValueError(f"branch {name!r} has no pictures; take it away or give it some")
            if len(persons) < 2:
                raise ValueError(
                    f"branch {name!r} shows one identity, {self.identities[persons[0]]}; it takes two at least, as "
                    "there are no negatives otherwise"
                )

    @cached_property
    def num_classes(self) -> int | list[int]:
        """Classes of the one head, or of that of each branch."""
        sizes = [len(numbers) for numbers in self._classes]
        return sizes if self.separate else sizes[0]

    @property
    def unused(self) -> int:
        """Readable pictures of no branch."""
        return int((self.kinds == UNUSED).sum()) - (0 if self.unreadable is None else len(self.unreadable))

    def path(self, row: int) -> Path:
        """The file of a row."""
        return self.root / os.fsdecode(self.names[row])

    def branches(self, hard_pairs: str = "mixed", bad: NDArray[np.int64] | None = None) -> list[Branch]:
        """The branches for training.

        Args:
            hard_pairs: ``"mixed"``: the second picture of a hard pair is any other of the person, of any branch;
                ``"hard"``: it is of the same branch.
            bad: rows to leave out. Classes stay as they are.

        Raises:
            ValueError: a branch has nothing left.
        """
        good = np.ones(len(self.names), bool)
        good[[] if bad is None else bad] = False
        size = len(self.names)
        files = np.tile(np.arange(size), 2) if self.copies else None
        everyone = np.flatnonzero(good & (self.kinds != UNUSED))
        everyone = np.concatenate([everyone, everyone + size]) if self.copies else everyone
        found = []
        for number, name in enumerate(self.branch_names):
            rows = self._rows(number)
            rows = rows[good[rows]]
            positions = rows + size if self._copied(number) else rows
            labels = np.searchsorted(self._classes[number], self.persons[rows])
            if number and hard_pairs == "mixed":
                partners = everyone[np.isin(self.persons[everyone % size], self.persons[rows])]
                partner_labels = np.searchsorted(self._classes[number], self.persons[partners % size])
                found.append(Branch(name, positions, labels, partners, partner_labels, files))
            else:
                found.append(Branch(name, positions, labels, sources=files))
        return found

    def without_pair(self, branch: Branch) -> list[str]:
        """Identities of a branch of which there is one usable picture alone.

        Args:
            branch: one of :meth:`branches`.

        Raises:
            ValueError: fewer than two others are left.
        """
        positions = branch.positions if branch.partners is None else branch.partners
        labels = branch.labels if branch.partner_labels is None else branch.partner_labels
        pictures = np.unique(np.stack([labels, positions % len(self.names)]), axis=1)  # a copy is no second one
        classes, counts = np.unique(pictures[0], return_counts=True)
        numbers = self._classes[self.branch_names.index(branch.name)]
        alone = [self.identities[numbers[label]] for label in classes[counts < 2]]
        if len(classes) - len(alone) < 2:
            raise ValueError(
                f"branch {branch.name!r} needs positive pairs of two identities at least, but {len(alone)} of its "
                f"{len(classes)} identities have one usable picture alone: {shorten(alone)}. Give them a second one, "
                "or set pairs=False"
            )
        return alone

    @cached_property
    def _classes(self) -> list[NDArray[np.int64]]:
        """Per branch the persons in the order of their class numbers."""
        numbers = range(len(self.branch_names))
        if self.separate:
            return [np.unique(self.persons[self._rows(number)]) for number in numbers]
        return [np.unique(self.persons[self.kinds != UNUSED])] * len(numbers)

    def _rows(self, number: int) -> NDArray[np.int64]:
        return np.flatnonzero(self.kinds == (0 if self._copied(number) else number))

    def _copied(self, number: int) -> bool:
        return self.copies and number > 0


def split_one(
    files: FaceFiles,
    kinds: NDArray[np.int64],
    branch_names: list[str],
    separate: bool = False,
    copies: bool = False,
    unreadable: NDArray[np.int64] | None = None,
) -> FaceSplit:
    """A training set of one folder or list: equal names are the same person.

    Args:
        files: its pictures.
        kinds, branch_names, separate, copies, unreadable: as in :class:`FaceSplit`.

    Raises:
        ValueError: as for :class:`FaceSplit`, or there are fewer than two identities.

    Example:
        >>> files = FaceFiles(Path(), np.array([b"1.jpg", b"2.jpg"]), np.array([0, 1]), ["Ada", "Bo"], "train='.'")
        >>> split_one(files, np.array([0, 0]), ["easy"]).num_classes
        2
    """
    if len(files.identities) < 2:
        raise ValueError(
            f"{files.source} of root={str(files.root)!r} shows {len(files.identities)} identity, "
            f"{shorten(files.identities)}; it takes two at least, as there are no negatives otherwise"
        )
    return FaceSplit(
        files.root, files.names, files.ids, files.identities, kinds, branch_names, separate, copies, unreadable
    )


def split_several(sources: dict[str, FaceFiles], identities: str | None = None) -> FaceSplit:
    """A training set with a folder or a list for each branch.

    Args:
        sources: branch to its pictures, ``"easy"`` first.
        identities: ``"shared"``: equal names or labels are the same person; ``"separate"``: they are not, and each
            branch has classes of its own. ``None`` is the latter, where no name is in two of them.

    Raises:
        ValueError: as for :class:`FaceSplit`; a picture is in two branches; or names are in two of them and
            ``identities`` does not say what that means.

    Example:
        >>> one, two = (
        ...     FaceFiles(Path(), np.array(names), np.array([0, 1]), ["7", "8"], "", labelled=True)
        ...     for names in ([b"a.jpg", b"b.jpg"], [b"c.jpg", b"d.jpg"])
        ... )
        >>> [split_several({"easy": one, "hard": two}, how).num_classes for how in ("shared", "separate")]
        [2, [2, 2]]
    """
    parts = list(sources.values())
    _require_apart(parts)
    if identities is None:
        _require_own_names(parts)
    shared = identities == "shared"
    known = [name for part in parts for name in part.identities]
    if shared:
        known = sorted(set(known), key=int if all(part.labelled for part in parts) else None)
        number_of = {name: number for number, name in enumerate(known)}
        persons = [np.array([number_of[name] for name in part.identities])[part.ids] for part in parts]
    else:
        starts = np.cumsum([0, *(len(part.identities) for part in parts)])
        persons = [part.ids + start for part, start in zip(parts, starts[:-1], strict=True)]
    kinds = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    names = np.concatenate([part.names for part in parts])
    return FaceSplit(parts[0].root, names, np.concatenate(persons), known, kinds, list(sources), separate=not shared)


def _require_apart(parts: list[FaceFiles]) -> None:
    """No picture may be in two branches."""
    seen: dict[str, FaceFiles] = {}
    for part in parts:
        for name in _whole_paths(part):
            if seen.setdefault(name, part) is not part:
                raise ValueError(
                    f"{name!r} is in {seen[name].source} and in {part.source}; a picture is easy or hard, so take it "
                    "out of one of them"
                )


def _whole_paths(files: FaceFiles) -> Iterator[str]:
    real = cache(os.path.realpath)  # of folders: links may lead to the same one, and there are many files in each
    for name in files.names.tolist():
        folder, file = os.path.split(os.path.join(files.root, os.fsdecode(name)))
        yield os.path.join(real(folder), file)


def _require_own_names(parts: list[FaceFiles]) -> None:
    for number, part in enumerate(parts):
        for other in parts[:number]:
            known = set(other.identities)
            if common := [name for name in part.identities if name in known]:
                raise ValueError(
                    f"{len(common)} identities are in {other.source} and in {part.source}: {shorten(common)}. Set "
                    'identities to "shared" if these are the same persons, or to "separate" if they are others, each '
                    "branch with classes of its own"
                )
