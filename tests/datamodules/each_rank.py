"""What each process of a run ends with."""

import torch
from lightning.pytorch import Callback


class KeepOfEachRank(Callback):
    """Weight and samples of every process, as ``rank<rank>.pt`` of a folder."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        kept = {"weight": pl_module.layer.weight.detach(), "seen": pl_module.seen}
        torch.save(kept, self.folder / f"rank{trainer.global_rank}.pt")
