"""Annotated regions of a video frame, polygons or rectangles, as boxes."""

import torch
from torch import Tensor


def region_to_box(region: Tensor) -> Tensor:
    """Axis-aligned box of an annotated region; a rotated rectangle keeps its area.

    Args:
        region: ``(..., 8)`` polygons x1, y1, ..., x4, y4, or ``(..., 4)`` rectangles x, y, w, h, in pixels.

    Returns:
        ``(..., 4)`` cx, cy, w, h; float64 for float64, else float32. NaN stays NaN.

    Raises:
        ValueError: the last dimension is neither 8 nor 4.

    Source:
        VOT toolkit of the official code: the centre is the mean of the vertices, the sides of the bounding box are
        scaled by ``sqrt(A1 / A2)``, the areas of polygon and bounding box, then 1 is added to them. A rectangle has
        centre ``x + w / 2`` and its own size. Ours: a polygon whose bounding box has no area is not scaled, where the
        official code divides by 0.

    Example:
        >>> diamond = torch.tensor([2.0, 0.0, 4.0, 2.0, 2.0, 4.0, 0.0, 2.0])
        >>> region_to_box(diamond)
        tensor([2.0000, 2.0000, 3.8284, 3.8284])
        >>> region_to_box(torch.tensor([10.0, 20.0, 4.0, 6.0]))
        tensor([12., 23.,  4.,  6.])
    """
    if region.ndim == 0 or region.shape[-1] not in (4, 8):
        raise ValueError(
            f"region has shape {tuple(region.shape)}; its last dimension must be 8 (x1, y1, ...) or 4 (x, y, w, h)"
        )
    region = region if region.dtype == torch.float64 else region.float()
    if region.shape[-1] == 4:
        size = region[..., 2:]
        return torch.cat([region[..., :2] + size / 2, size], -1)
    corners = region.unflatten(-1, (4, 2))
    extent = corners.amax(-2) - corners.amin(-2)
    sides = torch.linalg.vector_norm(corners[..., :2, :] - corners[..., 1:3, :], dim=-1)
    covered = extent.prod(-1)
    scale = torch.where(covered == 0, 1, sides.prod(-1) / covered).sqrt()
    return torch.cat([corners.mean(-2), extent * scale[..., None] + 1], -1)


def rectangle_corners(boxes_xywh: Tensor) -> Tensor:
    """Rectangles as polygons, their far corners at x + w and y + h.

    Args:
        boxes_xywh: ``(n, 4)`` x, y, w, h.

    Returns:
        ``(n, 8)`` x, y of four corners.

    Source:
        The VOT toolkit of the official code, for the boxes of a tracker.

    Example:
        >>> rectangle_corners(torch.tensor([[1.0, 2.0, 10.0, 20.0]])).tolist()
        [[1.0, 2.0, 11.0, 2.0, 11.0, 22.0, 1.0, 22.0]]
    """
    x, y, w, h = boxes_xywh.unbind(1)
    return torch.stack([x, y, x + w, y, x + w, y + h, x, y + h], 1)
