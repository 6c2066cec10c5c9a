"""DetectionResults: what is in its files, tables and curves, whatever process the pictures came to."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from callbacks import DetectionResults, detection_results
from callbacks.detection_figures import false_positive_figure, precision_recall_figure
from callbacks.detection_results import ImageRow, event_rows, height_rows
from datamodules import FDDBDataModule
from lit_methods.asfd.evaluation import DetectionFigures
from lit_methods.functional.wider_files import prediction_path, read_predictions
from tests.callbacks.reported import drawn_figures, run_hooks, table
from tests.datamodules.test_fddb_folds import NAMES, write_fddb


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), -1) if rows else torch.zeros(0, 5).double()


def faces(*rows):
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 4)


FACE, OTHER, WRONG = [10, 10, 20, 30], [60, 60, 20, 30], [200, 200, 20, 30]


# -- tables ------------------------------------------------------------------------------------------------------------


def test_events_have_a_precision_of_their_own_by_scores_over_all_pictures():
    rows = [
        ImageRow(0, "10--People/a", boxes([*FACE, 0.5]), faces(FACE)),
        ImageRow(1, "9--Press/b", boxes([*WRONG, 0.9], [*FACE, 0.3]), faces(FACE, OTHER)),
        ImageRow(2, "9--Press/c", boxes([*WRONG, 0.1]), faces()),
        ImageRow(3, "12--Group/d", boxes([*WRONG, 0.7]), faces()),
        ImageRow(4, "own", boxes(), faces(FACE)),
    ]
    found = event_rows(rows)
    assert [row[:3] for row in found] == [["9--Press", 2, 2], ["10--People", 1, 1], ["12--Group", 1, 0], ["", 1, 1]]
    # of 9--Press: a false alarm first, then one of two faces; of 10--People: the face, far below the highest score
    assert found[0][3] == pytest.approx(0.5 * 0.5)
    assert found[1][3] == 1
    assert found[2][3] == ""
    assert found[3][3] == 0


def test_equal_scores_and_nothing_at_all_have_tables():
    row = ImageRow(0, "9--Press/a", boxes([*FACE, 0.4], [*WRONG, 0.4]), faces(FACE))
    assert event_rows([row]) == [["9--Press", 1, 1, pytest.approx(0.5)]]
    assert event_rows([ImageRow(0, "9--Press/a", boxes(), faces())]) == [["9--Press", 1, 0, ""]]
    assert event_rows([]) == []
    assert [row[2:] for row in height_rows([])] == [[0, ""]] * 6


def test_heights_count_faces_that_were_found_surely_and_closely():
    half = [10, 10, 20, 15]  # half of FACE
    rows = [
        ImageRow(0, "a", boxes([*FACE, 0.5], [*OTHER, 0.49]), faces(FACE, OTHER)),
        ImageRow(1, "b", boxes([*half, 0.9]), faces(FACE, [10, 10, 9, 9.9])),
        ImageRow(2, "c", boxes([10, 10, 20, 14, 0.9]), faces(FACE, [0, 0, 99, 160], [0, 0, 5, 0])),
        ImageRow(3, "d", boxes(), faces()),
    ]
    assert height_rows(rows) == [
        [0, 10, 2, 0.0],
        [10, 20, 0, ""],
        [20, 40, 4, 0.5],
        [40, 80, 0, ""],
        [80, 160, 0, ""],
        [160, "", 1, 0.0],
    ]


# -- in a test ---------------------------------------------------------------------------------------------------------


def batch_of(*indices):
    names = ["0--Parade/a", "9--Press/b", "10--People/c"]
    corners = torch.tensor([[10.0, 10, 30, 40], [60, 60, 80, 90]])
    return {
        "name": [names[index] for index in indices],
        "boxes": [corners[:index] for index in indices],  # none, one, two
        "index": torch.tensor(indices, dtype=torch.int64),
    }


def detections(*indices):
    found = torch.tensor([[10.0, 10, 30, 40], [100, 100, 120, 130]])
    scores = torch.tensor([[0.9, 0.4], [0.8, 0.3], [0.7, 0.2]])
    return [{"boxes": found, "scores": scores[index]} for index in indices]


def module_of(**more):
    return SimpleNamespace(figures={"test": DetectionFigures()}, **more)


def run_test(trainer, module, batches, callback=None):
    return run_hooks(callback or DetectionResults(), trainer, module, batches, "detections")


@pytest.fixture
def trainer(quick_trainer):
    return quick_trainer()


@pytest.fixture
def figures(trainer, monkeypatch):
    """What is drawn, under its key; the quick trainer draws nothing."""
    return drawn_figures(monkeypatch, detection_results, precision_recall_figure, false_positive_figure)


def test_files_are_official_ones_and_tables_of_all_pictures(trainer, tmp_path):
    callback = run_test(trainer, module_of(), [(batch_of(*ids), detections(*ids)) for ids in ((2, 0), (1,))])
    found = read_predictions(prediction_path(tmp_path / "detections", "9--Press/b"))
    assert_close(found, boxes([10, 10, 20, 30, 0.8], [100, 100, 20, 30, 0.3]), rtol=0, atol=1e-6)
    lines = (tmp_path / "detections" / "9--Press" / "b.txt").read_text().splitlines()
    assert lines[:2] == ["b", "2"]
    assert lines[2].split()[0] == "10.000000"
    assert [row["event"] for row in table(tmp_path, "events")] == ["0--Parade", "9--Press", "10--People"]
    assert [row["ap_all"] for row in table(tmp_path, "events")] == ["", "1.0", "0.5"]
    assert [(row["faces"], row["found"]) for row in table(tmp_path, "heights")][2] == ("3", str(2 / 3))
    assert callback.rows == []


def test_curves_are_those_of_the_metric(trainer, figures):
    module = module_of()
    module.figures["test"].begin(("easy",))
    batch = batch_of(2, 1)
    batch["keep_easy"] = [torch.tensor([True, False]), torch.tensor([False])]
    run_test(trainer, module, [(batch, detections(2, 1))])
    (axes,) = figures["test/curves"].axes
    result = module.figures["test"].result()
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == [f"{level} [{float(result[level].ap):.3f}]" for level in ("easy", "all")]
    for line, level in zip(axes.lines, ("easy", "all"), strict=True):
        known = ~result[level].precision.isnan()
        assert known.any()
        assert np.array_equal(line.get_ydata(), result[level].precision[known].numpy())
        assert np.array_equal(line.get_xdata(), result[level].recall[known].numpy())


def test_the_pictures_of_all_processes_are_in_one_table(trainer, tmp_path, monkeypatch):
    """Also where this one has none."""
    other, module = DetectionResults(), module_of()
    for ids in ((0, 2), (1,)):
        module.figures["test"].update(batch_of(*ids), detections(*ids))
        other.on_test_batch_end(trainer, module, {"detections": detections(*ids)}, batch_of(*ids), 0)
    monkeypatch.setattr(detection_results, "gather_objects", lambda mine: [mine, other.rows])
    run_test(trainer, module, [(batch_of(), [])])
    assert [row["event"] for row in table(tmp_path, "events")] == ["0--Parade", "9--Press", "10--People"]


def test_boxes_that_came_from_files_are_not_written_again(trainer, tmp_path):
    run_test(trainer, module_of(predictions="mine"), [(batch_of(1), detections(1))])
    assert len(table(tmp_path, "events")) == 1
    assert not (tmp_path / "detections").exists()


def test_a_second_test_starts_anew(trainer, tmp_path):
    callback, module = DetectionResults(), module_of()
    callback.on_test_batch_end(trainer, module, {"detections": detections(2)}, batch_of(2), 0)  # it ended there
    run_test(trainer, module, [(batch_of(1), detections(1))], callback)
    assert [row["event"] for row in table(tmp_path, "events")] == ["9--Press"]


def test_a_name_that_leads_out_of_the_folder_is_refused_before_the_test(trainer):
    trainer.datamodule = SimpleNamespace(evaluation_names=lambda stage: ["0--Parade/a", "../b"])
    with pytest.raises(ValueError, match=r"\.\./b"):
        DetectionResults().setup(trainer, module_of(), "test")
    DetectionResults().setup(trainer, module_of(), "fit")


def test_other_methods_leave_nothing(trainer, tmp_path):
    callback = DetectionResults()
    for module in (SimpleNamespace(), SimpleNamespace(figures={"test": object()}), SimpleNamespace(figures=3)):
        callback.on_test_batch_end(trainer, module, torch.zeros(1), {}, 0)
        callback.on_test_epoch_end(trainer, module)
        callback.on_test_end(trainer, module)
    assert not any(tmp_path.iterdir())


def test_other_processes_than_the_first_write_no_tables(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(type(trainer), "is_global_zero", False)
    run_test(trainer, module_of(), [(batch_of(1), detections(1))])
    assert (tmp_path / "detections" / "9--Press" / "b.txt").exists()
    assert not (tmp_path / "tables").exists()


def test_of_fddb_there_are_files_and_curves_alone(trainer, tmp_path, figures):
    data = FDDBDataModule(str(write_fddb(tmp_path / "fddb")), folds=[1, 2], num_workers=0, eval_batch_size=2)
    data.setup("test")
    module, found = module_of(), {"boxes": torch.tensor([[10.0, 20, 60, 80]]), "scores": torch.tensor([0.9])}
    module.figures["test"].begin(ellipses=True)
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()]
    run_test(trainer, module, [(batch, [found] * len(batch["image"])) for batch in batches])
    values = module.figures["test"].compute()
    assert values.keys() == {"fddb_discrete", "fddb_continuous", "detections"}
    texts = [text.get_text() for text in figures["test/curves"].axes[0].get_legend().get_texts()]
    assert texts == [f"{name} [{float(values[f'fddb_{name}']):.3f}]" for name in ("discrete", "continuous")]
    for name in NAMES:
        assert len(read_predictions(prediction_path(tmp_path / "detections", name))) == 1
    assert not (tmp_path / "tables").exists()


def test_figures_are_drawn_where_nothing_was_found(tmp_path):
    figures = DetectionFigures()
    figures.update(batch_of(1), [{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0)}])
    assert precision_recall_figure(figures.result()).axes[0].get_legend().get_texts()[0].get_text() == "all [0.000]"
    precision_recall_figure(figures.result()).savefig(tmp_path / "a.png", dpi=20)
    figures.begin(ellipses=True)
    batch = {"ellipses": [torch.tensor([[20.0, 15, 1.5, 40, 30]], dtype=torch.float64)]}
    figures.update(batch, [{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0)}])
    false_positive_figure(figures.result()).savefig(tmp_path / "b.png", dpi=20)
