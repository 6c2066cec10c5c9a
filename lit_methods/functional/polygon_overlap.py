"""Overlap of four-sided regions as VOT measures it: both are drawn on a grid of pixels, which are counted."""

from collections.abc import Sequence

import torch
from torch import Tensor

CHUNK = 1 << 14  # rows of pixels that exist at a time; bounds the memory and changes no value
NOTHING = torch.inf  # in place of the crossing of an edge that does not reach a row


@torch.no_grad()
def vot_overlap(
    polygons_a: Tensor, polygons_b: Tensor, bounds: Sequence[float] | Tensor | None = None, *, chunk: int = CHUNK
) -> Tensor:
    """Intersection over union of polygons on the pixel grid, row by row of the inputs.

    No pixel is stored: in each row of the grid a polygon covers at most two runs of pixels, whose ends are enough.

    Args:
        polygons_a: (n, 8) x1, y1, ..., x4, y4 in pixels, any order around the region, any real type and device; cast to
            float32 as the reference does.
        polygons_b: (n, 8).
        bounds: (W, H), which cut the grid to 0..W and 0..H; ``None`` does not.
        chunk: rows of pixels, over all polygons, that are looked at together.

    Returns:
        (n,) float64 in [0, 1] on the device of ``polygons_a`` (on the CPU for Apple's GPUs, which have no float64). NaN
        where a coordinate is not finite; 0 where neither polygon covers a pixel.

    Raises:
        ValueError: shapes that do not fit, or ``bounds`` that are not two numbers above 0.

    Source:
        region.c of the VOT toolkit, as the official code has it: vertices are rounded, halves away from zero; the
        crossing of an edge with a row is truncated; a row that only touches a corner is not drawn. Ours: 0 where it
        divides 0 by 0, for two regions without a pixel.

    Example:
        >>> a = torch.tensor([[0.0, 0, 3, 0, 3, 3, 0, 3]])  # four by four pixels, since both ends are drawn
        >>> vot_overlap(a, a + 2)
        tensor([0.1429], dtype=torch.float64)
        >>> vot_overlap(a, a + 2, bounds=(4, 4))
        tensor([0.1905], dtype=torch.float64)
    """
    for name, polygons in (("polygons_a", polygons_a), ("polygons_b", polygons_b)):
        if polygons.ndim != 2 or polygons.shape != (len(polygons_a), 8):
            raise ValueError(
                f"{name} must be ({len(polygons_a)}, 8), four corners x, y each, as many as polygons_a, got "
                f"{tuple(polygons.shape)}"
            )
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1, the rows of pixels looked at together")
    place = torch.device("cpu") if polygons_a.device.type == "mps" else polygons_a.device
    corners = torch.stack([polygons.to(place, torch.float32).view(-1, 4, 2) for polygons in (polygons_a, polygons_b)])
    known = corners.isfinite().flatten(2).all(2).all(0)
    corners = corners.where(known[None, :, None, None], 0)

    low, high = corners.amin(2).floor(), corners.amax(2).ceil()  # (2, n, 2): of both, x and y
    if bounds is not None:
        low, high = low.clamp(min=0), torch.minimum(high, torch.tensor(checked_size("bounds", bounds), device=place))
    meet = (torch.minimum(*high) > torch.maximum(*low)).all(1) & (high > low).all(2).all(0)
    origin = torch.minimum(*low)
    size = (torch.maximum(*high) - origin).long() + 1  # of the grid, columns and rows
    corners = _rounded(corners - origin[None, :, None])

    frames = meet.nonzero().squeeze(1)
    overlap = torch.zeros(len(corners[0]), dtype=torch.float64, device=place)
    overlap[frames] = _overlap(corners[:, frames].double(), size[frames], chunk)
    return overlap.masked_fill(~known, torch.nan)


