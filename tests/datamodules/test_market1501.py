"""Market-1501 and DukeMTMC-reID: every stage, every loader, what is read of the persons and what is not."""

import dataclasses
import inspect

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from PIL import Image
from torch.testing import assert_close

from datamodules import DukeMTMCDataModule, Market1501DataModule
from datamodules.demo import write_market1501
from datamodules.reid_files import TRAIN, read_folder
from datamodules.reid_images import CROP_DRAWS, ERASE_DRAWS, TrainingImages, body_crop_box, erased_rectangles
from tests.every_batch import SaveAfterEveryBatch
from tests.loading import batches, with_own_sampler
from tests.reid_data import SMALL, clusters, kinds, ready


class TestIds:
    def test_what_the_module_needs_is_known_at_once(self, market1501_root, duke_root):
        market, duke = Market1501DataModule(str(market1501_root)), DukeMTMCDataModule(str(duke_root))
        assert (market.num_classes, market.num_cameras, market.input_size) == (8, 3, [3, 256, 128])
        assert (duke.num_classes, duke.num_cameras) == (7, 2)
        assert (market.mean, market.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        assert Market1501DataModule(str(market1501_root), train_on="cameras").num_classes == 0
        assert Market1501DataModule(str(market1501_root), train_on="clusters").num_classes == 0
        adapting = Market1501DataModule(str(market1501_root), source_root=str(duke_root), train_on="clusters")
        assert (adapting.num_classes, adapting.num_cameras) == (7, 3)

    def test_batches(self, market1501_root):
        data = ready(market1501_root)
        batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
        assert kinds(batch) == {
            "image": (torch.float32, (16, 3, 32, 16)),
            "erased": (torch.int64, (16, 4)),
            **dict.fromkeys(("camid", "index", "label", "pid", "style"), (torch.int64, (16,))),
        }
        assert 0 <= batch["image"].min() < batch["image"].max() <= 1
        assert set(batch["style"].tolist()) == {-1}
        assert batch["label"].bincount(minlength=8).sort().values.tolist() == [0] * 4 + [4] * 4

    def test_labels_number_the_sorted_persons(self, market1501_root):
        batch = batches(ready(market1501_root, "fit").train_dataloader())
        pids = torch.arange(2, 26, 3)
        assert_close(pids[batch["label"]], batch["pid"])
        assert set(batch["label"].tolist()) == set(range(8))
        data = ready(market1501_root, "fit")
        assert_close(data.true_train_ids()[batch["index"]], batch["pid"])
        assert_close(data.train_camids[batch["index"]], batch["camid"])

    def test_duke_trains_too(self, duke_root):
        data = ready(duke_root, "fit", cls=DukeMTMCDataModule)
        assert set(batches(data.train_dataloader())["label"].tolist()) == set(range(7))

    def test_augmentation_depends_on_seed_epoch_and_place_alone(self, market1501_root):
        def train(epoch=1, **options):
            return batches(ready(market1501_root, "fit", **options).train_dataloader(), epoch)

        first = train()
        assert_close(train(num_workers=2), first)
        for other in (train(epoch=0), train(seed=1)):
            assert not torch.equal(other["image"], first["image"])
        twice = ready(market1501_root, "fit", k=16)  # nine pictures a person: some come twice
        batch = batches(twice.train_dataloader())
        one, two = (batch["index"] == batch["index"][0]).nonzero().flatten()[:2].tolist()
        assert not torch.equal(batch["image"][one], batch["image"][two])

    def test_without_crop_a_picture_is_itself_or_mirrored(self, market1501_root):
        data = ready(market1501_root, "fit", source_crop=False)
        batch, plain = batches(data.train_dataloader()), batches(data.cluster_dataloader())["image"]
        same = [torch.equal(image, plain[index]) for image, index in zip(batch["image"], batch["index"], strict=True)]
        turned = [torch.equal(i.flip(-1), plain[j]) for i, j in zip(batch["image"], batch["index"], strict=True)]
        assert all(a != b for a, b in zip(same, turned, strict=True))
        assert 0.2 < np.mean(turned) < 0.8
        cropped = batches(ready(market1501_root, "fit").train_dataloader())["image"]
        assert not torch.equal(cropped, batch["image"])

    def test_one_person_is_refused(self, own_root):
        for path in (own_root / TRAIN).glob("*.jpg"):
            if not path.name.startswith("0002_"):
                path.unlink()
        with pytest.raises(
            ValueError, match="has pictures of 1 persons to train on; a batch with one identity has no neg"
        ):
            ready(own_root, "fit")


class TestAugmentation:
    def test_rectangles_are_inside_and_have_the_sizes_of_the_public_code(self):
        draws = np.random.default_rng(0).random((20000, ERASE_DRAWS))
        top, left, bottom, right = erased_rectangles(draws, 256, 128, 0.3).T
        some = bottom > top
        assert some.mean() == pytest.approx(0.3, abs=0.02)
        assert (np.stack([top, left, bottom, right])[:, ~some] == 0).all()
        h, w = (bottom - top)[some], (right - left)[some]
        assert (top.min(), left.min()) == (0, 0)
        assert (bottom.max(), right.max()) == (256, 128)
        area, shape = h * w / (256 * 128), h / w
        assert (area.min(), area.max()) == (pytest.approx(0.02, abs=0.002), pytest.approx(0.2, abs=0.005))
        assert area.mean() == pytest.approx(0.11, abs=0.005)
        assert (shape.min(), shape.max()) == (pytest.approx(0.3, abs=0.05), pytest.approx(1 / 0.3, abs=0.2))
        assert np.median(shape) == pytest.approx((0.3 + 1 / 0.3) / 2, abs=0.1)  # drawn evenly, not on a log scale

    def test_none_and_always(self):
        draws = np.random.default_rng(0).random((50, ERASE_DRAWS))
        assert not erased_rectangles(draws, 64, 32, 0).any()
        assert (erased_rectangles(draws, 64, 32, 1)[:, 2] > 0).all()
        assert not erased_rectangles(draws, 1, 1, 1).any()  # nothing fits

    def test_body_crops_are_inside_and_upright(self):
        draws = np.random.default_rng(0).random((3000, CROP_DRAWS))
        boxes = np.array([body_crop_box(64, 150, row) for row in draws])
        w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        assert (boxes[:, :2].min(), boxes[:, 2].max(), boxes[:, 3].max()) == (0, 64, 150)
        area, shape = w * h / (64 * 150), h / w
        assert (area.min(), area.max()) == (pytest.approx(0.64, abs=0.02), pytest.approx(1, abs=0.02))
        assert (shape.min(), shape.max()) == (pytest.approx(2, abs=0.1), pytest.approx(3, abs=0.1))
        assert body_crop_box(100, 20, draws[0]) == (0, 0, 100, 20)  # too wide for any: the whole

    def test_the_flip_has_a_number_of_its_own(self, market1501_root):
        files = read_folder(market1501_root, TRAIN)
        images = TrainingImages(files, 32, 16, crop=True)
        draws = np.full((2, images.draws), 0.3)
        draws[1, CROP_DRAWS] = 0.7
        mirrored, plain = (np.asarray(images.transform(images.picture(0), row)) for row in draws)
        assert np.array_equal(mirrored[:, ::-1], plain)
        assert not np.array_equal(mirrored, plain)

    def test_rectangles_in_batches(self, market1501_root):
        data = ready(market1501_root, "fit", erase_probability=1.0)
        erased = batches(data.train_dataloader())["erased"]
        assert (erased[:, 0] < erased[:, 2]).all()
        assert (erased[:, 1] < erased[:, 3]).all()
        assert (erased.max(0).values <= torch.tensor([32, 16, 32, 16])).all()
        assert not batches(ready(market1501_root, "fit", erase_probability=0.0).train_dataloader())["erased"].any()


class TestClusters:
    def test_before_labels_come_batches_of_the_source(self, market1501_root, duke_root):
        data = clusters(market1501_root, duke_root)
        batch = next(iter(data.train_dataloader()))
        assert batch["label"].bincount(minlength=7).sort().values.tolist() == [0] * 4 + [2] * 3
        assert set(batch["pid"].tolist()) < set(range(1, 36, 5))
        assert set(batch["style"].tolist()) == {-1}

    def test_without_a_source_labels_are_needed(self, market1501_root):
        data = clusters(market1501_root)
        with pytest.raises(
            ValueError, match="needs the callback PseudoLabelClustering, or a labelled set in source_root"
        ):
            data.train_dataloader()

    def test_labels_decide_the_batches_from_the_next_loader_on(self, market1501_root, duke_root):
        data = clusters(market1501_root, duke_root)
        labels = torch.full((72,), -1)
        labels[::2] = torch.arange(36) % 5 * 10  # numbers need not be without gaps
        data.set_pseudo_labels(labels)
        batch = batches(data.train_dataloader())
        assert kinds(batch) == {
            "image": (torch.uint8, (32, 3, 32, 16)),
            "erased": (torch.int64, (32, 4)),
            **dict.fromkeys(("camid", "index", "label", "style"), (torch.int64, (32,))),
        }
        assert_close(batch["label"], labels[batch["index"]])
        assert_close(batch["camid"], data.train_camids[batch["index"]])
        assert set(batch["label"].tolist()) == {0, 10, 20, 30, 40}
        styles = batch["style"].reshape(-1, 4)
        assert (styles[:, :3] == -1).all()
        assert ((styles[:, 3] >= 0) & (styles[:, 3] < 3) & (styles[:, 3] != batch["camid"].reshape(-1, 4)[:, 3])).all()
        assert_close(data.pseudo_labels, labels)
        data.set_pseudo_labels(None)
        assert "pid" in next(iter(data.train_dataloader()))

    def test_a_source_of_labels_is_asked_by_every_loader(self, market1501_root):
        data, asked = clusters(market1501_root), []

        def labels():
            asked.append(len(asked))
            return torch.arange(72) % (4 + len(asked))

        data.label_source = labels
        sizes = [len(batches(data.train_dataloader())["label"].unique()) for _ in range(2)]
        assert (sizes, asked) == ([5, 6], [0, 1])

    def test_target_pictures_are_not_cropped(self, market1501_root):
        data = clusters(market1501_root, erase_probability=0.0)
        data.set_pseudo_labels(torch.arange(72) % 6)
        batch, plain = batches(data.train_dataloader()), batches(data.cluster_dataloader())["image"]
        for image, index in zip(batch["image"], batch["index"], strict=True):
            assert torch.equal(image, plain[index]) or torch.equal(image.flip(-1), plain[index])

    @pytest.mark.parametrize("labels", [[-1] * 72, [0] * 72, [3] * 10 + [-1] * 62])
    def test_fewer_than_two_clusters_are_one_empty_batch(self, market1501_root, labels):
        data = clusters(market1501_root)
        data.set_pseudo_labels(torch.tensor(labels))
        (batch,) = list(data.train_dataloader())
        assert kinds(data.on_after_batch_transfer(batch, 0)) == {
            "image": (torch.float32, (0, 3, 32, 16)),
            "erased": (torch.int64, (0, 4)),
            **dict.fromkeys(("camid", "index", "label", "style"), (torch.int64, (0,))),
        }

    def test_true_ids_have_no_say(self, market1501_root, duke_root):
        def seen(data):
            data.set_pseudo_labels(torch.arange(72) % 6 - 1)
            loaders = data.train_dataloader(), data.cluster_dataloader(), data.camera_batches(range(3), 8)
            return [batches(loader) for loader in loaders]

        honest, blind = (clusters(market1501_root, duke_root) for _ in range(2))
        blind._train = dataclasses.replace(blind._train, pids=np.random.default_rng(0).integers(1, 9, 72))
        assert not torch.equal(blind.true_train_ids(), honest.true_train_ids())
        assert_close(seen(blind), seen(honest))
        assert all("pid" not in batch for batch in seen(honest))

    def test_all_pictures_for_clustering_and_of_the_source(self, market1501_root, duke_root, company):
        data = clusters(market1501_root, duke_root)
        assert set(next(iter(data.cluster_dataloader()))) == {"image", "camid", "index"}
        assert batches(data.cluster_dataloader())["index"].tolist() == list(range(72))
        assert len(batches(data.source_cluster_dataloader())["index"]) == 7 * 8
        parts = []
        for rank in range(3):
            company(3, rank)
            parts += batches(data.cluster_dataloader())["index"].tolist()
        assert sorted(parts) == list(range(72))
        with pytest.raises(ValueError, match="this needs source_root, a labelled set"):
            clusters(market1501_root).source_cluster_dataloader()

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (torch.zeros(71, dtype=torch.int64), r"labels must be \(72,\) whole numbers.*got \(71,\) int64"),
            (torch.zeros(72), r"got \(72,\) float32"),
            (torch.full((72,), -2), r"labels must be -1 \(none\) or more, got -2"),
        ],
    )
    def test_bad_labels(self, market1501_root, labels, message):
        with pytest.raises(ValueError, match=message):
            clusters(market1501_root).set_pseudo_labels(labels)

    def test_labels_without_use(self, market1501_root):
        with pytest.raises(ValueError, match='no effect with train_on="ids"; set train_on="clusters"'):
            ready(market1501_root, "fit").set_pseudo_labels(torch.zeros(72, dtype=torch.int64))
        with pytest.raises(RuntimeError, match=r'call setup\("fit"\) first'):
            Market1501DataModule(str(market1501_root), train_on="clusters").set_pseudo_labels(None)

    def test_styles_need_two_cameras(self, own_root):
        for path in (own_root / TRAIN).glob("*_c[23]*.jpg"):
            path.unlink()
        with pytest.raises(ValueError, match="generated_per_id=1 needs pictures of two cameras in bounding_box_train"):
            clusters(own_root)
        clusters(own_root, generated_per_id=0)

    def test_processes_share_the_clusters(self, market1501_root, company):
        data, labels = clusters(market1501_root, p=2), torch.arange(72) % 6
        seen = []
        for rank in range(2):
            company(2, rank)
            data.set_pseudo_labels(None)  # a loader is kept as long as its labels are
            data.set_pseudo_labels(labels)
            seen.append(set(batches(data.train_dataloader())["label"].tolist()))
        assert seen[0] | seen[1] == set(range(6))
        assert not seen[0] & seen[1]


