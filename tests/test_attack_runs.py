"""Whole attacks by the command line: what they leave, how killed ones go on, many processes, the user's pictures."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lit_methods import Predictor
from lit_methods.cli import main
from tests.attack_runs import IMAGES, LEDGERS, ONE, SMALL, assert_same_run, figures, lines
from tests.two_processes import Run, assert_same_metrics, run
from tests.victims import NOTES, SIGNAL, register_victims, trained_weights
from tests.wandb_record import read_record

KEYS = ("success_rate", "success_rate_uint8", "mean_queries", "median_queries", "mean_queries_all", "auc", "l2", "top1")
KEYS += ("adversarial_top1", "attacked", "skipped", "failed", "success_rate_fixed", "mean_queries_fixed")
PICTURES = ["attack_growth.gif", "attack_success_curve.png", "attack_triplets.png"]


@pytest.fixture(scope="module", autouse=True)
def _victims():
    register_victims()


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> list[str]:
    """Arguments that name a trained victim."""
    path = tmp_path_factory.mktemp("victim") / "weights.pth"
    torch.save(trained_weights(), path)
    return ["--model.model", "tiny", "--model.base_checkpoint", str(path), *SMALL]


@pytest.fixture(scope="module")
def noting(weights) -> list[str]:
    """The same, of a victim that notes what it is asked; one candidate, so a forward pass is a few images."""
    return ["--model.model", "tiny_noting", *weights[2:], "--trainer.callbacks", "callbacks.AttackLogger"]


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """Start new notes of what the victim is asked: ``notes()`` gives the numbers of images, and forgets them."""
    path = tmp_path / "notes"
    monkeypatch.setenv(NOTES, str(path))

    def taken() -> list[int]:
        numbers = [int(line) for line in path.read_text().splitlines()] if path.exists() else []
        path.unlink(missing_ok=True)
        return numbers

    return taken


def fit(folder: Path, *more: str) -> Path:
    """A run that trains its victim and attacks it."""
    words = ["--model.model", "tiny", *SMALL, "--trainer.max_epochs", 3, "--model.lr", 0.3]
    words += ["--data.num_test_images", 12, "--model.milestones", "[2]", "--trainer.num_sanity_val_steps", 0]
    words += ["--data.batch_size", 32, "--run_dir", folder, *more]
    assert main("fit", ["ppba", *ONE, *map(str, words)]) == 0
    return folder


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    return fit(tmp_path_factory.mktemp("fitted") / "r")


# -- what a run leaves ------------------------------------------------------------------------------------------------


def test_a_fit_trains_attacks_and_shows(fitted):
    found = figures(fitted)
    assert {f"test/{name}" for name in KEYS} <= found.keys()
    for name, suffix in zip(LEDGERS, ("", "_fixed"), strict=True):
        ledger = lines(fitted, name)
        tried = [line for line in ledger if not line["skipped"]]
        solved = [line for line in tried if line["success"]]
        assert len({line["id"] for line in ledger}) == len(ledger) == 12
        assert found[f"test/success_rate{suffix}"] == pytest.approx(len(solved) / len(tried))
        if solved:
            mean = sum(line["queries"] for line in solved) / len(solved)
            assert found[f"test/mean_queries{suffix}"] == pytest.approx(mean)
    assert found["test/attacked"] == len(tried) > 0
    assert found["test/top1"] == pytest.approx(len(tried) / 12)
    assert found["test/success_rate"] > 0
    assert "PPBAAttack" in found["attack/settings"]
    assert sorted(path.name for path in (fitted / "pictures").glob("attack*")) == PICTURES
    assert {path.name for path in (fitted / "pictures").iterdir()} > {"val_predictions.png", "test_predictions.png"}
    with (fitted / "tables" / "attack_images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["id"]), int(row["queries"]), row["success"]) for row in rows] == [
        (line["id"], line["queries"], str(line["success"])) for line in lines(fitted)
    ]
    assert {path.stem for path in (fitted / "tables").glob("attack*")} == {
        "attack_images", "attack_classes", "attack_queries",
    }  # fmt: skip
    with Image.open(fitted / "pictures" / "attack_growth.gif") as film:
        assert film.n_frames > 1


@pytest.mark.slow
def test_wandb_holds_what_the_disk_holds(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    fitted = fit(tmp_path / "r", "--logger", "wandb")
    record = read_record(fitted)
    kinds = {key: {file.suffix for file in files} for key, files in record.media.items() if key.startswith("attack/")}
    assert kinds == {
        "attack/success_curve": {".png"},
        "attack/triplets": {".png"},
        "attack/growth": {".gif"},
        "attack/images": {".json"},
        "attack/classes": {".json"},
    }
    steps = list(record.at("test/success_rate"))
    assert len(steps) == 1
    for key in [*kinds, "attack/queries"]:
        assert list(record.at(key)) == steps, key
    assert record.at("attack/queries")[steps[0]]["_type"] == "histogram"
    table = json.loads(record.media["attack/images"][0].read_text())
    assert [row[table["columns"].index("queries")] for row in table["data"]] == [
        line["queries"] for line in lines(fitted)
    ]


def test_a_test_of_its_checkpoint_finds_the_same(fitted, tmp_path, capsys):
    (best,) = (fitted / "checkpoints").glob("epoch*")
    words = [*ONE, "--ckpt_path", str(best), "--data.num_test_images", "12", "--data.batch_size", "32"]
    assert main("test", ["ppba", *words, "--run_dir", str(tmp_path / "run")]) == 0
    assert Path(capsys.readouterr().out.splitlines()[-1]) == tmp_path / "run"
    assert_same_run(tmp_path / "run", fitted)


@pytest.mark.slow
def test_export(fitted, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run_dir = tmp_path / "run"
    checkpoint = str(fitted / "checkpoints" / "last.ckpt")
    assert main("export", ["ppba", *ONE, "--ckpt_path", checkpoint, "--run_dir", str(run_dir)]) == 0
    assert {path.suffix for path in run_dir.rglob("classifier*")} >= {".onnx", ".pt2"}


def test_given_weights_are_attacked_without_training(weights, tmp_path):
    assert main("fit", ["ppba", *ONE, *map(str, weights), "--run_dir", str(tmp_path / "fit")]) == 0
    assert main("test", ["ppba", *ONE, *map(str, weights), "--run_dir", str(tmp_path / "test")]) == 0
    assert_same_run(tmp_path / "fit", tmp_path / "test")
    assert "train/loss" not in json.loads((tmp_path / "fit" / "summary.json").read_text())
    found = lines(tmp_path / "fit")
    assert {(line["success"], line["skipped"]) for line in found} >= {(True, False), (False, False), (False, True)}


@pytest.mark.parametrize(
    "attack",
    ["simba", *(pytest.param(a, marks=pytest.mark.slow) for a in ("nes", "nes_lf", "bandits", "bandits_lf"))],
)
def test_other_attacks(weights, attack, tmp_path):
    words = [*weights, "--model.attack", attack, "--model.attack_args", "null", "--model.compare_fixed", "false"]
    assert main("test", ["ppba", *ONE, *map(str, words), "--run_dir", str(tmp_path / "run")]) == 0
    assert not (tmp_path / "run" / "ledger_fixed.jsonl").exists()
    found = figures(tmp_path / "run")
    assert found["test/attacked"] == len([line for line in lines(tmp_path / "run") if not line["skipped"]])
    assert "test/mean_queries_fixed" not in found


@pytest.mark.slow
@pytest.mark.parametrize("target", ["1", "random"])
def test_targets(weights, target, tmp_path):
    words = [*weights, "--model.target", target, "--model.max_queries", 200, "--model.compare_fixed", "false"]
    assert main("test", ["ppba", *ONE, *map(str, words), "--run_dir", str(tmp_path / "run")]) == 0
    solved = [line for line in lines(tmp_path / "run") if line["success"]]
    assert solved
    assert all(line["pred"] == line["label"] for line in solved)  # in the ledger: what was to be reached
    assert target == "random" or {line["label"] for line in solved} == {1}


# -- runs that go on --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(noting, tmp_path_factory):
    """An uninterrupted test, and how many images its victim saw."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(NOTES, str(folder / "notes"))
        run("ppba", noting, folder / "run", entry="test")
    return folder / "run", [int(line) for line in (folder / "notes").read_text().splitlines()]


