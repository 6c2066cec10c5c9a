"""Pictures with drawn people over photographs: many sizes, some turned, blurred or half hidden, and things like faces.

The photographs are the two that scikit-learn ships, a part of them for each split. A box is the head's extent without
ears and the hair around it. Backs of heads, bare skin-coloured ovals and patterned things are no faces.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from datamodules.demo import tracking_drawing as things
from datamodules.demo.face_drawing import Light, Pose, draw_face
from datamodules.demo.face_identity import HAIRS, LOOKS, SKINS, Identity, face_identity
from lit_methods.functional.draws import purpose

Field = NDArray[np.float32]
Mask = NDArray[np.bool_]

SCENES = purpose("demo/wider_face")
SPLITS = ("train", "val", "test")
MOST = 100_000  # identities of a split
_PARTS = {"train": "train", "val": "test", "test": "test"}  # of the photographs
_SCALE = 0.5  # of a head in its own square picture, so that hair and shoulders fit in
_LEAST = 0.45  # of a head is seen
_TRIES = 12
_SHOULDERS, _BROAD = 0.88, 0.6  # how far down and half how broad they are, in heights of the head


@dataclass(frozen=True)
class SceneFace:
    """A face and what is true of it.

    Args:
        box: x, y, w, h in whole pixels.
        blur: 0 clear, 1 normal, 2 heavy; here and below as in WIDER FACE.
        expression: 0 typical, 1 exaggerated.
        illumination: 0 normal, 1 extreme.
        invalid: 0, or 1 where it is too small to be told.
        occlusion: 0 none, 1 partial, 2 heavy.
        pose: 0 typical, 1 atypical.
    """

    box: tuple[int, int, int, int]
    blur: int
    expression: int
    illumination: int
    invalid: int
    occlusion: int
    pose: int

    @property
    def attributes(self) -> tuple[int, int, int, int, int, int]:
        """The last six columns of an annotation line."""
        return self.blur, self.expression, self.illumination, self.invalid, self.occlusion, self.pose


@dataclass
class _Head:
    """A head that is drawn: which of its pixels are still seen."""

    who: Identity
    pose: Pose
    height: float
    middle: tuple[float, float]  # x and y of the middle of its square
    blur: float  # in heights of the head
    extreme: bool
    mask: Mask
    seen: Mask

    @property
    def share(self) -> float:
        return float(self.seen.sum() / max(1, self.mask.sum()))


def face_scene(
    split: str,
    number: int,
    size: tuple[int, int] = (192, 224),
    heights: tuple[float, float] = (12.0, 110.0),
    faces: int = 8,
    seed: int = 0,
) -> tuple[NDArray[np.uint8], list[SceneFace]]:
    """Draw a picture of people.

    Args:
        split: one of ``SPLITS``; each has people of its own.
        number: of the picture in its split, from 0.
        size: height and width.
        heights: of heads in pixels, the least and the most; all magnitudes between them are equally likely. Not more
            than 0.55 of the shorter side; a few that are smaller than the least are marked invalid.
        faces: the most, at least 1; 0 draws none.
        seed: decides everything.

    Returns:
        ``(H, W, 3)`` uint8 RGB and its faces, the farthest first.

    Example:
        >>> picture, found = face_scene("val", 1, size=(128, 160))
        >>> picture.shape, len(found) > 0, all(face.box[2] < face.box[3] for face in found)
        ((128, 160, 3), True, True)
    """
    random = np.random.default_rng([SCENES, seed, SPLITS.index(split), number])
    scene = _background(split, size, random)
    for _ in range(random.integers(1, 5)):
        _thing(scene, split, heights, random)
    heads: list[_Head] = []
    if faces:
        low, high = heights[0], max(heights[0], min(heights[1], 0.55 * min(size)))
        tall = np.sort(np.exp(random.uniform(math.log(low), math.log(high), random.integers(1, faces + 1))))
        if number % 8 == 1:
            tall[0] = 0.6 * low
        first = SPLITS.index(split) * MOST + number * faces % MOST
        for i, height in enumerate(tall.tolist()):
            _person(scene, heads, face_identity(first + i, seed), height, random)
    warm = random.normal(0, 0.04)
    gain = random.uniform(0.7, 1.1) * np.array([1 + warm, 1.0, 1 - warm], np.float32)
    scene = scene * gain + np.float32(random.uniform(1, 5)) * random.standard_normal(scene.shape, np.float32)
    return np.rint(scene).clip(0, 255).astype(np.uint8), [
        _described(head, heights[0]) for head in heads if head.share >= 0.2
    ]


def _background(split: str, size: tuple[int, int], random: np.random.Generator) -> Field:
    """A piece of a photograph, continued by its mirror image, of a scale and in colours of its own."""
    names = list(things.PHOTOGRAPHS)
    pixels = np.asarray(things.photograph_part(names[random.integers(len(names))], _PARTS[split]))
    scale = math.exp(random.uniform(math.log(0.55), math.log(1.8)))  # pixels of the photograph for one of ours
    extents = [max(8, round(side * scale)) for side in size]
    for _ in range(4):  # not only sky
        rows, columns = (_mirrored(random.integers(n), side, n) for side, n in zip(extents, pixels.shape, strict=False))
        piece = pixels[rows[:, None], columns[None]]
        if piece[::4, ::4].std() > 35:
            break
    resized = Image.fromarray(piece).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    scene = np.asarray(resized, np.float32)[:, :: -1 if random.random() < 0.5 else 1]
    scene = scene[..., random.permutation(3) if random.random() < 0.5 else (0, 1, 2)]
    grey, centre = scene.mean(2, keepdims=True), np.float32(scene.mean())
    scene = grey + np.float32(random.uniform(0.3, 1.2)) * (scene - grey)
    scene = centre + np.float32(random.uniform(0.6, 1.1)) * (scene - centre) + np.float32(random.uniform(-30, 20))
    return scene.clip(0, 255).astype(np.float32)


def _mirrored(start: int, count: int, extent: int) -> NDArray[np.int64]:
    """Places in a row of things that is continued by its mirror image."""
    places = (start + np.arange(count)) % (2 * extent)
    return np.minimum(places, 2 * extent - 1 - places)


def _thing(scene: Field, split: str, heights: tuple[float, float], random: np.random.Generator) -> None:
    """Something that is no face: patterned, or as bare as an egg, or the back of a head."""
    high, wide = scene.shape[:2]
    tall = math.exp(random.uniform(math.log(max(16.0, heights[0])), math.log(0.5 * min(high, wide))))
    pose = things.Pose(
        random.uniform(0, wide),
        random.uniform(0, high),
        tall / 2 / random.uniform(1.0, 1.5),
        tall / 2,
        random.uniform(-0.4, 0.4),
    )
    kind = random.random()
    if kind < 0.4:
        part = _PARTS[split]
        pattern = list(things.PATTERNS[part])[random.integers(len(things.PATTERNS[part]))]
        look = things.draw_look(things.SHAPES[random.integers(len(things.SHAPES))], pattern, part, random)
        top, left, opaque, colours = things.draw_thing(look, pose)
        _paste(scene, top, left, opaque, colours)
        return
    hair = random.dirichlet(np.full(4, 0.4)) @ HAIRS[LOOKS[random.integers(len(LOOKS))]]
    skin = SKINS[random.integers(len(SKINS))] + random.normal(0, 0.03, 3)
    top, left, opaque, across, down = _oval(pose)
    shade = 1 - 0.25 * (across * np.float32(random.uniform(-1, 1)) + down * np.float32(0.5))
    if kind < 0.7 or tall < 24:  # from behind
        _torso(scene, (pose.x, pose.y), tall, tall * 3, random.uniform(0.15, 0.85, 3) * 255)
        waves = 1 + np.float32(0.13) * np.sin(across * 14 + down * down * 5)
        colours = (np.array(hair * 255, np.float32) * (shade * waves)[..., None]).astype(np.float32)
    else:
        colours = (np.array(skin.clip(0, 1) * 255, np.float32) * shade[..., None]).astype(np.float32)
        if kind < 0.85:  # a cap of hair over bare skin
            _torso(scene, (pose.x, pose.y), tall, tall * 3, random.uniform(0.15, 0.85, 3) * 255)
            cap = (down < -0.45 + 0.3 * across * across)[..., None]
            colours = np.where(cap, np.array(hair * 255, np.float32), colours)
    _paste(scene, top, left, opaque, colours)


def _oval(pose: things.Pose) -> tuple[int, int, Field, Field, Field]:
    """Top and left of a square around an ellipse, and there how opaque it is and both coordinates, 1 on its rim."""
    reach = max(pose.half_width, pose.half_height) + 2
    top, left, side = math.floor(pose.y - reach), math.floor(pose.x - reach), math.ceil(2 * reach) + 1
    y, x = np.mgrid[:side, :side].astype(np.float32)
    y, x = y + np.float32(top - pose.y), x + np.float32(left - pose.x)
    cos, sin = np.float32(math.cos(pose.angle)), np.float32(math.sin(pose.angle))
    across, down = (cos * x + sin * y) / np.float32(pose.half_width), (cos * y - sin * x) / np.float32(pose.half_height)
    inward = (1 - np.hypot(across, down)) * np.float32(min(pose.half_width, pose.half_height))
    return top, left, (inward + np.float32(0.5)).clip(0, 1), across, down


def _paste(scene: Field, top: int, left: int, opaque: Field, colours: Field) -> None:
    place, part = _overlap(scene, top, left, opaque.shape)
    scene[place] += opaque[part][..., None] * (colours[part] - scene[place])


def _overlap(
    scene: Field, top: int, left: int, shape: tuple[int, ...]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a piece lies in the picture, and which part of the piece that is."""
    inside = [
        (max(0, at), max(0, min(at + side, whole)), at)
        for at, side, whole in zip((top, left), shape, scene.shape, strict=False)
    ]
    rows, columns = (slice(low, max(low, high)) for low, high, _ in inside)
    part = tuple(slice(low - at, max(low, high) - at) for low, high, at in inside)
    return (rows, columns), (part[0], part[1])


