"""Drawn faces: who it is, how the head is held and how it is lit are arguments."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.demo.face_identity import Colour, Identity

Field = NDArray[np.float32]


@dataclass(frozen=True)
class Pose:
    """How the head is held and what the face does.

    Args:
        yaw: degrees to the right of the picture; from about 65 on the far eye is gone.
        roll: degrees clockwise.
        shift: right and down.
        scale: size of the head.
        smile: -1 to 1.
        open: how far the mouth is open, 0 to 1.
        gaze: of the irises, right and down, in their own radii.
    """

    yaw: float = 0.0
    roll: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    smile: float = 0.0
    open: float = 0.0
    gaze: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Light:
    """How the scene is lit.

    Args:
        azimuth: degrees to the right from which the light comes; 0 is from the viewer.
        elevation: degrees up.
        strength: 0 is flat, 1 leaves the far side dark.
        gain: of red, green and blue.
    """

    azimuth: float = 0.0
    elevation: float = 20.0
    strength: float = 0.3
    gain: Colour = (1.0, 1.0, 1.0)


def draw_face(
    who: Identity,
    pose: Pose,
    light: Light,
    size: int = 64,
    background: NDArray[Any] | None = None,
    clothes: Colour = (0.35, 0.45, 0.55),
) -> NDArray[np.uint8]:
    """Draw a face in the middle of a square picture.

    Args:
        who: the person.
        pose: of the head.
        light: on the head and, its gain, on everything.
        size: height and width in pixels.
        background: RGB in [0, 1], ``(size, size, 3)`` or a colour ``(3,)``; ``None`` is grey.
        clothes: RGB in [0, 1].

    Returns:
        ``(size, size, 3)`` uint8 RGB.

    Example:
        >>> from datamodules.demo.face_identity import face_identity
        >>> draw_face(face_identity(0), Pose(yaw=20), Light(), size=32).shape
        (32, 32, 3)
    """
    drawing = _Drawing(who, pose, size, background)
    drawing.behind(clothes)
    drawing.head()
    for side in (-1, 1):
        drawing.eye(side)
    drawing.beard()
    drawing.nose()
    drawing.mouth()
    drawing.hair()
    for side in (-1, 1):
        drawing.brow_and_rim(side)
    return drawing.lit(light)


def _mix(first: Colour, second: Colour, share: float) -> Colour:
    red, green, blue = (a + share * (b - a) for a, b in zip(first, second, strict=True))
    return red, green, blue


class _Canvas:
    """A picture in the making, in the head's own coordinates, and what of it has been drawn on."""

    def __init__(self, pose: Pose, size: int, background: NDArray[Any] | None) -> None:
        self.size, self.shift, self.scale, turn = size, pose.shift, pose.scale, math.radians(pose.roll)
        self.cos, self.sin = math.cos(turn), math.sin(turn)
        self.pixels: Field = np.full((3, size, size), 0.5, np.float32)  # a plane for each colour: faster
        if background is not None:
            self.pixels[:] = np.broadcast_to(background, (size, size, 3)).transpose(2, 0, 1)
        self.drawn: Field = np.zeros((size, size), np.float32)
        self.inside: Field = np.ones((size, size), np.float32)  # of the head, once its outline is known
        place = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
        x, y = (place[None, :] - pose.shift[0]) / pose.scale, (place[:, None] - pose.shift[1]) / pose.scale
        self.x: Field = (x * self.cos + y * self.sin).astype(np.float32)
        self.y: Field = (y * self.cos - x * self.sin).astype(np.float32)
        self.pixel = 2 / size / pose.scale

    def near(self, x: float, y: float, reach: float) -> "_Canvas":
        """The part of the canvas round a place, to draw small things on in less time."""
        part = copy.copy(self)
        columns, rows = (
            slice(max(0, int((at - reach + 1) * self.size / 2)), max(0, int((at + reach + 1) * self.size / 2) + 2))
            for at, reach in (
                (self.shift[0] + self.scale * (x * self.cos - y * self.sin), self.scale * reach),
                (self.shift[1] + self.scale * (x * self.sin + y * self.cos), self.scale * reach),
            )
        )
        part.pixels, part.drawn = self.pixels[:, rows, columns], self.drawn[rows, columns]
        part.x, part.y, part.inside = self.x[rows, columns], self.y[rows, columns], self.inside[rows, columns]
        return part

    def fill(self, colour: Colour | Field, coverage: Field, share: float = 1.0) -> None:
        """Lay a colour, or three planes of them, over the picture."""
        layer = np.asarray(colour, np.float32)
        layer = (layer[:, None, None] if layer.ndim == 1 else layer) - self.pixels
        layer *= coverage if share == 1 else coverage * np.float32(share)
        self.pixels += layer
        np.maximum(self.drawn, coverage, out=self.drawn)

    def cover(self, distance: Field) -> Field:
        """Coverage of what lies within a line, of the signed distances to it."""
        return (np.float32(0.5) - distance * np.float32(1 / self.pixel)).clip(0, 1)

    def oval(self, x: float, y: float, wide: float, high: float, turn: float = 0.0, power: float = 2.0) -> Field:
        """An ellipse or, with a larger power, a rounded rectangle."""
        wide, high = max(wide, 1e-3), max(high, 1e-3)
        across, down = self.local(x, y, turn)
        across, down = np.abs(across) * np.float32(1 / wide), np.abs(down) * np.float32(1 / high)
        if power == 2:
            radius = np.sqrt(across * across + down * down)
        else:
            radius = (across**power + down**power) ** np.float32(1 / power)
        return self.cover((radius - 1) * np.float32(min(wide, high)))

    def bow(
        self, x: float, y: float, half: float, rise: float, thick: float, turn: float = 0.0, taper: float = 0.6
    ) -> Field:
        """A stroke along a parabola whose middle is higher than its ends by ``rise``; the ends are thinner."""
        half = max(half, 1e-3)
        across, down = self.local(x, y, turn)
        t = (across * np.float32(1 / half)).clip(-1, 1)
        off = (down + np.float32(rise) * (1 - t * t)) / np.sqrt(1 + (np.float32(2 * rise / half) * t) ** 2)
        return self.cover(np.hypot(across - t * np.float32(half), off) - np.float32(thick / 2) * (1 - taper * t * t))

    def local(self, x: float, y: float, turn: float) -> tuple[Field, Field]:
        """Coordinates about a place, turned clockwise."""
        across, down = self.x - np.float32(x), self.y - np.float32(y)
        if not turn:
            return across, down
        cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
        return across * cos + down * sin, down * cos - across * sin


