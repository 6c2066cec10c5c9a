"""What happens to a run outside its own code: other workers, odd pictures, a read-only home, a killed worker."""

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image
from torch.testing import assert_close

from tests.left_behind import read_rows, read_summary
from tests.own_process import run_entry
from tests.two_processes import CPU, assert_equal_ranks, assert_same_decisions, run

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--model.backbone", "tiny", "--trainer.max_epochs", 2, "--trainer.limit_train_batches", 4]
TINY += ["--trainer.log_every_n_steps", 1, "--data.batch_size", 32]
PRUNED = [*TINY, "--trainer.callbacks.rates", 0.5, "--trainer.callbacks.at_epoch", 1]
PRUNED += ["--trainer.callbacks.num_images", 48]

pytestmark = pytest.mark.usefixtures("no_figures")


# --- D20: the same run again ----------------------------------------------------------------------------------------


def test_same_seed_means_the_same_bits(tmp_path):
    """Whatever the number of workers, and with torch's deterministic algorithms."""
    first = run("hrank", PRUNED, tmp_path / "first")
    other = run("hrank", [*PRUNED, "--data.num_workers", 2, "--trainer.deterministic", "true"], tmp_path / "other")
    assert first.plan is not None
    assert_close(other.weights, first.weights, rtol=0, atol=0)
    assert_same_decisions(first, other)
    assert other.metrics == first.metrics
    assert other.summary == first.summary


def test_another_seed_means_another_run(tmp_path):
    """Else the test above could not fail."""
    words = [*TINY, "--trainer.callbacks", "[]", "--seed_everything"]
    first, other = (run("hrank", [*words, seed], tmp_path / f"{seed}") for seed in (0, 1))
    assert not torch.equal(first.weights["model.fc.weight"], other.weights["model.fc.weight"])


# --- D12: pictures of every kind ------------------------------------------------------------------------------------


