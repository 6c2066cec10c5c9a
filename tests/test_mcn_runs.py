"""Whole runs of MCN: what they leave, stopped and resumed, many processes, predict, bad input."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image

from lit_methods import MCN
from tests.left_behind import bit_equal, read_rows, read_summary, timeless
from tests.mcn_runs import (
    EPOCHS,
    FIGURES,
    PICTURES,
    SENTENCES,
    STEPS,
    chosen,
    equal_runs,
    figures_of,
    predict,
    resumed,
    words,
)
from tests.stops import stops_of_two_epochs
from tests.two_processes import Run, assert_equal_ranks, assert_same_metrics, assert_same_weights
from tests.wandb_record import read_record
from tests.whole_runs import ALL_EPOCHS, at_step, every_step, fit, one_line, processes, stopped_and_resumed, test

pytestmark = pytest.mark.usefixtures("light_grounder")


@pytest.fixture(scope="module")
def whole(refcoco_root, tmp_path_factory) -> Path:
    """A run with its pictures, and a checkpoint after every step and every epoch."""
    folder = tmp_path_factory.mktemp("whole")
    assert fit(words(refcoco_root), folder / "run", *ALL_EPOCHS, *every_step(folder / "steps"), figures=True) == 0
    return folder


@pytest.fixture(scope="module")
def fitted(whole) -> Path:
    return whole / "run"


# -- what a run leaves -------------------------------------------------------------------------------------------------


def test_a_run_leaves_figures_tables_and_pictures(fitted):
    summary = read_summary(fitted)
    for stage in ("val", "test"):
        names = {key.removeprefix(f"{stage}/") for key in summary if key.startswith(f"{stage}/")}
        assert names - {"disagreements"} == set(FIGURES)
    assert all(0 <= value <= 1 for value in figures_of(summary).values())
    assert (summary["data/train_refs"], summary["data/testA_sentences"]) == (9, SENTENCES)
    rows = read_rows(fitted / "tables" / "test_grounding.csv")
    assert [int(row["index"]) for row in rows] == list(range(SENTENCES))
    assert len({row["image_id"] for row in rows}) == PICTURES
    assert 0 < sum(float(row["mask_iou"]) for row in rows) / SENTENCES == pytest.approx(summary["test/miou"], abs=1e-6)
    assert sum(float(row["box_iou"]) > 0.5 for row in rows) / SENTENCES == summary["test/acc50"]
    pictures = {path.name for path in (fitted / "pictures").iterdir()}
    assert {"val_grounding.png", "test_grounding.png"} <= pictures


def test_a_checkpoint_has_the_words_and_is_loaded_without_code(fitted):
    checkpoint = torch.load(chosen(fitted), weights_only=True)
    known = checkpoint["hyper_parameters"]
    assert known["vocabulary"] == sorted(set(known["vocabulary"]))
    assert (known["train_words"], known["max_words"], known["input_size"]) == (True, 8, [3, 64, 64])
    assert checkpoint["state_dict"]["words.weight"].shape == (2 + len(known["vocabulary"]), 8)
    assert len(known["vocabulary"]) == read_summary(fitted)["data/vocabulary"]


@pytest.mark.slow
def test_wandb_has_losses_figures_pictures_and_tables(refcoco_root, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    assert fit(words(refcoco_root), run, *ALL_EPOCHS, "--logger", "wandb", figures=True) == 0
    record = read_record(run)
    for name in ("loss", "loss_xy", "loss_wh", "loss_conf", "loss_seg", "loss_cem"):
        assert len(record.at(f"train/{name}")) == STEPS * EPOCHS, name
    assert len(record.at("val/acc50")) == len(record.at("val/ie")) == EPOCHS
    assert {"val/grounding", "test/grounding"} <= record.media.keys()
    assert any("test/grounding" in key for row in record.history for key in row)
    assert any("test_grounding" in key or "test/test_grounding" in key for row in record.history for key in row)
    assert record.summary["test/miou"] == pytest.approx(read_summary(run)["test/miou"])


@pytest.mark.slow
def test_test_gives_the_same_figures_again(fitted, refcoco_root, tmp_path):
    assert test(words(refcoco_root), tmp_path / "tested", "--ckpt_path", chosen(fitted)) == 0
    assert figures_of(tmp_path / "tested") == figures_of(fitted)
    tables = [run / "tables" / "test_grounding.csv" for run in (tmp_path / "tested", fitted)]
    assert tables[0].read_text() == tables[1].read_text()


@pytest.mark.slow
def test_another_data_set_is_tested_with_the_words_of_the_checkpoint(fitted, refcoco_root, tmp_path):
    """Its own words would have other numbers."""
    other = words(refcoco_root, data__dataset="refcoco+")
    assert test(other, tmp_path / "other", "--ckpt_path", chosen(fitted)) == 0
    summary = read_summary(tmp_path / "other")
    assert summary["data/dataset"] == "refcoco+"
    assert summary["data/vocabulary"] == read_summary(fitted)["data/vocabulary"]


# -- resume ------------------------------------------------------------------------------------------------------------


@stops_of_two_epochs(STEPS)
def test_resume_is_bit_equal(whole, refcoco_root, step, tmp_path):
    run = resumed(whole, tmp_path, at_step(whole, step), words(refcoco_root))
    equal_runs(run, whole / "run", validated=step % STEPS > 0)  # from there on that epoch's validation is left out


@pytest.mark.slow
def test_resume_after_an_epoch_is_bit_equal(whole, refcoco_root, tmp_path):
    (path,) = (whole / "run" / "checkpoints").glob("epoch=0-*.ckpt")
    equal_runs(resumed(whole, tmp_path, path, words(refcoco_root)), whole / "run")


@pytest.mark.slow
def test_workers_change_nothing(whole, refcoco_root, tmp_path):
    """Nor where a run goes on in an epoch."""
    equal_runs(resumed(whole, tmp_path, at_step(whole, 1), words(refcoco_root, data__num_workers=2)), whole / "run")
    assert fit(words(refcoco_root, data__num_workers=2), tmp_path / "all", *ALL_EPOCHS) == 0
    ours, theirs = (torch.load(run / "checkpoints" / "last.ckpt") for run in (tmp_path / "all", whole / "run"))
    assert bit_equal(ours["state_dict"], theirs["state_dict"])
    assert timeless(read_summary(tmp_path / "all")) == timeless(read_summary(whole / "run"))


@pytest.mark.slow
def test_a_signal_in_the_middle_of_an_epoch(whole, refcoco_root, tmp_path, capsys):
    done = stopped_and_resumed(words(refcoco_root), tmp_path / "run", capsys, MCN, STEPS + 1)
    assert done == STEPS * EPOCHS  # no step is done twice
    equal_runs(tmp_path / "run", whole / "run")


# -- many processes ----------------------------------------------------------------------------------------------------


class AtRest(Callback):
    """Batch norms stay as they are, and nothing drops out, which no process could do like another."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.eval()


