"""Whole NAD runs by the command line: resumed in the middle of the classes, many processes, the user's own pictures."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from lit_methods import NAD
from lit_methods.cli import main
from tests.left_behind import metrics, read_rows, read_summary, timeless, weights
from tests.small_recipes import small_words
from tests.tiny import register
from tests.two_processes import Run, assert_equal_ranks, assert_same_decisions, assert_same_metrics, run, run_both
from tests.victims import trained_weights
from tests.wandb_record import read_record

STEPS = 4  # batches per epoch
ONE = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.sync_batchnorm", "false"]
RUN = [
    *("--model.model", "tiny", "--trainer.limit_train_batches", str(STEPS), "--trainer.num_sanity_val_steps", "0"),
    *("--trainer.log_every_n_steps", "1", "--model.num_others", "2"),
]
FIRST = [
    *("--model.classifier_epochs", "1", "--trainer.max_epochs", "3", "--checkpoint.save_top_k", "-1"),
    *("--checkpoint.monitor", "val/kept_ratio", "--checkpoint.mode", "min"),  # so short a training knows no class
]
GATES = "gates.npz"
DRAWN = ("similarity", "kept_ratio", "paths", "hit_rate", "mosaic", "confusion")


@pytest.fixture(scope="module", autouse=True)
def _networks():
    register()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> list[str]:
    """Arguments that name a trained network, so that gates are learned from the start."""
    path = tmp_path_factory.mktemp("trained") / "weights.pth"
    torch.save(trained_weights(), path)
    return ["--model.base_checkpoint", str(path), "--model.classifier_epochs", "0"]


# -- what a run leaves -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, trained) -> Path:
    """A run with all its pictures."""
    folder = tmp_path_factory.mktemp("fitted") / "run"
    assert main("fit", ["nad", *pictured(trained), "--run_dir", str(folder)]) == 0
    return folder


def pictured(trained: list[str]) -> list[str]:
    words = [*ONE, *RUN, *trained, *small_words("nad"), "--trainer.max_epochs", "2"]
    return [*words, "--model.classifier_epochs", "0", "--data.num_test_images", "60"]


def test_a_run_leaves_figures_pictures_gates_and_tables(fitted):
    summary = read_summary(fitted)
    for name in ("own_top1", "other_top1", "false_own", "selectivity", "kept_ratio", "top1"):
        assert 0 <= summary[f"test/{name}"] <= 1
    assert 0 <= summary["nad/diversity"] <= 1
    pictures = {path.name for path in (fitted / "pictures").iterdir()}
    assert {f"nad_{name}.png" for name in DRAWN} <= pictures
    with np.load(fitted / GATES) as gates:
        assert gates["body.relu1"].shape == (10, 8)
        assert gates["class_ids"].tolist() == list(range(10))
        (best,) = (fitted / "checkpoints").glob("epoch=*.ckpt")  # which was tested
        state = torch.load(best, weights_only=True)["state_dict"]
        assert np.array_equal(gates["body.relu3"], state["gate_logits.2"].numpy())
    rows = read_rows(fitted / "tables" / "nad_classes.csv")
    assert [row["class"] for row in rows] == list("0123456789")
    (steps,) = {int(row["steps"]) + int(row["skipped"]) for row in rows}
    assert steps in (STEPS, 2 * STEPS)  # as many as the best epoch has seen


@pytest.mark.slow
def test_wandb_has_the_pictures(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = [*pictured(trained), "--logger", "wandb", "--run_dir", str(tmp_path / "run")]
    assert main("fit", ["nad", *words]) == 0
    assert {f"nad/{name}" for name in DRAWN} <= read_record(tmp_path / "run").media.keys()


def test_test_gives_the_same_figures_again(fitted, tmp_path):
    words = [*ONE, "--data.num_test_images", "60", "--trainer.callbacks", "[]"]
    best = next(iter((fitted / "checkpoints").glob("epoch=*.ckpt")))
    assert main("test", ["nad", *words, "--ckpt_path", str(best), "--run_dir", str(tmp_path / "tested")]) == 0
    summary, again = read_summary(fitted), read_summary(tmp_path / "tested")
    for key in [key for key in again if key.startswith("test/")]:
        assert again[key] == summary[key], key


def test_predict_shows_where_a_sub_architecture_looks(fitted, tmp_path):
    for name, shade in (("a", 40), ("b", 200)):
        Image.fromarray(np.full((40, 30, 3), shade, np.uint8)).save(tmp_path / f"{name}.png")
    words = ["--ckpt_path", str(fitted / "checkpoints" / "last.ckpt"), "--input", str(tmp_path), "--class_id", "7"]
    assert main("predict", ["nad", *ONE, *words, "--run_dir", str(tmp_path / "out")]) == 0
    rows = read_rows(tmp_path / "out" / "predictions.csv")
    assert [row["class_id"] for row in rows] == ["7", "7"]
    assert {"own_score_1", "name_1", "score_1"} <= rows[0].keys()
    for name in ("a", "b"):
        for folder in ("maps", "pictures"):
            assert (tmp_path / "out" / folder / f"{name}.png").exists()


def test_a_class_without_gates_is_one_line(fitted, tmp_path, capsys):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    words = ["--ckpt_path", str(fitted / "checkpoints" / "last.ckpt"), "--class_id", "12"]
    assert main("export", ["nad", *words, "--run_dir", str(tmp_path / "e")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "class_id=12 has no gates" in line


@pytest.mark.slow
def test_a_classes_sub_architecture_leaves_python(fitted, tmp_path):
    checkpoint = fitted / "checkpoints" / "last.ckpt"
    words = ["--ckpt_path", str(checkpoint), "--formats", "onnx", "--class_id", "7"]
    assert main("export", ["nad", *words, "--run_dir", str(tmp_path / "small")]) == 0
    report = json.loads((tmp_path / "small" / "export" / "export.json").read_text())
    assert report["class_id"] == 7
    assert [file["path"] for file in report["files"]] == ["class_7.onnx"]  # which was compared with the module
    module = NAD.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    small, whole = (sum(p.numel() for p in net.parameters()) for net in (module.sub_network(7), module.model))
    assert small < whole


# -- resume ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An uninterrupted run that first trains its network, with a checkpoint after every step."""
    folder = tmp_path_factory.mktemp("whole")
    assert main("fit", ["nad", *WORDS, *every_step(folder / "steps"), "--run_dir", str(folder / "run")]) == 0
    return folder


