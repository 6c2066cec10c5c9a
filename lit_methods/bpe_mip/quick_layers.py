"""Convolutions and ReLUs that train faster on CPUs; parameters, names and, up to rounding, values are torch's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_methods.backbones.darts_cells import FactorizedReduce
from lit_methods.bpe_mip.depthwise import depthwise_conv, every


class QuickConv2d(nn.Conv2d):
    """``nn.Conv2d`` that takes other ways to the same result while it is trained in full precision on a CPU.

    Filters within channels have gradients of their own; filters as large as the map are a matrix product.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not (self.training and torch.is_grad_enabled() and _full_on_cpu(input, weight)):
            return super()._conv_forward(input, weight, bias)
        stride, padding, dilation = self.stride[0], int(self.padding[0]), self.dilation[0]
        if self.groups > 1:
            return depthwise_conv(input, weight, stride, padding, dilation)
        if input.shape[1:] == weight.shape[1:] and self.kernel_size != (1, 1):
            return (input.permute(0, 2, 3, 1).flatten(1) @ weight.permute(0, 2, 3, 1).flatten(1).T)[:, :, None, None]
        return super()._conv_forward(input, weight, bias)


class QuickFactorizedReduce(FactorizedReduce):
    """``FactorizedReduce`` that takes out the pixels it reads before its convolutions while it is trained."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, source, H, W) to (N, channels, H / 2, W / 2); H and W even."""
        if not (self.training and torch.is_grad_enabled() and _full_on_cpu(x, self.conv_1.weight)):
            return super().forward(x)
        x = self.relu(x)
        convs = (self.conv_1, self.conv_2)
        return self.bn(torch.cat([F.conv2d(every(x, 2, i), conv.weight) for i, conv in enumerate(convs)], 1))


class SharedReLU(nn.ReLU):
    """``nn.ReLU`` that, in training, computes its output once for all that read the same tensor.

    The tensor remembers the output. In a cell several operations read one state, and two cells one output. Tensors
    that no operation made, which may come again in another step, do not.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(...) to (...)."""
        if not self.training or input.grad_fn is None or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return super().forward(input)
        version, output = getattr(input, "_rectified", (None, None))
        if output is None or version != input._version:
            output = super().forward(input)
            input._rectified = input._version, output  # type: ignore[attr-defined]
        return output


def quicken(network: nn.Module) -> nn.Module:
    """Turn the convolutions and ReLUs of a network into those above.

    Args:
        network: changed in place; its parameters and their names stay.

    Returns:
        The network.

    Example:
        >>> quicken(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.ReLU()))
        Sequential(
          (0): QuickConv2d(4, 4, kernel_size=(3, 3), stride=(1, 1), groups=4, bias=False)
          (1): SharedReLU()
        )
    """
    for part in network.modules():
        if type(part) is nn.Conv2d and _suits(part):
            part.__class__ = QuickConv2d
        elif type(part) is nn.ReLU and not part.inplace:
            part.__class__ = SharedReLU
        elif type(part) is FactorizedReduce:
            part.__class__ = QuickFactorizedReduce
    return network


def _suits(conv: nn.Conv2d) -> bool:
    square = all(isinstance(side, tuple) and len(set(side)) == 1 for side in (conv.stride, conv.padding, conv.dilation))
    grouped = conv.groups in (1, conv.in_channels) and conv.in_channels % conv.groups == 0
    within = conv.groups == 1 or conv.in_channels == conv.out_channels
    plain = conv.bias is None and conv.padding_mode == "zeros" and len(set(conv.kernel_size)) == 1
    return square and grouped and within and plain


def _full_on_cpu(input: Tensor, weight: Tensor) -> bool:
    return (
        input.device.type == "cpu"
        and input.dtype == weight.dtype
        and input.dtype in (torch.float32, torch.float64)
        and input.dim() == 4
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
