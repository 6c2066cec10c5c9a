"""Networks without a table: the published ones, built whole by name, traced as objects."""

from functools import partial

import pytest
import torch
from torch import nn
from torchvision import models

from lit_methods.backbones import (
    BACKBONES,
    PrunePlan,
    TracedPlan,
    WidthPlan,
    build_backbone,
    inner_blocks,
    planned_network,
    prune_points,
)
from lit_methods.backbones.traced import channel_groups

WHOLE = {  # parameters, as published
    "mobilenet_v1_x025": 470_072,
    "inception_v3": 27_161_264,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "densenet121": 7_978_856,
    "darts": 4_718_752 + 1_260_776,  # the second for the auxiliary head
}
WEIGHTS = {
    "inception_v3": "Inception_V3_Weights.IMAGENET1K_V1",
    "vgg16": "VGG16_Weights.IMAGENET1K_V1",
    "vgg16_bn": "VGG16_BN_Weights.IMAGENET1K_V1",
    "densenet121": "DenseNet121_Weights.IMAGENET1K_V1",
}
BUILT_BY_TORCHVISION = {
    "inception_v3": partial(models.inception_v3, aux_logits=True, init_weights=False),
    "vgg16": models.vgg16,
    "vgg16_bn": models.vgg16_bn,
    "densenet121": models.densenet121,
}


def on_meta(arch, classes):
    with torch.device("meta"):
        return build_backbone(arch, classes)


@pytest.mark.parametrize("arch", WHOLE)
def test_parameters(arch):
    assert sum(p.numel() for p in on_meta(arch, 1000).parameters()) == WHOLE[arch]
    size = BACKBONES[arch].input_size
    assert on_meta(arch, 12).train()(torch.zeros(2, *size, device="meta")).shape == (2, 12)


@pytest.mark.parametrize("arch", BUILT_BY_TORCHVISION)
def test_names_and_shapes_are_torchvisions(arch):
    with torch.device("meta"):
        theirs = BUILT_BY_TORCHVISION[arch](weights=None, num_classes=1000)
    mine, known = ([(k, v.shape) for k, v in net.state_dict().items()] for net in (on_meta(arch, 1000), theirs))
    assert mine == known
    assert models.get_weight(WEIGHTS[arch]).meta["num_params"] == WHOLE[arch]


@pytest.mark.slow
def test_inception_gives_torchvisions_logits_in_both_modes():
    ours = build_backbone("inception_v3", 7)
    theirs = models.inception_v3(weights=None, num_classes=7, transform_input=True, init_weights=False)
    theirs.load_state_dict(ours.state_dict())
    for network in (ours, theirs):
        network.dropout.p = 0.0
    x = torch.randn(2, 3, 299, 299)
    with torch.no_grad():
        torch.testing.assert_close(ours.train()(x), theirs.train()(x).logits)
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))  # with the statistics of the pass above


def test_every_parameter_of_inception_that_takes_gradients_gets_one():
    network = build_backbone("inception_v3", 3).train()
    network(torch.randn(2, 3, 75, 75)).sum().backward()
    for name, parameter in network.named_parameters():  # else DDP would wait for the others
        assert parameter.requires_grad == (parameter.grad is not None) == (not name.startswith("AuxLogits.")), name


@pytest.mark.parametrize("arch", WHOLE)
def test_no_table_and_no_plan(arch):
    cure = rf"As an object, build_backbone\('{arch}'\), it is traced instead"
    with pytest.raises(ValueError, match=rf"{arch} has no table of convolutions .*resnet50.* {cure}") as error:
        prune_points(arch)
    assert not any(f" {other}," in str(error.value) for other in WHOLE)  # none is among those that have one
    with pytest.raises(ValueError, match=rf"{arch} has no table of blocks .* {cure}"):
        inner_blocks(arch)
    refusal = rf"{arch} is always built whole, so it takes no plan\. {cure}"
    with pytest.raises(ValueError, match=refusal):
        build_backbone(arch, plan=PrunePlan(arch, {}))
    with pytest.raises(ValueError, match=refusal):
        BACKBONES[arch].build(10, plan=PrunePlan(arch, {}))
    with pytest.raises(ValueError, match=refusal):
        planned_network(WidthPlan(arch, {}))
    with pytest.raises(ValueError, match="no table of blocks"):
        build_backbone(arch, plan=WidthPlan(arch, {}))
    with pytest.raises(ValueError, match="given as an object"):
        build_backbone(arch, plan=TracedPlan("MobileNetV1", {}))


@pytest.mark.parametrize(
    ("arch", "side", "groups"),
    [
        ("mobilenet_v1_x025", 64, 14),  # what each pointwise convolution and the first one write
        # every convolution but the two of the auxiliary head
        pytest.param("inception_v3", 75, 94, marks=pytest.mark.slow),
        pytest.param("vgg16_bn", 32, 13, marks=pytest.mark.slow),  # gigabytes in float64
        pytest.param("densenet121", 64, 120, marks=pytest.mark.slow),
    ],
)
def test_as_an_object_it_is_traced(arch, side, groups):
    network = build_backbone(arch, 3)
    convs = [name for name, part in network.named_modules() if isinstance(part, nn.Conv2d) and part.groups == 1]
    found = channel_groups(network, (3, side, side))
    assert len(found) == groups
    assert [group.root for group in found] == [name for name in convs if not name.startswith("AuxLogits.")]
