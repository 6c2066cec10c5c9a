"""How much does the sentence matter? MCN in four lines of a subclass that hears nothing, trained beside the real one.

Without a sentence one of the three or four things in a picture can only be guessed.

Four epochs of each take some minutes; the recipe ``mcn`` has ten.

Run: python examples/ground_without_words.py [--epochs 10]
"""

import argparse

from lightning.pytorch import Trainer, seed_everything
from torch import Tensor

from callbacks import GroundingVisualizer
from datamodules import RefCOCODataModule
from lit_methods import MCN


class DeafMCN(MCN):
    def embedded(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        words, there = super().embedded(tokens)
        return words * 0, there


def train_and_test(kind: type[MCN], epochs: int) -> dict[str, float]:
    seed_everything(0)
    data = RefCOCODataModule(
        "data/demo_refer", demo=True, size=128, max_words=8, batch_size=32, num_workers=0, in_memory=True
    )
    module = kind(
        "tiny",
        freeze_backbone=False,
        word_dim=32,
        hidden=128,
        dim=64,
        bn_momentum=0.1,
        anchors=[[29, 29], [36, 36], [45, 45]],
        input_size=data.input_size,
        lr=0.002,
        milestones=sorted({max(1, epochs * 3 // 4), max(1, epochs * 11 // 12)}),
    )
    trainer = Trainer(
        max_epochs=epochs,
        check_val_every_n_epoch=4,
        callbacks=[GroundingVisualizer()],
        gradient_clip_val=5.0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=f"runs/{kind.__name__}",
    )
    trainer.fit(module, data)
    return trainer.test(module, data, verbose=False)[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    for kind in (MCN, DeafMCN):
        found = train_and_test(kind, arguments.epochs)
        print(f"{kind.__name__}: test/acc50 {found['test/acc50']:.3f}, test/miou {found['test/miou']:.3f}")
