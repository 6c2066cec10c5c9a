"""What pruning leaves of a network: where channels are scored, which are kept, and how the small network is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn

from lit_methods.backbones.widths import Block, WidthPlan
from lit_methods.functional.suggestions import nearest

Ids = list[int] | None  # channel ids in the numbering of the full network; None: all of them


@dataclass(frozen=True)
class PrunePoint:
    """A convolution that can lose filters, and where the feature maps that score them are taken.

    Args:
        conv: the convolution's module name.
        number: its official key: ``"1"``, ``"14"``; for GoogLeNet the stage and the branch, ``"2_n1x1"``.
        module: the module whose output holds the maps (after ReLU, sometimes after an addition or a pooling).
        channels: first channel and one past the last of these maps in that output.
    """

    conv: str
    number: str
    module: str
    channels: tuple[int, int]

    @property
    def group(self) -> str:
        """Points of one group share one rate: GoogLeNet's stages; elsewhere every point is its own group."""
        return self.number.partition("_")[0]

    @property
    def num_filters(self) -> int:
        """Filters of the convolution in the full network."""
        return self.channels[1] - self.channels[0]


@dataclass
class PrunePlan:
    """The filters that stay, in plain types; what a checkpoint carries of a pruned network.

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

    arch: str
    keep: dict[str, list[int]]
    residual: Literal["live", "scatter"] = "live"

    def __post_init__(self) -> None:
        if self.residual not in ("live", "scatter"):
            raise ValueError(f"residual must be 'live' or 'scatter', got {self.residual!r}")
        self.keep = {conv: [int(i) for i in ids] for conv, ids in self.keep.items()}
        for conv, ids in self.keep.items():
            check_ids(conv, ids)

    def kept(self, conv: str) -> Ids:
        """The filters of a convolution that stay; ``None`` for all."""
        return self.keep.get(conv)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for ``hparams["plan"]``."""
        return {
            "arch": self.arch,
            "keep": {conv: list(ids) for conv, ids in self.keep.items()},
            "residual": self.residual,
        }

    @classmethod
    def from_dict(cls, plan: dict[str, Any]) -> PrunePlan:
        """The inverse of ``to_dict``.

        Raises:
            ValueError: keys are missing or unknown.
        """
        if not {"arch", "keep"} <= plan.keys() <= {"arch", "keep", "residual"}:
            raise ValueError(f"a plan has the keys 'arch', 'keep' and, if wanted, 'residual'; got {sorted(plan)}")
        return cls(**plan)


@dataclass
class TracedPlan:
    """The channels that stay in a network without a table, in plain types; what a checkpoint carries of it.

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

    arch: str
    layers: dict[str, list[Ids]]

    def __post_init__(self) -> None:
        for name, sides in self.layers.items():
            if len(sides) != 2:
                raise ValueError(f"plan's entry of {name!r} must be [output ids, input ids], got {sides}")
        self.layers = {
            name: [None if ids is None else [int(i) for i in ids] for ids in sides]
            for name, sides in self.layers.items()
        }
        for name, sides in self.layers.items():
            for ids in sides:
                if ids is not None:
                    check_ids(name, ids)

    def kept(self, name: str) -> Ids:
        """Output ids of this layer that stay; ``None`` for all."""
        return self.layers[name][0] if name in self.layers else None

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for ``hparams["plan"]``."""
        return {
            "arch": self.arch,
            "layers": {name: [ids and list(ids) for ids in sides] for name, sides in self.layers.items()},
        }

    @classmethod
    def from_dict(cls, plan: dict[str, Any]) -> TracedPlan:
        """The inverse of ``to_dict``.

        Raises:
            ValueError: keys are missing or unknown.
        """
        if plan.keys() != {"arch", "layers"}:
            raise ValueError(f"a plan of a traced network has the keys 'arch' and 'layers', got {sorted(plan)}")
        return cls(**plan)


def check_ids(name: str, ids: list[int]) -> None:
    """Refuse ids that are no rising, non-negative, non-empty list.

    Raises:
        ValueError: they are not.
    """
    if not ids:
        raise ValueError(f"plan keeps no channel of {name!r}; a layer needs at least one")
    if ids[0] < 0 or any(a >= b for a, b in pairwise(ids)):
        raise ValueError(f"plan's ids of {name!r} must be rising numbers from 0, each once, got {ids}")


