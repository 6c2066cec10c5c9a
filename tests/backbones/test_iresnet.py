"""IR-ResNets: the official embeddings, the sizes and costs of the specification, weights, what is refused."""

import math
import re
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lit_methods.backbones.iresnet import LAYERS, IResNet, iresnet18, iresnet34, iresnet50, iresnet101
from lit_methods.backbones.weights import load_weights, read_weights
from lit_methods.functional.complexity import count_macs

SMALL = {"layers": (1, 2, 1, 1), "input_size": 32, "num_features": 16}


def small(**arguments):
    torch.manual_seed(0)
    return IResNet(**(SMALL | arguments))


@cache
def hashed(count=512 * 25088):
    """2 u - 1 of the vectors' README, as many as the largest weight has elements."""
    values = np.arange(1, count + 1, dtype=np.float64)
    values *= 12.9898  # in place: half of the time
    np.sin(values, out=values)
    values *= 43758.5453
    values -= np.floor(values)
    values *= 2
    values -= 1
    return values


def synthetic(shape, bound):
    values = hashed()[: math.prod(shape)] * bound
    return torch.from_numpy(values.astype(np.float32)).double().reshape(shape)


def with_synthetic_weights(build, se):
    """The network of the official probes, without the time that initial weights take."""
    with torch.device("meta"):
        network = build(se)
    tensors = {}
    for name, part in network.named_modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            shape = part.weight.shape
            tensors[f"{name}.weight"] = synthetic(shape, math.sqrt(6 / math.prod(shape[1:])))
            if part.bias is not None:
                tensors[f"{name}.bias"] = synthetic(part.bias.shape, 0.01)
        elif isinstance(part, nn.PReLU):
            tensors[f"{name}.weight"] = torch.full(part.weight.shape, 0.25)
        elif isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
            constants = {"running_mean": 0.0, "running_var": 1.0}
            constants |= {"weight": 1.0, "bias": 0.05} if part.affine else {}
            tensors |= {f"{name}.{key}": torch.full((part.num_features,), value) for key, value in constants.items()}
            tensors[f"{name}.num_batches_tracked"] = torch.tensor(0)
    network.load_state_dict(tensors, assign=True)
    return network.double().eval()


@pytest.mark.parametrize(
    ("probe", "build", "se"),
    [
        ("IR_18", iresnet18, False),
        ("IR_SE_50", iresnet50, True),
        pytest.param("IR_50", iresnet50, False, marks=pytest.mark.slow),
        pytest.param("IR_101", iresnet101, False, marks=pytest.mark.slow),
    ],
)
def test_embeddings_are_those_of_the_official_code(vectors, probe, build, se):
    expected = np.load(vectors / "ddl" / f"backbone_probe_{probe}.npz")
    positions = 0.01 * torch.arange(3 * 112 * 112, dtype=torch.float64).reshape(3, 112, 112)
    images = torch.stack([torch.sin(positions + float(expected["input_shift"]) + number) for number in (0, 1)])
    with torch.no_grad():
        embeddings = with_synthetic_weights(build, se)(images)
    assert (embeddings.shape, embeddings.dtype) == ((2, 512), torch.float64)
    target = torch.from_numpy(expected["embedding"])
    assert float((embeddings - target).abs().max() / target.abs().max()) <= 1e-8


@pytest.mark.parametrize(
    ("build", "se", "parameters", "billions"),
    [
        (iresnet18, False, 24_020_352, 2.597),
        (iresnet34, False, 34_134_080, 4.447),
        (iresnet50, False, 43_585_600, 6.296),
        pytest.param(iresnet101, False, 65_150_912, 12.077, marks=pytest.mark.slow),
        (iresnet50, True, 43_808_320, 6.297),
        (iresnet101, True, 65_523_136, 12.077),
    ],
)
def test_sizes_and_costs_are_those_of_the_specification(build, se, parameters, billions):
    with torch.device("meta"):
        network = build(se)
        assert sum(parameter.numel() for parameter in network.parameters()) == parameters
        assert round(count_macs(network, (3, 112, 112)) / 1e9, 3) == billions
        assert len(network.body) == sum(LAYERS[build.__name__])


def test_a_fresh_network_begins_as_the_specification_says():
    network = small(se=True)
    for name, part in network.named_modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            fan_out = part.weight.shape[0] * math.prod(part.weight.shape[2:])
            assert float(part.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan_out), rel=0.2), name
            assert (part.bias is None) == (name != "output_layer.3")
        elif isinstance(part, nn.PReLU):
            assert (part.weight == 0.25).all()
    assert not network.output_layer[3].bias.any()
    assert list(network.output_layer[4].parameters()) == []
    assert network.output_layer[1].p == 0.4


