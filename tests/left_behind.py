"""What a run leaves in its directory, read for comparison: figures with and without their timings, rows, weights."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

TIMED = ("duration_s", "latency_ms")  # endings of keys that no two runs share


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_summary(run: Path) -> dict[str, Any]:
    """All of ``summary.json``."""
    return json.loads((run / "summary.json").read_text())


def timeless(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Those that a second run must have, too."""
    return {key: value for key, value in figures.items() if not key.endswith(TIMED)}


def metrics(run: Path) -> list[dict[str, str]]:
    """The rows of ``metrics.csv`` without timings."""
    return [timeless(row) for row in read_rows(run / "metrics.csv")]


def last_checkpoint(run: Path) -> dict[str, Any]:
    """All of ``last.ckpt``."""
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Those in ``last.ckpt``."""
    return last_checkpoint(run)["state_dict"]


def bit_equal(ours: Any, theirs: Any) -> bool:
    """Whether parts of two checkpoints are the same, tensors anywhere in them bit for bit."""
    if isinstance(theirs, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(bit_equal(ours[key], value) for key, value in theirs.items())
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(bit_equal, ours, theirs))
    return ours == theirs
