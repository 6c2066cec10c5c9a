"""A network and a goal of your own on top of PPBA: no other class, but a network that is no longer sure of its own.

Trains a small network on digits, then looks for the queries after which its probability for the true class is a half.

Run: python examples/attack_your_own_net.py
"""

from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn

from callbacks import AttackLogger
from datamodules import CIFARDataModule
from lit_methods import PPBA
from lit_methods.ppba import PPBAAttack
from lit_methods.ppba.build import low_frequencies


def doubt(logits: Tensor, labels: Tensor) -> Tensor:
    """Zero where the true class has a probability of a half or less: any loss that is zero on success will do."""
    return (logits.softmax(1).gather(1, labels[:, None]).squeeze(1) - 0.5).clamp_min(0)


class ThreeConvs(nn.Sequential):
    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for source, width in ((3, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(source, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class SmoothPPBA(PPBA):
    def loss(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:  # of the victim's training
        return nn.functional.cross_entropy(logits, batch["label"], label_smoothing=0.1)


if __name__ == "__main__":
    seed_everything(0)
    data = CIFARDataModule("digits", batch_size=50, num_test_images=50)
    attack = PPBAAttack(low_frequencies(32), rho=0.15, eps=6.0, max_queries=500, loss_fn=doubt)
    module = SmoothPPBA(ThreeConvs(), attack, num_classes=10, mean=data.mean, std=data.std, lr=0.1)
    trainer = Trainer(
        max_epochs=10,
        callbacks=[AttackLogger()],
        use_distributed_sampler=False,
        logger=False,
        default_root_dir="runs/attack_your_own_net",
    )
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data)
