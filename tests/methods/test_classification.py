import re
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ProgressBar
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from datamodules import CIFARDataModule
from lit_methods import HRank, ImageClassifier, Predictor
from lit_methods.backbones import BACKBONES, PrunePlan, apply_masks, build_backbone
from lit_methods.backbones.resnet_cifar import CifarResNet, entry
from lit_methods.backbones.weights import load_weights, read_weights
from lit_methods.classification import lr_factor
from lit_methods.contract import Exports, Predicts
from lit_methods.exporting import export_module

PLAN = PrunePlan("resnet20", {"conv1": [0, 3, 9], "layer1.0.conv1": [0, 2, 5, 7, 11]}).to_dict()


@pytest.fixture
def loader():
    images = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return DataLoader([{"image": image, "label": torch.tensor(i % 4)} for i, image in enumerate(images)], batch_size=8)


def test_overfits_one_batch(make_trainer, loader):
    module = ImageClassifier("tiny", num_classes=4, mean=[0.5] * 3, std=[0.25] * 3, lr=0.1)
    make_trainer(max_epochs=150, overfit_batches=1).fit(module, loader, loader)
    batch = next(iter(loader))
    module.eval()
    assert (module(batch["image"]).argmax(1) == batch["label"]).all()


def test_metrics_count_samples_not_batches(make_trainer):
    """Ten right answers of batch size 8 and 2: a mean of batch means would say 0.75."""
    images = torch.zeros(10, 3, 8, 8)
    images[8:] = 1
    data = [{"image": image, "label": torch.tensor(int(image.mean() < 0.5))} for image in images]

    class Bright(nn.Module):
        def forward(self, x):
            bright = x.mean((1, 2, 3))
            return torch.stack([bright * 0, 1 - 2 * bright + 1.5], 1)  # always class 1

    module = ImageClassifier(Bright(), num_classes=2)
    results = make_trainer().test(module, DataLoader(data, batch_size=8), verbose=False)[0]
    assert results["test/top1"] == pytest.approx(0.8)
    logits = module(torch.stack([d["image"] for d in data]))
    expected = nn.functional.cross_entropy(logits, torch.stack([d["label"] for d in data]))
    assert results["test/loss"] == pytest.approx(float(expected))


def test_pruned_checkpoint_restores_its_own_shape(tmp_path, make_trainer, loader):
    trainer, pruned = make_trainer(max_epochs=1), HRank("resnet20", num_classes=4, plan=PLAN)
    trainer.fit(pruned, loader)
    trainer.save_checkpoint(tmp_path / "pruned.ckpt")
    torch.load(tmp_path / "pruned.ckpt", weights_only=True)
    resumed = HRank("resnet20", num_classes=4)  # unpruned: the checkpoint decides
    make_trainer(max_epochs=2).fit(resumed, loader, ckpt_path=tmp_path / "pruned.ckpt")
    assert resumed.model.layer1[0].conv1.out_channels == 5
    predictor = Predictor.from_checkpoint(tmp_path / "pruned.ckpt")
    assert type(predictor.module) is HRank
    assert_close(predictor.module.model.conv1.weight, pruned.model.conv1.weight, rtol=0, atol=0)


def test_network_given_as_object_is_not_in_the_checkpoint(tmp_path, make_trainer, loader):
    module = ImageClassifier(build_backbone("tiny", 4), num_classes=4)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, loader)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    again = ImageClassifier.load_from_checkpoint(
        tmp_path / "own.ckpt", backbone=build_backbone("tiny", 4), weights_only=True
    )
    assert_close(again.model.state_dict(), module.model.state_dict(), rtol=0, atol=0)


