"""Whole runs of AD-Cluster by the command line: stopped and resumed, many processes, what they leave, bad input."""

import json
import shutil
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch.testing import assert_close

from callbacks import camera_augmentation, direct_transfer, features
from callbacks.pseudo_label_clustering import ClusterListener
from lit_methods import ADCluster
from lit_methods.cli import main
from lit_methods.functional.archives import load_plain
from tests.left_behind import bit_equal, last_checkpoint, metrics, read_rows, read_summary, timeless, weights
from tests.own_process import run_entry
from tests.signals import send_now
from tests.two_processes import Run, assert_equal_ranks, run as processes_run
from tests.wandb_record import read_record

CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
CLUSTERING: dict[str, Any] = {"every_n_epochs": 2, "k1": 8, "k2": 3, "rho": 0.03, "min_samples": 2}
SIZES = {"generator_width": 4, "num_blocks": 1, "discriminator_width": 4, "num_layers": 3}
GENERATOR: dict[str, Any] = SIZES | {"pretrain_steps": 4, "gan_steps": 4, "batch_size": 4, "n_critic": 2, "lr": 1e-3}
REPORT = {"num_clusters": 2, "per_cluster": 3, "num_points": 60}
CALLBACKS: dict[str, Any] = {
    "DirectTransfer": {},
    "ClusterReport": REPORT,
    "PseudoLabelClustering": CLUSTERING,
    "RankedLists": {"num_queries": 2, "top": 3},
    "CameraStyleAugmentation": GENERATOR,
}
DATA = {"height": 32, "width": 16, "num_workers": 0, "batch_size": 16, "val_source": "train", "val_ids": 2}
PICTURED = ["--trainer.max_epochs", "5", "--checkpoint.save_top_k", "1"]
BATCHES = {"p": 4, "k": 4, "generated_per_id": 1, "source_p": 4, "source_k": 2}
SOURCE, EVERY, EPOCHS = 2, 2, 6  # epochs on the source, from one clustering to the next, all

Words = Callable[..., list[str]]


@pytest.fixture(scope="module")
def words(market1501_root, duke_root, tmp_path_factory) -> Words:
    """Words for a small run of the recipe; ``callbacks`` changes arguments of its callbacks."""
    folder = tmp_path_factory.mktemp("words")

    def make(callbacks: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **data: Any) -> list[str]:
        changes = callbacks or {}
        used = {name: arguments | changes.get(name, {}) for name, arguments in CALLBACKS.items()}
        roots = {"root": str(market1501_root), "source_root": str(duke_root), "demo": False}
        whole = {
            "trainer": {
                "max_epochs": EPOCHS,
                "log_every_n_steps": 1,
                "num_sanity_val_steps": 0,
                "sync_batchnorm": False,
                "callbacks": [{"class_path": f"callbacks.{n}", "init_args": a} for n, a in used.items()],
            },
            "model": {"init_args": {"encoder_args": {"width": 4}, "source_epochs": SOURCE} | (model or {})},
            "data": {"init_args": roots | DATA | BATCHES | data},
        }
        path = folder / f"{len(list(folder.iterdir()))}.yaml"
        path.write_text(yaml.safe_dump(whole))
        return ["ad_cluster", "--config", str(path)]

    return make


def fit(words: list[str], folder: Path, *more: str) -> int:
    return main("fit", [*words, *CPU, *more, "--run_dir", str(folder)])


# -- what a run leaves -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(words, tmp_path_factory) -> Path:
    """A run with all its pictures."""
    folder = tmp_path_factory.mktemp("fitted") / "run"
    assert fit(words(), folder, *PICTURED) == 0
    return folder


def test_each_epoch_and_each_clustering_has_its_figures(fitted):
    logged = {key: [float(row[key]) for row in metrics(fitted) if row[key]] for key in metrics(fitted)[0]}
    for name in ("count", "outliers", "eps", "purity", "nmi", "iteration"):
        assert len(logged[f"cluster/{name}"]) == 3, name  # epochs of adaptation
    assert len(logged["val/mAP"]) == 5
    assert len(logged["augment/g_diversity"]) == 3
    rows = read_rows(fitted / "tables" / "cluster_iterations.csv")
    assert logged["cluster/count"] == [float(rows[0]["clusters"])] * 2 + [float(rows[1]["clusters"])]


