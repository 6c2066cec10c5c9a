"""ResNet-50 with torchvision's parameter names, which can also be built thin."""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from lit_methods.backbones.plan import PrunePlan, PrunePoint
from lit_methods.backbones.wiring import Channels, ResidualSum, Spread, Wiring

_BLOCKS = (3, 4, 6, 3)
_EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolution beside a shortcut, projected where the shape changes.

    Every ReLU is a module of its own, so that each can be hooked. ``channels`` is what the block puts out.
    """

    def __init__(self, wiring: Wiring, name: str, source: Channels, width: int, stride: int, project: bool) -> None:
        super().__init__()
        out = _EXPANSION * width
        self.conv1, stream = wiring.conv(f"{name}.conv1", source, width, 1, bias=False)
        self.bn1 = wiring.norm(f"{name}.bn1", stream)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2, stream = wiring.conv(f"{name}.conv2", stream, width, 3, stride=stride, bias=False)
        self.bn2 = wiring.norm(f"{name}.bn2", stream)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3, stream = wiring.conv(f"{name}.conv3", stream, out, 1, bias=False)
        self.bn3 = wiring.norm(f"{name}.bn3", stream)
        self.downsample: nn.Module = nn.Identity()
        shortcut = source
        if project:
            conv, shortcut = wiring.conv(f"{name}.downsample.0", source, out, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(conv, wiring.norm(f"{name}.downsample.1", shortcut))
        self.channels = wiring.stream(shortcut | stream)
        self.sum = ResidualSum(shortcut, stream, self.channels)
        self.relu3 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, source, H, W) to (N, channels, H / stride, W / stride)."""
        branch = self.relu1(self.bn1(self.conv1(x)))
        branch = self.relu2(self.bn2(self.conv2(branch)))
        return self.relu3(self.sum(self.downsample(x), self.bn3(self.conv3(branch))))


class ResNet50(nn.Module):
    """Equal to ``torchvision.models.resnet50`` in parameters and function, so its weights load.

    Args:
        num_classes: outputs.
        plan: what pruning left, ``None`` for all.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, num_classes: int = 1000, plan: PrunePlan | None = None) -> None:
        super().__init__()
        wiring = Wiring(plan)
        self.conv1, stem = wiring.conv("conv1", Channels(3), 64, 7, stride=2, bias=False)
        self.bn1 = wiring.norm("bn1", stem)
        stream = wiring.stream(stem)
        self.spread = Spread(stem, stream)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for stage, blocks in enumerate(_BLOCKS, start=1):
            layer = nn.Sequential()
            for i in range(blocks):
                stride = 2 if stage > 1 and i == 0 else 1
                block = Bottleneck(wiring, f"layer{stage}.{i}", stream, _width(stage), stride, project=i == 0)
                layer.append(block)
                stream = block.channels
            self.add_module(f"layer{stage}", layer)
        self.fc = wiring.linear("fc", stream, num_classes)
        self.kept_channels = wiring.finish()
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, num_classes)."""
        x = self.maxpool(self.relu(self.spread(self.bn1(self.conv1(x)))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet50(num_classes: int = 10, plan: PrunePlan | None = None) -> ResNet50:
    """ResNet-50 for ImageNet (HRank, table 5)."""
    return ResNet50(num_classes, plan)


def prune_points() -> list[PrunePoint]:
    """Stem behind its max-pool; per block the three convolutions and, in a stage's first block, the projection.

    The last convolution and the projection share the map behind the addition.
    """
    return [
        PrunePoint(conv, str(number), module, (0, width))
        for number, (conv, module, width) in enumerate(_rows(), start=1)
    ]


def _rows() -> Iterator[tuple[str, str, int]]:
    yield "conv1", "maxpool", 64
    for stage, blocks in enumerate(_BLOCKS, start=1):
        for name in (f"layer{stage}.{i}" for i in range(blocks)):
            yield f"{name}.conv1", f"{name}.relu1", _width(stage)
            yield f"{name}.conv2", f"{name}.relu2", _width(stage)
            yield f"{name}.conv3", f"{name}.relu3", _EXPANSION * _width(stage)
            if name.endswith(".0"):
                yield f"{name}.downsample.0", f"{name}.relu3", _EXPANSION * _width(stage)


def _width(stage: int) -> int:
    return 32 * 2**stage
