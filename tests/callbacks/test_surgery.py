"""Seen with lightning 2.6.6; the private members that surgery uses are asserted here by what they do."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, WeightAveraging
from torch import nn
from torch.utils.data import DataLoader

from callbacks.surgery import evaluating, replace_network
from lit_methods import ImageClassifier
from lit_methods.backbones import PrunePlan, prune_model

DATA = [{"image": torch.rand(3, 16, 16), "label": torch.tensor(i % 4)} for i in range(16)]
PLAN = PrunePlan("tiny", {"body.conv1": [1, 4], "body.conv3": [0, 7, 9]})


class Swap(Callback):
    """Replace the network in the first batch of epoch 1."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 0:
            pl_module.hparams["plan"] = PLAN.to_dict()
            replace_network(trainer, pl_module, prune_model(pl_module.model, PLAN))


def fit(make_trainer, *callbacks, epochs=3, **kwargs):
    loader = DataLoader(DATA, batch_size=8)
    module = ImageClassifier("tiny", num_classes=4, lr=0.1)
    trainer = make_trainer(max_epochs=epochs, callbacks=[*callbacks], num_sanity_val_steps=0, **kwargs)
    trainer.fit(module, loader, loader)
    return trainer, module


def test_new_parameters_are_trained_by_a_fresh_optimiser(make_trainer):
    trainer, module = fit(make_trainer, Swap())
    (optimizer,) = trainer.optimizers
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in module.parameters()}
    assert len(optimizer.state) == len(list(module.parameters()))
    assert trainer.lr_scheduler_configs[0].scheduler.optimizer is optimizer
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 2  # two epochs since it was built


def test_patience_and_averages_forget_the_old_network(make_trainer):
    class Scripted(Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            trainer.callback_metrics["score"] = torch.tensor([0.9, 0.1, 0.2, 0.3][trainer.current_epoch])

    stopping = EarlyStopping("score", mode="max", patience=1, check_on_train_epoch_end=False)
    trainer, _ = fit(make_trainer, Scripted(), Swap(), stopping, epochs=4)
    assert trainer.current_epoch == 4  # 0.1 < 0.9 would have stopped it
    assert stopping.best_score == pytest.approx(0.3)

    averaging = WeightAveraging()
    _, module = fit(make_trainer, Swap(), averaging)
    assert module.model.body.conv1.out_channels == 2
    assert averaging._average_model.module.model.body.conv1.out_channels == 2


def test_best_checkpoint_is_of_the_new_network(make_trainer, tmp_path):
    """Also with Lightning's own callback: of 0.9, (swapped) 0.1 and 0.3, the best is the last."""

    class Scripted(Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            trainer.callback_metrics["score"] = torch.tensor([0.9, 0.1, 0.3][trainer.current_epoch])

    saving = ModelCheckpoint(tmp_path, "{epoch}", monitor="score", mode="max", save_on_train_epoch_end=False)
    fit(make_trainer, Scripted(), Swap(), saving, enable_checkpointing=True)
    assert saving.best_model_path == str(tmp_path / "epoch=2.ckpt")
    best = ImageClassifier.load_from_checkpoint(saving.best_model_path, weights_only=True)
    assert best.model.body.conv1.out_channels == 2


def test_start_afresh_is_called_on_whoever_has_it(make_trainer):
    class Remembering(Callback):
        calls = 0

        def start_afresh(self):
            self.calls += 1

    remembering = Remembering()
    fit(make_trainer, Swap(), remembering)
    assert remembering.calls == 1


def test_evaluating_restores_every_mode_also_after_an_error():
    net = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3).eval())

    def fail_inside():
        with evaluating(net):
            assert not any(part.training for part in net.modules())
            assert not torch.is_grad_enabled()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_inside()
    assert [part.training for part in net.modules()] == [True, True, False]
    assert torch.is_grad_enabled()
