"""Wrong inputs of every kind: exit code 2 and one line with the key path, the value and the nearest valid name."""

import os
import sys
from pathlib import Path

import pytest
from toy_method import ToyMethod

from lit_methods.cli import main
from lit_methods.cli.errors import root
from lit_methods.cli.given import collect
from tests.own_process import run_entry

PICKY = "{callbacks: [{class_path: toy_method.ToyPickyCallback}]}"
# what is given | what the line must contain. Text in braces is written to extra.yaml, which is given as --config.
WRONG = [
    # keys
    ("--model.lrr 0.5", ["model.lrr", "0.5", "did you mean lr?"]),
    ("--model.init_args.lrr 0.5", ["model.init_args.lrr", "0.5", "did you mean lr?"]),
    ("--data.batchsize 3", ["data.batchsize", "3", "did you mean batch_size?"]),
    ("--trainer.max_epoch 3", ["trainer.max_epoch=", "3", "did you mean trainer.max_epochs?"]),
    ("--trainer.max_ep 3", ["trainer.max_ep=", "3", "did you mean trainer.max_epochs?"]),  # an abbreviation
    ("--trainr.max_epochs 3", ["trainr.max_epochs", "3", "did you mean trainer.max_epochs?"]),
    ("--checkpoint.moniter val/x", ["checkpoint.moniter", "val/x", "did you mean checkpoint.monitor?"]),
    ("--modle ToyMethod", ["modle", "ToyMethod", "did you mean model?"]),
    ("--mdoel.lr 3", ["mdoel.lr", "3", "did you mean model.lr?"]),
    ("--run_dri x", ["run_dri", "x", "did you mean run_dir?"]),
    ("--seed 1", ["seed", "1"]),
    ("--input a.png", ["input", "a.png"]),  # belongs to predict
    ("--lr 0.5", ["lr", "0.5", "did you mean model.lr?"]),
    ("--batch_size 3", ["batch_size", "3", "did you mean data.batch_size?"]),
    ("--print_config=skip_nul", ["print_config", "skip_nul", "did you mean skip_null?"]),
    ("--model.help ToyMehod", ["model.help", "ToyMehod", "did you mean ToyMethod?"]),
    ("--model.net toy_method.ToyNet --model.net.widht 3", ["model.net.widht", "3", "did you mean width?"]),
    ("--trainer.callbacks+=ToyCallback --trainer.callbacks.kep 0.7", ["trainer.callbacks.kep", "0.7", "mean keep?"]),
    ("{trainer: {max_epoch: 3}}", ["trainer.max_epoch", "3", "did you mean trainer.max_epochs?"]),
    ("{checkpoint: {moniter: val/x}}", ["checkpoint.moniter", "val/x", "did you mean checkpoint.monitor?"]),
    ("{modle: {lr: 3}}", ["modle.lr", "3", "did you mean model.lr?"]),
    (
        "{model: {class_path: toy_method.ToyMethod, init_args: {lrr: 0.5}}}",
        ["model.init_args.lrr", "0.5", "did you mean lr?"],
    ),
    (
        "{trainer: {callbacks: [{class_path: toy_method.ToyCallback, init_args: {kep: 3}}]}}",
        ["trainer.callbacks[0].init_args.kep", "3", "did you mean keep?"],
    ),
    # types
    ("--model.lr fast", ["model.lr", "fast", "float"]),
    ("--model.num_classes 2.5", ["model.num_classes", "2.5", "int"]),
    ("--model.mean red", ["model.mean", "red", "list"]),
    ("--model.schedule stepp", ["model.schedule", "stepp", "none, step, lambda", "did you mean step?"]),
    ("--model.net toy_method.ToyNet --model.net.width wide", ["model.net.width", "wide", "int"]),
    ("--data.batch_size many", ["data.batch_size", "many", "int"]),
    ("--trainer.max_epochs many", ["trainer.max_epochs", "many", "int"]),
    ("--trainer.max_epochs=", ["trainer.max_epochs=''", "int"]),
    ("--trainer.precision 33", ["trainer.precision", "33", "bf16-mixed"]),
    ("--trainer.callbacks+=ToyCallback --trainer.callbacks.keep most", ["trainer.callbacks.keep", "most", "float"]),
    ("--trainer 3", ["trainer", "3"]),
    ("--checkpoint.save_top_k best", ["checkpoint.save_top_k", "best", "int"]),
    ("--checkpoint.mode maxx", ["checkpoint.mode", "maxx", "did you mean max?"]),
    ("--logger tensorboard", ["logger", "tensorboard", "csv, wandb"]),
    ("--seed_everything abc", ["seed_everything", "abc", "int"]),
    (
        "{trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.EarlyStopping, "
        "init_args: {monitor: x, patience: soon}}]}}",
        ["trainer.callbacks[0].init_args.patience", "soon", "int"],
    ),
    # classes
    ("--model ToyMethd", ["model", "ToyMethd", "did you mean ToyMethod?"]),
    ("--model HRnk", ["model", "HRnk", "did you mean HRank?"]),
    ("--data CIFARDataModul", ["data", "CIFARDataModul", "did you mean CIFARDataModule?"]),
    ("--model toy_method.ToyMethd", ["model", "toy_method.ToyMethd", "did you mean ToyMethod?"]),
    ("--model toy_mehtod.ToyMethod", ["model", "toy_mehtod.ToyMethod", "did you mean toy_method.ToyMethod?"]),
    ("--model lightning.pytorch.Trainer", ["model", "lightning.pytorch.Trainer", "not a LightningModule"]),
    ("--trainer.callbacks+=ToyCalback", ["trainer.callbacks", "ToyCalback", "did you mean ToyCallback?"]),
    ("--trainer.callbacks+=HRankPrunning", ["trainer.callbacks", "HRankPrunning", "did you mean HRankPruning?"]),
    # missing
    ("--trainer.callbacks+=ToyPickyCallback", ["trainer.callbacks", "ToyPickyCallback", "name"]),
    ("{trainer: " + PICKY + "}", ["trainer.callbacks", "ToyPickyCallback", "name"]),
    ("--model null", ["model", "missing"]),
    ("--model.lr", ["model.lr", "value is missing"]),
    ("--run_dir", ["run_dir", "value is missing"]),
    ("hrank", ["hrank", "recipe"]),  # not the first word
    ("--config nowhere.yaml", ["config", "nowhere.yaml", "no such file"]),
    ("{model: [1, 2", ["config", "extra.yaml", "YAML"]),
    ("{trainer: 3}", ["trainer", "3", "extra.yaml"]),
    ("[1, 2]", ["config", "extra.yaml"]),
    ("{1: 2}", ["config", "extra.yaml"]),
    ("--ckpt_path nowhere.ckpt", ["ckpt_path", "nowhere.ckpt", "does not exist"]),
    ("--ckpt_path https://a.b/c.ckpt", ["ckpt_path", "https://a.b/c.ckpt", "local"]),
    ("--ckpt_path last", ["ckpt_path", "last", "no checkpoint"]),
    # a constructor's own complaint
    ("--model.lr -1", ["model.lr", "-1", "lr must be positive"]),
    ("--trainer.callbacks+=ToyCallback --trainer.callbacks.keep 7", ["trainer.callbacks.keep", "7", "lie in (0, 1]"]),
    ("--model.hidden -3", ["ToyMethod", "-3"]),  # torch's own
    ("--trainer.accelerator gpuu", ["trainer.accelerator", "gpuu", "cpu"]),
    ("--trainer.max_epochs -5", ["trainer.max_epochs", "-5"]),
    ("--trainer.devices 0x", ["trainer.devices", "0x"]),
    ("--checkpoint.save_top_k -4", ["checkpoint.save_top_k", "-4"]),
    ("--checkpoint.every_n_epochs 1 --checkpoint.every_n_train_steps 3", ["checkpoint.every_n_train_steps", "3"]),
    (
        "--model ImageClassifier --model.mean null --model.backbone resnet57",
        ["model.backbone", "resnet57"],
    ),
    # what shows between construction and the first batch
    ("--data.root nowhere", ["data.root", "nowhere", "no points"]),
    ("--trainer.limit_train_batches -3", ["trainer.limit_train_batches", "-3"]),
    ("--checkpoint.monitor val/scor", ["checkpoint.monitor", "val/scor"]),
]


