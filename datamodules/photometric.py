"""Other colours for a picture: brighter, of more contrast, of another hue, with its channels in another order."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

# name, how many, which turn: as many numbers in [0, 1), always the same ones for the same arguments
Draw = Callable[[str, int, int], NDArray[np.float64]]
ORDERS = tuple(permutations(range(3)))
_BLOCK = 1 << 15  # pixels that are worked on at a time: their floats stay in the cache


@dataclass(frozen=True)
class Recolouring:
    """What is done to the colours of one picture, in this order.

    Args:
        brightness: added to all values, of 0 to 255.
        first_contrast: factor of all values.
        saturation: factor of the saturation.
        hue: added to the hue, in degrees of the circle's 360.
        last_contrast: as ``first_contrast``, but after the hue; one of both is 1.
        order: the channel that comes to each place.
    """

    brightness: float = 0.0
    first_contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    last_contrast: float = 1.0
    order: tuple[int, ...] = (0, 1, 2)


def draw_recolouring(
    draw: Draw,
    brightness: float = 32,
    contrast: float = 0.5,
    saturation: float = 0.5,
    hue: float = 18,
    permute: float = 0.5,
) -> Recolouring:
    """Draw what is done to a picture: each change with probability 1/2, ``permute`` apart.

    Args:
        draw: gives numbers in [0, 1) for a name, how many and a turn. Each change has a name of its own, so that the
            others stay as they are where one is switched off.
        brightness: at most so much is added or taken away; 0 switches it off.
        contrast: factors are between ``1 - contrast`` and ``1 + contrast``.
        saturation: likewise.
        hue: at most so many degrees, either way.
        permute: probability of another order of the channels; the old one is among the six that are drawn from.

    Source:
        Section 4, from the official code of DSFD: a coin decides whether the contrast is changed before or after
        saturation and hue. That code has float images, whose hue OpenCV gives as 0 to 360, so its 18 are degrees.

    Example:
        >>> draw_recolouring(lambda name, count, turn: np.full(count, 0.25), permute=0)
        Recolouring(brightness=-16.0, first_contrast=0.75, saturation=0.75, hue=-9.0, last_contrast=1.0,
                    order=(0, 1, 2))
    """

    def between(name: str, reach: float) -> float:
        whether, value = draw(name, 2, 0).tolist()
        return reach * (2 * value - 1) if whether < 0.5 else 0.0

    factor = 1 + between("contrast", contrast)
    first = bool(draw("contrast_first", 1, 0)[0] < 0.5)
    whether, which = draw("permute", 2, 0).tolist()
    return Recolouring(
        brightness=between("brightness", brightness),
        first_contrast=factor if first else 1.0,
        saturation=1 + between("saturation", saturation),
        hue=between("hue", hue),
        last_contrast=1.0 if first else factor,
        order=ORDERS[int(which * len(ORDERS))] if whether < permute else ORDERS[0],
    )


def recolour(pixels: NDArray[np.uint8], change: Recolouring) -> NDArray[np.uint8]:
    """Change the colours of a picture.

    Args:
        pixels: ``(..., 3)`` uint8, RGB; not changed.
        change: what is done, see :func:`draw_recolouring`.

    Returns:
        uint8 of the same shape, ``pixels`` themselves where nothing is changed. Values are float32 in between, also
        beyond 0 and 255; they are rounded and cut off once, at the end.

    Source:
        Section 4, from the official code of DSFD, which leaves values beyond 0 and 255 to the network. Ours: saturation
        and hue are those of HSV, but its S is not computed. A factor of S is the same factor of chroma, the distance of
        the channels from the largest of them, which has a meaning for values below 0 as well.

    Example:
        >>> red = np.array([[200, 40, 40]], np.uint8)
        >>> recolour(red, Recolouring(hue=120)).tolist(), recolour(red, Recolouring(saturation=0.5)).tolist()
        ([[40, 200, 40]], [[200, 120, 120]])
    """
    if change == Recolouring():
        return pixels
    order = list(change.order)
    if change.saturation == 1 and change.hue == 0:  # each value by itself: of 256 ones, then looked up
        values = np.arange(256, dtype=np.float32) + np.float32(change.brightness)
        values *= np.float32(change.first_contrast * change.last_contrast)
        table = np.rint(values).clip(0, 255).astype(np.uint8)
        return table.take(pixels if change.order == ORDERS[0] else pixels[..., order])
    flat, changed = pixels.reshape(-1, 3), np.empty(pixels.shape, np.uint8)
    into = changed.reshape(-1, 3)
    for start in range(0, len(flat), _BLOCK):
        block = flat[start : start + _BLOCK].T.astype(np.float32, order="C")
        block += np.float32(change.brightness)
        block *= np.float32(change.first_contrast)
        block = _turn(block, change.saturation, change.hue)
        block *= np.float32(change.last_contrast)
        np.clip(np.rint(block, out=block), 0, 255, out=block)
        into[start : start + _BLOCK] = block[order].T
    return changed


def _turn(rgb: NDArray[np.float32], saturation: float, hue: float) -> NDArray[np.float32]:
    """Colours ``(3, n)`` with another saturation and hue, of the same value V."""
    top = rgb.max(0)
    if hue == 0:
        rgb -= top
        rgb *= np.float32(saturation)
        rgb += top
        return rgb
    red, green, blue = rgb
    chroma = top - rgb.min(0)
    scale = 1 / np.maximum(chroma, np.float32(1e-6))  # a grey pixel has 0 above it
    angle = np.where(
        top == red,
        (green - blue) * scale,
        np.where(top == green, (blue - red) * scale + np.float32(2), (red - green) * scale + np.float32(4)),
    )  # in sixths of the circle
    angle += np.float32(hue / 60)
    angle -= np.float32(6) * np.floor(angle * np.float32(1 / 6))
    chroma *= np.float32(saturation)
    base = top - chroma
    turned = np.stack([np.abs(angle - 3) - 1, 2 - np.abs(angle - 2), 2 - np.abs(angle - 4)])
    np.clip(turned, 0, 1, out=turned)
    turned *= chroma
    turned += base
    return turned
