"""Views of pictures with faces for training a detector: other colours, a window, mirrored, of one size."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.draws import uniforms
from datamodules.face_boxes_windows import ANCHOR_SIZES, CROPS, Window, boxes_in_window, choose_window
from datamodules.photometric import Draw, Recolouring, draw_recolouring, recolour
from lit_methods.functional.draws import purpose
from lit_methods.functional.suggestions import nearest

PADDING = (123, 117, 104)  # RGB around a picture that does not fill its view: the mean that DSFD subtracts
_RESAMPLING = Image.Resampling.BILINEAR  # Pillow's widens its filter where it makes smaller, so nothing is skipped


@dataclass(frozen=True)
class ViewOptions:
    """How views differ from their pictures; the defaults are DSFD's.

    Args:
        image_size: side of the view in pixels.
        crop: ``"square"``, ``"anchor_sampling"`` or ``"none"``, see
            :func:`~datamodules.face_boxes_windows.choose_window`.
        brightness: largest change, of 255; half of the views are changed, likewise for the next three.
        contrast: largest change, as a part.
        saturation: likewise.
        hue: largest change in degrees, of the circle's 360.
        permute: part of the views whose channels are put into a random order.
        flip: part of the views that are mirrored.
        min_face: faces of a smaller area than this squared, in pixels of the view, are left out.
        anchor_sizes: geometric mean sizes that faces are brought to, ascending, in pixels of the view.

    Raises:
        ValueError: one is out of range.

    Example:
        >>> ViewOptions(crop="squares")
        Traceback (most recent call last):
        ValueError: crop must be one of 'square', 'anchor_sampling', 'none', got 'squares'; did you mean 'square'?
    """

    image_size: int = 640
    crop: str = "square"
    brightness: float = 32
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 18
    permute: float = 0.5
    flip: float = 0.5
    min_face: float = 8
    anchor_sizes: tuple[int, ...] = ANCHOR_SIZES

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {self.image_size}")
        if self.crop not in CROPS:
            known = ", ".join(map(repr, CROPS))
            raise ValueError(f"crop must be one of {known}, got {self.crop!r}{nearest(str(self.crop), CROPS)}")
        for name, high in {
            "brightness": 255,
            "hue": 180,
            "contrast": 1,
            "saturation": 1,
            "permute": 1,
            "flip": 1,
        }.items():
            if not 0 <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be between 0 and {high}, got {getattr(self, name)}")
        if not 0 <= self.min_face < self.image_size:
            raise ValueError(
                f"min_face must be 0 or more and below image_size={self.image_size}, got {self.min_face}: "
                "no face of a view could be as large"
            )
        sizes = tuple(self.anchor_sizes)
        if not sizes or sizes[0] <= 0 or any(b <= a for a, b in pairwise(sizes)):
            raise ValueError(f"anchor_sizes must be one size or more, above 0 and ascending, got {sizes}")
        if sizes[0] > self.image_size and self.crop != "none":
            raise ValueError(
                f"image_size={self.image_size} is below the smallest of anchor_sizes={sizes}, which faces are brought "
                "to; take a larger image_size, smaller anchor_sizes or crop='none'"
            )


def view_draws(seed: int, epoch: int, index: int) -> Draw:
    """The random numbers of one view, whatever worker makes it and whatever was made before.

    Args:
        seed: of the run.
        epoch: views of a picture differ from epoch to epoch.
        index: the picture's number.

    Returns:
        A function of a name, how many and a turn: as many numbers in [0, 1), float64.

    Example:
        >>> draw = view_draws(seed=0, epoch=3, index=14)
        >>> draw("flip", 2, 0).shape, bool((draw("flip", 1, 0) == draw("mode", 1, 0)).any())
        ((2,), False)
    """

    def draw(name: str, count: int, turn: int) -> NDArray[np.float64]:
        return uniforms(count, purpose(f"face_boxes_views/{name}"), seed, epoch, index, turn)[0]

    return draw


def augment(
    image: NDArray[np.uint8] | Image.Image, boxes: NDArray[np.floating], options: ViewOptions, draw: Draw
) -> tuple[Tensor, Tensor]:
    """Make a view of a picture.

    Args:
        image: ``(H, W, 3)`` uint8 RGB, or a picture of mode ``RGB``; not changed.
        boxes: ``(n, 4)`` faces, xyxy in its pixels.
        options: what may change.
        draw: the view's random numbers, see :func:`view_draws`.

    Returns:
        The view, ``(3, S, S)`` uint8, and its faces, ``(m, 4)`` float32, xyxy in pixels of the view. Of a picture with
        faces ``m`` is at least 1, of one without it is 0.

    Raises:
        ValueError: the image is neither of both, or boxes are not of that shape.

    Source:
        Section 4: colours, window, mirror, size, in this order. Ours: only the window is recoloured, which is the same;
        where it has more pixels than the view, the view is. That differs by 0.2 of 255 on average (48 views of 16
        photographs of WIDER FACE at five sixths of their size). One resampling from the picture to the view, Pillow's
        bilinear one, where DSFD draws one of OpenCV's five.

    Example:
        >>> picture = np.full((48, 64, 3), 90, np.uint8)
        >>> options = ViewOptions(image_size=32, brightness=0, contrast=0, flip=0, crop="none")
        >>> view, faces = augment(picture, np.array([[16.0, 12, 48, 36]]), options, view_draws(0, 0, 0))
        >>> view.shape, view.unique().tolist(), faces.tolist()
        (torch.Size([3, 32, 32]), [90], [[8.0, 8.0, 24.0, 24.0]])
    """
    if isinstance(image, Image.Image):
        size, good, given = image.size, image.mode == "RGB", f"a picture of mode {image.mode}"
    else:
        good = image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
        size, given = image.shape[1::-1], f"{image.dtype} of shape {image.shape}"
    if not good:
        raise ValueError(f"image must be (H, W, 3) uint8 or a picture of mode RGB, got {given}; convert it")
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be (n, 4) xyxy, got shape {boxes.shape}; (0, 4) where there is no face")
    side = options.image_size
    window = choose_window(options.crop, size, boxes, draw, side, options.min_face, options.anchor_sizes)
    change = draw_recolouring(
        draw, options.brightness, options.contrast, options.saturation, options.hue, options.permute
    )
    faces = boxes_in_window(boxes, window, side)
    view = cut(image, window, side, change)
    if draw("flip", 1, 0)[0] < options.flip:
        view = view[:, ::-1]
        faces[:, 0::2] = side - faces[:, 2::-2]
    return torch.from_numpy(view.transpose(2, 0, 1).copy()), torch.from_numpy(faces)


def cut(
    image: NDArray[np.uint8] | Image.Image,
    window: Window,
    image_size: int,
    change: Recolouring = Recolouring(),  # noqa: B008
) -> NDArray[np.uint8]:
    """Cut a window out of a picture and bring it to the size of a view.

    Args:
        image: ``(H, W, 3)`` uint8 RGB, or a picture of mode ``RGB``.
        window: may reach beyond the picture, where the view is filled with ``PADDING``.
        image_size: side of the view in pixels.
        change: of the colours, those of the padding apart.

    Returns:
        ``(image_size, image_size, 3)`` uint8.

    Example:
        >>> white = np.full((4, 4, 3), 255, np.uint8)
        >>> cut(white, Window(-4, 0, 8, 8, "anchor_sampling", 8), 4)[:, :, 0]
        array([[123, 123, 255, 255],
               [123, 123, 255, 255],
               [123, 123, 123, 123],
               [123, 123, 123, 123]], dtype=uint8)
    """
    size = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
    (left, right), (top, bottom) = (
        _covered(start, extent, length, image_size)
        for start, extent, length in zip((window.left, window.top), (window.width, window.height), size, strict=True)
    )
    across, down = window.width / image_size, window.height / image_size
    box = (  # of the covered pixels of the view, in the picture
        max(window.left + left * across, 0),
        max(window.top + top * down, 0),
        min(window.left + right * across, size[0]),
        min(window.top + bottom * down, size[1]),
    )
    part = _resampled(image, box, (right - left, bottom - top), change)
    if part.shape[:2] == (image_size, image_size):
        return part
    view = np.empty((image_size, image_size, 3), np.uint8)
    view[:] = PADDING
    view[top:bottom, left:right] = part
    return view


def _covered(start: float, extent: float, length: int, image_size: int) -> tuple[int, int]:
    """Pixels of a view, along one side, that lie wholly in a picture; one at least, of a picture that is too thin."""
    scale = image_size / extent
    first = math.ceil(max(-start * scale, 0) - 1e-6)
    last = math.floor(min((length - start) * scale, image_size) + 1e-6)
    first = min(first, image_size - 1)
    return first, min(max(last, first + 1), image_size)


def _resampled(
    image: NDArray[np.uint8] | Image.Image,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    change: Recolouring,
) -> NDArray[np.uint8]:
    """The part of a picture in a box, brought to a size, in other colours."""
    x1, y1, x2, y2 = math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])
    if isinstance(image, Image.Image):
        part = image.crop((x1, y1, x2, y2))
    else:
        part = Image.fromarray(np.ascontiguousarray(image[y1:y2, x1:x2]))
    small = part.width * part.height <= size[0] * size[1]
    if small:
        part = Image.fromarray(recolour(np.asarray(part), change))
    pixels = np.asarray(part.resize(size, _RESAMPLING, (box[0] - x1, box[1] - y1, box[2] - x1, box[3] - y1)))
    return pixels if small else recolour(pixels, change)
