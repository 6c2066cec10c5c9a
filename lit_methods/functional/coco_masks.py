"""Masks by COCO's rules: filled polygons, and run-length codes as lists of counts or as compressed strings."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_SCALE = 5  # the rule rounds corners to fifths of a pixel
_FARTHEST = 1_000_000  # of a corner, in pixels: whole numbers and their products stay exact up to here
_BITS = 5  # of a count in a character of a compressed string
_GROUPS = 7  # characters are enough for a count of 34 bits


def polygons_to_mask(polygons: Sequence[ArrayLike], height: int, width: int) -> NDArray[np.uint8]:
    """Fill polygons by COCO's rule, and count how many of them cover each pixel.

    A polygon that crosses itself is filled by the even-odd rule; one of fewer than three corners covers nothing.

    Args:
        polygons: each a flat list x, y, x, y, ... in pixels, where (0, 0) is the corner of the picture's first pixel.
            They may reach beyond the picture; the last corner is joined to the first.
        height: of the picture.
        width: of the picture.

    Returns:
        ``(height, width)`` uint8: 0 where no polygon is, 1 where one is, and so on up to 255.

    Raises:
        ValueError: a polygon is no list of pairs of finite numbers, or reaches beyond 1,000,000 pixels; a size below 1.

    Source:
        Section 5.1; equal to ``rleFrPoly`` of the COCO API. That one walks along every edge in steps of a fifth of a
        pixel, here only the steps that cross the middle of a column are computed, with the same rounding. Unlike
        ``frPyObjects`` of pycocotools, four numbers are never taken for a box.

    Example:
        >>> polygons_to_mask([[1, 0, 3, 0, 3, 2, 1, 2], [0, 1, 4, 1, 4, 2, 0, 2]], height=3, width=4)
        array([[0, 1, 1, 0],
               [1, 2, 2, 1],
               [0, 0, 0, 0]], dtype=uint8)
    """
    _check_size(height, width)
    mask = np.zeros((height, width), np.uint8)
    corners = [_corners(polygon, number) for number, polygon in enumerate(polygons)]
    if not corners:
        return mask
    column, row, owner = _crossings(corners, width)
    if not len(column):
        return mask
    row = np.clip(-((2 - row) // _SCALE), 0, height)  # the middle of a pixel is at 2 fifths
    first, last = column.min(), column.max() + 1
    order = np.lexsort((row, column, owner))
    place = ((column - first) * height + row)[order]
    change = np.ones(len(place), np.int64)
    change[1::2] = -1  # in each column a polygon is entered and left in turns
    order = np.argsort(place, kind="stable")
    covered = np.concatenate([[0], np.cumsum(change[order])]).clip(0, 255).astype(np.uint8)
    runs = np.diff(place[order], prepend=0, append=height * (last - first))
    mask[:, first:last] = np.repeat(covered, runs).reshape(last - first, height).T
    return mask


def rle_to_mask(counts: Sequence[int] | str | bytes, height: int, width: int) -> NDArray[np.uint8]:
    """Decode a run-length code.

    Args:
        counts: lengths of runs of background and foreground in turns, down the columns from the left, background
            first; or these as COCO's compressed string.
        height: of the picture.
        width: of the picture.

    Returns:
        ``(height, width)`` uint8, 0 or 1.

    Raises:
        ValueError: counts that are no whole numbers or negative, that do not add up to ``height * width``, or a string
            that is no such code; a size below 1.

    Source:
        Section 5.1, ``rleDecode`` and ``rleFrString`` of the COCO API, which trust the counts.

    Example:
        >>> rle_to_mask([1, 2, 3], height=2, width=3).tolist(), rle_to_mask("123", height=2, width=3).tolist()
        ([[0, 1, 0], [1, 0, 0]], [[0, 1, 0], [1, 0, 0]])
    """
    _check_size(height, width)
    runs = _runs(counts, height, width)
    values = np.zeros(len(runs), np.uint8)
    values[1::2] = 1
    return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)


def mask_to_rle(mask: NDArray[Any]) -> list[int]:
    """Encode a mask as run lengths.

    Args:
        mask: ``(h, w)``; what is not 0 is foreground.

    Returns:
        Lengths of runs of background and foreground in turns, down the columns, background first, perhaps with 0.

    Raises:
        ValueError: the mask is not 2-D.

    Source:
        Section 5.1; ``rleEncode`` of the COCO API.

    Example:
        >>> mask_to_rle(np.array([[0, 1, 0], [1, 0, 0]])), mask_to_rle(np.ones((2, 2)))
        ([1, 2, 3], [0, 4])
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"mask must be (h, w), got shape {mask.shape}")
    flat = (mask != 0).ravel(order="F")
    if not flat.size:
        return [0]
    switches = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(switches, prepend=0, append=flat.size).tolist()
    return [0, *runs] if flat[0] else runs


