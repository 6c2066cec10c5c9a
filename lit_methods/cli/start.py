"""The moment at which a run begins: until then it leaves nothing behind, and its faults are the user's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer

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
        """By now all processes know where the run writes; one that came late would take the mark for an older one."""
        if self.cli.entry == "fit" and trainer.is_global_zero:
            slurm.claim(self.cli.directory.path)

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
