"""GroundingVisualizer: which sentences it shows, with pictures, boxes, masks and overlaps of the batch."""

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks import GroundingVisualizer
from callbacks.grounding_pictures import grounding_case, grounding_sheet
from callbacks.grounding_visualizer import chosen_rows
from callbacks.report import RunReport
from lit_methods.functional.box_drawing import FOUND, TRUTH
from tests.callbacks.grounding_stub import SIDE, Answers, batch_of, gradient

WIDE = (0, 7, 64, 32, [8, 4, 40, 20])
TALL = (1, 8, 16, 48, [0, 0, 16, 24])
LARGE = (2, 9, 256, 128, [64, 32, 192, 96])


@pytest.fixture
def shown(monkeypatch):
    """What the report was handed, under its key."""
    handed = {}

    def overlay(self, trainer, key, images, boxes, masks, *, captions, sheet):
        handed[key] = images, boxes, masks, captions, sheet

    monkeypatch.setattr(RunReport, "overlay", overlay)
    return handed


# -- which sentences ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "number", "rows"),
    [
        ([1, 1, 1, 2, 2, 3], 4, [0, 1, 3, 4]),
        ([1, 1, 1, 2, 2, 3], 5, [0, 1, 3, 4, 5]),
        ([1, 1, 1, 1, 1, 2], 4, [0, 1, 2, 5]),
        ([1, 1, 1], 9, [0, 1, 2]),
        ([4, 5, 6], 1, [0]),
        ([], 3, []),
    ],
)
def test_two_sentences_of_each_picture_come_before_a_third(images, number, rows):
    assert chosen_rows(torch.tensor(images, dtype=torch.int64), number) == rows


