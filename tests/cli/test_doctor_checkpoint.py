"""``doctor --ckpt_path``: what a checkpoint says of itself, newer and older ones, and files that are none."""

import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from conftest import TOY
from doctor_says import lines
from lightning.pytorch import Trainer

from lit_methods.cli import main
from lit_methods.cli.checkpoint_facts import describe_checkpoint
from lit_methods.cli.doctor import Drill, _checkpoint_alone
from lit_methods.contract import run_record


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of the toy recipe: its directory."""
    folder = tmp_path_factory.mktemp("toy") / "run"
    assert main("fit", ["--config", str(TOY), "--run_dir", str(folder)]) == 0
    return folder


@pytest.fixture
def last(run) -> Path:
    return run / "checkpoints" / "last.ckpt"


def changed(path: Path, target: Path, without: tuple[str, ...] = (), **new: object) -> Path:
    """A copy of a checkpoint, elsewhere, without some of its keys or with others."""
    checkpoint = torch.load(path, weights_only=True)
    torch.save({key: value for key, value in checkpoint.items() if key not in without} | new, target)
    return target


def text(answer, topic: str, level: str = "ok") -> str:
    (line,) = lines(answer, level, f"{topic}:")
    return line.split(":", 1)[1].strip()


def test_a_checkpoint_says_what_it_is_without_its_run(command, last, tmp_path):
    alone = shutil.copy(last, tmp_path / "alone.ckpt")
    facts = describe_checkpoint(alone)
    assert facts["recipe"] == "toy"
    assert facts["run_dir"] is None
    assert facts["data"]["class"].endswith("ToyData")
    assert facts["data"]["arguments"] == {"batch_size": 4}
    assert facts["data"]["samples"] == {"train": 20, "val": 8}
    assert facts["metrics"].keys() == {"train/loss", "val/score"}
    assert facts["best"]["monitor"] == "val/score"
    assert facts["versions"] == {name: version(name) for name in ("lit-methods", "torch", "lightning")}
    weights = torch.load(alone, weights_only=True)["state_dict"]
    assert facts["parameters"] == sum(weight.numel() for weight in weights.values())
    assert facts["bytes"]["weights"] == facts["bytes"]["optimisers"] == 4 * facts["parameters"]  # momentum

    answer = command("doctor", "--ckpt_path", alone, recipe=None)
    assert (answer.code, answer.err) == (0, [])
    assert text(answer, "recipe") == "toy"
    assert text(answer, "data") == "ToyData: 20 train samples, 8 val samples; batch_size 4"
    assert f"val/score {facts['metrics']['val/score']:.4g}" in text(answer, "metrics")
    assert text(answer, "arguments").startswith("num_classes 3, ")
    assert f"torch {version('torch')}" in text(answer, "versions")
    assert "not recorded" in text(answer, "method", "warning")  # the toy is not Described
    assert not lines(answer, "ok", "threads")  # the machine is not looked at


def test_the_last_of_a_run_is_told_with_its_end_and_the_commands_that_go_on(command, run, last):
    answer = command("doctor", "--ckpt_path", "last", "--run_dir", run, recipe=None)
    assert answer.code == 0
    assert text(answer, "file").startswith(f"{last}: ")
    assert text(answer, "tested").startswith("test/score ")
    config = run / "config.yaml"
    assert text(answer, "test") == f"python -m lit_methods.test --config {config} --ckpt_path {last}"
    assert text(answer, "resume").endswith(f"--run_dir {run} --ckpt_path {last} --trainer.max_epochs N")  # it has ended


@pytest.mark.slow  # trains again
def test_the_commands_that_go_on_are_ones_that_work(command, run, last, tmp_path):
    answer = command("doctor", "--ckpt_path", last, recipe=None)
    assert command("test", *text(answer, "test").split()[3:], recipe=None).code == 0
    moved = shutil.copytree(run, tmp_path / "moved")
    answer = command("doctor", "--ckpt_path", "last", "--run_dir", moved, recipe=None)
    epoch = describe_checkpoint(last)["progress"]["epoch"]
    words = text(answer, "resume").removesuffix("N").split()[3:]
    assert command("fit", *words, epoch + 2, recipe=None).code == 0
    assert describe_checkpoint(moved / "checkpoints" / "last.ckpt")["progress"]["epoch"] == epoch + 1


def test_an_older_checkpoint_is_answered_from_the_directory_of_its_run(command, last):
    older = changed(last, last.with_name("older.ckpt"), without=("about",))
    facts, newer = describe_checkpoint(older), describe_checkpoint(last)
    older.unlink()
    assert facts["metrics"] is None
    assert facts["data"]["class"] == newer["data"]["class"]
    assert facts["data"]["samples"] == {}
    for same in ("recipe", "parameters", "best", "progress", "arguments"):
        assert facts[same] == newer[same], same
    assert facts["versions"].items() >= newer["versions"].items()


def test_what_nobody_knows_is_not_recorded(command, last, tmp_path):
    path = changed(last, tmp_path / "bare.ckpt", without=("about", "optimizer_states", "callbacks", "hyper_parameters"))
    answer = command("doctor", "--ckpt_path", path, recipe=None)
    assert answer.code == 0
    assert text(answer, "recipe") == text(answer, "data") == "not recorded"
    assert "not recorded" in text(answer, "metrics")
    assert "weights alone" in text(answer, "resume", "warning")
    assert "fit RECIPE" not in "".join(answer.out)


def test_a_checkpoint_of_ours_needs_no_recipe_and_tells_what_pruning_left(command, tmp_path, make_trainer):
    from lit_methods import HRank

    plan = {"arch": "resnet20", "keep": {"layer1.0.conv1": [0, 5]}}
    trainer, module = make_trainer(), HRank("resnet20", plan=plan)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    pruned = {"params": sum(p.numel() for p in module.parameters()), "dense_params": 269722}
    assert describe_checkpoint(tmp_path / "a.ckpt")["pruned"] == pruned
    answer = command("doctor", "--ckpt_path", tmp_path / "a.ckpt", recipe=None)
    assert text(answer, "method") == "HRank (lit_methods.hrank.module.HRank)"
    assert text(answer, "arguments").startswith("backbone resnet20, num_classes 10, ")
    assert text(answer, "pruned").startswith(f"{pruned['params']:,} of 269,722 parameters")
    words = f"--ckpt_path {tmp_path / 'a.ckpt'}"
    assert text(answer, "predict") == f"python -m lit_methods.predict {words} --input FILE..."
    assert text(answer, "export") == f"python -m lit_methods.export {words}"


def test_files_that_are_no_checkpoints_are_one_line_each(command, last, tmp_path):
    weights = tmp_path / "weights.pth"
    torch.save(torch.load(last, weights_only=True)["state_dict"], weights)
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(last.read_bytes()[:-200])
    other = changed(last, tmp_path / "other.ckpt", loops=1)
    odd = changed(last, tmp_path / "odd.ckpt", about=[1])
    note = tmp_path / "note.ckpt"
    note.write_text("no archive")
    for path, fault in {
        weights: "plain weights go to model.base_checkpoint",
        damaged: "damaged, cut off or no archive",
        note: "damaged, cut off or no archive",
        other: "no loop states in it",
        odd: "cannot be told",
        tmp_path: "is a directory",
        tmp_path / "none.ckpt": "does not exist",
    }.items():
        answer = command("doctor", "--ckpt_path", path, recipe=None)
        assert (answer.code, answer.err) == (1, []), path
        assert fault in text(answer, "file", "FAIL")
        assert len(answer.out) == 2
    assert "beside it: " in text(command("doctor", "--ckpt_path", damaged, recipe=None), "file", "FAIL")
    answer = command("doctor", "--ckpt_path", "last", "--run_dir", tmp_path, recipe=None)
    assert "no checkpoint in" in text(answer, "file", "FAIL")


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--ckpt_path", "last"], "name the run with --run_dir DIR"),
        (["--ckpt_path"], "ckpt_path: missing"),
        (["--ckpt_path", "--run_dir", "a"], "ckpt_path: missing"),
        (["--ckpt_path", "last", "--run_dir"], "run_dir: missing"),
        (["--ckpt_path", "a.ckpt", "--run_dir", "a"], "run_dir='a': only with --ckpt_path last"),
        (["--ckpt_path", "a.ckpt", "--trainer.max_epochs", "3"], "--trainer.max_epochs: name a recipe with it"),
    ],
)
def test_mistakes_in_the_words_around_a_checkpoint(command, words, fault):
    answer = command("doctor", *words, recipe=None)
    assert (answer.code, answer.out, len(answer.err)) == (2, [], 1)
    assert fault in answer.err[0]


@pytest.mark.parametrize(
    "recipe", [["--config", "a.yaml"], ["--model", "HRank"], ["--config=a.yaml"], ["--data.p", "1"]]
)
def test_with_a_recipe_a_checkpoint_is_still_where_its_run_goes_on(recipe):
    words = [*recipe, "--ckpt_path", "a.ckpt"]
    assert _checkpoint_alone(words, Drill()) is None
    assert _checkpoint_alone([*words[-2:], *recipe], Drill()) is None


def test_a_record_never_keeps_a_run_from_saving(make_trainer):
    class Stream:
        dataset = iter(())

    trainer: Trainer = make_trainer()
    trainer.fit_loop._combined_loader = type("Loaders", (), {"iterables": Stream()})()
    module = torch.nn.Linear(2, 1)
    trainer.datamodule = object()
    assert run_record(trainer, module, {"state_dict": module.state_dict()})["data"]["samples"] == {}
