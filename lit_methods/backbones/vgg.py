"""VGG-16 with batch norm for 32x32 images, as HRank prunes it."""

import math
from collections import OrderedDict

from torch import Tensor, nn

from lit_methods.backbones.plan import Plan, PrunePoint
from lit_methods.backbones.wiring import Channels, Wiring

_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
_POOLED = (2, 4, 7, 10)  # a max-pool follows these convolutions, counted from 1


class VGG16(nn.Module):
    """13 convolutions with bias and batch norm, max-pools after 2, 4, 7 and 10, then two linear layers.

    Args:
        num_classes: outputs.
        plan: what pruning left, ``None`` for all.

    Raises:
        ValueError: the plan's ids do not exist.

    Example:
        >>> from torch import zeros
        >>> VGG16().eval()(zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 10, plan: Plan | None = None) -> None:
        super().__init__()
        wiring = Wiring(plan)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        stream = Channels(3)
        for i, width in enumerate(_WIDTHS, start=1):
            layers[f"conv{i}"], stream = wiring.conv(f"features.conv{i}", stream, width, 3)
            stream = wiring.gate(_map(i), stream, droppable=False)
            layers[f"norm{i}"] = wiring.norm(f"features.norm{i}", stream)
            layers[f"relu{i}"] = nn.ReLU(inplace=True)
            if i in _POOLED:
                layers[f"pool{i}"] = nn.MaxPool2d(2)
        self.features = nn.Sequential(layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        hidden = Channels(512)
        self.classifier = nn.Sequential(
            OrderedDict[str, nn.Module](
                linear1=wiring.linear("classifier.linear1", stream, 512),
                norm1=wiring.norm("classifier.norm1", hidden, dims=1),
                relu1=nn.ReLU(inplace=True),
                linear2=wiring.linear("classifier.linear2", hidden, num_classes),
            )
        )
        self.kept_channels = wiring.finish()
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=math.sqrt(2 / (9 * layer.out_channels)))
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.constant_(layer.weight, 0.5)
            elif isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, num_classes); H and W from 16."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def vgg16_bn_cifar(num_classes: int = 10, plan: Plan | None = None) -> VGG16:
    """VGG-16-BN for CIFAR (HRank, table 1); arguments and errors as ``VGG16``."""
    return VGG16(num_classes, plan)


def prune_points() -> list[PrunePoint]:
    """Convolutions 1 to 12; where a max-pool follows, the map is taken behind it. The 13th is never pruned.

    Example:
        >>> prune_points()[1]
        PrunePoint(conv='features.conv2', number='2', module='features.pool2', channels=(0, 64))
    """
    return [
        PrunePoint(f"features.conv{i}", str(i), _map(i), (0, width)) for i, width in enumerate(_WIDTHS[:-1], start=1)
    ]


def gates() -> dict[str, tuple[str, ...]]:
    """Behind each ReLU, or the max-pool where one follows; the 13th included.

    Example:
        >>> list(gates().items())[1]
        ('features.pool2', ('features.conv2',))
    """
    return {_map(i): (f"features.conv{i}",) for i in range(1, len(_WIDTHS) + 1)}


def _map(i: int) -> str:
    """Where the map of the i-th convolution is taken."""
    return f"features.{'pool' if i in _POOLED else 'relu'}{i}"
