"""How the channels of a network without a table hang together, by torch-pruning, and where feature maps score them."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AvgPoolNd, _MaxPoolNd

from lit_methods.backbones.calls import Call, blank_calls, forward_calls
from lit_methods.backbones.groups import ChannelGroup
from lit_methods.backbones.plan import PrunePoint
from lit_methods.backbones.slicing import is_depthwise, layer_widths
from lit_methods.backbones.trial import randomised, sound_groups
from lit_methods.functional.suggestions import first_line


def channel_groups(model: nn.Module, input_size: Sequence[int] = (3, 224, 224)) -> list[ChannelGroup]:
    """The groups of channels that can be removed from a network, in the order of the forward pass.

    Every group is tried out before it is returned: with half of its channels removed, the network must give exactly
    what the full one gives when nothing reads them (random weights, float64), and must run in training mode. What
    fails is left out: the outputs and inputs of the network, channels that are shuffled, or pass a layer norm, a group
    norm or a parameter of the network's own.

    Args:
        model: any network that takes a batch of images and returns a tensor; not changed, nor is random state drawn.
        input_size: (C, H, W) of one image.

    Returns:
        The groups, each with at least two channels; ``select_channels`` chooses among them.

    Raises:
        ValueError: torch-pruning is not installed; the network does not run on such images or cannot be traced; no
            group can be removed.

    Source:
        DepGraph, arXiv 2301.12900, through the package torch-pruning, which is asked for the dependencies alone.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
        >>> [(group.root, group.channels, list(group.readers)) for group in channel_groups(model, (3, 8, 8))]
        [('0', 4, ['2'])]
    """
    arch = type(model).__name__
    cure = "add a table: BACKBONES['my_net'] = Backbone(build, prune_points), as examples/subclass.py does"
    try:
        import torch_pruning
    except ImportError as error:
        raise ValueError(
            f"a bare {arch} has no table that says how its layers hang together, so pruning it needs torch-pruning: "
            f"pip install 'lit-methods[prune]'; or {cure}"
        ) from error
    exact = torch.autocast("cpu", enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), exact, torch.random.fork_rng(devices=[]):
        generator = torch.Generator().manual_seed(0)
        trial = randomised(model, generator)
        images = torch.randn(2, *input_size, generator=generator, dtype=torch.float64)
        try:
            order = dict.fromkeys(call.name for call in forward_calls(trial, images))
            trial.train()(images)
        except Exception as error:  # a stranger's network may raise anything
            raise ValueError(
                f"a {arch} cannot be pruned at input_size={tuple(input_size)}, because it does not run on two such "
                f"images in float64 on a CPU, in eval and in training mode, as the trial does: {first_line(error)}"
            ) from error
        try:
            graph = torch_pruning.DependencyGraph()
            graph.build_dependency(trial.eval(), (images[:1],), verbose=False)
            groups = _groups(graph, {trial.get_submodule(name): name for name in order}, _tied(model))
        except Exception as error:
            raise ValueError(
                f"torch-pruning cannot follow the channels of a {arch} ({type(error).__name__}: {first_line(error)}); "
                f"{cure}"
            ) from error
        groups = sound_groups(trial, groups, images)
    if not groups:
        raise ValueError(f"a {arch} has no channels that can be removed without changing what the others do; {cure}")
    return groups


@torch.inference_mode(False)  # whose tensors count no changes in place
def score_points(
    model: nn.Module, groups: Sequence[ChannelGroup], input_size: Sequence[int] = (3, 224, 224)
) -> tuple[list[ChannelGroup], list[PrunePoint]]:
    """The groups that feature maps can score, and where to take the maps.

    A group has a point for each of its convolutions: behind the norm and activation modules that directly follow it,
    as far as these are called once. Left out are convolutions that are called twice or put out 1x1 maps (as in
    squeeze-and-excitation, whose maps have no rank worth taking), and groups with a channel that then has no score.

    Args:
        model: the network of the groups; its modes and buffers are as before afterwards.
        groups: from ``channel_groups``.
        input_size: (C, H, W) of one image.

    Returns:
        The groups with scores, and their points; point ``"2_1"`` is the first one of the second of these groups.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
        >>> score_points(model, channel_groups(model, (3, 8, 8)), (3, 8, 8))[1]
        [PrunePoint(conv='0', number='1_1', module='1', channels=(0, 4))]
    """
    calls = blank_calls(model, input_size)
    times = Counter(call.name for call in calls)
    scored: list[ChannelGroup] = []
    points: list[PrunePoint] = []
    for group in groups:
        found: list[PrunePoint] = []
        for call in calls:
            shape, layer = call.result.shape, model.get_submodule(call.name)
            maps = isinstance(layer, _ConvNd) and len(shape) == 4 and min(shape[2:]) > 1
            if call.name in group.writers and maps and times[call.name] == 1:
                module = [name for name in _behind(model, call, calls, group) if times[name] == 1][-1]
                found.append(PrunePoint(call.name, f"{len(scored) + 1}_{len(found) + 1}", module, (0, shape[1])))
        if all(any(group.writers[point.conv][i] for point in found) for i in range(group.channels)):
            scored.append(group)
            points += found
    return scored, points


@torch.inference_mode(False)
def norms_behind(model: nn.Module, input_size: Sequence[int] = (3, 224, 224)) -> dict[str, str]:
    """The norms that directly follow convolutions.

    Args:
        model: any network; its modes and buffers are as before afterwards.
        input_size: (C, H, W) of one image.

    Returns:
        Convolution name -> norm name, for those convolutions that are called once and have one.

    Example:
        >>> norms_behind(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)), (3, 8, 8))
        {'0': '1'}
    """
    calls = blank_calls(model, input_size)
    times = Counter(call.name for call in calls)
    layers = {call.name: model.get_submodule(call.name) for call in calls}
    convs = [call for call in calls if times[call.name] == 1 and isinstance(layers[call.name], _ConvNd)]
    followers = [(conv.name, conv.follower(calls)) for conv in convs]
    return {name: after.name for name, after in followers if after and isinstance(layers[after.name], _NormBase)}


def _behind(model: nn.Module, conv: Call, calls: Sequence[Call], group: ChannelGroup) -> list[str]:
    """The convolution, the norm that directly follows it and the activation that directly follows that, if any."""
    chain = [conv]
    for fits in (lambda name: name in group.norms, lambda name: _is_activation(model.get_submodule(name))):
        after = chain[-1].follower(calls)
        if after and fits(after.name) and after.result.shape == conv.result.shape:
            chain.append(after)
    return [call.name for call in chain]


def _is_activation(layer: nn.Module) -> bool:
    """A module that keeps the shape, has no weights and does not pool is an activation, a stranger's own too."""
    return isinstance(layer, nn.PReLU) or not (
        isinstance(layer, _AvgPoolNd | _MaxPoolNd) or any(True for _ in layer.parameters())
    )


