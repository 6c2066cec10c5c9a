"""What a sentence refers to, drawn on its picture, with Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lit_methods.functional.box_drawing import FOUND, TRUTH, Colour, draw_detections
from lit_methods.functional.drawing import caption

_COVER = 0.4  # of the colour over the mask that was found
_LONGEST, _SHORTEST = 4096, 160  # sides of a drawing, pixels: a caption enlarges what is short


def draw_grounding(
    image: np.ndarray,
    box: Sequence[float] | np.ndarray | Tensor | None,
    mask: np.ndarray | Tensor | None,
    *,
    score: float | None = None,
    text: str | None = None,
    truth_box: Sequence[float] | np.ndarray | Tensor | None = None,
    truth_mask: np.ndarray | Tensor | None = None,
) -> np.ndarray:
    """A picture with the box and the mask that were found for a sentence, and the true ones where they are known.

    What was found is drawn in ``box_drawing.FOUND``, its mask as a translucent cover with an outline; the truth in
    ``box_drawing.TRUTH``, its mask as an outline alone, so that both can be told apart where they lie on each other.

    Args:
        image: (H, W, 3) uint8 RGB; stays as it is.
        box: x1, y1, x2, y2 in pixels, of any real type; ``None``, no area or no finite number draws none.
        mask: (H, W), foreground where it is not 0; ``None`` draws none.
        score: of the box, written above it where it is as wide as the text.
        text: the sentence, in a line below the picture; ``None`` leaves the picture's size as it is.
        truth_box: as ``box``.
        truth_mask: as ``mask``.

    Returns:
        (H', W', 3) uint8 RGB: the picture's own size without ``text``, else that of ``drawing.caption``, but a picture
        that would become longer than 4096 pixels lies on white instead of being enlarged.

    Raises:
        ValueError: ``image`` is no RGB picture, or a mask is not as large as it.

    Example:
        >>> black, half = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), bool)
        >>> half[:, :30] = True
        >>> drawn = draw_grounding(black, [10, 5, 50, 35], half)
        >>> drawn[20, 20].tolist(), drawn[20, 40].tolist(), drawn[20, 10].tolist()
        ([100, 66, 10], [0, 0, 0], [250, 165, 25])
        >>> draw_grounding(black, [10, 5, 50, 35], half, text="the left half").shape
        (180, 240, 3)
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.dtype} {image.shape}")
    drawn = image.copy()
    thick = max(1, round(min(image.shape[:2]) / 300))
    if mask is not None:
        inside = _foreground("mask", mask, image)
        drawn[inside] = _blend(drawn[inside], FOUND)
        drawn[_edge(inside, thick)] = FOUND
    if truth_mask is not None:
        drawn[_edge(_foreground("truth_mask", truth_mask, image), thick)] = TRUTH
    scores = None if score is None or box is None else [score]
    drawn = draw_detections(drawn, _row(box), scores, _row(truth_box))
    return drawn if text is None else caption(_at_least_as_short(drawn), text)


def _row(box: Sequence[float] | np.ndarray | Tensor | None) -> list[list[float]]:
    return [] if box is None else [[float(value) for value in box]]


def _foreground(name: str, mask: np.ndarray | Tensor, image: np.ndarray) -> np.ndarray:
    values: Any = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if values.shape != image.shape[:2]:
        height, width = image.shape[:2]
        raise ValueError(f"{name} must be ({height}, {width}) as its picture, got {values.shape}")
    return values != 0


def _blend(pixels: np.ndarray, colour: Colour) -> np.ndarray:
    return np.rint(pixels * (1 - _COVER) + np.asarray(colour) * _COVER).astype(np.uint8)


def _edge(inside: np.ndarray, thick: int) -> np.ndarray:
    """What of a mask is at most so many pixels from something that is not in it; the picture's rim counts as such."""
    whole = np.pad(inside, 1)
    core = whole.copy()
    for _ in range(thick):
        core[1:-1, 1:-1] = core[1:-1, 1:-1] & core[:-2, 1:-1] & core[2:, 1:-1] & core[1:-1, :-2] & core[1:-1, 2:]
    return (whole & ~core)[1:-1, 1:-1]


def _at_least_as_short(image: np.ndarray) -> np.ndarray:
    """The picture on white where a caption would enlarge a long, narrow one beyond reason."""
    height, width = image.shape[:2]
    factor = -(-_SHORTEST // min(height, width))
    if factor <= 1 or max(height, width) * factor <= _LONGEST:
        return image
    canvas = np.full((max(height, _SHORTEST), max(width, _SHORTEST), 3), 255, np.uint8)
    canvas[:height, :width] = image
    return canvas
