import pickle
import shutil

import numpy as np
import pytest
import torch
import torchvision
from torch.testing import assert_close

from datamodules import CIFARDataModule
from datamodules.cifar import CLASS_NAMES, LAYOUTS, read_cifar, read_digits
from datamodules.classification import stratified_split
from datamodules.demo import write_cifar
from tests.loading import batches, by_index

pytestmark = pytest.mark.filterwarnings("ignore:Not the official")


@pytest.fixture
def own_root(cifar10_root, tmp_path):
    """A copy of the demo data that a test may change."""
    return shutil.copytree(cifar10_root, tmp_path / "own")


class TestWithoutFiles:
    @pytest.mark.parametrize("name", ["cifar10", "cifar100", "digits"])
    def test_what_the_module_needs_is_known_at_once(self, name):
        data = CIFARDataModule(name)
        assert data.num_classes == len(data.class_names) == len(set(data.class_names))
        assert data.num_classes == (100 if name == "cifar100" else 10)
        assert data.input_size == [3, 32, 32]
        assert [type(value) for value in [*data.mean, *data.std]] == [float] * 6
        assert all(type(text) is str for text in data.class_names)
        assert data.class_names == sorted(data.class_names)  # true of all three data sets

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"name": "cifar11"}, "name must be one of cifar10, cifar100, digits, got 'cifar11'"),
            ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
            ({"num_workers": -1}, "num_workers must be 0 .* got -1"),
            ({"val_fraction": 1.0}, r"val_fraction must be in \[0, 1\), got 1.0"),
            ({"val_fraction": -0.1}, r"val_fraction must be in \[0, 1\), got -0.1"),
        ],
    )
    def test_bad_arguments(self, wrong, message):
        with pytest.raises(ValueError, match=message):
            CIFARDataModule(**wrong)

    def test_a_missing_folder_is_named_with_the_cure(self, tmp_path):
        with pytest.raises(
            FileNotFoundError, match=r"cifar10 is missing in root=.*data_batch_1.*cifar-10-python.tar.gz"
        ):
            CIFARDataModule("cifar10", str(tmp_path)).prepare_data()
        with pytest.raises(FileNotFoundError, match=r"cifar100 is missing .* no train, test, meta in .*download=True"):
            CIFARDataModule("cifar100", str(tmp_path)).prepare_data()

    def test_download_is_torchvisions(self, tmp_path, monkeypatch):
        calls = []

        def fake(root, download):
            calls.append((root, download))
            write_cifar(root)

        monkeypatch.setattr(torchvision.datasets, "CIFAR10", fake)
        for _ in range(2):  # the second time the files are there
            CIFARDataModule("cifar10", str(tmp_path), download=True).prepare_data()
        assert calls == [(str(tmp_path), True)]

    def test_loaders_before_setup(self):
        with pytest.raises(RuntimeError, match=r'call setup\("fit"\) first'):
            CIFARDataModule().train_dataloader()
        with pytest.raises(RuntimeError, match=r'call setup\("test"\) first'):
            CIFARDataModule().test_dataloader()


class TestDigits:
    def test_pixels_are_those_of_scikit_learn(self):
        from sklearn.datasets import load_digits

        train, labels = read_digits(train=True)
        test, test_labels = read_digits(train=False)
        assert (train.dtype, tuple(train.shape), tuple(test.shape)) == (
            torch.uint8,
            (1438, 3, 32, 32),
            (359, 3, 32, 32),
        )
        ours = torch.cat([train, test])[:, :, ::4, ::4].float() * 16 / 255
        assert_close(ours[:, 0], ours[:, 2])
        original = {
            image.astype(int).tobytes(): label for image, label in zip(*load_digits(return_X_y=True), strict=True)
        }
        found = [original[image.numpy().astype(int).tobytes()] for image in ours[:, 0].round()]
        assert found == [*labels, *test_labels]
        assert_close(train[:, :, 3::4, 3::4], train[:, :, ::4, ::4])

    def test_statistics_are_measured(self):
        pixels = read_digits(train=True)[0].double() / 255
        data = CIFARDataModule()
        assert_close(pixels.mean((0, 2, 3)).tolist(), data.mean, atol=5e-5, rtol=0)
        assert_close(pixels.std((0, 2, 3), correction=0).tolist(), data.std, atol=5e-5, rtol=0)

    def test_digits_are_moved_but_never_mirrored(self):
        data = CIFARDataModule(seed=3)
        data.setup("fit")
        train = by_index(batches(data.train_dataloader()))
        plain = data._train.images[train["index"]].float()
        middle, mirrored = train["image"].float()[..., 8:24, 8:24], plain.flip(-1)
        windows = [
            (plain[..., 8 + dy : 24 + dy, 8 + dx : 24 + dx], mirrored[..., 8 + dy : 24 + dy, 8 + dx : 24 + dx])
            for dy in range(-4, 5)
            for dx in range(-4, 5)
        ]
        assert all(torch.stack([(middle == straight).flatten(1).all(1) for straight, _ in windows]).any(0))
        assert not all(torch.stack([(middle == turned).flatten(1).all(1) for _, turned in windows]).any(0))

    def test_the_seed_moves_validation_but_not_the_test(self):
        one, two = CIFARDataModule(seed=0), CIFARDataModule(seed=1)
        for data in (one, two):
            data.setup("fit")
            data.setup("test")
        assert_close(batches(one.test_dataloader()), batches(two.test_dataloader()))
        assert batches(one.val_dataloader())["index"].tolist() != batches(two.val_dataloader())["index"].tolist()

    def test_the_seed_decides_order_and_calibration_images(self):
        def drawn(seed):
            data = CIFARDataModule(val_fraction=0, seed=seed)  # the split is the same: all
            data.setup("fit")
            order = [position for _, position in data.train_dataloader().sampler]
            return order, batches(data.calibration_dataloader(20))["index"].tolist()

        first, again, other = drawn(0), drawn(0), drawn(1)
        assert first == again
        assert sorted(first[0]) == sorted(other[0])
        assert first[0] != other[0]
        assert set(first[1]) != set(other[1])