def compressed_rle(mask: NDArray[Any]) -> str:
    """Encode a mask as COCO's compressed string.

    Args:
        mask: ``(h, w)``; what is not 0 is foreground.

    Returns:
        The ``counts`` of a COCO file, beside which belongs ``size``, h and w.

    Raises:
        ValueError: the mask is not 2-D.

    Source:
        Section 5.1; ``rleToString`` of the COCO API.

    Example:
        >>> compressed_rle(np.array([[0, 1, 0], [1, 0, 0]]))
        '123'
    """
    numbers = np.array(mask_to_rle(mask), np.int64)
    numbers[3:] -= numbers[1:-2].copy()
    shifts = _BITS * np.arange(_GROUPS)
    groups = numbers[:, None] >> shifts & 31
    highest = 1 << (shifts + _BITS - 1)  # a number takes as many groups as leave room for its sign
    used = ((numbers[:, None] < -highest) | (numbers[:, None] >= highest)).sum(1)
    groups += 32 * (np.arange(_GROUPS) < used[:, None])
    return (groups + 48)[np.arange(_GROUPS) <= used[:, None]].astype(np.uint8).tobytes().decode("ascii")


def segmentation_to_mask(segmentation: Any, height: int, width: int) -> NDArray[np.uint8]:
    """The mask of an annotation, whichever form its segmentation has.

    Args:
        segmentation: a list of polygons, or a run-length code ``{"size": [h, w], "counts": counts}``.
        height: of the picture.
        width: of the picture.

    Returns:
        ``(height, width)`` uint8, 0 or 1: the union of the polygons.

    Raises:
        ValueError: it has another form, or is that of a picture of another size.

    Example:
        >>> segmentation_to_mask([[0, 0, 2, 0, 2, 1, 0, 1]], height=2, width=3).tolist()
        [[1, 1, 0], [0, 0, 0]]
        >>> segmentation_to_mask({"size": [2, 3], "counts": "123"}, height=2, width=3).tolist()
        [[0, 1, 0], [1, 0, 0]]
    """
    if isinstance(segmentation, Mapping):
        return rle_to_mask(_counts_of(segmentation, height, width), height, width)
    mask = polygons_to_mask(_polygons_of(segmentation), height, width)
    return np.minimum(mask, 1, out=mask)


def check_segmentation(segmentation: Any, height: int, width: int) -> None:
    """Refuse a segmentation that marks nothing, or cannot be read, without filling it.

    Args:
        segmentation: a list of polygons or a run-length code, as above.
        height: of the picture.
        width: of the picture.

    Raises:
        ValueError: no polygon has three corners, a run-length code is all background, or what the functions above
            refuse.

    Example:
        >>> check_segmentation([[0, 0, 2, 0, 2, 1]], height=2, width=3)
        >>> check_segmentation([[0, 0, 2, 0]], height=2, width=3)
        Traceback (most recent call last):
        ValueError: segmentation has 1 polygon, but none with three corners
    """
    _check_size(height, width)
    if isinstance(segmentation, Mapping):
        runs = _runs(_counts_of(segmentation, height, width), height, width)
        if not runs[1::2].any():
            raise ValueError("segmentation is a run-length code that is all background")
        return
    corners = [_corners(polygon, number) for number, polygon in enumerate(_polygons_of(segmentation))]
    if not corners:
        raise ValueError("segmentation is empty")
    if all(len(points) < 3 for points in corners):
        polygons = "1 polygon" if len(corners) == 1 else f"{len(corners)} polygons"
        raise ValueError(f"segmentation has {polygons}, but none with three corners")


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"height={height} and width={width} of a mask must be 1 or more")


def _polygons_of(segmentation: Any) -> Sequence[ArrayLike]:
    if isinstance(segmentation, str | bytes) or not isinstance(segmentation, Sequence):
        kind = type(segmentation).__name__
        raise ValueError(f"segmentation must be a list of polygons or a run-length code with size, counts, got {kind}")
    return segmentation


def _counts_of(code: Mapping[str, Any], height: int, width: int) -> Any:
    """The counts of a run-length code whose size is right."""
    if missing := {"size", "counts"} - set(code):
        raise ValueError(f"segmentation is a run-length code without {' and '.join(sorted(missing))}")
    size = code["size"]
    if not isinstance(size, Sequence) or list(size) != [height, width]:
        raise ValueError(f"segmentation is of height and width {size}, but its picture is of {[height, width]}")
    return code["counts"]


