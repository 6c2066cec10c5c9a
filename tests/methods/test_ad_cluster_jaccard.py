"""k-reciprocal Jaccard distance, re-ranking and source term against vectors of public code and a plain loop."""

import pytest
import torch
from torch.testing import assert_close

from lit_methods.ad_cluster import neighbours
from lit_methods.ad_cluster.jaccard import (
    SparseJaccard,
    k_reciprocal_jaccard,
    k_reciprocal_rerank,
    source_distance_term,
)
from lit_methods.ad_cluster.neighbours import nearest
from tests.jaccard_reference import people, plain_jaccard, plain_rerank
from tests.vector_files import tensors

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
CHUNKS = pytest.mark.parametrize("chunk", [None, 1, 7, 1000])
NAN = float("nan")


def load(vectors, name):
    return tensors(vectors / "ad_cluster" / f"{name}.npz")


def crowd(count=90, size=8, dtype=torch.float64, **how):
    return torch.from_numpy(people(count, size, **how)).to(dtype)


def assert_equal_to(found, wanted, dtype):
    assert found.dtype == dtype
    assert_close(found.double(), torch.as_tensor(wanted).double(), rtol=0, atol=TOLERANCE[dtype])


# parity


@BOTH
@CHUNKS
def test_jaccard_is_that_of_the_public_code(vectors, dtype, chunk):
    official = load(vectors, "jaccard")
    k1, k2 = int(official["k1"]), int(official["k2"])
    feats = official["feats"].to(dtype)
    assert_equal_to(k_reciprocal_jaccard(feats, k1, k2, chunk=chunk), official["jaccard64"], dtype)
    sparse = k_reciprocal_jaccard(feats, k1, k2, chunk=chunk, sparse=True)
    assert_equal_to(sparse.to_dense(), official["jaccard64"], dtype)


@BOTH
@CHUNKS
def test_reranking_is_that_of_the_public_code(vectors, dtype, chunk):
    official = load(vectors, "jaccard")
    feats, number = official["feats"].to(dtype), int(official["num_query"])
    found = k_reciprocal_rerank(
        feats[:number],
        feats[number:],
        int(official["k1"]),
        int(official["k2"]),
        float(official["rerank_lambda"]),
        chunk=chunk,
    )
    assert_equal_to(found, official["reranked_q_g64"], dtype)


@CHUNKS
def test_source_term_is_that_of_the_public_code(vectors, chunk):
    official = load(vectors, "source_distance")
    feats, lam = official["target_feats"], float(official["lam"])
    found = k_reciprocal_jaccard(feats, int(official["k1"]), int(official["k2"]), sparse=True)
    s = source_distance_term(feats, official["source_feats"], chunk=chunk)
    assert_close(found.to_dense(), official["jaccard64"], rtol=0, atol=1e-6)
    dense = (1 - lam) * found.to_dense() + lam * (s[:, None] + s)
    assert_close(dense, official["final64"], rtol=0, atol=1e-6)
    assert_close(found.with_source_term(s, lam).to_dense(), dense, rtol=0, atol=1e-14)


@pytest.mark.parametrize("clustered", [True, False])
@pytest.mark.parametrize(
    ("k1", "k2"), [(20, 6), (20, 1), (1, 1), (1, 6), (2, 2), (3, 12), (5, 3), (9, 4), (6, 90), (200, 6)]
)
def test_jaccard_is_that_of_the_plain_loop(k1, k2, clustered):
    feats = crowd(60, clustered=clustered)
    wanted, _ = plain_jaccard(feats.numpy(), k1, k2)
    for found in (k_reciprocal_jaccard(feats, k1, k2), k_reciprocal_jaccard(feats, k1, k2, sparse=True).to_dense()):
        assert_close(found, torch.from_numpy(wanted), rtol=0, atol=1e-9)


@pytest.mark.parametrize("clustered", [True, False])
def test_reranking_is_that_of_the_plain_loop(clustered):
    feats = crowd(60, 6, clustered=clustered)
    for number, k1, k2, lam in ((20, 8, 3, 0.3), (59, 20, 6, 0.0), (1, 5, 1, 1.0), (30, 200, 6, 0.5)):
        found = k_reciprocal_rerank(feats[:number], feats[number:], k1, k2, lam)
        wanted = plain_rerank(feats[:number].numpy(), feats[number:].numpy(), k1, k2, lam)
        assert_close(found, torch.from_numpy(wanted), rtol=0, atol=1e-9)


