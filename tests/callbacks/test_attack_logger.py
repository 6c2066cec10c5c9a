"""What AttackLogger keeps and shows, on results whose answers are known."""

import csv
import json

import numpy as np
import pytest
from lightning.pytorch import Callback
from PIL import Image, ImageSequence

from callbacks import AttackLogger
from callbacks.attack_logger import _curve
from callbacks.report import RunReport
from datamodules import CIFARDataModule
from lit_methods import ImageClassifier
from tests.attackers import attacker, constant


def show(make_trainer, module, *callbacks, images=7, **options):
    trainer = make_trainer(callbacks=[AttackLogger(**options), *callbacks])
    trainer.test(module, datamodule=CIFARDataModule("digits", batch_size=4, num_test_images=images), verbose=False)
    return trainer


@pytest.fixture
def shown(monkeypatch):
    """What is handed to RunReport, by method and key."""
    found = {}
    for name in ("figure", "picture", "film", "table", "histogram"):
        monkeypatch.setattr(
            RunReport, name, lambda self, trainer, key, *args, _name=name, **kwargs: found.update({(_name, key): args})
        )
    return found


def test_everything_is_shown_once(make_trainer, shown, tmp_path):
    module = attacker(class_names=[f"digit {n}" for n in range(10)])
    show(make_trainer, module, num_images=2)
    assert set(shown) == {
        ("figure", "attack/success_curve"),
        ("picture", "attack/triplets"),
        ("film", "attack/growth"),
        ("table", "attack/images"),
        ("table", "attack/classes"),
        ("histogram", "attack/queries"),
    }
    ledger = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    solved = [line for line in ledger if line["success"]]
    assert shown["histogram", "attack/queries"] == ([line["queries"] for line in solved],)
    columns, rows = shown["table", "attack/images"]
    assert [dict(zip(columns, row, strict=True)) for row in rows] == [
        {name: line[name] for name in columns} for line in ledger
    ]
    columns, rows = shown["table", "attack/classes"]
    assert columns == ["class", "attacked", "successes", "mean_queries"]
    assert sum(row[1] for row in rows) == sum(not line["skipped"] for line in ledger)
    assert sum(row[2] for row in rows) == len(solved)
    for name, tried, successes, mean in rows:
        label = int(name.removeprefix("digit "))
        mine = [line for line in ledger if line["label"] == label and not line["skipped"]]
        spent = [line["queries"] for line in mine if line["success"]]
        assert (tried, successes) == (len(mine), len(spent))
        assert mean == (pytest.approx(np.mean(spent), abs=0.05) if spent else "")


def test_as_many_triplets_as_were_asked_for(make_trainer, shown):
    heights = []
    for number in (1, 2):
        show(make_trainer, attacker(attack_seed=number), num_images=number)
        heights.append(shown["picture", "attack/triplets"][0].shape[0])
    assert heights[1] > 1.8 * heights[0]


def test_the_film_begins_with_the_picture_and_ends_with_the_attack(make_trainer, tmp_path):
    show(make_trainer, attacker(), fps=5)
    with Image.open(tmp_path / "pictures" / "attack_growth.gif") as film:
        assert film.info["duration"] % 200 == 0  # ms; frames that are alike become one
        frames = [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(film)]
    assert len(frames) > 2
    assert all(frame.shape == frames[0].shape for frame in frames)
    assert np.abs(frames[-1] - frames[0]).max() > 20


def test_the_curve_is_the_share_of_attacked_images():
    lines = [
        {"success": True, "queries": 10, "skipped": False},
        {"success": True, "queries": 20, "skipped": False},
        {"success": False, "queries": 40, "skipped": False},
        {"success": False, "queries": 0, "skipped": True},
    ]
    figure = _curve(lines, [], 40)
    (line,) = figure.axes[0].get_lines()
    thresholds, share = (np.asarray(values, float) for values in line.get_data())
    expected = [sum(x["success"] and x["queries"] <= t for x in lines) / 3 for t in thresholds]
    assert share == pytest.approx(expected)
    assert share[-1] == pytest.approx(2 / 3)
    assert figure.axes[0].get_legend() is None
    both = _curve(lines, lines[:1], 40)
    assert len(both.axes[0].get_lines()) == 2
    assert both.axes[0].get_legend() is not None


@pytest.mark.parametrize("label", [0, 1])
def test_nothing_to_attack_and_nothing_that_succeeds(make_trainer, shown, label):
    """A constant network: all images but those of its class are skipped, and none of these is turned."""
    show(make_trainer, constant(label), images=3)  # there is a 1 among them, and no 0
    assert {key for _, key in shown} - {"attack/growth"} == {"attack/success_curve", "attack/images", "attack/classes"}
    assert (("film", "attack/growth") in shown) == bool(shown["table", "attack/classes"][1])


def test_the_module_is_left_as_it_was(make_trainer):
    class Look(Callback):
        seen = None

        def on_test_batch_start(self, trainer, pl_module, *args):
            Look.seen = pl_module.on_attack_step

    module = attacker()
    show(make_trainer, module, Look())
    assert Look.seen is not None
    assert module.on_attack_step is None


def test_a_second_test_begins_anew(make_trainer, shown, tmp_path):
    logger = AttackLogger(num_images=50)
    sizes = []
    for seed in (0, 0):
        trainer = make_trainer(callbacks=[logger], default_root_dir=str(tmp_path / str(len(sizes))))
        data = CIFARDataModule("digits", batch_size=4, num_test_images=4)
        trainer.test(attacker(attack_seed=seed), datamodule=data, verbose=False)
        sizes.append(shown["picture", "attack/triplets"][0].shape)
    assert sizes[0] == sizes[1]


def test_without_a_report_files_are_written_all_the_same(make_trainer, tmp_path):
    show(make_trainer, attacker())
    with (tmp_path / "tables" / "attack_images.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 7
    for name in ("attack_success_curve.png", "attack_triplets.png"):
        with Image.open(tmp_path / "pictures" / name) as picture:
            assert min(picture.size) > 50


def test_modules_that_do_not_attack_are_refused(make_trainer):
    with pytest.raises(ValueError, match="AttackLogger is for modules that attack, such as PPBA, not for ImageClass"):
        show(make_trainer, ImageClassifier("tiny"))


@pytest.mark.parametrize("options", [{"num_images": 0}, {"fps": 0}])
def test_out_of_range(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=0"):
        AttackLogger(**options)


def test_a_speed_that_no_film_takes_is_refused_at_once():
    """Not after an attack of hours."""
    with pytest.raises(ValueError, match="fps=60"):
        AttackLogger(fps=60)
