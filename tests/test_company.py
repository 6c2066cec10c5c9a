"""What people add to a run, beside pruning inside the fit: precision, accumulation, and Lightning's own callbacks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.testing import assert_close

from callbacks import HRankPruning, NaNGuard
from callbacks.evaluation import validation_top1
from datamodules import CIFARDataModule
from lit_methods import HRank
from lit_methods.backbones import build_backbone, prune_points
from lit_methods.cli import main
from lit_methods.hrank import functional
from lit_methods.hrank.functional import rank_scores
from tests.left_behind import last_checkpoint, metrics, read_summary
from tests.small_recipes import RECIPES, monitored
from tests.stops import AT_EPOCH, EVERY_STOP, STEPS

SMALL = {"limit_train_batches": STEPS, "limit_val_batches": 2, "limit_test_batches": 2, "num_sanity_val_steps": 0}

pytestmark = pytest.mark.usefixtures("no_figures")


def digits():
    return CIFARDataModule("digits", batch_size=32, num_workers=0)


def tiny(**kwargs):
    torch.manual_seed(2)
    data = digits()
    return HRank("tiny", num_classes=10, mean=data.mean, std=data.std, **{"lr": 0.1} | kwargs)


def pruning(**kwargs):
    return HRankPruning(**{"rates": 0.5, "at_epoch": AT_EPOCH, "num_images": 48} | kwargs)


def fp16_on_a_cpu():
    """Lightning turns ``16-mixed`` into ``bf16-mixed`` there, unless the plugin is given."""
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]}


# -- float32 islands --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-mixed"])
def test_ranks_are_those_of_a_float32_pass(make_trainer, tmp_path, monkeypatch, precision):
    rank, seen = functional.feature_map_rank, set()
    monkeypatch.setattr(functional, "feature_map_rank", lambda maps: seen.add(maps.dtype) or rank(maps))
    half, callback, data = fp16_on_a_cpu() if precision == "16-mixed" else {"precision": precision}, pruning(), digits()
    module = tiny()
    make_trainer(max_epochs=3, callbacks=[callback, NaNGuard()], **SMALL, **half).fit(module, datamodule=data)
    assert seen == {torch.float32}
    assert callback.stages_done == 1
    expected = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert {p.dtype for p in module.model.parameters()} == {expected}  # what is trained is as it was asked for

    dense = HRank.load_from_checkpoint(tmp_path / "dense.ckpt", weights_only=True)
    normalize = dense.normalize.to(expected).float()  # rounded once, as in training
    images = [normalize(batch["image"].float() / 255) for batch in data.calibration_dataloader(48)]
    scores = rank_scores(dense.model.float(), images, prune_points("tiny"))
    assert_close(callback.scores, scores, rtol=0, atol=0)


def test_rounding_to_bfloat16_would_change_ranks():
    """Why there is an island at all; and it holds for callers of the function, too."""
    net, points = build_backbone("resnet20").eval(), prune_points("resnet20")
    images = [torch.rand(8, 3, 32, 32)]
    exact = rank_scores(net, images, points)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(rank_scores(net, images, points), exact, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"torch.bfloat16, whose rounding raises ranks; rank a float32 copy"):
        rank_scores(copy.deepcopy(net).bfloat16(), [images[0].bfloat16()], points)
    maps = []
    net.layer3[0].relu1.register_forward_hook(lambda module, inputs, output: maps.append(output))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        net(images[0])
    rounded = torch.linalg.matrix_rank(maps[0].float()).double().mean(0)
    assert not torch.equal(rounded, exact["layer3.0.conv1"])


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_the_loss_is_taken_in_float32_or_better(make_trainer, monkeypatch, precision):
    cross_entropy, seen = F.cross_entropy, set()
    note = lambda logits, *args, **kwargs: seen.add(logits.dtype) or cross_entropy(logits, *args, **kwargs)  # noqa: E731
    monkeypatch.setattr("lit_methods.classification.F.cross_entropy", note)
    trainer = make_trainer(max_epochs=1, precision=precision, **SMALL | {"limit_val_batches": 0})
    trainer.fit(tiny(), datamodule=digits())
    assert seen == {torch.float64 if precision == "64-true" else torch.float32}


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_accuracy_around_surgery_is_that_of_validation(make_trainer, precision):
    trainer, module = make_trainer(max_epochs=2, precision=precision, **SMALL), tiny()
    trainer.fit(module, datamodule=digits())
    logged = float(trainer.callback_metrics["val/top1"])
    assert 0 < logged < 1
    assert validation_top1(trainer, module) == pytest.approx(logged)


# -- callbacks beside pruning -----------------------------------------------------------------------------------------


def company(folder):
    """Everything at once; the pruning callback before the averaging one."""
    return [
        pruning(),
        EMAWeightAveraging(decay=0.8),
        EarlyStopping("val/top1", mode="max", patience=2),
        LearningRateMonitor("step"),
        NaNGuard("skip"),
        ModelCheckpoint(folder / "steps", "{step}", every_n_train_steps=1, save_top_k=-1),
        ModelCheckpoint(folder / "best", "best", monitor="val/top1", mode="max", enable_version_counter=False),
    ]


def run(make_trainer, folder, ckpt_path=None, epochs=4, **kwargs):
    trainer = make_trainer(
        max_epochs=epochs,
        callbacks=company(folder),
        gradient_clip_val=0.5,
        enable_checkpointing=True,
        logger=CSVLogger(folder, name="", version=""),
        log_every_n_steps=1,
        default_root_dir=str(folder),
        **SMALL | kwargs,
    )
    module = tiny(finetune_lr=0.05, milestones=[1])
    trainer.fit(module, datamodule=digits(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def states(trainer):
    """What the run ended with: weights (the averaged ones), and the callbacks' own memory without their paths."""
    kept = {type(c).__name__: c.state_dict() for c in trainer.callbacks if not isinstance(c, ModelCheckpoint)}
    kept["HRankPruning"].pop("dense_checkpoint")
    scores = [c.best_model_score for c in trainer.callbacks if isinstance(c, ModelCheckpoint)]
    return {"weights": trainer.lightning_module.state_dict(), "scores": scores, **kept}


