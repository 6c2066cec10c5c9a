"""Whole loaders as one batch, and a Trainer that would bring its own, for tests of data."""

from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

Data = TypeVar("Data", bound=LightningDataModule)


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


def set_up(data: Data, *stages: str) -> Data:
    """A data module, set up for these stages, or to fit."""
    for stage in stages or ("fit",):
        data.setup(stage)
    return data


def flat(batch: dict[str, dict[str, Any]]) -> dict[str, Tensor]:
    """A batch of branches as one dict of tensors."""
    return {
        f"{name}/{key}": torch.stack(value) if key == "pair" else value
        for name, branch in batch.items()
        for key, value in branch.items()
    }


def with_own_sampler(processes: int) -> Any:
    """As much of a Trainer that puts its own sampler into loaders as a data module looks at."""
    return SimpleNamespace(world_size=processes, _accelerator_connector=SimpleNamespace(use_distributed_sampler=True))
