"""The cut of networks with a table: masks, and the small network made of the full one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lit_methods.backbones.plan import (
    GatedPlan,
    Ids,
    Plan,
    PrunePlan,
    TracedPlan,
    WidthPlan,
    build_backbone,
    kept_channels,
    layers_with_parameters,
    planned_channels,
    planned_network,
)
from lit_methods.backbones.slicing import copied_like, select, slice_network


def apply_masks(model: nn.Module, plan: PrunePlan) -> None:
    """Zero, in place, the filters that the plan does not keep; shapes stay and kept weights stay bit-equal.

    Zeroed are rows of convolution weights and biases, and weight and bias of the batch norms that see those channels
    (in DenseNet the norm of the concatenation). Running statistics are untouched, as in the official code. A pruned
    channel is then exactly 0 wherever it is used.

    Args:
        model: the network of ``plan.arch``; pruned already or not.
        plan: ids in the numbering of the full network.

    Raises:
        ValueError: ``model`` is another network, or lacks channels that the plan keeps; a ``GatedPlan``, whose closed
            shortcuts no zeros in the weights can mask.

    Source:
        HRank, official code: masks on convolution and following batch norm.

    Example:
        >>> model = build_backbone("resnet20")
        >>> apply_masks(model, PrunePlan("resnet20", {"layer1.0.conv1": [0, 5]}))
        >>> model.layer1[0].conv1.weight.flatten(1).any(1).nonzero().flatten()
        tensor([0, 5])
    """
    if isinstance(plan, GatedPlan):
        raise ValueError("a plan with gates also closes shortcuts, which have no weights to zero; use prune_model")
    before = getattr(model, "kept_channels", {})
    after = planned_channels(plan)
    check_layers(model, after, plan.arch)
    full = planned_network(PrunePlan(plan.arch, {}))
    with torch.no_grad():
        for name, (outputs, _) in after.items():
            present = before.get(name, (None, None))[0]
            here = len(full.get_parameter(f"{name}.weight") if present is None else present)
            if outputs is not None and len(model.get_parameter(f"{name}.weight")) != here:
                raise ValueError(f"the filters of {name!r} are not those of {plan.arch}, which the plan numbers")
            rows = None if outputs is None else _places(outputs, present, name)
            if rows is None:  # all that is there stays
                continue
            for tensor in model.get_submodule(name).parameters(recurse=False):
                gone = torch.ones(len(tensor), dtype=torch.bool, device=tensor.device)
                gone[torch.as_tensor(rows, device=tensor.device)] = False
                tensor[gone] = 0


def prune_model(model: nn.Module, plan: PrunePlan, residual: Literal["live", "scatter"] | None = None) -> nn.Module:
    """The small network with the kept filters of ``model``: equal to the masked one, in training mode too.

    Args:
        model: the network of ``plan.arch``, pruned already or not; not changed.
        plan: what stays, in the numbering of the full network. For a pruned model that is the whole plan, old and
            new, not an addition.
        residual: ``"live"`` or ``"scatter"``, see ``PrunePlan``; ``None`` takes the plan's.

    Returns:
        A new module of the same dtype, device, modes and ``requires_grad`` flags.

    Raises:
        ValueError: ``model`` is another network, or no longer has channels that the plan keeps.

    Source:
        HRank, arXiv 2002.10179; the official code only masks. HRankPlus removes, but prunes stage widths, which mixes
        the channels of a residual stream; here ids stay with their channels.

    Example:
        >>> thin = prune_model(build_backbone("resnet20"), PrunePlan("resnet20", {"layer1.0.conv1": [0, 5]}))
        >>> thin.layer1[0].conv2.weight.shape
        torch.Size([16, 2, 3, 3])
    """
    plan = replace(plan, residual=residual or plan.residual)
    small = build_like(model, plan)
    before, after = getattr(model, "kept_channels", {}), kept_channels(small)
    check_layers(model, after, plan.arch)
    for name, (outputs, inputs) in after.items():
        had_outputs, had_inputs = before.get(name, (None, None))
        copy_layer(
            name,
            model.get_submodule(name),
            small.get_submodule(name),
            _places(outputs, had_outputs, name),
            _places(inputs, had_inputs, name),
        )
    return small


def cut_network(model: nn.Module, plan: Plan) -> nn.Module:
    """The small network with those channels of a full one that a plan keeps, by ``prune_model`` or ``slice_network``.

    Args:
        model: the full network of the plan; not changed.
        plan: what stays.

    Raises:
        ValueError: a ``WidthPlan``, whose channels are none of the full network's; or the model does not fit the plan.

    Example:
        >>> cut_network(build_backbone("resnet20"), PrunePlan("resnet20", {"conv1": [0, 5, 9]})).conv1.out_channels
        3
    """
    if isinstance(plan, WidthPlan):
        raise ValueError(
            f"plan gives widths of {plan.arch}, not the filters that stay, so the full network's weights cannot be cut "
            "to it; sketch them with FilterSketchPruning, or give the checkpoint of the narrow network"
        )
    return slice_network(model, plan) if isinstance(plan, TracedPlan) else prune_model(model, plan)


def build_like(model: nn.Module, plan: Plan) -> nn.Module:
    """A network under a plan, with fresh weights, as like another one as it can be.

    Args:
        model: tells the number of classes (the outputs of its last linear layer), dtype, device and each module's mode.
        plan: of a network with a table.

    Raises:
        ValueError: ``model`` has no linear layer.

    Example:
        >>> build_like(build_backbone("resnet20", 7), PrunePlan("resnet20", {})).fc.out_features
        7
    """
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ValueError(f"{type(model).__name__} has no linear layer, whose outputs would tell the number of classes")
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn and thrown away: leave the user's stream alone
        small = build_backbone(plan.arch, linear[-1].out_features, plan)
    modes = {name: part.training for name, part in model.named_modules()}
    for name, part in small.named_modules():
        part.training = modes.get(name, model.training)
    weight = next(model.parameters())
    return small.to(weight.device, weight.dtype)


def check_layers(model: nn.Module, kept: Iterable[str], arch: str) -> None:
    """Refuse a model that has other layers with parameters than these.

    Args:
        model: whose layers are looked at.
        kept: names of the layers.
        arch: the network that has them, for the error.

    Raises:
        ValueError: a layer is missing on one of the two sides.

    Example:
        >>> check_layers(nn.Sequential(nn.Conv2d(3, 4, 3)), ["conv1"], "resnet20")
        Traceback (most recent call last):
            ...
        ValueError: the plan is for arch 'resnet20', and the model, a Sequential, is another network: only one of the
        two has a layer 'conv1'
    """
    have = layers_with_parameters(model)
    if odd := [name for name in kept if name not in have] or [name for name in have if name not in kept]:
        raise ValueError(
            f"the plan is for arch {arch!r}, and the model, a {type(model).__name__}, is another network: "
            f"only one of the two has a layer {odd[0]!r}"
        )


def _places(wanted: Ids, present: Ids, name: str) -> Sequence[int] | None:
    """Where the wanted channels lie among those that are present; ``None`` for all, in order."""
    if wanted == present:
        return None
    if present is None:
        return wanted
    if wanted is None:
        raise ValueError(
            f"the plan keeps all channels at {name!r}, but the model has only {len(present)} of them left; plans are "
            "cumulative: list what earlier pruning left, with the same residual mode"
        )
    place = {channel: i for i, channel in enumerate(present)}
    if missing := [channel for channel in wanted if channel not in place]:
        raise ValueError(f"the plan keeps channels {missing} at {name!r}, which an earlier pruning already removed")
    return [place[channel] for channel in wanted]


def copy_layer(
    name: str,
    source: nn.Module,
    target: nn.Module,
    rows: Sequence[int] | None = None,
    columns: Sequence[int] | None = None,
) -> None:
    """Give one layer the tensors and settings of another, cut to these places.

    Args:
        name: the layer's, for the error.
        source: not changed; parameters and buffers of modules inside it do not count.
        target: takes copies, in place; it has the shapes of what is left.
        rows: places of the outputs that stay, ``None`` for all.
        columns: places of the inputs that stay, ``None`` for all.

    Raises:
        ValueError: what is left has other shapes than ``target``.

    Example:
        >>> small = nn.Linear(3, 2)
        >>> copy_layer("fc", nn.Linear(3, 4), small, rows=[0, 3])
    """

    def cut(tensor: Tensor, expected: Tensor) -> Tensor:
        thin = tensor.detach()
        for dim, places in enumerate((rows, columns)[: tensor.ndim]):
            if places is not None and max(places) < thin.shape[dim]:  # else the shape below is wrong and told
                thin = select(thin, dim, places)
        if thin.shape != expected.shape:
            raise ValueError(
                f"layer {name!r} has {tuple(tensor.shape)}, from which the plan would make {tuple(thin.shape)} "
                f"instead of {tuple(expected.shape)}; the model is not the network the plan is for"
            )
        return copied_like(tensor, thin)

    for key, parameter in source.named_parameters(recurse=False):
        setattr(target, key, nn.Parameter(cut(parameter, target.get_parameter(key)), parameter.requires_grad))
    for key, buffer in source.named_buffers(recurse=False):
        setattr(target, key, cut(buffer, target.get_buffer(key)))
    copy_settings(source, target)


def copy_settings(source: nn.Module, target: nn.Module) -> None:
    """Give one layer what another has beside its tensors: which parameters are frozen, and what a norm computes with.

    Args:
        source: not changed.
        target: a layer with parameters of the same names; changed in place.

    Example:
        >>> norm = nn.BatchNorm2d(4)
        >>> copy_settings(nn.BatchNorm2d(8, eps=0.25).requires_grad_(False), norm)
        >>> norm.eps, norm.weight.requires_grad
        (0.25, False)
    """
    for key, parameter in source.named_parameters(recurse=False):
        target.get_parameter(key).requires_grad = parameter.requires_grad
    if isinstance(source, _BatchNorm) and isinstance(target, _BatchNorm):
        target.eps, target.momentum = source.eps, source.momentum
