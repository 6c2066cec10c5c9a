import pickle

import numpy as np
import pytest
import torchvision
from PIL import Image

from datamodules.cifar import CLASS_NAMES
from datamodules.demo import write_cifar, write_imagenet


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_arguments_write_the_same_files(tmp_path):
    write_cifar(tmp_path / "a")
    write_imagenet(tmp_path / "a")
    write_cifar(tmp_path / "b")
    write_imagenet(tmp_path / "b")
    write_cifar(tmp_path / "c", seed=1)
    first, again, other = (content(tmp_path / name) for name in "abc")
    assert first == again
    assert first["cifar-10-batches-py/test_batch"] != other["cifar-10-batches-py/test_batch"]


@pytest.mark.parametrize(
    ("name", "folder", "batches", "keys", "meta"),
    [
        (
            "cifar10",
            "cifar-10-batches-py",
            [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"],
            {"batch_label", "labels", "data", "filenames"},
            ("batches.meta", {"num_cases_per_batch", "label_names", "num_vis"}),
        ),
        (
            "cifar100",
            "cifar-100-python",
            ["train", "test"],
            {"batch_label", "fine_labels", "coarse_labels", "data", "filenames"},
            ("meta", {"fine_label_names", "coarse_label_names"}),
        ),
    ],
)
def test_files_have_the_original_format(tmp_path, name, folder, batches, keys, meta):
    write_cifar(tmp_path, name, train_per_class=5, test_per_class=2)
    assert sorted(path.name for path in (tmp_path / folder).iterdir()) == sorted([*batches, meta[0]])
    for file in batches:
        data = (tmp_path / folder / file).read_bytes()
        assert data[:2] == b"\x80\x02"  # protocol 2
        batch = pickle.loads(data, encoding="latin1")
        assert set(batch) == keys
        labels = batch["labels" if name == "cifar10" else "fine_labels"]
        assert (batch["data"].dtype, batch["data"].shape) == (np.uint8, (len(labels), 3072))
        assert {type(label) for label in labels} == {int}
        assert len(batch["filenames"]) == len(set(batch["filenames"])) == len(labels)
    assert set(pickle.loads((tmp_path / folder / meta[0]).read_bytes(), encoding="latin1")) == meta[1]


def test_torchvision_reads_it_too(tmp_path, monkeypatch):
    theirs = torchvision.datasets.CIFAR10
    monkeypatch.setattr(theirs, "_check_integrity", lambda self: True)  # it knows the official files only
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    test = theirs(str(write_cifar(tmp_path)), train=False)
    assert (test.data.shape, test.classes) == ((50, 32, 32, 3), CLASS_NAMES["cifar10"])


def test_imagenet_names(tmp_path):
    write_imagenet(tmp_path, num_classes=2, train_per_class=1, test_per_class=2, size=40)
    assert sorted(content(tmp_path)) == [
        "classes.tsv",
        "train/n01440764/n01440764_0.JPEG",
        "train/n01443537/n01443537_0.JPEG",
        "val/n01440764/ILSVRC2012_val_00000001.JPEG",
        "val/n01440764/ILSVRC2012_val_00000002.JPEG",
        "val/n01443537/ILSVRC2012_val_00000003.JPEG",
        "val/n01443537/ILSVRC2012_val_00000004.JPEG",
    ]
    image = Image.open(tmp_path / "train/n01440764/n01440764_0.JPEG")
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (50, 40))


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="name must be one of cifar10, cifar100, got 'digits'"):
        write_cifar(tmp_path, "digits")
    with pytest.raises(ValueError, match=r"multiple of 5 .* got 7 and 1"):
        write_cifar(tmp_path, train_per_class=7, test_per_class=1)
    with pytest.raises(ValueError, match="num_classes must be 1 to 10, got 11"):
        write_imagenet(tmp_path, num_classes=11)
