"""D14: NaN in input, loss and gradient, infinity in bfloat16; a skipped step leaves no trace, also with many ranks."""

import json
import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.testing import assert_close
from torch.utils.data import DataLoader

from callbacks import NaNGuard
from callbacks.nan_guard import FILE, NonFiniteError
from callbacks.surgery import replace_network
from lit_methods import ImageClassifier
from lit_methods.backbones import PrunePlan, prune_model
from lit_methods.cli import main
from tests.two_processes import assert_equal_ranks, run

BATCH = 4
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
}


class Poisoned(ImageClassifier):
    """A classifier that meets something bad in some batches, or (``what="nothing"``) does not see those at all."""

    def __init__(self, what="nothing", batches=(), optimizer="sgd", value=math.nan, **kwargs):
        super().__init__("tiny", num_classes=4, **kwargs)
        self.what, self.batches, self.value = what, batches, value
        self.optimizer = optimizer

    def training_step(self, batch, batch_idx):
        if batch_idx not in self.batches:
            return super().training_step(batch, batch_idx)
        if self.what == "nothing":
            return None  # Lightning then has no gradients to step with, and batch norm has seen nothing
        if self.what == "input":
            batch["image"][1, 2, 3, 3] = self.value
        loss = super().training_step(batch, batch_idx)
        return loss + self.value if self.what == "loss" else loss

    def on_train_batch_start(self, batch, batch_idx):
        self.now = batch_idx

    def on_after_backward(self):
        if self.what == "gradient" and self.now in self.batches:
            self.model.fc.weight.grad[0, 0] = self.value

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        if self.what != "nothing" or self.now not in self.batches:  # torch cannot clip nothing by value
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self):
        optimizer = OPTIMIZERS[self.optimizer](self.parameters())
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class PoisonedInput(Poisoned):
    """The picture itself is bad, as the guard sees it."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if self.trainer.training and 13 in batch["index"]:
            batch["image"][batch["index"] == 13] = math.nan
        return batch


def loader(batches=6):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(batches * BATCH, 3, 16, 16, generator=generator)
    samples = [{"image": x, "label": torch.tensor(i % 4), "index": torch.tensor(i)} for i, x in enumerate(images)]
    return DataLoader(samples, batch_size=BATCH)


def fit(make_trainer, module, guard=None, epochs=2, callbacks=(), ckpt_path=None, **kwargs):
    callbacks = [*callbacks, *([guard] if guard else [])]
    trainer = make_trainer(max_epochs=epochs, callbacks=callbacks, num_sanity_val_steps=0, **kwargs)
    torch.manual_seed(5)
    module.model.load_state_dict(ImageClassifier("tiny", num_classes=4).model.state_dict())
    trainer.fit(module, loader(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def lines(folder):
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def assert_equal_runs(one, two):
    assert_close(one.lightning_module.state_dict(), two.lightning_module.state_dict(), rtol=0, atol=0)
    a, b = one.optimizers[0].state_dict()["state"], two.optimizers[0].state_dict()["state"]
    assert a.keys() == b.keys()
    assert_close(list(a.values()), list(b.values()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("what", "optimizer", "value", "kwargs"),
    [
        ("input", "sgd", math.nan, {}),
        ("loss", "sgd", math.nan, {"gradient_clip_val": 0.1}),
        ("gradient", "sgd", math.inf, {"gradient_clip_val": 0.1}),
        ("input", "adam", math.inf, {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}),
        ("gradient", "adamw", math.nan, {}),
        ("loss", "adamw", math.inf, {"precision": "bf16-mixed"}),
        ("input", "sgd", math.inf, {"precision": "bf16-true"}),
        ("loss", "fused", math.nan, {}),
    ],
)
def test_a_skipped_step_leaves_no_trace(make_trainer, tmp_path, what, optimizer, value, kwargs):
    """Weights, running statistics and moments are, to the bit, those of a run that never saw the batch."""
    guard = NaNGuard("skip")
    with pytest.warns(UserWarning, match=r"Skipped, 1 of at most 10"):
        guarded = fit(make_trainer, Poisoned(what, (2,), optimizer, value), guard, **kwargs)
    assert guarded.gradient_clip_val == kwargs.get("gradient_clip_val")
    clean = fit(make_trainer, Poisoned("nothing", (2,), optimizer), **kwargs)
    assert_equal_runs(guarded, clean)
    assert guarded.global_step == clean.global_step == 12
    assert all(tensor.isfinite().all() for tensor in guarded.lightning_module.state_dict().values())
    assert guard.summary() == {"nan_guard/skipped_steps": 2}
    found = lines(tmp_path)
    assert [(line["step"], line["epoch"], line["batch_idx"]) for line in found] == [(2, 0, 2), (8, 1, 2)]
    assert all(line["samples"] == [8, 9, 10, 11] and line["rank"] == 0 for line in found)
    assert all(line["parameters"] for line in found) == ("gradient" in found[0]["not_finite"])
    expected = {"input": ["loss", "gradient"], "loss": ["loss"], "gradient": ["gradient"]}[what]
    assert set(expected) <= set(found[0]["not_finite"])


def test_without_trouble_the_guard_changes_nothing(make_trainer, tmp_path):
    guarded, bare = fit(make_trainer, Poisoned(), NaNGuard()), fit(make_trainer, Poisoned())
    assert_equal_runs(guarded, bare)
    assert not (tmp_path / FILE).exists()
    huge = Poisoned("gradient", (1,), value=1e30)  # the norm overflows, no value does
    with pytest.raises(NonFiniteError):  # it did reach the weights, and the next loss
        fit(make_trainer, huge, NaNGuard())
    assert lines(tmp_path)[0]["step"] > 1


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_loss_far_too_large_is_skipped_likewise(make_trainer, tmp_path, accumulated):
    kwargs = {"epochs": 1, "accumulate_grad_batches": accumulated}
    guard = NaNGuard("skip", max_loss=1e4)
    with pytest.warns(UserWarning, match=r"10 and 1 more\): loss 2000\d\.?\d*, above max_loss=10000; see"):
        guarded = fit(make_trainer, Poisoned("loss", (2,), value=2e4), guard, **kwargs)
    clean = fit(make_trainer, Poisoned("nothing", range(2, 2 + accumulated)), **kwargs)
    assert_equal_runs(guarded, clean)
    assert [(line["batch_idx"], line["not_finite"]) for line in lines(tmp_path)] == [(2, ["loss"])]
    fit(make_trainer, Poisoned("loss", (2,), value=9e3), NaNGuard(max_loss=1e4), **kwargs)  # large, but not too large
    with pytest.raises(ValueError, match="max_loss=0 must be positive"):
        NaNGuard(max_loss=0)


@pytest.mark.parametrize("bad", [0, 1])
def test_a_bad_batch_takes_its_accumulated_step_with_it(make_trainer, tmp_path, bad):
    guard = NaNGuard("skip")
    with pytest.warns(UserWarning, match="Skipped"):
        guarded = fit(make_trainer, Poisoned("input", (2 + bad,)), guard, epochs=1, accumulate_grad_batches=2)
    clean = fit(make_trainer, Poisoned("nothing", (2, 3)), epochs=1, accumulate_grad_batches=2)
    assert_equal_runs(guarded, clean)
    assert [line["batch_idx"] for line in lines(tmp_path)] == [2 + bad]


def test_only_the_gradient_is_bad_so_all_batches_of_the_step_are_suspects(make_trainer, tmp_path):
    module = Poisoned("gradient", (2,))
    with pytest.warns(UserWarning, match="Skipped"):
        fit(make_trainer, module, NaNGuard("skip"), epochs=1, accumulate_grad_batches=2)
    found = lines(tmp_path)
    assert [(line["batch_idx"], line["not_finite"]) for line in found] == [(2, ["gradient"]), (3, ["gradient"])]
    assert found[0]["parameters"] == ["model.fc.weight"]
    assert found[0]["loss"][0] == pytest.approx(1.4, abs=0.3)  # of the batch, not its share of the step


def test_stop_names_the_batch_and_leaves_a_good_state(make_trainer, tmp_path):
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1, save_on_exception=True)
    module = PoisonedInput()
    with pytest.raises(NonFiniteError) as error:
        fit(make_trainer, module, NaNGuard(), callbacks=[saving], enable_checkpointing=True)
    text = str(error.value)
    assert "step 3 (epoch 0, batch 3, samples 12, 13, 14 and 1 more): input, loss, gradient not finite" in text
    assert FILE in text
    assert "look at these samples" in text
    assert "\n" not in text
    clean = fit(make_trainer, Poisoned("nothing", (3, 4, 5)), epochs=1)
    assert_close(module.state_dict(), clean.lightning_module.state_dict(), rtol=0, atol=0)
    for path in tmp_path.glob("*.ckpt"):  # also the one that the exception left
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert all(tensor.isfinite().all() for tensor in weights.values())


def test_the_run_stops_after_max_skips_in_total_also_across_a_resume(make_trainer, tmp_path):
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=6, save_top_k=-1)
    kwargs = {"callbacks": [saving], "enable_checkpointing": True}
    with pytest.warns(UserWarning, match="2 of at most 3"):
        fit(make_trainer, Poisoned("loss", (1, 4)), NaNGuard("skip", max_skips=3), epochs=1, **kwargs)
    resumed, module = NaNGuard("skip", max_skips=3), Poisoned("loss", (1, 4))
    with (
        pytest.warns(UserWarning, match="3 of at most 3"),
        pytest.raises(NonFiniteError, match="max_skips=3 skips are used up"),
    ):
        fit(make_trainer, module, resumed, epochs=9, ckpt_path=tmp_path / "step=6.ckpt", **kwargs)
    assert module.trainer.global_step == 10
    resumed.load_state_dict({"skipped": 2})  # as a test of an earlier checkpoint does
    assert resumed.summary() == {"nan_guard/skipped_steps": 3}


def test_weights_that_overflow_by_themselves_never_replace_a_checkpoint(make_trainer, tmp_path):
    class Overflowing(Poisoned):
        def optimizer_step(self, *args):
            super().optimizer_step(*args)
            if self.now == 1:
                self.model.fc.weight.data[0, 0] = math.inf

    saving = ModelCheckpoint(tmp_path, "last", every_n_train_steps=1, enable_version_counter=False)
    module = Overflowing()
    with pytest.raises(NonFiniteError, match=r"step 2: model\.fc\.weight not finite any more"):
        fit(make_trainer, module, NaNGuard(), callbacks=[saving], enable_checkpointing=True)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 1
    with pytest.raises(NonFiniteError, match=r"The weights were spoiled before \(model\.fc\.weight\)"):
        fit(make_trainer, Overflowing(), NaNGuard("skip"))  # nothing that skipping would help
    assert lines(tmp_path)[-1]["not_finite"] == ["loss", "gradient", "weights"]


@pytest.mark.parametrize("optimizer", ["sgd", "fused"])
def test_with_a_loss_scaler(make_trainer, tmp_path, optimizer):
    """Overflowing gradients are its own business; a bad loss is not, and neither is what remains at scale 1."""

    def scaled(scale=2.0**16):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}, scaler

    plugin, scaler = scaled()
    trainer = fit(make_trainer, Poisoned("gradient", (1,), optimizer, math.inf), NaNGuard(), epochs=1, **plugin)
    assert trainer.global_step == 6
    assert scaler.get_scale() == 2.0**15
    assert not (tmp_path / FILE).exists()

    plugin, scaler = scaled()
    with pytest.warns(UserWarning, match="loss"):
        trainer = fit(make_trainer, Poisoned("loss", (1,), optimizer), NaNGuard("skip"), epochs=1, **plugin)
    assert all(tensor.isfinite().all() for tensor in trainer.lightning_module.state_dict().values())

    plugin, _ = scaled(scale=0.5)
    with pytest.raises(NonFiniteError, match="gradient"):
        fit(make_trainer, Poisoned("gradient", (1,), optimizer), NaNGuard(), epochs=1, **plugin)


def test_manual_optimisation_with_two_optimisers(make_trainer, tmp_path):
    """Neither is stepped with the bad loss; it is one skip and one line."""

    class Two(Poisoned):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            loss = self.loss(self(batch["image"]), batch)
            if batch_idx == 2:
                self.before = {key: value.clone() for key, value in self.state_dict().items()}
                loss = loss * math.nan
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()

        def on_train_batch_end(self, outputs, batch, batch_idx):
            if batch_idx == 2:
                self.after = dict(self.state_dict())
                assert_close(list(self.parameters()), [self.before[n] for n, _ in self.named_parameters()])

        def configure_optimizers(self):
            body, fc = self.model.body.parameters(), self.model.fc.parameters()
            return torch.optim.SGD(body, 0.1, momentum=0.9), torch.optim.Adam(fc)

    guard = NaNGuard("skip")
    with pytest.warns(UserWarning, match="Skipped, 1 of"):
        fit(make_trainer, Two(), guard, epochs=1)
    assert guard.skipped == len(lines(tmp_path)) == 1


def test_a_bad_batch_right_after_surgery(make_trainer, tmp_path):
    """Also for a guard that stands before the callback that replaces the network."""
    plan = PrunePlan("tiny", {"body.conv1": [1, 4], "body.conv3": [0, 7, 9]})

    class Swap(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.current_epoch == 1 and batch_idx == 0:
                replace_network(trainer, pl_module, prune_model(pl_module.model, plan))

    class OnceInEpochOne(Poisoned):
        def on_train_batch_start(self, batch, batch_idx):
            super().on_train_batch_start(batch, batch_idx)
            self.batches = (0,) if self.current_epoch == 1 else ()

    guarded = OnceInEpochOne("input", optimizer="adam")
    trainer = make_trainer(max_epochs=2, callbacks=[NaNGuard("skip"), Swap()])
    with pytest.warns(UserWarning, match="step 6 .*Skipped"):
        trainer.fit(guarded, loader())
    assert guarded.model.body.bn1.running_mean.isfinite().all()
    assert len(guarded.model.body.bn1.running_mean) == 2
    assert trainer.global_step == 12


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"action": "warn"}, "action='warn' must be"), ({"action": "skip", "max_skips": 0}, "max_skips=0 must be")],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        NaNGuard(**kwargs)


# -- through the command line, and on several processes ---------------------------------------------------------------

TINY = ["--model.backbone", "tiny", "--trainer.limit_train_batches", "6", "--data.num_workers", "0"]


class SpoilRankOne(Callback):
    """The second process alone meets something bad in batch 2.

    Args:
        what: ``"input"`` makes the averaged gradient bad everywhere; ``"loss"`` is seen by that process alone.
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.due = trainer.global_rank == 1 and batch_idx == 2
        if self.what == "input" and self.due:
            batch["image"][0] = math.nan

    def on_before_backward(self, trainer, pl_module, loss):
        if self.what == "loss" and self.due:
            loss.data.fill_(math.inf)


