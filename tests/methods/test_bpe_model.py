"""BPE's networks: outputs and sizes of the official ones, drop path, empty nodes, errors, and that they learn."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from lit_methods.bpe_mip.cell_network import AuxiliaryHead, GenotypeCell
from lit_methods.bpe_mip.cells import CellSite, cell_sites
from lit_methods.bpe_mip.model import DartsCellNetwork, DartsSupernet, build_op
from lit_methods.bpe_mip.search_space import PRIMITIVES, Genotype
from lit_methods.functional import count_macs

SETTINGS = {"bpe1": (16, 8, 6), "bpe2": (16, 16, 16), "full": (32, 36, 20)}  # image size, channels, layers
FINAL = {
    "EA_BPE1": 3_354_526,
    "EA_BPE2": 2_605_870,
    "RL_BPE1": 2_991_646,
    "RL_BPE2": 2_743_246,
    "DARTS_BPE1": 4_623_526,
    "DARTS_BPE2": 4_664_998,
    "RS_BPE1": 3_292_102,
    "RS_BPE2": 2_422_702,
}
NODE = (("sep_conv_3x3", 0), ("skip_connect", 1))
PLAIN = Genotype([NODE] * 4, [NODE] * 4)


def decode(array):
    """A genotype of the vectors."""
    return Genotype(*([[(PRIMITIVES[op], int(s)) for op, s in node if op >= 0] for node in cell] for cell in array))


@torch.no_grad()
def by_rule(network):
    """The vectors' initialisation, in float64."""
    network.double()
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            k = torch.arange(part.weight.numel(), dtype=torch.float64)
            wave = (0.21 * k).cos() if isinstance(part, nn.Linear) else (0.37 * k + 0.5).sin()
            part.weight.copy_((wave / part.weight[0].numel() ** 0.5).view_as(part.weight))
        if isinstance(part, nn.Linear):
            part.bias.copy_(0.01 * torch.arange(len(part.bias)))
    return network


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


def on_meta(kind, *args, **kwargs):
    with torch.device("meta"):
        return kind(*args, **kwargs)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", PRIMITIVES)
def test_operations_are_the_official_ones(vectors, name, stride):
    z = np.load(vectors / "bpe_mip" / "ops.npz")
    x = torch.from_numpy(z["x"])
    before = x.clone()
    assert_close(by_rule(build_op(name, 4, stride))(x), torch.from_numpy(z[f"{name}_s{stride}"]), rtol=0, atol=1e-8)
    assert torch.equal(x, before)


def test_operations_have_the_published_numbers_of_parameters():
    def sizes(channels, stride):
        return [count(build_op(name, channels, stride).parameters()) for name in PRIMITIVES]

    assert sizes(8, 2) == [16, 16, 80, 304, 560, 152, 280, 0]
    assert sizes(36, 2) == [72, 72, 1368, 3384, 4536, 1692, 2268, 0]
    assert sizes(8, 1) == [16, 16, 0, 304, 560, 152, 280, 0]


@pytest.mark.parametrize("name", PRIMITIVES)
def test_operations_of_the_supernet_have_no_batch_norm_parameters(name):
    norms = [part for part in build_op(name, 4, 2, affine=False).modules() if isinstance(part, nn.BatchNorm2d)]
    assert [part.affine for part in norms] == [False] * len(norms)
    assert len(norms) == {"sep_conv_3x3": 2, "sep_conv_5x5": 2, "none": 0}.get(name, 1)


def check_counts(vectors, setting, ids, macs=()):
    z = np.load(vectors / "bpe_mip" / "network_counts.npz")
    size, channels, layers = SETTINGS[setting]
    for i in ids:
        network = DartsCellNetwork(decode(z["genotypes"][i]), channels, layers, image_size=size, auxiliary=True)
        assert count(network.parameters()) == z[f"{setting}_params_with_aux"][i], i
        head, network.auxiliary_head = network.auxiliary_head, None
        assert count(network.parameters()) == z[f"{setting}_params"][i], i
        if setting == "full":
            assert count(head.parameters()) == 476_426
        if i in macs:
            assert count_macs(network, (3, size, size)) == z[f"{setting}_macs"][i], i


