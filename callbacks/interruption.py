"""SIGTERM, Ctrl-C and SLURM's warning end a run after the batch at hand, on all processes, with a checkpoint.

Lightning's own handlers run collectives inside the handler, or raise wherever the signal happened to arrive. Here a
signal only leaves a note; the run looks at it where every process can stop and where a resumed run goes on exactly.
"""

from __future__ import annotations

import os
import signal
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

from lit_methods import slurm

T = TypeVar("T")

STOPPING = (signal.SIGINT, signal.SIGTERM)
CHILD: int | None = getattr(signal, "SIGCHLD", None)  # not on Windows
PATIENCE = 2  # presses of Ctrl-C that wait for the end of the batch; the next one does not


class Interrupted(SystemExit):
    """A signal ended the run; ``code`` is the exit code, 128 and the signal's number (130 or 143)."""


class _Note:
    """What the signals to this process asked for; there is one, as there is one set of handlers."""

    code = 0  # 128 and the number of the signal, 0 as long as there was none
    presses = 0
    waiting = False  # whether the run looks at the note by itself; else the handler raises
    leaving = False  # whether the run is on its way out; nothing interrupts that
    agreed = False  # whether all processes stop for it
    requeued: bool | None = None  # whether SLURM starts the job again; None as long as nobody asked
    process = 0  # that listens, 0 afterwards; forked workers inherit the handlers, and nothing is asked of them
    child_handler: Any = None  # torch's, if it was put aside

    @property
    def asked(self) -> int:
        """``code`` as long as this process listens: what ended an earlier run is no wish of the next."""
        return self.code if self.process == os.getpid() else 0

    def take(self, signum: int, frame: FrameType | None) -> None:
        """The handler: note it, and raise only where nobody would look."""
        if self.leaving or os.getpid() != self.process:
            return
        self.code = max(self.code, 128 + signum)
        # The same signal to the whole group kills the loaders' workers, and torch's handler would raise for them in
        # the middle of a step. Python runs handlers in the order of their numbers, so this comes first.
        if CHILD is not None and self.child_handler is None:
            self.child_handler = signal.signal(CHILD, signal.SIG_DFL)
        self.presses += signum == signal.SIGINT
        if self.presses == 1 and signum == signal.SIGINT and self.waiting:
            os.write(2, b"stopping after this batch; two more Ctrl-C stop at once, without a checkpoint\n")
        if not self.waiting or self.presses > PATIENCE:
            raise Interrupted(self.code)


_note = _Note()


def interrupted_by() -> int:
    """128 and the number of the signal that ended the run; 0 if there was none."""
    return _note.code


def exit_code(first: bool) -> int:
    """With which code a process leaves after a signal.

    Args:
        first: whether it is the first of the run's processes.

    Returns:
        128 and the signal's number; 0 where the job was requeued, and for the other processes where all stop together:
        Lightning kills the first one, perhaps while it saves, when another one fails.
    """
    if first and _note.code - 128 == slurm.WARNING and _note.requeued is None:
        _note.requeued = slurm.requeue()
    return 0 if _note.requeued or (_note.agreed and not first) else _note.code


@contextmanager
def listening(*signals: int) -> Iterator[None]:
    """Note SIGINT and SIGTERM, and ``signals``, instead of dying of them; afterwards everything is as before.

    Outside the Trainer's loops, where nothing is there to be saved, they raise :class:`Interrupted` at once.
    """
    if threading.current_thread() is not threading.main_thread():  # handlers cannot be set there
        yield
        return
    before = {number: signal.getsignal(number) for number in (*STOPPING, *signals)}
    outermost = before[signal.SIGTERM] != _note.take
    if outermost:
        vars(_note).clear()  # back to the defaults of the class
        _note.process = os.getpid()
    for number in before:
        signal.signal(number, _note.take)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if outermost:
            _note.process = 0
            if CHILD is not None and _note.child_handler is not None:
                signal.signal(CHILD, _note.child_handler)


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
        if _note.asked:
            break
        yield batch
    stop_if_asked(trainer)


