"""FilterSketchPruning inside a fit."""

import csv
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader, default_collate

from callbacks import FilterSketchPruning, HRankPruning
from datamodules.cifar import read_digits
from lit_methods import FilterSketch
from lit_methods.backbones import WidthPlan, build_backbone, resnet20
from lit_methods.filter_sketch.model import Sketcher, sketch_model, sketch_to_plan
from lit_methods.functional import count_macs
from tests.pruning_fits import SMALL, STEPS, Untrainable, digits, fit, module_of, prune_at_once
from tests.tiny import DEEP


class Noting(FilterSketchPruning):
    """Keeps the network as it is right after surgery."""

    def shrink(self, trainer, module, plan):
        network = super().shrink(trainer, module, plan)
        self.weights = {key: value.clone() for key, value in network.state_dict().items()}
        return network


# -- in a fit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"normalize": None, "tail": "drop", "channel_layout": "official"}], ids=["defaults", "official"]
)
def test_prunes_in_the_middle_what_the_weights_are_then(quick_trainer, tmp_path, options):
    widths = []

    class Watched(FilterSketch):
        def on_train_batch_start(self, batch, batch_idx):
            widths.append(self.model.body.conv2.out_channels)

    callback = Noting(rates=0.5, at_epoch=1, **options)
    module = module_of(Watched, finetune_lr=0.01)
    fit(quick_trainer, callback, module, epochs=3)
    assert widths == [12] * STEPS + [6] * 2 * STEPS
    assert module.hparams["plan"] == {"arch": "tiny", "mid": {"body.conv1": 4, "body.conv2": 6}}
    assert module.hparams["start_epoch"] == 1
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == 0.01
    trained = {id(p) for group in module.trainer.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for p in module.model.parameters()}
    dense = FilterSketch.load_from_checkpoint(tmp_path / "dense.ckpt", weights_only=True).model
    expected = sketch_to_plan(dense, WidthPlan.from_dict(module.hparams["plan"]), Sketcher(**options))
    assert_close(callback.weights, dict(expected.state_dict()), rtol=0, atol=0)
    for name, parameter in module.model.named_parameters():
        assert not torch.equal(parameter, callback.weights[name]), f"{name} was not trained"


def test_at_epoch_zero_prunes_before_the_first_batch(quick_trainer):
    started = []

    class Watched(FilterSketchPruning):
        def on_train_start(self, trainer, pl_module):
            started.append(pl_module.model.body.conv1.out_channels)

    callback, module = Watched(rates="[0.25]"), module_of(FilterSketch, warm=True)
    trainer, _ = fit(quick_trainer, callback, module, epochs=1)
    assert started == [2]
    summary = callback.summary()
    assert summary["prune/macs"] == count_macs(module.model) < summary["prune/dense_macs"]
    assert summary["prune/dense_macs"] == count_macs(build_backbone("tiny"))
    assert summary["prune/params"] == sum(p.numel() for p in module.model.parameters())
    assert summary["rates"] == "[0.25]"
    result = trainer.test(module, datamodule=digits(), verbose=False)[0]
    assert {"test/top1", "test/dense_top1"} <= result.keys()


def test_checkpoints_bring_the_narrow_network_back_and_nothing_is_pruned_twice(quick_trainer, tmp_path, monkeypatch):
    first = FilterSketchPruning(rates=0.5, at_epoch=1)
    trainer, module = fit(quick_trainer, first)
    trainer.save_checkpoint(tmp_path / "pruned.ckpt")
    content = torch.load(tmp_path / "pruned.ckpt", weights_only=True)
    assert content["hyper_parameters"]["plan"] == {"arch": "tiny", "mid": {"body.conv1": 4, "body.conv2": 6}}
    (state,) = (state for key, state in content["callbacks"].items() if key.startswith("FilterSketchPruning"))
    assert (state["stages_done"], state["settled"]) == (1, [0.5])

    loaded = FilterSketch.load_from_checkpoint(tmp_path / "pruned.ckpt", weights_only=True)
    assert_close(dict(loaded.state_dict()), dict(module.state_dict()), rtol=0, atol=0)

    monkeypatch.setattr(FilterSketchPruning, "decide", None)
    for at_epoch in (0, 1):
        again, resumed = FilterSketchPruning(rates=0.5, at_epoch=at_epoch), module_of(FilterSketch)
        trainer = quick_trainer(max_epochs=3, callbacks=[again], **SMALL)
        trainer.fit(resumed, datamodule=digits(), ckpt_path=tmp_path / "pruned.ckpt", weights_only=True)
        assert trainer.global_step == 3 * STEPS
        assert resumed.model.body.conv2.weight.shape == (6, 4, 3, 3)
    assert again.summary() == first.summary()


