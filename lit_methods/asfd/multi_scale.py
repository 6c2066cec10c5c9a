"""The sizes in which a picture is looked at for faces, as DSFD is tested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_PIXELS = (2**31 - 1) / 200  # of the largest view; what DSFD's network could hold


@dataclass(frozen=True)
class View:
    """A look at a picture.

    Args:
        scale: of its sides.
        mirrored: left and right change places.
        keep: which boxes count, in pixels of the picture, sides with 1 added: ``"large"`` ones have a longer side above
            30, ``"small"`` ones a shorter side below 100.
    """

    scale: float
    mirrored: bool = False
    keep: Literal["all", "large", "small"] = "all"

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the view of a picture of this height and width.

        Example:
            >>> View(0.25).size(481, 640)
            (120, 160)
        """
        return round(self.scale * height), round(self.scale * width)


def scales(height: int, width: int, *, max_scale: float = 3.0, max_pixels: float = MAX_PIXELS) -> list[View]:
    """The views of a picture that are searched for faces.

    With m, the largest scale allowed: the picture (or m where that is smaller) and its mirror image; two smaller views
    for large faces, two and more larger ones for small faces, and a pyramid of both kinds.

    Args:
        height: of the picture, pixels.
        width: of the picture.
        max_scale: m is not above it.
        max_pixels: nor has the view of scale m more pixels.

    Returns:
        The views in DSFD's order. Two may have the same scale; so their boxes count twice when votes are taken.

    Raises:
        ValueError: ``max_scale`` or ``max_pixels`` is not positive.

    Source:
        Section 5, "Test-time schemes" (DSFD). Ours: ``max_scale`` below 3, for less time, and ``max_pixels`` for less
        memory.

    Example:
        >>> [view.scale for view in scales(640, 640)]
        [1.0, 1.0, 0.5, 0.75, 2.0, 1.5, 3.0, 0.25, 1.25, 1.75, 2.25]
        >>> [(view.scale, view.keep) for view in scales(640, 640, max_scale=0.5)]
        [(0.5, 'all'), (0.5, 'all'), (0.25, 'large'), (0.375, 'large'), (0.25, 'large')]
    """
    for name, value in (("max_scale", max_scale), ("max_pixels", max_pixels)):
        if not value > 0:
            raise ValueError(f"{name}={value} must be positive")
    m = min(max_scale, (max_pixels / (height * width)) ** 0.5)
    main = min(m, 1.0)
    small = 0.5 if m >= 0.75 else 0.5 * m
    large = min(2.0, m) if m > 1 else (small + m) / 2
    enlarged = [large] + [1.5] * (m > 1.5)
    if m > 2:
        while (large := 2 * large) < m:
            enlarged.append(large)
        enlarged.append(m)
    return [
        View(main),
        View(main, mirrored=True),
        *(View(scale, keep="large") for scale in [small] + [0.75] * (m > 0.75)),
        *(View(scale, keep="small" if m > 1 else "large") for scale in enlarged),
        View(0.25, keep="large"),
        *(View(scale, keep="small") for scale in (1.25, 1.75, 2.25) if scale <= m),
    ]


def look(image: Tensor, view: View) -> Tensor:
    """A picture as a view shows it.

    Args:
        image: (3, H, W) in [0, 1].
        view: of it.

    Returns:
        (3, H', W') in [0, 1]; of another size than the picture it is resized bilinearly, with antialiasing.

    Example:
        >>> look(torch.rand(3, 128, 160), View(1.5, mirrored=True)).shape
        torch.Size([3, 192, 240])
    """
    size = view.size(*image.shape[1:])
    if size != tuple(image.shape[1:]):
        image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    return image.flip(2) if view.mirrored else image


def bring_back(boxes: Tensor, view: View, height: int, width: int) -> Tensor:
    """Boxes found in a view, where they are in the picture.

    Args:
        boxes: (k, 5) x1, y1, x2, y2, score in pixels of the view.
        view: of the picture.
        height: of the picture.
        width: of the picture.

    Returns:
        (k, 5) likewise, all of them.

    Example:
        >>> bring_back(torch.tensor([[0.0, 0, 32, 64, 0.5]]), View(0.5, mirrored=True), 256, 512).tolist()
        [[448.0, 0.0, 512.0, 128.0, 0.5]]
    """
    rows, columns = view.size(height, width)
    x1, y1, x2, y2, score = boxes.unbind(1)
    if view.mirrored:
        x1, x2 = columns - x2, columns - x1
    along, down = width / columns, height / rows
    return torch.stack([x1 * along, y1 * down, x2 * along, y2 * down, score], 1)


def that_count(boxes: Tensor, view: View) -> Tensor:
    """Those of the boxes of a view that count, by their size.

    Args:
        boxes: (k, 5) in pixels of the picture.
        view: in which they were found.

    Returns:
        (j, 5).

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 29, 29, 0.5], [0, 0, 29.5, 20, 0.5], [0, 0, 99, 150, 0.5]])
        >>> that_count(boxes, View(0.5, keep="large"))[:, 3], that_count(boxes, View(2, keep="small"))[:, 3]
        (tensor([ 20., 150.]), tensor([29., 20.]))
    """
    sides = boxes[:, 2:4] - boxes[:, :2] + 1
    if view.keep == "large":
        return boxes[sides.amax(1) > 30]
    return boxes[sides.amin(1) < 100] if view.keep == "small" else boxes
