"""AD-Cluster's losses against the reference vectors and plain loops."""

import math

import pytest
import torch
from torch.testing import assert_close

from lit_methods.ad_cluster.losses import (
    batch_hard_distances,
    batch_hard_triplet,
    cluster_diversity,
    diversity_loss,
    diversity_weight,
)
from tests.vector_files import tensors


def load(vectors, name):
    return tensors(vectors / "ad_cluster" / f"{name}.npz")


def plain_distances(feats, labels, others, other_labels):
    """Farthest of the same label and nearest of another, one pair after the other."""
    ap, an = [], []
    for x, label in zip(feats.tolist(), labels.tolist(), strict=True):
        distances = [(math.dist(x, y), other == label) for y, other in zip(others, other_labels.tolist(), strict=True)]
        ap.append(max(d for d, same in distances if same))
        an.append(min(d for d, same in distances if not same))
    return torch.tensor(ap, dtype=torch.float64), torch.tensor(an, dtype=torch.float64)


# triplet


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_triplet_is_that_of_the_vectors(vectors, dtype, tolerance):
    known = load(vectors, "triplet")
    feats = known["feats"].to(dtype).requires_grad_()
    d_ap, d_an = batch_hard_distances(feats, known["labels"])
    loss = batch_hard_triplet(feats, known["labels"], float(known["margin"]))
    (gradient,) = torch.autograd.grad(loss, feats)
    soft = batch_hard_triplet(feats, known["labels"], None)
    for ours, name in (
        (d_ap, "dist_ap"),
        (d_an, "dist_an"),
        (loss, "loss64"),
        (soft, "soft_margin_loss64"),
        (gradient, "grad_feats"),
    ):
        assert_close(ours.detach(), known[name].to(dtype), rtol=0, atol=tolerance)
    assert (d_an > d_ap).double().mean() == known["precision"]


def test_default_margin_is_one_half(vectors):
    known = load(vectors, "triplet")
    assert batch_hard_triplet(known["feats"], known["labels"]) == batch_hard_triplet(
        known["feats"], known["labels"], 0.5
    )


def test_soft_margin_has_the_gradient_of_finite_differences():
    feats = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([4, 9, 4, 9, 9, 4])
    assert torch.autograd.gradcheck(lambda x: batch_hard_triplet(x, labels, None), feats)


def test_distances_are_those_of_a_plain_loop_in_groups_of_any_size():
    feats = torch.randn(11, 5, dtype=torch.float64)
    labels = torch.tensor([7, 0, 3, 3, 0, 3, 5, 7, 7, 3, 5])
    d_ap, d_an = batch_hard_distances(feats, labels)
    plain_ap, plain_an = plain_distances(feats, labels, feats.tolist(), labels)
    assert_close(d_ap, plain_ap, rtol=0, atol=1e-12)
    assert_close(d_an, plain_an, rtol=0, atol=1e-12)


def test_close_points_far_from_the_origin_keep_their_distance_in_float32():
    offset = torch.tensor([[0.0], [1.0], [5.0], [9.0]]) / 1024  # exact in float32 beside 128
    d_ap, d_an = batch_hard_distances((128 + offset).repeat(1, 64), torch.tensor([0, 0, 1, 1]))
    assert_close(d_ap * 128, torch.tensor([1.0, 1, 4, 4]), rtol=1e-6, atol=0)
    assert_close(d_an * 128, torch.tensor([5.0, 4, 4, 8]), rtol=1e-6, atol=0)


def test_no_loss_and_no_gradient_when_all_margins_hold():
    feats = (torch.tensor([0, 0, 50, 50])[:, None] + torch.rand(4, 3)).requires_grad_()
    loss = batch_hard_triplet(feats, torch.tensor([0, 0, 1, 1]), 0.5)
    (gradient,) = torch.autograd.grad(loss, feats)
    assert loss == 0
    assert not gradient.any()


def test_one_image_per_identity_has_a_positive_distance_of_zero():
    feats = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    d_ap, d_an = batch_hard_distances(feats, torch.tensor([2, 0, 1]))
    assert d_ap.tolist() == [0, 0, 0]
    (gradient,) = torch.autograd.grad((d_ap + d_an).sum(), feats)
    assert gradient.isfinite().all()
    assert (d_an > 1e-3).all()


@pytest.mark.parametrize("margin", [0.5, None])
def test_gradients_are_finite_with_duplicate_images(margin):
    feats = torch.ones(4, 3, dtype=torch.float64)
    feats[3] = 2
    feats.requires_grad_()
    labels = torch.tensor([0, 0, 1, 1])
    d_ap, d_an = batch_hard_distances(feats, labels)
    assert_close(d_ap.detach(), torch.tensor([1e-6, 1e-6, 3**0.5, 3**0.5], dtype=torch.float64))
    assert d_an[:3].tolist() == pytest.approx([1e-6] * 3)
    (gradient,) = torch.autograd.grad(batch_hard_triplet(feats, labels, margin), feats)
    assert gradient.isfinite().all()
    assert gradient.any()


