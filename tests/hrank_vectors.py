"""What tests and benchmarks of pruning share: the deterministic fill of the vectors, published rates, random plans."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lit_methods.backbones import PrunePlan, build_backbone, prune_points
from lit_methods.hrank.functional import parse_compress_rate, prune_count

FILES = {  # our name -> name in the vectors
    "vgg16_bn_cifar": "vgg_16_bn",
    "resnet56": "resnet_56",
    "resnet110": "resnet_110",
    "densenet40_cifar": "densenet_40",
    "googlenet_cifar": "googlenet",
    "resnet50": "resnet_50",
}
RATES = {
    "vgg16_bn_cifar": "[0.95]+[0.5]*6+[0.9]*4+[0.8]",
    "resnet56": "[0.1]+[0.60]*35+[0.0]*2+[0.6]*6+[0.4]*3+[0.1]+[0.4]+[0.1]+[0.4]+[0.1]+[0.4]+[0.1]+[0.4]",
    "resnet110": "[0.1]+[0.40]*36+[0.40]*36+[0.4]*36",
    "densenet40_cifar": "[0.0]+[0.1]*6+[0.7]*6+[0.0]+[0.1]*6+[0.7]*6+[0.0]+[0.1]*6+[0.7]*5+[0.0]",
    "googlenet_cifar": "[0.10]+[0.8]*5+[0.85]+[0.8]*3",
    "resnet50": "[0.2]+[0.8]*10+[0.8]*13+[0.55]*19+[0.45]*10",
}
GOOGLENET_B = "[0.10]+[0.7]+[0.5]+[0.8]*4+[0.5]+[0.6]*2"
HERE = Path(__file__).parent / "vectors" / "hrank"


def uniform(n: int, shape: tuple[int, ...]) -> np.ndarray:
    """u(n, shape) of the vectors' README, float64."""
    x = np.sin(12.9898 * np.arange(np.prod(shape), dtype=np.float64) + 78.233 * n) * 43758.5453
    return (x - np.floor(x)).reshape(shape)


def fill(model: nn.Module, *, damped: bool = False) -> nn.Module:
    """Set every tensor of an unpruned network as the vectors' README says; ``damped`` for ResNet-56/110/50."""
    n = 0

    def put(tensor: Tensor, scale: float, offset: float) -> None:  # scale * u + offset
        nonlocal n
        n += 1
        tensor.copy_(torch.from_numpy((scale * uniform(n, tuple(tensor.shape)) + offset).astype(np.float32)))

    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                bound = float(np.sqrt(6 / layer.weight[0].numel()))
                put(layer.weight, 2 * bound, -bound)
                if layer.bias is not None:
                    put(layer.bias, 0.2, -0.1)
            elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                put(layer.weight, 1, 0.5)
                put(layer.bias, 0.4, -0.2)
                put(layer.running_mean, 0.2, -0.1)
                put(layer.running_var, 1, 0.5)
        if damped:
            for layer in model.modules():
                if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                    layer.weight *= 0.25
    return model


def fill_input(shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy((2 * uniform(100003, shape) - 1).astype(np.float32))


def random_plan(arch: str, rates: str, seed: int = 0) -> PrunePlan:
    """Random filters kept in the published numbers, drawn without HRank's selection."""
    generator, values, keep = np.random.default_rng(seed), {}, {}
    points = prune_points(arch)
    for group, rate in zip(dict.fromkeys(p.group for p in points), parse_compress_rate(rates), strict=True):
        values[group] = rate
    for point in points:
        kept = point.num_filters - prune_count(point.num_filters, values[point.group])
        if kept < point.num_filters:
            keep[point.conv] = np.sort(generator.choice(point.num_filters, kept, replace=False)).tolist()
    return PrunePlan(arch, keep)


def randomised(arch: str, classes: int = 10) -> nn.Module:
    """A network whose batch norms are not neutral."""
    model = build_backbone(arch, classes)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.2, 0.6)
            nn.init.uniform_(part.bias, -0.2, 0.3)
            nn.init.uniform_(part.running_mean, -0.2, 0.2)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return model
