"""SiamBAN: files of results are written as the toolkits have them, and anybody's are scored."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from lit_methods.cli import main
from lit_methods.siamban.own_results import OwnResults
from lit_methods.siamban.results import (
    find_results,
    read_boxes,
    read_results,
    read_vot_run,
    result_path,
    tracker_folder,
    write_boxes,
    write_vot_run,
)
from lit_methods.siamban.runs import Track
from tests.small_recipes import without_figures

TINY = """
description: tiny
seed_everything: 0
trainer:
  accelerator: cpu
  devices: 1
  use_distributed_sampler: false
  enable_progress_bar: false
  callbacks: [{class_path: callbacks.TrackingResults}]
model:
  class_path: lit_methods.SiamBAN
  init_args: {depth: 18, width: 4, channels: 8, levels: [2], search_size: 167}
data:
  class_path: datamodules.TrackingBenchmarkDataModule
  init_args: {benchmark: BENCHMARK, root: data, sequences: 2}
"""


# -- files ------------------------------------------------------------------------------------------------------------


def test_boxes_come_back_bit_for_bit(tmp_path):
    boxes = torch.cat([torch.randn(50, 4, dtype=torch.float64) * 10.0**k for k in (-9, 0, 6)])
    boxes[0] = torch.tensor([1 / 3, 0.1 + 0.2, -0.0, 1e22], dtype=torch.float64)
    write_boxes(tmp_path / "a.txt", boxes)
    assert torch.equal(read_boxes(tmp_path / "a.txt"), boxes)


@pytest.mark.parametrize(
    "text",
    ["1,2,3,4.5\n6,7,8,9\n", "1\t2\t3\t4.5\r\n6\t7\t8\t9\r\n", "1 2  3 4.5\n6 7 8 9", "1, 2,3 ,4.5,\n6,7\t8 9\n"],
)
def test_separators_of_all_toolkits_are_read(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert read_boxes(tmp_path / "a.txt").tolist() == [[1, 2, 3, 4.5], [6, 7, 8, 9]]


def test_a_run_with_resets_comes_back_with_four_decimals(tmp_path):
    boxes, state = torch.rand(6, 4, dtype=torch.float64) * 100, torch.tensor([1, 9, 9, 2, 0, 9])
    path = result_path(tmp_path, "ants1", resets=True)
    write_vot_run(path, boxes, state)
    assert path.relative_to(tmp_path).as_posix() == "baseline/ants1/ants1_001.txt"
    assert path.read_text().splitlines()[3:5] == ["2", "0"]
    read, codes = read_vot_run(path)
    assert codes.tolist() == state.tolist()
    assert_close(read[state == 9], boxes[state == 9], rtol=0, atol=5.1e-5)
    assert read[state != 9].isnan().all()
    path.write_text("1.0000\n2,3,4,5\n2.0000\n")
    assert read_vot_run(path)[1].tolist() == [1, 9, 2]


@pytest.mark.parametrize("line", ["nan,2,3,4", "1,2,inf,4", "1,2,3", "1,2,3,4,5", "one,2,3,4", ""])
def test_a_line_that_is_no_box_is_named(tmp_path, line):
    (tmp_path / "a.txt").write_text(f"1,2,3,4\n{line}\n5,6,7,8\n")
    with pytest.raises(ValueError, match=r"a.txt', line 2: expected a box x,y,w,h of four finite numbers"):
        read_boxes(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1\n1,2,3,4,5,6,7,8\n", "line 2: expected a code 0, 1 or 2, or a box"),
        ("1\n3\n", "line 2: expected a code"),
        ("1\nnan,1,1,1\n", "line 2: expected a code"),
        ("5,5,9,9\n5,5,9,9\n", "line 1: a run with resets begins with the code 1"),
        ("\n", "is empty"),
    ],
)
def test_a_line_that_is_neither_code_nor_box_is_named(tmp_path, text, said):
    (tmp_path / "a_001.txt").write_text(text)
    with pytest.raises(ValueError, match=f"a_001.txt'.*{said}"):
        read_vot_run(tmp_path / "a_001.txt")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=r"a.txt' is empty"):
        read_boxes(tmp_path / "a.txt")


def test_longer_files_are_cut_with_one_warning(tmp_path, recwarn):
    for name in ("monkey-17", "dog-1", "cat-1"):
        write_boxes(tmp_path / f"{name}.txt", torch.arange(20.0).view(5, 4))
    read = read_results(tmp_path, {"monkey-17": 3, "dog-1": 4, "cat-1": 5})
    assert [len(boxes) for boxes, _ in read.values()] == [3, 4, 5]
    assert read["monkey-17"][0][-1].tolist() == [8, 9, 10, 11]
    assert len(recwarn) == 1
    assert "monkey-17 (lines 5, frames 3), dog-1 (lines 5, frames 4)" in str(recwarn[0].message)


def test_a_shorter_file_is_named_with_both_numbers(tmp_path):
    write_boxes(tmp_path / "dog-1.txt", torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"dog-1.txt' has 3 lines, but the video 'dog-1' has 5 frames"):
        read_results(tmp_path, {"dog-1": 5})


def test_all_missing_files_are_named(tmp_path):
    names = [f"dog-{number}" for number in range(1, 13)]
    (tmp_path / "dog-5.txt").touch()
    with pytest.raises(FileNotFoundError, match="lacks the files of 11 of 12 videos") as caught:
        find_results(tmp_path, names)
    assert all(f" {name}" in str(caught.value) for name in names if name != "dog-5")
    with pytest.raises(FileNotFoundError, match="no file of any of the 2 videos, such as 'cat-1'"):
        find_results(tmp_path, ["cat-1", "cat-2"])
    with pytest.raises(FileNotFoundError, match="nowhere' is no folder"):
        find_results(tmp_path / "nowhere", names)


def test_the_folder_of_a_single_tracker_may_lie_inside(tmp_path):
    write_boxes(tmp_path / "mine" / "dog-1.txt", torch.ones(1, 4))
    (tmp_path / "other").mkdir()
    assert tracker_folder(tmp_path, ["dog-1"]) == tmp_path / "mine"
    write_boxes(tmp_path / "other" / "dog-1.txt", torch.ones(1, 4))
    with pytest.raises(ValueError, match="has results of 2 trackers: mine, other; give the folder of one"):
        tracker_folder(tmp_path, ["dog-1"])


def test_vot_runs_are_found_with_and_without_baseline(tmp_path):
    for folder in ("with/baseline", "without"):
        path = tmp_path / folder / "ants1" / "ants1_001.txt"
        write_vot_run(path, torch.ones(1, 4), torch.tensor([1]))
        assert find_results(tmp_path / folder.split("/")[0], ["ants1"], resets=True) == {"ants1": path}


@pytest.mark.parametrize("name", ["../dog-1", "a/b", "", ".hidden", "a\\b"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="the name must be one of a file"):
        result_path(tmp_path, name)


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def test_command(tmp_path, monkeypatch, capsys):
    """Runs ``test`` in an empty folder: exit code, folder of the run, lines on stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        capsys.readouterr()
        code = main("test", list(map(str, words)))
        said = capsys.readouterr()
        errors = [line for line in said.err.splitlines() if not line.startswith("warning: ")]
        return SimpleNamespace(code=code, err=errors, run_dir=Path((said.out.splitlines() or [""])[-1]))

    with without_figures():
        yield call


