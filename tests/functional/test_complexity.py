"""Costs against counts by hand and torch's own counter; measuring leaves the network alone."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lit_methods.backbones import build_backbone
from lit_methods.functional import count_macs, measure_complexity, measure_latency


def test_macs_by_hand():
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 4 * 5, 7)
    )
    conv, linear = 4 * 5 * 6 * (4 // 2) * 9, 7 * 6 * 4 * 5
    assert count_macs(model, (4, 8, 10)) == conv + linear
    assert count_macs(model, (4, 8, 10), bias=True) == conv + linear + 6 * 4 * 5 + 7


@pytest.mark.parametrize("arch", ["resnet20", "googlenet_cifar"])
def test_macs_are_half_of_torchs_flops(arch):
    model = build_backbone(arch).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    assert 2 * count_macs(model) == counter.get_total_flops()


def test_transposed_and_shared_layers():
    up = nn.ConvTranspose2d(3, 5, 2, stride=2)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        up(torch.zeros(1, 3, 4, 4))
    assert 2 * count_macs(up, (3, 4, 4)) == counter.get_total_flops()
    assert count_macs(up, (3, 4, 4), bias=True) - count_macs(up, (3, 4, 4)) == 5 * 8 * 8
    shared = nn.Linear(4, 4)
    assert count_macs(nn.Sequential(shared, shared), (4,)) == 2 * 16


def test_counting_changes_nothing():
    model = build_backbone("resnet20").double().train()
    model.layer1.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    count_macs(model)
    measure_complexity(model, repeats=1)
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(part._forward_hooks for part in model.modules())


def test_hooks_and_modes_survive_a_failing_forward():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(7, 2)).train()
    with pytest.raises(RuntimeError):
        count_macs(model, (3, 4, 4))
    assert model[0].training
    assert not model[0]._forward_hooks


def test_measure_complexity():
    small, large = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 400, 3)
    got, more = measure_complexity(small, repeats=3), measure_complexity(large, repeats=3)
    assert got.params == 4 * 27 + 4
    assert got.macs == 30 * 30 * 4 * 27
    assert 4 * got.params < got.file_bytes < 4 * got.params + 4096
    assert more.file_bytes - got.file_bytes == pytest.approx(4 * (more.params - got.params), abs=256)
    assert more.latency_ms > got.latency_ms > 0  # a hundred times the work


def test_measure_latency_takes_turns():
    class Noted(nn.Linear):
        def forward(self, x):
            calls.append((self.out_features, len(x)))
            return super().forward(x)

    calls = []
    times = measure_latency({"a": Noted(3, 1), "b": Noted(3, 2)}, (3,), batch_size=5, repeats=2, warmup=1)
    assert list(times) == ["a", "b"]
    assert calls == [(1, 5), (2, 5)] * 3
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        measure_latency({}, (3,), repeats=0)