@pytest.mark.parametrize("clustered", [True, False])
def test_float32_of_a_larger_set_is_that_of_the_plain_loop(clustered):
    feats = crowd(300, 32, torch.float32, clustered=clustered)
    wanted, _ = plain_jaccard(feats.double().numpy())
    assert_equal_to(k_reciprocal_jaccard(feats), wanted, torch.float32)


def test_source_term_is_that_of_all_pairs():
    feats, source = crowd(50, 4) / 4, crowd(70, 4, seed=1) / 4
    s = (1 - torch.exp(-(feats[:, None] - source).square().sum(2))).min(1).values
    assert_close(source_distance_term(feats, source), s / s.max(), rtol=0, atol=1e-14)
    found = source_distance_term(feats.float(), source.float())
    assert_equal_to(found, s / s.max(), torch.float32)


# invariants


@pytest.mark.parametrize("clustered", [True, False])
def test_a_block_s_size_changes_no_value(clustered, monkeypatch):
    feats, source = crowd(120, 16, clustered=clustered), crowd(31, 16, seed=1)
    feats[100:] = feats[:20].clone()  # and coincident points, which the product of matrices cannot tell
    feats[60:90] = feats[0].clone()
    wholes = [
        k_reciprocal_jaccard(feats, 8, 3),
        k_reciprocal_rerank(feats[:40], feats[40:], 8, 3),
        source_distance_term(feats, source),
    ]
    for chunk in (1, 7, 64, None):
        if chunk is None:
            monkeypatch.setattr(neighbours, "budget", lambda device: 20_000)
        parts = [
            k_reciprocal_jaccard(feats, 8, 3, chunk=chunk),
            k_reciprocal_rerank(feats[:40], feats[40:], 8, 3, chunk=chunk),
            source_distance_term(feats, source, chunk=chunk),
        ]
        for part, whole in zip(parts, wholes, strict=True):
            assert_close(part, whole, rtol=0, atol=1e-14)
        sparse = k_reciprocal_jaccard(feats, 8, 3, chunk=chunk, sparse=True)
        assert torch.equal(sparse.to_dense(), parts[0])


@BOTH
def test_jaccard_is_a_distance_between_0_and_1(dtype):
    found = k_reciprocal_jaccard(crowd(dtype=dtype), 10, 4)
    assert torch.equal(found, found.T)
    assert torch.equal(found.diagonal(), torch.zeros(90, dtype=dtype))
    assert found.min() >= 0
    assert found.max() == 1


def test_order_of_the_points_does_not_matter():
    feats, order = crowd(), torch.randperm(90)
    found = k_reciprocal_jaccard(feats, 10, 4)
    assert_close(k_reciprocal_jaccard(feats[order], 10, 4), found[order][:, order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-6, 3.0, 1e6])
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_scale_place_and_rotation_do_not_matter(scale, shift):
    feats = crowd()
    turned = scale * (feats @ torch.linalg.qr(torch.randn(8, 8).double()).Q + shift)
    assert_close(k_reciprocal_jaccard(turned, 10, 4), k_reciprocal_jaccard(feats, 10, 4), rtol=0, atol=1e-9)


