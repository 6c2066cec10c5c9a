"""Market-1501 and DukeMTMC-reID: every stage, every loader, what is read of the persons and what is not."""

import copy
import dataclasses
import inspect
import logging
import shutil

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from PIL import Image
from torch.testing import assert_close

from datamodules import DukeMTMCDataModule, Market1501DataModule
from datamodules.demo import write_market1501
from datamodules.reid_files import FOLDERS, GALLERY, QUERY, TRAIN, read_folder
from datamodules.reid_images import CROP_DRAWS, ERASE_DRAWS, TrainingImages, body_crop_box, erased_rectangles
from tests.loading import batches

SMALL = {"height": 32, "width": 16, "p": 4, "k": 4, "source_p": 3, "source_k": 2, "batch_size": 16, "num_workers": 0}
pytestmark = pytest.mark.filterwarnings("ignore:.*`LightningDataModule`")


def ready(root, *stages, cls=Market1501DataModule, **options):
    data = cls(str(root), **SMALL | options)
    data.prepare_data()
    for stage in stages or ("fit", "test"):
        data.setup(stage)
    return data


def clusters(root, source=None, **options):
    options = {"train_on": "clusters", "generated_per_id": 1} | options
    return ready(root, "fit", source_root=None if source is None else str(source), **options)


@pytest.fixture
def own_root(market1501_root, tmp_path):
    """A copy of the demo data that a test may change."""
    return shutil.copytree(market1501_root, tmp_path / "own data ü")


@pytest.fixture
def company(monkeypatch):
    def make(world, rank):
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: world)
        monkeypatch.setattr("torch.distributed.get_rank", lambda: rank)

    return make


@pytest.fixture
def said(caplog):
    """What was logged so far, as one text."""
    caplog.set_level(logging.INFO, logger="lightning.pytorch")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


def kinds(batch):
    return {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()}


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


