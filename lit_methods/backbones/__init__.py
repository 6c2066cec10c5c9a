"""Networks with two users or more, whole or as a pruning plan left them.

``BACKBONES`` is the table of names; put your own networks into it to prune them.
"""

from lit_methods.backbones import darts, densenet, googlenet, mobilenet, resnet, resnet_cifar, torchvision_nets, vgg
from lit_methods.backbones.cutting import apply_masks, cut_network, prune_model
from lit_methods.backbones.darts import darts_imagenet
from lit_methods.backbones.densenet import densenet40_cifar
from lit_methods.backbones.googlenet import googlenet_cifar
from lit_methods.backbones.kept import GatedPlan
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
from lit_methods.backbones.torchvision_nets import densenet121, inception_v3, vgg16, vgg16_bn
from lit_methods.backbones.vgg import vgg16_bn_cifar
from lit_methods.backbones.widths import Block, Chain, WidthPlan

BACKBONES.update(
    vgg16_bn_cifar=Backbone(vgg16_bn_cifar, vgg.prune_points, spare_rates=1, gates=vgg.gates),
    resnet20=resnet_cifar.entry(resnet20, blocks=3),
    resnet56=resnet_cifar.entry(resnet56, blocks=9),
    resnet110=resnet_cifar.entry(resnet110, blocks=18),
    densenet40_cifar=Backbone(
        densenet40_cifar,
        densenet.prune_points,
        counted_thin=("trans1.conv1", "trans2.conv1"),
        gates=densenet.gates,
    ),
    googlenet_cifar=Backbone(
        googlenet_cifar, googlenet.prune_points, inner_blocks=googlenet.inner_blocks, gates=googlenet.gates
    ),
    resnet18=resnet.entry(resnet18),
    resnet34=resnet.entry(resnet34),
    resnet50=resnet.entry(resnet50),
    mobilenet_v1_x025=whole("mobilenet_v1_x025", mobilenet_v1, (3, 224, 224), gates=mobilenet.gates),
    inception_v3=whole("inception_v3", inception_v3, (3, 299, 299), gates=torchvision_nets.inception_gates),
    vgg16=whole("vgg16", vgg16, (3, 224, 224), gates=torchvision_nets.vgg16_gates),
    vgg16_bn=whole("vgg16_bn", vgg16_bn, (3, 224, 224), gates=torchvision_nets.vgg16_bn_gates),
    densenet121=whole("densenet121", densenet121, (3, 224, 224), gates=torchvision_nets.densenet121_gates),
    darts=whole("darts", darts_imagenet, (3, 224, 224), gates=darts.gates),
)

__all__ = [
    "BACKBONES",
    "Backbone",
    "Block",
    "Chain",
    "GatedPlan",
    "Plan",
    "PrunePlan",
    "PrunePoint",
    "TracedPlan",
    "WidthPlan",
    "apply_masks",
    "build_backbone",
    "cut_network",
    "darts_imagenet",
    "densenet40_cifar",
    "densenet121",
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
    "vgg16",
    "vgg16_bn",
    "vgg16_bn_cifar",
]