Plan = PrunePlan | WidthPlan | TracedPlan


def read_plan(plan: Plan | dict[str, Any]) -> Plan:
    """A plan from its plain form; its keys tell which of the forms it is.

    Raises:
        ValueError: it is none of them.

    Example:
        >>> read_plan({"arch": "resnet20", "mid": {"layer1.0.conv1": 9}})
        WidthPlan(arch='resnet20', mid={'layer1.0.conv1': 9})
    """
    if not isinstance(plan, dict):
        return plan
    kind: type[Plan] = WidthPlan if "mid" in plan else TracedPlan if "layers" in plan else PrunePlan
    return kind.from_dict(plan)


@dataclass(frozen=True)
class Backbone:
    """An entry of ``BACKBONES``.

    A network of your own can be pruned once it has an entry. Its constructor creates every layer that has parameters
    through a ``lit_methods.backbones.wiring.Wiring`` and keeps the result of ``finish()`` as ``self.kept_channels``.

    Args:
        build: ``build(num_classes=10, plan=None)`` -> network, thin where a plan is given.
        prune_points: ``prune_points()`` -> one ``PrunePoint`` per prunable convolution, in official order; ``None``
            where there are none.
        input_size: (C, H, W) of the images it was published with.
        spare_rates: how many rates may follow the last group's, for convolutions that are never pruned (VGG's 13th).
        counted_thin: convolutions of which HRank's own FLOP counter leaves out the removed inputs too.
        inner_blocks: ``inner_blocks()`` -> the blocks that FilterSketch narrows from within, in forward order; ``None``
            where there are none.
    """

    build: Callable[..., nn.Module]
    prune_points: Callable[[], list[PrunePoint]] | None = None
    input_size: tuple[int, int, int] = (3, 32, 32)
    spare_rates: int = 0
    counted_thin: tuple[str, ...] = ()
    inner_blocks: Callable[[], list[Block]] | None = None


BACKBONES: dict[str, Backbone] = {}


def whole(arch: str, build: Callable[..., nn.Module], input_size: tuple[int, int, int]) -> Backbone:
    """The entry of a network without tables, which no plan can narrow.

    Args:
        arch: its key in ``BACKBONES``.
        build: ``build(num_classes)`` -> network.
        input_size: (C, H, W) of the images it was published with.
    """

    def build_whole(num_classes: int = 10, plan: Plan | None = None) -> nn.Module:
        if plan is not None:
            raise ValueError(f"{arch} is always built whole, so it takes no plan. {_as_object(arch)}")
        return build(num_classes)

    return Backbone(build_whole, input_size=input_size)


def find_backbone(arch: object) -> Backbone:
    """The entry of ``BACKBONES``.

    Raises:
        ValueError: there is none; the message says how to add one.
    """
    if isinstance(arch, str) and arch in BACKBONES:
        return BACKBONES[arch]
    if isinstance(arch, str):
        raise ValueError(
            f"unknown arch {arch!r}{nearest(arch, BACKBONES)}; there are {', '.join(BACKBONES)}. "
            f"For a network of your own: BACKBONES[{arch!r}] = Backbone(build, prune_points)"
        )
    raise ValueError(
        f"a bare {type(arch).__name__} has no table that says how its layers hang together; add one, "
        "BACKBONES['my_net'] = Backbone(build, prune_points), as examples/subclass.py does, and pass its name"
    )


