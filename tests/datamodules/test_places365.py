"""Places365 in both of its layouts, and what is said where a piece is missing."""

import re
import shutil

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from datamodules import Places365DataModule
from datamodules.demo import write_places365
from datamodules.places365 import class_folders
from tests.loading import batches, by_index

CLASSES = ["airfield", "airport_terminal", "apartment_building/outdoor", "aquarium"]
NAMES = ["airfield", "airport terminal", "apartment building, outdoor", "aquarium"]


@pytest.fixture(scope="session")
def roots(tmp_path_factory):
    return {
        layout: write_places365(tmp_path_factory.mktemp("places365"), size=40, layout=layout)
        for layout in ("easy", "distributed")
    }


@pytest.fixture
def easy(roots, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(roots["easy"], tmp_path / "easy")


@pytest.fixture
def distributed(roots, tmp_path):
    return shutil.copytree(roots["distributed"], tmp_path / "distributed")


def ready(root, *stages, **options):
    data = Places365DataModule(str(root), **{"batch_size": 8, "num_workers": 0, "image_size": 32} | options)
    for stage in stages or ("fit", "test"):
        data.setup(stage)
    return data


def edit(path, change):
    path.write_text(change(path.read_text()))


class TestLayouts:
    def test_both_give_the_same_batches(self, roots):
        easy, distributed = (ready(roots[layout], val_fraction=0.25) for layout in ("easy", "distributed"))
        assert easy.class_names == distributed.class_names == NAMES
        assert (easy.num_classes, easy.input_size) == (4, [3, 32, 32])
        assert distributed.classes == CLASSES
        for split in ("train", "val"):
            assert_close(*(by_index(batches(getattr(d, f"{split}_dataloader")())) for d in (easy, distributed)))
        one, two = (batches(data.test_dataloader()) for data in (easy, distributed))
        assert_close(one, two)
        assert one["label"].tolist() == sorted([0, 1, 2, 3] * 3)

    def test_all_that_imagenet_can_do(self, roots):
        data = ready(roots["distributed"], class_subset=[2], per_class_batch=4, crop_scale=[0.08, 1.25])
        assert data.class_counts().tolist() == [0, 0, 7, 0]  # of 8, one is held out
        assert [len(batch["label"]) for batch in data.train_dataloader()] == [4, 3]
        assert batches(data.test_dataloader())["label"].tolist() == [2] * 3
        assert data.test_images.picture(0).size == (50, 40)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("data_256", "data_large"),
            ("data_256", "train"),
            ("data_256", "data_256_standard"),
            ("val_256", "val_large"),
            ("val_256", "val"),
        ],
    )
    def test_other_names_of_the_folders(self, distributed, old, new):
        (distributed / old).rename(distributed / new)
        data = ready(distributed)
        assert (len(data._train) + len(data._val), len(data._test)) == (32, 12)

    def test_lists_may_stay_in_their_folder(self, distributed):
        lists = distributed / "filelist_places365-standard"
        lists.mkdir()
        for path in distributed.glob("*.txt"):
            path.rename(lists / path.name)
        assert len(ready(distributed, "test")._test) == 12

    def test_numbers_follow_the_categories(self, distributed):
        for name in ("categories_places365.txt", "places365_val.txt"):
            edit(
                distributed / name, lambda text: re.sub(r"\d$", lambda digit: str(3 - int(digit[0])), text, flags=re.M)
            )
        data = ready(distributed)
        assert data.class_names == NAMES[::-1]
        assert "a/aquarium" in str(data._train.path(0))
        assert data._test.path(0).name == "Places365_val_00000004.jpg"  # the aquarium's first

    @pytest.mark.parametrize("prefix", ["val/", ""])
    def test_a_flat_val_by_a_list_of_paths(self, easy, prefix):
        whole = batches(ready(easy, "test").test_dataloader())
        paths = [path.relative_to(easy / "val") for path in sorted((easy / "val").glob("*/*"))]
        for path in paths:
            (easy / "val" / path).rename(easy / "val" / path.name)
            (easy / "val" / path.parent).rmdir() if not any((easy / "val" / path.parent).iterdir()) else None
        (easy / "val.txt").write_text("".join(f"{prefix}{path}\n" for path in reversed(paths)))
        assert_close(batches(ready(easy, "test").test_dataloader()), whole)
        shutil.rmtree(easy / "train")
        alone = ready(easy, "test")  # classes by their sorted names
        assert alone.class_names == NAMES
        assert_close(batches(alone.test_dataloader()), whole)

    def test_testing_needs_no_training_folder(self, distributed):
        shutil.rmtree(distributed / "data_256")
        data = ready(distributed, "test")
        assert data.class_names == NAMES
        with pytest.raises(FileNotFoundError, match="training and validation needs train or data_256 or data_large"):
            data.setup("fit")

    def test_training_needs_no_lists(self, distributed):
        for path in distributed.glob("*.txt"):
            path.unlink()
        assert ready(distributed, "fit").class_names == NAMES

    def test_names_of_the_label_file(self, easy):
        lines = ["x field for aeroplanes", "x terminal", "x flats", "x fish tank"]
        (easy / "label.txt").write_text("\n".join(lines))
        assert ready(easy, "fit").class_names == [line[2:] for line in lines]
        words = ["aquarium fish", "/a/apartment_building/outdoor flats", "airport_terminal terminal", "airfield field"]
        (easy / "label.txt").write_text("\n".join(words))
        assert ready(easy, "fit").class_names == ["field", "terminal", "flats", "fish"]

    @pytest.mark.parametrize("gap", ["\t", "   ", " \t "])
    def test_any_white_space_ends_the_first_word(self, easy, gap):
        lines = ["aquarium", "apartment_building/outdoor", "airport_terminal", "airfield"]
        (easy / "label.txt").write_text("".join(f"{name}{gap}about {name}\n" for name in lines))
        assert ready(easy, "fit").class_names == [f"about {name}" for name in reversed(lines)]

    def test_folders(self, tmp_path):
        for path in ("x/a", "y/b c/d", "y/b c/e", ".hidden/f", "y/.g"):
            (tmp_path / path).mkdir(parents=True)
        assert class_folders(tmp_path) == {"a": "x/a", "b c/d": "y/b c/d", "b c/e": "y/b c/e"}
        (tmp_path / "y" / "b c" / "picture.JPG").touch()  # a class folder that holds other folders, too
        assert class_folders(tmp_path) == {"a": "x/a", "b c": "y/b c"}
        assert class_folders(tmp_path / "x") == {"a": "a"}  # of one letter, and none inside
        assert class_folders(tmp_path / "x" / "a") == {}


