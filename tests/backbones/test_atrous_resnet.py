"""Atrous ResNets: the official maps, the sizes of the specification, what freezing leaves alone."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.testing import assert_close

from lit_methods.backbones.atrous_resnet import AtrousResNet
from lit_methods.functional.complexity import count_macs

FRONT = ("conv1", "bn1", "layer1")


def small(depth=18, width=4, levels=(2, 3, 4)):
    torch.manual_seed(0)
    return AtrousResNet(depth, width, levels)


def on_meta(*arguments):
    with torch.device("meta"):
        return AtrousResNet(*arguments)


def sine(shape, phase):
    """The formula weights of the vectors' README, whose sine of a sum is taken apart: a tenth of the sines."""
    outputs, inputs, height, width = shape
    o, c = torch.arange(outputs, dtype=torch.float64)[:, None], torch.arange(inputs, dtype=torch.float64)
    i, j = torch.arange(height, dtype=torch.float64)[:, None], torch.arange(width, dtype=torch.float64)
    channel, place = (phase + 0.7 * o + 1.3 * c + 0.013 * o * c).view(-1), (2.1 * i + 3.4 * j).view(-1)
    pairs = torch.stack([channel.sin(), channel.cos()], 1) @ torch.stack([place.cos(), place.sin()])
    return (pairs * 1.5 * (2 / (inputs * height * width)) ** 0.5).float().view(shape)


def of_the_vectors(phase, levels):
    network = on_meta(50, 64, levels)
    tensors = {}
    for name, value in network.state_dict().items():
        if value.ndim == 4:
            tensors[name] = sine(value.shape, phase)
        else:
            one = name.endswith(("weight", "running_var"))
            tensors[name] = torch.full(value.shape, float(one)).to(value.dtype)
    network.load_state_dict(tensors, assign=True)
    return network.eval()


@pytest.mark.parametrize("levels", [(2, 3), pytest.param((2, 3, 4), marks=pytest.mark.slow)])
def test_maps_are_those_of_the_official_network(vectors, levels):
    known = np.load(vectors / "siamban" / "backbone.npz")
    network = of_the_vectors(known["phase"].item(), levels)
    with torch.no_grad():
        maps = network(torch.from_numpy(known["image"]))
    for level, given in zip(levels, maps, strict=True):
        near = {"rtol": 0, "atol": 1e-3 * known[f"layer{level}_std"].item()}
        assert list(given.shape) == known[f"layer{level}_shape"].tolist()
        assert_close(given[:, ::32], torch.from_numpy(known[f"layer{level}_slice"]), **near)
        assert_close(given.mean((0, 2, 3)).double(), torch.from_numpy(known[f"layer{level}_chmean"]), **near)


def test_the_paper_s_network_has_the_official_size():
    network = on_meta()
    counts = [sum(p.numel() for p in network.get_submodule(name).parameters()) for name in network.stages]
    assert counts == [9_408, 128, 215_808, 2_268_160, 11_292_672, 31_741_952]
    assert sum(counts) == sum(p.numel() for p in network.parameters()) == 45_528_128
    assert count_macs(network, (3, 127, 127)) == 10_445_646_528
    assert count_macs(network, (3, 255, 255)) == 44_578_687_680


@pytest.mark.parametrize(
    ("depth", "channels"), [(18, [8, 16, 32]), pytest.param(34, [8, 16, 32], marks=pytest.mark.slow)]
)
def test_all_levels_have_the_same_positions(depth, channels):
    network = on_meta(depth, 4)
    assert network.out_channels == channels
    for size, positions in ((127, 15), (255, 31)):
        maps = network(torch.zeros(2, 3, size, size, device="meta"))
        assert [tuple(x.shape) for x in maps] == [(2, wide, positions, positions) for wide in channels]