def _torso(scene: Field, middle: tuple[float, float], tall: float, length: float, colour: NDArray[np.float64]) -> None:
    """Draw shoulders and what is below them, for a head of a height."""
    shoulders = things.Pose(middle[0], middle[1] + _SHOULDERS * tall, _BROAD * tall, 0.32 * tall)
    top, left, opaque, across, _ = _oval(shoulders)
    shade = np.array(colour, np.float32) * (1 - np.float32(0.3) * across.clip(-1, 1) ** 2)[..., None]
    _paste(scene, top, left, opaque, shade)
    _continue_down(scene, (shoulders.x, shoulders.y), tall, length)


def _continue_down(scene: Field, shoulders: tuple[float, float], tall: float, length: float) -> Mask:
    """Repeat the row of pixels at the shoulders below them; where that is."""
    row, half = round(shoulders[1]), 0.93 * _BROAD * tall
    covered = np.zeros(scene.shape[:2], bool)
    if 0 <= row < scene.shape[0]:
        columns = slice(max(0, round(shoulders[0] - half)), max(0, round(shoulders[0] + half)))
        rows = slice(row, max(row, round(row + length)))
        scene[rows, columns] = scene[row, columns]
        covered[rows, columns] = True
    return covered


def _person(scene: Field, heads: list[_Head], who: Identity, height: float, random: np.random.Generator) -> None:
    """Draw somebody before all that is there, unless too much of another head would be hidden."""
    turned = random.random() < 0.12
    loud = random.random() < 0.15
    pose = Pose(
        yaw=random.choice((-1, 1)) * random.uniform(38, 55) if turned else random.uniform(-28, 28),
        roll=random.uniform(-25, 25) if turned else random.normal(0, 5),
        scale=_SCALE,
        smile=random.uniform(0.9, 1.4) if loud else random.uniform(-0.4, 0.8),
        open=random.uniform(0.8, 1.3) if loud else max(0.0, random.uniform(-1.0, 0.5)),
        gaze=(random.uniform(-0.5, 0.5), random.uniform(-0.3, 0.3)),
    )
    extreme = random.random() < 0.1
    light = Light(
        random.choice((-1, 1)) * random.uniform(60, 90) if extreme else random.uniform(-50, 50),
        random.uniform(0, 45),
        random.uniform(0.75, 0.95) if extreme else random.uniform(0.1, 0.4),
    )
    blur = random.uniform(0.015, 0.045) if random.random() < 0.3 else 0.0
    clothes, length = random.uniform(0.15, 0.85, 3), height * random.uniform(0.8, 3.0)
    outline = _outline(who, pose) * height
    room = np.array(scene.shape[1::-1]) - 2 - np.ptp(outline, axis=0)
    turn = math.radians(pose.roll)
    for _ in range(_TRIES):
        middle = random.uniform(0, 1, 2) * room + 1 - outline.min(0)
        below = middle + _SHOULDERS * height * np.array([-math.sin(turn), math.cos(turn)])
        mask = _filled(outline + middle, scene.shape[:2])
        body = _filled(1.15 * outline + middle, scene.shape[:2])
        left, right, top, bottom = (
            max(0, round(at))
            for at in (
                below[0] - _BROAD * height,
                below[0] + _BROAD * height,
                below[1] - 0.3 * height,
                below[1] + max(length, 0.3 * height),
            )
        )
        body[top:bottom, left:right] = True
        if all((head.seen & ~body).sum() >= _LEAST * head.mask.sum() for head in heads):
            break
    else:
        return
    covered = _bust(scene, who, pose, light, height, (middle[0], middle[1]), blur, clothes)
    covered |= mask  # where it happens to have the colour of what is behind it, too
    covered |= _continue_down(scene, (below[0], below[1]), height, length)
    for head in heads:
        head.seen &= ~covered
    heads.append(_Head(who, pose, height, (middle[0], middle[1]), blur, extreme, mask, mask.copy()))
    if height >= 20 and random.random() < 0.2:
        _hide(scene, heads, random)


