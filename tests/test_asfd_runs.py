"""Whole runs of ASFD and its search: what they leave, stopped and resumed, many processes, predict, bad input."""

import json
import shutil
import signal
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image
from torch.testing import assert_close

from lit_methods import ASFD, ASFDSearch
from lit_methods.asfd.genotype import read_genotype
from lit_methods.cli import main
from lit_methods.functional.archives import load_plain
from tests.left_behind import bit_equal, last_checkpoint, metrics, read_rows, read_summary, timeless, weights
from tests.signals import send_now
from tests.small_recipes import without_figures
from tests.two_processes import Run, assert_equal_ranks, run as processes_run
from tests.wandb_record import read_record
from tests.wider_data import write_truth

CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
EPOCHS, STEPS = 2, 2  # of a run, and of an epoch: four pictures, of which one may have no face
SMALL = {
    "model.channels": 8,
    "data.image_size": 128,
    "data.batch_size": 2,
    "data.eval_batch_size": 2,
    "data.val_images": 2,
    "data.keep_faceless": True,
    "data.num_workers": 0,
    "data.demo": False,
    "trainer.max_epochs": EPOCHS,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.num_sanity_val_steps": 0,
}
FEW = '["identity", "conv_1x1", "sep_conv_3x3"]'
SEARCH = {  # a view in each half
    "model.partial": True,
    "model.fpn_ops": FEW,
    "model.cpm_ops": FEW,
    "data.image_size": 160,
    "data.batch_size": 1,
}
ALL_EPOCHS = ["--checkpoint.save_top_k", "-1"]


def words(root: Path, recipe: str = "asfd", **more: Any) -> list[str]:
    """What makes the recipe small; ``__`` stands for a dot."""
    given = SMALL | (SEARCH if recipe == "asfd_search" else {}) | {"data.root": root}
    given |= {name.replace("__", "."): value for name, value in more.items()}
    return [recipe, *(word for name, value in given.items() for word in (f"--{name}", str(value)))]


def fit(words: list[str], folder: Path, *more: str, figures: bool = False) -> int:
    with nullcontext() if figures else without_figures():
        return main("fit", [*words, *CPU, *more, "--run_dir", str(folder)])


def test(words: list[str], folder: Path, *more: str) -> int:
    with without_figures():
        return main("test", [*words, *CPU, *more, "--run_dir", str(folder)])


test.__test__ = False  # type: ignore[attr-defined]


def every_step(folder: Path) -> list[str]:
    return [
        *("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps", "1"),
        *("--trainer.callbacks.save_top_k", "-1", "--trainer.callbacks.filename", "{epoch}-{step}"),
        *("--trainer.callbacks.dirpath", str(folder)),
    ]


