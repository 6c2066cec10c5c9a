"""SiamBAN's network: the official outputs, the sizes of the specification, templates that are computed once."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lit_methods.functional.complexity import count_macs
from lit_methods.siamban.functional import point_grid, xcorr_depthwise
from lit_methods.siamban.head import unfolded_correlation
from lit_methods.siamban.model import BANHead, BANNeck, SearchGraph, SiamBANNet, TemplateGraph

SMALL = {"depth": 18, "width": 4, "channels": 8, "levels": [2, 3], "search_size": 191}


def small(**arguments):
    torch.manual_seed(0)
    return SiamBANNet(**(SMALL | arguments)).eval()


def crops(batch=2, size=191):
    """Of numbers that untrained batch norms let through; exp() overflows on what they make of 0 to 255."""
    return torch.randn(batch, 3, 127, 127), torch.randn(batch, 3, size, size)


def count(part):
    return sum(parameter.numel() for parameter in part.parameters())


class Part(nn.Module):
    """A function of one image that runs through a network."""

    def __init__(self, net, function):
        super().__init__()
        self.net, self.function = net, function

    def forward(self, x):
        return self.function(x)


@pytest.fixture(scope="module")
def paper_net():
    """Of paper size, without numbers in it."""
    with torch.device("meta"):
        return SiamBANNet()


@pytest.fixture
def known(vectors):
    return {name: torch.from_numpy(value) for name, value in np.load(vectors / "siamban" / "head.npz").items()}


def official_head(known, weighted=True):
    head = BANHead([5, 5, 5], weighted=weighted)
    tensors = {name.removeprefix("w/"): value for name, value in known.items() if name.startswith("w/")}
    if not weighted:
        del tensors["cls_weight"], tensors["loc_weight"]
    missing, unexpected = head.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    inputs = [[known[f"{kind}{level}"] for level in range(3)] for kind in ("zf", "xf")]
    return head, inputs


NEAR = {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize(("weighted", "suffix"), [(True, "eval"), (False, "eval_unweighted")])
def test_scores_and_distances_are_the_official_ones(known, weighted, suffix):
    head, inputs = official_head(known, weighted)
    cls, loc = head.eval()(*inputs)
    assert_close(cls, known[f"cls_{suffix}"], **NEAR)
    assert_close(loc, known[f"loc_{suffix}"], **NEAR)


def test_training_has_the_official_outputs_and_gradients(known):
    head, inputs = official_head(known)
    cls, loc = head.train()(*inputs)
    assert_close(cls, known["cls_train"], **NEAR)
    assert_close(loc, known["loc_train"], **NEAR)
    (cls.square().mean() + loc.square().mean()).backward()
    for name in ("cls_weight", "loc_weight", "loc_scale"):
        assert_close(head.get_parameter(name).grad, known[f"grad_{name}"], **NEAR)
    assert_close(head.get_parameter("box2.cls.head.3.weight").grad, known["grad_box2_cls_head3_weight"], **NEAR)


def test_one_level_alone_says_what_the_official_box_says(known):
    head, (zs, xs) = official_head(known)
    alone = BANHead([5])
    alone.box2 = head.box2
    cls, loc = alone.eval()(zs[:1], xs[:1])
    assert_close(cls, known["box2_cls_out"], **NEAR)
    assert_close(loc.log(), known["box2_loc_raw"], **NEAR)


def test_the_neck_is_the_official_one(vectors):
    known = {name: torch.from_numpy(value) for name, value in np.load(vectors / "siamban" / "xcorr_neck.npz").items()}
    neck = BANNeck([8], 4).eval()
    prefix = "neck_downsample."
    tensors = {name.removeprefix(prefix): value for name, value in known.items() if name.startswith(prefix)}
    neck.downsample2.downsample.load_state_dict(tensors, strict=False)
    for size in (15, 31):
        (out,) = neck([known[f"neck_in{size}"]])
        assert_close(out, known[f"neck_out{size}"], **NEAR)
    assert_close(unfolded_correlation(known["x"], known["kernel"]), known["out"], **NEAR)


def test_the_network_of_paper_size_has_the_official_parameters(paper_net):
    assert count(paper_net) == 53_932_123
    assert [count(part) for part in (paper_net.backbone, paper_net.neck, paper_net.head)] == [
        45_528_128,
        919_040,
        7_484_955,
    ]
    assert len(paper_net.state_dict()) == 459


@pytest.mark.parametrize(
    ("names", "number"), [((), 8_403_995), (("layer2", "layer3", "layer4"), 53_706_779), (None, 53_932_123)]
)
def test_as_many_parameters_train_as_officially(paper_net, names, number):
    paper_net.backbone.set_trainable(names)
    assert sum(p.numel() for p in paper_net.parameters() if p.requires_grad) == number


def test_the_network_of_paper_size_has_the_official_cost(paper_net):
    template = count_macs(Part(paper_net, lambda z: paper_net.features(z, "template")), (3, 127, 127))
    search = count_macs(Part(paper_net, lambda x: paper_net.features(x, "search")), (3, 255, 255))
    whole = count_macs(Part(paper_net, lambda x: paper_net(x[:, :, :127, :127], x)), (3, 255, 255))
    assert template == 10_445_646_528 + 206_438_400
    assert search == 44_578_687_680 + 881_721_344
    assert whole - template - search == 3_313_365_504


def test_the_network_of_paper_size_has_the_official_shapes(paper_net):
    z, x = (torch.zeros(2, 3, size, size, device="meta") for size in (127, 255))
    kernels = paper_net.template(z)
    assert [tuple(kernel.shape) for kernel in kernels] == [(2, 256, 5, 5)] * 6
    assert [tuple(maps.shape) for maps in paper_net.features(x, "search")] == [(2, 256, 31, 31)] * 3
    cls, loc = paper_net.track(kernels, x)
    assert (cls.shape, loc.shape) == ((2, 2, 25, 25), (2, 4, 25, 25))
    assert (paper_net.size, paper_net.stride) == (25, 8)
    assert (paper_net.template_size, paper_net.search_size, paper_net.levels) == (127, 255, (2, 3, 4))


@pytest.mark.parametrize("training", [False, True])
def test_the_template_is_computed_once_for_all_frames(training):
    net = small().train(training)
    z, x = crops()
    kernels = net.template(z)
    assert len(kernels) == len(net.kernel_names) == 4
    for search in (x, x.flip(3)):
        for given, wanted in zip(net.track(kernels, search), net(z, search), strict=True):
            assert torch.equal(given, wanted)


def test_rows_of_templates_may_be_joined_and_selected():
    net = small()
    z, x = crops(3)
    kernels = [torch.cat(rows) for rows in zip(net.template(z[:1]), net.template(z[1:]), strict=True)]
    swapped = [kernel[[2, 0]] for kernel in kernels]
    assert_close(net.track(swapped, x[:2]), net(z[[2, 0]], x[:2]), **NEAR)


def test_no_sequence_at_all_gives_empty_maps():
    cls, loc = small()(*crops(0))
    assert (cls.shape, loc.shape) == ((0, 2, 17, 17), (0, 4, 17, 17))


@pytest.mark.parametrize("size", [167, 199, 263])
def test_the_map_has_the_points_of_the_grid(size):
    net = small(search_size=size)
    cls, _ = net(*crops(1, size))
    assert cls.shape[2:] == point_grid(net.stride, net.size, size // 2).shape[1:]


def test_levels_keep_their_numbers():
    net = small(levels=[3, 4])
    assert net.kernel_names == ["cls_kernel_3", "loc_kernel_3", "cls_kernel_4", "loc_kernel_4"]
    assert [name for name, _ in net.neck.named_children()] == ["downsample3", "downsample4"]
    with torch.no_grad():
        net.head.cls_weight[1] += 3
        net.head.loc_scale[0] = 2
    fusion = {name: round(value.item(), 3) for name, value in net.head.fusion().items()}
    assert fusion == {"cls_3": 0.047, "cls_4": 0.953, "loc_3": 0.5, "loc_4": 0.5, "scale_3": 2.0, "scale_4": 1.0}


def test_without_weights_the_levels_are_a_mean_whose_scale_still_learns():
    net = small(weighted=False).train()
    assert not {"head.cls_weight", "head.loc_weight"} & net.state_dict().keys()
    net(*crops())[1].log().mean().backward()
    assert net.head.loc_scale.grad.abs().min() > 0
    assert {name: round(value.item(), 3) for name, value in net.head.fusion().items()}["cls_3"] == 0.5


def test_normalised_crops_are_rgb_of_imagenet():
    plain, normalising = small(), small(normalize=True)
    assert normalising.state_dict().keys() == plain.state_dict().keys()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def by_hand(images):
        return ((images[:, [2, 1, 0]].permute(0, 2, 3, 1) / 255 - mean) / std).permute(0, 3, 1, 2)

    z, x = (255 * crop.abs() for crop in crops())
    for given, wanted in zip(normalising(z, x), plain(by_hand(z), by_hand(x)), strict=True):
        assert_close(given, wanted, rtol=1e-4, atol=1e-4)


def test_half_precision_ends_in_float32():
    net = small()
    z, x = crops()
    with torch.autocast("cpu", torch.bfloat16):
        cls, loc = net(z, x)
    exact_cls, exact_loc = net(z, x)
    assert cls.dtype == loc.dtype == torch.float32
    assert_close(cls, exact_cls, rtol=0.1, atol=0.1)
    assert_close(loc, exact_loc, rtol=0.1, atol=0.1)


def test_graphs_compute_what_the_network_does():
    net = small()
    z, x = crops()
    kernels = TemplateGraph(net)(z)
    assert_close(list(kernels.unbind(1)), net.template(z), rtol=0, atol=0)
    assert_close(SearchGraph(net)(x, kernels), net(z, x), **NEAR)


@pytest.mark.slow
def test_graphs_take_batches_of_any_size_and_compute_the_same():
    net = small().requires_grad_(False)
    z, x = crops(2)
    axes = {0: torch.export.Dim("batch")}
    template = torch.export.export(TemplateGraph(net), (z,), dynamic_shapes={"template": axes}).module()
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):  # as ``lit_methods.exporting`` does
        shapes = {"search": axes, "kernels": axes}
        graph = torch.export.export(
            SearchGraph(net),
            (x, template(z)),
            dynamic_shapes=shapes,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    for batch in (1, 5):
        z, x = crops(batch)
        assert_close(graph.module()(x, TemplateGraph(net)(z)), net(z, x), **NEAR)
    assert_close(template(z), TemplateGraph(net)(z), **NEAR)


@pytest.mark.slow
def test_the_whole_network_can_be_exported_with_a_frozen_backbone():
    net = small()
    net.backbone.set_trainable(("layer3",))
    z, x = crops()
    assert_close(torch.export.export(net, (z, x)).module()(z, x), net(z, x), **NEAR)


def test_both_forms_of_the_correlation_agree():
    x, kernel = torch.randn(3, 4, 9, 8, dtype=torch.float64), torch.randn(3, 4, 5, 2, dtype=torch.float64)
    assert_close(unfolded_correlation(x, kernel), xcorr_depthwise(x, kernel))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"template_size": 135}, r"template_size=135 must be 127: "),
        ({"search_size": 256}, r"search_size=256 must be 8 k \+ 7 and at least 167; the nearest are 255 and 263"),
        ({"search_size": 127}, r"search_size=127 must .* 167 and 175"),
        ({"channels": 0}, r"channels=0 must be at least 1"),
        ({"levels": [2, 5]}, r"levels=\[2, 5\] must be"),
        ({"depth": 101}, r"depth=101 must be one of"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_crops_of_another_size_are_refused():
    net = small()
    z, x = crops()
    with pytest.raises(ValueError, match=r"template crops must be \(B, 3, 127, 127\), got \(2, 3, 191, 191\)"):
        net.template(x)
    with pytest.raises(ValueError, match=r"search crops must be \(B, 3, 191, 191\), got \(2, 3, 127, 127\)"):
        net(z, z)


@pytest.mark.parametrize("part", [BANNeck, BANHead])
def test_neck_and_head_name_what_is_wrong(part):
    with pytest.raises(ValueError, match=r"in_channels=\[\] must be positive"):
        part([])
    with pytest.raises(ValueError, match=r"levels=\[2\] must be as many as in_channels=\[8, 8\]"):
        part([8, 8], levels=[2])
