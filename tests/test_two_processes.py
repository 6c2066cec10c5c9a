"""Many processes: the same decisions, figures and weights as in one, and no end but a common one."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image
from torch.testing import assert_close

from callbacks import HRankPruning
from lit_methods.backbones import build_backbone
from tests.two_processes import (
    Run,
    assert_equal_ranks,
    assert_same_decisions,
    assert_same_metrics,
    assert_same_weights,
    run,
    run_both,
)

STEPS, IMAGES = 3, 50  # per epoch; for the ranks: not a multiple of the batch
SHORT = ["--trainer.limit_train_batches", STEPS, "--trainer.log_every_n_steps", 1, "--trainer.max_epochs", 3]
EXACT = ["--model.backbone", "tiny_nobn", "--trainer.precision", "64-true", *SHORT]
NORM = ["--model.backbone", "tiny", "--model.lr", 0.05, *SHORT]

pytestmark = pytest.mark.usefixtures("no_figures")

RECIPES = pytest.mark.parametrize("recipe", ["hrank", "filter_sketch"])


def pruning(rates="0.5", recipe: str = "hrank", **arguments: object) -> list[object]:
    """Arguments of the recipe's last callback."""
    ranks = {"num_images": IMAGES} if recipe == "hrank" else {}
    arguments = {"rates": rates, "at_epoch": 1, **ranks} | arguments
    return [word for key, value in arguments.items() for word in (f"--trainer.callbacks.{key}", value)]


@pytest.fixture
def base(tmp_path: Path) -> str:
    """Weights to start from: of a batch norm that has seen something."""
    network = build_backbone("tiny", 10)
    network(torch.rand(8, 3, 32, 32))
    np.savez(tmp_path / "base.npz", **{key: value.numpy() for key, value in network.state_dict().items()})
    return str(tmp_path / "base.npz")


class KeepMaps(Callback):
    """Writes down the calibration images of this process and the mean ranks of its own batches."""

    def setup(self, trainer, pl_module, stage):
        self.indices, loader_of = [], trainer.datamodule.calibration_dataloader

        def noting(*args, **kwargs):
            loader = loader_of(*args, **kwargs)
            for batch in loader:
                self.indices += batch["index"].tolist()
            return loader

        if stage == "fit":
            trainer.datamodule.calibration_dataloader = noting

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 0:
            self.indices.clear()  # what a check before the run asked for

    def on_fit_end(self, trainer, pl_module):
        (pruner,) = [callback for callback in trainer.callbacks if isinstance(callback, HRankPruning)]
        kept = {"indices": self.indices, "means": {c: m.mean(0) for c, m in pruner.batch_means.items()}}
        torch.save(kept, Path(trainer.default_root_dir, f"maps{trainer.global_rank}.pt"))


def maps(run: Run) -> list[dict]:
    return [torch.load(run.path / f"maps{rank}.pt", weights_only=False) for rank in range(len(run.codes))]


def test_pruning_inside_the_fit(tmp_path):
    """Different images and maps on each process, one plan; the weights of one process without batch norm."""
    words = [*EXACT, *pruning(), "--trainer.callbacks+=tests.test_two_processes.KeepMaps"]
    one, two = run_both("hrank", words, tmp_path)
    assert one.plan["keep"].keys() == {"body.conv1", "body.conv2", "body.conv3"}
    assert_same_decisions(one, two)
    assert_same_metrics(one, two, keys=("val/", "test/", "prune/val_top1", "prune/macs", "prune/params"))
    assert_same_weights(one, two, atol=1e-6)
    assert {"test/top1", "test/dense_top1"} <= one.summary.keys()

    (alone,), shares = maps(one), maps(two)
    assert sorted(shares[0]["indices"] + shares[1]["indices"]) == sorted(alone["indices"])
    assert len(set(alone["indices"])) == IMAGES
    assert any((shares[0]["means"][conv] != shares[1]["means"][conv]).any() for conv in alone["means"])

    steps = 3 * STEPS * 32
    assert one.seen("train") == two.seen("train")
    assert len(two.seen("train")) == steps
    assert one.seen("test") == two.seen("test") == list(range(359))  # an odd number: no sample twice


@pytest.mark.slow
def test_sketching_inside_the_fit(tmp_path):
    """Weights that differ by rounding between one process and two have sketches that differ by rounding."""
    words = [*EXACT, *pruning(recipe="filter_sketch"), "--trainer.max_epochs", 2]
    one, two = run_both("filter_sketch", words, tmp_path)
    assert one.plan == {"arch": "tiny_nobn", "mid": {"body.conv1": 4, "body.conv2": 6}}
    assert_same_decisions(one, two)
    assert_same_metrics(one, two, keys=("val/", "test/", "prune/"))
    assert_same_weights(one, two, atol=1e-6)
    assert {"test/top1", "test/dense_top1", "prune/covariance_error_max"} <= one.summary.keys()


