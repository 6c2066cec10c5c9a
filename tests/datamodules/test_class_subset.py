"""Some classes of a data set: the same images, splits and numbers as in the whole set, and what is known about them."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from datamodules import CIFARDataModule, ImageNetDataModule, image_files
from datamodules.transforms import CROP_DRAWS, random_resized_crop_box
from lit_methods.functional.pictures import BadImageError, list_images, read_rgb
from tests.loading import batches, by_index

pytestmark = pytest.mark.filterwarnings("ignore:Not the official")
SUBSET = [3, 1]


@pytest.fixture(params=["cifar10", "imagenet"])
def make(request, cifar10_root, imagenet_root):
    def build(*stages, **options):
        if request.param == "cifar10":
            data = CIFARDataModule("cifar10", str(cifar10_root), batch_size=4, **options)
        else:
            data = ImageNetDataModule(str(imagenet_root), 4, 0, 0.25, image_size=32, **options)
        for stage in stages:
            data.setup(stage)
        return data

    return build


@pytest.mark.parametrize("split", ["train", "val", "test", "predict"])
def test_each_split_is_that_part_of_the_whole_one(make, split):
    whole, part = make("fit", "test", "predict"), make("fit", "test", "predict", class_subset=SUBSET)
    both = [by_index(batches(getattr(data, f"{split}_dataloader")(), epoch=2)) for data in (whole, part)]
    mine = torch.isin(both[0]["label"], torch.tensor(SUBSET))
    assert 0 < mine.sum() < len(mine)
    assert_close(both[1], {key: value[mine] for key, value in both[0].items()})
    assert (part.num_classes, part.class_names) == (whole.num_classes, whole.class_names)


def test_samples_are_of_these_classes(make):
    data = make("fit", "test", class_subset=SUBSET, num_test_images=5)
    test, calibration = batches(data.test_dataloader()), batches(data.calibration_dataloader(10))
    assert (len(test["index"]), len(calibration["index"].unique())) == (5, 10)
    assert {*test["label"].tolist(), *calibration["label"].tolist()} == {1, 3}
    with pytest.raises(ValueError, match=r"num_test_images=11, but the test set has (10|6) images"):
        make("test", class_subset=SUBSET, num_test_images=11)


def test_class_counts(make):
    data = make()
    with pytest.raises(RuntimeError, match=r'has not read these images yet: call setup\("fit"\) first'):
        data.class_counts()
    data.setup("fit")
    counts = data.class_counts()
    assert (counts.dtype, tuple(counts.shape)) == (torch.int64, (data.num_classes,))
    assert_close(counts, batches(data.train_dataloader())["label"].bincount(minlength=data.num_classes))
    part = make("fit", class_subset=SUBSET).class_counts()
    expected = torch.zeros_like(counts)
    expected[SUBSET] = counts[SUBSET]
    assert_close(part, expected)


def test_whole_pictures_of_the_test_set(make):
    data = make()
    with pytest.raises(RuntimeError, match=r'call setup\("test"\) first'):
        data.test_images  # noqa: B018
    for options in ({}, {"class_subset": SUBSET}, {"num_test_images": 4}):
        data = make("test", **options)
        images = data.test_images
        assert images.targets.tolist() == batches(data.test_dataloader())["label"].tolist()
        for position in (0, len(images) - 1):
            picture = images.picture(position)
            assert (picture.mode, isinstance(picture, Image.Image)) == ("RGB", True)
            if isinstance(data, CIFARDataModule):
                assert_close(np.array(picture), images[position]["image"].permute(1, 2, 0).numpy())
            else:
                assert picture.size == (80, 64)  # not cropped
                assert_close(np.array(picture), np.array(read_rgb(images.path(images.rows[position]))))


@pytest.mark.parametrize(
    "subset",
    [[np.int64(3), np.uint8(1)], np.array([3, 1]), torch.tensor([3, 1]), (3, 1)],
    ids=lambda subset: str(type(subset)),
)
def test_any_integers_choose_classes(make, subset):
    data = make("fit", class_subset=subset)
    assert (data.class_subset, {*map(type, data.class_subset)}) == ([3, 1], {int})
    assert data.class_counts().nonzero().flatten().tolist() == [1, 3]


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        ([], r"class_subset=\[\] leaves nothing; give class numbers, or null"),
        ([0, -1], r"class_subset must hold class numbers from 0 to \d+, got -1"),
        ([0, 10], r"class_subset must hold class numbers from 0 to \d+, got 10"),
        ([0, 1.0], r"class_subset must hold class numbers .* got 1.0"),
        ([True], r"class_subset must hold class numbers .* got True"),
        (["1"], r"class_subset must hold class numbers .* got '1'"),
        (np.array([1.0]), r"class_subset must hold class numbers .* got .*1.0"),
        (np.array([True]), r"class_subset must hold class numbers .* got .*True"),
        (torch.tensor([True]), r"class_subset must hold class numbers .* got .*True"),
        (np.array([0, 10]), r"class_subset must hold class numbers from 0 to \d+, got 10"),
        (np.array([], np.int64), r"class_subset=\[\] leaves nothing; give class numbers, or null"),
        ([1, 2, np.int64(1)], "class_subset names some classes more than once: 1. Name each once"),
        ([1, 2, 1], "class_subset names some classes more than once: 1. Name each once"),
    ],
)
def test_bad_subsets_are_refused_at_once(make, subset, message):
    with pytest.raises(ValueError, match=message):
        make(class_subset=subset)


class TestFolders:
    @pytest.fixture
    def own_root(self, imagenet_root, tmp_path):
        return shutil.copytree(imagenet_root, tmp_path / "own")

    def data(self, root, *stages, **options):
        data = ImageNetDataModule(str(root), 4, 0, 0.25, image_size=32, **options)
        for stage in stages:
            data.setup(stage)
        return data

    def test_only_chosen_folders_need_pictures(self, own_root):
        for name in ("n01440764", "n01491361"):  # the first and the last
            for path in own_root.glob(f"*/{name}/*"):
                path.unlink()
        data = self.data(own_root, "fit", "test", class_subset=[1, 2])
        assert data.class_counts().tolist() == [0, 6, 6, 0]
        assert batches(data.test_dataloader())["label"].tolist() == [1, 1, 1, 2, 2, 2]
        with pytest.raises(ValueError, match=r"no pictures in these class folders of .*train: n01491361\. Remove"):
            self.data(own_root, "fit", class_subset=[1, 3])

    def test_folders_after_the_last_chosen_one_are_not_listed(self, own_root, monkeypatch):
        listed = []
        monkeypatch.setattr(
            image_files, "list_images", lambda folder: listed.append(folder.name) or list_images(folder)
        )
        self.data(own_root, "test", class_subset=[1])
        assert listed == ["n01440764", "n01443537"]  # the first is counted, for the rows of the second

    def test_the_first_chosen_picture_is_the_one_that_is_checked(self, own_root):
        for path in (own_root / "val" / "n01440764").iterdir():
            path.write_bytes(b"broken")
        self.data(own_root, "test", class_subset=[1])
        with pytest.raises(ValueError, match=r"ILSVRC2012_val_00000001.JPEG"):
            self.data(own_root, "test", class_subset=[1, 0])

    def test_a_broken_picture_is_named(self, own_root):
        data = self.data(own_root, "test", on_bad_image="skip")
        data.test_images.path(4).write_bytes(b"broken")
        with pytest.raises(BadImageError, match=r"cannot read the image .*ILSVRC2012_val_00000005.JPEG"):
            data.test_images.picture(4)


def test_classes_without_images_are_refused(cifar10_root, monkeypatch):
    data = [CIFARDataModule("cifar10", str(cifar10_root), class_subset=[2, 3]) for _ in range(2)]
    plain = CIFARDataModule.read_split

    def without(self, train):
        images = plain(self, train)
        return images.view(images.rows[images.labels > 3]) if not train else type(images)(
            images.images[images.labels > 3], images.labels[images.labels > 3]
        )  # fmt: skip

    monkeypatch.setattr(CIFARDataModule, "read_split", without)
    for module, stage, split in zip(data, ("fit", "test"), ("training", "test"), strict=True):
        with pytest.raises(ValueError, match=rf"no {split} images of the classes class_subset=\[2, 3\]; choose other"):
            module.setup(stage)


class TestCropScale:
    def view(self, root, *scale):
        data = ImageNetDataModule(str(root), 8, 0, 0, image_size=32, **({"crop_scale": scale[0]} if scale else {}))
        data.setup("fit")
        return by_index(batches(data.train_dataloader()))["image"]

    def test_it_decides_the_crop(self, imagenet_root):
        plain = self.view(imagenet_root)
        assert_close(self.view(imagenet_root, [0.08, 1.0]), plain)
        assert not torch.equal(self.view(imagenet_root, (0.08, 1.25)), plain)

    def test_above_one_takes_the_middle(self, imagenet_root):
        """No window of more than the whole area fits: the centre, and only the mirror is drawn."""
        assert random_resized_crop_box(80, 64, np.full(CROP_DRAWS, 0.5), (1.1, 1.25)) == (0, 0, 80, 64)
        whole = Image.open(sorted((imagenet_root / "train" / "n01440764").iterdir())[0])
        whole = np.array(whole.resize((32, 32), Image.Resampling.BILINEAR))
        (first, *_) = self.view(imagenet_root, [1.1, 1.25])
        assert any(np.array_equal(first.permute(1, 2, 0).numpy(), way) for way in (whole, whole[:, ::-1]))

    @pytest.mark.parametrize(
        "scale", [(0, 1), (0.5, 0.4), (-1, 1), (0.1,), (0.1, 0.2, 0.3), (0.1, float("nan")), (0.1, float("inf")), 0.5]
    )
    def test_bad_scales(self, imagenet_root, scale):
        with pytest.raises(ValueError, match="crop_scale must be two numbers with 0 < low <= high, got"):
            self.view(imagenet_root, scale)
