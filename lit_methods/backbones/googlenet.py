"""GoogLeNet for 32x32 images, as HRank and FilterSketch prune it."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_methods.backbones.plan import Plan, PrunePoint, plan_for
from lit_methods.backbones.widths import Block, Chain
from lit_methods.backbones.wiring import Channels, Wiring

_STEM = 192
_STAGES = {  # 1x1 | 3x3: reduce, out | 5x5: reduce, out | pool
    "a3": (64, 96, 128, 16, 32, 32),
    "b3": (128, 128, 192, 32, 96, 64),
    "a4": (192, 96, 208, 16, 48, 64),
    "b4": (160, 112, 224, 24, 64, 64),
    "c4": (128, 128, 256, 24, 64, 64),
    "d4": (112, 144, 288, 32, 64, 64),
    "e4": (256, 160, 320, 32, 128, 128),
    "a5": (256, 160, 320, 32, 128, 128),
    "b5": (384, 192, 384, 48, 128, 128),
}
_POOLED = {"b3": "maxpool1", "e4": "maxpool2"}  # the pool that follows the stage


class Inception(nn.Module):
    """Four branches side by side, their maps one after the other; the 5x5 branch is two 3x3 convolutions.

    ``channels`` is what comes out.

    Args:
        wiring: of the network.
        name: where the stage will be inside it.
        widths: a row of the table above.
        source: its inputs.
    """

    n1x1: nn.Sequential
    n3x3: nn.Sequential
    n5x5: nn.Sequential
    pool_planes: nn.Sequential

    def __init__(self, wiring: Wiring, name: str, widths: tuple[int, ...], source: Channels) -> None:
        super().__init__()
        n1x1, reduce3, n3x3, reduce5, n5x5, pool = widths
        branches = {
            "n1x1": ((n1x1, 1),),
            "n3x3": ((reduce3, 1), (n3x3, 3)),
            "n5x5": ((reduce5, 1), (n5x5, 3), (n5x5, 3)),
            "pool_planes": ((pool, 1),),
        }
        outputs = []
        for branch, convs in branches.items():
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            if branch == "pool_planes":
                layers["pool"] = nn.MaxPool2d(3, stride=1, padding=1)
            stream = source
            for i, (width, kernel) in enumerate(convs, start=1):
                layers[f"conv{i}"], stream = wiring.conv(f"{name}.{branch}.conv{i}", stream, width, kernel)
                layers[f"bn{i}"] = wiring.norm(f"{name}.{branch}.bn{i}", stream)
                layers[f"relu{i}"] = nn.ReLU(inplace=True)
            self.add_module(branch, nn.Sequential(layers))
            outputs.append(stream)
        self.channels = outputs[0] + outputs[1] + outputs[2] + outputs[3]

    def forward(self, x: Tensor) -> Tensor:
        """(N, source, H, W) to (N, channels, H, W)."""
        return torch.cat([self.n1x1(x), self.n3x3(x), self.n5x5(x), self.pool_planes(x)], 1)


class GoogLeNet(nn.Module):
    """A stem of 192 channels and nine inception stages, with max-pools after b3 and e4.

    Args:
        num_classes: outputs.
        plan: what pruning left, ``None`` for all.

    Raises:
        ValueError: the plan's ids or widths do not exist.

    Example:
        >>> GoogLeNet()(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 10, plan: Plan | None = None) -> None:
        super().__init__()
        wiring = Wiring(plan)
        self.conv1, stream = wiring.conv("conv1", Channels(3), _STEM, 3)
        self.bn1 = wiring.norm("bn1", stream)
        self.relu = nn.ReLU(inplace=True)
        self.stages = nn.Sequential()
        for name in _STAGES:
            stage = Inception(wiring, f"stages.{name}", _STAGES[name], stream)
            self.stages.add_module(name, stage)
            stream = stage.channels
            if name in _POOLED:
                self.stages.add_module(_POOLED[name], nn.MaxPool2d(3, stride=2, padding=1))
        self.fc = wiring.linear("fc", stream, num_classes)
        self.kept_channels = wiring.finish()

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, num_classes); any H and W."""
        x = self.stages(self.relu(self.bn1(self.conv1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def googlenet_cifar(
    num_classes: int = 10,
    plan: Plan | None = None,
    mid_channels: list[tuple[int, int, int]] | None = None,
) -> GoogLeNet:
    """GoogLeNet for CIFAR (HRank, table 2).

    Args:
        num_classes: outputs.
        plan: what pruning left, ``None`` for all.
        mid_channels: in the place of a plan, per stage the widths of 3x3 reduce, 5x5 reduce and the middle 3x3 of the
            5x5 branch.

    Raises:
        ValueError: ids or widths that do not exist; plan and widths at once.

    Example:
        >>> googlenet_cifar(mid_channels=[(24, 4, 8)] * 9).stages.a3.n3x3.conv1.out_channels
        24
    """
    return GoogLeNet(num_classes, plan_for("googlenet_cifar", inner_blocks(), plan, mid_channels))


def prune_points() -> list[PrunePoint]:
    """Stem, then per stage its four branches by their place in the concatenation, pooled where a pool follows.

    The 1x1 reductions are never pruned. The inner 3x3 of the 5x5 branch goes by the scores of the outer one.

    Example:
        >>> prune_points()[1]
        PrunePoint(conv='stages.a3.n1x1.conv1', number='2_n1x1', module='stages.a3', channels=(0, 64))
    """
    points = [PrunePoint("conv1", "1", "relu", (0, _STEM))]
    for number, (name, (n1x1, _, n3x3, _, n5x5, pool)) in enumerate(_STAGES.items(), start=2):
        module, start = f"stages.{_POOLED.get(name, name)}", 0
        for branch, width, convs in (
            ("n1x1", n1x1, (1,)),
            ("n3x3", n3x3, (2,)),
            ("n5x5", n5x5, (2, 3)),
            ("pool_planes", pool, (1,)),
        ):
            for i in convs:
                place = (start, start + width)
                points.append(PrunePoint(f"stages.{name}.{branch}.conv{i}", f"{number}_{branch}", module, place))
            start += width
    return points


def inner_blocks() -> list[Block]:
    """Per stage the 3x3 branch and the 5x5 branch; 1x1 and pool branch have nothing inside.

    Example:
        >>> [chain.widths for chain in inner_blocks()[0]]
        [(96,), (16, 32)]
    """
    blocks: list[Block] = []
    for name, (_, reduce3, _, reduce5, n5x5, _) in _STAGES.items():
        n3, n5 = f"stages.{name}.n3x3", f"stages.{name}.n5x5"
        blocks.append(
            (
                Chain((f"{n3}.conv1", f"{n3}.conv2"), (f"{n3}.bn1",), (reduce3,)),
                Chain((f"{n5}.conv1", f"{n5}.conv2", f"{n5}.conv3"), (f"{n5}.bn1", f"{n5}.bn2"), (reduce5, n5x5)),
            )
        )
    return blocks


def gates() -> dict[str, tuple[str, ...]]:
    """Where NAD gates it: behind the stem and every stage, pooled where a pool follows.

    NAD's paper has no such network. A stage's maps are those of four branches, so no convolution is named.

    Example:
        >>> list(gates())[:4]
        ['relu', 'stages.a3', 'stages.maxpool1', 'stages.a4']
    """
    return dict.fromkeys(["relu", *(f"stages.{_POOLED.get(name, name)}" for name in _STAGES)], ())