@pytest.mark.slow
def test_wandb_has_figures_and_pictures(words, tmp_path, monkeypatch):
    fitted = tmp_path / "run"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert fit(words(), fitted, *PICTURED, "--logger", "wandb") == 0
    record = read_record(fitted)
    names = {"cluster/sheet", "augment/translations", "cluster/map_before", "cluster/map_after", "test/ranked_lists"}
    assert names | {"cluster/iterations"} <= record.media.keys()
    assert len(record.media["cluster/sheet"]) == 2  # one per clustering
    for name in ("cluster/count", "val/mAP", "augment/g_diversity"):
        assert list(record.at(name).values()) == pytest.approx([float(r[name]) for r in metrics(fitted) if r[name]])


def test_pictures_and_tables_are_files_too(fitted):
    pictures = {path.stem for path in (fitted / "pictures").iterdir()}
    maps = {"cluster_map_before", "cluster_map_after", "cluster_iterations"}
    assert maps | {"cluster_sheet", "augment_translations", "test_ranked_lists"} <= pictures
    lists = read_rows(fitted / "tables" / "test_ranked_lists.csv")
    assert {row["rank"] for row in lists} == {"1", "2", "3"}
    found = read_rows(fitted / "tables" / "cluster_clusters.csv")
    assert len(found) == int(read_rows(fitted / "tables" / "cluster_iterations.csv")[-1]["clusters"])
    for row in found:
        assert 1 <= int(row["of_this_id"]) <= int(row["size"])


def best(run: Path) -> str:
    """The best one of the adaptation; that of the source has its own score."""
    return str(max((run / "checkpoints").glob("epoch=*.ckpt")))


def test_test_gives_the_same_figures_again(fitted, words, tmp_path):
    arguments = ["--ckpt_path", best(fitted), "--run_dir", str(tmp_path / "tested")]
    assert main("test", [*words(), *CPU, *arguments]) == 0
    summary, again = read_summary(fitted), read_summary(tmp_path / "tested")
    keys = [key for key in summary if key.startswith("test/") and not key.endswith("_direct")]
    assert len(keys) == 6
    for key in keys:
        assert again[key] == summary[key], key


def test_predict_ranks_a_folder_for_queries(fitted, market1501_root, tmp_path):
    words = ["--ckpt_path", best(fitted), "--input", str(market1501_root / "query")]
    words += ["--gallery", str(market1501_root / "bounding_box_test"), "--top", "3", "--run_dir", str(tmp_path / "out")]
    assert main("predict", ["ad_cluster", *CPU, *words]) == 0
    rows = read_rows(tmp_path / "out" / "predictions.csv")
    queries = sorted(path.stem for path in (market1501_root / "query").glob("*.jpg"))
    assert len(rows) == len(queries)
    module = ADCluster.load_from_checkpoint(best(fitted), map_location="cpu", weights_only=True).eval()
    row = rows[0]
    named = {name: value for name, value in row.items() if "nearest" in name}
    distances = [float(value) for name, value in row.items() if "distance" in name]
    assert len(named) == len(distances) == 3
    assert distances == sorted(distances)
    assert all(Path(value).is_file() for value in named.values())
    pictures = sorted((tmp_path / "out" / "pictures").iterdir())
    assert len(pictures) == len(queries)
    width, height = Image.open(pictures[0]).size
    assert width > 2 * 64  # query and matches side by side
    assert height >= 128
    assert module.adapting


