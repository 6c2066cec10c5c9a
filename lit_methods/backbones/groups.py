"""Channels that hang together, which of them stay, and what that leaves of each layer."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_methods.backbones.kept import Ids, TracedPlan, checked_ids
from lit_methods.backbones.slicing import layer_widths
from lit_methods.functional.suggestions import nearest

Places = tuple[tuple[int, ...], ...]  # per channel of a group: its places among the outputs or inputs of a layer


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed together, wherever they are written, normalised and read.

    The three tables go from layer names, in the order of the forward pass, to the places of each channel in that layer.

    Args:
        root: the first convolution that writes all of these channels; its output ids number them.
        channels: how many there are.
        writers: convolutions and linear layers whose outputs they are; depthwise convolutions among them.
        norms: norms (and PReLUs) that act on each of them.
        readers: convolutions and linear layers whose inputs they are; a linear layer behind a flattened map has
            several places per channel.
        parts: equal blocks of channels that must lose equal numbers, because a grouped convolution writes or reads
            them; else 1.

    Example:
        >>> ChannelGroup("0", 2, writers={"0": ((0,), (1,))}, norms={}, readers={"3": ((0, 1), (2, 3))}).readers["3"][1]
        (2, 3)
    """

    root: str
    channels: int
    writers: Mapping[str, Places]
    norms: Mapping[str, Places]
    readers: Mapping[str, Places]
    parts: int = 1

    def mean_score(self, scores: Mapping[str, Tensor]) -> Tensor:
        """A score per channel: the mean over those of the writers that have scores, each looked up at its place.

        Args:
            scores: convolution name -> (its outputs,).

        Returns:
            (channels,) float64 on the CPU.

        Raises:
            ValueError: scores of another length or NaN; a channel without any.
        """
        found: list[list[float]] = [[] for _ in range(self.channels)]
        for name in [name for name in self.writers if name in scores]:
            places = self.writers[name]
            width = sum(map(len, places))
            if scores[name].shape != (width,) or scores[name].isnan().any():
                raise ValueError(f"scores of {name!r} must be {width} numbers, got shape {tuple(scores[name].shape)}")
            values = scores[name].tolist()
            for row, own in zip(found, places, strict=True):
                row += [values[place] for place in own]
        if not all(found):
            raise ValueError(f"no scores for all channels of {self.root!r}; give those of {', '.join(self.writers)}")
        return torch.tensor([math.fsum(row) / len(row) for row in found], dtype=torch.float64)


def select_channels(
    scores: Mapping[str, Tensor], groups: Sequence[ChannelGroup], removed: Sequence[int]
) -> dict[str, list[int]]:
    """The channels that stay: in each group those with the lowest scores go.

    A channel's score is the mean over the group's convolutions that have scores ("aligned" channels of a residual
    stream). Among equals the lower id goes first. A group of several parts loses equal numbers in each, every part
    its own lowest, rounded down. The best channel of each part and of each layer always stays.

    Args:
        scores: convolution name -> (its outputs,), higher is better; from ``rank_scores``.
        groups: what can be removed.
        removed: how many channels each group loses.

    Returns:
        Root -> rising ids that stay, for the groups that lose any.

    Raises:
        ValueError: another number of groups than of ``removed``; scores that are missing, of another length or NaN.

    Example:
        >>> alone = tuple((i,) for i in range(4))
        >>> group = ChannelGroup("a", 4, {"a": alone}, {}, {"b": alone}, parts=2)
        >>> select_channels({"a": torch.tensor([3.0, 1.0, 2.0, 2.0])}, [group], [2])
        {'a': [0, 3]}
    """
    if len(removed) != len(groups):
        raise ValueError(f"removed must be one number per group, {len(groups)}, got {len(removed)}")
    keep: dict[str, list[int]] = {}
    for group, count in zip(groups, removed, strict=True):
        if count < group.parts:
            continue
        order = group.mean_score(scores).argsort(stable=True).tolist()
        parts = [[i for i in order if i * group.parts // group.channels == part] for part in range(group.parts)]
        layers = [*group.writers.values(), *group.norms.values(), *group.readers.values()]
        blocks = parts + [[i for i in order if places[i]] for places in layers]
        best = {block[-1] for block in blocks}
        free = [[i for i in part if i not in best] for part in parts]
        if gone := min(count // group.parts, *map(len, free)):
            keep[group.root] = sorted({*order}.difference(*(part[:gone] for part in free)))
    return keep


def traced_plan(model: nn.Module, groups: Sequence[ChannelGroup], keep: Mapping[str, Sequence[int]]) -> TracedPlan:
    """What each layer keeps when the groups keep these channels; for ``slice_network``.

    Args:
        model: the full network of the groups.
        groups: from ``channel_groups``.
        keep: root -> rising ids to keep; other groups stay whole.

    Raises:
        ValueError: a root of no group; ids that do not rise or exist; parts of a group that would keep unequal numbers.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 4, 1))
        >>> group = ChannelGroup("0", 2, {"0": ((0,), (1,))}, {}, {"1": ((0,), (1,))})
        >>> traced_plan(model, [group], {"0": [1]}).layers
        {'0': [[1], None], '1': [None, [1]]}
    """
    roots = {group.root: group for group in groups}
    removed: dict[str, tuple[set[int], set[int]]] = {}
    for root, ids in keep.items():
        if root not in roots:
            raise ValueError(f"keep names {root!r}, which is the root of no group{nearest(root, roots)}")
        group, ids = roots[root], checked_ids(root, ids)
        kept = Counter(i * group.parts // group.channels for i in ids)
        if ids[-1] >= group.channels:
            raise ValueError(f"keep has channel {ids[-1]} of {root!r}, which has {group.channels}")
        if len(kept) < group.parts or len(set(kept.values())) > 1:
            raise ValueError(
                f"keep must hold equal numbers from each of {group.parts} blocks of channels of {root!r}, for its "
                f"grouped convolution; got {[kept[part] for part in range(group.parts)]}"
            )
        gone = sorted({*range(group.channels)}.difference(ids))
        for side, table in ((0, group.writers), (0, group.norms), (1, group.readers)):
            for name, places in table.items():
                removed.setdefault(name, (set(), set()))[side].update(place for i in gone for place in places[i])
    layers: dict[str, list[Ids]] = {}
    for name, layer in model.named_modules():
        widths = layer_widths(layer) if any(removed.get(name, ())) else None
        if widths:
            layers[name] = [
                [i for i in range(width) if i not in places] if places else None
                for places, width in zip(removed[name], widths, strict=True)
            ]
    return TracedPlan(type(model).__name__, layers)