def _outline(who: Identity, pose: Pose) -> NDArray[np.float64]:
    """Points (n, 2) of the head's outline, in order, about the middle of its square, in heights of the head."""
    down = np.linspace(0, 1, 24)
    width = who.width * (1 + 0.1 * abs(math.sin(math.radians(pose.yaw))))
    below = (1 - down**who.jaw) ** (1 / who.jaw) / (1 + 0.25 * down * down)
    x = np.concatenate([np.sqrt(1 - down * down)[::-1], below]) * width  # one side from the top down
    y = np.concatenate([-down[::-1] * who.crown, down * who.chin])
    middle = -0.6 * who.width * math.sin(math.radians(pose.yaw))
    points = np.concatenate([np.stack([middle + x, y], 1), np.stack([middle - x, y], 1)[::-1]])
    turn = math.radians(pose.roll)
    turned = points @ np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    result: NDArray[np.float64] = turned / (who.chin + who.crown)
    return result


def _filled(points: NDArray[np.float64], shape: tuple[int, ...]) -> Mask:
    """Pixels within an outline (n, 2)."""
    canvas = Image.new("1", (shape[1], shape[0]))
    ImageDraw.Draw(canvas).polygon((points - 0.5).ravel().tolist(), fill=1)
    return np.array(canvas)


