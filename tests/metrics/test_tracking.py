"""Metrics of trackers against the toolkit's values and plain loops, however the videos are shared out."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection

from lit_methods.functional.ope import PRECISION_THRESHOLDS
from lit_methods.metrics import OPENormPrecision, OPEPrecision, OPESuccess, VOTReset
from lit_methods.metrics.tracking import (
    expected_overlap_curve,
    ope_curves,
    paired_iou_xywh,
    summarize,
    vot_overlaps,
)
from tests.forked import answers_of
from tests.tracking_reference import ope_loop

KINDS = ("success", "precision", "norm_precision")


@pytest.fixture
def ope(vectors):
    """Predictions, annotation and flags of three videos, and the toolkit's figures."""
    file = np.load(vectors / "siamban" / "ope.npz")
    return [[torch.from_numpy(file[f"{name}{i}"]) for name in ("pred", "gt", "present")] for i in range(3)], file


@pytest.fixture
def vot(vectors):
    """Three runs with resets, the image's size, and the toolkit's figures."""
    file = np.load(vectors / "siamban" / "vot.npz")
    size = tuple(file["image_wh"].tolist())
    return [(*(torch.from_numpy(file[f"{k}{i}"]) for k in ("pred", "state", "gt")), size) for i in range(3)], file


def all_metrics(protocol="toolkit"):
    return {
        "success": OPESuccess(),
        "precision": OPEPrecision(protocol),
        "norm_precision": OPENormPrecision(protocol),
        "norm_precision_auc": OPENormPrecision(protocol, summary="auc"),
    }


def odd_video(count=120, seed=0):
    """Boxes in every odd place: lost, without size, left of the image, unknown, and on thresholds to the last bit."""
    draw = torch.Generator().manual_seed(seed)
    target = torch.randint(-5, 60, (count, 4), generator=draw).double()
    target[:, 2:] = target[:, 2:].clamp(min=1)
    preds = target + torch.randint(-30, 30, (count, 4), generator=draw)
    preds[:40] = target[:40] + torch.tensor([3.0, 4, 0, 0]) * torch.randint(6, (40, 1), generator=draw)
    preds[40:50] = target[40:50]
    target[50:55, 2] = 0
    target[52:57, 3] = 0
    preds[53] = target[53]  # the toolkit divides 0 by 1e-16: a hit
    target[57:62] = torch.nan
    target[62, 0] = torch.nan
    target[63:66, :2] = -50.0
    return preds, target, torch.rand(count, generator=draw) < 0.8


@pytest.mark.parametrize("rule", ["lasot", "otb"])
def test_curves_are_those_of_the_toolkit(ope, rule):
    videos, file = ope
    metrics = all_metrics()
    for i, (preds, target, present) in enumerate(videos):
        present = present if rule == "lasot" else None
        for kind, curve in zip(("success", "precision", "normprec"), ope_curves(preds, target, present), strict=True):
            assert curve.dtype == torch.float64
            np.testing.assert_array_equal(curve, file[f"{rule}_{kind}{i}"])
        for metric in metrics.values():
            metric.update(preds, target, present)
    found = [float(metrics[kind].compute()) for kind in KINDS]
    np.testing.assert_allclose(found, file[f"{rule}_summary"], rtol=1e-12)
    area = np.mean([file[f"{rule}_normprec{i}"].mean() for i in range(3)])
    np.testing.assert_allclose(metrics["norm_precision_auc"].compute(), area, rtol=1e-12)


def test_ious_of_pairs_are_those_of_the_toolkit(ope):
    file = ope[1]
    found = paired_iou_xywh(torch.from_numpy(file["iou_a"]), torch.from_numpy(file["iou_b"]))
    np.testing.assert_allclose(found, file["iou"], rtol=1e-12)
    boxes = torch.rand(2000, 4, dtype=torch.float64) + 0.1
    assert paired_iou_xywh(boxes, boxes).max() == 1  # unclipped, some are 1 + 2e-16
    empty = torch.tensor([[1.0, 1, 0, 0], [torch.nan, 1, 1, 1]])
    assert paired_iou_xywh(empty, empty)[0] == 0
    assert paired_iou_xywh(empty, empty)[1].isnan()


@pytest.mark.parametrize("protocol", ["toolkit", "strict"])
@pytest.mark.parametrize("seed", range(3))
def test_curves_are_those_of_a_loop_over_frames_and_thresholds(protocol, seed):
    preds, target, present = odd_video(seed=seed)
    for flags in (None, present, present.int()):
        found = ope_curves(preds, target, flags, protocol)
        expected = ope_loop(preds, target, flags, protocol == "toolkit")
        for kind, curve, other in zip(KINDS, found, expected, strict=True):
            np.testing.assert_array_equal(curve, other, err_msg=kind)


