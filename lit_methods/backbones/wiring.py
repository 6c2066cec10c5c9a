"""How networks are built thin: which channels of the full network are still there, and the layers between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_methods.backbones.kept import Ids
from lit_methods.backbones.plan import Plan
from lit_methods.functional.suggestions import nearest


@dataclass(frozen=True)
class Channels:
    """The surviving channels of a stream.

    Args:
        full: how wide it is in the full network.
        ids: of those that are left, rising; ``None`` while all are there.

    Example:
        >>> left = Channels(4, (0, 3))
        >>> len(left), left + Channels(2), left | Channels(4, (1, 3))
        (2, Channels(full=6, ids=(0, 3, 4, 5)), Channels(full=4, ids=(0, 1, 3)))
    """

    full: int
    ids: tuple[int, ...] | None = None

    @classmethod
    def of(cls, full: int, ids: Sequence[int]) -> Channels:
        """A complete list of ids is the same as none."""
        return cls(full, None if len(ids) == full else tuple(ids))

    def __len__(self) -> int:
        return self.full if self.ids is None else len(self.ids)

    def listed(self) -> Sequence[int]:
        """The ids, spelled out."""
        return range(self.full) if self.ids is None else self.ids

    def plain(self) -> Ids:
        """The form that ``kept_channels`` holds."""
        return None if self.ids is None else list(self.ids)

    def shifted(self, front: int, full: int) -> Channels:
        """The same channels in a stream of width ``full``, ``front`` places further on."""
        return Channels.of(full, [front + i for i in self.listed()])

    def __or__(self, other: Channels) -> Channels:
        """What a sum of two streams carries."""
        assert self.full == other.full, "channels of two streams"
        return Channels.of(self.full, sorted({*self.listed(), *other.listed()}))

    def __and__(self, other: Channels) -> Channels:
        """What both of two streams carry."""
        assert self.full == other.full, "channels of two streams"
        return Channels.of(self.full, sorted({*self.listed()}.intersection(other.listed())))

    def __add__(self, other: Channels) -> Channels:
        """What a concatenation carries."""
        ids = [*self.listed(), *(self.full + i for i in other.listed())]
        return Channels.of(self.full + other.full, ids)

    def whole(self) -> Channels:
        """The stream with every channel in place."""
        return Channels(self.full)


class Wiring:
    """Builds the layers of one network as a plan wants them and notes what survives, by the layer's full name.

    A layer's constructor gets the name it will have inside the network; ``kept_channels`` then holds, per layer with
    parameters, the surviving (output ids, input ids) in the numbering of the full network, ``None`` for all.

    Under a ``WidthPlan`` the channels inside a block are new ones, without a number in the full network; they count as
    all there.

    Args:
        plan: what pruning left, ``None`` for all.

    Raises:
        ValueError: the plan's ids or widths do not exist; from ``finish``: it names convolutions or gates that do not
            exist.

    Example:
        >>> from lit_methods.backbones.kept import PrunePlan
        >>> wiring = Wiring(PrunePlan("mine", {"conv": [1, 5]}))
        >>> conv, stream = wiring.conv("conv", Channels(3), 6, kernel=3)
        >>> head = wiring.linear("head", stream, 10)
        >>> conv.out_channels, head.in_features, wiring.finish()
        (2, 2, {'conv': ([1, 5], None), 'head': (None, [1, 5])})
    """

    def __init__(self, plan: Plan | None) -> None:
        self.keep: dict[str, list[int]] = getattr(plan, "keep", {})
        self.mid: dict[str, int] = getattr(plan, "mid", {})
        self.gates: dict[str, list[int]] = getattr(plan, "gates", {})
        self.live = getattr(plan, "residual", "live") == "live"
        self.kept_channels: dict[str, tuple[Ids, Ids]] = {}
        self._convolutions: list[str] = []
        self._gates: list[str] = []

    def conv(self, name: str, source: Channels, out: int, kernel: int, **options: Any) -> tuple[nn.Conv2d, Channels]:
        """The convolution ``name`` and the channels it puts out; padded to keep the size at stride 1.

        Args:
            name: where it will be inside the network.
            source: its inputs.
            out: its filters in the full network.
            kernel: side of the kernel, odd.
            options: of ``nn.Conv2d``, such as ``stride`` and ``bias``.
        """
        kept = Channels(out)
        if name in self.mid:
            kept = Channels(self.mid[name])
            if len(kept) > out:
                raise ValueError(f"plan gives {name!r} {len(kept)} filters, the full network has {out}")
        elif name in self.keep:
            ids = self.keep[name]
            if ids[-1] >= out:
                raise ValueError(
                    f"plan keeps channel {ids[-1]} of {name!r}, which has {out} channels; ids run from 0 to {out - 1}"
                )
            kept = Channels.of(out, ids)
        self._convolutions.append(name)
        self.kept_channels[name] = (kept.plain(), source.plain())
        return nn.Conv2d(len(source), len(kept), kernel, padding=kernel // 2, **options), kept

    def norm(self, name: str, channels: Channels, dims: int = 2) -> nn.BatchNorm1d | nn.BatchNorm2d:
        """The batch norm ``name`` over these channels of maps (``dims=2``) or of vectors (``dims=1``)."""
        self.kept_channels[name] = (channels.plain(), channels.plain())
        return (nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d)(len(channels))

    def linear(self, name: str, source: Channels, out: int) -> nn.Linear:
        """The fully connected layer ``name``; its outputs are never pruned."""
        self.kept_channels[name] = (None, source.plain())
        return nn.Linear(len(source), out)

    def stream(self, channels: Channels) -> Channels:
        """What a residual stream carries whose other channels are zero: these ("live") or all ("scatter")."""
        return channels if self.live else channels.whole()

    def gate(self, name: str, channels: Channels, droppable: bool = True) -> Channels:
        """The channels that are left behind a gate: all where the plan closes none.

        Args:
            name: of the module behind which the gate is.
            channels: that arrive.
            droppable: a ``Spread`` or ``ResidualSum`` puts out what is left; else the filters of closed channels must
                be gone already.

        Raises:
            ValueError: ids that do not exist; nothing is left; channels that are closed, cannot be dropped and arrive.
        """
        self._gates.append(name)
        if name not in self.gates:
            return channels
        ids = self.gates[name]
        if ids[-1] >= channels.full:
            raise ValueError(
                f"plan opens channel {ids[-1]} behind {name!r}, which has {channels.full}; ids run from 0 to "
                f"{channels.full - 1}"
            )
        left = channels & Channels.of(channels.full, ids)
        if not len(left):
            raise ValueError(f"plan opens only channels behind {name!r} whose filters are gone; keep one of them")
        if left != channels and not droppable:
            raise ValueError(f"plan closes channels behind {name!r} whose filters it keeps; keep the open ones alone")
        return left

    def finish(self) -> dict[str, tuple[Ids, Ids]]:
        """``kept_channels``, after checking that the plan named nothing else."""
        for name in self.gates:
            if name not in self._gates:
                raise ValueError(
                    f"plan opens channels behind {name!r}, where the network has no gate{nearest(name, self._gates)}"
                )
        for name in {**self.keep, **self.mid}:
            if name not in self._convolutions:
                raise ValueError(
                    f"plan keeps channels of {name!r}, but the network has no such convolution"
                    f"{nearest(name, self._convolutions)}"
                )
        return self.kept_channels


class Spread(nn.Module):
    """Put channels at their places in another stream and leave zeros elsewhere; nothing to do costs nothing.

    Args:
        source: the channels of the input.
        target: those of the output; what else the source has is dropped.

    Example:
        >>> Spread(Channels(4, (3,)), Channels(4, (0, 3)))(torch.ones(1, 1, 1, 1)).flatten()
        tensor([0., 1.])
        >>> Spread(Channels(2), Channels(2, (1,)))(torch.tensor([5.0, 6.0]).view(1, 2, 1, 1)).flatten()
        tensor([6.])
    """

    taken: Tensor | None
    index: Tensor | None

    def __init__(self, source: Channels, target: Channels) -> None:
        super().__init__()
        place = {channel: i for i, channel in enumerate(target.listed())}
        taken = [i for i, channel in enumerate(source.listed()) if channel in place]
        places = [place[channel] for channel in source.listed() if channel in place]
        self.width, self.empty = len(target), not places
        self.slice = (taken[0], len(taken)) if taken and _together(taken) and len(taken) < len(source) else None
        self.register_buffer("taken", None if _together(taken) else torch.tensor(taken), persistent=False)
        together = _together(places)
        self.pad = (0, 0, 0, 0, places[0], self.width - places[0] - len(places)) if together and places else None
        self.register_buffer("index", None if together else torch.tensor(places), persistent=False)

    def take(self, x: Tensor) -> Tensor:
        """(N, source, H, W) to what the target has of it."""
        if self.taken is not None:
            return x.index_select(1, self.taken)
        return x.narrow(1, *self.slice) if self.slice else x

    def forward(self, x: Tensor) -> Tensor:
        """(N, source, H, W) to (N, target, H, W)."""
        if self.index is None and not self.empty:
            x = self.take(x)
            return F.pad(x, self.pad) if self.pad and any(self.pad) else x
        wide = x.new_zeros(x.shape[0], self.width, x.shape[2], x.shape[3])
        return wide if self.index is None else wide.index_copy(1, self.index, self.take(x))


def _together(places: Sequence[int]) -> bool:
    """Whether they are consecutive; so are none."""
    return not places or list(places) == list(range(places[0], places[0] + len(places)))


class ResidualSum(nn.Module):
    """Add shortcut and branch channel by channel, each channel id to its equal.

    Args:
        shortcut: channels of the first input.
        branch: channels of the second one.
        target: channels of the sum; those of the inputs that are not among them are dropped.

    Example:
        >>> add = ResidualSum(Channels(3, (0, 1)), Channels(3, (1, 2)), Channels(3))
        >>> add(torch.ones(1, 2, 1, 1), torch.ones(1, 2, 1, 1)).flatten()
        tensor([1., 2., 1.])
    """

    def __init__(self, shortcut: Channels, branch: Channels, target: Channels) -> None:
        super().__init__()
        self.spread_shortcut = Spread(shortcut, target)
        self.spread_branch = Spread(branch, target)

    def forward(self, shortcut: Tensor, branch: Tensor) -> Tensor:
        """(N, shortcut, H, W) + (N, branch, H, W) to (N, target, H, W)."""
        first, second = self.spread_shortcut, self.spread_branch
        if first.empty:
            return second(branch)
        if first.index is not None:
            return second(branch).index_add(1, first.index, first.take(shortcut))
        if second.index is not None:
            return first(shortcut).index_add(1, second.index, second.take(branch))
        return first(shortcut) + second(branch)
