"""Bringing faces to one place and size: a similarity transform of five landmarks."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

# eyes, nose, corners of the mouth (the left ones of the picture first): x and y in a picture of 112 x 112 pixels
REFERENCE_POINTS = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
REFERENCE_SIZE = 112
_LEAST_SPREAD = 1e-6  # of points around their mean, in pixels, below which no angle is defined


def similarity_transform(points: ArrayLike, reference: ArrayLike = REFERENCE_POINTS) -> NDArray[np.float64]:
    """The rotation, scale and shift that bring points as near as possible to others; never a reflection.

    Args:
        points: ``(n, 2)`` x and y, n at least 2.
        reference: ``(n, 2)`` where they should be.

    Returns:
        ``(2, 3)`` float64: ``matrix @ (x, y, 1)`` is the new place.

    Raises:
        ValueError: the shapes differ, a number is not finite, or all points coincide, before or after.

    Source:
        Umeyama 1991. In the plane a rotation with scale is multiplication by a complex number, so that his
        least-squares solution is a quotient and needs no singular values.

    Example:
        >>> similarity_transform([(0, 0), (1, 0)], [(5, 5), (5, 7)]).round(6) + 0.0
        array([[ 0., -2.,  5.],
               [ 2.,  0.,  5.]])
    """
    x, y = _complex(points, "points"), _complex(reference, "reference")
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"points and reference must be equally many, at least 2, got {len(x)} and {len(y)}")
    dx, dy = x - x.mean(), y - y.mean()
    spread = np.sqrt((abs(dx) ** 2).mean())
    if spread < _LEAST_SPREAD:
        raise ValueError(f"points coincide at ({x.mean().real:g}, {x.mean().imag:g}); at least two must differ")
    turn = (dx.conj() * dy).sum() / (abs(dx) ** 2).sum()
    if abs(turn) * spread < _LEAST_SPREAD:
        raise ValueError("no similarity brings points near reference: they are too unlike, or reference coincides")
    shift = y.mean() - turn * x.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def align_face(image: NDArray[np.uint8], points: ArrayLike, size: int = REFERENCE_SIZE) -> NDArray[np.uint8]:
    """Cut a face out of a picture so that its landmarks come to the reference points.

    Args:
        image: ``(H, W, 3)`` uint8.
        points: ``(5, 2)`` x and y in pixels, in the order of ``REFERENCE_POINTS``; whole numbers are centres of pixels.
        size: side of the result; the reference points are multiplied by ``size / 112``.

    Returns:
        ``(size, size, 3)`` uint8, bilinear, 0 outside of the picture.

    Raises:
        ValueError: the shape or type of ``image`` or ``points`` is another, or the points define no transform.

    Source:
        The official code, by OpenCV's ``warpAffine``, which rounds places to 1/32 of a pixel; this does not.

    Example:
        >>> image = np.full((112, 112, 3), 7, np.uint8)
        >>> aligned = align_face(image, REFERENCE_POINTS)
        >>> aligned.shape, bool((aligned == image).all())
        ((112, 112, 3), True)
    """
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    if np.shape(points) != REFERENCE_POINTS.shape:
        raise ValueError(f"points must be (5, 2), x and y of eyes, nose and mouth, got shape {np.shape(points)}")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    matrix = similarity_transform(points, REFERENCE_POINTS * (size / REFERENCE_SIZE))
    rows, columns = np.mgrid[:size, :size]
    back = np.linalg.inv(matrix[:, :2])
    places = np.stack([columns, rows], -1).reshape(-1, 2) - matrix[:, 2]
    return _bilinear(image, places @ back.T).reshape(size, size, 3)


def five_points(points68: ArrayLike) -> NDArray[np.float64]:
    """The five landmarks of ``REFERENCE_POINTS`` out of the usual 68.

    Args:
        points68: ``(68, 2)`` x and y.

    Returns:
        ``(5, 2)`` float64: each eye is the middle of its corners.

    Raises:
        ValueError: ``points68`` has another shape.

    Source:
        The official code: corners 36, 39 and 42, 45, tip of the nose 30, corners of the mouth 48 and 54, from 0.

    Example:
        >>> five_points(np.arange(136).reshape(68, 2)).tolist()
        [[75.0, 76.0], [87.0, 88.0], [60.0, 61.0], [96.0, 97.0], [108.0, 109.0]]
    """
    points = np.asarray(points68, np.float64)
    if points.shape != (68, 2):
        raise ValueError(f"points68 must be (68, 2), got shape {points.shape}")
    return np.stack([points[[36, 39]].mean(0), points[[42, 45]].mean(0), points[30], points[48], points[54]])


def _complex(points: ArrayLike, name: str) -> NDArray[np.complex128]:
    table = np.asarray(points, np.float64)
    if table.ndim != 2 or table.shape[1] != 2:
        raise ValueError(f"{name} must be (n, 2), x and y, got shape {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError(f"{name} must be finite, got {table.tolist()}")
    return table[:, 0] + 1j * table[:, 1]


def _bilinear(image: NDArray[np.uint8], places: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Colours (n, 3) at places (n, 2), x and y; a neighbour outside of the picture is black."""
    height, width = image.shape[:2]
    places = np.clip(places, -2, [width + 1, height + 1])  # further out is as black, and fits an integer
    corner = np.floor(places).astype(np.int64)
    x, y = (places - corner).T
    total = np.zeros((len(places), 3))
    for right, weight_x in ((0, 1 - x), (1, x)):
        for down, weight_y in ((0, 1 - y), (1, y)):
            column, row = corner[:, 0] + right, corner[:, 1] + down
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            colours = image[row.clip(0, height - 1), column.clip(0, width - 1)]
            total += (weight_x * weight_y * inside)[:, None] * colours
    return np.rint(total).astype(np.uint8)
