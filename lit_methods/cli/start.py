"""The moment at which a run begins: until then it leaves nothing behind, and its faults are the user's."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng

from callbacks.interruption import interrupted_by
from lit_methods import slurm

if TYPE_CHECKING:
    from lit_methods.cli.parsing import RunCLI


class Start(Callback):
    """Notes that the first batch is due, and writes ``config.yaml`` then: a run that never began leaves nothing.

    The sanity check does not count: what fails there is nearly always what the user gave.

    Args:
        cli: the run.
    """

    def __init__(self, cli: RunCLI) -> None:
        self.cli = cli
        self.began = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Mark the run's directory for SLURM; what is wrong with the test data is said before the training, not after.

        By now all processes know where the run writes; one that came late would take the mark for an older one.
        """
        if self.cli.entry == "fit" and trainer.is_global_zero:
            slurm.claim(self.cli.directory.path)
        if stage == "fit" and self.cli.datamodule is not None and a_test_follows(self.cli, trainer):
            # a trial: what the setup binds is gone afterwards (what it puts into a dict of stages stays, which saves a
            # reading), and random numbers go on as if it had not been
            with isolate_rng(include_cuda=False):
                copy.copy(self.cli.datamodule).setup("test")

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if not self.began and trainer.is_global_zero:
            self.cli.save_config()
        self.began = True

    on_train_start = on_validation_start = on_test_start = on_predict_start = _begin

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A signal before the first batch may have left a checkpoint, which is found by its configuration."""
        if interrupted_by() and trainer.is_global_zero and any(self.cli.directory.path.glob("checkpoints/*.ckpt")):
            self.cli.save_config()


def a_test_follows(cli: RunCLI, trainer: Trainer) -> bool:
    """Whether a fit is followed by a test: the method has one, there are data for it, some of them are wanted
    (``limit_test_batches``), and it is no ``fast_dev_run``."""
    source = cli.datamodule or cli.model
    can = is_overridden("test_step", cli.model) and is_overridden("test_dataloader", source)
    wanted = getattr(trainer, "limit_test_batches", 1) != 0 and not trainer.fast_dev_run  # type: ignore[attr-defined]
    return can and wanted
