"""MobileNetV1 for 224x224 images: a small classifier, and the feature pyramid of a face detector."""

import torch.nn.functional as F
from torch import Tensor, nn

_STEM = 32
_STAGES = (  # channels at width 1 and stride of every block
    ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)),
    ((512, 2), *[(512, 1)] * 5),
    ((1024, 2), (1024, 1)),
)


class MobileNetV1(nn.Module):
    """A convolution and 13 depthwise separable blocks in three stages, which end at 1/8, 1/16 and 1/32 of the size.

    Args:
        num_classes: outputs.
        width: factor on all numbers of channels, a multiple of 1/32; they are 256, 512 and 1024 behind the stages at 1.
        leaky: slope of the activations below zero, in [0, 1); 0 is a plain ReLU.

    Raises:
        ValueError: ``width`` leaves no whole number of channels, or ``leaky`` is out of range.

    Source:
        MobileNets, arXiv 1704.04861, table 1. Stages, parameter names and the leaky slope are those of
        biubug6/Pytorch_Retinaface, whose published weights load as they are (a leading ``module.`` goes by itself).

    Example:
        >>> import torch
        >>> maps = MobileNetV1(num_classes=10).features(torch.zeros(1, 3, 64, 96))
        >>> [tuple(level.shape) for level in maps]
        [(1, 64, 8, 12), (1, 128, 4, 6), (1, 256, 2, 3)]
    """

    def __init__(self, num_classes: int = 1000, width: float = 0.25, leaky: float = 0.1) -> None:
        super().__init__()
        if width <= 0 or _STEM * width % 1:
            raise ValueError(
                f"width={width} would make {_STEM * width:g} channels of {_STEM}; give a multiple of 1/{_STEM}, "
                "such as 0.25 or 1.0"
            )
        if not 0 <= leaky < 1:
            raise ValueError(f"leaky={leaky} must lie in [0, 1); it is the slope below zero, and 0 a plain ReLU")
        channels = int(_STEM * width)
        first = nn.Sequential(*_conv(3, channels, stride=2), _activation(leaky))
        stages = [nn.Sequential(first), nn.Sequential(), nn.Sequential()]
        for stage, blocks in zip(stages, _STAGES, strict=True):
            for full, stride in blocks:
                source, channels = channels, int(full * width)
                stage.append(_separable(source, channels, stride, leaky))
        self.stage1, self.stage2, self.stage3 = stages
        self.fc = nn.Linear(channels, num_classes)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The maps behind the three stages of images (N, 3, H, W), coarser and wider from one to the next."""
        fine = self.stage1(x)
        middle = self.stage2(fine)
        return fine, middle, self.stage3(middle)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, num_classes)."""
        return self.fc(F.adaptive_avg_pool2d(self.features(x)[-1], 1).flatten(1))


def mobilenet_v1(num_classes: int = 1000, width: float = 0.25, leaky: float = 0.1) -> MobileNetV1:
    """MobileNetV1, by default a quarter as wide as the paper's; see ``MobileNetV1`` for the arguments."""
    return MobileNetV1(num_classes, width, leaky)


def gates() -> dict[str, tuple[str, ...]]:
    """Where NAD gates it: behind the first convolution and every block. NAD's paper has no such network.

    Example:
        >>> list(gates())[:2], list(gates())[-1]
        (['stage1.0', 'stage1.1'], 'stage3.1')
    """
    sizes = [len(blocks) for blocks in _STAGES]
    sizes[0] += 1  # the first convolution
    return {f"stage{stage}.{i}": () for stage, size in enumerate(sizes, start=1) for i in range(size)}


def _conv(source: int, channels: int, stride: int = 1, groups: int = 1, kernel: int = 3) -> list[nn.Module]:
    conv = nn.Conv2d(source, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


def _activation(leaky: float) -> nn.Module:
    return nn.LeakyReLU(leaky, inplace=True) if leaky else nn.ReLU(inplace=True)


def _separable(source: int, channels: int, stride: int, leaky: float) -> nn.Sequential:
    """A 3x3 convolution within each channel, then a 1x1 convolution across them."""
    depthwise = _conv(source, source, stride, groups=source)
    pointwise = _conv(source, channels, kernel=1)
    return nn.Sequential(*depthwise, _activation(leaky), *pointwise, _activation(leaky))
