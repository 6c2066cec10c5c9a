"""FDDB's scores against hand-made cases and a plain loop over all thresholds."""

import itertools
import math

import pytest
import torch

from lit_methods.functional.ellipses import rectangle_ellipse_iou
from lit_methods.metrics import FDDBScore
from lit_methods.metrics.fddb import curves_of, fddb_scores, image_steps
from tests.forked import answers_of

BEFORE = pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
FACE = torch.tensor([[30.0, 20.0, math.pi / 2, 50.0, 60.0]])  # 40 wide, 60 high
AROUND = [30.0, 30.0, 40.0, 60.0]


def found(*rows):
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)


def some_images(count=12, seed=0):
    """Pictures with a few faces and detections near them and elsewhere; scores come more than once."""
    draw = torch.Generator().manual_seed(seed)
    preds, ellipses = [], []
    for i in range(count):
        faces, many = i % 4, int(torch.randint(0, 9, (), generator=draw))
        ellipse = torch.rand(faces, 5, generator=draw, dtype=torch.float64)
        ellipses.append(ellipse * torch.tensor([10, 10, 3, 60, 60]) + torch.tensor([14, 10, 0, 20, 20]))
        boxes = torch.rand(many, 4, generator=draw, dtype=torch.float64) * torch.tensor([70, 70, 30, 40])
        if faces:
            near = ellipses[-1][torch.randint(0, faces, (many,), generator=draw)]
            boxes[::2] = torch.stack([near[:, 3] - 16, near[:, 4] - 18, near[:, 1] + 14, near[:, 0] + 16], 1)[::2]
            boxes[::2] += 6 * torch.rand(boxes[::2].shape, generator=draw, dtype=torch.float64)
        scores = (torch.rand(many, 1, generator=draw, dtype=torch.float64) * 20).round() / 20
        preds.append(torch.cat([boxes, scores], 1))
    return preds, ellipses


def best_matching(overlaps):
    """The overlaps of the matching with the greatest sum, by trying all."""
    if overlaps.shape[0] < overlaps.shape[1]:
        overlaps = overlaps.T
    rows = range(overlaps.shape[1])
    ways = itertools.permutations(range(overlaps.shape[0]), overlaps.shape[1])
    return max(([float(overlaps[way[m], m]) for m in rows] for way in ways), key=sum)


def plain(preds, ellipses):
    """Threshold, false positives, discrete and continuous rate at each score, everything matched anew."""
    rows, faces = [], sum(map(len, ellipses))
    for threshold in sorted({float(score) for pred in preds for score in pred[:, 4]}, reverse=True):
        detections, matches, overlap = 0, 0, 0.0
        for pred, ellipse in zip(preds, ellipses, strict=True):
            kept = pred[pred[:, 4] >= threshold]
            detections += len(kept)
            if len(kept) and len(ellipse):
                matched = best_matching(rectangle_ellipse_iou(kept[:, :4], ellipse))
                matches += sum(value > 0.5 for value in matched)
                overlap += sum(matched)
        rows.append((threshold, detections - matches, matches / faces, overlap / faces))
    return rows


@pytest.fixture(scope="module")
def rows():
    return plain(*some_images())


def test_the_quick_curve_is_the_plain_one(rows):
    result = fddb_scores(*some_images())
    expected = torch.tensor(rows, dtype=torch.float64)
    curves = torch.stack([result.curves[name].double() for name in result.curves], 1)
    torch.testing.assert_close(curves, expected, rtol=0, atol=1e-12)
    assert list(result.curves) == ["threshold", "false_positives", "discrete", "continuous"]
    assert (float(result.discrete), float(result.continuous)) == tuple(curves[-1, 2:].tolist())
    assert 0.2 < float(result.discrete) < 1


def test_the_rates_are_read_off_at_the_last_point_with_so_many_false_positives(rows):
    for most in (rows[0][1], 9, 20):
        result = fddb_scores(*some_images(), most)
        point = [row for row in rows if row[1] <= most][-1]
        assert [float(result.discrete), float(result.continuous)] == pytest.approx(list(point[2:]), abs=1e-12)


def test_a_rectangle_around_a_face_finds_it():
    result = fddb_scores([found([*AROUND, 0.7])], [FACE], 0)
    assert float(result.discrete) == 1
    assert float(result.continuous) == pytest.approx(math.pi / 4, abs=0.01)
    assert result.curves["false_positives"].tolist() == [0]


def test_of_two_detections_of_a_face_the_better_one_counts_and_one_is_false():
    result = fddb_scores([found([33, 30, 40, 60, 0.9], [*AROUND, 0.8])], [FACE])
    assert result.curves["false_positives"].tolist() == [0, 1]
    assert result.curves["discrete"].tolist() == [1, 1]
    first, second = result.curves["continuous"].tolist()
    assert first < second == pytest.approx(math.pi / 4, abs=0.01)  # the match moves on to the second


def test_a_discrete_match_has_more_than_half():
    square = torch.tensor([[0.8, 0.8, 0.0, 10.0, 10.0]])  # 4 pixels
    assert rectangle_ellipse_iou(found([9, 9, 4, 2, 1])[:, :4], square).item() == 0.5
    half, more = (fddb_scores([found([9, 9, w, 2, 1])], [square]) for w in (4, 3))
    assert (float(half.discrete), float(half.continuous)) == (0, 0.5)
    assert half.curves["false_positives"].tolist() == [1]
    assert float(more.discrete) == 1


