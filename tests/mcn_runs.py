"""What whole runs of MCN are made with in tests, and how two of them are compared."""

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch.testing import assert_close

from datamodules.demo import write_refcoco
from lit_methods.cli import main
from tests.left_behind import bit_equal, last_checkpoint, metrics, read_summary, timeless
from tests.small_recipes import without_figures
from tests.two_processes import Run, run as processes_run

CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
EPOCHS, STEPS = 2, 2  # of a run, and of an epoch: nine refs
SENTENCES, PICTURES = 17, 3  # of a test, both odd
SMALL = {
    "model.hidden": 32,
    "model.dim": 16,
    "model.word_dim": 8,
    "data.size": 64,
    "data.batch_size": 5,
    "data.eval_batch_size": 2,
    "data.num_workers": 0,
    "data.demo": False,
    "trainer.max_epochs": EPOCHS,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.num_sanity_val_steps": 0,
}
SETS = {  # the tiny ones: pictures of each split
    ("refcoco", "unc"): {"train": 4, "val": 2, "testA": PICTURES, "testB": 1},
    ("refcoco+", "unc"): {"train": 4, "val": 2, "testA": 2, "testB": 1},
    ("refcocog", "umd"): {"train": 4, "val": 2, "test": 2},
}
ALL_EPOCHS = ["--checkpoint.save_top_k", "-1"]


def write_refer_sets(root: Path) -> Path:
    """The three data sets in one folder, as their readers have them; they share pictures, as the real ones do.

    Args:
        root: gets them.
    """
    for (dataset, split_by), images in SETS.items():
        write_refcoco(root, dataset, split_by, images=images, size=(64, 48), objects=(3, 3))
    return root


def words(root: Path, recipe: str = "mcn", **more: Any) -> list[str]:
    """What makes the recipe small; ``__`` stands for a dot."""
    given = SMALL | {"data.root": root} | {name.replace("__", "."): value for name, value in more.items()}
    return [recipe, *(word for name, value in given.items() for word in (f"--{name}", str(value)))]


def fit(words: list[str], folder: Path, *more: str, figures: bool = False) -> int:
    with nullcontext() if figures else without_figures():
        return main("fit", [*words, *CPU, *more, "--run_dir", str(folder)])


def test(words: list[str], folder: Path, *more: str) -> int:
    with without_figures():
        return main("test", [*words, *CPU, *more, "--run_dir", str(folder)])


test.__test__ = False  # type: ignore[attr-defined]


def every_step(folder: Path) -> list[str]:
    return [
        *("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps", "1"),
        *("--trainer.callbacks.save_top_k", "-1", "--trainer.callbacks.filename", "{epoch}-{step}"),
        *("--trainer.callbacks.dirpath", str(folder)),
    ]


def at_step(whole: Path, step: int) -> Path:
    (path,) = (whole / "steps").glob(f"*-step={step}.ckpt")
    return path


def chosen(run: Path) -> str:
    """The checkpoint that was tested: of the best validation, the first of equal ones."""
    found = {int(row["epoch"]): float(row["val/acc50"]) for row in metrics(run) if row["val/acc50"]}
    best = max(found, key=lambda epoch: (found[epoch], -epoch))
    (path,) = (run / "checkpoints").glob(f"epoch={best}-*.ckpt")
    return str(path)


FIGURES = ("acc50", "miou", "oiou", *(f"prec@{x / 100:.2f}" for x in range(50, 100, 5)), "ie")


def figures_of(source: Path | Mapping[str, Any]) -> dict[str, float]:
    """Those of the test, from a run's directory or its summary."""
    summary = read_summary(source) if isinstance(source, Path) else source
    return {name: summary[f"test/{name}"] for name in FIGURES}


def equal_runs(one: Path, other: Path, validated: bool = True) -> None:
    """``validated``: whether both have made the same validations, and so tested the same checkpoint."""
    ours, theirs = last_checkpoint(one), last_checkpoint(other)
    assert_close(ours["state_dict"], theirs["state_dict"], rtol=0, atol=0)
    for name in ("optimizer_states", "lr_schedulers", "lit_methods"):
        assert bit_equal(ours[name], theirs[name]), name
    rows = [[row for row in metrics(run) if validated or not row["test/acc50"]] for run in (one, other)]
    assert rows[0] == rows[1]
    if validated:
        assert timeless(read_summary(one)) == timeless(read_summary(other))


def resumed(whole: Path, folder: Path, checkpoint: Path, words: list[str]) -> Path:
    """The run as it goes on after a step."""
    run = folder / "run"
    shutil.copytree(whole / "run", run)
    shutil.copy(checkpoint, run / "checkpoints" / "here.ckpt")
    for name in ("checkpoints/last.ckpt", "summary.json", "tables/test_grounding.csv"):
        (run / name).unlink()
    more = [*ALL_EPOCHS, *every_step(folder / "steps"), "--ckpt_path", str(run / "checkpoints" / "here.ckpt")]
    assert fit(words, run, *more) == 0
    return run


def processes(command: list[str], more: list[str], folder: Path, number: int = 1, **options: Any) -> Run:
    with without_figures():
        return processes_run(command[:1], [*command[1:], *more], folder, number, **options)


def predict(checkpoint: str, folder: Path, *more: object) -> int:
    return main("predict", ["mcn", "--ckpt_path", checkpoint, *CPU, *map(str, more), "--run_dir", str(folder)])


def one_line(capsys) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line
