"""Pictures of tracking: boxes over frames, strips of a clip, and what a tracker learns from."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lit_methods.functional.frames import to_rgb_array
from lit_methods.functional.framing import PLAIN, RIGHT, WRONG

Colour = tuple[int, int, int]

TRUTH: Colour = RIGHT
PREDICTED: Colour = (250, 165, 25)


def draw_boxes(
    frame: np.ndarray, boxes: Sequence[tuple[Sequence[float] | Tensor | np.ndarray, Colour]], text: str = ""
) -> np.ndarray:
    """A frame with the outlines of boxes, and a word in its upper left corner.

    Args:
        frame: (H, W, 3) uint8 RGB; stays as it is.
        boxes: x, y, w, h in pixels and a colour each, later ones on top. A box without area or not finite, as of an
            absent target, is left out, and so is what lies outside the frame.
        text: such as a score, in ASCII; "" for none.

    Returns:
        (H, W, 3) uint8. The outline lies inside the box, and is thicker in large frames.

    Raises:
        ValueError: ``frame`` is no RGB picture.

    Example:
        >>> drawn = draw_boxes(np.zeros((60, 80, 3), np.uint8), [((10, 20, 30, 25), (255, 0, 0))])
        >>> rows, columns = np.nonzero(drawn[..., 0])
        >>> int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1
        (10, 20, 30, 25)
    """
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"frame must be (H, W, 3) uint8, got {frame.dtype} {frame.shape}")
    picture = Image.fromarray(frame)
    paint = ImageDraw.Draw(picture)
    for box, colour in boxes:
        x, y, w, h = (float(value) for value in box)
        if math.isfinite(x + y + w + h) and w > 0 and h > 0:
            _outline(paint, (x, y, x + w, y + h), colour, picture.size)
    if text:
        font = ImageFont.load_default(max(10, round(min(picture.size) / 16)))
        left, top, right, bottom = font.getbbox(text)
        paint.rectangle((0, 0, right - left + 5, bottom - top + 5), fill="black")
        paint.text((3 - left, 3 - top), text, fill="white", font=font)
    return np.asarray(picture)


def strip(
    frames: Sequence[np.ndarray],
    boxes: Sequence[Sequence[float]] | Tensor,
    truth: Sequence[Sequence[float]] | Tensor | None = None,
    every: int = 1,
    height: int = 240,
) -> np.ndarray:
    """Frames of a tracked clip side by side, with the box that was found and the true one.

    Args:
        frames: (H, W, 3) uint8 RGB, at least one; those of another size than the first are brought to it.
        boxes: (n, 4), x, y, w, h in pixels of the frames, one for each; drawn in ``PREDICTED``.
        truth: likewise, or ``None``; drawn in ``TRUTH``, below the others.
        every: show the first of so many.
        height: higher frames are shrunk to it.

    Returns:
        (H, W * k, 3) uint8, k frames of the first one's size.

    Raises:
        ValueError: there is no frame, ``every`` is below 1, or there are more or fewer boxes than frames.

    Example:
        >>> black = [np.zeros((60, 80, 3), np.uint8)] * 5
        >>> strip(black, [(10, 20, 30, 25)] * 5, every=2).shape
        (60, 240, 3)
    """
    if not len(frames) or every < 1:
        raise ValueError(f"a strip needs at least one frame and every >= 1, got {len(frames)} frames and {every=}")
    if len(boxes) != len(frames) or (truth is not None and len(truth) != len(frames)):
        true = "" if truth is None else f" and {len(truth)} true ones"
        raise ValueError(f"a strip needs a box for each frame, got {len(frames)} frames, {len(boxes)} boxes{true}")
    shrink = min(1.0, height / frames[0].shape[0])
    size = tuple(max(1, round(side * shrink)) for side in frames[0].shape[1::-1])
    shown = []
    for i in range(0, len(frames), every):
        frame = frames[i]
        scales = np.array([size[0] / frame.shape[1], size[1] / frame.shape[0]] * 2)
        if frame.shape[1::-1] != size:
            frame = np.asarray(Image.fromarray(frame).resize((size[0], size[1]), Image.Resampling.BILINEAR))
        both = [(boxes[i], PREDICTED)] if truth is None else [(truth[i], TRUTH), (boxes[i], PREDICTED)]
        shown.append(draw_boxes(frame, [(np.array([float(v) for v in box]) * scales, c) for box, c in both]))
    return np.concatenate(shown, axis=1)


def label_map_picture(search: Tensor, labels: Tensor, points: Tensor, box: Tensor | None = None) -> np.ndarray:
    """A search region with a dot at each point of the grid: what it is for the loss.

    Large green dots are target, smaller red ones background, single grey pixels are ignored.

    Args:
        search: (3, s, s) BGR, 0 to 255.
        labels: (n, n), 1 target, 0 background, -1 ignored.
        points: (2, n, n), x and y of each in pixels of ``search``.
        box: (4,) of the target, xyxy in pixels of ``search``; its outline is drawn.

    Returns:
        (s, s, 3) uint8 RGB.

    Raises:
        ValueError: ``labels`` and ``points`` do not fit each other.

    Example:
        >>> import torch
        >>> y, x = torch.meshgrid(torch.arange(5.0, 30, 10), torch.arange(5.0, 30, 10), indexing="ij")
        >>> labels = torch.tensor([[0, -1, 0], [-1, 1, -1], [0, -1, 0]])
        >>> picture = label_map_picture(torch.zeros(3, 31, 31), labels, torch.stack([x, y]))
        >>> picture.shape, tuple(picture[15, 15].tolist()) == RIGHT
        ((31, 31, 3), True)
    """
    if points.shape != (2, *labels.shape):
        raise ValueError(
            f"points must be {(2, *labels.shape)} for labels {tuple(labels.shape)}, got {tuple(points.shape)}"
        )
    picture = Image.fromarray(to_rgb_array(search) // 4 * 3)  # darker, so that the dots stand out
    paint = ImageDraw.Draw(picture)
    if box is not None:
        _outline(paint, tuple(box.tolist()), (255, 255, 255), picture.size)
    classes = labels.detach().cpu().numpy().ravel()
    places = np.floor(points.detach().cpu().double().numpy().reshape(2, -1) + 0.5).astype(int)
    for label, colour, radius in ((-1, PLAIN, 0), (0, WRONG, 1), (1, RIGHT, 2)):
        for x, y in places[:, classes == label].T.tolist():
            paint.rectangle((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return np.asarray(picture)


def _outline(paint: ImageDraw.ImageDraw, box: Sequence[float], colour: Colour, size: tuple[int, int]) -> None:
    """The outline of a box xyxy, inside it; far outside of the picture it is cut off."""
    thick = max(2, round(min(size) / 160))
    limits = ((-thick - 1, size[0] + thick), (-thick - 1, size[1] + thick)) * 2
    x0, y0, x1, y1 = (math.floor(min(max(v, low), high) + 0.5) for v, (low, high) in zip(box, limits, strict=True))
    x1, y1 = max(x0, x1 - 1), max(y0, y1 - 1)
    if min(x1 - x0, y1 - y0) < 2 * thick:  # lines would meet, or grow out of it
        paint.rectangle((x0, y0, x1, y1), fill=colour)
    else:
        paint.rectangle((x0, y0, x1, y1), outline=colour, width=thick)
