"""The points of the response map, and which of them SiamBAN learns from: target, background, and nothing between.

Everything is a batch on its device; nothing here waits for it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lit_methods.functional.suggestions import nearest

TARGET, BACKGROUND, IGNORED = 1, 0, -1


def point_grid(stride: int, size: int, center: float, device: torch.device | str | None = None) -> Tensor:
    """Where the points of the response map lie in the search crop.

    Args:
        stride: pixels between neighbours.
        size: points per side, n. An even number of them is not symmetric: there is one more before the centre.
        center: of the crop, pixels; the point ``n // 2`` lies there. 127 for a crop of 255, 0 for the tracker.
        device: of the grid.

    Returns:
        ``(2, n, n)`` float32, [0] = x, which grows along the last axis, [1] = y.

    Raises:
        ValueError: no point, or no distance between them.

    Source:
        Official code (the point generator of its head).

    Example:
        >>> point_grid(8, 3, 127)[:, 0].tolist()
        [[119.0, 127.0, 135.0], [119.0, 119.0, 119.0]]
    """
    if size < 1 or stride <= 0:
        raise ValueError(f"size={size} must be at least 1 and stride={stride} positive")
    line = center + stride * (torch.arange(size, dtype=torch.float32, device=device) - size // 2)
    return torch.stack([line.expand(size, size), line[:, None].expand(size, size)])


def ellipse_labels(boxes: Tensor, points: Tensor, negative: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Labels and regression targets of every point, by two ellipses around the box's centre.

    With d = (px - xc)^2 / (w/2)^2 + (py - yc)^2 / (h/2)^2, a point is the target where d < 1/4 (the ellipse with
    half-axes w/4 and h/4), background where d > 1, and ignored between.

    Args:
        boxes: ``(B, 4)`` xyxy in pixels of the search crop.
        points: ``(2, n, n)`` as ``point_grid`` gives them, [0] = x.
        negative: ``(B,)`` bool, pairs whose template and search crop show different objects; ``None`` is none of them.

    Returns:
        ``labels`` (B, n, n) int64, 1 target, 0 background, -1 ignored, before sampling; and ``deltas`` (B, 4, n, n),
        the distances l, t, r, b from each point to the box's sides, negative outside of the box; float64 for float64
        boxes, else float32. A negative pair has background inside the inner shape, nothing else, and deltas 0. A box
        without area has no target; one of NaN leaves all points ignored.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        SiamBAN's label assignment, as in the official code.

    Example:
        >>> labels, deltas = ellipse_labels(torch.tensor([[0.0, 0.0, 20.0, 20.0]]), point_grid(6, 3, 10))
        >>> labels.tolist()
        [[[-1, -1, -1], [-1, 1, -1], [-1, -1, -1]]]
        >>> deltas[0, :, 0, 2].tolist()
        [16.0, 4.0, 4.0, 16.0]
    """
    return assign_labels("ellipse", boxes, points, negative)