@pytest.mark.slow
@pytest.mark.parametrize("formats", ["torch", "onnx"])
@pytest.mark.parametrize(
    ("kind", "recipe", "graph"),
    [
        ("fitted", "ad_cluster", "encoder"),
        ("source", "reid_source_duke", "encoder"),
        ("gan", "camera_stargan_market1501", "generator"),
    ],
)
def test_export(kind, recipe, graph, formats, request, tmp_path):
    made = request.getfixturevalue(kind)
    checkpoint = best(made) if kind == "fitted" else made
    arguments = ["--ckpt_path", checkpoint, "--formats", formats, "--run_dir", str(tmp_path / "e")]
    assert run_entry("export", recipe, *arguments, folder=tmp_path).returncode == 0
    report = json.loads((tmp_path / "e" / "export" / "export.json").read_text())
    ending = {"torch": "pt2", "onnx": "onnx"}[formats]
    assert [file["path"] for file in report["files"]] == [f"{graph}.{ending}"]  # which was compared with the module


# -- the two trainings that may come before ----------------------------------------------------------------------------


def config(folder: Path, model: str, arguments: dict[str, Any], module: str, data: dict[str, Any]) -> list[str]:
    """Words that name a file with a whole run."""
    trainer = {"max_epochs": 2, "log_every_n_steps": 1, "num_sanity_val_steps": 0, "use_distributed_sampler": False}
    whole = {
        "seed_everything": 0,
        "trainer": trainer,
        "model": {"class_path": f"lit_methods.{model}", "init_args": arguments},
        "data": {"class_path": f"datamodules.{module}", "init_args": data},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(whole))
    return ["--config", str(path)]


@pytest.fixture(scope="module")
def source_words(duke_root, tmp_path_factory) -> list[str]:
    data = DATA | {"root": str(duke_root), "train_on": "ids", "p": 3, "k": 2}
    model = {"encoder": "tiny", "encoder_args": {"width": 4}, "head": "bnneck"}
    return config(tmp_path_factory.mktemp("source"), "SourceReID", model, "DukeMTMCDataModule", data)


@pytest.fixture(scope="module")
def gan_words(market1501_root, tmp_path_factory) -> list[str]:
    data = DATA | {"root": str(market1501_root), "train_on": "cameras"}
    model = SIZES | {"num_cameras": 3, "n_critic": 2, "total_steps": 8, "decay_steps": 4}
    return config(tmp_path_factory.mktemp("gan"), "CameraStarGAN", model, "Market1501DataModule", data)


@pytest.fixture(scope="module")
def source(source_words, tmp_path_factory, no_figures) -> str:
    """A checkpoint of SourceReID."""
    return trained_by(source_words, tmp_path_factory.mktemp("source_run"))


@pytest.fixture(scope="module")
def gan(gan_words, tmp_path_factory, no_figures) -> str:
    """A checkpoint of CameraStarGAN."""
    return trained_by(gan_words, tmp_path_factory.mktemp("gan_run"))


def trained_by(words: list[str], folder: Path) -> str:
    assert fit(words, folder / "run", *every_step(folder / "steps")) == 0
    return str(folder / "run" / "checkpoints" / "last.ckpt")


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(("kind", "figure"), [("source", "test/mAP"), ("gan", "test/reconstruction")])
@pytest.mark.slow
def test_a_training_before_is_tested_and_resumed(kind, figure, request, tmp_path):
    words, checkpoint = request.getfixturevalue(f"{kind}_words"), Path(request.getfixturevalue(kind))
    whole = checkpoint.parents[1]
    assert 0 < read_summary(whole)[figure] <= 1
    assert main("test", [*words, *CPU, "--ckpt_path", str(checkpoint), "--run_dir", str(tmp_path / "tested")]) == 0
    assert 0 < read_summary(tmp_path / "tested")[figure] <= 1
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for name in ("checkpoints/last.ckpt", "summary.json"):
        (run / name).unlink()
    steps = sorted((whole.parent / "steps").glob("*.ckpt"), key=lambda p: int(p.stem.split("=")[-1]))
    shutil.copy(steps[0], run / "checkpoints" / "here.ckpt")  # in the first epoch
    more = [*every_step(tmp_path / "steps"), "--ckpt_path", str(run / "checkpoints" / "here.ckpt")]
    assert fit(words, run, *more) == 0
    assert_close(weights(run), weights(whole), rtol=0, atol=0)
    assert metrics(run) == metrics(whole)
    assert timeless(read_summary(run)) == timeless(read_summary(whole))


