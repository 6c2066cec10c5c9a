"""Is a search worth it? Detectors with the genotype that was found, with the default and with random ones, together.

    python -m lit_methods.fit asfd_search --run_dir runs/search
    python examples/compare_genotypes.py --genotype runs/search/genotype.json --epochs 32

trains a detector of the same size for the same number of steps with each, on the drawn faces of the recipe ``asfd``,
and prints what each gets on the held-out pictures: minutes for each of them. Without arguments it does so on a few
pictures in a minute, with a default genotype and one by chance, which says nothing but that it runs.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from datamodules import WIDERFaceDataModule
from datamodules.demo import write_wider_face
from lit_methods import ASFD
from lit_methods.asfd.genotype import default_genotype, random_genotype, read_genotype


def candidates(found: str | None, chances: int) -> dict[str, dict[str, Any]]:
    """Name to genotype of everything that is compared."""
    named = {"default": default_genotype("d0").to_dict()}
    if found is not None:
        named = {"found": read_genotype(found).to_dict()} | named
    for seed in range(chances):
        named[f"random {seed}"] = random_genotype(torch.Generator().manual_seed(seed)).to_dict()
    return named


def average_precision(genotype: dict[str, Any], data: WIDERFaceDataModule, channels: int, epochs: int) -> float:
    """Train from nothing, and test."""
    seed_everything(0, verbose=False)
    module = ASFD(
        size="d0",
        genotype=genotype,
        channels=channels,
        optimizer="adamw",
        lr=0.01,
        weight_decay=0.01,
        warmup_steps=60,
        milestones=[0.83],
        prior=0.25,
        low_threshold=0.15,
        reg_weight=3.0,
    )  # as in the recipe
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        gradient_clip_val=10.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    return float(trainer.callback_metrics["test/ap_all"])


def main() -> None:
    """Compare them."""
    parser = argparse.ArgumentParser(description="compare genotypes of ASFD on drawn faces")
    parser.add_argument("--genotype", default=None, help="genotype.json of a search")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--chances", type=int, default=1, help="random genotypes")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--root", default=None, help="data of the recipe asfd; drawn there where there is none")
    given = parser.parse_args()
    few = {"train": 16, "val": 4} if given.root is None else {}
    root = write_wider_face(Path(given.root or Path(tempfile.mkdtemp(), "wider")), **few)
    data = WIDERFaceDataModule(
        str(root),
        batch_size=8,
        image_size=160,
        brightness=16,
        hue=6,
        permute=0.0,
        val_images=24 if given.root else 0,
        in_memory=True,
        num_workers=0,
        eval_batch_size=8,
    )
    for name, genotype in candidates(given.genotype, given.chances).items():
        found = average_precision(genotype, data, given.channels, given.epochs)
        print(f"{name:10} test/ap_all {found:.3f}", flush=True)


if __name__ == "__main__":
    main()
