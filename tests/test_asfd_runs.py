"""Whole runs of ASFD: what they leave, stopped and resumed, many processes, predict, bad input."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image
from torch.testing import assert_close

from lit_methods import ASFD
from tests.asfd_runs import (
    ALL_EPOCHS,
    EPOCHS,
    STEPS,
    at_step,
    chosen,
    equal_runs,
    every_step,
    figures_of,
    fit,
    one_line,
    picture_of,
    predict,
    processes,
    resumed,
    test,
    words,
)
from tests.left_behind import read_rows, read_summary
from tests.stops import stops_of_two_epochs
from tests.two_processes import Run, assert_equal_ranks
from tests.wandb_record import read_record
from tests.whole_runs import stopped_and_resumed
from tests.wider_data import write_truth


@pytest.fixture(scope="module")
def whole(wider_root, tmp_path_factory) -> Path:
    """A run with its figures, and a checkpoint after every step and every epoch."""
    folder = tmp_path_factory.mktemp("whole")
    assert fit(words(wider_root), folder / "run", *ALL_EPOCHS, *every_step(folder / "steps"), figures=True) == 0
    return folder


@pytest.fixture(scope="module")
def fitted(whole) -> Path:
    return whole / "run"


# -- what a run leaves -------------------------------------------------------------------------------------------------


def test_a_run_leaves_figures_tables_pictures_and_official_files(fitted, wider_root):
    summary = read_summary(fitted)
    for level in ("easy", "medium", "hard", "all"):
        assert 0 <= summary[f"test/ap_{level}"] <= 1
    assert (summary["data/train_images"], summary["data/val_images"], summary["data/test_images"]) == (4, 2, 6)
    assert summary["test/detections"] > 0
    listed = (wider_root / "wider_face_split" / "wider_face_val_bbx_gt.txt").read_text().split()
    names = {name.removesuffix(".jpg") for name in listed if name.endswith(".jpg")}
    written = (path.relative_to(fitted / "detections") for path in fitted.glob("detections/*/*.txt"))
    assert {str(path.with_suffix("")) for path in written} == names
    rows = read_rows(fitted / "tables" / "test_events.csv")
    assert sum(int(row["images"]) for row in rows) == 6
    assert sum(int(row["faces"]) for row in rows) == summary["data/test_faces"]
    heights = read_rows(fitted / "tables" / "test_heights.csv")
    assert sum(int(row["faces"]) for row in heights) == summary["data/test_faces"]
    pictures = {path.name for path in (fitted / "pictures").iterdir()}
    assert {"val_predictions.png", "test_predictions.png", "test_curves.png"} <= pictures


@pytest.mark.slow
def test_wandb_has_losses_figures_pictures_and_tables(wider_root, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    assert fit(words(wider_root), run, *ALL_EPOCHS, "--logger", "wandb", figures=True) == 0
    record = read_record(run)
    assert {"val/predictions", "test/predictions", "test/curves"} <= record.media.keys()
    for name in ("loss", "cls_loss", "reg_loss", "positives"):
        assert len(record.at(f"train/{name}")) == STEPS * EPOCHS, name
    assert len(record.at("val/ap_all")) == len(record.at("val/detections")) == EPOCHS
    for table in ("test/events", "test/heights"):
        assert any(table in key for row in record.history for key in row), table
    assert record.summary["test/ap_all"] == pytest.approx(read_summary(run)["test/ap_all"])


@pytest.mark.slow
def test_files_of_detections_score_the_same_again(fitted, wider_root, tmp_path):
    """Without a checkpoint and without pictures; of six decimals, so not to the last bit."""
    root = tmp_path / "widerface"
    for name in ("wider_face_split", "eval_tools"):
        shutil.copytree(wider_root / name, root / name)
    assert test(words(root), tmp_path / "again", "--predictions", str(fitted / "detections")) == 0
    expected, again = figures_of(fitted), figures_of(tmp_path / "again")
    assert len(expected) == 5
    assert again == pytest.approx(expected, abs=1e-6)
    assert not (tmp_path / "again" / "detections").exists()
    assert read_summary(tmp_path / "again")["test/predictions"] == str(fitted / "detections")


@pytest.mark.slow
def test_test_gives_the_same_figures_again(fitted, wider_root, tmp_path):
    assert test(words(wider_root), tmp_path / "tested", "--ckpt_path", chosen(fitted)) == 0
    assert figures_of(tmp_path / "tested") == figures_of(fitted)


# -- resume ------------------------------------------------------------------------------------------------------------


@stops_of_two_epochs(STEPS)
def test_resume_is_bit_equal(whole, wider_root, step, tmp_path):
    run = resumed(whole, tmp_path, at_step(whole, step), words(wider_root))
    equal_runs(run, whole / "run", validated=step % STEPS > 0)  # from there on that epoch's validation is left out


@pytest.mark.slow
def test_workers_change_nothing(whole, wider_root, tmp_path):
    """Nor where a run goes on in an epoch."""
    equal_runs(resumed(whole, tmp_path, at_step(whole, 1), words(wider_root, data__num_workers=2)), whole / "run")


@pytest.mark.slow
def test_a_signal_in_the_middle_of_an_epoch(whole, wider_root, tmp_path, capsys):
    done = stopped_and_resumed(words(wider_root), tmp_path / "run", capsys, ASFD, STEPS + 1)
    assert done == STEPS * EPOCHS  # no step is done twice
    equal_runs(tmp_path / "run", whole / "run")


# -- many processes ----------------------------------------------------------------------------------------------------


class AtRest(Callback):
    """Batch norms stay as they are, and every process writes down its weights and batches, before each step."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.eval()
        state = {name: value.clone() for name, value in pl_module.state_dict().items()}
        batch = {"image": batch["image"].clone(), "boxes": [boxes.clone() for boxes in batch["boxes"]]}
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.kept.append({"weights": state, "batch": batch, "rate": rate})

    def on_train_end(self, trainer, pl_module):
        torch.save(self.kept, Path(trainer.default_root_dir, f"batches{trainer.global_rank}.pt"))


