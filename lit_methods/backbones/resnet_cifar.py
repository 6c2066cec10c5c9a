"""ResNet-20, -56 and -110 for 32x32 images, with parameter-free shortcuts (He et al., section 4.2, option A)."""

from collections.abc import Callable, Iterator
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from lit_methods.backbones.plan import Backbone, Plan, PrunePoint, plan_for
from lit_methods.backbones.widths import Block, Chain
from lit_methods.backbones.wiring import Channels, ResidualSum, Spread, Wiring

_WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut that has no parameters.

    At stride 2 the shortcut takes every second pixel and moves its channels to the middle of the wider stream.
    ``channels`` is what the block puts out.

    Args:
        wiring: of the network.
        name: where the block will be inside it.
        source: its inputs.
        width: channels of the full block.
        stride: 1, or 2 to halve the size.
    """

    def __init__(self, wiring: Wiring, name: str, source: Channels, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1, middle = wiring.conv(f"{name}.conv1", source, width, 3, stride=stride, bias=False)
        self.bn1 = wiring.norm(f"{name}.bn1", middle)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2, branch = wiring.conv(f"{name}.conv2", middle, width, 3, bias=False)
        self.bn2 = wiring.norm(f"{name}.bn2", branch)
        shortcut = source.shifted((width - source.full) // 2, width)
        self.channels = wiring.gate(name, wiring.stream(shortcut | branch))
        self.sum = ResidualSum(shortcut, branch, self.channels)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, source, H, W) to (N, channels, H / stride, W / stride)."""
        branch = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        shortcut = x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride]
        return self.relu2(self.sum(shortcut, branch))


class CifarResNet(nn.Module):
    """A stem and three stages of 16, 32 and 64 channels, ``blocks`` blocks each: 6 * blocks + 2 layers.

    Args:
        blocks: basic blocks per stage.
        num_classes: outputs.
        plan: what pruning left, ``None`` for all.

    Raises:
        ValueError: the plan's ids or widths do not exist.

    Example:
        >>> from torch import zeros
        >>> CifarResNet(3)(zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, blocks: int, num_classes: int = 10, plan: Plan | None = None) -> None:
        super().__init__()
        wiring = Wiring(plan)
        self.conv1, stem = wiring.conv("conv1", Channels(3), 16, 3, bias=False)
        self.bn1 = wiring.norm("bn1", stem)
        stream = wiring.gate("relu", wiring.stream(stem))
        self.spread = Spread(stem, stream)
        self.relu = nn.ReLU(inplace=True)
        for stage, width in enumerate(_WIDTHS, start=1):
            layer = nn.Sequential()
            for i in range(blocks):
                block = BasicBlock(wiring, f"layer{stage}.{i}", stream, width, 2 if stage > 1 and i == 0 else 1)
                layer.append(block)
                stream = block.channels
            self.add_module(f"layer{stage}", layer)
        self.fc = wiring.linear("fc", stream, num_classes)
        self.kept_channels = wiring.finish()
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(part.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, num_classes); any H and W."""
        x = self.relu(self.spread(self.bn1(self.conv1(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet20(num_classes: int = 10, plan: Plan | None = None, mid_channels: list[int] | None = None) -> CifarResNet:
    """ResNet-20 for CIFAR, of 9 blocks; arguments and errors as ``resnet56``."""
    return _resnet("resnet20", 3, num_classes, plan, mid_channels)


def resnet56(num_classes: int = 10, plan: Plan | None = None, mid_channels: list[int] | None = None) -> CifarResNet:
    """ResNet-56 for CIFAR (HRank, table 3), of 27 blocks.

    Args:
        num_classes: outputs.
        plan: what pruning left, ``None`` for all.
        mid_channels: in the place of a plan the width inside each block.

    Raises:
        ValueError: ids or widths that do not exist; plan and widths at once.

    Example:
        >>> resnet56(mid_channels=[5] + [16] * 8 + [32] * 9 + [64] * 9).layer1[0].conv1.out_channels
        5
    """
    return _resnet("resnet56", 9, num_classes, plan, mid_channels)


def resnet110(num_classes: int = 10, plan: Plan | None = None, mid_channels: list[int] | None = None) -> CifarResNet:
    """ResNet-110 for CIFAR (HRank, table 3), of 54 blocks; arguments and errors as ``resnet56``."""
    return _resnet("resnet110", 18, num_classes, plan, mid_channels)


def _resnet(arch: str, blocks: int, num_classes: int, plan: Plan | None, mid_channels: list[int] | None) -> CifarResNet:
    return CifarResNet(blocks, num_classes, plan_for(arch, inner_blocks(blocks), plan, mid_channels))


def prune_points(blocks: int) -> list[PrunePoint]:
    """Stem, then both convolutions of each block; the second is scored behind the addition.

    Args:
        blocks: per stage.

    Example:
        >>> [point.module for point in prune_points(3)[:3]]
        ['relu', 'layer1.0.relu1', 'layer1.0.relu2']
    """
    points = [PrunePoint("conv1", "1", "relu", (0, 16))]
    for name, width in _blocks(blocks):
        for k in (1, 2):
            points.append(PrunePoint(f"{name}.conv{k}", str(len(points) + 1), f"{name}.relu{k}", (0, width)))
    return points


def inner_blocks(blocks: int) -> list[Block]:
    """One chain of two convolutions per block.

    Args:
        blocks: per stage.

    Example:
        >>> inner_blocks(3)[-1][0].convs
        ('layer3.2.conv1', 'layer3.2.conv2')
    """
    return [(Chain((f"{name}.conv1", f"{name}.conv2"), (f"{name}.bn1",), (width,)),) for name, width in _blocks(blocks)]


def gates(blocks: int) -> dict[str, tuple[str, ...]]:
    """Behind the stem and behind each block, whose last convolution goes with the channels of the sum.

    Args:
        blocks: per stage.

    Example:
        >>> list(gates(3).items())[:2]
        [('relu', ('conv1',)), ('layer1.0', ('layer1.0.conv2',))]
    """
    behind: dict[str, tuple[str, ...]] = {"relu": ("conv1",)}
    return behind | {name: (f"{name}.conv2",) for name, _ in _blocks(blocks)}


def entry(build: Callable[..., CifarResNet], blocks: int) -> Backbone:
    """The entry of ``BACKBONES`` for one of the builders above, with so many blocks per stage."""
    return Backbone(
        build,
        partial(prune_points, blocks),
        inner_blocks=partial(inner_blocks, blocks),
        gates=partial(gates, blocks),
    )


def _blocks(blocks: int) -> Iterator[tuple[str, int]]:
    """Name and width of every block, in forward order."""
    for stage, width in enumerate(_WIDTHS, start=1):
        for i in range(blocks):
            yield f"layer{stage}.{i}", width
