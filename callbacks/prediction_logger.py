"""PredictionLogger: a grid of pictures with what the network says and what is true."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.epochs import epoch_is_due
from callbacks.report import RunReport
from lit_methods.contract import Predicts
from lit_methods.functional.drawing import grid
from lit_methods.functional.modes import evaluating


class PredictionLogger(Callback):
    """Draw the first pictures of the validation and test split after each epoch, by the module's own ``draw``.

    They land under ``val/predictions`` and ``test/predictions``; what the batch knows of the truth goes to ``draw``
    under its own keys, such as ``label``. Pictures of a batch may be a list of several sizes.

    Args:
        num_images: pictures in the grid, at most one batch.
        every_n_epochs: draw the validation grid every so many epochs, the first one included; where not every epoch has
            a validation, that of the next epoch which has one.

    Raises:
        ValueError: one of them is below 1; during a run: the module has no ``draw``.
    """

    def __init__(self, num_images: int = 16, every_n_epochs: int = 1) -> None:
        if num_images < 1 or every_n_epochs < 1:
            raise ValueError(f"num_images={num_images} and every_n_epochs={every_n_epochs} must be at least 1")
        self.num_images, self.every_n_epochs = num_images, every_n_epochs

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Draw the first validation batch."""
        if batch_idx == 0 and not trainer.sanity_checking and epoch_is_due(trainer, self.every_n_epochs):
            self._draw(trainer, pl_module, batch, "val/predictions")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Draw the first test batch."""
        if batch_idx == 0:
            self._draw(trainer, pl_module, batch, "test/predictions")

    def _draw(self, trainer: Trainer, module: LightningModule, batch: dict[str, torch.Tensor], key: str) -> None:
        if not trainer.is_global_zero:
            return
        if not isinstance(module, Predicts):
            raise ValueError(f"PredictionLogger needs a module with draw, which {type(module).__name__} has not")
        if not len(batch.get("image", ())):  # no sample is left for this process, or answers come from files
            return
        shown = {k: v[: self.num_images] for k, v in batch.items()}
        with evaluating(module):
            predictions = module.predict_step(shown, 0)
        images = [(image.permute(1, 2, 0) * 255).round().byte().cpu().numpy() for image in shown["image"]]
        truth = {name: values for name, values in shown.items() if name not in ("image", "index")}
        if clash := truth.keys() & predictions[0].keys():
            raise ValueError(
                f"{type(module).__name__}.predict_step gives {', '.join(sorted(clash))}, as the batch calls the truth: "
                "give the answer another name"
            )
        drawn: list[np.ndarray] = [
            module.draw(image, prediction | {name: _plain(values[row]) for name, values in truth.items()})
            for row, (image, prediction) in enumerate(zip(images, predictions, strict=True))
        ]
        RunReport.of(trainer).picture(trainer, key, grid(drawn))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, torch.Tensor) else value
