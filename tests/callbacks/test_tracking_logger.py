"""TrackingLogger: label maps, strips and a film, at the right time and of the right sequences."""

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks import TrackingLogger
from callbacks.report import RunReport
from callbacks.tracking_logger import spread
from lit_methods.functional.drawing import grid
from lit_methods.functional.tracking_overlay import label_map_picture
from tests.siamban_batches import loader, pairs, sequences, siamban


@pytest.fixture
def drawn(monkeypatch):
    """What is handed over, in its order: kind, key, epoch and picture or frames."""
    found = []
    for kind in ("picture", "film"):
        monkeypatch.setattr(
            RunReport,
            kind,
            lambda self, trainer, key, image, *_, kind=kind: found.append((kind, key, trainer.current_epoch, image)),
        )
    return found


@pytest.fixture
def videos(tmp_path):
    """An evaluation batch of frames on disk; of different lengths, and one has a frame without a true box."""
    batch = sequences(5, 3, 4)
    for number, clip in enumerate(batch["frames"]):
        for index, frame in enumerate(clip):
            path = tmp_path / f"{number}-{index}.png"
            Image.fromarray(frame.flip(0).permute(1, 2, 0).numpy()).save(path)
            clip[index] = str(path)
    batch["boxes"][1][2] = torch.nan
    return batch


def of(drawn, key):
    return [(epoch, image) for _, name, epoch, image in drawn if name == key]


def test_labels_are_drawn_once_an_epoch_of_the_first_batch(quick_trainer, drawn):
    seen = []

    class Keep(TrackingLogger):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append((batch, outputs["labels"]))
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    module, given = siamban(), [pairs(0, 3), pairs(1, 3)]
    quick_trainer(max_epochs=3, callbacks=[Keep(num_pairs=2, every_n_epochs=2)]).fit(module, loader(*given))
    maps = of(drawn, "train/labels")
    assert [epoch for epoch, _ in maps] == [0, 2]
    batch, labels = seen[0]
    rows = list(zip(batch["search"], labels, batch["box"], strict=True))[:2]
    expected = grid([label_map_picture(s, at, module.points, box) for s, at, box in rows], columns=4)
    assert np.array_equal(maps[0][1], expected)


def test_strips_come_with_every_validation_but_the_trial(quick_trainer, drawn, videos):
    trainer = quick_trainer(max_epochs=2, num_sanity_val_steps=1, callbacks=[TrackingLogger(num_sequences=2)])
    trainer.fit(siamban(), loader(pairs()), loader(videos, videos))
    strips = of(drawn, "val/tracks")
    assert [epoch for epoch, _ in strips] == [0, 1]
    assert not of(drawn, "val/film")
    assert strips[0][1].dtype == np.uint8


def test_a_test_has_strips_and_a_film_of_the_first_sequence(quick_trainer, drawn, videos):
    quick_trainer(callbacks=[TrackingLogger()]).test(siamban(), loader(videos), verbose=False)
    assert len(of(drawn, "test/tracks")) == 1
    ((_, frames),) = of(drawn, "test/film")
    assert len(frames) == 5
    assert {frame.shape for frame in frames} == {(60, 80, 3)}
    assert not np.array_equal(frames[0], frames[4])


def test_a_batch_without_videos_draws_nothing(quick_trainer, drawn, videos):
    """As of a process that has fewer than the others."""
    empty = {name: values[:0] for name, values in videos.items()}
    quick_trainer(callbacks=[TrackingLogger()]).validate(siamban(), loader(empty, videos), verbose=False)
    quick_trainer(callbacks=[TrackingLogger()]).test(siamban(), loader(empty, videos), verbose=False)
    assert drawn == []


def test_pictures_are_files_of_the_run(quick_trainer, videos, tmp_path):
    trainer = quick_trainer(max_epochs=1, callbacks=[TrackingLogger()])
    module = siamban()
    trainer.fit(module, loader(pairs()), loader(videos))
    trainer.test(module, loader(videos), verbose=False)
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert {"train_labels.png", "val_tracks.png", "test_tracks.png", "test_film.gif"} <= names


@pytest.mark.parametrize("name", ["num_pairs", "num_sequences", "num_frames", "every_n_epochs"])
def test_numbers_below_one_are_named(name):
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        TrackingLogger(**{name: 0})


@pytest.mark.parametrize(
    ("length", "count", "expected"), [(1, 8, [0]), (3, 8, [0, 1, 2]), (10, 2, [0, 9]), (9, 3, [0, 4, 8])]
)
def test_frames_are_spread_over_a_sequence(length, count, expected):
    assert spread(length, count) == expected
