"""Polygons of data sets that have them, and the upright boxes that trackers start from."""

import numpy as np
import torch
from numpy.typing import NDArray

from lit_methods.functional.regions import region_to_box


def corners(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Annotation as polygons.

    Args:
        rows: ``(n, 8)`` polygons, given back, or ``(n, 4)`` x, y, w, h.

    Returns:
        ``(n, 8)`` x, y of four corners; those of a box are its outer pixels, x + w - 1 and y + h - 1.

    Source:
        The official code's evaluation on VOT, recalled.

    Example:
        >>> corners(np.array([[10.0, 20, 5, 3]])).tolist()
        [[10.0, 20.0, 10.0, 22.0, 14.0, 22.0, 14.0, 20.0]]
    """
    if rows.shape[1] == 8:
        return rows
    x, y, w, h = rows.T
    right, bottom = x + w - 1, y + h - 1
    return np.stack([x, y, x, bottom, right, bottom, right, y], axis=1)


def boxes_of(polygons: NDArray[np.float64]) -> NDArray[np.float64]:
    """Upright boxes of polygons, x, y, w, h, with the centre and the size of the official code.

    Their centre is x + w / 2, y + h / 2, as for annotation of four numbers.

    Args:
        polygons: ``(n, 8)``.

    Source:
        Section 5, :func:`~lit_methods.functional.regions.region_to_box`.

    Example:
        >>> boxes_of(corners(np.array([[10.0, 20, 5, 3]]))).tolist()
        [[9.5, 19.5, 5.0, 3.0]]
    """
    boxes = region_to_box(torch.from_numpy(polygons)).numpy()  # cx, cy, w, h
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)
