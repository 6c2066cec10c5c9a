"""A part of a larger network, such as a detector's backbone, pruned by itself: cut, remembered, and cut again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lit_methods.backbones.cutting import cut_network
from lit_methods.backbones.kept import TracedPlan
from lit_methods.functional.suggestions import nearest

KEY = "pruned_parts"  # of hparams: name of the part -> its plan in plain types
PLACES = ("lit_methods", "hyper_parameters")  # of a checkpoint, where they may be


class Joined(nn.Module):
    """A network that gives one row per image, whatever the part inside gives: the means of its maps, side by side.

    What is traced and tried out then covers each of several outputs, none of which may lose a channel.

    Args:
        part: shared; takes images (N, C, H, W) and gives a tensor, or several in lists, tuples or dicts.

    Raises:
        ValueError: from ``forward``: the part gives anything else.

    Example:
        >>> part = nn.ModuleDict({"a": nn.Conv2d(3, 2, 1)})
        >>> part.forward = lambda x: {"a": part["a"](x), "same": [x, x]}
        >>> Joined(part)(torch.zeros(2, 3, 2, 2)).shape
        torch.Size([2, 8])
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.training = part.training

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to (N, channels of all outputs)."""
        return torch.cat([_row(values) for values in _tensors(self.part(images))], 1)


def _row(values: Tensor) -> Tensor:
    """(N, C, H, W), (N, rows, C) or (N, C) to (N, C)."""
    return values.mean((2, 3)) if values.ndim == 4 else values.mean(1) if values.ndim == 3 else values


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple | Mapping):
        for inner in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(inner)
    elif output is not None:
        raise ValueError(f"a part gives a {type(output).__name__}; to be traced it has to give tensors")


@contextmanager
def inputs_of(module: nn.Module, name: str) -> Iterator[list[Tensor]]:
    """While open, notes what a part is given: the images that its feature maps are ranked on.

    Args:
        module: the whole network.
        name: of the part, such as ``"model.backbone"``.

    Yields:
        A list that grows by one (N, C, H, W) for each call.

    Raises:
        ValueError: there is no such part.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
        >>> with inputs_of(net, "1") as seen:
        ...     _ = net(torch.zeros(2, 3, 8, 8))
        >>> [tuple(x.shape) for x in seen]
        [(2, 4, 8, 8)]
    """
    seen: list[Tensor] = []
    part = find_part(module, name)
    handle = part.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()


def find_part(module: nn.Module, name: str) -> nn.Module:
    """A part by its name.

    Args:
        module: the whole network.
        name: of one of its modules, with dots.

    Raises:
        ValueError: there is none of that name.

    Example:
        >>> find_part(nn.Sequential(nn.ReLU()), "1")
        Traceback (most recent call last):
            ...
        ValueError: this Sequential has no part '1'
    """
    names = [known for known, _ in module.named_modules() if known]
    if name not in names:
        raise ValueError(f"this {type(module).__name__} has no part {name!r}{nearest(name, names)}")
    return module.get_submodule(name)


def cut_part(module: nn.Module, name: str, plan: TracedPlan | dict[str, Any]) -> None:
    """Put the small network of a plan in the place of a part, and note the plan in ``module.hparams``.

    Args:
        module: changed in place; a ``LightningModule`` saves its ``hparams`` with every checkpoint.
        name: of the part, which is whole so far.
        plan: of its layers, or ``to_dict()`` of it.

    Raises:
        ValueError: there is no such part, it is pruned already, or the plan is another network's.

    Example:
        >>> net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)))
        >>> cut_part(net, "0", {"arch": "Sequential", "layers": {"0": [[0, 3], None], "2": [None, [0, 3]]}})
        >>> net[0][2]
        Conv2d(2, 2, kernel_size=(1, 1), stride=(1, 1))
    """
    refuse_pruned(module, name)
    plan = TracedPlan.from_dict(plan) if isinstance(plan, dict) else plan
    put_part(module, name, cut_network(find_part(module, name), plan), plan)


def put_part(module: nn.Module, name: str, small: nn.Module, plan: TracedPlan) -> None:
    """Put a network in the place of a part, and note its plan in ``module.hparams``, if there are any.

    Args:
        module: changed in place.
        name: of the part.
        small: what takes its place.
        plan: what stayed of the part.

    Example:
        >>> net = nn.Sequential(nn.ReLU())
        >>> put_part(net, "0", nn.GELU(), TracedPlan("ReLU", {}))
        >>> net[0]
        GELU(approximate='none')
    """
    module.set_submodule(name, small)
    hparams: Any = getattr(module, "hparams", {})
    hparams[KEY] = {**hparams.get(KEY, {}), name: plan.to_dict()}


def refuse_pruned(module: nn.Module, name: str) -> None:
    """Stop where a part, something inside or around it is pruned already: plans number the channels of the whole one.

    Args:
        module: the whole network.
        name: of the part.

    Raises:
        ValueError: it is pruned.

    Example:
        >>> refuse_pruned(nn.Sequential(nn.ReLU()), "0")
    """
    for known in getattr(module, "hparams", {}).get(KEY) or {}:
        if known == name or known.startswith(f"{name}.") or name.startswith(f"{known}."):
            raise ValueError(f"{name!r} cannot be pruned: {known!r} is pruned already; start from the whole network")


def restore_parts(module: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Cut what the writer of a checkpoint had cut, before its weights arrive; what is cut already stays.

    Modules of ours do so by themselves whenever a checkpoint is loaded.

    Args:
        module: of the checkpoint's class; changed in place.
        checkpoint: with the plans beside the name of its class, under ``lit_methods``, or in ``hyper_parameters``; one
            without pruned parts changes nothing.

    Raises:
        ValueError: module and checkpoint have the same part pruned in different ways, the module has one pruned that
            is whole in the checkpoint, or a plan does not fit.

    Example:
        >>> net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)))
        >>> plan = {"arch": "Sequential", "layers": {"0": [[1], None], "2": [None, [1]]}}
        >>> restore_parts(net, {"lit_methods": {"pruned_parts": {"0": plan}}})
        >>> net[0][0].out_channels
        1
    """
    mine = getattr(module, "hparams", {}).get(KEY) or {}
    theirs: dict[str, Any] = next((parts for place in PLACES if (parts := checkpoint.get(place, {}).get(KEY))), {})
    for name in mine:
        if mine[name] != theirs.get(name):
            way = "pruned in another way" if name in theirs else "whole"
            raise ValueError(f"the checkpoint has {name!r} {way}; load it into a whole network")
    for name in theirs.keys() - mine.keys():
        cut_part(module, name, theirs[name])


def within(plan: TracedPlan, part: nn.Module) -> TracedPlan:
    """The plan of a ``Joined`` network as one of the part inside it.

    Args:
        plan: whose layers' names begin with ``part.``.
        part: the whole part.

    Example:
        >>> within(TracedPlan("Joined", {"part.0": [[1], None]}), nn.Sequential())
        TracedPlan(arch='Sequential', layers={'0': [[1], None]})
    """
    layers = {name.removeprefix("part."): sides for name, sides in plan.layers.items()}
    return replace(plan, arch=type(part).__name__, layers=layers)
