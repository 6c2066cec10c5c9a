"""Which part of a picture with faces a view for training shows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodules.photometric import Draw

ANCHOR_SIZES = (16, 32, 64, 128, 256, 512)
CROPS = ("square", "anchor_sampling", "none")
SQUARES = ("short_side", "0.3", "0.5", "0.7", "0.9")  # the official code's names; the last two are around a face
_TRIES = 50  # windows that are tried before the smallest face is halved
_HALVINGS = 5
_SMALLEST = 0.3  # side of a random square, of the picture's short side


@dataclass(frozen=True)
class Window:
    """The part of a picture that becomes a view.

    Args:
        left: in pixels of the picture, as the other three; below 0 or beyond the picture there is padding.
        top: upper edge.
        width: above 0.
        height: likewise.
        mode: how it was chosen: one of ``SQUARES``, ``"anchor_sampling"``, ``"none"``, or ``"fallback"``.
        min_face: faces of a smaller area than this squared, in pixels of the view, are left out.
    """

    left: float
    top: float
    width: float
    height: float
    mode: str
    min_face: float


def choose_window(
    crop: str,
    size: tuple[int, int],
    boxes: NDArray[np.floating],
    draw: Draw,
    image_size: int = 640,
    min_face: float = 8,
    anchor_sizes: Sequence[int] = ANCHOR_SIZES,
) -> Window:
    """Draw the part of a picture that a view shows; of a picture with faces it has at least one.

    Args:
        crop: ``"square"``: one of five modes, equally often. ``short_side`` is a square of the picture's short side;
            ``0.3`` and ``0.5`` are squares of 0.3 to 1 of it; ``0.7`` and ``0.9`` squares around a face that brings
            it to one of the ``anchor_sizes``, up to the first that is no smaller than the face, and to one of the first
            two at least. ``"anchor_sampling"``: a face comes to one of the ``anchor_sizes``, up to the one after the
            nearest, times 1/2 to 2. ``"none"``: the whole picture.
        size: width and height of the picture, as Pillow has it.
        boxes: ``(n, 4)`` faces, xyxy in pixels of the picture.
        draw: gives numbers in [0, 1) for a name, how many and a turn.
        image_size: side of the view in pixels.
        min_face: faces of a smaller area than this squared are left out of the view.
        anchor_sizes: geometric mean sizes that faces are brought to, ascending, in pixels of the view.

    Returns:
        The window. That of a square has whole numbers and lies within the picture.

    Source:
        Section 4, from the official code of DSFD. Ours, where the text is open: the 8 pixels are those of the view,
        where the network sees them, not of the picture. If 50 windows have no face, the minimum that is halved is
        ``min_face``, and a mode is drawn anew; after five halvings a square of the short side around a face is taken,
        in which faces of any size are kept. A square around a face is no larger than the short side. Anchors larger
        than the view are not used. Pictures without a face whose centre lies in them get a random square. Anchor
        sampling places the window along each side by itself: around the picture, where that is not larger, else
        around the face, or within the face, where that is larger.

    Example:
        >>> face = np.array([[40.0, 10.0, 60.0, 30.0]])
        >>> choose_window("square", (100, 50), face, lambda name, count, turn: np.full(count, 0.7), image_size=64)
        Window(left=34, top=4, width=40, height=40, mode='0.7', min_face=8.0)
    """
    sizes = [anchor for anchor in anchor_sizes if anchor <= image_size]
    picture = _Picture(size, _within(boxes.astype(np.float64), size), image_size, sizes)
    faces, tries, propose = picture.faces, _TRIES, picture.square
    if crop == "none":
        tries, propose = 1, picture.whole
    elif crop == "anchor_sampling" and len(faces):
        propose = picture.anchored
    for turn in range(_HALVINGS + 1):
        mode = SQUARES[int(draw("mode", 1, turn)[0] * len(SQUARES))]
        for numbers in draw("window", 5 * tries, turn).reshape(tries, 5).tolist():
            window = propose(mode, numbers, min_face / 2**turn)
            if not len(faces) or len(boxes_in_window(faces, window, image_size)):
                return window
    if crop == "none":
        return picture.whole("none", [], 0)
    return picture.around(float(draw("fallback", 1, 0)[0]))


def boxes_in_window(boxes: NDArray[np.floating], window: Window, image_size: int) -> NDArray[np.float32]:
    """The faces that a view keeps.

    Args:
        boxes: ``(n, 4)`` xyxy in pixels of the picture.
        window: what the view shows.
        image_size: its side in pixels.

    Returns:
        ``(m, 4)`` xyxy in pixels of the view, in the order they had: those whose centre lies inside, cut off at the
        edges of the view, if their area is then at least ``window.min_face`` squared.

    Example:
        >>> window = Window(10, 0, 20, 20, "none", min_face=8)
        >>> boxes_in_window(np.array([[5.0, 5, 20, 15], [0, 0, 16, 16], [15, 5, 16, 6]]), window, 40)
        array([[ 0., 10., 20., 30.]], dtype=float32)
    """
    edge = np.array([window.left, window.top] * 2)
    moved = (boxes.astype(np.float64) - edge) * (image_size / np.array([window.width, window.height] * 2))
    centres = (moved[:, :2] + moved[:, 2:]) / 2
    moved = moved[((centres > 0) & (centres < image_size)).all(1)].clip(0, image_size).astype(np.float32)
    sides = moved[:, 2:] - moved[:, :2]
    return moved[(sides > 0).all(1) & (sides.prod(1) >= window.min_face**2)]


@dataclass(frozen=True)
class _Picture:
    """What windows are proposed from: size and faces of a picture, side of the view, anchors that fit in it."""

    size: tuple[int, int]
    faces: NDArray[np.float64]
    image_size: int
    sizes: list[int]

    def whole(self, mode: str, numbers: list[float], min_face: float) -> Window:
        return Window(0, 0, *self.size, "none", min_face)

    def square(self, mode: str, numbers: list[float], min_face: float) -> Window:
        short = min(self.size)
        if mode in SQUARES[3:] and len(self.faces):
            face, extent = self.pick(numbers[0])
            fitting = sum(anchor < extent for anchor in self.sizes)  # the number of the first that is no smaller
            anchor = self.choose(max(fitting, 1), numbers[1])
            side = min(max(round(extent * self.image_size / anchor), 1), short)
            places = [_near(face[i], face[i + 2], side, self.size[i], numbers[2 + i]) for i in range(2)]
        else:
            part = 1.0 if mode == SQUARES[0] else _SMALLEST + (1 - _SMALLEST) * numbers[1]
            side = max(round(short * part), 1)
            places = [int(numbers[2 + i] * (self.size[i] - side + 1)) for i in range(2)]
        return Window(places[0], places[1], side, side, mode, min_face)

    def anchored(self, mode: str, numbers: list[float], min_face: float) -> Window:
        face, extent = self.pick(numbers[0])
        nearest = min(range(len(self.sizes)), key=lambda i: abs(self.sizes[i] - extent))
        side = self.image_size * extent / (self.choose(nearest + 1, numbers[1]) * 2 ** (2 * numbers[4] - 1))
        places = []
        for i, length in enumerate(self.size):
            low, high = (length - side, 0.0) if length <= side else (face[i + 2] - side, face[i])
            places.append(low + numbers[2 + i] * (high - low))
        return Window(places[0], places[1], side, side, "anchor_sampling", min_face)

    def around(self, number: float) -> Window:
        """The square of the short side with a face in the middle, as far as the picture reaches."""
        (face, _), short = self.pick(number), min(self.size)
        middles = [(face[i] + face[i + 2] - short) / 2 for i in range(2)]
        places = [min(max(round(middles[i]), 0), self.size[i] - short) for i in range(2)]
        return Window(places[0], places[1], short, short, "fallback", 0)

    def pick(self, number: float) -> tuple[list[float], float]:
        """A face and the geometric mean of its sides."""
        x1, y1, x2, y2 = face = self.faces[int(number * len(self.faces))].tolist()
        return face, math.sqrt((x2 - x1) * (y2 - y1))

    def choose(self, last: int, number: float) -> int:
        """One of the anchors up to a number, as far as there are any."""
        return self.sizes[int(number * (min(last, len(self.sizes) - 1) + 1))]


def _within(boxes: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """The faces that have an area and their centre in the picture."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return boxes[((boxes[:, 2:] > boxes[:, :2]) & (centres > 0) & (centres < np.array(size))).all(1)]


def _near(low: float, high: float, side: int, length: int, number: float) -> int:
    """Where a window begins that holds ``low`` to ``high``, or lies within, and stays within 0 to ``length``."""
    first, last = sorted((high - side, low))
    middle = (low + high) / 2  # stays inside of the window, also of a very flat or thin face
    first, last = max(first, middle - side), min(last, middle)
    begin, end = math.ceil(first), math.floor(last)
    place = begin + int(number * (end - begin + 1)) if begin <= end else round((first + last) / 2)
    return min(max(place, 0), length - side)