def test_every_image_that_the_victim_saw_is_in_the_ledgers(whole):
    folder, asked = whole
    counted = {"ledger.jsonl": 0, "ledger_fixed.jsonl": 0}
    for name in counted:
        for line in lines(folder, name):
            counted[name] += line["queries"] + line["checks"] + line["skipped"]  # a wrong one is seen once all the same
    assert sum(asked) == sum(counted.values())


@pytest.mark.parametrize("part", [0.2, *(pytest.param(part, marks=pytest.mark.slow) for part in (0.0, 0.9))])
def test_a_killed_test_goes_on_and_asks_nothing_twice(noting, whole, notes, monkeypatch, tmp_path, part):
    """By the same command in the same directory; killed in the middle of a batch, in either attack."""
    folder, asked = whole
    monkeypatch.setenv(SIGNAL, f"SIGKILL {int(part * len(asked))}")
    killed = run("ppba", noting, tmp_path / "run", entry="test", succeed=False)
    assert killed.codes == [-9]
    assert not (tmp_path / "run" / "summary.json").exists()
    before = notes()
    monkeypatch.delenv(SIGNAL)
    run("ppba", noting, tmp_path / "run", entry="test")
    after = notes()
    assert before == asked[: len(before)]
    assert sum(before) + sum(after) == sum(asked)
    assert_same_run(tmp_path / "run", folder)