@pytest.mark.slow  # test_docs.py runs this chain by its recipes
@pytest.mark.usefixtures("no_figures")
def test_the_adaptation_takes_both(words, source, gan, tmp_path):
    """The chain: a trained encoder, a trained generator, no source any more."""
    chained = words(
        {"CameraStyleAugmentation": {"gan": gan, "pretrain_steps": 0, "gan_steps": 0}},
        {"base_checkpoint": source, "source_epochs": 0},
        source_root=None,
    )
    assert fit(chained, tmp_path / "run", "--trainer.max_epochs", "2") == 0
    begun = load_plain(gan)["state_dict"]
    ours = state(tmp_path / "run", "CameraStyleAugmentation")["translation"]
    assert all(torch.equal(value, begun[f"model.{name}"]) for name, value in ours.items())
    assert {row["epoch"] for row in metrics(tmp_path / "run") if row["train/triplet_loss"]} == {"0", "1"}


# -- ablation ----------------------------------------------------------------------------------------------------------

ABLATIONS = {"clustering": ["--data.generated_per_id", "0"], "augmentation": ["--trainer.callbacks.w_div", "0"]}


@pytest.mark.usefixtures("no_figures")
@pytest.mark.slow
@pytest.mark.parametrize("variant", ["clustering", "augmentation"])
def test_an_ablation_is_one_word(words, variant, tmp_path):
    run = tmp_path / "run"
    assert fit(words(), run, "--trainer.max_epochs", "4", *ABLATIONS[variant]) == 0
    summary = read_summary(run)
    assert summary["cluster/count"] >= 2
    assert {"test/mAP", "test/mAP_direct"} <= summary.keys()
    augmented = {name for name in summary if name.startswith("augment/")}
    drawn = variant == "augmentation"
    assert bool(augmented) == drawn
    assert not any("div" in name for name in augmented)
    assert (run / "pictures" / "augment_translations.png").exists() == drawn
    assert fit(words(), run, "--trainer.max_epochs", "5", *ABLATIONS[variant], "--ckpt_path", "last") == 0


# -- bad input ---------------------------------------------------------------------------------------------------------


def refused(capsys, words: list[str], folder: Path, *more: str) -> str:
    assert fit(words, folder / "run", *more) == 2
    assert not (folder / "run").exists()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--data.p", "1"], "p must be at least 2, got 1"),
        (["--data.generated_per_id", "4"], "generated_per_id must be 0 to k - 1 = 3, got 4"),
        (["--data.root", "nowhere"], "nowhere"),
        (["--data.source_root", "nowhere"], "nowhere"),
        (["--data.source_root", "null"], "give data.source_root"),
        (["--data.train_on", "ids"], "give 'clusters'"),
        (["--model.source_epochs", "-1"], "source_epochs=-1 must not be negative"),
        (["--model.source_epochs", "0", "--model.base_checkpoint", "no_such.ckpt"], "no_such.ckpt"),
        (["--trainer.callbacks.gan", "no_such.ckpt", "--trainer.callbacks.pretrain_steps", "0"], "no_such.ckpt"),
        (["--trainer.reload_dataloaders_every_n_epochs", "0"], "reload_dataloaders_every_n_epochs=1"),
    ],
)
def test_one_line_says_what_is_wrong(words, more, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert text in refused(capsys, words(), tmp_path, *more)


def test_a_folder_of_the_other_data_set_is_one_line(words, market1501_root, duke_root, tmp_path, capsys):
    away = ["--data.source_root", str(market1501_root), "--data.root", str(duke_root)]
    line = refused(capsys, words(), tmp_path, *away)
    assert "DukeMTMC" in line
    assert str(duke_root) in line


@pytest.mark.slow
def test_a_generator_of_other_cameras_is_one_line(words, market1501_root, gan, tmp_path, capsys):
    fewer = tmp_path / "fewer"
    shutil.copytree(market1501_root, fewer)
    for path in (fewer / "bounding_box_train").glob("*_c3*"):
        path.unlink()
    more = ["--data.root", str(fewer), "--trainer.callbacks.gan", gan, "--trainer.callbacks.pretrain_steps", "0"]
    line = refused(capsys, words(), tmp_path, *more)
    assert "is for 3 cameras" in line
    assert "the data have 2" in line


# -- resume ------------------------------------------------------------------------------------------------------------


def every_step(folder: Path) -> list[str]:
    return [
        *("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps", "1"),
        *("--trainer.callbacks.save_top_k", "-1", "--trainer.callbacks.filename", "{epoch}-{step}"),
        *("--trainer.callbacks.dirpath", str(folder)),
    ]


ALL_EPOCHS = ["--checkpoint.save_top_k", "-1"]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory, no_figures) -> Path:
    """An uninterrupted run, with a checkpoint after every step and every epoch."""
    folder = tmp_path_factory.mktemp("whole")
    assert fit(words(), folder / "run", *ALL_EPOCHS, *every_step(folder / "steps")) == 0
    history = state(folder / "run", "PseudoLabelClustering")["history"]
    assert [row["epoch"] for row in history] == [SOURCE, SOURCE + EVERY]
    assert all(row["clusters"] >= 2 for row in history)
    return folder


