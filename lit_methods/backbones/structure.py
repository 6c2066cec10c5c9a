"""The shapes of a network under a plan, by its table or a skeleton of it: what the structures of both pruners share."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn

from lit_methods.backbones.cutting import cut_network
from lit_methods.backbones.plan import Plan, planned_network


class Table:
    """A network of ``BACKBONES``.

    Args:
        arch: a key of ``BACKBONES``.
        num_classes: outputs, which count among the costs.

    Raises:
        ValueError: ``arch`` is no such key, or the network has no table of what the pruner removes.
    """

    def __init__(self, arch: str, num_classes: int) -> None:
        self.arch, self.num_classes = arch, num_classes

    def shape(self, plan: Plan) -> nn.Module:
        """The small network on the meta device."""
        return planned_network(plan, self.num_classes)


class Skeleton:
    """A network that was given as an object, on the meta device.

    Args:
        network: the full network.
    """

    def __init__(self, network: nn.Module) -> None:
        self.skeleton = copy.deepcopy(network).to("meta")

    def shape(self, plan: Plan) -> nn.Module:
        """The small network on the meta device."""
        return cut_network(self.skeleton, plan)

    def check_number(self, rates: Sequence[float], wanted: int, what: str) -> None:
        """Refuse another number of rates than the network takes.

        Raises:
            ValueError: it is another.
        """
        if len(rates) != wanted:
            raise ValueError(
                f"this {type(self.skeleton).__name__} takes {wanted} rates, got {len(rates)}; give the fraction {what}"
            )