def _corners(polygon: ArrayLike, number: int) -> NDArray[np.int64]:
    """The corners of a polygon in fifths of a pixel, ``(n, 2)``."""
    try:
        flat = np.asarray(polygon)
    except ValueError:  # lists of several lengths
        flat = np.empty(0, object)
    if flat.ndim != 1 or flat.dtype.kind not in "iuf":
        raise ValueError(f"polygon {number} must be a flat list of numbers x, y, x, y, ...")
    if len(flat) % 2:
        raise ValueError(f"polygon {number} must be pairs of x and y, but has {len(flat)} numbers")
    if not (np.abs(flat, dtype=np.float64) <= _FARTHEST).all():
        raise ValueError(f"polygon {number} has a coordinate that is not finite, or is beyond {_FARTHEST:,} pixels")
    return (_SCALE * flat.astype(np.float64) + 0.5).astype(np.int64).reshape(-1, 2)  # towards 0, as in C


def _crossings(
    polygons: list[NDArray[np.int64]], width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Where outlines cross the middles of columns: column, row in fifths of a pixel, number of the polygon.

    The middle of column q lies between the fifths c = 5q + 2 and c + 1. On an edge that is not steep, x goes through
    both, and the row is the smaller of its rounded y; on a steep one, y goes in steps and x is rounded, and the row is
    that of the step just before or after the crossing, whichever is smaller.
    """
    starts = np.concatenate(polygons)
    ends = np.concatenate([np.roll(points, -1, axis=0) for points in polygons])
    numbers = np.repeat(np.arange(len(polygons)), [len(points) for points in polygons])
    length = np.abs(ends - starts)
    steep = length[:, 0] < length[:, 1]
    flip = np.where(steep, starts[:, 1] > ends[:, 1], starts[:, 0] > ends[:, 0])  # each edge from its smaller end
    starts, ends = np.where(flip[:, None], ends, starts), np.where(flip[:, None], starts, ends)
    low, high = np.minimum(starts[:, 0], ends[:, 0]), np.maximum(starts[:, 0], ends[:, 0])
    first = np.maximum(-((2 - low) // _SCALE), 0)
    count = np.maximum(np.minimum((high - 3) // _SCALE, width - 1) - first + 1, 0)
    edge = np.repeat(np.arange(len(count)), count)
    column = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count - first, count)
    (x0, y0), (dx, dy) = starts[edge].T, (ends - starts)[edge].T
    steep = steep[edge]
    c = _SCALE * column + 2
    with np.errstate(divide="ignore", invalid="ignore"):  # the other kind of edge
        slope = np.where(steep, dx / dy, dy / dx)
    step = np.where(steep, np.abs(2 * c + 1 - 2 * x0) * dy // np.maximum(2 * np.abs(dx), 1), c - x0)
    # A step that ends exactly between c and c + 1 falls to one of them as floating-point numbers have it.
    beyond = ((x0 + slope * step + 0.5).astype(np.int64) > c) == (dx > 0)
    rows = [(y0 + slope * (step + more) + 0.5).astype(np.int64) for more in (0, 1)]
    return column, np.where(steep, y0 + step - beyond, np.minimum(*rows)), numbers[edge]


def _runs(counts: Any, height: int, width: int) -> NDArray[np.int64]:
    """Checked run lengths."""
    if isinstance(counts, str | bytes):
        runs = _decompress(counts)
    else:
        try:
            runs = np.asarray(counts)
        except ValueError:
            runs = np.empty(0, object)
        if runs.ndim != 1 or runs.dtype.kind not in "iu":
            raise ValueError("counts of a run-length code must be whole numbers, a string or bytes")
    if (runs < 0).any() or (runs > height * width).any() or runs.sum() != height * width:
        what = f"add up to {runs.sum()}" if (runs >= 0).all() else "are partly negative"
        raise ValueError(
            f"counts of a run-length code {what}, but the runs of a picture of height {height} and width {width} are "
            f"{height * width} pixels"
        )
    return runs.astype(np.int64)


def _decompress(text: str | bytes) -> NDArray[np.int64]:
    code = text.encode("utf-8") if isinstance(text, str) else text
    groups = np.frombuffer(code, np.uint8).astype(np.int64) - 48
    if not len(groups) or (groups < 0).any() or (groups > 63).any() or groups[-1] & 32:
        raise ValueError("counts is no compressed run-length code of COCO")
    ends = np.flatnonzero(groups & 32 == 0)
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > _GROUPS:
        raise ValueError("counts is no compressed run-length code of COCO: a number in it is too long")
    position = np.arange(len(groups)) - np.repeat(ends + 1 - lengths, lengths)
    numbers = np.add.reduceat((groups & 31) << _BITS * position, ends + 1 - lengths)
    numbers -= np.where(groups[ends] & 16, 1 << _BITS * lengths, 0)  # the last group has the sign
    for start in (1, 2):  # from the fourth on, a number is what is added to the last but one
        numbers[start::2] = np.cumsum(numbers[start::2])
    return numbers
