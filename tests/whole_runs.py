"""What whole runs by the command line are made with in tests, of any method, and how two of them are compared."""

import shutil
import signal
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule
from torch.testing import assert_close

from lit_methods.cli import main
from tests.left_behind import bit_equal, last_checkpoint, metrics, read_summary, timeless
from tests.signals import send_now
from tests.small_recipes import without_figures
from tests.two_processes import Run, run as processes_run

CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
SHORT = {  # options of recipes
    "data.num_workers": 0,
    "data.demo": False,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.num_sanity_val_steps": 0,
}
ALL_EPOCHS = ["--checkpoint.save_top_k", "-1"]


def recipe_words(recipe: str, options: Mapping[str, Any], **more: Any) -> list[str]:
    """A recipe and its options; in the names of ``more``, ``__`` stands for a dot."""
    given = {**options, **{name.replace("__", "."): value for name, value in more.items()}}
    return [recipe, *(word for name, value in given.items() for word in (f"--{name}", str(value)))]


def fit(words: list[str], folder: Path, *more: str, figures: bool = False) -> int:
    with nullcontext() if figures else without_figures():
        return main("fit", [*words, *CPU, *more, "--run_dir", str(folder)])


def test(words: list[str], folder: Path, *more: str) -> int:
    with without_figures():
        return main("test", [*words, *CPU, *more, "--run_dir", str(folder)])


test.__test__ = False  # type: ignore[attr-defined]


def predict(recipe: str, checkpoint: str, folder: Path, *more: object) -> int:
    return main("predict", [recipe, "--ckpt_path", checkpoint, *CPU, *map(str, more), "--run_dir", str(folder)])


def processes(command: list[str], more: list[str], folder: Path, number: int = 1, **options: Any) -> Run:
    with without_figures():
        return processes_run(command[:1], [*command[1:], *more], folder, number, **options)


def every_step(folder: Path) -> list[str]:
    """A checkpoint after each, in this folder."""
    return [
        *("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps", "1"),
        *("--trainer.callbacks.save_top_k", "-1", "--trainer.callbacks.filename", "{epoch}-{step}"),
        *("--trainer.callbacks.dirpath", str(folder)),
    ]


def at_step(whole: Path, step: int) -> Path:
    """That checkpoint of a run whose steps are in ``steps``."""
    (path,) = (whole / "steps").glob(f"*-step={step}.ckpt")
    return path


def chosen(run: Path, figure: str) -> str:
    """The checkpoint that was tested: of the highest ``figure`` in validation, the first of equal ones."""
    found = {int(row["epoch"]): float(row[f"val/{figure}"]) for row in metrics(run) if row[f"val/{figure}"]}
    best = max(found, key=lambda epoch: (found[epoch], -epoch))
    (path,) = (run / "checkpoints").glob(f"epoch={best}-*.ckpt")
    return str(path)


def equal_runs(one: Path, other: Path, validated: bool = True, *, figure: str, but: str | tuple[str, ...] = ()) -> None:
    """Bit by bit: weights, states, rows of metrics and the summary.

    Args:
        one: a run's directory.
        other: the other run's.
        validated: whether both have made the same validations, and so tested the same checkpoint.
        figure: one that every test logs.
        but: what keys of the summary begin with that are not compared.
    """
    ours, theirs = last_checkpoint(one), last_checkpoint(other)
    assert_close(ours["state_dict"], theirs["state_dict"], rtol=0, atol=0)
    for name in ("optimizer_states", "lr_schedulers", "lit_methods"):
        assert bit_equal(ours[name], theirs[name]), name
    rows = [[row for row in metrics(run) if validated or not row[f"test/{figure}"]] for run in (one, other)]
    assert rows[0] == rows[1]
    if validated:
        found = [timeless(read_summary(run)) for run in (one, other)]
        ours, theirs = ({key: value for key, value in of.items() if not key.startswith(but)} for of in found)
        assert ours == theirs


def resumed(
    whole: Path, folder: Path, checkpoint: Path, words: list[str], *, left: str, more: Sequence[str] = ALL_EPOCHS
) -> Path:
    """The run as it goes on after a step, in a directory that it was killed in.

    Args:
        whole: has the run that was not stopped in ``run``.
        folder: gets the other in ``run``, and its steps.
        checkpoint: to go on from.
        words: of the recipe.
        left: what the end of a run leaves beside its summary, from the run's directory.
        more: words for both.
    """
    run = folder / "run"
    shutil.copytree(whole / "run", run)
    shutil.copy(checkpoint, run / "checkpoints" / "here.ckpt")
    for name in ("checkpoints/last.ckpt", "summary.json", left):
        (run / name).unlink()
    at = ["--ckpt_path", str(run / "checkpoints" / "here.ckpt")]
    assert fit(words, run, *more, *every_step(folder / "steps"), *at) == 0
    return run


def stopped_and_resumed(
    words: list[str], run: Path, capsys, module: type[LightningModule], step: int, more: Sequence[str] = ALL_EPOCHS
) -> int:
    """A run that is stopped by SIGTERM, and goes on from there.

    Args:
        words: of the recipe.
        run: its directory.
        capsys: the fixture.
        module: what it trains.
        step: the training step, from 1, right before which the signal comes.
        more: words for both parts.

    Returns:
        The number of training steps of both parts.
    """
    real, calls = module.training_step, 0

    def sending(self: LightningModule, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step:
            send_now(signal.SIGTERM)
        return real(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "training_step", sending)
        assert fit(words, run, *more) == 143
        assert calls == step
        assert "stopped by SIGTERM" in capsys.readouterr().err
        assert fit(words, run, *more, "--ckpt_path", "last") == 0
    return calls


def one_line(capsys) -> str:
    """The only error that was told."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line
