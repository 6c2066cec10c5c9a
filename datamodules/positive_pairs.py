"""Branches of a training set, easy or hard samples, and pairs of pictures of one identity in them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.draws import hash64, permutation, uniforms
from lit_methods.functional.draws import purpose
from lit_methods.functional.suggestions import shorten

Pictures = Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], Tensor]

ORDER = purpose("positive_pairs/order")
FIRST = purpose("positive_pairs/first")
SECOND = purpose("positive_pairs/second")
SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")


@dataclass(frozen=True)
class Branch:
    """One kind of training samples.

    A training set is a table of N pictures. Where hard samples are degraded copies of them, positions N to 2N - 1 are
    the copies.

    Args:
        name: such as ``"easy"``.
        positions: ``(n,)`` int64 of its pictures in the table.
        labels: ``(n,)`` int64 class of each, from 0.
        partners: ``(m,)`` int64 positions that the second picture of a pair may be; ``None`` is ``positions``.
        partner_labels: ``(m,)`` int64 class of each, in the same numbering.
        sources: ``(N,)`` or ``(2N,)`` int64 file of each position of the table; two pictures of one file are no pair.
            ``None``: each position is a file of its own.

    Raises:
        ValueError: it is empty, lengths differ, a class is below 0, or one of ``partners`` and ``partner_labels`` is
            missing.

    Example:
        >>> len(Branch("easy", np.array([4, 7]), np.array([0, 0])))
        2
    """

    name: str
    positions: NDArray[np.int64]
    labels: NDArray[np.int64]
    partners: NDArray[np.int64] | None = None
    partner_labels: NDArray[np.int64] | None = None
    sources: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if "/" in self.name:
            raise ValueError(f"branch {self.name!r}: a name is part of log keys and must not have a slash; rename it")
        if not len(self.positions):
            raise ValueError(f"branch {self.name!r} has no pictures; take it away or give it some")
        self._require_labels("positions", self.positions, "labels", self.labels)
        if (self.partners is None) != (self.partner_labels is None):
            raise ValueError(f"branch {self.name!r}: partners and partner_labels go together; give both or neither")
        if self.partners is not None and self.partner_labels is not None:
            self._require_labels("partners", self.partners, "partner_labels", self.partner_labels)

    def __len__(self) -> int:
        return len(self.positions)

    def files(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The file of each of some positions."""
        return positions if self.sources is None else self.sources[positions]

    def _require_labels(self, name: str, rows: NDArray[np.int64], labels_name: str, labels: NDArray[np.int64]) -> None:
        if len(rows) != len(labels):
            raise ValueError(f"branch {self.name!r} has {len(rows)} {name} and {len(labels)} {labels_name}; match them")
        if len(labels) and int(labels.min()) < 0:
            raise ValueError(f"branch {self.name!r}: {labels_name} must be 0 or more, got {int(labels.min())}")