BOTH = {"trainer__precision": "64-true", "data__eval_batch_size": 1}


@pytest.fixture(scope="module")
def both(refcoco_root, tmp_path_factory) -> tuple[Run, Path]:
    """A run of two processes in float64, and a test by one process of what it has tested."""
    folder = tmp_path_factory.mktemp("both")
    few = words(refcoco_root, data__batch_size=2, **BOTH)
    many = processes(few, ALL_EPOCHS, folder / "many", 2)
    assert test(few, folder / "one", "--ckpt_path", chosen(many.path)) == 0
    return many, folder / "one"


@pytest.mark.slow
def test_processes_stay_equal_and_see_every_ref_and_every_sentence(both):
    """Refs fill up the last batch; a sentence of an evaluation comes once, with all others about its picture."""
    many, _ = both
    assert_equal_ranks(many)
    seen = many.seen("train")
    assert len(seen) == 12 * EPOCHS
    assert set(seen) == set(range(9))
    assert many.seen("val") == sorted([*range(11)] * EPOCHS)
    assert many.seen("test") == list(range(SENTENCES))
    shares = [sum(map(len, rank["seen"]["test"])) for rank in many.ranks]
    assert len(set(shares)) == 2  # three pictures


@pytest.mark.slow
def test_processes_evaluate_as_one_does(both):
    """On the same weights: each figure, and each sentence."""
    many, one = both
    assert figures_of(many.summary) == figures_of(one)
    tables = [read_rows(run / "tables" / "test_grounding.csv") for run in (many.path, one)]
    for name in ("index", "ref_id", "sentence", "box_iou", "mask_iou"):
        assert [row[name] for row in tables[0]] == [row[name] for row in tables[1]], name
    assert len({row["mask_iou"] for row in tables[0]}) > 5


