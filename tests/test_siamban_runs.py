"""Whole runs of SiamBAN: what they leave, stopped and resumed, many processes, predict, bad input."""

import json
import shutil
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from PIL import Image
from torch.testing import assert_close

from datamodules.demo import write_tracking
from lit_methods import SiamBAN
from lit_methods.cli import main
from lit_methods.functional.archives import load_plain
from lit_methods.functional.frames import read_frame
from lit_methods.siamban.functional import learning_rates, siamban_cls_loss, siamban_loc_loss
from lit_methods.siamban.runs import track_sequences
from tests import whole_runs
from tests.left_behind import last_checkpoint, read_rows, read_summary
from tests.own_process import run_entry
from tests.small_recipes import RECIPES, without_figures
from tests.two_processes import Run, assert_equal_ranks
from tests.wandb_record import read_record
from tests.whole_runs import ALL_EPOCHS, CPU, at_step, every_step, fit, one_line, processes

AT_EPOCH, EPOCHS, STEPS = 1, 3, 4  # the backbone learns from then on; epochs in all; steps of an epoch
SMALL = {
    **whole_runs.SHORT,
    "model.width": 2,
    "model.channels": 4,
    "model.search_size": 167,
    "data.search_size": 167,
    "data.batch_size": 2,
    "data.pairs_per_epoch": 2 * STEPS,
    "data.val_videos": 1,
    "data.val_frames": 3,
    "trainer.max_epochs": EPOCHS,
}
UNFREEZE = ["--trainer.callbacks+=callbacks.BackboneUnfreeze", "--trainer.callbacks.at_epoch", str(AT_EPOCH)]
FRONT = ("model.backbone.conv1.", "model.backbone.bn1.", "model.backbone.layer1.")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
MORE = [*UNFREEZE, *ALL_EPOCHS]


def words(root: Path, **more: Any) -> list[str]:
    """What makes the recipe small; ``__`` stands for a dot."""
    return whole_runs.recipe_words("siamban", SMALL | {"data.root": root}, **more)


@pytest.fixture(scope="module")
def whole(lasot_root, tmp_path_factory) -> Path:
    """A run with its figures, and a checkpoint after every step and every epoch."""
    folder = tmp_path_factory.mktemp("whole")
    assert fit(words(lasot_root), folder / "run", *MORE, *every_step(folder / "steps"), figures=True) == 0
    return folder


@pytest.fixture(scope="module")
def fitted(whole) -> Path:
    return whole / "run"


chosen = partial(whole_runs.chosen, figure="success_auc")


# -- what a run leaves -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_wandb_has_losses_fusion_and_pictures(lasot_root, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert fit(words(lasot_root), tmp_path / "run", *MORE, "--logger", "wandb", figures=True) == 0
    record = read_record(tmp_path / "run")
    assert {"train/labels", "val/tracks", "test/tracks", "test/film", "test/curves"} <= record.media.keys()
    assert len(record.media["train/labels"]) == len(record.media["val/tracks"]) == EPOCHS
    for name in ("train/loss", "train/cls_loss", "train/loc_loss", "fusion/cls_2", "fusion/loc_3", "fusion/scale_2"):
        assert len(record.at(name)) == STEPS * EPOCHS, name
    assert len(set(record.at("fusion/cls_2").values())) > STEPS
    assert len(record.at("val/success_auc")) == EPOCHS
    assert any("test/sequences" in key for row in record.history for key in row)


def test_the_summary_has_the_tracker_and_one_that_stays(fitted, lasot_root):
    summary = read_summary(fitted)
    names = ("success_auc", "precision", "norm_precision", "norm_precision_auc", "success_auc_static", "score")
    for name in names:
        assert 0 <= summary[f"test/{name}"] <= 1
    assert (summary["data/train_videos"], summary["data/test_videos"]) == (3, 2)
    rows = read_rows(fitted / "tables" / "test_sequences.csv")
    assert [row["name"] for row in rows] == (lasot_root / "testing_set.txt").read_text().split()
    mean = sum(float(row["success_auc"]) for row in rows) / len(rows)
    assert summary["test/success_auc"] == pytest.approx(mean)