def test_the_chosen_sentences_alone_are_asked_in_one_pass(make_trainer, shown):
    module = Answers()
    rows = [(index, index // 3, 64, 32, [0, 0, 8, 8]) for index in range(6)]
    GroundingVisualizer(num_images=4).on_test_batch_end(make_trainer(), module, None, batch_of(*rows), 0)
    tokens = [[2 + row, 0] for row in (0, 1, 3, 4)]
    assert module.asked == [((4, 3, SIDE, SIDE), tokens, [[32, 64]] * 4, [0, 0, 1, 1])]
    assert [text.split(" | ")[0] for text in shown["test/grounding"][3]] == ["thing 0", "thing 1", "thing 3", "thing 4"]
    assert module.layer.training


def test_epochs_between_the_sanity_check_and_later_batches_are_left_out(make_trainer, shown):
    trainer, module, batch = make_trainer(), Answers(), batch_of(WIDE)
    callback = GroundingVisualizer(every_n_epochs=2)
    for epoch, sanity, number, loader in [(1, 0, 0, 0), (2, 1, 0, 0), (2, 0, 1, 0), (2, 0, 0, 1)]:
        trainer.fit_loop.epoch_progress.current.completed = epoch
        trainer.sanity_checking = bool(sanity)
        callback.on_validation_batch_end(trainer, module, None, batch, number, loader)
    assert not shown
    callback.on_validation_batch_end(trainer, module, None, batch, 0)
    assert list(shown) == ["val/grounding"]
    callback.on_test_batch_end(trainer, module, None, batch, 1)
    assert list(shown) == ["val/grounding"]


@pytest.mark.parametrize(
    ("validated", "every", "drawn"),
    [
        (2, 4, [1, 5, 9]),
        (2, 3, [1, 3, 7, 9]),
        (2, 1, [1, 3, 5, 7, 9, 11]),
        (3, 2, [2, 5, 8, 11]),
        (None, 5, [0, 5, 10]),
    ],
)
def test_where_some_epochs_have_no_validation_the_next_one_is_drawn(make_trainer, shown, validated, every, drawn):
    trainer = make_trainer(check_val_every_n_epoch=validated, **({} if validated else {"val_check_interval": 1}))
    callback, found = GroundingVisualizer(every_n_epochs=every), []
    for epoch in range((validated or 1) - 1, 12, validated or 1):
        trainer.fit_loop.epoch_progress.current.completed = epoch
        shown.clear()
        callback.on_validation_batch_end(trainer, Answers(), None, batch_of(WIDE), 0)
        found += [epoch] * len(shown)
    assert found == drawn


def test_no_sentence_and_other_processes_draw_nothing(make_trainer, tmp_path, monkeypatch):
    trainer, module = make_trainer(), Answers()
    GroundingVisualizer().on_test_batch_end(trainer, module, None, batch_of(), 0)
    monkeypatch.setattr(type(trainer.strategy), "is_global_zero", property(lambda self: False))
    GroundingVisualizer().on_test_batch_end(trainer, module, None, batch_of(WIDE), 0)
    assert module.asked == []
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_shown_is_refused_before_the_run(make_trainer):
    with pytest.raises(ValueError, match=r"num_images=0 and every_n_epochs=1 must be at least 1"):
        GroundingVisualizer(num_images=0)
    with pytest.raises(ValueError, match=r"num_images=8 and every_n_epochs=0 must"):
        GroundingVisualizer(every_n_epochs=0)
    with pytest.raises(ValueError, match=r"predict_rows, such as MCN, which Linear has not"):
        GroundingVisualizer().setup(make_trainer(), torch.nn.Linear(1, 1), "fit")
    GroundingVisualizer().setup(make_trainer(), Answers(), "fit")


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_pictures_come_out_of_their_squares_as_they_were(make_trainer, shown):
    batch = batch_of(WIDE, TALL, LARGE)
    GroundingVisualizer().on_test_batch_end(make_trainer(), Answers(), None, batch, 0)
    images, boxes, masks, _, _ = shown["test/grounding"]
    assert [image.shape for image in images] == [(32, 64, 3), (48, 16, 3), (32, 64, 3)]  # none beyond the square's side
    assert np.array_equal(images[0], gradient(64, 32))
    inner = (slice(3, -3), slice(3, -3))  # of pixels at the rim some were grey bars' neighbours
    assert np.abs(images[1].astype(int) - gradient(16, 48))[inner].max() < 12
    assert np.abs(images[2].astype(int) - gradient(64, 32))[inner].max() < 6
    expected = [WIDE[4], TALL[4], [16, 8, 48, 24]]  # that of the large picture is a quarter of its own
    for box, mask, (x1, y1, x2, y2) in zip(boxes["truth"], masks["truth"], expected, strict=True):
        np.testing.assert_allclose(box, [x1, y1, x2, y2], atol=1e-4)
        rows, columns = np.nonzero(mask)
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == [x1, y1, x2, y2]
        assert mask.sum() == (x2 - x1) * (y2 - y1)
    # the square in the frame of the picture; the tall one is enlarged by 4/3 to 21 x 64 pixels, 21 from the left
    whole = [[0, -16, 64, 48], [-15.75, 0, 32.25, 48], [0, -16, 64, 48]]
    np.testing.assert_allclose(np.stack(boxes["prediction"]), whole, atol=1e-4)
    assert [mask.all() for mask in masks["prediction"]] == [True] * 3
    assert [mask.shape for mask in masks["prediction"]] == [image.shape[:2] for image in images]


def test_a_shorter_side_reduces_pictures_boxes_and_masks_alike():
    batch = batch_of(WIDE)
    case = grounding_case(batch, 0, torch.tensor([0.0, 16, 32, 48]), torch.ones(32, 64), "", side=16)
    assert case.image.shape == (8, 16, 3)
    assert case.mask.shape == case.truth_mask.shape == (8, 16)
    np.testing.assert_allclose(case.box, [0, 0, 8, 8], atol=1e-5)
    np.testing.assert_allclose(case.truth_box, [2, 1, 10, 5], atol=1e-5)


def test_overlaps_are_counted_as_the_metrics_do(make_trainer, shown):
    def left_half(height, width):
        return torch.arange(width).expand(height, width) < width / 2

    box = torch.tensor([8, 20, 40, 28])  # the upper half of the true one, which is 8, 20, 40, 36 in the square
    GroundingVisualizer().on_validation_batch_end(make_trainer(), Answers(left_half, box), None, batch_of(WIDE), 0)
    # of the mask: 24 of 32 columns in 16 rows lie in the half of 32 x 32 pixels
    union = 32 * 16 + 32 * 32 - 24 * 16
    assert shown["val/grounding"][3] == [f"thing 0 | box 0.50 mask {24 * 16 / union:.2f}"]


@pytest.mark.parametrize("size", [(64, 32), (1, 48), (900, 2)])
def test_no_box_and_no_mask_are_drawn_all_the_same(make_trainer, tmp_path, size):
    def nothing(height, width):
        return torch.zeros(height, width, dtype=torch.bool)

    module = Answers(nothing, torch.tensor([torch.nan, 0, torch.inf, 5]))
    batch = batch_of((0, 1, *size, [0, 0, 1, 1]))
    GroundingVisualizer().on_validation_batch_end(make_trainer(), module, None, batch, 0)
    with Image.open(tmp_path / "pictures" / "val_grounding.png") as picture:
        assert min(picture.size) >= 160


def test_the_sheet_shows_what_was_found_and_what_is_true_in_two_colours():
    mask = torch.zeros(192, 256)
    mask[100:, :40] = 1
    batch = batch_of((0, 1, 256, 192, [64, 32, 192, 96]), side=256)
    case = grounding_case(batch, 0, torch.tensor([200, 42, 250, 82]), mask, "box 0.00 mask 0.00")
    picture = grounding_sheet([case])[2:, 2:]
    assert picture[32, 100].tolist() == list(TRUTH)
    assert picture[10, 220].tolist() == list(FOUND)
    assert picture[100, 20].tolist() == list(FOUND)  # the outline of the mask
    assert np.array_equal(picture[60, 120], case.image[60, 120])
    lines = picture[192:]
    assert (lines[:20] == 0).any()  # the sentence
    assert (lines[20:40] == 0).any()  # the overlaps