@pytest.fixture(scope="module")
def whole(wider_root, tmp_path_factory) -> Path:
    """A run with its figures, recorded by W&B, and a checkpoint after every step and every epoch."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        more = [*ALL_EPOCHS, *every_step(folder / "steps"), "--logger", "wandb"]
        assert fit(words(wider_root), folder / "run", *more, figures=True) == 0
    return folder


@pytest.fixture(scope="module")
def fitted(whole) -> Path:
    return whole / "run"


@pytest.fixture(scope="module")
def searched(wider_root, tmp_path_factory) -> Path:
    """A search without figures, and a checkpoint after every batch and every epoch."""
    folder = tmp_path_factory.mktemp("searched")
    more = [*ALL_EPOCHS, *every_step(folder / "steps")]
    assert fit(words(wider_root, "asfd_search"), folder / "run", *more) == 0
    return folder


def at_step(whole: Path, step: int) -> Path:
    (path,) = (whole / "steps").glob(f"*-step={step}.ckpt")
    return path


def chosen(run: Path) -> str:
    """The checkpoint that was tested: of the best validation, the first of equal ones."""
    found = {int(row["epoch"]): float(row["val/ap_all"]) for row in metrics(run) if row["val/ap_all"]}
    best = max(found, key=lambda epoch: (found[epoch], -epoch))
    (path,) = (run / "checkpoints").glob(f"epoch={best}-*.ckpt")
    return str(path)


def figures_of(run: Path) -> dict[str, float]:
    return {key: value for key, value in read_summary(run).items() if key.startswith("test/") and key[5] in "ad"}


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


def test_wandb_has_losses_figures_pictures_and_tables(fitted):
    record = read_record(fitted)
    assert {"val/predictions", "test/predictions", "test/curves"} <= record.media.keys()
    for name in ("loss", "cls_loss", "reg_loss", "positives"):
        assert len(record.at(f"train/{name}")) == STEPS * EPOCHS, name
    assert len(record.at("val/ap_all")) == len(record.at("val/detections")) == EPOCHS
    for table in ("test/events", "test/heights"):
        assert any(table in key for row in record.history for key in row), table
    assert record.summary["test/ap_all"] == pytest.approx(read_summary(fitted)["test/ap_all"])


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


def equal_runs(one: Path, other: Path, validated: bool = True) -> None:
    """``validated``: whether both have made the same validations, and so tested the same checkpoint."""
    assert_close(weights(one), weights(other), rtol=0, atol=0)
    ours, theirs = last_checkpoint(one), last_checkpoint(other)
    for name in ("optimizer_states", "lr_schedulers", "lit_methods"):
        assert bit_equal(ours[name], theirs[name]), name
    rows = [[row for row in metrics(run) if validated or not row["test/ap_all"]] for run in (one, other)]
    assert rows[0] == rows[1]
    if validated:
        assert timeless(read_summary(one)) == timeless(read_summary(other))


def resumed(whole: Path, folder: Path, checkpoint: Path, words: list[str]) -> Path:
    """The run as it goes on after a step."""
    run = folder / "run"
    shutil.copytree(whole / "run", run, ignore=shutil.ignore_patterns("wandb"))
    shutil.copy(checkpoint, run / "checkpoints" / "here.ckpt")
    for name in ("checkpoints/last.ckpt", "summary.json", "tables/test_events.csv", "genotype.json"):
        (run / name).unlink(missing_ok=True)
    more = [*ALL_EPOCHS, *every_step(folder / "steps"), "--ckpt_path", str(run / "checkpoints" / "here.ckpt")]
    assert fit(words, run, *more) == 0
    return run


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(1, id="in the first epoch", marks=pytest.mark.slow),
        pytest.param(STEPS, id="in the last batch of an epoch", marks=pytest.mark.slow),
        pytest.param(STEPS + 1, id="in the second epoch"),
    ],
)
def test_resume_is_bit_equal(whole, wider_root, step, tmp_path):
    run = resumed(whole, tmp_path, at_step(whole, step), words(wider_root))
    equal_runs(run, whole / "run", validated=step % STEPS > 0)  # from there on that epoch's validation is left out


@pytest.mark.slow
def test_workers_change_nothing(whole, wider_root, tmp_path):
    """Nor where a run goes on in an epoch."""
    equal_runs(resumed(whole, tmp_path, at_step(whole, 1), words(wider_root, data__num_workers=2)), whole / "run")


@pytest.mark.slow
def test_a_signal_in_the_middle_of_an_epoch(whole, wider_root, tmp_path, capsys, monkeypatch):
    run, real, calls, at = tmp_path / "run", ASFD.training_step, [0], STEPS + 1

    def sending(self: ASFD, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            send_now(signal.SIGTERM)
        return real(self, *args)

    monkeypatch.setattr(ASFD, "training_step", sending)
    assert fit(words(wider_root), run, *ALL_EPOCHS) == 143
    assert calls == [at]
    assert "stopped by SIGTERM" in capsys.readouterr().err
    assert fit(words(wider_root), run, *ALL_EPOCHS, "--ckpt_path", "last") == 0
    assert calls == [STEPS * EPOCHS]  # no step is done twice
    equal_runs(run, whole / "run")


# -- a search ----------------------------------------------------------------------------------------------------------

RESTING = 2  # batches, of four: 40 per cent and more


def batch_of(searched: Path, batch: int) -> Path:
    """The checkpoint after so many batches; the Trainer counts two steps for each that moves the architecture."""
    return at_step(searched, batch + max(0, batch - RESTING))


def test_the_architecture_rests_and_then_learns_while_the_weights_always_do(searched):
    found = [load_plain(batch_of(searched, number))["state_dict"] for number in (1, 2, 3, 4)]
    names = {name for name in found[0] if "edge_parameters" in name}
    assert names == {f"model.edge_parameters.{part}" for part in ("fpn", "cpm", "fpn_shares", "cpm_shares")}
    for number in range(3):
        before, after = found[number : number + 2]
        for name in names:
            assert torch.equal(before[name], after[name]) == (number + 1 < RESTING), name
        assert not torch.equal(before["model.head.cls.weight"], after["model.head.cls.weight"])
    rows = metrics(searched / "run")
    assert [bool(row["train/arch_loss"]) for row in rows if row["train/loss"]] == [False, False, True, True]


def test_a_search_leaves_a_genotype_that_is_trained(searched, wider_root, tmp_path):
    path = searched / "run" / "genotype.json"
    found = read_genotype(path)
    state = last_checkpoint(searched / "run")
    kept = state["callbacks"]["AutoFEMSearch"]
    assert kept["genotype"] == json.loads(path.read_text()) == found.to_dict()
    rows = read_rows(searched / "run" / "tables" / "search_genotypes.csv")
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert rows[-1]["genotype"] == found.key()
    summary = read_summary(searched / "run")
    tested = ASFDSearch.load_from_checkpoint(chosen(searched / "run"), map_location="cpu", weights_only=True)
    assert summary["search/genotype"] == tested.genotype().key()
    given = words(wider_root, model__genotype=path, trainer__max_epochs=1)
    few = (
        "--trainer.limit_train_batches",
        "1",
        "--trainer.limit_val_batches",
        "1",
        "--trainer.limit_test_batches",
        "1",
    )
    assert fit(given, tmp_path / "run", *few) == 0
    assert last_checkpoint(tmp_path / "run")["hyper_parameters"]["genotype"] == found.to_dict()


@pytest.mark.parametrize(
    "batch",
    [
        pytest.param(1, id="while it rests", marks=pytest.mark.slow),
        pytest.param(3, id="while it learns", marks=pytest.mark.slow),
        pytest.param(2, id="between them", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_search_is_bit_equal(searched, wider_root, batch, tmp_path):
    ends = batch == STEPS  # that one is written behind the validation, which is part of it
    (epoch,) = (searched / "run" / "checkpoints").glob("epoch=0-*.ckpt")
    path = epoch if ends else batch_of(searched, batch)
    run = resumed(searched, tmp_path, path, words(wider_root, "asfd_search"))
    equal_runs(run, searched / "run")
    for name in ("genotype.json", "tables/search_genotypes.csv"):
        assert (run / name).read_text() == (searched / "run" / name).read_text()
    ours, theirs = (last_checkpoint(each)["callbacks"]["AutoFEMSearch"] for each in (run, searched / "run"))
    assert ours == theirs


@pytest.mark.slow
def test_predict_asks_the_mixed_network(searched, picture, tmp_path):
    assert predict("asfd_search", chosen(searched / "run"), tmp_path / "out", "--input", picture, "--min_score", 0) == 0
    assert len(read_rows(tmp_path / "out" / "predictions.csv")) > 0


# -- many processes ----------------------------------------------------------------------------------------------------


def processes(command: list[str], more: list[str], folder: Path, number: int = 1, **options: Any) -> Run:
    with without_figures():
        return processes_run(command[:1], [*command[1:], *more], folder, number, **options)


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
    few |= {"model__momentum": 0.0, "model__weight_decay": 0.0}
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
        for one, other in zip(ours[2:], theirs[2:], strict=True):  # batches of other pictures round otherwise
            assert list(map(float, one.split())) == pytest.approx(list(map(float, other.split())), abs=1e-3)


@pytest.mark.slow
def test_processes_search_as_one(wider_root, tmp_path):
    """They stay equal while the architecture rests and when it learns, whatever faces each has."""
    many = processes(words(wider_root, "asfd_search"), [], tmp_path / "many", 2)
    assert_equal_ranks(many)
    assert all(value.isfinite().all() for value in many.weights.values())
    assert len(many.logged("train/arch_loss")) == 1
    last = many.ranks[1]["callbacks"]["AutoFEMSearch"]
    assert last["genotype"] == json.loads((many.path / "genotype.json").read_text())


# -- predict -----------------------------------------------------------------------------------------------------------


def predict(recipe: str, checkpoint: str, folder: Path, *more: object) -> int:
    return main("predict", [recipe, "--ckpt_path", checkpoint, *CPU, *map(str, more), "--run_dir", str(folder)])


@pytest.fixture(scope="module")
def picture(wider_root) -> Path:
    """A test picture with faces."""
    (path,) = wider_root.glob("WIDER_val/images/0--Parade/*.jpg")
    return path


def test_predict_finds_what_the_test_found(fitted, picture, tmp_path, capsys):
    """Beside a folder, a file that is no picture and one that is too small."""
    folder = tmp_path / "in"
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


def one_line(capsys) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"data__image_size": 64}, "image_size=64 must be at least 128"),
        ({"model__genotype": "nowhere.json"}, "nowhere.json"),
        ({"data__split_halves": True}, "set data.split_halves to false"),
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--trainer.callbacks", "callbacks.DetectionResults"], "AutoFEMSearch"),
        (["--data.split_halves", "false"], "set data.split_halves to true"),
        (["--trainer.gradient_clip_val", "1.0"], "gradient_clip"),
        (["--trainer.precision", "16-true"], "16-true"),
    ],
)
def test_one_line_says_what_a_search_lacks(wider_root, more, text, tmp_path, capsys):
    assert fit(words(wider_root, "asfd_search"), tmp_path / "run", *more) == 2
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
