"""metrics.csv goes on; W&B is offline without a key and never asks."""

import sys
from pathlib import Path

import pytest

from lit_methods.cli.loggers import RunCSVLogger, has_wandb_key


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


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
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


def test_wandb_without_a_key_logs_offline_and_says_so(command, no_key):
    said: list[dict] = []

    class Spy:
        def __new__(cls, **kwargs):
            said.append(kwargs)
            raise ModuleNotFoundError("stop here")

    no_key.setattr("lightning.pytorch.loggers.WandbLogger", Spy)
    with pytest.raises(ModuleNotFoundError, match="stop here"):
        command("fit", "--logger", "wandb", "--run_dir", "w")
    assert said[0]["offline"] is True
    assert said[0]["save_dir"] == Path("w").absolute()
    no_key.setenv("WANDB_API_KEY", "0" * 40)
    with pytest.raises(ModuleNotFoundError, match="stop here"):
        command("fit", "--logger", "wandb")
    assert said[1]["offline"] is False


@pytest.mark.slow
def test_a_whole_offline_run(command, no_key):
    no_key.setattr(sys, "stdin", None)  # whoever asks, fails
    answer = command("fit", "--logger", "wandb", "--trainer.max_epochs", 1)
    assert answer.code == 0
    assert len(answer.err) == 1
    assert "offline" in answer.err[0]
    assert list(answer.run_dir.glob("wandb/offline-run-*/run-*.wandb"))
    assert (answer.run_dir / "metrics.csv").is_file()
