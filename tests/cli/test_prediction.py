"""predict on files: rows with scores, pictures, and one bad file that stops nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch import LightningModule
from PIL import Image
from toy_method import ToyMethod

from lit_methods.cli.prediction import columns
from tests.left_behind import read_rows, read_summary


def rows(run_dir: Path) -> list[dict[str, str]]:
    return read_rows(run_dir / "predictions.csv")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures of mine"
    for number, name in enumerate(["a.png", "sub/a.png", "b.jpg"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8 + number, 9, 3), 60 * number, np.uint8)).save(folder / name)
    return folder


def test_rows_and_pictures_of_files_and_folders(command, pictures):
    ckpt = command("fit").run_dir / "checkpoints/last.ckpt"
    answer = command("predict", "--ckpt_path", ckpt, "--input", pictures, pictures / "a.png", "--run_dir", "p")
    assert answer.code == 0
    assert answer.run_dir == Path("p").absolute()
    found = rows(answer.run_dir)
    assert [Path(row["file"]).name for row in found] == ["a.png", "b.jpg", "a.png", "a.png"]
    assert list(found[0]) == ["file", "label_1", "score_1", "label_2", "score_2"]
    assert float(found[0]["score_1"]) >= float(found[0]["score_2"])
    drawn = {path.name for path in (answer.run_dir / "pictures").iterdir()}
    assert drawn == {"a.png", "a-2.png", "a-3.png", "b.png"}
    sizes = [Image.open(answer.run_dir / "pictures" / name).size for name in ("a.png", "b.png", "a-2.png")]
    assert sizes == [(9, 8), (9, 10), (9, 9)]


def test_an_unreadable_picture_is_named_and_the_others_are_done(command, pictures):
    (pictures / "broken.png").write_bytes(b"not a picture")
    answer = command("predict", "--input", pictures)  # without a checkpoint: the recipe's own model
    assert answer.code == 1
    assert len(answer.err) == 1
    assert "broken.png" in answer.err[0]
    assert len(rows(answer.run_dir)) == 3
    assert read_summary(answer.run_dir)["predict/unreadable"] == 1


def test_nothing_readable_still_ends_well(command, tmp_path):
    Path(tmp_path, "x.png").write_bytes(b"")
    answer = command("predict", "--input", "x.png")
    assert answer.code == 1
    assert rows(answer.run_dir) == []


def test_wrong_inputs(command, tmp_path):
    Path(tmp_path, "none").mkdir()
    for words, part in ((["--input", "nowhere"], "nowhere"), (["--input", "none"], "none")):
        answer = command("predict", *words)
        assert answer.code == 2
        assert len(answer.err) == 1
        assert part in answer.err[0]


def test_without_input_the_datas_prediction_split(command):
    answer = command("predict")
    assert answer.code == 0
    assert len(rows(answer.run_dir)) == 5


def test_data_are_not_needed_for_files(command, pictures):
    """Neither built nor prepared where a checkpoint holds everything."""
    ckpt = command("fit").run_dir / "checkpoints/last.ckpt"
    words = ["--ckpt_path", ckpt, "--input", pictures / "b.jpg"]
    assert command("predict", *words, "--data.root", "nowhere").code == 0
    assert command("predict", *words, "--model", "toy_method.ToyMethod", recipe=None).code == 0


class Asking(ToyMethod):
    """A method with an option of its own.

    Args:
        lr: learning rate.
    """

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__(num_classes=3, lr=lr)

    @classmethod
    def add_cli_arguments(cls, parser, entry: str) -> None:
        if entry == "predict":
            parser.add_argument("--sentence", type=str, default="a word")

    def prepare_inputs(self, paths, sentence: str):
        for path in paths:
            yield {"image": np_to_batch(path), "sentence": sentence}

    def predict_step(self: LightningModule, batch, batch_idx):
        return [{"said": batch["sentence"]}]


def np_to_batch(path):
    from lit_methods.inference import as_image

    return as_image(path)[None]


def test_a_methods_own_options_reach_its_own_inputs(command, pictures, tmp_path):
    Path(tmp_path, "asking.yaml").write_text(
        "model: {class_path: test_prediction.Asking}\ntrainer: {accelerator: cpu}\n"
    )
    answer = command(
        "predict", "--input", pictures / "a.png", "--sentence", "the left one", recipe=tmp_path / "asking.yaml"
    )
    assert answer.code == 0, answer.err
    assert rows(answer.run_dir)[0]["said"] == "the left one"
    assert command("fit", "--sentence", "x", recipe=tmp_path / "asking.yaml").code == 2


class Painting(ToyMethod):
    """A method that makes pictures: the negative of each, and of points a picture of one pixel."""

    def predict_step(self, batch, batch_idx):
        images = batch["image"] if "image" in batch else batch["x"][:, :3, None, None].sigmoid()
        negatives = (255 - 255 * images).round().byte()
        plain = super().predict_step(batch, batch_idx)
        return [{"size": 3, "negative": n, "mask": n[0], **p} for n, p in zip(negatives, plain, strict=True)]

    def draw(self, image, prediction):
        return prediction["negative"].permute(1, 2, 0).numpy()  # still a picture, not its path


PAINTING = ["--model", "test_prediction.Painting"]


def test_pictures_in_results_are_written_losslessly(command, pictures):
    noise = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).save(pictures / "noise.png")
    answer = command("predict", *PAINTING, "--input", pictures)
    assert answer.code == 0, answer.err
    found = rows(answer.run_dir)
    assert [row["negative"] for row in found] == [
        "negative/a.png", "negative/b.png", "negative/noise.png", "negative/a-2.png"
    ]  # fmt: skip
    assert (found[0]["size"], "negative_1" in found[0]) == ("3", False)
    for row in found:
        source = np.asarray(Image.open(row["file"]))
        assert (np.asarray(Image.open(answer.run_dir / row["negative"])) == 255 - source).all()
    assert (np.asarray(Image.open(answer.run_dir / "pictures" / "noise.png")) == 255 - noise).all()
    assert json.loads(found[2]["mask_1"]) == (255 - noise[0, :, 0]).tolist()  # numbers: it has no three channels


def test_pictures_of_the_datas_split_are_numbered(command):
    answer = command("predict", *PAINTING)
    assert answer.code == 0, answer.err
    names = [f"negative/{number}.png" for number in range(5)]
    assert [row["negative"] for row in rows(answer.run_dir)] == names
    assert all((answer.run_dir / name).is_file() for name in names)


def test_columns_of_boxes():
    assert columns({"boxes": [[1, 2], [3, 4]], "note": {"a": 1}}) == {
        "box_1": "[1, 2]", "box_2": "[3, 4]", "note": '{"a": 1}'
    }  # fmt: skip


def test_several_processes_are_refused(command):
    answer = command("predict", "--trainer.devices", 2, "--trainer.strategy", "ddp")
    assert answer.code == 2
    assert answer.err == ["error: trainer.devices='2': devices=2 processes would write one file; predict with 1"]