def test_parameters_have_the_official_names():
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    residual = [f"{i}.{key}" for i in (0, 2, 5) for key in norm] + [f"{i}.weight" for i in (1, 3, 4)]
    residual += ["se_block.fc1.weight", "se_block.fc2.weight"]
    expected = {"input_layer.0.weight", "input_layer.2.weight", "output_layer.3.weight", "output_layer.3.bias"}
    expected |= {f"{layer}.{key}" for layer in ("input_layer.1", "output_layer.0") for key in norm}
    expected |= {f"output_layer.4.{key}" for key in norm[2:]}
    expected |= {f"body.{i}.res_layer.{key}" for i in range(5) for key in residual}
    projected = (1, 3, 4)  # the first block of the stages that widen
    expected |= {f"body.{i}.shortcut_layer.1.{key}" for i in projected for key in norm}
    expected |= {f"body.{i}.shortcut_layer.0.weight" for i in projected}
    assert set(small(se=True).state_dict()) == expected


def test_the_first_block_of_every_stage_halves_the_size():
    sizes = []
    network = small()
    for block in network.body:
        block.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    network(torch.zeros(2, 3, 32, 32))
    assert sizes == [(64, 16, 16), (128, 8, 8), (128, 8, 8), (256, 4, 4), (512, 2, 2)]


def test_a_shortcut_that_keeps_the_channels_takes_every_second_pixel():
    first = small().eval().body[0]
    nn.init.zeros_(first.res_layer[4].weight)
    x = torch.randn(2, 64, 8, 8)
    assert torch.equal(first(x), x[:, :, ::2, ::2])


def test_weights_load_from_a_file_by_name(tmp_path, recwarn):
    theirs = small(se=True).eval()
    for part in theirs.modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(part.running_mean)
    path, image = tmp_path / "face.pth", torch.randn(2, 3, 32, 32)
    for prefix in ("", "module."):
        torch.save({prefix + key: tensor for key, tensor in theirs.state_dict().items()}, path)
        tensors, _ = read_weights(str(path))
        ours = IResNet(**SMALL, se=True)
        load_weights(ours, tensors, str(path))
        assert torch.equal(ours.eval()(image), theirs(image))
    assert not recwarn.list  # by name, not by order


def test_weights_of_another_depth_or_kind_are_refused():
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r"other\.pth does not fit this IResNet: 0 missing, 10 unexpected"),
    ):
        load_weights(small(), small(se=True).state_dict(), "other.pth")
    with torch.device("meta"), pytest.raises(ValueError, match="does not fit this IResNet"):
        load_weights(small(), small(layers=(1, 1, 1, 1)).state_dict())


@pytest.mark.parametrize("size", [(32, 16), (16, 16), (40, 40)])
def test_images_of_another_size_are_refused(size):
    with torch.device("meta"), pytest.raises(ValueError, match=f"images must be 32x32, got {size[0]}x{size[1]}"):
        small()(torch.zeros(2, 3, *size))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("layers", (2, 2, 2)),
        ("layers", (2, 2, 0, 2)),
        ("input_size", 100),
        ("input_size", 0),
        ("num_features", 0),
        ("dropout", 1.0),
    ],
)
def test_arguments_that_cannot_be_are_refused(argument, value):
    with torch.device("meta"), pytest.raises(ValueError, match=re.escape(f"{argument}={value}")):
        small(**{argument: value})


def test_a_batch_may_be_empty():
    network = small(se=True).eval()
    assert network(torch.zeros(0, 3, 32, 32)).shape == (0, 16)


def test_embeddings_do_not_depend_on_the_rest_of_the_batch_in_evaluation():
    network = small(se=True).eval()
    images = torch.randn(3, 3, 32, 32)
    assert_close(network(images[1:2]), network(images)[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_it_is_exported_for_any_batch():
    network = small(se=True, layers=(1, 1, 1, 1)).eval()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(network, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
    images = torch.randn(5, 3, 32, 32)
    assert_close(program.module()(images), network(images))


def test_every_parameter_learns_and_dropout_is_for_training():
    network = small(se=True)
    images = torch.randn(4, 3, 32, 32)
    one, two = network(images), network(images)
    assert not torch.equal(one, two)
    assert_close(one.mean(0), torch.zeros(16), rtol=0, atol=1e-4)  # the last batch norm, which has no weights
    one.square().mean(1).log().sum().backward()
    assert all(parameter.grad.any() for parameter in network.parameters())
    assert torch.equal(network.eval()(images), network(images))