@pytest.mark.slow
def test_pruned_network_exports(tmp_path, monkeypatch):
    """One with residual sums, of which some lead to half the size."""
    eight = partial(CifarResNet, 1)
    monkeypatch.setitem(BACKBONES, "resnet8", entry(eight, blocks=1))
    plan = PLAN | {"arch": "resnet8"}
    module = HRank("resnet8", num_classes=4, plan=plan, mean=[0.5] * 3, std=[0.25] * 3).eval()
    assert isinstance(module, Predicts)
    assert isinstance(module, Exports)
    (file,) = export_module(module, tmp_path, ["torch"], repeats=1)
    images = torch.rand(5, 3, 36, 48)
    assert_close(torch.export.load(file.path).module()(images), module(images), rtol=1e-4, atol=1e-5)


def test_predictions_are_plain_and_sorted(tmp_path):
    module = ImageClassifier("tiny", num_classes=7, class_names=list("abcdefg")).eval()
    image = torch.rand(2, 3, 32, 32)
    for result, logits in zip(module.predict_step({"image": image}, 0), module(image), strict=True):
        assert result["labels"] == logits.argsort(descending=True)[:5].tolist()
        assert result["scores"] == pytest.approx(logits.softmax(0).sort(descending=True).values[:5].tolist())
        assert result["names"] == ["abcdefg"[i] for i in result["labels"]]
    drawn = module.draw(np.zeros((32, 32, 3), np.uint8), result | {"label": 6})
    assert drawn.dtype == np.uint8
    assert drawn.shape == (180, 160, 3)