class TestEvaluation:
    def test_queries_and_gallery_person_by_person(self, market1501_root):
        data = ready(market1501_root, "test")
        batch = next(iter(data.test_dataloader()))
        assert kinds(data.on_after_batch_transfer(batch, 0)) == {
            "image": (torch.float32, (16, 3, 32, 16)),
            "is_query": (torch.bool, (16,)),
            **dict.fromkeys(("pid", "camid", "index"), (torch.int64, (16,))),
        }
        batch = batches(data.test_dataloader())
        assert batch["pid"].tolist() == [*np.repeat(range(1, 19, 3), 9), *[0] * 12]  # distractors last
        assert batch["is_query"][:9].tolist() == [True, False, False] * 3  # camera by camera
        assert batch["camid"][:9].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        by_index = batch["index"].argsort()
        batch = {name: values[by_index] for name, values in batch.items()}
        query, gallery = ({k: v[batch["is_query"] == flag] for k, v in batch.items()} for flag in (True, False))
        for part, files in ((query, data.query_files), (gallery, data.gallery_files)):
            assert part["index"].tolist() == list(range(len(files)))
            assert [path.name for path in files] == sorted(path.name for path in files)
            assert part["pid"].tolist() == [int(path.name.split("_")[0]) for path in files]
            assert part["camid"].tolist() == [int(path.name.split("_c")[1][0]) - 1 for path in files]
        assert sorted(set(gallery["pid"].tolist())) == [0, *range(1, 19, 3)]

    def test_the_view_is_a_plain_resize(self, market1501_root):
        data = ready(market1501_root)
        image = np.array(Image.open(data.query_files[2]).resize((16, 32), Image.Resampling.BILINEAR))
        batch = batches(data.test_dataloader())
        (row,) = (batch["is_query"] & (batch["index"] == 2)).nonzero()[0].tolist()
        assert_close(batch["image"][row], torch.from_numpy(image).permute(2, 0, 1))
        thumb = np.array(Image.open(data.train_files[5]).resize((16, 32), Image.Resampling.BILINEAR))
        assert np.array_equal(data.thumbnail(5), thumb)

    def test_junk_is_left_out_unless_it_is_wanted(self, market1501_root, said):
        data = ready(market1501_root, "test")
        assert -1 not in batches(data.test_dataloader())["pid"]
        assert "6 junk pictures of bounding_box_test are left out" in said()
        kept = batches(ready(market1501_root, "test", keep_junk=True).test_dataloader())
        assert (kept["pid"] == -1).sum() == 6
        assert len(kept["pid"]) == 18 + 54

    def test_junk_among_training_pictures_is_no_class(self, own_root):
        shutil.copy(next((own_root / TRAIN).glob("0002_*.jpg")), own_root / TRAIN / "-1_c1s1_000001_01.jpg")
        data = ready(own_root, "fit")
        assert (data.num_classes, len(data.train_files)) == (8, 72)

    def test_validation_on_the_test_set_is_said(self, market1501_root, said):
        data = ready(market1501_root, "fit")
        assert 'val_source="test": validation is on the test queries and gallery' in said()
        assert data.val_query_files == data.query_files
        assert len(batches(data.val_dataloader())["pid"]) == 18 + 48

    def test_other_counts_than_the_published_are_said(self, market1501_root, duke_root, said):
        ready(market1501_root)
        ready(duke_root, cls=DukeMTMCDataModule)
        assert "bounding_box_train has 72 images of 8 persons, where Market-1501 has 12936 of 751" in said()
        assert "bounding_box_test has 54 images of 6 persons, where Market-1501 has 19732 of 750" in said()
        assert "query has 8 images of 4 persons, where DukeMTMC-reID has 2228 of 702" in said()

    def test_queries_without_a_match_are_counted(self, own_root, said):
        for path in (own_root / GALLERY).glob("0001_c[23]*.jpg"):
            path.unlink()
        data = ready(own_root, "test")
        assert "1 of 18 queries have no picture of their person from another camera" in said()
        assert len(data.query_files) == 18  # the metric leaves it out

    def test_one_camera_alone_is_refused(self, own_root):
        for folder in (QUERY, GALLERY):
            for path in (own_root / folder).glob("*_c[13]*.jpg"):
                path.unlink()
        with pytest.raises(ValueError, match=r"root=.* all pictures are from camera 2\. .* evaluation would be empty"):
            ready(own_root, "test")
        with pytest.raises(ValueError, match="evaluation would be empty"):
            ready(own_root, "fit")  # before a training that validates on them

    def test_each_picture_comes_once_over_all_ranks(self, market1501_root, company):
        data = ready(market1501_root, "test")
        seen = []
        for rank in range(4):
            company(4, rank)
            batch = batches(data.test_dataloader())
            seen += zip(batch["is_query"].tolist(), batch["index"].tolist(), strict=True)
        assert sorted(seen) == [(False, index) for index in range(48)] + [(True, index) for index in range(18)]
        company(100, 99)
        (batch,) = list(data.test_dataloader())
        assert (batch["image"].shape, batch["pid"].shape) == ((0, 3, 32, 16), (0,))

    def test_a_trial_setup_leaves_no_trace(self, market1501_root):
        data = Market1501DataModule(str(market1501_root), **SMALL)
        copy.copy(data).setup("test")
        with pytest.raises(RuntimeError, match=r'call setup\("test"\) first'):
            data.test_dataloader()


