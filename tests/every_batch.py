"""Fits that stop and go on, for tests of what data modules bring back: after every batch, or after a failed one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import OnExceptionCheckpoint


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


def gone_on_after_every_batch(
    module: type[LightningModule], data: Callable[[], LightningDataModule], make_trainer: Callable, folder: Path
) -> list[Any]:
    """Two epochs at once, which are also gone on with from after each of their batches.

    Args:
        module: its ``batches`` are those that it was trained on.
        data: makes the data module of each fit.
        make_trainer: the fixture.
        folder: gets the checkpoints.

    Returns:
        The batches of the fit at once.
    """

    def fit(*callbacks: Callback, ckpt_path: Path | None = None) -> list[Any]:
        seen = module()
        trainer = make_trainer(max_epochs=2, limit_val_batches=0, callbacks=list(callbacks))
        trainer.fit(seen, data(), ckpt_path=ckpt_path, weights_only=False)
        return seen.batches

    saves = SaveAfterEveryBatch(folder)
    whole = fit(saves)
    assert len(saves.paths) == len(whole)
    for done, path in enumerate(saves.paths, 1):
        rest = fit(ckpt_path=path)
        assert rest == whole[done:], f"{path.name}: {rest} is not the rest of {whole}"
    return whole


def failed_and_gone_on(
    module: Callable[..., LightningModule],
    data: Callable[[], LightningDataModule],
    make_trainer: Callable,
    folder: Path,
) -> None:
    """An epoch that fails in a step and is gone on with shows each batch once, the failed one in the second part.

    Args:
        module: raises in the step ``fail_at``; its ``batches`` are those that it was trained on.
        data: makes the data module of each fit.
        make_trainer: the fixture.
        folder: gets the checkpoint.
    """
    whole, broken, resumed = module(), module(fail_at=2), module()
    options = {"max_epochs": 1, "limit_val_batches": 0}
    make_trainer(**options).fit(whole, data())
    trainer = make_trainer(**options, callbacks=[OnExceptionCheckpoint(folder, "last")], enable_checkpointing=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.fit(broken, data())
    make_trainer(**options).fit(resumed, data(), ckpt_path=folder / "last.ckpt", weights_only=False)
    assert len(broken.batches) == 2
    parts = broken.batches + resumed.batches
    assert parts == whole.batches, f"{parts} is not {whole.batches}"