def test_files_of_results_score_the_same_again(fitted, lasot_root, tmp_path):
    """Without a checkpoint, from the boxes alone."""
    more = ["--results", str(fitted / "results"), "--run_dir", str(tmp_path / "again")]
    with without_figures():
        assert main("test", [*words(lasot_root), *CPU, *more]) == 0
    ours, theirs = read_summary(tmp_path / "again"), read_summary(fitted)
    for name in ("success_auc", "precision", "norm_precision", "success_auc_static"):
        assert ours[f"test/{name}"] == pytest.approx(theirs[f"test/{name}"], abs=1e-9)


@pytest.mark.slow
def test_test_gives_the_same_figures_again(fitted, lasot_root, tmp_path):
    more = ["--ckpt_path", chosen(fitted), "--run_dir", str(tmp_path / "tested")]
    with without_figures():
        assert main("test", [*words(lasot_root), *CPU, *more]) == 0
    summary, again = read_summary(fitted), read_summary(tmp_path / "tested")
    keys = [key for key in summary if key.startswith("test/")]
    assert len(keys) >= 6
    assert {key: again[key] for key in keys} == {key: summary[key] for key in keys}


def test_what_rests_is_bit_equal_over_the_whole_run(whole):
    """Also running statistics, with a validation after each epoch; the rest of the backbone learns in its time."""
    first, before, last = (load_plain(at_step(whole, step))["state_dict"] for step in (1, STEPS, STEPS * EPOCHS))
    front = [name for name in first if name.startswith(FRONT)]
    deep = [name for name in first if name.startswith("model.backbone.") and name not in front]
    assert len(front) > 20
    assert len(deep) > 40
    assert [name for name in front if not torch.equal(first[name], last[name])] == []
    assert [name for name in deep if not torch.equal(first[name], before[name])] == []
    assert [name for name in deep if torch.equal(before[name], last[name])] == []
    seen = {name: int(value) for name, value in last.items() if name.endswith("num_batches_tracked")}
    for name, count in seen.items():
        steps = 0 if name in front else STEPS * (EPOCHS - AT_EPOCH) if name in deep else STEPS * EPOCHS
        shared = name in deep or "neck" in name  # template and search region pass through it
        assert count == steps * (2 if shared else 1), name


def test_rates_are_those_of_their_epochs(whole):
    rates = learning_rates(EPOCHS, 1, 0.01, 0.05, 0.0005)
    for epoch in range(EPOCHS):
        for step in (epoch * STEPS + 1, (epoch + 1) * STEPS - 1):
            (state,) = load_plain(at_step(whole, step))["optimizer_states"]
            assert [group["lr"] for group in state["param_groups"]] == pytest.approx(
                [0.1 * rates[epoch], rates[epoch], rates[epoch]]
            )


# -- resume ------------------------------------------------------------------------------------------------------------


equal_runs = partial(whole_runs.equal_runs, figure="success_auc", but="train/")
resumed = partial(whole_runs.resumed, left="tables/test_sequences.csv", more=MORE)


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(2, id="while the backbone rests", marks=pytest.mark.slow),
        pytest.param(STEPS, id="in the last batch before it learns", marks=pytest.mark.slow),
        pytest.param(STEPS + 1, id="after the first batch with it"),
        pytest.param(2 * STEPS, id="in the last batch of an epoch", marks=pytest.mark.slow),
        pytest.param(3 * STEPS - 1, id="before the last batch of all", marks=pytest.mark.slow),
    ],
)
def test_resume_is_bit_equal(whole, lasot_root, step, tmp_path):
    run = resumed(whole, tmp_path, at_step(whole, step), words(lasot_root))
    equal_runs(run, whole / "run", validated=step % STEPS > 0)  # from there on that epoch's validation is left out


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, STEPS + 2])
def test_workers_change_nothing(whole, lasot_root, step, tmp_path):
    """Nor where a run goes on in an epoch."""
    equal_runs(resumed(whole, tmp_path, at_step(whole, step), words(lasot_root, data__num_workers=2)), whole / "run")


@pytest.mark.slow
def test_a_signal_in_the_middle_of_an_epoch(whole, lasot_root, tmp_path, capsys):
    done = whole_runs.stopped_and_resumed(words(lasot_root), tmp_path / "run", capsys, SiamBAN, STEPS + 2, MORE)
    assert done == STEPS * EPOCHS  # no step is done twice
    equal_runs(tmp_path / "run", whole / "run")