@pytest.mark.slow
def test_processes_learn_as_one_does(refcoco_root, tmp_path):
    """Without batch statistics and dropout: the same weights, losses and figures, to rounding."""
    runs = []
    for number in (1, 2):
        few = words(refcoco_root, data__batch_size=4 // number, trainer__gradient_clip_val="null", **BOTH)
        more = [*ALL_EPOCHS, "--trainer.callbacks+=tests.test_mcn_runs.AtRest"]
        runs.append(processes(few, more, tmp_path / str(number), number))
    one, many = runs
    assert_same_weights(one, many, atol=1e-6)
    assert_same_metrics(one, many, atol=1e-6)
    for rank in range(2):
        assert set(many.ranks[rank]["seen"]["train"][0]) < set(one.ranks[0]["seen"]["train"][0])


# -- predict -----------------------------------------------------------------------------------------------------------


def pictures_of(root: Path) -> list[Path]:
    """Those of the test."""
    found = json.loads((root / "refcoco" / "instances.json").read_text())["images"]
    refs = pickle.loads((root / "refcoco" / "refs(unc).p").read_bytes())  # our own
    wanted = {ref["image_id"] for ref in refs if ref["split"] == "testA"}
    return [root / "images" / "train2014" / each["file_name"] for each in found if each["id"] in wanted]


def test_predict_finds_what_the_test_found(fitted, refcoco_root, tmp_path, capsys):
    """Of several pictures with two sentences each, beside a file that is no picture."""
    table = read_rows(fitted / "tables" / "test_grounding.csv")
    first, *others = pictures_of(refcoco_root)
    (tmp_path / "in").mkdir()
    shutil.copy(others[0], tmp_path / "in" / "other.jpg")
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no picture")
    of_first = [row for row in table if row["image_id"] == table[0]["image_id"]]
    texts = [of_first[0]["sentence"], of_first[-1]["sentence"]]
    given = ["--input", first, tmp_path / "in", "--text", texts[0], "--text", f"{texts[1].upper()}!"]
    assert predict(chosen(fitted), tmp_path / "out", *given) in (0, 1)
    assert "broken.jpg" in capsys.readouterr().err
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(entries) == 4
    for entry, row in zip((e for e in entries if e["file"] == str(first)), (of_first[0], of_first[-1]), strict=True):
        assert entry["text"].lower().startswith(row["sentence"])
        assert entry["score"] == pytest.approx(float(row["score"]), abs=1e-4)
        x1, y1, x2, y2 = entry["box"]
        assert 0 <= x1 <= x2 <= entry["width"] == 64
        assert 0 <= y1 <= y2 <= entry["height"] == 48
        with Image.open(tmp_path / "out" / entry["mask_file"]) as mask:
            assert mask.size == (64, 48)
            assert int((np.asarray(mask) > 0).sum()) == entry["mask_area"]
    rows = read_rows(tmp_path / "out" / "predictions.csv")
    assert [row["text"] for row in rows] == [entry["text"] for entry in entries]
    assert len(list((tmp_path / "out" / "pictures").glob("*.png"))) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--text", "ein Zebra"], "the checkpoint knows none of these words"),
        ([], "--text 'the man in red'"),
        (["--text", " !? "], "has no words"),
        (["--text", "red", "--glove", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_one_line_says_what_is_wrong_with_a_question(fitted, refcoco_root, more, text, tmp_path, capsys):
    picture = pictures_of(refcoco_root)[0]
    assert predict(chosen(fitted), tmp_path / "out", "--input", picture, *more) == 2
    assert text in one_line(capsys)
    assert not list(tmp_path.rglob("predictions.csv"))


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"data__glove": "nowhere.txt"}, "nowhere.txt"),
        ({"data__root": "nowhere"}, "nowhere"),
        ({"data__image_dir": "nowhere"}, "nowhere"),
        ({"data__dataset": "refcocog", "data__split_by": "google"}, "refs(google)"),
        ({"data__test_split": "testC"}, "test_split='testC'"),
        ({"data__size": 100}, "multiple of 32"),
        ({"model__backbone": "tiny2"}, "tiny2"),
        ({"model__backbone_weights": "nowhere.pt"}, "nowhere.pt"),
        ({"model__cem_weight": -1}, "cem_weight=-1"),
        ({"model__num_heads": 3}, "must be a multiple of num_heads=3"),
        ({"trainer__precision": "bf16-true"}, "take bf16-mixed"),
    ],
)
def test_one_line_says_what_is_wrong(refcoco_root, more, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fit(words(refcoco_root, **more), tmp_path / "run") == 2
    assert text in one_line(capsys)


@pytest.mark.slow
def test_weights_of_another_network_are_told(refcoco_root, tmp_path, capsys):
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "resnet.pt")
    more = words(refcoco_root, model__backbone_weights=tmp_path / "resnet.pt")
    assert fit(more, tmp_path / "run") == 2
    assert "resnet.pt" in one_line(capsys)


