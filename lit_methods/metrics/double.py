"""What metrics have in common whose states are float64."""

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from lit_methods.metrics.attack import ExactMetric


class DoubleMetric(ExactMetric):
    """Base of metrics with float64 states, which stay where they are if a device has no such type (Apple's GPUs).

    Args:
        kwargs: of ``torchmetrics.Metric``.
    """

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = "") -> Self:
        """Move the states, unless to a device without float64; ``to(torch.bfloat16)`` does not round them either."""
        if fn(torch.zeros(1, device=self.device)).device.type == "mps":
            return self

        def move(values: Tensor) -> Tensor:
            moved = fn(values)
            return moved if moved.dtype == values.dtype else values.to(moved.device)

        return super()._apply(move, exclude_state)  # type: ignore[return-value]
