"""Pictures of low resolution, made from good ones."""

import os
import zlib
from collections.abc import Sequence

from PIL import Image

FACTORS = (2, 3, 4)


def low_resolution(image: Image.Image, factor: int, size: tuple[int, int] | None = None) -> Image.Image:
    """Down-sample a picture and bring it back to size: what a camera farther away would have seen.

    Args:
        image: of mode ``RGB`` or ``L``.
        factor: by which width and height shrink, at least 1. A side never shrinks below one pixel.
        size: width and height that come out; ``None`` is the picture's own.

    Returns:
        A new picture: down-sampled by a bicubic filter with antialiasing, then resized by a bilinear one.

    Raises:
        ValueError: ``factor`` is below 1.

    Source:
        DDL, arXiv 2002.03662, makes hard samples so (inferred); factors and filters are ours.

    Example:
        >>> picture = Image.linear_gradient("L")
        >>> low_resolution(picture, 4).size, low_resolution(picture, 4, (64, 128)).size
        ((256, 256), (64, 128))
    """
    if factor < 1:
        raise ValueError(f"factor must be at least 1, got {factor}: it says how much smaller a picture becomes")
    small = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
    return image.resize(small, Image.Resampling.BICUBIC).resize(size or image.size, Image.Resampling.BILINEAR)


def factor_of(name: str, factors: Sequence[int] = FACTORS) -> int:
    """Choose the factor of a picture by the name of its file, so that everybody degrades a test set in the same way.

    Args:
        name: of the file, without its folder.
        factors: one of these it is; with the default 2 + CRC32(name) mod 3.

    Raises:
        ValueError: there are no factors.

    Example:
        >>> factor_of("0001_c1s1_001051_00.jpg"), factor_of("0001_c1s1_001051_00.jpg", [8])
        (3, 8)
    """
    if not len(factors):
        raise ValueError("factors is empty: give at least one factor to choose from")
    return factors[zlib.crc32(os.fsencode(name)) % len(factors)]
