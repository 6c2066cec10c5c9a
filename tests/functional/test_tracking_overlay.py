"""Pictures of tracking: where lines and dots are, and what is left out."""

import math

import numpy as np
import pytest
import torch

from lit_methods.functional.framing import PLAIN, RIGHT, WRONG
from lit_methods.functional.tracking_overlay import PREDICTED, TRUTH, draw_boxes, label_map_picture, strip

RED = (255, 0, 0)
BLACK = np.zeros((60, 80, 3), np.uint8)


def where(picture, colour):
    """Extent x, y, w, h of the pixels of a colour, or None."""
    rows, columns = np.nonzero((picture == np.array(colour)).all(-1))
    if not len(rows):
        return None
    return int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


def test_the_outline_lies_on_the_box_and_inside_is_the_frame():
    frame = np.full((60, 80, 3), 7, np.uint8)
    drawn = draw_boxes(frame, [((10.4, 19.6, 30.0, 25.0), RED)])
    assert where(drawn, RED) == (10, 20, 30, 25)
    assert (drawn[22:43, 12:38] == 7).all()
    assert (frame == 7).all()


def test_a_box_is_numbers_tensor_or_array_and_later_ones_are_on_top():
    blue = (0, 0, 255)
    for box in ((10, 20, 30, 25), torch.tensor([10.0, 20, 30, 25]), np.array([10.0, 20, 30, 25])):
        drawn = draw_boxes(BLACK, [(box, RED), (box, blue)])
        assert where(drawn, RED) is None
        assert where(drawn, blue) == (10, 20, 30, 25)


@pytest.mark.parametrize(
    "box", [(0, 0, 0, 0), (5, 5, -3, 4), (math.nan,) * 4, (5, 5, math.inf, 5), (200, 10, 5, 5), (10, -90, 30, 40)]
)
def test_what_cannot_be_seen_is_left_out(box):
    assert (draw_boxes(BLACK, [(box, RED)]) == 0).all()


def test_a_box_that_sticks_out_is_cut_off():
    drawn = draw_boxes(BLACK, [((60, 50, 1e12, 1e12), RED)])
    assert where(drawn, RED) == (60, 50, 20, 10)
    assert (drawn[53:, 63:] == 0).all()  # the lines on the right and below are outside


def test_lines_do_not_grow_out_of_a_small_box():
    for side in range(1, 7):
        assert where(draw_boxes(BLACK, [((10, 20, side, 9), RED)]), RED) == (10, 20, side, 9)
    assert where(draw_boxes(BLACK, [((10, 20, 0.2, 0.2), RED)]), RED) == (10, 20, 1, 1)


def test_the_text_is_in_the_upper_left_corner():
    x, y, w, h = where(draw_boxes(np.full((120, 160, 3), 90, np.uint8), [], "0.93"), (0, 0, 0))
    assert (x, y) == (0, 0)
    assert 15 < w < 80
    assert 8 < h < 30


def test_no_picture_is_refused():
    with pytest.raises(ValueError, match=r"frame must be \(H, W, 3\) uint8, got float64 \(4, 4, 3\)"):
        draw_boxes(np.zeros((4, 4, 3)), [])


def test_a_strip_shows_every_second_frame_with_both_boxes():
    frames = [np.full((60, 80, 3), i, np.uint8) for i in range(5)]
    boxes = torch.tensor([[10.0 + i, 20, 30, 25] for i in range(5)])
    truth = torch.tensor([[10.0 + i, 5, 12, 8] for i in range(5)])
    truth[2] = math.nan  # nobody knows
    picture = strip(frames, boxes, truth, every=2)
    assert picture.shape == (60, 3 * 80, 3)
    for k, i in enumerate((0, 2, 4)):
        part = picture[:, k * 80 : (k + 1) * 80]
        assert (part[-5:] == i).all()
        assert where(part, PREDICTED) == (10 + i, 20, 30, 25)
        assert where(part, TRUTH) == (None if i == 2 else (10 + i, 5, 12, 8))


def test_frames_of_a_strip_are_shrunk_with_their_boxes():
    frames = [np.zeros((480, 640, 3), np.uint8), np.zeros((240, 320, 3), np.uint8)]
    picture = strip(frames, [(80, 160, 240, 200), (40, 80, 120, 100)])
    assert picture.shape == (240, 2 * 320, 3)
    assert where(picture[:, :320], PREDICTED) == where(picture[:, 320:], PREDICTED) == (40, 80, 120, 100)


def test_a_strip_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one frame"):
        strip([], [])
    with pytest.raises(ValueError, match="every=0"):
        strip([BLACK], [(1, 1, 2, 2)], every=0)
    with pytest.raises(ValueError, match="a box for each frame, got 1 frames, 2 boxes"):
        strip([BLACK], [(1, 1, 2, 2)] * 2)
    with pytest.raises(ValueError, match="got 1 frames, 1 boxes and 0 true ones"):
        strip([BLACK], [(1, 1, 2, 2)], [])


def test_dots_are_where_the_grid_is_and_of_the_label_colour():
    first, stride, n = 31, 8, 25
    axis = first + stride * torch.arange(n)
    points = torch.stack([axis.expand(n, n), axis[:, None].expand(n, n)]).float()
    labels = torch.full((n, n), -1)
    labels[3, 10], labels[20, 4] = 1, 0  # row, column
    search = torch.full((3, 255, 255), 100.0)
    search[0] = 300  # blue, and more than there is
    picture = label_map_picture(search, labels, points, torch.tensor([40.0, 50, 90, 120]))
    assert picture.shape == (255, 255, 3)
    assert where(picture, RIGHT) == (31 + 80 - 2, 31 + 24 - 2, 5, 5)
    assert where(picture, WRONG) == (31 + 32 - 1, 31 + 160 - 1, 3, 3)
    assert where(picture, PLAIN) == (31, 31, 193, 193)
    assert ((picture == np.array(PLAIN)).all(-1)).sum() == n * n - 2
    assert where(picture, (255, 255, 255)) == (40, 50, 50, 70)
    assert tuple(picture[0, 0]) == (75, 75, 189)  # RGB, darker


def test_without_a_box_there_is_none_and_wrong_grids_are_refused():
    labels, points = torch.zeros(2, 2, dtype=torch.int64), torch.full((2, 2, 2), 20.0)
    picture = label_map_picture(torch.zeros(3, 41, 41), labels, points)
    assert where(picture, (255, 255, 255)) is None
    assert where(picture, WRONG) == (19, 19, 3, 3)
    with pytest.raises(ValueError, match=r"points must be \(2, 3, 3\) for labels \(3, 3\), got \(2, 2, 2\)"):
        label_map_picture(torch.zeros(3, 41, 41), torch.zeros(3, 3), points)
