"""Figures that a module computes over all samples of a validation or a test, and logs at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class StageFigures:
    """Mixin before ``LightningModule``: begin the figures of a stage, and log them as ``val/<name>``, ``test/<name>``.

    The class that takes it has ``figures``, by stage, each with ``compute()``, which gives 0-d tensors by name on all
    processes, and updates them in its steps.
    """

    trainer: Any
    log: Any
    figures: Mapping[str, Any]
    headline: str  # the figure that the progress bar shows

    def setup_figures(self, stage: str) -> Any:
        """The figures of a stage, ``"val"`` or ``"test"``, begun anew for the data at hand."""
        raise NotImplementedError

    def on_validation_epoch_start(self) -> None:
        """Begin anew."""
        self.setup_figures("val")

    def on_test_epoch_start(self) -> None:
        """Begin anew."""
        self.setup_figures("test")

    def on_validation_epoch_end(self) -> None:
        """Log the figures, unless this is only a trial of the first batches."""
        if not self.trainer.sanity_checking:
            self._log_figures("val")

    def on_test_epoch_end(self) -> None:
        """Log the figures."""
        self._log_figures("test")

    def _log_figures(self, stage: str) -> None:
        found: dict[str, Tensor] = self.figures[stage].compute()
        for name, value in found.items():
            self.log(f"{stage}/{name}", value, prog_bar=stage == "val" and name == self.headline)