class TestCameras:
    def test_batches(self, market1501_root):
        data = ready(market1501_root, "fit", train_on="cameras")
        loader = data.train_dataloader()
        assert kinds(next(iter(loader))) == {
            "image": (torch.uint8, (16, 3, 32, 16)),
            "camid": (torch.int64, (16,)),
            "index": (torch.int64, (16,)),
        }
        first, second = batches(loader), batches(loader, epoch=1)
        assert sorted(first["index"].tolist()) == list(range(72)) == sorted(second["index"].tolist())
        assert first["index"].tolist() != second["index"].tolist()

    def test_the_view_is_a_crop_of_a_slightly_larger_picture(self, market1501_root):
        data = ready(market1501_root, "fit", train_on="cameras")
        batch = batches(data.train_dataloader())
        image, index = batch["image"][0], int(batch["index"][0])
        large = Image.open(data.train_files[index]).resize((18, 36), Image.Resampling.BILINEAR)
        large = torch.from_numpy(np.array(large)).permute(2, 0, 1)
        windows = [large[:, t : t + 32, u : u + 16] for t in range(5) for u in range(3)]
        assert sum(torch.equal(image, w) or torch.equal(image.flip(-1), w) for w in windows) == 1

    def test_batches_for_a_callback(self, market1501_root, company):
        data = clusters(market1501_root)
        whole = list(data.camera_batches(range(6), 8, part=3))
        assert {key: value.dtype for key, value in whole[0].items()} == {
            "image": torch.uint8, "camid": torch.int64, "index": torch.int64, "label": torch.int64,
        }  # fmt: skip
        assert set(whole[0]["label"].tolist()) == {-1}
        assert_close(list(data.camera_batches(range(4, 6), 8, part=3)), whole[4:])
        assert not torch.equal(next(iter(data.camera_batches(range(6), 8, part=4)))["image"], whole[0]["image"])
        labels = torch.arange(72) % 5 - 1
        data.set_pseudo_labels(labels)
        batch = next(iter(data.camera_batches(range(1), 8)))
        assert_close(batch["label"], labels[batch["index"]])
        shares = []
        for rank in range(2):
            company(2, rank)
            shares.append(next(iter(data.camera_batches(range(6), 8, part=3))))
        assert_close(torch.stack([s["image"] for s in shares], 1).flatten(0, 1), whole[0]["image"])
        with pytest.raises(ValueError, match="batch_size must be a multiple of the 2 process"):
            data.camera_batches(range(6), 7)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train_on": "labels"}, "train_on must be one of ids, clusters, cameras, got 'labels'"),
        ({"val_source": "val"}, "val_source must be one of test, train, none, got 'val'"),
        ({"on_bad_image": "ignore"}, "on_bad_image must be one of raise, skip"),
        ({"height": 0}, "height must be at least 1, got 0"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"p": 1}, "p must be at least 2, got 1: a batch with one identity has no negatives"),
        ({"source_p": 1}, "source_p must be at least 2, got 1"),
        ({"train_on": "clusters", "generated_per_id": 4}, "generated_per_id must be 0 to k - 1 = 3, got 4"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_workers": -1}, "num_workers must be 0"),
        ({"erase_probability": 1.5}, r"erase_probability must be in \[0, 1\], got 1.5"),
        ({"val_source": "train"}, 'val_ids must be at least 2 with val_source="train", got 0'),
        ({"val_ids": 3}, 'val_ids=3 holds nobody out with val_source="test"'),
    ],
)
def test_bad_arguments(market1501_root, wrong, message):
    with pytest.raises(ValueError, match=message):
        Market1501DataModule(str(market1501_root), **SMALL | wrong)


