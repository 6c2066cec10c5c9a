"""The candidate operations, their weighted sum, and the rule by which convolutions begin."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lit_methods.asfd.genotype import KNOWN, OPERATIONS
from lit_methods.functional.suggestions import nearest

PARTS = 4  # one of so many channels goes through a partial mixed operation


def conv_bn_relu(
    source: int,
    channels: int,
    kernel: int | tuple[int, int] = 3,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    affine: bool = True,
) -> nn.Sequential:
    """A convolution without bias, batch norm, ReLU; at stride 1 the size stays, at 2 it is halved and rounded up.

    Args:
        source: channels that go in.
        channels: channels that come out.
        kernel: side or sides, odd.
        stride: 1 or 2.
        dilation: 1 is a dense kernel.
        groups: ``source`` makes the convolution depth-wise.
        affine: whether batch norm has parameters.

    Example:
        >>> conv_bn_relu(3, 8, stride=2)(torch.zeros(2, 3, 5, 8)).shape
        torch.Size([2, 8, 3, 4])
    """
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (dilation * (sides[0] // 2), dilation * (sides[1] // 2))
    conv = nn.Conv2d(source, channels, sides, stride, padding, dilation, groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels, affine=affine), nn.ReLU(inplace=True))


def separable(
    source: int, channels: int, kernel: int = 3, *, stride: int = 1, dilation: int = 1, affine: bool = True
) -> nn.Sequential:
    """A convolution within each channel, then one across them, each with batch norm and ReLU.

    Arguments are those of ``conv_bn_relu``.

    Example:
        >>> separable(4, 8)(torch.zeros(2, 4, 5, 6)).shape
        torch.Size([2, 8, 5, 6])
    """
    return nn.Sequential(
        conv_bn_relu(source, source, kernel, stride=stride, dilation=dilation, groups=source, affine=affine),
        conv_bn_relu(source, channels, 1, affine=affine),
    )


def _crossed(channels: int, affine: bool) -> nn.Sequential:
    return nn.Sequential(*(conv_bn_relu(channels, channels, sides, affine=affine) for sides in ((1, 3), (3, 1))))


_BUILDERS: dict[str, Callable[[int, bool], nn.Module]] = {  # name -> (channels, affine) -> module
    "identity": lambda channels, affine: nn.Identity(),
    "conv_1x1": lambda channels, affine: conv_bn_relu(channels, channels, 1, affine=affine),
    "conv_3x3": lambda channels, affine: conv_bn_relu(channels, channels, 3, affine=affine),
    "conv_3x3_d2": lambda channels, affine: conv_bn_relu(channels, channels, 3, dilation=2, affine=affine),
    "conv_3x3_d3": lambda channels, affine: conv_bn_relu(channels, channels, 3, dilation=3, affine=affine),
    "conv_1x3_3x1": _crossed,
    "sep_conv_3x3": lambda channels, affine: separable(channels, channels, 3, affine=affine),
    "sep_conv_5x5": lambda channels, affine: separable(channels, channels, 5, affine=affine),
    "sep_conv_3x3_d2": lambda channels, affine: separable(channels, channels, 3, dilation=2, affine=affine),
}


def build_op(name: str, channels: int, affine: bool = True) -> nn.Module:
    """One operation, (B, channels, H, W) to the same shape.

    Args:
        name: one of ``genotype.KNOWN``.
        channels: in and out.
        affine: whether batch norm has parameters.

    Raises:
        ValueError: there is no such operation.

    Source:
        Section 2.2 of ASFD's specification. It says conv-BN-ReLU; where an operation has two convolutions, each has
        its own batch norm and ReLU, as in MobileNetV1, which is what gives the published budgets.

    Example:
        >>> [type(part[0]).__name__ for part in build_op("sep_conv_5x5", channels=4)]
        ['Conv2d', 'Conv2d']
    """
    if name not in _BUILDERS:
        raise ValueError(f"name={name!r} is no operation{nearest(name, KNOWN)}; there are {', '.join(KNOWN)}")
    return _BUILDERS[name](channels, affine)


class MixedOp(nn.Module):
    """The sum of all candidates on one edge, each with its weight; sums over as many as ``ops`` holds.

    Args:
        channels: in and out.
        partial: only the first quarter of the channels goes through the candidates; the others bypass them, and all
            are shuffled, so that the next edge takes others.
        candidates: names of operations.

    Attributes:
        ops: the candidates.

    Raises:
        ValueError: ``partial`` with channels that are no multiple of 4.

    Source:
        DARTS, arXiv 1806.09055, equation 2, for the sum; PC-DARTS, arXiv 1907.05737, for the partial channels. Batch
        norms have no parameters here, as in DARTS: a scale of their own would hide what the weights say.

    Example:
        >>> op, weights = MixedOp(8, partial=True), torch.full((8,), 1 / 8)
        >>> len(op.ops), op(torch.zeros(1, 8, 4, 4), weights).shape
        (8, torch.Size([1, 8, 4, 4]))
    """

    def __init__(self, channels: int, partial: bool = False, candidates: Sequence[str] = OPERATIONS) -> None:
        super().__init__()
        if partial and channels % PARTS:
            raise ValueError(
                f"channels={channels} must be a multiple of {PARTS}, since a partial mixed operation takes one in "
                f"{PARTS}; or set partial=False"
            )
        self.partial = partial
        width = channels // PARTS if partial else channels
        self.ops = nn.ModuleList(build_op(name, width, affine=False) for name in candidates)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum.

        Args:
            x: (B, channels, H, W).
            weights: (O,), after the softmax.
        """
        if not self.partial:
            return self._mixed(x, weights)
        width = x.shape[1] // PARTS
        mixed = torch.cat([self._mixed(x[:, :width], weights), x[:, width:]], 1)
        return mixed.unflatten(1, (PARTS, width)).transpose(1, 2).flatten(1, 2)

    def _mixed(self, x: Tensor, weights: Tensor) -> Tensor:
        total = weights[0] * self.ops[0](x)
        for place in range(1, len(self.ops)):
            total = total + weights[place] * self.ops[place](x)
        return total


def begin(module: nn.Module) -> None:
    """Give all convolutions of a module He's normal weights, and biases of zero.

    Args:
        module: changed in place; its batch norms are left as they are made, 1 and 0.

    Source:
        arXiv 1502.01852 with the fan-in: of a depth-wise convolution the fan-out that PyTorch computes is as many times
        too large as there are channels.

    Example:
        >>> conv = nn.Conv2d(64, 8, 3)
        >>> begin(conv)
        >>> bool(conv.bias.any()), bool(0.05 < conv.weight.std() < 0.067)  # sqrt(2 / 576) = 0.059
        (False, True)
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_in", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
