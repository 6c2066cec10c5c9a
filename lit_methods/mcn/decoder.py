"""ASPP: a map looked at with several fields of view, to one mask logit per cell."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lit_methods.mcn.blocks import CBL, LEAK, norm_of_few


class ASPPDecoder(nn.Module):
    """Five branches, the mean of the map, 1x1, and 3x3 with three dilations; a 1x1 convolution of all gives the logit.

    Args:
        dim: channels that go in.
        mid: channels of each branch; ``None`` is half of ``dim``.
        rates: dilations of the 3x3 branches.

    Source:
        Section 2.2 of MCN's specification; the branches' order is that of the columns of ``out.weight``. With a batch
        of one image in training, the branch of the mean has one value per channel, which batch norm takes by its
        running statistics (``norm_of_few``).

    Example:
        >>> import torch
        >>> ASPPDecoder(8)(torch.zeros(1, 8, 6, 7)).shape
        torch.Size([1, 1, 6, 7])
    """

    def __init__(self, dim: int = 512, mid: int | None = None, rates: Sequence[int] = (6, 12, 18)) -> None:
        super().__init__()
        mid = dim // 2 if mid is None else mid
        self.pool = CBL(dim, mid)
        self.branches = nn.ModuleList([CBL(dim, mid), *(CBL(dim, mid, 3, dilation=rate) for rate in rates)])
        self.out = nn.Conv2d(mid * (2 + len(rates)), 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, dim, h, w) to logits (N, 1, h, w)."""
        mean = self.pool.conv(x.mean((2, 3), keepdim=True))
        mean = F.leaky_relu(norm_of_few(self.pool.norm, mean), LEAK)
        parts = self.out.weight.split(mean.shape[1], 1)
        logits = F.conv2d(mean, parts[0], self.out.bias)  # the same in every cell
        for branch, weight in zip(self.branches, parts[1:], strict=True):
            logits = logits + F.conv2d(branch(x), weight)
        return logits
