"""Building blocks of MCN's networks: convolutions with batch norm and leaky ReLU, and how weights begin."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

LEAK = 0.1  # slope of the leaky ReLU below zero, everywhere
EPS = 1e-3  # of all batch norms, as in Keras


class CBL(nn.Sequential):
    """Convolution without bias, batch norm, leaky ReLU of slope 0.1.

    Args:
        source: channels that go in.
        channels: channels that come out.
        kernel: side, odd; the size stays at stride 1.
        stride: 2 halves even sizes.
        dilation: 1 is a dense kernel.

    Source:
        Section 2 of MCN's specification. The official code pads left and top alone at stride 2, which is the same for
        even sizes.

    Example:
        >>> import torch
        >>> CBL(3, 8, 3, stride=2)(torch.zeros(2, 3, 6, 8)).shape
        torch.Size([2, 8, 3, 4])
    """

    conv: nn.Conv2d
    norm: nn.BatchNorm2d

    def __init__(self, source: int, channels: int, kernel: int = 1, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(source, channels, kernel, stride, padding, dilation, bias=False)
        self.norm = nn.BatchNorm2d(channels, eps=EPS)
        self.act = nn.LeakyReLU(LEAK, inplace=True)


class JoinedCBL(nn.Module):
    """``CBL`` of kernel 1 on several maps that lie one behind the other, without laying them there.

    A 1x1 convolution of joined maps is the sum of the convolutions of its parts, each with its columns of the weight.
    So a part can be computed once for many sentences, or before it is enlarged.

    Args:
        sources: channels of each map, in their order.
        channels: channels that come out.

    Raises:
        ValueError: from ``forward``: not as many maps as there are sources.

    Source:
        Section 2.2 of MCN's specification, where these are ``CBL1x1(concat[...])``; parameters are the same.

    Example:
        >>> import torch
        >>> joined = JoinedCBL([2, 3], 4).eval()
        >>> joined(torch.zeros(1, 2, 5, 5), torch.zeros(1, 3, 5, 5)).shape, joined.conv.weight.shape
        (torch.Size([1, 4, 5, 5]), torch.Size([4, 5, 1, 1]))
    """

    def __init__(self, sources: Sequence[int], channels: int) -> None:
        super().__init__()
        self.sources = tuple(sources)
        self.conv = nn.Conv2d(sum(sources), channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels, eps=EPS)

    def forward(self, *maps: Tensor) -> Tensor:
        """Maps (N, sources[i], h, w) to (N, channels, h, w)."""
        if len(maps) != len(self.sources):
            raise ValueError(f"{len(maps)} maps were given for sources={self.sources}; give one for each")
        total = self.part(maps[0], 0)
        for place in range(1, len(maps)):
            total = total + self.part(maps[place], place)
        return self.finish(total)

    def part(self, x: Tensor, place: int) -> Tensor:
        """What one map adds to the sum in front of batch norm, (N, channels, h, w).

        Args:
            x: (N, sources[place], h, w).
            place: which of the maps it is.
        """
        start = sum(self.sources[:place])
        return F.conv2d(x, self.conv.weight[:, start : start + self.sources[place]])

    def finish(self, total: Tensor) -> Tensor:
        """Batch norm and leaky ReLU of the sum of all parts."""
        return F.leaky_relu(self.norm(total), LEAK, inplace=True)


def double(x: Tensor) -> Tensor:
    """Twice as high and wide, each cell repeated (nearest neighbour).

    Args:
        x: (N, C, h, w).

    Example:
        >>> import torch
        >>> double(torch.tensor([[[[1.0, 2.0]]]]))[0, 0].tolist()
        [[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]
    """
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def norm_of_few(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Batch norm that takes a single value per channel in training, too: by its running statistics, left as they are.

    PyTorch refuses it, since a value less itself is zero. It happens with a batch of one image, where a map was
    averaged or a sentence became one vector. ``SyncBatchNorm``, which sees the other processes' values, is called as
    usual.

    Args:
        norm: the layer.
        x: (N, C) or (N, C, h, w).

    Example:
        >>> import torch
        >>> norm_of_few(nn.BatchNorm1d(2, eps=0.0), torch.tensor([[3.0, 4.0]])).tolist()
        [[3.0, 4.0]]
    """
    if norm.training and x.numel() == x.shape[1] and isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    return norm(x)


def begin(module: nn.Module) -> None:
    """Give a module the weights that training starts from: Glorot's uniform ones, zero biases, orthogonal recurrence.

    Args:
        module: changed in place; batch norms are left as they are made, 1 and 0.

    Source:
        Section 3.4 of MCN's specification, the defaults of Keras. The three recurrent matrices of a GRU together have
        orthonormal columns, as there.

    Example:
        >>> layer = nn.Linear(300, 100)
        >>> begin(layer)
        >>> bool(layer.bias.any()), bool(0.11 < layer.weight.max() < 0.1225)  # sqrt(6 / 400)
        (False, True)
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.GRU):
            for name, weight in part.named_parameters():
                if name.startswith("bias"):
                    nn.init.zeros_(weight)
                elif name.startswith("weight_hh"):
                    nn.init.orthogonal_(weight)
                else:
                    nn.init.xavier_uniform_(weight)
