"""How long a run will be, asked before its optimisers are made."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def batches_per_epoch(trainer: Trainer) -> float:
    """Batches of a training epoch in this process, or infinity.

    Args:
        trainer: in a fit; a limit on its batches counts.
    """
    with _loaders_made_again(trainer):
        trainer.fit_loop.setup_data()
        return trainer.num_training_batches


def steps_of_run(trainer: Trainer) -> float:
    """Steps that an optimiser will make in the whole run, or infinity where nothing ends it.

    Args:
        trainer: in a fit.
    """
    with _loaders_made_again(trainer):
        return trainer.estimated_stepping_batches


@contextmanager
def _loaders_made_again(trainer: Trainer) -> Iterator[None]:
    """Forget loaders that are made too early.

    Lightning 2.6 tells loaders where a checkpoint left them when it makes them. Who asks for their length in
    ``configure_optimizers`` has them made before the checkpoint is restored: a run that goes on in the middle of an
    epoch would begin that epoch's samples anew.
    """
    early = trainer.fit_loop._combined_loader is None  # private: there is no other way to ask, or to forget
    try:
        yield
    finally:
        if early:
            trainer.fit_loop._combined_loader = None


def whole_steps(batches: float, accumulated: int) -> int:
    """Optimiser steps of an epoch.

    Args:
        batches: of the epoch.
        accumulated: batches of a step.

    Raises:
        ValueError: there is no end to the batches.

    Example:
        >>> whole_steps(5, accumulated=2)
        3
    """
    if not math.isfinite(batches):
        raise ValueError("a schedule in steps (warmup_epochs, max_steps) needs a training loader of known length")
    return max(1, math.ceil(batches / accumulated))