@pytest.mark.slow
@RECIPES
def test_a_target_is_met_by_the_same_network(tmp_path, recipe):
    words = [*EXACT, *pruning(recipe=recipe), "--trainer.callbacks.rates", "null", "--trainer.max_epochs", 2]
    words += ["--trainer.callbacks.target_macs", 0.5, "--trainer.callbacks.allocation", "global"]
    one, two = run_both(recipe, words, tmp_path)
    assert one.summary["prune/macs"] <= 0.5 * one.summary["prune/dense_macs"]
    assert_same_decisions(one, two)
    assert_same_weights(one, two, atol=1e-6)
    said = [text.count("target_macs=0.5 is met by") for text in one.out + two.out]
    assert said == [1, 1, 0]  # by the first process alone


@pytest.mark.slow
def test_pruning_before_training(tmp_path):
    network = build_backbone("tiny_nobn", 10)
    np.savez(tmp_path / "base.npz", **{key: value.numpy() for key, value in network.state_dict().items()})
    words = [*EXACT, *pruning(at_epoch=0), "--model.base_checkpoint", tmp_path / "base.npz"]
    one, two = run_both("hrank", words, tmp_path)
    assert_same_decisions(one, two)
    assert_same_metrics(one, two)
    assert_same_weights(one, two, atol=1e-6)


@pytest.mark.slow
def test_layer_by_layer(tmp_path):
    words = [*EXACT, *pruning(mode="layerwise", epochs_per_layer=2), "--trainer.max_epochs", 8]
    one, two = run_both("hrank", words, tmp_path)
    assert one.ranks[0]["callbacks"]["HRankPruning"]["stages_done"] == 3
    assert_same_decisions(one, two)
    assert_same_metrics(one, two)
    assert_same_weights(one, two, atol=1e-6)
    best = [r.ranks[0]["callbacks"]["HRankPruning"]["best"] for r in (one, two)]
    assert best[0]["seen"] == best[1]["seen"] == 7
    assert best[0]["top1"] == pytest.approx(best[1]["top1"])


@pytest.mark.slow
@RECIPES
def test_with_batch_norm_the_decisions_are_the_same_and_the_loss_falls_alike(tmp_path, base, recipe):
    rate = {"hrank": 0.05, "filter_sketch": 0.02}[recipe]  # at which forty steps are enough
    words = [*NORM, *pruning(recipe=recipe, at_epoch=0), "--model.base_checkpoint", base, "--model.finetune_lr", rate]
    one, two = run_both(recipe, [*words, "--trainer.limit_train_batches", 40], tmp_path)
    assert_same_decisions(one, two)
    losses = [r.logged("val/loss") for r in (one, two)]
    assert len(losses[0]) == len(losses[1]) == 3
    assert all(loss[-1] < loss[0] - 0.2 for loss in losses)
    assert losses[1][-1] == pytest.approx(losses[0][-1], abs=0.2)


@pytest.mark.slow
def test_processes_agree_on_running_statistics_without_validation(tmp_path):
    """DDP evens them out only before a step; nothing but training lies between the last one and surgery here."""
    words = [*NORM, *pruning(), "--trainer.limit_val_batches", 0, "--data.batch_size", 16]
    words += ["--checkpoint.monitor", "null"]
    two = run("hrank", words, tmp_path / "two", processes=2)
    assert two.plan is not None
    parameters = [{k: v for k, v in r["weights"].items() if "running" not in k} for r in two.ranks]
    assert_close(parameters[1], parameters[0], rtol=0, atol=0)


class Stray(HRankPruning):
    """A pruning that decides from what one process alone knows."""

    def decide(self, trainer, module):
        plan = super().decide(trainer, module)
        if trainer.global_rank == 1:
            with torch.no_grad():
                module.model.fc.bias += 1e-3
        return plan


@pytest.mark.slow
def test_networks_that_differ_after_surgery_end_all_processes(tmp_path):
    words = [*NORM, "--data.batch_size", 16, "--trainer.callbacks+=tests.test_two_processes.Stray", *pruning()]
    two = run("hrank", ["--trainer.callbacks", "[]", *words], tmp_path / "two", processes=2, succeed=False)
    assert two.codes == [1, 1]
    assert all("the processes have different networks after surgery (checksums " in text for text in two.err)


@pytest.mark.slow
def test_stopping_early_is_decided_together(tmp_path):
    words = [*EXACT, "--trainer.max_epochs", 12, "--model.lr", 0.3, "--model.finetune_lr", 0.3, *pruning()]
    words += ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "val/loss"]
    words += ["--trainer.callbacks.patience", 1]
    one, two = run_both("hrank", words, tmp_path)
    states = [{key.partition("{")[0]: state for key, state in r.ranks[0]["callbacks"].items()} for r in (one, two)]
    assert [state["EarlyStopping"]["stopped_epoch"] for state in states] == [3, 3]  # of 12; pruned in 1
    assert_same_weights(one, two, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [EXACT, NORM], ids=["float64 without batch norm", "batch norm"])
