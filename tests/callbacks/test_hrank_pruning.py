"""HRankPruning inside a fit."""

import csv

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from callbacks import HRankPruning
from lit_methods import HRank
from lit_methods.backbones import BACKBONES, Backbone, build_backbone, prune_model, prune_points
from lit_methods.backbones.plan import PrunePlan
from lit_methods.cli import main
from lit_methods.functional import count_macs
from lit_methods.hrank.functional import load_rank_scores, rank_scores, select_filters
from tests.pruning_fits import SMALL, STEPS, Untrainable, digits, fit, module_of, prune_at_once
from tests.tiny import TinyNet, tiny_points

RATE = {"rates": 0.5, "at_epoch": 1, "num_images": 40}


class Never(Untrainable, HRank):
    pass


def test_prunes_in_the_middle_by_rank_of_the_network_as_it_is_then(quick_trainer, tmp_path):
    widths = []

    class Noting(HRank):
        def on_train_batch_start(self, batch, batch_idx):
            widths.append(self.model.body.conv1.out_channels)

    data, module = digits(), module_of(Noting, finetune_lr=0.01)
    callback = HRankPruning(rates="[0.5]+[0.25]*2", at_epoch=1, num_images=40)
    fit(quick_trainer, callback, module, epochs=3)
    assert widths == [8] * STEPS + [4] * 2 * STEPS
    assert module.hparams["start_epoch"] == 1
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == 0.01

    # the dense network that was kept gives the same ranks, and they give the same filters
    dense = HRank.load_from_checkpoint(tmp_path / "dense.ckpt", weights_only=True)
    assert dense.model.body.conv1.out_channels == 8
    data.setup("fit")
    batches = [batch["image"].float() / 255 for batch in data.calibration_dataloader(40)]
    scores = rank_scores(dense.model, [dense.normalize(images) for images in batches], prune_points("tiny"))
    assert_close({k: v.double() for k, v in scores.items()}, callback.scores)
    keep = module.hparams["plan"]["keep"]
    for conv, rate in {"body.conv1": 0.5, "body.conv2": 0.25, "body.conv3": 0.25}.items():
        assert keep[conv] == select_filters(scores[conv], rate).tolist()
    assert load_rank_scores(tmp_path / "rank_scores.npz", "tiny").keys() == scores.keys()


def test_surgery_keeps_the_weights_and_the_optimiser_trains_all_of_them(quick_trainer, tmp_path):
    module = module_of(HRank)
    fit(quick_trainer, HRankPruning(**RATE), module, epochs=2)
    dense = HRank.load_from_checkpoint(tmp_path / "dense.ckpt", weights_only=True).model
    at_surgery = prune_model(dense, PrunePlan.from_dict(module.hparams["plan"]))
    for (name, before), after in zip(at_surgery.named_parameters(), module.model.parameters(), strict=True):
        assert before.shape == after.shape
        assert not torch.equal(before, after), f"{name} was not trained"
    trained = {id(p) for group in module.trainer.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for p in module.model.parameters()}


def test_without_pruning_the_run_is_bit_equal_up_to_there(quick_trainer, tmp_path):
    """No global random state is used: a run that prunes at epoch 1 equals one that never does until then."""
    weights = []
    for callback in (HRankPruning(**RATE), None):
        torch.manual_seed(3)
        module = module_of(HRank)
        trainer = quick_trainer(max_epochs=2, callbacks=[callback] if callback else [], **SMALL)
        trainer.fit(module, datamodule=digits())
        weights.append(torch.rand(4))
        if callback:
            dense = HRank.load_from_checkpoint(tmp_path / "dense.ckpt", weights_only=True).model.state_dict()
    assert_close(weights[0], weights[1], rtol=0, atol=0)
    torch.manual_seed(3)
    short = module_of(HRank)
    quick_trainer(max_epochs=1, **SMALL).fit(short, datamodule=digits())
    assert_close(dense, short.model.state_dict(), rtol=0, atol=0)


def test_at_epoch_zero_prunes_before_the_first_batch(quick_trainer):
    module, widths = module_of(HRank, warm=True), []

    class Noting(HRankPruning):
        def on_train_start(self, trainer, pl_module):
            widths.append(pl_module.model.body.conv3.out_channels)

    callback = Noting(rates=0.5, at_epoch=0, num_images=40)
    fit(quick_trainer, callback, module, epochs=1)
    assert widths == [8]
    summary = callback.summary()
    assert summary["prune/macs"] == count_macs(module.model)
    assert summary["prune/dense_macs"] == count_macs(build_backbone("tiny", 10))
    assert summary["prune/params"] == sum(p.numel() for p in module.model.parameters())
    assert 0 <= summary["prune/val_top1_after"] <= 1


