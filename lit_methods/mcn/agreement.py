"""A box and a mask of the same picture: in its own pixels, and whether they mean the same thing."""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import masks_to_boxes

from lit_methods.functional.boxes import pairwise_iou
from lit_methods.functional.letterbox import letterbox_boxes, letterbox_params


def picture_box(box: Tensor, height: int, width: int, size: int) -> Tensor:
    """A box of the letterboxed picture in pixels of the picture itself, cut off at its borders.

    Args:
        box: (4,) xyxy in pixels of the letterboxed picture.
        height: of the picture.
        width: of the picture.
        size: side of the letterboxed one.

    Returns:
        (4,) float64 on the CPU.

    Example:
        >>> import torch
        >>> picture_box(torch.tensor([0, 8, 40, 40]), 48, 128, 64)  # half as large, 20 pixels of grey above
        tensor([ 0.,  0., 80., 40.], dtype=torch.float64)
    """
    box = letterbox_boxes(box.detach().cpu().double(), letterbox_params(width, height, size), inverse=True)
    return box.clamp(min=0).minimum(box.new_tensor([width, height] * 2))


def agreement(box: Tensor, mask: Tensor) -> float:
    """IoU of a box with the extent of a mask; needs no truth.

    Args:
        box: (4,) xyxy in pixels of the picture.
        mask: (h, w) of the picture, foreground where it is not 0.

    Returns:
        0 to 1; 0 where the mask is empty or the box is not finite.

    Example:
        >>> import torch
        >>> mask = torch.zeros(6, 8)
        >>> mask[1:3, 2:6] = 1
        >>> agreement(torch.tensor([2.0, 1, 6, 5]), mask)
        0.5
    """
    mask, box = (mask != 0).cpu(), box.detach().cpu().double()
    if not mask.any() or not box.isfinite().all():
        return 0.0
    extent = masks_to_boxes(mask[None]).double() + box.new_tensor([0, 0, 1, 1])
    return float(pairwise_iou(box[None], extent))
