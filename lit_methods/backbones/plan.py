"""What pruning leaves of a network: where channels are scored, which are kept, and how the small network is made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

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
            if not ids:
                raise ValueError(f"plan keeps no channel of {conv!r}; a convolution needs at least one")
            if ids[0] < 0 or any(a >= b for a, b in pairwise(ids)):
                raise ValueError(f"plan's ids of {conv!r} must be rising numbers from 0, each once, got {ids}")

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for ``hparams["plan"]``."""
        return {
            "arch": self.arch,
            "keep": {conv: list(ids) for conv, ids in self.keep.items()},
            "residual": self.residual,
        }

    @classmethod
    def from_dict(cls, plan: dict[str, Any]) -> "PrunePlan":
        """The inverse of ``to_dict``.

        Raises:
            ValueError: keys are missing or unknown.
        """
        if not {"arch", "keep"} <= plan.keys() <= {"arch", "keep", "residual"}:
            raise ValueError(f"a plan has the keys 'arch', 'keep' and, if wanted, 'residual'; got {sorted(plan)}")
        return cls(**plan)


@dataclass(frozen=True)
class Backbone:
    """An entry of ``BACKBONES``.

    A network of your own can be pruned once it has an entry. Its constructor creates every layer that has parameters
    through a ``lit_methods.backbones.wiring.Wiring`` and keeps the result of ``finish()`` as ``self.kept_channels``.

    Args:
        build: ``build(num_classes=10, plan=None)`` -> network, thin where a ``PrunePlan`` is given.
        prune_points: ``prune_points()`` -> one ``PrunePoint`` per prunable convolution, in official order.
        input_size: (C, H, W) of the images it was published with.
        spare_rates: how many rates may follow the last group's, for convolutions that are never pruned (VGG's 13th).
        counted_thin: convolutions of which HRank's own FLOP counter leaves out the removed inputs too.
    """

    build: Callable[..., nn.Module]
    prune_points: Callable[[], list[PrunePoint]]
    input_size: tuple[int, int, int] = (3, 32, 32)
    spare_rates: int = 0
    counted_thin: tuple[str, ...] = ()


BACKBONES: dict[str, Backbone] = {}


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
        f"a bare {type(arch).__name__} has no table that says how its layers hang together, so it cannot be pruned; "
        "add one, BACKBONES['my_net'] = Backbone(build, prune_points), as examples/subclass.py does, and pass its name"
    )


