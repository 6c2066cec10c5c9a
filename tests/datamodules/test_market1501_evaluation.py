"""Queries and gallery of re-ID sets, persons held out, folders and files as they are found, and the demo sets."""

import copy
import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from datamodules import DukeMTMCDataModule, Market1501DataModule
from datamodules.reid_files import FOLDERS, GALLERY, QUERY, TRAIN
from tests.loading import batches
from tests.reid_data import SMALL, clusters, kinds, ready


@pytest.fixture
def said(caplog):
    """What was logged so far, as one text."""
    caplog.set_level(logging.INFO, logger="lightning.pytorch")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


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
