"""Networks with two users or more, whole or as a pruning plan left them.

``BACKBONES`` is the table of names; put your own networks into it to prune them.
"""

from lit_methods.backbones import densenet, googlenet, resnet, resnet_cifar, vgg
from lit_methods.backbones.densenet import densenet40_cifar
from lit_methods.backbones.googlenet import googlenet_cifar
from lit_methods.backbones.plan import (
    BACKBONES,
    Backbone,
    PrunePlan,
    PrunePoint,
    apply_masks,
    build_backbone,
    find_backbone,
    planned_channels,
    prune_model,
    prune_points,
)
from lit_methods.backbones.resnet import resnet50
from lit_methods.backbones.resnet_cifar import resnet20, resnet56, resnet110
from lit_methods.backbones.vgg import vgg16_bn_cifar

BACKBONES.update(
    vgg16_bn_cifar=Backbone(vgg16_bn_cifar, vgg.prune_points, spare_rates=1),
    resnet20=Backbone(resnet20, resnet_cifar.prune_points_20),
    resnet56=Backbone(resnet56, resnet_cifar.prune_points_56),
    resnet110=Backbone(resnet110, resnet_cifar.prune_points_110),
    densenet40_cifar=Backbone(densenet40_cifar, densenet.prune_points, counted_thin=("trans1.conv1", "trans2.conv1")),
    googlenet_cifar=Backbone(googlenet_cifar, googlenet.prune_points),
    resnet50=Backbone(resnet50, resnet.prune_points, input_size=(3, 224, 224)),
)

__all__ = [
    "BACKBONES",
    "Backbone",
    "PrunePlan",
    "PrunePoint",
    "apply_masks",
    "build_backbone",
    "densenet40_cifar",
    "find_backbone",
    "googlenet_cifar",
    "planned_channels",
    "prune_model",
    "prune_points",
    "resnet20",
    "resnet50",
    "resnet56",
    "resnet110",
    "vgg16_bn_cifar",
]
