"""What the drawn videos show: which thing over which photograph, how it moves, what comes before it."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.demo.tracking_drawing import (
    PATTERNS,
    PHOTOGRAPHS,
    REACH,
    SHAPES,
    SPLITS,
    Clip,
    Look,
    Pose,
    contrast,
    draw_look,
    photograph_part,
)
from lit_methods.functional.draws import purpose

Points = NDArray[np.float64]

VIDEOS = purpose("demo/tracking")
_EVENTS = 6  # of so many videos in a row one has a pillar and one a target that leaves
_PILLAR, _LEAVES = 1, 4


def tracking_clip(
    split: str,
    number: int,
    frames: int = 40,
    size: tuple[int, int] = (240, 320),
    speed: float = 6.0,
    others: int = 1,
    seed: int = 0,
) -> Clip:
    """What a video shows, not yet drawn.

    Args:
        split: "train" or "test".
        number: of the video in its split, from 0; its shape is that of every fourth one.
        frames: as ``write_tracking`` takes it.
        size: likewise.
        speed: likewise.
        others: likewise.
        seed: likewise.

    Example:
        >>> clip = tracking_clip("test", 3, frames=2, size=(48, 64))
        >>> clip.target.words, clip.shot(0).picture.shape
        ('star cut from a photograph of China', (48, 64, 3))
    """
    random = np.random.default_rng([VIDEOS, seed, SPLITS.index(split), number])
    photograph = list(PHOTOGRAPHS)[random.integers(len(PHOTOGRAPHS))]
    patterns = list(PATTERNS[split])
    turn = number + number // len(SHAPES)  # shapes and patterns meet in all pairs
    target = draw_look(SHAPES[number % len(SHAPES)], patterns[turn % len(patterns)], split, random, photograph)
    leaves = number % _EVENTS == _LEAVES
    poses = _poses(random, frames, size, speed, leaves)
    pillar, pillar_width = None, 0.0
    if number % _EVENTS == _PILLAR:
        pillar, pillar_width = _pillar(poses, speed, min(size))
    behind: list[tuple[Look, tuple[Pose, ...]]] = []
    for i in range(others):
        shape = SHAPES[random.integers(len(SHAPES))]
        pattern = patterns[(turn + 1 + i % (len(patterns) - 1)) % len(patterns)]  # never the target's
        behind.append((draw_look(shape, pattern, split, random, photograph), _poses(random, frames, size, speed)))
    red, green, blue = random.uniform(0.7, 0.95) * random.uniform(0.88, 1.12, 3)  # darker, so that nothing is blown out
    drift = 0.35 * random.uniform(0.4, 1) if random.random() < 0.5 else 0.0
    steps = np.linspace(0, 1, frames)
    return Clip(
        photograph,
        split,
        bool(random.random() < 0.5),
        (float(red), float(green), float(blue)),
        _windows(random, photograph_part(photograph, split), frames, size),
        1 - drift * np.sin(math.pi * (steps * random.uniform(0.5, 1))),
        target,
        poses,
        tuple(behind),
        pillar,
        pillar_width,
        size,
    )


def _poses(
    random: np.random.Generator, frames: int, size: tuple[int, int], speed: float, leaves: bool = False
) -> tuple[Pose, ...]:
    """A thing that grows or shrinks by up to 1.6, becomes wider or higher, turns and moves."""
    steps = np.linspace(0, 1, frames)
    easing = steps * steps * (3 - 2 * steps)
    growth, aspect, change = np.exp(random.uniform(-1, 1, 3) * np.log([1.6, 1.35, 1.35]))
    scale = min(size) * random.uniform(0.09, 0.145) * growth ** (easing - 0.5)
    stretch = np.sqrt(aspect * change**easing)
    angle = random.uniform(-0.35, 0.35) + random.uniform(-0.6, 0.6) * easing
    half_width, half_height = scale * stretch, scale / stretch
    reach = float(REACH * max(half_width.max(), half_height.max()))
    low, high = np.full(2, reach), np.array([size[1], size[0]]) - 1 - reach
    path = _path(random, frames, low, high, speed, reach / REACH + speed / 2 if leaves else None)
    values = np.column_stack([path, half_width, half_height, angle]).tolist()
    return tuple(Pose(*row) for row in values)


def _path(
    random: np.random.Generator, frames: int, low: Points, high: Points, speed: float, outside: float | None
) -> Points:
    """Middles (n, 2) within the corners ``low`` and ``high``, from one to the next at most ``speed`` apart.

    With ``outside`` the way leads, in the middle of the clip, that far beyond a side.
    """
    waves = random.uniform(1.0, 2.0) * np.linspace(0, frames / 25, frames) + random.random()
    travelled = np.cumsum(speed * (0.72 + 0.24 * np.sin(2 * math.pi * waves)))
    travelled -= travelled[0]
    total = float(travelled[-1])
    points = [random.uniform(low, high)]
    if outside is not None:
        axis, far = random.integers(2), random.integers(2)
        turn = random.uniform(low, high)
        turn[axis] = high[axis] + low[axis] + outside if far else -outside
        slant = random.uniform(-0.6, 0.6)
        inward = np.array([-1.0 if far else 1.0, slant])[:: 1 if axis == 0 else -1]
        start = turn + inward / np.hypot(*inward) * total / 2
        points = [start.clip(low, high), turn]
    length, apart = _length(points), 0.5 * float((high - low).max())
    while length < total + 4 * speed:
        tries = random.uniform(low, high, (8, 2))
        distances = np.hypot(*(tries - points[-1]).T)
        points.append(tries[np.argmax(np.minimum(distances, apart + 0.01 * distances))])
        length = _length(points)
    corners = np.array(points)
    at = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(corners, axis=0).T))])
    way = np.column_stack([np.interp(travelled, at, corners[:, axis]) for axis in (0, 1)])
    taps = np.exp(-0.5 * (np.arange(-4, 5) / 1.8) ** 2)  # rounds the corners, and makes no step longer
    padded = np.pad(way, ((4, 4), (0, 0)), mode="edge")
    return np.column_stack([np.convolve(padded[:, axis], taps / taps.sum(), "valid") for axis in (0, 1)])


def _length(points: list[Points]) -> float:
    return float(np.hypot(*np.diff(np.array(points), axis=0).T).sum()) if len(points) > 1 else 0.0


def _pillar(poses: tuple[Pose, ...], speed: float, short: int) -> tuple[Points, float]:
    """Columns of a pillar that comes the other way, and its width: it hides the target soon after the middle.

    It is clear of the target in the first frame.
    """
    frames = len(poses)
    meeting = max(1, round(0.55 * frames))
    there = poses[min(meeting, frames - 1)]
    reach = REACH * max(max(pose.half_width, pose.half_height) for pose in poses)
    ahead = there.x - poses[0].x
    rate = max(short / 30, 2 * speed, (2 * reach + 0.75 * speed + 0.05 * short) / max(meeting - 0.75, 0.25))
    middles = there.x + math.copysign(rate, -ahead) * (np.arange(frames, dtype=np.float64) - meeting)
    return middles, 2 * reach + 1.5 * (rate + speed)


def _windows(
    random: np.random.Generator, photograph: Image.Image, frames: int, size: tuple[int, int]
) -> NDArray[np.float64]:
    """What the camera sees of the background: it pans and comes a little closer, or goes; not from empty sky."""
    (wide, high), (height, width) = photograph.size, size
    most = min(wide, high * width / height)
    first = most * random.uniform(0.6, 0.85)
    last = first * random.uniform(0.92, 1.08)
    room = np.array([wide, high]) - max(first, last) * np.array([1, height / width])
    pixels, tall = np.asarray(photograph, np.float32), math.floor(first * height / width)
    starts = random.uniform(0, 1, (6, 2)) * room
    begin = max(starts, key=lambda c: contrast(pixels[int(c[1]) : int(c[1]) + tall, int(c[0]) : int(c[0] + first)]))
    step = 0.8 * first / width * frames  # pixels of the photograph: less than one of the frame from each to the next
    end = (begin + random.uniform(-1, 1, 2) * step).clip(0, room)
    share = np.linspace(0, 1, frames)[:, None]
    corner, side = begin + share * (end - begin), (first + share * (last - first))
    other = np.minimum(corner + side * np.array([1, height / width]), [wide, high])  # rounding must not leave it
    return np.concatenate([corner, other], axis=1)
