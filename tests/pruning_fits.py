"""Fits of a few batches that prune: what the tests of both pruners share."""

import torch

from callbacks import HRankPruning
from datamodules import CIFARDataModule
from lit_methods import FilterSketch, HRank

STEPS = 2  # per epoch
SMALL = {"limit_train_batches": STEPS, "limit_val_batches": 1, "limit_test_batches": 1, "num_sanity_val_steps": 0}


def digits():
    return CIFARDataModule("digits", batch_size=16)


def kind_of(callback):
    return HRank if isinstance(callback, HRankPruning) else FilterSketch


def module_of(kind, arch="tiny", warm=False, **options):
    """A classifier of digits; ``warm``: its batch norms have seen something, so that it counts as trained."""
    data = digits()
    module = kind(arch, num_classes=10, mean=data.mean, std=data.std, **{"lr": 0.05} | options)
    if warm:
        module.model(torch.rand(8, 3, 32, 32))
    return module


def fit(make_trainer, callback, module=None, epochs=2, data=None, extra=(), **options):
    module, data = module or module_of(kind_of(callback)), data or digits()
    trainer = make_trainer(max_epochs=epochs, callbacks=[*extra, callback], **SMALL | options)
    trainer.fit(module, datamodule=data)
    return trainer, module


def prune_at_once(make_trainer, callback, arch="tiny_deep"):
    """The module after a single step with its pruned network."""
    module = module_of(kind_of(callback), arch, warm=True)
    return fit(make_trainer, callback, module, epochs=1, limit_train_batches=1)[1]


class Untrainable:
    """Stands before a module class: a fit must not come as far as a step."""

    def training_step(self, batch, batch_idx):
        raise AssertionError("training has started")
