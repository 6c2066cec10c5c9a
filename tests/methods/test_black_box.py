"""What can be attacked: networks as they are, ONNX Runtime sessions, plain functions."""

from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.testing import assert_close

from lit_methods.classification import Normalize
from lit_methods.ppba import BlackBox, ModelBlackBox, PPBAAttack
from lit_methods.ppba.build import low_frequencies as low_frequencies_of
from tests.methods.toy_models import CLASSES, PIXELS, SIDE, low_frequencies, picture_batch, small_conv_net

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PPBA = partial(PPBAAttack, low_frequencies(), rho=0.1, eps=3.0, max_queries=40)


class Seen(nn.Module):
    """Keep what arrives, and whether it arrives in eval mode and without gradients."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.images, self.sizes, self.modes = None, [], set()

    def forward(self, images):
        self.images = images
        self.sizes.append(len(images))
        self.modes.add((self.training, torch.is_grad_enabled()))
        return (images * self.weight).flatten(1)[:, :CLASSES]


def net_in_parts():
    """Training mode in some parts, eval mode in others."""
    network = nn.Sequential(
        small_conv_net().train(), nn.Dropout(0.5), nn.Sequential(nn.Linear(CLASSES, CLASSES), Seen())
    )
    network[0][1].eval()
    network[2].eval()
    network[2][0].train()
    return network


def modes(network):
    return [part.training for part in network.modules()]


# -- a network --------------------------------------------------------------------------------------------------------


def test_modes_gradients_and_statistics_are_left_alone():
    network = net_in_parts()
    images = torch.rand(4, 3, SIDE, SIDE, requires_grad=True)
    before, state = modes(network), {k: v.clone() for k, v in network.state_dict().items()}
    assert {True, False} == set(before)
    scores = ModelBlackBox(network)(images)
    assert modes(network) == before
    assert network[2][1].modes == {(False, False)}
    assert not scores.requires_grad
    assert torch.is_grad_enabled()
    assert images.grad is None
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())  # batch norms, too
    assert torch.equal(ModelBlackBox(network)(images), scores)  # no dropout


def test_modes_come_back_after_an_error():
    network = net_in_parts()
    before = modes(network)
    with pytest.raises(RuntimeError):
        ModelBlackBox(network)(torch.rand(1, 5, SIDE, SIDE))
    assert modes(network) == before
    assert torch.is_grad_enabled()


def test_pixels_are_normalised_as_in_the_modules():
    network, images = Seen(), torch.rand(2, 3, 4, 4)
    ModelBlackBox(network, MEAN, STD)(images)
    assert torch.equal(network.images, Normalize(MEAN, STD)(images))
    slow = [(images[:, c].double() - m) / s for c, (m, s) in enumerate(zip(MEAN, STD, strict=True))]
    assert_close(network.images.double(), torch.stack(slow, 1), rtol=1e-5, atol=1e-6)
    ModelBlackBox(network.double(), MEAN, STD)(images.double())
    assert_close(network.images, torch.stack(slow, 1), rtol=1e-7, atol=1e-7)
    ModelBlackBox(network.float())(images)
    assert torch.equal(network.images, images)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("given", [torch.float32, torch.float64])
def test_scores_come_in_the_precision_of_the_network(dtype, given):
    network, images = Seen().to(dtype), torch.rand(2, 3, 4, 4, dtype=given)
    scores = ModelBlackBox(network, MEAN, STD)(images)
    assert network.images.dtype == scores.dtype == dtype
    exact = Normalize(MEAN, STD).double()(images.double())
    tolerance = {torch.bfloat16: 2**-8, torch.float32: 2e-7, torch.float64: 2e-7}[dtype]
    assert_close(network.images.double(), exact, rtol=tolerance, atol=tolerance)  # rounded once, after normalising


def test_a_network_without_weights():
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    assert torch.equal(ModelBlackBox(nn.Flatten())(images), images.flatten(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": MEAN}, r"mean=\[0.485, .*\] and std=None go together: give both or neither"),
        ({"std": STD}, r"mean=None and std=\[0.229, .*\] go together"),
        ({"max_batch": 0}, "max_batch=0 must be at least 1, or None"),
        ({"max_batch": -2}, "max_batch=-2 must be at least 1, or None"),
    ],
    ids=str,
)
def test_arguments_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ModelBlackBox(Seen(), **arguments)


@pytest.mark.parametrize(("most", "samples"), [(1, 1), (4, 1), (4, 3), (2, 3), (100, 3)])
def test_no_forward_pass_is_larger_than_max_batch(most, samples):
    images, labels = picture_batch(7, model=lambda images: images.flatten(1)[:, :CLASSES])
    network = Seen().double()
    attack = PPBA(n_samples=samples)
    result = attack(ModelBlackBox(network, max_batch=most), images, labels)
    assert max(network.sizes) == min(most, 7 * samples)
    plain = attack(Seen().double(), images, labels)
    assert torch.equal(result.adv, plain.adv)
    assert torch.equal(result.queries, plain.queries)
    assert sum(network.sizes) == result.queries.sum() + result.checks.sum()


# -- the same classifier in other clothes -----------------------------------------------------------------------------


def filters(classes=CLASSES):
    """A convolution of stride 2, a mean over the picture, a linear layer; float32 arrays."""
    draw = np.random.default_rng(0)
    shapes = {"kernel": (16, 3, 3, 3), "shift": (16,), "weight": (classes, 16), "bias": (classes,)}
    return {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def as_torch(arrays):
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES)
    )
    with torch.no_grad():
        for parameter, array in zip(network.parameters(), arrays.values(), strict=True):
            parameter.copy_(torch.from_numpy(array))
    return network


def as_numpy(arrays):
    """In NumPy alone, from torch's images to an array."""

    def score(images):
        windows = np.lib.stride_tricks.sliding_window_view(np.asarray(images), (3, 3), axis=(2, 3))[:, :, ::2, ::2]
        maps = np.einsum("nchwij,ocij->nohw", windows, arrays["kernel"]) + arrays["shift"][:, None, None]
        return np.maximum(maps, 0).mean((2, 3)) @ arrays["weight"].T + arrays["bias"]

    return score


