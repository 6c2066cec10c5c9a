"""A whole run at Weights & Biases, read back from its own record; faults around it."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lit_methods.cli import main
from tests.left_behind import last_checkpoint, read_rows, read_summary
from tests.wandb_record import Record, read_record

ROOT = Path(__file__).parents[1]
STEPS = 3  # per epoch; epoch 1 begins with pruning
RUN = [
    *("hrank", "--model.backbone", "tiny", "--trainer.max_epochs", "2", "--trainer.limit_train_batches", str(STEPS)),
    *("--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1", "--trainer.num_sanity_val_steps", "0"),
    *("--data.batch_size", "32", "--trainer.callbacks.num_images", "48", "--trainer.callbacks.at_epoch", "1"),
]
CONVS = ["body.conv1", "body.conv2", "body.conv3"]


def bare(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """No key, no settings of W&B, and a home in which nobody, not even root, can make a file."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "XDG_"))]:
        monkeypatch.delenv(name)
    home = folder / "home"
    home.touch()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(folder / "netrc"))
    monkeypatch.setenv("MPLCONFIGDIR", str(folder))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An HRank run with ``--logger wandb``, no key and no home."""
    from tests.tiny import register

    register()
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as monkeypatch:
        bare(monkeypatch, folder)
        monkeypatch.setattr(sys, "stdin", None)  # whoever asks, fails
        words = [*RUN, "--trainer.callbacks.rates", "0.5", "--logger", "wandb", "--run_dir", str(folder / "run")]
        assert main("fit", words) == 0
        assert not [name for name in os.environ if name.startswith("WANDB_")]  # as before
    return folder / "run"


@pytest.fixture(scope="module")
def record(run: Path) -> Record:
    return read_record(run)


def test_scalars_are_those_of_metrics_csv_on_one_axis(run, record):
    assert record.axes["*"] == "trainer/global_step"
    rows = read_rows(run / "metrics.csv")
    for key in ("train/loss", "val/top1", "test/top1", "test/dense_top1", "prune/macs", "complexity/params"):
        here = {int(row["step"]): float(row[key]) for row in rows if row[key]}
        assert here
        assert record.at(key) == pytest.approx(here, rel=1e-6)
    assert list(record.at("train/loss")) == [*range(2 * STEPS)]
    assert record.exit_code == 0


def test_media_stand_at_the_step_of_the_scalars(run, record):
    pruning, end = [STEPS], [2 * STEPS]
    steps = {key: list(record.at(key)) for key in record.media}
    assert steps == {
        "val/predictions": list(record.at("val/top1")),
        "prune/rank_histograms": pruning,
        "prune/ranks": pruning,
        "prune/rank_stability": pruning,
        "prune/kept_filters": pruning,
        "prune/kept_filter_ids": pruning,
        "complexity": end,
        "test/predictions": end,
        "prune/dense_against_pruned": end,
    }
    assert list(record.at("test/top1")) == end
    kinds = {key: {file.suffix for file in files} for key, files in record.media.items()}
    assert all(len(suffixes) == 1 for suffixes in kinds.values())  # W&B shows one kind of thing under a key
    for folder, suffix in [("pictures", ".png"), ("tables", ".json")]:
        here = {path.stem.replace("_", "/", 1) for path in (run / folder).iterdir()} - {"prune/mean_rank"}
        assert here == {key for key, suffixes in kinds.items() if suffixes == {suffix}}


def test_tables_hold_what_the_files_hold(run, record):
    for key in ("prune/ranks", "prune/kept_filter_ids", "prune/dense_against_pruned", "complexity"):
        header, *rows = csv.reader((run / "tables" / f"{key.replace('/', '_')}.csv").open())
        (file,) = (path for path in record.media[key] if path.suffix == ".json")
        table = json.loads(file.read_text())
        assert table["columns"] == header
        assert [["" if cell is None else str(cell) for cell in row] for row in table["data"]] == rows
    assert [row[0] for row in rows] == ["macs", "params", "file_bytes", "latency_ms"]


def test_rank_histograms_are_there_per_convolution(run, record):
    counts = {conv: [] for conv in CONVS}
    for row in read_rows(run / "tables" / "prune_mean_rank.csv"):
        counts[row["name"]].append(int(row["count"]))
    for conv, filters in zip(CONVS, (8, 12, 16), strict=True):
        (histogram,) = record.at(f"prune/mean_rank/{conv}").values()
        assert histogram["_type"] == "histogram"
        assert histogram["values"] == counts[conv]
        assert sum(counts[conv]) == filters
        assert list(record.at(f"prune/mean_rank/{conv}")) == [STEPS]


def test_config_and_summary_tell_what_was_run_and_where_it_is(run, record):
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert {key: record.config[key] for key in saved} == saved
    assert record.config["run_dir"] == str(run)
    assert record.config["trainer"]["callbacks"][-1]["init_args"]["rates"] == 0.5
    assert record.summary["checkpoint/last"] == str(run / "checkpoints" / "last.ckpt")
    best = Path(record.summary["checkpoint/best"])
    assert best.is_file()
    assert best.parent == run / "checkpoints"
    assert best.name != "last.ckpt"
    assert record.summary["test/top1"] == pytest.approx(read_summary(run)["test/top1"])


def test_the_checkpoint_names_the_run_in_plain_text(run, record):
    state = last_checkpoint(run)["callbacks"]["RunReport"]
    assert state == {"wandb": {"id": record.run_id, "project": "lit-methods"}}
    assert record.folder.name.endswith(record.run_id)


def test_tables_on_their_way_are_in_the_run_directory(run, record):
    """W&B keeps them at home, where a run that is moved to a machine with a network would leave them."""
    waiting = [path.read_text() for path in (run / "wandb" / "data").rglob("*") if path.is_file()]
    waiting = [json.loads(text)["data"] for text in waiting if text.startswith('{"')]
    tables = [path for files in record.media.values() for path in files if path.suffix == ".json"]
    assert len(tables) == 4
    assert all(json.loads(table.read_text())["data"] in waiting for table in tables)


def test_a_damaged_record_is_noticed(record, tmp_path):
    (file,) = record.folder.glob("*.wandb")
    data = bytearray(file.read_bytes())
    copy = tmp_path / "wandb" / record.folder.name / file.name
    shutil.copytree(record.folder, copy.parent)
    assert read_record(tmp_path).history == record.history
    copy.write_bytes(data[:-1])
    with pytest.raises(AssertionError, match="ends in the middle"):
        read_record(tmp_path)
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    with pytest.raises(AssertionError, match="damaged"):
        read_record(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["", "0" * 40])
def test_no_network_at_all(key, tmp_path, monkeypatch):
    """With a key W&B tries the server for a while; then the run is logged as without one."""
    alone = ["unshare", "--user", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("no rights to cut the network off")
    bare(monkeypatch, tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    code = "from tests import tiny; tiny.register(); from lit_methods.cli import main; raise SystemExit(main('fit'))"
    words = [*RUN, "--trainer.callbacks.rates", "0.5", "--logger", "wandb", "--run_dir", str(tmp_path / "run")]
    answer = subprocess.run(
        [*alone, sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    (line,) = (line for line in answer.stderr.splitlines() if "wandb" in line)
    assert "offline" in line
    assert "prune/dense_against_pruned" in read_record(tmp_path / "run").media
    assert (tmp_path / "run" / "metrics.csv").is_file()


def test_sketches_are_shown_at_the_step_of_pruning(tmp_path, monkeypatch):
    bare(monkeypatch, tmp_path)
    words = ["filter_sketch", *RUN[1:], "--trainer.callbacks.rates", "0.5", "--logger", "wandb"]
    images = words.index("--trainer.callbacks.num_images")  # HRank's alone
    del words[images : images + 2]
    assert main("fit", [*words, "--run_dir", str(tmp_path / "run")]) == 0
    found = read_record(tmp_path / "run")
    for key in ("prune/kept_filters", "prune/sketches", "prune/sketch_errors"):
        assert list(found.at(key)) == [STEPS]
