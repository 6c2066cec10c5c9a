"""The 28 edges of the two cells, their order, and an architecture as 28 numbers.

An edge reads one state of its cell. States 0 and 1 are the outputs of the cell before last and of the last one, state
``k + 2`` is node ``k``; node ``k`` may read the states 0 to ``k + 1``. So the four nodes of a cell have 2, 3, 4 and 5
edges. The order is that of *sample28*: the normal cell before the reduction cell, node by node, source by source.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PRIMITIVES = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "none",
)
"""The operations by their numbers; the last one means that the edge is absent."""

NONE = PRIMITIVES.index("none")
CELLS = ("normal", "reduce")
NODES = 4

EDGES = tuple((cell, node, source) for cell in CELLS for node in range(NODES) for source in range(node + 2))
"""Cell, node and source of each edge."""

NODE_EDGES = tuple(
    slice(start, start + n) for start, n in zip((0, 2, 5, 9, 14, 16, 19, 23), (2, 3, 4, 5) * 2, strict=True)
)
"""Where the edges of each of the eight nodes stand, those of the normal cell first."""

Array = Tensor | NDArray[Any] | Sequence[Any]


def as_sample(sample: Array, operations: int = len(PRIMITIVES), name: str = "sample") -> Tensor:
    """An architecture as 28 checked numbers.

    Args:
        sample: 28 whole numbers, one per edge, as tensor, array or list.
        operations: numbers below this are allowed; 8 admits absent edges, 7 does not.
        name: what an error calls it.

    Returns:
        ``(28,)`` int64 on the CPU, a copy.

    Raises:
        ValueError: the shape or a number is wrong.

    Example:
        >>> as_sample([7] * 28).shape
        torch.Size([28])
    """
    try:
        found = sample.detach().cpu() if isinstance(sample, Tensor) else torch.as_tensor(np.asarray(sample))
    except (TypeError, ValueError, RuntimeError):  # ragged lists, words
        found = torch.zeros(0)
    whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    if tuple(found.shape) != (len(EDGES),) or not whole:
        raise ValueError(
            f"{name} must be 28 whole numbers, one operation per edge in the order of EDGES, "
            f"got shape {tuple(found.shape)} of {found.dtype}"
        )
    if wrong := [int(value) for value in found if not 0 <= int(value) < operations]:
        absent = "7 = edge absent" if operations > NONE else "every edge has an operation here"
        raise ValueError(f"{name} has the operation {wrong[0]}; give numbers from 0 to {operations - 1} ({absent})")
    return found.to(torch.int64, copy=True)


def as_float64(value: Array, shape: tuple[int | None, ...], name: str) -> NDArray[np.float64]:
    """Numbers of a known shape, none of them NaN, as float64 on the CPU.

    Args:
        value: tensor, array or lists.
        shape: what it must have; ``None`` is any length.
        name: what an error calls it.

    Returns:
        A NumPy array, whose first of equal maxima is the one of the lowest index (torch promises none).

    Raises:
        ValueError: another shape, no numbers, or a NaN.

    Example:
        >>> as_float64([1, 2], (None,), "rewards")
        array([1., 2.])
    """
    try:
        array = value.detach().cpu().double().numpy() if isinstance(value, Tensor) else np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers of shape {_shape(shape)}") from error
    if array.ndim != len(shape) or any(want not in (None, n) for want, n in zip(shape, array.shape, strict=True)):
        raise ValueError(f"{name} must have shape {_shape(shape)}, got {array.shape}")
    if np.isnan(array).any():
        raise ValueError(f"{name} has NaN among its values; leave out what diverged")
    return array


def _shape(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("T" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
