"""MCN's boxes and their loss against the official vectors, plain loops and finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck
from torch.testing import assert_close

from lit_methods.mcn.functional import build_rec_targets, decode_boxes, rec_loss, round_boxes, select_top_box
from tests.vector_files import tensors

ANCHORS = torch.tensor([[137.0, 256.0], [248.0, 272.0], [386.0, 271.0]], dtype=torch.float64)
SMALL = torch.tensor([[16.0, 30.0], [40.0, 20.0]], dtype=torch.float64)  # for an input of 64 pixels


def known(folder, name):
    return tensors(folder / "mcn" / f"{name}.npz")


def logit(x):
    return math.log(x / (1 - x))


def a_sample(box, size=64, anchors=SMALL, seed=0):
    raw = torch.randn(1, 5 * len(anchors), size // 32, size // 32, generator=torch.Generator().manual_seed(seed))
    return raw.double(), build_rec_targets(torch.tensor([box], dtype=torch.float64), anchors, size)


# -- decoding and the choice of one -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_boxes_are_those_of_the_official_code(vectors, dtype):
    file = known(vectors, "decode")
    boxes, scores = decode_boxes(file["raw"].to(dtype), file["anchors"], int(file["stride"]))
    assert boxes.dtype == scores.dtype == dtype
    assert_close(boxes, file["boxes_xyxy64"].to(dtype), rtol=1e-5, atol=1e-3)
    assert_close(scores, file["scores64"].to(dtype), rtol=0, atol=1e-6)
    box, score = select_top_box(boxes, scores)
    assert_close(box, file["top_box_xyxy"].to(dtype), rtol=1e-5, atol=1e-3)
    assert_close(score, file["top_score"].to(dtype), rtol=0, atol=1e-6)
    rounded = round_boxes(box, int(file["input_size"]))
    assert torch.equal(rounded, file["top_box_rounded_xyxy"])


def test_boxes_of_a_map_that_is_not_square_keep_rows_and_columns():
    boxes, scores = decode_boxes(torch.zeros(1, 10, 2, 3), SMALL, 8)
    assert scores.shape == (1, 2, 2, 3)
    assert_close(boxes[0, 0, 1, 2], torch.tensor([20 - 8.0, 12 - 15, 20 + 8, 12 + 15]))


def test_the_top_box_has_a_gradient_and_ignores_nan():
    raw = torch.randn(2, 10, 2, 2, dtype=torch.float64, requires_grad=True)
    boxes, scores = decode_boxes(raw, SMALL)
    box, score = select_top_box(boxes, scores)
    assert torch.equal(score, scores.flatten(1).amax(1))
    (box.square().sum() + score.sum()).backward()
    assert (raw.grad.flatten(1) != 0).sum(1).tolist() == [5, 5]
    scores = scores.detach().clone()
    scores[0, 0], scores[1] = torch.nan, torch.nan
    box, score = select_top_box(boxes, scores)
    assert score[0] == scores[0, 1].max()
    assert score[1].isnan()


def test_rounding_stays_inside_whatever_the_network_says():
    boxes = torch.tensor([[torch.nan, 3.4, torch.inf, 3.5], [-torch.inf, -0.6, 1e30, 415.5], [9.0, -8, 500, -2]])
    expected = [[0, 3, 416, 4], [0, 0, 416, 416], [9, 0, 416, 0]]
    for dtype in (torch.float32, torch.float64):
        found = round_boxes(boxes.to(dtype), 416)
        assert found.dtype == torch.int64
        assert found.tolist() == expected
    raw = torch.full((2, 15, 2, 2), 1000.0)
    raw[1] = torch.nan
    box, _ = select_top_box(*decode_boxes(raw, ANCHORS))
    assert round_boxes(box, 64).tolist() == [[0, 0, 64, 64], [0, 0, 0, 0]]
    assert round_boxes(torch.tensor([[7.5, 8.5, 9.49, 10.0]], dtype=torch.bfloat16), 16).tolist() == [[8, 9, 10, 10]]


# -- targets ----------------------------------------------------------------------------------------------------------


def test_targets_are_those_of_the_official_code(vectors):
    file = known(vectors, "loss")
    found = build_rec_targets(file["gt_xyxy"], file["anchors"], int(file["input_size"]))
    assert found.dtype == torch.float64
    assert_close(found.float(), file["target"], rtol=1e-6, atol=0)
    single = build_rec_targets(file["gt_xyxy"].float(), file["anchors"], int(file["input_size"]))
    assert_close(single, file["target"], rtol=1e-5, atol=0)


def test_the_centre_need_not_be_rounded():
    box = torch.tensor([[10.0, 20.0, 31.0, 39.5]], dtype=torch.float64)
    floored, exact = (build_rec_targets(box, SMALL, 64, floor_center=f) for f in (True, False))
    assert (floored.sum((1, 2, 3))[0, :2] * 64).tolist() == [20, 29]
    assert (exact.sum((1, 2, 3))[0, :2] * 64).tolist() == [20.5, 29.75]
    assert_close(floored[..., 2:], exact[..., 2:])


def test_the_first_of_equal_anchors_and_the_cell_of_a_border_are_taken():
    anchors = torch.tensor([[20.0, 20.0], [20.0, 20.0], [64.0, 64.0]])
    for size in (64, 736):  # official: floor(416 / 736 * 23) = 12, a cell too far to the left
        side = 32 * (size // 32 * 13 // 23) or 32
        box = torch.tensor([[side - 10, 22, side + 10, 42]], dtype=torch.float64)
        target = build_rec_targets(box, anchors, size)
        assert target[..., 4].nonzero().tolist() == [[0, 0, 1, side // 32]]


def test_boxes_at_and_beyond_the_edge_have_a_target():
    boxes = [[64, 64, 64, 64], [-50, 0, -10, 20], [90, 10, 99, 70], [torch.nan, 0, 9, 9], [5, 5, 5, 9]]
    target = build_rec_targets(torch.tensor(boxes), SMALL, 64)
    assert target[..., 4].sum((1, 2, 3)).tolist() == [1] * 5
    assert target[:3, ..., 4].nonzero()[:, 2:].tolist() == [[1, 1], [0, 0], [1, 1]]
    assert build_rec_targets(torch.zeros(0, 4), SMALL, 64).shape == (0, 2, 2, 2, 5)


def test_ideal_answers_decode_to_the_box():
    draw = torch.Generator().manual_seed(0)
    corner, sides = (torch.rand(20, 2, generator=draw, dtype=torch.float64) for _ in range(2))
    boxes = torch.cat([corner * 200, corner * 200 + 10 + sides * 200], 1)
    target = build_rec_targets(boxes, ANCHORS, 416)
    raw = torch.full((20, 3, 5, 13, 13), -20.0, dtype=torch.float64)
    for n, a, row, column in target[..., 4].nonzero().tolist():
        cx, cy, w, h, _ = (target[n, a, row, column] * 416).tolist()
        tx, ty = (logit(min(max(c / 32 - cell, 1e-9), 1)) for c, cell in ((cx, column), (cy, row)))
        sides = (math.log(side / float(anchor)) for side, anchor in zip((w, h), ANCHORS[a], strict=True))
        raw[n, a, :, row, column] = torch.tensor([tx, ty, *sides, 20])
    found, score = select_top_box(*decode_boxes(raw.flatten(1, 2), ANCHORS))
    centre, half = ((boxes[:, :2] + boxes[:, 2:]) / 2).floor(), (boxes[:, 2:] - boxes[:, :2]) / 2
    assert_close(found, torch.cat([centre - half, centre + half], 1), rtol=0, atol=1e-3)
    assert (score > 0.999).all()
    assert rec_loss(raw.flatten(1, 2), target, ANCHORS, 416)["wh"] < 1e-12


# -- loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_losses_and_gradients_are_those_of_the_official_code(vectors, dtype, tolerance):
    file = known(vectors, "loss")
    raw = file["raw"].to(dtype).requires_grad_()
    losses = rec_loss(raw, file["target"], file["anchors"], int(file["input_size"]))
    assert list(losses) == ["xy", "wh", "conf", "rec"]
    assert {(loss.dtype, loss.shape) for loss in losses.values()} == {(dtype, ())}
    for name in ("xy", "wh", "conf"):
        assert_close(losses[name].double(), file[f"loss_{name}64"], rtol=tolerance, atol=0)
    assert_close(losses["rec"], losses["xy"] + losses["wh"] + losses["conf"])
    losses["rec"].backward()
    assert_close(raw.grad.float(), file["grad_raw"], rtol=1e-5, atol=1e-6)


def test_losses_are_those_of_a_plain_loop_at_every_anchor_and_cell():
    corner = 96 * torch.rand(16, 2, dtype=torch.float64)
    boxes = torch.cat([corner, corner + 60 * torch.rand(16, 2, dtype=torch.float64)], 1)
    raw = torch.randn(16, 10, 5, 5, dtype=torch.float64)
    target = build_rec_targets(boxes, SMALL, 160)
    places, expected = target[..., 4].nonzero().tolist(), {"xy": 0.0, "wh": 0.0}
    assert {place[1] for place in places} == {0, 1}
    for (n, a, row, column), (x1, y1, x2, y2) in zip(places, boxes.tolist(), strict=True):
        said = raw[n, 5 * a : 5 * a + 4, row, column].tolist()
        offsets = math.floor((x1 + x2) / 2) / 32 - column, math.floor((y1 + y2) / 2) / 32 - row
        scale = 2 - (x2 - x1) * (y2 - y1) / 160**2
        for t, offset in zip(said[:2], offsets, strict=True):
            expected["xy"] += scale * (math.log1p(math.exp(t)) - t * offset) / 16
        for t, side, anchor in zip(said[2:], (x2 - x1, y2 - y1), SMALL[a].tolist(), strict=True):
            off = abs(math.log(side / anchor) - t)
            expected["wh"] += scale / 2 * (4.5 * off**2 if off < 1 / 9 else off - 1 / 18) / 16
    found = rec_loss(raw, target, SMALL, 160)
    assert {name: float(found[name]) for name in expected} == pytest.approx(expected, rel=1e-9)


def test_what_is_ignored_is_what_the_official_code_ignores(vectors):
    file = known(vectors, "loss")
    raw = file["raw"].clone().requires_grad_()
    rec_loss(raw, file["target"], file["anchors"], 160)["conf"].backward()
    counted = raw.grad.unflatten(1, (3, 5))[:, :, 4] != 0
    assert torch.equal(counted, (file["ignore_keep64"] + file["target"][..., 4]) > 0)
    assert not counted.all()


def test_the_loss_has_the_right_gradient_and_none_through_what_is_ignored():
    raw, target = a_sample([10, 12, 50, 40])
    raw.requires_grad_()
    assert gradcheck(lambda x: tuple(rec_loss(x, target, SMALL, 64).values()), raw)
    conf = rec_loss(raw, target, SMALL, 64)["conf"]
    (grad,) = torch.autograd.grad(conf, raw)
    assert not grad.unflatten(1, (2, 5))[:, :, :4].any()


def test_a_wrong_box_is_background_until_it_overlaps_by_half():
    box = [0, 0, 30, 30]
    target = build_rec_targets(torch.tensor([box], dtype=torch.float64), SMALL, 64)
    (_, anchor, row, column), raw = target[..., 4].nonzero()[0].tolist(), torch.full((1, 2, 5, 2, 2), -9.0).double()
    other = 1 - anchor
    raw[0, other, :2, row, column] = torch.tensor([logit(15 / 32)] * 2, dtype=torch.float64)  # the same centre
    for side, counted in ((30 * math.sqrt(0.49), True), (30 * math.sqrt(0.51), False)):
        raw[0, other, 2:4, row, column] = torch.log(side / SMALL[other])
        raw[0, other, 4, row, column] = 3.0
        found = rec_loss(raw.flatten(1, 2), target, SMALL, 64)["conf"]
        rest = 6 * F.softplus(torch.tensor(-9.0)) + F.softplus(torch.tensor(9.0))
        assert float(found - rest) == pytest.approx(float(F.softplus(torch.tensor(3.0))) if counted else 0, abs=1e-5)
    found = rec_loss(raw.flatten(1, 2), target, SMALL, 64, ignore_iou=0.6)["conf"]
    assert float(found - rest) > 3


def test_losses_are_sums_over_cells_and_means_over_samples():
    raw, target = a_sample([10, 12, 50, 40])
    one = rec_loss(raw, target, SMALL, 64)
    twice = rec_loss(raw.repeat(2, 1, 1, 1), target.repeat(2, 1, 1, 1, 1), SMALL, 64)
    assert_close(twice, one)
    empty = rec_loss(raw, torch.zeros_like(target), SMALL, 64)  # nothing to find: background alone
    assert (empty["xy"], empty["wh"]) == (0, 0)
    assert_close(empty["conf"], F.softplus(raw.unflatten(1, (2, 5))[:, :, 4]).sum())
    assert rec_loss(raw[:0], target[:0], SMALL, 64)["rec"] == 0


def test_extreme_answers_and_boxes_without_area_do_not_break_the_loss():
    raw, target = a_sample([20, 20, 20, 20])
    assert rec_loss(raw, target, SMALL, 64)["rec"].isfinite()
    raw[:, 2] = 1000.0  # a width beyond all numbers
    assert rec_loss(raw, target, SMALL, 64)["conf"].isfinite()
    raw[:, 7] = torch.nan
    assert rec_loss(raw, target, SMALL, 64)["rec"].shape == ()


def test_boxes_that_leave_the_input_do_not_reward_ever_larger_answers():
    """A target outside [0, 1] or a weight below 0 has no best answer: training would run away."""
    for box in ([60, 10, 140, 40], [-90, -10, 20, 30], [-60, -60, 120, 120]):
        raw, target = a_sample(box)
        (_, anchor, row, column) = target[..., 4].nonzero()[0].tolist()
        for sign in (-1, 1):
            raw.unflatten(1, (2, 5))[0, anchor, :4, row, column] = sign * 500.0
            losses = rec_loss(raw, target, SMALL, 64)
            assert losses["xy"] >= 0
            assert losses["wh"] > 0


def test_half_precision_is_computed_in_float32():
    raw, target = a_sample([10, 12, 50, 40])
    half = raw.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = rec_loss(half, target.float(), SMALL, 64)
    assert_close(found, rec_loss(half.float(), target.float(), SMALL, 64), rtol=0, atol=0)
    assert decode_boxes(half, SMALL)[0].dtype == torch.float32


RAW, TARGET = torch.zeros(2, 10, 2, 2), torch.zeros(2, 2, 2, 2, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decode_boxes(torch.zeros(1, 15, 2, 2), SMALL), r"raw must be \(N, 10, g, g\).*2 anchors, got \(1, 15"),
        (lambda: decode_boxes(RAW, torch.zeros(3)), r"anchors must be \(A, 2\), a width and a height"),
        (lambda: decode_boxes(RAW, SMALL, 0), "stride=0 must be at least 1"),
        (lambda: select_top_box(torch.zeros(1, 2, 2, 2, 4), torch.zeros(1, 2, 2)), r"scores \(N, A, g, g\), got"),
        (lambda: round_boxes(torch.zeros(4), 8), r"boxes must be \(N, 4\) x1, y1, x2, y2, got \(4,\)"),
        (lambda: round_boxes(torch.zeros(1, 4), 0), "size=0 must be at least 1 pixel"),
        (lambda: build_rec_targets(torch.zeros(1, 4), SMALL, 100), "size=100 must be a multiple of stride=32"),
        (lambda: build_rec_targets(torch.zeros(1, 5), SMALL, 64), r"boxes must be \(N, 4\)"),
        (lambda: build_rec_targets(torch.zeros(1, 4), torch.zeros(0, 2), 64), r"anchors must be \(A, 2\).*\(0, 2\)"),
        (lambda: rec_loss(RAW, TARGET, SMALL, 63), "g a divisor of size=63"),
        (lambda: rec_loss(RAW, TARGET[:1], SMALL, 64), r"target must be \(2, 2, 2, 2, 5\) for raw"),
        (lambda: rec_loss(RAW[:, :5], TARGET, SMALL, 64), r"raw must be \(N, 10"),
        (lambda: rec_loss(torch.zeros(2, 10, 2, 4), TARGET, SMALL, 64), "g a divisor"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