class TestCIFAR10:
    @pytest.fixture
    def data(self, cifar10_root):
        data = CIFARDataModule("cifar10", str(cifar10_root), batch_size=32)
        data.prepare_data()
        data.setup("fit")
        data.setup("test")
        return data

    def test_batches(self, data):
        batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
        assert {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()} == {
            "image": (torch.float32, (32, 3, 32, 32)),
            "label": (torch.int64, (32,)),
            "index": (torch.int64, (32,)),
        }
        assert batch["image"].min() >= 0
        assert 0.5 < batch["image"].max() <= 1
        again = data.on_after_batch_transfer(batch, 0)  # an image in [0, 1] stays as it is
        assert_close(again["image"], batch["image"])

    def test_images_of_another_channel_count(self, data):
        with pytest.raises(ValueError, match=r"image must be \(B, 3, H, W\) RGB, got shape \(2, 1, 32, 32\)"):
            data.on_after_batch_transfer({"image": torch.zeros(2, 1, 32, 32)}, 0)

    def test_splits_are_disjoint_complete_and_stratified(self, data):
        train, val = batches(data.train_dataloader()), batches(data.val_dataloader())
        assert sorted(train["index"].tolist() + val["index"].tolist()) == list(range(200))
        assert val["label"].bincount().tolist() == [2] * 10
        assert train["label"].bincount().tolist() == [18] * 10
        images, labels = read_cifar("cifar10", data.root, train=True)
        assert_close(val["image"], images[val["index"]])  # not augmented, not moved
        assert_close(train["label"], torch.from_numpy(labels)[train["index"]])

    def test_test_images_come_in_their_own_order(self, data):
        images, labels = read_cifar("cifar10", data.root, train=False)
        for loader in (data.test_dataloader(), data.predict_dataloader()):
            test = batches(loader)
            assert_close(test["image"], images)
            assert_close(test["label"], torch.from_numpy(labels))
            assert test["index"].tolist() == list(range(50))

    def test_augmentation_depends_on_seed_epoch_and_image_alone(self, cifar10_root):
        def train(epoch=0, **options):
            data = CIFARDataModule("cifar10", str(cifar10_root), **{"batch_size": 32} | options)
            data.setup("fit")
            loader = data.train_dataloader()
            batches(loader, epoch)  # persistent workers have seen another epoch before
            return by_index(batches(loader, epoch))

        first = train()
        assert_close(train(num_workers=2), first)
        assert_close(train(batch_size=7), first)
        assert not torch.equal(train(epoch=1)["image"], first["image"])
        other = train(seed=1)
        common = np.intersect1d(first["index"], other["index"])
        assert not torch.equal(first["image"][:50], other["image"][:50])
        assert len(common) < 180  # another validation split too
        fraction = train(val_fraction=0)
        assert_close(fraction["image"][first["index"]], first["image"])  # the split has no say

    def test_no_validation(self, cifar10_root, make_trainer):
        data = CIFARDataModule("cifar10", str(cifar10_root), val_fraction=0)
        data.setup("fit")
        assert data.val_dataloader() == []
        assert len(batches(data.train_dataloader())["index"]) == 200

    def test_calibration_images(self, data):
        state = torch.get_rng_state()
        calibration = batches(data.calibration_dataloader(50))
        assert torch.equal(torch.get_rng_state(), state)
        train = set(batches(data.train_dataloader())["index"].tolist())
        assert len(set(calibration["index"].tolist()) & train) == 50
        assert calibration["label"].unique().numel() > 5  # not the first classes of a sorted list
        images, _ = read_cifar("cifar10", data.root, train=True)
        assert_close(calibration["image"], images[calibration["index"]])
        assert_close(batches(data.calibration_dataloader(20))["index"], calibration["index"][:20])
        augmented = batches(data.calibration_dataloader(50, augmented=True))
        assert_close(augmented["index"], calibration["index"])
        assert not torch.equal(augmented["image"], calibration["image"])
        epoch0 = by_index(batches(data.train_dataloader()))
        rows = torch.searchsorted(epoch0["index"], augmented["index"])
        assert_close(augmented["image"], epoch0["image"][rows])

    @pytest.mark.parametrize("count", [0, 181])
    def test_too_many_calibration_images(self, data, count):
        with pytest.raises(ValueError, match=f"between 1 and the 180 training images .* got {count}"):
            data.calibration_dataloader(count)

    def test_ranks_share_evaluation_and_calibration(self, data, monkeypatch):
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: 3)
        seen = {"test": [], "val": [], "calibration": []}
        for rank in range(3):
            monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
            seen["test"] += batches(data.test_dataloader())["index"].tolist()
            seen["val"] += batches(data.val_dataloader())["index"].tolist()
            seen["calibration"] += batches(data.calibration_dataloader(50))["index"].tolist()
        assert [len(rows) for rows in seen.values()] == [50, 20, 50]
        assert [len(set(rows)) for rows in seen.values()] == [50, 20, 50]

    def test_a_process_without_a_sample_gets_one_empty_batch(self, data, monkeypatch):
        """Not for calibration, which takes no common step."""
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: 60)  # of 50 and 20 images
        monkeypatch.setattr("torch.distributed.get_rank", lambda: 55)
        for loader in (data.test_dataloader(), data.val_dataloader()):
            (batch,) = [data.on_after_batch_transfer(batch, 0) for batch in loader]
            assert {key: tuple(value.shape) for key, value in batch.items()} == {
                "image": (0, 3, 32, 32), "label": (0,), "index": (0,),
            }  # fmt: skip
            assert len(loader) == 1
        assert list(data.calibration_dataloader(50)) == []
        monkeypatch.setattr("torch.distributed.get_rank", lambda: 3)
        assert [len(batch["index"]) for batch in data.test_dataloader()] == [1]

    def test_each_stage_reads_only_its_own_files(self, own_root):
        folder = own_root / "cifar-10-batches-py"
        (folder / "test_batch").write_bytes(b"broken")
        data = CIFARDataModule("cifar10", str(own_root))
        data.prepare_data()
        data.setup("fit")
        data.setup("validate")
        with pytest.raises(ValueError, match=r"cannot read the pickle .*test_batch"):
            data.setup("test")
        shutil.copy(folder / "data_batch_1", folder / "test_batch")
        (folder / "data_batch_1").write_bytes(b"broken")
        data = CIFARDataModule("cifar10", str(own_root))
        data.setup("predict")
        with pytest.raises(ValueError, match=r"cannot read the pickle .*data_batch_1"):
            data.setup("validate")

    @pytest.mark.parametrize("file", LAYOUTS["cifar10"].files)
    def test_each_missing_file_is_named(self, own_root, file):
        (own_root / "cifar-10-batches-py" / file).unlink()
        for root in (own_root, own_root / "cifar-10-batches-py"):
            with pytest.raises(FileNotFoundError, match=f"cifar10 is incomplete .* no {file} in"):
                CIFARDataModule("cifar10", str(root)).prepare_data()

    def test_root_may_be_the_folder_itself(self, cifar10_root):
        inside = read_cifar("cifar10", cifar10_root / "cifar-10-batches-py", train=False)
        assert_close(inside[0], read_cifar("cifar10", cifar10_root, train=False)[0])

    def test_other_files_are_named_once(self, cifar10_root):
        with pytest.warns(
            UserWarning, match="Not the official cifar10 files .*: batches.meta, test_batch in"
        ) as caught:
            read_cifar("cifar10", cifar10_root, train=False)
        assert len(caught) == 1

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"data": np.zeros((2, 1024), np.uint8)}, r"uint8 \(N, 3072\), that is 32 x 32 RGB, got uint8 \(2, 1024\)"),
            ({"data": np.zeros((2, 3072), np.float32)}, r"got float32 \(2, 3072\)"),
            ({"data": [1, 2]}, "got list"),
            ({"labels": [1, 2]}, "'labels' must be 50 whole numbers"),
            ({"labels": [10] * 50}, "'labels' must be 0 to 9, got 10 to 10"),
            ({"labels": [0.5] * 50}, "'labels' must be 50 whole numbers"),
            ({"labels": None}, "'labels' must be 50 whole numbers"),
        ],
    )
    def test_other_content_is_refused(self, own_root, change, message):
        path = own_root / "cifar-10-batches-py" / "test_batch"
        path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()) | change, protocol=2))
        with pytest.raises(ValueError, match=f"test_batch: .*{message}"):
            read_cifar("cifar10", own_root, train=False)

    def test_other_data_sets_are_refused(self, own_root):
        folder = own_root / "cifar-10-batches-py"
        (folder / "test_batch").write_bytes(pickle.dumps([1, 2]))
        with pytest.raises(ValueError, match="test_batch is not a batch of cifar10"):
            read_cifar("cifar10", own_root, train=False)
        (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["one", "two"]}))
        with pytest.raises(ValueError, match=r"batches.meta: 'label_names' must list the 10 class names of cifar10"):
            read_cifar("cifar10", own_root, train=False)


