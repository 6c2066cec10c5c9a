"""How well sub-architectures know their own classes and how little they know others."""

import torch
from torch import Tensor
from torchmetrics import Metric


class _Counts(Metric):
    """How many of the answers of some kinds were asked for, and how many are true.

    Args:
        kinds: how many kinds.
    """

    higher_is_better: bool | None = None
    is_differentiable = False
    full_state_update = False
    hits: Tensor
    asked: Tensor

    def __init__(self, kinds: int) -> None:
        super().__init__()
        for name in ("hits", "asked"):
            self.add_state(name, torch.zeros(kinds, dtype=torch.int64), dist_reduce_fx="sum")

    def _count(self, hit: Tensor, kind: int) -> None:
        self.hits[kind] += hit.sum()
        self.asked[kind] += hit.numel()

    def _rates(self) -> Tensor:
        """Per kind, in [0, 1]; 0 where nothing was asked."""
        return self.hits / self.asked.clamp(min=1)


class Rate(_Counts):
    """Part of what was asked that is true, in [0, 1]; 0 where nothing was asked.

    Example:
        >>> metric = Rate()
        >>> metric.update(torch.tensor([True, False]))
        >>> float(metric.compute())
        0.5
    """

    def __init__(self) -> None:
        super().__init__(kinds=1)

    def update(self, hit: Tensor) -> None:
        """Count answers.

        Args:
            hit: bool of any shape.
        """
        self._count(hit, 0)

    def compute(self) -> Tensor:
        """The rate."""
        return self._rates()[0]


class Selectivity(_Counts):
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

    def __init__(self) -> None:
        super().__init__(kinds=2)

    def update(self, hit: Tensor, own: bool) -> None:
        """Count images.

        Args:
            hit: bool of any shape, whether an image was recognised.
            own: by the sub-architecture of its class; else by another one.
        """
        self._count(hit, 0 if own else 1)

    def compute(self) -> Tensor:
        """The product; an accuracy without images counts as zero."""
        own, other = self._rates()
        return own * (1 - other)