@pytest.mark.parametrize(("words", "parts"), WRONG, ids=[words for words, _ in WRONG])
def test_one_line(command, tmp_path: Path, words: str, parts: list[str]):
    given = words.split()
    if words[0] in "{[":
        Path(tmp_path, "extra.yaml").write_text(words)
        given = ["--config", "extra.yaml"]
    answer = command("fit", *given)
    assert answer.code == 2
    assert len(answer.err) == 1, answer.err
    assert answer.err[0].startswith("error: ")
    assert [part for part in parts if part not in answer.err[0]] == [], answer.err[0]
    assert not list(Path(tmp_path, "runs").glob("*/checkpoints"))


def test_a_run_that_never_began_leaves_no_directory(command, tmp_path):
    assert command("fit", "--data.root", "nowhere", "--run_dir", "mine").code == 2
    assert command("fit", "--model.lr", "-1").code == 2
    assert not Path("mine").exists()
    assert list(Path(tmp_path).glob("runs/*")) == []


def test_nothing_but_a_recipe_is_missing(command):
    answer = command("fit", "--trainer.max_epochs", 1, recipe=None)
    assert answer.code == 2
    assert "model" in answer.err[0]
    assert len(answer.err) == 1


def test_a_fault_of_the_code_in_training_keeps_its_traceback(command):
    with pytest.raises(ValueError, match="a fault in the method's own code"):
        command("fit", "--model.fail_at", 2)


