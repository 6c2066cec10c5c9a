"""DenseNet-40 with growth 12 for 32x32 images, as HRank prunes it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_methods.backbones.plan import Plan, PrunePoint
from lit_methods.backbones.wiring import Channels, Wiring

_GROWTH, _LAYERS = 12, 12


class DenseLayer(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution, whose maps join the input's. ``channels`` is what comes out.

    Args:
        wiring: of the network.
        name: where the layer will be inside it.
        source: its inputs.
    """

    def __init__(self, wiring: Wiring, name: str, source: Channels) -> None:
        super().__init__()
        self.bn1 = wiring.norm(f"{name}.bn1", source)
        self.relu = nn.ReLU(inplace=True)
        self.conv1, new = wiring.conv(f"{name}.conv1", source, _GROWTH, 3, bias=False)
        self.channels = source + new

    def forward(self, x: Tensor) -> Tensor:
        """(N, source, H, W) to (N, channels, H, W)."""
        return torch.cat([x, self.conv1(self.relu(self.bn1(x)))], 1)


class Transition(nn.Module):
    """Batch norm, ReLU and a 1x1 convolution of the same width, then half the size. Arguments as ``DenseLayer``."""

    def __init__(self, wiring: Wiring, name: str, source: Channels) -> None:
        super().__init__()
        self.bn1 = wiring.norm(f"{name}.bn1", source)
        self.relu = nn.ReLU(inplace=True)
        self.conv1, self.channels = wiring.conv(f"{name}.conv1", source, source.full, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, source, H, W) to (N, channels, H / 2, W / 2)."""
        return F.avg_pool2d(self.conv1(self.relu(self.bn1(x))), 2)


class DenseNet40(nn.Module):
    """A stem of 24 channels and three dense blocks of 12 layers with two transitions between them.

    Args:
        num_classes: outputs.
        plan: what pruning left, ``None`` for all.

    Raises:
        ValueError: the plan's ids do not exist.

    Example:
        >>> DenseNet40()(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    dense1: nn.Sequential
    dense2: nn.Sequential
    dense3: nn.Sequential
    trans1: Transition
    trans2: Transition

    def __init__(self, num_classes: int = 10, plan: Plan | None = None) -> None:
        super().__init__()
        wiring = Wiring(plan)
        self.conv1, stream = wiring.conv("conv1", Channels(3), 2 * _GROWTH, 3, bias=False)
        for block in (1, 2, 3):
            dense = nn.Sequential()
            for i in range(_LAYERS):
                layer = DenseLayer(wiring, f"dense{block}.{i}", stream)
                dense.append(layer)
                stream = layer.channels
            self.add_module(f"dense{block}", dense)
            if block < 3:
                transition = Transition(wiring, f"trans{block}", stream)
                self.add_module(f"trans{block}", transition)
                stream = transition.channels
        self.bn = wiring.norm("bn", stream)
        self.relu = nn.ReLU(inplace=True)
        self.fc = wiring.linear("fc", stream, num_classes)
        self.kept_channels = wiring.finish()
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, std=math.sqrt(2 / (part.kernel_size[0] ** 2 * part.out_channels)))
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, num_classes); H and W from 4."""
        x = self.trans1(self.dense1(self.conv1(x)))
        x = self.dense3(self.trans2(self.dense2(x)))
        return self.fc(F.adaptive_avg_pool2d(self.relu(self.bn(x)), 1).flatten(1))


def densenet40_cifar(num_classes: int = 10, plan: Plan | None = None) -> DenseNet40:
    """DenseNet-40, growth 12, for CIFAR (HRank, table 4); arguments and errors as ``DenseNet40``."""
    return DenseNet40(num_classes, plan)


def prune_points() -> list[PrunePoint]:
    """Every convolution, scored behind the ReLU that sees its maps next, where they lie behind their elders.

    Example:
        >>> prune_points()[1]
        PrunePoint(conv='dense1.0.conv1', number='2', module='dense1.1.relu', channels=(24, 36))
    """
    rows: list[tuple[str, str, tuple[int, int]]] = []  # convolution, ReLU in front of it, channels of its maps later
    width = 2 * _GROWTH
    rows.append(("conv1", "", (0, width)))
    for block in (1, 2, 3):
        for i in range(_LAYERS):
            rows.append((f"dense{block}.{i}.conv1", f"dense{block}.{i}.relu", (width, width + _GROWTH)))
            width += _GROWTH
        if block < 3:
            rows.append((f"trans{block}.conv1", f"trans{block}.relu", (0, width)))
    relus = [relu for _, relu, _ in rows[1:]] + ["relu"]
    return [
        PrunePoint(conv, str(number), relu, channels)
        for number, ((conv, _, channels), relu) in enumerate(zip(rows, relus, strict=True), start=1)
    ]


def gates() -> dict[str, tuple[str, ...]]:
    """Where NAD gates it: the stem, the dense blocks and transitions, the last ReLU in the place of the last block.

    NAD's paper has no such network. Maps lie side by side in a block's output, of many convolutions, so none is named.

    Example:
        >>> list(gates())
        ['conv1', 'dense1', 'trans1', 'dense2', 'trans2', 'relu']
    """
    return dict.fromkeys(("conv1", "dense1", "trans1", "dense2", "trans2", "relu"), ())
