"""Batches grouped by class: what a class sees does not depend on who else is trained, or where."""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.testing import assert_close

from datamodules import CIFARDataModule, ImageNetDataModule
from datamodules.class_batches import ClassBatches, ClassBatchSampler
from datamodules.samplers import ResumableLoader
from tests.every_batch import SaveAfterEveryBatch
from tests.loading import batches

LABELS = np.random.default_rng(0).permutation(np.repeat([1, 2, 5, 6, 9], [7, 1, 12, 4, 5]))
WORLDS = [1, 2, 3, 7]


def samplers(world, per_class=4, num_classes=2, labels=LABELS, epoch=0, seed=0):
    made = [ClassBatchSampler(labels, per_class, num_classes, seed, world, rank) for rank in range(world)]
    for sampler in made:
        sampler.set_epoch(epoch)
    return made


def parts(made, labels=LABELS):
    """Class to its share of each batch that has one, in order, over all ranks."""
    found = {}
    for sampler in made:
        for batch in sampler:
            positions = np.array([position for _, position in batch], np.int64)
            for label in dict.fromkeys(labels[positions].tolist()):
                found.setdefault(label, []).append(positions[labels[positions] == label].tolist())
    return found


class TestSampler:
    @pytest.mark.parametrize("world", WORLDS)
    @pytest.mark.parametrize("num_classes", [1, 2, 5])
    def test_a_class_sees_the_same_alone_in_groups_and_sharded(self, world, num_classes):
        for epoch in (0, 3):
            together = parts(samplers(world, num_classes=num_classes, epoch=epoch))
            assert sorted(together) == [1, 2, 5, 6, 9]
            for label, share in together.items():
                (sampler,) = samplers(1, labels=np.where(label == LABELS, label, 77), epoch=epoch)
                alone = parts([sampler], np.where(label == LABELS, label, 77))
                assert share == alone[label]

    @pytest.mark.parametrize("world", WORLDS)
    def test_each_image_comes_once_and_only_last_parts_are_small(self, world):
        found = parts(samplers(world))
        for label, share in found.items():
            rows = [row for part in share for row in part]
            assert sorted(rows) == np.flatnonzero(label == LABELS).tolist()
            assert [len(part) for part in share[:-1]] == [4] * (len(share) - 1)
            assert 1 <= len(share[-1]) <= 4

    @pytest.mark.parametrize("world", WORLDS)
    def test_ranks_take_every_so_manyth_class_and_equally_many_steps(self, world):
        made = samplers(world)
        shares = [list(sampler) for sampler in made]
        assert {len(share) for share in shares} == {len(sampler) for sampler in made} == {len(made[0])}
        for rank, share in enumerate(shares):
            seen = sorted({int(LABELS[position]) for batch in share for _, position in batch})
            assert seen == [1, 2, 5, 6, 9][rank::world]
            full = [bool(batch) for batch in share]
            assert full == sorted(full, reverse=True)  # empty ones at the end
        assert all(any(batches) for batches in zip(*shares, strict=True))  # no step that all ranks take for nothing

    def test_groups_by_hand(self):
        """Sizes 7, 1, 12, 4, 5 in parts of 4, two classes at once: groups of 2, 3 and 2 batches."""
        (sampler,) = samplers(1)
        counts = [
            np.bincount(LABELS[[position for _, position in batch]], minlength=10)[[1, 2, 5, 6, 9]] for batch in sampler
        ]
        assert np.array(counts).tolist() == [
            [4, 1, 0, 0, 0], [3, 0, 0, 0, 0],
            [0, 0, 4, 4, 0], [0, 0, 4, 0, 0], [0, 0, 4, 0, 0],
            [0, 0, 0, 0, 4], [0, 0, 0, 0, 1],
        ]  # fmt: skip

    def test_seed_and_epoch_change_the_order_and_nothing_else_does(self):
        def order(**options):
            torch.rand(3)  # the global generator has no say
            return parts(samplers(1, **options))

        assert order() == order()
        for other in ({"seed": 1}, {"epoch": 1}):
            assert all(order(**other)[label] != order()[label] for label in (1, 5))
        assert order(seed=1) != order(epoch=1)
        same = np.repeat([0, 1], 12)  # two classes of one size are not shuffled alike
        first, second = (np.concatenate(share) for share in parts(samplers(1, labels=same), same).values())
        assert (first != second - 12).any()
        assert {epoch for batch in samplers(1, epoch=4)[0] for epoch, _ in batch} == {4}

    @pytest.mark.parametrize("world", WORLDS)
    def test_start_leaves_out_batches_once(self, world):
        for sampler in samplers(world):
            whole = list(sampler)
            for start in range(len(whole) + 1):
                sampler.start = start
                assert list(sampler) == whole[start:]
            assert list(sampler) == whole

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (([], 4, 2), "labels is empty"),
            ((LABELS, 0, 2), "per_class and num_classes must be at least 1, got 0 and 2"),
            ((LABELS, 4, 0), "per_class and num_classes must be at least 1, got 4 and 0"),
            ((LABELS, 4, 2, 0, 2, 2), "rank must be between 0 and num_replicas - 1 = 1, got 2"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            ClassBatchSampler(*arguments)


class Counted:
    """Positions as they are asked for."""

    def __getitems__(self, keys):
        return {"index": torch.tensor([position for _, position in keys], dtype=torch.int64)}


class TestLoader:
    def loader(self, per_class=4, num_classes=2, world=1):
        sampler = samplers(world, per_class, num_classes)[0]
        return ResumableLoader(
            ClassBatches(Counted(), sampler), sampler=sampler, batch_size=None, collate_fn=lambda batch: batch
        )

    def test_it_resumes_after_every_batch(self):
        whole = [batch["index"].tolist() for batch in self.loader()]
        assert len(whole) == len(self.loader()) == 7
        for done in range(8):
            first, second = self.loader(), self.loader()
            for _, _ in zip(range(done), first, strict=False):
                pass
            second.load_state_dict(first.state_dict())
            assert [batch["index"].tolist() for batch in second] == whole[done:]
            assert [batch["index"].tolist() for batch in second] == whole  # the next pass is a whole one

    @pytest.mark.parametrize(
        ("now", "message"),
        [
            ({"per_class": 2, "num_classes": 4}, r"batch_size=8, per_class_batch=4 on 1 .* per_class_batch=2 on 1"),
            ({"num_classes": 1}, r"batch_size=8, per_class_batch=4 on 1 .* batch_size=4, per_class_batch=4 on 1"),
            ({"world": 2}, r"per_class_batch=4 on 1 .* with batch_size=8, per_class_batch=4 on 2"),
        ],
    )  # fmt: skip
    def test_other_batches_in_the_middle_of_an_epoch_warn(self, now, message, recwarn):
        loader = self.loader()
        next(iter(loader))
        self.loader().load_state_dict(loader.state_dict())
        assert not recwarn
        with pytest.warns(UserWarning, match=message):
            self.loader(**now).load_state_dict(loader.state_dict())

    def test_a_plain_loaders_checkpoint_warns(self):
        with pytest.warns(UserWarning, match=r"batch_size=8 on 1 .* batch_size=8, per_class_batch=4 on 1"):
            self.loader().load_state_dict({"epoch": 0, "done": 1, "batch_size": 8, "replicas": 1})

    def test_a_number_is_a_batch_of_the_first_epoch(self):
        loader = self.loader()
        plain = [loader.dataset[number]["index"].tolist() for number in range(len(loader.dataset))]
        assert plain == [batch["index"].tolist() for batch in loader]
        with pytest.raises(IndexError, match="batch 7 of 7"):
            loader.dataset[7]


pytestmark = pytest.mark.filterwarnings("ignore:Not the official", "ignore:.*`LightningDataModule`")


@pytest.fixture
def cifar(cifar10_root):
    def make(stage="fit", **options):
        options = {"batch_size": 16, "per_class_batch": 8} | options
        data = CIFARDataModule("cifar10", str(cifar10_root), **options)
        data.setup(stage)
        return data

    return make


def seen_by_class(loader, epoch=0):
    """Class to its images in each batch: what its own training depends on."""
    loader.sampler.set_epoch(epoch)
    found = {}
    for batch in loader:
        for label in batch["label"].unique().tolist():
            mine = batch["label"] == label
            found.setdefault(label, []).append((batch["index"][mine], batch["image"][mine]))
    return found


class TestDataModule:
    def test_batches(self, cifar):
        loader = cifar().train_dataloader()
        shapes = [tuple(batch["image"].shape) for batch in loader]
        assert shapes == [(16, 3, 32, 32), (16, 3, 32, 32), (4, 3, 32, 32)] * 5  # 18 images of each class
        assert loader.sampler.sizes == {"batch_size": 16, "per_class_batch": 8}

    def test_a_class_is_the_same_alone_in_other_groups_and_in_company(self, cifar, company):
        whole = seen_by_class(cifar().train_dataloader(), epoch=1)
        assert len(whole) == 10
        alone = {}
        for label in (3, 7):
            alone |= seen_by_class(cifar(class_subset=[label]).train_dataloader(), epoch=1)
        assert_close(alone, {label: whole[label] for label in (3, 7)})
        assert_close(seen_by_class(cifar(batch_size=40).train_dataloader(), epoch=1), whole)
        shared = {}
        for rank in range(3):
            company(3, rank)
            shared |= seen_by_class(cifar().train_dataloader(), epoch=1)
        assert_close(dict(sorted(shared.items())), whole)

    def test_images_of_a_folder_are_the_same_alone_too(self, imagenet_root):
        def seen(**options):
            data = ImageNetDataModule(
                str(imagenet_root), 8, 0, 0.25, image_size=16, per_class_batch=4, crop_scale=[0.08, 1.25], **options
            )
            data.setup("fit")
            return seen_by_class(data.train_dataloader(), epoch=2)

        whole = seen()
        assert_close(seen(class_subset=[2]), {2: whole[2]})

    def test_workers_give_the_same(self, cifar):
        plain, loaded = cifar().train_dataloader(), cifar(num_workers=2).train_dataloader()
        for epoch in range(2):
            assert_close(batches(loaded, epoch), batches(plain, epoch))

    @pytest.mark.parametrize("kind", ["cifar", "imagenet"])
    def test_a_process_without_classes_has_empty_batches_only(self, cifar, imagenet_root, company, kind):
        company(12, 11)  # of 10 classes and of 4
        if kind == "cifar":
            data = cifar()
        else:
            data = ImageNetDataModule(str(imagenet_root), 8, 0, image_size=16, per_class_batch=8)
            data.setup("fit")
        loader = data.train_dataloader()
        got = [data.on_after_batch_transfer(batch, 0) for batch in loader]
        size = data.input_size
        assert len(got) == len(loader) == (3 if kind == "cifar" else 1)
        for batch in got:
            assert {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()} == {
                "image": (torch.float32, (0, *size)), "label": (torch.int64, (0,)), "index": (torch.int64, (0,)),
            }  # fmt: skip

    def test_a_broken_picture_is_left_out_and_none_of_another_class_comes(self, tmp_path):
        from datamodules.demo import write_imagenet

        root = write_imagenet(tmp_path)
        for path in sorted((root / "train" / "n01443537").iterdir())[-2:]:
            path.write_bytes(b"broken")
        data = ImageNetDataModule(str(root), 8, 0, 0, image_size=16, per_class_batch=4, on_bad_image="skip")
        data.setup("fit")
        with pytest.warns(UserWarning, match="skipped"):
            got = [batch["label"].bincount(minlength=4).tolist() for batch in data.train_dataloader()]
        assert np.sum(got, axis=0).tolist() == [8, 6, 8, 8]
        assert all(batch[2] == batch[3] == 0 for batch in got[:2])
        assert len(data.bad_images) == 2

    def test_validation_and_calibration_do_not_change(self, cifar):
        plain, grouped = cifar(per_class_batch=None), cifar()
        assert_close(batches(grouped.val_dataloader()), batches(plain.val_dataloader()))
        calibration = [batches(data.calibration_dataloader(20, augmented=True)) for data in (plain, grouped)]
        assert_close(*calibration)

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ({"per_class_batch": 0}, "per_class_batch must be at least 1, got 0; null"),
            ({"per_class_batch": 32}, "multiple of per_class_batch=32, got 16: .* Set batch_size=32, for"),
            ({"per_class_batch": 5}, "multiple of per_class_batch=5, got 16: .* Set batch_size=20, for"),
        ],
    )
    def test_bad_arguments(self, cifar, sizes, message):
        with pytest.raises(ValueError, match=message):
            cifar(**sizes)


