"""Darknet-53 with the first layers of YOLOv3's head behind it, MCN's default backbone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lit_methods.mcn.blocks import CBL

_WIDTHS = (64, 128, 256, 512, 1024)  # of the five stages
_STEM = 32


class Residual(nn.Module):
    """1x1 convolution to half the channels and 3x3 back, beside an identity.

    Args:
        channels: in and out, even.

    Example:
        >>> import torch
        >>> Residual(8)(torch.zeros(1, 8, 4, 4)).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = CBL(channels, channels // 2)
        self.expand = CBL(channels // 2, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, h, w) to the same shape."""
        return x + self.expand(self.reduce(x))


def yolo_tail(source: int, channels: int) -> nn.Sequential:
    """Six convolutions, 1x1 to half of ``channels`` and 3x3 to all of them in turn; the size stays.

    Args:
        source: channels that go in.
        channels: channels that come out, even.

    Source:
        Section 3.1 of MCN's specification: the layers of YOLOv3 in front of its first prediction.

    Example:
        >>> [block.conv.out_channels for block in yolo_tail(512, 1024)]
        [512, 1024, 512, 1024, 512, 1024]
    """
    half = channels // 2
    inputs = (source, half, channels, half, channels, half)
    return nn.Sequential(
        *(CBL(width, channels, 3) if place % 2 else CBL(width, half) for place, width in enumerate(inputs))
    )


class DarkNet53(nn.Module):
    """Stem, five stages that halve the size, and the six layers of YOLOv3 on the last of them.

    Args:
        width: factor on all channels; the numbers below are for 1.
        depths: residual blocks in each stage.
        least: no stem or stage is narrower than this, for small ``width``.

    Attributes:
        channels: of the three maps that ``forward`` gives, coarse first.

    Raises:
        ValueError: an argument is out of range.

    Source:
        Section 3.1 of MCN's specification. Modules stand in the order of a darknet ``.weights`` file.

    Example:
        >>> import torch
        >>> net = DarkNet53(width=1 / 16, depths=[1, 1, 1, 1, 1])
        >>> [tuple(x.shape) for x in net(torch.zeros(1, 3, 64, 96))]
        [(1, 64, 2, 3), (1, 32, 4, 6), (1, 16, 8, 12)]
    """

    title = "Darknet-53"
    trained = 2  # convolutions at the end of the tail that MCN trains, however the rest is frozen

    def __init__(self, width: float = 1.0, depths: Sequence[int] = (1, 2, 8, 8, 4), least: int = 2) -> None:
        super().__init__()
        if not width > 0:
            raise ValueError(f"width={width} must be above 0; 1 is the whole Darknet-53")
        if len(depths) != len(_WIDTHS) or min(depths) < 0:
            raise ValueError(f"depths={list(depths)} must be five numbers of blocks, none below 0, as [1, 2, 8, 8, 4]")
        if least < 2:
            raise ValueError(f"least={least} must be at least 2, since blocks have half as many channels inside")
        stem, *widths = (2 * max(round(width * full / 2), (least + 1) // 2) for full in (_STEM, *_WIDTHS))
        self.stem = CBL(3, stem, 3)
        self.stages = nn.ModuleList()
        source = stem
        for channels, depth in zip(widths, depths, strict=True):
            blocks = (Residual(channels) for _ in range(depth))
            self.stages.append(nn.Sequential(CBL(source, channels, 3, stride=2), *blocks))
            source = channels
        self.tail = yolo_tail(source, source)
        self.channels = (widths[4], widths[3], widths[2])

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """RGB images (N, 3, H, W) in [0, 1] to maps of strides 32, 16 and 8, (N, channels[i], H / stride, W / stride).

        H and W are multiples of 32. For width 1 there are 1024, 512 and 256 channels.
        """
        deep, v2, v3 = self.early(image)
        return self.late(deep), v2, v3

    def early(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All but the trained end: its input, and the maps of strides 16 and 8."""
        x = self.stages[1](self.stages[0](self.stem(image)))
        v3 = self.stages[2](x)
        v2 = self.stages[3](v3)
        return self.tail[: -self.trained](self.stages[4](v2)), v2, v3

    def late(self, deep: Tensor) -> Tensor:
        """The trained end, from what ``early`` gave first to the map of stride 32."""
        return self.tail[-self.trained :](deep)

    def frozen_part(self) -> list[nn.Module]:
        """What ``early`` runs: all but the last two convolutions, 56 of 58."""
        return [self.stem, self.stages, *self.tail[: -self.trained]]
