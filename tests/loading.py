"""Whole loaders as one batch, and a Trainer that would bring its own, for tests of data."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader


def batches(loader: DataLoader, epoch: int = 0) -> dict[str, Tensor]:
    """Everything that a loader gives in one epoch, in its order."""
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(epoch)
    parts = list(loader)
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def by_index(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same samples in the order of the data set."""
    order = batch["index"].argsort()
    return {key: value[order] for key, value in batch.items()}


def with_own_sampler(processes: int) -> Any:
    """As much of a Trainer that puts its own sampler into loaders as a data module looks at."""
    return SimpleNamespace(world_size=processes, _accelerator_connector=SimpleNamespace(use_distributed_sampler=True))
