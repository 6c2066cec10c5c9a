"""Radius, DBSCAN and centroids against vectors of public code, scikit-learn and plain loops."""

import numpy as np
import pytest
import torch
from sklearn.cluster import DBSCAN
from torch.testing import assert_close

from lit_methods.ad_cluster import neighbours
from lit_methods.ad_cluster.clusters import cluster_centroids, dbscan_pseudo_labels, select_eps
from lit_methods.ad_cluster.jaccard import SparseJaccard, k_reciprocal_jaccard
from tests.jaccard_reference import people

NAN = float("nan")


def matrix(*upper, dtype=torch.float64):
    """A distance matrix from its upper triangle."""
    count = next(n for n in range(len(upper) + 2) if n * (n - 1) // 2 == len(upper))
    found = torch.zeros(count, count, dtype=dtype)
    found[tuple(torch.triu_indices(count, count, 1))] = torch.tensor(upper, dtype=dtype)
    return found + found.T


def sparse(dist):
    """The same with all pairs below 1 kept."""
    kept = (dist < 1).triu(1)
    start = torch.cat([torch.zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0)])
    return SparseJaccard(start, kept.nonzero()[:, 1].int(), dist[kept])


def plain_eps(dist, rho):
    value = dist.double().numpy()[np.triu_indices(len(dist), 1)]
    value = np.sort(value[value >= 1e-9])
    return value[: max(1, int(np.round(rho * len(value))))].mean()


def jaccard(count=150, dtype=torch.float64, spread=0.7, seed=0):
    return k_reciprocal_jaccard(torch.from_numpy(people(count, 8, spread=spread, seed=seed)).to(dtype), 8, 3)


# radius


def test_radius_and_labels_are_those_of_the_public_code(vectors):
    with np.load(vectors / "ad_cluster" / "dbscan.npz", allow_pickle=False) as official:
        dist = torch.from_numpy(official["jaccard64"])
        for rho, eps, labels in zip(official["rho"], official["eps"], official["labels"], strict=True):
            for form in (dist, sparse(dist)):
                assert select_eps(form, float(rho)) == pytest.approx(eps, rel=0, abs=1e-9)
                found = dbscan_pseudo_labels(form, float(eps), int(official["min_samples"]))
                assert found.dtype == torch.int64
                assert found.tolist() == labels.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rho", [1.6e-3, 0.01, 0.03, 0.5, 1.0])
def test_radius_is_the_mean_of_the_smallest(rho, dtype, monkeypatch):
    dist = jaccard(dtype=dtype)
    for budget in (2**22, 1000):  # one block and many
        monkeypatch.setattr(neighbours, "budget", lambda device, budget=budget: budget)
        assert select_eps(dist, rho) == pytest.approx(plain_eps(dist, rho), rel=1e-12)
        assert select_eps(sparse(dist), rho) == pytest.approx(plain_eps(dist, rho), rel=1e-12)


def test_pairs_that_are_not_kept_count():
    dist = jaccard()
    form = sparse(dist)
    assert len(form.value) < 0.6 * 150 * 149 / 2  # rho = 1 and 0.9 need more than these
    for rho in (0.9, 1.0):
        assert select_eps(form, rho) == pytest.approx(plain_eps(dist, rho), rel=1e-12)


def test_radius_grows_with_rho():
    eps = [select_eps(jaccard(), rho) for rho in (1e-9, 0.001, 0.01, 0.1, 0.5, 1.0)]
    assert eps == sorted(eps)
    assert len({*eps}) >= 5


@pytest.mark.parametrize(("rho", "top"), [(0.01, 1), (0.15, 2), (0.25, 2), (0.26, 3), (0.35, 4), (1.0, 10)])
def test_number_of_distances_is_rounded_to_even_and_one_at_least(rho, top):
    dist = matrix(*[k / 10 for k in range(1, 11)])
    assert select_eps(dist, rho) == pytest.approx(sum(range(1, top + 1)) / 10 / top)


def test_coincident_pairs_do_not_count():
    dist = matrix(0.0, 9e-10, 0.4, 0.2, 0.8, 0.6)
    for form in (dist, sparse(dist)):
        assert select_eps(form, 0.5) == pytest.approx(0.3)  # 2 of the 4 that remain
    assert select_eps(matrix(1e-9, 0.5, 0.5), 0.1) == 1e-9  # not below the limit


