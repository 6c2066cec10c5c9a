"""Whole runs of DDL by the command line: what they leave, stopped and resumed, many processes, predict, bad input."""

import json
import pickle
import shutil
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close

from lit_methods import DDL, DDLComparison
from lit_methods.cli import main
from lit_methods.ddl.encoder import ENCODERS
from lit_methods.functional.archives import load_plain
from tests import whole_runs
from tests.ddl_batches import Plain
from tests.face_data import fill
from tests.left_behind import bit_equal, last_checkpoint, metrics, read_rows, read_summary, weights
from tests.own_process import run_entry
from tests.small_recipes import without_figures
from tests.two_processes import Run, assert_equal_ranks
from tests.wandb_record import read_record
from tests.whole_runs import ALL_EPOCHS, CPU, at_step, every_step, fit, one_line, processes

B, PRETRAIN, EPOCHS, STEPS = 4, 1, 3, 6  # of a branch; epochs before the distillation and all; steps of an epoch
SMALL = {"data.image_size": 32, "data.b": B, "data.batch_size": 8, "data.num_workers": 0}
ONE_SEED = {"data.demo": False, "model.seeds": "[0]", "model.pretrain_epochs": PRETRAIN, "model.milestones": "[2]"}
SHORT = {
    "trainer.max_epochs": EPOCHS,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.num_sanity_val_steps": 0,
}
TINY = {"model.backbone": "tiny", "model.backbone_args": "{width: 2}"}
HISTOGRAMS = {"trainer.callbacks.every_n_steps": 2, "trainer.callbacks.window": 11}  # options of the last callback


def words(recipe: str, root: Path, **more: Any) -> list[str]:
    """A recipe and what makes it small; ``__`` stands for a dot."""
    given = SMALL | SHORT | TINY | (ONE_SEED if recipe == "ddl" else {}) | {"data.root": root}
    if recipe != "ddl_faces_iresnet50_pretrain" and recipe != "ddl_market1501_lr_baseline":
        given |= HISTOGRAMS
    return whole_runs.recipe_words(recipe, given, **more)


@pytest.fixture(scope="module")
def whole(faces_root, tmp_path_factory) -> Path:
    """A run with its figures, and a checkpoint after every step and every epoch."""
    folder = tmp_path_factory.mktemp("whole")
    more = [*ALL_EPOCHS, *every_step(folder / "steps")]
    assert fit(words("ddl", faces_root), folder / "run", *more, figures=True) == 0
    return folder


@pytest.fixture(scope="module")
def fitted(whole) -> Path:
    return whole / "run"


def chosen(run: Path) -> str:
    """The checkpoint that was tested."""
    at = sorted((run / "checkpoints").glob("epoch=*.ckpt"))
    return str(max(at, key=lambda path: validation(run, int(path.stem.split("=")[1].split("-")[0]))))


def validation(run: Path, epoch: int) -> float:
    return next(
        float(row["val/rank1_of_both"])
        for row in metrics(run)
        if row["epoch"] == str(epoch) and row["val/rank1_of_both"]
    )


# -- what a run leaves -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_wandb_has_figures_and_pictures(faces_root, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert fit(words("ddl", faces_root), tmp_path / "run", *ALL_EPOCHS, "--logger", "wandb", figures=True) == 0
    record = read_record(tmp_path / "run")
    assert {"test/probes", "similarity/before_after"} <= record.media.keys()
    distilled = STEPS * (EPOCHS - PRETRAIN)
    assert len(record.at("train/ddl_loss")) == distilled
    assert len(record.at("train/loss")) == STEPS * EPOCHS
    overlaps = record.at("similarity/overlap_hard")
    assert min(overlaps) == STEPS + 1  # the second step of the distillation, counted from 0
    assert set(range(STEPS + 1, STEPS * EPOCHS, 2)) <= overlaps.keys()
    assert len(set(overlaps.values())) == distilled // 2
    assert len(record.at("val/hard_rank1_baseline")) == EPOCHS
    assert any("similarity/histograms" in key for row in record.history for key in row)


