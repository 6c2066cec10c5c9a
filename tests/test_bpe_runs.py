"""Whole searches of BPE/MIP by the command line: what they leave, stopped and resumed, many processes, bad input."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.testing import assert_close

from lit_methods import BPE, BPEBenchmark
from lit_methods.bpe_mip.jobs import TrialRecords
from lit_methods.bpe_mip.search_space import genotype_from_sample28
from lit_methods.cli import main
from lit_methods.functional.archives import load_plain
from tests.fake_trials import SMALL, architectures, fake_trials, noisy, same_state
from tests.left_behind import last_checkpoint, metrics, read_rows, read_summary, timeless, weights
from tests.signals import send_now
from tests.two_processes import assert_equal_ranks, run as processes_run
from tests.wandb_record import read_record

CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.num_sanity_val_steps", "0"]
COMMON: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {
        "max_epochs": 100,
        "log_every_n_steps": 1,
        "use_distributed_sampler": False,
        "reload_dataloaders_every_n_epochs": 1,
    },
    "data": {"class_path": "datamodules.TrialDataModule", "init_args": {"name": "digits", "batch_size": 256}},
}
MIP: dict[str, Any] = {
    "space": {"epochs": [1, 2, 4], "layers": [3, 4], "cutout": [0, 2]},
    "base": SMALL,
    "truth_recipe": SMALL | {"epochs": 8, "layers": 6},
    "k": 2,
    "n_estimators": 10,
    "spread_seeds": 2,
}
SEARCH: dict[str, Any] = {"searcher": "reinforce", "budget": 5, "parallel": 2}


def config(folder: Path, callback: str, arguments: dict[str, Any], **model: Any) -> list[str]:
    """Words that name a file with the whole run."""
    whole = COMMON | {
        "trainer": COMMON["trainer"] | {"callbacks": [{"class_path": f"callbacks.{callback}", "init_args": arguments}]},
        "model": {"class_path": "lit_methods.BPEBenchmark", "init_args": {"recipe": SMALL} | model},
    }
    path = folder / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(whole))
    return ["--config", str(path)]


def mip_words(folder: Path, **changes: Any) -> list[str]:
    return config(folder, "MIPSearch", MIP | changes, architectures=architectures(4))


def search_words(folder: Path, **changes: Any) -> list[str]:
    return config(folder, "ArchitectureSearch", SEARCH | changes)


WORDS = {"mip": mip_words, "search": search_words}
AT_ONCE = ["--checkpoint.every_n_train_steps", "1"]  # as the recipes have it; takes longer than a trial that is faked
TRIALS = {"mip": 4 + 5 * 4 + 4, "search": 5 + 1}  # the truth, five recipes, the best of them again; slimming


def fit(words: list[str], folder: Path, *more: str) -> int:
    return main("fit", [*words, *CPU, *more, "--run_dir", str(folder)])


def every_step(folder: Path) -> list[str]:
    return [
        *("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps", "1"),
        *("--trainer.callbacks.save_top_k", "-1", "--trainer.callbacks.filename", "{step}"),
        *("--trainer.callbacks.dirpath", str(folder)),
    ]


# -- what a search leaves, with real trainings -------------------------------------------------------------------------

FEW = ["--data.class_subset", "[0, 1, 2]", "--data.num_test_images", "60"]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    """Three small trainings in images of 8 and 16 pixels, and their pictures."""
    folder = tmp_path_factory.mktemp("fitted")
    words = config(folder, "ArchitectureSearch", {"budget": 3, "parallel": 3}, recipe=SMALL | {"epochs": 2})
    assert fit(words, folder / "run", *FEW) == 0
    return folder / "run"


def test_the_kept_network_is_as_good_as_its_record(fitted):
    """Validation feeds it with images of 32 pixels, the trial had resized ones."""
    records = [json.loads(path.read_text()) for path in (fitted / "trials").glob("*.json")]
    best = max(record["accuracy"] for record in records)
    summary = read_summary(fitted)
    assert len(records) == 3
    assert best == summary["trial/best"]
    assert float(np.float32(best)) == summary["val/top1"]
    assert best > 0.5  # so that it says something
    assert summary["search/genotype"] == summary["bpe/genotype"]


def test_it_is_tested_with_that_network(fitted, tmp_path):
    words = ["--ckpt_path", str(fitted / "checkpoints" / "last.ckpt"), "--run_dir", str(tmp_path / "tested")]
    file = str(fitted / "config.yaml")
    assert main("test", ["--config", file, *CPU, "--trainer.callbacks", "[]", *words]) == 0
    assert read_summary(tmp_path / "tested")["test/top1"] == read_summary(fitted)["test/top1"]


def test_a_checkpoint_brings_the_best_network_and_all_records(fitted):
    path = fitted / "checkpoints" / "last.ckpt"
    module = BPEBenchmark.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    assert module.genotype.key() == read_summary(fitted)["bpe/genotype"]
    assert len(module.records.known) == 3
    saved = last_checkpoint(fitted)
    assert same_state(module.state_dict(), saved["state_dict"])
    assert len(saved["trials"]["records"]) == 3
    best = TrialRecords(fitted / "trials").folder / f"{saved['trials']['best']['key']}.pt"
    assert same_state(module.model.state_dict(), load_plain(best))


@pytest.mark.slow
def test_predict_and_export(fitted, tmp_path):
    for name, shade in (("a", 40), ("b", 200)):
        Image.fromarray(np.full((40, 30, 3), shade, np.uint8)).save(tmp_path / f"{name}.png")
    checkpoint = ["--ckpt_path", str(fitted / "checkpoints" / "last.ckpt")]
    callbacks = ["--trainer.callbacks", "callbacks.PredictionLogger"]
    words = [*checkpoint, "--input", str(tmp_path), *callbacks, "--run_dir", str(tmp_path / "out")]
    assert main("predict", ["--config", str(fitted / "config.yaml"), *CPU, *words]) == 0
    assert len(read_rows(tmp_path / "out" / "predictions.csv")) == 2
    assert list((tmp_path / "out" / "pictures").iterdir())
    words = [*checkpoint, "--formats", "torch", "--run_dir", str(tmp_path / "e")]
    assert main("export", ["--config", str(fitted / "config.yaml"), *words]) == 0
    report = json.loads((tmp_path / "e" / "export" / "export.json").read_text())
    assert [file["path"] for file in report["files"]] == ["classifier.pt2"]


def test_it_leaves_pictures_and_a_table(fitted):
    pictures = {path.name for path in (fitted / "pictures").iterdir()}
    assert {"search_course.png", "search_genotype.png"} <= pictures
    assert len(read_rows(fitted / "tables" / "search_evaluations.csv")) == 3


def test_the_genotype_is_one_for_bpe(fitted):
    module = BPE(str(fitted / "genotype.json"), recipe=SMALL)
    assert module.genotype.key() == read_summary(fitted)["search/genotype"]


@pytest.mark.slow
def test_wandb_has_the_pictures_of_a_search(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with fake_trials(tmp_path / "calls", noisy):
        assert fit(search_words(tmp_path), tmp_path / "run", "--logger", "wandb") == 0
    assert {"search/course", "search/genotype"} <= read_record(tmp_path / "run").media.keys()


@pytest.mark.slow
def test_mip_shows_its_search(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    with fake_trials(tmp_path / "calls", noisy):
        assert fit(mip_words(tmp_path), run, "--logger", "wandb") == 0
    assert {"mip/importance", "mip/agreement"} <= read_record(run).media.keys()
    assert len(read_rows(run / "tables" / "mip_recipes.csv")) == 5
    module = BPE(recipe=json.loads((run / "best_recipe.json").read_text()))
    assert module.recipe.key() == read_summary(run)["mip/best_recipe"]


# -- resume ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wholes(tmp_path_factory, no_figures) -> Callable[[str], Path]:
    """Uninterrupted searches, with a checkpoint after every step; each is made once."""

    @cache
    def make(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        with fake_trials(folder / "calls", noisy) as calls:
            assert fit(WORDS[kind](folder), folder / "run", *every_step(folder / "steps")) == 0
        assert len(calls) == calls.different == TRIALS[kind]
        return folder

    return make


def equal_runs(one: Path, other: Path) -> None:
    """All but the importances of names that were pruned before the stop, which are logged in their own rounds."""
    assert_close(weights(one), weights(other), rtol=0, atol=0)
    assert metrics(one) == metrics(other)
    ours, theirs = timeless(read_summary(one)), timeless(read_summary(other))
    missing = theirs.keys() - ours.keys()
    assert all(name.startswith("mip/importance_") for name in missing)
    assert ours == {name: value for name, value in theirs.items() if name not in missing}
    for name in ("genotype.json", "best_recipe.json"):
        assert (one / name).exists() == (other / name).exists()
        assert not (one / name).exists() or (one / name).read_text() == (other / name).read_text()


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("kind", "step"),
    [
        pytest.param("mip", 2, id="in the ground truth", marks=pytest.mark.slow),
        pytest.param("mip", 4, id="before a round that is longer"),
        pytest.param("mip", 9, id="in a round of recipes", marks=pytest.mark.slow),
        pytest.param("mip", 20, id="before a round that is shorter", marks=pytest.mark.slow),
        pytest.param("mip", 26, id="when the best one is measured again", marks=pytest.mark.slow),
        pytest.param("search", 3, id="in a round of architectures", marks=pytest.mark.slow),
        pytest.param("search", 4, id="at the end of such", marks=pytest.mark.slow),
        pytest.param("search", 5, id="before slimming", marks=pytest.mark.slow),
    ],
)
def test_resume_is_bit_equal_and_trains_nothing_twice(wholes, kind, step, tmp_path):
    whole, run = wholes(kind), tmp_path / "run"
    shutil.copytree(whole / "run", run)
    shutil.copy(whole / "steps" / f"step={step}.ckpt", run / "checkpoints")
    for name in ("checkpoints/last.ckpt", "summary.json"):
        (run / name).unlink()
    shutil.rmtree(run / "trials")  # the checkpoint has the records, too
    words = ["--ckpt_path", str(run / "checkpoints" / f"step={step}.ckpt")]
    with fake_trials(tmp_path / "calls", noisy) as calls:
        assert fit(WORDS[kind](tmp_path), run, *words) == 0
    assert len(calls) == calls.different == TRIALS[kind] - step
    equal_runs(run, whole / "run")


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(("kind", "call"), [("mip", 6), ("search", 4)])
def test_a_signal_in_the_middle_of_a_trial(wholes, kind, call, tmp_path, capsys):
    def send(count: int, watch: Any) -> None:
        if count == call:
            send_now(signal.SIGTERM)
            watch()
            raise AssertionError("nobody looked")

    whole, run, words = wholes(kind), tmp_path / "run", WORDS[kind](tmp_path)
    with fake_trials(tmp_path / "calls", noisy, send):
        assert fit(words, run) == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err
    with fake_trials(tmp_path / "calls", noisy) as calls:
        assert fit(words, run, "--ckpt_path", "last") == 0
    assert calls.different == len(calls) - 1 == TRIALS[kind]  # the one that was stopped
    equal_runs(run, whole / "run")


@pytest.mark.usefixtures("no_figures")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mip", "search"])
def test_a_process_is_killed_in_the_middle_of_a_trial(wholes, kind, tmp_path):
    def kill(count: int, watch: Any) -> None:
        if count == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    words = WORDS[kind](tmp_path)
    with fake_trials(tmp_path / "calls", noisy, kill):
        killed = processes_run(words, AT_ONCE, tmp_path / "run", succeed=False)
    assert killed.codes == [-signal.SIGKILL]
    with fake_trials(tmp_path / "calls", noisy) as calls:
        assert fit(words, tmp_path / "run", "--ckpt_path", "last") == 0
    assert calls.different == len(calls) - 1 == TRIALS[kind]
    equal_runs(tmp_path / "run", wholes(kind) / "run")


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("kind", ["mip", pytest.param("search", marks=pytest.mark.slow)])
def test_another_run_with_the_same_records_trains_nothing(wholes, kind, tmp_path):
    whole = wholes(kind)
    with fake_trials(tmp_path / "calls", noisy) as calls:
        words = ["--model.records", str(whole / "run" / "trials")]
        assert fit(WORDS[kind](tmp_path), tmp_path / "run", *words) == 0
    assert len(calls) == 0
    equal_runs(tmp_path / "run", whole / "run")


# -- many processes ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("kind", ["mip", pytest.param("search", marks=pytest.mark.slow)])
def test_two_processes_equal_one(wholes, kind, tmp_path):
    """Of a round of four jobs that two share; five estimates leave one process without a job."""
    with fake_trials(tmp_path / "calls", noisy) as calls:
        many = processes_run(WORDS[kind](tmp_path), ["--data.batch_size", "128"], tmp_path / "many", 2)
    assert_equal_ranks(many)
    assert len(calls) == calls.different == TRIALS[kind]
    whole = wholes(kind) / "run"
    theirs = last_checkpoint(whole)
    ours = torch.load(many.path / "checkpoints" / "last.ckpt", weights_only=True)
    by_key = [{record["key"]: record for record in c["trials"]["records"]} for c in (ours, theirs)]
    for records in by_key:
        for record in records.values():
            assert record.pop("seconds") == 0.5
    assert by_key[0] == by_key[1]
    assert ours["trials"]["best"] == theirs["trials"]["best"]
    count = "jobs_done"  # each process has its own
    for name, value in theirs["state_dict"].items():
        assert name == count or torch.equal(ours["state_dict"][name], value), name
    told = [
        {k: v for k, v in timeless(read_summary(run)).items() if k != "trial/accuracy"} for run in (many.path, whole)
    ]
    for name, value in told[1].items():
        assert told[0][name] == (pytest.approx(value) if isinstance(value, float) else value), name


# -- bad input ---------------------------------------------------------------------------------------------------------


def refused(capsys, words: list[str], *more: str) -> str:
    with fake_trials(Path(os.devnull)):
        assert main("fit", [*words, *CPU, *more]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    ("callback", "arguments", "model", "more", "text"),
    [
        ("MIPSearch", MIP, {"architectures": ["9 9 " + "7 " * 26] * 2}, [], "9"),
        ("MIPSearch", MIP, {"architectures": [architectures(1)[0], "not a genotype"]}, [], "genotype"),
        ("MIPSearch", MIP, {"architectures": "no_such_file.json"}, [], "no_such_file.json"),
        ("MIPSearch", MIP, {"architectures": architectures(2), "ground_truth": [0.5, 0.5]}, [], "constant"),
        ("MIPSearch", MIP, {"architectures": architectures(1)}, [], "two or more"),
        ("MIPSearch", MIP | {"space": {"image_size": [8, 9]}}, {"architectures": 2}, [], "image_size=9"),
        ("MIPSearch", MIP | {"space": {"epochs": [1]}}, {"architectures": 2}, [], "nothing to search"),
        ("MIPSearch", MIP | {"hours": 1e-9}, {"architectures": 2}, [], "hours=1e-09"),
        ("MIPSearch", MIP | {"budget": 1e-9}, {"architectures": 2}, [], "budget=1e-09"),
        ("ArchitectureSearch", {"budget": 0}, {}, [], "budget=0"),
        ("ArchitectureSearch", {"arguments": {"size": 3}}, {}, [], "size"),
        ("ArchitectureSearch", {}, {}, ["--trainer.reload_dataloaders_every_n_epochs", "0"], "reload_dataloaders"),
        ("ArchitectureSearch", {}, {}, ["--data", "datamodules.CIFARDataModule"], "give TrialDataModule"),
        ("ArchitectureSearch", {}, {"recipe": "BPE9"}, [], "BPE9"),
    ],
)
def test_one_line_says_what_is_wrong(callback, arguments, model, more, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = config(tmp_path, callback, arguments, **model)
    assert text in refused(capsys, words, *more, "--run_dir", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_table_is_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    words = ["--table", str(tmp_path / "empty"), "--run_dir", str(tmp_path / "run")]
    assert "empty" in refused(capsys, mip_words(tmp_path), *words)


def test_a_search_needs_a_module_that_trains_jobs(tmp_path, capsys):
    words = ["classifier_cifar10_resnet56", "--data", "datamodules.CIFARDataModule", "--data.name", "digits"]
    words += ["--trainer.callbacks", "callbacks.ArchitectureSearch", "--run_dir", str(tmp_path / "run")]
    assert "needs a module that trains jobs" in refused(capsys, words)


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_figures")
def test_a_trial_that_fails_is_tried_again_and_then_left_out(tmp_path):
    bad = genotype_from_sample28([int(n) for n in architectures(4)[2].split()]).key()

    def score(genotype, recipe, seed):
        if genotype.key() == bad and recipe.epochs == 4:
            raise FloatingPointError("the loss is not finite")
        return noisy(genotype, recipe, seed)

    with fake_trials(tmp_path / "calls", score) as calls:
        assert fit(mip_words(tmp_path), tmp_path / "run") == 0
    tries = [call for call in calls if call[0] == bad and call[1].startswith("epochs=4,")]
    summary = read_summary(tmp_path / "run")
    failed = summary["trial/failed"]
    assert failed > 0
    assert len(tries) == 2 * failed
    assert len(calls) - calls.different == failed
    rows = read_rows(tmp_path / "run" / "tables" / "mip_recipes.csv")
    assert {row["failed"] for row in rows if row["epochs"] == "4"} == {"1"}
    assert {row["failed"] for row in rows if row["epochs"] != "4"} <= {"0"}


def test_a_search_in_which_all_fail_says_why(tmp_path):
    def score(genotype, recipe, seed):
        raise FloatingPointError("the loss is not finite")

    told = "all 2 trials so far failed: FloatingPointError: the loss is not finite"
    with fake_trials(tmp_path / "calls", score) as calls, pytest.raises(ValueError, match=told):
        fit(search_words(tmp_path), tmp_path / "run")
    assert len(calls) == 4  # two, and both again


@pytest.mark.usefixtures("no_figures")
def test_what_an_epoch_leaves_is_in_the_next(tmp_path):
    with fake_trials(tmp_path / "calls", noisy) as calls:
        assert fit(search_words(tmp_path, parallel=3), tmp_path / "run", "--trainer.limit_train_batches", "2") == 0
    assert len(calls) == calls.different == TRIALS["search"]
    epochs = [row["epoch"] for row in metrics(tmp_path / "run") if row["trial/accuracy"]]
    assert epochs == ["0", "0", "1", "2", "2", "3"]


@pytest.mark.slow
def test_a_measured_table_is_replayed(shared, tmp_path, monkeypatch):
    run, shown = tmp_path / "run", []
    monkeypatch.setattr("callbacks.report.RunReport.figure", lambda self, trainer, key, figure: shown.append(key))
    assert main("fit", ["bpe_mip", *CPU, "--table", str(shared / "data" / "bpe_mip"), "--run_dir", str(run)]) == 0
    summary = read_summary(run)
    assert set(summary["mip/pruned"][:3]) == {"cutout", "lr", "batch_size"}
    assert set(summary["mip/pruned"][-3:]) == {"channels", "epochs", "layers"}
    assert summary["mip/left_out_error"] <= 0.08
    assert summary["mip/random_hours"] > 0
    assert summary["mip/mip_hours"] > 0
    assert len(read_rows(run / "tables" / "mip_table.csv")) == 26
    assert "mip/replay" in shown
    assert not (run / "checkpoints").exists()
    assert not (run / "trials").exists()