class TestMissingPieces:
    def test_no_root_and_nothing_in_it(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nowhere' does not exist\. Point root at the folder with train/"):
            ready(tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match=r"holds no folder of pictures\. Point root"):
            ready(tmp_path)

    def test_no_list_for_loose_pictures(self, distributed):
        (distributed / "places365_val.txt").unlink()
        with pytest.raises(
            FileNotFoundError,
            match=r"val_256 has no class folders, .* neither places365_val.txt .* nor val.txt in root=.*\.tar there",
        ):
            ready(distributed, "test")
        shutil.rmtree(distributed / "data_256")
        (distributed / "categories_places365.txt").unlink()
        with pytest.raises(FileNotFoundError, match=r"neither places365_val\.txt"):
            Places365DataModule(str(distributed))

    def test_no_categories_for_numbers(self, distributed):
        (distributed / "categories_places365.txt").unlink()
        with pytest.raises(FileNotFoundError, match=r"places365_val.txt gives class numbers, and categories_places365"):
            ready(distributed, "test")

    def test_no_test_folder(self, easy):
        shutil.rmtree(easy / "val")
        with pytest.raises(FileNotFoundError, match="testing and predicting needs val or val_256 or val_large"):
            ready(easy, "test")

    def test_training_pictures_without_folders(self, distributed):
        shutil.rmtree(distributed / "data_256")
        (distributed / "val_256").rename(distributed / "data_256")
        with pytest.raises(FileNotFoundError, match=r"no class folders in .*data_256: training needs data_256/<class>"):
            ready(distributed, "fit")

    def test_a_class_without_a_folder(self, easy, distributed):
        shutil.rmtree(easy / "val" / "aquarium")
        with pytest.raises(
            FileNotFoundError, match=r"val has no folders for these classes of .*train: aquarium\. Unpack"
        ):
            Places365DataModule(str(easy))
        shutil.rmtree(distributed / "data_256" / "a" / "apartment_building")
        with pytest.raises(FileNotFoundError, match=r"data_256 has no .* of .*categories_places365.txt: apartment"):
            Places365DataModule(str(distributed))

    def test_an_empty_class_folder(self, distributed):
        for path in (distributed / "data_256" / "a" / "airfield").iterdir():
            path.unlink()
        with pytest.raises(ValueError, match=r"no pictures in these class folders of .*data_256: a/airfield"):
            ready(distributed, "fit")
        assert ready(distributed, "fit", class_subset=[1]).class_counts().tolist() == [0, 7, 0, 0]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("places365_val.txt", lambda text: "\n" + text + "x.jpg\n", "line 14: expected a file and a class number, got"),
        ("places365_val.txt", lambda text: text + "x.jpg 1\n", "line 13: no file x.jpg in .*val_256; unpack it again"),
        ("places365_val.txt", lambda text: text.replace(".jpg 3", ".jpg 4", 1), "line 4: unknown class 4; there are 4"),
        ("places365_val.txt", lambda text: text + text, "line 13: Places365_val_00000001.jpg was named in line 1"),
        ("categories_places365.txt", lambda text: text + "airfield 4\n", "line 5: expected /<letter>/<class> and a"),
        ("categories_places365.txt", lambda text: text + "/b/beach four\n", "line 5: expected /<letter>/<class> and a"),
        ("categories_places365.txt", lambda text: text.replace(" 3", " 4"), "line 4: classes must be numbered 0 to 3"),
        ("categories_places365.txt", lambda text: text.replace(" 3", " 2"), "line 4: classes must be numbered 0 to 3"),
        ("categories_places365.txt", lambda text: text + "/a/airport-terminal 4", "line 5: airport-terminal was named"),
        ("categories_places365.txt", lambda text: "", "categories_places365.txt is empty; take it from"),
        ("categories_places365.txt", lambda text: text[: text.index("/a/aquarium")], "folders that .* not name.*a/aq"),
        ("label.txt", lambda text: "x a\nx\n", "line 2: expected one word and then the name of a class, got 'x'"),
        ("label.txt", lambda text: "x a\nx b\n", "label.txt has 2 names, and there are 4 classes"),
    ],
)  # fmt: skip
def test_bad_lines_are_named(distributed, file, change, message):
    (distributed / "label.txt").write_text("")
    if file != "label.txt":
        (distributed / "label.txt").unlink()
    edit(distributed / file, change)
    with pytest.raises(ValueError, match=rf"{message}"):
        ready(distributed, "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x.jpg\n", r"val.txt, line 1: expected val/<class>/<file>, got 'x.jpg'"),
        ("\nval/moon/x.jpg\n", r"val.txt, line 2: unknown class moon; there are 4"),
        ("val/aquarium/x.jpg\n", r"val.txt, line 1: no file x.jpg in"),
    ],
)
def test_bad_lines_of_paths_are_named(distributed, text, message):
    (distributed / "places365_val.txt").rename(distributed / "val.txt")
    (distributed / "val.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        ready(distributed, "test")


def test_two_folders_for_one_class_are_named(easy):
    shutil.copytree(easy / "train" / "airport_terminal", easy / "train" / "airport-terminal")
    with pytest.raises(ValueError, match="two for one class: airport-terminal, airport_terminal"):
        Places365DataModule(str(easy))


def test_pictures_that_no_list_names_are_left_out_aloud(distributed):
    Image.new("RGB", (9, 9)).save(distributed / "val_256" / "extra.jpg")
    with pytest.warns(UserWarning, match=r"1 pictures of .*val_256 are not in .*places365_val.txt and left out: extra"):
        assert len(ready(distributed, "test")._test) == 12


class TestDemo:
    def test_the_same_arguments_write_the_same_files(self, roots, tmp_path):
        again = write_places365(tmp_path / "again", size=40)
        for path in sorted(roots["easy"].rglob("*.*")):
            assert (again / path.relative_to(roots["easy"])).read_bytes() == path.read_bytes()

    def test_names(self, tmp_path):
        root = write_places365(tmp_path, 3, train_per_class=1, test_per_class=1, size=16)
        assert sorted(str(path.relative_to(root)) for path in root.rglob("*.*")) == [
            "label.txt",
            "train/airfield/00000001.jpg",
            "train/airport_terminal/00000001.jpg",
            "train/apartment_building-outdoor/00000001.jpg",
            "val/airfield/Places365_val_00000001.jpg",
            "val/airport_terminal/Places365_val_00000002.jpg",
            "val/apartment_building-outdoor/Places365_val_00000003.jpg",
        ]
        assert (root / "label.txt").read_text().splitlines()[2] == (
            "apartment_building-outdoor apartment building, outdoor"
        )

    def test_torchvision_reads_it_too(self, roots, monkeypatch):
        from torchvision.datasets import Places365

        monkeypatch.setattr(Places365, "_check_integrity", lambda *args: True)  # it knows the official files only
        theirs = Places365(str(roots["distributed"]), split="val", small=True)
        assert [target for _, target in theirs] == [0, 1, 2, 3] * 3
        ours = ready(roots["distributed"], "test")._test
        assert {ours.path(row).name: int(ours.labels[row]) for row in ours.rows} == {
            file.rsplit("/", 1)[1]: target for file, target in theirs.imgs
        }

    def test_bad_arguments(self, tmp_path):
        with pytest.raises(ValueError, match="num_classes must be 1 to 8, got 9"):
            write_places365(tmp_path, 9)
        with pytest.raises(ValueError, match='layout must be "easy" or "distributed", got \'flat\''):
            write_places365(tmp_path, layout="flat")


def test_the_classes_can_be_told_apart(roots):
    data = ready(roots["easy"], "fit", val_fraction=0)
    batch = by_index(batches(data.train_dataloader()))
    means = torch.stack([batch["image"][batch["label"] == label].float().mean((0, 2, 3)) for label in range(4)])
    assert torch.pdist(means).min() > 5
