"""Networks with two users or more, whole or as a pruning plan left them.

``BACKBONES`` is the table of names; put your own networks into it to prune them.
"""

from lit_methods.backbones import densenet, googlenet, resnet, resnet_cifar, vgg
from lit_methods.backbones.cutting import apply_masks, cut_network, prune_model
from lit_methods.backbones.densenet import densenet40_cifar
from lit_methods.backbones.googlenet import googlenet_cifar
from lit_methods.backbones.mobilenet import mobilenet_v1
from lit_methods.backbones.plan import (
    BACKBONES,
    Backbone,
    Plan,
    PrunePlan,
    PrunePoint,
    TracedPlan,
    build_backbone,
    find_backbone,
    inner_blocks,
    planned_channels,
    planned_network,
    prune_points,
    read_plan,
    whole,
)
from lit_methods.backbones.resnet import resnet18, resnet34, resnet50
from lit_methods.backbones.resnet_cifar import resnet20, resnet56, resnet110
from lit_methods.backbones.torchvision_nets import inception_v3, vgg16_bn
from lit_methods.backbones.vgg import vgg16_bn_cifar
from lit_methods.backbones.widths import Block, Chain, WidthPlan

BACKBONES.update(
    vgg16_bn_cifar=Backbone(vgg16_bn_cifar, vgg.prune_points, spare_rates=1),
    resnet20=resnet_cifar.entry(resnet20, blocks=3),
    resnet56=resnet_cifar.entry(resnet56, blocks=9),
    resnet110=resnet_cifar.entry(resnet110, blocks=18),
    densenet40_cifar=Backbone(densenet40_cifar, densenet.prune_points, counted_thin=("trans1.conv1", "trans2.conv1")),
    googlenet_cifar=Backbone(googlenet_cifar, googlenet.prune_points, inner_blocks=googlenet.inner_blocks),
    resnet18=resnet.entry(resnet18),
    resnet34=resnet.entry(resnet34),
    resnet50=resnet.entry(resnet50),
    mobilenet_v1_x025=whole("mobilenet_v1_x025", mobilenet_v1, (3, 224, 224)),
    inception_v3=whole("inception_v3", inception_v3, (3, 299, 299)),
    vgg16_bn=whole("vgg16_bn", vgg16_bn, (3, 224, 224)),
)

__all__ = [
    "BACKBONES",
    "Backbone",
    "Block",
    "Chain",
    "Plan",
    "PrunePlan",
    "PrunePoint",
    "TracedPlan",
    "WidthPlan",
    "apply_masks",
    "build_backbone",
    "cut_network",
    "densenet40_cifar",
    "find_backbone",
    "googlenet_cifar",
    "inception_v3",
    "inner_blocks",
    "mobilenet_v1",
    "planned_channels",
    "planned_network",
    "prune_model",
    "prune_points",
    "read_plan",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "resnet56",
    "resnet110",
    "vgg16_bn",
    "vgg16_bn_cifar",
]
