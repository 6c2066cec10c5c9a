"""Modules trained on a few batches in memory, and what comes of it."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader


def loader(*batches: dict[str, Any]) -> DataLoader:
    """These batches, in their order."""
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def logged(trainer: Trainer) -> dict[str, float]:
    """What was logged last, by name."""
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def gradients(module: LightningModule, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The losses of a step, and the gradients of the parameters that have any."""
    module.zero_grad()
    losses = module.losses(batch)
    losses["loss"].backward()
    return losses, {name: x.grad for name, x in module.named_parameters() if x.grad is not None}
