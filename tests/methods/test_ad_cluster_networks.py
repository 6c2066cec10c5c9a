"""AD-Cluster's networks: sizes and costs of the specification, what they take and refuse, tracing."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torchvision import models

from lit_methods.ad_cluster.model import CameraDiscriminator, CameraGenerator, IdentityHead, ReIDEncoder
from lit_methods.functional.complexity import count_macs


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


class ToFirstCamera(nn.Module):
    """A generator as a function of the image alone."""

    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def forward(self, image):
        return self.generator(image, torch.zeros(len(image), dtype=torch.int64, device=image.device))


# encoder


def test_resnet50_has_the_size_and_cost_of_the_specification():
    with torch.device("meta"):
        encoder = ReIDEncoder()
        assert parameters(encoder) == 23_508_032
        assert round(count_macs(encoder, (3, 256, 128)) / 1e9, 2) == 2.67
        assert encoder.num_features == 2048
        assert encoder(torch.zeros(2, 3, 256, 128)).shape == (2, 2048)


def test_tiny_is_cheap():
    with torch.device("meta"):
        assert 10e6 < count_macs(ReIDEncoder("tiny", width=32), (3, 64, 32)) < 20e6
        assert ReIDEncoder("tiny", width=8)(torch.zeros(2, 3, 32, 16)).shape == (2, 32)


def test_features_are_torchvisions_average_of_the_last_stage():
    torch.manual_seed(0)
    theirs = models.resnet18().eval()
    encoder = ReIDEncoder("resnet18").eval()
    encoder.load_backbone(theirs.state_dict())
    theirs.fc = nn.Identity()
    image = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        assert_close(encoder(image), theirs(image), rtol=1e-5, atol=1e-6)


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="theirs does not fit this ResNet"):
        ReIDEncoder("resnet18").load_backbone({"fc.weight": torch.zeros(10, 512)}, "theirs")


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "tiny"])
def test_last_stride_of_one_gives_maps_twice_as_large_from_the_same_weights(name):
    sizes, names = [], []
    with torch.device("meta"):
        for stride in (2, 1):
            encoder = ReIDEncoder(name, last_stride=stride)
            last = [part for part in encoder.modules() if isinstance(part, nn.BatchNorm2d)][-1]
            hook = last.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[2:])))
            assert encoder(torch.zeros(2, 3, 128, 64)).shape == (2, encoder.num_features)
            hook.remove()
            if name != "tiny":  # it is the last stage that no longer halves
                maps = torch.zeros(2, encoder.num_features // 2, 8, 4)
                assert encoder.network.layer4(maps).shape[2:] == (8 // stride, 4 // stride)
            names.append({key: value.shape for key, value in encoder.state_dict().items()})
    (height, width), larger = sizes
    assert larger == (2 * height, 2 * width)
    assert names[0] == names[1]


def test_features_have_length_one_only_where_asked():
    torch.manual_seed(0)
    plain, unit = ReIDEncoder("tiny", width=4).eval(), ReIDEncoder("tiny", width=4, normalize=True).eval()
    unit.load_state_dict(plain.state_dict())
    image = torch.randn(3, 3, 32, 16)
    features = plain(image)
    assert_close(unit(image), features / features.norm(dim=1, keepdim=True))
    assert ((features.norm(dim=1) - 1).abs() > 1e-2).all()


@pytest.mark.parametrize("pooled", [False, True])
def test_a_network_of_ones_own_gives_maps_or_vectors(pooled):
    conv = nn.Conv2d(3, 7, 3)
    own = nn.Sequential(conv, nn.BatchNorm2d(7), *([nn.AdaptiveAvgPool2d(1), nn.Flatten()] if pooled else []))
    encoder = ReIDEncoder(own, input_size=(3, 16, 8))
    assert own[1].num_batches_tracked == 0  # the look for num_features leaves no trace
    assert own.training
    assert encoder.num_features == 7
    image = torch.randn(2, 3, 16, 8)
    assert_close(encoder.eval()(image), conv(image).mean((2, 3)) / (1 + 1e-5) ** 0.5)


def test_encoders_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"'resnet5' is no encoder.*resnet50"):
        ReIDEncoder("resnet5")
    with pytest.raises(ValueError, match="last_stride=3"):
        ReIDEncoder("tiny", last_stride=3)
    with pytest.raises(ValueError, match="last_stride=1 is for networks given by name"):
        ReIDEncoder(nn.Conv2d(3, 4, 3), last_stride=1)
    with pytest.raises(ValueError, match="width=0"):
        ReIDEncoder("tiny", width=0)
    with pytest.raises(ValueError, match=r"does not run on images of input_size=\(3, 16, 8\)"):
        ReIDEncoder(nn.Conv2d(4, 4, 3), input_size=(3, 16, 8))
    with pytest.raises(ValueError, match=r"must give \(N, D, h, w\) or \(N, D\)"):
        ReIDEncoder(nn.Flatten(2), input_size=(3, 16, 8))


@pytest.mark.parametrize("normalize", [False, True])
def test_the_encoder_can_be_exported_for_any_batch(normalize):
    encoder = ReIDEncoder("tiny", width=4, normalize=normalize).eval()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(encoder, (torch.zeros(2, 3, 32, 16),), dynamic_shapes=({0: batch},))
    image = torch.randn(5, 3, 32, 16)
    assert_close(program.module()(image), encoder(image))


def test_the_encoder_can_be_pruned_and_keeps_its_features():
    pytest.importorskip("torch_pruning")
    from lit_methods.backbones.traced import channel_groups

    encoder = ReIDEncoder("tiny", width=4)
    groups = channel_groups(encoder, (3, 32, 16))
    assert {group.root for group in groups} == {"network.0", "network.3", "network.6", "network.9"}  # not the last


@pytest.mark.parametrize("kind", ["fc", "bnneck"])
def test_identity_head_is_that_of_the_specification(kind):
    head = IdentityHead(2048, 702, kind=kind)
    layers = [type(part) for part in head.layers]
    if kind == "fc":
        assert layers == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout, nn.Linear]
        first, *_, dropout, last = head.layers
        assert first.bias is None
        assert first.weight.shape == (2048, 2048)
        assert float(first.weight.detach().std()) == pytest.approx(1e-3, rel=0.01)
        assert dropout.p == 0.1
        assert last.bias is not None
    else:
        assert layers == [nn.BatchNorm1d, nn.Linear]
        assert head.layers[1].bias is None
    assert head(torch.randn(4, 2048)).shape == (4, 702)


def test_identity_heads_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="kind='linear' must be 'fc' or 'bnneck'"):
        IdentityHead(4, 2, kind="linear")
    with pytest.raises(ValueError, match=r"dropout=1\.0"):
        IdentityHead(4, 2, dropout=1.0)
    with pytest.raises(ValueError, match="num_classes=0"):
        IdentityHead(4, 0)


# generator and discriminator


@pytest.mark.parametrize(
    ("cameras", "generator", "discriminator"), [(6, 8_433_664, 44_819_392), (8, 8_439_936, 44_852_160)]
)
def test_both_networks_have_the_sizes_of_the_specification(cameras, generator, discriminator):
    with torch.device("meta"):
        assert parameters(CameraGenerator(cameras)) == generator
        assert parameters(CameraDiscriminator(cameras)) == discriminator


@pytest.mark.parametrize(("cameras", "billions"), [(6, 20.0), (8, 20.2)])
def test_the_generator_costs_what_the_specification_says_of_eight_cameras(cameras, billions):
    with torch.device("meta"):
        assert round(count_macs(ToFirstCamera(CameraGenerator(cameras)), (3, 256, 128)) / 1e9, 1) == billions


def test_the_discriminator_scores_4x2_patches():
    with torch.device("meta"):
        score, logits = CameraDiscriminator(6)(torch.zeros(3, 3, 256, 128))
        assert (score.shape, logits.shape) == ((3, 1, 4, 2), (3, 6))
        assert CameraDiscriminator(6).camera.kernel_size == (4, 2)


def test_both_networks_do_what_the_specification_lists():
    torch.manual_seed(0)
    generator, discriminator = CameraGenerator(3, width=4, num_blocks=2), CameraDiscriminator(3, (16, 8), 4, 2)
    for parameter in (*generator.parameters(), *discriminator.parameters()):
        nn.init.normal_(parameter, std=0.3)
    image, camera = torch.rand(2, 3, 16, 8) * 2 - 1, torch.tensor([2, 0])

    weights = iter(generator.parameters())

    def normed(x, convolve, **options):
        x = convolve(x, next(weights), **options)
        x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
        return x * next(weights)[:, None, None] + next(weights)[:, None, None]

    planes = torch.zeros(2, 3, 16, 8)
    planes[0, 2], planes[1, 0] = 1, 1
    x = normed(torch.cat([image, planes], 1), F.conv2d, padding=3).relu()
    for _ in range(2):
        x = normed(x, F.conv2d, stride=2, padding=1).relu()
    for _ in range(2):
        x = x + normed(normed(x, F.conv2d, padding=1).relu(), F.conv2d, padding=1)
    for _ in range(2):
        x = normed(x, F.conv_transpose2d, stride=2, padding=1).relu()
    assert_close(generator(image, camera), F.conv2d(x, next(weights), padding=3).tanh(), rtol=1e-4, atol=1e-5)
    assert list(weights) == []

    w1, b1, w2, b2, score, camera_head = discriminator.parameters()
    x = F.leaky_relu(F.conv2d(image, w1, b1, stride=2, padding=1), 0.01)
    x = F.leaky_relu(F.conv2d(x, w2, b2, stride=2, padding=1), 0.01)
    actual = discriminator(image)
    assert_close(actual[0], F.conv2d(x, score, padding=1))
    assert_close(actual[1], (x[:, None] * camera_head).sum((2, 3, 4)))


@pytest.mark.parametrize("size", [(16, 8), (20, 12), (64, 32)])
def test_the_generator_takes_any_size_that_four_divides(size):
    torch.manual_seed(0)
    generator = CameraGenerator(3, width=4, num_blocks=1)
    image, camera = torch.rand(3, 3, *size) * 2 - 1, torch.tensor([0, 1, 2])
    out = generator(image, camera)
    assert out.shape == image.shape
    assert out.abs().max() <= 1
    assert_close(generator.eval()(image, camera), out)  # instance statistics in eval mode too
    single = generator(image[1:2], camera[1:2])
    assert_close(single, out[1:2], rtol=1e-4, atol=1e-5)  # and no others


def test_the_generator_depends_on_the_camera():
    generator = CameraGenerator(3, width=4, num_blocks=1)
    image = torch.rand(1, 3, 16, 8)
    one, two = (generator(image, torch.tensor([camera])) for camera in (0, 2))
    assert (one - two).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(18, 8), (16, 10), (4, 4)])
def test_the_generator_refuses_other_sizes(size):
    with pytest.raises(ValueError, match=f"multiples of 4, and more than 4x4 pixels, got {size[0]}x{size[1]}"):
        CameraGenerator(3, width=4, num_blocks=1)(torch.zeros(1, 3, *size), torch.tensor([0]))


@pytest.mark.parametrize(("size", "layers"), [((64, 32), 6), ((48, 32), 5), ((0, 32), 2)])
def test_the_discriminator_refuses_sizes_that_cannot_be_halved_so_often(size, layers):
    with pytest.raises(ValueError, match=f"cannot be halved num_layers={layers} times; take multiples of {2**layers}"):
        CameraDiscriminator(3, size, width=2, num_layers=layers)


def test_other_mistakes_around_the_generator_and_the_discriminator_are_refused():
    with pytest.raises(ValueError, match="num_cameras=0"):
        CameraGenerator(0)
    with pytest.raises(ValueError, match="num_blocks=0"):
        CameraGenerator(3, num_blocks=0)
    with pytest.raises(ValueError, match="images must be 16x8, got 8x16"):
        CameraDiscriminator(3, (16, 8), width=2, num_layers=2)(torch.zeros(1, 3, 8, 16))


def test_the_smallest_map_of_the_discriminator_is_one_pixel():
    score, logits = CameraDiscriminator(3, (16, 16), width=2, num_layers=4)(torch.zeros(2, 3, 16, 16))
    assert (score.shape, logits.shape) == ((2, 1, 1, 1), (2, 3))