class _Drawing:
    """The parts of a face, to be drawn from back to front."""

    def __init__(self, who: Identity, pose: Pose, size: int, background: NDArray[Any] | None) -> None:
        self.who, self.pose, self.canvas = who, pose, _Canvas(pose, size, background)
        self.yaw = math.radians(pose.yaw)
        self.turned = math.sin(self.yaw)
        self.depth = who.width * self.turned  # how far the front of the head is to the side of its middle
        self.middle = -0.6 * self.depth  # alignment keeps the features, not the skull, in the middle
        self.width = who.width * (1 + 0.1 * abs(self.turned))
        self.canvas.inside = self._outline()

    def _outline(self) -> Field:
        who, canvas = self.who, self.canvas
        across = np.abs(canvas.x - np.float32(self.middle)) * np.float32(1 / self.width)
        down = np.where(canvas.y > 0, canvas.y * np.float32(1 / who.chin), canvas.y * np.float32(-1 / who.crown))
        power = np.where(canvas.y > 0, np.float32(who.jaw), np.float32(2))
        across = across * (1 + np.float32(0.25) * down * down * (canvas.y > 0))
        return canvas.cover(((across**power + down**power) ** (1 / power) - 1) * np.float32(0.6))

    def seen(self, x: float, out: float = 0.0) -> tuple[float, float]:
        """Where a place of the face is seen, and how wide things look there: the face is a cylinder."""
        angle = math.asin(max(-0.95, min(0.95, x / self.who.width)))
        where = self.middle + self.who.width * (1 + out) * math.sin(angle + self.yaw)
        return where, max(0.0, math.cos(angle + self.yaw) / math.cos(angle))

    def dark(self, share: float) -> Colour:
        """The skin in shadow."""
        return _mix(self.who.skin, (0.2, 0.1, 0.08), share)

    def strands(self, shade: float = 1.0) -> Field:
        """The hair's colour (3, size, size), in strands that follow the head."""
        x, y = self.canvas.x - np.float32(self.middle), self.canvas.y
        waves = 1 + np.float32(0.13) * np.sin(x * 38 + y * y * 9 + np.float32(20 * self.who.parting))
        return np.array(self.who.hair, np.float32)[:, None, None] * (np.float32(shade) * waves)

    def behind(self, clothes: Colour) -> None:
        """Hair at the back, neck, shoulders and ears."""
        who, canvas, back = self.who, self.canvas, self.middle - 0.35 * self.depth
        hair = canvas.oval(back, -0.15, self.width + who.volume, 0.62 + who.volume)
        if who.hair_length:
            half = who.hair_length / 2 + 0.5
            hair = np.maximum(hair, canvas.oval(back, half - 0.85, self.width + who.volume + 0.08, half, power=3))
        canvas.fill(self.strands(0.8), hair)
        canvas.fill(self.dark(0.2), canvas.oval(self.middle * 0.6, 0.9, self.width * 0.55, 0.45, power=4))
        canvas.fill(clothes, canvas.oval(self.middle * 0.5, 1.35, 0.95, 0.5, power=2.5))
        for side in (-1, 1):
            if side * self.turned < 0.3:  # else the ear is behind the head
                x, y = self.middle + side * self.width * math.cos(self.yaw) - 0.35 * self.depth, who.eye_height + 0.12
                part = canvas.near(x, y, 0.25)
                part.fill(self.dark(0.12), part.oval(x, y, who.ear_size * 0.75, who.ear_size * 1.4))

    def head(self) -> None:
        """Skin, cheeks and freckles."""
        who, canvas = self.who, self.canvas
        canvas.fill(who.skin, self.canvas.inside)
        for side in (-1, 1):
            x, squash = self.seen(side * 0.34)
            part = canvas.near(x, 0.27, 0.3)
            across, down = part.local(x, 0.27, 0)
            glow = np.exp(-(across * across * np.float32(1 / (0.02 * squash * squash + 1e-4)) + down * down * 80))
            part.fill((0.85, 0.35, 0.30), glow * part.inside, who.blush)
        for x, y in who.freckles:
            x, squash = self.seen(x)
            if squash > 0.25:
                part = canvas.near(x, y, 0.05)
                part.fill(self.dark(0.5), part.oval(x, y, 0.02 * squash, 0.02), 0.8)

    def eye(self, side: int) -> None:
        """One eye and its upper lid."""
        who, pose = self.who, self.pose
        x, squash = self.seen(side * who.eye_gap)
        if squash < 0.15:
            return
        y, slant, part = who.eye_height, side * who.eye_slant, self.canvas.near(x, who.eye_height, 0.2)
        wide, high = who.eye_size * squash, who.eye_size * who.eye_open * (1 - 0.25 * max(pose.smile, 0))
        part.fill(self.dark(0.35), part.oval(x, y, wide * 1.2, high * 1.25, slant), 0.5)
        ball = part.oval(x, y, wide, high, slant)
        part.fill((0.97, 0.96, 0.95), ball)
        size = who.iris_size * who.eye_size
        ix, iy = x + pose.gaze[0] * size * 0.5, y + pose.gaze[1] * size * 0.4
        part.fill(who.iris, part.oval(ix, iy, size * squash, size) * ball)
        part.fill((0.05, 0.04, 0.04), part.oval(ix, iy, size * 0.5 * squash, size * 0.5) * ball)
        part.fill(
            (1, 1, 1), part.oval(ix + 0.3 * size * squash, iy - 0.35 * size, size * 0.28, size * 0.28) * ball, 0.9
        )
        lid = part.bow(x, y - 0.1 * high, wide * 1.1, high * 0.95, 0.035, slant)
        part.fill(_mix(who.hair, (0.1, 0.06, 0.05), 0.6), lid)

    def nose(self) -> None:
        """Its ridge from the side, tip and nostrils."""
        who, tip = self.who, self.who.eye_height + self.who.nose_long
        x, _ = self.seen(0, 0.18)
        root, _ = self.seen(0, 0.02)
        part, half = self.canvas.near((x + root) / 2, tip - who.nose_long / 2, 0.35), who.nose_long * 0.42
        turn = math.atan2(x - root, -who.nose_long)
        if abs(self.turned) > 0.5:  # seen against what is behind it
            profile = part.bow((x + root) / 2, tip - half, half, 0.0, who.nose_wide * 1.3, turn + math.pi / 2, taper=0)
            part.fill(who.skin, profile)
        ridge = part.bow((x + root) / 2 + 0.5 * who.nose_wide, tip - half, half, 0.0, 0.04, turn + math.pi / 2)
        part.fill(self.dark(0.45), ridge, who.nose_ridge)
        ball = part.oval(x, tip - 0.02, who.nose_wide, who.nose_wide * 0.7)
        part.fill(_mix(who.skin, (1.0, 0.6, 0.5), 0.22), ball, 0.9)
        part.fill(self.dark(0.5), part.bow(x, tip + 0.04, who.nose_wide, -0.04, 0.035))
        for side in (-1, 1):
            if side * self.turned < 0.6:
                part.fill(self.dark(0.6), part.oval(x + side * 0.55 * who.nose_wide, tip + 0.03, 0.022, 0.016))

    def beard(self) -> None:
        """Beard and moustache, of those who have them."""
        who, canvas = self.who, self.canvas
        x, squash = self.seen(0)
        if who.beard:
            across = (canvas.x - np.float32(x)) * np.float32(1 / who.width)
            edge = np.float32(who.mouth_height - 0.06) - np.float32(0.4) * across * across
            hairy = ((canvas.y - edge) * np.float32(12)).clip(0, 1) * self.canvas.inside
            bare = canvas.oval(x, who.mouth_height + 0.01, who.mouth_wide * squash, 0.09)
            canvas.fill(self.strands(0.9), hairy * (1 - bare), who.beard)
        if who.moustache:
            tip = who.eye_height + who.nose_long
            y = tip + 0.55 * (who.mouth_height - tip)
            part = canvas.near(x, y, 0.35)
            lip = part.bow(x, y, who.mouth_wide * 0.85 * (0.2 + 0.8 * squash), 0.03, 0.075)
            part.fill(_mix(who.hair, (0.1, 0.08, 0.08), 0.2), lip, who.moustache)

    def mouth(self) -> None:
        """Lips, and teeth where it is open."""
        who, pose = self.who, self.pose
        x, squash = self.seen(0)
        half = who.mouth_wide * squash * (1 + 0.12 * pose.smile)
        bend = -(who.mouth_bow + 0.045 * pose.smile)  # its ends are higher than its middle
        y, gap = who.mouth_height - bend / 2, 0.07 * pose.open
        part = self.canvas.near(x, y, 0.35)
        lips = _mix(who.skin, (0.75, 0.18, 0.20), who.lip_red)
        lower = part.bow(x, y + gap / 2 + who.lower_lip / 2, half * 0.9, bend * 1.1, who.lower_lip, taper=0.9)
        upper = part.bow(x, y - gap / 2 - who.upper_lip / 2, half, bend, who.upper_lip, taper=0.8)
        part.fill(lips, lower * part.inside)
        part.fill(_mix(lips, (0.3, 0.05, 0.05), 0.15), upper * part.inside)
        if gap > 0.01:
            teeth = part.bow(x, y - gap * 0.25, half * 0.7, bend, gap * 0.6, taper=0.9)
            part.fill((0.35, 0.08, 0.08), part.bow(x, y, half * 0.85, bend, gap * 1.4, taper=0.9) * part.inside)
            part.fill((0.96, 0.95, 0.92), teeth * part.inside)
        else:
            part.fill((0.30, 0.10, 0.10), part.bow(x, y, half, bend, 0.022, taper=0.3) * part.inside, 0.9)

    def hair(self) -> None:
        """What falls over the forehead and down the sides."""
        who, canvas = self.who, self.canvas
        u = (canvas.x - np.float32(self.middle + 0.75 * self.depth)) * np.float32(1 / who.width)
        off = u - np.float32(who.parting)
        line = np.float32(who.hairline) + np.float32(who.sweep) * off * off
        line += np.float32(who.curls) * np.sin(np.float32(who.curl_count) * u + np.float32(9 * who.parting))
        line = np.minimum(line, np.float32(who.eye_height - 0.14))  # nobody's eyes are hidden
        line += ((np.abs(u) - np.float32(0.82)) * 4).clip(0, 0.3)
        behind = (np.float32(self.middle) - canvas.x) * np.float32(self.turned)  # the side that is turned to the viewer
        line += (behind * np.float32(1.6) - np.float32(0.1)).clip(0, 0.7)
        cap = canvas.oval(self.middle, 0.0, self.width + 0.35 * who.volume + 0.03, who.crown + who.volume)
        canvas.fill(self.strands(), canvas.cover(canvas.y - line) * cap)

    def brow_and_rim(self, side: int) -> None:
        """One brow, and one side of the glasses of those who wear them."""
        who, rim = self.who, (0.12, 0.10, 0.12)
        x, squash = self.seen(side * (who.eye_gap + 0.01))
        if squash < 0.15:
            return
        y, part = who.eye_height - who.brow_gap - 0.03 * self.pose.smile, self.canvas.near(x, who.eye_height, 0.4)
        brow = part.bow(x, y, who.brow_long * squash, who.brow_bow, who.brow_thick, side * who.brow_slant, taper=0.5)
        part.fill(_mix(who.hair, (0.12, 0.08, 0.06), 0.35), brow, 0.95)
        if who.glasses:
            wide, high, y = 0.19 * squash, 0.15, who.eye_height + 0.02
            outer = part.oval(x, y, wide + 0.02, high + 0.02, power=who.glasses)
            part.fill(rim, outer * (1 - part.oval(x, y, wide - 0.018, high - 0.018, power=who.glasses)))
            bridge, _ = self.seen(0, 0.1)
            inner = x - side * wide
            part.fill(rim, part.bow((inner + bridge) / 2, y - 0.03, abs(inner - bridge) / 2 + 0.01, 0.0, 0.03))

    def lit(self, light: Light) -> NDArray[np.uint8]:
        """The picture: what has been drawn is lit like a ball in the place of the head."""
        azimuth, elevation, canvas = math.radians(light.azimuth), math.radians(light.elevation), self.canvas
        across = ((canvas.x - np.float32(self.middle)) * np.float32(0.85 / self.width)).clip(-1, 1)
        down = (canvas.y * np.float32(0.8)).clip(-1, 1)
        front = np.sqrt((1 - across * across - down * down).clip(0.02))
        toward = (across * math.sin(azimuth) + front * math.cos(azimuth)) * math.cos(elevation)
        bright = np.float32(1.15) * (toward - down * math.sin(elevation)) - np.float32(0.85)
        canvas.pixels *= 1 + canvas.drawn * np.float32(light.strength) * bright.clip(-0.85, 0.3)
        canvas.pixels *= np.array(light.gain, np.float32)[:, None, None] * 255
        return np.rint(canvas.pixels).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
