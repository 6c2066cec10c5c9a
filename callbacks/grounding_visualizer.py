"""GroundingVisualizer: what a network finds for sentences about pictures, while it learns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.epochs import epoch_is_due
from callbacks.grounding_pictures import grounding_case, overlaps_text, show_groundings
from lit_methods.functional.modes import evaluating
from lit_methods.metrics.referring import box_ious, mask_counts, mask_ious

PER_PICTURE = 2  # sentences about one picture, as long as there are others


class GroundingVisualizer(Callback):
    """Draw the first sentences of the validation and test split with box and mask, those found and the true ones.

    They land under ``val/grounding`` after each epoch and ``test/grounding``, below each picture the sentence and both
    overlaps with the truth, as the metrics count them. W&B gets boxes and masks as its own overlays, which can be
    switched off one by one.

    Of a picture two sentences are shown, more only where the batch has too few pictures.

    Args:
        num_images: drawings, at most the sentences of one batch.
        every_n_epochs: draw the validation's every so many epochs, the first one included; where not every epoch has a
            validation, that of the next epoch which has one.

    Raises:
        ValueError: one of them is below 1; before a run: the module has no ``predict_rows``.

    Example:
        >>> GroundingVisualizer(num_images=4).num_images
        4
    """

    def __init__(self, num_images: int = 8, every_n_epochs: int = 1) -> None:
        if num_images < 1 or every_n_epochs < 1:
            raise ValueError(f"num_images={num_images} and every_n_epochs={every_n_epochs} must be at least 1")
        self.num_images, self.every_n_epochs = num_images, every_n_epochs

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that answers no sentences, before anything runs."""
        if not hasattr(pl_module, "predict_rows"):
            raise ValueError(
                "GroundingVisualizer needs a module with predict_rows, such as MCN, which "
                f"{type(pl_module).__name__} has not: leave it out"
            )

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first validation batch."""
        first = batch_idx == 0 and dataloader_idx == 0
        if first and not trainer.sanity_checking and epoch_is_due(trainer, self.every_n_epochs):
            self._draw(trainer, pl_module, batch, "val/grounding")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first test batch."""
        if batch_idx == 0 and dataloader_idx == 0:
            self._draw(trainer, pl_module, batch, "test/grounding")

    def _draw(self, trainer: Trainer, module: Any, batch: Mapping[str, Any], key: str) -> None:
        if not trainer.is_global_zero or not len(batch["image"]):  # no sentence may be left for this process
            return
        rows = chosen_rows(batch["image_id"], self.num_images)
        asked = [batch[name][rows] for name in ("image", "tokens", "size", "image_id")]
        with evaluating(module), trainer.precision_plugin.forward_context():
            boxes, _, masks = module.predict_rows(*asked)
        truth = [batch["mask"][row] for row in rows]
        box_iou = box_ious(boxes, batch["box"][rows]).tolist()
        mask_iou = mask_ious(*mask_counts(masks, truth)).tolist()
        cases = [
            grounding_case(batch, row, box, mask, overlaps_text(*ious))
            for row, box, mask, ious in zip(rows, boxes, masks, zip(box_iou, mask_iou, strict=True), strict=True)
        ]
        show_groundings(trainer, key, cases)


def chosen_rows(image_ids: Tensor, number: int) -> list[int]:
    """Rows of a batch that are shown: two of each picture, then two more, until there are enough.

    Args:
        image_ids: (B,), one per sentence.
        number: how many, at most.

    Returns:
        In the order of the batch, in which sentences of one picture are neighbours.

    Example:
        >>> import torch
        >>> chosen_rows(torch.tensor([7, 7, 7, 7, 3, 9, 9]), 5)
        [0, 1, 4, 5, 6]
    """
    seen: Counter[int] = Counter()
    turn = []
    for image in image_ids.tolist():
        turn.append(seen[image] // PER_PICTURE)
        seen[image] += 1
    return sorted(sorted(range(len(turn)), key=turn.__getitem__)[:number])
