"""Image size, cutout and what is validated on: the options of CIFARDataModule for cheap estimates and search."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from PIL import Image
from torch import nn
from torch.testing import assert_close

from datamodules import CIFARDataModule
from datamodules.cifar import read_cifar
from datamodules.draws import AUGMENT, uniforms
from datamodules.transforms import crop_and_flip, resize_batch
from lit_methods.classification import Normalize
from tests.datamodules.each_rank import KeepOfEachRank
from tests.loading import batches, by_index

pytestmark = pytest.mark.filterwarnings("ignore:Not the official", "ignore:.*`LightningDataModule`")


@pytest.fixture
def cifar(cifar10_root):
    def make(stage="fit", **options):
        data = CIFARDataModule("cifar10", str(cifar10_root), **{"batch_size": 16} | options)
        if stage:
            data.setup(stage)
        return data

    return make


@pytest.fixture
def stored(cifar10_root):
    """Training images and labels as the files have them."""
    images, labels = read_cifar("cifar10", cifar10_root, train=True)
    return images, torch.from_numpy(labels)


def with_pillow(images, size):
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    resized = [np.array(picture.resize((size, size), Image.Resampling.BILINEAR)) for picture in pictures]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


def by_hand(images, rows, epoch=0):
    """The training images of an epoch as they were before there were options."""
    rows = rows.numpy()
    return crop_and_flip(images[rows], uniforms(3, AUGMENT, 0, np.full_like(rows, epoch), rows))


def test_without_options_nothing_has_changed(cifar, stored):
    data = cifar()
    train = batches(data.train_dataloader(), epoch=4)
    assert list(train) == ["image", "label", "index"]
    assert torch.equal(train["image"], by_hand(stored[0], train["index"], epoch=4))
    assert data.input_size == [3, 32, 32]
    assert data.flips is True
    assert CIFARDataModule().flips is False


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 0}, "image_size must be at least 1 pixel, got 0; 32 is that of the files"),
        ({"cutout": -2}, r"cutout must be 0 \(nothing\) or more pixels, got -2"),
        ({"val_source": "val"}, "val_source must be \"train\" or \"test\", got 'val'"),
        ({"split_halves": True, "val_source": "test"}, 'val_source="test" would have no effect. Set val_source="train'),
        ({"split_halves": True, "per_class_batch": 8}, "per_class_batch=8 would have no effect. Set .*_batch=null"),
    ],
)  # fmt: skip
def test_bad_arguments(cifar, wrong, message):
    with pytest.raises(ValueError, match=message):
        cifar(None, **wrong)


@pytest.mark.parametrize("size", [1, 7, 29, 41, 70])
def test_resized_batches_are_pillows_bit_for_bit(size):
    images = torch.randint(0, 256, (30, 3, 17, 40), dtype=torch.uint8)
    images[:10] = (images[:10] > 127) * 255
    images[0] = 255
    assert torch.equal(resize_batch(images, size), with_pillow(images, size))


class TestImageSize:
    @pytest.mark.parametrize("size", [1, 16, 20, 48])
    def test_pixels_are_those_of_pillow_after_crop_and_flip(self, cifar, stored, size):
        data = cifar(image_size=size)
        assert data.input_size == [3, size, size]
        train, val = batches(data.train_dataloader(), epoch=2), batches(data.val_dataloader())
        for got, plain in ((train, by_hand(stored[0], train["index"], 2)), (val, stored[0][val["index"]])):
            assert got["image"].dtype == torch.uint8
            assert torch.equal(got["image"], with_pillow(plain, size))
        data.setup("test")
        assert batches(data.test_dataloader())["image"].shape == (50, 3, size, size)

    def test_a_process_without_samples_gets_an_empty_batch_of_that_size(self, cifar, company):
        company(60, 55)
        (batch,) = cifar(image_size=16).val_dataloader()
        assert batch["image"].shape == (0, 3, 16, 16)

    def test_calibration_images_have_that_size_too(self, cifar):
        data = cifar(image_size=16, cutout=8)
        plain, augmented = (batches(data.calibration_dataloader(20, augmented)) for augmented in (False, True))
        assert plain["image"].shape == augmented["image"].shape == (20, 3, 16, 16)
        assert "cutout" not in plain
        assert augmented["cutout"].shape == (20, 2)


class TestCutout:
    @pytest.mark.parametrize("image_size", [16, 32])
    def test_the_square_is_exactly_zero_once_normalised_and_the_rest_as_before(self, cifar, image_size):
        data, without = cifar(cutout=8, image_size=image_size), cifar(image_size=image_size)
        normalize = Normalize(data.mean, data.std)
        for raw, plain in zip(data.train_dataloader(), without.train_dataloader(), strict=True):
            assert torch.equal(raw["image"], plain["image"])  # the draws for crop and flip are the same
            before = raw["image"].clone()
            got, plain = data.on_after_batch_transfer(raw, 0), without.on_after_batch_transfer(plain, 0)
            assert sorted(got) == ["image", "index", "label"]
            assert torch.equal(raw["image"], before)
            pixels = normalize(got["image"])
            for image, picture, expected, (y, x) in zip(
                pixels, got["image"], plain["image"], raw["cutout"].tolist(), strict=True
            ):
                square = torch.zeros(image_size, image_size, dtype=torch.bool)
                square[max(0, y - 4) : y + 4, max(0, x - 4) : x + 4] = True
                assert (image[:, square].view(torch.int32) == 0).all()
                assert torch.equal(picture[:, ~square], expected[:, ~square])

    def test_evaluation_has_no_centres(self, cifar):
        data = cifar(cutout=8)
        data.setup("test")
        for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
            assert "cutout" not in next(iter(loader))

    def test_centres_are_uniform_over_the_pixels_of_the_resized_image(self):
        data = CIFARDataModule(val_fraction=0, cutout=4, image_size=4, batch_size=2000)
        data.setup("fit")
        loader = data.train_dataloader()
        centers = torch.cat([batches(loader, epoch)["cutout"] for epoch in range(5)])
        counts = torch.bincount(centers[:, 0] * 4 + centers[:, 1], minlength=16)
        assert len(centers) == 7190
        assert counts.shape == (16,)
        assert (counts.double() - 7190 / 16).abs().max() < 4.5 * (7190 / 16) ** 0.5

    def test_centres_depend_on_seed_epoch_and_image_alone(self, cifar):
        def centers(epoch=0, **options):
            data = cifar(cutout=8, val_fraction=0, **options)
            return by_index(batches(data.train_dataloader(), epoch))["cutout"]

        first = centers()
        assert torch.equal(centers(batch_size=7), first)
        assert torch.equal(centers(per_class_batch=4), first)
        assert torch.equal(centers(num_workers=1), first)
        assert not torch.equal(centers(epoch=1), first)
        assert not torch.equal(centers(seed=1), first)

    def test_they_are_the_numbers_behind_those_of_crop_and_flip(self, cifar):
        train = batches(cifar(cutout=8, image_size=9).train_dataloader(), epoch=2)  # some rows are held out
        draws = (uniforms(5, AUGMENT, 0, 2, train["index"].numpy()) * 9).astype(np.int64)
        assert train["cutout"].tolist() == draws[:, 3:].tolist()
        corners = draws[:, :2]
        assert (train["cutout"].numpy() == corners).all(1).mean() < 0.1


class TestValidationOnTest:
    def test_all_training_images_train_and_the_test_images_validate(self, cifar, stored, cifar10_root):
        data = cifar(val_source="test")
        train, val = batches(data.train_dataloader()), batches(data.val_dataloader())
        assert torch.equal(train["image"], by_hand(stored[0], train["index"]))
        images, labels = read_cifar("cifar10", cifar10_root, train=False)
        assert sorted(train["index"].tolist()) == list(range(200))
        assert torch.equal(val["image"], images)
        assert val["label"].tolist() == labels.tolist()
        data.setup("test")
        assert_close(batches(data.test_dataloader()), val)
        assert_close(by_index(batches(cifar(val_source="test", val_fraction=0).train_dataloader())), by_index(train))

    def test_a_sample_of_test_images_takes_their_place_here_too(self, cifar):
        with pytest.raises(ValueError, match="num_test_images=20, but the test set has 10 images"):
            cifar(val_source="test", num_test_images=20, class_subset=[2, 5])
        data = cifar(val_source="test", num_test_images=7, class_subset=[2, 5])
        val = batches(data.val_dataloader())
        assert len(val["index"]) == 7
        assert set(val["label"].tolist()) == {2, 5}
        assert data.class_counts().tolist() == [0, 0, 20, 0, 0, 20, 0, 0, 0, 0]


class TestTensors:
    @pytest.mark.parametrize(
        ("options", "train", "val"),
        [
            ({}, 180, 20),
            ({"val_fraction": 0}, 200, 0),
            ({"val_source": "test"}, 200, 50),
            ({"split_halves": True}, 100, 100),
            ({"class_subset": [3]}, 18, 2),
        ],
        ids=lambda value: next(iter(value), "plain") if isinstance(value, dict) else "",
    )
    def test_they_are_the_images_of_the_loaders_as_stored(self, cifar, stored, cifar10_root, options, train, val):
        data = cifar(image_size=16, cutout=4, **options)
        sources = [stored, stored]
        if "val_source" in options:
            sources[1] = read_cifar("cifar10", cifar10_root, train=False)
        loaders = [data.train_dataloader(), data.val_dataloader()]
        for name, count, source, loader in zip(("training", "validation"), (train, val), sources, loaders, strict=True):
            images, labels, rows = got = getattr(data, f"{name}_tensors")()
            assert (images.dtype, labels.dtype, rows.dtype) == (torch.uint8, torch.int64, torch.int64)
            assert images.shape == (count, 3, 32, 32)
            assert torch.equal(images, source[0][rows])
            assert torch.equal(labels, torch.as_tensor(source[1])[rows])
            if count and not isinstance(loader, CombinedLoader):
                assert sorted(batches(loader)["index"].tolist()) == rows.tolist()
            assert all(one is two for one, two in zip(got, getattr(data, f"{name}_tensors")(), strict=True))

    def test_whole_sets_and_halves_are_not_copied(self, cifar):
        for options in ({"val_source": "test"}, {"split_halves": True}):
            data = cifar(**options)
            for images, view in ((data.training_tensors()[0], data._train), (data.validation_tensors()[0], data._val)):
                assert images.untyped_storage().data_ptr() == view.images.untyped_storage().data_ptr()

    def test_before_setup(self, cifar):
        with pytest.raises(RuntimeError, match=r'call setup\("fit"\) first'):
            cifar(None).training_tensors()
        with pytest.raises(RuntimeError, match=r'call setup\("fit"\) first'):
            cifar(None).validation_tensors()


def halves(loader, epoch=0):
    """Everything that the two loaders give in one epoch, side by side."""
    for sampler in loader.sampler.values():
        sampler.set_epoch(epoch)
    got = [batch for batch, _, _ in loader]
    return {
        half: {key: torch.cat([batch[half][key] for batch in got]) for key in got[0][half]}
        for half in ("weights", "alphas")
    }


class TestHalves:
    def test_a_batch_is_one_of_each_half(self, cifar):
        data = cifar(split_halves=True, cutout=8, image_size=16)
        loader = data.train_dataloader()
        batch, _, _ = next(iter(loader))
        assert len(loader) == 7
        moved = data.on_after_batch_transfer(batch, 0)
        assert list(moved) == ["weights", "alphas"]
        for half, rows in (("weights", range(100)), ("alphas", range(100, 200))):
            assert {key: (value.dtype, tuple(value.shape)) for key, value in moved[half].items()} == {
                "image": (torch.float32, (16, 3, 16, 16)), "label": (torch.int64, (16,)), "index": (torch.int64, (16,)),
            }  # fmt: skip
            assert set(moved[half]["index"].tolist()) < set(rows)
        with pytest.raises(ValueError, match=r"image must be \(B, 3, H, W\) RGB"):
            data.on_after_batch_transfer({"weights": {"image": torch.zeros(1, 1, 4, 4)}}, 0)

    def test_an_epoch_has_each_image_once_in_another_order_for_each_half(self, cifar, stored):
        loader = cifar(split_halves=True).train_dataloader()
        seen = [halves(loader, epoch) for epoch in (0, 1)]
        orders = [(got["weights"]["index"], got["alphas"]["index"] - 100) for got in seen]
        assert all(sorted(order.tolist()) == list(range(100)) for pair in orders for order in pair)
        assert len({tuple(order.tolist()) for pair in orders for order in pair}) == 4
        for epoch, got in enumerate(seen):
            for half in got.values():
                assert torch.equal(half["image"], by_hand(stored[0], half["index"], epoch))

    def test_validation_is_the_second_half_augmented_once_and_for_all(self, cifar, stored):
        data = cifar(split_halves=True)
        first, again = batches(data.val_dataloader(), 0), batches(data.val_dataloader(), 1)
        assert first["index"].tolist() == list(range(100, 200))
        assert torch.equal(first["image"], by_hand(stored[0], first["index"]))
        assert torch.equal(first["image"], again["image"])

    @pytest.mark.parametrize("world", [2, 3])
    def test_processes_share_each_half(self, cifar, company, world):
        seen = {"weights": [], "alphas": []}
        for rank in range(world):
            company(world, rank)
            for half, part in halves(cifar(split_halves=True).train_dataloader(), epoch=3).items():
                seen[half].append(part["index"].tolist())
        for half, start in (("weights", 0), ("alphas", 100)):
            assert len({len(share) for share in seen[half]}) == 1
            rows = [row for share in seen[half] for row in share]
            assert len(rows) == -(-100 // world) * world  # repeats only fill up the ranks
            assert set(rows) == set(range(start, start + 100))

    def test_processes_with_lightnings_samplers_are_refused(self, make_trainer):
        data = CIFARDataModule(split_halves=True)
        data.trainer = make_trainer(devices=2, strategy="ddp", use_distributed_sampler=True)
        with pytest.raises(ValueError, match="use_distributed_sampler=True with 2 processes"):
            data.setup("fit")

    def test_halves_go_by_position_in_the_whole_set(self, cifar, stored):
        data = cifar(split_halves=True, class_subset=[1, 2, 8])
        labels = stored[1]
        for got, rows in ((data.training_tensors(), range(100)), (data.validation_tensors(), range(100, 200))):
            assert got[2].tolist() == [row for row in rows if labels[row] in (1, 2, 8)]

    def test_an_epoch_ends_with_the_shorter_half(self, cifar, stored, monkeypatch):
        labels = np.repeat(np.arange(10), [70, 50, 10, 10, 10, 10, 10, 10, 10, 10])  # class 1: 30 and 20
        monkeypatch.setattr("datamodules.cifar.read_cifar", lambda name, root, train: (stored[0], labels))
        loader = cifar(split_halves=True, class_subset=[1]).train_dataloader()
        assert [len(batch["weights"]["index"]) for batch, _, _ in loader] == [16, 14]
        assert [len(batch["alphas"]["index"]) for batch, _, _ in loader] == [16, 4]
        loader = cifar(split_halves=True, class_subset=[1], batch_size=10).train_dataloader()
        assert [len(batch["weights"]["index"]) for batch, _, _ in loader] == [10, 10]
        assert len(loader) == 2

    def test_a_half_without_images(self, cifar, stored, monkeypatch):
        labels = np.repeat(np.arange(10), 20)  # sorted by class
        monkeypatch.setattr("datamodules.cifar.read_cifar", lambda name, root, train: (stored[0], labels))
        with pytest.raises(ValueError, match=r"split_halves=True leaves 20 and 0 images .*class_subset=\[1\]"):
            cifar(split_halves=True, class_subset=[1])


class Search(LightningModule):
    """Two groups of weights, each with its own half and optimiser."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.automatic_optimization = False
        self.layer, self.alphas, self.seen = nn.Linear(3 * 8 * 8, 10), nn.Parameter(torch.zeros(10)), []

    def loss(self, batch):
        logits = self.layer(batch["image"].flatten(1)) * (1 + self.alphas)
        return nn.functional.cross_entropy(logits, batch["label"])

    def training_step(self, batch, batch_idx):
        self.seen.append([self.current_epoch, *(batch[half]["index"].tolist() for half in ("weights", "alphas"))])
        for optimizer, half in zip(self.optimizers(), ("alphas", "weights"), strict=True):
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch[half]))
            optimizer.step()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch))

    def configure_optimizers(self):
        alphas = torch.optim.Adam([self.alphas], lr=0.05)
        return [alphas, torch.optim.SGD(self.layer.parameters(), lr=0.05, momentum=0.9)]


