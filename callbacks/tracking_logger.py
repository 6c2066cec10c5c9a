"""TrackingLogger: what a tracker learns from, and what it follows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.report import RunReport
from lit_methods.functional.drawing import grid
from lit_methods.functional.frames import read_frame, to_rgb_array
from lit_methods.functional.tracking_overlay import label_map_picture, strip

FILM_FRAMES = 60  # of a sequence in the film, at most
FILM_HEIGHT = 360  # pixels, at most: a GIF of larger frames has tens of megabytes


class TrackingLogger(Callback):
    """Label maps over search regions, strips of tracked sequences, and a film.

    - ``train/labels``: the first pairs of an epoch; at each point of the grid whether it counts as target, as
      background or not at all, and the target's box.
    - ``val/tracks``, ``test/tracks``: frames spread over the first sequences, with the tracker's box and the true one.
    - ``test/film``: the first sequence.

    Where boxes came from files and the frames are not on disk, there is nothing to draw on, and nothing is drawn.

    Args:
        num_pairs: search regions on the sheet of labels.
        num_sequences: strips.
        num_frames: in a strip.
        every_n_epochs: draw labels every so many epochs, the first one included; strips come with every validation.

    Raises:
        ValueError: one of them is below 1.

    Example:
        >>> TrackingLogger(num_frames=6).num_frames
        6
    """

    def __init__(
        self, num_pairs: int = 8, num_sequences: int = 4, num_frames: int = 8, every_n_epochs: int = 1
    ) -> None:
        sizes = {
            "num_pairs": num_pairs,
            "num_sequences": num_sequences,
            "num_frames": num_frames,
            "every_n_epochs": every_n_epochs,
        }
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.num_pairs, self.num_sequences, self.num_frames = num_pairs, num_sequences, num_frames
        self.every_n_epochs = every_n_epochs

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Draw the labels of the first batch."""
        if batch_idx > 0 or not trainer.is_global_zero or trainer.current_epoch % self.every_n_epochs:
            return
        rows = zip(batch["search"], outputs["labels"], batch["box"], strict=True)
        maps = [
            label_map_picture(search, labels, pl_module.points, box)
            for search, labels, box in list(rows)[: self.num_pairs]
        ]
        RunReport.of(trainer).picture(trainer, "train/labels", grid(maps, columns=4))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Draw the first sequences."""
        if batch_idx == 0 and not trainer.sanity_checking and trainer.is_global_zero:
            self._strips(trainer, "val/tracks", batch, outputs["tracks"])

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Likewise, and the film."""
        if batch_idx == 0 and trainer.is_global_zero:
            self._strips(trainer, "test/tracks", batch, outputs["tracks"])
            if rows := _shown(batch, outputs["tracks"]):
                paths, truth, boxes = rows[0]
                chosen = spread(len(boxes), FILM_FRAMES)
                frames = [_strip(paths, truth, boxes, [index], FILM_HEIGHT) for index in chosen]
                RunReport.of(trainer).film(trainer, "test/film", frames)

    def _strips(self, trainer: Trainer, key: str, batch: dict[str, Any], tracks: Sequence[Any]) -> None:
        rows = _shown(batch, tracks)[: self.num_sequences]
        strips = [_strip(*row, spread(len(row[2]), self.num_frames)) for row in rows]
        if strips:
            RunReport.of(trainer).picture(trainer, key, grid(strips, columns=1))


def spread(length: int, count: int) -> list[int]:
    """Places spread evenly over a sequence, the first and the last among them.

    Example:
        >>> spread(100, 4), spread(2, 4)
        ([0, 33, 66, 99], [0, 1])
    """
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int)).tolist()


def _shown(batch: dict[str, Any], tracks: Sequence[Any]) -> list[tuple[Sequence[str], Tensor, Tensor]]:
    """Paths, true boxes and the tracker's of the sequences whose frames are there."""
    rows = zip(batch["frames"], batch["boxes"], tracks, strict=True)
    return [(paths, truth.cpu(), t.boxes_xywh) for paths, truth, t in rows if len(paths) and Path(paths[0]).is_file()]


def _strip(paths: Sequence[str], truth: Tensor, boxes: Tensor, chosen: list[int], height: int = 240) -> np.ndarray:
    frames = [to_rgb_array(read_frame(paths[index])) for index in chosen]
    return strip(frames, boxes[chosen], truth[chosen], height=height)