class TestHeldOut:
    def test_persons_are_held_out_of_everything(self, market1501_root):
        options = {"val_source": "train", "val_ids": 3}
        data = ready(market1501_root, "fit", **options)
        held = set(batches(data.val_dataloader())["pid"].tolist())
        assert len(held) == 3
        assert data.num_classes == len(set(data.true_train_ids().tolist())) == 5
        assert not held & set(data.true_train_ids().tolist())
        assert set(batches(data.train_dataloader())["label"].tolist()) == set(range(5))
        adapting = clusters(market1501_root, **options)
        assert_close(adapting.true_train_ids(), data.true_train_ids())
        assert batches(adapting.cluster_dataloader())["index"].tolist() == list(range(45))
        assert len(next(iter(adapting.camera_batches(range(1), 90)))["index"].unique()) == 45
        cameras = ready(market1501_root, "fit", train_on="cameras", **options)
        assert sorted(batches(cameras.train_dataloader())["index"].tolist()) == list(range(45))

    def test_one_query_per_person_and_camera(self, market1501_root):
        data = ready(market1501_root, "validate", val_source="train", val_ids=3)
        batch = batches(data.val_dataloader())
        pairs = list(zip(batch["pid"].tolist(), batch["camid"].tolist(), strict=True))
        queries = [pair for pair, is_query in zip(pairs, batch["is_query"].tolist(), strict=True) if is_query]
        assert sorted(queries) == sorted(set(pairs))
        assert (len(queries), len(pairs)) == (9, 27)
        assert all(path.parent.name == TRAIN for path in data.val_query_files + data.val_gallery_files)

    def test_the_seed_chooses(self, market1501_root):
        def held(seed, number=3):
            data = ready(market1501_root, "validate", val_source="train", val_ids=number, seed=seed)
            return set(batches(data.val_dataloader())["pid"].tolist())

        assert held(0) == held(0) < held(0, 4)
        assert len({frozenset(held(seed)) for seed in range(6)}) > 1

    def test_no_more_than_there_are(self, market1501_root, own_root):
        with pytest.raises(
            ValueError, match=r"val_ids=9, but 8 persons of bounding_box_train have pictures of two cam"
        ):
            ready(market1501_root, "fit", val_source="train", val_ids=9)
        for path in (own_root / TRAIN).glob("*_c[23]*.jpg"):
            path.unlink()
        with pytest.raises(ValueError, match=r"val_ids=2, but 0 persons"):
            ready(own_root, "fit", val_source="train", val_ids=2)


class TestFolders:
    @pytest.mark.parametrize("missing", FOLDERS)
    def test_a_missing_folder_is_named(self, own_root, missing):
        shutil.rmtree(own_root / missing)
        with pytest.raises(FileNotFoundError, match=rf"Market-1501 is incomplete in root='.*': no {missing}\. Unpack"):
            ready(own_root)

    def test_nothing_there(self, tmp_path, market1501_root):
        data = Market1501DataModule(str(tmp_path / "nowhere"))
        assert data.num_classes == 751  # a recipe can be built without the files; before it trains, this stops it:
        for wanted in (data.prepare_data, lambda: data.setup("fit")):
            with pytest.raises(FileNotFoundError, match="Market-1501 is incomplete in root="):
                wanted()
        with pytest.raises(
            FileNotFoundError, match=r"the source is incomplete in source_root='.*': no bounding_box_train"
        ):
            clusters(market1501_root, tmp_path)

    def test_a_stage_reads_no_more_than_it_needs(self, own_root):
        shutil.rmtree(own_root / TRAIN)
        data = Market1501DataModule(str(own_root), **SMALL)
        data.setup("test")
        assert len(data.gallery_files) == 48

    def test_one_set_given_as_the_other(self, market1501_root, duke_root):
        with pytest.raises(
            ValueError, match=r"root='.*': bounding_box_train holds files of DukeMTMC-reID, .* Use DukeMTM"
        ):
            ready(duke_root, "fit")
        with pytest.raises(ValueError, match=r"query holds files of Market-1501, .* Use Market1501DataModule"):
            ready(market1501_root, "test", cls=DukeMTMCDataModule)

    def test_the_source_may_be_either(self, market1501_root, duke_root, tmp_path):
        for source, classes in ((market1501_root, 8), (shutil.copytree(duke_root, tmp_path / "other"), 7)):
            data = clusters(duke_root, source, cls=DukeMTMCDataModule)
            assert data.num_classes == classes == len(batches(data.train_dataloader())["label"].unique())

    def test_the_target_is_no_source_of_its_own(self, market1501_root):
        with pytest.raises(ValueError, match="is root itself: the persons of the target would be learnt from"):
            clusters(market1501_root, market1501_root)

    def test_a_target_without_known_persons_needs_its_training_pictures_alone(self, market1501_root, tmp_path):
        shutil.copytree(market1501_root / TRAIN, tmp_path / TRAIN)
        for path in list((tmp_path / TRAIN).glob("*.jpg")):
            path.rename(path.with_name("0001" + path.name[4:-4] + path.name[:4] + ".jpg"))
        data = clusters(tmp_path, val_source="none")
        data.prepare_data()
        assert data.true_train_ids() is None
        assert data.val_dataloader() == []
        with pytest.raises(FileNotFoundError, match="query"):
            data.setup("test")

    def test_bad_names_are_counted(self, own_root):
        for number in range(7):
            (own_root / TRAIN / f"bad{number}.jpg").touch()
        with pytest.raises(ValueError, match=r"bounding_box_train has 7 of 79 .*: bad0.jpg, .*, bad4.jpg and 2 more"):
            ready(own_root, "fit")


