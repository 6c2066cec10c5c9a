"""GroundingResults: the tables of a test, and which sentences are in the viewer, whatever process they came to."""

import pytest
import torch
from torch.utils.data import DataLoader

from callbacks import GroundingResults, GroundingVisualizer, RunReport
from callbacks.grounding_results import SentenceRow
from tests.callbacks.grounding_stub import SIDE, Answers, batch_of
from tests.callbacks.reported import table
from tests.forked import answers_of

# box and mask IoU by index; the odd ones disagree
IOUS = [(0.9, 0.8), (0.9, 0.3), (0.2, 0.1), (0.1, 0.95), (0.5, 0.5), (0.51, 0.5), (0.0, 0.0), (0.3, 0.9)]
APART = [3, 1, 7, 5]  # 1 and 7 are equally far apart, so that the order of the split decides


def rows_of(*indices):
    return [(index, index // 2, 64, 32, [8, 4, 40, 20]) for index in indices]


def answers(*indices):
    """What the test step gives."""
    box, mask = zip(*(IOUS[index] for index in indices), strict=True) if indices else ((), ())
    return {
        "boxes": torch.tensor([[0, 16, 32, 48]] * len(indices), dtype=torch.int64).reshape(-1, 4),
        "scores": torch.tensor([index / 10 for index in indices]),
        "masks": [torch.ones(32, 64, dtype=torch.bool) for _ in indices],
        "box_iou": torch.tensor(box, dtype=torch.float64),
        "mask_iou": torch.tensor(mask, dtype=torch.float64),
    }


def run_test(trainer, batches, callback=None):
    """The hooks of a test, as the Trainer calls them."""
    callback, module = callback or GroundingResults(), None
    callback.on_test_start(trainer, module)
    for number, indices in enumerate(batches):
        callback.on_test_batch_end(trainer, module, answers(*indices), batch_of(*rows_of(*indices)), number)
    callback.on_test_epoch_end(trainer, module)
    callback.on_test_end(trainer, module)
    return callback


@pytest.fixture
def shown(monkeypatch):
    """Captions and images that the report was handed, under their key."""
    handed = {}

    def overlay(self, trainer, key, images, boxes, masks, *, captions, sheet):
        handed[key] = captions, images

    monkeypatch.setattr(RunReport, "overlay", overlay)
    return handed


def test_every_sentence_is_in_the_table_in_the_order_of_the_split(make_trainer, tmp_path, shown):
    callback = run_test(make_trainer(), [(4, 5), (0, 1, 2, 3), (6, 7)])
    rows = table(tmp_path, "grounding")
    assert [int(row["index"]) for row in rows] == list(range(8))
    assert [(float(row["box_iou"]), float(row["mask_iou"])) for row in rows] == IOUS
    assert rows[3] | {"score": "", "agreement": ""} == {
        "index": "3",
        "image_id": "1",
        "ref_id": "30",
        "sentence": "thing 3",
        "box_iou": "0.1",
        "mask_iou": "0.95",
        "score": "",
        "agreement": "",
    }
    assert [float(row["score"]) for row in rows] == pytest.approx([index / 10 for index in range(8)])
    assert {float(row["agreement"]) for row in rows} == {0.5}  # the left half, and a mask of the whole picture
    assert callback.rows == []


def test_sentences_of_which_one_answer_alone_is_right_are_listed_widest_apart_first(make_trainer, tmp_path, shown):
    callback = run_test(make_trainer(), [range(8)])
    rows = table(tmp_path, "disagreements")
    assert [int(row["index"]) for row in rows] == APART
    assert [row["right"] for row in rows] == ["mask", "box", "mask", "box"]
    captions, images = shown["test/disagreements"]
    assert captions[:2] == ["thing 3 | box 0.10 mask 0.95", "thing 1 | box 0.90 mask 0.30"]
    assert [text[:7] for text in captions] == [f"thing {index}" for index in APART]
    assert {image.shape for image in images} == {(32, 64, 3)}
    assert callback.summary() == {"test/disagreements": 4}


def test_the_viewer_keeps_the_widest_apart_and_no_more_pictures_than_it_shows(make_trainer, tmp_path, shown):
    trainer, callback = make_trainer(), GroundingResults(num_cases=2)
    callback.on_test_start(trainer, None)
    for index in (5, 7, 1, 3, 0):
        callback.on_test_batch_end(trainer, None, answers(index), batch_of(*rows_of(index)), index)
        assert len(callback._cases) <= 2
    callback.on_test_epoch_end(trainer, None)
    callback.on_test_end(trainer, None)
    assert [text[:7] for text in shown["test/disagreements"][0]] == ["thing 3", "thing 1"]
    assert len(table(tmp_path, "disagreements")) == 4
    assert callback._cases == []


def test_large_pictures_are_kept_small(make_trainer, shown):
    batch = batch_of((1, 1, 500, 1000, [0, 0, 50, 50]), side=640)
    given = answers(1) | {"masks": [torch.ones(1000, 500, dtype=torch.bool)]}
    callback, trainer = GroundingResults(), make_trainer()
    callback.on_test_batch_end(trainer, None, given, batch, 0)
    ((_, case),) = callback._cases
    assert case.image.shape == (320, 160, 3)
    assert case.mask.shape == case.truth_mask.shape == (320, 160)


def test_without_a_disagreement_there_is_neither_table_nor_picture(make_trainer, tmp_path):
    callback = run_test(make_trainer(), [(0, 2, 4, 6)])
    assert callback.summary() == {"test/disagreements": 0}
    assert [path.name for path in (tmp_path / "tables").iterdir()] == ["test_grounding.csv"]
    assert not (tmp_path / "pictures").exists()


def test_no_sentence_at_all_leaves_nothing(make_trainer, tmp_path):
    callback = run_test(make_trainer(), [()])
    assert callback.summary() == {}
    assert not any(tmp_path.iterdir())


def test_a_second_test_starts_anew(make_trainer, tmp_path, shown):
    callback = GroundingResults()
    callback.on_test_batch_end(make_trainer(), None, answers(3), batch_of(*rows_of(3)), 0)  # it ended there
    run_test(make_trainer(), [(0, 1)], callback)
    assert [row["index"] for row in table(tmp_path, "grounding")] == ["0", "1"]
    assert callback.summary() == {"test/disagreements": 1}


def test_boxes_that_are_not_numbers_and_empty_masks_have_rows_and_pictures(make_trainer, tmp_path):
    nan = torch.tensor([torch.nan])
    given = answers(3) | {"boxes": nan.expand(1, 4), "scores": nan, "box_iou": nan.double()}
    empty = answers(1) | {"masks": [torch.zeros(32, 64, dtype=torch.bool)]}
    trainer, callback = make_trainer(), GroundingResults()
    callback.on_test_batch_end(trainer, None, given, batch_of(*rows_of(3)), 0)
    callback.on_test_batch_end(trainer, None, empty, batch_of(*rows_of(1)), 1)
    callback.on_test_epoch_end(trainer, None)
    callback.on_test_end(trainer, None)
    first, second = table(tmp_path, "disagreements")
    assert (first["box_iou"], first["score"], first["agreement"], first["right"]) == ("0.0", "", "0.0", "mask")
    assert (second["agreement"], second["right"]) == ("0.0", "box")
    assert (tmp_path / "pictures" / "test_disagreements.png").is_file()


def test_agreement_counts_the_part_of_a_box_that_lies_in_the_picture(make_trainer, tmp_path):
    given = answers(0) | {"boxes": torch.tensor([[0, 0, SIDE, SIDE]])}  # the square; the picture is its middle half
    trainer, callback = make_trainer(), GroundingResults()
    callback.on_test_batch_end(trainer, None, given, batch_of(*rows_of(0)), 0)
    assert [row.agreement for row in callback.rows] == [1]


def on_rank(rank, folder, put):
    from lightning.pytorch import Trainer

    trainer = Trainer(accelerator="cpu", devices=1, logger=False, default_root_dir=folder, enable_checkpointing=False)
    trainer.strategy.__class__.is_global_zero = property(lambda self: rank == 1)  # the one that had nothing
    callback = GroundingResults(num_cases=3)
    for number, indices in enumerate([[(0, 1), (6, 7)], [()], [(4, 5), (2, 3)]][rank]):
        callback.on_test_batch_end(trainer, None, answers(*indices), batch_of(*rows_of(*indices)), number)
    callback.on_test_epoch_end(trainer, None)
    put((callback.summary(), [row.position for row in callback.rows], [row.position for row, _ in callback._cases]))
    callback.on_test_end(trainer, None)


def test_three_processes_of_which_one_is_empty_write_what_one_would(make_trainer, tmp_path, shown):
    (tmp_path / "meet").mkdir()
    found = answers_of(on_rank, 3, tmp_path / "meet", str(tmp_path / "many"))
    assert found == [({"test/disagreements": 4}, list(range(8)), [3, 1, 7])] * 3
    run_test(make_trainer(), [range(8)], GroundingResults(num_cases=3))
    for name in ("grounding", "disagreements"):
        assert table(tmp_path / "many", name) == table(tmp_path, name)


def test_other_processes_than_the_first_write_nothing(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer()
    monkeypatch.setattr(type(trainer.strategy), "is_global_zero", property(lambda self: False))
    run_test(trainer, [range(8)])
    assert not any(tmp_path.iterdir())


def test_other_methods_leave_nothing_and_batches_without_names_are_refused(make_trainer, tmp_path):
    trainer, callback = make_trainer(), GroundingResults()
    for outputs in (None, torch.zeros(1), {"boxes": torch.zeros(1, 4)}):
        callback.on_test_batch_end(trainer, None, outputs, {}, 0)
    callback.on_test_epoch_end(trainer, None)
    callback.on_test_end(trainer, None)
    assert callback.summary() == {}
    assert not any(tmp_path.iterdir())
    batch = batch_of(*rows_of(1))
    del batch["ref_id"], batch["index"]
    with pytest.raises(ValueError, match="the batch lacks ref_id, index"):
        callback.on_test_batch_end(trainer, None, answers(1), batch, 0)
    with pytest.raises(ValueError, match="num_cases=0 must be at least 1"):
        GroundingResults(num_cases=0)


def test_exactly_one_half_is_not_right_and_rounding_decides_no_order():
    row = SentenceRow(0, 0, 0, "", 0.5, 0.5000001, 0.0, 0.0)
    assert row.right == "mask"
    assert row._replace(mask_iou=0.5).right == ""
    near = row._replace(box_iou=0.9, mask_iou=0.3), row._replace(position=1, box_iou=0.3, mask_iou=0.9 + 1e-12)
    assert near[0].place < near[1].place


def test_a_run_of_one_batch_leaves_both_pictures(make_trainer, tmp_path):
    """As the Trainer calls the hooks."""

    class Tested(Answers):
        def test_step(self, batch, batch_idx):
            return answers(*batch["index"].tolist())

    batches = [batch_of(*rows_of(0, 1)), batch_of(*rows_of(2, 3))]
    callbacks = [GroundingVisualizer(), GroundingResults()]
    trainer = make_trainer(callbacks=callbacks, limit_test_batches=1)
    trainer.test(Tested(), DataLoader(batches, batch_size=None), verbose=False)
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"test_grounding.png", "test_disagreements.png"}
    assert callbacks[1].summary() == {"test/disagreements": 1}
