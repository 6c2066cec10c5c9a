"""From the image to six maps of one width: the backbones without their classifiers, laterals, two coarser levels."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor, nn
from torchvision import models

from lit_methods.asfd.genotype import LEVELS
from lit_methods.asfd.operations import begin, conv_bn_relu, separable
from lit_methods.backbones.mobilenet import MobileNetV1
from lit_methods.functional.suggestions import nearest

_C2 = 3  # the block of MobileNetV1's first stage whose map has a stride of 4
_MOBILE = {"mobilenet_v1_x025": 0.25, "mobilenet_v1_x100": 1.0}
_RESNETS = tuple(f"resnet{depth}" for depth in (18, 34, 50, 101, 152))


class MobileNetFeatures(nn.Module):
    """MobileNetV1 without its classifier: maps of strides 4, 8, 16 and 32.

    Args:
        width: factor on all numbers of channels, a multiple of 1/32.

    Attributes:
        out_channels: of each map.

    Source:
        Section 3 of ASFD's specification. Parameter names are those of ``lit_methods.backbones.mobilenet``; activations
        are plain ReLUs, while RetinaFace's published weights learnt with a slope of 0.1.

    Example:
        >>> import torch
        >>> [tuple(x.shape) for x in MobileNetFeatures(0.25)(torch.zeros(1, 3, 64, 100))]
        [(1, 32, 16, 25), (1, 64, 8, 13), (1, 128, 4, 7), (1, 256, 2, 4)]
    """

    def __init__(self, width: float = 0.25) -> None:
        super().__init__()
        whole = MobileNetV1(num_classes=1, width=width, leaky=0.0)
        self.stage1, self.stage2, self.stage3 = whole.stage1, whole.stage2, whole.stage3
        self.out_channels = tuple(int(channels * width) for channels in (128, 256, 512, 1024))
        begin(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to four maps (B, C, ceil(H / stride), ceil(W / stride))."""
        maps = []
        for place, block in enumerate(self.stage1):
            x = block(x)
            if place == _C2:
                maps.append(x)
        maps.append(x)
        for stage in (self.stage2, self.stage3):
            maps.append(stage(maps[-1]))
        return maps


class ResNetFeatures(nn.Module):
    """torchvision's ResNet without its classifier: maps of strides 4, 8, 16 and 32. Nothing is downloaded.

    Args:
        depth: 18, 34, 50, 101 or 152.

    Attributes:
        out_channels: of each map.

    Source:
        arXiv 1512.03385 as torchvision has it, with its parameter names and its initial weights.

    Example:
        >>> import torch
        >>> [tuple(x.shape) for x in ResNetFeatures(18)(torch.zeros(1, 3, 64, 100))]
        [(1, 64, 16, 25), (1, 128, 8, 13), (1, 256, 4, 7), (1, 512, 2, 4)]
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        whole = models.get_model(f"resnet{depth}", weights=None)
        for name, part in whole.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, part)
        wide = 1 if depth < 50 else 4
        self.out_channels = tuple(wide * channels for channels in (64, 128, 256, 512))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to four maps (B, C, ceil(H / stride), ceil(W / stride))."""
        maps = []
        for name, part in self.named_children():
            x = part(x)
            if name.startswith("layer"):
                maps.append(x)
        return maps


def build_features(name: str) -> MobileNetFeatures | ResNetFeatures:
    """A backbone with random weights.

    Args:
        name: ``"mobilenet_v1_x025"``, ``"mobilenet_v1_x100"``, ``"resnet18"``, ``"resnet34"``, ``"resnet50"``,
            ``"resnet101"`` or ``"resnet152"``.

    Raises:
        ValueError: there is no such backbone.

    Example:
        >>> build_features("mobilenet_v1_x025").out_channels
        (32, 64, 128, 256)
    """
    if name in _MOBILE:
        return MobileNetFeatures(_MOBILE[name])
    if name not in _RESNETS:
        known = (*_MOBILE, *_RESNETS)
        raise ValueError(f"name={name!r} is no backbone of a detector{nearest(name, known)}; it has {', '.join(known)}")
    return ResNetFeatures(int(name.removeprefix("resnet")))


class Neck(nn.Module):
    """Laterals of the backbone's four maps, and two coarser maps, all of one width.

    Args:
        in_channels: of the backbone's maps.
        channels: of each of the six.
        light: whether the last one is made by a depth-wise separable convolution.
        read: levels that are looked at; ``None`` is all of 2 to 7. Of the others only the size counts: they get no
            convolution of their own.

    Source:
        Sections 2.1 and 3 of ASFD's specification. Its table of budgets comes out where the first of the two extra
        convolutions is a full one in every size, and where extra levels have no lateral convolution of their own.

    Example:
        >>> import torch
        >>> maps = [torch.zeros(1, c, s, s) for c, s in ((8, 32), (16, 16), (32, 8), (64, 4))]
        >>> [tuple(x.shape) for x in Neck((8, 16, 32, 64), 4).eval()(maps)][3:]
        [(1, 4, 4, 4), (1, 4, 2, 2), (1, 4, 1, 1)]
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int, light: bool = False, read: Collection[int] | None = None
    ) -> None:
        super().__init__()
        read = LEVELS if read is None else read
        self.laterals = nn.ModuleList(
            conv_bn_relu(source, channels, 1) if level in read else nn.Identity()
            for level, source in zip(LEVELS[:4], in_channels, strict=True)
        )
        self.extras = nn.ModuleList(nn.MaxPool2d(3, stride=2, padding=1) for _ in range(2))
        if 6 in read or 7 in read:
            self.extras[0] = conv_bn_relu(in_channels[-1], channels, stride=2)
        if 7 in read:
            self.extras[1] = (separable if light else conv_bn_relu)(channels, channels, stride=2)
        begin(self)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps to those of levels 2 to 7, (B, channels, ceil(H / stride), ceil(W / stride))."""
        levels = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        x = maps[-1]
        for extra in self.extras:
            x = extra(x)
            levels.append(x)
        return levels