class TestBadImages:
    def test_raise_names_the_file(self, own_root):
        path = sorted((own_root / TRAIN).glob("*.jpg"))[20]
        path.write_bytes(path.read_bytes()[:300])
        data = ready(own_root, "fit")
        with pytest.raises(ValueError, match=f'cannot read the image .*{path.name}.*on_bad_image="skip"'):
            batches(data.cluster_dataloader())

    def test_the_first_image_is_read_before_training(self, own_root):
        sorted((own_root / QUERY).glob("*.jpg"))[0].write_bytes(b"broken")
        with pytest.raises(ValueError, match="cannot read the image"):
            ready(own_root, "test")

    def test_skip_goes_on_without_them(self, own_root):
        bad = sorted((own_root / TRAIN).glob("*.jpg"))[20:22] + sorted((own_root / GALLERY).glob("0001*.jpg"))[:1]
        for path in bad:
            path.write_bytes(b"broken")
        with pytest.warns(UserWarning, match=r"skipped . of .. pictures that cannot be read: "):
            data = ready(own_root, on_bad_image="skip")
        assert data.bad_images == sorted(map(str, bad))
        assert data.summary() == {"data/bad_images": 3, "data/bad_image_files": data.bad_images}
        assert len(data.train_files) == len(data.true_train_ids()) == 70
        assert len(batches(data.test_dataloader())["index"]) == 18 + 47
        assert not set(bad) & {*data.train_files, *data.gallery_files}


class TestDemo:
    def test_classes_are_known_before_the_files_are_there(self, tmp_path, monkeypatch):
        roots = {"root": str(tmp_path / "a" / "market"), "source_root": str(tmp_path / "a" / "duke")}
        data = Market1501DataModule(**roots, train_on="clusters", demo=True)
        before = (data.num_classes, data.num_cameras)
        ids = Market1501DataModule(roots["root"], demo=True)
        assert ids.num_classes == 40
        monkeypatch.setattr(
            "datamodules.demo.people.draw_person", lambda who, camera, random, size: Image.new("RGB", size[::-1])
        )
        data.prepare_data()
        data.setup("fit")
        again = Market1501DataModule(**roots, train_on="clusters", demo=True)
        assert before == (again.num_classes, again.num_cameras) == (48, 3)
        assert (len(data.train_files), len(batches(data.source_cluster_dataloader())["index"])) == (360, 384)
        assert ready(roots["source_root"], "fit", cls=DukeMTMCDataModule).num_classes == 48

    def test_own_files_are_kept(self, own_root):
        before = sorted(own_root.rglob("*"))
        data = ready(own_root, demo=True)
        assert sorted(own_root.rglob("*")) == before
        assert data.num_classes == 8


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


class SaveAfterEveryBatch(Callback):
    def __init__(self, folder):
        self.folder, self.paths = folder, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.paths.append(self.folder / f"{len(self.paths) + 1:02d}.ckpt")
        trainer.save_checkpoint(self.paths[-1])


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
    class Trainer:
        world_size = 2

        class _accelerator_connector:
            use_distributed_sampler = True

    data = Market1501DataModule(str(market1501_root), **SMALL)
    data.trainer = Trainer()
    with pytest.raises(ValueError, match="use_distributed_sampler=True with 2 processes would replace the samplers"):
        data.setup("fit")


def test_a_picture_too_wide_for_an_upright_crop_stays_whole(tmp_path):
    root = write_market1501(tmp_path, train_ids=2, test_ids=2, size=(16, 64))
    data = ready(root, "fit", p=2)
    batch, plain = batches(data.train_dataloader()), batches(data.cluster_dataloader())["image"]
    for image, index in zip(batch["image"], batch["index"], strict=True):
        assert torch.equal(image, plain[index]) or torch.equal(image.flip(-1), plain[index])