def test_shows_what_was_done(make_trainer, tmp_path):
    callback = FilterSketchPruning(rates="[0.5]*3")
    prune_at_once(make_trainer, callback)
    assert {p.name for p in (tmp_path / "pictures").iterdir()} == {"prune_kept_filters.png", "prune_sketch_errors.png"}
    rows = list(csv.DictReader((tmp_path / "tables" / "prune_sketches.csv").open()))
    assert [(row["layer"], row["dim"], row["n"], row["l"]) for row in rows] == [
        (f"body.conv{i + dim}", str(dim), str(DEEP[i - 1]), str(DEEP[i - 1] // 2)) for i in (1, 3, 5) for dim in (0, 1)
    ]
    errors = [float(row["covariance_error"]) for row in rows]
    assert all(0 < error < 1 for error in errors)
    assert all(int(row["rows_used"]) == int(row["n"]) for row in rows)  # tail="fill"
    summary = callback.summary()
    assert summary["prune/covariance_error_mean"] == pytest.approx(np.mean(errors))
    assert summary["prune/covariance_error_max"] == pytest.approx(max(errors))


def test_the_summary_has_the_keys_that_hranks_has(quick_trainer):
    keys = []
    for callback in (FilterSketchPruning(rates=0.5), HRankPruning(rates=0.5, num_images=16)):
        prune_at_once(quick_trainer, callback, "tiny")
        keys.append(set(callback.summary()))
    assert keys[0] - keys[1] == {"prune/covariance_error_mean", "prune/covariance_error_max"}
    assert {key for key in keys[1] - keys[0] if not re.search("_counter|rank_std", key)} == set()


def test_whole_blocks_at_rate_one(quick_trainer, tmp_path):
    callback = FilterSketchPruning(rates=1.0, normalize=None)
    module = prune_at_once(quick_trainer, callback)
    assert module.hparams["plan"] == {"arch": "tiny_deep", "mid": {}}
    summary = callback.summary()
    assert summary["prune/macs"] == summary["prune/dense_macs"]
    assert summary["prune/val_top1_after"] == summary["prune/val_top1_before"]
    assert not [key for key in summary if "covariance" in key]


@pytest.mark.parametrize("at_epoch", [0, 1])
def test_needs_no_datamodule(quick_trainer, at_epoch):
    samples = [{"image": torch.rand(3, 32, 32), "label": i % 10} for i in range(16)]
    loader = DataLoader(samples, batch_size=8, collate_fn=default_collate)
    callback, module = FilterSketchPruning(rates=0.5, at_epoch=at_epoch), module_of(FilterSketch, warm=True)
    trainer = quick_trainer(max_epochs=2, callbacks=[callback], **SMALL)
    trainer.fit(module, loader, loader)
    assert module.model.body.conv1.out_channels == 4
    assert "prune/covariance_error_mean" in callback.summary()
    assert not [key for key in callback.summary() if "val" in key]
    assert "test/dense_top1" in trainer.test(module, loader, verbose=False)[0]


def test_half_precision_weights(quick_trainer):
    callback = FilterSketchPruning(rates=0.5, at_epoch=1)
    _, module = fit(quick_trainer, callback, precision="bf16-true")
    assert {p.dtype for p in module.model.parameters()} == {torch.bfloat16}
    assert 0 < callback.summary()["prune/covariance_error_max"] < 1


# -- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rates": 0.0}, r"rates=0\.0: 0\.0 is outside \(0, 1\]; a rate is the fraction that is kept"),
        ({"rates": "[0.5]+[1.5]"}, r"1\.5 is outside"),
        ({"rates": [0.5, -0.1]}, r"-0\.1 is outside"),
        ({"rates": 0.5, "normalize": "l1"}, "normalize='l1' must be one of 'l2', None"),
        ({"rates": 0.5, "tail": "keep"}, "tail='keep' must be one of 'fill', 'drop', 'zero'"),
        ({"rates": 0.5, "channel_layout": "rows"}, "channel_layout='rows' must be one of 'channels', 'official'"),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FilterSketchPruning(**arguments)


class Never(Untrainable, FilterSketch):
    pass


@pytest.mark.parametrize(
    ("arch", "arguments", "message"),
    [
        ("tiny_deep", {"rates": "[0.5]*2"}, r"rates='\[0\.5\]\*2': tiny_deep takes 3 rates, got 2"),
        ("tiny", {"rates": 0.1}, r"rates=0\.1: rate=0\.1 keeps none of 8 channels; .*0\.125"),
        ("vgg16_bn_cifar", {"rates": 0.5}, "vgg16_bn_cifar has no table of blocks"),
        ("vgg16_bn_cifar", {"target_macs": 0.5}, "vgg16_bn_cifar has no table of blocks"),
    ],
)
def test_networks_and_rates_that_do_not_fit_are_refused_before_training(quick_trainer, arch, arguments, message):
    with pytest.raises(ValueError, match=message):
        fit(quick_trainer, FilterSketchPruning(at_epoch=5, **arguments), Never(arch))


# -- does it help? --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sketched_weights_are_a_better_start_than_none():
    """Few steps of fine-tuning at the paper's rate beat the same narrow network from scratch, whatever its rate."""
    pixels, targets = read_digits(train=True)
    image, label = pixels[:, :, ::2, ::2].float() / 255, torch.from_numpy(targets)

    def train(network, steps, lr):
        optimizer, losses = torch.optim.SGD(network.train().parameters(), lr=lr, momentum=0.9), []
        for step in range(steps):
            batch = torch.randperm(len(label), generator=torch.Generator().manual_seed(step))[:64]
            loss = F.cross_entropy(network(image[batch]), label[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    full = resnet20()
    assert np.mean(train(full, 80, 0.1)[-5:]) < 0.1
    sketched = train(sketch_model(full, [0.5] * 9), 15, 0.01)
    assert np.mean(sketched[-5:]) < 0.25 * sketched[0]
    for lr in (0.01, 0.05):
        fresh = train(resnet20(mid_channels=[8] * 3 + [16] * 3 + [32] * 3), 15, lr)
        assert np.mean(sketched[-5:]) < 0.5 * np.mean(fresh[-5:])