@pytest.mark.slow
def test_sentences_of_another_length_are_not_tested(fitted, refcoco_root, tmp_path, capsys):
    more = words(refcoco_root, data__max_words=9)
    assert test(more, tmp_path / "run", "--ckpt_path", chosen(fitted)) == 2
    assert "set data.max_words 8" in one_line(capsys)


@pytest.mark.slow
def test_vectors_of_words_of_another_size_are_told(refcoco_root, tmp_path, capsys):
    (tmp_path / "glove.txt").write_text("red 1 2 3\nthe 3 2 1\n")
    assert fit(words(refcoco_root, data__glove=tmp_path / "glove.txt"), tmp_path / "run") == 2
    assert "set model.word_dim 3" in one_line(capsys)


@pytest.fixture
def own_root(refcoco_root, tmp_path) -> Path:
    """A set of the test's own, whose files may be spoiled."""
    return Path(shutil.copytree(refcoco_root, tmp_path / "refer"))


def first_of(root: Path, split: str) -> tuple[dict[str, Any], Path]:
    """A ref, and ``instances.json``."""
    refs = pickle.loads((root / "refcoco" / "refs(unc).p").read_bytes())  # our own
    return next(ref for ref in refs if ref["split"] == split), root / "refcoco" / "instances.json"


def changed(path: Path, ann_id: int, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    content = json.loads(path.read_text())
    rows = [change(row) if row["id"] == ann_id else row for row in content["annotations"]]
    path.write_text(json.dumps(content | {"annotations": [row for row in rows if row]}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda row: None, "no such annotation"),
        (lambda row: row | {"bbox": [90, 5, 10, 10]}, "outside"),
        (lambda row: row | {"bbox": [5, 5, 0, 10]}, "bbox"),
        (lambda row: row | {"segmentation": []}, "segmentation"),
        (lambda row: row | {"segmentation": [[1, 1, 2, 2]]}, "polygon"),
    ],
    ids=["missing", "outside", "no area", "no polygon", "polygon of two points"],
)
def test_a_bad_annotation_is_named(own_root, change, text, tmp_path, capsys):
    ref, path = first_of(own_root, "train")
    changed(path, ref["ann_id"], change)
    assert fit(words(own_root), tmp_path / "run") == 2
    line = one_line(capsys)
    assert text in line
    for part in (str(path), f"ref_id {ref['ref_id']}", f"ann_id {ref['ann_id']}"):
        assert part in line


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["fit", "test"])
def test_a_picture_that_is_absent_is_named(fitted, own_root, entry, tmp_path, capsys):
    ref, _ = first_of(own_root, "train" if entry == "fit" else "testA")
    path = own_root / "images" / "train2014" / f"COCO_train2014_{ref['image_id']:012d}.jpg"
    path.unlink()
    if entry == "fit":
        assert fit(words(own_root), tmp_path / "run") == 2
    else:
        assert test(words(own_root), tmp_path / "run", "--ckpt_path", chosen(fitted)) == 2
    assert path.name in one_line(capsys)


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"no picture", None], ids=["no picture", "another picture"])
def test_a_picture_that_is_another_one_is_named(own_root, content, tmp_path, capsys):
    ref, _ = first_of(own_root, "train")
    path = own_root / "images" / "train2014" / f"COCO_train2014_{ref['image_id']:012d}.jpg"
    if content is None:
        Image.new("RGB", (65, 48)).save(path)
    else:
        path.write_bytes(content)
    assert fit(words(own_root), tmp_path / "run") == 2
    assert path.name in one_line(capsys)


class Command:
    """What a pickle can run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_list_that_would_run_a_command_is_refused(own_root, tmp_path, capsys):
    path, traces = own_root / "refcoco" / "refs(unc).p", tmp_path / "traces"
    refs = pickle.loads(path.read_bytes())  # our own
    path.write_bytes(pickle.dumps([*refs, Command(traces)], protocol=2))
    assert fit(words(own_root), tmp_path / "run") == 2
    line = one_line(capsys)
    assert str(path) in line
    assert "system" in line
    assert not traces.exists()


@pytest.mark.slow
def test_weights_that_break_survive_an_evaluation(fitted, refcoco_root, tmp_path):
    checkpoint = torch.load(chosen(fitted), weights_only=True)
    checkpoint["state_dict"]["model.rec.weight"].fill_(float("nan"))
    torch.save(checkpoint, tmp_path / "broken.ckpt")
    assert test(words(refcoco_root), tmp_path / "run", "--ckpt_path", str(tmp_path / "broken.ckpt")) == 0
    assert figures_of(tmp_path / "run")["acc50"] == 0