@pytest.mark.slow
def test_sigterm_ends_a_batch_between_two_iterations(noting, whole, notes, monkeypatch, tmp_path):
    folder, asked = whole
    monkeypatch.setenv(SIGNAL, f"SIGTERM {len(asked) // 4}")
    stopped = run("ppba", noting, tmp_path / "run", entry="test", succeed=False)
    assert stopped.codes == [143]
    assert [line for line in stopped.err[0].splitlines() if line.startswith("stopped by")] == ["stopped by SIGTERM"]
    before = notes()
    assert len(before) - len(asked) // 4 in (1, 2)  # its answer, and perhaps the look at 8 bits
    monkeypatch.delenv(SIGNAL)
    run("ppba", noting, tmp_path / "run", entry="test")
    assert sum(before) + sum(notes()) == sum(asked)
    assert_same_run(tmp_path / "run", folder)


@pytest.mark.slow
def test_a_fit_that_is_killed_while_it_attacks_goes_on(noting, notes, monkeypatch, tmp_path):
    """From its last checkpoint, which is that of the same network."""
    words = [word for word in noting if not str(word).endswith(".pth") and word != "--model.base_checkpoint"]
    words += ["--trainer.max_epochs", 1, "--data.batch_size", 32, "--trainer.limit_train_batches", 20]
    run("ppba", words, tmp_path / "whole")
    asked = notes()
    monkeypatch.setenv(SIGNAL, f"SIGKILL {len(asked) - 5}")
    assert run("ppba", words, tmp_path / "run", succeed=False).codes == [-9]
    before = notes()
    monkeypatch.delenv(SIGNAL)
    run("ppba", [*words, "--ckpt_path", "last"], tmp_path / "run")
    assert sum(before) + sum(notes()) == sum(asked)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_another_attack_in_the_place_of_a_killed_one_begins_anew(noting, notes, monkeypatch, tmp_path):
    words = [*noting, "--model.compare_fixed", "false"]
    monkeypatch.setenv(SIGNAL, "SIGKILL 20")
    run("ppba", words, tmp_path / "run", entry="test", succeed=False)
    monkeypatch.delenv(SIGNAL)
    other = [*words, "--model.attack_seed", 1]
    run("ppba", other, tmp_path / "run", entry="test")
    run("ppba", other, tmp_path / "new", entry="test")
    assert (tmp_path / "run" / "ledger.jsonl").read_bytes() == (tmp_path / "new" / "ledger.jsonl").read_bytes()
    assert (tmp_path / "run" / "ledger.answers.1").exists()  # the old ones are kept


