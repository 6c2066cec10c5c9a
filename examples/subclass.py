"""Your own network and your own loss on top of HRank: train it, prune it by rank, fine-tune it, in one fit.

Run: python examples/subclass.py
"""

from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn

from callbacks import HRankPruning
from datamodules import CIFARDataModule
from lit_methods import HRank
from lit_methods.backbones import BACKBONES, Backbone, PrunePoint
from lit_methods.backbones.wiring import Channels, Wiring


class ThreeConvs(nn.Module):
    def __init__(self, num_classes: int = 10, plan=None) -> None:
        super().__init__()
        wiring, stream = Wiring(plan), Channels(3)  # builds layers as thin as the plan wants them
        for i, width in enumerate((16, 32, 64), start=1):
            conv, stream = wiring.conv(f"conv{i}", stream, width, kernel=3, stride=2, bias=False)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", wiring.norm(f"bn{i}", stream))
            self.add_module(f"relu{i}", nn.ReLU())
        self.fc = wiring.linear("fc", stream, num_classes)
        self.kept_channels = wiring.finish()

    def forward(self, x: Tensor) -> Tensor:
        for i in (1, 2, 3):
            x = getattr(self, f"relu{i}")(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
        return self.fc(x.mean((2, 3)))


def where_ranks_are_taken() -> list[PrunePoint]:
    return [PrunePoint(f"conv{i}", str(i), f"relu{i}", (0, width)) for i, width in enumerate((16, 32, 64), start=1)]


class FocalHRank(HRank):
    def loss(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        right = logits.log_softmax(1).gather(1, batch["label"][:, None]).squeeze(1)
        return (-((1 - right.exp()) ** 2) * right).mean()


if __name__ == "__main__":
    seed_everything(0)
    BACKBONES["three_convs"] = Backbone(ThreeConvs, where_ranks_are_taken)
    data = CIFARDataModule(name="digits", batch_size=64)
    module = FocalHRank("three_convs", num_classes=10, mean=data.mean, std=data.std, lr=0.1, finetune_lr=0.02)
    trainer = Trainer(max_epochs=8, callbacks=[HRankPruning(rates=0.5, at_epoch=5)], use_distributed_sampler=False)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data)
    print(module.model)