def test_every_run_of_the_command_line_has_one_and_says_it_in_one_line(tmp_path, capsys):
    words = ["hrank", *TINY, "--trainer.callbacks", "[]", "--trainer.accelerator", "cpu", "--run_dir", str(tmp_path)]
    assert main("fit", [*words, "--model.lr", "1e30", "--trainer.max_epochs", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: step 1 (epoch 0, batch 1, samples ")
    assert f"loss, gradient not finite; see {tmp_path / FILE}" in line
    assert len(lines(tmp_path)[0]["samples"]) == 64


@pytest.mark.slow
@pytest.mark.parametrize("what", ["input", "loss"])
def test_one_bad_rank_makes_all_of_them_skip(tmp_path, what):
    spoil = ["--trainer.callbacks", "[]", "--trainer.callbacks+=tests.callbacks.test_nan_guard.SpoilRankOne"]
    spoil += ["--trainer.callbacks.what", what, "--trainer.callbacks+=NaNGuard", "--trainer.callbacks.action", "skip"]
    many = run("hrank", [*TINY, *spoil, "--trainer.max_epochs", "2"], tmp_path / "run", processes=2)
    assert_equal_ranks(many)
    assert many.summary["nan_guard/skipped_steps"] == 2
    assert all(tensor.isfinite().all() for rank in many.ranks for tensor in rank["weights"].values())
    found = lines(tmp_path / "run")
    assert [(line["rank"], line["epoch"], line["batch_idx"]) for line in found] == [(1, 0, 2), (1, 1, 2)]
    assert found[0]["samples"] == many.ranks[1]["seen"]["train"][2]
    assert ("gradient" in found[0]["not_finite"]) == (what == "input")


@pytest.mark.slow
def test_one_bad_rank_stops_all_of_them(tmp_path):
    spoil = ["--trainer.callbacks", "[]", "--trainer.callbacks+=tests.callbacks.test_nan_guard.SpoilRankOne"]
    words = [*TINY, *spoil, "--trainer.callbacks.what", "loss", "--trainer.max_epochs", "2"]
    stopped = run("hrank", words, tmp_path / "run", processes=2, timeout=60, succeed=False)
    assert all(code > 0 for code in stopped.codes)
    assert "step 2 (epoch 0, batch 2, rank 1, samples" in stopped.err[0]
    assert lines(tmp_path / "run")[0]["rank"] == 1
