"""Letterboxing: a picture inside a square, in its own proportions, and boxes from one frame to the other."""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

GREY = 128  # of the bars beside the picture


class Letterbox(NamedTuple):
    """Where a picture lies in its square.

    Args:
        scale: pixels of the square for one of the picture.
        new_w: width of the resized picture.
        new_h: its height.
        dx: columns to the left of it.
        dy: rows above it.
    """

    scale: float
    new_w: int
    new_h: int
    dx: int
    dy: int


def letterbox_params(w: int, h: int, size: int = 416) -> Letterbox:
    """Where a picture of this size goes: as large as fits, in the middle.

    Args:
        w: width of the picture in pixels.
        h: height.
        size: side of the square.

    Returns:
        Scale, size of the resized picture and its offset.

    Raises:
        ValueError: a side is below 1.

    Source:
        MCN's official code: sides and offsets are rounded down. A side has one pixel at least, which the official code
        rounds to none where a picture is extremely narrow.

    Example:
        >>> letterbox_params(640, 427)
        Letterbox(scale=0.65, new_w=416, new_h=277, dx=0, dy=69)
    """
    for name, side in (("w", w), ("h", h), ("size", size)):
        if side < 1:
            raise ValueError(f"{name}={side} must be at least 1 pixel; letterbox_params takes width before height")
    scale = min(size / w, size / h)
    new_w, new_h = max(1, int(w * scale)), max(1, int(h * scale))
    return Letterbox(scale, new_w, new_h, (size - new_w) // 2, (size - new_h) // 2)


def letterbox_boxes(boxes: Tensor, params: Letterbox, inverse: bool = False) -> Tensor:
    """Boxes of a picture as boxes of its square, or back.

    Args:
        boxes: ``(..., 4)`` x1, y1, x2, y2 in pixels; whole numbers become float32.
        params: of the picture, see :func:`letterbox_params`.
        inverse: from the square to the picture. Nothing is cut off at its edges.

    Returns:
        ``(..., 4)`` of the same floating type.

    Raises:
        ValueError: the last dimension is not 4.

    Source:
        MCN's official code, which has the way there only.

    Example:
        >>> letterbox_boxes(torch.tensor([64, 96, 448, 432]), letterbox_params(640, 480))
        tensor([ 41.6000, 114.4000, 291.2000, 332.8000])
        >>> letterbox_boxes(torch.tensor([0, 52, 416, 364]), letterbox_params(640, 480), inverse=True)
        tensor([  0.0000,   0.0000, 640.0000, 480.0000])
    """
    if not boxes.ndim or boxes.shape[-1] != 4:
        raise ValueError(f"boxes must be (..., 4) x1, y1, x2, y2, got {tuple(boxes.shape)}")
    if not boxes.is_floating_point():
        boxes = boxes.float()
    offset = torch.tensor([params.dx, params.dy] * 2, dtype=boxes.dtype, device=boxes.device)
    return (boxes - offset) / params.scale if inverse else boxes * params.scale + offset


def letterbox_image(picture: Image.Image, size: int = 416) -> np.ndarray:
    """A picture in its square, with grey bars beside it.

    Args:
        picture: RGB.
        size: side of the square.

    Returns:
        ``(3, size, size)`` uint8.

    Raises:
        ValueError: the picture is not RGB.

    Source:
        MCN's official code: bicubic by Pillow, grey 128.

    Example:
        >>> letterbox_image(Image.new("RGB", (4, 2), "red"), 4)[:, :, 0].tolist()
        [[128, 255, 255, 128], [128, 0, 0, 128], [128, 0, 0, 128]]
    """
    if picture.mode != "RGB":
        raise ValueError(f"picture has mode {picture.mode!r}, but must be RGB; picture.convert('RGB') makes it so")
    params = letterbox_params(*picture.size, size)
    canvas = Image.new("RGB", (size, size), (GREY, GREY, GREY))
    canvas.paste(picture.resize((params.new_w, params.new_h), Image.Resampling.BICUBIC), (params.dx, params.dy))
    return np.ascontiguousarray(np.asarray(canvas).transpose(2, 0, 1))


def letterbox_mask(mask: np.ndarray, size: int = 416) -> np.ndarray:
    """The mask of something in a picture as a mask of the square, zeros beside the picture.

    Args:
        mask: ``(h, w)`` bool or whole numbers, at the picture's size; above 0 is foreground.
        size: side of the square.

    Returns:
        ``(size, size)`` uint8, 0 and 1.

    Raises:
        ValueError: the mask has not two dimensions.

    Source:
        MCN's official code, whose filter was Pillow's default of the day; here it is the nearest pixel. Where parts of
        one mask overlap, the official code keeps their number, here foreground is 1.

    Example:
        >>> letterbox_mask(np.array([[0, 1, 2, 0], [0, 0, 1, 0]]), 4).tolist()
        [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    """
    if mask.ndim != 2:
        raise ValueError(f"mask must be (h, w), got {mask.shape}")
    params = letterbox_params(mask.shape[1], mask.shape[0], size)
    foreground = Image.fromarray((mask > 0).astype(np.uint8))
    resized = foreground.resize((params.new_w, params.new_h), Image.Resampling.NEAREST)
    square = np.zeros((size, size), np.uint8)
    square[params.dy : params.dy + params.new_h, params.dx : params.dx + params.new_w] = np.asarray(resized)
    return square
