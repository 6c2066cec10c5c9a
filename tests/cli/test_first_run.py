"""The first five minutes of a new user: what is wrong is one line, and before the training rather than after it."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toy_method import ToyData, ToyMethod

from lit_methods import ImageClassifier
from lit_methods.cli.start import Start

DIGITS = ["--model", "ImageClassifier", "--data", "CIFARDataModule", "--trainer.accelerator", "cpu"]  # ten classes

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture
def own_pictures(imagenet_root: Path, tmp_path: Path) -> Path:
    """A recipe for the user's own folder, which the fixture makes: four classes to train on, and to test."""
    shutil.copytree(imagenet_root, tmp_path / "own")
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        "trainer: {max_epochs: 1, limit_train_batches: 1, accelerator: cpu, use_distributed_sampler: false}\n"
        "model: {class_path: ImageClassifier, init_args: {backbone: tiny}}\n"
        "data: {class_path: ImageNetDataModule, init_args: {root: own, batch_size: 4, image_size: 32}}\n"
    )
    return recipe


# -- test data that are not there -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["no test set", "too small a test set"])
def test_a_fault_in_the_test_data_is_said_before_the_training(command, own_pictures, fault):
    words: list[object] = []
    if fault == "no test set":
        shutil.rmtree(own_pictures.with_suffix("") / "val")
        text = "testing and predicting needs val or ILSVRC2012_img_val with class folders in root='own'; put some"
    else:
        words = ["--data.num_test_images", 100]
        text = "num_test_images=100, but the test set has 12 images; null takes all"
    answer = command("fit", *words, recipe=own_pictures)
    assert answer.code == 2
    (line,) = answer.err
    assert line.startswith("error: ")
    assert text in line
    assert not list(Path("runs").iterdir())  # not one batch


def test_a_fast_dev_run_needs_no_test_data(command, own_pictures):
    shutil.rmtree(own_pictures.with_suffix("") / "val")
    assert command("fit", "--trainer.fast_dev_run", "true", recipe=own_pictures).code == 0


class LastStage(ToyData):
    """Knows one set at a time, and draws numbers from the global generator."""

    def setup(self, stage: str) -> None:
        self.stage, self.order = stage, torch.randperm(5)


def test_looking_at_the_test_data_changes_nothing_of_the_fit():
    data, module = LastStage(), ToyMethod()
    trainer = SimpleNamespace(is_global_zero=False, fast_dev_run=False)
    data.setup("fit")
    order, state = data.order, torch.get_rng_state()
    Start(SimpleNamespace(entry="fit", datamodule=data, model=module, trainer=trainer)).setup(trainer, module, "fit")
    assert data.stage == "fit"
    assert data.order is order
    assert torch.equal(torch.get_rng_state(), state)


# -- a checkpoint that does not belong there --------------------------------------------------------------------------


@pytest.fixture
def run_of_two_classes(make_trainer, tmp_path: Path) -> Path:
    """The directory of a run, with its last checkpoint."""
    module = ImageClassifier("tiny", num_classes=2, class_names=["cats", "dogs"])
    module.model(torch.rand(4, 3, 32, 32))  # trained, as far as anybody can tell
    trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "runs" / "own" / "checkpoints" / "last.ckpt")
    return Path("runs", "own")


@pytest.mark.parametrize("entry", ["validate", "test"])
def test_data_of_other_classes_than_the_checkpoint_knows(command, run_of_two_classes, entry):
    ckpt_path = run_of_two_classes / "checkpoints" / "last.ckpt"
    answer = command(entry, *DIGITS, "--ckpt_path", ckpt_path, recipe=None)
    assert answer.code == 2
    assert answer.err == [
        "error: the network knows 2 classes (cats, dogs), the data has 10; give the data it was trained on, "
        "such as --config RUN/config.yaml"
    ]


@pytest.mark.parametrize("entry", ["fit", "test", "predict", "export"])
def test_the_directory_of_a_run_is_no_checkpoint(command, run_of_two_classes, entry):
    answer = command(entry, *DIGITS, "--ckpt_path", run_of_two_classes, recipe=None)
    assert answer.code == 2
    assert answer.err == [
        "error: ckpt_path='runs/own' is a directory; name a file, such as runs/own/checkpoints/last.ckpt, "
        "or give --run_dir runs/own --ckpt_path last"
    ]
