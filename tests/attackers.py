"""Modules that attack the small victim, runs of them, and what is looked at."""

import torch
from lightning.pytorch import Callback

from datamodules import CIFARDataModule
from lit_methods import PPBA
from tests.victims import MEAN, STD, trained_weights

IMAGES = 12  # five successes, four failures and three that are wrong from the start
OPTIONS = {"eps": 8.0, "max_queries": 30, "attack_args": {"rho": 0.4}, "mean": MEAN, "std": STD}


def attacker(model="tiny", **options):
    module = PPBA(model, **OPTIONS | options)
    if model == "tiny":
        module.model.load_state_dict(trained_weights())
    return module.eval()


def constant(label=3, **options):
    """Says the same to everything: nothing can be turned."""
    module = attacker(**options)
    with torch.no_grad():
        for parameter in module.model.fc.parameters():
            parameter.zero_()
        module.model.fc.bias[label] = 2.0
    return module


def digits(batch_size=8, images=IMAGES):
    return CIFARDataModule("digits", batch_size=batch_size, num_test_images=images)


class Results(Callback):
    """Keeps what ``test_step`` gives, and what is logged at the end."""

    def __init__(self):
        self.outputs, self.logged = [], {}

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, *_):
        self.outputs.append(outputs)

    def on_test_end(self, trainer, pl_module):
        self.logged = {name: float(value) for name, value in trainer.callback_metrics.items()}


class Forwards:
    """How many images a network was asked about, and in which precision it answered."""

    def __init__(self, module):
        self.images, self.dtypes = 0, set()
        module.model.register_forward_hook(self)

    def __call__(self, network, inputs, output):
        self.images += len(output)
        self.dtypes.add(output.dtype)


def attack_run(make_trainer, module, data=None, **trainer):
    results = Results()
    trainer = {"callbacks": [results]} | trainer
    make_trainer(**trainer).test(module, datamodule=data or digits(), verbose=False)
    return results