def test_the_summary_says_what_ddl_and_its_control_reached(fitted):
    summary = read_summary(fitted)
    for figure in ("hard_rank1", "easy_rank1", "probes_rank1", "pairs_accuracy", "hard_pairs_accuracy"):
        for name in (figure, f"{figure}_baseline"):
            assert 0 <= summary[f"test/{name}"] <= 1
            assert summary[f"test/{name}_std"] == 0 or figure.endswith("accuracy")
    both = [summary[f"test/{name}_rank1{of}"] for name in ("easy", "hard", "probes") for of in ("", "_baseline")]
    assert summary["test/rank1_of_both"] == pytest.approx(sum(both) / 6)
    assert summary["data/easy_pictures"] == summary["data/hard_pictures"] == 24
    assert summary["data/hard_identities"] == 8
    assert summary["data/bad_images"] == 0


def test_the_standard_deviation_over_seeds_is_not_that_over_folds(fitted):
    """With one seed there is none."""
    summary = read_summary(fitted)
    for figure in ("pairs_accuracy", "pairs_accuracy_baseline"):
        assert summary[f"test/{figure}_std"] == 0


def test_the_summary_says_how_far_similarities_overlap(fitted):
    summary = read_summary(fitted)
    rows = {row[""]: row for row in read_rows(fitted / "tables" / "similarity_overlap.csv")}
    assert {"overlap_easy", "overlap_hard", "gap_hard", "shared_pos_hard", "shared_neg_hard"} <= rows.keys()
    for name, row in rows.items():
        for phase in ("before", "after", "baseline"):
            assert summary[f"similarity/{name}_{phase}"] == pytest.approx(float(row[phase])), name


def test_pictures_and_tables_are_files_too(fitted):
    assert {path.stem for path in (fitted / "pictures").iterdir()} == {"similarity_before_after", "test_probes"}
    for path in (fitted / "pictures").iterdir():
        assert Image.open(path).convert("L").getextrema() == (0, 255) or path.stem == "test_probes"
    probes = read_rows(fitted / "tables" / "test_probes.csv")
    assert {row["group"] for row in probes} == {"easy", "hard"}
    right = [int(row["right"]) for row in probes if row["group"] == "hard"]
    assert len(right) == 8  # all of them: 4 persons, 2 each
    assert sum(right) / 8 == read_summary(fitted)["test/hard_rank1"]
    for row in probes:
        assert bool(int(row["right"])) == (Path(row["probe"]).parent.name == Path(row["nearest"]).parent.name)


def test_both_networks_are_equal_until_the_distillation_begins(whole):
    for step, equal in ((STEPS, True), (STEPS + 1, False)):
        (path,) = (whole / "steps").glob(f"*step={step}.ckpt")
        state = load_plain(path)["state_dict"]
        ours = {name: value for name, value in state.items() if name.startswith(("model.", "heads."))}
        assert len(ours) > 10
        control = [torch.equal(value, state[f"others.0.{name}"]) for name, value in ours.items()]
        assert all(control) == equal


def test_test_gives_the_same_figures_again(fitted, faces_root, tmp_path):
    checkpoint = chosen(fitted)
    torch.load(checkpoint, weights_only=True)
    more = ["--ckpt_path", checkpoint, "--run_dir", str(tmp_path / "tested")]
    with without_figures():
        assert main("test", [*words("ddl", faces_root), *CPU, *more]) == 0
    summary, again = read_summary(fitted), read_summary(tmp_path / "tested")
    keys = [key for key in summary if key.startswith("test/")]
    assert len(keys) > 20
    assert {key: again[key] for key in keys} == {key: summary[key] for key in keys}


# -- resume ------------------------------------------------------------------------------------------------------------


def equal_runs(one: Path, other: Path, validated: bool = True) -> None:
    """``validated``: whether both have made the same validations, and so tested the same checkpoint."""
    whole_runs.equal_runs(one, other, validated, figure="hard_rank1", but="train/")
    kept = [last_checkpoint(run)["callbacks"]["SimilarityHistogramLogger"] for run in (one, other)]
    assert kept[1]["steps"] == STEPS * (EPOCHS - PRETRAIN)
    assert bit_equal(*kept)
    table = Path("tables", "similarity_overlap.csv")
    assert (one / table).read_text() == (other / table).read_text()


resumed = partial(whole_runs.resumed, left="tables/similarity_overlap.csv")


