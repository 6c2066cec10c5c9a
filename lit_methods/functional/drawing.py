"""Text and grids on pictures, with Pillow alone."""

import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SHORT_SIDE = 160  # smaller pictures are enlarged to it, so that a caption can be read


def caption(image: np.ndarray, text: str, colour: str = "black") -> np.ndarray:
    """A picture with a line of text below it.

    Args:
        image: (H, W, 3) uint8 RGB.
        text: one line; cut where it would not fit. Pillow's own font knows ASCII alone: accents are left out, other
            letters become question marks.
        colour: of the text, a Pillow colour name.

    Returns:
        (H', W', 3) uint8 RGB; pictures with a side below 160 pixels are enlarged by a whole factor, pixel by pixel.

    Raises:
        ValueError: ``image`` is no RGB picture.

    Example:
        >>> caption(np.zeros((32, 32, 3), np.uint8), "seven").shape
        (180, 160, 3)
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.dtype} {image.shape}")
    factor = max(1, -(-_SHORT_SIDE // min(image.shape[:2])))
    picture = Image.fromarray(image).resize(
        (image.shape[1] * factor, image.shape[0] * factor), Image.Resampling.NEAREST
    )
    font = ImageFont.load_default(13)
    text = shown = _ascii(text)
    while text and font.getlength(shown) > picture.width - 6:
        text = text[:-1]
        shown = text + "..."
    canvas = Image.new("RGB", (picture.width, picture.height + 20), "white")
    canvas.paste(picture)
    ImageDraw.Draw(canvas).text((3, picture.height + 2), shown, fill=colour, font=font)
    return np.asarray(canvas)


def _ascii(text: str) -> str:
    letters = unicodedata.normalize("NFKD", text)
    return "".join(c for c in letters if not unicodedata.combining(c)).encode("ascii", "replace").decode()


def grid(images: Sequence[np.ndarray], columns: int = 8) -> np.ndarray:
    """Pictures side by side on white, row by row.

    Args:
        images: (H, W, 3) uint8 RGB each, at least one; sizes may differ.
        columns: pictures per row, at least 1.

    Returns:
        One picture (H', W', 3) uint8, two pixels of white around each.

    Example:
        >>> grid([np.zeros((10, 8, 3), np.uint8)] * 3, columns=2).shape
        (26, 22, 3)
    """
    gap = 2
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    canvas = np.full((gap + rows * (height + gap), gap + columns * (width + gap), 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas
