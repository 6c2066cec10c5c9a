"""FDDB's lists and pictures in the real layout."""

import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image

from datamodules import FDDBDataModule
from datamodules.fddb_files import read_folds

NAMES = ["2002/08/11/big/img_591", "2002/07/19/big/img_18", "2003/01/01/big/img_2"]
LISTS = {
    1: f"{NAMES[0]}\n1\n30.5 20.25 1.25 40.5 50.75  1\n{NAMES[1]}\n2\n12 9 -1.5 20 20  1\n10 8 0 60.125 30  1\n",
    2: f"{NAMES[2]}\n0\n",
}


def write_fddb(root, lists=LISTS, pictures="originalPics"):
    (root / "FDDB-folds").mkdir(parents=True)
    for fold, text in lists.items():
        (root / "FDDB-folds" / f"FDDB-fold-{fold:02d}-ellipseList.txt").write_text(text)
    for i, name in enumerate(NAMES):
        path = root / pictures / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L" if i else "RGB", (90 + i, 80), 100).save(path)
    return root


@pytest.fixture
def root(tmp_path):
    return write_fddb(tmp_path / "fddb")


def data_of(root, **options):
    data = FDDBDataModule(str(root), num_workers=0, **{"folds": [1, 2]} | options)
    data.setup("test")
    return data


@pytest.mark.parametrize("pictures", ["originalPics", "."])
def test_pictures_and_ellipses_come_as_they_are(tmp_path, pictures):
    data = data_of(write_fddb(tmp_path / "fddb", pictures=pictures), eval_batch_size=2)
    first, last = (data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader())
    assert [image.shape for image in first["image"]] == [(3, 80, 90), (3, 80, 91)]
    assert first["image"][1].dtype == torch.float32
    assert first["image"][1].mean().item() == pytest.approx(100 / 255, abs=0.01)
    expected = [[[30.5, 20.25, 1.25, 40.5, 50.75]], [[12, 9, -1.5, 20, 20], [10, 8, 0, 60.125, 30]]]
    assert [each.tolist() for each in first["ellipses"]] == expected
    assert {each.dtype for each in first["ellipses"]} == {torch.float64}
    assert (last["ellipses"][0].shape, last["name"], last["index"].tolist()) == ((0, 5), NAMES[2:], [2])
    assert data.evaluation_names("test") == NAMES
    assert data.summary() == {"data/test_images": 3, "data/test_faces": 3}


def test_detections_of_others_need_no_pictures(root):
    for path in root.rglob("*.jpg"):
        path.unlink()
    data = data_of(root, eval_batch_size=3)
    with pytest.raises(FileNotFoundError, match=r"names 3 pictures, of which 3 are not in .*img_591.jpg"):
        data.test_dataloader()
    data.pictures_needed = False
    (batch,) = data.test_dataloader()
    assert sorted(batch) == ["ellipses", "index", "name"]


def test_an_empty_batch_has_empty_lists(root):
    data = data_of(root)
    batch = data.on_after_batch_transfer(data.test_dataloader().dataset.__getitems__([]), 0)
    assert (batch["image"], batch["ellipses"], batch["name"], len(batch["index"])) == ([], [], [], 0)


def test_folds_are_chosen_and_come_in_the_order_asked_for(root):
    assert data_of(root, folds=[2]).evaluation_names() == NAMES[2:]
    assert data_of(root, folds=[2, 1]).evaluation_names() == [NAMES[2], *NAMES[:2]]


class Watcher(LightningModule):
    seen = None

    def test_step(self, batch, batch_idx):
        self.seen = (self.seen or []) + batch["name"]
        assert batch["image"][0].dtype == torch.float32


def test_a_trainer_tests_on_it_and_nothing_fits_on_it(root, make_trainer):
    data, module = FDDBDataModule(str(root), folds=[1, 2], num_workers=0), Watcher()
    make_trainer().test(module, data, verbose=False)
    assert module.seen == NAMES
    for stage in ("fit", "validate"):
        with pytest.raises(ValueError, match=f"no pictures for the stage '{stage}': FDDB is for testing alone"):
            data.setup(stage)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a/1\n1\n1 2 3 4 5\n", r"FDDB-fold-01-ellipseList.txt', line 3: expected a face, six numbers"),
        ("a/1\n1\n1 2 3 4 x 1\n", "line 3: expected a face, six numbers"),
        ("a/1\n1\n1 2 nan 4 5 1\n", "line 3: expected a face, six numbers"),
        ("a/1\n1\n1 0 3 4 5 1\n", "line 3: an ellipse must have radii above 0"),
        ("a/1\n1\n1 2 3 4 5 1\n9 8 7 6 5 1\n", "line 4: expected the path of a picture here"),
        ("a/1\n2\n1 2 3 4 5 1\n", "line 2: so many faces were to follow, but the list ends after 1"),
        ("a/1\n", "line 1: the list ends before the number of faces"),
        ("a/1\nmany\n", "line 2: the number of faces of 'a/1' must be a whole number from 0 up, got 'many'"),
        ("a/1\n0\na/1\n0\n", r"line 3: the picture was in .*line 1 already"),
        ("/a/1\n0\n", "line 1: expected the path of a picture here"),
        ("../1\n0\n", "line 1: expected the path of a picture here"),
    ],
)
def test_a_line_that_does_not_parse_is_named(tmp_path, text, message):
    (tmp_path / "FDDB-fold-01-ellipseList.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_folds(tmp_path, [1])


def test_what_is_missing_is_named(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks FDDB-folds/FDDB-fold-03-ellipseList.txt and 7 more"):
        FDDBDataModule(str(root)).setup("test")
    with pytest.raises(FileNotFoundError, match=r"does not exist; it should hold FDDB-folds.* Unpack FDDB-folds.tgz"):
        FDDBDataModule(str(tmp_path / "no"), folds=[1]).prepare_data()
    with pytest.raises(RuntimeError, match='call setup\\("test"\\) first'):
        FDDBDataModule(str(root)).test_dataloader()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": []}, "folds must be different numbers from 1 to 10"),
        ({"folds": [1, 1]}, "folds must be different numbers"),
        ({"folds": [0]}, "folds must be different numbers"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be 0"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FDDBDataModule("fddb", **options)
