"""Sentences on their pictures: what was found and what is true, beside each other on a sheet and for a run's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor

from callbacks.report import RunReport
from lit_methods.functional.drawing import caption, grid
from lit_methods.functional.letterbox import letterbox_boxes, letterbox_params
from lit_methods.mcn.drawing import draw_grounding

COLUMNS = 4  # of a sheet


class GroundingCase(NamedTuple):
    """A sentence on its picture, which may have been reduced, as plain arrays.

    Args:
        image: (H, W, 3) uint8 RGB.
        box: (4,) x1, y1, x2, y2 of what was found, in its pixels; perhaps not finite.
        mask: (H, W) bool.
        truth_box: as ``box``.
        truth_mask: as ``mask``.
        sentence: what was asked for.
        figures: a few words below it, such as the overlaps.
    """

    image: np.ndarray
    box: np.ndarray
    mask: np.ndarray
    truth_box: np.ndarray
    truth_mask: np.ndarray
    sentence: str
    figures: str


def grounding_case(
    batch: Mapping[str, Any], row: int, box: Tensor, mask: Tensor, figures: str, side: int | None = None
) -> GroundingCase:
    """A row of an evaluation batch with its answer, in the frame of its picture.

    The picture is cut out of its letterboxed square, which holds no more detail than its own side: a larger picture is
    shown that small, and its masks with it, by the nearest pixel.

    Args:
        batch: of ``RefCOCODataModule``; ``image``, ``size``, ``box``, ``mask`` and ``sentence`` are looked at.
        row: which one.
        box: (4,) that was found, in pixels of the square.
        mask: (h, w) that was found, at the picture's own size.
        figures: a few words.
        side: longest side of the picture that is shown, if it is shorter than that of the square.

    Example:
        >>> import torch
        >>> batch = {"image": torch.zeros(1, 3, 8, 8), "size": torch.tensor([[8, 16]]), "sentence": ["the left half"]}
        >>> batch |= {"box": torch.tensor([[0.0, 2, 4, 6]]), "mask": [torch.ones(8, 16)]}
        >>> case = grounding_case(batch, 0, torch.tensor([0, 2, 8, 6]), torch.ones(8, 16), "box 0.50")
        >>> case.image.shape, case.mask.shape, case.box.tolist(), case.truth_box.tolist()
        ((4, 8, 3), (4, 8), [0.0, 0.0, 8.0, 4.0], [0.0, 0.0, 4.0, 4.0])
    """
    height, width = (int(n) for n in batch["size"][row])
    square = int(batch["image"].shape[-1])
    longest = square if side is None else min(side, square)
    factor = min(1.0, longest / max(height, width))
    shown = max(1, round(width * factor)), max(1, round(height * factor))
    params = letterbox_params(width, height, square)
    pixels = (batch["image"][row].detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    cut = np.ascontiguousarray(pixels[params.dy :, params.dx :][: params.new_h, : params.new_w])
    boxes = [
        (letterbox_boxes(each.detach().cpu().double(), params, inverse=True).numpy() * ([*shown] * 2))
        / ([width, height] * 2)
        for each in (box, batch["box"][row])
    ]
    masks = [_resized_mask(each, shown) for each in (mask, batch["mask"][row])]
    picture = np.asarray(Image.fromarray(cut).resize(shown, Image.Resampling.BICUBIC))
    return GroundingCase(picture, boxes[0], masks[0], boxes[1], masks[1], str(batch["sentence"][row]), figures)


def overlaps_text(box_iou: float, mask_iou: float) -> str:
    """How well a box and a mask lie on the true ones, for a caption.

    Example:
        >>> overlaps_text(0.812, 0.125)
        'box 0.81 mask 0.12'
    """
    return f"box {box_iou:.2f} mask {mask_iou:.2f}"


def grounding_sheet(cases: Sequence[GroundingCase]) -> np.ndarray:
    """Drawn pictures beside each other, below each of them its sentence and its figures.

    Args:
        cases: at least one.

    Returns:
        (H, W, 3) uint8 RGB.

    Example:
        >>> half = np.arange(32 * 32).reshape(32, 32) % 32 < 16
        >>> box = np.array([0.0, 0, 16, 32])
        >>> case = GroundingCase(np.zeros((32, 32, 3), np.uint8), box, half, box, half, "the left half", "box 1.00")
        >>> grounding_sheet([case] * 5).shape
        (406, 650, 3)
    """
    drawn = [
        draw_grounding(
            case.image, case.box, case.mask, text=case.sentence, truth_box=case.truth_box, truth_mask=case.truth_mask
        )
        for case in cases
    ]
    return grid([caption(each, case.figures) for each, case in zip(drawn, cases, strict=True)], columns=COLUMNS)


def show_groundings(trainer: Trainer, key: str, cases: Sequence[GroundingCase]) -> None:
    """Hand cases to the run's report: a sheet of them, and W&B its own overlays; nothing where there are none.

    Args:
        trainer: the run's.
        key: such as ``"val/grounding"``.
        cases: in the order of the sheet.
    """
    if not cases or not trainer.is_global_zero:
        return
    RunReport.of(trainer).overlay(
        trainer,
        key,
        [case.image for case in cases],
        {"prediction": [case.box for case in cases], "truth": [case.truth_box for case in cases]},
        {"prediction": [case.mask for case in cases], "truth": [case.truth_mask for case in cases]},
        captions=[f"{case.sentence} | {case.figures}" for case in cases],
        sheet=grounding_sheet(cases),
    )


def _resized_mask(mask: Tensor, shown: tuple[int, int]) -> np.ndarray:
    foreground = Image.fromarray((mask.detach().cpu().numpy() != 0).astype(np.uint8))
    return np.asarray(foreground.resize(shown, Image.Resampling.NEAREST)) != 0