def test_cifar100_has_fine_labels(tmp_path):
    root = write_cifar(tmp_path, "cifar100", train_per_class=3, test_per_class=1)
    data = CIFARDataModule("cifar100", str(root))
    data.prepare_data()
    for stage in ("fit", "test"):
        data.setup(stage)
    assert batches(data.test_dataloader())["label"].unique().tolist() == list(range(100))
    assert batches(data.val_dataloader())["label"].bincount().tolist() == [1] * 100
    assert torchvision.datasets.CIFAR100.base_folder == LAYOUTS["cifar100"].folder


def test_checksums_are_those_of_torchvision():
    for name, theirs in {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}.items():
        listed = dict([*theirs.train_list, *theirs.test_list]) | {theirs.meta["filename"]: theirs.meta["md5"]}
        assert LAYOUTS[name].md5 == listed


class TestSplit:
    def test_small_classes(self):
        labels = np.array([0, 1, 1, 2, 2, 2, 2, 2, 2, 2])
        kept, held = stratified_split(labels, 0.1, seed=0)
        assert np.bincount(labels[held], minlength=3).tolist() == [0, 1, 1]
        assert sorted([*kept, *held]) == list(range(10))
        kept, held = stratified_split(labels, 0.99, seed=0)
        assert np.bincount(labels[kept]).tolist() == [1, 1, 1]
        assert len(stratified_split(labels, 0, seed=0)[1]) == 0

    def test_nothing_to_hold_out(self, monkeypatch):
        data = CIFARDataModule()
        images, labels = read_digits(train=True)
        rows = np.unique(labels, return_index=True)[1]
        monkeypatch.setattr("datamodules.cifar.read_digits", lambda train: (images[rows], labels[rows]))
        with pytest.raises(ValueError, match=r"val_fraction=0.1 holds nothing out.*Set val_fraction=0"):
            data.setup("fit")


