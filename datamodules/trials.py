"""TrialDataModule: images for many small trainings, and the list of what is to be trained."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
from torch.utils.data import Dataset

from datamodules.cifar import CIFARDataModule
from datamodules.loaders import as_it_is
from datamodules.samplers import ResumableLoader, ResumableSampler


class _Jobs(Dataset[dict[str, list[Any]]]):
    """One job per item; -1 is the item of a process for which none is left."""

    def __init__(self, jobs: Sequence[Any]) -> None:
        self.jobs = list(jobs)

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, position: int) -> dict[str, list[Any]]:
        return {"jobs": [] if position < 0 else [self.jobs[position]]}


class JobSampler(ResumableSampler[int]):
    """Deal positions out over the ranks in their own order, each once; where a round does not come out even, -1.

    Args:
        count: how many there are; of none each rank gets a -1.
        num_replicas: number of ranks; ``None`` asks ``torch.distributed``.
        rank: this rank; ``None`` asks ``torch.distributed``.

    Example:
        >>> [list(JobSampler(3, num_replicas=2, rank=rank)) for rank in (0, 1)]
        [[0, 2], [1, -1]]
    """

    def __init__(self, count: int, num_replicas: int | None = None, rank: int | None = None) -> None:
        super().__init__(0, num_replicas, rank)
        self.count = count

    def __iter__(self) -> Iterator[int]:
        start, self.start = self.start, 0
        dealt = np.full(len(self) * self.num_replicas, -1)
        dealt[: self.count] = np.arange(self.count)
        return iter(dealt[self.rank :: self.num_replicas][start:].tolist())

    def __len__(self) -> int:
        return max(1, -(-self.count // self.num_replicas))


class TrialDataModule(CIFARDataModule):
    """The data of ``CIFARDataModule``, for modules that train many small networks on them at a time.

    Training batches are jobs, ``{"jobs": [job]}`` with one each or, on a process for which none is left, none; they
    are dealt out over the processes. Which ones is said by a callback through :meth:`set_jobs`, so the Trainer reads
    the list anew in every epoch (``reload_dataloaders_every_n_epochs=1``). The images of the jobs are
    :meth:`training_tensors` and :meth:`validation_tensors`. Batches of validation and test are images, as there; their
    size stays 32, since every job has an image size of its own.

    Arguments are those of ``CIFARDataModule``; ``batch_size`` is that of validation and test.

    Raises:
        ValueError: an argument is out of range, or one that belongs to training by batches of images.

    Example:
        >>> data = TrialDataModule("digits")
        >>> data.setup("fit")
        >>> data.set_jobs([{"seed": 3}, {"seed": 4}])
        >>> list(data.train_dataloader())
        [{'jobs': [{'seed': 3}]}, {'jobs': [{'seed': 4}]}]
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, usual in (("image_size", 32), ("cutout", 0), ("split_halves", False), ("per_class_batch", None)):
            if (value := getattr(self, name)) != usual:
                raise ValueError(f"{name}={value} has no effect on trials: each recipe has its own; leave it out")
        self._jobs: list[Any] = []

    def set_jobs(self, jobs: Sequence[Any]) -> None:
        """What the next epoch trains, the same on all processes; plain values."""
        self._jobs = list(jobs)

    def train_dataloader(self) -> ResumableLoader:
        """One batch per job of this process; resumes after any."""
        sampler = JobSampler(len(self._jobs))
        # one item is one batch, whatever it is: nothing is collated
        loader = ResumableLoader(_Jobs(self._jobs), sampler=sampler, batch_size=None, collate_fn=as_it_is)
        loader.trainer = self.trainer
        return loader

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """As there for images; jobs stay as they are."""
        return batch if "jobs" in batch else super().on_after_batch_transfer(cast(dict, batch), dataloader_idx)