def test_values_on_a_threshold_count_as_the_toolkit_counts_them():
    """At most so many pixels apart, but IoU above."""
    target = torch.tensor([[10.0, 10, 20, 20]])
    curves = ope_curves(target + torch.tensor([3.0, 4.0, 0, 0]), target)
    assert curves.precision.tolist() == [float(t >= 5) for t in PRECISION_THRESHOLDS.tolist()]
    curves = ope_curves(torch.tensor([[10.0, 10, 20, 10]]), target)  # IoU of exactly a half
    assert curves.success[9:11].tolist() == [1, 0]
    target = torch.tensor([[10.0, 10, 16, 16]])
    curves = ope_curves(target + torch.tensor([4.0, 0, 0, 0]), target)  # a quarter of the width
    assert curves.norm_precision[24:26].tolist() == [0, 1]
    curves = ope_curves(target + torch.tensor([4.0001, 0, 0, 0]), target)
    assert curves.norm_precision[24:27].tolist() == [0, 0, 1]


def test_perfect_boxes_give_twenty_of_twenty_one():
    boxes = torch.rand(500, 4) * 100 + 1
    metrics = all_metrics()
    for metric in metrics.values():
        metric.update(boxes, boxes)
    assert {kind: float(metric.compute()) for kind, metric in metrics.items()} == {
        "success": 20 / 21,
        "precision": 1,
        "norm_precision": 1,
        "norm_precision_auc": 1,
    }


def test_unknown_truth_is_a_hit_for_the_toolkit_and_none_when_strict():
    preds = torch.tensor([[10.0, 10, 5, 5]]).repeat(4, 1)
    target = preds.clone()
    target[0] = torch.nan
    target[1, 0] = -20  # the target is there, left of the image
    assert ope_curves(preds, target).precision.tolist() == [1.0] * 51
    strict = ope_curves(preds, target, protocol="strict")
    assert strict.precision.tolist() == [0.5] * 51
    assert strict.norm_precision.tolist() == [0.5] * 51
    for curves in (strict, ope_curves(preds, target)):
        assert curves.success[:20].tolist() == [0.5] * 20


def test_absent_frames_lower_the_score_and_never_hit():
    boxes = torch.tensor([[10.0, 10, 5, 5]]).repeat(4, 1)
    curves = ope_curves(boxes, boxes, torch.tensor([1, 1, 1, 0]))
    assert [curve[:20].unique().tolist() for curve in curves] == [[0.75]] * 3
    assert torch.cat(ope_curves(boxes, boxes, torch.zeros(4).bool())).unique().tolist() == [0]


def test_other_types_give_the_same():
    preds, target, _ = (part[:50] for part in odd_video())
    for kind in (torch.float32, torch.int64):
        for found, expected in zip(ope_curves(preds.to(kind), target), ope_curves(preds, target), strict=True):
            assert torch.equal(found, expected)


def test_numbers_of_some_videos_are_those_of_the_metrics():
    videos = [odd_video(seed=seed) for seed in range(4)]
    metrics = all_metrics("strict")
    for video in videos:
        for metric in metrics.values():
            metric.update(*video)
    found = summarize([ope_curves(*video, protocol="strict") for video in videos])
    assert list(found) == ["success_auc", "precision", "norm_precision", "norm_precision_auc"]
    np.testing.assert_allclose(list(found.values()), [m.compute() for m in metrics.values()], rtol=1e-12)
    assert all(np.isnan(value) for value in summarize([]).values())


def test_every_video_has_the_same_weight_and_the_curve_can_be_drawn():
    short, long = odd_video(70), odd_video(900, seed=1)
    for metric, kind in zip(all_metrics().values(), (*KINDS, KINDS[2]), strict=True):
        metric.update(*short)
        first = metric.curve()
        metric.update(*long)
        mean = (getattr(ope_curves(*short), kind) + getattr(ope_curves(*long), kind)) / 2
        np.testing.assert_allclose(metric.curve(), mean, rtol=1e-12)
        assert torch.equal(first, getattr(ope_curves(*short), kind))
        metric.reset()
        metric.update(*long)
        assert torch.equal(metric.curve(), getattr(ope_curves(*long), kind))
        assert metric.compute().shape == ()