def state(run: Path, callback: str) -> Any:
    return last_checkpoint(run)["callbacks"][callback]


def equal_runs(one: Path, other: Path, chosen: bool = True) -> None:
    """``chosen``: whether both have chosen the checkpoint to test by the same validations."""
    assert_close(weights(one), weights(other), rtol=0, atol=0)
    ours, theirs = last_checkpoint(one), last_checkpoint(other)
    assert bit_equal(ours["optimizer_states"], theirs["optimizer_states"])
    for name in ("PseudoLabelClustering", "CameraStyleAugmentation", "DirectTransfer"):
        assert bit_equal(ours["callbacks"][name], theirs["callbacks"][name]), name
    rows = [[row for row in metrics(run) if chosen or not row["test/mAP"]] for run in (one, other)]
    assert rows[0] == rows[1]
    table = Path("tables", "cluster_iterations.csv")
    assert (one / table).read_text() == (other / table).read_text()
    if not chosen:
        return
    ours, theirs = timeless(read_summary(one)), timeless(read_summary(other))
    missing = theirs.keys() - ours.keys()
    assert missing <= {"train/identity_loss", "train/top1"}  # last logged before the stop
    assert ours == {name: value for name, value in theirs.items() if name not in missing}


def stop(whole: Path, epoch: int, place: str) -> Path:
    """The checkpoint after the first or last batch of an epoch, or at its end."""
    if place == "end":
        (path,) = (whole / "run" / "checkpoints").glob(f"epoch={epoch}-step=*.ckpt")
        return path
    steps = sorted((whole / "steps").glob(f"epoch={epoch}-step=*.ckpt"), key=lambda p: int(p.stem.split("=")[-1]))
    assert len(steps) > 1
    return steps[{"first": 0, "last": -1}[place]]


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("epoch", "place"),
    [
        pytest.param(0, "first", id="in the source", marks=pytest.mark.slow),
        pytest.param(1, "last", id="in the last batch of the source"),
        pytest.param(1, "end", id="after the source", marks=pytest.mark.slow),
        pytest.param(2, "first", id="right after the first clustering", marks=pytest.mark.slow),
        pytest.param(2, "last", id="between two epochs of a clustering", marks=pytest.mark.slow),
        pytest.param(3, "first", id="between clusterings", marks=pytest.mark.slow),
        pytest.param(3, "last", id="in the last batch before a clustering", marks=pytest.mark.slow),
        pytest.param(3, "end", id="before a clustering", marks=pytest.mark.slow),
        pytest.param(4, "first", id="after the second clustering", marks=pytest.mark.slow),
    ],
)
def test_resume_is_bit_equal(whole, words, epoch, place, tmp_path):
    run, checkpoint = tmp_path / "run", stop(whole, epoch, place)
    shutil.copytree(whole / "run", run)
    shutil.copy(checkpoint, run / "checkpoints" / "here.ckpt")
    for name in ("checkpoints/last.ckpt", "summary.json"):
        (run / name).unlink()
    assert fit(words(), run, *ALL_EPOCHS, "--ckpt_path", str(run / "checkpoints" / "here.ckpt")) == 0
    equal_runs(run, whole / "run", chosen=place != "last")  # from there on that epoch's validation is left out


