"""Drawn things over photographs: what they look like, where they are and what is seen of them are arguments.

The photographs are the two that scikit-learn ships. Testing sees their left part alone, training their right part, and
each has patterns of its own.
"""

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[np.float32]

SHAPES = ("ellipse", "hexagon", "rectangle", "star")
SPLITS = ("train", "test")
PHOTOGRAPHS = {"china.jpg": "China", "flower.jpg": "a flower"}
PHOTOGRAPH = "photograph"  # the pattern that is a piece of one
PATTERNS = {
    "train": {"stripes": "striped", "checks": "checked", "blobs": "mottled", PHOTOGRAPH: ""},
    "test": {"dots": "dotted", "rings": "ringed", "waves": "wavy", PHOTOGRAPH: ""},
}
COLOURS = {
    "red": (205, 45, 45),
    "orange": (235, 140, 40),
    "yellow": (235, 215, 70),
    "green": (55, 150, 70),
    "turquoise": (60, 180, 180),
    "blue": (50, 90, 205),
    "violet": (135, 70, 170),
    "pink": (235, 130, 175),
    "white": (240, 240, 235),
    "black": (40, 40, 45),
}
HELD_OUT = 0.4  # what lies left of it in a photograph is for testing
REACH = 1.27  # of a rectangle: how far its corners are out, in the longer of its halves
_DARK = ("red", "green", "blue", "violet", "black")
_LEAST = 0.1  # of a thing; whoever sees less of it does not see it


@dataclass(frozen=True)
class Look:
    """What one recognises a thing by.

    Args:
        shape: one of ``SHAPES``.
        pattern: a key of ``PATTERNS[split]``.
        colours: two names of ``COLOURS``; none for a piece of a photograph.
        photograph: the file that a piece is of, or "".
        split: whose patterns and whose part of the photographs.
        numbers: six in [0, 1) that decide directions, widths and places.
    """

    shape: str
    pattern: str
    colours: tuple[str, ...]
    photograph: str
    split: str
    numbers: tuple[float, ...]

    @property
    def words(self) -> str:
        """What one would call it.

        Example:
            >>> Look("star", "dots", ("red", "white"), "", "test", (0.5,) * 6).words
            'red and white dotted star'
        """
        if self.pattern == PHOTOGRAPH:
            return f"{self.shape} cut from a photograph of {PHOTOGRAPHS[self.photograph]}"
        return f"{' and '.join(self.colours)} {PATTERNS[self.split][self.pattern]} {self.shape}"


@dataclass(frozen=True)
class Pose:
    """Where a thing is, in pixels.

    Args:
        x: of its middle.
        y: likewise.
        half_width: before it is turned.
        half_height: likewise.
        angle: radians, clockwise.
    """

    x: float
    y: float
    half_width: float
    half_height: float
    angle: float = 0.0


@dataclass(frozen=True)
class Shot:
    """One frame and what is true of it.

    Args:
        picture: (H, W, 3) uint8 RGB.
        box: x, y, w, h, whole pixels: the extent of what is seen of the target, 0, 0, 0, 0 for nothing.
        full_occlusion: it is inside the picture and nothing of it is seen.
        out_of_view: it is outside.
        seen: share of its pixels that are seen.
    """

    picture: NDArray[np.uint8]
    box: tuple[int, int, int, int]
    full_occlusion: bool
    out_of_view: bool
    seen: float


@dataclass(frozen=True)
class Clip:
    """Everything that is drawn, frame by frame.

    Args:
        photograph: file of the background.
        split: which part of it, and of which pictures pieces are cut.
        mirror: left and right are swapped.
        gain: of red, green and blue of the background.
        windows: (n, 4), the part of the background that a frame shows: left, top, right, bottom.
        light: (n,), factor for everything.
        target: what is followed.
        poses: of the target, n.
        others: things behind the target, with their poses.
        pillar: (n,) column of the middle of a pillar before everything, or None.
        pillar_width: pixels.
        size: height and width of the frames.
    """

    photograph: str
    split: str
    mirror: bool
    gain: tuple[float, float, float]
    windows: NDArray[np.float64]
    light: NDArray[np.float64]
    target: Look
    poses: tuple[Pose, ...]
    others: tuple[tuple[Look, tuple[Pose, ...]], ...]
    pillar: NDArray[np.float64] | None
    pillar_width: float
    size: tuple[int, int]

    def shot(self, frame: int, target: bool = True) -> Shot:
        """Draw a frame.

        Args:
            frame: from 0.
            target: without it the picture is the same but for the target; the rest of the answer stays.
        """
        height, width = self.size
        background = _background(self.photograph, self.split, self.mirror, self.gain)
        box = tuple(self.windows[frame].tolist())
        canvas = np.asarray(background.resize((width, height), Image.Resampling.BICUBIC, box), np.float32).copy()
        for look, poses in self.others:
            _paste(canvas, look, poses[frame], True)
        mask, whole = _paste(canvas, self.target, self.poses[frame], target)
        inside = mask.sum()
        if self.pillar is not None:
            mask &= ~_pillar(canvas, self.pillar[frame], self.pillar_width)
        picture = np.rint((canvas * self.light[frame]).clip(0, 255)).astype(np.uint8)
        out = bool(inside < _LEAST * whole)
        hidden = not out and bool(mask.sum() < _LEAST * whole)
        extent = (0, 0, 0, 0) if out or hidden else _extent(mask)
        return Shot(picture, extent, hidden, out, float(mask.sum() / whole))


