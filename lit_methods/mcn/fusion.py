"""Where sentence and image meet: the product on the coarse map, and the way from it to the fine one and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lit_methods.mcn.blocks import CBL, EPS, LEAK, JoinedCBL, double, norm_of_few


class SimpleFusion(nn.Module):
    """Coarse map times sentence: one factor per channel, the same in every cell.

    Args:
        channels: of the map, even.
        query_dim: size of the sentence's vector.

    Source:
        Section 2.2 of MCN's specification, equation 1 of the paper.

    Example:
        >>> import torch
        >>> SimpleFusion(8, 12)(torch.zeros(2, 8, 4, 5), torch.zeros(2, 12)).shape
        torch.Size([2, 8, 4, 5])
    """

    def __init__(self, channels: int, query_dim: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(CBL(channels, channels // 2), CBL(channels // 2, channels, 3))
        self.linear = nn.Linear(query_dim, channels)
        self.language_norm = nn.BatchNorm1d(channels, eps=EPS)
        self.norm = nn.BatchNorm2d(channels, eps=EPS)

    def forward(self, v: Tensor, q: Tensor) -> Tensor:
        """Maps (N, channels, h, w) and sentences (N, query_dim) to (N, channels, h, w)."""
        return self.fuse(self.visual(v), q)

    def visual(self, v: Tensor) -> Tensor:
        """The factor that depends on the image alone, (N, channels, h, w)."""
        return v + self.branch(v)

    def fuse(self, visual: Tensor, q: Tensor) -> Tensor:
        """As ``forward``, from what ``visual`` gave."""
        language = F.leaky_relu(norm_of_few(self.language_norm, self.linear(q)), LEAK)
        return F.leaky_relu(self.norm(visual * language[..., None, None]), LEAK, inplace=True)


class TopDown(nn.Module):
    """From the fused coarse map (stride 32) over stride 16 to stride 8, with the backbone's maps on the way.

    Args:
        channels: of the backbone's maps, coarse first; the fused map has as many as the first.
        dim: channels that come out.

    Source:
        Section 2.2 of MCN's specification. The 1x1 convolution of an enlarged map is computed before it is enlarged,
        which is the same for nearest neighbours.

    Example:
        >>> import torch
        >>> top_down = TopDown([16, 8, 4], dim=8)
        >>> lateral = top_down.lateral(torch.zeros(1, 8, 4, 4), torch.zeros(1, 4, 8, 8))
        >>> [tuple(x.shape) for x in top_down(torch.zeros(1, 16, 2, 2), *lateral)]
        [(1, 8, 4, 4), (1, 8, 8, 8)]
    """

    def __init__(self, channels: Sequence[int], dim: int) -> None:
        super().__init__()
        coarse, middle, fine = channels
        self.middle = CBL(middle, dim)
        self.fine = CBL(fine, fine)
        self.join_middle = JoinedCBL([coarse, dim], dim)
        self.join_fine = JoinedCBL([dim, fine], dim)

    def lateral(self, v2: Tensor, v3: Tensor) -> tuple[Tensor, Tensor]:
        """What the backbone's maps add to both sums; it depends on the image alone.

        Args:
            v2: stride 16, (N, channels[1], 2h, 2w).
            v3: stride 8, (N, channels[2], 4h, 4w).
        """
        return self.join_middle.part(self.middle(v2), 1), self.join_fine.part(self.fine(v3), 1)

    def forward(self, fused: Tensor, lateral_2: Tensor, lateral_3: Tensor) -> tuple[Tensor, Tensor]:
        """The maps of strides 16 and 8, (N, dim, 2h, 2w) and (N, dim, 4h, 4w).

        Args:
            fused: (N, channels[0], h, w).
            lateral_2: from ``lateral``, first.
            lateral_3: second.
        """
        u2 = self.join_middle.finish(double(self.join_middle.part(fused, 0)) + lateral_2)
        u3 = self.join_fine.finish(double(self.join_fine.part(u2, 0)) + lateral_3)
        return u2, u3


class BottomUp(nn.Module):
    """From the fine map back to stride 32, past the maps that led to it.

    Args:
        coarse: channels of the fused map.
        dim: channels of the other maps, even, and of what comes out.

    Source:
        Section 2.2 of MCN's specification.

    Example:
        >>> import torch
        >>> maps = torch.zeros(1, 8, 8, 8), torch.zeros(1, 8, 4, 4), torch.zeros(1, 16, 2, 2)
        >>> BottomUp(16, 8)(*maps).shape
        torch.Size([1, 8, 2, 2])
    """

    def __init__(self, coarse: int, dim: int) -> None:
        super().__init__()
        self.down_middle = nn.Sequential(CBL(dim, dim // 2), CBL(dim // 2, dim, 3))
        self.join_middle = JoinedCBL([dim, dim], dim)
        self.down_coarse = nn.Sequential(CBL(dim, dim // 2), CBL(dim // 2, dim, 3))
        self.join_coarse = JoinedCBL([dim, coarse], dim)

    def forward(self, fine: Tensor, u2: Tensor, fused: Tensor) -> Tensor:
        """Maps of strides 8, 16 and 32 to (N, dim, h, w) of stride 32.

        Args:
            fine: (N, dim, 4h, 4w), which went through GARAN.
            u2: (N, dim, 2h, 2w).
            fused: (N, coarse, h, w).
        """
        b2 = self.join_middle(self.down_middle(F.avg_pool2d(fine, 2)), u2)
        return self.join_coarse(self.down_coarse(F.avg_pool2d(b2, 2)), fused)
