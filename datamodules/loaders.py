"""How all loaders of this package are set up."""

from typing import Any, TypedDict, TypeVar

import torch

T = TypeVar("T")


class LoaderOptions(TypedDict):
    """Arguments of ``DataLoader``."""

    batch_size: int | None
    num_workers: int
    persistent_workers: bool
    pin_memory: bool
    collate_fn: Any
    generator: torch.Generator


def loader_options(batch_size: int, num_workers: int, seed: int) -> LoaderOptions:
    """Arguments of a loader whose data set gives whole batches.

    Args:
        batch_size: per process.
        num_workers: worker processes.
        seed: of the numbers that the workers are given.

    Example:
        >>> loader_options(8, 0, 0)["batch_size"]
        8
    """
    return {
        "batch_size": batch_size,
        "num_workers": num_workers,
        "persistent_workers": False,
        "pin_memory": torch.cuda.is_available(),
        "collate_fn": as_it_is,
        # a loader draws a number for its workers each time it is iterated: not from the global generator
        "generator": torch.Generator().manual_seed(seed),
    }


def as_it_is(batch: T) -> T:
    """The batch, which is whole already."""
    return batch