def stop_if_asked(trainer: Trainer) -> None:
    """Raise on all processes if a signal came to any; to be called by all of them at the same place.

    Raises:
        Interrupted: with the exit code that the signal stands for.
    """
    code = _note.asked
    if trainer.world_size > 1:
        code = int(trainer.strategy.reduce(torch.tensor(code, device=trainer.strategy.root_device), reduce_op="max"))
    if code:
        _note.code, _note.agreed = code, True
        raise Interrupted(code)


def leave_if_asked() -> None:
    """Raise if a signal came to this process, without asking the others: inside a long batch of an evaluation.

    Raises:
        Interrupted: with the exit code that the signal stands for.
    """
    if _note.asked:
        raise Interrupted(_note.asked)


class Interruption(Callback):
    """End the run after the batch at hand when a signal asks for it, and write the last checkpoint.

    The command line adds one to every run and stands it first. In a script of your own it works alone: the process
    leaves with exit code 130 (Ctrl-C) or 143 (SIGTERM). A second Ctrl-C changes nothing, a third stops at once and
    saves nothing. Several processes stop together after a batch, whichever of them got the signal; they finish a
    validation first, since not all have equally many batches of it. In SLURM jobs that requeue themselves
    (``SLURMEnvironment``), the warning signal (``--signal=SIGUSR1@120``) writes the checkpoint and calls
    ``scontrol requeue``.

    The checkpoint says where the loops stood at the last point from which a resumed run is exact: after a batch, at the
    beginning or the end of a validation, after an epoch.

    Args:
        requeue: whether a SLURM job asks to be started again; ``False`` leaves its warning signal to others.
    """

    def __init__(self, requeue: bool = True) -> None:
        self.requeue = requeue
        self._loops: dict[str, Any] | None = None
        self._step = 0  # at which they were noted
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
        requeues = self.requeue and isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        self._handlers = listening(*([slurm.WARNING] if requeues and slurm.WARNING else []))
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
            self._remember(trainer, _in_first_validation_batch(trainer.fit_loop.state_dict()))
        if trainer.state.fn == TrainerFn.FITTING:
            stop_if_asked(trainer)

    def _after_evaluation_batch(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if not (code := _note.asked):
            return
        # no agreement here: processes may have different numbers of batches
        averaged = any(isinstance(c, WeightAveraging) for c in trainer.callbacks)  # type: ignore[attr-defined]
        if trainer.state.fn == TrainerFn.FITTING and (trainer.world_size > 1 or averaged):
            return  # averaged weights are in the place of the trained ones until the validation ends
        raise Interrupted(code)

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _after_evaluation_batch

    # -- where a resumed run goes on ----------------------------------------------------------------------------------

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A resumed run: until its first batch is done, the checkpoint that it came from is the last one."""
        self._resumed = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A new run: nothing is done yet."""
        if not self._resumed:
            loops = trainer.fit_loop.state_dict()
            self._remember(trainer, _before_first_batch(loops, trainer.accumulate_grad_batches))

    def _note_loops(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._remember(trainer, trainer.fit_loop.state_dict())

    def _remember(self, trainer: Trainer, loops: dict[str, Any]) -> None:
        self._loops, self._step = loops, trainer.global_step

    on_train_batch_end = on_validation_end = on_train_epoch_end = _note_loops

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """On the way out the loops stand where they were noted, not in the middle of something."""
        if self._saving:
            checkpoint["loops"]["fit_loop"] = self._loops

    # -- leaving ------------------------------------------------------------------------------------------------------

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write ``last.ckpt`` if a signal is the reason, and nothing else can interrupt."""
        if not _note.asked:
            self._release()
            return
        _note.leaving = True
        try:
            exact = self._loops is not None and self._step == trainer.global_step  # else a step was half done
            if trainer.state.fn == TrainerFn.FITTING and _note.presses <= PATIENCE and exact:
                self._saving = True
                _save_last(trainer)
            if isinstance(exception, Interrupted):
                exception.code = exit_code(trainer.is_global_zero)
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
    trainer.strategy.save_checkpoint(trainer._checkpoint_connector.dump_checkpoint(weights_only=False), path)
    keeper.last_model_path = path


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