def test_resume_in_the_middle_of_an_epoch_is_bit_equal(tmp_path, arch):
    """On two processes, right after pruning (steps 3 to 5) and in the epoch after it."""
    words = [*arch, *pruning(), "--data.batch_size", 16]
    saving = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps", 1]
    saving += ["--trainer.callbacks.save_top_k", -1, "--trainer.callbacks.filename", "{step}"]
    whole = run("hrank", [*words, *saving, "--trainer.callbacks.dirpath", tmp_path / "steps"], tmp_path / "whole", 2)
    assert_equal_ranks(whole)
    for step in (2, 4, 8):
        words_ = [*words, "--ckpt_path", tmp_path / "steps" / f"step={step}.ckpt"]
        resumed = run("hrank", words_, tmp_path / f"from {step}", 2)
        assert_equal_ranks(resumed)
        assert resumed.plan == whole.plan
        assert_same_weights(whole, resumed, atol=0)


# --- evaluation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_evaluation_counts_each_sample_once(tmp_path, processes):
    """143 images for validation and 359 for the test: odd, and no multiple of 3."""
    words = ["--model.backbone", "tiny", "--trainer.callbacks", "[]", "--data.batch_size", 50]
    for entry, stage, images in (("test", "test", 359), ("validate", "val", 143)):
        one, many = (run("hrank", words, tmp_path / f"{entry}{n}", n, entry) for n in (1, processes))
        assert_same_metrics(one, many, keys=(f"{stage}/",))
        assert len(many.seen(stage)) == len(set(many.seen(stage))) == images
        assert many.seen(stage) == one.seen(stage)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Two classes with three images each for training, one of them for validation, and one each for the test."""
    draws = np.random.default_rng(0)
    for name in [
        f"{split}/{kind}/{n}.png" for kind in "ab" for split, k in (("train", 3), ("val", 1)) for n in range(k)
    ]:
        path = tmp_path / "few" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return tmp_path / "few"


def pictures(root: Path, batch_size: int = 2, **data: object) -> list[object]:
    """The ImageNet format with a network that has batch norm, unpruned."""
    arguments = {"root": root, "batch_size": batch_size, "num_workers": 0, "image_size": 32, "val_fraction": 0.3} | data
    words = ["--data", "ImageNetDataModule", *(w for k, v in arguments.items() for w in (f"--data.{k}", v))]
    return ["--model.backbone", "tiny", "--trainer.callbacks", "[]", "--trainer.max_epochs", 2, *words]


@pytest.mark.slow
def test_processes_without_a_single_sample_take_part(tmp_path, few):
    """Two images, three processes: the third has none to validate or to test on."""
    three = run("hrank", pictures(few, batch_size=1), tmp_path / "three", 3, timeout=60)
    assert_equal_ranks(three)
    assert [sum(map(len, rank["seen"]["test"])) for rank in three.ranks] == [1, 1, 0]
    words = [*pictures(few), "--ckpt_path", three.path / "checkpoints" / "last.ckpt"]
    for entry, stage in (("test", "test"), ("validate", "val")):
        one, again = (run("hrank", words, tmp_path / f"{entry}{n}", n, entry, timeout=60) for n in (1, 3))
        assert_same_metrics(one, again, keys=(f"{stage}/",))
        assert again.seen(stage) == one.seen(stage)
        assert len(one.seen(stage)) == 2
        assert not [text for text in again.err if "nan" in text.lower()]


# --- pictures that cannot be read -----------------------------------------------------------------------------------


def cut_off(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:200])
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_skipped_pictures_leave_all_processes_in_step(tmp_path, imagenet_root, workers):
    root = shutil.copytree(imagenet_root, tmp_path / "data")
    train, test = sorted(root.glob("train/*/*")), sorted(root.glob("val/*/*"))
    bad = [cut_off(path) for path in [*train[3:8], train[20], *test[::2]]]  # every test image of the first process
    words = [*pictures(root, 4, on_bad_image="skip", num_workers=workers), "--data.val_fraction", 0.25]
    two = run("hrank", words, tmp_path / "two", 2)
    assert_equal_ranks(two)
    batches = [[len(batch) for batch in rank["seen"]["train"]] for rank in two.ranks]
    assert batches[0] == batches[1] == [4, 4, 4] * 2
    assert two.summary["data/bad_images"] == len(bad)
    assert two.summary["data/bad_image_files"] == sorted(bad)
    assert [sum(map(len, rank["seen"]["test"])) for rank in two.ranks] == [0, 6]
    assert two.seen("test") == [row for row in range(12) if row % 2]
    assert 0 <= two.summary["test/top1"] <= 1
    assert np.isfinite(two.summary["test/loss"])


@pytest.mark.slow
def test_a_picture_that_one_process_cannot_read_ends_all(tmp_path, imagenet_root):
    root = shutil.copytree(imagenet_root, tmp_path / "data")
    bad = cut_off(root / "train" / "n01443537" / "n01443537_3.JPEG")
    words = [*pictures(root, 2), "--data.val_fraction", 0]
    two = run("hrank", words, tmp_path / "two", 2, timeout=60, succeed=False)
    assert all(two.codes)
    (line,) = [line for text in two.err for line in text.splitlines() if "cannot read the image" in line]
    assert bad in line
    assert line.startswith("error")
