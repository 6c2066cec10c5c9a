"""TrackingFigures: the figures of tracked sequences, in one pass or with resets, and of a tracker that stays."""

import pytest
import torch

from lit_methods.functional.ope import ope_curves, summarize
from lit_methods.siamban.evaluation import TrackingFigures
from lit_methods.siamban.runs import Track
from tests.siamban_batches import sequences, siamban

AREA = 20 / 21  # of a tracker without a fault


def tracks(batch, shift=0.0, score=0.5):
    """The truth, moved to the right."""
    offset = torch.tensor([shift, 0, 0, 0], dtype=torch.float64)
    return [Track(boxes + offset, torch.full((len(boxes),), score, dtype=torch.float64)) for boxes in batch["boxes"]]


def numbers(figures):
    return {name: float(value) for name, value in figures.compute().items()}


def corners(boxes):
    x, y, w, h = boxes.unbind(1)
    return torch.stack([x, y, x + w, y, x + w, y + h, x, y + h], 1)


def test_a_tracker_without_a_fault_beside_one_that_stays():
    figures, batch = TrackingFigures(), sequences(5, 3)
    figures.update(batch, tracks(batch))
    found = numbers(figures)
    assert found["success_auc"] == pytest.approx(AREA)
    assert found["precision"] == found["norm_precision"] == 1
    assert found["score"] == 0.5
    kept = [boxes[:1].expand_as(boxes) for boxes in batch["boxes"]]
    expected = summarize([ope_curves(k, b) for k, b in zip(kept, batch["boxes"], strict=True)])
    assert found["success_auc_static"] == pytest.approx(expected["success_auc"])
    assert found["success_auc_static"] < AREA


def test_figures_are_means_over_videos_however_they_are_batched():
    whole, parts = TrackingFigures(), TrackingFigures()
    batch = sequences(6, 2, 4)
    made = [track for shift, video in zip((0, 4, 9), range(3), strict=True) for track in [tracks(batch, shift)[video]]]
    whole.update(batch, made)
    for number in (2, 0, 1):
        one = {name: [values[number]] for name, values in batch.items() if name != "index"}
        parts.update(one, [made[number]])
    assert numbers(parts) == pytest.approx(numbers(whole))
    expected = summarize([ope_curves(t.boxes_xywh, b) for t, b in zip(made, batch["boxes"], strict=True)])
    assert numbers(whole)["success_auc"] == pytest.approx(expected["success_auc"])


def test_frames_without_the_target_do_not_count():
    figures, batch = TrackingFigures(), sequences(4)
    batch["present"] = [torch.tensor([True, True, False, True])]
    (track,) = tracks(batch)
    track.boxes_xywh[2] += 50
    figures.update(batch, [track])
    found = numbers(figures)
    assert found["precision"] == pytest.approx(3 / 4)  # as LaSOT's toolkit: it divides by all frames
    assert found["success_auc"] < AREA


def test_precisions_follow_the_protocol():
    """Only the strict one leaves out frames whose truth has no box."""
    batch = sequences(4)
    batch["boxes"][0][2] = torch.nan
    found = []
    for protocol in ("toolkit", "strict"):
        figures = TrackingFigures(protocol)
        figures.update(batch, [Track(sequences(4)["boxes"][0], torch.ones(4, dtype=torch.float64))])
        found.append(numbers(figures))
    assert found[0]["precision"] != found[1]["precision"]


def test_they_begin_anew():
    figures, batch = TrackingFigures(), sequences(3)
    figures.update(batch, tracks(batch, 30))
    figures.begin("lasot")
    figures.update(batch, tracks(batch))
    assert numbers(figures)["success_auc"] == pytest.approx(AREA)


def test_boxes_out_of_files_have_no_score():
    figures, batch = TrackingFigures(), sequences(3)
    figures.update(batch, [Track(batch["boxes"][0], batch["boxes"][0].new_empty(0))])
    assert "score" not in figures.compute()


def test_a_network_that_overflows_warns_and_the_box_stays():
    module, batch = siamban().eval(), sequences(4, 3)
    torch.nn.init.constant_(module.model.head.loc_scale, torch.nan)
    figures = TrackingFigures()
    found = figures.follow(module.tracker(), batch)
    for track in found:
        assert track.boxes_xywh.isfinite().all()
        assert torch.equal(track.boxes_xywh[1:], track.boxes_xywh[1:2].expand(len(track.boxes_xywh) - 1, 4))
        assert track.scores[1:].isnan().all()
    with pytest.warns(UserWarning, match=r"square-0: the network's answer is not finite in 3 of 4 frames"):
        figures.update(batch, found)
    assert numbers(figures)["score"] == 1  # of the frames that it was started in


def test_a_batch_is_tracked_as_its_sequences_are():
    module, batch = siamban().eval(), sequences(5, 2, 4)
    figures = TrackingFigures()
    together = figures.follow(module.tracker(), batch)
    for number, track in enumerate(together):
        alone = {name: [values[number]] for name, values in batch.items() if name != "index"}
        (other,) = figures.follow(module.tracker(), alone)
        assert torch.allclose(track.boxes_xywh, other.boxes_xywh, atol=1e-4)


def test_a_batch_without_videos_adds_nothing():
    """As of a process that has fewer than the others."""
    figures, batch = TrackingFigures(), sequences(3)
    empty = {name: values[:0] for name, values in batch.items()}
    figures.update(empty, figures.follow(siamban().eval().tracker(), empty))
    figures.update(batch, tracks(batch))
    assert numbers(figures)["success_auc"] == pytest.approx(AREA)


@pytest.mark.parametrize("benchmark", ["vot2018", "vot2019"])
def test_vot_is_tracked_with_resets(benchmark):
    figures, batch = TrackingFigures(), sequences(12)
    figures.begin(benchmark)
    assert figures.resets
    polygons = corners(batch["boxes"][0])
    polygons[4:] += torch.tensor([50.0, 30] * 4)  # it jumps
    batch["polygons"] = [polygons]
    module = siamban().eval()
    (track,) = figures.follow(module.tracker(), batch)
    assert track.state[0] == 1
    assert int((track.state == 2).sum()) >= 1
    first = int((track.state == 2).nonzero()[0])
    assert track.state[first + 1 : first + 5].eq(0).all()
    assert track.state[first + 5] == 1 if first + 5 < 12 else True
    figures.update(batch, [track])
    found = numbers(figures)
    assert found.keys() == {"accuracy", "robustness", "lost", "eao"}
    assert found["lost"] == int((track.state == 2).sum())
    assert found["robustness"] == pytest.approx(100 * found["lost"] / 12)


@pytest.mark.parametrize("benchmark", [None, "lasot", "otb100", "folder"])
def test_other_benchmarks_are_one_pass(benchmark):
    figures = TrackingFigures()
    figures.begin(benchmark)
    assert not figures.resets
