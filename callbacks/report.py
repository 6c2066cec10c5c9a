"""RunReport: the one way out for figures, pictures and tables of a run."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Callback, Trainer
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class RunReport(Callback):
    """Write figures, pictures and tables into the run's directory and hand them to the loggers that take them.

    The command line adds one to every run. Other callbacks reach it by :meth:`of`; modules only ``self.log``.
    A key such as ``"prune/kept_filters"`` becomes ``pictures/prune_kept_filters.png`` or
    ``tables/prune_kept_filters.csv`` below ``trainer.default_root_dir``; a second one under the same key replaces it.
    Only the first process writes, so every process may call. Loggers with Lightning's ``log_image`` and ``log_table``
    (``WandbLogger`` has them) get the same under the key itself.

    Args:
        dpi: dots per inch of saved figures.

    Example:
        >>> import tempfile
        >>> from lightning.pytorch import Trainer
        >>> folder = tempfile.mkdtemp()
        >>> trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=folder, enable_checkpointing=False)
        >>> path = RunReport.of(trainer).table(trainer, "prune/kept", ["layer", "kept"], [["conv1", 4]])
        >>> path.read_text().splitlines()
        ['layer,kept', 'conv1,4']
    """

    def __init__(self, dpi: int = 100) -> None:
        self.dpi = dpi

    @classmethod
    def of(cls, trainer: Trainer) -> RunReport:
        """The run's report; in a Trainer that was given none, one that writes all the same."""
        return next((c for c in trainer.callbacks if isinstance(c, cls)), cls())  # type: ignore[attr-defined]

    def figure(self, trainer: Trainer, key: str, figure: Figure) -> Path:
        """Save a matplotlib figure as PNG; returns its path (on other processes than the first, where it would be)."""
        path = self._path(trainer, "pictures", key, ".png")
        if trainer.is_global_zero:
            figure.savefig(path, dpi=self.dpi, bbox_inches="tight")
            self._hand_over(trainer, "log_image", key=key, images=[str(path)])
        return path

    def picture(self, trainer: Trainer, key: str, image: np.ndarray) -> Path:
        """Save an RGB picture (H, W, 3) uint8 as PNG; returns its path."""
        path = self._path(trainer, "pictures", key, ".png")
        if trainer.is_global_zero:
            Image.fromarray(image).save(path)
            self._hand_over(trainer, "log_image", key=key, images=[str(path)])
        return path

    def table(self, trainer: Trainer, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
        """Save rows of plain values as CSV with a header; returns its path."""
        path = self._path(trainer, "tables", key, ".csv")
        if trainer.is_global_zero:
            with path.open("w", newline="", encoding="utf-8") as f:
                csv.writer(f, lineterminator="\n").writerows([columns, *rows])
            self._hand_over(trainer, "log_table", key=key, columns=list(columns), data=[list(row) for row in rows])
        return path

    def _path(self, trainer: Trainer, folder: str, key: str, suffix: str) -> Path:
        path = Path(trainer.default_root_dir, folder, key.replace("/", "_") + suffix)
        if trainer.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _hand_over(self, trainer: Trainer, method: str, **what: Any) -> None:
        for logger in trainer.loggers:
            if hasattr(logger, method):
                getattr(logger, method)(**what)
