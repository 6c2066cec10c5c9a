"""SiamBAN's points, labels and what is drawn of them, against the official code's and plain loops."""

import math

import pytest
import torch
from torch.testing import assert_close

from lit_methods.siamban.functional import (
    LABEL_SHAPES,
    assign_labels,
    circle_labels,
    ellipse_labels,
    point_grid,
    rectangle_labels,
    sample_labels,
)
from tests.siamban_batches import some_boxes
from tests.vector_files import tensors

LABELLERS = {"ellipse": ellipse_labels, "rectangle": rectangle_labels, "circle": circle_labels}
SHAPES = pytest.mark.parametrize("shape", LABEL_SHAPES)
POINTS = point_grid(8, 25, 127)


@pytest.fixture
def load(vectors):
    return lambda name: tensors(vectors / "siamban" / f"{name}.npz")


def count(labels, label):
    return (labels == label).flatten(1).sum(1)


# point_grid


def test_grids_are_those_of_the_vectors(load):
    known = load("points")
    for number in (0, 1):
        grid = point_grid(*known[f"params{number}"].tolist())
        assert grid.dtype == torch.float32
        assert torch.equal(grid, known[f"grid{number}"])
    assert torch.equal(point_grid(8, 25, 0).flatten(1).T, known["tracker_points"])


def test_an_even_grid_has_one_more_point_before_the_centre():
    assert point_grid(4, 4, 10)[0, 0].tolist() == [2, 6, 10, 14]


@pytest.mark.parametrize("words", [(8, 0, 127), (0, 25, 127)])
def test_a_grid_without_points_is_refused(words):
    with pytest.raises(ValueError, match=r"size=.* at least 1 and stride=.* positive"):
        point_grid(*words)


# labels


def test_labels_and_deltas_are_those_of_the_vectors(load):
    known = load("targets")
    labels, deltas = ellipse_labels(known["boxes"], POINTS)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, known["cls_full"])
    assert_close(deltas, known["delta"].double(), rtol=0, atol=1e-4)
    labels, deltas = ellipse_labels(known["boxes"], POINTS, torch.ones(10, dtype=torch.bool))
    assert torch.equal(labels, known["neg_pair_full"])
    assert (deltas == 0).all()


def test_negative_pairs_change_nothing_for_the_others_of_their_batch(load):
    boxes = load("targets")["boxes"]
    negative = torch.arange(10) % 3 == 0
    mixed, deltas = ellipse_labels(boxes, POINTS, negative)
    for sign in (True, False):
        labels, wanted = ellipse_labels(boxes, POINTS, torch.full((10,), sign))
        assert torch.equal(mixed[negative == sign], labels[negative == sign])
        assert torch.equal(deltas[negative == sign], wanted[negative == sign])


@SHAPES
def test_labels_are_those_of_a_plain_loop(shape):
    boxes = some_boxes(12)
    labels, deltas = LABELLERS[shape](boxes, POINTS)
    for box, row in zip(boxes.tolist(), labels.tolist(), strict=True):
        x0, y0, x1, y1 = box
        w, h, xc, yc = x1 - x0, y1 - y0, (x0 + x1) / 2, (y0 + y1) / 2
        for i, py in enumerate(range(31, 224, 8)):
            for j, px in enumerate(range(31, 224, 8)):
                dx, dy = abs(px - xc), abs(py - yc)
                if shape == "ellipse":
                    inner, outer = (dx**2 / (w / k) ** 2 + dy**2 / (h / k) ** 2 for k in (4, 2))
                elif shape == "rectangle":
                    inner, outer = (max(dx / (w / k), dy / (h / k)) for k in (4, 2))
                else:
                    inner, outer = (math.hypot(dx, dy) / (math.sqrt(w * h) / k) for k in (4, 2))
                inside = dx < w / 2 and dy < h / 2
                assert row[i][j] == (1 if inner < 1 and inside else 0 if outer > 1 else -1)
    again = assign_labels(shape, boxes, POINTS)
    assert torch.equal(again[0], labels)
    assert torch.equal(again[1], deltas)


@SHAPES
def test_targets_lie_within_the_box_and_distances_add_up_to_its_sides(shape):
    thin = torch.tensor([[20.0, 124.0, 230.0, 130.0]], dtype=torch.float64)  # its inner circle is higher than the box
    boxes = torch.cat([some_boxes(), thin])
    labels, deltas = assign_labels(shape, boxes, POINTS)
    target = labels == 1
    assert target.any()
    assert (deltas > 0).all(1)[target].all()
    sides = torch.stack([deltas[:, 0] + deltas[:, 2], deltas[:, 1] + deltas[:, 3]], 1)
    assert_close(sides, (boxes[:, 2:] - boxes[:, :2])[..., None, None].expand_as(sides))
    assert set(labels.unique().tolist()) == {-1, 0, 1}


@SHAPES
def test_mirrored_boxes_have_mirrored_labels(shape):
    boxes = some_boxes()
    labels, deltas = assign_labels(shape, boxes, POINTS)
    mirrored = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([254, 0, 254, 0])
    flipped, distances = assign_labels(shape, mirrored, POINTS)
    assert torch.equal(flipped.flip(2), labels)
    assert_close(distances.flip(3), deltas[:, [2, 1, 0, 3]])