@pytest.mark.slow
@pytest.mark.parametrize(
    "step",
    [
        pytest.param(2, id="before the distillation"),
        pytest.param(STEPS, id="in the last batch before the distillation"),
        pytest.param(STEPS + 3, id="in the first epoch of the distillation"),
        pytest.param(2 * STEPS, id="in the last batch of an epoch of it"),
        pytest.param(3 * STEPS - 1, id="before the last batch of all"),
    ],
)
def test_resume_is_bit_equal(whole, faces_root, step, tmp_path):
    run = resumed(whole, tmp_path, at_step(whole, step), words("ddl", faces_root))
    equal_runs(run, whole / "run", validated=step % STEPS > 0)  # from there on that epoch's validation is left out


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, STEPS + 1])
def test_workers_change_nothing(whole, faces_root, step, tmp_path):
    """Nor where a run goes on in an epoch."""
    equal_runs(
        resumed(whole, tmp_path, at_step(whole, step), words("ddl", faces_root, data__num_workers=2)), whole / "run"
    )


def test_a_signal_in_the_middle_of_an_epoch(whole, faces_root, tmp_path, capsys):
    done = whole_runs.stopped_and_resumed(words("ddl", faces_root), tmp_path / "run", capsys, DDLComparison, STEPS + 2)
    assert done == STEPS * EPOCHS  # no step is done twice
    equal_runs(tmp_path / "run", whole / "run")


# -- many processes ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(faces_root, tmp_path_factory) -> tuple[Run, Path]:
    """A run of two processes, and a test by one of the checkpoint that it has tested."""
    folder = tmp_path_factory.mktemp("both")
    few = {"data__b": 2, "data__batch_size": 5, "trainer__max_epochs": 2, "trainer__limit_train_batches": 2}
    many = processes(words("ddl", faces_root, **few), [], folder / "many", 2)
    more = [*CPU, "--ckpt_path", chosen(many.path), "--run_dir", str(folder / "one")]
    with without_figures():
        assert main("test", [*words("ddl", faces_root, data__batch_size=7), *more]) == 0
    return many, folder / "one"


def test_processes_stay_equal(both):
    many, _ = both
    assert_equal_ranks(many)
    state = many.ranks[1]["callbacks"]["SimilarityHistogramLogger"]
    assert state["steps"] == 2
    assert len(state["before"][0]["hard"][0]) == 4  # the similarities are those of all processes
    assert "similarity/overlap_hard_after" in state["figures"]


def test_processes_evaluate_as_one_does(both):
    """On the same weights; also where a process has fewer batches of a set than another."""
    many, one = both
    expected = {key: value for key, value in read_summary(one).items() if key.startswith("test/")}
    assert len(expected) > 20
    assert {key: many.summary[key] for key in expected} == pytest.approx(expected, abs=1e-6)


def test_a_sheet_of_probes_is_that_of_one_process(both):
    tables = [read_rows(path / "tables" / "test_probes.csv") for path in (both[0].path, both[1])]
    for many, one in zip(*tables, strict=True):
        assert float(many.pop("similarity")) == pytest.approx(float(one.pop("similarity")), abs=1e-6)
        assert many == one


def plain(input_size: list[int]) -> nn.Module:
    """Without batch norm."""
    network = Plain(size=3 * input_size[1] * input_size[2])
    network.num_features = network.layer.out_features  # type: ignore[assignment]
    return network


