import random

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.testing import assert_close

from callbacks.random_state import RandomState
from datamodules import CIFARDataModule
from lit_methods import ImageClassifier


class Dropping(nn.Module):
    """Draws from all three global generators in training."""

    def __init__(self):
        super().__init__()
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(3, 10)

    def forward(self, x):
        noise = (random.random() + np.random.rand()) if self.training else 0.0  # noqa: NPY002
        return self.fc(self.drop(x.mean((2, 3)))) + noise * self.fc.bias


@pytest.mark.parametrize("step", [2, 3, 5])  # middle, last batch of an epoch, middle of the last
def test_a_network_with_dropout_resumes_bit_equal(make_trainer, tmp_path, step):
    def run(ckpt_path=None, seed=0):
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)  # noqa: NPY002
        module = ImageClassifier(Dropping(), num_classes=10, lr=0.1)
        saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
        kwargs = {"limit_train_batches": 3, "limit_val_batches": 1, "enable_checkpointing": True}
        trainer = make_trainer(max_epochs=2, callbacks=[saving, RandomState()], **kwargs)
        data = CIFARDataModule("digits", batch_size=16, num_workers=0)
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        return module.state_dict()

    whole = run()
    assert_close(run(tmp_path / f"step={step}.ckpt", seed=99), whole, rtol=0, atol=0)
