"""Modules trained on a few batches in memory, and what comes of it."""

from collections.abc import Callable
from typing import Any

import torch
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


class Noting(LightningModule):
    """One weight, and a note of each batch; subclasses say of what.

    Args:
        fail_at: step in which there is an error instead.
    """

    note_training: Callable[[dict[str, Any], int], Tensor | float]  # notes a batch; gives the weight's gradient
    note_evaluation: Callable[[dict[str, Any]], None]

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight, self.fail_at = torch.nn.Parameter(torch.zeros(())), fail_at

    def training_step(self, batch, batch_idx):
        if self.global_step == self.fail_at:
            raise RuntimeError("out of memory")
        return self.weight * self.note_training(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.note_evaluation(batch)

    def test_step(self, batch, batch_idx):
        self.note_evaluation(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