FRAMES = 14  # more than VOT's burn-in


def write_videos(root: Path, benchmark: str) -> None:
    """Three videos of a target that moves a little, as VOT or a plain folder has them."""
    for number, name in enumerate("bac"):
        (root / name).mkdir(parents=True)
        boxes = []
        for frame in range(FRAMES):
            x, y, w, h = 20 + frame * number, 20 + frame, 16, 12
            Image.new("RGB", (96, 64)).save(root / name / f"{frame + 1:08d}.png")
            corners = f"{x},{y},{x + w - 1},{y},{x + w - 1},{y + h - 1},{x},{y + h - 1}"
            boxes.append(corners if benchmark.startswith("vot") else f"{x},{y},{w},{h}")
        (root / name / "groundtruth.txt").write_text("\n".join(boxes) + "\n")


def tiny_run(folder: Path, benchmark: str) -> Path:
    write_videos(folder / "data", benchmark)
    (folder / "tiny.yaml").write_text(TINY.replace("BENCHMARK", benchmark))
    return folder / "tiny.yaml"


def drifting(self, tracker, batch):
    """Stands for a tracker, whose boxes have all the digits that there are; two of three VOT runs fail once."""
    tracks = []
    for index, truth in zip(batch["index"].tolist(), batch["boxes"], strict=True):
        noise = torch.randn(truth.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(index))
        state = torch.full((len(truth),), 9)
        state[[0, *([8] if index else [])]], state[4 : 8 if index else 4] = 1, 0
        state[3] = 2 if index else 9
        tracks.append(Track(truth + noise, torch.rand(len(truth)), (96, 64), state if self.resets else None))
    return tracks


def figures_of(run_dir: Path) -> dict[str, float]:
    summary = json.loads((run_dir / "summary.json").read_text())
    return {key: value for key, value in summary.items() if key.startswith("test/")}


