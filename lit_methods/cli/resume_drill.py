"""The resume drill: train a recipe briefly, kill it in the middle of an epoch, resume it, compare bit by bit.

Three real runs of ``python -m lit_methods.fit`` with the user's own words and limits behind them. The kill is a signal
that the process sends to itself in a chosen batch, so that the drill does the same every time.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_methods.checkpoint_io import read_checkpoint
from lit_methods.cli.checkpoints import resumed_step

BATCHES = 4  # per epoch
STEPS = 3 * BATCHES  # unless --steps says otherwise: an epoch before, one that is killed, one after
_COMPARED = ("state_dict", "optimizer_states", "lr_schedulers")


class KillInEpoch(Callback):
    """Send SIGKILL to the own process after a batch in the middle of an epoch, before its checkpoint is written.

    So the weights of that batch are lost, and the resumed run has to take the step again. Every process of a ddp run
    does it in the same batch.

    Args:
        epoch: in which epoch.
    """

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Die, where it is time (checkpoint callbacks come last in Lightning's order)."""
        middle = max(0, min(BATCHES // 2, int(trainer.num_training_batches) - 2))
        if trainer.current_epoch == self.epoch and batch_idx == middle:
            os.kill(os.getpid(), signal.SIGKILL)


class DrillError(RuntimeError):
    """One of the three runs did not do what the drill needs; nothing is known about resuming."""


@dataclass(frozen=True)
class Outcome:
    """What the drill saw.

    Args:
        epochs: how many were trained, of ``BATCHES`` batches at most.
        killed_epoch: in which one the kill came.
        resumed_step: the step from which the resumed run went on.
        compared: values that were compared.
        differences: those that are not bit-identical, each with its largest difference, in the order of the network.
        folder: the runs, where they were kept; ``None`` where nothing differs.
    """

    epochs: int
    killed_epoch: int
    resumed_step: int
    compared: int
    differences: dict[str, str]
    folder: Path | None


def epochs_of(steps: int) -> int:
    """Whole epochs of ``BATCHES`` batches that hold so many steps.

    Example:
        >>> [epochs_of(steps) for steps in (8, 9, 12)]
        [2, 3, 3]
    """
    return -(-steps // BATCHES)


def steps_for(epoch: int) -> int:
    """The smallest ``--steps`` with which the epoch is begun before the kill, or is the killed one.

    Example:
        >>> epochs_of(steps_for(8))
        10
    """
    return (epoch + 2) * BATCHES


def resume_drill(words: list[str], steps: int = STEPS, root: Path = Path("runs"), repeatable: bool = True) -> Outcome:
    """Train without a break; train, kill and resume; compare weights, optimisers and schedules of the two.

    Args:
        words: after ``python -m lit_methods.fit``.
        steps: training batches of each run, rounded up to whole epochs of ``BATCHES``; at least two epochs.
        root: where the runs go, in a folder of their own that is removed unless something differs.
        repeatable: ask for deterministic kernels; a CPU needs no asking.

    Raises:
        DrillError: a run failed, was not killed, or had left no checkpoint when it was.
        OSError: the folder cannot be written.
    """
    epochs = epochs_of(steps)
    killed_epoch = epochs - 2
    limits = {
        "trainer.max_epochs": epochs,
        "trainer.max_steps": -1,
        "trainer.limit_train_batches": BATCHES,
        "trainer.limit_val_batches": 1,
        "trainer.limit_test_batches": 1,
        "trainer.val_check_interval": 1.0,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.num_sanity_val_steps": 0,
        "trainer.fast_dev_run": False,
        "trainer.enable_checkpointing": True,
        "trainer.enable_progress_bar": False,
        "checkpoint.every_n_train_steps": 1,
        "checkpoint.every_n_epochs": "null",
        "checkpoint.train_time_interval": "null",
        "checkpoint.save_last": True,
        "checkpoint.save_weights_only": False,
        "logger": "csv",  # a drill is nothing for a dashboard
    } | ({} if repeatable else {"trainer.deterministic": "warn"})
    limited = [*words, *(f"--{key}={value}" for key, value in limits.items())]
    made = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="resume-drill-", dir=root)).absolute()
    keep = False
    try:
        whole, broken = folder / "whole", folder / "killed"
        _run([*limited, f"--run_dir={whole}"], folder / "whole.log", 0, "the uninterrupted run")
        kill = [f"--trainer.callbacks+={__name__}.KillInEpoch", f"--trainer.callbacks.epoch={killed_epoch}"]
        code = -signal.SIGKILL
        _run([*limited, *kill, f"--run_dir={broken}"], folder / "killed.log", code, "the run to be killed")
        last = broken / "checkpoints" / "last.ckpt"
        if not last.is_file():
            raise DrillError(f"the run that was killed in epoch {killed_epoch} had written no checkpoint")
        step = resumed_step(read_checkpoint(last))
        again = [*limited, f"--run_dir={broken}", f"--ckpt_path={last}"]
        _run(again, folder / "resumed.log", 0, "the resumed run")
        expected, found = (_values(run / "checkpoints" / "last.ckpt") for run in (whole, broken))
        differences = compare(expected, found)
        keep = bool(differences)
        return Outcome(epochs, killed_epoch, step, len(expected), differences, folder if keep else None)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
            if made and not any(root.iterdir()):
                root.rmdir()


def _run(words: list[str], log: Path, wanted: int, which: str) -> None:
    """Run ``fit`` to its end, and leave no process of it behind.

    Raises:
        DrillError: another exit code than the wanted one; with the last line that the run said.
    """
    print(f"resume drill: {which} ...", file=sys.stderr, flush=True)
    with log.open("wb") as said:
        code = run_fit(words, said.fileno())
    if code != wanted:
        lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
        raise DrillError(f"{which} ended with exit code {code}: {lines[-1] if lines else 'it said nothing'}")


def run_fit(words: list[str], log: int) -> int:
    """The exit code of ``python -m lit_methods.fit``, started in a process group of its own.

    Args:
        words: after the command.
        log: file descriptor that takes what it prints.
    """
    command = [sys.executable, "-m", "lit_methods.fit", *words]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0)
    try:
        return process.wait()
    finally:  # workers and the other processes of a ddp run outlive the one that was killed
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _values(path: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(path)
    found = {"global_step": checkpoint["global_step"], "epoch": checkpoint["epoch"]}
    for name in _COMPARED:
        found |= dict(_leaves(name, checkpoint.get(name)))
    return {key.removeprefix("state_dict."): value for key, value in found.items()}


def _leaves(path: str, node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(f"{path}.{key}", value)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _leaves(f"{path}.{index}", value)
    else:
        yield path, node


def compare(expected: dict[str, Any], found: dict[str, Any]) -> dict[str, str]:
    """What is not bit-identical, with its largest difference.

    Args:
        expected: name to tensor or plain value.
        found: the same of the other run.

    Example:
        >>> compare({"a": torch.zeros(2), "b": 1, "c": 0.5}, {"a": torch.tensor([0.0, 0.25]), "b": 1})
        {'a': '0.25', 'c': 'missing in one of them'}
    """
    differences = {}
    for key in [*expected, *(key for key in found if key not in expected)]:
        if key not in expected or key not in found:
            differences[key] = "missing in one of them"
        elif text := _difference(expected[key], found[key]):
            differences[key] = text
    return differences


def _difference(a: Any, b: Any) -> str | None:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        both_nan = a != a and b != b
        return None if type(a) is type(b) and (a == b or both_nan) else f"{a} and {b}"
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{tuple(a.shape)} {a.dtype} and {tuple(b.shape)} {b.dtype}"
    if torch.equal(_bytes(a), _bytes(b)):
        return None
    return f"{float((a.double() - b.double()).abs().max()):.3g}"


def _bytes(tensor: Tensor) -> Tensor:
    """As it lies in memory: NaN equals itself, 0 is not -0."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)
