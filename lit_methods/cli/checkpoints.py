"""Checkpoints of a run: what is kept, and what a file says about where it was written."""

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_methods.checkpoint_io import readable_size
from lit_methods.contract import run_record

BEFORE_LAST = "previous.ckpt"


class RunCheckpoint(ModelCheckpoint):
    """Keep the best checkpoints and the last one, in ``checkpoints/`` of the run's directory.

    Lightning's own, except: ``last.ckpt`` is written after every epoch and validation (Lightning skips it when the
    best ones did not change), the one before it stays as ``previous.ckpt``, and scores survive a change of directory.
    Without ``monitor`` there are these two alone, since the best one would be a copy of the last.

    Args:
        monitor: log key that decides which checkpoint is best, such as ``val/top1``; ``None`` keeps the last alone.
        mode: whether the smallest or the largest value is the best.
        save_top_k: how many of the best are kept; -1 keeps all, 0 none.
        save_last: keep ``last.ckpt``, and as ``previous.ckpt`` the one before it, for the case that it gets damaged.
        every_n_train_steps: save every so many optimiser steps instead of after validation.
        every_n_epochs: save every so many epochs; the best are looked for in these alone.
        train_time_interval: save at intervals of time.
        filename: file name without suffix; values in braces are filled in.
        save_weights_only: leave out what resuming needs.
        save_on_train_epoch_end: look for the best after training epochs instead of after validation.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        save_top_k: int = 1,
        save_last: bool = True,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        train_time_interval: timedelta | None = None,
        filename: str = "epoch={epoch}-step={step}",
        save_weights_only: bool = False,
        save_on_train_epoch_end: bool | None = None,
    ) -> None:
        super().__init__(
            monitor=monitor,
            mode=mode,
            save_top_k=0 if monitor is None and save_last and save_top_k == 1 else save_top_k,
            save_last=save_last,
            every_n_train_steps=every_n_train_steps,
            every_n_epochs=every_n_epochs,
            train_time_interval=train_time_interval,
            filename=filename,
            save_weights_only=save_weights_only,
            save_on_train_epoch_end=save_on_train_epoch_end,
            auto_insert_metric_name=False,  # keys have slashes, which would become folders
            enable_version_counter=False,  # a run that goes on replaces its own files
        )
        self.recipe: str | None = None  # of the run, which its checkpoints name
        self._last_writes = 0

    @property
    def state_key(self) -> str:
        """Under which name the scores are kept: those of another ``every_n_...`` are still ours."""
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look for room on the disk before a long fit begins.

        Raises:
            ValueError: not even the fewest checkpoints fit.
        """
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            folder = Path(str(self.dirpath))
            there = next(path for path in (folder, *folder.parents) if path.exists())
            free = trainer.strategy.broadcast(shutil.disk_usage(there).free)  # all processes stop, or none
            self.check_room(folder, free, pl_module)

    def check_room(self, folder: Path, free: int, module: LightningModule) -> None:
        """Compare the room on a disk with what the checkpoints of a module will take; warn where it may not do.

        Args:
            folder: where they go.
            free: bytes.
            module: what is saved.

        Raises:
            ValueError: not even the fewest fit.
        """
        weights = sum(t.numel() * t.element_size() for t in module.state_dict().values() if isinstance(t, Tensor))
        best = self.monitor is not None and self.save_top_k != 0
        least = weights * (2 + best)  # the last, perhaps the best, and the one being written
        replaced = sum(file.stat().st_size for file in folder.glob("*.ckpt"))  # of a run that goes on
        if free + replaced < least:
            raise ValueError(
                f"{readable_size(free)} free in {folder}, but the checkpoints of this run take {readable_size(least)} "
                "or more; make room, or name another --run_dir"
            )
        full = weights if self.save_weights_only else 3 * weights  # up to two moments per weight, as Adam has them
        files = max(self.save_top_k, 1) + 3  # the best ones, the last, the one before, and the one being written
        if free < files * full:
            warnings.warn(
                f"{readable_size(free)} free in {folder}; the checkpoints of this run may take "
                f"{readable_size(files * full)}",
                stacklevel=2,
            )

    def best_path(self) -> str | None:
        """The checkpoint to evaluate: the best since the network last changed its shape, else the last, else none."""
        for path in (self.best_model_path, self.last_model_path):
            if path and Path(path).is_file():
                return path
        return None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say what the run is, under ``about``, also for modules that are not ``Described``."""
        checkpoint["about"] = run_record(trainer, pl_module, checkpoint)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over scores and best checkpoints, also those of another directory (Lightning drops them).

        Files of another directory are remembered but never removed; entries whose file is gone are dropped, since
        nothing could be evaluated under their score.
        """
        paths = {path: self._present(path) for path in [*state_dict["best_k_models"], state_dict["best_model_path"]]}
        best_k = {new: score for old, score in state_dict["best_k_models"].items() if (new := paths[old])}
        super().load_state_dict(state_dict | {"dirpath": self.dirpath, "best_k_models": best_k})
        self.best_model_path = paths[state_dict["best_model_path"]]
        worst_first = sorted(best_k, key=lambda path: float(best_k[path]), reverse=self.mode == "min")
        self.kth_best_model_path = worst_first[0] if worst_first else ""

    def _present(self, path: str) -> str:
        """The file itself, or the one of that name here (the run's directory was moved), or nothing."""
        here = Path(self.dirpath or "", Path(path).name)
        return path if not path or Path(path).is_file() else str(here) if here.is_file() else ""

    # Everything below makes last.ckpt the last one. Private members of Lightning 2.6 used: _save_last_checkpoint,
    # _monitor_candidates, _should_save_on_train_epoch_end, _last_global_step_saved, _defer_save_until_validation.

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where ``every_n_train_steps`` says so; the last one also when the monitored value is yet to come."""
        if trainer.fit_loop._should_accumulate():  # a checkpoint does not hold the gradients gathered so far
            return
        pending, self._defer_save_until_validation = self._defer_save_until_validation, False
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._defer_save_until_validation:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        self._defer_save_until_validation |= pending

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after the epoch, the last one in any case."""
        before = self._last_writes
        super().on_train_epoch_end(trainer, pl_module)
        if self._last_writes == before:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation inside an epoch, the last one in any case."""
        before = self._last_writes
        super().on_validation_end(trainer, pl_module)
        if self._last_writes == before and not self._should_save_on_train_epoch_end(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Any]) -> None:
        if trainer.fast_dev_run or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:  # type: ignore[attr-defined]
            return
        step = self._last_global_step_saved
        with self._keeping_the_one_before(trainer):
            super()._save_last_checkpoint(trainer, monitor_candidates)
        self._last_global_step_saved = step  # else the best one of the same step would count as saved already
        self._last_writes += 1

    @contextmanager
    def _keeping_the_one_before(self, trainer: Trainer) -> Iterator[None]:
        """``last.ckpt`` becomes ``previous.ckpt`` once another one has taken its place; it is never missing meanwhile.

        One that this run neither wrote nor started from is not kept: it may be the damaged one.
        """
        last = Path(str(self.dirpath), f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}")
        aside = last.with_name(".previous")
        started_from = trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve() == last.resolve()
        ours = self._last_writes > 0 or started_from
        if not (self.save_last and trainer.is_global_zero and ours and last.is_file()):
            yield
            return
        aside.unlink(missing_ok=True)
        try:
            os.link(last, aside)  # a second name costs nothing
        except OSError:  # a file system without links
            shutil.copy2(last, aside)
        try:
            yield
        except BaseException:
            aside.unlink()
            raise
        os.replace(aside, last.with_name(BEFORE_LAST))


def resumed_step(checkpoint: dict[str, Any]) -> int:
    """The step at which logging goes on: rows of ``metrics.csv`` from it on will be written anew.

    Not ``global_step``, which counts optimiser steps and is one too many in the middle of an epoch.
    """
    loop = checkpoint["loops"]["fit_loop"]
    batch, validation = (loop[f"epoch_loop.{name}batch_progress"]["current"] for name in ("", "val_loop."))
    unfinished = batch["ready"] - batch["completed"] + validation["ready"] - validation["completed"]
    return loop["epoch_loop.state_dict"]["_batches_that_stepped"] + unfinished
