"""DDL's similarities, histograms and losses against the reference vectors and plain loops."""

import pytest
import torch
from torch.testing import assert_close

from lit_methods.ddl.functional import ddl_loss, hardest_negative_similarity, pair_similarity, soft_histogram
from lit_methods.ddl.histogram import histograms
from tests.ddl_reference import plain_hardest, plain_loss
from tests.vector_files import tensors

OFFICIAL = {"negatives": "official", "positive_threshold": 0.0}
DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
LOSSES = pytest.mark.parametrize("name", ["loss_two", "loss_three", "loss_unequal_b"])
MODES = pytest.mark.parametrize("options", [{}, OFFICIAL], ids=["paper", "official"])


def load(vectors, name):
    return tensors(vectors / "ddl" / f"{name}.npz")


def branches(known, dtype=torch.float64):
    """The branches of a vector as leaves: negatives, pairs, and all of them by the name of their gradient."""
    count = int(known["K"]) if "K" in known else 2
    leaves = {
        f"{part}{k}": known[f"{part}{k}"].to(dtype).requires_grad_()
        for k in range(count)
        for part in ("neg", "pos_a", "pos_b")
    }
    neg = [leaves[f"neg{k}"] for k in range(count)]
    return neg, [(leaves[f"pos_a{k}"], leaves[f"pos_b{k}"]) for k in range(count)], leaves


