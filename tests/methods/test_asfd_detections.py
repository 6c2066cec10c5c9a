"""Suppression and box voting against the vectors and plain loops."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lit_methods.asfd.functional import box_voting, keep_detections
from lit_methods.functional.boxes import pairwise_iou
from tests.vector_files import tensors

TOLERANCES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])


@pytest.fixture
def known(vectors):
    return tensors(vectors / "asfd" / "nms_vote.npz")


def crowd(count, seed=0):
    """Boxes in a small space, with scores of one decimal: many ties."""
    drawn = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    first, side = 60 * drawn[:, :2], 8 + 12 * drawn[:, 2:3]
    return torch.cat([first, first + side], 1), (10 * drawn[:, 3]).round() / 10


def plain_suppression(boxes, scores, threshold):
    overlaps, kept = pairwise_iou(boxes, boxes), []
    for box in sorted(range(len(boxes)), key=lambda index: (-scores[index], index)):
        if all(overlaps[box, other] <= threshold for other in kept):
            kept.append(box)
    return kept


@TOLERANCES
@pytest.mark.parametrize("percent", ["03", "05"])
def test_kept_boxes_are_those_of_the_vectors(known, dtype, tolerance, percent):
    boxes, scores = known["boxes"].to(dtype), known["scores"].to(dtype)
    kept = keep_detections(boxes, scores, score_threshold=-1, iou_threshold=int(percent) / 10)
    assert torch.equal(kept, known[f"nms_{percent}"])


def test_equal_scores_keep_the_order_of_their_indices():
    boxes, scores = crowd(300)
    assert keep_detections(boxes, scores, -1).tolist() == plain_suppression(boxes, scores.tolist(), 0.3)
    same = torch.full((300,), 0.5)
    kept = keep_detections(boxes.float(), same)
    assert kept.tolist() == plain_suppression(boxes, same.tolist(), 0.3)
    assert kept.tolist() == sorted(kept.tolist())


def test_the_threshold_is_exclusive_and_numbers_are_limits():
    boxes = torch.tensor([[0.0, 0, 1, 1]]) + 5 * torch.arange(6.0)[:, None]
    scores = torch.tensor([0.5, 0.01, 0.25, 0.9, 0.25, 0.125])
    assert keep_detections(boxes, scores, 0.25).tolist() == [3, 0]
    assert keep_detections(boxes, scores, 0.0).tolist() == [3, 0, 2, 4, 5, 1]
    assert keep_detections(boxes, scores, 0.0, pre_nms=3).tolist() == [3, 0, 2]
    assert keep_detections(boxes, scores, 0.0, max_boxes=2).tolist() == [3, 0]
    assert keep_detections(boxes, scores, 0.0, max_boxes=0).tolist() == []


def test_a_box_goes_only_where_the_overlap_is_larger_than_the_threshold():
    boxes = torch.tensor([[0.0, 0, 2, 1], [1, 0, 2, 1]])  # IoU 1/2
    scores = torch.tensor([0.9, 0.8])
    assert keep_detections(boxes, scores, iou_threshold=0.5).tolist() == [0, 1]
    assert keep_detections(boxes, scores, iou_threshold=0.49).tolist() == [0]


def test_suppression_comes_after_the_best_were_chosen():
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [9, 9, 11, 11]])
    assert keep_detections(boxes, torch.tensor([0.9, 0.8, 0.7]), pre_nms=2).tolist() == [0]


def test_nothing_in_nothing_out_and_half_precision_works():
    empty = torch.zeros(0, 4), torch.zeros(0)
    assert keep_detections(*empty).shape == (0,)
    assert keep_detections(*empty).dtype == torch.int64
    assert box_voting(*empty).shape == (0, 5)
    boxes, scores = crowd(40)
    low = boxes.bfloat16(), scores.bfloat16()
    assert torch.equal(keep_detections(*low), keep_detections(low[0].float(), low[1].float()))
    assert torch.equal(box_voting(*low), box_voting(low[0].float(), low[1].float()))


def test_scores_that_are_no_numbers_are_no_detections():
    boxes, _ = crowd(3)
    assert keep_detections(boxes, torch.tensor([torch.nan, 0.5, torch.nan])).tolist() == [1]


@TOLERANCES
def test_votes_are_those_of_the_vectors(known, dtype, tolerance):
    found = box_voting(known["boxes"].to(dtype), known["scores"].to(dtype))
    assert found.dtype == dtype
    assert_close(found, known["vote"].to(dtype), rtol=tolerance, atol=tolerance)


def plain_votes(boxes, scores):
    left, votes = sorted(range(len(boxes)), key=lambda index: (-scores[index], index)), []
    overlaps = pairwise_iou(boxes, boxes, plus_one=True)
    while left:
        group = [box for box in left if overlaps[left[0], box] >= 0.3]
        left = [box for box in left if box not in group]
        if len(group) > 1:
            weights = np.array([float(scores[box]) for box in group])
            votes.append([*np.average(boxes[group].numpy(), 0, weights), weights.max()])
    return np.array(votes)


def test_votes_are_those_of_a_plain_loop():
    boxes, scores = crowd(200, seed=3)
    scores = scores + 0.05
    expected = plain_votes(boxes, scores)
    assert_close(box_voting(boxes, scores), torch.from_numpy(expected), rtol=0, atol=1e-9)
    assert_close(box_voting(boxes, scores, max_boxes=3), torch.from_numpy(expected[:3]), rtol=0, atol=1e-9)


def test_a_box_alone_gets_no_vote_and_scores_of_zero_give_a_plain_mean():
    boxes = torch.tensor([[0.0, 0, 4, 4], [2, 0, 6, 4], [50, 50, 40, 40]])
    assert box_voting(boxes[[0, 2]], torch.ones(2)).shape == (0, 5)  # the other's sides are out of order
    assert box_voting(boxes[:2], torch.zeros(2)).tolist() == [[1, 0, 5, 4, 0]]


def test_shapes_and_numbers_that_do_not_fit_are_refused():
    for function in (keep_detections, box_voting):
        with pytest.raises(ValueError, match=r"boxes and scores must be \(N, 4\) and \(N,\), got \(2, 4\) and \(3,\)"):
            function(torch.zeros(2, 4), torch.zeros(3))
        with pytest.raises(ValueError, match="max_boxes=-1 is a number of boxes"):
            function(torch.zeros(2, 4), torch.zeros(2), max_boxes=-1)
    with pytest.raises(ValueError, match="pre_nms=-1 is a number of boxes"):
        keep_detections(torch.zeros(2, 4), torch.zeros(2), pre_nms=-1)
