"""Whole searches by DARTS from the command line: what they leave, resumed in the middle of an epoch, two processes."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from datamodules import CIFARDataModule
from lit_methods import DARTSSearch
from lit_methods.bpe_mip.search_space import Genotype, parse_alpha
from lit_methods.cli import main
from tests.left_behind import metrics, read_rows, read_summary, timeless, weights
from tests.light_supernet import light_operations
from tests.two_processes import assert_equal_ranks, run

STEPS = 2  # batches per epoch
RECIPE = "{preset: BPE1, epochs: 2, batch_size: 8, lr: 0.1, layers: 3, channels: 4, image_size: 8}"
ONE = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.num_sanity_val_steps", "0"]
RUN = [
    *("--model.recipe", RECIPE, "--trainer.max_epochs", "2", "--data.batch_size", "8"),
    *("--trainer.limit_train_batches", str(STEPS), "--trainer.limit_val_batches", "2"),
    *("--trainer.limit_test_batches", "2", "--trainer.log_every_n_steps", "1"),
    *("--model.unrolled", "false"),  # a step of second order takes six times as long
]
ALONE = ["--trainer.callbacks", "callbacks.GenotypeLogger"]


WORDS = [*ONE, *RUN, "--checkpoint.save_top_k", "-1"]


def every_step(folder: Path) -> list[str]:
    return [
        *("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps", "1"),
        *("--trainer.callbacks.save_top_k", "-1", "--trainer.callbacks.filename", "{step}"),
        *("--trainer.callbacks.dirpath", str(folder)),
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An uninterrupted run with all its pictures, and a checkpoint after every batch."""
    folder = tmp_path_factory.mktemp("whole")
    with light_operations():
        words = [*WORDS, *every_step(folder / "steps"), "--run_dir", str(folder / "run")]
        assert main("fit", ["bpe_darts", *words]) == 0
    return folder


@pytest.fixture
def light() -> Iterator[None]:
    """For tests that go on from that run, or look at what surrounds the supernet."""
    with light_operations():
        yield


def best_of(run_dir: Path) -> Path:
    """The checkpoint of the epoch with the best validation, the first of equals."""
    rows = read_rows(run_dir / "tables" / "darts_genotypes.csv")
    epoch = max(rows, key=lambda row: float(row["val/top1"]))["epoch"]
    (path,) = (run_dir / "checkpoints").glob(f"epoch={epoch}-*.ckpt")
    return path


def test_a_run_leaves_the_tested_cells_figures_and_pictures(whole):
    folder = whole / "run"
    summary = read_summary(folder)
    found = Genotype.from_dict(json.loads((folder / "genotype.json").read_text()))
    assert found == genotype_in(best_of(folder))
    assert summary["darts/genotype"] == found.key()
    assert 0 <= summary["darts/skip_connects"] <= 8
    assert 0 <= summary["test/top1"] <= 1
    pictures = {path.name for path in (folder / "pictures").iterdir()}
    assert {"darts_alphas.png", "darts_genotype.png", "val_predictions.png"} <= pictures
    rows = read_rows(folder / "tables" / "darts_genotypes.csv")
    assert [row["epoch"] for row in rows] == ["0", "1"]
    for row in rows:
        (path,) = (folder / "checkpoints").glob(f"epoch={row['epoch']}-*.ckpt")
        assert genotype_in(path).key() == row["genotype"]


def genotype_in(path: Path) -> Genotype:
    state = torch.load(path, weights_only=True)["state_dict"]
    return parse_alpha(
        torch.cat([state[f"model.{cell}_alphas.{k}"] for cell in ("normal", "reduce") for k in range(4)])
    )


def test_both_kinds_of_parameters_have_moved(whole):
    first, last = (
        torch.load(whole / "steps" / f"step={n}.ckpt", weights_only=True)["state_dict"] for n in (2, 4 * STEPS)
    )
    same = [name for name, value in last.items() if value.is_floating_point() and torch.equal(value, first[name])]
    assert not same
    assert (last["model.normal_alphas.0"] - first["model.normal_alphas.0"]).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.usefixtures("light")
def test_test_gives_the_same_figures_again(whole, tmp_path):
    words = [*ONE, *RUN, *ALONE, "--ckpt_path", str(best_of(whole / "run"))]
    assert main("test", ["bpe_darts", *words, "--run_dir", str(tmp_path / "tested")]) == 0
    summary, again = read_summary(whole / "run"), read_summary(tmp_path / "tested")
    for key in [key for key in again if key.startswith(("test/", "darts/"))]:
        assert again[key] == summary[key], key
    name = "genotype.json"
    assert (tmp_path / "tested" / name).read_text() == (whole / "run" / name).read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("light")