def test_radius_of_points_that_all_coincide_makes_one_cluster():
    for dist in (torch.zeros(1, 1), torch.zeros(6, 6), k_reciprocal_jaccard(torch.ones(6, 2), 3, 2, sparse=True)):
        eps = select_eps(dist)
        assert eps == 1e-9
        assert dbscan_pseudo_labels(dist, eps, 1).unique().tolist() == [0]


def test_duplicates_do_not_break_the_radius():
    feats = torch.from_numpy(people(170, 8))
    feats[40:80] = feats[0]
    dist = k_reciprocal_jaccard(feats, 8, 3)
    assert select_eps(dist, 0.01) == pytest.approx(plain_eps(dist, 0.01), rel=1e-12)
    assert select_eps(dist, 0.01) > 0.01


# labels


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 8))])
@pytest.mark.parametrize("min_samples", [1, 2, 4, 9])
def test_labels_are_those_of_scikit_learn(seed, min_samples, monkeypatch):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(200, 2, generator=generator, dtype=torch.float64)
    x[:120] = x[:120] * 0.05 + torch.rand(8, 2, generator=generator, dtype=torch.float64).repeat_interleave(15, 0)
    dist = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    seen = set()
    for eps in (1e-3, 0.01, 0.03, 0.05, 0.1, 0.5):
        wanted = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit_predict(dist.numpy()).tolist()
        assert dbscan_pseudo_labels(dist, eps, min_samples).tolist() == wanted
        assert dbscan_pseudo_labels(sparse(dist), eps, min_samples).tolist() == wanted
        with monkeypatch.context() as patch:
            patch.setattr(neighbours, "budget", lambda device: 1000)
            assert dbscan_pseudo_labels(dist, eps, min_samples).tolist() == wanted
        seen.add(max(wanted))
    assert len(seen) > 2


def test_labels_from_features_are_those_of_the_true_people():
    feats, true = torch.from_numpy(people(680, 64, spread=0.3)), torch.arange(680) // 17
    found = k_reciprocal_jaccard(feats, 12, 4, sparse=True)
    for form in (found, found.to_dense()):
        assert torch.equal(dbscan_pseudo_labels(form, 0.7), true)
        labels = dbscan_pseudo_labels(form, select_eps(form, 0.02))
        assert (labels >= 0).float().mean() > 0.5
        for label in range(int(labels.max()) + 1):
            assert len(true[labels == label].unique()) == 1


def test_a_border_point_goes_to_the_lowest_of_its_clusters():
    left, middle, right = [0.9, 1.0, 1.1, 1.2], [5.0], [8.8, 8.9, 9.0, 9.1]  # the middle has a neighbour on either side
    for line, wanted in (
        (middle + left + right, [0] + [0] * 4 + [1] * 4),
        (middle + right + left, [0] + [0] * 4 + [1] * 4),
        (right + left + middle, [0] * 4 + [1] * 4 + [0]),
    ):
        place = torch.tensor(line, dtype=torch.float64)
        assert dbscan_pseudo_labels((place[:, None] - place).abs(), 3.85, 4).tolist() == wanted


def test_labels_without_clusters_or_with_one():
    dist = jaccard(60)
    assert dbscan_pseudo_labels(dist, 1e-6, 30).tolist() == [-1] * 60
    assert dbscan_pseudo_labels(dist, 1.0, 60).tolist() == [0] * 60
    assert dbscan_pseudo_labels(torch.zeros(1, 1), 0.1, 1).tolist() == [0]
    assert dbscan_pseudo_labels(torch.zeros(1, 1), 0.1, 2).tolist() == [-1]


def test_neighbours_are_at_the_radius_or_nearer_and_a_point_is_its_own():
    dist = matrix(0.5, 0.5, 0.7)
    for form in (dist, sparse(dist)):
        assert dbscan_pseudo_labels(form, 0.5, 3).tolist() == [0, 0, 0]
        assert dbscan_pseudo_labels(form, 0.5 - 1e-12, 2).tolist() == [-1, -1, -1]
    assert dbscan_pseudo_labels(dist + torch.eye(3), 0.5, 3).tolist() == [0, 0, 0]  # whatever the diagonal says


# source term