@pytest.mark.parametrize(("number", "b"), [(2, 4), pytest.param(3, 6, marks=pytest.mark.slow)])
def test_processes_learn_as_one_does(faces_root, number, b, tmp_path, monkeypatch):
    """The gradient of the distillation is that of one process with all samples, neither more nor less."""
    monkeypatch.setitem(ENCODERS, "plain", plain)
    given = {"model__backbone": "plain", "model__backbone_args": "null", "model__ddl_weight": 100.0, "model__lr": 0.01}
    given |= {"trainer__precision": "64-true", "trainer__max_epochs": 1, "model__momentum": 0.5, "model__scale": 8.0}
    given |= {"data__val_sets": "{}", "data__test_sets": "{}"}
    command = partial(words, "ddl_faces_iresnet50", faces_root, **given)
    one = processes(command(data__b=b), [], tmp_path / "one")
    many = processes(command(data__b=b // number, data__batch_size=8 // number), [], tmp_path / "many", number)
    assert_equal_ranks(many)
    assert one.weights["model.layer.weight"].dtype == torch.float64
    assert one.weights.keys() == many.weights.keys()
    for name, value in one.weights.items():
        assert_close(many.weights[name], value, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
    for name in ("ddl_loss", "pos_kl", "neg_kl", "order", "gap_easy", "gap_hard"):
        ours, theirs = many.logged(f"train/{name}"), one.logged(f"train/{name}")
        assert len(theirs) == 24 // b
        assert ours == pytest.approx(theirs, abs=1e-6), name  # they are logged in float32


# -- predict and export ------------------------------------------------------------------------------------------------


predict = partial(whole_runs.predict, "ddl")


def test_predict_finds_the_nearest_of_the_others(fitted, faces_root, tmp_path):
    assert predict(chosen(fitted), tmp_path / "out", "--input", faces_root / "test") == 0
    rows = read_rows(tmp_path / "out" / "predictions.csv")
    files = sorted((faces_root / "test").rglob("*.jpg"))
    assert sorted(row["file"] for row in rows) == [str(path) for path in files]
    module = DDLComparison.load_from_checkpoint(chosen(fitted), map_location="cpu", weights_only=True).eval()
    embedding = [[row[f"embedding_{i + 1}"] for i in range(module.num_features)] for row in rows]
    found = torch.tensor([[float(value) for value in values] for values in embedding], dtype=torch.float64)
    assert_close(found.norm(dim=1), torch.ones(len(rows), dtype=torch.float64), atol=1e-5, rtol=0)
    similarity = (found @ found.T).fill_diagonal_(-2)
    for row, best in zip(rows, similarity.max(1).values.tolist(), strict=True):
        assert float(row["similarity"]) == pytest.approx(best, abs=1e-5)
        nearest = [other["file"] for other in rows].index(row["nearest"])
        assert similarity[rows.index(row), nearest] == pytest.approx(best, abs=1e-5)
    pictures = sorted((tmp_path / "out" / "pictures").iterdir())
    assert len(pictures) == len(files)
    width, height = Image.open(pictures[0]).size
    assert width > height  # both faces beside each other


def test_predict_says_of_each_pair_how_similar_it_is(fitted, faces_root, tmp_path):
    """By LFW's list and the threshold that validation found."""
    listed = faces_root / "test" / "pairs.txt"
    assert predict(chosen(fitted), tmp_path / "out", "--input", faces_root / "test", "--pairs", listed) == 0
    rows = read_rows(tmp_path / "out" / "predictions.csv")
    lines = [line.split("\t") for line in listed.read_text().splitlines()[1:]]
    assert len(rows) == len(lines)
    threshold = load_plain(chosen(fitted))["lit_methods"]["threshold"]
    assert -1 <= threshold <= 1
    for row, (name, *rest) in zip(rows, lines, strict=True):
        assert Path(row["file"]).name == f"{name}_{int(rest[0]):04d}.jpg"
        assert Path(row["other"]).name == f"{name if len(rest) == 2 else rest[1]}_{int(rest[-1]):04d}.jpg"
        assert row["verdict"] == ("same" if float(row["similarity"]) > threshold else "different")
        width, height = Image.open(tmp_path / "out" / row["faces"]).size
        assert width > height


def test_predict_takes_two_paths_per_line_and_a_threshold(fitted, faces_root, tmp_path):
    first, second, *_ = sorted((faces_root / "test").rglob("*.jpg"))
    listed = tmp_path / "mine.txt"
    listed.write_text(f"{first}\t{second}\n{first}\t{first}\n")
    more = ["--input", first.parent, "--pairs", listed, "--threshold", "-1"]
    assert predict(chosen(fitted), tmp_path / "out", *more) == 0
    rows = read_rows(tmp_path / "out" / "predictions.csv")
    assert [(row["file"], row["other"]) for row in rows] == [(str(first), str(second)), (str(first), str(first))]
    assert [row["verdict"] for row in rows] == ["same", "same"]
    assert float(rows[0]["similarity"]) < float(rows[1]["similarity"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("lines", "more", "text"),
    [
        ("{0}\t{1}\n{0}\n", [], "line 2"),
        pytest.param("2\t1\n", [], "line 1", marks=pytest.mark.slow),
        pytest.param("{0}\tnobody.jpg\n", [], "nobody.jpg", marks=pytest.mark.slow),
        ("{0}\t{1}\n", ["--threshold", "1.5"], "threshold=1.5 must be a cosine"),
    ],
)
def test_a_list_of_pairs_that_is_wrong_is_one_line(fitted, faces_root, lines, more, text, tmp_path, capsys):
    first, second, *_ = sorted((faces_root / "test").rglob("*.jpg"))
    (tmp_path / "mine.txt").write_text(lines.format(first, second))
    given = ["--input", faces_root / "test", "--pairs", tmp_path / "mine.txt", *more]
    assert predict(chosen(fitted), tmp_path / "out", *given) in (1, 2)
    line = one_line(capsys)
    assert text in line


@pytest.mark.slow
@pytest.mark.parametrize("formats", ["torch", "onnx"])
def test_export(fitted, formats, tmp_path):
    arguments = ["--ckpt_path", chosen(fitted), "--formats", formats, "--run_dir", str(tmp_path / "e")]
    assert run_entry("export", "ddl", *arguments, folder=tmp_path).returncode == 0
    report = json.loads((tmp_path / "e" / "export" / "export.json").read_text())
    ending = {"torch": "pt2", "onnx": "onnx"}[formats]
    assert [file["path"] for file in report["files"]] == [f"backbone.{ending}"]  # which was compared with the module


# -- recipes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_root(faces_root, tmp_path_factory) -> Path:
    """Faces as a user has them: verification sets in one file, SCface, two folders of other persons."""
    root = tmp_path_factory.mktemp("own") / "faces"
    shutil.copytree(faces_root, root)
    persons = sorted(path for path in (root / "test").iterdir() if path.is_dir())
    files = [[path.read_bytes() for path in sorted(person.glob("*.jpg"))] for person in persons]
    images = [one for of in files for one in of[:2]] + [one[0] for both in pairwise(files) for one in both]
    flags = [True] * len(persons) + [False] * (len(persons) - 1)
    images, flags = images * 2, flags * 2  # 14 pairs: ten folds need ten
    (root / "lfw.bin").write_bytes(pickle.dumps((images, flags)))
    for number, of in enumerate(files, 1):
        for name, data in zip(("frontal", "cam1_1", "cam5_2", "cam3_3", "cam7_1"), of, strict=False):
            path = root / "SCface" / f"distance_{name[-1]}" / f"{number:03d}_{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    for number, person in enumerate(sorted((root / "train").iterdir())):
        shutil.copytree(person, root / ("sharp" if number < 4 else "blurred") / person.name)
    return root


FACES = {"data__val_sets": "{lfw: lfw.bin}", "data__test_sets": "{lfw: lfw.bin, pairs: test/pairs.txt, scface: SCface}"}


@pytest.mark.slow
def test_the_recipe_for_own_faces_starts_from_its_pretraining(own_root, tmp_path):
    """Verification sets in one file, LFW's list, SCface; and the distillation that comes in slowly."""
    before = tmp_path / "before"
    assert fit(words("ddl_faces_iresnet50_pretrain", own_root, **FACES, trainer__max_epochs=1), before) == 0
    assert read_summary(before)["data/easy_pictures"] == 48
    begun = weights(before)
    more = FACES | {"model__base_checkpoint": before / "checkpoints" / "last.ckpt", "model__lr": 1e-9}
    more |= {"trainer__max_epochs": 2, "model__ddl_weight": 2.0}
    warmup = ["--trainer.callbacks+=callbacks.DDLWarmup", "--trainer.callbacks.steps", "8"]
    assert fit(words("ddl_faces_iresnet50", own_root, **more), tmp_path / "run", *warmup) == 0
    for name, value in weights(tmp_path / "run").items():
        if "running" not in name and "num_batches" not in name:
            assert_close(value, begun[name], atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    summary = read_summary(tmp_path / "run")
    wanted = {"lfw_accuracy", "lfw_accuracy_std", "lfw_threshold", "lfw_tar@1e-03", "pairs_accuracy"}
    wanted |= {"d1_rank1", "d2_rank1", "d3_rank1", "scface_rank1"}
    assert {f"test/{name}" for name in wanted} <= summary.keys()
    rates = [summary[f"test/d{number}_rank1"] for number in (1, 2, 3)]
    assert summary["test/scface_rank1"] == pytest.approx(sum(rates) / 3)
    rows = [row for row in metrics(tmp_path / "run") if row["train/loss"]]
    assert len(rows) == STEPS * 2
    for step, row in enumerate(rows):
        loss, softmax, distilled = (float(row[f"train/{name}"]) for name in ("loss", "softmax_loss", "ddl_loss"))
        assert loss == pytest.approx(softmax + min(1, step / 8) * 2.0 * distilled, rel=1e-5, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "branches", "classes"),
    [
        ({"rule": "pose", "hard_yaw": 20}, {"easy", "hard"}, 8),
        ({"rule": "group", "easy_group": "a", "identities": "separate"}, {"easy", "b"}, [4, 4]),
        ({"difficulty": "null", "hard_scales": "[2, 4]"}, {"easy", "hard"}, 8),
        ({"difficulty": "null", "easy": "sharp", "hard": "{dim: blurred}"}, {"easy", "dim"}, [4, 4]),
        ({"difficulty": "null", "rule": "resolution", "easy_side": 32, "hard_side": 20}, {"easy", "hard"}, 8),
        ({"difficulty": "masks.csv"}, {"easy", "hard", "mask"}, 8),
        ({"hard_pairs": "hard"}, {"easy", "hard"}, 8),
    ],
)
def test_what_is_hard_can_be_said_in_every_way(own_root, options, branches, classes, tmp_path):
    root = tmp_path / "faces"
    shutil.copytree(own_root, root)
    if options.get("rule") == "resolution":  # pictures of which the hard ones are stored small
        for path in (root / "train").rglob("*_000[456].jpg"):
            Image.open(path).resize((16, 16)).save(path)
    table = (root / "difficulty.csv").read_text()
    (root / "masks.csv").write_text(table.replace("6.jpg,hard", "6.jpg,hard:mask"))
    given = {f"data__{name}": value for name, value in options.items()} | FACES | {"trainer__max_epochs": 1}
    given |= {"data__b": 2} if options.get("rule") == "pose" else {}  # few are turned so far
    assert fit(words("ddl_faces_iresnet50", root, **given), tmp_path / "run") == 0
    summary = read_summary(tmp_path / "run")
    assert {name[len("train/gap_") :] for name in summary if name.startswith("train/gap_")} == branches
    assert {f"data/{branch}_pictures" for branch in branches} <= summary.keys()
    module = DDL.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert module.hparams["num_classes"] == classes
    assert len(module.heads) == (len(classes) if isinstance(classes, list) else 1)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ddl_market1501_lr", "ddl_market1501_lr_baseline"])
def test_low_resolution_queries_have_figures_of_their_own(market1501_root, recipe, tmp_path):
    given = {"data__height": 32, "data__width": 16, "trainer__max_epochs": 1}
    command = words(recipe, market1501_root, **given)
    size = command.index("--data.image_size")
    assert fit(command[:size] + command[size + 2 :], tmp_path / "run") == 0
    summary = read_summary(tmp_path / "run")
    assert 0 < summary["test/low_mAP"] <= 1
    assert 0 < summary["test/mAP"] <= 1
    assert summary["test/mAP"] != summary["test/low_mAP"]
    assert ("train/gap_hard" in summary) == (recipe == "ddl_market1501_lr")


# -- bad input ---------------------------------------------------------------------------------------------------------


def refused(capsys, command: list[str], folder: Path, *more: str) -> str:
    assert fit(command, folder / "run", *more) == 2
    assert not (folder / "run").exists()
    return one_line(capsys)


@pytest.fixture(scope="module")
def wrong_root(tmp_path_factory) -> Path:
    """Pictures of few persons, and lists of them that are wrong."""
    root = fill(tmp_path_factory.mktemp("wrong"), {"A": 3, "B": 3, "C": 3, "D": 3}, size=(32, 32))
    fill(root, {"A": 3}, folder="one")
    rows = [f"train/{person}/{n}.png\t{label}\n" for label, person in enumerate("ABCD") for n in (1, 2)]
    (root / "easy.txt").write_text("".join(rows))
    (root / "hard.txt").write_text("".join(rows[-2:] + rows[:2]))
    lines = ((1, "easy"), (2, "easy"), (3, "hard"))
    first, second, hard = ([f"{person}/{n}.png,{word}\n" for person in "ABCD"] for n, word in lines)
    easy = first + second
    (root / "table.csv").write_text("path,difficulty\n" + "".join(easy + hard))
    (root / "word.csv").write_text("path,difficulty\n" + "".join(easy) + "A/3.png,quite hard\n")
    (root / "unknown.csv").write_text("path,difficulty\n" + "".join(easy) + "Z/2.png,hard\n")
    (root / "columns.csv").write_text("path,yaw\nA/1.png,3\n")
    (root / "bad.bin").write_bytes(b"no pickle")
    (root / "short.bin").write_bytes(pickle.dumps(([b""] * 3, [True])))
    (root / "pairs.txt").write_text("1\t1\nA\t1\t2\n")
    (root / "probes.csv").write_text("path,label\nA/1.png,A\n")
    return root


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"data__train": "one", "data__difficulty": "null"}, "two at least"),
        ({"data__difficulty": "null", "data__easy": "easy.txt", "data__hard": "{hard: hard.txt}"}, "easy or hard"),
        ({"data__difficulty": "word.csv"}, "word.csv, line 10"),
        pytest.param({"data__difficulty": "unknown.csv"}, "Z/2.png", marks=pytest.mark.slow),
        pytest.param({"data__difficulty": "columns.csv"}, "difficulty", marks=pytest.mark.slow),
        pytest.param({"data__difficulty": "nowhere.csv"}, "nowhere.csv", marks=pytest.mark.slow),
        ({"data__difficulty": "null"}, "ddl_weight=8.0 has nothing to distil: there is no hard branch"),
        ({"data__b": 5}, "b=5"),
        pytest.param({"data__b": 1}, "b must be at least 2, got 1", marks=pytest.mark.slow),
        pytest.param({"data__hard_scales": "[2]"}, "one way", marks=pytest.mark.slow),
        ({"data__val_sets": "{x: bad.bin}"}, "bad.bin"),
        pytest.param({"data__val_sets": "{x: short.bin}"}, "3 images for 1 pairs", marks=pytest.mark.slow),
        pytest.param({"data__val_sets": "{x: pairs.txt}"}, "pairs.txt", marks=pytest.mark.slow),
        pytest.param({"data__val_sets": "{x: probes.csv}"}, "group", marks=pytest.mark.slow),
        ({"data__val_sets": "{x: nowhere.bin}"}, "nowhere.bin"),
        pytest.param({"data__root": "nowhere"}, "nowhere", marks=pytest.mark.slow),
        pytest.param({"data__image_size": 40}, "multiples of 16", marks=pytest.mark.slow),
        ({"model__num_classes": 3}, "num_classes"),
        ({"model__hard": "[mask]"}, "'mask'"),
        pytest.param({"model__seeds": "[0, 0]"}, "seeds=[0, 0]", marks=pytest.mark.slow),
        pytest.param({"model__pretrain_epochs": -1}, "pretrain_epochs=-1", marks=pytest.mark.slow),
        pytest.param({"model__backbone": "tinny"}, "tiny", marks=pytest.mark.slow),
        pytest.param({"model__ddl_weight": -1}, "ddl_weight=-1", marks=pytest.mark.slow),
    ],
)
def test_one_line_says_what_is_wrong(wrong_root, more, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"data__difficulty": "table.csv", "data__b": 2, "data__val_sets": "{}", "data__test_sets": "{}"} | more
    assert text in refused(capsys, words("ddl", wrong_root, **given), tmp_path)


def test_a_set_of_that_name_is_not_taken_for_the_argument(wrong_root, tmp_path, capsys):
    """The recipe has a test set ``pairs``; the fault is about the argument ``pairs``."""
    given = {"data__difficulty": "table.csv", "data__b": 2, "data__hard_pairs": "hard", "data__val_sets": "{}"}
    line = refused(capsys, words("ddl", wrong_root, **given), tmp_path)
    assert "branch 'hard' needs positive pairs" in line
    assert "test_sets" not in line


def test_a_base_checkpoint_that_is_not_there_is_one_line(faces_root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = words("ddl_faces_iresnet50", faces_root, **FACES, model__base_checkpoint="nowhere.ckpt")
    assert "nowhere.ckpt" in refused(capsys, command, tmp_path, "--data.val_sets", "{}", "--data.test_sets", "{}")
