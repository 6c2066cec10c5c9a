"""The module learns what it is shown, and needs the words for it."""

import pytest
import torch
from torch import nn

from lit_methods.mcn.model import MCN_BACKBONES, tiny_darknet
from lit_methods.metrics.referring import GroundingAccuracy, MaskIoU
from tests.mcn_batches import asked, mcn, views

pytestmark = pytest.mark.usefixtures("light_grounder")


def trained(steps, *batches, lr=0.003):
    """A module after so many steps, whose batch norms know these batches, and its losses."""
    module = mcn(lr=lr, dropout=0.0)
    optimizer = module.configure_optimizers()["optimizer"]
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = module.losses(batches[step % len(batches)])["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None  # the mean over all that follows
    with torch.no_grad():
        for batch in batches:
            module(batch["image"], batch["tokens"])
    return module.eval(), losses


def scored(module, batch):
    boxes, _, masks = module.predict_rows(*(batch[name] for name in ("image", "tokens", "size", "image_id")))
    accuracy, overlap = GroundingAccuracy(), MaskIoU("mean")
    accuracy.update(boxes, batch["box"])
    overlap.update(masks, batch["mask"])
    return float(accuracy.compute()), float(overlap.compute())


def test_one_batch_is_learnt():
    """Both squares of each of its pictures, told apart by their sentences."""
    module, losses = trained(12, views(3), lr=0.02)
    assert losses[-1] < 0.5 * losses[0]
    assert scored(module, asked(3))[1] > 0.5


@pytest.fixture
def whole_tiny(monkeypatch):
    monkeypatch.setitem(MCN_BACKBONES, "tiny", tiny_darknet)


@pytest.mark.slow
@pytest.mark.usefixtures("whole_tiny")
def test_one_batch_is_overfitted():
    module, _ = trained(150, views(3))
    accuracy, overlap = scored(module, asked(3))
    assert accuracy == 1
    assert overlap > 0.6


@pytest.mark.slow
@pytest.mark.usefixtures("whole_tiny")
def test_other_pictures_are_understood_and_not_without_the_words():
    module, _ = trained(400, *(views(seed, 8) for seed in range(24)), lr=0.005)
    others = asked(99, 24)
    accuracy, overlap = scored(module, others)
    assert accuracy >= 0.8
    assert overlap >= 0.6
    assert scored(module, others | {"tokens": torch.zeros_like(others["tokens"])})[0] <= 0.6  # one of two
