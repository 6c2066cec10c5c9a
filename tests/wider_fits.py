"""A set of plain pictures in the layout of WIDER FACE, its data module, and a module that notes what it is shown."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule

from datamodules import WIDERFaceDataModule
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
    data = WIDERFaceDataModule(str(root), **SMALL | options)
    for stage in stages or ("fit",):
        data.setup(stage)
    return data


class Seen(LightningModule):
    """Remembers the pictures that it was trained on and those that it was shown."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.weight, self.fail_at = torch.nn.Parameter(torch.zeros(())), fail_at
        self.batches, self.names = [], []

    def training_step(self, batch, batch_idx):
        if self.global_step == self.fail_at:
            raise RuntimeError("out of memory")
        parts = [batch] if "index" in batch else list(batch.values())
        self.batches.append((self.current_epoch, batch_idx, [part["index"].tolist() for part in parts]))
        return self.weight * sum(part["image"].mean() for part in parts)

    def validation_step(self, batch, batch_idx):
        self.names += batch["name"]

    def test_step(self, batch, batch_idx):
        assert all(image.dtype == torch.float32 for image in batch["image"])
        self.names += batch["name"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
