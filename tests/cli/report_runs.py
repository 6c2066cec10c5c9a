"""Run directories written by hand, for the tests of the report."""

import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

CONFIG = {
    "seed_everything": 0,
    "recipe": "hrank",
    "description": "HRank on embedded digits",
    "trainer": {
        "max_epochs": 4,
        "callbacks": [{"class_path": "callbacks.HRankPruning", "init_args": {"rates": "[0.5]", "at_epoch": 8}}],
    },
    "model": {"class_path": "lit_methods.HRank", "init_args": {"backbone": "resnet20", "lr": 0.25, "momentum": 0.9}},
    "data": {"class_path": "datamodules.CIFARDataModule", "init_args": {"name": "digits", "batch_size": 64}},
    "checkpoint": {"monitor": "val/top1", "mode": "max"},
}
SUMMARY = {
    "train/loss": 0.25, "val/top1": 0.75, "test/top1": 0.625, "test/dense_top1": 0.875, "complexity/params": 116555,
    "complexity/dense_params": 269722, "complexity/file_bytes": 505431, "seed": 0, "duration_s": 231.06,
    "versions": ["python 3.11.7", "torch 2.14.1"],
}  # fmt: skip
METRICS = """epoch,step,train/loss,val/top1,val/loss,lr,test/top1
0,9,2.5,,,0.1,
0,10,,0.25,2.0,,
1,19,0.5,,,0.1,
1,20,,0.75,nan,,
2,20,,,,,0.625
"""


def write_run(
    folder: Path,
    config: dict | None = CONFIG,
    summary: dict | None = SUMMARY,
    metrics: str | None = METRICS,
    card: str | None = "# hrank\n\n- recipe: hrank\n- changed: --model.lr 0.25\n- command: fit\n",
    pictures: dict[str, tuple[int, int]] | None = None,
    tables: dict[str, str] | None = None,
) -> Path:
    """A run directory of these files; ``None`` leaves one out."""
    folder.mkdir(parents=True)
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
    for name, text in (("metrics.csv", metrics), ("card.md", card)):
        if text is not None:
            (folder / name).write_text(text, "utf-8")
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary), "utf-8")
    for name, (width, height) in (pictures or {}).items():
        (folder / "pictures").mkdir(exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(folder / "pictures" / name)
    for name, text in (tables or {}).items():
        (folder / "tables").mkdir(exist_ok=True)
        (folder / "tables" / name).write_text(text, "utf-8")
    return folder