class Save(Callback):
    def __init__(self, folder, at):
        self.folder, self.at = folder, at

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if len(pl_module.seen) in self.at:
            trainer.save_checkpoint(self.folder / f"{len(pl_module.seen)}.ckpt")


class TestSearch:
    @pytest.fixture
    def fit(self, make_trainer, cifar10_root):
        def run(callbacks=(), ckpt_path=None, **kwargs):
            module = Search()
            data = CIFARDataModule("cifar10", str(cifar10_root), 16, image_size=8, cutout=4, split_halves=True)
            trainer = make_trainer(**{"max_epochs": 2, "callbacks": [*callbacks]} | kwargs)
            trainer.fit(module, data, ckpt_path=ckpt_path)
            return module, float(trainer.callback_metrics["val/loss"])

        return run

    def test_a_run_resumed_in_the_middle_of_an_epoch_is_bit_equal(self, fit, tmp_path):
        at = (3, 7, 9)  # of 7 steps an epoch
        whole, loss = fit([Save(tmp_path, at)])
        assert len(whole.seen) == 14
        assert whole.alphas.abs().min() > 0
        for step in at:
            rest, rest_loss = fit(ckpt_path=tmp_path / f"{step}.ckpt")
            assert rest.seen == whole.seen[step:]
            assert torch.equal(rest.layer.weight, whole.layer.weight)
            assert torch.equal(rest.alphas, whole.alphas)
            assert rest_loss == loss

    @pytest.mark.filterwarnings("ignore:You requested to overfit")
    def test_overfit_batches_trains_on_the_same_first_images(self, fit):
        seen = [step[1:] for step in fit(overfit_batches=2)[0].seen]
        assert len(seen) == 4
        assert seen[:2] == seen[2:]