def test_predict_asks_the_supernet(whole, tmp_path):
    from PIL import Image

    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / "a.png")
    words = ["--ckpt_path", str(whole / "run" / "checkpoints" / "last.ckpt"), "--input", str(tmp_path / "a.png")]
    assert main("predict", ["bpe_darts", *ONE[:4], *words, "--run_dir", str(tmp_path / "out")]) == 0
    (row,) = read_rows(tmp_path / "out" / "predictions.csv")
    assert row["name_1"] in "0123456789"


@pytest.mark.slow
def test_the_supernet_leaves_python(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.strategy.connect(DARTSSearch({"preset": "BPE1", "layers": 3, "channels": 4, "image_size": 8}))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    words = ["--ckpt_path", str(tmp_path / "a.ckpt"), "--formats", "onnx"]
    assert main("export", ["bpe_darts", *words, "--run_dir", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "export" / "classifier.onnx").exists()


@pytest.mark.usefixtures("no_figures", "light")
@pytest.mark.parametrize(
    "batch",
    [
        pytest.param(1, id="in the first epoch"),
        pytest.param(STEPS + 1, id="in the middle of the second epoch", marks=pytest.mark.slow),
        pytest.param(STEPS, id="between epochs", marks=pytest.mark.slow),
    ],
)
def test_resume_is_bit_equal(whole, batch, tmp_path):
    runs, step = tmp_path / "run", 2 * batch  # the Trainer counts both optimisers
    shutil.copytree(whole / "run", runs)
    ends = runs / "checkpoints" / f"epoch=0-step={step}.ckpt"  # written behind the validation, which is part of it
    shutil.copy(ends if batch == STEPS else whole / "steps" / f"step={step}.ckpt", runs / "checkpoints" / "from.ckpt")
    for name in ("checkpoints/last.ckpt", "summary.json", "genotype.json"):
        (runs / name).unlink()
    checkpoint = str(runs / "checkpoints" / "from.ckpt")
    assert main("fit", ["bpe_darts", *WORDS, "--run_dir", str(runs), "--ckpt_path", checkpoint]) == 0
    assert_close(weights(runs), weights(whole / "run"), rtol=0, atol=0)
    assert metrics(runs) == metrics(whole / "run")
    assert timeless(read_summary(runs)) == timeless(read_summary(whole / "run"))
    for name in ("genotype.json", "tables/darts_genotypes.csv"):
        assert (runs / name).read_text() == (whole / "run" / name).read_text()


# -- many processes ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures", "light")
def test_processes_stay_equal(tmp_path):
    words = [*RUN, "--model.unrolled", "true", "--trainer.limit_train_batches", 1, "--trainer.max_epochs", 1, *ALONE]
    many = run("bpe_darts", words, tmp_path / "many", 2)
    assert_equal_ranks(many)
    for key in ("train/loss", "train/arch_loss"):
        assert all(np.isfinite(many.logged(key)))
    assert (
        many.summary["darts/genotype"]
        == Genotype.from_dict(json.loads((tmp_path / "many" / "genotype.json").read_text())).key()
    )


class Uneven(CIFARDataModule):
    """Batches of other lengths on each process, and empty ones on some, and on all."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        if "weights" not in batch:
            return batch
        rank, step = self.trainer.global_rank, self.trainer.fit_loop.epoch_loop.batch_idx
        lengths = {"weights": [(8, 3), (0, 8), (8, 8)], "alphas": [(5, 8), (8, 0), (0, 0)]}
        return {
            half: {name: value[: lengths[half][step][rank]] for name, value in part.items()}
            for half, part in batch.items()
        }


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures", "light")
def test_uneven_and_empty_batches_do_not_hang(tmp_path):
    words = [
        *RUN,
        "--trainer.max_epochs",
        1,
        "--trainer.limit_train_batches",
        3,
        *ALONE,
        "--data",
        "tests.test_darts_runs.Uneven",
    ]
    words += ["--data.image_size", 8, "--data.split_halves", "true"]
    many = run("bpe_darts", words, tmp_path / "many", 2)
    assert_equal_ranks(many)
    assert all(value.isfinite().all() for value in many.weights.values())


@pytest.mark.slow
def test_the_packaged_search_learns(tmp_path):
    """As it is: the supernet, and alphas that have left their random start."""
    assert main("fit", ["bpe_darts", "--run_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu"]) == 0
    assert read_summary(tmp_path / "run")["test/top1"] >= 0.6
    module = DARTSSearch.load_from_checkpoint(best_of(tmp_path / "run"), map_location="cpu", weights_only=True)
    alphas = module.alphas()
    assert (F.softmax(alphas, 1) - 1 / 8).abs().mean() > 8e-4  # 1e-4 at the start
