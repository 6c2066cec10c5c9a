"""The DARTS network for ImageNet: names and numbers of the release, its operations, its auxiliary head."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lit_methods.backbones import build_backbone, darts_imagenet
from lit_methods.backbones.darts import DARTS, DARTS_V2
from lit_methods.backbones.darts_cells import OPERATIONS, Cell

HEAD = "auxiliary_head."


def on_meta(*args, **kwargs):
    with torch.device("meta"):
        return darts_imagenet(*args, **kwargs)


def count(network, head):
    return sum(p.numel() for name, p in network.named_parameters() if name.startswith(HEAD) == head)


def test_numbers_of_parameters_are_the_published_ones():
    assert count(on_meta(), head=False) == 4_718_752
    assert count(on_meta(), head=True) == 1_260_776
    assert count(on_meta(365), head=False) == 4_718_752 - 635 * 769


def test_the_genotype_is_the_papers_second():
    """The gated networks' probes cannot tell: with their weights the nodes 2 and 3 of a normal cell are equal."""
    short = {"sep3": "sep_conv_3x3", "dil3": "dil_conv_3x3", "max3": "max_pool_3x3", "skip": "skip_connect"}

    def pairs(text):
        return tuple((short[word[:-1]], int(word[-1])) for word in text.split())

    assert DARTS_V2.normal == pairs("sep30 sep31  sep30 sep31  sep31 skip0  skip0 dil32")
    assert DARTS_V2.reduce == pairs("max30 max31  skip2 max31  max30 skip2  skip2 max31")
    assert DARTS_V2.normal_concat == DARTS_V2.reduce_concat == (2, 3, 4, 5)


def norm(name, channels):
    return {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}


def sep(name, c):
    """A separable convolution: two depthwise, two pointwise, two norms."""
    convs = {f"{name}.op.{i}.weight": (c, 1, 3, 3) for i in (1, 5)} | {
        f"{name}.op.{i}.weight": (c, c, 1, 1) for i in (2, 6)
    }
    return convs | norm(f"{name}.op.3", c) | norm(f"{name}.op.7", c)