def build_backbone(
    arch: str | nn.Module, num_classes: int = 10, plan: PrunePlan | dict[str, Any] | None = None
) -> nn.Module:
    """The network of this name, thin where a plan says so; a module is returned as it is.

    Args:
        arch: a key of ``BACKBONES``, or a network.
        num_classes: outputs of the last layer; without effect for a network.
        plan: a ``PrunePlan`` or its ``to_dict()``.

    Raises:
        ValueError: an unknown name; a plan for a module or for another network; ids that do not exist.

    Example:
        >>> build_backbone("resnet20", plan={"arch": "resnet20", "keep": {"layer1.0.conv1": [0, 5]}}).layer1[0].conv1
        Conv2d(16, 2, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    if isinstance(arch, nn.Module):
        if plan is not None:
            find_backbone(arch)
        return arch
    backbone = find_backbone(arch)
    if plan is None:
        return backbone.build(num_classes)
    if not isinstance(plan, PrunePlan):
        plan = PrunePlan.from_dict(plan)
    if plan.arch != arch:
        raise ValueError(f"the plan is for arch {plan.arch!r}, the network is {arch!r}; build the one the plan is for")
    return backbone.build(num_classes, plan=plan)


def prune_points(arch: str) -> list[PrunePoint]:
    """The prunable convolutions of a network, in official order.

    Raises:
        ValueError: ``arch`` is no key of ``BACKBONES``; the message says how to add one.

    Example:
        >>> prune_points("resnet20")[2]
        PrunePoint(conv='layer1.0.conv2', number='3', module='layer1.0.relu2', channels=(0, 16))
    """
    return find_backbone(arch).prune_points()


def planned_channels(plan: PrunePlan, num_classes: int = 10) -> dict[str, tuple[Ids, Ids]]:
    """Layer name -> surviving (output ids, input ids) under a plan, without making the weights."""
    with torch.device("meta"):
        return _kept_channels(find_backbone(plan.arch).build(num_classes, plan=plan))


def apply_masks(model: nn.Module, plan: PrunePlan) -> None:
    """Zero, in place, the filters that the plan does not keep; shapes stay and kept weights stay bit-equal.

    Zeroed are rows of convolution weights and biases, and weight and bias of the batch norms that see those channels
    (in DenseNet the norm of the concatenation). Running statistics are untouched, as in the official code. A pruned
    channel is then exactly 0 wherever it is used.

    Args:
        model: the network of ``plan.arch``; pruned already or not.
        plan: ids in the numbering of the full network.

    Raises:
        ValueError: ``model`` is another network, or lacks channels that the plan keeps.

    Source:
        HRank, official code: masks on convolution and following batch norm.
    """
    before = getattr(model, "kept_channels", {})
    after = planned_channels(plan)
    _check_layers(model, after, plan.arch)
    with torch.no_grad():
        for name, (outputs, _) in after.items():
            present = before.get(name, (None, None))[0]
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
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ValueError(f"{type(model).__name__} has no linear layer, whose outputs would tell the number of classes")
    num_classes = linear[-1].out_features
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn and thrown away: leave the user's stream alone
        small = build_backbone(plan.arch, num_classes, plan)
    small.to(next(model.parameters()).device)
    before, after = getattr(model, "kept_channels", {}), _kept_channels(small)
    _check_layers(model, after, plan.arch)
    for name, (outputs, inputs) in after.items():
        had_outputs, had_inputs = before.get(name, (None, None))
        _copy_layer(
            model.get_submodule(name),
            small.get_submodule(name),
            _places(outputs, had_outputs, name),
            _places(inputs, had_inputs, name),
            name,
        )
    modes = {name: part.training for name, part in model.named_modules()}
    for name, part in small.named_modules():
        part.training = modes.get(name, model.training)
    return small


def _kept_channels(model: nn.Module) -> dict[str, tuple[Ids, Ids]]:
    kept = getattr(model, "kept_channels", None)
    if not isinstance(kept, dict) or kept.keys() != set(_layers_with_parameters(model)):
        raise ValueError(
            f"{type(model).__name__}.kept_channels must tell, for each layer with parameters, which channels are left; "
            "build its layers through lit_methods.backbones.wiring.Wiring and set self.kept_channels = wiring.finish()"
        )
    return kept


def _check_layers(model: nn.Module, kept: dict[str, tuple[Ids, Ids]], arch: str) -> None:
    have = _layers_with_parameters(model)
    if odd := [name for name in kept if name not in have] or [name for name in have if name not in kept]:
        raise ValueError(
            f"the plan is for arch {arch!r}, and the model, a {type(model).__name__}, is another network: "
            f"only one of the two has a layer {odd[0]!r}"
        )


def _layers_with_parameters(model: nn.Module) -> list[str]:
    return [name for name, part in model.named_modules() if any(True for _ in part.parameters(recurse=False))]


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


def _copy_layer(
    source: nn.Module, target: nn.Module, rows: Sequence[int] | None, columns: Sequence[int] | None, name: str
) -> None:
    """Give ``target`` the tensors of ``source``, cut to these output (rows) and input (columns) places."""

    def cut(tensor: Tensor, expected: Tensor) -> Tensor:
        wide = tensor.detach()
        for dim, places in enumerate((rows, columns)[: tensor.ndim]):
            if places is not None and max(places) < wide.shape[dim]:
                wide = wide.index_select(dim, torch.as_tensor(places, device=wide.device))
        if wide.shape != expected.shape:
            raise ValueError(
                f"layer {name!r} has {tuple(tensor.shape)}, from which the plan would make {tuple(wide.shape)} "
                f"instead of {tuple(expected.shape)}; the model is not the network the plan is for"
            )
        last = not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)  # 1x1 is both
        return wide.clone(memory_format=torch.channels_last if last else torch.contiguous_format)

    for key, old in source.named_parameters(recurse=False):
        new = nn.Parameter(cut(old, target.get_parameter(key)), requires_grad=old.requires_grad)
        setattr(target, key, new)
    for key, buffer in source.named_buffers(recurse=False):
        setattr(target, key, cut(buffer, target.get_buffer(key)))
    if isinstance(source, _BatchNorm) and isinstance(target, _BatchNorm):
        target.eps, target.momentum = source.eps, source.momentum
