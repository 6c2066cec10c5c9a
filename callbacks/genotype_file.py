"""``genotype.json``: what a search has found, for whoever trains it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer


def write_genotype(trainer: Trainer, genotype: dict[str, Any]) -> None:
    """Write ``genotype.json`` to the run's directory; only the first process does.

    Args:
        trainer: the run's.
        genotype: of plain values.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=folder, enable_checkpointing=False)
        >>> write_genotype(trainer, {"normal": []})
        >>> Path(folder, "genotype.json").read_text()
        '{"normal": []}\\n'
    """
    if trainer.is_global_zero:
        path = Path(trainer.default_root_dir, "genotype.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(genotype) + "\n", "utf-8")
