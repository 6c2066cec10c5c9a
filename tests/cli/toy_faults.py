"""Toy data and methods with the faults that the doctor looks for."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from toy_method import ToyData, ToyDataset, ToyMethod


class ShuffledToyData(ToyData):
    """Points in an order that the loader draws from the global generator and forgets: no run of it resumes exactly."""

    def _loader(self, length: int, train: bool = False) -> DataLoader:
        return DataLoader(ToyDataset(length), batch_size=self.batch_size, shuffle=train)


class FaultyToyData(ToyData):
    """Points with a fault in every batch.

    Args:
        fault: a key of a batch, and what stands there instead.
    """

    def __init__(self, fault: str = "nan") -> None:
        super().__init__()
        self.fault, self.download = fault, fault == "missing"

    def prepare_data(self) -> None:
        if self.download:
            raise AssertionError("downloaded")
        if self.fault == "missing":
            raise FileNotFoundError("no points in /nowhere/points.bin.")

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        changed = {
            "nan": {"x": batch["x"] * torch.nan},
            "label": {"label": batch["label"] + 2},
            "image": {"image": torch.full((1, 3, 2, 2), 255.0)},
        }
        return batch | changed.get(self.fault, {})


class DivergedToyMethod(ToyMethod):
    """Its loss is infinite."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) / 0
