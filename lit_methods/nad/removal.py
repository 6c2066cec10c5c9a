"""Masks behind the gates of a network without a table, and the removal of what they silence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_methods.backbones import TracedPlan
from lit_methods.backbones.groups import ChannelGroup, traced_plan
from lit_methods.backbones.slicing import slice_network
from lit_methods.backbones.traced import channel_groups
from lit_methods.backbones.trial import randomised
from lit_methods.functional.suggestions import first_line

Masks = Mapping[str, Tensor]  # gate point -> (C,) bool, the channels of its output that are open
_TOLERANCE = 1e-8  # of the largest output, in float64
_SAME = 1e-9  # of a sum without cancellation, in float64


class GatedLayer(nn.Module):
    """A layer whose closed channels put out zeros.

    Args:
        layer: gives (N, C, ...); its attributes can be read here, for networks that look into it.
        mask: which channels are open, 0 or 1 and of as many dimensions as the outputs, (1, C, 1, 1) for maps.

    Example:
        >>> GatedLayer(nn.ReLU(), torch.tensor([[1.0, 0.0]]))(torch.tensor([[-1.0, 2.0], [3.0, 4.0]]))
        tensor([[0., 0.],
                [3., 0.]])
    """

    mask: Tensor

    def __init__(self, layer: nn.Module, mask: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("mask", mask)
        self.training = layer.training

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, *args: Any, **options: Any) -> Tensor:
        """What the layer gives, times the mask."""
        output = self.layer(*args, **options)
        return output * self.mask.to(output.dtype)


class _Cut(NamedTuple):
    """What is removed, and the masks over what is left.

    Args:
        plan: of the layers.
        masks: gate point -> (1, C, 1, 1) bool, for the channels that its output still has.
    """

    plan: TracedPlan
    masks: dict[str, Tensor]

    def made_of(self, model: nn.Module) -> nn.Module:
        """The small network, of a full one."""
        small = slice_network(model, self.plan)
        like = next((weight for weight in model.parameters() if weight.is_floating_point()), torch.zeros(()))
        parents = list(small.modules())
        for point, mask in self.masks.items():
            if mask.all():
                continue
            layer = small.get_submodule(point)
            gated = GatedLayer(layer, mask.to(like))
            for parent in parents:
                for key, child in list(parent._modules.items()):  # named_children leaves second names out
                    if child is layer:
                        parent.add_module(key, gated)
        return small


@torch.inference_mode(False)
@torch.no_grad()
@torch.autocast("cpu", enabled=False)
def without_closed(model: nn.Module, masks: Masks, input_size: Sequence[int]) -> nn.Module:
    """A network with masks behind its gates, less the channels that arrive as zeros wherever they are read.

    Which ones these are is found out on random weights, in networks of positive weights too: an activation that is
    dead by chance is no closed channel. The result is tried out on other weights; groups of channels that spoil it
    stay whole.

    Arguments and errors are those of ``sub_network``, for masks that are in order.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
        >>> without_closed(net, {"0": torch.tensor([True, False, True, True])}, (3, 8, 8))[0]  # the norm follows
        GatedLayer(
          (layer): Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
        )
    """
    generator = torch.Generator().manual_seed(0)
    mixed = randomised(model, generator).eval()
    images = torch.randn(2, *input_size, generator=generator, dtype=torch.float64)
    shaped = _shaped(mixed, masks, images)
    groups = _groups(model, input_size)
    zero = _zeros(mixed, groups, shaped, images)
    del mixed  # large networks are copied often enough
    positive, bright = _positive(model, generator), 1 + images.abs()
    by_gates = _zeros(positive, groups, shaped, bright)  # no activation is dead there and nothing cancels
    anyway = _zeros(positive, groups, {}, bright)
    gone: dict[str, set[int]] = {}
    for group in groups:
        closed = (zero[group.root] & by_gates[group.root]) - anyway[group.root]
        gone[group.root] = _removable(group, closed)
    fresh = randomised(model, generator).eval()
    expected = _run(fresh, images, shaped)

    def cut(chosen: Sequence[ChannelGroup]) -> _Cut | None:
        """Without the channels of these groups, if that works."""
        keep = {group.root: sorted({*range(group.channels)} - gone[group.root]) for group in chosen}
        plan = traced_plan(model, chosen, keep)
        try:
            found = _Cut(plan, _left(positive, plan, shaped, bright))
            actual = found.made_of(fresh)(images)
        except Exception:  # shapes that no longer fit raise anything
            return None
        scale = expected.abs().max().item()
        same = actual.shape == expected.shape and torch.allclose(actual, expected, rtol=0, atol=_TOLERANCE * scale)
        return found if same else None

    smaller = [group for group in groups if gone[group.root]]
    found = cut(smaller) or cut(_sound(smaller, lambda some: cut(some) is not None)) or cut([])
    if found is None:
        raise ValueError(
            f"a {type(model).__name__} cannot be rebuilt with masks behind {', '.join(masks)}: it does not reach these "
            "modules through its own tree, or gives other outputs each time"
        )
    return found.made_of(model)


def _sound(groups: list[ChannelGroup], works: Callable[[list[ChannelGroup]], bool]) -> list[ChannelGroup]:
    """Those of the groups that can be narrowed, found by halving."""
    if not groups or works(groups):
        return groups
    middle = len(groups) // 2
    return _sound(groups[:middle], works) + _sound(groups[middle:], works) if middle else []


def _groups(model: nn.Module, input_size: Sequence[int]) -> list[ChannelGroup]:
    """The channels that hang together; none where that cannot be told, but without torch-pruning an error."""
    try:
        return channel_groups(model, input_size)
    except ValueError as error:
        if isinstance(error.__cause__, ImportError):
            raise
        return []


def _positive(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A random copy that keeps positive maps positive and small."""
    trial = randomised(model, generator).eval()
    for weight in trial.parameters():
        weight.abs_()
        if weight.ndim > 1:
            weight.div_(2 * weight.flatten(1).sum(1).view(-1, *[1] * (weight.ndim - 1)))
    for key, buffer in trial.named_buffers():
        if key.endswith("running_mean"):
            buffer.abs_().neg_()
    return trial


