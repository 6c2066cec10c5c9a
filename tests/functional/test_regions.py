"""Boxes of annotated regions against the official toolkit's."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lit_methods.functional.regions import region_to_box


def test_boxes_of_polygons_and_rectangles_are_those_of_the_vectors(vectors):
    known = np.load(vectors / "siamban" / "region_to_box.npz")
    for given, wanted in (("polys", "poly_out"), ("rects", "rect_out")):
        boxes = region_to_box(torch.from_numpy(known[given]))
        assert_close(boxes, torch.from_numpy(known[wanted]), rtol=1e-10, atol=1e-10)


def test_leading_dimensions_and_types_are_kept():
    polygons = torch.rand(2, 3, 8, dtype=torch.float64) * 100
    boxes = region_to_box(polygons)
    assert boxes.shape == (2, 3, 4)
    assert boxes.dtype == torch.float64
    assert_close(region_to_box(polygons[1, 2]), boxes[1, 2])
    assert region_to_box(torch.tensor([1, 2, 3, 4])).tolist() == [2.5, 4.0, 3.0, 4.0]
    assert region_to_box(torch.empty(0, 8)).shape == (0, 4)


@pytest.mark.parametrize("degrees", [0, 17, 45, 90])
def test_a_turned_rectangle_keeps_its_centre_and_area(degrees):
    turn = math.radians(degrees)
    across = torch.tensor([math.cos(turn), math.sin(turn)], dtype=torch.float64)
    along = torch.tensor([-math.sin(turn), math.cos(turn)], dtype=torch.float64)
    signs = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    polygon = torch.cat(
        [torch.tensor([50.0, 60.0], dtype=torch.float64) + a * 20 * across + b * 5 * along for a, b in signs]
    )
    cx, cy, w, h = region_to_box(polygon).tolist()
    assert (cx, cy) == pytest.approx((50, 60))
    assert (w - 1) * (h - 1) == pytest.approx(40 * 10)


def test_a_line_has_a_box_of_one_pixel_and_nan_stays_nan():
    line = torch.tensor([5.0, 7.0, 15.0, 7.0, 10.0, 7.0, 8.0, 7.0])
    assert region_to_box(line).tolist() == [9.5, 7.0, 11.0, 1.0]
    assert region_to_box(torch.full((2, 8), math.nan)).isnan().all()
    assert region_to_box(torch.full((2, 4), math.nan)).isnan().all()


@pytest.mark.parametrize("shape", [(), (6,), (8, 2)])
def test_a_region_of_another_form_is_refused(shape):
    with pytest.raises(ValueError, match=r"region has shape .*must be 8 .* or 4"):
        region_to_box(torch.zeros(shape))