@pytest.mark.parametrize(("setting", "ids"), [("bpe1", (7, 23, 40)), ("bpe2", (7,)), ("full", (23,))])
def test_networks_are_as_large_as_the_official_ones(vectors, setting, ids):
    check_counts(vectors, setting, ids, macs=ids if setting == "bpe1" else ())


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_all_networks_are_as_large_as_the_official_ones(vectors, setting):
    check_counts(vectors, setting, range(48), macs=range(48))


@pytest.mark.parametrize("name", [n if n[:2] == "RS" else pytest.param(n, marks=pytest.mark.slow) for n in FINAL])
def test_final_cells_have_the_published_numbers_of_parameters(shared, name):
    entries = json.loads((shared / "data" / "bpe_mip" / "final_models.json").read_text())
    genotype = Genotype.from_dict(next(entry for entry in entries if entry["name"] == name))
    assert count(on_meta(DartsCellNetwork, genotype, 36, 20).parameters()) == FINAL[name]


def test_a_network_without_a_head_has_no_parameters_for_it():
    assert DartsCellNetwork(PLAIN, 2, 3).auxiliary_head is None
    assert not [name for name, _ in DartsCellNetwork(PLAIN, 2, 3).named_parameters() if "auxiliary" in name]


def test_networks_compute_what_the_official_ones_do(vectors):
    z = np.load(vectors / "bpe_mip" / "network_forward.npz")
    x = torch.from_numpy(z["x"])
    for i, genotype in enumerate(z["genotypes"]):
        network = by_rule(
            DartsCellNetwork(decode(genotype), int(z["channels"]), int(z["layers"]), image_size=16, auxiliary=True)
        )
        outputs = [*network(x), network.eval()(x)[0]]
        for key, output in zip(
            ("train_logits", "train_aux_logits", "eval_logits_after_one_train_pass"), outputs, strict=True
        ):
            assert_close(output.detach(), torch.from_numpy(z[key][i]), rtol=0, atol=1e-6, msg=f"{key} of {i}")
        assert network(x)[1] is None


