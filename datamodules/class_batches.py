"""Batches of a few images of each of a few classes, for methods that learn something for each class by itself.

What a class sees in an epoch, in which parts and in which order, is the same whether it is trained alone, beside others
or on one of many processes. So what is learnt for it is the same, too.
"""

from collections.abc import Iterator
from itertools import repeat

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.draws import ORDER, permutation
from datamodules.samplers import ResumableBatchSampler

Pairs = list[tuple[int, int]]


class ClassBatchSampler(ResumableBatchSampler[Pairs]):
    """Make batches of up to ``per_class`` images of each of ``num_classes`` classes; each item is a whole batch.

    The images of a class are shuffled by (seed, epoch, class) and cut into parts of ``per_class``, of which the last
    may be smaller: nothing is dropped or repeated. Class number i among those that have images belongs to rank
    ``i % num_replicas``. A rank takes its classes in groups of ``num_classes``; batch j of a group has part j of each
    class that has so many, and a group lasts as long as its largest class. Ranks with fewer batches than the longest
    get empty ones at the end, so that all take equally many steps.

    Args:
        labels: ``(N,)`` class of each position of the training set, the same on all ranks.
        per_class: images of one class in a batch.
        num_classes: classes in a batch.
        seed: together with the epoch and the class it decides the order.
        num_replicas: number of ranks; ``None`` asks ``torch.distributed``.
        rank: this rank; ``None`` asks ``torch.distributed``.

    Raises:
        ValueError: ``rank`` is not below ``num_replicas``, there are no labels, or a size is below 1.

    Example:
        >>> labels = np.array([5, 5, 5, 7])
        >>> sampler = ClassBatchSampler(labels, per_class=2, num_classes=2, num_replicas=1, rank=0)
        >>> [[int(labels[position]) for _, position in batch] for batch in sampler]
        [[5, 5, 7], [5]]
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        per_class: int,
        num_classes: int,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        if len(labels) == 0:
            raise ValueError("labels is empty: there is nothing to train on")
        if per_class < 1 or num_classes < 1:
            raise ValueError(f"per_class and num_classes must be at least 1, got {per_class} and {num_classes}")
        super().__init__(seed, num_replicas, rank)
        self.per_class, self.num_classes = per_class, num_classes
        present, counts = np.unique(labels, return_counts=True)
        members = np.split(np.argsort(labels, kind="stable"), counts.cumsum()[:-1])
        mine = slice(self.rank, None, self.num_replicas)
        self._members = dict(zip(present[mine].tolist(), members[mine], strict=True))
        shares = [self._group_lengths(counts[rank :: self.num_replicas]) for rank in range(self.num_replicas)]
        self._lengths, self._steps = shares[self.rank], max(map(sum, shares))

    @property
    def sizes(self) -> dict[str, int]:
        """What decides the batches; the loader compares it on resume."""
        return {"batch_size": self.per_class * self.num_classes, "per_class_batch": self.per_class}

    def __len__(self) -> int:
        return self._steps

    def batches(self, epoch: int, start: int = 0) -> Iterator[Pairs]:
        """The batches of an epoch from number ``start`` on, as lists of ``(epoch, position)``."""
        classes, left = list(self._members), self._steps - start
        for group, length in enumerate(self._lengths):
            if start < length:
                chosen = classes[group * self.num_classes : (group + 1) * self.num_classes]
                orders = [self._order(epoch, label) for label in chosen]
                for part in range(start, length):
                    cut = slice(part * self.per_class, (part + 1) * self.per_class)
                    yield [(epoch, position) for order in orders for position in order[cut].tolist()]
                    left -= 1
            start = max(0, start - length)
        yield from ([] for _ in repeat(None, max(0, left)))

    def _order(self, epoch: int, label: int) -> NDArray[np.int64]:
        members = self._members[label]
        return members[permutation(len(members), ORDER, self.seed, epoch, label)]

    def _group_lengths(self, counts: NDArray[np.int64]) -> list[int]:
        parts = -(-counts // self.per_class)
        return [int(parts[first : first + self.num_classes].max()) for first in range(0, len(parts), self.num_classes)]


class ClassBatches(Dataset[dict[str, Tensor]]):
    """A data set whose items are whole batches, for a loader with ``batch_size=None``.

    Args:
        images: has ``__getitems__``, which fetches a batch, possibly of no images.
        sampler: yields the keys. A plain number instead of these, as ``overfit_batches`` gives, is the batch of that
            number in epoch 0.

    Example:
        >>> from datamodules.cifar import TensorImages
        >>> import torch
        >>> images = TensorImages(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), np.array([5, 5, 5, 7]))
        >>> batches = ClassBatches(images, ClassBatchSampler(images.labels, per_class=2, num_classes=2))
        >>> len(batches), batches[0]["label"].tolist(), batches[[]]["image"].shape
        (2, [5, 5, 7], torch.Size([0, 3, 8, 8]))
    """

    def __init__(self, images: Dataset[dict[str, Tensor]], sampler: ClassBatchSampler) -> None:
        self.images, self.sampler = images, sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __getitem__(self, keys: int | Pairs) -> dict[str, Tensor]:
        if isinstance(keys, int):
            if not 0 <= keys < len(self):
                raise IndexError(f"batch {keys} of {len(self)}")
            keys = next(self.sampler.batches(0, keys))
        return self.images.__getitems__(keys)  # type: ignore[attr-defined]
