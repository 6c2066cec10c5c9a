"""SiamBAN's losses, boxes, penalties and rates against the official code's and plain loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lit_methods.siamban import functional
from lit_methods.siamban.functional import (
    LABEL_SHAPES,
    LOC_LOSSES,
    assign_labels,
    decode_ltrb,
    ellipse_labels,
    learning_rates,
    ltrb_iou_loss,
    penalize,
    point_grid,
    sample_labels,
    siamban_cls_loss,
    siamban_loc_loss,
    xcorr_depthwise,
)
from tests.siamban_batches import some_boxes
from tests.vector_files import tensors

SHAPES = pytest.mark.parametrize("shape", LABEL_SHAPES)
KINDS = pytest.mark.parametrize("kind", LOC_LOSSES)
POINTS = point_grid(8, 25, 127)


@pytest.fixture
def load(vectors):
    return lambda name: tensors(vectors / "siamban" / f"{name}.npz")


# xcorr_depthwise


def test_correlation_is_that_of_the_vectors(load):
    known = load("xcorr_neck")
    assert_close(xcorr_depthwise(known["x"], known["kernel"]), known["out"], rtol=1e-4, atol=1e-5)


def test_correlation_keeps_batch_channels_and_both_sides_apart():
    x = torch.randn(3, 4, 7, 9, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(3, 4, 2, 5, dtype=torch.float64, requires_grad=True)
    patches = x.unfold(2, 2, 1).unfold(3, 5, 1)
    assert_close(xcorr_depthwise(x, kernel), torch.einsum("bcyxij,bcij->bcyx", patches, kernel))
    channels_last = x.detach().contiguous(memory_format=torch.channels_last)
    assert_close(xcorr_depthwise(channels_last, kernel), xcorr_depthwise(x, kernel))
    assert torch.autograd.gradcheck(xcorr_depthwise, (x[:1, :2], kernel[:1, :2]))


@pytest.mark.parametrize(("kernel", "fault"), [((2, 3, 2, 2), "same B and C"), ((2, 4, 8, 2), "8 x 2 is larger")])
def test_kernels_that_do_not_fit_are_refused(kernel, fault):
    with pytest.raises(ValueError, match=fault):
        xcorr_depthwise(torch.zeros(2, 4, 7, 7), torch.zeros(kernel))


# losses


def test_losses_and_their_gradients_are_those_of_the_vectors(load):
    known = load("losses")
    cls, loc = known["cls"].requires_grad_(), known["loc"].requires_grad_()
    cls_loss = siamban_cls_loss(cls, known["label_cls"])
    loc_loss = siamban_loc_loss(loc, known["label_loc"], known["label_cls"])
    tolerance = {"rtol": 1e-4, "atol": 1e-6}
    assert_close(cls_loss.double(), known["cls_loss"][0], **tolerance)
    assert_close(loc_loss.double(), known["loc_loss"][0], **tolerance)
    (cls_loss + loc_loss).backward()
    assert_close(cls.grad, known["grad_cls"], rtol=1e-4, atol=1e-7)
    assert_close(loc.grad, known["grad_loc"], rtol=1e-4, atol=1e-7)
    ignored = known["label_cls"] == -1
    assert (cls.grad.movedim(1, 3)[ignored] == 0).all()
    assert (loc.grad.movedim(1, 3)[known["label_cls"] != 1] == 0).all()


def test_one_positive_counts_and_none_is_no_fault(load):
    known = load("losses")
    one = siamban_cls_loss(known["cls"], known["label_onepos"])
    assert float(one) == pytest.approx(float(known["cls_loss_onepos_intended"]), rel=1e-4)
    assert float(one) != pytest.approx(float(known["cls_loss_onepos_official"]), rel=1e-2)
    none = siamban_cls_loss(known["cls"], known["label_nopos"])
    assert float(none) == pytest.approx(float(known["cls_loss_nopos"]), rel=1e-4)


def test_class_means_run_over_the_batch():
    logits = torch.randn(3, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(-1, 2, (3, 5, 5), generator=torch.Generator().manual_seed(1))
    labels[0] = -1
    each = F.cross_entropy(logits, labels.clamp(min=0), reduction="none")
    wanted = 0.5 * each[labels == 1].mean() + 0.5 * each[labels == 0].mean()
    assert_close(siamban_cls_loss(logits, labels), wanted)
    assert torch.autograd.gradcheck(lambda x: siamban_cls_loss(x, labels), logits)


def test_certain_logits_have_finite_losses():
    logits = torch.tensor([[-1e4, -1e4, -math.inf], [1e4, 1e4, math.inf]]).view(1, 2, 1, 3).requires_grad_()
    loss = siamban_cls_loss(logits, torch.tensor([[[1, 0, -1]]]))
    assert float(loss.detach()) == 1e4
    loss.backward()
    assert logits.grad.isfinite().all()


@KINDS
def test_losses_of_boxes_are_those_of_the_vectors(load, kind):
    known = load("losses")
    pred, target, weight = known["iou_pred"], known["iou_target"], known["iou_weight"]
    wanted = {"": known[f"mean_{kind}"][0], "w": known[f"wmean_{kind}"][0]}
    assert_close(ltrb_iou_loss(pred, target, kind).double(), wanted[""], rtol=1e-4, atol=1e-6)
    assert_close(ltrb_iou_loss(pred, target, kind, weight).double(), wanted["w"], rtol=1e-4, atol=1e-6)
    each = torch.stack([ltrb_iou_loss(pred[i : i + 1], target[i : i + 1], kind) for i in range(40)])
    assert_close(each.double(), known[f"each_{kind}"], rtol=1e-4, atol=1e-6)


@KINDS
def test_gradients_of_box_losses_are_right(kind):
    generator = torch.Generator().manual_seed(2)
    pred, target = (0.5 + 4 * torch.rand(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.rand(6, generator=generator, dtype=torch.float64)
    pred.requires_grad_()
    assert ltrb_iou_loss(pred, target, kind).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: ltrb_iou_loss(x, target, kind), pred)
    assert torch.autograd.gradcheck(lambda x: ltrb_iou_loss(x, target, kind, weight), pred)


@KINDS
def test_masked_loss_is_the_loss_of_the_positives(kind):
    generator = torch.Generator().manual_seed(4)
    pred, target = (torch.rand(3, 4, 5, 5, generator=generator, dtype=torch.float64) * 30 for _ in range(2))
    labels = torch.randint(-1, 2, (3, 5, 5), generator=generator)
    pred.requires_grad_()
    rows = [part.movedim(1, 3)[labels == 1] for part in (pred, target)]
    wanted = ltrb_iou_loss(*rows, kind)
    elsewhere = torch.where((labels == 1)[:, None], target, math.nan)
    found = siamban_loc_loss(pred, elsewhere, labels, kind)
    assert_close(found, wanted)
    (gradient,) = torch.autograd.grad(found, pred)
    assert_close(gradient, torch.autograd.grad(wanted, pred)[0])
    assert (gradient.movedim(1, 3)[labels != 1] == 0).all()


@KINDS
def test_nothing_to_average_is_zero_with_a_graph(kind):
    maps = torch.rand(2, 4, 5, 5, requires_grad=True)
    labels = torch.full((2, 5, 5), -1)
    rows = torch.rand(3, 4, requires_grad=True)
    logits = torch.randn(2, 2, 5, 5, requires_grad=True)
    for loss, leaf in (
        (ltrb_iou_loss(rows[:0], rows[:0].detach(), kind), rows),
        (ltrb_iou_loss(rows[:0], rows[:0].detach(), kind, torch.zeros(0)), rows),
        (ltrb_iou_loss(rows, rows.detach() + 1, kind, torch.zeros(3)), rows),
        (siamban_loc_loss(maps, maps.detach() + 1, labels, kind), maps),
        (siamban_cls_loss(logits, labels), logits),
    ):
        assert float(loss.detach()) == 0
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert (gradient == 0).all()


def test_half_precision_is_computed_in_float32():
    logits, pred = 3 * torch.randn(2, 2, 9, 9), 200 * torch.rand(2, 4, 9, 9)  # areas beyond the range of float16
    target, labels = pred + 7, torch.randint(-1, 2, (2, 9, 9), generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float16, torch.bfloat16):
        low_logits, low_pred, low_target = logits.to(dtype), pred.to(dtype), target.to(dtype)
        assert_close(siamban_cls_loss(low_logits, labels), siamban_cls_loss(low_logits.float(), labels))
        found = siamban_loc_loss(low_pred, low_target, labels)
        assert_close(found, siamban_loc_loss(low_pred.float(), low_target.float(), labels))
        assert found.isfinite()


def test_losses_of_tensors_that_do_not_fit_are_refused():
    rows, maps, labels = torch.ones(3, 4), torch.ones(2, 4, 5, 5), torch.ones(2, 5, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"kind='giuo' is no loss of boxes.* did you mean 'giou'"):
        ltrb_iou_loss(rows, rows, "giuo")
    with pytest.raises(ValueError, match=r"pred and target must be \(N, 4\)"):
        ltrb_iou_loss(rows, rows[:2])
    with pytest.raises(ValueError, match=r"weight must be \(3,\)"):
        ltrb_iou_loss(rows, rows, weight=torch.ones(3, 1))
    with pytest.raises(ValueError, match="pred, target and labels must be"):
        siamban_loc_loss(maps, maps, labels[:1])
    with pytest.raises(ValueError, match=r"logits and labels must be \(B, 2, n, n\)"):
        siamban_cls_loss(maps, labels)


# decode_ltrb and penalize


@pytest.mark.parametrize("run", [0, 1])
def test_a_frames_boxes_penalties_and_scores_are_those_of_the_vectors(load, run):
    known, window = load("track_step"), load("points")["hanning_window"]
    k, influence, _ = known[f"hp{run}"].tolist()
    score = known[f"cls{run}"][:1].double().softmax(1)[:, 1].flatten(1)
    assert_close(score[0], known[f"score_first{run}"], rtol=1e-4, atol=1e-6)
    boxes = decode_ltrb(known[f"loc{run}"][:1], point_grid(8, 25, 0))
    assert boxes.shape == (1, 625, 4)
    centered = torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], 2)
    assert_close(centered[0].T.double(), known[f"pred_box_first{run}"], rtol=1e-4, atol=1e-4)
    size = known[f"init_size{run}"]
    scale = 127 / (size + 0.5 * size.sum()).prod().sqrt()
    pscore, penalty = penalize(score, boxes.double(), (size * scale)[None], k, window, influence)
    assert_close(penalty[0], known[f"penalty_first{run}"], rtol=1e-4, atol=1e-6)
    assert_close(pscore[0], known[f"pscore_first{run}"], rtol=1e-4, atol=1e-6)
    assert int(pscore.argmax()) == int(known[f"out{run}"][0, 0])


def test_decoded_targets_are_the_box():
    boxes = some_boxes(dtype=torch.float32)
    labels, deltas = ellipse_labels(boxes, POINTS)
    decoded = decode_ltrb(deltas, POINTS)
    assert_close(decoded, boxes[:, None].expand_as(decoded), rtol=0, atol=1e-4)
    assert torch.equal(decode_ltrb(deltas, POINTS.flatten(1).T), decoded)
    assert (labels == 1).any()


def test_penalties_are_at_most_one_and_one_for_the_same_size():
    boxes = some_boxes(60).view(2, 30, 4)
    size = boxes[..., 2:] - boxes[..., :2]
    window, score = torch.rand(30, dtype=torch.float64), torch.rand(2, 30, dtype=torch.float64)
    pscore, penalty = penalize(score, boxes, size[:, 4], 0.3, window, 0.0)
    assert (penalty <= 1).all()
    assert (penalty[:, 4] == 1).all()
    assert (penalty[:, :4] < 1).all()
    assert_close(pscore, penalty * score)
    for b in range(2):
        alone = penalize(score[b : b + 1], boxes[b : b + 1], size[b : b + 1, 4], 0.3, window, 0.0)
        assert torch.equal(alone[1][0], penalty[b])


def test_a_window_of_full_influence_picks_the_centre(load):
    window = load("points")["hanning_window"]
    boxes = decode_ltrb(1 + 50 * torch.rand(3, 4, 25, 25), point_grid(8, 25, 0))
    pscore, _ = penalize(torch.rand(3, 625), boxes, torch.full((3, 2), 60.0), 0.1, window, 1.0)
    assert pscore.argmax(1).tolist() == [312] * 3
    assert pscore.dtype == torch.float32


def test_boxes_without_area_never_win():
    boxes = torch.tensor([[[5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 8.0, 8.0], [math.nan] * 4, [0.0, 0.0, 0.0, 8.0]]])
    for k in (0.0, 0.2):
        pscore, penalty = penalize(
            torch.tensor([[0.9, 0.5, 0.9, 0.9]]), boxes, torch.full((1, 2), 8.0), k, torch.zeros(4), 0.4
        )
        assert penalty.tolist() == [[0, 1, 0, 0]]
        assert int(pscore.argmax()) == 1


def test_boxes_and_scores_that_do_not_fit_are_refused():
    score, boxes, window = torch.zeros(2, 9), torch.zeros(2, 9, 4), torch.zeros(9)
    with pytest.raises(ValueError, match="score, boxes and prev_wh must be"):
        penalize(score, boxes, torch.ones(2), 0.1, window, 0.4)
    with pytest.raises(ValueError, match=r"window must be \(9,\)"):
        penalize(score, boxes, torch.ones(2, 2), 0.1, torch.zeros(8), 0.4)
    with pytest.raises(ValueError, match="loc and points must be"):
        decode_ltrb(torch.zeros(2, 4, 3, 3), point_grid(8, 5, 0))


# learning_rates


def test_learning_rates_are_those_of_the_vectors(load):
    known = load("lr_schedule")
    rates = torch.tensor(learning_rates(), dtype=torch.float64)
    assert_close(rates, known["lr_spaces"], rtol=1e-10, atol=0)
    assert_close(rates, known["group_lr"][:, 1], rtol=1e-10, atol=0)


def test_schedules_of_other_lengths_begin_and_end_where_they_should():
    rates = learning_rates(7, 3, start=0.1, peak=0.8, end=0.01)
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert len(rates) == 7
    assert rates[-1] == pytest.approx(0.01)
    assert learning_rates(1, 0) == [0.005]
    assert learning_rates(3, 2)[2] == 0.005
    assert learning_rates(2, 2) == pytest.approx([0.001, 0.001 * 5**0.5])


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ({"epochs": 3}, "warmup_epochs=5 must lie between 0 and epochs=3"),
        ({"epochs": 0, "warmup_epochs": 0}, "epochs be at least 1"),
        ({"end": 0.0}, "rates must be positive.* end=0.0"),
    ],
)
def test_schedules_that_cannot_be_are_refused(words, fault):
    with pytest.raises(ValueError, match=fault):
        learning_rates(**words)


# all of them


def test_the_public_names_are_all_here():
    names = (
        "point_grid ellipse_labels rectangle_labels circle_labels assign_labels sample_labels xcorr_depthwise "
        "siamban_cls_loss ltrb_iou_loss siamban_loc_loss decode_ltrb penalize region_to_box learning_rates "
        "context_size canonical_box crop_patch warp_crop augment_crop_box flip_boxes"
    )
    assert set(names.split()) <= set(functional.__all__)
    assert not [name for name in functional.__all__ if not hasattr(functional, name)]


def test_empty_batches_pass_through():
    boxes, maps = torch.zeros(0, 4), torch.zeros(0, 4, 25, 25, requires_grad=True)
    labels, deltas = ellipse_labels(boxes, POINTS, torch.zeros(0, dtype=torch.bool))
    assert sample_labels(labels).shape == (0, 25, 25)
    assert float((siamban_cls_loss(maps[:, :2], labels) + siamban_loc_loss(maps, deltas, labels)).detach()) == 0
    assert decode_ltrb(maps, POINTS).shape == (0, 625, 4)
    assert xcorr_depthwise(maps, maps[:, :, :5, :3]).shape == (0, 4, 21, 23)
    assert xcorr_depthwise(maps, maps[:, :, :5, :3]).requires_grad


@KINDS
@SHAPES
def test_nothing_looks_at_values_on_the_host(shape, kind):
    with torch.device("meta"):  # whose tensors have none
        boxes, negative, weight = torch.zeros(3, 4), torch.zeros(3, dtype=torch.bool), torch.zeros(3)
        maps, points, window = torch.zeros(3, 4, 25, 25), point_grid(8, 25, 127), torch.zeros(625)
    labels, deltas = assign_labels(shape, boxes, points, negative)
    labels = sample_labels(labels, 16, torch.where(negative, 16, 48))
    losses = siamban_cls_loss(maps[:, :2], labels), siamban_loc_loss(maps, deltas, labels, kind)
    assert [loss.shape for loss in (*losses, ltrb_iou_loss(boxes, boxes, kind, weight))] == [()] * 3
    assert xcorr_depthwise(maps, maps[:, :, :5, :5]).shape == (3, 4, 21, 21)
    decoded = decode_ltrb(maps, points)
    pscore, penalty = penalize(maps[:, 1].flatten(1), decoded, boxes[:, 2:], 0.1, window, 0.4)
    assert pscore.shape == penalty.shape == (3, 625)
    assert pscore.is_meta