def test_only_stages_that_are_needed_are_built():
    network = small(levels=[2])
    assert network.stages == (*FRONT, "layer2")
    assert not hasattr(network, "layer3")
    full = small()
    full.load_state_dict(network.state_dict(), strict=False)
    image = torch.rand(1, 3, 127, 127)
    (alone,), (second, _, fourth) = network.eval()(image), full.eval()(image)
    assert torch.equal(alone, second)
    assert torch.equal(small(levels=(4,)).eval()(image)[0], small().eval()(image)[2])
    assert fourth.shape[1] == 32


@pytest.mark.parametrize("depth", [18, 50])
def test_a_position_looks_at_pixels_around_its_own(depth):
    network = small(depth, levels=(2,)).double().eval()
    network.maxpool = nn.AvgPool2d(3, 2, 1)  # as wide, and no pixel of it is left out
    for parameter in network.parameters():
        parameter.data.abs_()  # nor any by a ReLU
    image = torch.ones(1, 3, 127, 127, dtype=torch.float64, requires_grad=True)
    for row, column in ((7, 7), (7, 8)):
        (maps,) = network(image)
        (gradient,) = torch.autograd.grad(maps[0, :, row, column].sum(), image)
        seen = gradient[0].sum(0) > 0
        for axis, position in ((1, row), (0, column)):
            pixels = seen.any(axis).nonzero()
            assert (pixels.min() + pixels.max()).item() / 2 == 8 * position + 7


def step(network):
    """One step of training on anything."""
    optimizer = SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    loss = sum(maps.square().mean() for maps in network(torch.rand(2, 3, 127, 127)))
    loss.backward()
    optimizer.step()


def test_what_is_frozen_stays_bit_for_bit_the_same_whoever_calls_train():
    network = small()
    whole = nn.Sequential(network)
    network.set_trainable(("layer4", "layer2"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for _ in range(2):
        whole.eval()
        whole.train()
        step(network)
    assert network.trainable == ("layer2", "layer4")
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith((*FRONT, "layer3")), name
    assert network.training
    assert network.layer4[0].bn1.training
    assert not any(part.training for part in network.layer3.modules())


def test_no_graph_is_recorded_in_front_of_what_trains():
    network = small()
    image = torch.rand(1, 3, 127, 127)
    seen = {}
    for name in ("maxpool", "layer1", "layer2", "layer3"):
        network.get_submodule(name).register_forward_hook(lambda *call, name=name: seen.update({name: call[2]}))
    network.set_trainable(("layer3", "layer4"))
    network(image)
    assert {name: maps.requires_grad for name, maps in seen.items()} == {
        "maxpool": False,
        "layer1": False,
        "layer2": False,
        "layer3": True,
    }
    kept = []
    network.set_trainable(())
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x):
        maps = network(image)
    assert not kept
    assert not any(x.requires_grad for x in maps)


def test_frozen_parts_wake_again():
    network = small()
    network.set_trainable(())
    assert not any(p.requires_grad for p in network.parameters())
    assert not any(part.training for part in network.modules() if isinstance(part, nn.BatchNorm2d))
    network.set_trainable(None)
    assert all(p.requires_grad for p in network.parameters())
    assert all(part.training for part in network.modules())
    assert network.state_dict().keys() == small().state_dict().keys()


def test_freezing_a_network_in_eval_mode_leaves_it_there():
    network = small().eval()
    network.set_trainable(("layer4",))
    assert not any(part.training for part in network.modules())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 101}, r"depth=101 must be one of 18, 34, 50"),
        ({"width": 0}, r"width=0 must be a whole number, at least 1"),
        ({"levels": []}, r"levels=\[\] must be one or more of 2, 3 and 4"),
        ({"levels": [3, 2]}, r"levels=\[3, 2\] must be"),
        ({"levels": [2, 2]}, r"levels=\[2, 2\] must be"),
        ({"levels": [1, 2]}, r"levels=\[1, 2\] must be"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        AtrousResNet(**arguments)


def test_a_part_that_is_not_there_cannot_train():
    with pytest.raises(ValueError, match=r"names=\['layer4'\]: there is no 'layer4', but conv1, .*layer2$"):
        small(levels=(2,)).set_trainable(["layer4"])
