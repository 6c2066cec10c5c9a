"""Flat shapes over a piece of a photograph: outlines, their masks by COCO's rule, and the paint.

The photographs are the two that scikit-learn ships; training has their right part, everything else their left part.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from datamodules.demo.tracking_drawing import PHOTOGRAPHS, photograph_part
from lit_methods.functional.coco_masks import polygons_to_mask

Field = NDArray[np.float32]

KINDS = ("circle", "square", "star", "triangle")
COLOURS = {
    "blue": (45, 85, 225),
    "green": (40, 165, 60),
    "purple": (165, 60, 195),
    "red": (215, 40, 40),
    "yellow": (245, 215, 45),
}
_TURNS = {"circle": 0.0, "square": 0.2, "star": 0.3, "triangle": 0.2}  # radians, either way
_FINE = 4  # samples of a pixel in each direction


class Shape(NamedTuple):
    """One shape of a scene.

    Args:
        kind: one of ``KINDS``.
        colour: a key of ``COLOURS``.
        outline: (n, 2) float64 x and y in pixels, of whole hundredths.
        mask: (h, w) uint8 0/1, by COCO's rule for polygons.
        box: x1, y1, x2, y2, whole pixels: the extent of ``mask``.
    """

    kind: str
    colour: str
    outline: NDArray[np.float64]
    mask: NDArray[np.uint8]
    box: tuple[int, int, int, int]


def draw_outline(kind: str, extent: float, random: np.random.Generator) -> NDArray[np.float64]:
    """The outline of a shape, turned a little.

    Args:
        kind: one of ``KINDS``.
        extent: its longer side in pixels.
        random: decides the turn.

    Returns:
        ``(n, 2)`` x and y; the least of each is 0.

    Example:
        >>> points = draw_outline("circle", 20, np.random.default_rng(0))
        >>> points.min(0).tolist(), points.max(0).tolist()
        ([0.0, 0.0], [20.0, 20.0])
    """
    corners = {"circle": 32, "square": 4, "star": 10, "triangle": 3}[kind]
    angle = 2 * math.pi * np.arange(corners) / corners + (math.pi / 4 if kind == "square" else -math.pi / 2)
    angle = angle + random.uniform(-1, 1) * _TURNS[kind]
    out = np.where(np.arange(corners) % 2, 0.5, 1.0) if kind == "star" else np.ones(corners)
    points = out[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    points = points - points.min(0)
    result: NDArray[np.float64] = points * (extent / points.max())
    return result


def make_shape(kind: str, colour: str, outline: NDArray[np.float64], size: tuple[int, int]) -> Shape:
    """A shape and what of the picture it covers.

    Args:
        kind: one of ``KINDS``.
        colour: a key of ``COLOURS``.
        outline: (n, 2) x and y, within the picture.
        size: width and height of the picture.

    Example:
        >>> corners = np.array([(2.0, 1.0), (6.0, 1.0), (6.0, 4.0), (2.0, 4.0)])
        >>> make_shape("square", "red", corners, (8, 6)).box
        (2, 1, 6, 4)
    """
    outline = np.round(outline, 2)
    mask = polygons_to_mask([outline.ravel().tolist()], size[1], size[0])
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return Shape(kind, colour, outline, mask, box)


def draw_background(part: str, size: tuple[int, int], random: np.random.Generator) -> Field:
    """A piece of a photograph, paler and darker than it is, so that colours stand out.

    Args:
        part: of the photographs, "train" or "test".
        size: width and height.
        random: decides which piece.

    Returns:
        ``(h, w, 3)`` float32 in [0, 255].

    Example:
        >>> draw_background("test", (64, 48), np.random.default_rng(0)).shape
        (48, 64, 3)
    """
    names = list(PHOTOGRAPHS)
    photograph = photograph_part(names[random.integers(len(names))], part)
    most = min(photograph.width / size[0], photograph.height / size[1])
    wide, high = (side * most * random.uniform(0.4, 1) for side in (size[0], size[1]))
    left, top = random.uniform(0, photograph.width - wide), random.uniform(0, photograph.height - high)
    piece = photograph.resize(size, Image.Resampling.BICUBIC, (left, top, left + wide, top + high))
    scene = np.asarray(piece, np.float32)[:, :: -1 if random.random() < 0.5 else 1]
    grey, centre = scene.mean(2, keepdims=True), np.float32(scene.mean())
    scene = grey + np.float32(random.uniform(0.2, 0.5)) * (scene - grey)
    return np.float32(random.uniform(90, 150)) + np.float32(random.uniform(0.5, 0.8)) * (scene - centre)


def paint(scene: Field, shape: Shape, random: np.random.Generator) -> None:
    """Paint a shape over a scene, in place, a little lighter on one side.

    Args:
        scene: (h, w, 3) in [0, 255].
        shape: what to paint.
        random: decides its exact colour and where it is lighter.

    Example:
        >>> scene = np.zeros((6, 8, 3), np.float32)
        >>> corners = np.array([(2.0, 1.0), (6.0, 1.0), (6.0, 4.0), (2.0, 4.0)])
        >>> paint(scene, make_shape("square", "red", corners, (8, 6)), np.random.default_rng(0))
        >>> (scene.max(2) > 100).astype(int)[1].tolist()
        [0, 0, 1, 1, 1, 1, 0, 0]
    """
    high, wide = scene.shape[:2]
    left, top = (int(v) for v in np.floor(shape.outline.min(0)))
    right, bottom = (int(v) for v in np.ceil(shape.outline.max(0)))
    right, bottom = min(right, wide), min(bottom, high)
    canvas = Image.new("L", (_FINE * (right - left), _FINE * (bottom - top)))
    corners = (shape.outline - (left, top)) * _FINE - 0.5
    ImageDraw.Draw(canvas).polygon(corners.ravel().tolist(), fill=255)
    fine = np.asarray(canvas, np.float32).reshape(bottom - top, _FINE, right - left, _FINE)
    opaque = fine.mean((1, 3))[..., None] / np.float32(255)
    y, x = np.mgrid[-1 : 1 : (bottom - top) * 1j, -1 : 1 : (right - left) * 1j].astype(np.float32)
    turn, slope = random.uniform(0, 2 * math.pi), np.float32(random.uniform(0, 0.15))
    shade = 1 + slope * (x * np.float32(math.cos(turn)) + y * np.float32(math.sin(turn)))
    colour = np.array(COLOURS[shape.colour], np.float32) + random.uniform(-15, 15, 3).astype(np.float32)
    place = scene[top:bottom, left:right]
    place += opaque * (shade[..., None] * colour - place)
