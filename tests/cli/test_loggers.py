"""metrics.csv goes on; W&B never asks, never ends a run and never keeps it waiting."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_methods.cli.loggers import RunCSVLogger, RunWandbLogger, has_wandb_key
from tests.left_behind import last_checkpoint, metrics
from tests.wandb_record import read_record, read_records


def lines(folder: Path) -> list[str]:
    return (folder / "metrics.csv").read_text().split()


def test_rows_are_on_disk_at_once_and_those_from_the_resumed_step_on_are_cut(tmp_path):
    first = RunCSVLogger(tmp_path)
    for step in range(4):
        first.log_metrics({"train/loss": 0.5}, step)
    assert lines(tmp_path) == ["step,train/loss", "0,0.5", "1,0.5", "2,0.5", "3,0.5"]
    second = RunCSVLogger(tmp_path, keep_below=2)
    second.log_metrics({"val/top1": 0.25}, 2)
    assert lines(tmp_path) == ["step,train/loss,val/top1", "0,0.5,", "1,0.5,", "2,,0.25"]
    third = RunCSVLogger(tmp_path)
    third.log_metrics({"val/top1": 0.75}, 0)
    assert lines(tmp_path)[-2:] == ["2,,0.25", "0,,0.75"]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_row_that_was_cut_off_is_dropped(tmp_path):
    """By a full disk or a lost node; the number that is left of its step may be another one."""
    Path(tmp_path, "metrics.csv").write_text("step,train/loss\n0,0.5\n1")
    RunCSVLogger(tmp_path, keep_below=5).log_metrics({"train/loss": 0.25}, 1)
    assert lines(tmp_path) == ["step,train/loss", "0,0.5", "1,0.25"]


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return monkeypatch


def test_a_key_is_found_where_wandb_looks(no_key, tmp_path):
    assert not has_wandb_key()
    Path(tmp_path, "netrc").write_text("machine api.wandb.ai login user password " + "0" * 40)
    assert has_wandb_key()
    no_key.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_wandb_key()
    no_key.setenv("WANDB_API_KEY", "0" * 40)
    assert has_wandb_key()


@pytest.fixture
def begun(no_key) -> list[dict[str, Any]]:
    """What wandb.init is asked for; it then says that it has no network."""
    asked: list[dict[str, Any]] = []

    def init(**kwargs: Any) -> Any:
        asked.append({**kwargs, "environment": {k: v for k, v in os.environ.items() if k.startswith("WANDB_")}})
        raise ConnectionError("no network\nsecond line")

    no_key.setattr("wandb.init", init)
    no_key.setattr("wandb.teardown", lambda code=None: None)
    return asked


def test_without_a_key_wandb_is_offline_from_the_start(command, begun):
    answer = command("fit", "--logger", "wandb", "--run_dir", "w", "--trainer.max_epochs", 1)
    assert answer.code == 0
    assert [call["mode"] for call in begun] == ["offline"]
    assert "no API key" in answer.err[0]
    assert answer.err[1:] == ["warning: wandb: no network; the run is logged in metrics.csv alone"]
    assert len(lines(Path("w"))) > 1


def test_with_a_key_wandb_is_online_and_falls_back_on_its_own(command, begun, no_key):
    no_key.setenv("WANDB_API_KEY", "0" * 40)
    answer = command("fit", "--logger", "wandb", "--run_dir", "w", "--trainer.max_epochs", 1)
    assert answer.code == 0
    assert [call.get("mode") for call in begun] == [None, "offline"]
    folder = Path("w").absolute() / "wandb"
    assert answer.err == [
        f"warning: wandb: no network; the run is logged offline, for wandb sync, in {folder}",
        "warning: wandb: no network; the run is logged in metrics.csv alone",  # offline it failed, too
    ]


def test_what_wandb_is_told(command, begun, no_key, monkeypatch):
    no_key.setenv("WANDB_CACHE_DIR", "/mine")
    assert command("fit", "--logger", "wandb", "--run_dir", "w", "--model.lr", 0.25).code == 0
    (call,) = begun
    run = Path("w").absolute()
    assert (call["name"], call["project"], call["dir"]) == ("w", "lit-methods", str(run))
    assert "anonymous" not in call
    config = call["config"]
    assert config["run_dir"] == str(run)
    assert config["model"]["init_args"]["lr"] == 0.25
    assert config["trainer"]["max_epochs"] == 2
    assert config["data"]["init_args"]["batch_size"] == 4
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert {k: v for k, v in config.items() if k != "run_dir"} == saved
    said = call["environment"]
    assert said["WANDB_DATA_DIR"] == str(run / "wandb" / "data")
    assert said["WANDB_CACHE_DIR"] == "/mine"
    assert float(said["WANDB_INIT_TIMEOUT"]) <= 60
    assert float(said["WANDB_FINISH_TIMEOUT"]) <= 300
    assert {k for k in os.environ if k.startswith("WANDB_")} == {"WANDB_CACHE_DIR"}  # as it was


def test_names_in_the_environment_win(begun, no_key, tmp_path):
    no_key.setenv("WANDB_PROJECT", "mine")
    no_key.setenv("WANDB_RUN_ID", "from-agent")
    logger = RunWandbLogger(tmp_path, {}, offline=True, run={"id": "old", "project": "theirs", "entity": "us"})
    logger.begin()
    assert (begun[0]["id"], begun[0]["project"], begun[0]["entity"]) == (None, "mine", "us")


def test_a_command_that_fails_early_begins_no_run(command, begun):
    assert command("fit", "--logger", "wandb", "--run_dir", "w", "--data.root", "nowhere").code == 2
    with pytest.raises(ValueError, match="a fault in the method's own code"):
        command("fit", "--logger", "wandb", "--run_dir", "w", "--model.fail_at", 0)
    assert not begun
    assert not Path("w/wandb").exists()


def test_the_test_of_a_checkpoint_is_logged_at_its_step(begun, no_key, tmp_path):
    taken = []
    no_key.setattr("lightning.pytorch.loggers.WandbLogger.log_metrics", lambda self, metrics, step: taken.append(step))
    logger = RunWandbLogger(tmp_path, {}, offline=True, run={}, log_from=7)
    for step in (None, 0, 9):
        logger.log_metrics({"test/top1": 1.0}, step)
    assert taken == [7, 7, 9]


def test_wandb_that_breaks_in_the_middle_is_one_warning(command, no_key):
    class Run:
        id, project, entity, offline, summary = "abc", "p", "", True, {}
        closed = []

        def log(self, values):
            raise OSError("Connection lost")

        def finish(self, code):
            self.closed.append(code)
            raise OSError("Connection lost")

    no_key.setattr("wandb.init", lambda **kwargs: Run())
    no_key.setattr("wandb.teardown", lambda code=None: None)
    answer = command("fit", "--logger", "wandb", "--run_dir", "w")
    assert answer.code == 0
    assert answer.err[1:] == ["warning: wandb: Connection lost; what W&B did not take is in metrics.csv"]
    assert Run.closed == [0]
    with pytest.raises(ValueError, match="a fault in the method's own code"):
        command("fit", "--logger", "wandb", "--model.fail_at", 2)
    assert Run.closed == [0, 1]  # failed, and once


def test_without_the_package_metrics_stay_in_csv(command, no_key):
    no_key.setitem(sys.modules, "wandb", None)
    answer = command("fit", "--logger", "wandb", "--run_dir", "w")
    assert answer.code == 0
    (line,) = answer.err
    assert line.startswith("warning: wandb:")
    assert "pip install wandb" in line
    assert len(lines(Path("w"))) > 1
    assert not Path("w/wandb").exists()


def test_disabled_by_the_environment(command, no_key, begun):
    no_key.setenv("WANDB_MODE", "disabled")
    answer = command("fit", "--logger", "wandb", "--run_dir", "w")
    assert (answer.code, answer.err, begun) == (0, [], [])


def test_a_run_goes_on_under_its_id_in_place_and_branches_elsewhere(command, no_key):
    no_key.setattr(sys, "stdin", None)  # whoever asks, fails
    here, there = Path("w").absolute(), Path("v").absolute()
    wandb, last = ("--logger", "wandb"), ("--ckpt_path", here / "checkpoints" / "last.ckpt")
    assert command("fit", *wandb, "--run_dir", here, "--trainer.max_epochs", 1).code == 0
    assert command("fit", "--run_dir", here, *last, "--trainer.max_epochs", 2).code == 0  # a part without W&B
    assert command("fit", *wandb, "--run_dir", here, *last, "--trainer.max_epochs", 3).code == 0
    assert command("test", *wandb, "--run_dir", here, *last).code == 0
    assert command("fit", *wandb, "--run_dir", there, *last, "--trainer.max_epochs", 4).code == 0
    first, third, tested = read_records(here)
    assert first.run_id == third.run_id == tested.run_id
    assert [list(record.at("train/loss")) for record in (first, third)] == [[*range(5)], [*range(10, 15)]]
    assert list(tested.at("test/score")) == [15]
    rows = metrics(here)
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [*range(15)]
    branch = read_record(there)
    assert branch.run_id != first.run_id
    assert (branch.config["parent_run"], branch.config["ckpt_path"]) == (first.run_id, str(last[1]))
    assert list(branch.at("train/loss")) == [*range(15, 20)]
    kept = last_checkpoint(there)["callbacks"]["RunReport"]
    assert kept == {"wandb": {"id": branch.run_id, "project": "lit-methods"}}


def test_an_unknown_mode_is_named_once(command, no_key):
    no_key.setenv("WANDB_MODE", "bogus")
    answer = command("fit", "--logger", "wandb", "--trainer.max_epochs", 1)
    assert answer.code == 0
    (line,) = answer.err
    assert line.startswith("warning: wandb: WANDB_MODE='bogus' is not online")
