"""``export``: the files, ``export.json`` beside them, and a table of what they cost."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule

from lit_methods.cli import card
from lit_methods.exporting import ExportedFile, ExportError, export_module


def export(
    module: LightningModule,
    formats: Sequence[str],
    recipe: str,
    checkpoint: str,
    run_dir: Path,
    options: dict[str, Any] | None = None,
) -> int:
    """Export a module into ``export/`` of a run's directory, which is the last line on stdout.

    Args:
        module: as its checkpoint has it.
        formats: ``"onnx"``, ``"torch"``.
        recipe: the recipe's name, for the files' metadata.
        checkpoint: where the module comes from, for ``export.json``.
        run_dir: the run's directory.
        options: the method's own options, for its ``export_graphs``.

    Returns:
        The exit code: 1 where a graph cannot be exported, or a file differs from the module; then no file is written.

    Raises:
        ValueError: a package is missing, or the module has no graphs.
    """
    facts = {"recipe": recipe, "versions": ", ".join(card.versions())}
    try:
        files = export_module(module, run_dir / "export", formats, metadata=facts, options=options)
    except ExportError as ex:
        if os.environ.get("LIT_METHODS_DEBUG"):
            raise
        print(f"error: {ex}", file=sys.stderr)
        return 1
    facts |= {name: value for name, value in (options or {}).items() if value is not None}
    report = {"checkpoint": checkpoint, **facts, "files": [_row(file) for file in files]}
    (run_dir / "export" / "export.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print("\n".join(table(f"{recipe}, export", files)))
    print(run_dir, flush=True)
    return 0


def _row(file: ExportedFile) -> dict[str, Any]:
    return vars(file) | {"path": file.path.name}


def table(title: str, files: Sequence[ExportedFile]) -> list[str]:
    """One line per file: size, largest relative difference, milliseconds at batch 1 and what the module takes.

    Example:
        >>> for line in table("mine", [ExportedFile(Path("net.onnx"), 1234567, 1e-6, 3e-7, 1.25, 2.5)]):
        ...     print(line)
        mine          bytes  difference    ms  PyTorch ms
          net.onnx  1234567       3e-07  1.25         2.5
    """
    rows = [[title, "bytes", "difference", "ms", "PyTorch ms"]]
    for file in files:
        figures = (float(file.bytes), file.relative, file.latency_ms, file.module_ms)
        rows.append([f"  {file.path.name}", *map(card.show, figures)])
    return card.align(rows)
