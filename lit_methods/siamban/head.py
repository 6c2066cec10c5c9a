"""SiamBAN's neck and head: features of template and search region to what each point of the response map says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_methods.functional.precision import at_least_float32
from lit_methods.siamban.functional import xcorr_depthwise

NARROW = 20  # maps of fewer columns are a template's: cut out CUT
CUT = slice(4, 11)  # the middle of the 15 columns that a template of 127 pixels has

Correlate = Callable[[Tensor, Tensor], Tensor]


class BANNeck(nn.Module):
    """Bring the maps of all levels to one number of channels, and cut the target out of a template's.

    Args:
        in_channels: of each level.
        out_channels: of all of them.
        levels: numbers in the names of the parts; ``None`` is 2, 3, 4, ... in turn.

    Raises:
        ValueError: no level, or a number that is not positive.

    Source:
        SiamBAN's official code (``AdjustAllLayer``), with its parameter names. Its cut begins at 4 for every map that
        is narrower than 20, which is the middle of 15 only.

    Example:
        >>> neck = BANNeck([8, 16], 4)
        >>> [tuple(maps.shape) for maps in neck([torch.zeros(1, 8, 15, 15), torch.zeros(1, 16, 15, 15)])]
        [(1, 4, 7, 7), (1, 4, 7, 7)]
        >>> neck([torch.zeros(1, 8, 31, 31), torch.zeros(1, 16, 31, 31)])[0].shape
        torch.Size([1, 4, 31, 31])
    """

    def __init__(
        self, in_channels: Sequence[int], out_channels: int = 256, levels: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.names = _names("downsample", in_channels, levels)
        if out_channels < 1:
            raise ValueError(f"out_channels={out_channels} must be at least 1")
        for name, channels in zip(self.names, in_channels, strict=True):
            self.add_module(name, _Adjust(channels, out_channels))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """One map (B, in_channels, h, w) per level to (B, out_channels, h, w), or 7 x 7 where w is below 20."""
        return [self.get_submodule(name)(x) for name, x in zip(self.names, maps, strict=True)]


class _Adjust(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)  # of the whole map, so that batch norm in training sees all of it, as officially
        return x[:, :, CUT, CUT] if x.shape[3] < NARROW else x


class BANHead(nn.Module):
    """Correlate search regions with templates, level by level, and fuse what the levels say.

    Scores are sum_l softmax(a)_l cls_l and distances sum_l softmax(b)_l exp(c_l loc_l) with learnt a, b and c, which
    begin as ones: as a mean.

    Args:
        in_channels: of each level.
        cls_channels: logits of a point: background and target.
        weighted: learn a and b, else take plain means; c is learnt in any case.
        levels: numbers in the names of the parts; ``None`` is 2, 3, 4, ... in turn.

    Raises:
        ValueError: no level, or a number that is not positive.

    Source:
        SiamBAN, section 3.2 of the paper; official code (``MultiBAN``), with its parameter names. Ours: exponential and
        fusion are computed in float32 where the rest is in half precision.

    Example:
        >>> head = BANHead([8, 8])
        >>> cls, loc = head([torch.zeros(1, 8, 7, 7)] * 2, [torch.zeros(1, 8, 31, 31)] * 2)
        >>> cls.shape, loc.shape
        (torch.Size([1, 2, 25, 25]), torch.Size([1, 4, 25, 25]))
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        cls_channels: int = 2,
        weighted: bool = True,
        levels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.names, self.weighted = _names("box", in_channels, levels), weighted
        if cls_channels < 1:
            raise ValueError(f"cls_channels={cls_channels} must be at least 1")
        for name, channels in zip(self.names, in_channels, strict=True):
            self.add_module(name, _Box(channels, cls_channels))
        count = len(self.names)
        if weighted:
            self.cls_weight = nn.Parameter(torch.ones(count))
            self.loc_weight = nn.Parameter(torch.ones(count))
        self.loc_scale = nn.Parameter(torch.ones(count))

    def forward(self, zs: Sequence[Tensor], xs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (B, cls_channels, n, n) and distances (B, 4, n, n), l, t, r, b in pixels, positive.

        Args:
            zs: features of the templates, (B, C, 7, 7) per level.
            xs: of the search regions, (B, C, n + 6, n + 6).
        """
        return self.respond(self.kernels(zs), xs)

    def kernels(self, zs: Sequence[Tensor]) -> list[Tensor]:
        """What a template's features are to all search regions: (B, C, 5, 5), for scores and distances of each level.

        Args:
            zs: as in ``forward``.
        """
        pairs = zip(self._boxes(), zs, strict=True)
        return [branch.conv_kernel(z) for box, z in pairs for branch in (box.cls, box.loc)]

    def respond(
        self, kernels: Sequence[Tensor], xs: Sequence[Tensor], correlate: Correlate = xcorr_depthwise
    ) -> tuple[Tensor, Tensor]:
        """As ``forward``, from kernels that are known already.

        Args:
            kernels: as ``kernels`` gives them.
            xs: as in ``forward``.
            correlate: depth-wise correlation of (B, C, H, W) with (B, C, 5, 5).
        """
        cls, loc = [], []
        pairs = zip(kernels[::2], kernels[1::2], strict=True)
        for box, (cls_kernel, loc_kernel), x in zip(self._boxes(), pairs, xs, strict=True):
            cls.append(at_least_float32(box.cls.respond(cls_kernel, x, correlate)))
            loc.append(at_least_float32(box.loc.respond(loc_kernel, x, correlate)))
        cls_weights, loc_weights, scales = self._fusion()
        loc = [(scale * raw).exp() for scale, raw in zip(scales, loc, strict=True)]
        return _weighted_sum(cls, cls_weights), _weighted_sum(loc, loc_weights)

    @torch.no_grad()
    def begin_with(self, distance: float) -> None:
        """Let an untrained head say this distance to all four sides at every point.

        Args:
            distance: pixels, positive; about 1 without this call, as officially.
        """
        for box in self._boxes():
            last: Any = box.loc.head[-1]
            last.weight.zero_()
            last.bias.fill_(math.log(distance))

    def fusion(self) -> dict[str, Tensor]:
        """Weights of the levels, ``cls_<level>`` and ``loc_<level>``, and ``scale_<level>`` of their distances.

        Example:
            >>> {name: round(value.item(), 2) for name, value in BANHead([8, 8]).fusion().items()}
            {'cls_2': 0.5, 'cls_3': 0.5, 'loc_2': 0.5, 'loc_3': 0.5, 'scale_2': 1.0, 'scale_3': 1.0}
        """
        levels = [name.removeprefix("box") for name in self.names]
        rows = zip(("cls", "loc", "scale"), self._fusion(), strict=True)
        return {f"{kind}_{level}": value for kind, row in rows for level, value in zip(levels, row, strict=True)}

    def _fusion(self) -> tuple[Tensor, Tensor, Tensor]:
        scales = at_least_float32(self.loc_scale)
        if not self.weighted:
            mean = torch.full_like(scales, 1 / len(self.names))
            return mean, mean, scales
        weights = [F.softmax(at_least_float32(weight), 0) for weight in (self.cls_weight, self.loc_weight)]
        return weights[0], weights[1], scales

    def _boxes(self) -> list[_Box]:
        return [self.get_submodule(name) for name in self.names]  # type: ignore[misc]


class _Box(nn.Module):
    """The two branches of one level."""

    cls: _Branch
    loc: _Branch

    def __init__(self, channels: int, cls_channels: int) -> None:
        super().__init__()
        self.cls = _Branch(channels, cls_channels)
        self.loc = _Branch(channels, 4)


class _Branch(nn.Module):
    """Correlation of template and search region, and what two 1x1 convolutions make of it."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.conv_kernel = _conv(channels, 3)
        self.conv_search = _conv(channels, 3)
        self.head = nn.Sequential(*_conv(channels, 1), nn.Conv2d(channels, outputs, 1))

    def respond(self, kernel: Tensor, x: Tensor, correlate: Correlate) -> Tensor:
        return self.head(correlate(self.conv_search(x), kernel))


def _conv(channels: int, size: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, size, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def _weighted_sum(maps: Sequence[Tensor], weights: Tensor) -> Tensor:
    total = weights[0] * maps[0]
    for weight, x in zip(weights[1:], maps[1:], strict=True):
        total = total + weight * x
    return total


def _names(part: str, in_channels: Sequence[int], levels: Sequence[int] | None) -> list[str]:
    levels = range(2, 2 + len(in_channels)) if levels is None else levels
    if not in_channels or min(in_channels) < 1:
        raise ValueError(f"in_channels={list(in_channels)} must be positive numbers, one per level")
    if len(levels) != len(in_channels):
        raise ValueError(f"levels={list(levels)} must be as many as in_channels={list(in_channels)}")
    return [f"{part}{level}" for level in levels]


def unfolded_correlation(x: Tensor, kernel: Tensor) -> Tensor:
    """As ``xcorr_depthwise``, by matrix products over unfolded windows, for graphs whose batch has any size.

    A grouped convolution's number of groups, here B C, is a constant of an ONNX file.

    Args:
        x: ``(B, C, H, W)`` of the search regions.
        kernel: ``(B, C, h, w)`` of the templates.

    Returns:
        ``(B, C, H - h + 1, W - w + 1)``.

    Example:
        >>> unfolded_correlation(torch.arange(6.0).view(1, 1, 2, 3), torch.tensor([[[[1.0, 10.0]]]])).tolist()
        [[[[10.0, 21.0], [43.0, 54.0]]]]
    """
    layout = torch.contiguous_format  # without the copies a traced graph refuses a batch of one
    windows = x.unfold(2, kernel.shape[2], 1).unfold(3, kernel.shape[3], 1).clone(memory_format=layout)
    sums = windows.flatten(4).flatten(2, 3) @ kernel.clone(memory_format=layout).flatten(2).unsqueeze(3)
    return sums.squeeze(3).unflatten(2, windows.shape[2:4])  # windows: (B, C, H', W', h, w)
