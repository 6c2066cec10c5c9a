"""TrialRounds: what searches have in common that ask for many trainings, learn of them, and ask for more."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.interruption import leave_if_asked
from lit_methods.bpe_mip.jobs import Job, Record


class TrialRounds(Callback):
    """Hands rounds of jobs to ``TrialDataModule``, waits until each has a record, and asks for the next round.

    An epoch of the Trainer is what is pending of a round: all of it, or, where ``limit_train_batches`` leaves some or
    a trial failed for the first time, the rest in the next epoch. The fit ends when no round follows. What was decided
    is in the checkpoint; a job that has a record is not made again.

    Subclasses say what the jobs are: :meth:`first_jobs` and, from the records of a round, :meth:`next_jobs`. Both run
    on every process and have to come to the same, so they depend on records and seeds alone.
    """

    def __init__(self) -> None:
        self.jobs: list[Job] = []  # the round at hand
        self.round = 0  # rounds begun
        self._resumed = False

    @abstractmethod
    def first_jobs(self, trainer: Trainer, module: Any) -> list[Job]:
        """The jobs of the first round."""

    @abstractmethod
    def next_jobs(self, trainer: Trainer, module: Any, records: list[Record]) -> list[Job]:
        """Learn from a round, whose records come in the order of its jobs; the next one's jobs, ``[]`` at the end."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Take over what the search itself had learnt, which it added to :meth:`state_dict`."""

    # -- the Trainer's hooks ------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse modules and Trainers that cannot do this, before anything runs."""
        if not hasattr(pl_module, "job"):
            raise ValueError(f"{self.state_key} needs a module that trains jobs, such as BPEBenchmark")
        if stage == "fit" and trainer.reload_dataloaders_every_n_epochs != 1:  # type: ignore[attr-defined]
            raise ValueError(
                f"{type(self).__name__} has other jobs in every epoch: set trainer.reload_dataloaders_every_n_epochs=1"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, or go on where the checkpoint was written."""
        module: Any = pl_module
        if trainer.world_size == 1:
            module.watch = leave_if_asked  # several processes stop together, after their trials
        if not self._resumed:
            self._begin_round(self.first_jobs(trainer, module))
        self._hand_out(trainer, module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of an epoch, see whether the round is complete."""
        if trainer.is_last_batch:  # epoch hooks can be lost on resume, and then the next loader is built already
            self._hand_out(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nobody looks in any more."""
        module: Any = pl_module
        module.watch = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As at the end."""
        self.on_fit_end(trainer, pl_module)

    @property
    def finished(self) -> bool:
        """Whether the search is over."""
        return self.round > 0 and not self.jobs

    def _hand_out(self, trainer: Trainer, module: Any) -> None:
        pending = [job for job in self.jobs if module.records.is_pending(job)]
        while self.jobs and not pending:
            records = [module.records.find(job) for job in self.jobs]
            self._refuse_nothing_but_failures(records)
            self._begin_round(self.next_jobs(trainer, module, records))
            pending = [job for job in self.jobs if module.records.is_pending(job)]
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        data.set_jobs([job.to_dict() for job in pending])
        if not self.jobs:
            trainer.should_stop = True

    def _begin_round(self, jobs: list[Job]) -> None:
        self.jobs = jobs
        self.round += 1

    def _refuse_nothing_but_failures(self, records: list[Record]) -> None:
        if all(record["status"] == "failed" for record in records):
            raise ValueError(f"all {len(records)} trials of round {self.round} failed: {records[0]['error']}")

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {"jobs": [job.to_dict() for job in self.jobs], "round": self.round}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; one that knows less than this search, such as the best one of a fit, is let be."""
        self._resumed = True
        if state_dict["round"] > self.round:
            self.jobs = [Job.from_dict(plain) for plain in state_dict["jobs"]]
            self.round = state_dict["round"]
            self.restore(state_dict)


def accuracies(records: list[Record]) -> list[float]:
    """Of each record; NaN for trials that failed."""
    return [record["accuracy"] if record["status"] == "done" else float("nan") for record in records]