def rectangle_labels(boxes: Tensor, points: Tensor, negative: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same by two rectangles: target inside the box's half-size copy, background outside of the box.

    Args:
        boxes: as in ``ellipse_labels``.
        points: as there.
        negative: as there.

    Returns:
        As ``ellipse_labels``.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        SiamBAN, table 4; what its rectangles are is read off the paper's figure. Comparisons are strict.

    Example:
        >>> rectangle_labels(torch.tensor([[4.0, 0.0, 16.0, 20.0]]), point_grid(8, 3, 10))[0].tolist()
        [[[0, -1, 0], [0, 1, 0], [0, -1, 0]]]
    """
    return assign_labels("rectangle", boxes, points, negative)


def circle_labels(boxes: Tensor, points: Tensor, negative: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same by two circles: target closer than sqrt(w h)/4 to the centre, background farther than sqrt(w h)/2.

    Args:
        boxes: as in ``ellipse_labels``.
        points: as there.
        negative: as there.

    Returns:
        As ``ellipse_labels``.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        SiamBAN, table 4; the radii are read off the paper's figure. Ours: of a box more than four times as long as
        wide, the inner circle leaves the box; what lies outside is ignored, as no distance to a side can be negative.

    Example:
        >>> circle_labels(torch.tensor([[0.0, 0.0, 20.0, 20.0]]), point_grid(8, 3, 10))[0].tolist()
        [[[0, -1, 0], [-1, 1, -1], [0, -1, 0]]]
    """
    return assign_labels("circle", boxes, points, negative)


def assign_labels(shape: str, boxes: Tensor, points: Tensor, negative: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The labels of a shape given by its name.

    Args:
        shape: ``"ellipse"``, ``"rectangle"`` or ``"circle"``.
        boxes: ``(B, 4)`` xyxy in pixels of the search crop.
        points: ``(2, n, n)``, [0] = x.
        negative: ``(B,)`` bool or ``None``.

    Returns:
        ``labels`` (B, n, n) int64 and ``deltas`` (B, 4, n, n), as ``ellipse_labels``.

    Raises:
        ValueError: another shape, or tensors that do not fit.

    Source:
        SiamBAN's label assignment and table 4. Ours: a whole batch at once.

    Example:
        >>> boxes, points = torch.tensor([[0.0, 0.0, 20.0, 20.0]]), point_grid(8, 3, 10)
        >>> {shape: int((assign_labels(shape, boxes, points)[0] == 0).sum()) for shape in LABEL_SHAPES}
        {'ellipse': 4, 'rectangle': 0, 'circle': 4}
    """
    if shape not in _LEVELS:
        known = " or ".join(map(repr, LABEL_SHAPES))
        raise ValueError(f"shape={shape!r} is no label shape; take {known}{nearest(shape, LABEL_SHAPES)}")
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be (B, 4) x0, y0, x1, y1, got shape {tuple(boxes.shape)}")
    if points.ndim != 3 or len(points) != 2:
        raise ValueError(f"points must be (2, n, n) as point_grid gives them, got shape {tuple(points.shape)}")
    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    points = points.to(boxes.dtype)
    low, high = boxes[:, :2, None, None], boxes[:, 2:, None, None]
    deltas = torch.cat([points - low, high - points], 1)
    level = _LEVELS[shape](points - (low + high) / 2, (high - low) / 2)
    inner = (level < 0.25) & (deltas > 0).all(1)
    labels = torch.where(inner, TARGET, torch.where(level > 1, BACKGROUND, IGNORED))
    if negative is None:
        return labels, deltas
    if negative.shape != boxes.shape[:1] or negative.dtype != torch.bool:
        raise ValueError(
            f"negative must be ({len(boxes)},) bool, one per box, got {tuple(negative.shape)} {negative.dtype}"
        )
    labels = torch.where(negative[:, None, None], torch.where(inner, BACKGROUND, IGNORED), labels)
    return labels, torch.where(negative[:, None, None, None], 0, deltas)


@torch.no_grad()
def sample_labels(
    labels: Tensor,
    num_pos: int | Tensor = 16,
    num_neg: int | Tensor = 48,
    generator: torch.Generator | None = None,
    *,
    keys: Tensor | None = None,
) -> Tensor:
    """Keep so many target and background points of each image, drawn uniformly; the others become -1.

    Args:
        labels: ``(B, n, n)`` int64; not changed.
        num_pos: at most so many points with label 1 stay in an image; not negative, a number or ``(B,)`` of them.
        num_neg: the same for label 0. It does not grow where positives are few. The paper's negative pairs have 16.
        generator: on the device of ``labels``; ``None`` is torch's own.
        keys: random numbers ``(B, n, n)`` that decide instead of a generator: of a label, the points with the smallest
            stay. So the draw can be a function of the sample alone.

    Returns:
        ``(B, n, n)`` int64.

    Raises:
        ValueError: shapes that do not fit, a negative number, a generator of another device, a generator and keys.

    Source:
        SiamBAN: at most 16 positives and 48 negatives of an image, as in the official code, which draws with NumPy,
        image by image. Ours: one order at random per image serves both labels.

    Example:
        >>> labels = torch.tensor([[[1, 1, 1], [0, 0, 0], [0, -1, -1]]])
        >>> kept = sample_labels(labels, num_pos=2, num_neg=3)
        >>> [int((kept == label).sum()) for label in (1, 0, -1)]
        [2, 3, 4]
    """
    if labels.ndim != 3:
        raise ValueError(f"labels must be (B, n, n), got shape {tuple(labels.shape)}")
    if generator is not None and generator.device.type != labels.device.type:
        raise ValueError(
            f"generator is on {generator.device}, labels are on {labels.device}; make it with "
            f"torch.Generator({labels.device.type!r})"
        )
    if keys is not None and (generator is not None or keys.shape != labels.shape):
        raise ValueError(
            f"keys must be {tuple(labels.shape)}, one per label, and without a generator, got {tuple(keys.shape)} and "
            f"generator={generator}"
        )
    flat = labels.flatten(1)
    if keys is None:
        keys = torch.rand(flat.shape, generator=generator, device=flat.device)
    order = keys.flatten(1).argsort(dim=1, stable=True)
    shuffled = flat.gather(1, order)
    dropped = torch.zeros_like(shuffled, dtype=torch.bool)
    for label, name, most in ((TARGET, "num_pos", num_pos), (BACKGROUND, "num_neg", num_neg)):
        ours = shuffled == label
        dropped |= ours & (ours.cumsum(1) > _budget(name, most, labels))
    return flat.scatter(1, order, shuffled.masked_fill(dropped, IGNORED)).view_as(labels)


def _budget(name: str, most: int | Tensor, labels: Tensor) -> int | Tensor:
    """What a count is compared with: a number, or one per row."""
    if isinstance(most, Tensor):
        if most.shape not in ((), labels.shape[:1]):
            raise ValueError(f"{name} must be a number or ({len(labels)},), one per image, got {tuple(most.shape)}")
        return most.to(labels.device).reshape(-1, 1)
    if most < 0:
        raise ValueError(f"{name}={most} must not be negative; 0 keeps none")
    return most


# How far out a point lies, squared: 1 on the outer outline, 1/4 on the inner one, which is half as wide.


def _ellipse(offset: Tensor, half: Tensor) -> Tensor:
    return (offset.square() / half.square()).sum(1)


def _rectangle(offset: Tensor, half: Tensor) -> Tensor:
    return (offset.square() / half.square()).amax(1)


def _circle(offset: Tensor, half: Tensor) -> Tensor:
    return offset.square().sum(1) / half.prod(1)


_LEVELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ellipse": _ellipse,
    "rectangle": _rectangle,
    "circle": _circle,
}
LABEL_SHAPES = tuple(_LEVELS)
