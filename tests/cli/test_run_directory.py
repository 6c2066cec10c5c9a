"""Where a run writes when several processes, or somebody else's launcher, are at work."""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from toy_method import ToyMethod

from lit_methods.cli import run_directory
from lit_methods.cli.given import Given
from lit_methods.cli.run_directory import VARIABLE, announced, newest_checkpoint, place, recipe_name
from tests.left_behind import read_summary


def test_other_processes_take_the_first_ones_directory(tmp_path, monkeypatch):
    first = place("fit", None, None, "toy", tmp_path / "runs")
    with announced(first):
        monkeypatch.setattr(run_directory.rank_zero_only, "rank", 1)
        assert place("fit", None, None, "toy", tmp_path / "runs").path == first.path
        monkeypatch.setattr(run_directory.rank_zero_only, "rank", 0)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [first.path.name]
    monkeypatch.setattr(run_directory.rank_zero_only, "rank", 1)
    with pytest.raises(ValueError, match="give --run_dir"):
        place("fit", None, None, "toy", tmp_path / "runs")


def test_only_the_first_process_asks_whether_a_directory_is_empty(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("")  # the first process has begun
    monkeypatch.setattr(run_directory.rank_zero_only, "rank", 1)
    assert place("fit", str(tmp_path / "run"), None, "toy").path == tmp_path / "run"


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "TORCHELASTIC_RUN_ID"])
def test_foreign_launchers_need_a_named_directory(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "4")
    with pytest.raises(ValueError, match="torchrun or SLURM"):
        place("fit", None, None, "toy", tmp_path)
    assert place("fit", str(tmp_path / "x"), None, "toy").path.is_dir()


def test_a_variable_left_over_from_elsewhere_is_not_obeyed(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "old"))
    assert place("fit", None, None, "toy", tmp_path / "runs").path.parent == tmp_path / "runs"


def test_a_file_in_the_place_of_the_directory(tmp_path):
    Path(tmp_path, "f").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        place("fit", str(tmp_path / "f"), None, "toy")


def test_names_of_recipes():
    assert recipe_name([], ["--config=a/hrank.yaml", "--config", "b.yaml"]) == "hrank"
    assert recipe_name([Given("recipe", "hrank")], ["--config", "runs/x/config.yaml"]) == "hrank"
    assert recipe_name([], ["--model", "HRank"]) == "run"


def test_no_checkpoint_is_an_error_that_says_where(tmp_path):
    with pytest.raises(ValueError, match="the runs of hrank"):
        newest_checkpoint(None, "hrank", tmp_path)


def test_last_in_a_copied_run_is_still_last_ckpt(tmp_path):
    """A copy keeps the names of files, not their times."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for name, clock in (("last.ckpt", 1), ("epoch=0-step=2.ckpt", 2)):
        (folder / name).touch()
        os.utime(folder / name, (clock, clock))
    assert newest_checkpoint(str(tmp_path / "run"), "hrank") == folder / "last.ckpt"


# --- drill D25: the clock --------------------------------------------------------------------------------------------


def test_runs_that_start_in_the_same_second_have_directories_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda form: "20260101-000000")
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: place("fit", None, None, "toy", tmp_path).path, range(16)))
    assert len(set(runs)) == 16
    ends = ["", *(f"-{number}" for number in range(2, 17))]
    assert {path.name for path in runs} == {f"toy-20260101-000000{end}" for end in ends}


def test_a_clock_that_was_moved_back_overwrites_nothing(tmp_path, monkeypatch):
    for second in ("20260101-000002", "20260101-000001", "20260101-000002"):
        monkeypatch.setattr(time, "strftime", lambda form, second=second: second)
        run = place("fit", None, None, "toy", tmp_path).path
        assert not list(run.iterdir())
        (run / "config.yaml").write_text("recipe: toy\n")
    assert len(list(tmp_path.iterdir())) == 3


def test_last_in_a_run_whose_clock_was_moved_back(tmp_path):
    """Its newest file has an older time than the others."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for name, clock in (("epoch=0-step=2.ckpt", 300), ("previous.ckpt", 200), ("last.ckpt", 100)):
        (folder / name).touch()
        os.utime(folder / name, (clock, clock))
    assert newest_checkpoint(str(tmp_path / "run"), "toy").name == "last.ckpt"


def test_a_directory_with_files_in_it_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        place("fit", str(tmp_path / "run"), None, "toy")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


# --- an evaluation that was stopped ----------------------------------------------------------------------------------


class Stopping(ToyMethod):
    """Breaks in the middle of its test until a file says that it was there once; attacks keep their notes like this."""

    def test_step(self, batch, batch_idx):
        super().test_step(batch, batch_idx)
        notes = Path(self.trainer.default_root_dir, "notes.txt")
        if batch_idx == 1 and not notes.exists():
            notes.write_text("mine")
            raise RuntimeError("stopped")


def test_a_stopped_evaluation_ends_as_a_new_one_does(command):
    with pytest.raises(RuntimeError, match="stopped"):
        command("test", "--model", "test_run_directory.Stopping", "--run_dir", "run")
    assert {path.name for path in Path("run").iterdir()} == {"config.yaml", "notes.txt"}
    config = Path("run/config.yaml").read_bytes()
    assert command("test", "--model", "test_run_directory.Stopping", "--run_dir", "run").code == 0
    assert Path("run/config.yaml").read_bytes() == config
    assert Path("run/notes.txt").read_text() == "mine"
    answer = command("test", "--model", "test_run_directory.Stopping", "--run_dir", "run")
    assert (answer.code, len(answer.err)) == (2, 1)
    assert "run_dir='run' is not empty" in answer.err[0]
    assert command("test", "--run_dir", "whole").code == 0
    summary, whole = (read_summary(Path(run)) for run in ("run", "whole"))
    assert summary.keys() == whole.keys()
    assert summary["test/score"] == whole["test/score"]
    assert "`test/score`" in Path("run/card.md").read_text()
    assert "command: test" in Path("run/card.md").read_text()


@pytest.mark.parametrize("entry", ["test", "validate", "predict"])
def test_what_is_no_stopped_evaluation_is_left_alone(tmp_path, entry):
    run = tmp_path / "run"

    def begun(recipe="toy"):
        shutil.rmtree(run, ignore_errors=True)
        (run / "checkpoints").mkdir(parents=True)
        (run / "config.yaml").write_text(f"trainer:\n  max_epochs: 1\nrecipe: {recipe}\n")

    begun()
    placed = place(entry, str(run), None, "toy")
    assert (placed.path, placed.in_place) == (run, False)
    for name, doing, recipe in [
        ("ended", (run / "summary.json").touch, "toy"),
        ("trained", (run / "checkpoints" / "last.ckpt").touch, "toy"),
        ("of no run", (run / "config.yaml").unlink, "toy"),
        ("another recipe", run.touch, "toy_large"),
    ]:
        begun()
        doing()
        with pytest.raises(ValueError, match="is not empty"):
            pytest.fail(f"{name}: {place(entry, str(run), None, recipe)}")
    begun()
    for other in ("fit", "export"):
        with pytest.raises(ValueError, match="is not empty"):
            place(other, str(run), None, "toy")
