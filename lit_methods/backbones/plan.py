"""The table of networks: where each can be pruned, and how it is built whole or as a plan left it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from lit_methods.backbones.kept import GatedPlan, Ids, PrunePlan, TracedPlan
from lit_methods.backbones.slicing import slice_network
from lit_methods.backbones.widths import Block, MidChannels, WidthPlan
from lit_methods.functional.suggestions import nearest

Plan = PrunePlan | WidthPlan | TracedPlan


def read_plan(plan: Plan | dict[str, Any]) -> Plan:
    """A plan from its plain form; its keys tell which of the forms it is.

    Args:
        plan: what ``to_dict`` of one gave; a plan itself is returned as it is.

    Raises:
        ValueError: it is none of them.

    Example:
        >>> read_plan({"arch": "resnet20", "mid": {"layer1.0.conv1": 9}})
        WidthPlan(arch='resnet20', mid={'layer1.0.conv1': 9})
    """
    if not isinstance(plan, dict):
        return plan
    kinds: dict[str, type[Plan]] = {"mid": WidthPlan, "layers": TracedPlan, "gates": GatedPlan}
    return next((kind for key, kind in kinds.items() if key in plan), PrunePlan).from_dict(plan)


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
        gates: ``gates()`` -> module name -> the convolutions whose filters go with its channels, one by one, or an
            empty tuple where its channels hang together in another way; in forward order. Where NAD puts its gates;
            ``None`` where there are none.
    """

    build: Callable[..., nn.Module]
    prune_points: Callable[[], list[PrunePoint]] | None = None
    input_size: tuple[int, int, int] = (3, 32, 32)
    spare_rates: int = 0
    counted_thin: tuple[str, ...] = ()
    inner_blocks: Callable[[], list[Block]] | None = None
    gates: Callable[[], dict[str, tuple[str, ...]]] | None = None


BACKBONES: dict[str, Backbone] = {}


def whole(
    arch: str,
    build: Callable[..., nn.Module],
    input_size: tuple[int, int, int],
    *,
    gates: Callable[[], dict[str, tuple[str, ...]]] | None = None,
) -> Backbone:
    """The entry of a network without tables, which no plan can narrow.

    Args:
        arch: its key in ``BACKBONES``.
        build: ``build(num_classes)`` -> network.
        input_size: (C, H, W) of the images it was published with.
        gates: its gate points, see ``Backbone``.

    Example:
        >>> whole("perceptron", lambda classes: nn.Linear(4, classes), (4, 1, 1)).build(num_classes=3)
        Linear(in_features=4, out_features=3, bias=True)
    """

    def build_whole(num_classes: int = 10, plan: Plan | None = None) -> nn.Module:
        if plan is not None:
            raise ValueError(f"{arch} is always built whole, so it takes no plan. {_as_object(arch)}")
        return build(num_classes)

    return Backbone(build_whole, input_size=input_size, gates=gates)


