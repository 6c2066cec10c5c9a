"""Real processes that are signalled, or fail, all end: right exit code, a checkpoint that loads, nobody left behind."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
CODES = {"SIGTERM": 143, "SIGINT": 130}
WORDS = [
    *("--trainer.accelerator", "cpu", "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "8"),
    *("--trainer.limit_val_batches", "8", "--trainer.num_sanity_val_steps", "0", "--data.batch_size", "8"),
    *("--trainer.callbacks.at_epoch", "1", "--trainer.callbacks.num_images", "64"),
]
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.use_distributed_sampler", "false"]
Start = Callable[..., tuple[int, str, float]]

pytestmark = pytest.mark.slow


def in_session(session: int) -> list[str]:
    """Command lines of the living processes of a session."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, number = (process / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(number) == session and state != "Z":
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Run ``fit hrank`` in a session of its own; gives exit code, stderr and seconds, after all its processes ended."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("no /proc to look for processes in")

    def run(*words: object) -> tuple[int, str, float]:
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "lit_methods.fit", "hrank", *WORDS, *map(str, words), "--run_dir", "run"],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            _, stderr = process.communicate(timeout=240)
            seconds = time.monotonic() - started
            deadline = time.monotonic() + 10  # a worker looks every five seconds whether its parent is alive
            while (left := in_session(process.pid)) and time.monotonic() < deadline:
                time.sleep(0.2)
            assert not left
            return process.returncode, stderr, seconds
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)

    return run


def signalled(name: str, hook: str, **arguments: object) -> list[object]:
    words: list[object] = ["--trainer.callbacks+=tests.signals.SendSignal", "--trainer.callbacks.name", name]
    for key, value in ({"hook": hook, "step": 3} | arguments).items():
        words += [f"--trainer.callbacks.{key}", value]
    return words


def check_last(tmp_path: Path) -> None:
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] >= 4
    left = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert not [name for name in left if not name.endswith(".ckpt")]


@pytest.mark.parametrize(
    ("name", "hook", "workers", "group"),
    [
        ("SIGTERM", "on_before_optimizer_step", 0, False),
        ("SIGINT", "on_before_optimizer_step", 2, False),
        ("SIGTERM", "on_before_optimizer_step", 2, True),
        ("SIGINT", "on_before_optimizer_step", 2, True),
        ("SIGTERM", "on_validation_batch_start", 2, True),
    ],
)
def test_one_process(start, tmp_path, name, hook, workers, group):
    code, stderr, _ = start("--data.num_workers", workers, *signalled(name, hook, group=group, times=2))
    assert code == CODES[name], stderr
    assert "Traceback" not in stderr
    assert f"stopped by {name}" in stderr
    check_last(tmp_path)


@pytest.mark.parametrize(
    ("name", "hook", "rank", "group"),
    [
        ("SIGTERM", "on_before_optimizer_step", 0, False),
        ("SIGTERM", "on_before_optimizer_step", 1, False),
        ("SIGINT", "on_before_optimizer_step", -1, False),
        ("SIGTERM", "on_before_optimizer_step", 0, True),
        ("SIGTERM", "on_validation_batch_start", 1, False),
        ("SIGTERM", "on_validation_batch_start", 0, True),
    ],
)
def test_two_processes(start, tmp_path, name, hook, rank, group):
    words = signalled(name, hook, rank=rank, group=group)
    code, stderr, _ = start(*TWO, "--data.num_workers", 1, *words)
    assert code == CODES[name], stderr
    assert "Traceback" not in stderr
    check_last(tmp_path)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_two_fails(start, rank):
    code, stderr, seconds = start(*TWO, "--trainer.callbacks+=tests.signals.Fail", "--trainer.callbacks.rank", rank)
    assert code != 0
    assert "one process fails" in stderr
    assert seconds < 120  # a minute after the failure, with the start of two processes before it
