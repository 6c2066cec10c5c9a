"""Run a recipe in one process and in several, and compare: what "many processes" promises, in three lines.

>>> one, two = run_both("hrank", words, tmp_path)  # doctest: +SKIP
>>> assert_same_decisions(one, two)  # doctest: +SKIP
>>> assert_same_weights(one, two, atol=1e-6)  # doctest: +SKIP

Every run is the real command line on the CPU (gloo), in processes forked from the test: they have torch imported
already, which costs seconds otherwise, and know what the test registered. A fork is told its rank as by torchrun.

What can be equal: every process to every other, always and bit by bit (:func:`run_both` asks); decisions and metrics
to those of one process; weights to those of one process only without batch norm in training mode, which sees the batch
of its own process. Take ``trainer.precision=64-true``, else rounding differs. A mean over processes is the mean over
samples only where all have equally many: set ``trainer.limit_train_batches`` so that every batch is full.
"""

import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.testing import assert_close

from lit_methods.cli import main, runtime  # noqa: F401 - imported here once instead of in every fork
from tests.left_behind import metrics, read_summary, timeless
from tests.on_all_cores import MOST_WORKERS

CPU = ["--trainer.accelerator", "cpu", "--trainer.num_sanity_val_steps", "0", "--trainer.sync_batchnorm", "false"]