def test_the_sum_decides_a_matching_and_not_each_detection_for_itself():
    two = torch.tensor([[20.0, 20.0, 0.0, 30.0, 30.0], [20.0, 20.0, 0.0, 46.0, 30.0]])
    between, left = [16.0, 10, 40, 40, 0.9], [10.0, 10, 40, 40, 0.8]  # the first overlaps both
    overlaps = rectangle_ellipse_iou(found(between, left)[:, :4], two)
    assert overlaps[0].argmax() == overlaps[1].argmax() == 0
    result = fddb_scores([found(between, left)], [two])
    assert float(result.continuous) == pytest.approx(float(overlaps[0, 1] + overlaps[1, 0]) / 2)


def test_detections_without_a_face_are_false_and_faces_without_detections_missed():
    result = fddb_scores([found([0, 0, 9, 9, 0.9]), found()], [torch.empty(0, 5), FACE])
    assert (float(result.discrete), result.curves["false_positives"].tolist()) == (0, [1])
    nothing = fddb_scores([found()], [FACE])
    assert (float(nothing.discrete), float(nothing.continuous), len(nothing.curves["threshold"])) == (0, 0, 0)
    assert float(fddb_scores([found([*AROUND, 0.5], [0, 0, 9, 9, 0.5])], [FACE], 0).discrete) == 0  # no such point


def test_without_a_face_there_is_no_rate():
    for preds in ([found([0, 0, 9, 9, 0.9])], [found()]):
        assert fddb_scores(preds, [torch.empty(0, 5)]).discrete.isnan()
    assert all(value.isnan() for value in fddb_scores([], [])[:2])


def as_dicts(preds, ellipses):
    boxes = [torch.cat([pred[:, :2], pred[:, :2] + pred[:, 2:4]], 1) for pred in preds]
    return (
        [{"boxes": box, "scores": pred[:, 4]} for box, pred in zip(boxes, preds, strict=True)],
        [{"ellipses": ellipse} for ellipse in ellipses],
    )


def values(metric):
    return {name: float(value) for name, value in metric.compute().items()}


def measured(metric, preds, targets, batch=5):
    for i in range(0, len(preds), batch):
        metric.update(preds[i : i + batch], targets[i : i + batch])
    return metric


def test_the_metric_is_the_function_in_batches_of_any_order():
    preds, ellipses = some_images()
    result = fddb_scores(preds, ellipses, 8)
    metric = measured(FDDBScore(8), *as_dicts(preds, ellipses))
    # boxes went from x + w back to w
    assert values(metric) == pytest.approx({"discrete": float(result.discrete), "continuous": float(result.continuous)})
    other = measured(FDDBScore(8), *as_dicts(preds[::-1], ellipses[::-1]), batch=1)
    assert values(other) == values(metric)
    for name, curve in metric.result.curves.items():
        assert torch.equal(other.result.curves[name], curve)
    metric.reset()
    metric.update([], [])
    assert metric.compute()["discrete"].isnan()


def on_rank(rank, shares, preds, targets, put):
    metric = FDDBScore(8)
    if shares[rank] is not None:
        metric.update([preds[i] for i in shares[rank]], [targets[i] for i in shares[rank]])
    put((rank, values(metric), int(metric.faces)))


@BEFORE
@pytest.mark.parametrize("shares", [[range(3), range(3, 12)], [range(12), None], [[], range(12)]])
def test_two_processes_give_what_one_gives(shares, tmp_path):
    preds, targets = as_dicts(*some_images())
    expected = values(measured(FDDBScore(8), preds, targets))
    answers = sorted(answers_of(on_rank, 2, tmp_path, shares, preds, targets), key=lambda item: item[0])
    faces = [sum(len(targets[i]["ellipses"]) for i in share or ()) for share in shares]
    assert answers == [(rank, expected, faces[rank]) for rank in (0, 1)]


def test_low_precision_of_the_module_does_not_touch_it():
    preds, targets = as_dicts(*some_images())
    metric = measured(FDDBScore(8), preds, targets)
    expected = values(measured(FDDBScore(8), preds, targets))
    metric.half()
    assert values(metric) == expected


@pytest.mark.parametrize(
    ("preds", "ellipses", "message"),
    [
        ([], [FACE], "an entry for each image, got 0 and 1"),
        ([torch.ones(2, 4)], [FACE], r"preds must be \(n, 5\) finite numbers x, y, w, h, score, got \(2, 4\)"),
        ([found([0, 0, 1, 1, math.nan])], [FACE], "NaN or infinity; leave such"),
        ([found()], [torch.ones(1, 4)], r"ellipses must be \(M, 5\)"),
    ],
)
def test_bad_arguments_are_named(preds, ellipses, message):
    with pytest.raises(ValueError, match=message):
        fddb_scores(preds, ellipses)


def test_bad_updates_and_limits_are_named():
    for make in (FDDBScore, lambda most: curves_of(image_steps(found(), FACE), 1, most)):
        with pytest.raises(ValueError, match="max_false_positives must be 0 or more, got -1"):
            make(-1)
    metric = FDDBScore()
    with pytest.raises(ValueError, match="entry for each image"):
        metric.update([], [{"ellipses": FACE}])
    with pytest.raises(ValueError, match=r"boxes \(n, 4\) and scores \(n,\), got \(2, 4\) and \(3,\)"):
        metric.update([{"boxes": torch.ones(2, 4), "scores": torch.ones(3)}], [{"ellipses": FACE}])
    assert int(metric.faces) == 0