def test_a_collection_tells_its_metrics_apart_after_a_perfect_video():
    """It takes metrics with equal states for one; those of a perfect video are equal."""
    boxes = torch.tensor([[10.0, 10, 5, 5]]).repeat(4, 1)
    odd = odd_video()
    single = {
        **all_metrics(),
        **{f"strict_{name}": metric for name, metric in all_metrics("strict").items() if name != "success"},
    }
    for metric in single.values():
        metric.update(boxes, boxes)
        metric.update(*odd)
    expected = {name: float(metric.compute()) for name, metric in single.items()}
    for metric in single.values():
        metric.reset()
    together = MetricCollection(single)
    together.update(boxes, boxes)
    together.update(*odd)
    assert {name: float(value) for name, value in together.compute().items()} == expected
    assert len(together.compute_groups) == 5  # both summaries of one protocol share their state
    assert torch.equal(together["strict_norm_precision_auc"].curve(), together["strict_norm_precision"].curve())


def test_runs_with_resets_give_the_figures_of_the_toolkit(vot):
    runs, file = vot
    for dataset in ("VOT2018", "VOT2019"):
        metric = VOTReset(dataset)
        for run in runs:
            metric.update(*run)
        found = metric.compute()
        for name in ("accuracy", "robustness", "lost"):
            np.testing.assert_allclose(found[name], file[name][0], rtol=1e-6)
        np.testing.assert_allclose(found["eao"], file[f"eao_{dataset}"][0], rtol=1e-5, atol=1e-6)
        assert {(value.dtype, value.shape) for value in found.values()} == {(torch.float64, ())}
        width, height = runs[0][3]
        overlaps = [vot_overlaps(*run[:3], (width - 1, height - 1)) for run in runs]
        curve = expected_overlap_curve(overlaps, [run[1] for run in runs])
        assert len(metric.curve()) == 240  # frames of the longest
        np.testing.assert_allclose(metric.curve(), curve, rtol=1e-12)


def test_sequences_longer_than_the_usual_ones_are_cut():
    boxes, polygons = torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([[0.0, 0, 9, 0, 9, 9, 0, 9]])
    metric = VOTReset("VOT2019")
    for count in (400, 30):
        state = torch.tensor([1] + [9] * (count - 1))
        metric.update(boxes.repeat(count, 1), state, polygons.repeat(count, 1), torch.tensor([20, 20]))
    assert metric.curve().tolist() == [1.0] * 291
    assert metric.compute()["eao"] == 1
    short = VOTReset("VOT2019")
    short.update(boxes.repeat(30, 1), state, polygons.repeat(30, 1), (20, 20))
    assert short.compute()["eao"].isnan()
    assert short.compute()["accuracy"] == 1


def metric_and_videos(name):
    if name.startswith("VOT"):
        states = [[1] + [9] * 60, [1] + [9] * 20 + [2, 0, 0, 0, 0, 1] + [9] * 50, [1, 2] + [0] * 4 + [1] + [9] * 40]
        draw = torch.Generator().manual_seed(0)
        polygons = torch.tensor([[5.0, 5, 40, 5, 40, 40, 5, 40]])
        boxes = [torch.rand(len(state), 4, generator=draw) * 10 + torch.tensor([0, 0, 30, 30]) for state in states]
        runs = [(b, torch.tensor(s), polygons.repeat(len(s), 1), (64, 48)) for b, s in zip(boxes, states, strict=True)]
        return VOTReset(name), runs * 2
    return all_metrics()[name], [odd_video(70 + 7 * seed, seed) for seed in range(6)]


NAMES = ["success", "precision", "norm_precision", "norm_precision_auc", "VOT2019"]


def on_rank(rank, shares, put):
    for name in NAMES:
        metric, videos = metric_and_videos(name)
        for i in shares[rank]:
            metric.update(*videos[i])
        curve = metric.curve() if rank else None  # here compute runs first, there the other way round
        values = metric.compute()
        curve = metric.curve() if curve is None else curve
        own = metric.frames if name.startswith("VOT") else metric.videos  # the state is the process's own again
        put((name, rank, int(own), numbers(values), curve.tolist()))


def numbers(values):
    return [float(v) for v in values.values()] if isinstance(values, dict) else [float(values)]


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize("shares", [[[0, 2, 4], [1, 3, 5]], [list(range(6)), []]], ids=["half each", "all to one"])
def test_two_processes_give_what_one_gives(shares, tmp_path):
    expected = {}
    for name in NAMES:
        metric, videos = metric_and_videos(name)
        for video in videos:
            metric.update(*video)
        expected[name] = numbers(metric.compute()), metric.curve().tolist()
    found = answers_of(on_rank, 2, tmp_path, shares)
    assert len(found) == 2 * len(NAMES)
    for name, rank, own, *answer in found:
        videos = metric_and_videos(name)[1]
        sizes = [len(videos[i][1]) if name.startswith("VOT") else 1 for i in shares[rank]]
        assert own == sum(sizes)
        for mine, one in zip(answer, expected[name], strict=True):
            np.testing.assert_allclose(mine, one, rtol=1e-12, err_msg=f"{name} on rank {rank}")


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_without_a_video_there_is_no_number():
    for metric in all_metrics().values():
        assert metric.compute().isnan()
        assert metric.curve().isnan().all()
    found = VOTReset().compute()
    assert found["lost"] == 0
    assert all(found[name].isnan() for name in ("accuracy", "robustness", "eao"))