def _bust(
    scene: Field,
    who: Identity,
    pose: Pose,
    light: Light,
    height: float,
    middle: tuple[float, float],
    blur: float,
    clothes: NDArray[np.float64],
) -> Mask:
    """Draw head and shoulders: in a larger picture of what is behind them, whose change is taken over."""
    exact = 2 * height / ((who.chin + who.crown) * _SCALE)
    side = math.ceil(exact) + 2
    fine = side if side >= 80 else min(2 * side, 80)
    top, left = math.floor(middle[1] - side / 2), math.floor(middle[0] - side / 2)
    rows = (top + np.arange(side)).clip(0, scene.shape[0] - 1)
    columns = (left + np.arange(side)).clip(0, scene.shape[1] - 1)
    behind = Image.fromarray(np.rint(scene[rows[:, None], columns[None]]).astype(np.uint8))
    before = np.asarray(behind.resize((fine, fine), Image.Resampling.BILINEAR), np.float32)
    shift = tuple(2 * (at - low) / side - 1 for at, low in zip(middle, (left, top), strict=True))
    there = Pose(pose.yaw, pose.roll, (shift[0], shift[1]), pose.scale * exact / side, pose.smile, pose.open, pose.gaze)
    red, green, blue = clothes.tolist()
    drawn = draw_face(who, there, light, fine, before / 255, (red, green, blue))
    change = drawn.astype(np.float32) - before
    if fine != side:
        planes = [Image.fromarray(change[..., i]).resize((side, side), Image.Resampling.BOX) for i in range(3)]
        change = np.stack([np.asarray(plane) for plane in planes], 2)
    place, part = _overlap(scene, top, left, change.shape)
    there_is = np.abs(change).max(2) > 8
    if blur:
        from scipy.ndimage import gaussian_filter

        wide = blur * height
        after = gaussian_filter(np.asarray(behind, np.float32) + change, (wide, wide, 0))
        opaque = gaussian_filter(there_is.astype(np.float32), wide)[..., None]
        scene[place] += opaque[part] * (after[part] - scene[place])
    else:
        scene[place] = (scene[place] + change[part]).clip(0, 255)
    covered = np.zeros(scene.shape[:2], bool)
    covered[place] = there_is[part]
    return covered


