"""The search network: every edge learns, and what it favours becomes a detector."""

import math

import pytest
import torch
from torch.testing import assert_close

from lit_methods.asfd.auto_fem import AutoFEM
from lit_methods.asfd.genotype import CPM_EDGES, LEVELS, OPERATIONS, fpn_edges
from lit_methods.asfd.model import ASFDNet
from lit_methods.asfd.search import SearchFEM, SearchNet

FEW = {"fpn_ops": ["identity"], "cpm_ops": ["identity"]}


def small(**options):
    torch.manual_seed(0)
    return SearchNet(**({"size": "d0", "channels": 4, "partial": False} | options))


def prefer(net, choices):
    """Set weights that leave no doubt: (name, edge) -> operation."""
    with torch.no_grad():
        for parameter in net.edge_parameters.values():
            parameter.zero_()
        for (name, *edge), op in choices.items():
            net.edge_parameters[name][(*edge, op)] = 30.0


def pyramid(channels):
    return [torch.randn(2, channels, side, side) for side in (32, 16, 8, 4, 2, 1)]


def test_every_edge_and_every_weight_gets_a_gradient():
    net = small(partial=True, shared_cpm=False)
    shapes = {name: tuple(x.shape) for name, x in net.edge_parameters.items()}
    assert shapes == {"fpn": (16, 8), "cpm": (6, 6, 8), "fpn_shares": (16,), "cpm_shares": (6, 6)}
    cls, loc = net(torch.randn(2, 3, 128, 128))
    (cls.square().mean() + loc.square().mean()).backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []
    for name, alphas in net.edge_parameters.items():
        grad = alphas.grad
        if name == "cpm_shares":
            grad = grad[..., 1:]  # the only edge into the first node has all of it
        assert bool(grad.any(-1).all() if name in ("fpn", "cpm") else grad.all()), name
        if name in ("fpn", "cpm"):  # a softmax: what one gains the others lose
            assert_close(grad.sum(-1), torch.zeros_like(grad.sum(-1)), rtol=0, atol=1e-6)


def test_architecture_and_weights_are_all_parameters_and_disjoint():
    net = small(shared_cpm=False, **FEW)
    arch, weights = ({id(p) for p in group} for group in (net.arch_parameters(), net.weight_parameters()))
    assert not arch & weights
    assert arch | weights == {id(p) for p in net.parameters()}
    assert arch == {id(p) for p in net.edge_parameters.values()}


def test_a_search_begins_undecided():
    net = small()
    start = torch.cat([x.detach().flatten() for x in net.edge_parameters.values()])
    assert 5e-4 < float(start.std()) < 2e-3
    assert abs(float(net.entropy()) - math.log(8)) < 1e-4
    alphas = net.alphas()
    assert {name: tuple(x.shape) for name, x in alphas.items()} == {"fpn": (16, 8), "cpm": (6, 8)}
    assert_close(alphas["fpn"].sum(-1), torch.ones(16))
    prefer(net, {(name, edge): 3 for name, count in (("fpn", 16), ("cpm", 6)) for edge in range(count)})
    assert 0 <= float(net.entropy()) < 1e-8


def test_entropy_is_the_mean_over_edges():
    net = small(fpn_ops=["identity", "conv_1x1"], cpm_ops=["identity"])
    with torch.no_grad():
        net.edge_parameters["fpn"].copy_(torch.tensor([0.0, math.log(3)]).expand(16, 2))
    each = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert_close(net.entropy(), torch.tensor(16 * each / 22))


def test_the_genotype_is_what_the_weights_favour():
    net = small()
    edges = {edge: place for place, edge in enumerate(fpn_edges())}
    choices = {("fpn", edges[edge]): op for edge, op in {(4, 3): 6, (3, 3): 1, (3, 4): 0, (5, 4): 7}.items()}
    choices |= {("cpm", CPM_EDGES.index(edge)): op for edge, op in {(1, 3): 3, (2, 3): 5}.items()}
    prefer(net, choices)
    genotype = net.genotype()
    assert genotype.fpn[1] == ((OPERATIONS[1], (3,)), (OPERATIONS[6], (4,)))
    assert genotype.fpn[2] == ((OPERATIONS[0], (3,)), (OPERATIONS[7], (5,)))
    assert genotype.cpm[0][2] == ((OPERATIONS[3], (1,)), (OPERATIONS[5], (2,)))
    assert [len(node) for node in genotype.fpn] == [2] * 6
    assert genotype.shared_cpm


