"""ASFD's anchors, and boxes as offsets from them."""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

STRIDES = (4, 8, 16, 32, 64, 128)
MAX_LOG_RATIO = 4.0  # of a decoded side to its anchor's: 55 times
MIN_SIDE = 1e-7  # pixels, where a logarithm or a quotient needs one


def make_anchors(
    height: int,
    width: int,
    *,
    strides: Sequence[int] = STRIDES,
    scale: float = 4,
    ratio: float = 1.5,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Anchors of a picture, one per cell of each level.

    Args:
        height: of the picture, pixels.
        width: of the picture.
        strides: of the levels, pixels; a level has ceil(height / stride) rows.
        scale: sides of an anchor are ``scale`` strides, geometric mean.
        ratio: of height to width.
        dtype: of the result.
        device: of the result.

    Returns:
        ``(A, 4)`` x1, y1, x2, y2 by level, row and column, not clipped to the picture; the centre of a cell is
        ((j + 0.5) stride, (i + 0.5) stride). 34,125 for 640 x 640.

    Raises:
        ValueError: a number that is not positive, or no stride.

    Source:
        DSFD's code: strides, sizes and shape. That feature sizes are rounded up follows from convolutions with padding.

    Example:
        >>> len(make_anchors(640, 640)), make_anchors(4, 5, strides=[4], ratio=1).tolist()
        (34125, [[-6.0, -6.0, 10.0, 10.0], [-2.0, -6.0, 14.0, 10.0]])
    """
    if not strides or min(height, width, *strides) < 1 or min(scale, ratio) <= 0:
        raise ValueError(
            f"height, width, strides, scale and ratio must be positive, got height={height}, width={width}, "
            f"strides={tuple(strides)}, scale={scale}, ratio={ratio}"
        )
    exact = torch.promote_types(dtype, torch.float32)  # half precision has no odd numbers above 2048
    levels = []
    for stride in strides:
        y, x = (
            (torch.arange(-(-side // stride), dtype=exact, device=device) + 0.5) * stride for side in (height, width)
        )
        cy, cx = torch.meshgrid(y, x, indexing="ij")
        w, h = (stride * scale * shape / 2 for shape in (1 / sqrt(ratio), sqrt(ratio)))
        levels.append(torch.stack([cx - w, cy - h, cx + w, cy + h], -1).view(-1, 4))
    return torch.cat(levels).to(dtype)


def encode(boxes: Tensor, anchors: Tensor, variances: Sequence[float] = (0.1, 0.2)) -> Tensor:
    """Boxes as offsets from anchors.

    With centres c and sides s, t = ((c_box - c_anchor) / s_anchor / v0, ln(s_box / s_anchor) / v1).

    Args:
        boxes: ``(..., 4)`` x1, y1, x2, y2.
        anchors: ``(..., 4)``, of a shape that broadcasts with that of ``boxes``.
        variances: v0 and v1.

    Returns:
        ``(..., 4)`` tx, ty, tw, th; float64 where an input is, else float32.

    Raises:
        ValueError: a last dimension other than 4.

    Source:
        DSFD's code. Ours: sides of boxes below 1e-7 pixels count as that, since ln 0 is not finite.

    Example:
        >>> encode(torch.tensor([1.0, 0.0, 5.0, 4.0]), torch.tensor([0.0, 0.0, 4.0, 4.0])).tolist()
        [2.5, 0.0, 0.0, 0.0]
    """
    boxes, anchors = _pair("boxes", boxes, anchors)
    centre, side = centre_and_sides(boxes)
    anchor_centre, anchor_side = centre_and_sides(anchors)
    shift = (centre - anchor_centre) / anchor_side / variances[0]
    return torch.cat([shift, (side.clamp(min=MIN_SIDE) / anchor_side).log() / variances[1]], -1)


def decode(codes: Tensor, anchors: Tensor, variances: Sequence[float] = (0.1, 0.2)) -> Tensor:
    """Boxes from offsets: the inverse of :func:`encode`.

    Args:
        codes: ``(..., 4)`` tx, ty, tw, th.
        anchors: ``(..., 4)`` x1, y1, x2, y2, of a shape that broadcasts with that of ``codes``.
        variances: as :func:`encode` had them.

    Returns:
        ``(..., 4)`` x1, y1, x2, y2, x1 <= x2; float64 where an input is, else float32.

    Raises:
        ValueError: a last dimension other than 4.

    Source:
        DSFD's code. Ours: the logarithm of a side's ratio to its anchor's is 4 at most, or one wild offset would make
        the loss of a batch infinite.

    Example:
        >>> decode(torch.tensor([2.5, 0.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 4.0, 4.0])).tolist()
        [1.0, 0.0, 5.0, 4.0]
    """
    codes, anchors = _pair("codes", codes, anchors)
    anchor_centre, anchor_side = centre_and_sides(anchors)
    centre = anchor_centre + codes[..., :2] * variances[0] * anchor_side
    half = anchor_side * (codes[..., 2:] * variances[1]).clamp(max=MAX_LOG_RATIO).exp() / 2
    return torch.cat([centre - half, centre + half], -1)


def centre_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and sides of each box.

    Args:
        boxes: ``(..., 4)`` x1, y1, x2, y2.

    Returns:
        Centres x, y and sides width, height, ``(..., 2)`` each.

    Example:
        >>> centre_and_sides(torch.tensor([1.0, 0.0, 5.0, 2.0]))
        (tensor([3., 1.]), tensor([4., 2.]))
    """
    first, last = boxes[..., :2], boxes[..., 2:]
    return (first + last) / 2, last - first


def _pair(name: str, x: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 where one of them is, else in float32."""
    for what, tensor in ((name, x), ("anchors", anchors)):
        if not tensor.ndim or tensor.shape[-1] != 4:
            raise ValueError(f"{what} must be (..., 4), got {tuple(tensor.shape)}")
    exact = torch.float64 if torch.float64 in (x.dtype, anchors.dtype) else torch.float32
    return x.to(exact), anchors.to(exact)