class TestRealFiles:
    @pytest.mark.slow
    def test_the_whole_of_cifar10(self, shared, recwarn):
        data = CIFARDataModule("cifar10", str(shared / "data/cifar10"), batch_size=1000)
        data.prepare_data()
        data.setup("fit")
        assert not [warning for warning in recwarn if "Not the official" in str(warning.message)]
        assert np.bincount(data._train.labels[data._train.rows]).tolist() == [4500] * 10
        assert batches(data.val_dataloader())["label"].bincount().tolist() == [500] * 10
        mean = data._train.images.float().mean((0, 2, 3)) / 255
        assert_close(mean.tolist(), data.mean, atol=1e-4, rtol=0)
        theirs = torchvision.datasets.CIFAR10(str(shared / "data/cifar10"))
        assert theirs.classes == CLASS_NAMES["cifar10"]
        for row in (0, 12345, 49999):
            assert_close(data._train.images[row].permute(1, 2, 0).numpy(), theirs.data[row])
            assert data._train.labels[row] == theirs.targets[row]

    def test_the_small_one_is_a_part_of_it(self, shared):
        with pytest.warns(UserWarning, match="Not the official cifar10 files .*: test_batch in"):
            images, labels = read_cifar("cifar10", shared / "data/cifar10_small", train=False)
        assert tuple(images.shape) == (500, 3, 32, 32)
        assert np.bincount(labels).tolist() == [50] * 10