@pytest.fixture(scope="module")
def both(wider_root, tmp_path_factory) -> tuple[Run, Path]:
    """A run of two processes in float64, and a test by one process of what it has tested."""
    folder = tmp_path_factory.mktemp("both")
    few = {"data__batch_size": 1, "trainer__precision": "64-true", "trainer__gradient_clip_val": "null"}
    few |= {"model__optimizer": "sgd", "model__momentum": 0.0, "model__weight_decay": 0.0}
    keep = ["--trainer.callbacks+=tests.test_asfd_runs.AtRest"]
    many = processes(words(wider_root, **few), [*ALL_EPOCHS, *keep], folder / "many", 2)
    assert test(words(wider_root, **few), folder / "one", "--ckpt_path", chosen(many.path)) == 0
    return many, folder / "one"


@pytest.mark.slow
def test_processes_stay_equal_and_see_every_picture_once(both):
    many, _ = both
    assert_equal_ranks(many)
    seen = many.seen("train")
    assert len(seen) == 4 * EPOCHS
    assert len(set(seen)) == 4
    assert many.seen("test") == list(range(6))


@pytest.mark.slow
@pytest.mark.parametrize("step", range(STEPS * EPOCHS))
def test_a_step_of_processes_is_that_of_one_on_both_batches(both, step):
    """Batch norms at rest; each process has other faces, or none."""
    many, _ = both
    ranks = [torch.load(many.path / f"batches{rank}.pt", weights_only=True) for rank in range(2)]
    ours = ranks[0][step]
    parts = [rank[step]["batch"] for rank in ranks]
    assert not torch.equal(parts[0]["image"], parts[1]["image"])
    module = ASFD.load_from_checkpoint(chosen(many.path), map_location="cpu", weights_only=True).double().eval()
    module.load_state_dict(ours["weights"])
    boxes = [boxes for part in parts for boxes in part["boxes"]]
    module.losses({"image": torch.cat([part["image"] for part in parts]), "boxes": boxes})["loss"].backward()
    after = ranks[0][step + 1]["weights"] if step + 1 < STEPS * EPOCHS else many.weights
    for name, value in module.named_parameters():
        moved = after[name] - ours["weights"][name]
        assert_close(moved, -ours["rate"] * value.grad, rtol=1e-6, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.slow
def test_processes_evaluate_as_one_does(both):
    """On the same weights: figures, tables and files."""
    many, one = both
    expected = figures_of(one)
    assert len(expected) == 5
    assert {key: many.summary[key] for key in expected} == expected
    for name in ("test_events.csv", "test_heights.csv"):
        assert (many.path / "tables" / name).read_text() == (one / "tables" / name).read_text()
    files = [sorted(path.glob("detections/*/*.txt")) for path in (many.path, one)]
    assert len(files[1]) == 6
    for ours, theirs in zip(*files, strict=True):
        ours, theirs = (path.read_text().splitlines() for path in (ours, theirs))
        assert ours[:2] == theirs[:2]
        ours, theirs = ([[*map(float, line.split())] for line in lines[2:]] for lines in (ours, theirs))
        # batches of other pictures round otherwise, so that nearly equal scores may change places
        assert [row[4] for row in ours] == pytest.approx([row[4] for row in theirs], abs=1e-3)
        for one, other in zip(sorted(ours), sorted(theirs), strict=True):
            assert one == pytest.approx(other, abs=1e-3)


# -- predict -----------------------------------------------------------------------------------------------------------


def test_predict_finds_what_the_test_found(fitted, wider_root, tmp_path, capsys):
    """Beside a folder, a file that is no picture and one that is too small."""
    picture, folder = picture_of(wider_root), tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (140, 130), (90, 80, 70)).save(folder / "plain.png")
    Image.new("RGB", (90, 130)).save(folder / "small.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    given = ["--input", picture, folder, "--min_score", 0]
    assert predict("asfd", chosen(fitted), tmp_path / "out", *given) in (0, 1)
    err = capsys.readouterr().err
    assert "small.png" in err
    assert "broken.jpg" in err
    rows = [row for row in read_rows(tmp_path / "out" / "predictions.csv") if row["file"] == str(picture)]
    lines = (fitted / "detections" / "0--Parade" / f"{picture.stem}.txt").read_text().splitlines()[2:]
    assert len(rows) == len(lines) > 0
    for row, line in zip(rows, lines, strict=True):
        x, y, w, h, score = map(float, line.split())
        assert [float(row[name]) for name in ("x1", "y1", "x2", "y2")] == pytest.approx([x, y, x + w, y + h], abs=0.02)
        assert float(row["score"]) == pytest.approx(score, abs=1e-4)
    files = {entry["file"] for entry in json.loads((tmp_path / "out" / "predictions.json").read_text())}
    assert {str(picture), str(folder / "plain.png")} <= files


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"data__image_size": 64}, "image_size=64 must be at least 128"),
        ({"model__genotype": "nowhere.json"}, "nowhere.json"),
        pytest.param({"data__split_halves": True}, "set data.split_halves to false", marks=pytest.mark.slow),
        pytest.param({"data__root": "nowhere"}, "nowhere", marks=pytest.mark.slow),
        pytest.param({"data__val_images": 6}, "val_images=6 leaves none", marks=pytest.mark.slow),
        pytest.param({"data__eval_tools": "nowhere"}, "nowhere", marks=pytest.mark.slow),
        pytest.param({"model__size": "d7"}, "d7", marks=pytest.mark.slow),
        pytest.param({"model__margin": -1}, "margin=-1", marks=pytest.mark.slow),
        pytest.param({"trainer__max_epochs": -1}, "max_epochs", marks=pytest.mark.slow),
    ],
)
def test_one_line_says_what_is_wrong(wider_root, more, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fit(words(wider_root, **more), tmp_path / "run") == 2
    assert text in one_line(capsys)


@pytest.fixture
def own_root(wider_root, tmp_path) -> Path:
    """A set of the test's own, whose files may be spoiled."""
    return Path(shutil.copytree(wider_root, tmp_path / "widerface"))


def lists(root: Path, split: str) -> Path:
    return root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt"


def test_a_line_that_does_not_parse_is_named(own_root, tmp_path, capsys):
    path = lists(own_root, "train")
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows[:2], rows[2].replace(rows[2].split()[2], "wide", 1), *rows[3:]]) + "\n")
    assert fit(words(own_root), tmp_path / "run") == 2
    line = one_line(capsys)
    assert str(path) in line
    assert "line 3" in line or ":3" in line


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["fit", "test"])
def test_a_listed_picture_that_is_absent_is_named(fitted, own_root, entry, tmp_path, capsys):
    split = "train" if entry == "fit" else "val"
    path = sorted(own_root.glob(f"WIDER_{split}/images/*/*.jpg"))[2]
    path.unlink()
    if entry == "fit":
        assert fit(words(own_root), tmp_path / "run") == 2
    else:
        assert test(words(own_root), tmp_path / "run", "--ckpt_path", chosen(fitted)) == 2
    line = one_line(capsys)
    assert path.name in line
    assert str(lists(own_root, split)) in line