class SearchTogether(Search):
    """One optimiser for both, which several processes can share without more ado."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = True

    def training_step(self, batch, batch_idx):
        self.seen.append([self.current_epoch, *(batch[half]["index"].tolist() for half in ("weights", "alphas"))])
        return self.loss(batch["weights"]) + self.loss(batch["alphas"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_share_the_halves_and_resume(make_trainer, cifar10_root, tmp_path):
    def run(at=(), **kwargs):
        data = CIFARDataModule("cifar10", str(cifar10_root), 8, image_size=8, split_halves=True)
        keep = [Save(tmp_path, at), KeepOfEachRank(tmp_path)]
        options = {"max_epochs": 2, "devices": 2, "strategy": "ddp_fork", "callbacks": keep}
        make_trainer(**options).fit(SearchTogether(), data, **kwargs)
        return [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]

    whole = run((3,))
    assert torch.equal(whole[0]["weight"], whole[1]["weight"])
    for epoch in range(2):
        for half, rows in ((1, range(100)), (2, range(100, 200))):
            seen = [row for rank in whole for step in rank["seen"] if step[0] == epoch for row in step[half]]
            assert sorted(seen) == list(rows)
    resumed = run(ckpt_path=tmp_path / "3.ckpt")
    assert all(torch.equal(rank["weight"], whole[0]["weight"]) for rank in resumed)
