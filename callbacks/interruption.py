"""SIGTERM, Ctrl-C and SLURM's warning end a run after the batch at hand, on all processes, with a checkpoint.

Lightning's own handlers run collectives inside the handler, or raise wherever the signal happened to arrive. Here a
signal only leaves a note; the run looks at it where every process can stop and where a resumed run goes on exactly.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

T = TypeVar("T")

STOPPING = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 2  # presses of Ctrl-C that wait for the end of the batch; the next one does not


class Interrupted(SystemExit):
    """A signal ended the run; ``code`` is the exit code, 128 and the signal's number (130 or 143)."""


class _Note:
    """What the signals to this process asked for; there is one, as there is one set of handlers."""

    code = 0  # 128 and the number of the signal, 0 as long as there was none
    presses = 0
    waiting = False  # whether the run looks at the note by itself; else the handler raises
    leaving = False  # whether the run is on its way out; nothing interrupts that

    def take(self, signum: int, frame: FrameType | None) -> None:
        """The handler: note it, and raise only where nobody would look."""
        if self.leaving:
            return
        self.code = max(self.code, 128 + signum)
        # The same signal to the whole group kills the loaders' workers, and torch's handler would raise for them in
        # the middle of a step. Python runs handlers in the order of their numbers, so this comes first.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.presses += signum == signal.SIGINT
        if self.presses == 1 and signum == signal.SIGINT and self.waiting:
            os.write(2, b"stopping after this batch; two more Ctrl-C stop at once, without a checkpoint\n")
        if not self.waiting or self.presses > PATIENCE:
            raise Interrupted(self.code)


_note = _Note()


def interrupted_by() -> int:
    """The exit code that a signal asked for, 0 if there was none (138 is SLURM's warning, after which it is 0)."""
    return _note.code


@contextmanager
def listening(*signals: int) -> Iterator[None]:
    """Note SIGINT and SIGTERM, and ``signals``, instead of dying of them; afterwards everything is as before.

    Outside the Trainer's loops, where nothing is there to be saved, they raise :class:`Interrupted` at once.
    """
    if threading.current_thread() is not threading.main_thread():  # handlers cannot be set there
        yield
        return
    before = {number: signal.getsignal(number) for number in (*STOPPING, *signals, signal.SIGCHLD)}
    outermost = before[signal.SIGTERM] != _note.take
    if outermost:
        _note.code = _note.presses = 0
        _note.waiting = _note.leaving = False
    for number in (*STOPPING, *signals):
        signal.signal(number, _note.take)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interruptible(trainer: Trainer, batches: Iterable[T]) -> Iterator[T]:
    """The items of a pass outside the Trainer's loops; a signal ends it early, on all processes together.

    Every process has to go through its own share to the end: there they agree.

    Args:
        trainer: the running trainer.
        batches: this process's share.

    Raises:
        Interrupted: a signal came to any of the processes.
    """
    for batch in batches:
        if _note.code:
            break
        yield batch
    stop_if_asked(trainer)


def stop_if_asked(trainer: Trainer) -> None:
    """Raise on all processes if a signal came to any; to be called by all of them at the same place.

    Raises:
        Interrupted: with the exit code that the signal stands for.
    """
    code = _note.code
    if trainer.world_size > 1:
        code = int(trainer.strategy.reduce(torch.tensor(code, device=trainer.strategy.root_device), reduce_op="max"))
    if code:
        _note.code = code
        raise Interrupted(code)


