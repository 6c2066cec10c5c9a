"""TrialRounds: what searches have in common that ask for many trainings, learn of them, and ask for more."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.interruption import leave_if_asked
from callbacks.resumed_epochs import close_finished_epoch
from lit_methods.bpe_mip.jobs import Job, Record
from lit_methods.functional.processes import gather_objects


class TrialRounds(Callback):
    """Hands rounds of jobs to ``TrialDataModule``, waits until each has a record, and asks for the next round.

    An epoch of the Trainer is a round, each of its jobs once; where ``limit_train_batches`` leaves some or a trial
    failed for the first time, the next epoch is the rest. The fit ends when no round follows. What was decided is in
    the checkpoint. A job that has a record on the disk is handed out too, but not made again: the module looks at each
    job, so that it learns of the best network, and processes never go by what another run writes meanwhile.

    Subclasses say what the jobs are: :meth:`first_jobs` and, from the records of a round, :meth:`next_jobs`. Both run
    on every process and have to come to the same, so they depend on records and seeds alone.
    """

    def __init__(self) -> None:
        self.jobs: list[Job] = []  # the round at hand
        self.round = 0  # rounds begun
        self.handed: list[Job] = []  # the epoch at hand
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
            self._begin_round(self.first_jobs(trainer, module), module)
        self._hand_out(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A checkpoint of an epoch's end: all batches of it are done, also where the next one has more of them."""
        if self._resumed:
            close_finished_epoch(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of an epoch, see whether the round is complete."""
        if trainer.is_last_batch:  # epoch hooks can be lost on resume, and then the next loader is built already
            self._next_epoch(trainer, pl_module)
            self._hand_out(trainer)

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

    def _next_epoch(self, trainer: Trainer, module: Any) -> None:
        records = [module.records.known.get(module.records.key(job)) for job in self.jobs]
        pending = [job for job, record in zip(self.jobs, records, strict=True) if not module.records.is_final(record)]
        if pending:
            self.handed = _different(pending, module)
            return
        self._refuse_nothing_but_failures(module)
        jobs = self.next_jobs(trainer, module, records)
        if len(set(gather_objects(" ".join(job.key() for job in jobs)))) > 1:  # unlike machines round unlike
            raise RuntimeError(
                f"the processes came to different decisions after round {self.round}; run them on machines of one kind"
            )
        self._begin_round(jobs, module)

    def _begin_round(self, jobs: list[Job], module: Any) -> None:
        self.jobs, self.handed = jobs, _different(jobs, module)
        self.round += 1

    def _hand_out(self, trainer: Trainer) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        data.set_jobs([job.to_dict() for job in self.handed])
        if not self.jobs:
            trainer.should_stop = True

    def _refuse_nothing_but_failures(self, module: Any) -> None:
        """One failure is no reason to end a search that asks for one architecture at a time."""
        known = list(module.records.known.values())
        if len(known) > 1 and all(record["status"] == "failed" for record in known):
            raise ValueError(f"all {len(known)} trials so far failed: {known[0]['error']}")

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain types."""
        plain = {name: [job.to_dict() for job in getattr(self, name)] for name in ("jobs", "handed")}
        return {**plain, "round": self.round}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; one that knows less than this search, such as the best one of a fit, is let be."""
        self._resumed = True
        if state_dict["round"] > self.round:
            self.jobs = [Job.from_dict(plain) for plain in state_dict["jobs"]]
            self.handed = [Job.from_dict(plain) for plain in state_dict["handed"]]
            self.round = state_dict["round"]
            self.restore(state_dict)


def _different(jobs: list[Job], module: Any) -> list[Job]:
    """Without those that stand there before: two processes would make them side by side."""
    return list({module.records.key(job): job for job in jobs}.values())


def accuracies(records: list[Record]) -> list[float]:
    """Of each record; NaN for trials that failed."""
    return [record["accuracy"] if record["status"] == "done" else float("nan") for record in records]
