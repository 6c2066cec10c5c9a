"""The networks are the published ones: function, parameters, order, names, where they are pruned."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lit_methods.backbones import BACKBONES, Backbone, PrunePlan, build_backbone, prune_points
from lit_methods.functional import count_macs
from lit_methods.hrank.functional import parse_compress_rate, prune_count
from tests.hrank_vectors import FILES, RATES, fill, fill_input

CIFAR = [arch for arch in FILES if arch != "resnet50"]
KEPT = {  # kept filters per convolution at the published rates, from the paper's file
    "vgg16_bn_cifar": [4, 32, 64, 64, 128, 128, 128, 52, 52, 52, 52, 103],
    "resnet56": [15] + [7] * 18 + [13] * 17 + [32, 64] + [26] * 6 + [39] * 3 + [58, 39] * 4,
    "resnet110": [15] + [10] * 36 + [20] * 36 + [39] * 36,
    "densenet40_cifar": [24, *[11] * 6, *[4] * 6, 168, *[11] * 6, *[4] * 6, 312, *[11] * 6, *[4] * 5, 12],
    "resnet50": [52]
    + [13, 13, 52, 52] + [13, 13, 52] * 2
    + [26, 26, 103, 103] + [26, 26, 103] * 3
    + [116, 116, 461, 461] + [116, 116, 461] * 5
    + [282, 282, 1127, 1127] + [282, 282, 1127] * 2,
}  # fmt: skip


def num_classes(arch):
    return 1000 if arch == "resnet50" else 10


@pytest.mark.parametrize("arch", [*CIFAR, pytest.param("resnet50", marks=pytest.mark.slow)])
def test_logits_of_the_filled_network(arch, vectors):
    reference = np.load(vectors / "hrank" / f"forward_{FILES[arch]}.npz")
    model = fill(build_backbone(arch, num_classes(arch)), damped=arch.startswith("resnet")).eval()
    x = torch.from_numpy(reference["x"]) if "x" in reference else fill_input((1, 3, 224, 224))
    expected = torch.from_numpy(reference["logits_full"])
    with torch.no_grad():
        single, double = model(x), model.double()(x.double())
    assert (single - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (double - expected).abs().max() < 1e-9 * expected.abs().max()
    for parameter, total in zip(model.parameters(), reference["param_sums"], strict=True):  # also the order
        assert parameter.sum().item() == pytest.approx(total, abs=1e-6)
    assert sum(p.numel() for p in model.parameters()) == reference["full_params"]
    assert count_macs(model, x.shape[1:]) == reference["full_macs"]


@pytest.mark.parametrize("arch", [*FILES, "resnet20"])
def test_points_name_convolutions_and_cover_the_rates(arch):
    model = build_backbone(arch)
    modules, points = dict(model.named_modules()), prune_points(arch)
    for point in points:
        assert modules[point.conv].out_channels == point.num_filters
        assert not isinstance(modules[point.module], nn.Conv2d)
    assert len({point.conv for point in points}) == len(points)
    order = [name for name in modules if name in {point.conv for point in points}]
    assert [point.conv for point in points] == order
    numbers = list(dict.fromkeys(int(point.group) for point in points))
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("arch", list(KEPT))
def test_kept_counts_at_the_published_rates(arch):
    widths = [point.num_filters for point in prune_points(arch)]
    rates = parse_compress_rate(RATES[arch])
    assert [n - prune_count(n, rate) for n, rate in zip(widths, rates, strict=True)] == KEPT[arch]


def test_googlenet_points_by_stage():
    points = prune_points("googlenet_cifar")
    assert [p.number for p in points[:6]] == ["1", "2_n1x1", "2_n3x3", "2_n5x5", "2_n5x5", "2_pool_planes"]
    inner, outer = points[3], points[4]
    assert (inner.conv, outer.conv) == ("stages.a3.n5x5.conv2", "stages.a3.n5x5.conv3")
    assert (inner.module, inner.channels) == (outer.module, outer.channels) == ("stages.a3", (192, 224))
    pooled = {p.group: p.module for p in points if "maxpool" in p.module}
    assert pooled == {"3": "stages.maxpool1", "8": "stages.maxpool2"}
    assert [p.channels[1] for p in points if p.number.endswith("pool_planes")] == [
        256, 480, 512, 512, 512, 528, 832, 832, 1024,
    ]  # fmt: skip


def test_residual_and_dense_points():
    by_number = {p.number: p for p in prune_points("resnet50")}
    assert by_number["1"].module == "maxpool"
    assert by_number["5"].conv == "layer1.0.downsample.0"
    assert (by_number["5"].module, by_number["5"].channels) == (by_number["4"].module, by_number["4"].channels)
    dense = {p.number: p for p in prune_points("densenet40_cifar")}
    assert (dense["1"].module, dense["1"].channels) == ("dense1.0.relu", (0, 24))
    assert (dense["13"].module, dense["13"].channels) == ("trans1.relu", (156, 168))
    assert (dense["14"].module, dense["14"].channels) == ("dense2.0.relu", (0, 168))
    assert (dense["39"].module, dense["39"].channels) == ("relu", (444, 456))
    vgg = {p.number: p.module for p in prune_points("vgg16_bn_cifar")}
    assert [n for n, module in vgg.items() if "pool" in module] == ["2", "4", "7", "10"]
    assert "13" not in vgg


def test_initial_weights():
    vgg = build_backbone("vgg16_bn_cifar")
    assert vgg.features.conv8.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 512)), rel=0.01)
    assert (vgg.features.conv8.bias == 0).all()
    assert (vgg.features.norm8.weight == 0.5).all()
    assert vgg.classifier.linear1.weight.std().item() == pytest.approx(0.01, rel=0.02)
    resnet = build_backbone("resnet56")
    assert resnet.layer3[4].conv1.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)
    dense = build_backbone("densenet40_cifar")
    assert dense.trans2.conv1.weight.std().item() == pytest.approx(math.sqrt(2 / 312), rel=0.02)


def test_networks_take_other_sizes_and_channels_last():
    for arch in ("vgg16_bn_cifar", "resnet20", "densenet40_cifar"):
        model, x = build_backbone(arch, 4).eval(), torch.randn(2, 3, 48, 48)
        with torch.no_grad():
            expected = model(x)
            actual = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        assert expected.shape == (2, 4)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_build_backbone_hands_modules_through_and_explains_mistakes():
    net = nn.Linear(2, 2)
    assert build_backbone(net) is net
    with pytest.raises(ValueError, match=r"bare Linear.*BACKBONES\['my_net'\] = Backbone"):
        build_backbone(net, plan={"arch": "resnet20", "keep": {}})
    with pytest.raises(ValueError, match=r"unknown arch 'resnet65'; did you mean.*'resnet56'"):
        build_backbone("resnet65")
    with pytest.raises(ValueError, match=r"unknown arch 'my_net'.*BACKBONES\['my_net'\] = Backbone"):
        prune_points("my_net")
    with pytest.raises(ValueError, match="bare Linear"):
        prune_points(net)
    with pytest.raises(ValueError, match="plan is for arch 'resnet56', the network is 'resnet20'"):
        build_backbone("resnet20", plan={"arch": "resnet56", "keep": {}})
    with pytest.raises(ValueError, match="a plan has the keys"):
        build_backbone("resnet20", plan={"arch": "resnet20", "widths": {}})


def test_a_network_of_ones_own_needs_kept_channels(monkeypatch):
    def build(num_classes=10, plan=None):
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, num_classes))

    monkeypatch.setitem(BACKBONES, "mine", Backbone(build, list))
    assert build_backbone("mine", 3)[2].out_features == 3
    from lit_methods.backbones import prune_model

    with pytest.raises(ValueError, match="kept_channels must tell"):
        prune_model(build(), PrunePlan("mine", {}))
