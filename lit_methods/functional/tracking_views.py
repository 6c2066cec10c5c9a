"""Views of a target for training a tracker: where a crop lies, how it is cut out and what is done to its pixels.

Pixels are BGR, 0 to 255. float64 stays float64, all else is computed in float32. What is random is decided by numbers
that are passed in.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lit_methods.functional.tracking_crops import context_size

COLOUR_AXES = (  # of the colours of natural pictures, RGB; rows of the official code's rgbVar
    (-0.55919361, 0.98062831, -0.41940627),
    (1.72091413, 0.19879334, -1.82968581),
    (4.64467907, 4.73710203, 4.88324118),
)
GREY_WEIGHTS = (0.114, 0.587, 0.299)  # of B, G and R
BLUR_SIZES = tuple(range(5, 46, 2))


def canonical_box(wh: Tensor, template_size: int = 127, full: int = 511) -> Tensor:
    """The box of a target in the canvas that training crops are cut from.

    Args:
        wh: ``(..., 2)`` annotated width and height, in pixels of the frame, above 0.
        template_size: side that the target with its context gets, in pixels of the canvas.
        full: side of the canvas.

    Returns:
        ``(..., 4)`` xyxy in pixels of the canvas: the target is in the middle, at ``full // 2``.

    Source:
        Section 4: centre 255, size (w, h) * 127 / s_z.

    Example:
        >>> canonical_box(torch.tensor([40.0, 40.0])).tolist()
        [223.25, 223.25, 286.75, 286.75]
    """
    wh = _floating(wh)
    half = wh * (0.5 * template_size / context_size(wh))[..., None]
    return torch.cat([full // 2 - half, full // 2 + half], -1)


def augment_crop_box(
    box: Tensor, draws: Tensor, shift: float, scale: float, size: int, full: int = 511
) -> tuple[Tensor, Tensor]:
    """Move and stretch the window that a training crop is cut from.

    Args:
        box: ``(..., 4)`` the target, xyxy in pixels of the canvas.
        draws: ``(..., 4)`` in [-1, 1]: of the width, the height, the way in x and in y.
        shift: the window moves by up to so many pixels of the canvas.
        scale: its sides change by up to this part.
        size: side of the crop.
        full: side of the canvas.

    Returns:
        The window, ``(..., 4)`` xyxy in pixels of the canvas, whose corners are the middles of the outermost pixels of
        the crop; and the target, ``(..., 4)`` xyxy in pixels of the crop.

    Source:
        Section 4. The window is never wider than the canvas and stays inside of [0, full - 1] if it is shifted at all.

    Example:
        >>> window, target = augment_crop_box(torch.tensor([223.0, 223, 287, 287]), torch.zeros(4), 64, 0.18, size=255)
        >>> window.tolist(), target.tolist()
        ([128.0, 128.0, 382.0, 382.0], [95.0, 95.0, 159.0, 159.0])
    """
    dtype = torch.promote_types(_floating(box).dtype, _floating(draws).dtype)
    box, draws = box.to(dtype), draws.to(dtype)
    side = float(size - 1)
    factor = (1 + draws[..., :2] * scale).clamp(max=full / side)
    half = 0.5 * side * factor
    low, high = full // 2 - half, full // 2 + half
    if shift:
        way = torch.maximum(-low, torch.minimum(full - 1 - high, draws[..., 2:] * shift))
        low, high = low + way, high + way
    window = torch.cat([low, high], -1)
    return window, (box - torch.cat([low, low], -1)) / torch.cat([factor, factor], -1)


def warp_crop(
    image: Tensor, box: Tensor | Sequence[float], out: int, fill: float | Sequence[float] | Tensor = 0.0
) -> Tensor:
    """Cut a window out of a picture and bring it to a square, bilinear.

    Args:
        image: ``(3, H, W)``, of any number type.
        box: four numbers, xyxy: the places in the picture that the middles of the outermost pixels of the crop come
            from.
        out: side of the crop, at least 2.
        fill: outside of the picture, one value or one per channel.

    Returns:
        ``(3, out, out)``, neither rounded nor clipped.

    Raises:
        ValueError: ``image`` is not ``(C, H, W)``, ``box`` has not four numbers, or ``out`` is too small.

    Source:
        Section 4, the affine warp of the official code, black outside. OpenCV rounds places to 1/32 of a pixel and the
        result to whole grey levels; this does not. No antialiasing, likewise.

    Example:
        >>> picture = torch.arange(9.0).view(1, 3, 3)
        >>> warp_crop(picture, (0.5, 1, 2.5, 2), 2, fill=100).round(decimals=3).tolist()
        [[[3.5, 52.5], [6.5, 54.0]]]
    """
    if image.ndim != 3:
        raise ValueError(f"image must be (3, H, W), got shape {tuple(image.shape)}")
    place = torch.as_tensor(box, dtype=torch.float64, device="cpu").detach()
    if place.shape != (4,) or out < 2:
        raise ValueError(f"box must be four numbers and out at least 2, got shape {tuple(place.shape)} and {out}")
    x0, y0, x1, y1 = place.tolist()
    height, width = image.shape[1:]
    left, top = max(0, math.floor(min(x0, x1))), max(0, math.floor(min(y0, y1)))
    right, bottom = max(0, math.floor(max(x0, x1)) + 2), max(0, math.floor(max(y0, y1)) + 2)
    part = _floating(image[:, top:bottom, left:right])
    inside = min(x0, x1, y0, y1) >= 0 and max(x0, x1) <= width - 1 and max(y0, y1) <= height - 1
    outside = torch.as_tensor(0.0 if inside else fill, dtype=part.dtype, device=image.device).reshape(-1, 1, 1)
    if not part.numel():  # nothing of the picture is in the window
        return outside.expand(image.shape[0], out, out).contiguous()
    grid = np.empty((1, out, out, 2), np.float64 if part.dtype == torch.float64 else np.float32)
    for axis, (start, stop, size) in enumerate(
        ((x0 - left, x1 - left, part.shape[2]), (y0 - top, y1 - top, part.shape[1]))
    ):
        line = (2 * np.linspace(start, stop, out) + 1) / size - 1
        grid[..., axis] = line[:, None] if axis else line
    # zeros around what lies above ``outside``, so that the outermost pixels fade into it
    return F.grid_sample(
        (part - outside)[None], torch.from_numpy(grid).to(image.device), padding_mode="zeros", align_corners=False
    )[0].add_(outside)


def flip_boxes(boxes: Tensor, width: int) -> Tensor:
    """Boxes in the mirror.

    Args:
        boxes: ``(..., 4)`` xyxy in pixels, counted from the middle of the first one.
        width: of the picture.

    Returns:
        ``(..., 4)`` xyxy: x0 becomes width - 1 - x1, x1 becomes width - 1 - x0.

    Example:
        >>> flip_boxes(torch.tensor([0.0, 1.0, 2.0, 3.0]), 10).tolist()
        [7.0, 1.0, 9.0, 3.0]
    """
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([width - 1 - x1, y0, width - 1 - x0, y1], -1)


def colour_shift(image: Tensor, draws: Sequence[float] | NDArray[np.float64] | Tensor) -> Tensor:
    """Add one colour to all of a picture, as another light would.

    Args:
        image: ``(3, H, W)`` BGR, 0 to 255.
        draws: three numbers, standard normal.

    Returns:
        ``(3, H, W)`` floating point, not clipped.

    Source:
        Section 4: the picture minus reverse(M g), ``COLOUR_AXES`` being M.

    Example:
        >>> [round(value, 3) for value in colour_shift(torch.zeros(3, 1, 1), [1.0, 0.0, 0.0]).flatten().tolist()]
        [-4.645, -1.721, 0.559]
    """
    image = _floating(image)
    axes = torch.tensor(COLOUR_AXES, dtype=torch.float64, device="cpu")
    offset = axes @ torch.as_tensor(draws, dtype=torch.float64, device="cpu")
    return image - offset.flip(0).to(image.device, image.dtype)[:, None, None]


def line_blur(image: Tensor, size: int, share: float) -> Tensor:
    """Blur a picture along its rows and along its columns, and mix the two.

    Args:
        image: ``(3, H, W)``, no side shorter than ``size // 2 + 1``.
        size: odd number of pixels that are averaged, such as one of ``BLUR_SIZES``.
        share: of the average along columns, 0 to 1; the rest is that along rows.

    Returns:
        ``(3, H, W)`` floating point. Beyond its sides the picture is mirrored about its outermost pixels.

    Raises:
        ValueError: ``size`` is even, below 1 or too large.

    Source:
        Section 4; mirrored as in OpenCV's ``filter2D``.

    Example:
        >>> line_blur(torch.tensor([[[0.0, 0.0, 3.0]] * 3]), 3, 0.0)[0, 0].tolist()
        [0.0, 1.0, 1.0]
    """
    image = _floating(image)
    reach = size // 2
    if size % 2 == 0 or size < 1 or reach >= min(image.shape[-2:]):
        raise ValueError(
            f"size must be odd and at most twice the shorter side of the picture, {tuple(image.shape)}, got {size}"
        )
    rows, columns = _running_mean(image, 2, size), _running_mean(image, 1, size)
    return torch.lerp(rows, columns, share)


def _running_mean(image: Tensor, dim: int, size: int) -> Tensor:
    """The mean of ``size`` neighbours along one dimension; differences of sums, so that the size costs nothing."""
    count, reach = image.shape[dim], size // 2
    places = torch.arange(-reach - 1, count + reach, device=image.device).abs()  # one more in front, to be taken away
    places = (count - 1 - (count - 1 - places).abs()).clamp(min=0)
    sums = image.index_select(dim, places).cumsum(dim)
    return sums.narrow(dim, size, count).sub(sums.narrow(dim, 0, count)).div_(size)


def to_grey(image: Tensor) -> Tensor:
    """A picture without its colours.

    Args:
        image: ``(3, H, W)`` BGR.

    Returns:
        ``(3, H, W)`` floating point, three equal channels.

    Source:
        OpenCV's ``COLOR_BGR2GRAY``, which the official code calls on whole numbers and which rounds; this does not, so
        that it can come before a crop or after it.

    Example:
        >>> to_grey(torch.tensor([0.0, 100.0, 0.0]).view(3, 1, 1)).flatten().tolist()
        [58.70..., 58.70..., 58.70...]
    """
    image = _floating(image)
    weights = torch.tensor(GREY_WEIGHTS, dtype=image.dtype, device=image.device)
    return torch.einsum("c,chw->hw", weights, image).expand(3, -1, -1).contiguous()


def _floating(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
