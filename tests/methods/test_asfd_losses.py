"""ASFD's losses against the vectors, plain formulas and finite differences."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck
from torch.testing import assert_close

from lit_methods.asfd.functional import (
    REG_LOSSES,
    box_losses,
    decode,
    diou_loss,
    drmc_loss,
    encode,
    face_probability,
    make_anchors,
    margin_softmax_loss,
    match_batch,
    mine_negatives,
)
from tests.vector_files import tensors

TOLERANCES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
KINDS = pytest.mark.parametrize("kind", ["diou", "iou", "giou", "ciou"])
COSINE = {"mode": "cosine"}


@pytest.fixture
def known(vectors):
    return tensors(vectors / "asfd" / "detector.npz")


def near(found, expected, tolerance):
    assert_close(found, expected.to(found.dtype), rtol=tolerance, atol=tolerance)


def some_boxes(count, seed=0, dtype=torch.float64):
    drawn = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    first = 20 * drawn[:, :2]
    return torch.cat([first, first + 5 + 30 * drawn[:, 2:]], 1).to(dtype)


# boxes


@TOLERANCES
def test_distances_of_boxes_are_those_of_the_vectors(known, dtype, tolerance):
    pred, target = known["diou_pred"].to(dtype), known["diou_gt"].to(dtype)
    near(diou_loss(pred, target), known["diou"], tolerance)
    near(diou_loss(pred, target, "sum"), known["diou"].sum(), tolerance)
    near(diou_loss(pred, target, reduction="mean"), known["diou"].mean(), tolerance)
    assert diou_loss(pred, target).dtype == dtype


def plain_loss(kind, p, t):
    """One pair, by the definitions."""
    inter = max(0, min(p[2], t[2]) - max(p[0], t[0])) * max(0, min(p[3], t[3]) - max(p[1], t[1]))
    (pw, ph), (tw, th) = [(b[2] - b[0], b[3] - b[1]) for b in (p, t)]
    union = pw * ph + tw * th - inter
    ew, eh = max(p[2], t[2]) - min(p[0], t[0]), max(p[3], t[3]) - min(p[1], t[1])
    loss = 1 - inter / union
    if kind == "giou":
        return loss + (ew * eh - union) / (ew * eh)
    if kind == "iou":
        return loss
    rho2 = ((p[0] + p[2] - t[0] - t[2]) ** 2 + (p[1] + p[3] - t[1] - t[3]) ** 2) / 4
    v = 4 / np.pi**2 * (np.arctan(tw / th) - np.arctan(pw / ph)) ** 2
    return loss + rho2 / (ew**2 + eh**2) + (v * v / (loss + v) if kind == "ciou" else 0)


@KINDS
def test_losses_of_boxes_are_those_of_a_plain_formula(kind):
    pred, target = some_boxes(30), some_boxes(30, 1)
    expected = [plain_loss(kind, *pair) for pair in zip(pred.tolist(), target.tolist(), strict=True)]
    assert_close(box_losses(kind, pred, target), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@KINDS
def test_equal_boxes_have_no_loss_and_distant_ones_stay_below_the_bound(kind):
    boxes = some_boxes(20)
    assert (box_losses(kind, boxes, boxes) == 0).all()
    far = box_losses(kind, boxes, boxes + 1e5)
    assert ((far >= 1) & (far <= {"iou": 1, "ciou": 3}.get(kind, 2))).all()


@KINDS
def test_degenerate_and_huge_boxes_give_finite_losses_and_gradients(kind):
    odd = torch.tensor(
        [[0.0, 0, 0, 0], [0, 0, 1e9, 1e-9], [-1e9, -1e9, 1e9, 1e9], [3, 3, 3, 9], [5, 5, 8, 8], [2, 2, 2, 2]]
    )
    pred = odd.repeat(6, 1).requires_grad_()
    losses = box_losses(kind, pred, odd.repeat_interleave(6, 0))
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(pred.grad).all()


@KINDS
def test_gradients_of_boxes_are_finite_differences(kind):
    pred, target = some_boxes(3, 2).requires_grad_(), some_boxes(3, 3).requires_grad_()
    if kind == "ciou":  # alpha is held where it is
        with torch.no_grad():
            v = box_losses("ciou", pred, target) - box_losses("diou", pred, target)
        grad = torch.autograd.grad(box_losses("ciou", pred, target).sum(), pred)[0]
        diou = torch.autograd.grad(box_losses("diou", pred, target).sum(), pred)[0]
        side = (pred[:, 2:] - pred[:, :2]).detach().requires_grad_()
        goal = (target[:, 2] - target[:, 0]) / (target[:, 3] - target[:, 1])
        aspect = 4 / np.pi**2 * ((side[:, 0] / side[:, 1]).atan() - goal.atan()).square()
        held = (v / aspect).detach()
        shape = torch.autograd.grad((held * aspect).sum(), side)[0]
        assert_close(grad - diou, torch.cat([-shape, shape], 1))
    else:
        loss = diou_loss if kind == "diou" else lambda p, t: box_losses(kind, p, t)
        assert gradcheck(loss, (pred, target))


def test_no_boxes_have_a_mean_of_zero():
    pred = torch.zeros(0, 4, requires_grad=True)
    loss = diou_loss(pred, torch.zeros(0, 4), "mean")
    loss.backward()
    assert loss.item() == 0


def test_box_losses_are_computed_in_float32_under_autocast():
    pred, target = some_boxes(8, dtype=torch.float32), some_boxes(8, 1, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(diou_loss(pred, target), box_losses("diou", pred, target))
        assert diou_loss(pred.bfloat16(), target).dtype == torch.float32


def test_box_losses_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match=r"pred and target must both be \(N, 4\), got \(2, 4\) and \(1, 4\)"):
        diou_loss(torch.zeros(2, 4), torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"kind='dious' is unknown; take .*did you mean 'diou'"):
        box_losses("dious", torch.zeros(2, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="reduction='average' is unknown; take 'none' or 'sum' or 'mean'"):
        diou_loss(torch.zeros(2, 4), torch.zeros(2, 4), "average")


# margins


@TOLERANCES
def test_margin_losses_are_those_of_the_vectors(known, dtype, tolerance):
    features, weight, logits = (known[key].to(dtype) for key in ("mc_feat", "mc_weight", "mc_logits"))
    labels, scale, margin = known["mc_label"], float(known["mc_scale"]), float(known["mc_margin"])
    near(margin_softmax_loss(features, labels, weight, margin=margin, **COSINE), known["mc_loss"], tolerance)
    plain = margin_softmax_loss(features, labels, weight, scale=scale, margin=0, **COSINE)
    near(plain, known["mc_loss_nomargin"], tolerance)
    near(face_probability(features, weight, **COSINE), known["mc_prob"], tolerance)
    near(margin_softmax_loss(logits, labels, margin=margin), known["mc_logit_loss"], tolerance)
    assert margin_softmax_loss(logits, labels).dtype == dtype


def test_without_a_margin_the_loss_is_cross_entropy():
    logits, labels = 5 * torch.randn(50, 2, dtype=torch.float64), torch.randint(2, (50,))
    expected = F.cross_entropy(logits, labels, reduction="none")
    assert_close(margin_softmax_loss(logits, labels, margin=0), expected, rtol=0, atol=1e-12)
    assert_close(
        margin_softmax_loss(logits, labels, scale=3, margin=0), F.cross_entropy(3 * logits, labels, reduction="none")
    )
    assert_close(face_probability(logits), logits.softmax(1)[:, 1])


def test_a_margin_costs_more_the_larger_it_is_times_the_scale():
    logits, labels = torch.randn(50, 2), torch.randint(2, (50,))
    losses = [margin_softmax_loss(logits, labels, scale=2, margin=margin) for margin in (0.5, 0.2, 0.0)]
    assert (losses[0] > losses[1]).all()
    assert (losses[1] > losses[2]).all()
    each = margin_softmax_loss(logits, labels, scale=2, margin=0.5 * (labels == 1))
    assert_close(each, torch.where(labels == 1, losses[0], losses[2]))


def test_extreme_logits_have_finite_losses():
    logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = margin_softmax_loss(logits, torch.tensor([1]))
    loss.backward()
    assert_close(loss, torch.tensor([20000.2]))
    assert logits.grad.tolist() == [[1, -1]]


def test_gradients_of_margins_are_finite_differences():
    labels = torch.tensor([0, 1, 1])
    logits = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: margin_softmax_loss(x, labels), logits)
    features, weight = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (3, 2))
    assert gradcheck(lambda x, w: margin_softmax_loss(x, labels, w, scale=4, **COSINE), (features, weight))


def test_cosines_do_not_depend_on_lengths():
    features, weight, labels = torch.randn(9, 5), torch.randn(2, 5), torch.randint(2, (9,))
    expected = margin_softmax_loss(features, labels, weight, **COSINE)
    assert_close(margin_softmax_loss(100 * features, labels, weight / 50, **COSINE), expected)


def test_features_without_length_have_finite_losses_and_no_gradient():
    features, weight = torch.zeros(3, 5, requires_grad=True), torch.randn(2, 5, requires_grad=True)
    loss = margin_softmax_loss(features, torch.tensor([0, 1, 1]), weight, **COSINE)
    loss.sum().backward()
    assert_close(loss, torch.full((3,), float(np.log1p(np.exp(4)))))
    assert not features.grad.any()
    assert not weight.grad.any()


def test_cosines_are_computed_in_float32_under_autocast():
    features, weight, labels = torch.randn(9, 64), torch.randn(2, 64), torch.randint(2, (9,))
    expected = margin_softmax_loss(features, labels, weight, **COSINE)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(margin_softmax_loss(features, labels, weight, **COSINE), expected)
        assert face_probability(features.bfloat16(), weight, **COSINE).dtype == torch.float32


def test_scores_take_any_leading_dimensions():
    logits = torch.randn(2, 3, 2)
    assert torch.equal(face_probability(logits)[1], face_probability(logits[1]))
    assert face_probability(torch.zeros(0, 2)).shape == (0,)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"mode": "cos"}, "mode='cos' is unknown; take 'logit' or 'cosine'"),
        ({"mode": "cosine"}, "weight goes with mode='cosine', and only with it; mode='cosine' got weight=None"),
        ({"weight": torch.zeros(2, 2)}, r"mode='logit' got weight=\(2, 2\)"),
        ({"inputs": torch.zeros(3, 1)}, r"inputs must be \(N, 2\) logits.*got \(3, 1\)"),
        ({"mode": "cosine", "weight": torch.zeros(3, 2)}, r"a weight \(2, W\), got \(3, 2\) and weight=\(3, 2\)"),
        ({"labels": torch.zeros(4)}, r"labels must be \(3,\), one per input, got \(4,\)"),
    ],
)
def test_margin_losses_refuse_what_does_not_fit(words, message):
    with pytest.raises(ValueError, match=message):
        margin_softmax_loss(**{"inputs": torch.zeros(3, 2), "labels": torch.zeros(3)} | words)


# the total


def test_the_total_of_a_batch_is_that_of_the_vectors(known):
    logits, labels = known["hnm_logits"], known["hnm_label"]
    count = int((labels == 1).sum())
    boxes = [known["hnm_gt_pos"][:0]] * 3  # each picture's own positives, in the order of the anchors
    faces, start = torch.full_like(labels, -1), 0
    anchors = make_anchors(64, 64, dtype=torch.float64)[: labels.shape[1]]
    loc = torch.zeros(*labels.shape, 4, dtype=torch.float64)
    for image, row in enumerate(labels):
        places = (row == 1).nonzero()[:, 0]
        boxes[image] = known["hnm_gt_pos"][start : start + len(places)]
        faces[image, places] = torch.arange(len(places))
        loc[image, places] = encode(known["hnm_pred_pos"][start : start + len(places)], anchors[places])
        start += len(places)
    assert start == count
    losses = drmc_loss(logits, loc, labels, faces, boxes, anchors, margin=0)
    near(losses["cls_loss"], known["hnm_cls_loss"][0], 1e-9)
    near(losses["reg_loss"], known["hnm_reg_loss"][0], 1e-9)
    near(losses["loss"], known["hnm_cls_loss"][0] + known["hnm_reg_loss"][0], 1e-9)


def batch(images=(3, 0, 5), width=2, dtype=torch.float64):
    """Outputs and targets of pictures with so many faces each."""
    torch.manual_seed(0)
    anchors = make_anchors(64, 64, dtype=dtype)
    boxes = [some_boxes(count, 10 + count, dtype) for count in images]
    labels, faces = match_batch(boxes, anchors, 0.4, low_threshold=0.3)
    cls = torch.randn(len(images), len(anchors), width, dtype=dtype, requires_grad=True)
    loc = torch.randn(len(images), len(anchors), 4, dtype=dtype, requires_grad=True)
    return {"cls": cls, "loc": loc, "labels": labels, "faces": faces, "boxes": boxes, "anchors": anchors}


@pytest.mark.parametrize("apply_to", ["both", "positives"])
@pytest.mark.parametrize("mode", ["logit", "cosine"])
@pytest.mark.parametrize("kind", REG_LOSSES)
def test_the_total_is_the_sum_over_kept_anchors(kind, mode, apply_to):
    data = batch(width=2 if mode == "logit" else 6)
    weight = torch.randn(2, 6, dtype=torch.float64) if mode == "cosine" else None
    found = drmc_loss(
        **data, cls_weight=weight, mode=mode, margin=0.3, apply_to=apply_to, reg_loss=kind, reg_weight=0.5
    )
    positives, cls_sum, reg_sum = 0, 0.0, 0.0
    for cls, loc, labels, faces, boxes in zip(
        *(data[key] for key in ("cls", "loc", "labels", "faces", "boxes")), strict=True
    ):
        ce = margin_softmax_loss(cls, labels, weight, margin=0, mode=mode)
        costs = margin_softmax_loss(cls, labels, weight, margin=0.3, mode=mode)
        if apply_to == "positives":
            costs = torch.where(labels == 1, costs, ce)
        cls_sum += costs[mine_negatives(ce[None], labels[None])[0]].sum()
        pos = labels == 1
        positives += int(pos.sum())
        target, anchors = boxes[faces[pos]], data["anchors"][pos]
        if kind == "smooth_l1":
            gap = (loc[pos] - encode(target, anchors)).abs()
            reg_sum += torch.where(gap < 1, gap**2 / 2, gap - 0.5).sum()
        else:
            reg_sum += box_losses(kind, decode(loc[pos], anchors), target).sum()
    assert positives > 8
    assert_close(found["cls_loss"], cls_sum / positives)
    assert_close(found["reg_loss"], reg_sum / positives)
    assert_close(found["loss"], cls_sum / positives + 0.5 * reg_sum / positives)


def test_ignored_anchors_and_the_boxes_of_negatives_have_no_gradient():
    data = batch()
    drmc_loss(**data, neg_ratio=None)["loss"].backward()
    assert (data["labels"] == -1).any()
    assert not data["cls"].grad[data["labels"] == -1].any()
    assert data["cls"].grad[data["labels"] >= 0].all()
    assert torch.equal(data["loc"].grad.abs().amax(-1) > 0, data["labels"] == 1)


@pytest.mark.parametrize("mode", ["logit", "cosine"])
@pytest.mark.parametrize("ratio", [3, None])
@pytest.mark.parametrize("kind", REG_LOSSES)
def test_a_batch_without_faces_has_losses_and_gradients_of_zero(kind, ratio, mode):
    data = batch((0, 0), 2 if mode == "logit" else 6)
    weight = torch.randn(2, 6, dtype=torch.float64, requires_grad=True) if mode == "cosine" else None
    for count in (None, torch.tensor(0.0)):
        found = drmc_loss(**data, cls_weight=weight, mode=mode, neg_ratio=ratio, reg_loss=kind, num_positives=count)
        found["loss"].backward()
        assert [loss.item() for loss in found.values()] == [0, 0, 0]
        for tensor in (data["cls"], data["loc"], weight):
            assert tensor is None or (tensor.grad == 0).all()


def test_no_pictures_have_no_loss():
    data = batch(())
    found = drmc_loss(**data)
    found["loss"].backward()
    assert [loss.item() for loss in found.values()] == [0, 0, 0]


@pytest.mark.parametrize("ratio", [3, None])
def test_two_halves_with_their_mean_number_of_positives_average_to_the_whole(ratio):
    data = batch((2, 4, 0, 0))
    whole = drmc_loss(**data, neg_ratio=ratio)
    mean = (data["labels"] == 1).sum() / 2
    parts = []
    for half in (slice(0, 2), slice(2, 4)):
        part = {key: value if key == "anchors" else value[half] for key, value in data.items()}
        parts.append(drmc_loss(**part, neg_ratio=ratio, num_positives=mean))
    for name, loss in whole.items():
        assert_close((parts[0][name] + parts[1][name]) / 2, loss)
    assert ratio is not None or parts[1]["cls_loss"].item() > 0  # its negatives count, since the other half has faces


def test_the_number_of_positives_may_be_below_one():
    data = batch()
    one, half = (drmc_loss(**data, num_positives=torch.tensor(count))["loss"] for count in (1.0, 0.5))
    assert_close(half, 2 * one)


@pytest.mark.parametrize("kind", REG_LOSSES)
def test_a_face_without_area_and_wild_codes_give_finite_losses(kind):
    data = batch(dtype=torch.float32)
    data["boxes"][0] = data["boxes"][0][:, [0, 1, 0, 1]]
    with torch.no_grad():
        data["loc"][..., 2:] *= 1e6
    found = drmc_loss(**data, reg_loss=kind)
    found["loss"].backward()
    assert torch.isfinite(found["loss"])
    assert torch.isfinite(data["loc"].grad).all()


def test_half_precision_outputs_are_computed_in_float32_under_autocast():
    data = batch(dtype=torch.float32)
    data |= {"cls": data["cls"].detach().bfloat16(), "loc": data["loc"].detach().bfloat16()}
    expected = drmc_loss(**data | {"cls": data["cls"].float(), "loc": data["loc"].float()})
    with torch.autocast("cpu", torch.bfloat16):
        found = drmc_loss(**data)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert found["loss"].dtype == torch.float32


def test_the_total_refuses_what_does_not_fit():
    data = batch()
    with pytest.raises(ValueError, match=r"must begin with \(2, 341\)"):
        drmc_loss(**data | {"boxes": data["boxes"][:2], "anchors": data["anchors"][:341]})
    with pytest.raises(ValueError, match="reg_loss='l1' is unknown"):
        drmc_loss(**data, reg_loss="l1")
    with pytest.raises(ValueError, match=r"apply_to='positive' is unknown.*did you mean 'positives'"):
        drmc_loss(**data, apply_to="positive")
