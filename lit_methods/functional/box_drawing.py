"""Detections drawn on their picture, with Pillow alone."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lit_methods.functional.framing import RIGHT

Colour = tuple[int, int, int]
Numbers = Sequence[Sequence[float]] | np.ndarray | Tensor

TRUTH: Colour = RIGHT
FOUND: Colour = (250, 165, 25)
_FONTS = (10, 22)  # smallest and largest, pixels


def draw_detections(
    image: np.ndarray,
    boxes: Numbers,
    scores: Sequence[float] | np.ndarray | Tensor | None = None,
    truth: Numbers | None = None,
) -> np.ndarray:
    """A picture with the outlines of boxes that were found, their scores, and below them the true ones.

    Args:
        image: (H, W, 3) uint8 RGB; stays as it is.
        boxes: (k, 4) x1, y1, x2, y2 in pixels, in any order; drawn in ``FOUND``, the one with the best score on top.
            One without area or not finite is left out, and so is what lies outside the picture.
        scores: (k,); written above the boxes that are as wide as their text.
        truth: (n, 4) likewise, drawn in ``TRUTH``.

    Returns:
        (H, W, 3) uint8. Outlines lie inside their boxes; those of large ones are thicker.

    Raises:
        ValueError: ``image`` is no RGB picture, or there are more or fewer scores than boxes.

    Example:
        >>> drawn = draw_detections(np.zeros((60, 80, 3), np.uint8), [(10, 20, 40, 45)])
        >>> rows, columns = np.nonzero(drawn[..., 0])
        >>> [int(n) for n in (columns.min(), rows.min(), columns.max(), rows.max())]
        [10, 20, 39, 44]
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.dtype} {image.shape}")
    found = _rows(boxes)
    best = [0.0] * len(found) if scores is None else [float(score) for score in scores]
    if len(best) != len(found):
        raise ValueError(f"scores: {len(best)} of them for {len(found)} boxes; give one for each")
    picture = Image.fromarray(image)
    paint = ImageDraw.Draw(picture)
    for box in _rows(() if truth is None else truth):
        _outline(paint, box, TRUTH, picture.size)
    for number in sorted(range(len(found)), key=best.__getitem__):
        if _outline(paint, found[number], FOUND, picture.size) and scores is not None:
            _score(paint, found[number], f"{best[number]:.2f}")
    return np.asarray(picture)


def _rows(boxes: Numbers) -> list[list[float]]:
    return [[float(value) for value in box] for box in boxes]


def _outline(paint: ImageDraw.ImageDraw, box: list[float], colour: Colour, size: tuple[int, int]) -> bool:
    """Whether there was something to draw."""
    if not math.isfinite(sum(box)) or box[2] <= box[0] or box[3] <= box[1]:
        return False
    short = min(box[2] - box[0], box[3] - box[1])
    thick = min(max(1, round(short / 25)), max(2, round(min(size) / 160)))
    limits = ((-thick - 1, size[0] + thick), (-thick - 1, size[1] + thick)) * 2  # far outside they are cut off
    x1, y1, x2, y2 = (math.floor(min(max(v, low), high) + 0.5) for v, (low, high) in zip(box, limits, strict=True))
    paint.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=thick)
    return True


def _score(paint: ImageDraw.ImageDraw, box: list[float], text: str) -> None:
    x1, y1, x2, y2 = box
    font = ImageFont.load_default(min(max(round((y2 - y1) / 8), _FONTS[0]), _FONTS[1]))
    left, top, right, bottom = font.getbbox(text)
    width, height = right - left + 4, bottom - top + 4
    if width > x2 - x1:  # it would hide the faces beside it
        return
    corner = max(0, math.floor(x1 + 0.5)), max(0, math.floor(y1 + 0.5) - round(height))
    paint.rectangle((*corner, corner[0] + width - 1, corner[1] + height - 1), fill=FOUND)
    paint.text((corner[0] + 2 - left, corner[1] + 2 - top), text, fill="black", font=font)
