"""What stays of a network, by channel ids and in plain types: the plans that a checkpoint carries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields
from itertools import pairwise
from typing import Any, ClassVar, Literal, Self

Ids = list[int] | None  # channel ids in the numbering of the full network; None: all of them


@dataclass
class PlainPlan:
    """Base of the plans, which are dataclasses of plain types: into a dict and back."""

    arch: str
    form: ClassVar[str]  # which keys its dict has, for who gives another one

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for ``hparams["plan"]``; a deep copy."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plan: dict[str, Any]) -> Self:
        """The inverse of ``to_dict``.

        Raises:
            ValueError: keys are missing or unknown.
        """
        needed = {part.name for part in fields(cls) if part.default is MISSING}
        if not needed <= plan.keys() <= {part.name for part in fields(cls)}:
            raise ValueError(f"{cls.form}; got {sorted(plan)}")
        return cls(**plan)


@dataclass
class PrunePlan(PlainPlan):
    """The filters that stay, for networks with a table.

    Args:
        arch: a key of ``BACKBONES``.
        keep: convolution name -> rising ids of the filters that stay; a convolution without an entry stays whole.
        residual: what residual sums carry. ``"live"``: only the channels that can be non-zero, the smallest exactly
            equal network. ``"scatter"``: the full width. No difference without residual sums.

    Raises:
        ValueError: ids that do not rise, are negative or missing altogether; another ``residual``.

    Example:
        >>> PrunePlan("resnet20", {"layer1.0.conv1": [0, 5]}).to_dict()
        {'arch': 'resnet20', 'keep': {'layer1.0.conv1': [0, 5]}, 'residual': 'live'}
    """

    form = "a plan has the keys 'arch', 'keep' and, if wanted, 'residual'"
    keep: dict[str, list[int]]
    residual: Literal["live", "scatter"] = "live"

    def __post_init__(self) -> None:
        if self.residual not in ("live", "scatter"):
            raise ValueError(f"residual must be 'live' or 'scatter', got {self.residual!r}")
        self.keep = {conv: checked_ids(conv, ids) for conv, ids in self.keep.items()}

    def kept(self, conv: str) -> Ids:
        """The filters of a convolution that stay; ``None`` for all."""
        return self.keep.get(conv)


@dataclass
class GatedPlan(PrunePlan):
    """The filters that stay, and the channels that stay open behind gates, for networks with a table.

    Behind a gate a closed channel is gone whatever brings it: of a residual sum the shortcut too, which the filters
    alone do not tell.

    Args:
        arch: a key of ``BACKBONES``.
        keep: as in ``PrunePlan``.
        residual: ``"live"``; a closed channel has no place in a stream of full width.
        gates: module name -> rising ids of the channels that stay open behind it; all where there is no entry. The
            names are those of ``Backbone.gates``.

    Raises:
        ValueError: ids that do not rise, are negative or missing altogether; another ``residual``.

    Example:
        >>> plan = GatedPlan("resnet20", {"layer1.0.conv2": [0, 5]}, gates={"layer1.0": [0, 5]})
        >>> plan.to_dict()["gates"]
        {'layer1.0': [0, 5]}
    """

    form = "a plan of gates has the keys 'arch', 'keep', 'gates' and, if wanted, 'residual'"
    gates: dict[str, list[int]] = field(kw_only=True)

    def __post_init__(self) -> None:
        if self.residual != "live":
            raise ValueError(f"residual of a plan with gates must be 'live', got {self.residual!r}")
        super().__post_init__()
        self.gates = {point: checked_ids(point, ids) for point, ids in self.gates.items()}


@dataclass
class TracedPlan(PlainPlan):
    """The channels that stay in a network without a table.

    Args:
        arch: class name of the network.
        layers: layer name -> [output ids, input ids] that stay, rising, in the numbering of the full network; ``None``
            for all. A norm has output ids only, and so has a depthwise convolution. A grouped convolution numbers its
            inputs through all groups. Layers without an entry stay whole.

    Raises:
        ValueError: an entry that is no such pair; ids that do not rise, are negative or missing altogether.

    Example:
        >>> TracedPlan("Sequential", {"0": [[0, 3], None], "2": [None, [0, 3]]}).to_dict()
        {'arch': 'Sequential', 'layers': {'0': [[0, 3], None], '2': [None, [0, 3]]}}
    """

    form = "a plan of a traced network has the keys 'arch' and 'layers'"
    layers: dict[str, list[Ids]]

    def __post_init__(self) -> None:
        for name, sides in self.layers.items():
            if len(sides) != 2:
                raise ValueError(f"plan's entry of {name!r} must be [output ids, input ids], got {sides}")
        self.layers = {
            name: [None if ids is None else checked_ids(name, ids) for ids in sides]
            for name, sides in self.layers.items()
        }

    def kept(self, name: str) -> Ids:
        """Output ids of this layer that stay; ``None`` for all."""
        return self.layers[name][0] if name in self.layers else None


def checked_ids(name: str, ids: Iterable[int]) -> list[int]:
    """Channel ids as plain numbers.

    Args:
        name: the layer's, for the error.
        ids: rising numbers from 0, each once, at least one.

    Raises:
        ValueError: they are none.

    Example:
        >>> checked_ids("conv1", range(3))
        [0, 1, 2]
    """
    plain = [int(i) for i in ids]
    if not plain:
        raise ValueError(f"plan keeps no channel of {name!r}; a layer needs at least one")
    if plain[0] < 0 or any(a >= b for a, b in pairwise(plain)):
        raise ValueError(f"plan's ids of {name!r} must be rising numbers from 0, each once, got {plain}")
    return plain
