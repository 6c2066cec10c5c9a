"""Sketch a whole network: narrower inside its blocks, with sketched weights in place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor, nn

from lit_methods.backbones import Backbone, WidthPlan, find_backbone, inner_blocks, planned_network
from lit_methods.backbones.cutting import build_like, check_layers, copy_layer, copy_settings
from lit_methods.backbones.plan import archs_with, layers_with_parameters
from lit_methods.filter_sketch.functional import Layout, Tail, covariance_error, sketch_matrices, sketch_width
from lit_methods.functional.rates import round_up

__all__ = ["Sketcher", "arch_of", "sketch_model", "sketch_to_plan", "widths_at"]

Report = list[dict[str, Any]]


class _Options(TypedDict, total=False):
    """How to sketch, see ``sketch_model``."""

    normalize: Literal["l2"] | None
    tail: Tail
    channel_layout: Layout


@overload
def sketch_model(
    model: nn.Module, rates: Sequence[float], *, return_report: Literal[False] = ..., **options: Unpack[_Options]
) -> nn.Module: ...
@overload
def sketch_model(
    model: nn.Module, rates: Sequence[float], *, return_report: Literal[True], **options: Unpack[_Options]
) -> tuple[nn.Module, Report]: ...
def sketch_model(
    model: nn.Module,
    rates: Sequence[float],
    *,
    normalize: Literal["l2"] | None = "l2",
    tail: Tail = "fill",
    channel_layout: Layout = "channels",
    return_report: bool = False,
) -> nn.Module | tuple[nn.Module, Report]:
    """The network with every block sketched to its rate; needs no data, and a fine-tune afterwards.

    Inside a block, each convolution but the last loses filters and each but the first loses input channels. What
    comes out of a block keeps its width.

    Args:
        model: a full network of ``BACKBONES`` that has a table of inner blocks; not changed.
        rates: kept fraction per block in forward order, in (0, 1]: 27 for ResNet-56, 9 stages for GoogLeNet.
        normalize: see ``sketch_conv_weight``.
        tail: see ``frequent_directions``.
        channel_layout: see ``sketch_conv_weight``.
        return_report: also return what was done.

    Returns:
        A new module of the same module names, dtype, device and modes; with ``return_report`` a pair with one dict per
        sketched tensor: ``layer``, ``dim``, ``n`` and ``l`` (rows before and after), ``rows_used``, ``shrinks``,
        ``delta_sum``, ``covariance_error`` (``||A^T A - B^T B||_2 / ||A||_F^2``).

    Raises:
        ValueError: ``model`` is no full network with such a table; a wrong number of rates; a rate outside (0, 1] or
            one that leaves a layer without filters; weights that are not finite.

    Source:
        FilterSketch, arXiv 2001.08514, official code. Batch norm behind a convolution that lost filters starts afresh;
        all else is copied. Ours: at rate 1 without normalisation nothing is sketched, so that the network stays as it
        is; the bias of a convolution that lost filters becomes zero, where the official code leaves a random one.

    Example:
        >>> from lit_methods.backbones import resnet20
        >>> sketch_model(resnet20(), [0.6] * 9).layer1[0].conv2.weight.shape
        torch.Size([16, 9, 3, 3])
    """
    if isinstance(rates, str | float):
        raise ValueError(f"rates={rates!r} must be one number per block; parse_rates reads the published syntax")
    plan = widths_at(arch_of(model), rates)
    sketcher = Sketcher(normalize, tail, channel_layout, with_report=return_report)
    small = sketch_to_plan(model, plan, sketcher)
    return (small, sketcher.report) if return_report else small


def widths_at(arch: str, rates: Sequence[float], round_to: int = 1) -> WidthPlan:
    """The widths inside the blocks at these rates.

    Args:
        arch: a key of ``BACKBONES`` with a table of inner blocks.
        rates: kept fraction per block in forward order, in (0, 1].
        round_to: channel counts become the next multiple of this, where the layer is as wide.

    Raises:
        ValueError: a wrong number of rates; a rate outside (0, 1] or one that leaves a layer without filters.

    Source:
        FilterSketch, official code: a layer whose filters have no more numbers than the sketch has rows stays whole.

    Example:
        >>> widths_at("resnet20", [1.0] * 8 + [0.6]).mid
        {'layer3.2.conv1': 38}
    """
    blocks = inner_blocks(arch)
    if len(rates) != len(blocks):
        raise ValueError(f"{arch} takes {len(blocks)} rates, got {len(rates)}; give the kept fraction of each block")
    sizes = _filter_sizes(find_backbone(arch))
    mid: dict[str, int] = {}
    for block, rate in zip(blocks, rates, strict=True):
        for chain in block:
            for conv, n in zip(chain.convs, chain.widths, strict=False):
                width = round_up(sketch_width(n, rate), round_to, n)
                if width < min(n, sizes[conv]):
                    mid[conv] = width
    return WidthPlan(arch, mid)


@lru_cache
def _filter_sizes(backbone: Backbone) -> dict[str, int]:
    """Numbers in each filter of every convolution of the full network."""
    with torch.device("meta"):
        network = backbone.build()
    return {name: part.weight[0].numel() for name, part in network.named_modules() if isinstance(part, nn.Conv2d)}


def sketch_to_plan(model: nn.Module, plan: WidthPlan, sketcher: Sketcher) -> nn.Module:
    """``sketch_model`` for widths instead of rates.

    Args:
        model: the full network of the plan; not changed.
        plan: widths inside its blocks.
        sketcher: how to sketch; its report is added to.

    Raises:
        ValueError: ``model`` is another network; weights that are not finite.

    Example:
        >>> from lit_methods.backbones import resnet20
        >>> plan = WidthPlan("resnet20", {"layer1.0.conv1": 5})
        >>> sketcher = Sketcher(normalize=None)
        >>> small = sketch_to_plan(resnet20(), plan, sketcher)
        >>> [(row["layer"], row["dim"]) for row in sketcher.report]
        [('layer1.0.conv1', 0), ('layer1.0.conv2', 1)]
    """
    small = build_like(model, plan)
    check_layers(model, layers_with_parameters(small), plan.arch)
    made: set[str] = set()  # layers that are not copied: sketched convolutions, and the norms that start afresh
    for chain in (chain for block in inner_blocks(plan.arch) for chain in block):
        narrow = [_is_sketched(model, conv, plan, sketcher.normalize) for conv in chain.convs[:-1]]
        for conv, filters, inputs in zip(chain.convs, [*narrow, False], [False, *narrow], strict=True):
            if not (filters or inputs):
                continue
            made.add(conv)
            layer = small.get_submodule(conv)
            target = layer.get_parameter("weight")
            with torch.no_grad():
                weight: Tensor = model.get_parameter(f"{conv}.weight")
                weight = sketcher(conv, weight, target.shape[0], 0) if filters else weight
                target.copy_(sketcher(conv, weight, target.shape[1], 1) if inputs else weight)
                if filters and isinstance(layer.bias, Tensor):
                    layer.bias.zero_()
                elif isinstance(layer.bias, Tensor):
                    layer.bias.copy_(model.get_parameter(f"{conv}.bias"))
        made |= {norm for norm, narrowed in zip(chain.norms, narrow, strict=True) if narrowed}
    for name, layer in small.named_modules():
        if any(True for _ in layer.parameters(recurse=False)):
            source = model.get_submodule(name)
            if name not in made:
                copy_layer(name, source, layer)
            else:
                copy_settings(source, layer)
    return small


class Sketcher:
    """Sketches weights one after the other and notes what it did.

    Args:
        normalize: see ``sketch_conv_weight``.
        tail: see ``frequent_directions``.
        channel_layout: see ``sketch_conv_weight``.
        with_report: fill ``report``, as ``sketch_model`` returns it; its last column takes longer than the sketch.

    Example:
        >>> sketcher = Sketcher()
        >>> sketcher("conv1", torch.eye(4).view(4, 4, 1, 1), 3, dim=0).shape, sketcher.report[0]["rows_used"]
        (torch.Size([3, 4, 1, 1]), 4)
    """

    def __init__(
        self,
        normalize: Literal["l2"] | None = "l2",
        tail: Tail = "fill",
        channel_layout: Layout = "channels",
        with_report: bool = True,
    ) -> None:
        self.normalize, self.tail, self.channel_layout = normalize, tail, channel_layout
        self.with_report = with_report
        self.report: Report = []

    def __call__(self, layer: str, weight: Tensor, size: int, dim: Literal[0, 1]) -> Tensor:
        """The sketched weight.

        Args:
            layer: its name, for the report and errors.
            weight: (n, c, k, k), see ``sketch_conv_weight``, as are the others.
            size: filters or input channels that are left.
            dim: 0 for filters, 1 for input channels.

        Raises:
            ValueError: it cannot be sketched; the message names the layer.
        """
        try:
            weight, a, b, stats = sketch_matrices(
                weight, size, dim, normalize=self.normalize, tail=self.tail, channel_layout=self.channel_layout
            )
        except ValueError as ex:
            raise ValueError(f"{layer}: {ex}") from None
        if self.with_report:
            row: dict[str, Any] = {"layer": layer, "dim": dim, "n": len(a), "l": size, "rows_used": stats.rows_used}
            row |= {"shrinks": len(stats.deltas), "delta_sum": float(stats.deltas.sum())}
            self.report.append(row | {"covariance_error": covariance_error(a, b)})
        return weight


def arch_of(model: nn.Module) -> str:
    """The key of ``BACKBONES`` whose full network a model is, by the names and shapes of its parameters.

    Args:
        model: with any number of classes.

    Raises:
        ValueError: there is none with a table of inner blocks; the model may be pruned already.

    Example:
        >>> from lit_methods.backbones import resnet56
        >>> arch_of(resnet56(num_classes=100))
        'resnet56'
    """
    shapes = {name: tensor.shape for name, tensor in model.named_parameters()}
    classes = [layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear)][-1:]
    having = archs_with("inner_blocks")
    for arch in having:
        full = planned_network(WidthPlan(arch, {}), *classes)
        if {name: tensor.shape for name, tensor in full.named_parameters()} == shapes:
            return arch
    raise ValueError(
        f"this {type(model).__name__} is no full network with a table of inner blocks ({', '.join(having)}): it is "
        "pruned already, or needs an entry, BACKBONES['my_net'] = Backbone(build, prune_points, inner_blocks=...); "
        "FilterSketchPruning traces a network without one"
    )


def _is_sketched(model: nn.Module, conv: str, plan: WidthPlan, normalize: str | None) -> bool:
    """Whether a convolution's filters go through the sketch: narrowed ones; with normalisation also those as wide."""
    weight = model.get_parameter(f"{conv}.weight")
    return conv in plan.mid or (normalize is not None and len(weight) < weight[0].numel())