# -- many processes ---------------------------------------------------------------------------------------------------

EXACT = ["--trainer.precision", "64-true"]


@pytest.fixture(scope="module")
def one(weights, tmp_path_factory) -> Run:
    """In one process, exactly."""
    return run("ppba", [*weights, *EXACT], tmp_path_factory.mktemp("one") / "run")


def assert_same_lines(one: Path, many: Path) -> None:
    for name in LEDGERS:
        ours, theirs = lines(many, name), lines(one, name)
        assert [line["id"] for line in ours] == [line["id"] for line in theirs]
        for our, their in zip(ours, theirs, strict=True):
            for key, value in their.items():
                assert our[key] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), key
        assert not list(many.glob(f"{Path(name).stem}-*.jsonl"))


def test_two_processes_equal_one(weights, one, tmp_path):
    """An odd number of images: no process gets one that another one has."""
    many = run("ppba", [*weights, *EXACT, "--data.batch_size", 2], tmp_path / "many", 2)
    assert sorted(many.seen("test")) == sorted(one.seen("test"))
    assert len(many.seen("test")) == IMAGES
    assert_same_metrics(one, many)
    assert_same_lines(one.path, many.path)


@pytest.mark.slow
def test_a_process_without_an_image(weights, tmp_path):
    words = [*weights, *EXACT, "--data.num_test_images", 2]
    words += ["--trainer.callbacks", "callbacks.AttackLogger"]
    one = run("ppba", words, tmp_path / "one", entry="test")
    many = run("ppba", words, tmp_path / "many", 3, entry="test")
    assert sorted(sum(map(len, rank["seen"]["test"])) for rank in many.ranks) == [0, 1, 1]
    assert len(many.seen("test")) == 2
    assert_same_metrics(one, many)
    assert_same_lines(one.path, many.path)


@pytest.mark.slow
def test_padded_batches_give_a_real_network_the_same_end(weights, tmp_path):
    """Batch norm and float32; images that end differently are counted, and there is none."""
    words = [*weights, "--model.pad_batch", "true", "--trainer.precision", "32-true"]
    one = run("ppba", words, tmp_path / "one", entry="test")
    many = run("ppba", [*words, "--data.batch_size", 2], tmp_path / "many", 2, entry="test")
    for name in LEDGERS:
        assert (many.path / name).read_bytes() == (one.path / name).read_bytes()
    assert_same_metrics(one, many)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 2)])
