"""TrackingResults: what is in its tables, files and curves, whatever order the videos came in."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from callbacks import TrackingResults, tracking_results
from callbacks.tracking_figures import expected_overlap_figure, ope_figure
from lit_methods.functional.ope import ope_curves, summarize
from lit_methods.siamban.evaluation import TrackingFigures
from lit_methods.siamban.results import read_boxes, read_vot_run
from lit_methods.siamban.runs import Track
from tests.callbacks.reported import drawn_figures, run_hooks, table

ATTRIBUTES = (("Fast Motion",), ("Rotation", "Fast Motion"), ())


def videos():
    """Three videos: true boxes, whether present, and the boxes of a tracker that loses more from one to the next."""
    found = []
    for number in range(3):
        frames = 6 + number
        truth = torch.tensor([20.0, 30, 16, 12], dtype=torch.float64).repeat(frames, 1)
        truth[:, 0] += 2 * torch.arange(frames)
        preds = truth + torch.rand(frames, 4, dtype=torch.float64) * 3 * number
        preds[0] = truth[0] + torch.tensor([0.5, 0.5, 0, 0], dtype=torch.float64)
        present = torch.ones(frames, dtype=torch.bool)
        present[3] = number != 1
        found.append((truth, present, Track(preds, torch.ones(frames))))
    return found


def batch_of(indices, found):
    return {
        "name": [f"dog-{index}" for index in indices],
        "boxes": [found[index][0] for index in indices],
        "present": [found[index][1] for index in indices],
        "index": torch.tensor(indices),
    }


def run_test(trainer, module, batches, callback=None):
    run_hooks(callback or TrackingResults(), trainer, module, batches, "tracks")


@pytest.fixture
def trainer(quick_trainer):
    trainer = quick_trainer()
    known = [SimpleNamespace(attributes=attributes, tags={}) for attributes in ATTRIBUTES]
    trainer.datamodule = SimpleNamespace(evaluation_sequences=lambda stage: known)
    return trainer


@pytest.fixture
def figures(trainer, monkeypatch):
    """What is drawn, under its key; the quick trainer draws nothing."""
    return drawn_figures(monkeypatch, tracking_results, ope_figure, expected_overlap_figure)


def numbers(row):
    return [float(row[key]) for key in ("success_auc", "precision", "norm_precision")]


def test_tables_are_those_of_the_videos_and_their_attributes(trainer, tmp_path):
    found, module = videos(), SimpleNamespace(figures={"test": TrackingFigures()})
    run_test(trainer, module, [(batch_of(ids, found), [found[i][2] for i in ids]) for ids in ((2, 0), (1,))])
    expected = [summarize([ope_curves(track.boxes_xywh, truth, present)]) for truth, present, track in found]
    expected = [[one[key] for key in ("success_auc", "precision", "norm_precision")] for one in expected]
    rows = table(tmp_path, "sequences")
    assert [(row["name"], row["frames"]) for row in rows] == [("dog-0", "6"), ("dog-1", "7"), ("dog-2", "8")]
    assert [numbers(row) for row in rows] == expected
    assert expected[1][1] == pytest.approx(6 / 7)  # one frame of it is absent
    rows = table(tmp_path, "attributes")
    assert [(row["attribute"], row["videos"]) for row in rows] == [("Fast Motion", "2"), ("Rotation", "1")]
    assert numbers(rows[0]) == pytest.approx(np.mean(expected[:2], axis=0).tolist())
    assert numbers(rows[1]) == pytest.approx(expected[1])
    for index, (_, _, track) in enumerate(found):
        assert torch.equal(read_boxes(tmp_path / "results" / f"dog-{index}.txt"), track.boxes_xywh)


def test_curves_are_the_metrics_own_beside_a_tracker_that_stays(trainer, figures):
    found = videos()
    module = SimpleNamespace(figures={"test": TrackingFigures()}, tracker_name="mine")
    run_test(trainer, module, [(batch_of((0, 1, 2), found), [track for *_, track in found])])
    panels = figures["test/curves"].axes
    metrics = module.figures["test"].metrics
    for axis, name in zip(panels, ("success_auc", "precision", "norm_precision"), strict=True):
        assert np.array_equal(axis.lines[0].get_ydata(), metrics[name].curve())
        assert axis.get_legend().get_texts()[0].get_text() == f"mine [{float(metrics[name].compute()):.3f}]"
    static = [
        ope_curves(track.boxes_xywh[:1].expand_as(track.boxes_xywh), truth, present) for truth, present, track in found
    ]
    for axis, curves in zip(panels, zip(*static, strict=True), strict=True):
        assert_close(torch.as_tensor(axis.lines[1].get_ydata()), torch.stack(curves).mean(0))
    assert_close(metrics["success_auc_static"].curve(), torch.stack([one.success for one in static]).mean(0))


def test_the_videos_of_all_processes_are_listed_in_their_order(trainer, tmp_path, monkeypatch):
    found, module = videos(), SimpleNamespace(figures={"test": TrackingFigures()})
    other = TrackingResults()
    module.figures["test"].update(batch_of((1,), found), [found[1][2]])
    other.on_test_batch_end(trainer, module, {"tracks": [found[1][2]]}, batch_of((1,), found), 0)
    monkeypatch.setattr(tracking_results, "gather_objects", lambda mine: [mine, other.rows])
    batch = batch_of((0, 2), found)
    run_test(trainer, module, [(batch, [found[0][2], found[2][2]])])
    assert [row["name"] for row in table(tmp_path, "sequences")] == ["dog-0", "dog-1", "dog-2"]


def test_without_attributes_there_is_no_table_of_them(trainer, tmp_path):
    found, module = videos(), SimpleNamespace(figures={"test": TrackingFigures()})
    trainer.datamodule = None
    run_test(trainer, module, [(batch_of((1,), found), [found[1][2]])])
    assert len(table(tmp_path, "sequences")) == 1
    assert not (tmp_path / "tables" / "test_attributes.csv").exists()


def test_boxes_that_came_from_files_are_not_written_again(trainer, tmp_path):
    found, module = videos(), SimpleNamespace(figures={"test": TrackingFigures()}, results="mine")
    run_test(trainer, module, [(batch_of((0,), found), [found[0][2]])])
    assert len(table(tmp_path, "sequences")) == 1
    assert not (tmp_path / "results").exists()


def test_a_second_test_starts_anew(trainer, tmp_path):
    found, module, callback = videos(), SimpleNamespace(figures={"test": TrackingFigures()}), TrackingResults()
    callback.on_test_batch_end(trainer, module, {"tracks": [found[0][2]]}, batch_of((0,), found), 0)  # it ended there
    run_test(trainer, module, [(batch_of((1,), found), [found[1][2]])], callback)
    assert [row["name"] for row in table(tmp_path, "sequences")] == ["dog-1"]


def test_a_name_that_leads_out_of_the_folder_is_refused_before_the_test(trainer):
    module = SimpleNamespace(figures={"test": TrackingFigures()})
    trainer.datamodule = SimpleNamespace(evaluation_sequences=lambda stage: [SimpleNamespace(name="../dog-1")])
    with pytest.raises(ValueError, match=r"'\.\./dog-1' cannot have a file of results"):
        TrackingResults().setup(trainer, module, "test")


def test_other_methods_and_tests_of_nothing_leave_nothing(trainer, tmp_path):
    callback = TrackingResults()
    for module in (SimpleNamespace(), SimpleNamespace(figures={"test": object()})):
        callback.on_test_batch_end(trainer, module, torch.zeros(1), {}, 0)
        callback.on_test_epoch_end(trainer, module)
        callback.on_test_end(trainer, module)
    run_test(trainer, SimpleNamespace(figures={"test": TrackingFigures()}), [])
    assert not any(tmp_path.iterdir())


def test_vot_has_failures_overlaps_and_tags_of_frames(trainer, tmp_path, figures):
    n = 30
    box = torch.tensor([10.0, 10, 20, 20], dtype=torch.float64).repeat(n, 1)
    x, y, w, h = box.unbind(1)
    polygons = torch.stack([x, y, x + w, y, x + w, y + h, x, y + h], 1)
    state = torch.full((n,), 9)
    state[0], state[12], state[13:17], state[17] = 1, 2, 0, 1
    half = box + torch.tensor([0.0, 0, 0, -10])
    half[5] = box[5]  # in the burn-in, which does not count
    lost = Track(half, torch.ones(n), (100, 80), state)
    kept = Track(box, torch.ones(n), (100, 80), torch.tensor([1] + [9] * (n - 1)))
    module = SimpleNamespace(figures={"test": TrackingFigures()})
    module.figures["test"].begin("vot2019")
    occluded = np.zeros(n, bool)
    occluded[10:13] = True
    late, never = np.arange(n) >= 28, np.zeros(n, bool)
    tags = {"occlusion": occluded, "size_change": never, "motion_change": late}
    known = [SimpleNamespace(tags=tags), SimpleNamespace(tags={})]
    trainer.datamodule = SimpleNamespace(evaluation_sequences=lambda stage: known)
    batch = {"name": ["ants1", "ball"], "polygons": [polygons, polygons], "index": torch.tensor([0, 1])}
    run_test(trainer, module, [(batch, [lost, kept])])
    first, second = table(tmp_path, "sequences")
    assert (first["name"], first["frames"], first["failures"]) == ("ants1", "30", "1")
    assert 0.5 < float(first["overlap"]) < 0.55  # half of the box, in whole pixels
    assert (second["failures"], float(second["overlap"])) == ("0", 1.0)
    moved, tag = table(tmp_path, "attributes")
    assert (moved["attribute"], moved["frames"], moved["failures"]) == ("motion_change", "2", "0")
    assert (tag["attribute"], tag["frames"], tag["failures"]) == ("occlusion", "3", "1")
    assert float(tag["overlap"]) == pytest.approx(float(first["overlap"]))
    boxes, codes = read_vot_run(tmp_path / "results" / "baseline" / "ants1" / "ants1_001.txt")
    assert codes.tolist() == state.tolist()
    assert torch.equal(boxes[1], half[1])
    curve = module.figures["test"].metrics["vot"].curve()
    assert np.array_equal(figures["test/curves"].axes[0].lines[0].get_ydata(), curve, equal_nan=True)


def test_figures_are_drawn_with_any_number_of_trackers_and_lengths(tmp_path):
    curves = ope_curves(*[torch.tensor([[10.0, 10, 5, 5]])] * 2)
    figure = ope_figure({f"tracker {number}": curves for number in range(5)})
    assert len(figure.axes[0].lines) == 5
    figure = expected_overlap_figure("mine", torch.tensor([1.0, 0.5]), "VOT2018")  # shorter than any usual length
    assert "EAO nan" in figure.axes[0].get_legend().get_texts()[0].get_text()
    figure.savefig(tmp_path / "a.png")