def test_radius_and_labels_of_a_sparse_result_with_source_term_are_those_of_the_dense():
    s = torch.rand(150).double()
    form = sparse(jaccard()).with_source_term(s, 0.1)
    dense = form.to_dense()
    for rho in (1.6e-3, 0.01, 0.03):
        eps = select_eps(form, rho)
        assert eps == pytest.approx(plain_eps(dense, rho), rel=1e-12)
        assert torch.equal(dbscan_pseudo_labels(form, eps), dbscan_pseudo_labels(dense, eps))
    with pytest.raises(
        ValueError, match=r"rho=1.0 takes 11175 distances, among them pairs that the sparse dist leaves"
    ):
        select_eps(form, 1.0)
    with pytest.raises(ValueError, match=r"eps=0.95 reaches the pairs .*from 0.9.*or dist.to_dense\(\)"):
        dbscan_pseudo_labels(form, 0.95)
    with pytest.raises(ValueError, match="may be at 0; give select_eps"):
        select_eps(sparse(jaccard()).with_source_term(0 * s, 1.0))


def test_a_radius_of_one_needs_the_dense_form():
    dist = jaccard(40)
    with pytest.raises(ValueError, match=r"eps=1.0 reaches the pairs"):
        dbscan_pseudo_labels(sparse(dist), 1.0)
    assert dbscan_pseudo_labels(sparse(dist), 1 - 1e-9).shape == (40,)


# centroids


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_centroids_are_the_means_without_outliers(dtype):
    feats, labels = torch.randn(40, 5).to(dtype), torch.randint(-1, 4, (40,))
    found = cluster_centroids(feats, labels)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    wanted = torch.stack([feats[labels == c].double().mean(0) for c in range(4)])
    assert_close(found.double(), wanted, rtol=0, atol=1e-6 if dtype != torch.float64 else 1e-12)


def test_centroids_of_the_vector_are_those_of_its_formula(vectors):
    with np.load(vectors / "ad_cluster" / "diversity.npz", allow_pickle=False) as official:
        feats, labels, wanted = (torch.from_numpy(official[k]) for k in ("real_feats", "real_labels", "centroids64"))
    assert_close(cluster_centroids(feats, labels), wanted, rtol=0, atol=1e-9)


def test_labels_that_nobody_has_give_nan_and_outliers_alone_nothing():
    found = cluster_centroids(torch.ones(2, 3), torch.tensor([0, 2]))
    assert found.isnan().tolist() == [[False] * 3, [True] * 3, [False] * 3]
    assert cluster_centroids(torch.ones(2, 3), torch.tensor([-1, -1])).shape == (0, 3)


# mistakes


@pytest.mark.parametrize("rho", [0.0, -0.1, 1.1, NAN])
def test_a_share_out_of_range_is_named(rho):
    with pytest.raises(ValueError, match=rf"rho={rho} must lie in \(0, 1\]"):
        select_eps(torch.zeros(2, 2), rho)


@pytest.mark.parametrize(
    ("eps", "min_samples", "message"),
    [(0.0, 4, "eps=0.0 must be above 0"), (NAN, 4, "eps=nan"), (-1, 4, "eps=-1"), (0.5, 0, "min_samples=0 must be 1")],
)
def test_a_bad_radius_or_number_of_samples_is_named(eps, min_samples, message):
    with pytest.raises(ValueError, match=message):
        dbscan_pseudo_labels(torch.zeros(2, 2), eps, min_samples)


@pytest.mark.parametrize(
    ("dist", "message"),
    [
        (torch.zeros(2, 3), r"dist must be floating numbers \(N, N\), got torch.float32 \(2, 3\)"),
        (torch.zeros(4), r"got torch.float32 \(4,\)"),
        (torch.zeros(2, 2).long(), "got torch.int64"),
        (matrix(0.1, NAN, 0.2), "dist must not have NaN"),
    ],
)
def test_a_bad_matrix_is_named(dist, message):
    with pytest.raises(ValueError, match=message):
        select_eps(dist)
    with pytest.raises(ValueError, match=message):
        dbscan_pseudo_labels(dist, 0.5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(3).long(), r"labels must be \(N,\) for feats \(N, D\), got \(3,\) for \(2, 4\)"),
        (torch.zeros(2, 1).long(), r"got \(2, 1\)"),
        (torch.zeros(2), "labels must be whole numbers from -1, got torch.float32"),
        (torch.tensor([-2, 0]), r"got torch.int64 \[-2, 0\]"),
    ],
)
def test_bad_labels_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        cluster_centroids(torch.zeros(2, 4), labels)
