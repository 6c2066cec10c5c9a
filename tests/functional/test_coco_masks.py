import math
from itertools import pairwise

import numpy as np
import pytest

from lit_methods.functional.coco_masks import (
    check_segmentation,
    compressed_rle,
    mask_to_rle,
    polygons_to_mask,
    rle_to_mask,
    segmentation_to_mask,
)


def walked_mask(polygon, height, width):
    """The rule as it is written down: every step along every edge, then the switch points of a run-length code."""
    corners = [(int(5 * x + 0.5), int(5 * y + 0.5)) for x, y in zip(polygon[::2], polygon[1::2], strict=True)]
    points = []
    for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
        dx, dy = abs(end[0] - start[0]), abs(end[1] - start[1])
        flip = start[0] > end[0] if dx >= dy else start[1] > end[1]
        (xs, ys), (xe, ye) = (end, start) if flip else (start, end)
        for step in range(max(dx, dy) + 1):
            t = max(dx, dy) - step if flip else step
            if dx >= dy:
                points.append((xs + t, int(ys + ((ye - ys) / dx if dx else 0) * t + 0.5)))
            else:
                points.append((int(xs + (xe - xs) / dy * t + 0.5), ys + t))
    switches = [height * width]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 != x1:
            xd = ((x1 if x1 < x0 else x1 - 1) + 0.5) / 5 - 0.5
            if xd == int(xd) and 0 <= xd <= width - 1:
                yd = min(max((min(y0, y1) + 0.5) / 5 - 0.5, 0), height)
                switches.append(int(xd) * height + math.ceil(yd))
    flat, value, last = [], 0, 0
    for switch in sorted(switches):
        flat += [value] * (switch - last)
        value, last = 1 - value, switch
    return np.array(flat, np.uint8).reshape(width, height).T


def random_polygon(rng, height, width):
    """Corners in and around a picture, which may cross themselves, lie on fifths and halves, or on each other."""
    count = int(rng.integers(1, 9))
    spread = rng.choice([0.3, 1.0, 1.6, 4.0])
    points = (rng.random((count, 2)) - 0.5) * spread * [width, height] + np.array([width, height]) / 2
    grid = rng.choice([0, 1, 2, 10, 100])  # COCO has hundredths
    points = np.round(points * grid) / grid if grid else points
    if rng.random() < 0.3:
        points = np.concatenate([points, points[: int(rng.integers(1, count + 1))]])
    return points.ravel().tolist()


@pytest.mark.parametrize("number", range(3))
def test_masks_and_codes_of_the_reference(vectors, number):
    saved = np.load(vectors / "mcn" / "polygon_mask.npz")
    height, width = (int(side) for side in saved[f"size_{number}"])
    parts = np.split(saved[f"points_{number}"], np.cumsum(saved[f"num_points_{number}"])[:-1])
    mask = polygons_to_mask([part.ravel().tolist() for part in parts], height, width)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, saved[f"mask_sum_{number}"])
    assert mask.sum() == saved[f"area_{number}"]
    counts, code = saved[f"rle_counts_{number}"].tolist(), saved[f"rle_bytes_{number}"].tobytes()
    union = (mask > 0).astype(np.uint8)
    assert mask_to_rle(mask) == counts
    assert compressed_rle(mask) == code.decode()
    for form in (counts, code, code.decode(), np.array(counts)):
        assert np.array_equal(rle_to_mask(form, height, width), union)


def test_random_polygons_are_filled_as_by_walking_along_them():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(150):
        height, width = (int(side) for side in rng.integers(1, rng.choice([3, 12, 40]), 2))
        polygons = [random_polygon(rng, height, width) for _ in range(int(rng.integers(1, 4)))]
        expected = sum(walked_mask(polygon, height, width) for polygon in polygons)
        assert np.array_equal(polygons_to_mask(polygons, height, width), expected), (height, width, polygons)
        covered += expected.sum()
    assert covered > 3000


def test_edges_that_end_between_two_steps_round_as_in_the_reference():
    rng = np.random.default_rng(1)
    for _ in range(100):  # whole pixels are multiples of five steps: many edges cross exactly between two of them
        polygon = rng.integers(-3, 24, 2 * int(rng.integers(3, 7))).tolist()
        assert np.array_equal(polygons_to_mask([polygon], 20, 18), walked_mask(polygon, 20, 18)), polygon


def test_a_rectangle_on_whole_pixels_covers_its_area():
    mask = polygons_to_mask([[2, 1, 5, 1, 5, 4, 2, 4]], 6, 7)
    expected = np.zeros((6, 7), np.uint8)
    expected[1:4, 2:5] = 1
    assert np.array_equal(mask, expected)
    assert mask.flags.c_contiguous


@pytest.mark.parametrize("polygons", [[], [[]], [[1, 1]], [[1, 1, 3, 2]], [[0, 0, 4, 0, 2, 0]], [[9, 9, 12, 9, 9, 12]]])
def test_what_has_no_area_in_the_picture_covers_nothing(polygons):
    assert not polygons_to_mask(polygons, 5, 4).any()


def test_more_polygons_than_a_byte_counts():
    square = [0, 0, 1, 0, 1, 1, 0, 1]
    assert polygons_to_mask([square] * 300, 2, 2).tolist() == [[255, 0], [0, 0]]


