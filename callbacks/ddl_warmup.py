"""DDLWarmup: the distillation loss comes in slowly."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class DDLWarmup(Callback):
    """Raise the weight of the distillation loss linearly from 0 to ``ddl_weight`` over the first steps of a fit.

    The factor is a function of the step, so a resumed run goes on with the right one.

    Args:
        steps: optimiser steps until the full weight.

    Raises:
        ValueError: ``steps`` is below 1; during a run: the module has no such weight.

    Example:
        >>> DDLWarmup(steps=100).steps
        100
    """

    def __init__(self, steps: int = 500) -> None:
        if steps < 1:
            raise ValueError(f"steps={steps} must be at least 1")
        self.steps = steps

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse modules without a distillation loss."""
        if not hasattr(pl_module, "ddl_factor"):
            raise ValueError(f"DDLWarmup needs a DDL module, {type(pl_module).__name__} has no distillation loss")

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Set the factor of this step."""
        pl_module.ddl_factor = min(1.0, trainer.global_step / self.steps)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Leave the module as it was."""
        pl_module.ddl_factor = 1.0
