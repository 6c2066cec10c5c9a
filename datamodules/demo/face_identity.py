"""Who is seen in a drawn face; none of these people exists.

They differ in many small features, each drawn from a range, and little in large areas of colour: two of one family of
looks are told apart by the eyes, brows, nose and mouth, which a picture of few pixels does not show. Lengths are in
halves of the picture's side: the head is about 1.6 high, its middle is 0, and down is positive.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Colour = tuple[float, float, float]

LOOKS = ("a", "b")
SKINS = np.array([(0.97, 0.83, 0.74), (0.90, 0.70, 0.56), (0.68, 0.47, 0.34), (0.42, 0.28, 0.21)])
HAIRS = {
    "a": np.array([(0.36, 0.24, 0.15), (0.55, 0.37, 0.20), (0.58, 0.30, 0.15), (0.24, 0.17, 0.13)]),
    "b": np.array([(0.10, 0.08, 0.08), (0.20, 0.13, 0.10), (0.15, 0.12, 0.13), (0.27, 0.17, 0.12)]),
}
IRISES = np.array([(0.33, 0.20, 0.10), (0.35, 0.45, 0.22), (0.25, 0.45, 0.70), (0.45, 0.50, 0.55)])
RANGES = {
    "width": (0.50, 0.64),
    "crown": (0.70, 0.80),
    "chin": (0.70, 0.84),
    "jaw": (1.7, 2.9),
    "eye_gap": (0.20, 0.30),
    "eye_height": (-0.08, 0.04),
    "eye_size": (0.085, 0.135),
    "eye_open": (0.45, 0.85),
    "eye_slant": (-0.28, 0.28),
    "iris_size": (0.45, 0.62),
    "brow_gap": (0.13, 0.23),
    "brow_thick": (0.025, 0.085),
    "brow_long": (0.11, 0.19),
    "brow_slant": (-0.12, 0.38),
    "brow_bow": (0.0, 0.07),
    "nose_long": (0.22, 0.36),
    "nose_wide": (0.06, 0.15),
    "nose_ridge": (0.0, 0.5),
    "mouth_height": (0.45, 0.57),
    "mouth_wide": (0.13, 0.26),
    "upper_lip": (0.02, 0.065),
    "lower_lip": (0.03, 0.085),
    "lip_red": (0.15, 0.75),
    "mouth_bow": (0.015, 0.08),
    "ear_size": (0.08, 0.14),
    "hairline": (-0.62, -0.36),
    "parting": (-0.7, 0.7),
    "sweep": (0.05, 0.35),
    "volume": (0.02, 0.14),
    "curls": (0.0, 0.05),
    "curl_count": (5.0, 12.0),
    "blush": (0.0, 0.3),
}


@dataclass(frozen=True)
class Identity:
    """What one recognises somebody by.

    Args:
        look: family of skin and hair, one of ``LOOKS``.
        skin, hair, iris: red, green and blue in [0, 1].
        hair_length: how far down the hair at the back reaches; nothing of it is seen below 0.
        beard, moustache: 0 for none, up to 1.
        glasses: 0 none, else the exponent of the rims' shape: 2 is round, 5 nearly square.
        freckles: places on the face, right and down; most people have none.

    The other fields are lengths, shares and angles (radians), each drawn from its range in ``RANGES``.
    """

    look: str
    skin: Colour
    hair: Colour
    iris: Colour
    hair_length: float
    beard: float
    moustache: float
    glasses: float
    freckles: tuple[tuple[float, float], ...]
    width: float
    crown: float
    chin: float
    jaw: float
    eye_gap: float
    eye_height: float
    eye_size: float
    eye_open: float
    eye_slant: float
    iris_size: float
    brow_gap: float
    brow_thick: float
    brow_long: float
    brow_slant: float
    brow_bow: float
    nose_long: float
    nose_wide: float
    nose_ridge: float
    mouth_height: float
    mouth_wide: float
    upper_lip: float
    lower_lip: float
    lip_red: float
    mouth_bow: float
    ear_size: float
    hairline: float
    parting: float
    sweep: float
    volume: float
    curls: float
    curl_count: float
    blush: float


@cache
def face_identity(number: int, seed: int = 0) -> Identity:
    """The person of a number; looks take turns.

    Args:
        number: from 0.
        seed: decides all of them.

    Example:
        >>> face_identity(3) == face_identity(3), face_identity(3) == face_identity(5)
        (True, False)
    """
    draw = np.random.default_rng([seed, number, 10])
    look = LOOKS[number % len(LOOKS)]
    tone = draw.uniform(0.1, 0.9) if look == "a" else draw.uniform(1.2, 2.3)
    low = int(tone)
    skin = SKINS[low] + (tone - low) * (SKINS[low + 1] - SKINS[low])
    return Identity(
        look,
        _rgb(skin + draw.normal(0, 0.012, 3)),
        _rgb(draw.dirichlet(np.full(4, 0.4)) @ HAIRS[look]),
        _rgb(draw.dirichlet(np.full(4, 0.4)) @ IRISES),
        hair_length=float(draw.uniform(0.3, 0.95)) if draw.random() < 0.4 else 0.0,
        beard=float(draw.uniform(0.3, 0.9)) if draw.random() < 0.2 else 0.0,
        moustache=float(draw.uniform(0.5, 1.0)) if draw.random() < 0.2 else 0.0,
        glasses=float(draw.uniform(2.0, 5.0)) if draw.random() < 0.25 else 0.0,
        freckles=tuple(
            (float(x), float(y))
            for x, y in draw.uniform((-0.42, 0.02), (0.42, 0.42), (draw.integers(4, 14), 2))
            if draw.random() < 0.9
        )
        if draw.random() < 0.25
        else (),
        **{name: float(draw.uniform(*bounds)) for name, bounds in RANGES.items()},
    )


def _rgb(values: NDArray[Any]) -> Colour:
    red, green, blue = (float(value) for value in values.clip(0, 1))
    return red, green, blue
