"""How well sub-architectures know their own classes and how little they know others."""

import torch
from torch import Tensor
from torchmetrics import Metric


class Rate(Metric):
    """Part of what was asked that is true, in [0, 1]; 0 where nothing was asked.

    Example:
        >>> metric = Rate()
        >>> metric.update(torch.tensor([True, False]))
        >>> float(metric.compute())
        0.5
    """

    higher_is_better = None
    is_differentiable = False
    full_state_update = False
    hits: Tensor
    asked: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("hits", "asked"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, hit: Tensor) -> None:
        """Count answers.

        Args:
            hit: bool of any shape.
        """
        self.hits += hit.sum()
        self.asked += hit.numel()

    def compute(self) -> Tensor:
        """The rate."""
        return self.hits / self.asked.clamp(min=1)


class Selectivity(Metric):
    """How probable it is that an own image is recognised and another class's is not: ``own * (1 - other)``, in [0, 1].

    ``own`` is the accuracy of sub-architectures on images of their own class, ``other`` that on images of others. 1
    means that every class is recognised by its own sub-architecture and by none of the others.

    Source:
        ours, to choose a checkpoint by.

    Example:
        >>> metric = Selectivity()
        >>> metric.update(torch.tensor([True, True, False, True]), own=True)
        >>> metric.update(torch.tensor([False, True, False, False]), own=False)
        >>> float(metric.compute())
        0.5625
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    hits: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("hits", "images"):  # own, other
            self.add_state(name, torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, hit: Tensor, own: bool) -> None:
        """Count images.

        Args:
            hit: bool of any shape, whether an image was recognised.
            own: by the sub-architecture of its class; else by another one.
        """
        self.hits[1 - own] += hit.sum()
        self.images[1 - own] += hit.numel()

    def compute(self) -> Tensor:
        """The product; an accuracy without images counts as zero."""
        own, other = self.hits / self.images.clamp(min=1)
        return own * (1 - other)