# -- signals -----------------------------------------------------------------------------------------------------------


def at_call(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int, number: int) -> list[int]:
    """Send a signal when a function is called for the ``call``-th time; what is returned grows with each call."""
    real, calls = getattr(owner, name), [0]

    def sending(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            send_now(number)
        return real(*args, **kwargs)

    patch.setattr(owner, name, sending)
    return calls


def at_batch(patch: pytest.MonkeyPatch, owner: Any, batch: int, number: int) -> list[int]:
    """The same when a pass over a loader is given its ``batch``-th batch."""
    real, calls = owner.device_batches, [0]

    def sending(*args: Any) -> Any:
        for found in real(*args):
            calls[0] += 1
            if calls[0] == batch:
                send_now(number)
            yield found

    patch.setattr(owner, "device_batches", sending)
    return calls


def in_steps(patch: pytest.MonkeyPatch, call: int, number: int) -> list[int]:
    return at_call(patch, camera_augmentation, "translation_step", call, number)


def in_features(patch: pytest.MonkeyPatch, call: int, number: int) -> list[int]:
    return at_batch(patch, features, call, number)


def in_transfer(patch: pytest.MonkeyPatch, call: int, number: int) -> list[int]:
    return at_batch(patch, direct_transfer, call, number)


STEPS = GENERATOR["pretrain_steps"] + 2 * GENERATOR["gan_steps"]  # of the generator in a whole run


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("place", "call"),
    [
        pytest.param(in_features, 2, id="in the first features", marks=pytest.mark.slow),
        pytest.param(in_transfer, 2, id="in the direct transfer", marks=pytest.mark.slow),
        pytest.param(in_steps, 2, id="in the first steps of the generator", marks=pytest.mark.slow),
        pytest.param(in_steps, 7, id="in the steps against the first clusters", marks=pytest.mark.slow),
        pytest.param(in_features, 6, id="in the second features", marks=pytest.mark.slow),
        pytest.param(in_steps, 10, id="in the steps against the second clusters", marks=pytest.mark.slow),
    ],
)
def test_a_signal_in_a_clustering(whole, words, place, call, tmp_path, capsys):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        calls = place(patch, call, signal.SIGTERM)
        assert fit(words(), run, *ALL_EPOCHS) == 143
    assert calls == [call]  # not a batch more
    assert "stopped by SIGTERM" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        rest = in_steps(patch, 0, signal.SIGTERM)
        assert fit(words(), run, *ALL_EPOCHS, "--ckpt_path", "last") == 0
    if place is in_steps:
        assert rest == [STEPS - call]  # no step is done twice
    equal_runs(run, whole / "run")