def test_anchors_of_two_processes_together_are_those_of_one():
    feats = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 0, 2, 2, 1, 0, 1])  # neither half has a second sample of each label
    whole = batch_hard_triplet(feats, labels)
    halves = [
        batch_hard_triplet(feats[part], labels[part], others=feats, other_labels=labels)
        for part in (slice(0, 4), slice(4, 8))
    ]
    assert_close(torch.stack(halves).mean(), whole, rtol=0, atol=1e-12)
    (expected,) = torch.autograd.grad(whole, feats)
    (actual,) = torch.autograd.grad(torch.stack(halves).mean(), feats)
    assert_close(actual, expected, rtol=0, atol=1e-12)
    alone = [batch_hard_triplet(feats[part], labels[part]) for part in (slice(0, 4), slice(4, 8))]
    assert abs(torch.stack(alone).mean() - whole) > 1e-3


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_and_returned_in_float32(kind):
    feats, labels = torch.randn(6, 32).to(kind), torch.tensor([0, 0, 1, 1, 2, 2])
    loss = batch_hard_triplet(feats, labels)
    assert loss.dtype == torch.float32
    assert_close(loss, batch_hard_triplet(feats.float(), labels), rtol=0, atol=0)
    spread = diversity_loss(feats, labels, torch.zeros(3, 32))
    assert_close(spread, diversity_loss(feats.float(), labels, torch.zeros(3, 32)), rtol=0, atol=0)


def test_autocast_changes_nothing():
    feats, labels = torch.randn(6, 32), torch.tensor([0, 0, 1, 1, 2, 2])
    plain = [batch_hard_triplet(feats, labels), diversity_loss(feats, labels, torch.zeros(3, 32))]
    with torch.autocast("cpu", torch.bfloat16):
        inside = [batch_hard_triplet(feats, labels), diversity_loss(feats, labels, torch.zeros(3, 32))]
    assert_close(inside, plain, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([3, 3, 3], "hold 1 identities; batch-hard triplets need two or more"),
        ([0, 1, -1], "negative numbers; outliers"),
        ([0, 1], r"must be \(3,\) whole numbers"),
        ([0.0, 1.0, 1.0], r"must be \(3,\) whole numbers"),
    ],
)
def test_labels_without_a_triplet_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        batch_hard_triplet(torch.randn(3, 2), torch.tensor(labels))


def test_other_mistakes_around_triplets_are_refused():
    feats, labels = torch.randn(4, 2), torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"margin=-0\.1 must not be negative"):
        batch_hard_triplet(feats, labels, -0.1)
    with pytest.raises(ValueError, match="belong together"):
        batch_hard_distances(feats, labels, others=feats)
    with pytest.raises(ValueError, match="anchors themselves belong among them"):
        batch_hard_distances(feats, labels, others=feats, other_labels=labels + 1)
    with pytest.raises(ValueError, match="3 features per sample, feats 2"):
        batch_hard_distances(feats, labels, others=torch.randn(4, 3), other_labels=labels)
    with pytest.raises(ValueError, match="feats must be"):
        batch_hard_distances(feats[0], labels)
    with pytest.raises(ValueError, match="hold 0 identities"):
        batch_hard_triplet(feats[:0], labels[:0])


# diversity


def test_diversity_is_that_of_the_vectors(vectors):
    known = load(vectors, "diversity")
    feats = known["gen_feats"].clone().requires_grad_()
    arguments = feats, known["gen_labels"], known["centroids64"]
    loss = diversity_loss(*arguments, lam=float(known["lam"]))
    (gradient,) = torch.autograd.grad(loss, feats)
    assert_close(cluster_diversity(*arguments).detach(), known["diversity64"], rtol=0, atol=1e-9)
    assert_close(loss.detach(), known["loss64"], rtol=0, atol=1e-9)
    assert_close(gradient, known["grad_gen"], rtol=0, atol=1e-9)
    assert not gradient[known["gen_labels"] < 0].any()


def test_centroids_are_constants():
    centroids = torch.zeros(2, 3, requires_grad=True)
    feats = torch.randn(4, 3, requires_grad=True)
    diversity_loss(feats, torch.tensor([0, 1, 1, 0]), centroids).backward()
    assert centroids.grad is None
    assert feats.grad is not None


@pytest.mark.parametrize("clusters", [0, 2])
def test_without_a_labelled_row_there_is_no_diversity_and_no_gradient(clusters):
    feats = torch.full((3, 4), float("nan")).requires_grad_()
    labels = torch.full((3,), -1)
    centroids = torch.zeros(clusters, 4)
    assert cluster_diversity(feats, labels, centroids) == 0
    loss = diversity_loss(feats, labels, centroids)
    loss.backward()
    assert loss == 1
    assert not feats.grad.any()


def test_a_sample_on_its_centroid_has_a_finite_gradient_of_zero():
    feats = torch.tensor([[1.0, 2.0], [4.0, 6.0]], requires_grad=True)
    diversity = cluster_diversity(feats, torch.tensor([0, 0]), torch.tensor([[1.0, 2.0]]))
    diversity.backward()
    assert_close(diversity.detach(), torch.tensor(2.5))
    assert_close(feats.grad, torch.tensor([[0.0, 0.0], [0.3, 0.4]]))


def test_default_weight_of_the_diversity():
    feats, labels = torch.tensor([[0.0, 10.0]]), torch.tensor([0])
    assert float(diversity_loss(feats, labels, torch.zeros(1, 2))) == pytest.approx(math.exp(-0.3))
    assert float(diversity_weight(torch.tensor(10.0))) == pytest.approx(math.exp(-0.3))


def test_mistakes_around_diversity_are_refused():
    feats, labels = torch.randn(3, 2), torch.tensor([0, 2, -1])
    with pytest.raises(ValueError, match="go up to 2, but there are 2 centroids"):
        cluster_diversity(feats, labels, torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"centroids must be \(C, 2\)"):
        cluster_diversity(feats, labels, torch.zeros(3, 5))
    with pytest.raises(ValueError, match="gen_labels must be"):
        cluster_diversity(feats, labels[:2], torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"lam=-1\.0 must not be negative"):
        diversity_loss(feats, labels, torch.zeros(3, 2), lam=-1.0)