def _removable(group: ChannelGroup, zero: set[int]) -> set[int]:
    """As many of these channels as a group can lose."""
    free = set(zero)
    for places in (*group.writers.values(), *group.norms.values(), *group.readers.values()):
        own = [i for i in range(group.channels) if places[i]]
        if own and free.issuperset(own):  # a layer keeps one
            free.remove(own[-1])
    parts = [sorted(i for i in free if i * group.parts // group.channels == part) for part in range(group.parts)]
    fewest = min(map(len, parts))
    return {i for part in parts for i in part[:fewest]}


def _run(
    model: nn.Module,
    images: Tensor,
    masks: Masks,
    points: Collection[str] = (),
    readers: Mapping[str, Callable[[Tensor, int], Tensor | None]] | None = None,
    seen: dict[str, Tensor] | None = None,
) -> Tensor:
    """A forward pass with gates.

    Args:
        model: its hooks are as before afterwards.
        images: a batch.
        masks: gate point -> (1, C, 1, 1), multiplied with the outputs.
        points: modules whose outputs are summed per channel.
        readers: layer name -> gets the input and its channel dimension; what it returns is read instead.
        seen: takes the sums, by name.
    """

    def read(layer: nn.Module, inputs: tuple[Any, ...], look: Callable[[Tensor, int], Tensor | None]) -> Any:
        changed = look(inputs[0], inputs[0].ndim - 1 if isinstance(layer, nn.Linear) else 1)
        return None if changed is None else (changed, *inputs[1:])

    def count(_: nn.Module, inputs: Any, output: Tensor, point: str) -> None:
        assert seen is not None
        seen[point] = output.transpose(0, 1).flatten(1).sum(1)

    with ExitStack() as hooks:
        for point in points:
            hooks.enter_context(model.get_submodule(point).register_forward_hook(partial(count, point=point)))
        for point, mask in masks.items():
            gate = partial(lambda _, __, output, mask: output * mask, mask=mask)
            hooks.enter_context(model.get_submodule(point).register_forward_hook(gate))
        for name, look in (readers or {}).items():
            hooks.enter_context(model.get_submodule(name).register_forward_pre_hook(partial(read, look=look)))
        return model(images)


def _zeros(model: nn.Module, groups: Sequence[ChannelGroup], masks: Masks, images: Tensor) -> dict[str, set[int]]:
    """Root -> channels of its group that are 0 wherever they are read."""
    alive: dict[str, set[int]] = {name: set() for group in groups for name in group.readers}

    def look(x: Tensor, dim: int, places: set[int]) -> None:
        places.update((x != 0).movedim(dim, 0).flatten(1).any(1).nonzero().flatten().tolist())

    _run(model, images, masks, readers={name: partial(look, places=places) for name, places in alive.items()})
    return {
        group.root: {
            i for i in range(group.channels) if all(alive[name].isdisjoint(at[i]) for name, at in group.readers.items())
        }
        for group in groups
    }


def _left(model: nn.Module, plan: TracedPlan, masks: Masks, images: Tensor) -> dict[str, Tensor]:
    """The masks over those channels that the outputs of the gate points have left.

    The channels are recognised by their sums on a network of positive weights, where no two are alike.

    Raises:
        ValueError: not all are recognised.
    """

    def hide(x: Tensor, dim: int, kept: Tensor) -> Tensor:
        return torch.zeros_like(x).index_copy(dim, kept, x.index_select(dim, kept))

    hidden = {
        name: partial(hide, kept=torch.tensor(inputs))
        for name, (_, inputs) in plan.layers.items()
        if inputs is not None
    }
    before: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}
    _run(model, images, {}, masks, hidden, before)
    _run(slice_network(model, plan), images, {}, masks, seen=after)
    left: dict[str, Tensor] = {}
    for point, mask in masks.items():
        wanted, ids = after[point].tolist(), list[int]()
        for i, value in enumerate(before[point].tolist()):
            if len(ids) < len(wanted) and abs(value - wanted[len(ids)]) <= _SAME * abs(value):
                ids.append(i)
        if len(ids) < len(wanted):
            raise ValueError(f"channels behind {point!r} are not recognised")
        left[point] = mask.index_select(1, torch.tensor(ids))
    return left


def _shaped(model: nn.Module, masks: Masks, images: Tensor) -> dict[str, Tensor]:
    """The masks as (1, C, 1, 1), or as the outputs of the gate points want them."""
    outputs: dict[str, Any] = {}

    def note(_: nn.Module, inputs: Any, output: Any, point: str) -> None:
        outputs[point] = output

    with ExitStack() as hooks:
        for point in masks:
            hooks.enter_context(model.get_submodule(point).register_forward_hook(partial(note, point=point)))
        try:
            model(images)
        except Exception as error:  # a stranger's network may raise anything
            raise ValueError(
                f"input_size={tuple(images.shape[1:])}: the network does not run on such images in float64 on a CPU, "
                f"as the trial of its gates does: {first_line(error)}"
            ) from error
    shaped: dict[str, Tensor] = {}
    for point, mask in masks.items():
        output = outputs.get(point)
        if not isinstance(output, Tensor) or output.ndim < 2:
            raise ValueError(f"{point!r} gives no tensor (N, C, ...) in a forward pass, so it can have no gate")
        open_ids(point, mask, output.shape[1])
        shaped[point] = mask.cpu().view(1, -1, *[1] * (output.ndim - 2))
    return shaped


def open_ids(point: str, mask: Tensor, channels: int | None = None) -> list[int]:
    """The open channels of a mask.

    Args:
        point: the gate point's name, for the error.
        mask: (C,) bool.
        channels: how many the gate point has, where that is known.

    Raises:
        ValueError: no channel is open; another length or type.

    Example:
        >>> open_ids("maxpool", torch.tensor([True, False, True]))
        [0, 2]
    """
    if mask.dtype is not torch.bool or mask.ndim != 1:
        raise ValueError(f"the mask of {point!r} must be (C,) bool, got {mask.dtype} {tuple(mask.shape)}")
    if channels is not None and len(mask) != channels:
        raise ValueError(f"the mask of {point!r} has {len(mask)} entries, its output {channels} channels")
    if not mask.any():
        raise ValueError(
            f"no gate of {point!r} is open, so nothing is left of the network; learn with a lower beta, take a lower "
            "threshold, or train for more epochs"
        )
    return mask.nonzero().flatten().tolist()