def draw_thing(look: Look, pose: Pose) -> tuple[int, int, Field, Field]:
    """Draw a thing without anything behind it.

    Args:
        look: what it looks like.
        pose: where it is.

    Returns:
        Top and left of a rectangle around it, which may lie outside a picture, and there how opaque it is, ``(h, w)``
        in [0, 1], and its colours, ``(h, w, 3)`` in [0, 255].

    Example:
        >>> look = Look("ellipse", "dots", ("red", "white"), "", "test", (0.5,) * 6)
        >>> top, left, opaque, colours = draw_thing(look, Pose(50, 40, 20, 10))
        >>> rows, columns = np.nonzero(opaque >= 0.5)
        >>> [int(v) for v in (left + columns.min(), left + columns.max(), top + rows.min(), top + rows.max())]
        [30, 70, 30, 50]
    """
    reach = (REACH if look.shape == "rectangle" else 1) * max(pose.half_width, pose.half_height) + 2
    top, left = math.floor(pose.y - reach), math.floor(pose.x - reach)
    side = math.ceil(2 * reach) + 1
    y, x = np.mgrid[:side, :side].astype(np.float32)
    y, x = y + np.float32(top - pose.y), x + np.float32(left - pose.x)
    cos, sin = np.float32(math.cos(pose.angle)), np.float32(math.sin(pose.angle))
    u, v = (cos * x + sin * y) / np.float32(pose.half_width), (cos * y - sin * x) / np.float32(pose.half_height)
    inward = _outline(look.shape, np.arctan2(v, u)) - np.hypot(u, v)
    opaque = (inward * np.float32(math.sqrt(pose.half_width * pose.half_height)) + np.float32(0.5)).clip(0, 1)
    rim = np.float32(0.65) + np.float32(0.35) * (inward * np.float32(7)).clip(0, 1)
    shade = rim * (np.float32(1) - np.float32(0.12) * (u + v).clip(-1, 1))
    return top, left, opaque, (_colours(look, u, v) * shade[..., None]).clip(0, 255)


def draw_look(shape: str, pattern: str, split: str, random: np.random.Generator, avoid: str = "") -> Look:
    """A look of a shape and a pattern, its colours and widths drawn.

    Args:
        shape: one of ``SHAPES``.
        pattern: a key of ``PATTERNS[split]``.
        split: "train" or "test".
        random: decides the rest.
        avoid: a photograph of which it must not be a piece, such as that behind it.

    Example:
        >>> draw_look("star", "photograph", "test", np.random.default_rng(0), "china.jpg").photograph
        'flower.jpg'
    """
    numbers = random.random((8, 6))
    dark = _DARK[random.integers(len(_DARK))]
    bright = [name for name in COLOURS if name not in _DARK][random.integers(len(COLOURS) - len(_DARK))]
    photographs = [name for name in PHOTOGRAPHS if name != avoid]
    photograph = photographs[random.integers(len(photographs))]
    looks = [Look(shape, pattern, (bright, dark), "", split, tuple(row)) for row in numbers.tolist()]
    if pattern != PHOTOGRAPH:
        return looks[0]
    return max((replace(look, colours=(), photograph=photograph) for look in looks), key=_contrast)


@cache
def photograph_part(name: str, split: str) -> Image.Image:
    """The part of a photograph that a split may use.

    Args:
        name: a key of ``PHOTOGRAPHS``.
        split: "test" for the left, "train" for the right.

    Example:
        >>> photograph_part("china.jpg", "train").size, photograph_part("china.jpg", "test").size
        ((384, 427), (256, 427))
    """
    from sklearn.datasets import load_sample_image

    whole = Image.fromarray(load_sample_image(name))
    edge = round(HELD_OUT * whole.width)
    return whole.crop((0, 0, edge, whole.height) if split == "test" else (edge, 0, whole.width, whole.height))


def contrast(pixels: NDArray[np.float32]) -> float:
    """How much of the pictures (h, w, 3) there is to see.

    Example:
        >>> contrast(np.zeros((4, 4, 3), np.float32))
        0.0
    """
    return float(pixels.std((0, 1)).sum())


def _contrast(piece: Look) -> float:
    v, u = np.mgrid[-1:1:12j, -1:1:12j].astype(np.float32)
    return contrast(_piece(piece, u, v))


@cache
def _background(name: str, split: str, mirror: bool, gain: tuple[float, float, float]) -> Image.Image:
    pixels = np.asarray(photograph_part(name, split), np.float32)[:, :: -1 if mirror else 1]
    return Image.fromarray(np.rint((pixels * np.array(gain, np.float32)).clip(0, 255)).astype(np.uint8))


