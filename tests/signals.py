"""A callback that sends signals to its own run, at a place and not at a time."""

import os
import signal
from typing import Any

from lightning.pytorch import Callback, Trainer


class SendSignal(Callback):
    """Send a signal once, in the middle of something.

    Args:
        name: ``"SIGTERM"``, ``"SIGINT"``, ...
        hook: the callback hook in which it is sent.
        step: not before this many optimiser steps.
        times: how often, one right after the other.
        rank: only in this process; -1 is every one.
        group: to the whole process group, workers included.
    """

    def __init__(
        self, name: str, hook: str = "on_before_optimizer_step", step: int = 0, times: int = 1, rank: int = -1,
        group: bool = False,
    ) -> None:  # fmt: skip
        self.number, self.step, self.times, self.rank, self.group = signal.Signals[name], step, times, rank, group
        setattr(self, hook, self._send)

    def _send(self, trainer: Trainer, *args: Any) -> None:
        if trainer.sanity_checking or trainer.global_step < self.step or self.times == 0:
            return
        if self.rank in (-1, trainer.global_rank):
            while self.times:
                self.times -= 1
                send_now(self.number, self.group)


def send_now(number: int, group: bool = False) -> None:
    """Send a signal to this process, or to its whole group."""
    if group:
        os.killpg(os.getpgid(0), number)
    else:
        os.kill(os.getpid(), number)


class Fail(Callback):
    """Raise in one process, in the middle of a training batch.

    Args:
        rank: which.
        step: after so many optimiser steps.
    """

    def __init__(self, rank: int, step: int = 2) -> None:
        self.rank, self.step = rank, step

    def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == self.step:
            raise RuntimeError("one process fails")
