"""The user's own pictures and films: faces as rows, entries, drawings and text files."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image

from lit_methods.asfd import own_files
from lit_methods.asfd.detection import detect
from lit_methods.asfd.own_pictures import OwnPictures
from lit_methods.cli import main
from lit_methods.functional.box_drawing import FOUND, TRUTH
from lit_methods.functional.frames import from_rgb
from lit_methods.functional.video import open_video
from lit_methods.functional.video_writing import write_video
from lit_methods.functional.wider_files import read_predictions
from lit_methods.inference import Predictor
from tests.left_behind import read_rows

MODEL = ["--model", "test_asfd_own_pictures.Reds", "--trainer.accelerator", "cpu"]


class Reds(OwnPictures, LightningModule):
    """Sees a face around what is red, as likely as it is red; and one in the corner that hardly is one."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[tuple[int, ...]] = []
        self.many_sizes: list[bool | None] = []
        self.hparams["multi_scale"] = False

    def forward(self, image):
        self.passes.append(tuple(image.shape))
        boxes, scores = [], []
        for picture in image:
            red = picture[0] - picture[1:].amax(0) > 0.2
            y, x = (red.any(axis).nonzero() for axis in (1, 0))
            box = [x.min(), y.min(), x.max() + 1, y.max() + 1] if red.any() else [0, 0, 0, 0]
            boxes.append([[float(v) for v in box], [0.0, 0, 20, 20]])
            scores.append([float(picture[0][red].mean()) if red.any() else 0.0, 0.1])
        return image.new_tensor(boxes), image.new_tensor(scores)

    def detect(self, images, multi_scale=None):
        self.many_sizes.append(multi_scale)
        return detect(self, images)


def picture(box=None, size=(140, 160), red=255):
    image = np.full((*size, 3), 60, np.uint8)
    if box is not None:
        image[box[1] : box[3], box[0] : box[2], 0] = red
    return image


