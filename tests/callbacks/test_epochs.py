"""Loggers that draw every so many epochs, where not every epoch has a validation."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.utils.data import DataLoader

from callbacks import GenotypeLogger, GroundingVisualizer, PredictionLogger, genotype_logger
from callbacks.epochs import epoch_is_due


class Shown(BoringModel):
    """Has what each of the loggers asks for."""

    predict_rows = None

    def validation_step(self, batch, batch_idx):
        self.log("val/top1", 0.5)

    def alphas(self):
        return {}

    def genotype(self):
        return SimpleNamespace(key=lambda: "0", to_dict=dict)


@pytest.mark.parametrize(
    ("validated", "every", "due"),
    [
        (1, 3, [0, 3, 6]),
        (2, 4, [1, 5]),  # none of these is a multiple of 4
        (2, 3, [1, 3, 7]),
        (3, 2, [2, 5]),
        (None, 5, [0, 5]),
    ],
)
def test_the_next_validation_stands_in_for_an_epoch_without(validated, every, due):
    step = validated or 1
    epochs = [
        SimpleNamespace(current_epoch=epoch, check_val_every_n_epoch=validated) for epoch in range(step - 1, 8, step)
    ]
    assert [epoch.current_epoch for epoch in epochs if epoch_is_due(epoch, every)] == due


@pytest.mark.parametrize("logger", [GenotypeLogger, GroundingVisualizer, PredictionLogger])
def test_every_logger_draws_although_no_epoch_of_its_own_is_validated(make_trainer, monkeypatch, logger):
    drawn = []

    def draw(*args):
        (trainer,) = [each for each in args if isinstance(each, Trainer)]
        drawn.append(trainer.current_epoch)

    monkeypatch.setattr(genotype_logger if logger is GenotypeLogger else logger, "_draw", draw)
    monkeypatch.setattr(logger, "on_fit_end", lambda *args: None)  # GenotypeLogger draws there, too
    trainer = make_trainer(
        max_epochs=6, limit_train_batches=1, check_val_every_n_epoch=2, callbacks=[logger(every_n_epochs=4)]
    )
    loader = DataLoader(torch.zeros(1, 32))
    trainer.fit(Shown(), loader, loader)
    assert drawn == [1, 5]
