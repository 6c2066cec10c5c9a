"""Pictures of ranked lists: a query and beside it what was found, right and wrong ones framed."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lit_methods.functional.drawing import grid

RIGHT, WRONG, PLAIN = (34, 160, 70), (214, 45, 45), (150, 150, 150)  # frames, RGB
_BORDER = 3  # pixels
_LINE, _FONT = 14, 11  # of a word below a picture, pixels


def framed(image: np.ndarray, colour: Sequence[int], height: int = 128, width: int = 64) -> np.ndarray:
    """A picture of one size inside a frame.

    Args:
        image: (H, W, 3) uint8 RGB, of any size.
        colour: RGB, 0 to 255.
        height: of the picture, without its frame.
        width: likewise.

    Returns:
        (height + 6, width + 6, 3) uint8.

    Example:
        >>> framed(np.zeros((10, 5, 3), np.uint8), RIGHT).shape
        (134, 70, 3)
    """
    canvas = np.empty((height + 2 * _BORDER, width + 2 * _BORDER, 3), np.uint8)
    canvas[:] = np.asarray(colour, np.uint8)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    canvas[_BORDER:-_BORDER, _BORDER:-_BORDER] = np.asarray(resized)
    return canvas


def labelled(image: np.ndarray, text: str) -> np.ndarray:
    """A picture as it is, and below it a word.

    Not ``caption``, which enlarges small pictures: there are many of these on a sheet.

    Args:
        image: (H, W, 3) uint8 RGB.
        text: a word or two in ASCII; what does not fit below the picture is cut off.

    Returns:
        (H + 14, W, 3) uint8.

    Example:
        >>> labelled(np.zeros((134, 70, 3), np.uint8), "12.25").shape
        (148, 70, 3)
    """
    canvas = Image.new("RGB", (image.shape[1], image.shape[0] + _LINE), "white")
    canvas.paste(Image.fromarray(image))
    ImageDraw.Draw(canvas).text((2, image.shape[0]), text, fill="black", font=ImageFont.load_default(_FONT))
    return np.asarray(canvas)


def ranked_list(
    query: np.ndarray,
    found: Sequence[np.ndarray],
    texts: Sequence[str] | None = None,
    right: Sequence[bool] | None = None,
    height: int = 128,
    width: int = 64,
) -> np.ndarray:
    """A query in a grey frame, and beside it gallery pictures in the order in which they were found.

    Args:
        query: (H, W, 3) uint8 RGB.
        found: gallery pictures, nearest first.
        texts: a word below each of them, such as its distance.
        right: whether each is the same person: framed in green or in red; ``None`` where nobody knows, all in grey.
        height: of every picture, without its frame.
        width: likewise.

    Returns:
        One row (H', W', 3) uint8 RGB.

    Example:
        >>> black = np.zeros((128, 64, 3), np.uint8)
        >>> ranked_list(black, [black] * 4, right=[True, False, True, True]).shape
        (138, 362, 3)
    """
    colours = [PLAIN] * len(found) if right is None else [RIGHT if hit else WRONG for hit in right]
    shown = zip([query, *found], [PLAIN, *colours], strict=True)
    pictures = [framed(image, colour, height, width) for image, colour in shown]
    if texts is not None:
        pictures = [labelled(p, text) for p, text in zip(pictures, ["query", *texts], strict=True)]
    return grid(pictures, columns=len(pictures))
