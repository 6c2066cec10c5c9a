"""What a new method builds on: constructor arguments that a checkpoint keeps, whoever inherits."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lit_methods.contract import Described
from lit_methods.inference import Predictor


class Root(Described, LightningModule):
    """A method whose base is not ``ImageClassifier``."""

    def __init__(self, width: int = 2, lr: float = 0.1, network: nn.Module | None = None) -> None:
        super().__init__()
        self.keep_arguments()
        self.model = network or nn.Linear(width, 1)


class Fixed(Root):
    """Hands two arguments on, and has one of its own."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__(width=5, lr=0.2)


class Preset(Root):
    """Fixes an argument and hands the others on."""

    def __init__(self, **kwargs) -> None:
        kwargs.setdefault("lr", 0.3)
        super().__init__(**kwargs)


def test_arguments_are_kept_given_or_not():
    assert dict(Root(3).hparams) == {"width": 3, "lr": 0.1, "network": None}


def test_what_a_subclass_fixes_is_known_too():
    module = Fixed(depth=4)
    assert dict(module.hparams) == {"depth": 4, "width": 5, "lr": 0.2, "network": None}


def test_a_network_given_as_an_object_is_no_argument_of_a_checkpoint():
    assert "network" not in Root(network=nn.Linear(1, 1)).hparams


@pytest.mark.parametrize("module", [Root(3, lr=0.5), Fixed(), Preset(width=4)])
def test_a_checkpoint_rebuilds_its_module(module, make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    found = Predictor.from_checkpoint(tmp_path / "a.ckpt", type(module)).module
    assert dict(found.hparams) == dict(module.hparams)
    assert torch.equal(found.model.weight, module.model.weight)