class TestWeights:
    """Every way in: all tensors or none."""

    @pytest.fixture
    def trained(self):
        net = build_backbone("resnet20", 10)
        for buffer in net.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer))
        return net

    @pytest.mark.parametrize("form", ["npz", "safetensors", "pth", "official", "lightning"])
    def test_each_form_of_file(self, form, trained, tmp_path):
        state = trained.state_dict()
        path = tmp_path / f"weights.{form}"
        if form == "npz":  # as published: last layer called linear, no counters
            arrays = {k.replace("fc.", "linear."): v.numpy() for k, v in state.items() if "num_batches" not in k}
            np.savez(path, **arrays)
        elif form == "safetensors":
            save_file(state, path)
        elif form == "pth":
            torch.save(state, path)
        elif form == "official":
            torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
        else:
            prefixed = {f"model.{k}": v for k, v in state.items()}
            torch.save({"state_dict": prefixed, "hyper_parameters": {"plan": None}}, path)
        module = ImageClassifier("resnet20", base_checkpoint=str(path))
        wanted = {k: v for k, v in state.items() if "num_batches" not in k}
        got = {k: v for k, v in module.model.state_dict().items() if "num_batches" not in k}
        assert_close(got, wanted, rtol=0, atol=0)

    def test_other_names_in_the_same_order(self):
        """The official VGG counts its convolutions from 0, max-pools too: some names stand for other layers here."""
        target, source = build_backbone("vgg16_bn_cifar"), build_backbone("vgg16_bn_cifar")
        places = [0, 1, 3, 4, 6, 7, 8, 10, 11, 12, 14, 15, 16]
        official = {
            re.sub(r"(conv|norm)(\d+)", lambda m: f"{m[1]}{places[int(m[2]) - 1]}", k) if "features" in k else k: v
            for k, v in source.state_dict().items()
        }
        assert "features.conv0.weight" in official
        assert "features.conv1.weight" in official
        with pytest.warns(UserWarning, match="matched by their order"):
            load_weights(target, official)
        assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)

    def test_pruned_checkpoint_brings_its_plan(self, tmp_path, make_trainer, loader):
        trainer, pruned = make_trainer(max_epochs=1), HRank("resnet20", num_classes=4, plan=PLAN)
        trainer.fit(pruned, loader)
        trainer.save_checkpoint(tmp_path / "pruned.ckpt")
        module = HRank("resnet20", num_classes=4, base_checkpoint=str(tmp_path / "pruned.ckpt"))
        assert module.hparams["plan"] == PLAN
        assert_close(module.model.state_dict(), pruned.model.state_dict(), rtol=0, atol=0)

    def test_weights_of_the_full_network_are_cut_to_the_plan(self, trained, tmp_path):
        torch.save(trained.state_dict(), tmp_path / "r20.pth")
        module = HRank("resnet20", plan=PLAN, base_checkpoint=str(tmp_path / "r20.pth")).eval()
        assert_close(module.model.conv1.weight, trained.conv1.weight[[0, 3, 9]], rtol=0, atol=0)
        apply_masks(trained, PrunePlan.from_dict(PLAN))
        images = torch.rand(2, 3, 32, 32)
        assert_close(module(images), trained.eval()(images), rtol=1e-4, atol=1e-5)

    def test_checkpoints_do_not_need_the_file_they_started_from(self, trained, tmp_path, make_trainer, loader):
        torch.save(trained.state_dict(), tmp_path / "r20.pth")
        module = HRank("resnet20", base_checkpoint=str(tmp_path / "r20.pth"))
        trainer = make_trainer(max_epochs=1, limit_train_batches=1)
        trainer.fit(module, loader)
        trainer.save_checkpoint(tmp_path / "tuned.ckpt")
        (tmp_path / "r20.pth").unlink()
        HRank.load_from_checkpoint(tmp_path / "tuned.ckpt", weights_only=True)

    def test_heads_beside_the_network_are_not_dropped(self, trained, tmp_path):
        state = {f"model.{k}": v for k, v in trained.state_dict().items()} | {"head.weight": torch.zeros(2)}
        torch.save({"state_dict": state, "hyper_parameters": {"plan": None}}, tmp_path / "own.ckpt")
        with pytest.raises(ValueError, match=r"does not fit"):
            HRank("resnet20", base_checkpoint=str(tmp_path / "own.ckpt"))

    def test_another_network_is_refused_with_a_table(self, trained, tmp_path):
        torch.save(trained.state_dict(), tmp_path / "r20.pth")
        with pytest.raises(ValueError, match=r"does not fit this CifarResNet: \d+ missing, 0 unexpected"):
            ImageClassifier("resnet56", base_checkpoint=str(tmp_path / "r20.pth"))
        with pytest.raises(ValueError, match=r"2 of another shape\n  fc.weight +file \(10, 64\) +network \(100, 64\)"):
            ImageClassifier("resnet20", num_classes=100, base_checkpoint=str(tmp_path / "r20.pth"))

    def test_missing_hostile_and_empty_files(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            read_weights(str(tmp_path / "none.pth"))

        class Evil:
            def __reduce__(self):
                return (tmp_path.joinpath("ran").touch, ())

        torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
        with pytest.raises(ValueError, match="cannot be read as weights"):
            read_weights(str(tmp_path / "evil.pth"))
        assert not (tmp_path / "ran").exists()
        torch.save({"epoch": 3}, tmp_path / "empty.pth")
        with pytest.raises(ValueError, match="holds no weights; its keys are epoch"):
            read_weights(str(tmp_path / "empty.pth"))
        with pytest.raises(ValueError, match="no torchvision weights entry"):
            read_weights("ResNet50_Weights.NO_SUCH")


class TestSchedule:
    def run(self, make_trainer, loader, epochs, max_steps=-1, **kwargs):
        rates = []

        class Noting(ImageClassifier):
            def on_train_batch_start(self, batch, batch_idx):
                rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

        make_trainer(max_epochs=epochs, max_steps=max_steps).fit(Noting("tiny", num_classes=4, **kwargs), loader)
        return rates

    def test_multistep(self, make_trainer, loader):
        rates = self.run(make_trainer, loader, 3, lr=0.1, milestones=[1, 2], gamma=0.5)
        assert rates == pytest.approx([0.1] * 3 + [0.05] * 3 + [0.025] * 3)

    def test_warmup_per_step_then_cosine_per_epoch(self, make_trainer, loader):
        rates = self.run(make_trainer, loader, 4, lr=0.6, schedule="cosine", warmup_epochs=2)
        assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6] + [0.6] * 3 + [0.3] * 3)

    def test_cosine_over_a_run_that_is_given_in_steps(self, make_trainer, loader):
        rates = self.run(make_trainer, loader, -1, lr=0.4, schedule="cosine", max_steps=12)
        assert rates == pytest.approx(
            [0.4 * 0.5 * (1 + np.cos(np.pi * epoch / 4)) for epoch in (0, 1, 2, 3) for _ in "abc"]
        )

    def test_max_steps_does_not_shorten_the_warmup(self, make_trainer, loader):
        rates = self.run(make_trainer, loader, 9, lr=0.6, warmup_epochs=2, max_steps=4)
        assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])

    def test_cosine_of_a_network_that_was_pruned_in_epoch_one(self, make_trainer, loader):
        module = ImageClassifier("tiny", num_classes=4, schedule="cosine", start_epoch=1)
        make_trainer(max_epochs=5).fit(module, loader)
        factor = module.lr_schedulers().lr_lambdas[0]  # counts from its own beginning, and ends with the run
        assert [factor(epoch) for epoch in (0, 2, 4)] == pytest.approx([1, 0.5, 0])

    def test_factor_follows_the_formula(self):
        factor = lr_factor(schedule="cosine", epochs=90, milestones=[], gamma=0.1, warmup=5, steps_per_epoch=10)
        for epoch in (5, 40, 89):
            assert factor(epoch * 10 + 3) == pytest.approx(0.5 * (1 + np.cos(np.pi * (epoch - 5) / 85)))

    def test_pruned_networks_have_their_own_rate(self, make_trainer, loader):
        plan = {"arch": "tiny", "keep": {"body.conv1": [0, 1]}, "residual": "live"}
        assert self.run(make_trainer, loader, 1, lr=0.1, finetune_lr=0.02, plan=plan)[0] == 0.02
        assert self.run(make_trainer, loader, 1, lr=0.1, plan=plan)[0] == 0.1