class KeepRank(Callback):
    """Every process writes down what it ended with, and which samples it saw.

    ``rank<r>.pt`` in the run's directory has ``weights`` and ``hparams`` of the module and ``callbacks``, the states of
    all callbacks, as they are at the end of the fit; and ``seen``: the batches of ``index`` per stage.
    """

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {"seen": {"train": [], "val": [], "test": []}}

    def _note(self, stage: str, batch: Any) -> None:
        if isinstance(batch, Mapping) and "index" in batch:
            self.kept["seen"][stage].append(batch["index"].tolist())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any):
        self._note("train", batch)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any):
        self._note("val", batch)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any):
        self._note("test", batch)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.kept["weights"] = {key: value.clone() for key, value in pl_module.state_dict().items()}
        self.kept["hparams"] = dict(pl_module.hparams)
        self.kept["callbacks"] = {c.state_key: c.state_dict() for c in trainer.callbacks}  # type: ignore[attr-defined]
        self._write(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    on_validation_end = on_test_end

    def _write(self, trainer: Trainer) -> None:
        torch.save(self.kept, Path(trainer.default_root_dir, f"rank{trainer.global_rank}.pt"))


@dataclass(frozen=True)
class Run:
    """What a run left behind.

    Args:
        path: its directory.
        codes: exit code per rank; negative is the signal that ended it.
        out: stdout per rank.
        err: stderr per rank.
        seconds: from the start to the end of the last process.
    """

    path: Path
    codes: list[int]
    out: list[str]
    err: list[str]
    seconds: float

    @cached_property
    def ranks(self) -> list[dict[str, Any]]:
        """What :class:`KeepRank` wrote, per rank."""
        files = [self.path / f"rank{rank}.pt" for rank in range(len(self.codes))]
        return [torch.load(file, weights_only=True) for file in files]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Of the first process, at the end of the fit."""
        return self.ranks[0]["weights"]

    @property
    def plan(self) -> dict[str, Any] | None:
        """What pruning left."""
        return self.ranks[0]["hparams"].get("plan")

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """Every array of every ``.npz`` in the run's directory, such as HRank's ``rank_scores.npz``."""
        return {
            f"{file.name}:{key}": value
            for file in sorted(self.path.glob("*.npz"))
            for key, value in np.load(file).items()
        }

    @cached_property
    def summary(self) -> dict[str, Any]:
        """``summary.json`` without timings."""
        return timeless(read_summary(self.path))

    @cached_property
    def metrics(self) -> list[dict[str, str]]:
        """The rows of ``metrics.csv`` without timings."""
        return metrics(self.path)

    def logged(self, key: str) -> list[float]:
        """All values of one key, in the order of logging."""
        return [float(row[key]) for row in self.metrics if row.get(key)]

    def seen(self, stage: str) -> list[int]:
        """``index`` of every sample that the processes together saw in a stage, sorted, repeated ones too."""
        return sorted(index for rank in self.ranks for batch in rank["seen"][stage] for index in batch)


def run(
    recipe: str | Sequence[str],
    words: Sequence[object],
    run_dir: Path,
    processes: int = 1,
    entry: str = "fit",
    timeout: float = 120,
    succeed: bool = True,
) -> Run:
    """Run one command in that many processes.

    Args:
        recipe: a recipe's name, or the words that stand for it, such as ``["--config", file]``.
        words: what follows; :data:`CPU` and the processes are added.
        run_dir: where it writes.
        processes: how many.
        entry: ``"fit"``, ``"test"`` or ``"validate"``.
        timeout: seconds until all processes are killed, with the workers that they started.
        succeed: whether exit codes other than 0 are a failure of the test.

    Raises:
        AssertionError: time was up, a process failed or left others behind; with the stderr of every rank.
    """
    argv = [*([recipe] if isinstance(recipe, str) else recipe), *CPU, *map(str, words), "--run_dir", str(run_dir)]
    argv += ["--trainer.devices", str(processes), "--trainer.callbacks+=tests.two_processes.KeepRank"]
    if processes > 1:
        argv += ["--trainer.strategy", "ddp", "--trainer.use_distributed_sampler", "false"]
    notes = run_dir.with_name(run_dir.name + ".output")
    notes.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_rank, args=(entry, argv, notes, rank, processes, port)) for rank in range(processes)]
    started = time.monotonic()
    for process in ranks:
        process.start()
    try:
        for process in ranks:
            process.join(max(0.0, started + timeout - time.monotonic()))
        late = [rank for rank, process in enumerate(ranks) if process.exitcode is None]
        seconds = time.monotonic() - started
        left = [] if late else _left_in_groups([process.pid for process in ranks])
    finally:
        for process in ranks:
            _kill_group(process)
    out, err = ([(notes / f"{rank}.{name}").read_text() for rank in range(processes)] for name in ("out", "err"))
    result = Run(run_dir, [process.exitcode or 0 for process in ranks], out, err, seconds)
    assert not late, f"rank {late} still ran after {timeout} s{_all_of(result)}"
    assert not left, f"processes {left} were left behind{_all_of(result)}"
    assert not succeed or not any(result.codes), f"exit codes {result.codes}{_all_of(result)}"
    return result


def run_both(
    recipe: str | Sequence[str],
    words: Sequence[object],
    folder: Path,
    processes: int = 2,
    batch_size: int = 32,
    **options: Any,
) -> tuple[Run, Run]:
    """The same command in one process and in several, which share each batch of the one; those are bit-equal.

    Args:
        recipe: a recipe's name, or the words that stand for it.
        words: what follows; ``data.batch_size`` is added.
        folder: gets ``one`` and ``many``.
        processes: how many.
        batch_size: over all processes.
        options: of :func:`run`.
    """
    assert batch_size % processes == 0, f"{processes} processes cannot share {batch_size} samples equally"
    one = run(recipe, [*words, "--data.batch_size", batch_size], folder / "one", **options)
    share = ["--data.batch_size", batch_size // processes]
    many = run(recipe, [*words, *share], folder / "many", processes, **options)
    assert_equal_ranks(many)
    return one, many


def assert_equal_ranks(many: Run) -> None:
    """Every process ended with the same weights, hyperparameters and states of callbacks, bit for bit."""
    for rank, other in enumerate(many.ranks[1:], 1):
        for part in ("weights", "hparams", "callbacks"):
            _same(other[part], many.ranks[0][part], 0, f"rank {rank}: {part}")


def assert_same_decisions(one: Run, other: Run, atol: float = 0) -> None:
    """The same plan and the same arrays in ``.npz`` files (ranks, scores, labels), to ``atol``."""
    assert one.plan is not None or one.arrays, "no decisions to compare: no plan, and no .npz in the run's directory"
    assert other.plan == one.plan
    assert other.arrays.keys() == one.arrays.keys()
    _same(other.arrays, one.arrays, atol, "arrays")


def assert_same_metrics(one: Run, other: Run, atol: float = 1e-6, keys: tuple[str, ...] = ("val/", "test/")) -> None:
    """The same figures over all samples, in the summary and in every logged row, under keys that begin like these."""
    figures = [{k: v for k, v in r.summary.items() if k.startswith(keys)} for r in (one, other)]
    assert figures[0], f"nothing under {keys}"
    _same(figures[1], figures[0], atol, "summary")
    for key in {key for row in one.metrics for key in row if key.startswith(keys)}:
        _same(other.logged(key), one.logged(key), atol, key)


def assert_same_weights(one: Run, other: Run, atol: float = 1e-6) -> None:
    """The same weights and buffers, to ``atol``."""
    _same(other.weights, one.weights, atol, "weights")


def _same(ours: Any, theirs: Any, atol: float, where: str) -> None:
    """Equal in shape and type all the way down; numbers to ``atol``, NaN equal to NaN."""
    if isinstance(theirs, Mapping):
        assert list(ours) == list(theirs), where
        for key, value in theirs.items():
            _same(ours[key], value, atol, f"{where}: {key}")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), where
        for i, value in enumerate(theirs):
            _same(ours[i], value, atol, f"{where}[{i}]")
    elif isinstance(theirs, torch.Tensor | np.ndarray | float):
        assert_close(ours, theirs, rtol=0, atol=atol, equal_nan=True, msg=lambda text: f"{where}: {text}")
    else:
        assert ours == theirs, where


def _rank(entry: str, argv: list[str], notes: Path, rank: int, processes: int, port: int) -> None:
    """One process; never returns."""
    os.setsid()  # a group of its own, which the workers of its loaders belong to
    for name, number in (("out", 1), ("err", 2)):
        file = (notes / f"{rank}.{name}").open("w", buffering=1)
        os.dup2(file.fileno(), number)
        setattr(sys, f"std{name}", file)
    if processes > 1:
        place = {"LOCAL_RANK": rank, "RANK": rank, "WORLD_SIZE": processes, "NODE_RANK": 0, "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in place.items()}, MASTER_ADDR="127.0.0.1")
        rank_zero_only.rank = rank  # read from the environment when lightning was imported
    try:
        code = main(entry, argv)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.exit(code)


def _kill_group(process: multiprocessing.process.BaseProcess) -> None:
    """Also the workers that it may have left behind."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()


def _left_in_groups(groups: Sequence[int | None], patience: float = 5) -> list[int]:
    """Processes that still run in these groups after their leaders have ended; none where there is no ``/proc``."""
    end = time.monotonic() + patience
    while True:
        found = []
        for file in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it ended just now
                state, _, group = file.read_text().rpartition(")")[2].split()[:3]
                if int(group) in groups and state != "Z":  # those that nobody waited for have ended, too
                    found.append(int(file.parent.name))
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.1)


def _free_port() -> int:
    """One that no worker of pytest beside this one finds, too: it is bound again only once the run has begun."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port // 2 % MOST_WORKERS == worker % MOST_WORKERS:  # some systems give every other port at first
            return port


def _all_of(result: Run) -> str:
    return "".join(f"\n--- rank {rank}, stderr ---\n{text[-4000:]}" for rank, text in enumerate(result.err))
