"""A network and a goal of your own on top of NAD: gates that pay for each open channel alike, near to closed or not.

Trains a small network on digits, learns the sub-architecture of each class, and cuts the one of "7" out of the network.

Run: python examples/explain_your_own_net.py
"""

from typing import Any

from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn

from callbacks import SubArchitectureAnalysis
from datamodules import CIFARDataModule
from lit_methods import NAD
from lit_methods.functional import count_macs


class ThreeConvs(nn.Sequential):
    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for source, width in ((3, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(source, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class LinearNAD(NAD):
    def objective(
        self, logits: Tensor, targets: Tensor, gated: Any, orig: Any, gates: Any, *args: Any, **kwargs: Any
    ) -> Any:
        terms = super().objective(logits, targets, gated, orig, gates, *args, **kwargs)
        linear = sum(gate.sigmoid().mean(-1) for gate in gates) / len(gates)  # the paper's gates count squared
        loss = (terms["act"] + self.hparams["beta"] * linear)[terms["active"]].sum()
        return terms | {"gate": linear, "loss": loss}


if __name__ == "__main__":
    seed_everything(0)
    data = CIFARDataModule("digits", batch_size=80, per_class_batch=8)  # ten classes at once
    module = LinearNAD(
        ThreeConvs(),
        gate_points=["2", "5", "8"],  # behind the ReLUs
        input_size=[3, 32, 32],
        mean=data.mean,
        std=data.std,
        beta=0.7,
        classifier_epochs=15,
    )
    trainer = Trainer(
        max_epochs=35,
        callbacks=[SubArchitectureAnalysis()],
        use_distributed_sampler=False,
        logger=False,
        default_root_dir="runs/explain_your_own_net",
    )
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data)
    seven = module.sub_network(7)
    whole, small = (count_macs(network, (3, 32, 32)) for network in (module.model, seven))
    print(f"the sub-architecture of 7: {small:,} of {whole:,} multiply-adds")