def test_optimiser_and_loss_take_what_is_given(make_trainer, loader):
    module = ImageClassifier("tiny", num_classes=4, momentum=0.7, weight_decay=0.03, label_smoothing=0.2)
    make_trainer(fast_dev_run=True).fit(module, loader)
    assert (module.optimizers().defaults["momentum"], module.optimizers().defaults["weight_decay"]) == (0.7, 0.03)
    logits, label = torch.tensor([[2.0, 0.0, -1.0, 0.0]]), torch.tensor([0])
    log_p = logits.log_softmax(1)[0]
    assert float(module.loss(logits, {"label": label})) == pytest.approx(float(-0.8 * log_p[0] - 0.2 * log_p.mean()))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"backbone": "resnet57"}, "resnet56"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"mean": [0.5] * 3}, "go together"),
        ({"mean": [0.5] * 3, "std": [0.0] * 3}, "must be positive"),
        ({"class_names": ["a"] * 11}, "num_classes=10 is fewer than the 11 class_names"),
        ({"schedule": "cos"}, "schedule='cos' must be"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1.0 must lie in \[0, 1\)"),
        ({"lr": 0.0}, "lr=0.0 must be positive"),
        ({"finetune_lr": -1.0}, "finetune_lr=-1.0 must be positive"),
        ({"momentum": 1.0}, r"momentum=1.0 must lie in \[0, 1\)"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 must not be negative"),
        ({"gamma": 0.0}, "gamma=0.0 must be positive"),
        ({"mean": [0.5], "std": [0.5]}, "one value per channel"),
        ({"num_classes": 1}, "num_classes=1 must be at least 2"),
        ({"warmup_epochs": -1}, "warmup_epochs=-1"),
        ({"plan": {"arch": "resnet56", "keep": {}, "residual": "live"}}, "resnet56"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ImageClassifier(**{"backbone": "resnet20"} | kwargs)


def test_more_classes_in_the_data_than_in_the_model(make_trainer):
    with pytest.raises(ValueError, match=r"model.num_classes=4, but the data has 10 classes"):
        make_trainer(max_epochs=1).fit(ImageClassifier("tiny", num_classes=4), datamodule=CIFARDataModule("digits"))


@pytest.mark.parametrize("function", ["validate", "test", "predict"])
@pytest.mark.parametrize(
    ("names", "shown"), [(["cats", "dogs"], " (cats, dogs)"), (list("abcd"), " (a, b, c, ...)"), (None, "")]
)
def test_more_classes_in_the_data_than_in_the_checkpoint(make_trainer, function, names, shown):
    module = ImageClassifier("tiny", num_classes=len(names or "ab"), class_names=names)
    module.model(torch.rand(4, 3, 32, 32))  # trained, as a checkpoint's network is
    message = f"the network knows {len(names or 'ab')} classes{shown}, the data has 10; give the data it was trained"
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(make_trainer(), function)(module, datamodule=CIFARDataModule("digits"))


@pytest.mark.parametrize("bar", [True, False])
def test_the_loss_and_the_accuracy_of_validation_are_in_the_progress_bar(make_trainer, loader, bar):
    trainer = make_trainer(max_epochs=1, enable_progress_bar=bar, callbacks=[ProgressBar()] if bar else [])
    trainer.fit(ImageClassifier("tiny", num_classes=4), loader, loader)
    # without a bar nobody looks: a GPU need not wait in every step
    assert trainer.progress_bar_metrics.keys() == ({"train/loss", "val/top1"} if bar else {"val/top1"})
    assert list(trainer.callback_metrics) == ["train/loss", "val/loss", "val/top1", "val/top4"]


def test_validating_an_untrained_network_is_said_except_in_a_fit(make_trainer, loader):
    with pytest.warns(UserWarning, match="no trained weights"):
        make_trainer().validate(ImageClassifier("tiny", num_classes=4), loader, verbose=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        make_trainer(max_epochs=1).fit(ImageClassifier("tiny", num_classes=4), loader, loader)  # sanity check included
    assert not [warning for warning in said if "no trained weights" in str(warning.message)]


def test_grey_tensors_are_refused_before_training(make_trainer):
    data = [{"image": torch.rand(1, 32, 32), "label": torch.tensor(0)}] * 4
    module = ImageClassifier("tiny", num_classes=4)
    with pytest.raises(ValueError, match=r"must be RGB \(B, 3, H, W\), got \(1, 1, 32, 32\)"):
        make_trainer(max_epochs=1).fit(module, DataLoader(data), DataLoader(data))


def test_data_of_other_classes_and_untrained_networks_are_said(make_trainer):
    data = CIFARDataModule("digits", batch_size=64, num_workers=0)
    module = ImageClassifier("tiny", num_classes=10, class_names=[f"class {i}" for i in range(10)])
    with pytest.warns(UserWarning, match="no trained weights") as said:
        make_trainer(limit_test_batches=1).test(module, datamodule=data, verbose=False)
    told = " ".join(str(warning.message) for warning in said)
    assert "the data has other classes (0, 1, 2, ...) than those the network was trained on (class 0, " in told


def test_pruned_checkpoint_of_another_network(make_trainer, tmp_path, loader):
    trainer = make_trainer(max_epochs=1, limit_train_batches=1)
    trainer.fit(HRank("resnet20", num_classes=4, plan=PLAN), loader)
    trainer.save_checkpoint(tmp_path / "pruned.ckpt")
    with pytest.raises(ValueError, match="holds a pruned resnet20, the network is resnet56"):
        make_trainer(max_epochs=2).fit(HRank("resnet56", num_classes=4), loader, ckpt_path=tmp_path / "pruned.ckpt")
