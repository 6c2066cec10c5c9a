"""Track in videos of your own: a loss of your own beside SiamBAN's, and targets that are followed in code.

Runs as it is, on drawn videos, in a minute or two; with your own in LaSOT's layout (``<category>/<category>-<n>/img``,
``groundtruth.txt``, ``full_occlusion.txt``, ``out_of_view.txt``) leave the ``write_tracking`` line out. So short a
training learns little; the recipe ``siamban`` takes five minutes.
"""

import tempfile
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor

from callbacks import TrackingLogger
from datamodules import LaSOTDataModule
from datamodules.demo import write_tracking
from lit_methods import SiamBAN
from lit_methods.functional.frames import read_frame


class Centred(SiamBAN):
    """Also wants the points of a target that lie near its middle to be the surest."""

    def losses(self, cls: Tensor, loc: Tensor, labels: Tensor, deltas: Tensor) -> dict[str, Tensor]:
        losses = super().losses(cls, loc, labels, deltas)
        left, top, right, bottom = deltas.clamp(min=1e-3).unbind(1)
        ratios = torch.minimum(left, right) / torch.maximum(left, right)
        ratios = ratios * torch.minimum(top, bottom) / torch.maximum(top, bottom)
        score, target = cls.softmax(1)[:, 1], labels == 1
        centre = ((score - ratios.sqrt()).square() * target).sum() / target.sum().clamp(min=1)
        return losses | {"loss": losses["loss"] + 0.5 * centre, "centre": centre}


def main() -> None:
    """Train on drawn videos, test on others, then follow two targets by hand."""
    seed_everything(0)
    folder = Path(tempfile.mkdtemp())
    root = write_tracking(folder / "videos", train=6, test=2, frames=12, size=(120, 160), speed=3.0)
    data = LaSOTDataModule(
        str(root),
        batch_size=8,
        pairs_per_epoch=80,
        search_size=191,
        in_memory=True,
        num_workers=0,
        val_videos=0,
    )
    module = Centred(
        depth=18,
        width=8,
        channels=16,
        levels=[2, 3],
        search_size=191,
        normalize=True,
        first_distance=32.0,
        lr=0.05,
        warmup_epochs=1,
        warmup_lr=0.01,
        end_lr=0.005,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=4,
        gradient_clip_val=10.0,
        callbacks=[TrackingLogger()],
        logger=False,
        enable_checkpointing=False,
        default_root_dir=str(folder),
    )
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    figures = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("test/success")}
    print({name: round(value, 3) for name, value in figures.items()})

    videos = data.evaluation_sequences("test")
    tracker = module.eval().tracker(window_influence=0.4)
    tracker.init([read_frame(video.frames[0]) for video in videos], [video.first_box for video in videos])
    for index in range(1, 4):  # both targets go through the network as one batch
        boxes, scores = tracker.track([read_frame(video.frames[index]) for video in videos])
        for video, box, score in zip(videos, boxes.tolist(), scores.tolist(), strict=True):
            print(video.name, f"frame {index}:", [round(value) for value in box], f"score {score:.2f}")


if __name__ == "__main__":
    main()
