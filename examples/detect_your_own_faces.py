"""Detect in pictures of your own: a detector that trains on pictures of several sizes, and faces found in code.

Runs as it is, on drawn faces, in a minute or two; with your own in WIDER FACE's layout (``WIDER_train/images/<event>``,
``WIDER_val/images/<event>``, ``wider_face_split/wider_face_{train,val}_bbx_gt.txt``) leave ``write_wider_face`` out.
What is in the boxes need not be faces. So short a training learns little; the recipe ``asfd`` takes some minutes.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor

from callbacks import DetectionResults
from datamodules import WIDERFaceDataModule
from datamodules.demo import write_wider_face
from lit_methods import ASFD, Predictor


class SeveralSizes(ASFD):
    """Trains on each batch at another size, in turn."""

    sides = (128, 160, 192)

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        side = self.sides[self.global_step % len(self.sides)]
        factor = side / batch["image"].shape[-1]
        image = F.interpolate(batch["image"], (side, side), mode="bilinear", antialias=True)
        return super().losses(batch | {"image": image, "boxes": [boxes * factor for boxes in batch["boxes"]]})


def main() -> None:
    """Train on drawn faces, test on others, then look for faces by hand."""
    seed_everything(0)
    folder = Path(tempfile.mkdtemp())
    root = write_wider_face(folder / "wider", train=48, val=8)
    data = WIDERFaceDataModule(
        str(root), batch_size=8, image_size=192, val_images=0, in_memory=True, num_workers=0, eval_batch_size=4
    )
    module = SeveralSizes(
        size="d0",
        channels=24,
        optimizer="adamw",
        lr=0.01,
        warmup_steps=10,
        prior=0.25,
        low_threshold=0.15,
        reg_weight=3.0,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=8,
        gradient_clip_val=10.0,
        callbacks=[DetectionResults()],
        logger=False,
        enable_checkpointing=False,
        default_root_dir=str(folder),
    )
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items() if "/ap_" in name})

    pictures = sorted((root / "WIDER_val" / "images").rglob("*.jpg"))[:3]
    for path, found in zip(pictures, Predictor(module)(pictures), strict=True):
        for box, score in list(zip(found["face_boxes"].tolist(), found["scores"].tolist(), strict=True))[:2]:
            print(path.name, [round(value) for value in box], f"score {score:.2f}")


if __name__ == "__main__":
    main()