def halves(name, source, c):
    convs = {f"{name}.conv_{i}.weight": (c // 2, source, 1, 1) for i in (1, 2)}
    return convs | norm(f"{name}.bn", c)


def squeeze(name, source, c):
    return {f"{name}.op.1.weight": (c, source, 1, 1)} | norm(f"{name}.op.2", c)


def test_names_and_shapes_are_the_releases():
    found = {k: tuple(v.shape) for k, v in on_meta().state_dict().items() if not k.endswith("num_batches_tracked")}

    def part(prefix):
        return {k: shape for k, shape in found.items() if k.startswith(prefix)}

    stem0 = {"stem0.0.weight": (24, 3, 3, 3), "stem0.3.weight": (48, 24, 3, 3)}
    assert part("stem0.") == stem0 | norm("stem0.1", 24) | norm("stem0.4", 48)
    assert part("stem1.") == {"stem1.1.weight": (48, 48, 3, 3)} | norm("stem1.2", 48)
    dilated = {"cells.2._ops.7.op.1.weight": (48, 1, 3, 3), "cells.2._ops.7.op.2.weight": (48, 48, 1, 1)}
    normal = squeeze("cells.2.preprocess0", 192, 48) | squeeze("cells.2.preprocess1", 192, 48)
    for i in range(5):
        normal |= sep(f"cells.2._ops.{i}", 48)
    assert part("cells.2.") == normal | dilated | norm("cells.2._ops.7.op.3", 48)
    assert part("cells.0.preprocess0.") == halves("cells.0.preprocess0", 48, 48)
    assert part("cells.9.") == squeeze("cells.9.preprocess0", 384, 192) | squeeze("cells.9.preprocess1", 384, 192)
    assert part("cells.10.preprocess0.") == halves("cells.10.preprocess0", 384, 192)
    head = {f"{HEAD}features.2.weight": (128, 768, 1, 1), f"{HEAD}features.5.weight": (768, 128, 2, 2)}
    classifier = {"classifier.weight": (1000, 768), "classifier.bias": (1000,)}
    head |= {f"{HEAD}{name}": shape for name, shape in classifier.items()}
    assert part(HEAD) == head | norm(f"{HEAD}features.3", 128)
    assert part("classifier.") == classifier
    assert {name.split(".")[1] for name in part("cells.")} == {str(i) for i in range(14)}
    assert {name.split(".")[0] for name in found} == {"stem0", "stem1", "cells", "auxiliary_head", "classifier"}


def test_a_pass_gives_plain_logits_in_both_modes_and_takes_other_sizes():
    network = DARTS(5, C=4, layers=3)
    for mode in (True, False):
        assert network.train(mode)(torch.randn(2, 3, 64, 96)).shape == (2, 5)
    assert build_backbone("darts", 5).classifier.out_features == 5


def test_the_auxiliary_head_reads_the_second_reduction():
    network = DARTS(5, C=4, layers=6).eval()
    seen = []
    network.cells[4].register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        logits, auxiliary = network.with_auxiliary(x)
        assert_close(logits, network(x), rtol=0, atol=0)
        features = network.auxiliary_head.features
        maps = nn.functional.avg_pool2d(seen[0].relu(), 5, stride=2)
        maps = features[5](features[3](features[2](maps)).relu()).relu()
        assert_close(auxiliary, network.auxiliary_head.classifier(maps.flatten(1)))
    assert seen[0].shape == (2, 64, 7, 7)


def test_every_parameter_but_the_heads_gets_a_gradient():
    network = DARTS(3, C=4, layers=3).train()
    network(torch.randn(2, 3, 64, 64)).sum().backward()
    for name, parameter in network.named_parameters():  # else DDP would wait for the others
        assert parameter.requires_grad == (parameter.grad is not None) == (not name.startswith(HEAD)), name


def test_the_head_can_be_thawed_and_trained():
    network = DARTS(3, C=4, layers=3).train()
    network.auxiliary_head.requires_grad_()
    logits, auxiliary = network.with_auxiliary(torch.randn(2, 3, 224, 224))
    (logits.sum() + 0.4 * auxiliary.square().sum()).backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_keep_channels_and_halve_the_size_with_stride_two(name, stride, affine):
    op = OPERATIONS[name](6, stride, affine)
    x = torch.randn(2, 6, 8, 10)
    before = x.clone()
    assert op(x).shape == (2, 6, 8 // stride, 10 // stride)
    assert torch.equal(x, before)
    norms = [part for part in op.modules() if isinstance(part, nn.BatchNorm2d)]
    assert all(part.affine is affine for part in norms)
    expected = {"skip_connect": stride - 1, "sep_conv_3x3": 2, "sep_conv_5x5": 2, "dil_conv_3x3": 1, "dil_conv_5x5": 1}
    assert len(norms) == expected.get(name, 0)


@pytest.mark.parametrize(
    ("name", "offsets"),
    [
        ("sep_conv_3x3", range(-2, 3)),  # two after one another
        ("sep_conv_5x5", range(-4, 5)),
        ("dil_conv_3x3", (-2, 0, 2)),
        ("dil_conv_5x5", (-4, -2, 0, 2, 4)),
        ("max_pool_3x3", (-1, 0, 1)),
        ("avg_pool_3x3", (-1, 0, 1)),
        ("skip_connect", (0,)),
        ("none", ()),
    ],
)
def test_operations_see_as_far_as_their_names_say(name, offsets):
    op = OPERATIONS[name](1, 1, False).eval()
    for part in op.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.ones_(part.weight)
    x = torch.zeros(1, 1, 13, 13)
    x[..., 6, 6] = 1.0
    rows = op(x)[0, 0].ne(0).any(1).nonzero().flatten()
    assert rows.tolist() == [6 + offset for offset in offsets]


def test_average_pooling_does_not_count_the_border():
    assert_close(OPERATIONS["avg_pool_3x3"](2, 1, True)(torch.ones(1, 2, 4, 4)), torch.ones(1, 2, 4, 4))


def test_the_halves_of_a_factorized_reduction_read_even_and_odd_pixels():
    reduce = OPERATIONS["skip_connect"](4, 2, False).eval()
    for conv in (reduce.conv_1, reduce.conv_2):
        nn.init.ones_(conv.weight)
    x = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 4, 4, 4)
    out = reduce(x) * (1 + reduce.bn.eps) ** 0.5 / 4
    assert_close(out[0, 0], torch.tensor([[0.0, 2.0], [8.0, 10.0]]))
    assert_close(out[0, 3], torch.tensor([[5.0, 7.0], [13.0, 15.0]]))


def test_a_cell_without_affine_norms_has_convolutions_alone():
    cell = Cell(DARTS_V2, (8, 8), 4, reduction=False, reduction_prev=True, affine=False)
    assert all(parameter.ndim == 4 for parameter in cell.parameters())


def test_impossible_networks_and_images_are_refused():
    with pytest.raises(ValueError, match=r"C=5 must be an even number"):
        darts_imagenet(C=5)
    with pytest.raises(ValueError, match=r"layers=0 must be at least 1"):
        darts_imagenet(layers=0)
    misspelt = DARTS_V2._replace(normal=(("sep_conv_33", 0), *DARTS_V2.normal[1:]))
    with pytest.raises(ValueError, match=r"'sep_conv_33'; did you mean.*'sep_conv_3x3'.*there are none, max_pool_3x3"):
        DARTS(5, C=4, layers=3, genotype=misspelt)
    network = DARTS(5, C=4, layers=3)
    with pytest.raises(ValueError, match=r"images of \(100, 224\) .* multiples of 32"):
        network(torch.zeros(1, 3, 100, 224))
    with pytest.raises(ValueError, match=r"images of \(64, 64\) make \(2, 2\); give images of 224 or 256 pixels"):
        network.with_auxiliary(torch.zeros(1, 3, 64, 64))
