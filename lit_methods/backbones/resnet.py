"""ResNet-18, -34 and -50 with torchvision's parameter names, which can also be built thin."""

from collections.abc import Callable, Iterator
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from lit_methods.backbones.plan import Backbone, Plan, PrunePoint, plan_for
from lit_methods.backbones.widths import Block, Chain
from lit_methods.backbones.wiring import Channels, ResidualSum, Spread, Wiring


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the first with the stride, beside a shortcut, projected where the shape changes.

    Every ReLU is a module of its own, so that each can be hooked. ``channels`` is what the block puts out.

    Args:
        wiring: of the network.
        name: where the block will be inside it.
        source: its inputs.
        width: channels inside the full block.
        stride: 1, or 2 to halve the size.
    """

    depth, expansion = 2, 1

    def __init__(self, wiring: Wiring, name: str, source: Channels, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, stream = wiring.conv(f"{name}.conv1", source, width, 3, stride=stride, bias=False)
        self.bn1 = wiring.norm(f"{name}.bn1", stream)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2, stream = wiring.conv(f"{name}.conv2", stream, width, 3, bias=False)
        self.bn2 = wiring.norm(f"{name}.bn2", stream)
        self.downsample, shortcut = _shortcut(wiring, name, source, width, stride)
        self.channels = wiring.gate(name, wiring.stream(shortcut | stream))
        self.sum = ResidualSum(shortcut, stream, self.channels)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, source, H, W) to (N, channels, H / stride, W / stride)."""
        branch = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(self.sum(self.downsample(x), branch))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolution beside a shortcut, projected where the shape changes.

    As ``BasicBlock`` otherwise; four times as many channels come out as flow inside.
    """

    depth, expansion = 3, 4

    def __init__(self, wiring: Wiring, name: str, source: Channels, width: int, stride: int) -> None:
        super().__init__()
        out = self.expansion * width
        self.conv1, stream = wiring.conv(f"{name}.conv1", source, width, 1, bias=False)
        self.bn1 = wiring.norm(f"{name}.bn1", stream)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2, stream = wiring.conv(f"{name}.conv2", stream, width, 3, stride=stride, bias=False)
        self.bn2 = wiring.norm(f"{name}.bn2", stream)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3, stream = wiring.conv(f"{name}.conv3", stream, out, 1, bias=False)
        self.bn3 = wiring.norm(f"{name}.bn3", stream)
        self.downsample, shortcut = _shortcut(wiring, name, source, out, stride)
        self.channels = wiring.gate(name, wiring.stream(shortcut | stream))
        self.sum = ResidualSum(shortcut, stream, self.channels)
        self.relu3 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, source, H, W) to (N, channels, H / stride, W / stride)."""
        branch = self.relu1(self.bn1(self.conv1(x)))
        branch = self.relu2(self.bn2(self.conv2(branch)))
        return self.relu3(self.sum(self.downsample(x), self.bn3(self.conv3(branch))))


def _shortcut(wiring: Wiring, name: str, source: Channels, out: int, stride: int) -> tuple[nn.Module, Channels]:
    if stride == 1 and source.full == out:
        return nn.Identity(), source
    conv, shortcut = wiring.conv(f"{name}.downsample.0", source, out, 1, stride=stride, bias=False)
    return nn.Sequential(conv, wiring.norm(f"{name}.downsample.1", shortcut)), shortcut