def checked_size(name: str, size: Sequence[float] | Tensor) -> tuple[float, float]:
    """Width and height as two numbers.

    Args:
        name: of the argument, for the message.
        size: (W, H).

    Returns:
        W and H.

    Raises:
        ValueError: not two finite numbers above 0.

    Example:
        >>> checked_size("bounds", torch.tensor([320, 240]))
        (320.0, 240.0)
    """
    values = size.tolist() if isinstance(size, Tensor) else list(size)
    if not isinstance(values, list) or len(values) != 2 or not all(0 < value < torch.inf for value in values):
        raise ValueError(f"{name} must be (W, H), the image's width and height above 0, got {values}")
    return float(values[0]), float(values[1])


def _rounded(values: Tensor) -> Tensor:
    """To whole numbers, halves away from zero; exact, also just below a half."""
    whole = values.trunc()
    return whole + torch.where((values - whole).abs() >= 0.5, values.sign(), 0)


def _overlap(corners: Tensor, size: Tensor, chunk: int) -> Tensor:
    """Overlaps, (m,) float64.

    Args:
        corners: (2, m, 4, 2) float64 whole numbers, x and y on each pair's own grid.
        size: (m, 2) int64, columns and rows of these grids.
        chunk: rows at a time.
    """
    until = size[:, 1].cumsum(0)  # the rows of all grids stand one after the other
    both, either = torch.zeros(2, len(size), dtype=torch.int64, device=size.device)
    edges = torch.stack([*corners.unbind(-1), *corners.roll(1, 2).unbind(-1)])  # (4, 2, m, 4): xi, yi, xj, yj
    edges = edges.permute(0, 3, 1, 2).contiguous()  # (4, edges, 2, m)
    for first in range(0, int(until[-1]) if len(until) else 0, chunk):
        row = torch.arange(first, min(first + chunk, int(until[-1])), device=size.device)
        frame = torch.searchsorted(until, row, right=True)
        row = row - (until - size[:, 1])[frame]
        low, high = _runs(edges.gather(3, frame.expand(4, 4, 2, -1)), row.double(), (size[frame, 0] - 1).double())
        areas = _length(low, high).sum(0)  # (2, rows)
        shared = _length(torch.maximum(low[:, None, 0], low[:, 1]), torch.minimum(high[:, None, 0], high[:, 1]))
        shared = shared.sum((0, 1))
        both.index_add_(0, frame, shared.long())
        either.index_add_(0, frame, (areas.sum(0) - shared).long())
    return both.double() / either.clamp(min=1)


def _runs(edges: Tensor, row: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """First and last pixels of the two runs that both polygons cover in each row, (2 runs, 2 polygons, rows) each.

    A run that does not exist has its end before its start.

    Args:
        edges: (4, 4, 2, rows): xi, yi, xj, yj of the four edges of both.
        row: (rows,).
        last: (rows,), the last column of the grid.
    """
    xi, yi, xj, yj = edges
    crosses = (torch.minimum(yi, yj) <= row) & (row <= torch.maximum(yi, yj)) & (yi != yj)
    x = (xi + (row - yi) / (yj - yi) * (xj - xi)).trunc()
    a, b, c, d = _sorted(x.where(crosses, NOTHING))
    # The first of two equal crossings is dropped, from left to right; what is left are pairs.
    new = a != b
    starts = torch.stack([a.where(new, b), c + (b == c)])  # the runs share no pixel
    ends = torch.stack([b.where(new, c.where(b != c, d)), d])
    exists = torch.stack([(starts[0] != ends[0]) & (ends[0] != NOTHING), new & (c != d) & (d != NOTHING)])
    return starts.clamp(min=0).where(exists, 0), torch.minimum(ends, last).where(exists, -1)


def _sorted(values: Tensor) -> list[Tensor]:
    """Four tensors, elementwise in ascending order."""
    a, b, c, d = values
    a, b = torch.minimum(a, b), torch.maximum(a, b)
    c, d = torch.minimum(c, d), torch.maximum(c, d)
    a, c = torch.minimum(a, c), torch.maximum(a, c)
    b, d = torch.minimum(b, d), torch.maximum(b, d)
    return [a, torch.minimum(b, c), torch.maximum(b, c), d]


def _length(low: Tensor, high: Tensor) -> Tensor:
    """Pixels from ``low`` to ``high``, none where they end before they start."""
    return (high - low + 1).clamp(min=0)
