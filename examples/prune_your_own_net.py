"""Prune a network that nobody here wrote a table for: torchvision's MobileNetV3, by rank or by sketch.

Run: pip install 'lit-methods[prune]' && python examples/prune_your_own_net.py rank (or: sketch)
"""

import sys
from functools import partial

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn
from torchvision.models import mobilenet_v3_small

from callbacks import FilterSketchPruning, HRankPruning
from datamodules import CIFARDataModule
from lit_methods import ImageClassifier


def my_network() -> nn.Module:
    network = mobilenet_v3_small(num_classes=10, norm_layer=partial(nn.BatchNorm2d, eps=0.001, momentum=0.1))
    network.features[0][0].stride = (1, 1)  # the images are 32 pixels wide, not 224
    return network


PRUNERS = {
    "rank": lambda: HRankPruning(target_macs=0.5, allocation="global", round_to=8, at_epoch=10, num_images=256),
    "sketch": lambda: FilterSketchPruning(target_macs=0.5, round_to=8, at_epoch=10),
}

if __name__ == "__main__":
    seed_everything(0)
    data = CIFARDataModule("digits", batch_size=64)
    module = ImageClassifier(my_network(), mean=data.mean, std=data.std, lr=0.1, finetune_lr=0.05, milestones=[8])
    trainer = Trainer(
        max_epochs=18,
        callbacks=[PRUNERS[sys.argv[1] if len(sys.argv) > 1 else "rank"]()],
        use_distributed_sampler=False,
        logger=False,
        default_root_dir="runs/prune_your_own_net",
    )
    trainer.fit(module, datamodule=data)  # half of the multiply-adds, whatever the layers are called
    trainer.test(module, datamodule=data)

    # The checkpoint knows which channels stayed of which layer. A fresh network takes their shape; torch-pruning, which
    # found out how the channels hang together, is not needed any more.
    trainer.save_checkpoint("runs/prune_your_own_net/pruned.ckpt")
    again = ImageClassifier.load_from_checkpoint("runs/prune_your_own_net/pruned.ckpt", backbone=my_network())
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(again.eval()(image), module.eval()(image))
    print(module.hparams["plan"]["layers"]["features.4.block.0.0"])