def test_far_corners_cost_no_memory():
    mask = polygons_to_mask([[-1e6, -1e6, 1e6, -1e6, 1e6, 1e6, -1e6, 1e6]], 3, 4)
    assert mask.all()


@pytest.mark.parametrize(
    ("polygon", "fault"),
    [
        ([1, 2, 3], "polygon 1 must be pairs of x and y, but has 3 numbers"),
        ([1, 2, float("nan"), 4], "polygon 1 has a coordinate that is not finite"),
        ([1, 2, 3, float("inf")], "polygon 1 has a coordinate that is not finite"),
        ([1, 2, 3, 1e7], "beyond 1,000,000 pixels"),
        ([[1, 2], [3, 4]], "polygon 1 must be a flat list of numbers"),
        ([[1, 2], [3]], "polygon 1 must be a flat list of numbers"),
        (["1", "2"], "polygon 1 must be a flat list of numbers"),
        (5, "polygon 1 must be a flat list of numbers"),
    ],
)
def test_faulty_polygons_are_named(polygon, fault):
    with pytest.raises(ValueError, match=fault):
        polygons_to_mask([[0, 0, 1, 0, 1, 1], polygon], 4, 4)


def test_codes_survive_a_round_trip():
    rng = np.random.default_rng(2)
    for share in (0, 0.02, 0.5, 1):
        for size in ((1, 1), (7, 5), (300, 200)):
            mask = (rng.random(size) < share).astype(np.uint8)
            counts = mask_to_rle(mask)
            assert sum(counts) == mask.size
            for code in (counts, compressed_rle(mask), compressed_rle(mask).encode()):
                assert np.array_equal(rle_to_mask(code, *size), mask)


def test_long_runs_need_several_characters():
    mask = np.zeros((2000, 1500), bool)
    mask[5:1000, 700] = mask[7, 1400] = True
    assert np.array_equal(rle_to_mask(compressed_rle(mask), 2000, 1500), mask)
    assert mask_to_rle(mask[:0]) == [0]


@pytest.mark.parametrize(
    ("counts", "fault"),
    [
        ([1, 2], "add up to 3, but the runs of a picture of height 2 and width 3 are 6 pixels"),
        ([7, -1], "are partly negative"),
        ([2**62, 2**62, 2**62, 2**62, 6], "counts of a run-length code"),
        ([1.0, 5.0], "must be whole numbers, a string or bytes"),
        (None, "must be whole numbers, a string or bytes"),
        ([[6]], "must be whole numbers, a string or bytes"),
        ([[6], [1, 2]], "must be whole numbers, a string or bytes"),
        ("", "no compressed run-length code"),
        ("12 ", "no compressed run-length code"),
        ("é", "no compressed run-length code"),
        ("12o", "no compressed run-length code"),  # the last number goes on
        ("oooooooo0", "a number in it is too long"),
        ("12", "add up to 3"),
        ("7O", "are partly negative"),
    ],
)
def test_faulty_counts_are_named(counts, fault):
    with pytest.raises(ValueError, match=fault):
        rle_to_mask(counts, 2, 3)


def test_sizes_and_shapes_are_checked():
    with pytest.raises(ValueError, match="height=0 and width=3"):
        rle_to_mask([], 0, 3)
    with pytest.raises(ValueError, match="height=2 and width=-1"):
        polygons_to_mask([], 2, -1)
    with pytest.raises(ValueError, match=r"mask must be \(h, w\), got shape \(2, 2, 1\)"):
        mask_to_rle(np.zeros((2, 2, 1)))


def test_every_form_of_a_segmentation_gives_one_mask():
    polygons = [[1, 1, 6, 1, 6, 5, 1, 5], [4, 3, 9, 3, 9, 7, 4, 7]]  # they overlap
    mask = segmentation_to_mask(polygons, 8, 10)
    assert mask.max() == 1
    assert polygons_to_mask(polygons, 8, 10).max() == 2
    for counts in (mask_to_rle(mask), compressed_rle(mask)):
        code = {"size": [8, 10], "counts": counts}
        assert np.array_equal(segmentation_to_mask(code, 8, 10), mask)
        check_segmentation(code, 8, 10)
    check_segmentation(polygons, 8, 10)


@pytest.mark.parametrize(
    ("segmentation", "fault"),
    [
        ([], "segmentation is empty"),
        ([[], [1, 2, 3, 4]], "has 2 polygons, but none with three corners"),
        ({"size": [3, 2], "counts": [6]}, r"is of height and width \[3, 2\], but its picture is of \[2, 3\]"),
        ({"size": [2, 3]}, "run-length code without counts"),
        ({"size": 6, "counts": [6]}, "height and width 6"),
        ({"size": [2, 3], "counts": [6]}, "all background"),
        ({"size": [2, 3], "counts": [5]}, "add up to 5"),
        (None, "must be a list of polygons or a run-length code with size, counts, got NoneType"),
        ("1234", "got str"),
        ([1, 2, 3, 4, 5, 6], "polygon 0 must be a flat list of numbers"),
    ],
)
def test_segmentations_that_mark_nothing_are_refused(segmentation, fault):
    with pytest.raises(ValueError, match=fault):
        check_segmentation(segmentation, 2, 3)