@pytest.mark.parametrize("layers", [3, 6, 8, 16, 20])
def test_cells_double_their_width_where_they_reduce(layers):
    sites = cell_sites(5, layers)
    assert [i for i, site in enumerate(sites) if site.reduction] == [layers // 3, 2 * layers // 3]
    assert [b.width // a.width for a, b in pairwise(sites)] == [1 + site.reduction for site in sites[1:]]
    assert (sites[0].width, sites[-1].width) == (5, 20)


def test_an_odd_width_will_do_as_reductions_double_it():
    assert DartsCellNetwork(PLAIN, 3, 4)(torch.randn(2, 3, 8, 12))[0].shape == (2, 10)


def test_nodes_take_any_number_of_edges_and_an_empty_one_is_zero():
    names = ("max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_5x5", "avg_pool_3x3")
    nodes = ((), (("skip_connect", 2), ("skip_connect", 0)), (), tuple(zip(names, range(5), strict=True)))
    for reduction in (False, True):
        cell = GenotypeCell(nodes, CellSite((4, 4), 4, reduction, reduction_prev=False))
        s0, s1 = torch.randn(2, 4, 8, 12), torch.randn(2, 4, 8, 12)
        output = cell(s0, s1)
        side = (4, 6) if reduction else (8, 12)
        assert output.shape == (2, 16, *side)
        assert output[:, [0, 1, 2, 3, 8, 9, 10, 11]].eq(0).all()
        second = cell.ops[1](cell.preprocess0(s0))
        assert_close(output[:, 4:8], second)
        states = [
            cell.preprocess0(s0),
            cell.preprocess1(s1),
            torch.zeros_like(second),
            second,
            torch.zeros_like(second),
        ]
        expected = sum(op(state) for op, state in zip(cell.ops[2:], states, strict=True))
        assert_close(output[:, 12:], expected)


def test_an_empty_cell_is_zero_and_the_network_still_answers():
    logits, _ = DartsCellNetwork(Genotype([[]] * 4, [[]] * 4), 2, 3)(torch.randn(2, 3, 8, 8))
    assert_close(logits[0], logits[1])


@pytest.mark.parametrize(("size", "kernel", "stride"), [(7, 5, 2), (8, 5, 3), (4, 2, 2), (6, 3, 3), (2, 1, 1)])
def test_the_auxiliary_head_pools_to_two_by_two(size, kernel, stride):
    head, x = AuxiliaryHead(4, 10).eval(), torch.randn(2, 4, size, size)
    seen = []
    head.features.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    before = x.clone()
    assert head(x).shape == (2, 10)
    assert torch.equal(x, before)
    assert_close(seen[0], F.avg_pool2d(x.relu(), kernel, stride))


def test_the_auxiliary_head_reads_the_second_reduction_in_training_alone():
    network = DartsCellNetwork(PLAIN, 2, 6, image_size=16, auxiliary=True)
    seen = []
    network.cells[4].register_forward_hook(lambda module, args, output: seen.append(output))
    network.auxiliary_head.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    network(torch.randn(2, 3, 16, 16))
    assert seen[0] is seen[1]
    assert network.eval()(torch.randn(2, 3, 16, 16))[1] is None
    assert len(seen) == 3


EVERY = tuple((name, i % 2) for i, name in enumerate(PRIMITIVES[:-1]))


def test_drop_path_leaves_out_samples_of_all_edges_but_identities():
    for reduction in (False, True):
        nodes = tuple((edge,) for edge in EVERY)
        cell = GenotypeCell(nodes, CellSite((4, 4), 4, reduction, reduction_prev=False))
        assert cell.dropped == len(EVERY) - (not reduction)
        s = torch.randn(3, 4, 8, 8)
        plain = cell(s, s).unflatten(1, (-1, 4))
        masks = [torch.tensor([0.0, 1.0, i]).view(3, 1, 1, 1) for i in range(cell.dropped)]
        dropped = cell(s, s, iter(masks)).unflatten(1, (-1, 4))
        identity = PRIMITIVES.index("skip_connect")
        i = 0
        for k in range(len(EVERY)):
            if k == identity and not reduction:
                assert_close(dropped[:, k], plain[:, k])
                continue
            assert_close(dropped[:, k], plain[:, k] * masks[i])
            assert plain[0, k].abs().sum() > 0
            i += 1


def test_drop_path_keeps_the_expectation():
    network = DartsCellNetwork(PLAIN, 2, 3, drop_path_prob=0.3)
    assert network.dropped == 4 + 2 * 8
    masks = torch.stack(list(network._masks(torch.zeros(2000, 6, 1, 1))))
    assert masks.shape == (20, 2000, 1, 1, 1)
    assert_close(masks.unique(), torch.tensor([0, 1 / 0.7]))
    assert masks.mean().item() == pytest.approx(1, abs=0.02)  # deviation 0.0033
    assert masks.flatten(1).corrcoef().fill_diagonal_(0).abs().max() < 0.15  # every edge has its own draws
    assert masks.flatten(1).T[:20].unique(dim=0).shape[0] > 10  # and every sample


def test_drop_path_can_be_set_between_epochs_and_is_off_in_eval_mode():
    network, x = DartsCellNetwork(PLAIN, 2, 3), torch.randn(4, 3, 8, 8)
    assert torch.equal(network(x)[0], network(x)[0])
    for probability in (0.5, torch.tensor(0.5)):
        network.drop_path_prob = probability
        assert not torch.equal(network(x)[0], network(x)[0])
    network.eval()
    assert torch.equal(network(x)[0], network(x)[0])
    network.train().drop_path_prob = torch.tensor(0.0)
    assert torch.equal(network(x)[0], network(x)[0])


def test_half_precision_stays_half():
    network = DartsCellNetwork(PLAIN, 2, 3, auxiliary=True, drop_path_prob=0.2).to(torch.bfloat16)
    logits, auxiliary = network(torch.randn(4, 3, 8, 8, dtype=torch.bfloat16))
    assert logits.dtype == auxiliary.dtype == torch.bfloat16
    assert DartsSupernet(2, 3).to(torch.bfloat16)(torch.randn(2, 3, 8, 8).bfloat16()).dtype == torch.bfloat16


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"'sep_conv_33'.*did you mean.*'sep_conv_3x3'"):
        build_op("sep_conv_33", 4, 1)
    with pytest.raises(ValueError, match="stride=3 must be 1, or 2"):
        build_op("none", 4, 3)
    with pytest.raises(ValueError, match=r"channels=5 must be .* even for skip_connect with stride 2"):
        build_op("skip_connect", 5, 2)
    with pytest.raises(ValueError, match="image_size=30 cannot be halved twice; give a multiple of 4"):
        DartsCellNetwork(PLAIN, 4, 6, image_size=30)
    with pytest.raises(ValueError, match=r"drop_path_prob=1\.0 must be in \[0, 1\)"):
        DartsCellNetwork(PLAIN, 4, 6, drop_path_prob=1.0)
    with pytest.raises(ValueError, match="layers=2 must be at least 3"):
        DartsCellNetwork(PLAIN, 4, 2)
    with pytest.raises(ValueError, match="channels=0 must be at least 1"):
        DartsSupernet(0, 6)
    for kind in (lambda: DartsCellNetwork(PLAIN, 4, 6, num_classes=0), lambda: DartsSupernet(4, 6, num_classes=0)):
        with pytest.raises(ValueError, match="num_classes=0 must be at least 1"):
            kind()
    for network in (DartsCellNetwork(PLAIN, 2, 3), DartsSupernet(2, 3)):
        with pytest.raises(ValueError, match=r"images of \(18, 16\) cannot be halved twice; .* multiples of 4"):
            network(torch.zeros(2, 3, 18, 16))


def test_a_tiny_network_fits_random_images():
    pools = (("skip_connect", 0), ("max_pool_3x3", 1))
    normal = [pools, [("sep_conv_3x3", 1)], [("avg_pool_3x3", 3)], []]
    network = DartsCellNetwork(Genotype(normal, [pools, [("dil_conv_3x3", 1)], [("skip_connect", 2)], []]), 4, 6)
    optimizer = torch.optim.SGD(network.parameters(), 0.2, 0.9)
    images, labels = torch.randn(64, 3, 16, 16), torch.randint(10, (64,))
    for _ in range(25):
        optimizer.zero_grad()
        F.cross_entropy(network(images)[0], labels).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
    assert (network(images)[0].argmax(1) == labels).float().mean() > 0.9


@pytest.mark.parametrize(
    ("channels", "layers", "expected"),
    [
        (8, 6, 411_586),
        pytest.param(16, 8, 1_930_618, marks=pytest.mark.slow),
        pytest.param(16, 16, 3_754_298, marks=pytest.mark.slow),
    ],
)
def test_the_supernet_is_as_large_as_published(channels, layers, expected):
    supernet = on_meta(DartsSupernet, channels, layers)
    assert count(supernet.weight_parameters()) == expected
    assert count(supernet.arch_parameters()) == 224
    assert count(supernet.parameters()) == expected + 224


def test_architecture_weights_start_small_and_random():
    alphas = DartsSupernet(2, 3).arch_parameters()
    assert [tuple(alpha.shape) for alpha in alphas] == [(2, 8), (3, 8), (4, 8), (5, 8)] * 2
    assert torch.cat(alphas).std().item() == pytest.approx(1e-3, rel=0.2)  # deviation of the estimate 5 %


def test_the_supernet_with_one_operation_per_edge_is_the_network_of_that_genotype():
    """Weights of 0 or nearly 1 by alphas of -30 or 30; the same operations then give the same logits in eval mode."""
    supernet = DartsSupernet(4, 3).eval()
    chosen = torch.randint(7, (28,))
    with torch.no_grad():
        start = 0
        for alpha in supernet.arch_parameters():
            alpha.fill_(-30.0).scatter_(1, chosen[start : start + len(alpha), None], 30.0)
            start += len(alpha)
    chosen = chosen.view(2, 14)
    halves = [[list(enumerate(node)) for node in half.split([2, 3, 4, 5])] for half in chosen]
    cells = [[[(PRIMITIVES[op], source) for source, op in node] for node in half] for half in halves]
    network = DartsCellNetwork(Genotype(*cells), 4, 3).eval()
    for theirs, ours, reduction in zip(supernet.cells, network.cells, supernet.reductions, strict=True):
        parts = [theirs.ops[7 * edge + op] for edge, op in enumerate(chosen[int(reduction)])]
        for part, copy in zip(parts, ours.ops, strict=True):
            copy.load_state_dict(part.state_dict(), strict=False)  # ours has weights 1 and biases 0 besides
        for name in ("preprocess0", "preprocess1"):
            getattr(ours, name).load_state_dict(getattr(theirs, name).state_dict(), strict=False)
    network.stem.load_state_dict(supernet.stem.state_dict())
    network.classifier.load_state_dict(supernet.classifier.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert_close(supernet(x), network(x)[0])
