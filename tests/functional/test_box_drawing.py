"""Detections on their picture."""

import numpy as np
import pytest
import torch

from lit_methods.functional.box_drawing import FOUND, TRUTH, draw_detections

BLACK = np.zeros((200, 240, 3), np.uint8)


def places(drawn, colour):
    rows, columns = np.nonzero((drawn == colour).all(2))
    return [int(n) for n in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)] if len(rows) else []


def test_outlines_lie_inside_their_boxes():
    for box in ([10, 20, 12, 23], [10, 20, 110, 170], [10.4, 19.6, 30.4, 40.4]):
        assert places(draw_detections(BLACK, [box]), FOUND) == [round(v) for v in box]
    inside = draw_detections(BLACK, torch.tensor([[10.0, 20, 110, 170]]))[30:160, 20:100]
    assert not inside.any()


def test_found_boxes_lie_on_true_ones_and_the_best_on_top():
    box = [30, 40, 90, 100]
    drawn = draw_detections(BLACK, [box], truth=[[v + 20 for v in box], box])
    assert places(drawn, FOUND) == box
    assert places(drawn, TRUTH)[2:] == [110, 120]
    apart = draw_detections(BLACK, np.array([[50, 80, 130, 150], box]), [0.9, 0.2])
    assert (apart[80, 60:80] == FOUND).all()
    assert (apart[85:99, 50] == FOUND).all()  # of the better box, inside the other


def test_scores_stand_above_boxes_that_are_wide_enough():
    def changed(box):
        with_score, without = draw_detections(BLACK, [box], [0.87]), draw_detections(BLACK, [box])
        return np.nonzero((with_score != without).any(2))

    rows, columns = changed([50, 60, 110, 140])
    assert rows.max() <= 60
    assert columns.min() >= 50
    assert columns.max() < 110
    assert not len(changed([50, 60, 65, 80])[0])
    assert len(changed([50, 0, 110, 140])[0])  # at the upper edge it stands inside


def test_what_cannot_be_drawn_is_left_out():
    wrong = [[np.nan, 0, 9, 9], [5, 5, 5, 30], [30, 5, 9, 30], [np.inf, 0, np.inf, 9]]
    assert (draw_detections(BLACK, wrong, [0.5] * 4, truth=wrong) == BLACK).all()
    assert (draw_detections(BLACK, [[500, 500, 900, 900]]) == BLACK).all()
    assert (draw_detections(BLACK, torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 4)) == BLACK).all()
    assert draw_detections(BLACK, [[-1e30, -1e30, 1e30, 1e30]], [1.0]).shape == BLACK.shape


def test_the_picture_itself_stays_as_it_is():
    picture = BLACK.copy()
    draw_detections(picture, [[1, 1, 50, 50]], [0.5])
    assert (picture == 0).all()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"image must be \(H, W, 3\) uint8, got float64"):
        draw_detections(np.zeros((9, 9, 3)), [])
    with pytest.raises(ValueError, match="scores: 2 of them for 1 boxes"):
        draw_detections(BLACK, [[1, 1, 5, 5]], [0.5, 0.4])