def _outline(shape: str, angle: Field) -> Field:
    """How far the outline is from the middle in each direction."""
    if shape == "ellipse":
        return np.ones_like(angle)
    if shape == "rectangle":  # with round corners
        return (np.cos(angle) ** 6 + np.sin(angle) ** 6) ** np.float32(-1 / 6)
    if shape == "hexagon":
        sixth = np.float32(math.pi / 3)
        return np.float32(math.cos(math.pi / 6)) / np.cos(angle % sixth - sixth / 2)
    fifth, inner = 2 * math.pi / 5, 0.55  # a star: straight from a point to the dent after it
    turned = (angle + np.float32(math.pi / 2)) % np.float32(fifth)
    turned = np.minimum(turned, np.float32(fifth) - turned)
    dent = np.float32(fifth / 2)
    return np.float32(inner * math.sin(fifth / 2)) / (np.float32(inner) * np.sin(dent - turned) + np.sin(turned))


def _colours(look: Look, u: Field, v: Field) -> Field:
    if look.pattern == PHOTOGRAPH:
        return _piece(look, u, v)
    first, second = (np.array(COLOURS[name], np.float32) for name in look.colours)
    share = np.float32(0.5) + np.float32(0.5) * np.tanh(np.float32(4) * _pattern(look, u, v))
    return first + share[..., None] * (second - first)


def _pattern(look: Look, u: Field, v: Field) -> Field:
    """Positive where the second colour is, about -1 to 1."""
    a, b, c, d, e, f = (np.float32(number) for number in look.numbers)
    turn, phase, waves = np.float32(math.pi) * a, np.float32(2 * math.pi) * b, np.float32(math.pi) * (2 + 2 * c)
    along, across = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
    if look.pattern == "stripes":
        return np.sin(waves * along + phase)
    if look.pattern == "checks":
        return np.float32(2) * np.sin(waves * along + phase) * np.sin(waves * across + phase + d)
    if look.pattern == "blobs":
        bent = np.sin(waves * across + np.float32(6) * e) + np.sin(np.float32(0.6) * waves * (along - v) + phase)
        return np.float32(0.7) * (np.sin(waves * along + np.float32(6) * d + bent) + bent * (f - np.float32(0.5)))
    if look.pattern == "dots":
        return np.cos(waves * along + phase) + np.cos(waves * across + phase) - np.float32(0.4)
    if look.pattern == "rings":
        return np.sin(np.float32(1.6) * waves * np.hypot(u - (d - np.float32(0.5)), v - (e - np.float32(0.5))) + phase)
    return np.sin(waves * (along + np.float32(0.3) * np.sin(waves * across)) + phase)  # waves


def _piece(look: Look, u: Field, v: Field) -> Field:
    """A square piece of a photograph, its colours turned round."""
    part = photograph_part(look.photograph, look.split)
    a, b, c, d, _, _ = look.numbers
    half = 22 + 18 * c
    pixels = _pixels(look.photograph, look.split)
    x = (half + a * (part.width - 2 * half) + u * half).clip(0, part.width - 1.001)
    y = (half + b * (part.height - 2 * half) + v * half).clip(0, part.height - 1.001)
    left, top = x.astype(np.int64), y.astype(np.int64)
    right, down = (x - left)[..., None].astype(np.float32), (y - top)[..., None].astype(np.float32)
    upper = pixels[top, left] + right * (pixels[top, left + 1] - pixels[top, left])
    lower = pixels[top + 1, left] + right * (pixels[top + 1, left + 1] - pixels[top + 1, left])
    return (upper + down * (lower - upper))[..., np.roll((0, 1, 2), int(3 * d))].astype(np.float32)


@cache
def _pixels(name: str, split: str) -> Field:
    return np.asarray(photograph_part(name, split), np.float32)


def _paste(canvas: Field, look: Look, pose: Pose, drawn: bool) -> tuple[NDArray[np.bool_], int]:
    """Where a thing is in the picture, and how many pixels it would have without the picture's edges."""
    top, left, opaque, colours = draw_thing(look, pose)
    mask = np.zeros(canvas.shape[:2], bool)
    rows = slice(max(0, -top), max(0, min(opaque.shape[0], canvas.shape[0] - top)))
    columns = slice(max(0, -left), max(0, min(opaque.shape[1], canvas.shape[1] - left)))
    place = slice(top + rows.start, top + rows.stop), slice(left + columns.start, left + columns.stop)
    opaque_there = opaque[rows, columns]
    if opaque_there.size:
        mask[place] = opaque_there >= 0.5
        if drawn:
            canvas[place] += opaque_there[..., None] * (colours[rows, columns] - canvas[place])
    return mask, int((opaque >= 0.5).sum())


def _pillar(canvas: Field, middle: float, width: float) -> NDArray[np.bool_]:
    """Draw the pillar; the columns that it covers, (1, W)."""
    across = (np.arange(canvas.shape[1], dtype=np.float32) - np.float32(middle)) / np.float32(width / 2)
    covered = np.abs(across) <= 1
    round_ = np.sqrt((1 - across[covered] ** 2).clip(0, 1))
    canvas[:, covered] = (np.float32(45) + np.float32(110) * round_)[:, None] * np.array([1.0, 0.93, 0.84], np.float32)
    return covered[None]


def _extent(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1
