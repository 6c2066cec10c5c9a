"""A learning rate changed on resume is the one that counts, whatever the schedule."""

import pytest
import torch
from toy_method import ToyData, ToyMethod

from callbacks.learning_rate import LearningRateOnResume


def fit(make_trainer, tmp_path, epochs: int, lr: float, schedule: str, resume: bool = False, **kwargs):
    trainer = make_trainer(max_epochs=epochs, callbacks=[LearningRateOnResume()], **kwargs)
    path = tmp_path / "a.ckpt"
    torch.manual_seed(0)  # halves start from the weights of the whole
    module = ToyMethod(num_classes=3, lr=lr, schedule=schedule)
    trainer.fit(module, datamodule=ToyData(), ckpt_path=path if resume else None)
    if not resume:
        trainer.save_checkpoint(path)
    (group,) = trainer.optimizers[0].param_groups
    return module, group, trainer


@pytest.mark.parametrize(("schedule", "factor"), [("none", 1), ("step", 0.5**4), ("lambda", 0.5**4)])
def test_a_changed_rate_counts_and_keeps_the_shape_of_the_schedule(make_trainer, tmp_path, capsys, schedule, factor):
    fit(make_trainer, tmp_path, 2, 0.1, schedule)
    _, group, trainer = fit(make_trainer, tmp_path, 4, 0.02, schedule, resume=True)
    assert group["lr"] == pytest.approx(0.02 * factor)
    assert group["initial_lr"] == 0.02
    for config in trainer.lr_scheduler_configs:
        assert config.scheduler.base_lrs == [0.02]
    assert capsys.readouterr().err == "learning rate: 0.1 in the checkpoint, 0.02 now; going on with 0.02\n"


@pytest.mark.parametrize("schedule", ["none", "step", "lambda"])
def test_an_unchanged_rate_stays_bit_equal_and_nothing_is_said(make_trainer, tmp_path, capsys, schedule):
    whole, group, _ = fit(make_trainer, tmp_path, 4, 0.1, schedule)
    fit(make_trainer, tmp_path, 2, 0.1, schedule)
    halves, same, _ = fit(make_trainer, tmp_path, 4, 0.1, schedule, resume=True)
    assert same["lr"] == group["lr"]
    assert torch.equal(whole.layer.weight, halves.layer.weight)
    assert capsys.readouterr().err == ""


def test_a_rate_that_the_method_moved_itself_is_no_change(make_trainer, tmp_path, capsys):
    """Without a scheduler: the rate in the checkpoint is not the configured one, and nobody asked for another."""

    class Warming(ToyMethod):
        def on_train_batch_start(self, batch, batch_idx):
            self.optimizers().param_groups[0]["lr"] = 0.1 * min(1, (self.trainer.global_step + 1) / 20)

    def run(epochs, resume):
        trainer = make_trainer(max_epochs=epochs, callbacks=[LearningRateOnResume()])
        module = Warming(num_classes=3, schedule="none")
        trainer.fit(module, datamodule=ToyData(), ckpt_path=tmp_path / "w.ckpt" if resume else None)
        trainer.save_checkpoint(tmp_path / "w.ckpt")

    run(2, False)
    run(3, True)
    assert capsys.readouterr().err == ""
