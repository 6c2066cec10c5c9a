"""ResNet-18, -34 and -50 whose deeper stages keep a stride of 8 and dilate instead, for trackers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

from torch import Tensor, nn

STRIDE = 8  # pixels of the image between neighbours of a level's map


class AtrousResNet(nn.Module):
    """Images to maps of several stages, all of the same height and width.

    The first layers and the shortcut of ``layer2`` have no padding, so that an image of 8 k + 7 pixels gives k
    positions, position i being centred on pixel 8 i + 7. From ``layer3`` on nothing is strided; convolutions are
    dilated by 2 and by 4, those at the entrance of a stage by half of that.

    Args:
        depth: 18, 34 or 50.
        width: channels of the first stage, 64 in the papers; each later stage has twice as many as the one before.
        levels: stages whose maps are given, of 2, 3 and 4; no stage behind the last of them is built.

    Attributes:
        levels: as given.
        out_channels: of each level's map.
        stages: names of the parts that can be frozen, from the image on.
        trainable: of these the ones that train; ``None`` is all of them. ``set_trainable`` changes it. It is not in the
            state dict.

    Raises:
        ValueError: an argument is out of range.

    Source:
        SiamBAN's official code (its atrous ResNet), with the same parameter names; it has this variant from SiamRPN++.
        It differs from torchvision's ResNets in the padding, and in the shortcuts of ``layer2`` to ``layer4``, which
        are 3x3: ``lit_methods.siamban.weights`` brings torchvision's weights in. Ours: widths other than 64.

    Example:
        >>> from torch import zeros
        >>> network = AtrousResNet(18, width=4, levels=[2, 3])
        >>> [tuple(maps.shape) for maps in network(zeros(1, 3, 127, 127))]
        [(1, 8, 15, 15), (1, 16, 15, 15)]
    """

    def __init__(self, depth: int = 50, width: int = 64, levels: Sequence[int] = (2, 3, 4)) -> None:
        super().__init__()
        if depth not in _NETWORKS:
            raise ValueError(f"depth={depth} must be one of {', '.join(map(str, _NETWORKS))}")
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width={width} must be a whole number, at least 1")
        self.levels = tuple(levels)
        if not self.levels or list(self.levels) != sorted(set(self.levels) & {2, 3, 4}):
            raise ValueError(f"levels={list(levels)} must be one or more of 2, 3 and 4, each once and in this order")
        block, blocks = _NETWORKS[depth]
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stream = width
        for stage in range(1, self.levels[-1] + 1):
            inner = width * 2 ** (stage - 1)
            layer = nn.Sequential()
            for number in range(blocks[stage - 1]):
                layer.append(block(stream, inner, _Geometry.of(stage, first=number == 0)))
                stream = block.expansion * inner
            self.add_module(f"layer{stage}", layer)
        self.out_channels = [block.expansion * width * 2 ** (level - 1) for level in self.levels]
        self.stages = ("conv1", "bn1", *(f"layer{stage}" for stage in range(1, self.levels[-1] + 1)))
        self.trainable: tuple[str, ...] | None = None
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> list[Tensor]:
        """(N, 3, H, W) to one map (N, C, h, w) per level; 15 x 15 for an image of 127, 31 x 31 for one of 255."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        maps = []
        for stage in range(1, self.levels[-1] + 1):
            x = self.get_submodule(f"layer{stage}")(x)
            if stage in self.levels:
                maps.append(x)
        return maps

    def set_trainable(self, names: Sequence[str] | None) -> None:
        """Freeze all parts but these.

        A frozen part has no gradients, and its batch norms stay in eval mode, even through ``train()``. In front of the
        first part that trains no graph is recorded, unless the image itself wants a gradient.

        Args:
            names: of ``stages``; none freezes the whole network, ``None`` nothing.

        Raises:
            ValueError: there is no such part.

        Source:
            SiamBAN's official code, which has no graph recorded for frozen layers either, but for which a ``train()``
            in the wrong place wakes their batch norms.

        Example:
            >>> network = AtrousResNet(18, width=4)
            >>> network.set_trainable(["layer4"])
            >>> network.train().layer3[0].bn1.training, network.layer4[0].bn1.training
            (False, True)
        """
        if names is not None and (unknown := [name for name in names if name not in self.stages]):
            raise ValueError(f"names={list(names)}: there is no {unknown[0]!r}, but {', '.join(self.stages)}")
        self.trainable = None if names is None else tuple(stage for stage in self.stages if stage in names)
        for stage in self.stages:
            self.get_submodule(stage).requires_grad_(self.trainable is None or stage in self.trainable)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As of any module, but frozen parts stay in eval mode.

        Args:
            mode: training or, if false, eval mode.
        """
        super().train(mode)
        if self.trainable is not None:
            for stage in self.stages:
                if stage not in self.trainable:
                    self.get_submodule(stage).eval()
        return self


class _Geometry(NamedTuple):
    """Of the 3x3 convolutions in a block: the first, the shortcut that goes with it, and in basic blocks a second.

    Args:
        stride: of the first.
        padding: of the first.
        entry: dilation of the first.
        dilation: of the second.
        wide: whether a shortcut that changes the shape is 3x3, else 1x1.
    """

    stride: int
    padding: int
    entry: int
    dilation: int
    wide: bool

    @classmethod
    def of(cls, stage: int, first: bool) -> _Geometry:
        """In each stage; only the first block differs from the others."""
        if stage <= 2:
            strided = stage == 2 and first
            return cls(2 if strided else 1, 0 if strided else 1, 1, 1, wide=stage == 2)
        dilation = 2 ** (stage - 2)
        entry = dilation // 2 if first else dilation
        return cls(1, entry, entry, dilation, wide=True)

    def conv(self, inputs: int, outputs: int) -> nn.Conv2d:
        return nn.Conv2d(inputs, outputs, 3, self.stride, self.padding, self.entry, bias=False)

    def shortcut(self, inputs: int, outputs: int) -> nn.Sequential | None:
        """``None`` hands the input on."""
        if self.stride == 1 and inputs == outputs:
            return None
        conv = self.conv(inputs, outputs) if self.wide else nn.Conv2d(inputs, outputs, 1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class _BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, width: int, geometry: _Geometry) -> None:
        super().__init__()
        dilation = geometry.dilation
        self.conv1 = geometry.conv(inputs, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = geometry.shortcut(inputs, width)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(branch + (x if self.downsample is None else self.downsample(x)))


class _Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, width: int, geometry: _Geometry) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = geometry.conv(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = geometry.shortcut(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(branch)))))
        return self.relu(branch + (x if self.downsample is None else self.downsample(x)))


_NETWORKS: dict[int, tuple[type[_BasicBlock] | type[_Bottleneck], tuple[int, ...]]] = {  # blocks in each stage
    18: (_BasicBlock, (2, 2, 2, 2)),
    34: (_BasicBlock, (3, 4, 6, 3)),
    50: (_Bottleneck, (3, 4, 6, 3)),
}
