"""Rates from a budget: the least pruning that brings a network's cost down to what it may be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lit_methods.functional.complexity import count_macs

GRID = 10_000  # rates are found to four decimals, so that they can be printed and read again
MOST = 0.9  # of a group that global allocation removes: scores of one layer alone must not close it

Allocation = Literal["uniform", "global"]


@dataclass(frozen=True)
class Budget:
    """What a pruned network may cost, and how the removal is shared out among its groups of filters.

    Args:
        target_macs: multiply-adds, a fraction of the full network's where at most 1, else their number.
        target_params: parameters, in the same way; one of the two is given.
        allocation: ``"uniform"`` removes the same fraction everywhere, ``"global"`` the lowest scores of the whole
            network, but never more than nine tenths of a group.
        keep_ends: leave the first and the last group as wide as they are.

    Raises:
        ValueError: not exactly one target, one that is not positive, or an unknown allocation.

    Example:
        >>> budget = Budget(target_params=0.5)
        >>> net = lambda rates: nn.Linear(10, 100 - int(100 * rates[0]), bias=False)
        >>> budget.rates(net, [torch.zeros(100)], input_size=(10,))
        [0.5]
    """

    target_macs: float | None = None
    target_params: float | None = None
    allocation: Allocation = "uniform"
    keep_ends: bool = False

    def __post_init__(self) -> None:
        if (self.target_macs is None) == (self.target_params is None):
            raise ValueError(
                f"target_macs={self.target_macs} and target_params={self.target_params}: give exactly one of them"
            )
        if isinstance(self.target, bool | str) or not self.target > 0:
            raise ValueError(f"{self.name}={self.target} must be positive: a fraction of 1, or a number above")
        if self.allocation not in get_args(Allocation):
            raise ValueError(f"allocation={self.allocation!r} must be 'uniform' or 'global'")

    @property
    def name(self) -> str:
        """Of the target that is given."""
        return "target_params" if self.target_macs is None else "target_macs"

    @property
    def target(self) -> float:
        """The target that is given."""
        target = self.target_params if self.target_macs is None else self.target_macs
        assert target is not None
        return target

    def rates(
        self,
        network_at: Callable[[list[float]], nn.Module],
        scores: Sequence[Tensor],
        *,
        input_size: Sequence[int],
        highest: Sequence[float] | None = None,
    ) -> list[float]:
        """The removed fraction of every group: the least removal whose network stays within the budget.

        Found by bisection on the exact counts of the networks; a network that is removed from further is taken to
        cost no more.

        Args:
            network_at: the network at such fractions; it may lie on the meta device.
            scores: per group one number for each of its filters, comparable between groups; for ``"uniform"`` only
                the number of groups matters.
            input_size: (C, H, W) of one image.
            highest: per group the highest fraction that leaves a network, ``None`` for just below 1.

        Returns:
            One number per group, in [0, 1): of four decimals for ``"uniform"``, of the form k / n for ``"global"``.

        Raises:
            ValueError: even the smallest network costs more; the message says how much.
        """

        def cost(rates: list[float]) -> int:
            network = network_at(rates)
            if self.target_macs is not None:
                return count_macs(network, input_size)
            return sum(parameter.numel() for parameter in network.parameters())

        groups = len(scores)
        most = [1 - 1 / GRID] * groups if highest is None else list(highest)
        if self.allocation == "global":
            most = [min(rate, MOST) for rate in most]
        if self.keep_ends:
            most[0] = most[-1] = 0.0
        dense = cost([0.0] * groups)
        limit = self.target if self.target > 1 else self.target * dense
        if dense <= limit:
            return [0.0] * groups
        share = _uniform(most) if self.allocation == "uniform" else _lowest_first(scores, most)
        steps = GRID if self.allocation == "uniform" else sum(map(len, scores))
        if (smallest := cost(share(steps))) > limit:
            raise ValueError(
                f"{self.name}={self.target:g} cannot be met: the smallest network that this pruner makes has "
                f"{smallest:,} of {dense:,}, that is {smallest / dense:.4f}; "
                + ("try keep_ends=False" if self.keep_ends else "give a larger target")
            )
        low, high = 0, steps  # too dear; cheap enough
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if cost(share(middle)) <= limit else (middle, high)
        return share(high)


def _uniform(most: list[float]) -> Callable[[int], list[float]]:
    return lambda step: [min(step / GRID, highest) for highest in most]


def _lowest_first(scores: Sequence[Tensor], most: list[float]) -> Callable[[int], list[float]]:
    """Rates for a number of filters to remove, those of lowest score first; among equals the earlier group's."""
    owner = torch.cat([torch.full((len(score),), i) for i, score in enumerate(scores)])
    order = owner[torch.cat([score.double().cpu() for score in scores]).argsort(stable=True)]

    def share(step: int) -> list[float]:
        gone = torch.bincount(order[:step], minlength=len(scores)).tolist()
        return [min(k / len(score), highest) for k, score, highest in zip(gone, scores, most, strict=True)]

    return share