def test_layerwise_removes_layer_after_layer_and_ends_like_one_plan(quick_trainer):
    widths = []

    class Noting(HRank):
        def on_train_batch_start(self, batch, batch_idx):
            widths.append([getattr(self.model.body, f"conv{i}").out_channels for i in (1, 2, 3)])

    module = module_of(Noting)
    callback = HRankPruning(rates="[0.5]+[0.0]+[0.5]", at_epoch=1, mode="layerwise", epochs_per_layer=2, num_images=40)
    fit(quick_trainer, callback, module, epochs=5)
    assert widths == [[8, 12, 16]] * STEPS + [[4, 12, 16]] * 2 * STEPS + [[4, 12, 8]] * 2 * STEPS
    assert module.hparams["plan"]["keep"].keys() == {"body.conv1", "body.conv3"}
    assert callback.stages_done == 2


def test_layerwise_goes_on_from_the_best_epoch_of_the_stage(quick_trainer):
    top1 = [0.9, 0.2, 0.5, 0.6, 0.8, 0.7]  # stages of two epochs: the best are the first and the second one
    after_epoch, at_surgery = [], []

    class Scripted(HRank):
        def validation_step(self, batch, batch_idx):
            self.log("val/top1", top1[self.current_epoch])

        def on_train_epoch_end(self):
            after_epoch.append({k: v.clone() for k, v in self.model.state_dict().items()})

    class Noting(HRankPruning):
        def decide(self, trainer, module):
            plan = super().decide(trainer, module)
            at_surgery.append({k: v.clone() for k, v in module.model.state_dict().items()})
            return plan

    module = module_of(Scripted, warm=True)
    callback = Noting(rates=0.5, at_epoch=0, mode="layerwise", epochs_per_layer=2, num_images=40)
    fit(quick_trainer, callback, module, epochs=6)
    assert_close(at_surgery[1], after_epoch[0], rtol=0, atol=0)
    assert_close(at_surgery[2], after_epoch[3], rtol=0, atol=0)


def test_layerwise_with_a_module_that_logs_something_else(quick_trainer):
    class Silent(HRank):
        def validation_step(self, batch, batch_idx):
            self.log("val/other", 1.0)

    module = module_of(Silent)
    callback = HRankPruning(rates=0.5, at_epoch=1, mode="layerwise", epochs_per_layer=1, num_images=40)
    fit(quick_trainer, callback, module, epochs=4)
    assert callback.stages_done == 3
    assert callback.best["top1"] >= 0


def test_resnet50_goes_block_by_block():
    stages = HRankPruning(rates=0.5, mode="layerwise", at_epoch=3, epochs_per_layer=10).stage_epochs("resnet50")
    assert stages == [3 + 10 * i for i in range(17)]


def test_frozen_filters_stay_and_the_others_move(quick_trainer, tmp_path):
    module = module_of(HRank)
    callback = HRankPruning(**RATE, freeze_fraction=0.5)
    fit(quick_trainer, callback, module, epochs=3)
    dense = HRank.load_from_checkpoint(tmp_path / "dense.ckpt", weights_only=True).model
    before = prune_model(dense, PrunePlan.from_dict(module.hparams["plan"]))
    keep = module.hparams["plan"]["keep"]["body.conv3"]
    kept_scores = callback.scores["body.conv3"][keep]
    highest = set(kept_scores.argsort(descending=True, stable=True)[:4].tolist())
    for i in range(8):
        same = torch.equal(before.body.conv3.weight[i], module.model.body.conv3.weight[i])
        assert same == (i in highest)


def test_ranks_from_a_file_need_no_images(quick_trainer, tmp_path):
    module, data = module_of(HRank), digits()
    callback = HRankPruning(**RATE)
    fit(quick_trainer, callback, module)
    again = HRankPruning(rates=0.5, at_epoch=1, scores=str(tmp_path / "rank_scores.npz"))
    data.calibration_dataloader = None
    other = module_of(HRank)
    fit(quick_trainer, again, other, data=data)
    assert other.hparams["plan"] == module.hparams["plan"]


def test_options_of_the_rank_pass(quick_trainer):
    """Working memory changes no rank, augmentation does; the plan says what residual sums carry."""
    scores, plans = [], []
    for options in ({}, {"max_bytes": 1, "residual": "scatter"}, {"augmented": True}):
        torch.manual_seed(0)
        callback = HRankPruning(rates=0.5, num_images=40, **options)
        plans.append(prune_at_once(quick_trainer, callback, "tiny").hparams["plan"])
        scores.append(callback.scores)
    assert_close(scores[1], scores[0], rtol=0, atol=0)
    assert plans[1] == plans[0] | {"residual": "scatter"}
    assert any(not torch.equal(scores[2][conv], scores[0][conv]) for conv in scores[0])