def test_half_precision_is_computed_and_given_in_float32():
    for dtype in (torch.float16, torch.bfloat16):
        feats = crowd(dtype=dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = k_reciprocal_jaccard(feats, 10, 4)
        assert found.dtype == torch.float32
        assert torch.equal(found, k_reciprocal_jaccard(feats.float(), 10, 4))
        assert source_distance_term(feats, feats).dtype == torch.float32
        assert k_reciprocal_rerank(feats[:9], feats[9:]).dtype == torch.float32


def test_sparse_result_keeps_only_pairs_that_share_a_neighbour():
    found = k_reciprocal_jaccard(crowd(340, spread=0.1), 10, 4, sparse=True)
    assert (found.size, found.shape, found.dtype) == (340, (340, 340), torch.float64)
    assert len(found.value) == 20 * 17 * 16 / 2  # the people, none of whom is near another
    assert "pairs=2720" in repr(found)
    assert found.least_absent == 1


def test_features_with_gradients_are_taken():
    assert not k_reciprocal_jaccard(crowd().requires_grad_(), 5, 2).requires_grad


# coincident points


@pytest.mark.parametrize("copies", [2, 5, 12, 60])
@BOTH
def test_coincident_points_are_at_zero_however_many(copies, dtype):
    feats = crowd(100, dtype=dtype)
    place = torch.randperm(100)[:copies]
    feats[place] = feats[place[0]].clone()
    found = k_reciprocal_jaccard(feats, 10, 4)
    assert found.isfinite().all()
    assert (found[place][:, place] == 0).all()
    assert (found[place] == found[place[0]]).all()  # and equally far from everybody else


def test_a_few_coincident_points_are_as_in_the_plain_loop():
    feats = crowd(100)
    feats[[3, 50, 99]] = feats[20].clone()
    wanted, _ = plain_jaccard(feats.numpy(), 10, 4)
    assert_close(k_reciprocal_jaccard(feats, 10, 4), torch.from_numpy(wanted), rtol=0, atol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_points_that_all_coincide_are_at_zero(count):
    feats = torch.full((count, 3), 0.1)
    assert torch.equal(k_reciprocal_jaccard(feats, 5, 3), torch.zeros(count, count))
    assert torch.equal(k_reciprocal_jaccard(feats, 5, 3, sparse=True).to_dense(), torch.zeros(count, count))
    assert torch.equal(k_reciprocal_rerank(feats, feats, 5, 3), torch.zeros(count, count))
    assert torch.equal(source_distance_term(feats, feats), torch.zeros(count))


@pytest.mark.parametrize("copies", [2, 30, 110])
def test_coincident_points_as_one_give_what_they_give_apart(copies, monkeypatch):
    feats, query = crowd(150), crowd(40, seed=1)
    place = torch.randperm(150)
    feats[place[:copies]] = feats[place[0]].clone()
    feats[place[120:]] = feats[place[119]].clone()
    found = []
    for limit in (0, 1000):
        monkeypatch.setattr(neighbours, "COPIES", limit)
        lists = nearest(feats, feats, 9, itself=True), nearest(query, feats, 9)
        assert lists[0].rows[:, 0].tolist() == list(range(150))
        dense = k_reciprocal_jaccard(feats, 8, 3)
        found.append((*lists[0], *lists[1], dense, k_reciprocal_rerank(feats[:70], feats[70:], 8, 3)))
        assert torch.equal(k_reciprocal_jaccard(feats, 8, 3, sparse=True).to_dense(), dense)
    for one, apart in zip(*found, strict=True):
        assert_close(one, apart, rtol=0, atol=1e-13)


# neighbours


def test_products_that_are_rounded_further_do_not_screen():
    try:
        for precision, dtype in (("medium", torch.float64), ("highest", torch.float32)):
            torch.set_float32_matmul_precision(precision)
            assert neighbours._screening(torch.device("cpu")) == dtype
    finally:
        torch.set_float32_matmul_precision("highest")


@BOTH
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_screening_in_either_type_gives_the_same_neighbours(dtype, scale, monkeypatch):
    x = crowd(300, 64, clustered=False) * scale
    d2 = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    monkeypatch.setattr(neighbours, "_screening", lambda device: dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = nearest(x, x, 21, itself=True)
    assert torch.equal(found.rows, d2.argsort(1)[:, :21])
    assert_close(found.farthest / scale**2, d2.max(1).values.square() / scale**2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("levels", [2, 3, 30])
@pytest.mark.parametrize("itself", [True, False])
def test_equal_distances_come_in_the_order_of_the_index(levels, itself):
    x = torch.randint(levels, (120, 3)).double()  # whole numbers: distances are exact, and often equal
    y = x if itself else torch.randint(levels, (90, 3)).double()
    d2 = (x[:, None] - y).square().sum(2)
    key = d2 - 2 * torch.eye(120) if itself else d2
    wanted = key.sort(stable=True, dim=1).indices[:, :9]
    for chunk in (1, 50, None):
        found = nearest(x, y, 9, itself=itself, chunk=chunk)
        assert torch.equal(found.rows, wanted)
        assert torch.equal(found.farthest, d2.max(1).values)
        assert_close(found.distance, d2.gather(1, wanted), rtol=0, atol=1e-12)


def test_neighbours_are_right_far_from_the_origin():
    x = crowd(300, 16) + 1e6
    d2 = (x[:, None] - x).square().sum(2)
    found = nearest(x, x, 21, itself=True)
    assert torch.equal(found.rows, d2.sort(stable=True, dim=1).indices[:, :21])


def test_only_rows_with_doubt_are_done_without_the_product(monkeypatch):
    done, cdist = [], torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda x, *y, **how: done.append(len(x)) or cdist(x, *y, **how))
    x = crowd(200, 16)
    nearest(x, x, 6, itself=True)
    assert not done
    x[:30] = x[0].clone()
    nearest(x, x, 6, itself=True)
    assert 30 <= sum(done) < 100


# mistakes


@pytest.mark.parametrize(
    ("feats", "how", "message"),
    [
        (torch.zeros(3), {}, r"feats must be floating numbers \(N, D\).*got torch.float32 \(3,\)"),
        (torch.zeros(3, 2, dtype=torch.int64), {}, "feats must be floating numbers.*int64"),
        (torch.zeros(0, 2), {}, r"N and D above 0, got torch.float32 \(0, 2\)"),
        (torch.zeros(2, 0), {}, "N and D above 0"),
        (torch.tensor([[0.0], [NAN], [1.0], [torch.inf]]), {}, "feats must be finite, row 1 and 1 others"),
        (torch.tensor([[torch.inf, -torch.inf]]), {}, "feats must be finite"),
        (torch.zeros(3, 2), {"k1": 0}, "k1=0 and k2=6 must be 1 or more"),
        (torch.zeros(3, 2), {"k2": 0}, "k1=20 and k2=0 must be 1 or more"),
        (torch.zeros(3, 2), {"chunk": 0}, "chunk=0 must be 1 or more"),
    ],
)
def test_bad_features_and_sizes_are_named(feats, how, message):
    for sparse in (False, True):
        with pytest.raises(ValueError, match=message):
            k_reciprocal_jaccard(feats, **how, sparse=sparse)


def test_features_that_do_not_go_together_are_named():
    x, y = torch.zeros(3, 2), torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"query_feats and gallery_feats must have the same number.*got 2 on cpu"):
        k_reciprocal_rerank(x, y)
    with pytest.raises(ValueError, match="feats and source_feats must have the same number"):
        source_distance_term(x, y)
    with pytest.raises(ValueError, match="gallery_feats must be finite"):
        k_reciprocal_rerank(x, x + NAN)
    with pytest.raises(ValueError, match="source_feats must be floating"):
        source_distance_term(x, x[:0])
    with pytest.raises(ValueError, match=r"lam=1.5 must lie in \[0, 1\]"):
        k_reciprocal_rerank(x, x, lam=1.5)
    with pytest.raises(ValueError, match="chunk=0"):
        source_distance_term(x, x, chunk=0)


def test_a_source_term_that_does_not_fit_is_named():
    found = k_reciprocal_jaccard(crowd(), sparse=True)
    with pytest.raises(ValueError, match=r"s must be \(90,\).*got \(3,\)"):
        found.with_source_term(torch.zeros(3))
    with pytest.raises(ValueError, match=r"lam=-1 must lie in \[0, 1\]"):
        found.with_source_term(torch.zeros(90), lam=-1)
    with pytest.raises(ValueError, match="in these distances already"):
        found.with_source_term(torch.zeros(90)).with_source_term(torch.zeros(90))


def test_nothing_absent_is_nearer_than_it_says():
    found = k_reciprocal_jaccard(crowd(), 5, 2, sparse=True).with_source_term(torch.rand(90).double(), 0.2)
    absent = SparseJaccard(found.start, found.column, found.value + 9, found.absent, found.term).to_dense()
    absent.fill_diagonal_(9)
    assert 0.8 <= found.least_absent <= absent.min()
    assert SparseJaccard(torch.zeros(2).long(), torch.zeros(0).int(), torch.zeros(0)).least_absent == torch.inf


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same():
    for clustered in (True, False):
        feats, source = crowd(400, 32, torch.float32, clustered=clustered), crowd(50, 32, torch.float32, seed=1)
        on_gpu = k_reciprocal_jaccard(feats.cuda())
        assert on_gpu.is_cuda
        assert_close(on_gpu.cpu(), k_reciprocal_jaccard(feats), rtol=0, atol=1e-5)
        sparse = k_reciprocal_jaccard(feats.cuda(), sparse=True)
        assert torch.equal(sparse.to_dense(), on_gpu)
        found = k_reciprocal_rerank(feats[:99].cuda(), feats[99:].cuda())
        assert_close(found.cpu(), k_reciprocal_rerank(feats[:99], feats[99:]), rtol=0, atol=1e-5)
        s = source_distance_term(feats.cuda(), source.cuda())
        assert_close(s.cpu(), source_distance_term(feats, source), rtol=0, atol=1e-6)
