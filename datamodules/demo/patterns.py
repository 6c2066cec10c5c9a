"""Pictures that show their class: stripes whose direction, width and colour belong to it, and noise on top."""

import math

import numpy as np
from numpy.typing import NDArray


def class_picture(label: int, size: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one picture of a class.

    Args:
        label: class number, any; neighbours differ in direction, width and colour at once.
        size: height and width in pixels.
        random: decides where the stripes begin, how bright they are, and the noise.

    Returns:
        ``(size, size, 3)`` uint8 RGB.

    Example:
        >>> class_picture(3, 8, np.random.default_rng(0)).shape
        (8, 8, 3)
    """
    turn = (label * 0.618034) % 1  # the golden ratio spreads any number of classes evenly
    angle, waves = math.pi * turn, 1.5 + label % 4
    colour = 0.5 + 0.5 * np.cos(2 * math.pi * ((label * 0.381966) % 1 + np.arange(3) / 3))
    y, x = np.mgrid[:size, :size] / size
    phase = random.uniform(0, 2 * math.pi)
    stripes = 0.5 + 0.5 * np.sin(2 * math.pi * waves * (x * math.cos(angle) + y * math.sin(angle)) + phase)
    picture = (0.25 + 0.75 * stripes)[..., None] * (0.2 + 0.8 * colour) * random.uniform(0.7, 1.0)
    picture = picture + random.normal(0, 0.06, (size, size, 3))
    return (picture * 255).clip(0, 255).astype(np.uint8)