def as_onnx(arrays):
    """An ONNX Runtime session, its graph written node by node."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            node("Conv", ["image", "kernel", "shift"], ["maps"], strides=[2, 2]),
            node("Relu", ["maps"], ["positive"]),
            node("GlobalAveragePool", ["positive"], ["mean"]),
            node("Flatten", ["mean"], ["flat"]),
            node("Gemm", ["flat", "weight", "bias"], ["logits"], transB=1),
        ],
        "classifier",
        [info("image", onnx.TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [info("logits", onnx.TensorProto.FLOAT, ["n", CLASSES])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"image": images.numpy()})[0]


@pytest.mark.parametrize("clothes", [as_numpy, as_onnx])
def test_the_same_attack_on_the_same_classifier(clothes):
    arrays = filters()
    network, other = as_torch(arrays), clothes(arrays)
    images = picture_batch(6)[0].float()
    scores = ModelBlackBox(network)(images)
    assert_close(torch.as_tensor(other(images)), scores, rtol=1e-5, atol=1e-5)
    assert isinstance(other(images), np.ndarray)
    attack = PPBA(max_queries=20)
    expected, result = attack(network, images, scores.argmax(1)), attack(other, images, scores.argmax(1))
    assert expected.success.any()
    assert not expected.success.all()  # both ends are compared
    for field in ("success", "queries", "skipped", "failed", "success_uint8", "preds", "checks"):
        assert torch.equal(getattr(result, field), getattr(expected, field)), field
    assert_close(result.adv, expected.adv)
    assert_close(result.history["loss"], expected.history["loss"], rtol=1e-4, atol=1e-5, equal_nan=True)


def test_a_torchvision_network_in_training_mode():
    network = torchvision.models.mobilenet_v3_small(num_classes=CLASSES).train()  # dropout and batch norm
    images = torch.rand(2, 3, 32, 32)
    attack = PPBAAttack(low_frequencies_of(32), rho=0.5, eps=5.0, max_queries=12)
    before, state = modes(network), {k: v.clone() for k, v in network.state_dict().items()}
    scores = ModelBlackBox(network)(images)
    results = [attack(box, images, scores.argmax(1)) for box in (network, ModelBlackBox(network))]
    assert modes(network) == before
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    network.eval()
    with torch.no_grad():
        assert torch.equal(network(images), scores)
    plain = attack(
        lambda images: network(images), images, scores.argmax(1)
    )  # a function, which nobody puts into eval mode
    for result in results:
        assert torch.equal(result.adv, plain.adv)
        assert torch.equal(result.queries, plain.queries)
        assert torch.equal(result.history["loss"].nan_to_num(), plain.history["loss"].nan_to_num())
    assert not plain.skipped.any()


def test_a_function_is_a_black_box():
    assert isinstance(as_numpy(filters()), BlackBox)
    assert isinstance(ModelBlackBox(Seen()), BlackBox)
    assert not isinstance(PIXELS, BlackBox)
