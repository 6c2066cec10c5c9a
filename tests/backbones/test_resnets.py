"""ResNet-18, -34 and -50 are torchvision's; those of basic blocks lose filters as the others do."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torchvision import models

from lit_methods.backbones import (
    WidthPlan,
    apply_masks,
    build_backbone,
    planned_network,
    prune_model,
)
from tests.hrank_vectors import random_plan, randomised

PARAMS = {"resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032}  # of torchvision's documentation


@pytest.mark.parametrize("arch", PARAMS)
def test_resnets_are_torchvisions(arch):
    theirs, ours = getattr(models, arch)(num_classes=7).eval(), build_backbone(arch, 7).eval()
    mine, known = ([(k, v.shape) for k, v in net.state_dict().items()] for net in (ours, theirs))
    assert mine == known
    for part in theirs.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.1, 0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert_close(ours(x), theirs(x))
    assert sum(p.numel() for p in planned_network(WidthPlan(arch, {}), 1000).parameters()) == PARAMS[arch]


@pytest.mark.parametrize("arch", ["resnet18", pytest.param("resnet34", marks=pytest.mark.slow)])
def test_basic_resnets_lose_filters_as_if_masked(arch):
    model = randomised(arch).double().eval()
    groups = {"resnet18": 20, "resnet34": 36}[arch]  # stem, two per block, three projections
    plan = random_plan(arch, f"[0.5]*{groups}")
    live, scatter = (prune_model(model, plan, residual) for residual in ("live", "scatter"))
    apply_masks(model, plan)
    x = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for thin in (live, scatter):
            assert_close(thin(x), model(x), rtol=1e-10, atol=1e-10)
    assert live.layer1[0].conv1.out_channels == 32
    assert scatter.layer1[1].channels.ids is None
    for net in (model, live):
        F.cross_entropy(net.train()(x), torch.tensor([0, 1, 2])).backward()
    rows, columns = live.kept_channels["layer2.0.conv1"]
    expected = model.layer2[0].conv1.weight.grad[rows][:, columns]
    assert_close(live.layer2[0].conv1.weight.grad, expected, rtol=1e-7, atol=1e-10)
