"""DDLWarmup: the distillation loss comes in slowly."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class DDLWarmup(Callback):
    """Raise the weight of the distillation loss linearly from 0 to ``ddl_weight`` over its first batches.

    Batches without distillation, such as those of a pre-training, do not count. The count is in the checkpoint, so a
    resumed run goes on with the right weight.

    Args:
        steps: batches until the full weight.

    Raises:
        ValueError: ``steps`` is below 1; during a run: the module has no such weight.

    Example:
        >>> DDLWarmup(steps=100).steps
        100
    """

    def __init__(self, steps: int = 500) -> None:
        if steps < 1:
            raise ValueError(f"steps={steps} must be at least 1")
        self.steps, self.done = steps, 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse modules without a distillation loss; a fit of its own begins at 0, unless a checkpoint is loaded."""
        if not hasattr(pl_module, "ddl_factor"):
            raise ValueError(f"DDLWarmup needs a DDL module, {type(pl_module).__name__} has no distillation loss")
        if stage == "fit" and trainer.current_epoch == 0:
            self.done = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Set the factor of this batch."""
        pl_module.ddl_factor = min(1.0, self.done / self.steps)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, if there was distillation in it."""
        self.done += bool(isinstance(outputs, dict) and outputs.get("similarities"))

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Leave the module as it was."""
        pl_module.ddl_factor = 1.0

    def state_dict(self) -> dict[str, Any]:
        """How many batches are done."""
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.done = state_dict["done"]