def rates(folder):
    return {row["step"]: row["lr-SGD"] for row in metrics(folder) if row["lr-SGD"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    from lightning.pytorch import Trainer

    quiet = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "enable_model_summary": False}
    folder = tmp_path_factory.mktemp("company")
    trainer = run(lambda **kwargs: Trainer(use_distributed_sampler=False, **quiet, **kwargs), folder)
    assert trainer.current_epoch == 4
    return folder, states(trainer)


@EVERY_STOP
def test_resumed_beside_everything_it_is_bit_equal(make_trainer, tmp_path, whole, step):
    folder, expected = whole
    checkpoint = folder / "steps" / f"step={step}.ckpt"
    assert (torch.load(checkpoint, weights_only=True)["hyper_parameters"]["plan"] is None) == (step <= 2 * STEPS)
    resumed = run(make_trainer, tmp_path, ckpt_path=checkpoint)
    ours = states(resumed)
    for name, state in expected.items():
        if name != "scores" or step > 2 * STEPS:  # a score in another directory starts afresh: Lightning's own callback
            assert_close(ours[name], state, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")
    before, after = rates(folder), rates(tmp_path)
    assert after == {at: rate for at, rate in before.items() if int(at) >= step}
    assert [float(before[str(at)]) for at in (0, STEPS, 2 * STEPS, 3 * STEPS)] == pytest.approx(
        [0.1, 0.01, 0.05, 0.005]
    )


def test_what_is_tested_is_the_average_that_validation_chose(make_trainer, tmp_path):
    """After the fit, in the same trainer and in a new one with or without the callbacks."""
    trainer = run(make_trainer, tmp_path)
    best = tmp_path / "best" / "best.ckpt"
    alone = HRank.load_from_checkpoint(best, weights_only=True)
    expected = make_trainer(**SMALL).test(alone, datamodule=digits(), verbose=False)[0]
    saved = torch.load(best, weights_only=True)
    assert not torch.equal(saved["state_dict"]["model.fc.weight"], saved["current_model_state"]["model.fc.weight"])
    module = trainer.lightning_module
    after = trainer.test(module, datamodule=digits(), ckpt_path=best, verbose=False, weights_only=True)[0]
    assert after["test/loss"] == pytest.approx(expected["test/loss"], abs=0)
    assert_close(dict(module.state_dict()), dict(alone.state_dict()), rtol=0, atol=0)
    others = company(tmp_path / "other")
    fresh = make_trainer(callbacks=others, logger=CSVLogger(tmp_path), enable_checkpointing=True, **SMALL)
    with pytest.warns(UserWarning, match="loading a checkpoint outside the 'fit' stage"):
        again = fresh.test(tiny(), datamodule=digits(), ckpt_path=best, verbose=False, weights_only=True)[0]
    assert again["test/loss"] == pytest.approx(expected["test/loss"], abs=0)


def test_pruning_refuses_company_that_cannot_follow(make_trainer):
    for callbacks, message in (
        ([pruning(), StochasticWeightAveraging(1e-2)], "StochasticWeightAveraging .* use WeightAveraging"),
        ([EMAWeightAveraging(), pruning()], "HRankPruning must stand before EMAWeightAveraging"),
    ):
        with pytest.raises(ValueError, match=message):
            make_trainer(max_epochs=1, callbacks=callbacks, **SMALL).fit(tiny(), datamodule=digits())


# -- accumulated gradients --------------------------------------------------------------------------------------------


def test_accumulated_steps_resume_bit_equal(make_trainer, tmp_path):
    """Three batches make two steps, the second of one batch; Lightning saves by steps, so never inside a window."""

    def fit(folder, ckpt_path=None):
        saving = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = make_trainer(
            max_epochs=4,
            callbacks=[pruning(), saving],
            accumulate_grad_batches=2,
            enable_checkpointing=True,
            **SMALL | {"limit_train_batches": 3},
        )
        module = tiny(momentum=0.5)
        trainer.fit(module, datamodule=digits(), ckpt_path=ckpt_path, weights_only=True)
        assert trainer.global_step == 8
        return module.state_dict()

    expected = fit(tmp_path / "whole")
    paths = sorted((tmp_path / "whole").glob("*.ckpt"))
    assert len(paths) == 8
    for path in paths[:7:3]:
        assert_close(fit(tmp_path / path.stem, path), expected, rtol=0, atol=0)


# -- every recipe -----------------------------------------------------------------------------------------------------


BY_HAND = (
    "nad",
    "bpe_darts",
    "bpe_mip",
    "bpe_random",
    "bpe_evolution",
    "bpe_reinforce",
    "asfd_search",
    "camera_stargan",
)


@pytest.mark.parametrize("recipe", [pytest.param(r, marks=[] if r == "hrank" else pytest.mark.slow) for r in RECIPES])
def test_recipe_runs_in_bfloat16_with_accumulated_gradients(recipe, overrides, tmp_path, monkeypatch, capsys):
    rank, seen = functional.feature_map_rank, set()
    monkeypatch.setattr(functional, "feature_map_rank", lambda maps: seen.add(maps.dtype) or rank(maps))
    words = [*overrides(recipe), "--trainer.precision", "bf16-mixed", "--trainer.accumulate_grad_batches", "2"]
    words += ["--trainer.limit_train_batches", "3", "--trainer.max_epochs", "2"]
    if recipe == "hrank":
        words += ["--model.backbone", "tiny", "--trainer.callbacks.rates", "0.5", "--trainer.callbacks.at_epoch", "1"]
    code = main("fit", [recipe, "--run_dir", str(tmp_path / "run"), *words])
    if recipe.startswith(BY_HAND):  # they make their steps themselves, and say so in one line
        assert code == 2
        assert "accumulate_grad_batches" in capsys.readouterr().err
        return
    assert code == 0
    checkpoint = last_checkpoint(tmp_path / "run")
    assert checkpoint["global_step"] in (2, 4)  # of three batches an epoch, or of the one or two that small data give
    assert {t.dtype for t in checkpoint["state_dict"].values() if t.is_floating_point()} == {torch.float32}
    summary = read_summary(tmp_path / "run")
    assert 0 <= summary[monitored(recipe)] <= 1
    assert seen == ({torch.float32} if recipe.startswith("hrank") else set())
    assert ("prune/macs" in summary) == recipe.startswith(("hrank", "filter_sketch"))
