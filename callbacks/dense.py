"""The network as it was before pruning: kept in a file, and tested beside the pruned one on the same batches."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from callbacks.complexity_logger import ComplexityLogger
from lit_methods.backbones.weights import load_weights, read_weights
from lit_methods.classification import ImageClassifier

COLUMNS = ["", "dense", "pruned"]  # of the comparison


class DenseReference:
    """``dense.ckpt`` in the run's directory, and its accuracy in the test that follows the fit."""

    def __init__(self) -> None:
        self.path: str | None = None  # of the file, as soon as there is one
        self._network: nn.Module | None = None  # as long as a test runs
        self._accuracy: MulticlassAccuracy | None = None

    def keep(self, trainer: Trainer) -> None:
        """Write the file: the network is about to be pruned."""
        path = _place(trainer)
        trainer.save_checkpoint(path, weights_only=True)
        self.path = str(path)

    def follow(self, trainer: Trainer) -> None:
        """Bring the file along where a run goes on in another directory, or its own was moved."""
        if self.path is None:
            return
        here, there = _place(trainer), Path(self.path)
        if trainer.is_global_zero and there.is_file() and there != here:
            shutil.copyfile(there, here)
        self.path = str(here)

    def load(self, trainer: Trainer, module: ImageClassifier) -> None:
        """Read the network back for a test; where the file is gone, a warning says so."""
        assert self.path is not None
        # the first process reads: others may have no access to its disk, and all must agree
        found = trainer.is_global_zero and Path(self.path).is_file()
        tensors = trainer.strategy.broadcast(read_weights(self.path)[0] if found else None)
        if tensors is None:
            rank_zero_warn(f"{self.path} is gone: the dense network is not tested beside the pruned one")
            return
        network = module.full_network()
        load_weights(network, tensors, self.path)
        self._network = trainer.precision_plugin.convert_module(network.to(module.device)).eval()
        self._accuracy = MulticlassAccuracy(module.hparams["num_classes"], average="micro").to(module.device)

    def update(self, trainer: Trainer, module: ImageClassifier, batch: Mapping[str, Tensor]) -> None:
        """Count its hits on a batch of the test, which may be empty."""
        if self._network is not None and self._accuracy is not None and len(batch["label"]):
            with trainer.precision_plugin.forward_context():  # as the pruned network
                self._accuracy.update(self._network(module.normalize(batch["image"])), batch["label"])

    def top1(self) -> float | None:
        """Its top-1 accuracy in this test, a fraction of 1 over all processes, and then it is let go.

        ``None`` where it was not tested.
        """
        top1 = None if self._accuracy is None else float(self._accuracy.compute())
        self._network = self._accuracy = None
        return top1


def comparison(trainer: Trainer, results: Mapping[str, float]) -> list[list[Any]]:
    """Rows of dense against pruned: accuracies, multiply-adds, parameters, file size, latency.

    Args:
        trainer: at the end of its test; with a ``ComplexityLogger`` there are the last two rows.
        results: ``prune/*`` of the surgery.

    Returns:
        Name, dense, pruned; an empty text where a value is not known.
    """
    logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    rows: list[list[Any]] = [
        ["val/top1 around surgery", *(results.get(f"prune/val_top1_{when}", "") for when in ("before", "after"))],
        ["test/top1", *(logged.get(f"test/{prefix}top1", "") for prefix in ("dense_", ""))],
        ["MACs", results["prune/dense_macs"], results["prune/macs"]],
        ["parameters", results["prune/dense_params"], results["prune/params"]],
    ]
    if (complexity := ComplexityLogger.of(trainer)) is not None:
        measured = complexity.summary()
        for name in ("file_bytes", "latency_ms"):
            rows.append([name, *(measured.get(f"complexity/{prefix}{name}", "") for prefix in ("dense_", ""))])
    return rows


def _place(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir, "dense.ckpt").absolute()