@pytest.mark.slow
def test_files_of_another_split_are_told(fitted, own_root, tmp_path, capsys):
    write_truth(own_root / "eval_tools" / "ground_truth", {"0--Parade/other": [[1, 2, 30, 40]]})
    assert test(words(own_root), tmp_path / "run", "--ckpt_path", chosen(fitted)) == 2
    assert "is of another split" in one_line(capsys)


@pytest.mark.slow
def test_a_test_picture_below_the_largest_stride_is_told(fitted, own_root, tmp_path, capsys):
    path = sorted(own_root.glob("WIDER_val/images/0--Parade/*.jpg"))[0]
    Image.open(path).resize((160, 120)).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert test(words(own_root), tmp_path / "run", "--ckpt_path", chosen(fitted)) == 2
    line = one_line(capsys)
    assert "160x120" in line
    assert "128" in line


@pytest.mark.slow
def test_a_box_of_no_area_stops_nothing(own_root, tmp_path):
    """It is left out of training and stays in the evaluation, as the official tool has it."""
    for split in ("train", "val"):
        path = lists(own_root, split)
        rows = path.read_text().splitlines()
        count = int(rows[1])
        path.write_text(
            "\n".join([rows[0], str(count + 1), *rows[2 : 2 + count], "5 5 0 7 0 0 0 0 0 0", *rows[2 + count :]])
        )
    shutil.rmtree(own_root / "eval_tools")
    assert fit(words(own_root), tmp_path / "run") == 0
    summary = read_summary(tmp_path / "run")
    assert summary["data/train_faces_small"] <= 1
    assert "test/ap_easy" not in summary
