"""Ellipses on the pixel grid against masks, pixel by pixel."""

import math

import pytest
import torch

from lit_methods.functional.ellipses import ellipse_rows, rectangle_ellipse_iou

SIDE = 160


def mask_of(ellipse):
    """The definition, on a grid that is large enough."""
    major, minor, angle, x, y = ellipse.tolist()
    down, across = torch.meshgrid(*[torch.arange(SIDE, dtype=torch.float64) + 0.5] * 2, indexing="ij")
    u = (across - x) * math.cos(angle) + (down - y) * math.sin(angle)
    v = (down - y) * math.cos(angle) - (across - x) * math.sin(angle)
    return (u / major) ** 2 + (v / minor) ** 2 <= 1


def mask_of_rectangle(rectangle):
    x, y, w, h = rectangle.tolist()
    middle = torch.arange(SIDE, dtype=torch.float64) + 0.5
    return ((middle >= y) & (middle < y + h))[:, None] & ((middle >= x) & (middle < x + w))


def some_ellipses(count=20):
    draw = torch.rand(count, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = torch.tensor([30, 20, 2 * math.pi, 60, 60])
    return draw * scale + torch.tensor([0.3, 0.2, -math.pi, 50, 50])


def test_the_rows_of_an_ellipse_are_its_pixels():
    for ellipse in some_ellipses():
        top, rows = ellipse_rows(ellipse)
        mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        for row, (first, after) in enumerate(rows.tolist(), top):
            mask[row, first:after] = True
        assert torch.equal(mask, mask_of(ellipse))


def test_overlaps_are_those_of_masks():
    ellipses = some_ellipses(8)
    draw = torch.rand(40, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rectangles = draw * torch.tensor([90, 90, 60, 60])
    rectangles[0] = torch.tensor([0, 0, SIDE, SIDE])
    rectangles[1] = torch.tensor([60.2, 60.2, 0.1, 9])  # between the middles of two columns
    masks = torch.stack([mask_of(ellipse) for ellipse in ellipses])
    expected = [
        (masks & inside).sum((1, 2)) / (masks | inside).sum((1, 2)) for inside in map(mask_of_rectangle, rectangles)
    ]
    found = rectangle_ellipse_iou(rectangles, ellipses)
    torch.testing.assert_close(found, torch.stack(expected).double(), rtol=0, atol=1e-6)
    assert (found[1] == 0).all()
    assert (found > 0).float().mean() > 0.3


def test_a_rectangle_around_a_circle_covers_it_by_about_a_quarter_of_pi():
    circle = torch.tensor([[200.0, 200.0, 0.3, 500.0, 400.0]])
    found = rectangle_ellipse_iou(torch.tensor([[300.0, 200.0, 400.0, 400.0]]), circle)
    assert float(found) == pytest.approx(math.pi / 4, abs=2e-4)


def test_the_angle_turns_clockwise_in_the_picture():
    down_right, down_left = torch.tensor([50.0, 50, 20, 20]), torch.tensor([30.0, 50, 20, 20])
    ellipse = torch.tensor([[25.0, 5.0, math.pi / 4, 50.0, 50.0]])
    towards, away = rectangle_ellipse_iou(torch.stack([down_right, down_left]), ellipse)[:, 0]
    assert towards > 4 * away


def test_a_region_may_reach_beyond_the_picture_and_be_far_away():
    ellipses = torch.tensor([[10.0, 10.0, 0.0, 0.0, 0.0], [10.0, 10.0, 0.0, 5000.0, 5000.0]])
    found = rectangle_ellipse_iou(torch.tensor([[-10.0, -10.0, 20.0, 20.0]]), ellipses)
    assert found[0, 0] > 0.75
    assert found[0, 1] == 0


def test_nothing_overlaps_nothing():
    assert rectangle_ellipse_iou(torch.empty(0, 4), torch.ones(3, 5)).shape == (0, 3)
    assert rectangle_ellipse_iou(torch.ones(2, 4), torch.empty(0, 5)).shape == (2, 0)
    speck = torch.tensor([[0.1, 0.1, 0.0, 5.0, 5.0]])  # holds the middle of no pixel
    assert (
        rectangle_ellipse_iou(torch.tensor([[5.0, 5.0, 0.0, 0.0], [5.0, 5.0, -3.0, -3.0]]), speck).tolist() == [[0]] * 2
    )


@pytest.mark.parametrize(
    ("rectangles", "ellipses", "message"),
    [
        (torch.ones(2, 5), torch.ones(1, 5), r"rectangles must be \(N, 4\) .*got \(2, 5\)"),
        (torch.full((1, 4), torch.nan), torch.ones(1, 5), "rectangles must be"),
        (torch.ones(1, 4), torch.ones(5), r"ellipses must be \(M, 5\)"),
        (torch.ones(1, 4), torch.full((1, 5), torch.inf), "ellipses must be"),
        (torch.ones(1, 4), torch.tensor([[1.0, -1, 0, 0, 0]]), r"radii above 0, got \[1.0, -1.0\] in row 0"),
    ],
)
def test_what_is_no_region_is_refused(rectangles, ellipses, message):
    with pytest.raises(ValueError, match=message):
        rectangle_ellipse_iou(rectangles, ellipses)
