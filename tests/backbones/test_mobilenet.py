"""MobileNetV1: the published weights fit and classify, the stages are a feature pyramid."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, ToTensor

from lit_methods.backbones import build_backbone, mobilenet_v1
from lit_methods.backbones.weights import load_weights, read_weights
from lit_methods.classification import ImageClassifier
from lit_methods.functional import count_macs


@pytest.fixture
def published(shared):
    """The file of weights."""
    file = shared / "data" / "weights" / "imagenet_mobilenet_v1_x025.npz"
    if not file.is_file():
        pytest.skip("no trained networks in ../shared")
    return str(file)


def test_names_and_order_are_those_of_the_published_weights(published):
    tensors, _ = read_weights(published)
    network = build_backbone("mobilenet_v1_x025", 1000)
    assert [(k, v.shape) for k, v in network.state_dict().items()] == [(k, v.shape) for k, v in tensors.items()]
    load_weights(network, tensors)
    for key, value in network.state_dict().items():
        assert torch.equal(value, tensors[key]), key


@pytest.mark.slow
def test_accuracy_on_real_photographs(shared, published):
    images = shared / "data" / "imagenet_sample" / "val"
    if not images.is_dir():
        pytest.skip("no ImageNet sample in ../shared")
    data = ImageFolder(images, Compose([CenterCrop(224), ToTensor()]))  # the files are 256 x 256
    pixels = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    classifier = ImageClassifier("mobilenet_v1_x025", 1000, base_checkpoint=published, **pixels).eval()
    with torch.no_grad():
        found = torch.cat([classifier(x).topk(5).indices == y[:, None] for x, y in DataLoader(data, batch_size=50)])
    assert len(found) == 1000
    # the figures of whoever gathered the weights; kernels that sum in another order may move one or two images
    assert found[:, 0].sum().item() == pytest.approx(512, abs=2)
    assert found.sum().item() == pytest.approx(745, abs=2)


def test_sizes():
    with torch.device("meta"):
        assert sum(p.numel() for p in mobilenet_v1().parameters()) == 470_072
        full = mobilenet_v1(width=1.0)
    # MobileNets, table 4: 569 million multiply-adds and 4.2 million parameters
    assert round(count_macs(full, (3, 224, 224)) / 1e6) == 569
    assert round(sum(p.numel() for p in full.parameters()) / 1e6, 1) == 4.2
    assert {conv.bias for conv in full.modules() if isinstance(conv, nn.Conv2d)} == {None}


@pytest.mark.parametrize(("leaky", "kind"), [(0.1, nn.LeakyReLU), (0.0, nn.ReLU)])
def test_features_are_the_maps_of_the_stages(leaky, kind):
    network = mobilenet_v1(7, width=0.5, leaky=leaky).eval()
    activations = [part for part in network.modules() if isinstance(part, nn.LeakyReLU | nn.ReLU)]
    assert {type(part) for part in activations} == {kind}
    assert {getattr(part, "negative_slope", 0.0) for part in activations} == {leaky}
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps, logits = network.features(x), network(x)
        assert [tuple(level.shape[1:]) for level in maps] == [(128, 8, 12), (256, 4, 6), (512, 2, 3)]
        torch.testing.assert_close(maps[0], network.stage1(x))
        torch.testing.assert_close(maps[1], network.stage2(network.stage1(x)))
        torch.testing.assert_close(logits, network.fc(maps[2].mean((2, 3))))
    assert (maps[2] < 0).any() == bool(leaky)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"width=0\.3 would make 9\.6 channels of 32; give a multiple of 1/32"):
        mobilenet_v1(width=0.3)
    with pytest.raises(ValueError, match=r"width=-1 .*multiple"):
        mobilenet_v1(width=-1)
    with pytest.raises(ValueError, match=r"leaky=1 must lie in \[0, 1\)"):
        mobilenet_v1(leaky=1)
