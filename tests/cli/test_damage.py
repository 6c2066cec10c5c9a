"""Damaged, foreign and half-written checkpoints under the whole command line: one line, and a run that goes on."""

import errno
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from toy_method import ToyMethod

from lit_methods import checkpoint_io
from lit_methods.checkpoint_io import SafeCheckpointIO, read_checkpoint
from lit_methods.cli import main
from lit_methods.cli.checkpoints import RunCheckpoint
from lit_methods.cli.parsing import RunCLI

TOY = Path(__file__).parent / "toy.yaml"


def cut(share: float):
    return lambda data: data[: int(share * len(data))]


def flip(data: bytes) -> bytes:
    """Some bits in the middle, where the tensors lie."""
    changed, generator = bytearray(data), random.Random(0)
    for _ in range(20):
        changed[generator.randrange(len(data) // 4, len(data) // 2)] ^= 1 << generator.randrange(8)
    return bytes(changed)


DAMAGES = {"0 %": cut(0), "50 %": cut(0.5), "99 %": cut(0.99), "bits": flip}
damages = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)


def spoil(path: Path, damage=DAMAGES["50 %"]) -> None:
    path.write_bytes(damage(path.read_bytes()))


def weights(path: Path) -> torch.Tensor:
    return torch.load(path, weights_only=True)["state_dict"]["layer.weight"]


def said(answer) -> str:
    (line,) = answer.err
    return line


WORDS = ["--config", str(TOY), "--model.scores", "[0.7, 0.8, 0.9, 0.6]", "--checkpoint.save_top_k", "-1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """``whole``: four epochs; ``part``: three of the same."""
    folder = tmp_path_factory.mktemp("runs")
    for name, epochs in (("whole", "4"), ("part", "3")):
        words = [*WORDS, "--trainer.max_epochs", epochs, "--run_dir", str(folder / name)]
        assert main("fit", words) == 0
    return folder


# --- drill D8 -------------------------------------------------------------------------------------------------------


@damages
def test_a_damaged_file_that_was_named_is_one_line(command, runs, damage):
    path = Path(shutil.copy(runs / "part" / "checkpoints" / "last.ckpt", "named.ckpt"))
    spoil(path, damage)
    for entry in ("fit", "test"):
        answer = command(entry, "--ckpt_path", path)
        assert answer.code == 2
        assert said(answer).startswith(f"error: ckpt_path={str(path)!r}")


@damages
def test_last_falls_back_to_the_one_before_it(command, runs, damage):
    shutil.copytree(runs / "part", "part")
    for best in Path("part").glob("checkpoints/epoch*"):
        best.unlink()
    last, before = Path("part/checkpoints/last.ckpt"), Path("part/checkpoints/previous.ckpt")
    assert read_checkpoint(before)["global_step"] == 10
    spoil(last, damage)
    words = [*WORDS[2:], "--trainer.max_epochs", 4, "--run_dir", "part", "--ckpt_path", "last"]
    answer = command("fit", *words)
    assert answer.code == 0
    assert said(answer).startswith(f"warning: ckpt_path={str(last)!r} is not a checkpoint of a run: damaged")
    assert said(answer).endswith(f"going on with {before}")
    for path in (last, before):
        assert torch.equal(weights(path), weights(runs / "whole" / "checkpoints" / path.name))


def test_the_fallback_is_the_sound_one_with_most_steps(command, runs):
    shutil.copytree(runs / "part", "run")
    folder = Path("run/checkpoints")
    for age, path in enumerate(sorted(folder.iterdir())):
        os.utime(path, (age, age))  # as after a copy: between unequal steps times mean nothing
    shutil.copy(folder / "last.ckpt", folder / "last-v1.ckpt")
    for bad, good in (
        (("last", "epoch=2-step=15"), "previous"),
        (("previous",), "epoch=1-step=10"),
        (("epoch=1-step=10",), "epoch=0-step=5"),
    ):
        for name in bad:
            spoil(folder / f"{name}.ckpt")
        answer = command("test", "--run_dir", "run", "--ckpt_path", "last")
        assert answer.code == 0
        assert said(answer).endswith(f"going on with run/checkpoints/{good}.ckpt")
    spoil(folder / "epoch=0-step=5.ckpt")
    answer = command("test", "--run_dir", "run", "--ckpt_path", "last")
    assert answer.code == 2
    assert said(answer).startswith("error: ckpt_path='run/checkpoints/last.ckpt' is not")
    assert said(answer).endswith("no other checkpoint beside it is sound")


def test_a_best_checkpoint_that_is_damaged_before_the_test_is_one_line(command, monkeypatch):
    best = RunCheckpoint.best_path

    def spoiled(self):
        spoil(Path(best(self)))
        return best(self)

    monkeypatch.setattr(RunCheckpoint, "best_path", spoiled)
    answer = command("fit", "--run_dir", "run")
    assert answer.code == 2
    assert "run/checkpoints/epoch=" in said(answer)


def test_what_only_looks_like_a_checkpoint_is_one_line(command, tmp_path):
    torch.save({"state_dict": {}, "loops": {"fit_loop": {}}}, tmp_path / "odd.ckpt")
    assert "odd.ckpt' is not a checkpoint of a run" in said(command("fit", "--ckpt_path", "odd.ckpt"))
    torch.save([1, 2], tmp_path / "list.ckpt")
    assert "list.ckpt' is not a checkpoint of a run" in said(command("fit", "--ckpt_path", "list.ckpt"))


# --- drill D1: the disk fills up -------------------------------------------------------------------------------------


@pytest.fixture
def full_after(monkeypatch):
    """``full_after(2)``: two files are written, for the third there is no space."""
    true = os.replace

    def arrange(count: int) -> None:
        calls: list[str] = []

        def replace(source, target):
            if str(source).endswith(".lit_methods.part"):
                calls.append(target)
                if len(calls) > count:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return true(source, target)

        monkeypatch.setattr(checkpoint_io.os, "replace", replace)

    return arrange


@pytest.mark.parametrize("company", [False, True])
def test_a_disk_that_fills_up_in_the_middle_of_a_run(command, full_after, company):
    """Also beside a callback that wants to save once more when it sees the error."""
    words = ["--trainer.max_epochs", 3, "--checkpoint.monitor", "null", "--run_dir", "run"]
    if company:
        words += ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_on_exception", "true",
                  "--trainer.callbacks.save_top_k", "0"]  # fmt: skip
    full_after(2)
    answer = command("fit", *words)
    assert answer.code == 1
    assert "No space left on device" in said(answer)
    assert "free there" in said(answer)
    assert str(Path("run").absolute()) in said(answer)
    folder = Path("run/checkpoints")
    assert {path.name: read_checkpoint(path)["global_step"] for path in folder.iterdir()} == {
        "previous.ckpt": 5,
        "last.ckpt": 10,
    }
    full_after(100)
    assert command("fit", *words, "--ckpt_path", "last").code == 0
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 15


def test_a_full_disk_elsewhere_is_one_line_too(command, monkeypatch):
    def step(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ToyMethod, "training_step", step)
    answer = command("fit", "--run_dir", "run")
    assert answer.code == 1
    assert said(answer) == f"error: {Path('run').absolute()}: No space left on device"


def test_too_little_space_is_said_before_training(command, monkeypatch):
    usage, free = shutil.disk_usage("."), 50
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    answer = command("fit", "--run_dir", "run")
    assert answer.code == 2
    folder = Path("run/checkpoints").absolute()
    assert said(answer) == (
        f"error: run_dir='run': 50 B free in {folder}, but the checkpoints of this run take 180 B or more; make room, "
        "or name another --run_dir"
    )
    assert not Path("run").exists()
    free = 200
    with pytest.warns(UserWarning, match=rf"200 B free in {folder}; the checkpoints of this run may take 720 B"):
        assert command("fit", "--run_dir", "run").code == 0


# --- drill D7: another network, another class -----------------------------------------------------------------------


def test_other_classes_in_the_data_are_one_line_that_lists_keys(command):
    path = command("fit", "--trainer.max_epochs", 1).run_dir / "checkpoints" / "last.ckpt"
    line = said(command("fit", "--ckpt_path", path, "--model.num_classes", 5))
    assert line.startswith(f"error: ckpt_path={str(path)!r} holds another network than the recipe's: other shape")
    assert "layer.weight" in line
    assert "layer.bias" in line


@pytest.fixture(scope="module")
def hrank_run(tmp_path_factory) -> Path:
    """The last checkpoint of a tiny network, pruned by HRank."""
    run = tmp_path_factory.mktemp("hrank") / "run"
    assert main("fit", [*HRANK, "--model.backbone", "tiny", "--run_dir", str(run)]) == 0
    return run / "checkpoints" / "last.ckpt"


HRANK = [
    *("hrank", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"),
    *("--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "1", "--data.batch_size", "4"),
    *("--trainer.callbacks", "[]"),
]


@pytest.mark.parametrize(("words", "key"), [
    (["--model.backbone", "tiny_nobn"], "body.bn1"),
    (["--model.backbone", "tiny", "--model.num_classes", "12"], "fc.weight"),
])  # fmt: skip
def test_another_backbone_or_head_is_one_line_that_lists_keys(hrank_run, command, words, key):
    answer = command("fit", *HRANK[1:], *words, "--ckpt_path", hrank_run, recipe=recipe_file("hrank"))
    assert answer.code == 2
    line = answer.err[-1]
    assert line.startswith(f"error: ckpt_path={str(hrank_run)!r} holds another network than the recipe's")
    assert key in line


def recipe_file(name: str) -> Path:
    from lit_methods.cli.recipes import find_recipes

    return find_recipes()[name]


def test_a_run_goes_on_with_the_class_that_began_it(hrank_run, command):
    words = ["--model", "ImageClassifier", "--model.backbone", "tiny", "--ckpt_path", hrank_run]
    answer = command("fit", *HRANK[1:], *words, recipe=recipe_file("hrank"))
    assert answer.code == 2
    assert said(answer) == (
        f"error: ckpt_path={str(hrank_run)!r} was written by lit_methods.hrank.module.HRank, and a run goes on with "
        "the class that began it, not with ImageClassifier; to start from its weights: --model.base_checkpoint"
    )
    assert "not with ToyMethod" in said(command("fit", "--ckpt_path", hrank_run))


def test_all_in_a_checkpoint_is_plain(hrank_run):
    """Whatever callbacks and module put in: ``weights_only`` loads tensors and plain values alone."""
    checkpoint = torch.load(hrank_run, weights_only=True)
    assert len(checkpoint["callbacks"]) >= 2


# --- which CheckpointIO a run has ------------------------------------------------------------------------------------


class OwnIO(SafeCheckpointIO):
    """A user's own."""


@pytest.mark.parametrize(("words", "kind"), [
    ([], SafeCheckpointIO),
    (["--trainer.plugins", "test_damage.OwnIO"], OwnIO),
    (["--trainer.plugins", "lightning.fabric.plugins.io.TorchCheckpointIO"], TorchCheckpointIO),
    (["--trainer.plugins", "lightning.pytorch.plugins.environments.LightningEnvironment"], SafeCheckpointIO),
])  # fmt: skip
def test_every_run_is_safe_unless_it_brings_its_own(tmp_path, words, kind):
    for entry in ("fit", "test"):
        cli = RunCLI(entry, ["--config", str(TOY), "--run_dir", str(tmp_path / entry), *words])
        cli.build()
        assert type(cli.trainer.strategy.checkpoint_io) is kind


def test_other_checkpoint_callbacks_write_safely_too(command, monkeypatch):
    words = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.dirpath", "more"]
    calls, save = [], SafeCheckpointIO.save_checkpoint
    monkeypatch.setattr(SafeCheckpointIO, "save_checkpoint", lambda *a, **k: calls.append(a[2]) or save(*a, **k))
    command("fit", *words, "--trainer.max_epochs", 1)
    assert {Path(path).parent.name for path in calls} == {"more", "checkpoints"}


def test_weights_alone_cannot_go_on(command):
    path = command("fit", "--checkpoint.save_weights_only", "true").run_dir / "checkpoints" / "last.ckpt"
    line = said(command("fit", "--ckpt_path", path))
    assert line == f"error: ckpt_path={str(path)!r} holds weights alone, from which no run goes on"
    assert command("test", "--ckpt_path", path).code == 0


def test_another_methods_checkpoint_is_not_tested_under_this_recipes_name(command):
    writer = "lit_methods.classification.ImageClassifier"
    path = command("fit", "--trainer.max_epochs", 1).run_dir / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    torch.save(checkpoint | {"lit_methods": {"class": writer}}, path)
    assert said(command("test", "--ckpt_path", path)) == (
        f"error: ckpt_path={str(path)!r} was written by {writer}, but the recipe is one of ToyMethod: name one of "
        "that method"
    )


def test_a_directory_that_cannot_be_written_is_one_line(command, monkeypatch):
    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)  # as root everything can be written
    folder = str(Path("run").absolute())
    line = f"error: run_dir={folder!r} cannot be written (Permission denied); name another --run_dir"
    assert said(command("fit", "--run_dir", "run")) == line