Kind = type[BasicBlock] | type[Bottleneck]
_NETWORKS: dict[str, tuple[Kind, tuple[int, ...]]] = {  # block, and how many of them in each stage
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(nn.Module):
    """Equal to torchvision's network of this name in parameters and function, so its weights load.

    Args:
        arch: ``"resnet18"``, ``"resnet34"`` or ``"resnet50"``.
        num_classes: outputs.
        plan: what pruning left, ``None`` for all.

    Raises:
        ValueError: the plan's ids or widths do not exist.

    Example:
        >>> from torch import zeros
        >>> ResNet("resnet18", num_classes=7)(zeros(1, 3, 64, 64)).shape
        torch.Size([1, 7])
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, arch: str, num_classes: int = 1000, plan: Plan | None = None) -> None:
        super().__init__()
        kind, stages = _NETWORKS[arch]
        wiring = Wiring(plan)
        self.conv1, stem = wiring.conv("conv1", Channels(3), 64, 7, stride=2, bias=False)
        self.bn1 = wiring.norm("bn1", stem)
        stream = wiring.gate("maxpool", wiring.stream(stem))
        self.spread = Spread(stem, stream)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for stage, blocks in enumerate(stages, start=1):
            layer = nn.Sequential()
            for i in range(blocks):
                stride = 2 if stage > 1 and i == 0 else 1
                block = kind(wiring, f"layer{stage}.{i}", stream, _width(stage), stride)
                layer.append(block)
                stream = block.channels
            self.add_module(f"layer{stage}", layer)
        self.fc = wiring.linear("fc", stream, num_classes)
        self.kept_channels = wiring.finish()
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, num_classes); any H and W."""
        x = self.maxpool(self.relu(self.spread(self.bn1(self.conv1(x)))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet18(num_classes: int = 10, plan: Plan | None = None, mid_channels: list[int] | None = None) -> ResNet:
    """ResNet-18 for ImageNet, of 8 blocks; arguments and errors as ``resnet50``."""
    return _resnet("resnet18", num_classes, plan, mid_channels)


def resnet34(num_classes: int = 10, plan: Plan | None = None, mid_channels: list[int] | None = None) -> ResNet:
    """ResNet-34 for ImageNet, of 16 blocks; arguments and errors as ``resnet50``."""
    return _resnet("resnet34", num_classes, plan, mid_channels)


def resnet50(num_classes: int = 10, plan: Plan | None = None, mid_channels: list[int] | None = None) -> ResNet:
    """ResNet-50 for ImageNet (HRank, table 5), of 16 blocks.

    Args:
        num_classes: outputs; ImageNet has 1000.
        plan: what pruning left, ``None`` for all.
        mid_channels: in the place of a plan the width inside each block, as ``WidthPlan.of_blocks`` takes them.

    Raises:
        ValueError: ids or widths that do not exist; plan and widths at once.

    Example:
        >>> resnet50(mid_channels=[32] + [64] * 2 + [128] * 4 + [256] * 6 + [512] * 3).layer1[0].conv2
        Conv2d(32, 32, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    return _resnet("resnet50", num_classes, plan, mid_channels)


def _resnet(arch: str, num_classes: int, plan: Plan | None, mid_channels: list[int] | None) -> ResNet:
    return ResNet(arch, num_classes, plan_for(arch, inner_blocks(arch), plan, mid_channels))


def prune_points(arch: str) -> list[PrunePoint]:
    """Stem behind its max-pool; per block its convolutions and, where there is one, the projection.

    The last convolution and the projection share the map behind the addition.

    Args:
        arch: ``"resnet18"``, ``"resnet34"`` or ``"resnet50"``.

    Example:
        >>> [point.conv for point in prune_points("resnet50")[:3]]
        ['conv1', 'layer1.0.conv1', 'layer1.0.conv2']
    """
    return [
        PrunePoint(conv, str(number), module, (0, width))
        for number, (conv, module, width) in enumerate(_rows(arch), start=1)
    ]


def _rows(arch: str) -> Iterator[tuple[str, str, int]]:
    kind, _ = _NETWORKS[arch]
    yield "conv1", "maxpool", 64
    stream = 64
    for name, width in _blocks(arch):
        out = kind.expansion * width
        for i in range(1, kind.depth):
            yield f"{name}.conv{i}", f"{name}.relu{i}", width
        yield f"{name}.conv{kind.depth}", f"{name}.relu{kind.depth}", out
        if stream != out:
            yield f"{name}.downsample.0", f"{name}.relu{kind.depth}", out
        stream = out


def inner_blocks(arch: str) -> list[Block]:
    """One chain per block, of all its convolutions beside the shortcut.

    Args:
        arch: ``"resnet18"``, ``"resnet34"`` or ``"resnet50"``.

    Example:
        >>> inner_blocks("resnet50")[0][0].convs
        ('layer1.0.conv1', 'layer1.0.conv2', 'layer1.0.conv3')
    """
    places = range(1, _NETWORKS[arch][0].depth + 1)
    return [
        (
            Chain(
                tuple(f"{name}.conv{i}" for i in places),
                tuple(f"{name}.bn{i}" for i in places[:-1]),
                (width,) * (len(places) - 1),
            ),
        )
        for name, width in _blocks(arch)
    ]


def gates(arch: str) -> dict[str, tuple[str, ...]]:
    """Behind the stem's max-pool and behind each block.

    The last convolution of a block and, where there is one, the projection go with the channels of the sum.

    Args:
        arch: ``"resnet18"``, ``"resnet34"`` or ``"resnet50"``.

    Example:
        >>> list(gates("resnet50").values())[:3]
        [('conv1',), ('layer1.0.conv3', 'layer1.0.downsample.0'), ('layer1.1.conv3',)]
    """
    kind, _ = _NETWORKS[arch]
    behind: dict[str, tuple[str, ...]] = {}
    for conv, module, _ in _rows(arch):
        block, _, inner = module.rpartition(".")
        if inner == "maxpool" or inner == f"relu{kind.depth}":
            behind[block or module] = (*behind.get(block, ()), conv)
    return behind


def entry(build: Callable[..., ResNet]) -> Backbone:
    """The entry of ``BACKBONES`` for one of the builders above."""
    arch = build.__name__
    return Backbone(
        build,
        partial(prune_points, arch),
        input_size=(3, 224, 224),
        inner_blocks=partial(inner_blocks, arch),
        gates=partial(gates, arch),
    )


def _blocks(arch: str) -> Iterator[tuple[str, int]]:
    """Name and width of every block, in forward order."""
    for stage, blocks in enumerate(_NETWORKS[arch][1], start=1):
        for i in range(blocks):
            yield f"layer{stage}.{i}", _width(stage)


def _width(stage: int) -> int:
    return 32 * 2**stage
