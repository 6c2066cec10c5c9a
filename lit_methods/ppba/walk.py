"""The state of an attack on its way: what all walks have in common, and what those among coefficients share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from lit_methods.ppba.functional import LowFrequencyProjection
from lit_methods.ppba.oracle import Oracle


@dataclass
class Step:
    """What one iteration brought, for the k images that are left.

    Args:
        loss: ``(k,)`` best loss; NaN where the answer was of no use.
        accepted: ``(k,)`` whether the image moved.
        solved: ``(k,)`` whether it is a success now.
        pred: ``(k,)`` its class; -1 where not known.
    """

    loss: Tensor
    accepted: Tensor
    solved: Tensor
    pred: Tensor


class Walk(ABC):
    """The state of one attack, for the images that are left.

    Args:
        oracle: answers.
        images: ``(k, C, S, S)`` as they were.
        rows: ``(k,)`` which images of the batch they are.
    """

    per_image: ClassVar[tuple[str, ...]] = ("images", "rows")  # attributes (k, ...) that go with their images

    def __init__(self, oracle: Oracle, images: Tensor, rows: Tensor) -> None:
        self.oracle, self.images, self.rows = oracle, images, rows

    @abstractmethod
    def draw(self, seed: int, ids: Tensor, number: int) -> Tensor:
        """The random numbers ``(k, ...)`` of one iteration, for the images' ids ``(k,)``."""

    @abstractmethod
    def step(self, draws: Tensor) -> Step:
        """One iteration with its random numbers ``(k, ...)``."""

    @abstractmethod
    def current(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """Images as they are now, in [0, 1], and the norms of their perturbations before clipping, of some of the k."""

    def keep(self, which: Tensor) -> None:
        """Go on with some of the k alone, ``(k,)`` bool."""
        for name in self.per_image:
            setattr(self, name, getattr(self, name)[which])

    def leave(self, which: Tensor, history: dict[str, Any]) -> None:  # noqa: B027 - most keep nothing
        """Some of the k are finished: write what is worth keeping into the history."""


class CoefficientWalk(Walk):
    """A walk among the coefficients of a projection, from zero to wherever the loss falls.

    Args:
        projection: where the coefficients belong.
        oracle: answers.
        images: ``(k, C, S, S)`` as they were.
        rows: ``(k,)`` which images of the batch they are.
        loss: ``(k,)`` of the clean images.
    """

    per_image = (*Walk.per_image, "z", "loss")

    def __init__(
        self, projection: LowFrequencyProjection, oracle: Oracle, images: Tensor, rows: Tensor, loss: Tensor
    ) -> None:
        super().__init__(oracle, images, rows)
        self.projection, self.loss = projection.like(images), loss
        self.z = images.new_zeros(len(rows), self.projection.dim)

    def delta(self, z: Tensor) -> Tensor:
        """New perturbations (..., C, S, S) of coefficients (..., m)."""
        return self.projection(z)

    def ask(self, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and predicted class (k, n) of coefficients (k, n, m)."""
        return self.oracle.ask(
            self.rows,
            lambda part: _shown(some(self.images, part)[:, None], self.delta(some(candidates, part))),
            candidates.shape[1],
        )

    def current(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """As in ``Walk``."""
        delta = self.delta(self.z[which])
        norms = delta.flatten(1).norm(dim=1)
        return _shown(self.images[which], delta), norms


def _shown(images: Tensor, delta: Tensor) -> Tensor:
    return delta.add_(images).clamp_(0, 1)  # in place: for small networks the copies would cost most


def some(values: Tensor, rows: Tensor) -> Tensor:
    """Rows of a tensor by rising numbers; the tensor itself, uncopied, where these are all.

    Example:
        >>> import torch
        >>> values = torch.arange(3)
        >>> some(values, torch.arange(3)) is values, some(values, torch.tensor([0, 2]))
        (True, tensor([0, 2]))
    """
    return values if len(rows) == len(values) else values[rows]
