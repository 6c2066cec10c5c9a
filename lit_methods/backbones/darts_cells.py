"""The operations that DARTS chooses from, and cells made of them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_methods.functional.suggestions import nearest


class Genotype(NamedTuple):
    """What a search found: the operations of a normal cell and of a reduction cell, which halves the size.

    States 0 and 1 of a cell are the outputs of the two cells before it, the further ones its nodes. Two pairs after one
    another are the summands of one node.

    Args:
        normal: pairs of an operation, a key of ``OPERATIONS``, and the state that it reads.
        normal_concat: states whose maps, one after the other, are the cell's output.
        reduce: as ``normal``, for the reduction cell; operations that read state 0 or 1 have stride 2 there.
        reduce_concat: as ``normal_concat``.
    """

    normal: tuple[tuple[str, int], ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[tuple[str, int], ...]
    reduce_concat: tuple[int, ...]


class ReLUConvBN(nn.Module):
    """ReLU, a convolution without bias, batch norm.

    Args:
        source: channels that go in.
        channels: channels that come out.
        kernel: side of the convolution, odd; its padding keeps the size.
        stride: 1, or 2 to halve the size.
        affine: whether batch norm has parameters.
    """

    def __init__(self, source: int, channels: int, kernel: int = 1, stride: int = 1, affine: bool = True) -> None:
        super().__init__()
        conv = nn.Conv2d(source, channels, kernel, stride, padding=kernel // 2, bias=False)
        self.op = nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(channels, affine=affine))

    def forward(self, x: Tensor) -> Tensor:
        """(N, source, H, W) to (N, channels, H / stride, W / stride)."""
        return self.op(x)


class SepConv(nn.Module):
    """Twice: ReLU, a convolution within each channel, one across them, batch norm; the stride is the first one's.

    Args:
        channels: in and out.
        kernel: side of the convolutions within channels, odd.
        stride: 1, or 2 to halve the size.
        affine: whether batch norm has parameters.
    """

    def __init__(self, channels: int, kernel: int, stride: int, affine: bool = True) -> None:
        super().__init__()
        first, second = (_separable(channels, kernel, s, 1, affine) for s in (stride, 1))
        self.op = nn.Sequential(*first, *second)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, channels, H / stride, W / stride)."""
        return self.op(x)


class DilConv(nn.Module):
    """ReLU, a convolution within each channel that leaves out every other pixel, one across them, batch norm.

    Arguments are those of ``SepConv``.
    """

    def __init__(self, channels: int, kernel: int, stride: int, affine: bool = True) -> None:
        super().__init__()
        self.op = nn.Sequential(*_separable(channels, kernel, stride, 2, affine))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, channels, H / stride, W / stride)."""
        return self.op(x)


def _separable(channels: int, kernel: int, stride: int, dilation: int, affine: bool) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    depthwise = nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False)
    pointwise = nn.Conv2d(channels, channels, 1, bias=False)
    return [nn.ReLU(), depthwise, pointwise, nn.BatchNorm2d(channels, affine=affine)]


class FactorizedReduce(nn.Module):
    """Half the size without leaving pixels out: one half of the channels from even pixels, the other from odd ones.

    Args:
        source: channels that go in.
        channels: channels that come out, an even number.
        affine: whether batch norm has parameters.
    """

    def __init__(self, source: int, channels: int, affine: bool = True) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv_1 = nn.Conv2d(source, channels // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(source, channels // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """(N, source, H, W) to (N, channels, H / 2, W / 2); H and W even."""
        x = self.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], 1))


class Zero(nn.Module):
    """Zeros in the shape of the input, or of half its size.

    Args:
        stride: 1, or 2 to halve the size.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H / stride, W / stride)."""
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


def _skip(channels: int, stride: int, affine: bool) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine)


OPERATIONS: dict[str, Callable[[int, int, bool], nn.Module]] = {  # name -> (channels, stride, affine) -> module
    "none": lambda channels, stride, affine: Zero(stride),
    "max_pool_3x3": lambda channels, stride, affine: nn.MaxPool2d(3, stride, padding=1),
    "avg_pool_3x3": lambda channels, stride, affine: nn.AvgPool2d(3, stride, padding=1, count_include_pad=False),
    "skip_connect": _skip,
    "sep_conv_3x3": lambda channels, stride, affine: SepConv(channels, 3, stride, affine),
    "sep_conv_5x5": lambda channels, stride, affine: SepConv(channels, 5, stride, affine),
    "dil_conv_3x3": lambda channels, stride, affine: DilConv(channels, 3, stride, affine),
    "dil_conv_5x5": lambda channels, stride, affine: DilConv(channels, 5, stride, affine),
}


class Cell(nn.Module):
    """Nodes, each the sum of two operations on states before it, whose maps come out one after the other.

    ``channels`` is how many come out.

    Args:
        genotype: which operations and how many nodes.
        sources: channels of the two cells before, the elder first.
        width: channels of every node.
        reduction: halve the size.
        reduction_prev: the cell before halved it, so the elder input is twice as large.
        affine: whether batch norm has parameters.

    Raises:
        ValueError: there is no such operation.

    Example:
        >>> pools = (("max_pool_3x3", 0), ("skip_connect", 1))
        >>> found = Genotype(normal=pools, normal_concat=(0, 2), reduce=pools, reduce_concat=(2,))
        >>> cell = Cell(found, (8, 12), width=6, reduction=True, reduction_prev=True)
        >>> cell(torch.zeros(1, 8, 16, 16), torch.zeros(1, 12, 8, 8)).shape
        torch.Size([1, 6, 4, 4])
    """

    def __init__(
        self,
        genotype: Genotype,
        sources: tuple[int, int],
        width: int,
        reduction: bool,
        reduction_prev: bool,
        affine: bool = True,
    ) -> None:
        super().__init__()
        elder, younger = sources
        squeeze = FactorizedReduce if reduction_prev else ReLUConvBN
        self.preprocess0: nn.Module = squeeze(elder, width, affine=affine)
        self.preprocess1 = ReLUConvBN(younger, width, affine=affine)
        edges, self.concat = (
            (genotype.reduce, genotype.reduce_concat) if reduction else (genotype.normal, genotype.normal_concat)
        )
        if odd := [name for name, _ in edges if name not in OPERATIONS]:
            raise ValueError(
                f"genotype has an operation {odd[0]!r}{nearest(odd[0], OPERATIONS)}; there are {', '.join(OPERATIONS)}"
            )
        self.states = [state for _, state in edges]
        self._ops = nn.ModuleList(
            OPERATIONS[name](width, 2 if reduction and state < 2 else 1, affine) for name, state in edges
        )
        self.channels = width * len(self.concat)

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:
        """The outputs of the two cells before, the elder first, to (N, channels, H, W)."""
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for i in range(0, len(self._ops), 2):
            first, second = (self._ops[k](states[self.states[k]]) for k in (i, i + 1))
            states.append(first + second)
        return torch.cat([states[i] for i in self.concat], 1)
