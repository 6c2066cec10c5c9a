"""Rectangles of training pictures are painted over: cutout (arXiv 1708.04552) and random erasing (arXiv 1708.04896)."""

import torch
from torch import Tensor


def cutout(images: Tensor, centers: Tensor, length: int, fill: float | Tensor = 0.0) -> Tensor:
    """Paint over a square of every image, each at a place of its own.

    With half = ``length // 2`` the square covers rows ``y - half`` to ``y + half - 1`` and columns ``x - half`` to
    ``x + half - 1``, as far as they are inside the image: an odd length is one pixel short, and 1 erases nothing.

    Args:
        images: ``(B, C, H, W)`` of any dtype; they stay as they are.
        centers: ``(B, 2)`` int64, row y and column x, on the device of the images.
        length: side of the square, in pixels, from 0 on.
        fill: what takes the place of the pixels, one number or one per channel ``(C,)``; cast to the dtype of the
            images.

    Returns:
        ``(B, C, H, W)`` of the same dtype.

    Raises:
        ValueError: a shape or dtype is another one, or ``length`` is negative.

    Source:
        BPE, arXiv 2005.09917, official code, whose squares these are; it draws the centres in here.

    Example:
        >>> cutout(torch.ones(1, 1, 2, 3, dtype=torch.int), torch.tensor([[0, 1]]), 2).tolist()
        [[[[0, 0, 1], [1, 1, 1]]]]
    """
    if images.ndim != 4:
        raise ValueError(f"images must be (B, C, H, W), got shape {tuple(images.shape)}")
    if centers.shape != (len(images), 2) or centers.dtype != torch.int64:
        raise ValueError(
            f"centers must be int64 ({len(images)}, 2), row and column for each image, got {centers.dtype} "
            f"{tuple(centers.shape)}"
        )
    if length < 0:
        raise ValueError(f"length must be 0 (nothing) or more pixels, got {length}")
    half = length // 2
    y, x = centers.unbind(1)
    return paint_rectangles(images, torch.stack([y - half, x - half, y + half, x + half], dim=1), fill)


def paint_rectangles(images: Tensor, boxes: Tensor, fill: float | Tensor = 0.0) -> Tensor:
    """Paint over a rectangle of every image, as random erasing does.

    Args:
        images: ``(B, C, H, W)`` of any dtype; they stay as they are.
        boxes: ``(B, 4)`` int64, rows ``y0`` to ``y1 - 1`` and columns ``x0`` to ``x1 - 1``, in the order y0, x0, y1,
            x1; what lies outside the image does not count, and four zeros are no rectangle.
        fill: what takes the place of the pixels, one number or one per channel ``(C,)``; cast to the dtype of the
            images.

    Returns:
        ``(B, C, H, W)`` of the same dtype.

    Raises:
        ValueError: a shape or dtype is another one.

    Example:
        >>> paint_rectangles(torch.ones(1, 1, 2, 3), torch.tensor([[0, 1, 2, 3]])).tolist()
        [[[[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]]]
    """
    if images.ndim != 4 or boxes.shape != (len(images), 4) or boxes.dtype != torch.int64:
        raise ValueError(
            f"images must be (B, C, H, W) and boxes int64 (B, 4), got shapes {tuple(images.shape)} and "
            f"{tuple(boxes.shape)}, boxes {boxes.dtype}"
        )
    height, width = images.shape[-2:]
    y0, x0, y1, x1 = boxes[:, :, None].unbind(1)
    row, column = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    rows, columns = (row >= y0) & (row < y1), (column >= x0) & (column < x1)
    inside = (rows[:, None, :, None]) & (columns[:, None, None, :])
    return torch.where(inside, _paint(fill, images), images)


def _paint(fill: float | Tensor, images: Tensor) -> Tensor:
    """``fill`` in the dtype and on the device of the images, in a shape that broadcasts against them."""
    if not isinstance(fill, Tensor):
        return images.new_full((), fill)
    if fill.ndim and fill.shape != images.shape[1:2]:
        raise ValueError(
            f"fill must be one number or ({images.shape[1]},), one for each channel, got shape {tuple(fill.shape)}"
        )
    return fill.to(images).view(-1, 1, 1)
