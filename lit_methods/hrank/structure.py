"""What HRank can remove of a network, from the network's table or by tracing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from lit_methods.backbones import PrunePlan, PrunePoint, TracedPlan, prune_points
from lit_methods.backbones.groups import select_channels, traced_plan
from lit_methods.backbones.structure import Skeleton, Table
from lit_methods.backbones.traced import channel_groups, score_points
from lit_methods.hrank.functional import build_plan, kept_count


class TableStructure(Table):
    """A network of ``BACKBONES``: what the paper prunes of it, in the paper's order.

    Args:
        arch: a key of ``BACKBONES``.
        num_classes: outputs, which count among the costs.
        residual: ``"live"`` or ``"scatter"``, see ``PrunePlan``.
    """

    def __init__(self, arch: str, num_classes: int, residual: Literal["live", "scatter"]) -> None:
        super().__init__(arch, num_classes)
        self.residual = residual
        self.points = prune_points(arch)
        self.groups = list(dict.fromkeys(point.group for point in self.points))

    def group_scores(self, scores: Mapping[str, Tensor]) -> list[Tensor]:
        """Per group the scores of its filters, as fractions of the highest in their layer."""
        share = relative(scores, self.points)
        return [torch.cat([share[p.conv] for p in self.points if p.group == group]) for group in self.groups]

    def plan(self, scores: Mapping[str, Tensor], rates: Sequence[float], round_to: int = 1) -> PrunePlan:
        """What stays at these removed fractions, one per group."""
        return replace(build_plan(self.arch, scores, rates, round_to=round_to), residual=self.residual)


class TracedStructure(Skeleton):
    """Any convolutional network: the groups of channels that torch-pruning finds, in forward order.

    A group is scored by the mean over its convolutions, each relative to the highest score in its layer.

    Args:
        network: the full network.
        input_size: (C, H, W) of the images it takes.

    Raises:
        ValueError: torch-pruning is missing, or the network cannot be traced.
    """

    def __init__(self, network: nn.Module, input_size: Sequence[int]) -> None:
        super().__init__(network)
        groups = channel_groups(network, input_size)
        self.channel_groups, self.points = score_points(network, groups, input_size)
        self.groups = [group.root for group in self.channel_groups]

    def group_scores(self, scores: Mapping[str, Tensor]) -> list[Tensor]:
        """Per group the scores of its channels."""
        share = relative(scores, self.points)
        return [group.mean_score(share) for group in self.channel_groups]

    def plan(self, scores: Mapping[str, Tensor], rates: Sequence[float], round_to: int = 1) -> TracedPlan:
        """What stays at these removed fractions, one per group."""
        self.check_number(rates, len(self.groups), "to remove of each group of channels")
        widths = [group.channels for group in self.channel_groups]
        removed = [n - kept_count(n, rate, round_to) for n, rate in zip(widths, rates, strict=True)]
        keep = select_channels(relative(scores, self.points), self.channel_groups, removed)
        return traced_plan(self.skeleton, self.channel_groups, keep)


Structure = TableStructure | TracedStructure


def relative(scores: Mapping[str, Tensor], points: Sequence[PrunePoint]) -> dict[str, Tensor]:
    """Scores as fractions of the highest in their layer, which makes layers comparable; all zero stays all zero.

    Args:
        scores: convolution name -> (channels,), not negative.
        points: the convolutions that are wanted.

    Example:
        >>> relative({"conv1": torch.tensor([1.0, 4.0])}, [PrunePoint("conv1", "1", "relu", (0, 2))])
        {'conv1': tensor([0.2500, 1.0000])}
    """
    return {point.conv: scores[point.conv] / scores[point.conv].max().clamp(min=1e-12) for point in points}
