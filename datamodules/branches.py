"""Training batches of several branches: easy samples, one or more kinds of hard ones, and positive pairs of each.

Everything is a function of the seed, the epoch, the step and the rank; nothing is stored. So a run goes on after any
batch, and the number of workers does not matter.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.draws import hash64, permutation
from datamodules.loaders import loader_options
from datamodules.positive_pairs import (
    Branch as Branch,
    Pictures,
    PositivePairDataset as PositivePairDataset,
    nth_of_permutations,
)
from datamodules.samplers import ResumableBatchSampler, ResumableLoader, ResumableSampler
from datamodules.transforms import to_float as to_float
from lit_methods.functional.draws import purpose

Keys = list[tuple[int, int, int]]

SWEEP = purpose("branches/sweep")
PICK = purpose("branches/pick")
STREAM = purpose("branches/stream")


class IdentityBalancedBatchSampler(ResumableBatchSampler[Keys]):
    """Make batches of ``b`` pictures of ``b`` different identities; each item is a whole batch.

    A batch is a list of ``(epoch, number, position)``. ``number`` counts the places of all batches and ranks of an
    epoch. Positions labelled -1 never come.

    Identities are shuffled by (seed, epoch, sweep), and one picture of each is taken in a sweep. A step takes
    ``b * num_replicas`` identities of a sweep, so they differ over all ranks, too; those that do not fill a step are
    left out of the sweep. In an epoch the pictures of an identity come equally often, each time in another order.

    An epoch has as many steps as all pictures fill; :meth:`batch` goes on beyond it, for a branch that is shorter than
    another.

    Args:
        labels: ``(N,)`` identity of each position, -1 for none; the same on all ranks.
        b: pictures in a batch of this process.
        drop_last: ``True`` rounds the steps of an epoch down, ``False`` up; a batch is full in any case.
        seed: together with the epoch it decides order and choice.
        num_replicas: number of ranks; ``None`` asks ``torch.distributed``.
        rank: this rank; ``None`` asks ``torch.distributed``.

    Raises:
        ValueError: ``rank`` is not below ``num_replicas``, ``b`` is below 1, or there are fewer than two identities or
            fewer than a step takes.

    Source:
        DDL, arXiv 2002.03662, official code. There a sweep starts whenever one rank runs out of identities, and an
        epoch lasts until the identity with most pictures is through.

    Example:
        >>> labels = np.array([7, 7, -1, 8, 8, 9])
        >>> sampler = IdentityBalancedBatchSampler(labels, b=3, num_replicas=1, rank=0)
        >>> len(sampler), [sorted(labels[[key[2] for key in sampler.batch(0, step)]].tolist()) for step in range(2)]
        (1, [[7, 8, 9], [7, 8, 9]])
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        b: int,
        drop_last: bool = True,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(seed, num_replicas, rank)
        labels = np.asarray(labels, np.int64)
        if b < 1:
            raise ValueError(f"b must be at least 1, got {b}")
        self._rows = np.argsort(labels, kind="stable")
        self._rows = self._rows[labels[self._rows] >= 0]
        ids, self._first, self._counts = np.unique(labels[self._rows], return_index=True, return_counts=True)
        if len(ids) < 2:
            raise ValueError(
                f"labels has {len(ids)} identities; it needs two at least, as a batch with one has no negatives"
            )
        self.b, self.drop_last, self._taken = b, drop_last, b * self.num_replicas
        if len(ids) < self._taken:
            raise ValueError(
                f"b={b} on {self.num_replicas} process(es) takes {self._taken} different identities in a step, but "
                f"labels has {len(ids)}; set b to {len(ids) // self.num_replicas} or less, or add identities"
            )
        self._per_sweep = len(ids) // self._taken
        self._steps = len(self._rows) // self._taken if drop_last else -(-len(self._rows) // self._taken)
        self._known: tuple[int, int, NDArray[np.int64], NDArray[np.int64]] | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """What decides the batches; the loader compares it on resume."""
        return {"batch_size": self.b}

    def __len__(self) -> int:
        return self._steps

    def batches(self, epoch: int, start: int = 0) -> Iterator[Keys]:
        """The batches of an epoch from number ``start`` on."""
        return (self.batch(epoch, step) for step in range(start, len(self)))

    def batch(self, epoch: int, step: int) -> Keys:
        """The batch of this rank in any step, also one beyond the epoch's."""
        sweep, part = divmod(step, self._per_sweep)
        order, visits = self._sweep(epoch, sweep)
        start = part * self._taken + self.rank * self.b
        chosen = order[start : start + self.b]
        cycles, places = np.divmod(visits[chosen], self._counts[chosen])
        picked = nth_of_permutations(self._counts[chosen], places, PICK, self.seed, epoch, chosen, cycles)
        rows = self._rows[self._first[chosen] + picked].tolist()
        first = step * self._taken + self.rank * self.b
        return [(epoch, first + place, row) for place, row in enumerate(rows)]

    def _sweep(self, epoch: int, sweep: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The order of the identities in a sweep, and how often each came in those before."""
        size, used = len(self._counts), self._per_sweep * self._taken
        if self._known is None or self._known[0] != epoch or self._known[1] > sweep:
            self._known = (epoch, 0, self._order(epoch, 0), np.zeros(size, np.int64))
        _, at, order, visits = self._known
        while at < sweep:
            visits = visits + np.bincount(order[:used], minlength=size)
            at += 1
            order = self._order(epoch, at)
        self._known = (epoch, at, order, visits)
        return order, visits

    def _order(self, epoch: int, sweep: int) -> NDArray[np.int64]:
        return permutation(len(self._counts), SWEEP, self.seed, epoch, sweep)


class BranchBatches(Dataset[dict[str, dict[str, Any]]]):
    """A data set whose items are whole batches of all branches, for :func:`branch_loader`.

    An item is a dict of branches by name, each with ``image`` (b, 3, H, W) uint8, ``label`` (b,) int64, all different,
    and ``pair``, two tensors (b, 3, H, W) of which equal rows show the same identity. Keys are ``(epoch, step)``; a
    plain number, as ``overfit_batches`` gives, is a step of epoch 0.

    Each branch draws identities and pairs on its own. An epoch lasts as long as the longest branch, the others go
    round again. What is drawn depends on the place of a branch among the others, not on their sizes.

    Args:
        pictures: given (n,) positions in the table, epochs and numbers, it fetches (n, 3, H, W) uint8. Numbers are
            different for all pictures of an epoch, over ranks, branches and both pictures of pairs, so that each is
            augmented on its own.
        branches: the easy one first.
        b: pictures and pairs of a branch in a batch of this process, at least 2.
        pairs: whether there are pairs.
        seed: together with the epoch it decides order and choice.
        num_replicas: number of ranks; ``None`` asks ``torch.distributed``.
        rank: this rank; ``None`` asks ``torch.distributed``.

    Attributes:
        samplers: by name, what chooses the pictures of each branch.
        pair_sets: by name, what chooses its pairs; empty without ``pairs``.

    Raises:
        ValueError: ``b`` is below 2, there are no branches or two of one name, or a branch has too few identities or
            no pair.

    Source:
        DDL, arXiv 2002.03662, section 3 and official code: b images and b pairs of each branch.

    Example:
        >>> grey = lambda positions, epochs, numbers: torch.zeros(len(positions), 3, 8, 8, dtype=torch.uint8)
        >>> branches = [Branch(name, np.arange(6), np.array([0, 0, 1, 1, 2, 2])) for name in ("easy", "hard")]
        >>> batches = BranchBatches(grey, branches, b=3)
        >>> batch = batches[0, 1]
        >>> len(batches), list(batch), batch["hard"]["image"].shape, sorted(batch["easy"]["label"].tolist())
        (2, ['easy', 'hard'], torch.Size([3, 3, 8, 8]), [0, 1, 2])
    """

    def __init__(
        self,
        pictures: Pictures,
        branches: Sequence[Branch],
        b: int,
        pairs: bool = True,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        if b < 2:
            raise ValueError(f"b must be at least 2, got {b}: a batch with one identity has no negatives")
        names = [branch.name for branch in branches]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"branches must be at least one and have different names, got {names}")
        self.pictures, self.branches, self.b, self.pairs = pictures, list(branches), b, pairs
        self.samplers: dict[str, IdentityBalancedBatchSampler] = {}
        self.pair_sets: dict[str, PositivePairDataset] = {}
        for number, branch in enumerate(branches):
            own = int(hash64(STREAM, seed, number)[0] >> np.uint64(1))
            try:
                sampler = IdentityBalancedBatchSampler(branch.labels, b, True, own, num_replicas, rank)
            except ValueError as error:
                raise ValueError(f"branch {branch.name!r}: {error}") from error
            self.samplers[branch.name] = sampler
            if pairs:
                self.pair_sets[branch.name] = PositivePairDataset(branch, own)
        self.num_replicas, self.rank = sampler.num_replicas, sampler.rank

    def __len__(self) -> int:
        return max(map(len, self.samplers.values()))

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, dict[str, Any]]:
        if isinstance(key, int) and not 0 <= key < len(self):
            raise IndexError(f"batch {key} of {len(self)}")
        epoch, step = (0, key) if isinstance(key, int) else key
        b, visit = self.b, step * self.num_replicas + self.rank  # of b places each
        positions, labels = [], []
        for branch in self.branches:
            rows = np.array([row for _, _, row in self.samplers[branch.name].batch(epoch, step)])
            positions.append(branch.positions[rows])
            labels.append(torch.from_numpy(branch.labels[rows].astype(np.int64)))
            if self.pairs:
                positions.extend(self.pair_sets[branch.name].positions(epoch, visit * b + np.arange(b)).T)
        places = np.concatenate(positions)
        images = self.pictures(places, np.full(len(places), epoch), self._numbers(step, len(positions)))
        parts: Iterator[Tensor] = iter(images.split(b))
        batch: dict[str, dict[str, Any]] = {}
        for branch, label in zip(self.branches, labels, strict=True):
            batch[branch.name] = {"image": next(parts), "label": label}
            if self.pairs:
                batch[branch.name]["pair"] = (next(parts), next(parts))
        return batch

    def _numbers(self, step: int, parts: int) -> NDArray[np.int64]:
        """Numbers of the pictures of a step: those that one process with all places of a step would give them."""
        whole = self.b * self.num_replicas
        first = (step * parts + np.arange(parts)) * whole + self.rank * self.b
        return (first[:, None] + np.arange(self.b)).flatten()

    def summary(self) -> dict[str, float | str | list]:
        """Pictures and identities of each branch, and of the latter those without a pair."""
        found: dict[str, float | str | list] = {}
        for branch in self.branches:
            found[f"data/{branch.name}_pictures"] = len(branch)
            found[f"data/{branch.name}_identities"] = len(np.unique(branch.labels))
            if self.pairs:
                found[f"data/{branch.name}_without_pair"] = len(self.pair_sets[branch.name].left_out)
        return found


class BranchSteps(ResumableSampler[tuple[int, int]]):
    """Yield ``(epoch, step)``, the keys of a :class:`BranchBatches`.

    Args:
        batches: whose.

    Example:
        >>> branches = [Branch("easy", np.arange(6), np.array([0, 0, 1, 1, 2, 2]))]
        >>> list(BranchSteps(BranchBatches(lambda *keys: torch.zeros(0), branches, b=2)))
        [(0, 0), (0, 1), (0, 2)]
    """

    def __init__(self, batches: BranchBatches) -> None:
        super().__init__(0, batches.num_replicas, batches.rank)
        self.batches = batches

    @property
    def sizes(self) -> dict[str, int]:
        """What decides the batches; the loader compares it on resume."""
        batches = self.batches
        return {"batch_size": batches.b, "branches": len(batches.branches), "pairs": int(batches.pairs)}

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # A generator on purpose: a loader with workers asks for the iterator twice and uses the second.
        start, self.start = self.start, 0
        for step in range(start, len(self)):
            yield self.epoch, step

    def __len__(self) -> int:
        return len(self.batches)


def branch_loader(
    batches: BranchBatches, num_workers: int = 0, seed: int = 0, trainer: Trainer | None = None
) -> ResumableLoader:
    """The training loader of some branches, resumable after any batch.

    Args:
        batches: what it loads.
        num_workers: worker processes; 0 loads in the main process.
        seed: of the numbers that the workers are given.
        trainer: the datamodule's, which knows how far training is.

    Example:
        >>> grey = lambda positions, epochs, numbers: torch.zeros(len(positions), 3, 8, 8, dtype=torch.uint8)
        >>> branches = [Branch("easy", np.arange(4), np.array([0, 0, 1, 1]))]
        >>> [list(batch["easy"]) for batch in branch_loader(BranchBatches(grey, branches, b=2))]
        [['image', 'label', 'pair'], ['image', 'label', 'pair']]
    """
    options: dict[str, Any] = {**loader_options(1, num_workers, seed)}
    options |= {"batch_size": None, "persistent_workers": num_workers > 0}
    loader = ResumableLoader(batches, sampler=BranchSteps(batches), **options)
    loader.trainer = trainer
    return loader
