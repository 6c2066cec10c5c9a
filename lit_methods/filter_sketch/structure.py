"""What FilterSketch can narrow of a network, from the network's table or by tracing it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lit_methods.backbones import Plan, TracedPlan, WidthPlan, cut_network, inner_blocks
from lit_methods.backbones.groups import ChannelGroup, traced_plan
from lit_methods.backbones.structure import Skeleton, Table
from lit_methods.backbones.traced import channel_groups, norms_behind
from lit_methods.filter_sketch.functional import sketch_width, tail_energy
from lit_methods.filter_sketch.model import Sketcher, sketch_to_plan, widths_at
from lit_methods.functional.rates import round_rate_up, round_up


class TableStructure(Table):
    """A network of ``BACKBONES`` with a table of inner blocks; one rate for each of them.

    Args:
        arch: a key of ``BACKBONES``.
        num_classes: outputs, which count among the costs.
    """

    def __init__(self, arch: str, num_classes: int) -> None:
        super().__init__(arch, num_classes)
        blocks = inner_blocks(arch)
        self.blocks = [[conv for chain in block for conv in chain.convs[:-1]] for block in blocks]
        narrowest = [min(width for chain in block for width in chain.widths) for block in blocks]
        self.lowest = [round_rate_up(1 / width) for width in narrowest]  # rates that still leave a filter

    def plan(self, rates: Sequence[float], round_to: int = 1) -> WidthPlan:
        """The widths at these kept fractions, one per block."""
        return widths_at(self.arch, rates, round_to)

    def sketch(self, network: nn.Module, plan: Plan, sketcher: Sketcher) -> nn.Module:
        """The small network with sketched weights."""
        assert isinstance(plan, WidthPlan)
        return sketch_to_plan(network, plan, sketcher)


class TracedStructure(Skeleton):
    """Any convolutional network: the channels inside its blocks that torch-pruning finds, in forward order.

    A block is a group of channels that one dense convolution with a norm behind it writes; depthwise convolutions and
    gates may act on them. Residual streams, which several write, stay as they are.

    Args:
        network: the full network.
        input_size: (C, H, W) of the images it takes.

    Raises:
        ValueError: torch-pruning is missing, the network cannot be traced, or has no such block.

    Source:
        FilterSketch for networks without a table; ours. Sketched are the convolution that writes a block's channels,
        and by their inputs the dense convolutions with a norm behind them that read no others. Where a sketch has no
        meaning, as in depthwise convolutions, the first channels stay: the rows of a sketch belong to none of the old
        channels, so that any choice is as good. Norms of these channels start afresh.
    """

    def __init__(self, network: nn.Module, input_size: Sequence[int]) -> None:
        super().__init__(network)
        groups = channel_groups(network, input_size)
        normed = norms_behind(network, input_size)
        self.normed = {conv for conv in normed if network.get_submodule(conv).groups == 1}
        self.groups = [group for group in groups if [w for w in group.writers if w in self.normed] == [group.root]]
        if not self.groups:
            raise ValueError(
                f"a {type(network).__name__} has no block that one convolution with a norm behind it writes, so there "
                "is nothing that FilterSketch could narrow; try HRankPruning"
            )
        self.blocks = [[group.root] for group in self.groups]
        self.lowest = [round_rate_up(group.parts / group.channels) for group in self.groups]

    def plan(self, rates: Sequence[float], round_to: int = 1) -> TracedPlan:
        """The channels that stay at these kept fractions, one per block."""
        self.check_number(rates, len(self.groups), "to keep of each block")
        keep: dict[str, list[int]] = {}
        for group, rate in zip(self.groups, rates, strict=True):
            width = round_up(sketch_width(group.channels, rate), round_to, group.channels)
            size, kept = group.channels // group.parts, max(1, width // group.parts)
            if kept < size:
                keep[group.root] = [part * size + i for part in range(group.parts) for i in range(kept)]
        return traced_plan(self.skeleton, self.groups, keep)

    def sketch(self, network: nn.Module, plan: Plan, sketcher: Sketcher) -> nn.Module:
        """The small network with sketched weights."""
        assert isinstance(plan, TracedPlan)
        small = cut_network(network, plan)
        again = sketcher.normalize is not None  # what keeps its width is rescaled
        chosen = [group for group in self.groups if again or plan.kept(group.root) is not None]
        sketched: dict[str, Tensor] = {}
        for group in chosen:  # filters first
            layer = small.get_submodule(group.root)
            full = network.get_parameter(f"{group.root}.weight").detach()
            sketched[group.root] = sketcher(group.root, full, len(layer.get_parameter("weight")), 0)
            if isinstance(layer.bias, Tensor):
                nn.init.zeros_(layer.bias)
            for norm in (small.get_submodule(name) for name in group.norms):
                if isinstance(norm, _NormBase):  # and no PReLU
                    norm.reset_parameters()
        for group in chosen:
            for name in self._readers(group):
                target = small.get_parameter(f"{name}.weight")
                weight = sketched.get(name, network.get_parameter(f"{name}.weight").detach())
                sketched[name] = sketcher(name, weight, target.shape[1], 1)
        with torch.no_grad():
            for name, weight in sketched.items():
                small.get_parameter(f"{name}.weight").copy_(weight)
        return small

    def _readers(self, group: ChannelGroup) -> list[str]:
        """The dense convolutions with a norm behind them whose inputs are these channels and no others."""
        alone = [(i,) for i in range(group.channels)]
        return [name for name, places in group.readers.items() if name in self.normed and [*places] == alone]


Structure = TableStructure | TracedStructure


def group_scores(structure: Structure, network: nn.Module) -> list[Tensor]:
    """What each filter inside the blocks holds, for a budget that is shared out among them.

    Args:
        structure: of the network.
        network: with its weights.

    Returns:
        Per block (filters,) float64, one layer after the other, see ``tail_energy``.
    """
    return [
        torch.cat([tail_energy(network.get_parameter(f"{conv}.weight")) for conv in convs])
        for convs in structure.blocks
    ]