def test_reports(make_trainer, tmp_path):
    fit(make_trainer, HRankPruning(**RATE))
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"prune_kept_filters.png", "prune_rank_histograms.png", "prune_rank_stability.png"}
    kept = list(csv.DictReader((tmp_path / "tables" / "prune_kept_filter_ids.csv").open()))
    assert [(row["conv"], row["filters"], row["kept"]) for row in kept] == [
        ("body.conv1", "8", "4"), ("body.conv2", "12", "6"), ("body.conv3", "16", "8"),
    ]  # fmt: skip
    ranks = list(csv.DictReader((tmp_path / "tables" / "prune_ranks.csv").open()))
    assert all(0 <= float(row["lowest"]) <= float(row["mean_rank"]) <= float(row["highest"]) <= 16 for row in ranks)


def test_without_validation_nothing_is_claimed_about_it(quick_trainer):
    callback = HRankPruning(**RATE)
    fit(quick_trainer, callback, limit_val_batches=0)
    assert "prune/macs" in callback.summary()
    assert not [key for key in callback.summary() if "val" in key]


def test_bfloat16_weights_run_through_ranks_and_both_tests(quick_trainer):
    callback, data = HRankPruning(**RATE), digits()
    trainer, module = fit(quick_trainer, callback, data=data, precision="bf16-true")
    result = trainer.test(module, datamodule=data, verbose=False)[0]
    assert 0 <= result["test/dense_top1"] <= 1
    assert all(scores.dtype == torch.float64 for scores in callback.scores.values())


# -- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rates": 1.0}, r"1.0 is outside \[0, 1\)"),
        ({"rates": "[0.5]+[1.5]"}, "1.5"),
        ({"rates": [-0.1]}, "-0.1"),
        ({"rates": 0.5, "num_images": 0}, "num_images=0"),
        ({"rates": 0.5, "epochs_per_layer": 0}, "epochs_per_layer=0"),
        ({"rates": 0.5, "freeze_fraction": 1.5}, "freeze_fraction=1.5"),
        ({"rates": 0.5, "mode": "one-shot"}, "mode='one-shot' must be"),
        ({"rates": 0.5, "residual": "Live"}, "residual='Live' must be"),
        ({"target_macs": 0.5, "mode": "layerwise"}, "target_macs=0.5 with mode='layerwise'"),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        HRankPruning(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rates": "[0.5]*2"}, r"rates='\[0\.5\]\*2': tiny takes 3 rates, got 2"),
        ({"rates": 0.5, "num_images": 10**6}, r"num_images must be between 1 and the \d+ training images"),
    ],
)
def test_rates_and_images_that_do_not_fit_are_refused_before_training(quick_trainer, arguments, message):
    with pytest.raises(ValueError, match=message):
        fit(quick_trainer, HRankPruning(at_epoch=5, **arguments), module_of(Never))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"layer1.0.conv1": np.zeros(16)}, r"layer1\.0\.conv1"),
        ({"body.conv1": np.zeros(8)}, r"scores of 'body\.conv2'"),
    ],
)
def test_scores_of_another_network_are_refused_before_training(quick_trainer, tmp_path, scores, message):
    np.savez(tmp_path / "scores.npz", **scores)
    callback = HRankPruning(rates=0.5, at_epoch=5, scores=str(tmp_path / "scores.npz"))
    with pytest.raises(ValueError, match=message):
        fit(quick_trainer, callback, module_of(Never))


def test_a_network_that_does_not_know_its_channels(quick_trainer, monkeypatch):
    class Bare(TinyNet):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            del self.kept_channels

    monkeypatch.setitem(BACKBONES, "bare", Backbone(Bare, tiny_points))
    with pytest.raises(ValueError, match="kept_channels must tell"):
        fit(quick_trainer, HRankPruning(**RATE), module_of(Never, "bare"))


def test_maps_that_overflow_are_one_line(cifar10_root, tmp_path, capsys):
    """NaNGuard(action="skip") keeps weights finite, but not small."""
    words = ["--model.backbone", "tiny", "--model.lr", "1e30", "--trainer.max_epochs", "2", "--data.batch_size", "32"]
    words += ["--trainer.callbacks.rates", "0.5", "--trainer.callbacks.at_epoch", "1", "--trainer.callbacks.num_images"]
    words += ["32", "--trainer.limit_train_batches", "4", "--trainer.limit_val_batches", "1"]
    words += ["--trainer.callbacks+=NaNGuard", "--trainer.callbacks.action", "skip", "--trainer.accelerator", "cpu"]
    assert main("fit", ["hrank", *words, "--run_dir", str(tmp_path / "run")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert line.startswith("error: HRankPruning, before epoch 1: maps of shape")
    assert "NaN, inf" in line
