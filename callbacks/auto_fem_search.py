"""AutoFEMSearch: when the architecture of a detector's feature module learns, and the file of what was found."""

from __future__ import annotations

import json
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from callbacks.auto_fem_figures import auto_fem_figure, edge_weights_figure
from callbacks.genotype_file import write_genotype
from callbacks.report import RunReport


class AutoFEMSearch(Callback):
    """The search of ``ASFDSearch``: the architecture rests at first, and is made discrete at the end.

    - ``search/alphas``, a heat map of the operations' weights on every edge, and ``search/architecture``, what they
      favour, drawn at the end of each epoch;
    - table ``search/genotypes``: ``epoch``, ``entropy`` (nats) and ``genotype`` of every epoch;
    - ``genotype.json`` in the run's directory, a ``genotype`` for ``ASFD`` at every size, at the end of the fit, and
      table ``search/found``, the same text for loggers.

    Its state in a checkpoint has the genotypes of the epochs so far as text, and the present one as a dict.

    Args:
        warmup_fraction: part of the fit, in [0, 1), in which the architecture rests.

    Raises:
        ValueError: ``warmup_fraction`` is out of range; another module than one that searches.

    Source:
        DARTS (arXiv 1806.09055) and PC-DARTS (arXiv 1907.05737), which lets weights learn alone at first. 40 % is ours.

    Example:
        >>> AutoFEMSearch(warmup_fraction=0.25).state_dict()
        {'history': [], 'genotype': None}
    """

    def __init__(self, warmup_fraction: float = 0.4) -> None:
        if not 0 <= warmup_fraction < 1:
            raise ValueError(
                f"warmup_fraction={warmup_fraction} must lie in [0, 1): that part of the fit goes by first"
            )
        self.warmup_fraction = warmup_fraction
        self.history: list[list[Any]] = []  # epoch, entropy and key of each
        self.genotype: dict[str, Any] | None = None  # of the last epoch

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse modules that search nothing, before anything runs."""
        if not hasattr(pl_module, "learns_architecture"):
            raise ValueError(f"AutoFEMSearch is for ASFDSearch, not for {type(pl_module).__name__}")
        if stage == "fit":
            pl_module.learns_architecture = False  # type: ignore[assignment]  # until a batch says otherwise

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Let the architecture learn from its time on; told by the batches gone by, so a resumed run does the same."""
        done = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx
        starts = self.warmup_fraction * float(trainer.estimated_stepping_batches)
        module: Any = pl_module
        module.learns_architecture = done >= starts

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of an epoch note what is favoured, and show it."""
        if not trainer.is_last_batch:
            return
        module: Any = pl_module
        genotype, epoch = module.genotype(), trainer.current_epoch
        self.genotype = genotype.to_dict()
        self.history = [row for row in self.history if row[0] < epoch]
        self.history.append([epoch, float(module.model.entropy()), genotype.key()])
        report = RunReport.of(trainer)
        report.table(trainer, "search/genotypes", ["epoch", "entropy", "genotype"], self.history)
        if trainer.is_global_zero:
            ops = {"fpn": module.model.fpn_ops, "cpm": module.model.cpm_ops}
            report.figure(trainer, "search/alphas", edge_weights_figure(module.alphas(), ops))
            report.figure(trainer, "search/architecture", auto_fem_figure(genotype, f"after epoch {epoch}"))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what was found."""
        module: Any = pl_module
        genotype = module.genotype()
        RunReport.of(trainer).table(trainer, "search/found", ["genotype"], [[json.dumps(genotype.to_dict())]])
        write_genotype(trainer, genotype.to_dict())
        rank_zero_info(f"search: found {genotype.key()}")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """In the middle of an epoch the present genotype is not that of its end; ``state_dict`` sees no module."""
        module: Any = pl_module
        checkpoint["callbacks"][self.state_key]["genotype"] = module.genotype().to_dict()

    def state_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {"history": self.history, "genotype": self.genotype}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the epochs of the earlier part of the run."""
        self.history, self.genotype = [list(row) for row in state_dict["history"]], state_dict["genotype"]