@SHAPES
def test_outlines_belong_to_neither_side(shape):
    # x and y of the points: 119, 127, 135; the box's half is 8 and the inner half 4
    labels, _ = assign_labels(shape, torch.tensor([[119.0, 119.0, 135.0, 135.0]]), point_grid(4, 5, 127))
    assert labels[0, 2].tolist() == [-1, -1, 1, -1, -1]
    assert labels[0, :, 2].tolist() == [-1, -1, 1, -1, -1]


@SHAPES
def test_boxes_without_area_have_no_target_and_nan_is_ignored(shape):
    tiny, flat, turned, nan = [124, 124, 126, 126], [127, 100, 127, 150], [150, 150, 100, 100], [math.nan] * 4
    boxes = torch.tensor([tiny, flat, turned, nan], dtype=torch.float32)
    labels, _ = assign_labels(shape, boxes, POINTS)
    assert not (labels == 1).any()
    assert (labels[0] == 0).sum() == 625
    assert (labels[3] == -1).all()


def test_half_and_whole_numbers_become_float32():
    for dtype in (torch.int64, torch.bfloat16, torch.float32):
        assert ellipse_labels(torch.tensor([[100, 100, 160, 160]], dtype=dtype), POINTS)[1].dtype == torch.float32
    assert ellipse_labels(some_boxes(), POINTS)[1].dtype == torch.float64


def test_tensors_that_do_not_fit_are_refused():
    boxes = some_boxes(3)
    with pytest.raises(ValueError, match=r"shape='elipse' is no label shape.* did you mean 'ellipse'"):
        assign_labels("elipse", boxes, POINTS)
    with pytest.raises(ValueError, match=r"boxes must be \(B, 4\)"):
        ellipse_labels(boxes[0], POINTS)
    with pytest.raises(ValueError, match=r"points must be \(2, n, n\)"):
        ellipse_labels(boxes, POINTS.flatten(1).T)
    with pytest.raises(ValueError, match=r"negative must be \(3,\) bool"):
        ellipse_labels(boxes, POINTS, torch.zeros(3))


# sample_labels


def test_numbers_of_sampled_labels_are_those_of_the_vectors(load):
    known = load("targets")
    for labels, numbers, budget in (
        (known["cls_full"], known["sampled_counts"][:, :2], 48),
        (known["neg_pair_full"], known["sampled_counts"][:, 2:], 16),
    ):
        kept = sample_labels(labels, num_neg=budget)
        assert torch.equal(torch.stack([count(kept, 1), count(kept, 0)], 1), numbers)
        assert torch.equal(kept[kept >= 0], labels[kept >= 0])  # the others became -1


def test_sampling_follows_its_generator_and_leaves_its_input_alone(load):
    labels = load("targets")["cls_full"]
    before = labels.clone()
    seeds = (7, 7, 8)
    first, again, other = (sample_labels(labels, generator=torch.Generator().manual_seed(s)) for s in seeds)
    assert torch.equal(labels, before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_each_image_may_have_its_own_numbers(load):
    labels = load("targets")["cls_full"]
    most = torch.arange(10)
    kept = sample_labels(labels, num_pos=most, num_neg=48 - most)
    assert torch.equal(count(kept, 1), torch.minimum(count(labels, 1), most))
    assert torch.equal(count(kept, 0), torch.minimum(count(labels, 0), 48 - most))
    assert not (sample_labels(labels, 0, 0) >= 0).any()


def test_each_point_is_drawn_equally_often():
    labels = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0, 0, -1, -1, -1]).view(1, 3, 4).repeat(20000, 1, 1)
    kept = sample_labels(labels, 1, 3, torch.Generator().manual_seed(0)).flatten(1)
    shares = (kept >= 0).double().mean(0)
    assert_close(shares[:9], torch.tensor([0.25] * 4 + [0.6] * 5, dtype=torch.float64), rtol=0, atol=0.015)
    pairs = ((kept[:, 4] == 0) & (kept[:, 5] == 0)).double().mean()
    assert float(pairs) == pytest.approx(0.3, abs=0.015)  # 3 of 5: without replacement, 3/5 * 2/4


def test_keys_decide_which_points_stay():
    labels = torch.tensor([[[1, 1, 1], [0, 0, 0]], [[0, -1, 1], [1, 0, 1]]])
    keys = torch.tensor([[[0.3, 0.1, 0.2], [0.6, 0.4, 0.5]], [[0.9, 0.0, 0.7], [0.8, 0.1, 0.2]]])
    kept = sample_labels(labels, 2, 1, keys=keys)
    assert kept.tolist() == [[[-1, 1, 1], [-1, 0, -1]], [[-1, -1, 1], [-1, 0, 1]]]
    with pytest.raises(ValueError, match=r"keys must be .* without a generator"):
        sample_labels(labels, keys=keys, generator=torch.Generator())
    with pytest.raises(ValueError, match=r"keys must be \(2, 2, 3\)"):
        sample_labels(labels, keys=keys[:1])


def test_numbers_that_cannot_be_drawn_are_refused():
    labels = torch.zeros(2, 3, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="num_pos=-1 must not be negative"):
        sample_labels(labels, -1)
    with pytest.raises(ValueError, match=r"num_neg must be a number or \(2,\)"):
        sample_labels(labels, 1, torch.ones(3))
    with pytest.raises(ValueError, match=r"labels must be \(B, n, n\)"):
        sample_labels(labels[0])
    with pytest.raises(ValueError, match="generator is on cpu, labels are on meta"):
        sample_labels(labels.to("meta"), generator=torch.Generator())