@pytest.mark.parametrize("name", NAMES)
def test_states_keep_their_type_and_add_up_over_calls(name):
    metric, videos = metric_and_videos(name)
    for video in videos:
        metric.update(*video)
    expected = numbers(metric.compute())
    other, _ = metric_and_videos(name)
    half = nn.ModuleList([other]).to(torch.bfloat16).half()[0]
    for i, video in enumerate(videos):
        value = half(*video)  # of this video, and added to the rest
        alone, _ = metric_and_videos(name)
        alone.update(*video)
        np.testing.assert_equal(numbers(value), numbers(alone.compute()), err_msg=str(i))
    np.testing.assert_allclose(numbers(half.compute()), expected, rtol=1e-12)
    assert half.curve().dtype == torch.float64


def test_a_device_without_float64_leaves_the_states_where_they_are():
    metric, videos = metric_and_videos("success")
    metric.update(*videos[0])
    expected = metric.compute()
    metric._apply(lambda tensor: SimpleNamespace(device=torch.device("mps")))
    metric._computed = None
    assert metric.device.type == "cpu"
    assert metric.compute() == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"preds_xywh": torch.zeros(3, 5)},
            r"preds_xywh must be \(n, 4\), a box x, y, w, h for each frame, got \(3, 5\)",
        ),
        ({"target_xywh": torch.zeros(4)}, r"target_xywh must be \(n, 4\)"),
        ({"target_xywh": torch.zeros(4, 4)}, "preds_xywh has 3 boxes and target_xywh 4; give one for each frame"),
        ({"preds_xywh": torch.zeros(0, 4), "target_xywh": torch.zeros(0, 4)}, "preds_xywh has no box"),
        ({"present": torch.ones(2)}, r"present must be \(3,\), one flag for each frame, got \(2,\)"),
        ({"present": torch.tensor([0, 1, 2])}, "present must be bool, or 1 where the target can be seen"),
    ],
)
def test_bad_videos_are_named(change, message):
    good = {"preds_xywh": torch.ones(3, 4), "target_xywh": torch.ones(3, 4), "present": torch.tensor([1, 0, 1])}
    for metric in all_metrics().values():
        metric.update(**good)
        with pytest.raises(ValueError, match=message):
            metric.update(**(good | change))
        assert metric.videos == 1
    with pytest.raises(ValueError, match=message):
        ope_curves(**(good | change))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_boxes_that_are_not_finite_are_the_trackers_fault(bad):
    preds, target = torch.ones(5, 4), torch.full((5, 4), torch.nan)  # in the annotation NaN is data
    ope_curves(preds, target)
    preds[3:, 2] = bad
    with pytest.raises(
        ValueError, match=r"preds_xywh has NaN or infinity in 2 of 5 frames, first in frame 3 \(from 0\)"
    ):
        ope_curves(preds, target, torch.zeros(5))


def test_unknown_options_are_named():
    message = """protocol must be "toolkit" \\(as published\\) or "strict", got 'got10k\'"""
    for make in (
        OPEPrecision,
        OPENormPrecision,
        lambda name: ope_curves(torch.ones(1, 4), torch.ones(1, 4), None, name),
    ):
        with pytest.raises(ValueError, match=message):
            make("got10k")
    with pytest.raises(ValueError, match=r"summary must be .at_20. .*got 'mean'"):
        OPENormPrecision(summary="mean")
    with pytest.raises(ValueError, match="dataset must be one of 'VOT2018', 'VOT2019', got 'VOT2016'"):
        VOTReset("VOT2016")
    with pytest.raises(ValueError, match=r"image_wh must be \(W, H\).*got \[640, 480, 3\]"):
        VOTReset().update(torch.ones(1, 4), torch.tensor([1]), torch.ones(1, 8), (640, 480, 3))
    with pytest.raises(ValueError, match=r"b must be \(2, 4\) boxes x, y, w, h, as many as a, got \(3, 4\)"):
        paired_iou_xywh(torch.ones(2, 4), torch.ones(3, 4))