ANALYSIS = ["--trainer.callbacks", "callbacks.SubArchitectureAnalysis", "--trainer.callbacks.history", "true"]
WORDS = [*ONE, *RUN, *FIRST, *ANALYSIS]


def every_step(folder: Path) -> list[str]:
    return [
        *("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps", "1"),
        *("--trainer.callbacks.save_top_k", "-1", "--trainer.callbacks.filename", "{step}"),
        *("--trainer.callbacks.dirpath", str(folder)),
    ]


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    "step",
    [
        pytest.param(2, id="while the network is trained", marks=pytest.mark.slow),
        pytest.param(STEPS, id="right before the gates", marks=pytest.mark.slow),
        pytest.param(STEPS + 1, id="in the middle of the classes"),
        pytest.param(2 * STEPS + 3, id="near the end", marks=pytest.mark.slow),
    ],
)
def test_resume_is_bit_equal(whole, step, tmp_path):
    runs = tmp_path / "run"
    shutil.copytree(whole / "run", runs)
    shutil.copy(whole / "steps" / f"step={step}.ckpt", runs / "checkpoints")
    for name in ("checkpoints/last.ckpt", "summary.json", GATES):
        (runs / name).unlink()
    checkpoint = str(runs / "checkpoints" / f"step={step}.ckpt")
    assert main("fit", ["nad", *WORDS, "--run_dir", str(runs), "--ckpt_path", checkpoint]) == 0
    assert_close(weights(runs), weights(whole / "run"), rtol=0, atol=0)
    assert metrics(runs) == metrics(whole / "run")
    assert timeless(read_summary(runs)) == timeless(read_summary(whole / "run"))
    with np.load(runs / GATES) as ours, np.load(whole / "run" / GATES) as theirs:
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


# -- many processes ----------------------------------------------------------------------------------------------------


def gates_differ(one: Run, other: Run) -> int:
    """Largest difference of gates is below 1e-5; gives the number of masks' channels that differ."""
    count = 0
    for key, theirs in one.weights.items():
        if key.startswith("gate_logits"):
            assert_close(other.weights[key], theirs, rtol=0, atol=1e-5)
            count += int(((other.weights[key] > 0) != (theirs > 0)).sum())
    return count


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_share_the_classes_out_and_equal_one(trained, tmp_path, processes):
    words = [*RUN, *trained, "--trainer.max_epochs", 2, "--data.per_class_batch", 4]
    words += ["--trainer.callbacks", "callbacks.SubArchitectureAnalysis"]
    one, many = run_both("nad", words, tmp_path, processes, batch_size=80)
    assert gates_differ(one, many) == 0
    assert torch.equal(many.weights["progress"], one.weights["progress"])
    assert_same_metrics(one, many)
    assert_same_decisions(one, many, atol=1e-5)
    shares = [{int(i) for batch in rank["seen"]["train"] for i in batch} for rank in many.ranks]
    assert all(shares)
    assert sum(map(len, shares)) == len(set().union(*shares))  # no image was seen by two


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_three_processes_whole_epochs(trained, tmp_path):
    """Groups of unequal length: some processes end an epoch with empty batches."""
    words = [*RUN, *trained, "--trainer.max_epochs", 1, "--trainer.limit_train_batches", "1.0"]
    words += ["--trainer.callbacks", "[]"]
    one = run("nad", [*words, "--data.batch_size", 24], tmp_path / "one")
    many = run("nad", [*words, "--data.batch_size", 24], tmp_path / "many", 3)
    assert_equal_ranks(many)
    assert gates_differ(one, many) == 0
    assert torch.equal(many.weights["progress"], one.weights["progress"])


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_processes_train_the_network_together(tmp_path):
    words = [*RUN, "--model.classifier_epochs", 1, "--trainer.max_epochs", 2, "--trainer.callbacks", "[]"]
    many = run("nad", words, tmp_path / "many", 2)
    assert_equal_ranks(many)
    assert all(np.isfinite(many.logged("train/loss")))


@pytest.mark.usefixtures("no_figures")
def test_a_class_on_two_processes_is_refused(trained, tmp_path):
    words = [*RUN, *trained, "--trainer.max_epochs", 1, "--data.per_class_batch", "null", "--trainer.callbacks", "[]"]
    many = run("nad", words, tmp_path / "many", 2, succeed=False)
    assert all(many.codes)
    assert "share the classes out: data.per_class_batch" in many.err[0]
