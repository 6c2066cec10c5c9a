"""The Trainer of a run: the user's arguments, and what every run has."""

import sys
from typing import Any

from lightning.fabric.plugins.io import CheckpointIO, TorchCheckpointIO
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger

from callbacks.interruption import Interruption
from callbacks.learning_rate import LearningRateOnResume
from callbacks.nan_guard import NaNGuard
from callbacks.random_state import RandomState
from lit_methods.checkpoint_io import SafeCheckpointIO
from lit_methods.cli.checkpoints import RunCheckpoint
from lit_methods.cli.start import Start


def make_trainer(
    config: dict[str, Any], entry: str, loggers: list[Logger], start: Callback, checkpoint: RunCheckpoint | None
) -> Trainer:
    """Build the Trainer of one command.

    Args:
        config: arguments of the Trainer as the user gave them, ``default_root_dir`` set to the run's directory.
        entry: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
        loggers: every run's; those in ``config`` follow them.
        start: :class:`lit_methods.cli.start.Start`.
        checkpoint: keeps the checkpoints of a fit; ``None`` keeps none.
    """
    terminal = sys.stdout.isatty()
    callbacks = _callbacks(config.get("callbacks"), entry, start)
    bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
    if config.get("enable_progress_bar") is None and not bar:
        config["enable_progress_bar"] = terminal
    if config.get("enable_model_summary") is None:
        config["enable_model_summary"] = terminal
    if entry != "fit":
        config["enable_checkpointing"] = False
    if checkpoint and isinstance(start, Start):
        checkpoint.recipe = start.cli.recipe
    config["callbacks"] = [*callbacks, *([checkpoint] if checkpoint else [])]
    given = [logger for logger in _listed(config.get("logger")) if isinstance(logger, Logger)]  # true, false: none
    config["logger"] = [*loggers, *given]
    trainer = Trainer(**config)
    own = any(isinstance(plugin, CheckpointIO) for plugin in _listed(config.get("plugins")))
    if not own and type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # some strategies bring theirs
        trainer.strategy.checkpoint_io = SafeCheckpointIO()
    return trainer


def _callbacks(given: Any, entry: str, start: Callback) -> list[Callback]:
    """Those that the user gave, and those of every run that are not among them."""
    from callbacks.report import RunReport  # draws with matplotlib: imported with the first run, not with the parser

    callbacks = _listed(given)
    added = [RunReport(), LearningRateOnResume(), RandomState(), start, *([NaNGuard()] if entry == "fit" else [])]
    callbacks += [new for new in added if not any(type(new) is type(old) for old in callbacks)]
    if not any(isinstance(c, Interruption) for c in callbacks):  # first: nobody begins something after a signal
        callbacks.insert(0, Interruption(requeue=entry == "fit"))
    return callbacks


def _listed(value: Any) -> list[Any]:
    """What Lightning takes alone or as a list, as a list of its own."""
    return list(value) if isinstance(value, list) else [] if value is None else [value]