def test_a_fault_of_the_code_in_a_constructor_keeps_its_traceback(command):
    with pytest.raises(Exception, match=r"ToyMethod.*no attribute 'missing'") as caught:
        command("fit", "--model.fail_at", -2)
    assert isinstance(root(caught.value), AttributeError)


def test_debug_shows_the_traceback_of_a_mistake(command, monkeypatch):
    monkeypatch.setenv("LIT_METHODS_DEBUG", "1")
    with pytest.raises(ValueError, match="lr must be positive"):
        command("fit", "--model.lr", -1)


def test_a_checkpoint_of_another_network(command):
    ckpt = command("fit").run_dir / "checkpoints" / "last.ckpt"
    answer = command("fit", "--ckpt_path", ckpt, "--model.hidden", 5)
    assert answer.code == 2
    assert len(answer.err) == 1
    assert str(ckpt) in answer.err[0]
    assert "layer.0.weight" in answer.err[0]


def test_a_file_that_is_no_checkpoint(command, tmp_path):
    Path(tmp_path, "noise.ckpt").write_bytes(b"no checkpoint at all")
    for entry in ("fit", "test", "validate", "predict"):
        answer = command(entry, "--ckpt_path", "noise.ckpt")
        assert answer.code == 2
        assert len(answer.err) == 1
        assert "noise.ckpt" in answer.err[0]


@pytest.mark.slow
def test_stderr_holds_one_line_in_a_process_of_its_own(tmp_path):
    """Outside pytest warnings go to stderr as well; the exit code is the process's."""
    here = Path(__file__).parent
    words = ["--config", here / "toy.yaml", "--model.lrr", "0.5"]
    done = run_entry("fit", *words, folder=tmp_path, environment=os.environ | {"PYTHONPATH": str(here)})
    assert done.returncode == 2
    assert done.stderr == "error: model.lrr='0.5': ToyMethod has no argument 'lrr'; did you mean lr?\n"
    assert done.stdout == ""


def test_given_pairs_follow_the_order_of_the_command(tmp_path):
    Path(tmp_path, "a.yaml").write_text("model: {class_path: A, init_args: {sizes: [1, 2], net: {class_path: B}}}")
    pairs = collect(["--config", str(tmp_path / "a.yaml"), "--model.sizes=3"])
    assert [(pair.key, pair.value) for pair in pairs if pair.value is not None] == [
        ("model.class_path", "A"),
        ("model.init_args.sizes", [1, 2]),
        ("model.init_args.net.class_path", "B"),
        ("model.sizes", "3"),
    ]


def test_main_takes_sys_argv(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fit", "--list"])
    assert main("fit") == 0
    assert ToyMethod.__name__ not in capsys.readouterr().out