class PositivePairDataset(Dataset[Any]):
    """Pairs of pictures of the same identity: an endless stream for each epoch.

    Keys are ``(epoch, number)``, ``number`` being the place in the stream; a plain number is one of epoch 0. The
    stream goes through the identities in sweeps, each in an order of its own, so that identities come equally often.
    The first picture of a pair is one of the branch, and those of an identity come equally often; the second is any
    other of the branch's partners that shows the same identity, never one of the first picture's file. An identity
    without such a pair is left out.

    Args:
        branch: whose pairs.
        seed: together with the epoch it decides order and choice.
        pictures: given (n,) positions, epochs and numbers, it fetches (n, 3, H, W) pictures; items are then two
            pictures (3, H, W). ``None``: items are two positions.

    Attributes:
        identities: ``(M,)`` classes that have a pair.
        left_out: ``(L,)`` classes that have none.

    Raises:
        ValueError: no identity of the branch has a pair.

    Source:
        DDL, arXiv 2002.03662. How the official lists of pairs were made is not known.

    Example:
        >>> branch = Branch("hard", np.array([4, 5, 6]), np.array([0, 0, 1]))
        >>> pairs = PositivePairDataset(branch)
        >>> sorted(pairs[0, 3]), pairs.left_out.tolist()
        ([4, 5], [1])
    """

    def __init__(self, branch: Branch, seed: int = 0, pictures: Pictures | None = None) -> None:
        self.branch, self.seed, self.pictures = branch, seed, pictures
        partners, labels = branch.partners, branch.partner_labels
        if partners is None or labels is None:
            partners, labels = branch.positions, branch.labels
        files, own_files = branch.files(partners), branch.files(branch.positions)
        self._most = int(max(files.max(initial=0), own_files.max())) + 1
        order = np.argsort(self._key(labels, files), kind="stable")  # by identity, then by file
        self._partners, files, labels = partners[order], files[order], labels[order]
        self._keys = self._key(labels, files)
        start, stop = np.searchsorted(labels, branch.labels), np.searchsorted(labels, branch.labels, "right")
        begin, end = (np.searchsorted(self._keys, self._key(branch.labels, own_files), side) for side in SIDES)
        usable = stop - start > end - begin  # there are partners of other files
        rows = np.flatnonzero(usable)
        rows = rows[np.argsort(branch.labels[rows], kind="stable")]
        self.identities, first, self._counts = np.unique(branch.labels[rows], return_index=True, return_counts=True)
        self.left_out = np.setdiff1d(branch.labels, self.identities)
        if not len(rows):
            names = self.left_out.tolist()
            raise ValueError(
                f"branch {branch.name!r} has no positive pair: each of its {len(names)} identities (class "
                f"{shorten(names)}) has one usable picture alone. Give them a second one, or set pairs=False."
            )
        self._rows, self._first = rows, first
        self._start, self._stop = start[rows[first]], stop[rows[first]]  # in the sorted partners
        # the order of the last sweep
        self._known: tuple[int, int, NDArray[np.int64]] = (-1, -1, rows)

    def __len__(self) -> int:
        """Pictures that can be the first of a pair."""
        return len(self._rows)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[int, int] | tuple[Tensor, Tensor]:
        if isinstance(key, int) and not 0 <= key < len(self):
            raise IndexError(f"pair {key} of {len(self)}")
        epoch, number = (0, key) if isinstance(key, int) else key
        first, second = self.positions(epoch, np.array([number]))[0].tolist()
        if self.pictures is None:
            return first, second
        numbers = np.array([2 * number, 2 * number + 1])  # each is augmented on its own
        one, other = self.pictures(np.array([first, second]), np.full(2, epoch), numbers)
        return one, other

    def positions(self, epoch: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Pairs of some places of the stream of an epoch, ``(n, 2)`` int64 positions."""
        sweeps, places = np.divmod(numbers, len(self.identities))
        chosen = np.empty_like(places)
        for sweep in np.unique(sweeps).tolist():
            here = sweeps == sweep
            chosen[here] = self._order(epoch, sweep)[places[here]]
        cycles, visits = np.divmod(sweeps, self._counts[chosen])
        picked = nth_of_permutations(self._counts[chosen], visits, FIRST, self.seed, epoch, chosen, cycles)
        first = self.branch.positions[self._rows[self._first[chosen] + picked]]
        # an identity's partners are a stretch of the sorted ones, and those of the first picture's file one in it
        own = self._key(self.identities[chosen], self.branch.files(first))
        begin, end = np.searchsorted(self._keys, own), np.searchsorted(self._keys, own, "right")
        others = self._stop[chosen] - self._start[chosen] - (end - begin)
        second = self._start[chosen] + (uniforms(1, SECOND, self.seed, epoch, numbers)[:, 0] * others).astype(np.int64)
        second = np.where(second < begin, second, second + end - begin)
        return np.stack([first, self._partners[second]], 1)

    def _key(self, labels: NDArray[np.int64], files: NDArray[np.int64]) -> NDArray[np.int64]:
        return labels * self._most + files

    def _order(self, epoch: int, sweep: int) -> NDArray[np.int64]:
        if self._known[:2] != (epoch, sweep):  # kept: a sweep over many identities lasts for many batches
            self._known = (epoch, sweep, permutation(len(self.identities), ORDER, self.seed, epoch, sweep))
        return self._known[2]


def nth_of_permutations(
    sizes: NDArray[np.int64], places: NDArray[np.int64], *key: int | NDArray[np.int64]
) -> NDArray[np.int64]:
    """One entry of each of many permutations, made at once.

    Args:
        sizes: ``(n,)`` of the permutations.
        places: ``(n,)``, which entry of each.
        key: as in :func:`~lit_methods.functional.draws.permutation`; arrays ``(n,)`` where the permutations differ.

    Example:
        >>> nth_of_permutations(np.array([5, 3]), np.array([4, 0]), 1, np.array([8, 9])).tolist()
        [3, 2]
        >>> int(permutation(5, 1, 8)[4]), int(permutation(3, 1, 9)[0])
        (3, 2)
    """
    begin = np.cumsum(sizes) - sizes
    groups = np.repeat(np.arange(len(sizes)), sizes)
    numbers = np.arange(len(groups)) - begin[groups]
    parts = [part if isinstance(part, int) else part[groups] for part in key]
    return numbers[np.lexsort((hash64(*parts, numbers), groups))][begin + places]
