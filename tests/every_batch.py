"""Checkpoints after every batch, for tests that resume from each of them."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class SaveAfterEveryBatch(Callback):
    """Writes ``01.ckpt``, ``02.ckpt`` and so on.

    Args:
        folder: where to.

    Attributes:
        paths: of those that were written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: list[Path] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.paths.append(self.folder / f"{len(self.paths) + 1:02d}.ckpt")
        trainer.save_checkpoint(self.paths[-1])