def _hide(scene: Field, heads: list[_Head], random: np.random.Generator) -> None:
    """Hold something plain before a part of the last head, unless it would hide too much of any."""
    head = heads[-1]
    turn, far = random.uniform(0, 2 * math.pi), random.uniform(0.35, 0.6) * head.height
    pose = things.Pose(
        head.middle[0] + far * math.cos(turn),
        head.middle[1] + far * math.sin(turn),
        random.uniform(0.2, 0.5) * head.height,
        random.uniform(0.2, 0.4) * head.height,
        random.uniform(-0.6, 0.6),
    )
    shape = ("rectangle", "ellipse", "hexagon")[random.integers(3)]
    colour = list(things.COLOURS)[random.integers(len(things.COLOURS))]
    look = things.Look(shape, "stripes", (colour, colour), "", "train", tuple(random.random(6).tolist()))
    top, left, opaque, colours = things.draw_thing(look, pose)
    covered = np.zeros(scene.shape[:2], bool)
    place, part = _overlap(scene, top, left, opaque.shape)
    covered[place] = opaque[part] >= 0.5
    if all((other.seen & ~covered).sum() >= _LEAST * other.mask.sum() for other in heads):
        _paste(scene, top, left, opaque, colours)
        for other in heads:
            other.seen &= ~covered


def _described(head: _Head, least: float) -> SceneFace:
    points = _outline(head.who, head.pose) * head.height + np.array(head.middle)
    left, top = np.rint(points.min(0)).astype(int).tolist()
    right, bottom = np.rint(points.max(0)).astype(int).tolist()
    return SceneFace(
        (left, top, right - left, bottom - top),
        blur=0 if not head.blur else 1 if head.blur < 0.03 else 2,
        expression=int(head.pose.open > 0.6),
        illumination=int(head.extreme),
        invalid=int(head.height < least),
        occlusion=0 if head.share > 0.95 else 1 if head.share > 0.7 else 2,
        pose=int(abs(head.pose.yaw) > 30),
    )
