"""What whole runs of ASFD and of its search are made with in tests, and how two of them are compared."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch.testing import assert_close

from lit_methods.cli import main
from tests.asfd_batches import SIMPLE
from tests.left_behind import bit_equal, last_checkpoint, metrics, read_summary, timeless
from tests.small_recipes import without_figures
from tests.two_processes import Run, run as processes_run

CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
EPOCHS, STEPS = 2, 2  # of a run, and of an epoch: four pictures, of which one may have no face
SMALL = {
    "model.channels": 8,
    "data.image_size": 128,
    "data.batch_size": 2,
    "data.eval_batch_size": 2,
    "data.val_images": 2,
    "data.keep_faceless": True,
    "data.num_workers": 0,
    "data.demo": False,
    "trainer.max_epochs": EPOCHS,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.num_sanity_val_steps": 0,
}
FEW = '["identity", "conv_1x1"]'
SEARCH = {  # a view in each half
    "model.partial": True,
    "model.fpn_ops": FEW,
    "model.cpm_ops": FEW,
    "data.image_size": 160,
    "data.batch_size": 1,
}
ALL_EPOCHS = ["--checkpoint.save_top_k", "-1"]


def words(root: Path, recipe: str = "asfd", **more: Any) -> list[str]:
    """What makes the recipe small; ``__`` stands for a dot."""
    own = SEARCH if recipe == "asfd_search" else {"model.genotype": json.dumps(SIMPLE)}
    given = SMALL | own | {"data.root": root}
    given |= {name.replace("__", "."): value for name, value in more.items()}
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
    found = {int(row["epoch"]): float(row["val/ap_all"]) for row in metrics(run) if row["val/ap_all"]}
    best = max(found, key=lambda epoch: (found[epoch], -epoch))
    (path,) = (run / "checkpoints").glob(f"epoch={best}-*.ckpt")
    return str(path)


def figures_of(run: Path) -> dict[str, float]:
    return {key: value for key, value in read_summary(run).items() if key.startswith("test/") and key[5] in "ad"}


def equal_runs(one: Path, other: Path, validated: bool = True) -> None:
    """``validated``: whether both have made the same validations, and so tested the same checkpoint."""
    ours, theirs = last_checkpoint(one), last_checkpoint(other)
    assert_close(ours["state_dict"], theirs["state_dict"], rtol=0, atol=0)
    for name in ("optimizer_states", "lr_schedulers", "lit_methods"):
        assert bit_equal(ours[name], theirs[name]), name
    rows = [[row for row in metrics(run) if validated or not row["test/ap_all"]] for run in (one, other)]
    assert rows[0] == rows[1]
    if validated:
        assert timeless(read_summary(one)) == timeless(read_summary(other))


def resumed(whole: Path, folder: Path, checkpoint: Path, words: list[str]) -> Path:
    """The run as it goes on after a step."""
    run = folder / "run"
    shutil.copytree(whole / "run", run)
    shutil.copy(checkpoint, run / "checkpoints" / "here.ckpt")
    for name in ("checkpoints/last.ckpt", "summary.json", "tables/test_events.csv", "genotype.json"):
        (run / name).unlink(missing_ok=True)
    more = [*ALL_EPOCHS, *every_step(folder / "steps"), "--ckpt_path", str(run / "checkpoints" / "here.ckpt")]
    assert fit(words, run, *more) == 0
    return run


def processes(command: list[str], more: list[str], folder: Path, number: int = 1, **options: Any) -> Run:
    with without_figures():
        return processes_run(command[:1], [*command[1:], *more], folder, number, **options)


def predict(recipe: str, checkpoint: str, folder: Path, *more: object) -> int:
    return main("predict", [recipe, "--ckpt_path", checkpoint, *CPU, *map(str, more), "--run_dir", str(folder)])


def picture_of(root: Path) -> Path:
    """A test picture with faces."""
    (path,) = root.glob("WIDER_val/images/0--Parade/*.jpg")
    return path


def one_line(capsys) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line
