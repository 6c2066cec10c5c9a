"""Sizes of sketched networks: the published costs to the unit, widths by rate and by hand."""

import numpy as np
import pytest
import torch

from lit_methods.backbones import (
    BACKBONES,
    WidthPlan,
    googlenet_cifar,
    planned_network,
    resnet18,
    resnet20,
    resnet50,
)
from lit_methods.filter_sketch.model import widths_at
from lit_methods.functional import count_macs

COUNTED = {"resnet56": "resnet56", "resnet110": "resnet110", "googlenet": "googlenet_cifar", "resnet50": "resnet50"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "resnet110" else ()) for n in COUNTED])
def test_published_counts_to_the_unit(name, vectors):
    arch, classes = COUNTED[name], 1000 if name == "resnet50" else 10
    with np.load(vectors / "filter_sketch" / "counts.npz") as arrays:
        rates, counts = arrays[f"{name}_rates"].tolist(), arrays[f"{name}_mac_bias_bn_params"].tolist()
    size = BACKBONES[arch].input_size
    for row, (macs, bias, _, params) in zip(rates, counts, strict=True):
        small = planned_network(widths_at(arch, row), classes)
        assert count_macs(small, size, bias=True) == macs + bias, row
        assert sum(p.numel() for p in small.parameters()) == params, row
    assert count_macs(small, size) == macs


KEPT = (9, 19, 38, 76, 153, 307)  # at 0.6, of 16, 32, 64, 128, 256 and 512 filters


def test_widths_of_the_residual_networks():
    cifar = widths_at("resnet20", [0.6] * 9).mid
    assert cifar == {f"layer{i}.{j}.conv1": KEPT[i - 1] for i in (1, 2, 3) for j in range(3)}
    basic = widths_at("resnet18", [0.6] * 8).mid
    assert basic == {f"layer{i}.{j}.conv1": KEPT[i + 1] for i in (1, 2, 3, 4) for j in range(2)}
    deep = widths_at("resnet50", [0.6] * 16).mid
    blocks = [f"layer{i}.{j}" for i, n in enumerate((3, 4, 6, 3), 1) for j in range(n)]
    assert deep == {f"{block}.conv{k}": KEPT[int(block[5]) + 1] for block in blocks for k in (1, 2)}


def test_widths_of_googlenet():
    mid = widths_at("googlenet_cifar", [0.25] * 9).mid
    of = {branch: [n for conv, n in mid.items() if conv.endswith(branch)] for branch in ("3x3.conv1", "x5.conv1")}
    assert of["3x3.conv1"] == [24, 32, 24, 28, 32, 36, 40, 40, 48]
    assert of["x5.conv1"] == [4, 8, 4, 6, 6, 8, 8, 8, 12]
    assert [n for conv, n in mid.items() if conv.endswith("n5x5.conv2")] == [8, 24, 12, 16, 16, 16, 32, 32, 32]
    assert len(mid) == 27


def test_round_to():
    mid = widths_at("resnet20", [0.6] * 9, round_to=8).mid
    assert list(mid.values()) == [24] * 3 + [40] * 3  # 9 becomes 16, all there is: no entry
    assert widths_at("tiny", [0.3], round_to=8).mid == {"body.conv2": 8}  # of 8 and 12


STAGES = ("a3", "b3", "a4", "b4", "c4", "d4", "e4", "a5", "b5")
INNER = ("n3x3.conv1", "n5x5.conv1", "n5x5.conv2")


@pytest.mark.parametrize(
    ("build", "widths", "plan"),
    [
        (resnet20, [5, 16, 16, 32, 32, 20, *[64] * 3], {"layer1.0.conv1": 5, "layer2.2.conv1": 20}),
        (resnet18, [7] * 8, {f"layer{i}.{j}.conv1": 7 for i in (1, 2, 3, 4) for j in (0, 1)}),
        (
            resnet50,
            [(3, 64), 9, 64, *[128] * 4, *[256] * 6, *[512] * 3],
            {"layer1.0.conv1": 3, "layer1.1.conv1": 9, "layer1.1.conv2": 9},
        ),
        (
            googlenet_cifar,
            [(24, 4, 8)] * 9,
            {f"stages.{s}.{conv}": n for s in STAGES for conv, n in zip(INNER, (24, 4, 8), strict=True)},
        ),
    ],
)
def test_builders_take_widths_per_block(build, widths, plan):
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in build(mid_channels=widths).state_dict().items()}
    expected = planned_network(WidthPlan(build.__name__, plan)).state_dict()
    assert shapes == {key: value.shape for key, value in expected.items()}


@pytest.mark.parametrize(
    ("mid", "message"),
    [
        ([8] * 8, "resnet20 has 9 blocks, mid_channels has 8 entries"),
        ([(8, 8), *[8] * 8], r"entry \(8, 8\) must be one number or 1, for layer1\.0\.conv1"),
        ([17] + [8] * 8, r"'layer1\.0\.conv1' 17 filters, the full network has 16"),
        ([0] + [8] * 8, r"'layer1\.0\.conv1' 0 filters"),
    ],
)
def test_builders_refuse(mid, message):
    with pytest.raises(ValueError, match=message):
        resnet20(mid_channels=mid)


def test_a_plan_and_widths_are_not_given_together():
    with pytest.raises(ValueError, match="resnet20: plan and mid_channels both say how narrow it is"):
        resnet20(plan=WidthPlan("resnet20", {}), mid_channels=[8] * 9)
