"""Narrowing a network that has no table: which channels each layer keeps, in plain types, and the cut itself."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from lit_methods.backbones.kept import Ids, TracedPlan
from lit_methods.functional.suggestions import nearest


def is_depthwise(layer: nn.Module) -> bool:
    """One filter per channel: what leaves the inputs leaves the outputs, and the number of groups follows.

    Example:
        >>> is_depthwise(nn.Conv2d(4, 4, 3, groups=4)), is_depthwise(nn.Conv2d(4, 4, 3, groups=2))
        (True, False)
    """
    return isinstance(layer, _ConvNd) and 1 < layer.groups == layer.in_channels == layer.out_channels


def layer_widths(layer: nn.Module) -> tuple[int, int] | None:
    """(outputs, inputs) of a layer that can be narrowed, ``None`` for any other.

    Batch and instance norms and PReLU act on each channel alone. Layer and group norms mix channels, so that no
    network without some of them is equal to the full one.

    Example:
        >>> layer_widths(nn.Linear(3, 5)), layer_widths(nn.GroupNorm(1, 4))
        ((5, 3), None)
    """
    if isinstance(layer, _ConvNd):
        simple = layer.groups == 1 or is_depthwise(layer) or not layer.transposed
        return (layer.out_channels, layer.in_channels) if simple else None
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    if isinstance(layer, _NormBase):
        return layer.num_features, layer.num_features
    if isinstance(layer, nn.PReLU):
        return layer.num_parameters, layer.num_parameters
    return None


def slice_network(model: nn.Module, plan: TracedPlan) -> nn.Module:
    """The small network with the kept channels of ``model``; needs no torch-pruning.

    Args:
        model: the full network of the plan; not changed. Weights may be any: a fresh network gets the shapes that a
            pruned checkpoint's weights load into.
        plan: what stays.

    Returns:
        A new module of the same dtype, device, modes, memory formats and ``requires_grad`` flags, without gradients in
        the layers that were cut.

    Raises:
        ValueError: ``model`` is another class, lacks a layer of the plan, or lacks channels that the plan keeps.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
        >>> slice_network(model, TracedPlan("Sequential", {"0": [[0, 3], None], "2": [None, [0, 3]]}))[2]
        Conv2d(2, 2, kernel_size=(1, 1), stride=(1, 1))
    """
    if type(model).__name__ != plan.arch:
        raise ValueError(
            f"the plan is for a {plan.arch}, the network is a {type(model).__name__}; give the one the plan is for"
        )
    small = copy.deepcopy(model)
    layers = dict(small.named_modules())
    for name, sides in plan.layers.items():
        if name not in layers:
            raise ValueError(f"the plan cuts layer {name!r}, which the {plan.arch} lacks{nearest(name, layers)}")
        widths = layer_widths(layers[name])
        if widths is None:
            raise ValueError(f"the plan cuts layer {name!r}, but a {type(layers[name]).__name__} cannot be cut")
        for ids, width in zip(sides, widths, strict=True):
            if ids is not None and ids[-1] >= width:
                raise ValueError(
                    f"the plan keeps channel {ids[-1]} at {name!r}, which has {width}; it is for a full network of "
                    "other widths, or the model is pruned already"
                )
        _cut_layer(layers[name], *sides)
    return small


def _cut_layer(layer: nn.Module, outputs: Ids, inputs: Ids) -> None:
    for key, weight in list(layer.named_parameters(recurse=False)):
        cut = nn.Parameter(_cut(layer, weight.detach(), outputs, inputs), requires_grad=weight.requires_grad)
        setattr(layer, key, cut)
    for key, buffer in list(layer.named_buffers(recurse=False)):
        setattr(layer, key, _cut(layer, buffer, outputs, inputs))
    if isinstance(layer, _ConvNd):
        if outputs is not None and is_depthwise(layer):
            layer.groups = layer.in_channels = layer.out_channels = len(outputs)
        layer.out_channels = layer.out_channels if outputs is None else len(outputs)
        layer.in_channels = layer.in_channels if inputs is None else len(inputs)
    elif isinstance(layer, nn.Linear):
        layer.out_features = layer.out_features if outputs is None else len(outputs)
        layer.in_features = layer.in_features if inputs is None else len(inputs)
    elif outputs is not None:
        setattr(layer, "num_parameters" if isinstance(layer, nn.PReLU) else "num_features", len(outputs))


def _cut(layer: nn.Module, tensor: Tensor, outputs: Ids, inputs: Ids) -> Tensor:
    """What stays of one tensor of the layer, in the same memory format."""
    if tensor.ndim == 0:  # the counter of a batch norm
        return tensor
    swapped = isinstance(layer, _ConvNd) and layer.transposed and not is_depthwise(layer) and tensor.ndim > 1
    thin = tensor.transpose(0, 1) if swapped else tensor
    if inputs is not None and tensor.ndim > 1:
        groups = layer.groups if isinstance(layer, _ConvNd) else 1
        width = thin.shape[1]  # of one group, whose filters see its own inputs only
        seen = [[i - g * width for i in inputs if i // width == g] for g in range(groups)]
        thin = torch.cat([select(part, 1, ids) for part, ids in zip(thin.chunk(groups), seen, strict=True)])
    if outputs is not None:
        thin = select(thin, 0, outputs)
    return copied_like(tensor, thin.transpose(0, 1) if swapped else thin)


def select(tensor: Tensor, dim: int, ids: Sequence[int]) -> Tensor:
    """The entries at some places of one dimension, as a new tensor.

    Args:
        tensor: any.
        dim: the dimension.
        ids: places in it, in the order that is wanted.

    Example:
        >>> select(torch.eye(3), 0, [0, 2])
        tensor([[1., 0., 0.],
                [0., 0., 1.]])
    """
    return tensor.index_select(dim, torch.as_tensor(ids, device=tensor.device))


def copied_like(tensor: Tensor, values: Tensor) -> Tensor:
    """A copy in the memory format of another tensor: channels last, where that is the other one's, else contiguous.

    Args:
        tensor: the other one.
        values: what is copied; may have another shape.

    Example:
        >>> last = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
        >>> copied_like(last, torch.zeros(2, 3, 4, 4)).stride()
        (48, 1, 12, 3)
    """
    last = not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)  # 1x1 is both
    return values.clone(memory_format=torch.channels_last if last else torch.contiguous_format)
