"""Samplers and loaders that shuffle by epoch, know their rank and go on where a checkpoint was written.

Lightning restores the number of the batch but not the order of the samples: a plain ``DataLoader(shuffle=True)``
starts another permutation in the middle of the epoch. Here the order is a function of (seed, epoch), and the loader
stores how far it was.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence, Sized
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from datamodules.draws import ORDER, permutation
from lit_methods.functional.processes import in_company

Item = TypeVar("Item", covariant=True)


class ResumableSampler(Sampler[Item]):
    """What :class:`ResumableLoader` wants of a sampler: an epoch, a place to start from, a share of the ranks.

    Args:
        seed: together with the epoch it decides the order.
        num_replicas: number of ranks; ``None`` asks ``torch.distributed``.
        rank: this rank; ``None`` asks ``torch.distributed``.

    Raises:
        ValueError: ``rank`` is not below ``num_replicas``.
    """

    def __init__(self, seed: int = 0, num_replicas: int | None = None, rank: int | None = None) -> None:
        self.seed = seed
        self.num_replicas, self.rank = _world(num_replicas, rank)
        self.epoch = 0
        self.start = 0  # items of this rank that the next iteration leaves out; ResumableLoader sets it

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch


class ResumableBatchSampler(ResumableSampler[Item]):
    """A :class:`ResumableSampler` of whole batches, with its arguments; subclasses say which, in :meth:`batches`."""

    def __iter__(self) -> Iterator[Item]:
        # A generator on purpose: a loader with workers asks for the iterator twice and uses the second.
        start, self.start = self.start, 0
        yield from self.batches(self.epoch, start)

    @abstractmethod
    def batches(self, epoch: int, start: int = 0) -> Iterator[Item]:
        """The batches of an epoch from number ``start`` on.

        Args:
            epoch: which.
            start: batches of it that are left out.
        """


class EpochSampler(ResumableSampler[tuple[int, int]]):
    """Shuffle the training set anew in every epoch and deal it out over the ranks.

    It yields ``(epoch, position)`` pairs: nobody tells the data set in a persistent worker which epoch it is, and
    random augmentation needs to know. The order is the same on all ranks; rank r takes every ``num_replicas``-th
    position from r on, after the first few were repeated at the end so that all ranks have equally many.

    Subclasses with another order override :meth:`order`.

    Args:
        dataset: anything with a length, the same on all ranks.
        seed: together with the epoch it decides the order.
        shuffle: ``False`` goes through the set in its own order.
        num_replicas: number of ranks; ``None`` asks ``torch.distributed``.
        rank: this rank; ``None`` asks ``torch.distributed``.
        part: number of the part that this set is of a larger one; two parts are shuffled each in its own way.

    Raises:
        ValueError: ``rank`` is not below ``num_replicas``, or the set is empty.

    Example:
        >>> sampler = EpochSampler(range(3), shuffle=False, num_replicas=2, rank=1)
        >>> sampler.set_epoch(4)
        >>> list(sampler)
        [(4, 1), (4, 0)]
    """

    def __init__(
        self,
        dataset: Sized,
        seed: int = 0,
        shuffle: bool = True,
        num_replicas: int | None = None,
        rank: int | None = None,
        part: int = 0,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("dataset is empty: there is nothing to train on")
        super().__init__(seed, num_replicas, rank)
        self.dataset, self.shuffle, self.part = dataset, shuffle, part

    def order(self) -> NDArray[np.int64]:
        """Positions of the current epoch in the order of training, over all ranks together."""
        if not self.shuffle:
            return np.arange(len(self.dataset))
        part = [self.part] if self.part else []  # part 0 goes through the order that a whole set has
        return permutation(len(self.dataset), ORDER, self.seed, self.epoch, *part)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        start, self.start = self.start, 0
        epoch, order = self.epoch, self.order()
        order = np.resize(order, len(self) * self.num_replicas)  # repeats from the front
        return iter([(epoch, position) for position in order[self.rank :: self.num_replicas][start:].tolist()])

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.num_replicas)


class ShardSampler(Sampler[int]):
    """Go through a set in its own order, each sample exactly once over all ranks: for evaluation.

    Nothing is repeated to even out the ranks (a repeated sample would count twice), so one rank may have one sample
    more than another.

    Args:
        dataset: anything with a length, the same on all ranks.
        num_replicas: number of ranks; ``None`` asks ``torch.distributed``.
        rank: this rank; ``None`` asks ``torch.distributed``.

    Raises:
        ValueError: ``rank`` is not below ``num_replicas``.

    Example:
        >>> [list(ShardSampler(range(5), num_replicas=2, rank=rank)) for rank in (0, 1)]
        [[0, 2, 4], [1, 3]]
    """

    def __init__(self, dataset: Sized, num_replicas: int | None = None, rank: int | None = None) -> None:
        self.dataset = dataset
        self.num_replicas, self.rank = _world(num_replicas, rank)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, len(self.dataset), self.num_replicas))

    def __len__(self) -> int:
        return len(range(self.rank, len(self.dataset), self.num_replicas))


class ResumableLoader(DataLoader):
    """A training loader that Lightning can stop after any batch and resume, bit for bit.

    It wants an :class:`EpochSampler`, or a sampler that makes whole batches, such as
    :class:`~datamodules.class_batches.ClassBatchSampler`, beside ``batch_size=None``. Any other sampler, such as the
    sequential one that ``overfit_batches`` puts in its place, starts the epoch again on resume.
    Its length stays that of the whole epoch, which is what Lightning counts its own progress against.

    The state is ``epoch`` and ``done``, the batches of it that were trained on. Without the epoch a bare count is
    not enough: a checkpoint of the last batch of an epoch is resumed at the start of the next, and
    ``limit_train_batches`` leaves a loader in the middle for good.
    """

    trainer: Trainer | None = None  # set by the data module, so that a batch whose step failed is not counted

    _position: tuple[int, int] = (0, 0)  # the epoch of the running iteration, the batches of it handed out
    _resume: tuple[int, int] | None = None  # the same from a checkpoint, until an iteration has taken it up

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch names a private class
        # A generator on purpose. Lightning asks for the iterator before it sets the epoch, and sometimes asks twice;
        # nothing below runs before the first batch is wanted. Batches are counted here, in the main process: what
        # workers fetched ahead was not trained on.
        epoch = done = 0
        if isinstance(self.sampler, ResumableSampler):
            if self.trainer is not None and self.trainer.training:
                # The same in nearly all runs. Under max_steps, lightning 2.6 sets an epoch too many in a run that is
                # resumed from on_train_epoch_end, while current_epoch is right.
                self.sampler.set_epoch(self.trainer.current_epoch)
            epoch = self.sampler.epoch
            if self._resume is not None and self._resume[0] == epoch:
                done = self._resume[1]
            self.sampler.start = done * (self.batch_size or 1)
        self._resume, self._position = None, (epoch, done)
        for batch in super().__iter__():
            done += 1
            self._position = (epoch, done)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands: plain numbers, the same on all ranks."""
        epoch, done = self._resume or self._position
        if self._resume is None and self.trainer is not None:
            # In a checkpoint that an exception in the middle of a step wrote, the batch at hand is not done:
            # Lightning will ask for it again.
            progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
            done = min(done, progress.processed)
        return {"epoch": epoch, "done": done, **self._batches()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from :meth:`state_dict` at the next iteration, if that is over the same epoch."""
        self._resume = (state_dict["epoch"], state_dict["done"])
        was, now = {name: state_dict[name] for name in state_dict if name not in ("epoch", "done")}, self._batches()
        if was != now and 0 < state_dict["done"] < len(self):
            rank_zero_warn(
                f"The checkpoint was written in the middle of an epoch with {_in_words(was)} and is resumed with "
                f"{_in_words(now)}: the rest of this epoch is not the same samples."
            )

    def _batches(self) -> dict[str, int]:
        """What has to be the same for a number of batches to mean the same samples."""
        groups = getattr(self.sampler, "sizes", {})
        return {"batch_size": self.batch_size or 1, "replicas": getattr(self.sampler, "num_replicas", 1)} | groups


def _in_words(batches: dict[str, int]) -> str:
    sizes = [f"{name}={size}" for name, size in batches.items() if name != "replicas"]
    return f"{', '.join(sizes)} on {batches['replicas']} process(es)"


def epochs_and_positions(keys: Sequence[int | tuple[int, int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Take the keys of a batch apart; plain positions are those of epoch 0.

    Returns:
        Epochs and positions, both ``(B,)``.

    Example:
        >>> epochs_and_positions([(7, 2), (7, 5)])
        (array([7, 7]), array([2, 5]))
    """
    pairs = np.asarray(keys, np.int64)
    epochs, positions = pairs.T if pairs.ndim == 2 else (np.zeros_like(pairs), pairs)
    return epochs, positions


def refuse_replaced_samplers(trainer: Trainer | None) -> None:
    """Stop when Lightning would put its own sampler into the place of ours; every datamodule asks in ``setup``.

    Its replacement forgets the epoch, the resume position and the ``(epoch, position)`` pairs, and repeats samples in
    evaluation.

    Args:
        trainer: the datamodule's trainer; ``None`` (used without one) is fine.

    Raises:
        ValueError: several processes and ``use_distributed_sampler`` is true.

    Example:
        >>> refuse_replaced_samplers(None)
    """
    if trainer is None or trainer.world_size == 1:
        return
    if trainer._accelerator_connector.use_distributed_sampler:  # lightning 2.6 offers no public way to ask
        raise ValueError(
            f"use_distributed_sampler=True with {trainer.world_size} processes would replace the samplers of this "
            "datamodule, which share the data out themselves. Set Trainer(use_distributed_sampler=False), "
            "in a recipe `trainer.use_distributed_sampler: false`."
        )


def _world(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    if num_replicas is None:
        num_replicas = dist.get_world_size() if in_company() else 1
    if rank is None:
        rank = dist.get_rank() if in_company() else 0
    if not 0 <= rank < num_replicas:
        raise ValueError(f"rank must be between 0 and num_replicas - 1 = {num_replicas - 1}, got {rank}")
    return num_replicas, rank
