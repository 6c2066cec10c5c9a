"""A run that was stopped and resumed equals one that was not: bit-equal weights, the same metrics, the same plan."""

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lit_methods.cli import main
from tests.left_behind import last_checkpoint, metrics, read_summary, timeless, weights
from tests.stops import AT_EPOCH, STEPS, STOPS

RUN = [
    *("--model.backbone", "tiny", "--trainer.max_epochs", "4", "--trainer.limit_train_batches", str(STEPS)),
    *("--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1", "--trainer.num_sanity_val_steps", "0"),
    *("--data.batch_size", "32", "--checkpoint.save_top_k", "-1"),
]
PRUNING = {
    "hrank": {"rates": "0.5", "at_epoch": str(AT_EPOCH), "num_images": "48"},
    "filter_sketch": {"rates": "0.5", "at_epoch": str(AT_EPOCH)},
}
LAYERWISE = {"at_epoch": "1", "mode": "layerwise", "epochs_per_layer": "2"}  # of HRank
EVERY_STEP = [  # besides the run's own checkpoints
    *("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps", "1"),
    *("--trainer.callbacks.save_top_k", "-1", "--trainer.callbacks.filename", "{step}"),
]

pytestmark = pytest.mark.usefixtures("no_figures")


def words(folder: Path | None = None, recipe: str = "hrank", layerwise: bool = False) -> list[str]:
    found = [recipe, *RUN, *(("--trainer.max_epochs", "7") if layerwise else ())]
    for key, value in (PRUNING[recipe] | (LAYERWISE if layerwise else {})).items():
        found += [f"--trainer.callbacks.{key}", value]  # of the last callback in the recipe's list
    return [*found, *EVERY_STEP, "--trainer.callbacks.dirpath", str(folder)] if folder else found


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """An uninterrupted run of a recipe, with a checkpoint after every step; each is made once."""
    from tests.tiny import register

    register()

    @cache
    def make(recipe: str, layerwise: bool = False) -> Path:
        folder = tmp_path_factory.mktemp(recipe)
        assert main("fit", [*words(folder / "steps", recipe, layerwise), "--run_dir", str(folder / "run")]) == 0
        return folder

    return make


@pytest.fixture
def whole(whole_runs: Callable[..., Path]) -> Path:
    """HRank's."""
    return whole_runs("hrank")


def stops_of_both() -> Iterator[Any]:
    """By default those of one recipe, and of the other where its surgery is; the rest is the same code."""
    for recipe in PRUNING:
        for name, step in STOPS.items():
            slow = recipe != "hrank" and "pruning" not in name
            yield pytest.param(recipe, step, id=f"{name}-{recipe}", marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(("recipe", "step"), stops_of_both())
def test_resume_in_place_is_bit_equal(whole_runs, recipe, step, tmp_path):
    whole, run = whole_runs(recipe), tmp_path / "run"
    shutil.copytree(whole / "run", run)
    shutil.copy(whole / "steps" / f"step={step}.ckpt", run / "checkpoints")
    checkpoint = run / "checkpoints" / f"step={step}.ckpt"
    plan = torch.load(checkpoint, weights_only=True)["hyper_parameters"]["plan"]
    assert (plan is None) == (step <= AT_EPOCH * STEPS)
    for name in ("last.ckpt", "../summary.json"):
        (run / "checkpoints" / name).unlink()
    assert main("fit", [*words(recipe=recipe), "--run_dir", str(run), "--ckpt_path", str(checkpoint)]) == 0
    assert_close(weights(run), weights(whole / "run"), rtol=0, atol=0)
    assert metrics(run) == metrics(whole / "run")
    assert timeless(read_summary(run)) == timeless(read_summary(whole / "run"))


def test_resume_elsewhere_keeps_the_best_score(whole, tmp_path):
    """The best epoch of the pruned network may lie before the stop: it still decides what is tested."""
    best = last_checkpoint(whole / "run")["callbacks"]
    (state,) = (v for k, v in best.items() if k.startswith("RunCheckpoint"))
    (after_epoch_2,) = (whole / "run" / "checkpoints").glob("epoch=2-*.ckpt")
    words_ = [*words(), "--run_dir", str(tmp_path / "other"), "--ckpt_path", str(after_epoch_2)]
    assert main("fit", words_) == 0
    assert_close(weights(tmp_path / "other"), weights(whole / "run"), rtol=0, atol=0)
    resumed = last_checkpoint(tmp_path / "other")["callbacks"]
    (ours,) = (v for k, v in resumed.items() if k.startswith("RunCheckpoint"))
    assert ours["best_model_score"] == state["best_model_score"]
    assert sorted(map(float, ours["best_k_models"].values())) == sorted(map(float, state["best_k_models"].values()))
    assert all("epoch=0" not in path and "epoch=1" not in path for path in ours["best_k_models"])  # dense ones are gone


@pytest.mark.slow
@pytest.mark.parametrize("step", [14, 10, 20])
def test_layerwise_resumes_in_the_middle_of_a_stage(whole_runs, tmp_path, step):
    """Stages at epochs 1, 3 and 5: the best weights of a running stage travel in the checkpoint."""
    whole = whole_runs("hrank", layerwise=True)
    resume = ["--run_dir", str(tmp_path / "resumed"), "--ckpt_path", str(whole / "steps" / f"step={step}.ckpt")]
    assert main("fit", [*words(layerwise=True), *resume]) == 0
    assert_close(weights(tmp_path / "resumed"), weights(whole / "run"), rtol=0, atol=0)


@pytest.mark.slow
def test_after_the_last_step_the_run_is_only_tested(whole, tmp_path):
    """No batch comes again. Lightning holds the epoch for done: its validation is not made up for."""
    run = tmp_path / "run"
    resume = ["--run_dir", str(run), "--ckpt_path", str(whole / "steps" / f"step={4 * STEPS}.ckpt")]
    assert main("fit", [*words(), *resume]) == 0
    assert not [row for row in metrics(run) if row.get("train/loss")]
    tested = [[row["test/loss"] for row in metrics(r) if row.get("test/loss")] for r in (run, whole / "run")]
    assert tested[0] == tested[1]
    assert len(tested[0]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 2 * STEPS, 3 * STEPS + 2])
def test_workers_change_nothing(whole, tmp_path, step):
    """What they fetched ahead was not trained on; the uninterrupted run had none."""
    checkpoint = str(whole / "steps" / f"step={step}.ckpt")
    workers = ["--data.num_workers", "2", "--run_dir", str(tmp_path / "run"), "--ckpt_path", checkpoint]
    assert main("fit", [*words(), *workers]) == 0
    assert_close(weights(tmp_path / "run"), weights(whole / "run"), rtol=0, atol=0)


@pytest.mark.slow
def test_a_run_with_a_warm_up_goes_on_in_the_middle_of_an_epoch(tmp_path, no_figures):
    """Its optimisers ask how many batches there are; the loaders still learn where they were left."""
    more = ["--model.warmup_epochs", "1"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert main("fit", [*words(tmp_path / "steps"), *more, "--run_dir", str(whole)]) == 0
    resume = ["--run_dir", str(run), "--ckpt_path", str(tmp_path / "steps" / f"step={STEPS + 1}.ckpt")]
    assert main("fit", [*words(), *more, *resume]) == 0
    assert_close(weights(run), weights(whole), rtol=0, atol=0)