class Interruption(Callback):
    """End the run after the batch at hand when a signal asks for it, and write the last checkpoint.

    The command line adds one to every run and stands it first. In a script of your own it works alone: the process
    leaves with exit code 130 (Ctrl-C) or 143 (SIGTERM). A second Ctrl-C changes nothing, a third stops at once and
    saves nothing. Several processes stop together after a batch, whichever of them got the signal; they finish a
    validation first, since not all have equally many batches of it. In SLURM jobs that requeue themselves
    (``SLURMEnvironment``), the warning signal (``--signal=SIGUSR1@120``) writes the checkpoint and calls
    ``scontrol requeue`` once.

    The checkpoint says where the loops stood at the last point from which a resumed run is exact: after a batch, at the
    beginning or the end of a validation, after an epoch.
    """

    def __init__(self) -> None:
        self._loops: dict[str, Any] | None = None
        self._resumed = False
        self._saving = False
        self._handlers: Any = None

    # -- when to look -------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """From here on signals wait for the run to look at them; Lightning's handlers are left out."""
        connector: Any = trainer._signal_connector  # private: seen on lightning 2.6.6
        connector.register_signal_handlers = connector.teardown = lambda: None
        self._loops, self._resumed, self._saving = None, False, False
        environment = trainer._accelerator_connector.cluster_environment  # private, as above
        warning = []
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue and stage == "fit":
            warning = [environment.requeue_signal or signal.SIGUSR1]
        self._requeue_codes = [128 + number for number in warning]
        self._handlers = listening(*warning)
        self._handlers.__enter__()
        _note.waiting = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Signals raise at once again, as outside of runs."""
        self._release()

    def _release(self) -> None:
        if self._handlers is not None:
            self._handlers.__exit__(None, None, None)
            self._handlers, _note.waiting = None, False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """After a batch, with all that belongs to it: hooks, logging, validation, the epoch's end."""
        if batch_idx % trainer.accumulate_grad_batches == 0:  # gathered gradients would be lost
            stop_if_asked(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before a validation: a resumed run does it from its beginning."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._loops = _in_first_validation_batch(trainer.fit_loop.state_dict())
        if trainer.state.fn == TrainerFn.FITTING:
            stop_if_asked(trainer)

    def _after_evaluation_batch(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        # no agreement here: processes may have different numbers of batches
        averaged = any(isinstance(c, WeightAveraging) for c in trainer.callbacks)  # type: ignore[attr-defined]
        if trainer.state.fn == TrainerFn.FITTING and (trainer.world_size > 1 or averaged):
            return  # averaged weights are in the place of the trained ones until the validation ends
        if _note.code:
            raise Interrupted(_note.code)

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _after_evaluation_batch

    # -- where a resumed run goes on ----------------------------------------------------------------------------------

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A resumed run: until its first batch is done, the checkpoint that it came from is the last one."""
        self._resumed = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A new run: nothing is done yet."""
        if not self._resumed:
            self._loops = _before_first_batch(trainer.fit_loop.state_dict(), trainer.accumulate_grad_batches)

    def _note_loops(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._loops = trainer.fit_loop.state_dict()

    on_train_batch_end = on_validation_end = on_train_epoch_end = _note_loops

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """On the way out the loops stand where they were noted, not in the middle of something."""
        if self._saving:
            checkpoint["loops"]["fit_loop"] = self._loops

    # -- leaving ------------------------------------------------------------------------------------------------------

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write ``last.ckpt`` if a signal is the reason, and nothing else can interrupt."""
        if not _note.code:
            self._release()
            return
        _note.leaving = True
        try:
            if trainer.state.fn == TrainerFn.FITTING and _note.presses <= PATIENCE and self._loops is not None:
                self._saving = True
                _save_last(trainer)
            requeue = _note.code in self._requeue_codes
            if requeue and trainer.is_global_zero:
                _requeue()
            if isinstance(exception, Interrupted) and (requeue or not trainer.is_global_zero):
                exception.code = 0  # Lightning kills the first process, perhaps while it saves, when another one fails
        finally:
            self._saving = False
            self._release()


def _save_last(trainer: Trainer) -> None:
    """Write the last checkpoint of the run's first ``ModelCheckpoint``, without waiting for other processes."""
    keeper = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
    if keeper is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    path = os.path.join(keeper.dirpath or trainer.default_root_dir, f"{keeper.CHECKPOINT_NAME_LAST}.ckpt")
    # Trainer.save_checkpoint ends with a barrier, which a process that failed for another reason never reaches
    trainer.strategy.save_checkpoint(trainer._checkpoint_connector.dump_checkpoint(), path)


def _in_first_validation_batch(loops: dict[str, Any]) -> dict[str, Any]:
    """The loops' state as if the first batch of the validation were under way: what Lightning restarts as a whole."""
    for progress in loops["epoch_loop.val_loop.batch_progress"].values():
        if isinstance(progress, dict):
            progress["ready"] = progress["started"] = progress["completed"] + 1
            progress["processed"] = progress["completed"]
    return loops


def _before_first_batch(loops: dict[str, Any], accumulate: int) -> dict[str, Any]:
    """The loops' state of a run that did nothing yet, as a batch that was fetched but not begun.

    Lightning takes all zeros for the end of an epoch. On restart it counts the step of the unfinished batch.
    """
    for part in ("total", "current"):
        loops["epoch_loop.batch_progress"][part]["ready"] = accumulate
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = 0
    return loops


def _requeue() -> None:
    """Ask SLURM to start this job, or this task of its array, again."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if not re.fullmatch(r"[0-9_]+", job):
        rank_zero_warn(f"not requeued: SLURM_JOB_ID={job!r} is no job number")
        return
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as ex:
        rank_zero_warn(f"not requeued: scontrol: {ex}")
        return
    if done.returncode:
        rank_zero_warn(f"not requeued: scontrol requeue {job}: {done.stderr.strip() or done.returncode}")