def test_both_have_the_arguments_of_the_base():
    names = list(inspect.signature(Market1501DataModule).parameters)
    assert names == list(inspect.signature(DukeMTMCDataModule).parameters)
    assert names[:6] == ["root", "height", "width", "p", "k", "generated_per_id"]


class Seen(LightningModule):
    """Learns from every batch, and remembers it."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(3, 32, 16, dtype=torch.float64)), []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch["index"].tolist(), batch.get("style", batch["camid"]).tolist()))
        if not len(batch["index"]):
            return self.weight.sum() * 0
        return (self.weight - batch["image"].double()).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=10.0)


class NewLabels(Callback):
    """Other labels in every epoch, kept in checkpoints, as clustering gives them."""

    def __init__(self):
        self.labels = None

    def make(self, epoch):
        return (torch.arange(72) * (epoch + 3)) % 7 - 1

    def on_fit_start(self, trainer, pl_module):
        if self.labels is None:
            self.labels = self.make(0)
        trainer.datamodule.set_pseudo_labels(self.labels)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.is_last_batch:
            self.labels = self.make(trainer.current_epoch + 1)
            trainer.datamodule.set_pseudo_labels(self.labels)

    def state_dict(self):
        return {"labels": self.labels}

    def load_state_dict(self, state_dict):
        self.labels = state_dict["labels"]


@pytest.mark.parametrize("train_on", ["ids", "clusters", "cameras"])
def test_a_run_resumed_after_any_batch_equals_an_uninterrupted_one(make_trainer, market1501_root, tmp_path, train_on):
    def fit(callbacks=(), ckpt_path=None):
        module = Seen()
        data = Market1501DataModule(
            str(market1501_root), **SMALL | {"batch_size": 24, "train_on": train_on, "p": 3, "generated_per_id": 1}
        )
        trainer = make_trainer(
            max_epochs=2,
            limit_val_batches=0,
            reload_dataloaders_every_n_epochs=1,
            callbacks=[*([NewLabels()] if train_on == "clusters" else []), *callbacks],
        )
        trainer.fit(module, data, ckpt_path=ckpt_path)
        return module

    saver = SaveAfterEveryBatch(tmp_path)
    whole = fit([saver])
    steps = {"ids": 6, "clusters": 4, "cameras": 6}[train_on]
    assert len(saver.paths) == len(whole.seen) == steps
    for done in range(1, steps):
        rest = fit(ckpt_path=saver.paths[done - 1])
        assert rest.seen == whole.seen[done:]
        assert torch.equal(rest.weight, whole.weight)


def test_an_idle_epoch_goes_on(make_trainer, market1501_root):
    class Outliers(NewLabels):
        def make(self, epoch):
            return torch.full((72,), -1) if epoch < 1 else torch.arange(72) % 4

    module = Seen()
    data = Market1501DataModule(str(market1501_root), **SMALL | {"train_on": "clusters"})
    options = {"max_epochs": 2, "limit_val_batches": 0, "reload_dataloaders_every_n_epochs": 1}
    make_trainer(callbacks=[Outliers()], **options).fit(module, data)
    assert [(epoch, len(rows)) for epoch, rows, _ in module.seen] == [(0, 0), (1, 16)]


def test_overfit_batches_trains_on_the_same(make_trainer, market1501_root):
    module = Seen()
    data = Market1501DataModule(str(market1501_root), **SMALL)
    make_trainer(max_epochs=2, overfit_batches=1, limit_val_batches=0).fit(module, data)
    assert len(module.seen) == 2
    assert module.seen[0][1] == module.seen[1][1]


def test_several_processes_need_our_samplers(market1501_root):
    data = Market1501DataModule(str(market1501_root), **SMALL)
    data.trainer = with_own_sampler(2)
    with pytest.raises(ValueError, match="use_distributed_sampler=True with 2 processes would replace the samplers"):
        data.setup("fit")


def test_a_picture_too_wide_for_an_upright_crop_stays_whole(tmp_path):
    root = write_market1501(tmp_path, train_ids=2, test_ids=2, size=(16, 64))
    data = ready(root, "fit", p=2)
    batch, plain = batches(data.train_dataloader()), batches(data.cluster_dataloader())["image"]
    for image, index in zip(batch["image"], batch["index"], strict=True):
        assert torch.equal(image, plain[index]) or torch.equal(image.flip(-1), plain[index])
