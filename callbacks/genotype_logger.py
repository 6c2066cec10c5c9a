"""GenotypeLogger: the cells that a search by gradients favours, epoch by epoch, and the file of those it found."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.epochs import epoch_is_due
from callbacks.genotype_figures import alpha_figure, genotype_figure
from callbacks.genotype_file import write_genotype
from callbacks.report import RunReport
from lit_methods.bpe_mip.search_space import Genotype


class GenotypeLogger(Callback):
    """Show which cells ``DARTSSearch`` favours, and write those that it found.

    - ``darts/alphas``: a heat map of the operations' weights, and ``darts/genotype``, the two cells, after a validation
      of a fit, at its end and, with the weights tested, after a test;
    - table ``darts/genotypes``: ``epoch``, ``val/top1`` and ``genotype`` (28 digits) of every validation;
    - ``genotype.json`` in the run's directory, a ``genotype`` for ``BPE``: at the end of a fit the one with the best
      ``val/top1`` (the first of equals), after a test the one tested, which is the same for the best checkpoint.

    Args:
        every_n_epochs: draw after every so many epochs, the first one included; where not every epoch has a validation,
            after that of the next epoch which has one.

    Raises:
        ValueError: ``every_n_epochs`` below 1; a module without ``genotype()`` and ``alphas()``.

    Example:
        >>> GenotypeLogger(every_n_epochs=5).state_dict()
        {'history': [], 'best': None}
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs={every_n_epochs} must be at least 1")
        self.every_n_epochs = every_n_epochs
        self.history: list[list[Any]] = []  # epoch, steps, val/top1 and key of each validation
        self.best: dict[str, Any] | None = None  # epoch, top1 and genotype

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse modules that search nothing, before anything runs."""
        if not all(callable(getattr(pl_module, name, None)) for name in ("genotype", "alphas")):
            raise ValueError(
                "GenotypeLogger is for modules with genotype() and alphas(), such as DARTSSearch, not for "
                f"{type(pl_module).__name__}"
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what is favoured now, and show it."""
        top1 = trainer.callback_metrics.get("val/top1")
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or top1 is None:
            return
        module: Any = pl_module
        genotype, epoch, accuracy = module.genotype(), trainer.current_epoch, float(top1)
        before = [row for row in self.history if row[1] < trainer.global_step]  # a resumed run may validate once more
        self.history = [*before, [epoch, trainer.global_step, accuracy, genotype.key()]]
        if self.best is None or accuracy > self.best["top1"]:
            self.best = {"epoch": epoch, "top1": accuracy, "genotype": genotype.to_dict()}
        rows = [[epoch, accuracy, key] for epoch, _, accuracy, key in self.history]
        RunReport.of(trainer).table(trainer, "darts/genotypes", ["epoch", "val/top1", "genotype"], rows)
        if epoch_is_due(trainer, self.every_n_epochs):
            _draw(trainer, module, genotype, f"epoch {epoch}, val/top1 {accuracy:.3f}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the end of the search; write what was best in it."""
        module: Any = pl_module
        genotype, title = module.genotype(), "end of the search"
        if self.best is not None:
            genotype = Genotype.from_dict(self.best["genotype"])
            title = f"best of the search: epoch {self.best['epoch']}, val/top1 {self.best['top1']:.3f}"
        _draw(trainer, module, genotype, title)
        write_genotype(trainer, genotype.to_dict())

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show and write what was tested."""
        module: Any = pl_module
        _draw(trainer, module, module.genotype(), "tested")
        write_genotype(trainer, module.genotype().to_dict())

    def state_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {"history": self.history, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the epochs of the earlier part of the run."""
        self.history, self.best = [list(row) for row in state_dict["history"]], state_dict["best"]


def _draw(trainer: Trainer, module: Any, genotype: Genotype, title: str) -> None:
    if trainer.is_global_zero:
        report = RunReport.of(trainer)
        report.figure(trainer, "darts/alphas", alpha_figure(module.alphas().float().softmax(1)))
        report.figure(trainer, "darts/genotype", genotype_figure(genotype, title))