def drawn(sizes, dim=6, seed=0):
    """Branches of float64 embeddings; positives are near each other."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    neg = [normal(n, dim) for n, _ in sizes]
    firsts = [normal(p, dim) for _, p in sizes]
    return neg, [(a, a + normal(*a.shape)) for a in firsts]


def values(out):
    return [out.loss, out.pos_kl, out.neg_kl, out.order]


# soft_histogram


@pytest.mark.parametrize("name", ["histogram_random", "histogram_edges", "histogram_single"])
@pytest.mark.parametrize("grid", ["code1000", "unit100", "unit101", "sym201"])
def test_histogram_and_its_gradient_are_those_of_the_vectors(vectors, name, grid):
    known = load(vectors, name)
    nodes, cot = known[f"nodes_{grid}"], known[f"cot_{grid}"]
    for dtype, tolerance in (
        (torch.float64, {"rtol": 1e-12, "atol": 1e-15}),
        (torch.float32, {"rtol": 0, "atol": 1e-4}),
    ):
        sims = known["similarities"].to(dtype).requires_grad_()
        found = soft_histogram(sims, nodes)
        assert_close(found.detach(), known[f"hist_{grid}_gauss"].to(dtype), **tolerance)
        (gradient,) = torch.autograd.grad((found * cot.to(dtype)).sum(), sims)
        if dtype == torch.float64:
            tolerance = {"rtol": 1e-10, "atol": 1e-12}
        assert_close(gradient, known[f"grad_{grid}_gauss"].to(dtype), **tolerance)


@pytest.mark.parametrize("name", ["histogram_random", "histogram_edges", "histogram_single"])
def test_triangular_and_official_histograms_are_those_of_the_vectors(vectors, name):
    known = load(vectors, name)
    for grid in ("unit101", "sym201"):
        found = soft_histogram(known["similarities"], known[f"nodes_{grid}"], kernel="triangular")
        assert_close(found, known[f"hist_{grid}_tri"], rtol=1e-12, atol=1e-15)
    found = soft_histogram(known["similarities"], known["nodes_code1000"])
    assert_close(found, known["hist_official"], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kernel", ["gaussian", "triangular"])
def test_histogram_sums_to_one_in_any_order_of_the_similarities(kernel):
    sims, nodes = torch.rand(50, dtype=torch.float64), torch.linspace(-1, 1, 81, dtype=torch.float64)
    found = soft_histogram(sims, nodes, kernel=kernel)
    assert_close(found.sum(), torch.ones((), dtype=torch.float64))
    assert_close(soft_histogram(sims[torch.randperm(50)], nodes, kernel=kernel), found)
    assert (found >= 0).all()


def test_histogram_is_smooth():
    sims = torch.tensor([-0.9, 0.0, 0.31, 0.31, 0.77, 1.0], dtype=torch.float64, requires_grad=True)
    nodes = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: soft_histogram(s, nodes), sims)
    off_nodes = torch.tensor([-0.95, 0.03, 0.31, 0.77], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: soft_histogram(s, nodes, kernel="triangular"), off_nodes)


def test_a_narrow_kernel_far_from_all_nodes_does_not_vanish():
    sims = torch.tensor([-1.0, -0.9], requires_grad=True)
    found = soft_histogram(sims, torch.linspace(0, 1, 11), gamma=1e4)
    assert_close(found.detach(), torch.eye(11)[0])
    found[0].backward()
    assert sims.grad.isfinite().all()


def test_a_triangular_kernel_that_reaches_no_node_gives_zeros_and_no_gradient():
    sims = torch.tensor([-0.5], requires_grad=True)
    found = soft_histogram(sims, torch.linspace(0, 1, 11), kernel="triangular")
    found.sum().backward()
    assert not found.any()
    assert not sims.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    sims, nodes = torch.rand(9).to(dtype), torch.linspace(0, 1, 101)
    assert_close(soft_histogram(sims, nodes), soft_histogram(sims.float(), nodes), rtol=0, atol=0)
    neg, pos = drawn([(5, 4), (5, 4)])
    neg, pos = [x.to(dtype) for x in neg], [(a.to(dtype), b.to(dtype)) for a, b in pos]
    wide = ddl_loss([x.float() for x in neg], [(a.float(), b.float()) for a, b in pos])
    for ours, known in zip(values(ddl_loss(neg, pos)), values(wide), strict=True):
        assert_close(ours, known, rtol=0, atol=0)
        assert ours.dtype == torch.float32


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"sims": torch.rand(2, 3)}, r"sims must be \(n,\) in floating point, got \(2, 3\)"),
        ({"sims": torch.rand(0)}, "sims is empty"),
        ({"nodes": torch.rand(1)}, r"R of at least 2, got \(1,\)"),
        ({"nodes": torch.rand(3, 3)}, r"nodes must be \(R,\) in floating point.*got \(3, 3\)"),
        ({"nodes": torch.arange(3)}, "nodes must be.*int64"),
        ({"gamma": 0.0}, "gamma=0.0 must be above 0"),
        ({"gamma": float("nan")}, "gamma=nan must be above 0"),
        ({"kernel": "box"}, "kernel='box' is none of gaussian, triangular"),
        ({"nodes": torch.tensor([1.0, 0.0]), "kernel": "triangular"}, "wants them ascending"),
    ],
)
def test_a_histogram_that_cannot_be_made_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        soft_histogram(**{"sims": torch.rand(4), "nodes": torch.linspace(0, 1, 5)} | words)


# similarities


def test_hardest_negatives_are_those_of_a_plain_search():
    (x,), _ = drawn([(12, 1)])
    assert_close(hardest_negative_similarity(x), torch.tensor(plain_hardest(x.tolist()), dtype=torch.float64))
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 3, 4, 4, 0, 5, 6])
    known = torch.tensor(plain_hardest(x.tolist(), labels.tolist()), dtype=torch.float64)
    assert_close(hardest_negative_similarity(x, labels), known)
    assert (known != hardest_negative_similarity(x)).any()


def test_similarities_are_those_of_the_vectors(vectors):
    known = load(vectors, "loss_three")
    for k in range(3):
        x, a, b = (known[f"{part}{k}"] for part in ("neg", "pos_a", "pos_b"))
        for ours, name in (
            (hardest_negative_similarity(x), "neg_sim_hardest"),
            (hardest_negative_similarity(x, mode="official"), "neg_sim_official"),
            (pair_similarity(a, b), "pos_sim_all"),
        ):
            assert_close(ours, known[f"{name}{k}"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["hardest", "official"])
def test_repeated_identities_are_no_negatives(mode):
    (x,), _ = drawn([(8, 1)])
    doubled, labels = torch.cat([x, 2 * x]), torch.arange(8).repeat(2)
    assert (hardest_negative_similarity(doubled, mode=mode)[:8] > 0.999).all()
    found = hardest_negative_similarity(doubled, labels, mode)
    assert (found < 0.99).all()
    if mode == "hardest":
        assert_close(found, hardest_negative_similarity(x).repeat(2))


def test_a_single_identity_has_no_negatives_and_no_gradient():
    (x,), _ = drawn([(4, 1)])
    for mode in ("hardest", "official"):
        leaf = x.clone().requires_grad_()
        found = hardest_negative_similarity(leaf, torch.full((4,), 3), mode)
        found.sum().backward()
        assert not found.any()
        assert not leaf.grad.any()


def test_rows_of_zeros_have_similarity_zero_and_no_gradient():
    x, y = torch.zeros(3, 4, requires_grad=True), torch.ones(3, 4, requires_grad=True)
    found = pair_similarity(x, y)
    found.sum().backward()
    assert not found.any()
    assert not x.grad.any()
    assert not y.grad.any()
    neg = torch.cat([torch.zeros(1, 4), torch.eye(4)]).requires_grad_()
    ddl_loss([neg, neg], [(x, y), (y, y)], negatives="official").loss.backward()
    assert all(leaf.grad.isfinite().all() for leaf in (x, y, neg))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pair_similarity(torch.rand(3, 2), torch.rand(4, 2)), r"a has shape \(3, 2\), b \(4, 2\)"),
        (lambda: pair_similarity(torch.rand(3), torch.rand(3)), r"a must be embeddings \(n, d\)"),
        (lambda: hardest_negative_similarity(torch.rand(1, 2)), "x has 1 row, which has no negative"),
        (lambda: hardest_negative_similarity(torch.arange(4)[:, None]), "x must be embeddings.*int64"),
        (
            lambda: hardest_negative_similarity(torch.rand(3, 2), torch.arange(2)),
            r"labels must be \(3,\) whole numbers",
        ),
        (lambda: hardest_negative_similarity(torch.rand(3, 2), mode="all"), "mode='all' is none of hardest, official"),
    ],
)
def test_similarities_that_cannot_be_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ddl_loss


@LOSSES
@DTYPES
def test_official_loss_and_gradients_are_those_of_the_vectors(vectors, name, dtype, tolerance):
    known = load(vectors, name)
    neg, pos, leaves = branches(known, dtype)
    out = ddl_loss(neg, pos, *known["weights"].tolist(), **OFFICIAL)
    count = len(neg)
    assert_close(out.loss.detach(), known["loss"].to(dtype), rtol=0, atol=tolerance)
    assert_close(out.pos_kl.detach(), known["pos_kl"].to(dtype), rtol=0, atol=tolerance)
    assert_close(out.neg_kl.detach(), known["neg_kl"].to(dtype), rtol=0, atol=tolerance)
    assert_close(out.order.detach(), known["order_terms"].view(count, count).to(dtype), rtol=0, atol=tolerance)
    for k in range(count):
        assert_close(out.pos_sims[k].detach(), known[f"pos_sim_kept{k}"].to(dtype), rtol=0, atol=tolerance)
        assert_close(out.neg_sims[k].detach(), known[f"neg_sim_official{k}"].to(dtype), rtol=0, atol=tolerance)
    out.loss.backward()
    for key, leaf in leaves.items():
        assert_close(leaf.grad, known[f"grad_{key}"].to(dtype), rtol=0, atol=tolerance, msg=key)


@LOSSES
@DTYPES
def test_the_papers_loss_and_gradients_are_those_of_the_vectors(vectors, name, dtype, tolerance):
    known = load(vectors, name)
    neg, pos, leaves = branches(known, dtype)
    out = ddl_loss(neg, pos)
    assert_close(out.loss.detach(), known["paper_loss"].to(dtype), rtol=0, atol=tolerance)
    for k in range(len(neg)):
        assert_close(out.pos_sims[k].detach(), known[f"pos_sim_all{k}"].to(dtype), rtol=0, atol=tolerance)
        assert_close(out.neg_sims[k].detach(), known[f"neg_sim_hardest{k}"].to(dtype), rtol=0, atol=tolerance)
    out.loss.backward()
    for key, leaf in leaves.items():
        assert_close(leaf.grad, known[f"paper_grad_{key}"].to(dtype), rtol=0, atol=tolerance, msg=key)


def test_loss_is_that_of_a_plain_loop_with_other_options():
    neg, pos = drawn([(5, 3), (4, 6), (7, 2)])
    labels = [torch.tensor([0, 0, 1, 2, 3]), torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 0, 2, 1, 0, 3])]
    nodes = torch.linspace(-1, 1, 21, dtype=torch.float64)
    out = ddl_loss(neg, pos, 0.3, 0.7, 0.2, nodes, gamma=20.0, eps=1e-4, neg_labels=labels)
    known = plain_loss(
        [x.tolist() for x in neg],
        [(a.tolist(), b.tolist()) for a, b in pos],
        (0.3, 0.7, 0.2),
        nodes.tolist(),
        20.0,
        1e-4,
        [of.tolist() for of in labels],
    )
    for ours, theirs in zip(values(out), known, strict=True):
        assert_close(ours, torch.tensor(theirs, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_student_without_positives_counts_by_its_negatives_alone(vectors):
    known = load(vectors, "degenerate_no_positive")
    neg, pos, leaves = branches(known)
    out = ddl_loss(neg, pos, **OFFICIAL)
    assert_close(out.loss.detach(), known["recommended_loss"], rtol=0, atol=1e-10)
    assert_close(out.neg_kl[0].detach(), known["neg_kl"], rtol=0, atol=1e-10)
    assert [len(s) for s in out.pos_sims] == known["kept"].tolist()
    assert out.pos_kl.tolist() == [0]
    assert out.order[:, 1].tolist() == [0, 0]
    out.loss.backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values())
    assert not leaves["pos_a1"].grad.any()


def test_without_positives_of_the_teacher_there_is_no_positive_kl():
    neg, pos = drawn([(5, 4), (5, 4), (5, 4)])
    pos[0] = tuple(x[:0] for x in pos[0])
    leaves = [x.requires_grad_() for x in neg + [y for pair in pos[1:] for y in pair]]
    out = ddl_loss(neg, pos)
    assert out.pos_kl.tolist() == [0, 0]
    assert (out.neg_kl > 0).all()
    assert not out.order[:, 0].any()
    assert out.order[:, 1:].all()
    out.loss.backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)
    nothing = ddl_loss(neg, [(x[:0], x[:0]) for x in neg])
    assert_close(nothing.loss, 0.02 * nothing.neg_kl.sum())


def test_a_branch_of_one_identity_has_no_negatives():
    neg, pos = drawn([(4, 3), (5, 3), (6, 3)])
    leaves = [x.requires_grad_() for x in neg]
    labels = [torch.arange(4), torch.zeros(5, dtype=torch.int64), torch.arange(6)]
    out = ddl_loss(neg, pos, neg_labels=labels)
    without = ddl_loss(neg[::2], pos[::2])
    assert out.neg_kl[0] == 0
    assert_close(out.neg_kl[1], without.neg_kl[0])
    assert not out.order[1].any()
    out.loss.backward()
    assert not leaves[1].grad.any()
    assert leaves[2].grad.any()


@MODES
def test_identical_branches_have_no_divergence(options):
    neg, pos = drawn([(9, 7)])
    out = ddl_loss(neg * 3, pos * 3, **options)
    assert_close(out.pos_kl, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-15)
    assert_close(out.neg_kl, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-15)


@MODES
def test_divergence_is_not_negative(options):
    for seed in range(5):
        out = ddl_loss(*drawn([(9, 7), (6, 8)], seed=seed), **options)
        assert out.pos_kl > 1e-3
        assert out.neg_kl > 1e-3


def test_order_of_the_samples_does_not_matter():
    neg, pos = drawn([(9, 7), (9, 7)])
    turn, turn_pairs = torch.randperm(9), torch.randperm(7)
    other = ddl_loss([x[turn] for x in neg], [(a[turn_pairs], b[turn_pairs]) for a, b in pos])
    assert_close(other.loss, ddl_loss(neg, pos).loss)
    turned = ddl_loss(neg, [(b, a) for a, b in pos])
    assert_close(turned.loss, ddl_loss(neg, pos).loss)


@MODES
def test_scale_of_the_features_does_not_matter(options):
    neg, pos = drawn([(9, 7), (6, 8)])
    factors = torch.rand(9, 1, dtype=torch.float64) * 100 + 0.1
    scaled = [x * factors[: len(x)] for x in neg], [(a * 1e-3, b * factors[: len(b)]) for a, b in pos]
    assert_close(ddl_loss(*scaled, **options).loss, ddl_loss(neg, pos, **options).loss)


@MODES
def test_several_students_are_the_sum_of_each(options):
    neg, pos = drawn([(9, 7), (6, 8), (5, 5)])
    both = ddl_loss(neg, pos, order_weight=0, **options)
    each = [ddl_loss(neg[::k], pos[::k], order_weight=0, **options) for k in (2,)]
    each.insert(0, ddl_loss(neg[:2], pos[:2], order_weight=0, **options))
    assert_close(both.loss, sum(out.loss for out in each))
    assert_close(both.pos_kl, torch.cat([out.pos_kl for out in each]))
    assert_close(both.neg_kl, torch.cat([out.neg_kl for out in each]))


@MODES
@pytest.mark.parametrize("detach_teacher", [False, True])
def test_gradients_are_those_of_finite_differences(options, detach_teacher):
    neg, pos = drawn([(4, 3), (5, 2)], dim=3)
    nodes = torch.linspace(0, 1, 11, dtype=torch.float64)

    def loss(*leaves):
        return ddl_loss(
            [neg[0], leaves[0]], [pos[0], leaves[1:]], 1.0, 1.0, nodes=nodes, detach_teacher=detach_teacher, **options
        ).loss

    student = [x.clone().requires_grad_() for x in (neg[1], *pos[1])]
    assert torch.autograd.gradcheck(loss, student)
    if detach_teacher:
        return

    def as_teacher(*leaves):
        return ddl_loss([leaves[0], neg[1]], [leaves[1:], pos[1]], 1.0, 1.0, nodes=nodes, **options).loss

    assert torch.autograd.gradcheck(as_teacher, [x.clone().requires_grad_() for x in (neg[0], *pos[0])])


def test_a_detached_teacher_learns_from_the_order_alone():
    neg, pos = drawn([(4, 3), (5, 2)])

    def gradients(order_weight, detach_teacher):
        leaves = [x.clone().requires_grad_() for x in (*neg, *pos[0], *pos[1])]
        out = ddl_loss(
            leaves[:2],
            [leaves[2:4], leaves[4:]],
            order_weight=order_weight,
            detach_teacher=detach_teacher,
        )
        return torch.autograd.grad(out.loss, leaves)

    learns, rests = gradients(0, False), gradients(0, True)
    order = gradients(0.5, True)
    for k in (0, 2, 3):
        assert learns[k].any()
        assert not rests[k].any()
        assert order[k].any()
    for k in (1, 4, 5):
        assert_close(rests[k], learns[k])


@MODES
@pytest.mark.parametrize("where", ["neg", "pos"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_embeddings_that_are_not_finite_reach_the_loss(options, where, value):
    neg, pos = drawn([(5, 4), (6, 3)])
    (neg[1] if where == "neg" else pos[1][0])[2, 1] = value
    assert ddl_loss(neg, pos, **options).loss.isnan()


def test_a_strict_threshold_keeps_what_lies_above():
    x, y = torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    out = ddl_loss([y, y], [(x, y), (x, y)], positive_threshold=0.0)
    assert [s.tolist() for s in out.pos_sims] == [[1.0], [1.0]]
    out = ddl_loss([y, y], [(x, y), (x, y)], positive_threshold=-0.5)
    assert [s.tolist() for s in out.pos_sims] == [[1.0, 0.0]] * 2


def test_autocast_leaves_the_loss_in_float32():
    neg, pos = drawn([(5, 4), (5, 4)])
    neg, pos = [x.float() for x in neg], [(a.float(), b.float()) for a, b in pos]
    known = ddl_loss(neg, pos)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ddl_loss(neg, pos)
    assert_close(out.loss, known.loss, rtol=0, atol=0)
    assert_close(out.neg_sims, known.neg_sims, rtol=0, atol=0)


def test_autocast_does_not_blur_the_search_for_the_hardest():
    x = torch.randn(8) + 0.05 * torch.randn(40, 8)  # cosines that differ by less than bfloat16 tells
    known = hardest_negative_similarity(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(hardest_negative_similarity(x), known, rtol=0, atol=0)


def test_padded_sets_are_what_they_are_alone():
    sims, nodes = torch.rand(2, 5, dtype=torch.float64), torch.linspace(0, 1, 50, dtype=torch.float64)
    keep = torch.tensor([[True] * 5, [True, True, True, False, False]])
    sims[1, 3:] = float("nan")
    for kernel, gamma in (("gaussian", 50.0), ("gaussian", 1e5), ("triangular", 50.0)):
        leaf, alone = sims.clone().requires_grad_(), sims.clone().requires_grad_()
        found = histograms(leaf, nodes, gamma, kernel, keep)
        known = [soft_histogram(alone[0], nodes, gamma, kernel), soft_histogram(alone[1, :3], nodes, gamma, kernel)]
        assert_close(found, torch.stack(known))
        found.square().sum().backward()
        torch.stack(known).square().sum().backward()
        assert_close(leaf.grad, alone.grad)
        assert alone.grad[1, :3].any()


def test_a_dropped_similarity_near_the_nodes_does_not_overflow_a_narrow_kernel():
    sims, keep = torch.tensor([[-1.0, 0.5]]), torch.tensor([[True, False]])
    assert_close(histograms(sims, torch.linspace(0, 1, 11), gamma=1e4, keep=keep), torch.eye(11)[:1])
    assert not histograms(sims, torch.linspace(0, 1, 11), gamma=1e4, keep=keep & False).any()


NEG, POS = [torch.rand(3, 2)] * 2, [(torch.rand(3, 2),) * 2] * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"neg": NEG[:1], "pos": POS[:1]}, "neg has 1 branches"),
        ({"pos": POS[:1]}, "pos has 1 branches, neg 2"),
        ({"neg": [NEG[0], torch.rand(1, 2)]}, r"neg\[1\] has 1 rows, so no negatives"),
        ({"neg": [NEG[0], torch.rand(3)]}, r"neg\[1\] must be embeddings \(n, d\)"),
        ({"pos": [POS[0], (torch.rand(3, 2), torch.rand(2, 2))]}, r"pos\[1\] must be two tensors of one shape"),
        ({"neg_labels": [torch.arange(3)]}, "neg_labels has 1 branches"),
        ({"neg_labels": [torch.arange(3), torch.arange(2)]}, r"neg_labels\[1\] must be \(3,\) whole numbers"),
        ({"neg_labels": [torch.arange(3), torch.rand(3)]}, r"neg_labels\[1\] must be .* whole numbers.*float32"),
        ({"neg_labels": [torch.rand(3) > 2, torch.arange(3)]}, r"neg_labels\[0\] must be .* whole numbers.*bool"),
        ({"pos_kl_weight": -0.1}, "pos_kl_weight=-0.1 must not be negative"),
        ({"order_weight": float("nan")}, "order_weight=nan must not be negative"),
        ({"eps": 0.0}, "eps=0.0 must be above 0"),
        ({"gamma": -1.0}, "gamma=-1.0 must be above 0"),
        ({"nodes": torch.rand(1)}, r"nodes must be \(R,\)"),
        ({"negatives": "semi"}, "negatives='semi' is none of hardest, official"),
    ],
)
def test_a_loss_that_cannot_be_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        ddl_loss(**{"neg": NEG, "pos": POS} | words)