def find_backbone(arch: object) -> Backbone:
    """The entry of ``BACKBONES``.

    Args:
        arch: its key; anything else has none.

    Raises:
        ValueError: there is none; the message says how to add one.

    Example:
        >>> find_backbone("resnet50").input_size
        (3, 224, 224)
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
        plan: a ``PrunePlan``, ``GatedPlan``, ``WidthPlan`` or ``TracedPlan`` (for an object), or the ``to_dict()`` of
            one.

    Raises:
        ValueError: an unknown name; a plan for a module or for another network; ids or widths that do not exist.

    Example:
        >>> build_backbone("resnet20", plan={"arch": "resnet20", "keep": {"layer1.0.conv1": [0, 5]}}).layer1[0].conv1
        Conv2d(16, 2, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    plan = None if plan is None else read_plan(plan)
    if isinstance(arch, nn.Module) and (plan is None or isinstance(plan, TracedPlan)):
        return arch if plan is None else slice_network(arch, plan)
    backbone = find_backbone(arch)  # which refuses an object: the other plans belong to networks with a table
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
        inside = [conv for block in inner_blocks(plan.arch) for chain in block for conv in chain.convs[:-1]]
        if odd := [conv for conv in plan.mid if conv not in inside]:
            raise ValueError(
                f"plan narrows {odd[0]!r}, which is no convolution inside a block of {arch}{nearest(odd[0], inside)}"
            )
    return backbone.build(num_classes, plan=plan)


def plan_for(arch: str, blocks: Sequence[Block], plan: Plan | None, mid_channels: MidChannels | None) -> Plan | None:
    """The plan of a builder that takes either a plan or widths.

    Args:
        arch: a key of ``BACKBONES``.
        blocks: of that network, in forward order.
        plan: as it was given.
        mid_channels: as they were given, see ``WidthPlan.of_blocks``.

    Raises:
        ValueError: both are given, or widths that do not fit.
    """
    if mid_channels is None:
        return plan
    if plan is not None:
        raise ValueError(f"{arch}: plan and mid_channels both say how narrow it is; give one of them")
    return WidthPlan.of_blocks(arch, blocks, mid_channels)


def prune_points(arch: str) -> list[PrunePoint]:
    """The prunable convolutions of a network, in official order.

    Args:
        arch: a key of ``BACKBONES``.

    Raises:
        ValueError: there is no such key, or its entry has no such table.

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

    Args:
        arch: a key of ``BACKBONES``.

    Raises:
        ValueError: there is no such key, or its entry has no such table.

    Example:
        >>> inner_blocks("resnet20")[0]
        (Chain(convs=('layer1.0.conv1', 'layer1.0.conv2'), norms=('layer1.0.bn1',), widths=(16,)),)
    """
    blocks = find_backbone(arch).inner_blocks
    if blocks is None:
        raise _no_table(arch, "blocks that can be narrowed from within", "inner_blocks")
    return blocks()


def archs_with(table: Literal["prune_points", "inner_blocks"]) -> list[str]:
    """The keys of ``BACKBONES`` whose entry has a table.

    Args:
        table: which one.

    Example:
        >>> "vgg16_bn_cifar" in archs_with("prune_points"), "vgg16_bn_cifar" in archs_with("inner_blocks")
        (True, False)
    """
    return [arch for arch, backbone in BACKBONES.items() if getattr(backbone, table) is not None]


def _no_table(arch: str, rows: str, table: Literal["prune_points", "inner_blocks"]) -> ValueError:
    having = ", ".join(archs_with(table))
    return ValueError(f"{arch} has no table of {rows}; there is one for {having}. {_as_object(arch)}")


def _as_object(arch: str) -> str:
    return f"As an object, build_backbone({arch!r}), it is traced instead"


def planned_network(plan: Plan, num_classes: int = 10) -> nn.Module:
    """The network under a plan on the meta device: shapes without weights, for counts and checks.

    Args:
        plan: of a network with a table; one without entries gives the full network.
        num_classes: outputs of the last layer.

    Raises:
        ValueError: an unknown network; ids or widths that do not exist.

    Example:
        >>> planned_network(WidthPlan("resnet20", {"layer1.0.conv1": 9})).layer1[0].conv2.weight.shape
        torch.Size([16, 9, 3, 3])
    """
    with torch.device("meta"):
        return find_backbone(plan.arch).build(num_classes, plan=plan)


def planned_channels(plan: Plan, num_classes: int = 10) -> dict[str, tuple[Ids, Ids]]:
    """What ``kept_channels`` says of the network under a plan, without making the weights.

    Arguments and errors are those of ``planned_network``.

    Example:
        >>> planned_channels(PrunePlan("resnet20", {"layer1.0.conv1": [0, 5]}))["layer1.0.conv1"]
        ([0, 5], None)
    """
    return kept_channels(planned_network(plan, num_classes))


def kept_channels(model: nn.Module) -> dict[str, tuple[Ids, Ids]]:
    """Which channels of the full network are left, as the network notes it itself.

    Args:
        model: whose layers were built by ``wiring.Wiring``.

    Returns:
        Layer name -> (output ids, input ids), for every layer with parameters; ``None`` for all.

    Raises:
        ValueError: it does not note them for each of its layers.

    Example:
        >>> kept_channels(build_backbone("resnet20"))["fc"]
        (None, None)
    """
    kept = getattr(model, "kept_channels", None)
    if not isinstance(kept, dict) or kept.keys() != set(layers_with_parameters(model)):
        raise ValueError(
            f"{type(model).__name__}.kept_channels must tell, for each layer with parameters, which channels are left; "
            "build its layers through lit_methods.backbones.wiring.Wiring and set self.kept_channels = wiring.finish()"
        )
    return kept


def layers_with_parameters(model: nn.Module) -> list[str]:
    """Names of the modules that have parameters of their own, in the order of ``named_modules``.

    Example:
        >>> layers_with_parameters(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)))
        ['0', '2']
    """
    return [name for name, part in model.named_modules() if any(True for _ in part.parameters(recurse=False))]
