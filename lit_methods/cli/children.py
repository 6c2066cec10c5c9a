"""The other processes of a ddp run, which Lightning starts and never waits for."""

import subprocess
import time
from typing import Any

from lightning.pytorch import Trainer


def end_children(trainer: Trainer, patience: float) -> None:
    """Wait for the processes that this one started, and kill those that do not end: they hang in a collective.

    Args:
        trainer: the trainer that started them, if it did.
        patience: seconds, for all of them together.
    """
    started: Any = getattr(trainer.strategy.launcher, "procs", [])  # of lightning 2.6's subprocess launcher
    children: list[subprocess.Popen] = list(started)
    started.clear()  # else its observer would kill this process, too, when it sees that one was killed
    deadline = time.monotonic() + patience
    for child in children:
        try:
            child.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
