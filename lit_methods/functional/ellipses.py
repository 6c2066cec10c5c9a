"""Ellipses as regions on the pixel grid, and how much of them rectangles cover.

The pixel in column j and row i belongs to a region that its middle (j + 0.5, i + 0.5) lies in. The grid has no end: a
region may reach beyond the picture.
"""

import math

import torch
from torch import Tensor

_FAR = 2**30  # pixels: farther edges of rectangles are there, where whole numbers still hold them


def ellipse_rows(ellipse: Tensor) -> tuple[int, Tensor]:
    """The pixels of an ellipse, row by row.

    Args:
        ellipse: (5,) major radius, minor radius, angle in radians from the x axis to the major one, clockwise as seen
            in a picture (y is down), x and y of the centre.

    Returns:
        The first row and (R, 2) int64 on the CPU: the first column in each row and the one after the last.

    Raises:
        ValueError: not five finite numbers, or a radius that is not above 0.

    Source:
        Ours: what lies within the curve. FDDB's own tool draws with OpenCV, after it has rounded the centre and cut off
        the fractions of the radii; the angle is read as there.

    Example:
        >>> top, rows = ellipse_rows(torch.tensor([2.0, 1.0, 0.0, 10.0, 5.0]))
        >>> top, rows.tolist()
        (4, [[8, 12], [8, 12]])
    """
    check_ellipses(ellipse[None])
    major, minor, angle, x, y = ellipse.double().cpu().tolist()
    cos, sin = math.cos(angle), math.sin(angle)
    # a u^2 + 2 b u v + c v^2 <= 1 for u to the right and v down from the centre
    a, c = (cos / major) ** 2 + (sin / minor) ** 2, (sin / major) ** 2 + (cos / minor) ** 2
    b = cos * sin * (1 / major**2 - 1 / minor**2)
    reach = math.hypot(major * sin, minor * cos)
    top, bottom = math.ceil(y - reach - 0.5), math.floor(y + reach - 0.5)
    v = torch.arange(top, bottom + 1, dtype=torch.float64) + (0.5 - y)
    half = ((b * v) ** 2 - a * (c * v * v - 1)).clamp(min=0).sqrt() / a
    middle = x - 0.5 - b * v / a
    first, last = (middle - half).ceil().long(), (middle + half).floor().long()
    return top, torch.stack([first, torch.maximum(first, last + 1)], 1)


def rectangle_ellipse_iou(rectangles: Tensor, ellipses: Tensor) -> Tensor:
    """Area of intersection over area of union of each rectangle and each ellipse, in pixels.

    Args:
        rectangles: (N, 4) x, y, w, h; what lies from x up to, but not on, x + w, and likewise down.
        ellipses: (M, 5), see :func:`ellipse_rows`.

    Returns:
        (N, M) float64 on the CPU; 0 where neither has a pixel.

    Raises:
        ValueError: shapes that do not fit, a number that is not finite, or a radius that is not above 0.

    Source:
        FDDB, section 5 of the paper's file. FDDB's own tool rounds the corners, counts the pixels on the far sides,
        too, and leaves out what is beyond the picture.

    Example:
        >>> ellipses = torch.tensor([[2.0, 1.0, 0.0, 10.0, 5.0]])
        >>> rectangle_ellipse_iou(torch.tensor([[8.0, 4.0, 4.0, 2.0], [10.0, 4.0, 4.0, 2.0]]), ellipses)
        tensor([[1.0000],
                [0.3333]], dtype=torch.float64)
    """
    if rectangles.ndim != 2 or rectangles.shape[1] != 4 or not rectangles.isfinite().all():
        raise ValueError(f"rectangles must be (N, 4) finite numbers x, y, w, h, got {tuple(rectangles.shape)}")
    check_ellipses(ellipses)
    boxes = rectangles.detach().double().cpu()
    edges = (torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:].clamp(min=0)], 1) - 0.5).ceil()
    edges = edges.clamp(-_FAR, _FAR).long()
    left, up, right, down = edges.T
    area = (right - left) * (down - up)
    result = torch.zeros(len(boxes), len(ellipses), dtype=torch.float64)
    for m, ellipse in enumerate(ellipses):
        top, rows = ellipse_rows(ellipse)
        first, after = rows.T
        near = ((up < top + len(rows)) & (down > top)).nonzero().squeeze(1)
        row = torch.arange(top, top + len(rows))
        inside = (row >= up[near, None]) & (row < down[near, None])
        wide = torch.minimum(after, right[near, None]) - torch.maximum(first, left[near, None])
        shared = (wide.clamp(min=0) * inside).sum(1)
        union = area[near] + (after - first).sum() - shared
        result[near, m] = torch.where(union > 0, shared / union.clamp(min=1), 0.0).double()
    return result


def check_ellipses(ellipses: Tensor) -> None:
    """Refuse what are no ellipses.

    Args:
        ellipses: should be (M, 5) finite numbers with radii above 0.

    Raises:
        ValueError: they are not.

    Example:
        >>> check_ellipses(torch.tensor([[2.0, 0.0, 0.0, 10.0, 5.0]]))
        Traceback (most recent call last):
        ValueError: ellipses must have radii above 0, got [2.0, 0.0] in row 0
    """
    if ellipses.ndim != 2 or ellipses.shape[1] != 5 or not ellipses.isfinite().all():
        raise ValueError(
            "ellipses must be (M, 5) finite numbers: major radius, minor radius, angle, x and y of the centre, got "
            f"{tuple(ellipses.shape)}"
        )
    if (flat := (ellipses[:, :2] <= 0).any(1)).any():
        row = int(flat.nonzero()[0])
        raise ValueError(f"ellipses must have radii above 0, got {ellipses[row, :2].tolist()} in row {row}")