@pytest.mark.usefixtures("no_figures")
@pytest.mark.slow
@pytest.mark.parametrize("call", [6, 10])
def test_a_process_is_killed_among_the_generators_steps(whole, words, call, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        in_steps(patch, call, signal.SIGKILL)
        killed = processes_run(words(), ALL_EPOCHS, tmp_path / "run", succeed=False)
    assert killed.codes == [-signal.SIGKILL]
    assert fit(words(), tmp_path / "run", *ALL_EPOCHS, "--ckpt_path", "last") == 0
    equal_runs(tmp_path / "run", whole / "run")


# -- many processes ----------------------------------------------------------------------------------------------------


class KeepClusters(ClusterListener):
    """Every process writes down each clustering that it hears of."""

    def on_clusters(self, trainer, pl_module, clusters):
        torch.save(clusters._asdict(), Path(trainer.default_root_dir, f"{clusters.iteration}-{trainer.global_rank}.pt"))


def clusters(run: Run, iteration: int) -> dict[str, Any]:
    """What all processes heard of a clustering, which must be the same."""
    first, *others = [load_plain(run.path / f"{iteration}-{rank}.pt") for rank in range(len(run.codes))]
    assert all(bit_equal(other, first) for other in others)
    return first


@pytest.fixture(scope="module")
def trained(whole) -> str:
    """A checkpoint of the end of the training on the source."""
    return str(stop(whole, SOURCE - 1, "end"))


@pytest.fixture(scope="module")
def both(words, trained, tmp_path_factory, no_figures) -> tuple[Run, Run]:
    """One process, and two that share its batches, on the same weights."""
    folder = tmp_path_factory.mktemp("both")
    keep = ["--trainer.callbacks+=tests.test_ad_cluster_runs.KeepClusters", "--trainer.max_epochs", "3"]
    model = {"base_checkpoint": trained, "source_epochs": 0}
    one = processes_run(words(model=model), keep, folder / "one")
    many = processes_run(words(model=model, p=2, batch_size=8), keep, folder / "many", 2)
    return one, many


def equal_processes(many: Run) -> None:
    """All but the terms of the generator's last steps, which have a test of their own."""
    for rank in many.ranks:
        rank["callbacks"]["CameraStyleAugmentation"] = dict(rank["callbacks"]["CameraStyleAugmentation"], figures=None)
    assert_equal_ranks(many)


def test_processes_stay_equal(both):
    equal_processes(both[1])
    assert both[1].ranks[1]["callbacks"]["CameraStyleAugmentation"]["done"] == GENERATOR["gan_steps"]
    assert clusters(both[1], 2)["labels"].max() > 0


def test_features_are_gathered_by_index_and_clusters_are_those_of_one_process(both):
    one, many = (clusters(run, 1) for run in both)
    assert_close(many["features"], one["features"], rtol=1e-5, atol=1e-6)
    assert torch.equal(many["labels"], one["labels"])
    assert_close(many["centroids"], one["centroids"], rtol=1e-5, atol=1e-6)
    histories = [run.ranks[0]["callbacks"]["PseudoLabelClustering"]["history"][0] for run in both]
    assert histories[0] == pytest.approx(histories[1])


def test_direct_transfer_is_that_of_one_process(both):
    figures = [run.ranks[0]["callbacks"]["DirectTransfer"]["figures"] for run in both]
    assert len(figures[0]) == 5
    assert figures[1] == pytest.approx(figures[0], abs=1e-6)


def test_processes_share_the_clusters_out(both):
    """Of each step together those of one process, whole; and as many steps."""
    labels = clusters(both[0], 1)["labels"]
    one, *_ = seen(both[0], labels)
    many = seen(both[1], labels)
    steps = len(one) // 2  # of the first epoch; two were trained on these labels
    assert len({len(rank) for rank in [one, *many]}) == 1
    for step, expected in enumerate(one[: 2 * steps]):
        parts = [rank[step] for rank in many]
        assert all(len(part) == 2 for part in parts)
        if (step + 1) % steps:  # the last step of an epoch is filled up by each process for itself
            assert sorted(parts[0] + parts[1]) == expected
            assert not set(parts[0]) & set(parts[1])


def seen(run: Run, labels: torch.Tensor) -> list[list[list[int]]]:
    """The clusters in each batch of the epochs that were trained on these labels, per process."""
    steps = len(run.ranks[0]["seen"]["train"]) - last_epoch(run)
    batches = [rank["seen"]["train"][:steps] for rank in run.ranks]
    return [[sorted(set(labels[batch].tolist())) for batch in rank] for rank in batches]


def last_epoch(run: Run) -> int:
    """Steps of the last epoch."""
    return sum(row["epoch"] == "2" and bool(row["train/loss"]) for row in run.metrics)


@pytest.fixture(scope="module")
def of_the_generator(words, trained, tmp_path_factory, no_figures) -> Callable[..., list[dict[str, Any]]]:
    """What one process and then two have of the generator after the first clustering; each is made once."""

    @cache
    def make(**arguments: Any) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp("generator")
        model = {"base_checkpoint": trained, "source_epochs": 0}
        more = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"]
        changes = {"CameraStyleAugmentation": arguments}
        one = processes_run(words(changes, model), more, folder / "one")
        many = processes_run(words(changes, model, p=2, batch_size=8), more, folder / "many", 2)
        states = [rank["callbacks"]["CameraStyleAugmentation"] for rank in (*one.ranks, *many.ranks)]
        assert bit_equal(states[1]["translation"], states[2]["translation"])
        return states

    return make


@pytest.mark.slow
def test_the_generator_is_that_of_one_process(of_the_generator, gan):
    one, many, _ = of_the_generator(gan=gan, pretrain_steps=0, w_div=5.0)
    begun = load_plain(gan)["state_dict"]
    far = total = 0
    for name, value in one["translation"].items():
        assert not torch.equal(value, begun[f"model.{name}"]), name
        far += int(((many["translation"][name] - value).abs() > 1e-6).sum())
        total += value.numel()
    assert far < total / 1000  # weights without a gradient but for rounding, which Adam makes as large as any
    for name in ("augment/g_diversity", "augment/g_div"):
        assert many["figures"][name] == pytest.approx(one["figures"][name], rel=1e-5)


@pytest.mark.slow
def test_the_generators_figures_are_those_of_all_processes(of_the_generator, gan):
    one, first, second = of_the_generator(gan=gan, pretrain_steps=0, w_div=5.0)
    assert first["figures"] == second["figures"]
    assert first["figures"] == pytest.approx(one["figures"], abs=1e-5)


@pytest.mark.slow
def test_a_new_generator_does_not_depend_on_the_number_of_processes(of_the_generator):
    one, first, _ = of_the_generator(pretrain_steps=0, gan_steps=0)
    assert bit_equal(first["translation"], one["translation"])


@pytest.mark.slow
def test_processes_agree_that_nothing_is_found(words, trained, tmp_path, no_figures):
    model = {"base_checkpoint": trained, "source_epochs": 0}
    none = words({"PseudoLabelClustering": {"min_samples": 1000, "every_n_epochs": 1}}, model, p=2, batch_size=8)
    many = processes_run(none, ["--trainer.max_epochs", "2"], tmp_path / "many", 2)
    equal_processes(many)
    history = many.ranks[1]["callbacks"]["PseudoLabelClustering"]["history"]
    assert [row["kept_previous"] for row in history] == [1, 1]
    before = load_plain(trained)["state_dict"]
    assert all(torch.equal(value, before[name]) for name, value in many.weights.items())


@pytest.mark.usefixtures("no_figures")
def test_a_target_of_which_nothing_is_known_needs_its_training_pictures_alone(words, market1501_root, tmp_path):
    """No query, no gallery, no persons: what a user's own cameras give."""
    shutil.copytree(market1501_root / "bounding_box_train", tmp_path / "mine" / "bounding_box_train")
    for path in list((tmp_path / "mine" / "bounding_box_train").glob("*.jpg")):
        path.rename(path.with_name(f"0001{path.stem[4:]}{path.stem[:4]}.jpg"))
    away = ["--data.root", str(tmp_path / "mine"), "--data.val_source", "none", "--data.val_ids", "0"]
    away += ["--trainer.limit_test_batches", "0", "--trainer.max_epochs", "3"]
    assert fit(words(), tmp_path / "run", *away) == 0
    summary = read_summary(tmp_path / "run")
    assert summary["cluster/iteration"] == 1
    assert "cluster/purity" not in summary
    assert "test/mAP" not in summary
