"""The doctor on a recipe: every fault is one line, the other checks go on, and nothing stays behind."""

import shutil
from pathlib import Path

import pytest
from doctor_says import HRANK, lines


def test_a_sound_recipe(command, tmp_path):
    answer = command("doctor")
    assert answer.code == 0
    assert answer.err == []
    assert "ToyMethod with 15 parameters, ToyData, 1 cpu device(s)" in lines(answer, "ok", "recipe")[0]
    train, val, test = lines(answer, "ok", "data")
    assert "train: 5 batches, the first has x (4, 4) float32 " in train
    assert "label (4,) int64 0 to 0" in train
    assert "val: 2 batches" in val
    assert "test: 3 batches" in test
    assert "loss " in lines(answer, "ok", "step")[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "topic", "text"),
    [
        (["--model.lrr", "1"], "recipe", "model.lrr='1': ToyMethod has no argument 'lrr'; did you mean lr?"),
        (["--model.lr", "-1"], "recipe", "model.lr='-1': lr must be positive, got -1.0"),
        (["--trainer.accelerator", "mps"], "recipe", "trainer.accelerator='mps': none here"),
        (["--ckpt_path", "gone.ckpt"], "recipe", "ckpt_path='gone.ckpt' does not exist"),
        (["--data.root", "/nowhere"], "data", "no points in root='/nowhere'"),
        (["--data", "toy_faults.FaultyToyData"], "data", "train: x holds NaN or infinity"),
        (["--data", "toy_faults.FaultyToyData", "--data.fault", "label"], "data", "label must be 0 to 2, got 2 to 3"),
        (["--data", "toy_faults.FaultyToyData", "--data.fault", "image"], "data", "image must be in [0, 1], got 255"),
        (["--model", "toy_faults.DivergedToyMethod"], "step", "loss, gradient not finite. The step was not taken: "),
        (["--model.fail_at", "0"], "step", "ValueError: a fault in the method's own code"),
        (["--model.fail_at", "-2"], "recipe", "AttributeError: "),
    ],
)
def test_faults_of_a_recipe_are_one_line_each(command, tmp_path, words, topic, text):
    answer = command("doctor", *words)
    assert answer.code == 1
    assert any(text in line for line in lines(answer, "FAIL", topic)), answer.out
    assert len({line[8:20] for line in lines(answer, "FAIL")}) == 1
    assert lines(answer, "ok", "runs")
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_nan_guard_lets_pass(command):
    words = ("--model", "toy_faults.DivergedToyMethod", "--trainer.callbacks+=NaNGuard")
    answer = command("doctor", *words, "--trainer.callbacks.action", "skip")
    assert answer.code == 1
    assert "loss inf in the first batch" in lines(answer, "FAIL", "step")[0]


def test_nothing_is_downloaded(command):
    answer = command("doctor", "--data", "toy_faults.FaultyToyData", "--data.fault", "missing")
    assert answer.code == 0
    assert "no points in /nowhere/points.bin. It says download=True" in lines(answer, "warning", "data")[0]


def test_weights_that_fit_would_download(command, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    words = ("--model", "lit_methods.ImageClassifier", "--data", "datamodules.CIFARDataModule")
    words += ("--model.backbone", "tiny", "--model.base_checkpoint", "ResNet18_Weights.IMAGENET1K_V1")
    answer = command("doctor", *words, "--checkpoint.monitor", "val/top1")
    assert answer.code == 0
    assert "is not on this machine yet; fit downloads it" in lines(answer, "warning", "recipe")[0]
    assert not Path(tmp_path, "hub").exists()


def test_a_run_directory_that_fit_would_refuse(command, tmp_path):
    Path(tmp_path, "mine").mkdir()
    Path(tmp_path, "mine", "notes.txt").touch()
    answer = command("doctor", "--run_dir", "mine")
    assert "run_dir='mine' is not empty" in lines(answer, "FAIL", "recipe")[0]
    assert [p.name for p in Path(tmp_path, "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("free", "level", "text"),
    [(50, "FAIL", "the checkpoints of this run take"), (500, "warning", "the checkpoints of this run may take")],
)
def test_too_little_space_for_the_checkpoints(command, monkeypatch, free, level, text):
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=free))
    answer = command("doctor")
    assert answer.code == (level == "FAIL")
    assert f"{free} B free" in lines(answer, level, "space")[0]
    assert text in lines(answer, level, "space")[0]
    assert lines(answer, "ok", "space") == []


def test_a_run_without_checkpoints(command):
    assert (
        "enable_checkpointing=False"
        in lines(command("doctor", "--trainer.enable_checkpointing", "false"), "warning", "space")[0]
    )


def test_cifar_names_the_missing_files(command, tmp_path):
    words = ("--model", "lit_methods.ImageClassifier", "--model.backbone", "tiny")
    words += ("--data", "datamodules.CIFARDataModule", "--data.name", "cifar10", "--data.root", "elsewhere")
    answer = command("doctor", *words)
    (line,) = lines(answer, "FAIL", "data")
    assert "no data_batch_1, data_batch_2" in line
    assert "in elsewhere/cifar-10-batches-py" in line


def test_pruning_before_the_first_step_is_tried(command):
    """``at_epoch=0`` without weights is what fit refuses only once the data are read."""
    words = ("--model.backbone", "tiny", "--trainer.callbacks.at_epoch", 0, "--trainer.callbacks.rates", 0.5)
    answer = command("doctor", *words, recipe=HRANK)
    assert "the network has no trained weights" in lines(answer, "FAIL", "step")[0]