def build_backbone(
    arch: str | nn.Module, num_classes: int = 10, plan: Plan | dict[str, Any] | None = None
) -> nn.Module:
    """The network of this name, thin where a plan says so.

    A network that is given as an object is returned as it is, or a thin copy of it where there is a ``TracedPlan``.

    Args:
        arch: a key of ``BACKBONES``, or a network.
        num_classes: outputs of the last layer; without effect for a network.
        plan: a ``PrunePlan``, ``WidthPlan`` or ``TracedPlan`` (for an object), or the ``to_dict()`` of one.

    Raises:
        ValueError: an unknown name; a plan for a module or for another network; ids or widths that do not exist.

    Example:
        >>> build_backbone("resnet20", plan={"arch": "resnet20", "keep": {"layer1.0.conv1": [0, 5]}}).layer1[0].conv1
        Conv2d(16, 2, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    plan = None if plan is None else read_plan(plan)
    if isinstance(arch, nn.Module):
        if plan is None:
            return arch
        if not isinstance(plan, TracedPlan):
            find_backbone(arch)  # says that these plans belong to a network with a table
        from lit_methods.backbones.slicing import slice_network  # which imports this module

        return slice_network(arch, plan)  # type: ignore[arg-type]
    backbone = find_backbone(arch)
    if plan is None:
        return backbone.build(num_classes)
    if isinstance(plan, TracedPlan):
        raise ValueError(
            f"the plan is for a {plan.arch} that was given as an object, not for {arch!r}; give the full network "
            "again: load_from_checkpoint(path, backbone=network), or model.backbone"
        )
    if plan.arch != arch:
        raise ValueError(f"the plan is for arch {plan.arch!r}, the network is {arch!r}; build the one the plan is for")
    if isinstance(plan, WidthPlan):
        inside = [conv for block in inner_blocks(arch) for chain in block for conv in chain.convs[:-1]]
        if odd := [conv for conv in plan.mid if conv not in inside]:
            raise ValueError(
                f"plan narrows {odd[0]!r}, which is no convolution inside a block of {arch}{nearest(odd[0], inside)}"
            )
    return backbone.build(num_classes, plan=plan)


def prune_points(arch: str) -> list[PrunePoint]:
    """The prunable convolutions of a network, in official order.

    Raises:
        ValueError: ``arch`` is no key of ``BACKBONES``, or its entry names no such convolutions.

    Example:
        >>> prune_points("resnet20")[2]
        PrunePoint(conv='layer1.0.conv2', number='3', module='layer1.0.relu2', channels=(0, 16))
    """
    points = find_backbone(arch).prune_points
    if points is None:
        raise _no_table(arch, "convolutions that can lose filters", "prune_points")
    return points()


def inner_blocks(arch: str) -> list[Block]:
    """The blocks of a network that can be narrowed from within, in forward order.

    Raises:
        ValueError: ``arch`` is no key of ``BACKBONES``, or its entry names no such blocks.

    Example:
        >>> inner_blocks("resnet20")[0]
        (Chain(convs=('layer1.0.conv1', 'layer1.0.conv2'), norms=('layer1.0.bn1',), widths=(16,)),)
    """
    blocks = find_backbone(arch).inner_blocks
    if blocks is None:
        raise _no_table(arch, "blocks that can be narrowed from within", "inner_blocks")
    return blocks()


def _no_table(arch: str, rows: str, column: str) -> ValueError:
    having = ", ".join(name for name, backbone in BACKBONES.items() if getattr(backbone, column) is not None)
    return ValueError(f"{arch} has no table of {rows}; there is one for {having}. {_as_object(arch)}")


def _as_object(arch: str) -> str:
    return f"As an object, build_backbone({arch!r}), it is traced instead"


def planned_network(plan: Plan, num_classes: int = 10) -> nn.Module:
    """The network under a plan on the meta device: shapes without weights, for counts and checks.

    Example:
        >>> planned_network(WidthPlan("resnet20", {"layer1.0.conv1": 9})).layer1[0].conv2.weight.shape
        torch.Size([16, 9, 3, 3])
    """
    with torch.device("meta"):
        return find_backbone(plan.arch).build(num_classes, plan=plan)


def planned_channels(plan: Plan, num_classes: int = 10) -> dict[str, tuple[Ids, Ids]]:
    """Layer name -> surviving (output ids, input ids) under a plan, without making the weights."""
    return kept_channels(planned_network(plan, num_classes))


def kept_channels(model: nn.Module) -> dict[str, tuple[Ids, Ids]]:
    """Layer name -> surviving (output ids, input ids) of a network, as it notes them itself.

    Raises:
        ValueError: it does not.
    """
    kept = getattr(model, "kept_channels", None)
    if not isinstance(kept, dict) or kept.keys() != set(layers_with_parameters(model)):
        raise ValueError(
            f"{type(model).__name__}.kept_channels must tell, for each layer with parameters, which channels are left; "
            "build its layers through lit_methods.backbones.wiring.Wiring and set self.kept_channels = wiring.finish()"
        )
    return kept


def layers_with_parameters(model: nn.Module) -> list[str]:
    """Names of the modules that have parameters of their own."""
    return [name for name, part in model.named_modules() if any(True for _ in part.parameters(recurse=False))]