def test_a_killed_test_goes_on_in_another_number_of_processes(noting, notes, monkeypatch, tmp_path, first, second):
    words = [*noting, *EXACT]
    whole = run("ppba", words, tmp_path / "whole", entry="test")
    asked = notes()
    monkeypatch.setenv(SIGNAL, "SIGKILL 40")
    killed = run(
        "ppba", [*words, "--data.batch_size", 4 // first], tmp_path / "run", first, entry="test", succeed=False
    )
    assert -9 in killed.codes
    before = notes()
    monkeypatch.delenv(SIGNAL)
    again = run("ppba", [*words, "--data.batch_size", 4 // second], tmp_path / "run", second, entry="test")
    assert sum(before) + sum(notes()) == sum(asked)
    assert_same_metrics(whole, again)
    assert_same_lines(whole.path, again.path)


# -- the user's own pictures ------------------------------------------------------------------------------------------


def test_predict_writes_adversarial_pictures(fitted, tmp_path, capsys):
    folder, run_dir = tmp_path / "mine", tmp_path / "run"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 3), np.uint8)
    for name, picture in {
        "large.png": Image.fromarray(pixels).resize((90, 70)),
        "grey.png": Image.fromarray(pixels[:32, :, 0]),
        "rgba.png": Image.fromarray(np.dstack([pixels[8:], pixels[:32, :, 0]])),
        "plain.png": Image.fromarray(pixels[:32]),
    }.items():
        picture.save(folder / name)
    (folder / "broken.png").write_bytes(b"no picture")
    checkpoint = fitted / "checkpoints" / "last.ckpt"
    words = [*ONE, "--ckpt_path", str(checkpoint), "--input", str(folder), "--run_dir", str(run_dir)]
    assert main("predict", ["ppba", *words, "--model.pad_batch", "true"]) == 1  # each as if alone
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(said) == 1
    assert "broken.png" in said[0]
    with (run_dir / "predictions.csv").open(newline="") as file:
        rows = {Path(row["file"]).name: row for row in csv.DictReader(file)}
    assert set(rows) == {"large.png", "grey.png", "rgba.png", "plain.png"}
    predictor = Predictor.from_checkpoint(checkpoint, pad_batch=True)
    for name, row in rows.items():
        (expected,) = predictor(folder / name)
        with Image.open(run_dir / row["adversarial"]) as picture:
            assert picture.size == (32, 32)
            saved = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        assert torch.equal(saved, expected["adversarial"])
        assert int(row["queries"]) == expected["queries"]
        assert row["success_uint8"] == str(expected["success_uint8"])
        assert int(row["adversarial_label"]) == expected["adversarial_label"]
        if expected["success_uint8"]:
            (seen,) = predictor(run_dir / row["adversarial"])
            assert seen["label"] == expected["adversarial_label"] != expected["label"]
        assert (run_dir / "pictures" / name).is_file()
    assert sorted(line["queries"] for line in lines(run_dir)) == sorted(int(row["queries"]) for row in rows.values())


@pytest.mark.slow
def test_a_second_predict_in_a_stopped_ones_place_asks_nothing(noting, notes, tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    words = [*noting, "--input", folder]
    run("ppba", words, tmp_path / "whole", entry="predict")
    asked = notes()
    monkeypatch.setenv(SIGNAL, f"SIGKILL {len(asked) // 2}")
    assert run("ppba", words, tmp_path / "run", entry="predict", succeed=False).codes == [-9]
    before = notes()
    monkeypatch.delenv(SIGNAL)
    run("ppba", words, tmp_path / "run", entry="predict")
    assert sum(before) + sum(notes()) <= sum(asked) + 3  # what the network sees in a picture is asked each time
    for file in (tmp_path / "whole" / "adversarial").iterdir():
        assert (tmp_path / "run" / "adversarial" / file.name).read_bytes() == file.read_bytes()


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--model.attack", "pbba"], ["model.attack", "pbba", "did you mean 'ppba'"]),
        (["--model.attack_args", '{"roh": 0.1}'], ["roh", "did you mean 'rho'"]),
        (["--model.target", "10"], ["target=10", "0 to 9"]),
        (["--model.target", "cat"], ["target"]),
        (["--model.max_queries", "1"], ["max_queries=1"]),
        (["--model.max_querys", "9"], ["max_querys", "max_queries"]),
        (["--model.attack", "nes", "--model.attack_args", "null"], ["compare_fixed"]),
        (["--model.eps", "0"], ["eps"]),
        (["--model.model", "tinny"], ["tinny"]),
        (["--model.base_checkpoint", "nowhere.pth"], ["nowhere.pth"]),
        (["--model.low_dim", "0"], ["low_dim"]),
        (["--trainer.callbacks.num_images", "0"], ["num_images=0"]),
    ],
)
def test_a_mistake_is_one_line(words, parts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    few = ["--model.max_queries", "30", "--data.num_test_images", "4"]
    assert main("test", ["ppba", "--model.model", "tiny", *ONE, *few, *words, "--run_dir", "run"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1, said
    for part in parts:
        assert part in said[0]
    assert not Path("run").exists()


def test_a_finished_run_is_not_attacked_again(weights, one, tmp_path, capsys):
    shutil.copytree(one.path, tmp_path / "run")
    assert main("test", ["ppba", *ONE, *map(str, weights), "--run_dir", str(tmp_path / "run")]) == 2
    assert "is not empty" in capsys.readouterr().err