class PerClass(LightningModule):
    """Learns one vector per class, each from its own images alone."""

    def __init__(self):
        super().__init__()
        self.vectors, self.seen = nn.Parameter(torch.zeros(10, 3 * 32 * 32)), []
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, batch["index"].tolist()))
        with torch.no_grad():
            for label in batch["label"].unique().tolist():
                mean = batch["image"][batch["label"] == label].flatten(1).mean(0)
                self.vectors[label] += 0.3 * (mean - self.vectors[label])
        self.optimizers().step()  # counts global_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def fit(make_trainer, cifar10_root):
    def run(callbacks=(), ckpt_path=None, data=None, **kwargs):
        options = {"batch_size": 32, "val_fraction": 0, "per_class_batch": 8, "class_subset": [1, 4, 6]} | (data or {})
        module = PerClass()
        trainer = make_trainer(**{"max_epochs": 2, "callbacks": [*callbacks]} | kwargs)
        trainer.fit(module, CIFARDataModule("cifar10", str(cifar10_root), **options), ckpt_path=ckpt_path)
        return module

    return run


class TestFits:
    @pytest.mark.parametrize("options", [{}, {"limit_train_batches": 3}], ids=lambda o: next(iter(o), "plain"))
    def test_a_run_resumed_after_any_batch_equals_an_uninterrupted_one(self, fit, tmp_path, options):
        saver = SaveAfterEveryBatch(tmp_path)
        data = {"batch_size": 16, "per_class_batch": 16, "class_subset": [1, 4]}  # two groups of 2 batches
        whole = fit([saver], data=data, **options)
        assert len(saver.paths) == len(whole.seen) == (6 if options else 8)
        for done, path in enumerate(saver.paths, 1):
            rest = fit(ckpt_path=path, data=data, **options)
            assert rest.seen == whole.seen[done:], path.name
            assert torch.equal(rest.vectors, whole.vectors), path.name

    def test_workers_resume_like_none(self, fit, tmp_path):
        saver = SaveAfterEveryBatch(tmp_path)
        whole = fit([saver], data={"num_workers": 1})
        assert torch.equal(fit().vectors, whole.vectors)
        rest = fit(ckpt_path=saver.paths[1], data={"num_workers": 1})
        assert rest.seen == whole.seen[2:]
        assert torch.equal(rest.vectors, whole.vectors)

    def test_what_is_learnt_for_a_class_is_the_same_alone(self, fit):
        together = fit()
        for label in (1, 6):
            alone = fit(data={"class_subset": [label], "batch_size": 8})
            assert torch.equal(alone.vectors[label], together.vectors[label])
        assert together.vectors[4].any()
        assert not together.vectors[5].any()

    def test_overfit_batches_trains_on_the_same_groups(self, fit):
        seen = [rows for _, _, rows in fit(overfit_batches=2, limit_val_batches=0).seen]
        assert seen[:2] == seen[2:]
        assert [len(rows) for rows in seen[:2]] == [24, 24]
