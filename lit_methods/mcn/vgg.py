"""The convolutions of VGG16 with the first layers of YOLOv3's head behind them, MCN's other backbone."""

from __future__ import annotations

from torch import Tensor, nn

from lit_methods.mcn.darknet import yolo_tail

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_COARSE = 1024


class VGG16Features(nn.Module):
    """13 convolutions with bias and ReLU, a max-pool behind each of five stages, and six layers with batch norm.

    ``features`` has torchvision's numbers, so that its weights load; the fifth max-pool is its last layer.

    Attributes:
        channels: of the three maps that ``forward`` gives, coarse first.

    Source:
        Section 3.2 of MCN's specification; the tail begins with 512 channels.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     maps = VGG16Features()(torch.zeros(1, 3, 64, 96))
        >>> [tuple(x.shape) for x in maps]
        [(1, 1024, 2, 3), (1, 512, 4, 6), (1, 512, 8, 12)]
    """

    title = "VGG16"
    trained = 1  # convolutions at the end of the tail that MCN trains, however the rest is frozen

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        source, ends = 3, []
        for stage in _STAGES:
            for channels in stage:
                layers += [nn.Conv2d(source, channels, 3, padding=1), nn.ReLU(inplace=True)]
                source = channels
            ends.append(len(layers))
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.ends = ends  # of the stages, in front of their max-pools
        self.tail = yolo_tail(source, _COARSE)
        self.channels = (_COARSE, _STAGES[4][-1], _STAGES[3][-1])

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """RGB images (N, 3, H, W) in [0, 1] to maps of strides 32, 16 and 8 with 1024, 512 and 512 channels.

        H and W are multiples of 32.
        """
        deep, v2, v3 = self.early(image)
        return self.late(deep), v2, v3

    def early(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All but the trained end: its input, and the maps of strides 16 and 8."""
        fourth, fifth = self.ends[3], self.ends[4]
        v3 = self.features[:fourth](image)
        v2 = self.features[fourth:fifth](v3)
        return self.tail[: -self.trained](self.features[fifth:](v2)), v2, v3

    def late(self, deep: Tensor) -> Tensor:
        """The trained end, from what ``early`` gave first to the map of stride 32."""
        return self.tail[-self.trained :](deep)

    def frozen_part(self) -> list[nn.Module]:
        """What ``early`` runs: all but the last convolution."""
        return [self.features, *self.tail[: -self.trained]]
