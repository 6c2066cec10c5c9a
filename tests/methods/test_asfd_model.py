"""ASFD's network: budgets, shapes, who reads what, and the order in which anchors come out."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lit_methods.asfd.auto_fem import AutoFEM, repeated, resampled
from lit_methods.asfd.features import Neck, build_features
from lit_methods.asfd.genotype import KNOWN, LEVELS, Genotype, default_genotype, random_genotype
from lit_methods.asfd.model import ASFD_SIZES, ASFDHead, ASFDNet
from lit_methods.asfd.operations import MixedOp, build_op
from lit_methods.functional.complexity import count_macs

VGA = (3, 480, 640)
SPENT = {  # parameters in millions, multiply-adds in billions: the table of the specification
    "d0": (0.469, 0.775),
    "d1": (4.047, 4.385),
    "d2": (12.536, 17.026),
    "d3": (24.070, 35.559),
    "d4": (30.651, 56.771),
    "d5": (58.302, 120.466),
    "d6": (80.701, 191.712),
}
PUBLISHED = {"d0": (0.62, 0.73), "d1": (3.9, 4.27)}


@cache
def on_meta(size="d0"):
    """Shapes and numbers of parameters alone."""
    with torch.device("meta"):
        return ASFDNet(size)


def small(**options):
    torch.manual_seed(0)
    return ASFDNet("d0", **({"channels": 4} | options)).eval()


def count(part):
    return sum(parameter.numel() for parameter in part.parameters())


def pyramid(channels, sizes=((40, 56), (20, 28), (10, 14), (5, 7), (3, 4), (2, 2)), batch=2):
    return [torch.randn(batch, channels, *size) for size in sizes]


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["d0", "d1", *(pytest.param(f"d{i}", marks=pytest.mark.slow) for i in range(2, 7))])
def test_budgets_are_those_of_the_specification(size):
    net = on_meta(size)
    spent = count(net) / 1e6, count_macs(net, VGA) / 1e9
    assert tuple(round(value, 3) for value in spent) == SPENT[size]
    if size in PUBLISHED:
        params, macs = PUBLISHED[size]
        assert abs(spent[0] / params - 1) < 0.25
        assert abs(spent[1] / macs - 1) < 0.10


@pytest.mark.slow
def test_each_size_costs_more_than_the_one_before():
    nets = [on_meta(size) for size in ASFD_SIZES]
    for smaller, larger in pairwise([(count(net), count_macs(net, (3, 128, 128))) for net in nets]):
        assert smaller[0] < larger[0]
        assert smaller[1] < larger[1]


@pytest.mark.parametrize(("height", "width", "anchors"), [(640, 640, 34125), (200, 333, 5630)])
def test_every_anchor_has_a_row(height, width, anchors):
    cells = sum(-(-height // stride) * -(-width // stride) for stride in (4, 8, 16, 32, 64, 128))
    with torch.no_grad():
        cls, loc = small()(torch.zeros(1, 3, height, width))
    assert cls.shape == (1, cells, 2)
    assert loc.shape == (1, anchors, 4)


@pytest.mark.parametrize(
    "backbone", ["mobilenet_v1_x025", "resnet18", pytest.param("resnet50", marks=pytest.mark.slow)]
)
def test_backbones_give_four_maps_of_rounded_up_sizes(backbone):
    with torch.device("meta"):
        features = build_features(backbone)
    maps = features(torch.zeros(1, 3, 130, 161, device="meta"))
    assert [x.shape[2:] for x in maps] == [(33, 41), (17, 21), (9, 11), (5, 6)]
    assert tuple(x.shape[1] for x in maps) == features.out_channels
    assert not any(name.startswith("fc") for name, _ in features.named_parameters())


@pytest.mark.parametrize(
    ("size", "options"), [("d0", {}), ("d0", {"cls_mode": "cosine"}), pytest.param("d2", {}, marks=pytest.mark.slow)]
)
def test_every_parameter_learns(size, options):
    """Processes that average gradients would wait for one that never comes."""
    torch.manual_seed(0)
    net = ASFDNet(size, channels=4, **options)
    cls, loc = net(torch.randn(2, 3, 128, 128))
    loss = cls.square().sum() + loc.square().sum()
    if net.cls_weight is not None:
        loss = loss + (cls @ net.cls_weight.T).sum()
    loss.backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []


def test_memory_format_does_not_matter():
    net, image = small(), torch.randn(2, 3, 136, 200)
    for given, wanted in zip(net(image.contiguous(memory_format=torch.channels_last)), net(image), strict=True):
        assert_close(given, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "d7"}, "size='d7' is none; there are d0, d1"),
        ({"channels": 0}, "channels=0 must be at least 1; the size has 56"),
        ({"cls_mode": "arc"}, "cls_mode='arc' must be 'logit' or 'cosine'"),
        ({"prior": 1.0}, "prior=1.0 must lie between 0 and 1"),
        ({"prior": 0.1, "cls_mode": "cosine"}, "prior=0.1 .* needs cls_mode='logit'"),
        ({"genotype": default_genotype(levels=5)}, r"genotype has nodes for the levels \[2, 3, 4, 5, 6\]; a detector"),
    ],
)
def test_arguments_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ASFDNet(**options)


@pytest.mark.slow
def test_the_network_is_exported_for_images_of_any_size():
    """From 129 pixels on: a map of one position is a case of its own."""
    net = small()
    sides = {name: torch.export.Dim(name, min=129, max=4096) for name in ("height", "width")}
    shapes = {0: torch.export.Dim("batch", max=64), 2: sides["height"], 3: sides["width"]}
    graph = torch.export.export(net, (torch.randn(2, 3, 256, 320),), dynamic_shapes=(shapes,)).module()
    for size in ((1, 3, 200, 333), (3, 3, 129, 257)):
        image = torch.randn(size)
        for given, wanted in zip(graph(image), net(image), strict=True):
            assert_close(given, wanted)


# -- head -------------------------------------------------------------------------------------------------------------


def test_rows_come_out_by_level_row_and_column():
    maps = [torch.randn(2, 3, *size) for size in ((3, 4), (2, 2), (1, 1))]
    head = ASFDHead(3)
    for conv in (head.cls, head.loc):
        nn.init.zeros_(conv.weight)
        conv.weight.data[1, 2, 1, 1] = 1  # the second output is the third channel
    cls, loc = head(maps)
    wanted = [
        [float(x[b, 2, i, j]) for x in maps for i in range(x.shape[2]) for j in range(x.shape[3])] for b in (0, 1)
    ]
    for rows in (cls, loc):
        assert_close(rows[..., 1], torch.tensor(wanted))
        assert not rows[..., 0].any()


def test_branches_have_convolutions_of_their_own_that_all_levels_share():
    head = ASFDHead(4, convs=2)
    assert count(head) == 2 * 2 * (9 * 16 + 8) + 6 * (9 * 4 + 1)
    net = small(cls_mode="cosine")
    cls, loc = net(torch.randn(1, 3, 128, 128))
    assert cls.shape == (1, 1365, 4)
    assert loc.shape == (1, 1365, 4)
    assert net.cls_weight is dict(net.named_parameters())["head.cls_weight"]
    assert net.cls_weight.shape == (2, 4)
    assert small().cls_weight is None


def test_a_prior_is_what_an_untrained_head_says():
    torch.manual_seed(0)
    maps = pyramid(16)
    with torch.no_grad():
        said = {prior: ASFDHead(16, prior=prior)(maps)[0].softmax(-1)[..., 1] for prior in (0.01, 0.2)}
    for prior, probability in said.items():
        assert abs(float(probability.mean()) / prior - 1) < 0.05
    head = ASFDHead(16)
    assert not head.cls.bias.any()


def test_convolutions_begin_with_he_s_deviation():
    net = ASFDNet("d0")
    sizes = {"neck.laterals.3.0": 256, "fem.0.cpm.2.0.0.0.0": 9, "fem.0.cpm.2.0.0.1.0": 56, "head.loc": 9 * 56}
    for name, fan_in in sizes.items():
        weight = net.get_submodule(name).weight
        assert abs(float(weight.detach().std()) / (2 / fan_in) ** 0.5 - 1) < 0.12, name


# -- Auto-FEM ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fine", "coarse"), [((8, 6), (4, 3)), ((7, 5), (4, 3)), ((3, 1), (2, 1))])
def test_maps_are_resampled_as_a_loop_does_it(fine, coarse):
    high, low = torch.randn(1, 2, *fine), torch.randn(1, 2, *coarse)
    up = resampled(low, 3, 2, high)
    for i in range(fine[0]):
        for j in range(fine[1]):
            assert torch.equal(up[..., i, j], low[..., i * coarse[0] // fine[0], j * coarse[1] // fine[1]])
    down = resampled(high, 2, 3, low)
    assert down.shape == low.shape
    for i in range(coarse[0]):
        for j in range(coarse[1]):
            window = high[..., max(0, 2 * i - 1) : 2 * i + 2, max(0, 2 * j - 1) : 2 * j + 2]
            assert torch.equal(down[..., i, j], window.amax((2, 3)))
    assert resampled(high, 2, 2, high) is high


def test_the_coarser_neighbour_is_fused_and_the_finer_one_is_not():
    """Decimal places tell which laterals have come in, and how often."""
    everything = [[["identity", [s]] for s in (level - 1, level, level + 1) if 2 <= s <= 7] for level in LEVELS]
    chain = [[["identity", [0]]], [["identity", [0, 1]]]]
    fem = AutoFEM(Genotype(everything, [chain]), channels=1)
    maps = [torch.full_like(x, 10.0**place) for place, x in enumerate(pyramid(1))]
    fused = {7: 110_000}
    for level, own in ((6, 11_000), (5, 1100), (4, 110), (3, 11), (2, 1)):  # with the lateral below, where there is one
        fused[level] = own + fused[level + 1]
    for level, x in zip(LEVELS, fem(maps), strict=True):
        assert x.unique().tolist() == [4 * fused[level]], level  # x, x, and x + x, all summed


def test_a_branch_sums_before_its_operation_and_a_node_after_it():
    torch.manual_seed(0)
    both = Genotype([[["conv_1x1", [2, 3]]], [["identity", [3]]]], [[[["identity", [0]]]]])
    each = Genotype([[["conv_1x1", [2]], ["conv_3x3", [3]]], [["identity", [3]]]], [[[["identity", [0]]]]])
    maps = [torch.randn(2, 4, 6, 6), torch.randn(2, 4, 3, 3)]
    coarse = maps[1].repeat_interleave(2, 2).repeat_interleave(2, 3)
    merged, apart = (AutoFEM(genotype, 4, 2).eval() for genotype in (both, each))
    assert_close(merged(maps)[0], 2 * merged.fpn["2"][0](maps[0] + coarse))
    assert_close(apart(maps)[0], 2 * (apart.fpn["2"][0](maps[0]) + apart.fpn["2"][1](coarse)))


def test_context_adds_all_nodes_of_the_default_chain():
    torch.manual_seed(0)
    fem = AutoFEM(default_genotype("full"), 4).eval()
    captured = {}
    fem.fpn["7"][0].register_forward_hook(lambda module, inputs, output: captured.update(x=output))
    given = fem(pyramid(4))[-1]
    first, second, third = (ops[0] for ops in fem.cpm["7"])
    assert second[0].dilation == (2, 2)
    a = first(captured["x"])
    b = second(a)
    assert_close(given, captured["x"] + a + b + third(b))


def test_levels_share_the_context_architecture_but_not_its_weights():
    fem = AutoFEM(default_genotype("d0"), 4)
    weights = [fem.cpm[str(level)][0][0][0][0].weight for level in LEVELS]
    assert len({id(weight) for weight in weights}) == 6
    own = random_genotype(torch.Generator().manual_seed(2), shared_cpm=False)
    graphs = AutoFEM(own, 4).cpm
    kinds = {op: type(build_op(op, 4)) for op in KNOWN}
    for level in LEVELS:
        built = [[type(op) for op in node] for node in graphs[str(level)]]
        assert built == [[kinds[op] for op, _ in node] for node in own.context(level)]


@pytest.mark.parametrize("seed", [3, 4])
def test_random_genotypes_are_built_and_every_parameter_learns(seed):
    genotype = random_genotype(torch.Generator().manual_seed(seed), shared_cpm=seed % 2 == 0)
    fems = repeated(genotype, channels=4, repeats=2)
    neck = Neck((3, 5, 6, 7), 4, light=True, read=fems[0].inputs)
    maps = [torch.randn(2, c, *x.shape[2:]) for c, x in zip((3, 5, 6, 7), pyramid(1), strict=False)]
    outputs = fems(neck(maps))
    assert [x.shape[1] for x in outputs] == [4] * 6
    sum(x.sum() for x in outputs).backward()
    parts = nn.ModuleList([neck, fems])
    assert [name for name, parameter in parts.named_parameters() if parameter.grad is None] == []


def test_what_is_not_read_is_not_built_and_changes_nothing():
    """These genotypes leave laterals out, as three in ten do."""
    for seed in (7, 20):
        genotype = random_genotype(torch.Generator().manual_seed(seed), cpm_ops=["conv_1x1"], fpn_ops=["conv_1x1"])
        lean = repeated(genotype, 2, 2).eval()
        whole = nn.Sequential(*(AutoFEM(genotype, 2) for _ in range(2))).eval()
        assert not whole.load_state_dict(lean.state_dict(), strict=False).unexpected_keys
        maps = pyramid(2, batch=1)
        wanted = whole(maps)
        unread = {*LEVELS} - {*lean[0].inputs}
        assert unread
        for level in unread:
            maps[level - 2] = torch.full_like(maps[level - 2], torch.nan)
        for given, x in zip(lean(maps), wanted, strict=True):
            assert_close(given, x)
    with torch.device("meta"):
        neck = Neck((8, 8, 8, 8), 4, read=(2, 4, 5, 6))
    assert isinstance(neck.laterals[1], nn.Identity)
    assert count(neck.extras[1]) == 0
    assert count(Neck((3, 3, 3, 3), 4, read=(2, 3, 4, 5)).extras) == 0


def test_a_genotype_of_other_levels_is_refused():
    for levels in (5, [3, 4, 5, 6, 7, 8]):
        with pytest.raises(
            ValueError, match="but genotype has nodes for 2, 3, 4, 5, 6, 7; give a genotype of the same"
        ):
            AutoFEM(default_genotype(), 4, levels)
    assert AutoFEM(default_genotype().to_dict(), 4, range(2, 8)).levels == LEVELS
    with pytest.raises(ValueError, match="genotype is None; give one"):
        AutoFEM(None, 4)


# -- operations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN)
def test_operations_keep_shape_and_cost_what_their_name_says(name):
    w = 8
    weights = {
        "identity": 0,
        "conv_1x1": w * w,
        "conv_1x3_3x1": 6 * w * w,
        "sep_conv_5x5": 25 * w + w * w,
    }
    wanted = weights.get(name, 9 * w + w * w if name.startswith("sep") else 9 * w * w)
    op = build_op(name, w)
    assert sum(part.weight.numel() for part in op.modules() if isinstance(part, nn.Conv2d)) == wanted
    assert op(torch.randn(2, w, 7, 5)).shape == (2, w, 7, 5)
    spread = {"conv_3x3_d2": 2, "conv_3x3_d3": 3, "sep_conv_3x3_d2": 2, "sep_conv_5x5": 2, "identity": 0, "conv_1x1": 0}
    point = torch.zeros(1, w, 15, 15)
    point[..., 7, 7] = 1
    op = op.eval().double()
    seen = (op(point.double()) - op(torch.zeros_like(point).double())).abs().sum((0, 1))
    reach = spread.get(name, 1)
    assert not seen[:, : 7 - reach].any()
    assert seen.any()
    with pytest.raises(ValueError, match="name='conv_2x2' is no operation; did you mean"):
        build_op("conv_2x2", 4)


class Constant(nn.Module):
    """Gives the same, whatever comes in."""

    def __init__(self, x):
        super().__init__()
        self.x = x

    def forward(self, x):
        return self.x


def test_mixed_operations_match_the_reference(vectors):
    with np.load(vectors / "asfd" / "search.npz") as reference:
        alpha, outputs, wanted = (torch.from_numpy(reference[key]) for key in ("alpha", "op_outputs", "mixed"))
    mixed = MixedOp(3)
    for edge in range(len(alpha)):
        mixed.ops = nn.ModuleList(Constant(x[None]) for x in outputs[edge])
        given = mixed(torch.zeros(1, 3, 4, 4, dtype=torch.float64), alpha[edge].softmax(0))
        assert_close(given[0], wanted[edge], rtol=0, atol=1e-9)
    mixed.ops = mixed.ops[:3]
    assert_close(mixed(torch.zeros(1), torch.ones(3)), outputs[-1, :3].sum(0)[None])


def test_a_partial_operation_mixes_a_quarter_and_shuffles():
    mixed = MixedOp(8, partial=True)
    assert mixed.ops[1][0].in_channels == 2
    mixed.ops = nn.ModuleList([nn.Identity()])
    x = torch.arange(8.0).view(1, 8, 1, 1)
    given = mixed(x, torch.tensor([-1.0])).flatten().tolist()
    assert given == [0, 2, 4, 6, -1, 3, 5, 7]  # one channel of each quarter in turn
    with pytest.raises(ValueError, match="channels=6 must be a multiple of 4"):
        MixedOp(6, partial=True)


def test_candidates_have_batch_norms_without_parameters():
    norms = [part for part in MixedOp(4).modules() if isinstance(part, nn.BatchNorm2d)]
    assert norms
    assert all(norm.weight is None for norm in norms)