def _tied(model: nn.Module) -> set[str]:
    """Layers that share a parameter with another one; cut apart, they would no longer."""
    owners: dict[nn.Parameter, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter, set()).add(name.rpartition(".")[0])
    return {layer for layers in owners.values() if len(layers) > 1 for layer in layers}


def _groups(graph: Any, names: Mapping[nn.Module, str], tied: set[str]) -> list[ChannelGroup]:
    """The groups that torch-pruning sees and we would know how to cut; layers in the order of ``names``."""
    groups: list[ChannelGroup] = []
    for layer, name in names.items():
        if isinstance(layer, _ConvNd) and not any(name in group.writers for group in groups):
            group = _group(graph, names, layer)
            groups += [group] if group and not tied & {*group.writers, *group.norms, *group.readers} else []
    return groups


def _group(graph: Any, names: Mapping[nn.Module, str], root: _ConvNd) -> ChannelGroup | None:
    """What torch-pruning would remove with the channels of ``root``; ``None`` where we would not know how."""
    tables: dict[str, dict[str, list[list[int]]]] = {"writers": {}, "norms": {}, "readers": {}}
    parts = 1
    whole = list(range(root.out_channels))
    for item in graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, whole):
        node, layer = item.dep.target, item.dep.target.module
        writes = graph.is_out_channel_pruning_fn(item.dep.handler)
        if isinstance(layer, nn.Parameter) or (writes and not node.outputs):  # the last node is the network's output
            return None
        if layer not in names or (isinstance(layer, nn.PReLU) and layer.num_parameters == 1):
            continue
        if (widths := layer_widths(layer)) is None:
            return None
        mixes = isinstance(layer, _ConvNd | nn.Linear)
        table = tables["readers" if not writes else "writers" if mixes else "norms"]
        places = table.setdefault(names[layer], [[] for _ in whole])
        for place, channel in zip(item.idxs, item.root_idxs, strict=True):
            places[channel].append(place)
        if mixes and writes and sorted(place for own in places for place in own) != list(range(widths[0])):
            return None  # only some of its outputs: they hang together in another way too
        if isinstance(layer, _ConvNd) and layer.groups > 1 and not is_depthwise(layer):
            if places != [[i] for i in range(widths[not writes])]:
                return None
            parts = math.lcm(parts, layer.groups)
    if root.out_channels % parts or root.out_channels < 2 * parts:
        return None
    order = list(names.values())
    sorted_tables = {
        kind: {name: tuple(map(tuple, table[name])) for name in sorted(table, key=order.index)}
        for kind, table in tables.items()
    }
    return ChannelGroup(names[root], root.out_channels, **sorted_tables, parts=parts)
