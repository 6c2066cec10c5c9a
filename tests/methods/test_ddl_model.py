"""DDL's loss as a module and the margin heads, against the reference vectors."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lit_methods.ddl.functional import ddl_loss
from lit_methods.ddl.model import ArcFaceHead, CosFaceHead, DistributionDistillationLoss
from tests.methods.test_ddl_functional import DTYPES, OFFICIAL, branches, drawn, load

HEADS = pytest.mark.parametrize("head_class", [ArcFaceHead, CosFaceHead])


def head_of(name, known, dtype=torch.float64):
    size, count = known["kernel"].shape
    if name == "cosface":
        head = CosFaceHead(size, count, float(known["scale"]), float(known["margin"]))
    else:
        head = ArcFaceHead(
            size, count, float(known["scale"]), float(known["margin"]), easy_margin=bool(known["easy_margin"])
        )
    head = head.to(dtype)
    head.load_state_dict({"kernel": known["kernel"]})
    return head


@pytest.mark.parametrize("name", ["arcface", "arcface_hard", "arcface_easy_margin", "cosface"])
@DTYPES
def test_heads_and_their_gradients_are_those_of_the_vectors(vectors, name, dtype, tolerance):
    known = load(vectors, name)
    head, embeddings = head_of(name, known, dtype), known["embeddings"].to(dtype).requires_grad_()
    logits = head(embeddings, known["labels"])
    loss = F.cross_entropy(logits, known["labels"])
    loss.backward()
    for ours, key in (
        (logits, "logits"),
        (head(embeddings), "cos_scaled"),
        (loss, "loss"),
        (embeddings.grad, "grad_embeddings"),
        (head.kernel.grad, "grad_kernel"),
    ):
        scale = float(known[key].abs().max()) if dtype == torch.float32 else 1  # of 64 times a cosine
        assert_close(ours.detach() / scale, known[key].to(dtype) / scale, rtol=0, atol=tolerance, msg=key)


def test_margin_turns_the_target_by_an_angle():
    head = ArcFaceHead(2, 2, scale=1.0, margin=0.5)
    head.kernel.data = torch.eye(2)
    angles = torch.linspace(0.1, 3.1, 20)
    embeddings = 3 * torch.stack([angles.cos(), angles.sin()], 1)
    logits = head(embeddings, torch.zeros(20, dtype=torch.int64))
    inside = angles + 0.5 < math.pi
    assert_close(logits[inside, 0], (angles[inside] + 0.5).cos())
    assert_close(logits[~inside, 0], angles[~inside].cos() - 0.5 * math.sin(0.5))
    assert_close(logits[:, 1], angles.sin())
    assert (logits[:, 0].diff() < 0).all()


@HEADS
def test_a_cosine_of_one_has_a_finite_gradient(head_class):
    for dtype in (torch.float32, torch.float64):
        head = head_class(4, 3).to(dtype)
        head.kernel.data[:, 0] = torch.eye(4)[0]  # so that one is exact
        for sign in (1, -1):
            embeddings = (sign * head.kernel.detach().t().clone()).requires_grad_()
            F.cross_entropy(head(embeddings, torch.arange(3)), torch.arange(3)).backward()
            assert embeddings.grad.isfinite().all()
            assert head.kernel.grad.isfinite().all()


def test_the_sine_of_arcface_is_a_millionth_at_least():
    head = ArcFaceHead(2, 1, scale=1.0).double()
    head.kernel.data = torch.eye(2, 1, dtype=torch.float64)
    (logit,) = head(torch.tensor([[3.0, 0.0]], dtype=torch.float64), torch.tensor([0]))
    assert logit.item() == pytest.approx(math.cos(0.5) - 1e-6 * math.sin(0.5), abs=1e-12)


@HEADS
def test_rounding_makes_no_cosine_above_one(head_class):
    head = head_class(64, 500, scale=1.0)
    assert head(head.kernel.detach().t()).abs().max() == 1


@HEADS
def test_embeddings_of_zero_have_a_finite_gradient(head_class):
    head, embeddings = head_class(4, 3), torch.zeros(2, 4, requires_grad=True)
    F.cross_entropy(head(embeddings, torch.tensor([0, 2])), torch.tensor([0, 2])).backward()
    assert not embeddings.grad.any()
    assert head.kernel.grad.isfinite().all()


@HEADS
def test_gradients_of_the_heads_are_those_of_finite_differences(head_class):
    head = head_class(5, 4, scale=2.0).double()
    embeddings, labels = torch.randn(6, 5, dtype=torch.float64, requires_grad=True), torch.arange(6) % 4
    assert torch.autograd.gradcheck(lambda x, _: head(x, labels), (embeddings, head.kernel))


@HEADS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_are_float32_under_autocast_and_in_half_precision(head_class, dtype):
    head, embeddings, labels = head_class(16, 5), torch.randn(8, 16).to(dtype), torch.arange(8) % 5
    known = head(embeddings.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(head(embeddings, labels), known, rtol=0, atol=0)
    assert head.to(dtype)(embeddings, labels).dtype == torch.float32


@HEADS
def test_kernel_is_drawn_with_a_deviation_of_one_hundredth(head_class):
    kernel = head_class(100, 200).kernel.detach()
    assert kernel.shape == (100, 200)
    assert abs(float(kernel.std()) - 0.01) < 3e-4
    assert abs(float(kernel.mean())) < 3e-4


@HEADS
def test_an_empty_batch_has_empty_logits(head_class):
    assert head_class(4, 3)(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)).shape == (0, 3)


@HEADS
@pytest.mark.parametrize("wrong", [-1, 3])
def test_labels_outside_of_the_classes_are_refused(head_class, wrong):
    with pytest.raises(ValueError, match=rf"labels go from {min(wrong, 1)} to {max(wrong, 1)}, but num_classes=3"):
        head_class(4, 3)(torch.randn(2, 4), torch.tensor([1, wrong]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ArcFaceHead(0, 3), "in_features=0 must be at least 1"),
        (lambda: CosFaceHead(4, 0), "num_classes=0 must be at least 1"),
        (lambda: ArcFaceHead(4, 3, scale=0.0), "scale=0.0 must be above 0"),
        (lambda: ArcFaceHead(4, 3, margin=3.2), "margin=3.2 must be an angle"),
        (lambda: CosFaceHead(4, 3, margin=-0.1), "margin=-0.1 must not be negative"),
        (lambda: CosFaceHead(4, 3, margin=math.nan), "margin=nan must not be negative"),
        (lambda: ArcFaceHead(4, 3, scale=math.nan), "scale=nan must be above 0"),
        (lambda: ArcFaceHead(4, 3)(torch.randn(2, 5)), "embeddings have 5 features, but in_features=4"),
        (lambda: ArcFaceHead(4, 3)(torch.randn(4)), r"embeddings must be embeddings \(n, d\)"),
        (lambda: ArcFaceHead(4, 3)(torch.randn(2, 4), torch.arange(3)), r"labels must be \(2,\) whole numbers"),
        (lambda: DistributionDistillationLoss(neg_kl_weight=-1.0), "neg_kl_weight=-1.0 must not be negative"),
        (lambda: DistributionDistillationLoss(nodes=[0.5]), r"nodes must be \(R,\)"),
        (lambda: DistributionDistillationLoss(negatives="all"), "negatives='all' is none of"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_module_is_the_function_with_its_options(vectors):
    known = load(vectors, "loss_three")
    neg, pos, _ = branches(known)
    assert_close(DistributionDistillationLoss(**OFFICIAL)(neg, pos).loss.detach(), known["loss"], rtol=0, atol=1e-10)
    options = {
        "pos_kl_weight": 0.3,
        "neg_kl_weight": 0.7,
        "order_weight": 0.2,
        "nodes": torch.linspace(-1, 1, 21, dtype=torch.float64),
        "gamma": 20.0,
        "eps": 1e-4,
        "negatives": "official",
        "positive_threshold": 0.1,
        "detach_teacher": True,
    }
    labels = [torch.arange(12) // 2] * 3
    ours, function = DistributionDistillationLoss(**options), ddl_loss(neg, pos, **options, neg_labels=labels)
    out = ours(neg, pos, neg_labels=labels)
    for name in ("loss", "pos_kl", "neg_kl", "order", "pos_sims", "neg_sims"):
        assert_close(getattr(out, name), getattr(function, name), rtol=0, atol=0)
    for found, same in zip(torch.autograd.grad(out.loss, neg), torch.autograd.grad(function.loss, neg), strict=True):
        assert_close(found, same, rtol=0, atol=0)


def test_a_checkpoint_loads_across_settings():
    state = DistributionDistillationLoss(nodes=[0.0, 0.5, 1.0]).state_dict()
    assert not state
    DistributionDistillationLoss().load_state_dict(state)
    neg, pos = drawn([(4, 3), (4, 3)])
    listed = DistributionDistillationLoss(nodes=torch.linspace(0, 1, 5).tolist())
    assert listed.nodes.dtype == torch.float32
    assert_close(listed(neg, pos).loss, ddl_loss(neg, pos, nodes=torch.linspace(0, 1, 5)).loss)