# -- many processes ----------------------------------------------------------------------------------------------------


class KeepBatches(Callback):
    """Every process writes down its weights and batches, before each step, as ``batches<rank>.pt``."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        keys = torch.rand(2, 14, 14, generator=torch.Generator().manual_seed(trainer.global_rank), dtype=torch.float64)
        batch["keys"] = keys  # by which points are drawn
        state = {name: value.clone() for name, value in pl_module.state_dict().items()}
        batch = {name: value.clone() for name, value in batch.items() if isinstance(value, torch.Tensor)}
        self.kept.append(
            {"weights": state, "batch": batch, "rates": [g["lr"] for g in trainer.optimizers[0].param_groups]}
        )

    def on_train_end(self, trainer, pl_module):
        torch.save(self.kept, Path(trainer.default_root_dir, f"batches{trainer.global_rank}.pt"))


@pytest.fixture(scope="module")
def both(lasot_root, tmp_path_factory) -> tuple[Run, Path]:
    """A run of two processes that validates on one video, and a test by one process of what it has tested."""
    folder = tmp_path_factory.mktemp("both")
    few = {"trainer__max_epochs": 2, "data__pairs_per_epoch": 8, "trainer__precision": "64-true"}
    few |= {"trainer__gradient_clip_val": "null", "model__momentum": 0.0, "model__weight_decay": 0.0}
    keep = ["--trainer.callbacks+=tests.test_siamban_runs.KeepBatches"]
    many = processes(words(lasot_root, **few), [*MORE, *keep], folder / "many", 2)
    with without_figures():
        more = [*CPU, "--ckpt_path", chosen(many.path), "--run_dir", str(folder / "one")]
        assert main("test", [*words(lasot_root, **few), *more]) == 0
    return many, folder / "one"


def kept(many: Run) -> list[list[dict[str, Any]]]:
    return [torch.load(many.path / f"batches{rank}.pt", weights_only=True) for rank in range(2)]


def test_processes_stay_equal_before_and_after_the_backbone_learns(both):
    many, _ = both
    assert_equal_ranks(many)
    one, other = kept(many)
    assert len(one) == 4  # 8 pairs, 2 and 2 in a step, two epochs
    for ours, theirs in zip(one, other, strict=True):
        parameters = {name: value for name, value in ours["weights"].items() if not name.endswith(STATISTICS)}
        assert all(torch.equal(theirs["weights"][name], value) for name, value in parameters.items())
        assert not torch.equal(ours["batch"]["search"], theirs["batch"]["search"])
    for name, value in one[0]["weights"].items():
        if name.startswith("model.backbone."):
            assert torch.equal(value, one[2]["weights"][name]), name
            assert torch.equal(value, many.weights[name]) == name.startswith(FRONT), name


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_a_step_of_processes_is_the_mean_of_their_gradients(both, step):
    """While the backbone rests and when it learns. Losses are means over the points of each process."""
    ranks = kept(both[0])
    gradients = []
    for rank in ranks:
        module = SiamBAN.load_from_checkpoint(chosen(both[0].path), map_location="cpu", weights_only=True).double()
        module.load_state_dict(ranks[0][step]["weights"])
        names = () if step < 2 else ("layer2", "layer3")
        module.model.backbone.set_trainable(names)
        module.train()
        batch = rank[step]["batch"]
        labels, deltas = module.targets(batch)
        cls, loc = module(batch["template"], batch["search"])
        (siamban_cls_loss(cls, labels) + siamban_loc_loss(loc, deltas, labels)).backward()
        gradients.append({name: value.grad for name, value in module.named_parameters() if value.grad is not None})
    before = ranks[0][step]["weights"]
    after = ranks[0][step + 1]["weights"] if step < 3 else both[0].weights
    rates = dict(zip(("backbone", "neck", "head"), ranks[0][step]["rates"], strict=True))
    assert any(name.startswith("model.backbone.layer2") for name in gradients[0]) == (step >= 2)
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        moved = -rates[name.split(".")[1]] * (value + gradients[1][name]) / 2
        assert_close(
            after[name] - before[name], moved, rtol=1e-6, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_processes_evaluate_as_one_does(both):
    """On the same weights."""
    many, one = both
    expected = {key: value for key, value in read_summary(one).items() if key.startswith("test/")}
    assert len(expected) >= 6
    assert {key: many.summary[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    rows = [read_rows(path / "tables" / "test_sequences.csv") for path in (many.path, one)]
    assert [row["name"] for row in rows[0]] == [row["name"] for row in rows[1]]
    assert {path.name for path in (many.path / "results").iterdir()} == {f"{row['name']}.txt" for row in rows[1]}


@pytest.mark.slow
@pytest.mark.parametrize("videos", [1, 3])
def test_processes_share_out_any_number_of_videos(both, lasot_root, videos, tmp_path):
    """One video for two processes, and three."""
    names = sorted(path.parent.name for path in lasot_root.glob("*/*/img"))[:videos]
    (tmp_path / "split.txt").write_text("\n".join(names) + "\n")
    given = words(lasot_root, data__test_split=tmp_path / "split.txt", data__sequences=1)
    ckpt = ["--ckpt_path", chosen(both[0].path)]
    one = processes(given, ckpt, tmp_path / "one", entry="test")
    many = processes(given, ckpt, tmp_path / "many", 2, entry="test")
    expected = {key: value for key, value in one.summary.items() if key.startswith("test/")}
    assert len(expected) >= 6
    assert {key: many.summary[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    rows = [read_rows(run.path / "tables" / "test_sequences.csv") for run in (many, one)]
    assert [row["name"] for row in rows[0]] == [row["name"] for row in rows[1]] == names


# -- predict and export ------------------------------------------------------------------------------------------------


predict = partial(whole_runs.predict, "siamban")


@pytest.fixture(scope="module")
def video(lasot_root) -> Path:
    """A test video."""
    (path,) = lasot_root.glob(f"*/{(lasot_root / 'testing_set.txt').read_text().split()[0]}")
    return path


def boxes(folder: Path) -> torch.Tensor:
    rows = read_rows(folder / "predictions.csv")
    return torch.tensor([[float(row[name]) for name in ("x", "y", "w", "h")] for row in rows], dtype=torch.float64)


def test_predict_finds_in_a_folder_what_the_test_found(fitted, video, tmp_path):
    """With the first box of its ground truth; in the files of the test are the very same boxes."""
    assert predict(chosen(fitted), tmp_path / "out", "--input", video) == 0
    found = boxes(tmp_path / "out")
    expected = np.loadtxt(fitted / "results" / f"{video.name}.txt", delimiter=",")
    assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-4)  # two videos were one batch there
    assert list((tmp_path / "out" / "videos").glob("*.gif")) or list((tmp_path / "out" / "videos").glob("*.mp4"))


def tracked(fitted: Path, frames: list[torch.Tensor], box: list[float]) -> torch.Tensor:
    module = SiamBAN.load_from_checkpoint(chosen(fitted), map_location="cpu", weights_only=True).eval()
    return track_sequences(module.tracker(), [frames], torch.tensor([box], dtype=torch.float64))[0].boxes_xywh


@pytest.mark.slow
def test_predict_tracks_in_a_gif(fitted, video, tmp_path):
    pictures = [Image.open(path) for path in sorted((video / "img").glob("*.jpg"))]
    pictures[0].save(tmp_path / "in.gif", save_all=True, append_images=pictures[1:], duration=100)
    more = ["--input", tmp_path / "in.gif", "--box", "20,15,18,16", "--out", tmp_path / "film.gif"]
    assert predict(chosen(fitted), tmp_path / "out", *more) == 0
    with Image.open(tmp_path / "in.gif") as gif:
        frames = []
        for index in range(gif.n_frames):
            gif.seek(index)
            rgb = torch.from_numpy(np.asarray(gif.convert("RGB")).copy())
            frames.append(rgb.flip(2).permute(2, 0, 1).contiguous())
    assert_close(boxes(tmp_path / "out"), tracked(fitted, frames, [20, 15, 18, 16]), rtol=0, atol=1e-6)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == len(frames)


@pytest.mark.slow
def test_predict_tracks_in_an_mp4(fitted, video, tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "in.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 80, 60, "yuv420p"
        for path in sorted((video / "img").glob("*.jpg")):
            for packet in stream.encode(av.VideoFrame.from_image(Image.open(path))):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    more = ["--input", tmp_path / "in.mp4", "--box", "20,15,18,16", "--out", tmp_path / "out.mp4"]
    assert predict(chosen(fitted), tmp_path / "out", *more) == 0
    assert len(boxes(tmp_path / "out")) == 6
    with av.open(str(tmp_path / "out.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("formats", ["torch", "onnx"])
def test_export(fitted, formats, tmp_path):
    """What is written was compared with the module there; here with other crops, and more of them."""
    arguments = ["--ckpt_path", chosen(fitted), "--formats", formats, "--run_dir", str(tmp_path / "e")]
    assert run_entry("export", "siamban", *arguments, folder=tmp_path).returncode == 0
    report = json.loads((tmp_path / "e" / "export" / "export.json").read_text())
    ending = {"torch": "pt2", "onnx": "onnx"}[formats]
    assert {file["path"] for file in report["files"]} == {f"template.{ending}", f"search.{ending}"}
    if formats == "torch":
        module = SiamBAN.load_from_checkpoint(chosen(fitted), map_location="cpu", weights_only=True).eval()
        template, search = 255 * torch.rand(3, 3, 127, 127), 255 * torch.rand(3, 3, 167, 167)
        graphs = {
            name: torch.export.load(tmp_path / "e" / "export" / f"{name}.pt2").module()
            for name in ("template", "search")
        }
        with torch.no_grad():
            kernels = graphs["template"](template)
            ours = graphs["search"](search, kernels)
            theirs = module(template, search)
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one, other, rtol=1e-4, atol=1e-4)


# -- other benchmarks --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vot_root(video, tmp_path_factory) -> Path:
    """One sequence of VOT, whose target has rotated boxes."""
    root = tmp_path_factory.mktemp("vot")
    (root / "list.txt").write_text("thing\n")
    (root / "thing").mkdir()
    for index, path in enumerate(sorted((video / "img").glob("*.jpg")), 1):
        shutil.copy(path, root / "thing" / f"{index:08d}.jpg")
    rows = [",".join(str(5 * (n >= 3) + v) for v in (20, 15, 40, 17, 38, 33, 18, 31)) for n in range(6)]
    (root / "thing" / "groundtruth.txt").write_text("\n".join(rows) + "\n")
    return root


def test_vot_is_tested_with_resets(fitted, vot_root, tmp_path):
    given = ["siamban", *CPU, "--data", "TrackingBenchmarkDataModule", "--data.benchmark", "vot2018"]
    given += ["--data.root", str(vot_root), "--ckpt_path", chosen(fitted), "--run_dir", str(tmp_path / "run")]
    size = ["--model.width", "2", "--model.channels", "4", "--model.search_size", "167"]
    with without_figures():
        assert main("test", [*given, *size]) == 0
    summary = read_summary(tmp_path / "run")
    assert {"test/accuracy", "test/robustness", "test/lost", "test/eao"} <= summary.keys()
    assert "test/success_auc" not in summary
    lines = (tmp_path / "run" / "results" / "baseline" / "thing" / "thing_001.txt").read_text().split()
    assert len(lines) == 6
    assert lines[0] == "1"
    assert lines.count("2") == summary["test/lost"]


# -- the recipe for LaSOT ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_loss_that_is_far_too_large_is_no_step(lasot_root, tmp_path):
    """Nothing moves."""
    given = ["siamban_lasot", *words(lasot_root, model__depth=18)[1:], *CPU, "--run_dir", str(tmp_path / "run")]
    place = given.index("--data.demo")
    del given[place : place + 2]
    recipe = yaml.safe_load(RECIPES["siamban_lasot"].read_text("utf-8"))
    (options,) = [c["init_args"] for c in recipe["trainer"]["callbacks"] if c["class_path"] == "callbacks.NaNGuard"]
    guard = [
        "--trainer.callbacks",
        json.dumps([{"class_path": "NaNGuard", "init_args": {**options, "max_loss": 1e-9}}]),
    ]
    with without_figures(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main("fit", [*given, *guard, "--trainer.max_epochs", "1"]) == 0
    assert read_summary(tmp_path / "run")["nan_guard/skipped_steps"] == STEPS
    (state,) = last_checkpoint(tmp_path / "run")["optimizer_states"]
    assert not state["state"] or all(not part for part in state["state"].values())


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"data__root": "nowhere"}, "nowhere"),
        ({"data__search_size": 175}, "set data.search_size to 167"),
        ({"model__levels": "[1, 2]"}, "levels"),
        ({"model__label_shape": "square"}, "label_shape"),
        pytest.param({"model__search_size": 200}, "search_size=200 must be 8 k + 7", marks=pytest.mark.slow),
        pytest.param({"model__loc_loss": "l1"}, "loc_loss", marks=pytest.mark.slow),
        pytest.param({"data__on_bad_frame": "stop"}, "on_bad_frame", marks=pytest.mark.slow),
        pytest.param({"data__val_videos": 4}, "val_videos=4 leaves none", marks=pytest.mark.slow),
        pytest.param({"model__base_checkpoint": "nowhere.ckpt"}, "nowhere.ckpt", marks=pytest.mark.slow),
        pytest.param({"trainer__max_epochs": -1}, "max_epochs", marks=pytest.mark.slow),
    ],
)
def test_one_line_says_what_is_wrong(lasot_root, more, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fit(words(lasot_root, **more), tmp_path / "run") == 2
    assert text in one_line(capsys)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def own_root(tmp_path) -> Path:
    """A set of the test's own, whose files may be spoiled."""
    return write_tracking(tmp_path / "lasot", train=2, test=1, frames=4, size=(60, 80))


