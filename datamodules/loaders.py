"""How all loaders of this package are set up, and what is said where a data set was not read yet."""

from typing import Any, TypedDict, TypeVar

import torch
from torch.utils.data import DataLoader

T = TypeVar("T")


class LoaderOptions(TypedDict):
    """Arguments of ``DataLoader``."""

    batch_size: int | None
    num_workers: int
    persistent_workers: bool
    pin_memory: bool
    collate_fn: Any
    generator: torch.Generator


def loader_options(batch_size: int, num_workers: int, seed: int, persistent: bool = False) -> LoaderOptions:
    """Arguments of a loader whose data set gives whole batches.

    Args:
        batch_size: per process.
        num_workers: worker processes.
        seed: of the numbers that the workers are given.
        persistent: workers, if there are any, stay from one iteration to the next.

    Example:
        >>> loader_options(8, 0, 0)["batch_size"]
        8
    """
    return {
        "batch_size": batch_size,
        "num_workers": num_workers,
        "persistent_workers": persistent and num_workers > 0,
        "pin_memory": torch.cuda.is_available(),
        "collate_fn": as_it_is,
        # a loader draws a number for its workers each time it is iterated: not from the global generator
        "generator": torch.Generator().manual_seed(seed),
    }


def ready(found: T | None, data: object, what: str, stage: str) -> T:
    """What a data module has read, or a word on what has to be called first.

    Args:
        found: ``None`` where it was not read yet.
        data: the data module.
        what: was wanted, such as ``"the test videos"``.
        stage: whose ``setup`` reads it; ``"val"`` is read by that of ``"fit"``.

    Raises:
        RuntimeError: it was not read yet.

    Example:
        >>> ready([1, 2], object(), "these pictures", "fit")
        [1, 2]
        >>> ready(None, object(), "these pictures", "val")
        Traceback (most recent call last):
        RuntimeError: object has not read these pictures yet: call setup("fit") first
    """
    if found is None:
        needed = "fit" if stage == "val" else stage
        raise RuntimeError(f'{type(data).__name__} has not read {what} yet: call setup("{needed}") first')
    return found


def as_it_is(batch: T) -> T:
    """The batch, which is whole already."""
    return batch


class EvaluationLoader(DataLoader):
    """A loader that leaves out batches without a single readable picture.

    With several processes each gives one batch at least, if need be of no pictures, where ``in_step`` says so: a
    process that takes no step would leave the others waiting, for buffers that DDP hands round before the first one
    and for the sums of metrics that were logged in one.
    """

    in_step = False  # set by the data module for loaders that a Trainer iterates on all processes at the same time

    def __iter__(self) -> Any:
        empty = self._even_empty()
        for batch in super().__iter__():
            if len(batch["index"]):
                empty = False
                yield batch
        if empty:
            yield self.collate_fn(self.dataset.__getitems__([]))  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return max(super().__len__(), int(self._even_empty()))

    def _even_empty(self) -> bool:
        return self.in_step and getattr(self.sampler, "num_replicas", 1) > 1
