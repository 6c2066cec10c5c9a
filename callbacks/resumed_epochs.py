"""What Lightning gets wrong where a run is resumed behind the last batch of an epoch and the next one is longer."""

from typing import Any

from lightning.pytorch import Trainer

ENOUGH = 1 << 40  # batches; no epoch has more


def close_finished_epoch(trainer: Trainer) -> None:
    """Count all batches of the epoch that the checkpoint was written behind as done; for ``on_train_start``.

    Lightning 2.6 holds their number against the loader at hand, which may already be that of the next epoch, or will be
    by the time that it looks.

    Args:
        trainer: of a run that was resumed.
    """
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress
    if batches.is_last_batch:
        for name in ("ready", "started", "processed", "completed"):
            setattr(batches.current, name, getattr(batches.current, name) + ENOUGH)