def of_split(root: Path, test: bool) -> list[Path]:
    names = (root / "testing_set.txt").read_text().split()
    return [path for path in sorted(root.glob("*/*-*")) if (path.name in names) == test and path.parent.name != "att"]


def test_a_first_box_without_area_is_one_line(fitted, own_root, tmp_path, capsys):
    (folder,) = of_split(own_root, test=True)
    lines = (folder / "groundtruth.txt").read_text().splitlines()
    (folder / "groundtruth.txt").write_text("\n".join(["3,4,0,5", *lines[1:]]) + "\n")
    more = ["--ckpt_path", chosen(fitted), "--run_dir", str(tmp_path / "run")]
    assert main("test", [*words(own_root), *CPU, *more]) == 2
    line = one_line(capsys)
    assert folder.name in line
    assert "3, 4, 0, 5" in line or "3,4,0,5" in line


@pytest.mark.parametrize("fault", ["smaller", pytest.param("damaged", marks=pytest.mark.slow)])
def test_a_frame_that_cannot_be_used_in_a_test_is_named(fitted, own_root, fault, tmp_path, capsys):
    (folder,) = of_split(own_root, test=True)
    frame = folder / "img" / "00000003.jpg"
    if fault == "smaller":
        Image.open(frame).resize((40, 30)).save(frame)
    else:
        frame.write_bytes(frame.read_bytes()[:100])
    more = ["--ckpt_path", chosen(fitted), "--run_dir", str(tmp_path / "run")]
    assert main("test", [*words(own_root), *CPU, *more]) == 2
    line = one_line(capsys)
    assert str(frame) in line
    assert ("40 x 30" in line) == (fault == "smaller")


