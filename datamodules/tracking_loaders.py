"""The loader of videos to evaluate trackers on."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from datamodules.loaders import EvaluationLoader, loader_options
from datamodules.samplers import ShardSampler
from datamodules.tracking_sequences import TrackingSequence, TrackingSequences


class VideoDataModule(LightningDataModule):
    """Base of data modules with videos: those stay on the CPU, as frames are read one by one, and boxes are float64."""

    frames_needed = True  # False: boxes come from files and are scored, see lit_methods.siamban.own_results

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move pairs of crops, and leave videos."""
        return batch if "frames" in batch else super().transfer_batch_to_device(batch, device, dataloader_idx)


def sequence_loader(
    sequences: Sequence[TrackingSequence],
    together: int,
    num_workers: int = 0,
    place: str = "sequences",
    frames_needed: bool = True,
) -> EvaluationLoader:
    """A loader that goes through videos in their order, each once over all ranks.

    Args:
        sequences: the videos.
        together: how many are tracked at a time, as one batch.
        num_workers: worker processes; a batch is paths and boxes, so that 0 is quick enough.
        place: as in :class:`~datamodules.tracking_sequences.TrackingSequences`, here and below.
        frames_needed: whether the videos are tracked.

    Raises:
        ValueError: a video cannot be tracked.

    Example:
        >>> import numpy as np
        >>> videos = [TrackingSequence(name, ("1.jpg",), np.ones((1, 4))) for name in "abc"]
        >>> [batch["name"] for batch in sequence_loader(videos, 2)]
        [['a', 'b'], ['c']]
    """
    dataset = TrackingSequences(sequences, place, frames_needed)
    loader = EvaluationLoader(dataset, sampler=ShardSampler(dataset), **loader_options(together, num_workers, 0))
    loader.in_step = True
    return loader


def check_counts(**counts: int | None) -> None:
    """Refuse numbers of things below 1; ``None`` is all of them.

    Args:
        counts: argument to value.

    Raises:
        ValueError: one is below 1; names it.

    Example:
        >>> check_counts(sequences=0)
        Traceback (most recent call last):
        ValueError: sequences must be at least 1, got 0
    """
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
