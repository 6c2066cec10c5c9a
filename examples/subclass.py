"""Your own network and your own loss on top of HRank: train it, prune it by rank, fine-tune it, in one fit.

FilterSketch works in the same way: subclass it, and take FilterSketchPruning(rates=0.75); rates are kept there.

Run: python examples/subclass.py
"""

from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn

from callbacks import HRankPruning
from datamodules import CIFARDataModule
from lit_methods import HRank
from lit_methods.backbones import BACKBONES, Backbone, Block, Chain, Plan, PrunePoint
from lit_methods.backbones.wiring import Channels, Wiring

WIDTHS = {"1": 16, "2": 32, "3": 64}


class ThreeConvs(nn.Sequential):
    def __init__(self, num_classes: int = 10, plan: Plan | None = None) -> None:
        super().__init__()
        wiring, stream = Wiring(plan), Channels(3)  # builds the layers as thin as the plan wants them
        for i, width in WIDTHS.items():
            conv, stream = wiring.conv(f"conv{i}", stream, width, kernel=3, stride=2, bias=False)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", wiring.norm(f"bn{i}", stream))
            self.add_module(f"relu{i}", nn.ReLU())
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = wiring.linear("fc", stream, num_classes)
        self.kept_channels = wiring.finish()


def where_ranks_are_taken() -> list[PrunePoint]:
    return [PrunePoint(f"conv{i}", number=i, module=f"relu{i}", channels=(0, width)) for i, width in WIDTHS.items()]


def what_can_be_narrowed() -> list[Block]:
    return [(Chain(("conv1", "conv2", "conv3"), norms=("bn1", "bn2"), widths=(16, 32)),)]


class FocalHRank(HRank):
    def loss(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        log_p = logits.log_softmax(1).gather(1, batch["label"][:, None])
        return (-((1 - log_p.exp()) ** 2) * log_p).mean()


if __name__ == "__main__":
    seed_everything(0)
    # the first table is HRank's, the second FilterSketch's
    BACKBONES["three_convs"] = Backbone(ThreeConvs, where_ranks_are_taken, inner_blocks=what_can_be_narrowed)
    data = CIFARDataModule("digits", batch_size=32)
    module = FocalHRank("three_convs", num_classes=10, mean=data.mean, std=data.std, lr=0.1, finetune_lr=0.05)
    pruning = HRankPruning(rates=0.25, at_epoch=12)
    trainer = Trainer(
        max_epochs=20,
        callbacks=[pruning],
        use_distributed_sampler=False,
        logger=False,
        default_root_dir="runs/subclass",
    )
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data)
    print(module.model)