@pytest.mark.parametrize("policy", ["raise", pytest.param("skip", marks=pytest.mark.slow)])
def test_a_frame_that_cannot_be_read_in_training(own_root, policy, tmp_path, capsys):
    for folder in of_split(own_root, test=False):
        for path in sorted((folder / "img").glob("*.jpg"))[1::2]:
            path.write_bytes(path.read_bytes()[:100])
    given = words(own_root, data__on_bad_frame=policy, data__val_videos=0, trainer__max_epochs=1, data__in_memory=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = fit(given, tmp_path / "run", "--checkpoint.monitor", "epoch", "--checkpoint.mode", "max")
    if policy == "skip":
        assert code == 0
        return
    assert code == 2
    line = one_line(capsys)
    assert ".jpg" in line
    assert "on_bad_frame" in line


@pytest.mark.slow
def test_a_box_outside_of_the_video_is_one_line(fitted, video, tmp_path, capsys):
    assert predict(chosen(fitted), tmp_path / "out", "--input", video, "--box", "200,5,10,10") in (1, 2)
    assert "200" in one_line(capsys)


def test_frames_are_bgr(video):
    """As the network is fed: the first channel is the last of the file."""
    path = sorted((video / "img").glob("*.jpg"))[0]
    rgb = np.asarray(Image.open(path))
    assert np.array_equal(read_frame(str(path)).numpy(), rgb[..., ::-1].transpose(2, 0, 1))