def put_odd_pictures(folder: Path) -> tuple[list[str], list[str]]:
    """Eight files beside the others of a class: names of those that can be read, and of those that cannot."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6  # by 90 degrees
    picture.convert("CMYK").save(folder / "z_cmyk.jpg")
    Image.fromarray(np.arange(40 * 48, dtype=np.uint16).reshape(40, 48) * 30).save(folder / "z_16bit.png")
    picture.save(folder / "z_turned.jpg", exif=turned)
    picture.crop((0, 0, 1, 1)).save(folder / "z_one.png")
    picture.resize((20_000, 40)).save(folder / "z_wide.png")
    picture.save(folder / "z_cut.jpg")
    (folder / "z_cut.jpg").write_bytes((folder / "z_cut.jpg").read_bytes()[:300])
    (folder / "z_empty.png").touch()
    (folder / "z_text.jpeg").write_text("not a picture")
    fine = ["z_cmyk.jpg", "z_16bit.png", "z_turned.jpg", "z_one.png", "z_wide.png"]
    return [str(folder / name) for name in fine], [
        str(folder / f"z_{n}") for n in ("cut.jpg", "empty.png", "text.jpeg")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_odd_pictures_in_fit_test_and_predict(imagenet_root, tmp_path, processes):
    root = shutil.copytree(imagenet_root, tmp_path / "data")
    bad = put_odd_pictures(root / "train" / "n01443537")[1] + put_odd_pictures(root / "val" / "n01443537")[1]
    words = ["--data", "ImageNetDataModule", "--data.root", root, "--data.image_size", 32, "--data.val_fraction", 0.25]
    words += ["--data.on_bad_image", "skip", "--data.num_workers", 1, *PRUNED, "--trainer.limit_train_batches", 1.0]
    words += ["--data.batch_size", 8 // processes, "--trainer.callbacks.num_images", 20]
    fit = run("hrank", words, tmp_path / "fit", processes)
    assert fit.summary["data/bad_images"] == 6
    assert sorted(fit.summary["data/bad_image_files"]) == sorted(bad)
    assert len(fit.seen("test")) == 12 + 5
    batches = [[len(batch) for batch in rank["seen"]["train"]] for rank in fit.ranks]
    assert all(each == batches[0] for each in batches)  # else DDP would wait for ever
    assert_equal_ranks(fit)
    assert all(np.isfinite(v) for k, v in fit.summary.items() if k.startswith(("val/", "test/", "prune/")))

    words = ["--ckpt_path", fit.path / "checkpoints" / "last.ckpt", "--input", root / "val" / "n01443537"]
    predict = run([], words, tmp_path / "predict", entry="predict", succeed=False)
    assert predict.codes == [1]
    errors = predict.err[0].splitlines()
    assert [name for name in ("z_cut.jpg", "z_empty.png", "z_text.jpeg") if any(name in line for line in errors)] == [
        "z_cut.jpg", "z_empty.png", "z_text.jpeg",
    ]  # fmt: skip
    assert len(read_rows(predict.path / "predictions.csv")) == 3 + 5


# --- D21: unfriendly places -----------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in [folder, *sorted(folder.rglob("*"))]}


@pytest.mark.slow
def test_read_only_data_no_home_and_names_with_spaces_and_umlauts(imagenet_root, tmp_path):
    place = tmp_path / "Maße für 大 pictures"
    root = shutil.copytree(imagenet_root, place / "Daten, schreibgeschützt")
    for path in [root, *root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = contents(root)
    gone = {"HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "TORCH_HOME", "USERPROFILE"}
    environment = {key: value for key, value in os.environ.items() if key not in gone}
    environment |= {"HOME": "/dev/null/home", "PYTHONPATH": str(ROOT)}

    def call(entry: str, *words: object) -> list[str]:
        done = run_entry(entry, *words, folder=place, environment=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    small = ["--trainer.limit_train_batches", 2, "--data.batch_size", 8, "--data.num_workers", 1]
    data = ["--data", "ImageNetDataModule", "--data.root", root, "--data.image_size", 32, "--data.val_fraction", 0.25]
    fit_dir = place / "Läufe" / "erster Lauf"
    prune = ["--trainer.callbacks.at_epoch", 1, "--trainer.callbacks.num_images", 8, "--trainer.max_epochs", 2]
    try:
        assert call("fit", "hrank", *data, *CPU, *small, *prune, "--run_dir", fit_dir)[-1] == str(fit_dir)
        last = fit_dir / "checkpoints" / "last.ckpt"
        base = call("test", "hrank", *data, *CPU, *small, "--ckpt_path", last, "--run_dir", place / "é test")
        assert base[-1] == str(place / "é test")
        call("fit", "hrank", *data, *CPU, *small, *prune, "--trainer.max_epochs", 3, "--ckpt_path", last,
             "--run_dir", fit_dir)  # fmt: skip
        call("predict", "--ckpt_path", last, "--input", root / "val", "--run_dir", place / "ö", "--trainer.accelerator",
             "cpu")  # fmt: skip
    finally:
        assert contents(root) == before
        for path in [root, *root.rglob("*")]:
            path.chmod(0o755)
    assert read_summary(fit_dir)["prune/macs"] > 0


# --- D22: a killed worker -------------------------------------------------------------------------------------------


class KillWorker(Callback):
    """Does what the kernel does when memory runs out."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1 and trainer.is_global_zero:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


def test_a_killed_worker_is_one_line(tmp_path):
    """That no process is left behind, ``run`` asks of every run."""
    words = [*TINY, "--trainer.callbacks", "[]", "--data.num_workers", 2, "--trainer.limit_train_batches", 1.0]
    words += ["--trainer.callbacks+=tests.test_drills.KillWorker"]
    result = run("hrank", words, tmp_path / "run", succeed=False)
    assert result.codes == [2]
    (line,) = [line for line in result.err[0].splitlines() if line.startswith("error")]
    assert line.startswith("error: DataLoader worker ")
    assert line.endswith("memory may be short: lower data.num_workers or data.batch_size")
    assert "runtime.py" not in result.err[0]  # no traceback of ours; the other worker may print one as it ends
