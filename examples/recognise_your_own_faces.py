"""Recognise faces of your own, sharp and blurred ones: your network, your loss beside DDL's, and two faces compared.

Runs as it is, on drawn faces, in a minute or two; with your own, one folder per person below ``train`` (aligned faces,
112 x 112 is usual), leave the ``write_faces`` line out. Blurred copies of the pictures are the hard samples here
(``hard_scales``); where you know which pictures are hard, say so by ``difficulty`` or ``rule`` of the data module.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn

from callbacks import SimilarityHistogramLogger
from datamodules import FaceFolderDataModule
from datamodules.demo import write_faces
from lit_methods import DDL, Predictor
from lit_methods.ddl.functional import DDLOutput


def my_network() -> nn.Module:
    """Anything that makes (N, D) of pictures (N, 3, H, W)."""

    def stage(inputs: int, outputs: int) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.PReLU(outputs))

    layers = [stage(3, 16), stage(16, 32), stage(32, 64), nn.Flatten(), nn.Linear(64 * 6 * 6, 64)]
    return nn.Sequential(*layers, nn.BatchNorm1d(64, affine=False))


class PulledPairs(DDL):
    """Also pulls the two pictures of each hard pair together."""

    def losses(
        self, model: nn.Module, heads: nn.ModuleList, batch: dict[str, Any], names: Sequence[str], ddl_weight: float
    ) -> tuple[dict[str, Tensor], DDLOutput | None]:
        parts, found = super().losses(model, heads, batch, names, ddl_weight)
        if found is not None:  # there are pairs
            pull = sum((1 - similarity).mean() for similarity in found.pos_sims[1:])
            parts |= {"loss": parts["loss"] + 0.2 * pull, "pull": pull}  # type: ignore[dict-item]
        return parts, found


def main() -> None:
    """Train on sharp faces and blurred copies, test on people who were not there, compare two faces."""
    seed_everything(0)
    folder = Path(tempfile.mkdtemp())
    root = write_faces(folder / "faces", train_ids=32, val_ids=2, test_ids=20, hard=4, folds=4)
    data = FaceFolderDataModule(
        str(root),
        hard_scales=[2, 3, 4],
        b=16,
        image_size=48,
        num_workers=0,
        test_sets={"known": "test/probes.csv", "pairs": "test/pairs.txt"},
    )
    module = PulledPairs(
        my_network(),
        num_classes=data.num_classes,
        ddl_weight=4.0,
        scale=32.0,
        margin=0.3,
        lr=0.05,
        milestones=[8],
        mean=data.mean,
        std=data.std,
        input_size=data.input_size,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=10,
        callbacks=[SimilarityHistogramLogger(every_n_steps=50)],
        logger=False,
        enable_checkpointing=False,
        default_root_dir=str(folder),
    )
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    figures = {key.split("/")[1]: float(value) for key, value in trainer.callback_metrics.items() if "test/" in key}
    print({name: round(figures[name], 3) for name in ("easy_rank1", "hard_rank1", "pairs_accuracy")})

    person = sorted((root / "test").iterdir())[0]
    first, second = Predictor(module)(sorted(person.glob("*.jpg"))[:2])
    print(person.name, "twice: cosine", round(float(torch.dot(first["embedding"], second["embedding"])), 2))


if __name__ == "__main__":
    main()
