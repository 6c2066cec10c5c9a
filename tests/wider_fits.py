"""A set of plain pictures in the layout of WIDER FACE, its data module, and a module that notes what it is shown."""

from pathlib import Path
from typing import Any

import torch

from datamodules import WIDERFaceDataModule
from tests.loading import set_up
from tests.module_fits import Noting
from tests.wider_data import write_split

SMALL = {"batch_size": 2, "image_size": 32, "val_images": 2, "num_workers": 0}
FACE = [8, 12, 16, 24]
TRAIN = {f"{number % 3}--Event--{number % 3}/{number}.jpg": [FACE] for number in range(9)}
VAL = {
    "0--Parade/a.jpg": [[1, 2, 30, 40, 2, 1, 0, 0, 1, 0], [5, 6, 0, 8, 0, 0, 0, 1, 0, 0]],
    "0--Parade/b.jpg": [],
    "1--Handshaking/c.jpg": [FACE],
}


def write_plain(folder: Path) -> Path:
    """Nine pictures to train on, three to test on, without the files of the evaluation."""
    root = folder / "own data ü" / "widerface"
    write_split(root, "train", TRAIN)
    write_split(root, "val", VAL)
    return root


def ready(root: Path, *stages: str, **options: Any) -> WIDERFaceDataModule:
    """Its data module, set up for these stages, or to fit."""
    return set_up(WIDERFaceDataModule(str(root), **SMALL | options), *stages)


class Seen(Noting):
    """Remembers the pictures that it was trained on and those that it was shown."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__(fail_at)
        self.batches: list[Any] = []
        self.names: list[str] = []

    def note_training(self, batch, batch_idx):
        parts = [batch] if "index" in batch else list(batch.values())
        self.batches.append((self.current_epoch, batch_idx, [part["index"].tolist() for part in parts]))
        return sum(part["image"].mean() for part in parts)

    def note_evaluation(self, batch):
        assert all(image.dtype == torch.float32 for image in batch["image"])
        self.names += batch["name"]