BOXES = {"a": (40, 30, 80, 90), "b": None, "c": (100, 50, 130, 100), "d": (50, 60, 90, 120)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four pictures, of which the third has another size."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name, box in BOXES.items():
        Image.fromarray(picture(box, (150, 160) if name == "c" else (140, 160))).save(f"in/{name}.png")
    return Path("in")


def film(path: Path, count: int = 7) -> Path:
    """A red thing that moves five pixels a frame, over grey; the second frame has none."""
    frames = [from_rgb(picture(None if i == 1 else (30 + 5 * i, 40, 70 + 5 * i, 90))) for i in range(count)]
    write_video(path, frames, fps=10)
    return path


def answers(module, paths, **options):
    batches = module.prepare_inputs(paths, **options)
    return [result for number, batch in enumerate(batches) for result in module.predict_step(batch, number)]


def test_each_picture_gets_its_faces_and_equal_sizes_share_a_pass(folder):
    module = Reds()
    results = answers(module, [folder])
    assert module.passes == [(2, 3, 140, 160), (1, 3, 150, 160), (1, 3, 140, 160)]
    assert [Path(result["file"]).stem for result in results] == list("abcd")
    assert [(result["width"], result["height"]) for result in results] == [
        (160, 150 if n == "c" else 140) for n in "abcd"
    ]
    for result, box in zip(results, BOXES.values(), strict=True):
        assert list(result) == ["file", "width", "height", "face_boxes", "scores"]
        assert result["face_boxes"].tolist() == ([] if box is None else [list(map(float, box))]) + [[0, 0, 20, 20]]
        assert result["scores"].tolist() == pytest.approx([1, 0.1] if box else [0.1])
        assert result["face_boxes"].dtype == result["scores"].dtype == torch.float32


def test_batches_have_a_most_of_pictures_and_of_pixels(folder, monkeypatch):
    monkeypatch.setattr(own_files, "PIXELS_AT_ONCE", 2 * 140 * 160)
    for name in "efg":
        Image.fromarray(picture()).save(folder / f"{name}.png")
    module = Reds()
    answers(module, [folder])
    assert [size[0] for size in module.passes] == [2, 1, 2, 2]
    monkeypatch.setattr(own_files, "PIXELS_AT_ONCE", 1)
    module = Reds()
    answers(module, [folder])
    assert [size[0] for size in module.passes] == [1] * 7
    monkeypatch.setattr(own_files, "PIXELS_AT_ONCE", 2**30)
    monkeypatch.setattr(own_files, "AT_ONCE", 3)
    module = Reds()
    answers(module, [folder])
    assert [size[0] for size in module.passes] == [2, 1, 3, 1]


def test_plain_batches_and_the_predictor_are_answered_too(folder):
    module = Reds()
    stacked = torch.from_numpy(np.stack([picture(BOXES["a"]), picture(BOXES["d"])])).permute(0, 3, 1, 2)
    for images in (stacked, stacked / 255, list(stacked), [stacked[0] / 255, stacked[1]]):
        results = module.predict_step({"image": images}, 0)
        assert [result["face_boxes"][0].tolist() for result in results] == [list(BOXES["a"]), list(BOXES["d"])]
        assert "file" not in results[0]
    named = module.predict_step({"image": list(stacked), "name": ["0--x/a", "0--x/b"]}, 0)
    assert [result["file"] for result in named] == ["0--x/a", "0--x/b"]
    (result,) = Predictor(module)(folder / "c.png")
    assert result["face_boxes"][0].tolist() == list(BOXES["c"])
    assert module.predict_step({"image": [], "name": []}, 0) == []
    assert module.predict_step({"image": torch.zeros(0, 3, 128, 128)}, 0) == []


def test_draw_shows_likely_faces_and_the_truth(folder):
    module = Reds()
    (result,) = answers(module, [folder / "a.png"])
    drawn = module.draw(picture(), result | {"boxes": [[10, 100, 30, 120]], "attributes": [[0] * 6]})
    columns = np.nonzero((drawn == FOUND).all(2).any(0))[0]
    assert (columns.min(), columns.max()) == (40, 79)
    assert (drawn == TRUTH).all(2).any()
    module.min_score = 0.05
    assert (module.draw(picture(), result)[:20, :20] == FOUND).all(2).any()


def test_the_command_on_pictures_and_a_film(folder, capsys):
    film(Path("walk.gif"))
    Image.fromarray(picture(size=(100, 300))).save("in/low.png")
    Path("in/broken.jpg").write_bytes(b"no picture")
    words = [
        "--input",
        "in",
        "walk.gif",
        "nowhere.png",
        "in/a.png",
        "--run_dir",
        "out",
        "--txt",
        "true",
        "--every",
        "2",
    ]
    assert main("predict", [*MODEL, *words]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert any("low.png' is 300x100 (width x height), below 128" in line for line in errors)
    assert any("broken.jpg" in line for line in errors)
    assert any("nowhere.png' does not exist" in line for line in errors)

    rows = read_rows(Path("out/predictions.csv"))
    still, moving = rows[:3], rows[3:6]
    assert [Path(row["file"]).name for row in still] == ["a.png", "c.png", "d.png"]
    assert [float(still[0][name]) for name in ("x1", "y1", "x2", "y2", "score")] == [40, 30, 80, 90, 1]
    assert [(row["file"], row["frame"], float(row["x1"])) for row in moving] == [
        ("walk.gif", str(i), 30.0 + 5 * i) for i in (0, 2, 4)
    ]
    entries = json.loads(Path("out/predictions.json").read_text())
    assert [Path(entry["file"]).name for entry in entries[:4]] == ["a.png", "b.png", "c.png", "d.png"]
    assert entries[1] == {"file": "in/b.png", "width": 160, "height": 140, "faces": []}
    assert entries[2]["faces"] == [{"box": [100.0, 50.0, 130.0, 100.0], "score": 1.0}]
    assert [entry.get("frame") for entry in entries[4:]] == [0, 2, 4, 6, None]

    assert {path.name for path in Path("out/pictures").iterdir()} == {"a.png", "b.png", "c.png", "d.png", "a-2.png"}
    assert (np.asarray(Image.open("out/pictures/a.png"))[30, 40:80] == FOUND).all()
    (drawn,) = Path("out/videos").iterdir()
    assert drawn.stem == "walk"
    assert sum(1 for _ in open_video(drawn)) == 4
    texts = {str(path.relative_to("out/detections")) for path in Path("out/detections").rglob("*.txt")}
    assert texts == {
        *(f"in/{name}.txt" for name in ("a", "b", "c", "d", "a-2")),
        *(f"walk/{i:06}.txt" for i in (0, 2, 4, 6)),
    }
    read = read_predictions(Path("out/detections/in/a.txt"))
    assert read.tolist() == [pytest.approx([40, 30, 40, 60, 1]), pytest.approx([0, 0, 20, 20, 0.1])]


def test_only_a_missing_input_ends_the_command(folder, capsys):
    assert main("predict", [*MODEL, "--input", "nowhere"]) == 2
    assert "input='nowhere' does not exist" in capsys.readouterr().err
    Path("empty").mkdir()
    assert main("predict", [*MODEL, "--input", "empty"]) == 2
    assert "no pictures there" in capsys.readouterr().err


def test_frames_that_cannot_be_read_are_passed_over_and_told(folder, monkeypatch):
    video = open_video(film(Path("walk.gif")))
    whole = list(video.read())

    def read(start=0):
        yield from [*whole[:2], own_files.BadImageError("frame 2 is torn"), *whole[3:5]]
        raise own_files.BadImageError("frame 5 has another size")

    monkeypatch.setattr(video, "read", read)
    module = Reds()
    with pytest.warns(UserWarning, match=r"'walk.gif' is searched without 2 of its frames: frame 2 is torn"):
        results = answers(module, [own_files.OwnFile(video.path, "walk", video)])
    assert [result["frame"] for result in results] == [0, 1, 3, 4]


def test_films_are_complete_one_by_one_and_a_broken_off_one_is_dropped(folder, make_trainer, tmp_path):
    for name in ("one", "two"):
        film(Path(f"{name}.gif"), 9)
    module, trainer = Reds(), make_trainer()
    trainer.predict(module, dataloaders=module.prepare_inputs(["one.gif", folder / "a.png", "two.gif"]))
    assert [path.stem for path in sorted(Path("videos").iterdir())] == ["one", "two"]
    for path in Path("videos").iterdir():
        path.unlink()
    batches = module.prepare_inputs(["two.gif"])
    module.predict_step(next(iter(batches)), 0)
    batches.close()
    assert not list(Path("videos").iterdir())


def test_a_gif_of_one_frame_is_a_picture(folder):
    Image.fromarray(picture(BOXES["a"])).save("still.gif")
    (result,) = answers(Reds(), ["still.gif"])
    assert "frame" not in result
    assert result["scores"][0] > 0.9


def test_options_reach_the_detector_and_wrong_ones_are_named(folder):
    module = Reds()
    answers(module, [folder / "a.png"])
    answers(module, [folder / "a.png"], multi_scale=True)
    assert module.many_sizes == [None, True]
    for options in ({"min_score": 1.5}, {"min_score": float("nan")}, {"every": 0}):
        (name,) = options
        for call in (module.prepare_inputs, module.sift_inputs):
            with pytest.raises(ValueError, match=f"{name}=.* must"):
                call([folder], **options)
    Image.fromarray(picture(size=(100, 300))).save("low.png")
    with pytest.raises(ValueError, match="below 128"):
        module.prepare_inputs(["low.png"])


def test_min_score_decides_what_is_listed_not_what_is_found(folder):
    module = Reds()
    for least, count in ((0.5, 1), (0.1, 2), (0.0, 2), (1.0, 1)):
        (result,) = answers(module, [folder / "a.png"], min_score=least)
        assert len(result["scores"]) == 2
        assert len(module.rows(result)) == len(module.record(result)["faces"]) == count


def test_no_warning_comes_from_whole_files(folder):
    film(Path("walk.gif"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(answers(Reds(), ["walk.gif", folder])) == 11
