"""The figures of found boxes and masks: how often they are right, and how often they disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_methods.metrics.referring import (
    GroundingAccuracy,
    InconsistencyError,
    MaskIoU,
    MaskPrecision,
    box_ious,
    mask_counts,
    mask_ious,
)


class GroundingFigures:
    """Figures of the sentences of one stage, all processes together.

    ``acc50``, the part of the boxes with an IoU above 0.5; ``miou`` and ``oiou``, the mean and the overall IoU of the
    masks; ``prec@0.50`` to ``prec@0.95``, the parts of the masks above such an IoU; ``ie``, the part of the sentences
    of which either the box or the mask is right, but not both.

    Example:
        >>> figures = GroundingFigures()
        >>> box, mask = torch.tensor([[4.0, 4, 8, 8]]), torch.ones(6, 6, dtype=torch.bool)
        >>> _ = figures.update(box, [mask], {"box": box, "mask": [mask]})
        >>> {name: float(value) for name, value in figures.compute().items() if not name.startswith("prec")}
        {'acc50': 1.0, 'miou': 1.0, 'oiou': 1.0, 'ie': 0.0}
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self, device: torch.device | str = "cpu") -> GroundingFigures:
        """Forget what was seen.

        Args:
            device: of the metrics.
        """
        self.boxes = GroundingAccuracy().to(device)
        self.masks = {"miou": MaskIoU("mean").to(device), "oiou": MaskIoU("overall").to(device)}
        self.precision, self.inconsistency = MaskPrecision().to(device), InconsistencyError().to(device)
        return self

    def update(self, boxes: Tensor, masks: Sequence[Tensor], batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Add the sentences of a batch; returns the overlaps of their boxes and of their masks, (B,) float64 each.

        Args:
            boxes: (B, 4) found, xyxy in pixels of the letterboxed picture.
            masks: B of (h, w) bool, found, at the size of the pictures.
            batch: of an evaluation: ``box`` (B, 4) and ``mask``, B of (h, w), are the truth.
        """
        counts = mask_counts(masks, batch["mask"])  # once for all of them: masks are large
        of_boxes, of_masks = box_ious(boxes, batch["box"]), mask_ious(*counts)
        self.boxes.add(of_boxes)
        for metric in self.masks.values():
            metric.add(*counts)
        self.precision.add(of_masks)
        self.inconsistency.add(of_boxes, of_masks)
        return of_boxes, of_masks

    def compute(self) -> dict[str, Tensor]:
        """All figures by name, 0-d; every process has to call."""
        found = {"acc50": self.boxes.compute()}
        found |= {name: metric.compute() for name, metric in self.masks.items()}
        return found | self.precision.compute() | {"ie": self.inconsistency.compute()}