@pytest.mark.parametrize(("benchmark", "exact"), [("folder", 0.0), ("vot2018", 1e-3)])
def test_what_a_test_writes_is_scored_the_same(test_command, tmp_path, monkeypatch, benchmark, exact):
    config = tiny_run(tmp_path, benchmark)
    monkeypatch.setattr("lit_methods.siamban.evaluation.TrackingFigures.follow", drifting)
    first = test_command("--config", config)
    assert first.code == 0
    assert "test/results" not in figures_of(first.run_dir)
    assert len(list((first.run_dir / "results").rglob("*.txt"))) == 3
    monkeypatch.setattr("lit_methods.siamban.evaluation.TrackingFigures.follow", None)  # nothing is tracked
    again = test_command("--config", config, "--results", first.run_dir / "results")
    assert again.code == 0
    theirs, ours = figures_of(first.run_dir), figures_of(again.run_dir)
    assert ours.pop("test/results") == str(first.run_dir / "results")
    assert 0.2 < theirs["test/accuracy" if exact else "test/success_auc"] < 0.95
    theirs.pop("test/score", None)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert value == theirs[key] or abs(value - theirs[key]) <= exact, key
    table = "tables/test_sequences.csv"
    assert len((again.run_dir / table).read_text().splitlines()) == 4
    if exact == 0:
        assert (again.run_dir / table).read_text() == (first.run_dir / table).read_text()
    assert not (again.run_dir / "results").exists()


def test_annotations_whose_frames_are_not_here_are_scored_and_nothing_is_drawn(test_command, tmp_path):
    """As of the toolkit's JSON files alone."""
    fields = {"img_names": [f"a/img/{n:04d}.jpg" for n in range(FRAMES)], "gt_rect": [[5, 6, 7, 8]] * FRAMES}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "OTB100.json").write_text(json.dumps({"a": fields}))
    write_boxes(tmp_path / "mine" / "a.txt", torch.tensor([[5.0, 6, 7, 8]] * FRAMES))
    drawing = TINY.replace(
        "callbacks.TrackingResults}", "callbacks.TrackingResults}, {class_path: callbacks.TrackingLogger}"
    )
    (tmp_path / "tiny.yaml").write_text(drawing.replace("BENCHMARK", "json"))
    ended = test_command("--config", tmp_path / "tiny.yaml", "--results", "mine")
    assert ended.code == 0
    assert figures_of(ended.run_dir)["test/success_auc"] == pytest.approx(20 / 21)
    assert not [path.name for path in (ended.run_dir / "pictures").glob("test_[tf]*")]


def test_faults_are_one_line_before_anything_runs(test_command, tmp_path):
    config, results = tiny_run(tmp_path, "folder"), tmp_path / "mine"
    for name in "ac":
        write_boxes(results / f"{name}.txt", torch.ones(FRAMES, 4))
    cases = {"lacks the files of 1 of 3 videos: b. ": None, "line 3: expected a box": "1,1,1,1\n" * 2 + "x\n"}
    for said, text in cases.items():
        if text:
            (results / "b.txt").write_text(text)
        ended = test_command("--config", config, "--results", results)
        assert ended.code == 2
        assert len(ended.err) == 1
        assert said in ended.err[0]
        assert not any((tmp_path / "runs").glob("*"))


def test_a_perfect_tracker_on_lasots_annotation_gets_what_absent_frames_leave(test_command, shared, tmp_path):
    root = shared / "data" / "lasot_annotations"
    shutil.copytree(root / "annos", tmp_path / "perfect", ignore=shutil.ignore_patterns("absent", "att", "nlp"))
    ended = test_command("siamban", "--results", "perfect", "--data.root", root)
    assert ended.code == 0
    share = {
        path.stem: 1 - np.mean([int(word) for word in path.read_text().replace(",", " ").split()])
        for path in (root / "annos" / "absent").glob("*.txt")
    }
    assert min(share.values()) < 0.9
    assert max(share.values()) == 1
    with (ended.run_dir / "tables" / "test_sequences.csv").open() as file:
        found = {row["name"]: row for row in csv.DictReader(file)}
    assert found.keys() == share.keys()
    for name, row in found.items():
        assert float(row["success_auc"]) == pytest.approx(share[name] * 20 / 21, abs=1e-12)
        assert float(row["precision"]) == pytest.approx(share[name], abs=1e-12)
    figures = figures_of(ended.run_dir)
    assert figures["test/success_auc"] == pytest.approx(np.mean(list(share.values())) * 20 / 21)
    assert figures["test/results"] == "perfect"
    with (ended.run_dir / "tables" / "test_attributes.csv").open() as file:
        low = next(row for row in csv.DictReader(file) if row["attribute"] == "Out-of-View")
    flagged = [p.stem for p in (root / "annos" / "att").glob("*.txt") if p.read_text().split(",")[11].strip() == "1"]
    assert int(low["videos"]) == len(flagged)
    assert float(low["success_auc"]) == pytest.approx(np.mean([share[name] for name in flagged]) * 20 / 21)


def test_results_need_data_that_know_their_videos():
    module = type("Module", (OwnResults, Plain), {})()
    module.trainer = SimpleNamespace(datamodule=None)
    module.setup("test")
    assert module.results_of({"index": torch.tensor([0])}) is None
    module.take_options(results="mine")
    module.setup("fit")
    with pytest.raises(ValueError, match="results='mine' can be scored on a datamodule that knows its videos"):
        module.setup("test")


class Plain:
    """Stands for the LightningModule under the mixin."""

    def setup(self, stage):
        self.seen = stage
