"""predict of a method whose results are lists of things: a row for each thing, an entry for each result."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_method import ToyMethod

from tests.left_behind import read_rows


class Spotting(ToyMethod):
    """Finds as many spots as a picture is wide, less eight."""

    def predict_step(self, batch, batch_idx):
        if "image" not in batch:
            return [{"file": f"set/{row}", "spots": [row]} for row in range(len(batch["x"]))]
        return [{"spots": list(range(image.shape[2] - 8))} for image in batch["image"]]

    def rows(self, prediction):
        return [{"spot": spot, "double": 2 * spot} for spot in prediction["spots"]]


class Recording(Spotting):
    """Keeps a record as well."""

    def record(self, prediction):
        return {"spots": [{"at": spot} for spot in prediction["spots"]], "note": "ä"}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, width in (("a", 10), ("b", 8), ("c", 9)):
        Image.fromarray(np.zeros((8, width, 3), np.uint8)).save(folder / f"{name}.png")
    return folder


def test_a_row_for_each_thing_and_none_for_an_empty_result(command, pictures):
    answer = command("predict", "--model", "test_prediction_rows.Spotting", "--input", "in")
    assert answer.code == 0, answer.err
    assert read_rows(answer.run_dir / "predictions.csv") == [
        {"file": "in/a.png", "spot": "0", "double": "0"},
        {"file": "in/a.png", "spot": "1", "double": "2"},
        {"file": "in/c.png", "spot": "0", "double": "0"},
    ]
    assert not (answer.run_dir / "predictions.json").exists()
    assert {path.name for path in (answer.run_dir / "pictures").iterdir()} == {"a.png", "b.png", "c.png"}


def test_an_entry_for_each_result_also_an_empty_one(command, pictures):
    answer = command("predict", "--model", "test_prediction_rows.Recording", "--input", "in")
    assert answer.code == 0, answer.err
    text = (answer.run_dir / "predictions.json").read_text("utf-8")
    assert [(entry["file"], len(entry["spots"]), entry["note"]) for entry in json.loads(text)] == [
        ("in/a.png", 2, "ä"), ("in/b.png", 0, "ä"), ("in/c.png", 1, "ä")
    ]  # fmt: skip
    assert len(text.splitlines()) == 5  # one can be read without the others


def test_the_names_that_results_bring_along(command):
    answer = command("predict", "--model", "test_prediction_rows.Recording")
    assert answer.code == 0, answer.err
    rows = read_rows(answer.run_dir / "predictions.csv")
    assert (rows[0]["file"], rows[1]["file"]) == ("set/0", "set/1")
    entries = json.loads((answer.run_dir / "predictions.json").read_text("utf-8"))
    assert [entry["file"] for entry in entries] == [row["file"] for row in rows]


def test_nothing_readable_leaves_empty_lists(command, tmp_path):
    Path(tmp_path, "x.png").write_bytes(b"")
    answer = command("predict", "--model", "test_prediction_rows.Recording", "--input", "x.png")
    assert answer.code == 1
    assert read_rows(answer.run_dir / "predictions.csv") == []
    assert json.loads((answer.run_dir / "predictions.json").read_text("utf-8")) == []