def test_shares_count_in_the_choice_of_edges():
    net = small(partial=True, **FEW)
    prefer(net, {})
    (place,) = (place for place, edge in enumerate(fpn_edges()) if edge == (5, 4))
    assert net.genotype().fpn[2][1][1] == (4,)  # all equal: the first two of the three edges
    with torch.no_grad():
        net.edge_parameters["fpn_shares"][place] = 1.0
    assert {sources for _, sources in net.genotype().fpn[2]} == {(3,), (5,)}
    shares = net.alphas()["fpn_shares"]
    assert_close(shares[:2].sum(), torch.tensor(1.0))  # the two edges into level 2
    assert_close(shares[2:5].sum(), torch.tensor(1.0))


def test_partial_is_the_default_from_64_channels_on():
    assert SearchNet("d0", channels=64, **FEW).partial
    assert not SearchNet("d0", channels=60, **FEW).partial
    assert SearchNet("d0", channels=32, partial=True, **FEW).partial
    assert SearchNet("d0", channels=None, **FEW).channels == 56


@pytest.mark.parametrize("shared", [True, False])
def test_a_found_genotype_becomes_a_detector(shared):
    genotype = small(shared_cpm=shared, cpm_ops=OPERATIONS[::3]).genotype()
    assert genotype.shared_cpm == shared
    cls, loc = ASFDNet("d0", genotype, channels=4)(torch.randn(2, 3, 128, 128))
    assert cls.shape == (2, 1365, 2)
    assert loc.isfinite().all()


def test_a_decided_search_computes_what_its_genotype_does():
    """All edges but the kept ones are silenced by the shares, all operations but one by their weights."""
    torch.manual_seed(0)
    ops = ["identity", "conv_1x1", "sep_conv_3x3"]
    fem = SearchFEM(4, fpn_ops=ops, cpm_ops=ops).eval()
    net = small(fpn_ops=ops, cpm_ops=ops, shared_cpm=False)
    with torch.no_grad():
        for parameter in net.edge_parameters.values():
            parameter.copy_(30 * torch.rand_like(parameter))
    genotype = net.genotype()
    weights = {name: torch.nn.functional.one_hot(x.argmax(-1), len(ops)).float() for name, x in net.alphas().items()}
    kept = {(level, s) for level, node in zip(LEVELS, genotype.fpn, strict=True) for _, (s,) in node}
    fpn_shares = torch.tensor([float((node, source) in kept) for source, node in fpn_edges()])
    cpm_shares = [
        torch.tensor([float((source,) in [read for _, read in graph[node - 1]]) for source, node in CPM_EDGES])
        for graph in genotype.cpm
    ]
    found = AutoFEM(genotype, 4).eval()
    with torch.no_grad():  # the found operations take the weights of their candidates
        for level, node in zip(LEVELS, genotype.fpn, strict=True):
            for op, (name, (source,)) in zip(found.fpn[str(level)], node, strict=True):
                mixed = fem.fpn.mixed[fpn_edges().index((source, level))]
                op.load_state_dict(mixed.ops[ops.index(name)].state_dict(), strict=False)
        for level, graph, mixed in zip(LEVELS, genotype.cpm, fem.cpm, strict=True):
            for number, node in enumerate(graph, start=1):
                for op, (name, (source,)) in zip(found.cpm[str(level)][number - 1], node, strict=True):
                    candidate = mixed.mixed[CPM_EDGES.index((source, number))].ops[ops.index(name)]
                    op.load_state_dict(candidate.state_dict(), strict=False)
        maps = pyramid(4)
        pairs = zip(fem(maps, weights["fpn"], weights["cpm"], fpn_shares, cpm_shares), found(maps), strict=True)
        for given, wanted in pairs:
            assert_close(given, wanted)


def test_a_search_with_the_heads_of_cosines_gives_features():
    net = small(cls_mode="cosine", **FEW)
    cls, _ = net(torch.randn(2, 3, 128, 128))
    assert cls.shape == (2, 1365, 4)
    assert net.cls_weight.shape == (2, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fpn_ops": ["conv_7x7"]}, "fpn_ops has an operation 'conv_7x7'; did you mean"),
        ({"cpm_ops": []}, r"cpm_ops=\[\] must name at least one operation, each once"),
        ({"cpm_ops": ["identity", "identity"]}, "cpm_ops=.* each once"),
        ({"channels": 6, "partial": True}, "channels=6 must be a multiple of 4"),
        ({"channels": -4}, "channels=-4 must be at least 1"),
        ({"size": "d9"}, "size='d9' is none"),
    ],
)
def test_arguments_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)
