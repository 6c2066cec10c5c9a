import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch import nn
from torch.testing import assert_close

from datamodules import ImageNetDataModule
from lit_methods import PPBA, ImageClassifier, Predictor
from lit_methods.checkpoint_io import read_checkpoint
from lit_methods.inference import as_image, find_pictures, fit_size, prepare_inputs


def test_every_kind_of_picture_gives_the_same_answer(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    predictor = Predictor(ImageClassifier("tiny", num_classes=4))
    results = predictor([tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels), pixels, tensor])
    assert all(result == results[0] for result in results)
    assert predictor(pixels) == results[:1]


def test_a_folder_stands_for_the_pictures_in_it(tmp_path):
    files = [tmp_path / name for name in ("a.png", "b/c.png")]
    (tmp_path / "b").mkdir()
    for shade, file in zip((30, 200), files, strict=True):
        Image.fromarray(np.full((32, 32, 3), shade, np.uint8)).save(file)
    predictor = Predictor(ImageClassifier("tiny", num_classes=4))
    answers = predictor(files)
    assert answers[0] != answers[1]
    assert predictor(tmp_path) == predictor(str(tmp_path)) == answers
    assert predictor([files[1], tmp_path]) == [answers[1], *answers]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no pictures there"):
        predictor(tmp_path / "empty")


@pytest.mark.parametrize(
    ("module", "shown"),
    [
        (lambda: PPBA("tiny", num_classes=4), "PPBA, backbone='tiny', num_classes=4"),
        (lambda: ImageClassifier(nn.Flatten(), num_classes=4), "ImageClassifier, num_classes=4"),
        (LightningModule, "LightningModule"),
    ],
)
def test_what_a_predictor_says_of_itself(module, shown):
    assert repr(Predictor(module())) == f"Predictor({shown})"


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((8, 8), np.uint8), r"must be RGB \(H, W, 3\) uint8"),
        (np.zeros((8, 8, 3), np.float32), "float32"),
        (torch.zeros(1, 8, 8), r"must be float \(3, H, W\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "uint8"),
        (torch.full((3, 8, 8), 2.0), "do not normalise it"),
        (torch.full((3, 8, 8), torch.nan), "nan"),
        (torch.zeros(3, 0, 8), "must be float"),
        (torch.zeros(2, 3, 8, 8), "several go into a list"),
        (None, "not NoneType"),
        ("no such file.png", "no such file.png"),
    ],
)
def test_bad_pictures_are_named(picture, message):
    with pytest.raises(ValueError, match=message):
        as_image(picture)


@pytest.mark.parametrize("size", [32, 96])
def test_predict_sees_what_test_sees(imagenet_root, size):
    """A picture of the test split and the same file given to predict: the same view, whatever the network's size."""
    data = ImageNetDataModule(str(imagenet_root), num_workers=0, image_size=size)
    data.setup("test")
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    files = find_pictures([imagenet_root / "val"])
    (mine,) = prepare_inputs(files, input_size=data.input_size, batch_size=len(files))
    assert_close(mine["image"], batch["image"], rtol=0, atol=0.02)  # resized as float here, as uint8 there


def test_size_is_left_alone_where_none_is_asked_for():
    image = torch.rand(3, 20, 30)
    assert fit_size(image, None) is image
    assert fit_size(image, (3, 20, 30)) is image


def test_folders_are_walked_in_order_and_hidden_files_left_out(tmp_path):
    for name in ("b/2.JPG", "a.png", "b/._2.jpg", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.name for p in find_pictures([tmp_path])] == ["a.png", "2.JPG"]
    assert [p.name for p in find_pictures([tmp_path / "b" / "notes.txt"])] == ["notes.txt"]  # named outright
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_pictures([tmp_path / "c"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no pictures there"):
        find_pictures([tmp_path / "empty"])


def test_checkpoints_of_other_packages_need_their_class(make_trainer, tmp_path):
    class Own(ImageClassifier):
        pass

    trainer = make_trainer()
    trainer.strategy.connect(Own("tiny", num_classes=4))
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(ValueError, match=r"written by tests\..*Own.*module_class"):
        Predictor.from_checkpoint(tmp_path / "own.ckpt")
    assert type(Predictor.from_checkpoint(tmp_path / "own.ckpt", module_class=Own).module) is Own


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(ValueError, match="is not a checkpoint of a run"):
        read_checkpoint(tmp_path / "text.ckpt")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match=r"plain weights go to model\.base_checkpoint"):
        read_checkpoint(tmp_path / "plain.ckpt")
