"""The user's own pictures and sentences: boxes and masks as dicts, rows, entries, drawings and files."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lit_methods.cli import main
from lit_methods.functional.box_drawing import FOUND, TRUTH
from lit_methods.functional.coco_masks import rle_to_mask
from lit_methods.functional.letterbox import letterbox_image, letterbox_mask
from lit_methods.inference import Predictor
from lit_methods.mcn import own_pictures
from lit_methods.mcn.module import MCN
from tests.left_behind import read_rows

pytestmark = pytest.mark.usefixtures("light_grounder")
SIDE = 64
WORDS = ["circle", "left", "red", "the"]


@pytest.fixture(scope="module")
def module():
    """An untrained one; do not change it."""
    torch.manual_seed(1)
    return make()


def make(**options):
    defaults = {"hidden": 32, "dim": 16, "word_dim": 8, "max_words": 4, "vocabulary": WORDS}
    return MCN("tiny", input_size=[3, SIDE, SIDE], **defaults | options).eval()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two pictures in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    generator = np.random.default_rng(0)
    for name, size in (("a", (48, 80, 3)), ("b", (90, 60, 3))):
        Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8)).save(f"in/{name}.png")
    return Path("in")


def answers(module, paths, **options):
    batches = module.prepare_inputs(paths, **options)
    return [result for number, batch in enumerate(batches) for result in module.predict_step(batch, number)]


def same(ours, theirs):
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(ours[key], value)
        else:
            assert ours[key] == (pytest.approx(value, abs=1e-5) if isinstance(value, float) else value)


def test_ground_answers_for_each_sentence_about_a_picture(module, folder):
    results = module.ground("in/a.png", ["The red circle!", "the left circle"])
    assert [list(result) for result in results] == [
        ["file", "text", "pred_box", "score", "pred_mask", "agreement"],
    ] * 2
    assert [result["text"] for result in results] == ["The red circle!", "the left circle"]
    for result in results:
        x1, y1, x2, y2 = result["pred_box"].tolist()
        assert 0 <= x1 <= x2 <= 80
        assert 0 <= y1 <= y2 <= 48
        assert (result["pred_mask"].dtype, tuple(result["pred_mask"].shape)) == (torch.bool, (48, 80))
    (one,) = module.ground(Path("in/a.png"), "the left circle")
    same(one, results[1])
    assert results[0]["score"] != results[1]["score"]


def test_pictures_of_any_kind_give_the_same_answer(module, folder):
    pixels = np.array(Image.open("in/a.png"))
    image = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    first, *others = (module.ground(kind, "red")[0] for kind in ("in/a.png", Image.open("in/a.png"), pixels, image))
    for other in others:
        same({"file": "in/a.png"} | other, first)


def test_the_network_sees_the_letterboxed_picture_once_for_all_sentences(module, folder, monkeypatch):
    seen = []
    visual = module.model.visual
    monkeypatch.setattr(module.model, "visual", lambda image: seen.append(image) or visual(image))
    answers(module, [folder], text=["red", "the circle", "left"])
    assert [tuple(image.shape) for image in seen] == [(1, 3, SIDE, SIDE)] * 2
    expected = torch.from_numpy(letterbox_image(Image.open("in/a.png"), SIDE)) / 255
    torch.testing.assert_close(seen[0][0], expected, rtol=0, atol=0)


def test_many_sentences_about_a_picture_go_through_in_parts(module, folder, monkeypatch):
    monkeypatch.setattr(own_pictures, "AT_ONCE", 2)
    batches = module.prepare_inputs(["in/a.png"], text=["red", "left", "circle"])
    assert [(batch["first"], batch["sentence"]) for batch in batches] == [(0, ["red", "left"]), (2, ["circle"])]
    assert len(batches) == 2
    assert batches.pictures[0].name == "a"


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1", "I;16"])
def test_pictures_of_every_mode_become_rgb(module, mode, folder):
    source = Image.fromarray(np.arange(48 * 40, dtype=np.uint16).reshape(48, 40)) if mode == "I;16" else None
    (source or Image.open("in/a.png").convert(mode)).save("in/other.tif")
    (result,) = answers(module, ["in/other.tif"], text=["red"])
    assert result["pred_mask"].shape[0] == 48


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 900)])
def test_tiny_and_narrow_pictures_are_answered_and_drawn(module, size, folder):
    picture = np.full((*size, 3), 90, np.uint8)
    (result,) = module.ground(picture, "the red circle")
    assert tuple(result["pred_mask"].shape) == size
    assert torch.isfinite(result["pred_box"]).all()
    assert module.draw(picture, result).dtype == np.uint8


def test_the_command_writes_rows_entries_masks_and_drawings(module, folder, make_trainer, monkeypatch, capsys):
    monkeypatch.setattr(own_pictures, "AT_ONCE", 3)
    trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint("own.ckpt")
    Path("lists").mkdir()
    Path("lists/own.tsv").write_text("../in/b.png\tcircle\nb.png\tred\n../in/b.png\tred\n")
    Image.open("in/a.png").save("lists/b.png")
    Path("in/broken.jpg").write_bytes(b"no picture")
    words = ["--ckpt_path", "own.ckpt", "--input", "in", "lists/own.tsv", "nowhere.png", "--run_dir", "out"]
    texts = ["--text", "The red circle", "--text", "the purple: circle", "--trainer.accelerator", "cpu"]
    with pytest.warns(UserWarning, match=r"outside of the checkpoint's vocabulary.*: purple$"):
        assert main("predict", [*words, *texts]) == 1
    errors = capsys.readouterr().err
    assert "broken.jpg" in errors
    assert "nowhere.png' does not exist" in errors

    rows = read_rows(Path("out/predictions.csv"))
    assert [(row["file"], row["text"]) for row in rows] == [
        (f"in/{name}.png", text)
        for name in "ab"
        for text in ("The red circle", "the purple: circle", *(("circle", "red") if name == "b" else ()))
    ] + [("lists/b.png", "red")]
    assert list(rows[0]) == [
        "file", "text", "x1", "y1", "x2", "y2", "score", "mask_area", "agreement", "mask_file"
    ]  # fmt: skip
    entries = json.loads(Path("out/predictions.json").read_text())
    assert [entry["unknown_words"] for entry in entries] == [[], ["purple"]] * 2 + [[]] * 3
    assert [(entry["width"], entry["height"]) for entry in entries] == [
        *[(80, 48)] * 2, *[(60, 90)] * 4, (80, 48)
    ]  # fmt: skip
    names = {f"{name}.png" for name in ("a_1", "a_2", "b_1", "b_2", "b_3", "b_4", "b-2_1")}
    assert [row["mask_file"] for row in rows[5:]] == ["masks/b_4.png", "masks/b-2_1.png"]
    assert {path.name for path in Path("out/masks").iterdir()} == names
    assert {path.name for path in Path("out/pictures").iterdir()} == names

    for row, entry in zip(rows, entries, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (result,) = module.ground(row["file"], row["text"])
        mask = result["pred_mask"].numpy()
        assert entry["mask"]["size"] == list(mask.shape)
        assert (rle_to_mask(entry["mask"]["counts"], *mask.shape) == mask).mean() > 0.99
        assert (np.asarray(Image.open(Path("out", row["mask_file"]))) == 255 * rle_to_mask(
            entry["mask"]["counts"], *mask.shape
        )).all()  # fmt: skip
        assert entry["box"] == [float(row[name]) for name in ("x1", "y1", "x2", "y2")]
        assert entry["box"] == pytest.approx(result["pred_box"].tolist(), abs=80 / SIDE + 0.01)
        assert int(row["mask_area"]) == entry["mask_area"] == rle_to_mask(entry["mask"]["counts"], *mask.shape).sum()
        assert entry["score"] == pytest.approx(result["score"], abs=1e-3)


def test_lists_bring_their_own_sentences_and_each_picture_comes_once(module, folder):
    Path("own.tsv").write_text("in/a.png\tred\nin/b.png\tthe left circle\nin/a.png\tcircle\n")
    pictures, _ = module.sift_inputs(["own.tsv", "in/b.png"], text=["red", "red"])
    assert [(str(picture.path), [sentence.text for sentence in picture.sentences]) for picture in pictures] == [
        ("in/b.png", ["red", "the left circle"]), ("in/a.png", ["red", "circle"])
    ]  # fmt: skip


def test_files_of_the_same_name_do_not_overwrite_each_other(module, folder):
    Path("more").mkdir()
    Image.open("in/a.png").save("more/A.png")
    pictures, faults = module.sift_inputs(["in/a.png", "more", "in/a.png"], text=["red"])
    assert ([picture.name for picture in pictures], faults) == (["a", "A-2"], {})


@pytest.mark.parametrize("text", ["", "  ", "?!", "- -"])
def test_a_sentence_without_words_is_refused(module, text, folder):
    with pytest.raises(ValueError, match=r"text=.* has no words; say what to look for"):
        module.sift_inputs(["in/a.png"], text=["red", text])
    with pytest.raises(ValueError, match=r"sentences=.* has no words"):
        module.ground("in/a.png", text)
    with pytest.raises(ValueError, match=r"sentences is empty"):
        module.ground("in/a.png", [])


def test_a_sentence_of_unknown_words_alone_is_refused(module, folder):
    with pytest.raises(ValueError, match=r"text='Cirle': the checkpoint knows none .*did you mean 'circle'"):
        module.sift_inputs(["in/a.png"], text=["Cirle"])
    with pytest.raises(ValueError, match=r"knows none of these words"):
        module.ground("in/a.png", "a b c d red")  # the only word that is known is cut off


def test_unknown_words_are_listed_once_and_words_that_are_cut_off_named(module, folder):
    with pytest.warns(UserWarning, match="words") as found:
        results = answers(
            module, ["in/a.png"], text=["purple circle", "mauve red purple", "the red circle left red the"]
        )
    told = [str(warning.message) for warning in found]
    assert len(told) == 2
    assert "only the first 4 words of a sentence count, not red, the" in told[0]
    assert told[1].startswith("text: words outside of the checkpoint's vocabulary")
    assert told[1].endswith("(2): purple, mauve")
    with pytest.warns(UserWarning, match=r"only the first 4 words"):
        (cut,) = module.ground("in/a.png", " ".join(["red"] * 200))
    assert len(results) == 3
    assert cut["text"] == " ".join(["red"] * 200)


def test_pictures_without_sentences_and_sentences_without_pictures_are_refused(module, folder):
    with pytest.raises(ValueError, match=r"text: missing for input='in'; give --text"):
        module.sift_inputs(["in"])
    Path("own.txt").write_text("in/a.png\tred\n")
    with pytest.raises(ValueError, match=r"text='red' has no picture: 'own.txt'"):
        module.sift_inputs(["own.txt"], text=["red"])
    with pytest.raises(ValueError, match=r"there is no sentence: .*ground\(.*--text"):
        Predictor(module)("in/a.png")
    with pytest.raises(FileNotFoundError, match=r"nowhere.png"):
        module.sift_inputs(["nowhere.png"], text=["red"])
    with pytest.raises(ValueError, match=r"nowhere.png' does not exist"):
        module.prepare_inputs(["in", "nowhere.png"], text=["red"])


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("in/a.png the dog", "line 2: expected a picture, a tab, and a sentence"),
        ("\tred", "line 2: expected a picture"),
        ("in/a.png\t?", "line 2: text='.*' has no words"),
        ("in/a.png\tmauve", "line 2: text='mauve': the checkpoint knows none"),
    ],
)
def test_a_bad_line_of_a_list_is_named(module, line, fault, folder):
    Path("own.tsv").write_text(f"in/a.png\tred\n{line}\n")
    with pytest.raises(ValueError, match=f"own.tsv', {fault}"):
        module.sift_inputs(["own.tsv"])
    Path("own.tsv").write_text("\n")
    with pytest.raises(ValueError, match=r"own.tsv' is empty"):
        module.sift_inputs(["own.tsv"])


def test_vectors_of_a_file_make_unknown_words_known(folder):
    module = make(train_words=False)
    numbers = " ".join(["0.5"] * 8)
    Path("glove.txt").write_text(f"mauve {numbers}\nred {numbers}\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (result,) = answers(module, ["in/a.png"], text=["mauve circle"], glove="glove.txt")
    assert module.words.weight[module.ids["mauve"]].tolist() == [0.5] * 8
    assert not (module.words.weight[module.ids["red"]] == 0.5).all()  # the module's own stays
    (again,) = module.ground("in/a.png", "mauve circle")
    same(again, result)
    with pytest.raises(ValueError, match=r"glove: the vectors of this checkpoint were trained"):
        make().sift_inputs(["in/a.png"], text=["mauve circle"], glove="glove.txt")
    Path("short.txt").write_text("teal 1 2 3\n")
    with pytest.raises(ValueError, match=r"glove='short.txt' has vectors of 3 numbers, the checkpoint's have 8"):
        module.sift_inputs(["in/a.png"], text=["teal circle"], glove="short.txt")


def test_draw_shows_pictures_as_they_are_and_letterboxed(module, folder):
    mask = np.zeros((48, 80), bool)
    mask[10:30, 20:60] = True
    result = {"text": "red", "pred_box": torch.tensor([20.0, 10, 60, 30]), "score": 0.5}
    result["pred_mask"] = torch.from_numpy(mask)
    own = module.draw(np.zeros((48, 80, 3), np.uint8), result)
    assert own.shape[:2] == (48 * 4 + 20, 80 * 4)
    square = module.draw(np.zeros((SIDE, SIDE, 3), np.uint8), result | {"box": [5.0, 5, 20, 20], "mask": mask.tolist()})
    shown = square[: SIDE * 3 : 3, : SIDE * 3 : 3]
    assert ((shown != 0).any(2) & (letterbox_mask(mask, SIDE) == 1)).sum() == letterbox_mask(mask, SIDE).sum()
    assert (shown[5, 5:20] == TRUTH).all()
    assert (own == FOUND).all(2).any()
