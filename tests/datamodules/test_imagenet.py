import shutil

import numpy as np
import pytest
import torch
import torchvision.transforms as tv
from lightning.pytorch import LightningModule
from PIL import Image
from torch.testing import assert_close
from torchvision.datasets import ImageFolder

from datamodules import ImageNetDataModule
from datamodules.imagenet import shorten
from tests.loading import batches, by_index

SMALL = {"batch_size": 8, "num_workers": 0, "val_fraction": 0.25, "image_size": 32, "resize_size": 40}


@pytest.fixture
def own_root(imagenet_root, tmp_path):
    """A copy of the demo data that a test may change."""
    return shutil.copytree(imagenet_root, tmp_path / "own data ü")


def ready(root, *stages, **options):
    data = ImageNetDataModule(str(root), **SMALL | options)
    data.prepare_data()
    for stage in stages or ("fit", "test"):
        data.setup(stage)
    return data


class Echo(LightningModule):
    def predict_step(self, batch, batch_idx):
        return batch["index"]


def cut_off(path):
    path.write_bytes(path.read_bytes()[:400])
    return path


class TestLoaders:
    def test_what_the_module_needs_is_known_at_once(self, imagenet_root):
        data = ImageNetDataModule(str(imagenet_root))
        assert (data.num_classes, data.input_size) == (4, [3, 224, 224])
        assert data.classes == ["n01440764", "n01443537", "n01484850", "n01491361"]
        assert data.class_names == ["tench", "goldfish", "great_white_shark", "tiger_shark"]
        assert (data.mean, data.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

    def test_batches(self, imagenet_root):
        data = ready(imagenet_root)
        batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
        assert {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()} == {
            "image": (torch.float32, (8, 3, 32, 32)),
            "label": (torch.int64, (8,)),
            "index": (torch.int64, (8,)),
        }
        assert 0 <= batch["image"].min() < batch["image"].max() <= 1

    def test_splits(self, imagenet_root):
        data = ready(imagenet_root)
        train, val, test = (batches(getattr(data, f"{split}_dataloader")()) for split in ("train", "val", "test"))
        assert sorted(train["index"].tolist() + val["index"].tolist()) == list(range(32))
        assert (train["label"].bincount().tolist(), val["label"].bincount().tolist()) == ([6] * 4, [2] * 4)
        assert test["index"].tolist() == list(range(12))
        assert test["label"].tolist() == sorted([0, 1, 2, 3] * 3)

    def test_the_evaluation_view_is_torchvisions(self, imagenet_root):
        data = ready(imagenet_root, "predict")
        steps = tv.Compose([tv.Resize(40), tv.CenterCrop(32), tv.PILToTensor()])
        theirs = ImageFolder(imagenet_root / "val", steps)
        ours = batches(data.predict_dataloader())
        assert_close(ours["image"], torch.stack([image for image, _ in theirs]))
        assert ours["label"].tolist() == theirs.targets

    def test_augmentation_depends_on_seed_epoch_and_image_alone(self, imagenet_root):
        def train(epoch=1, **options):
            return by_index(batches(ready(imagenet_root, "fit", **options).train_dataloader(), epoch))

        first = train()
        assert_close(train(num_workers=2), first)
        assert_close(train(batch_size=3), first)
        assert_close(train(val_fraction=0)["image"][first["index"]], first["image"])
        assert not torch.equal(train(epoch=0)["image"], first["image"])

    def test_calibration(self, imagenet_root):
        data = ready(imagenet_root, "fit")
        plain, augmented = (batches(data.calibration_dataloader(10, augmented=flag)) for flag in (False, True))
        assert len(plain["index"].unique()) == 10
        assert_close(plain["index"], augmented["index"])
        assert_close(plain["image"][0], data._train.view(plain["index"].numpy())[0]["image"])
        assert not torch.equal(plain["image"], augmented["image"])

    def test_training_lowers_the_loss(self, imagenet_root):
        data = ready(imagenet_root, "fit", "test", image_size=16, resize_size=20)
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 4))
        optimizer, loader = torch.optim.Adam(model.parameters(), 0.05), data.train_dataloader()
        for epoch in range(15):
            loader.sampler.set_epoch(epoch)
            for batch in loader:
                optimizer.zero_grad()
                image = data.on_after_batch_transfer(batch, 0)["image"]
                torch.nn.functional.cross_entropy(model(image), batch["label"]).backward()
                optimizer.step()
        test = batches(data.test_dataloader())
        hits = model(data.on_after_batch_transfer(test, 0)["image"]).argmax(1) == test["label"]
        assert hits.float().mean() > 0.7  # the demo classes can be told apart


class TestFolders:
    def test_official_names(self, own_root):
        (own_root / "train").rename(own_root / "ILSVRC2012_img_train")
        (own_root / "val").rename(own_root / "ILSVRC2012_img_val")
        data = ready(own_root)
        assert (len(data._train) + len(data._val), len(data._test)) == (32, 12)

    def test_testing_needs_val_alone(self, own_root):
        shutil.rmtree(own_root / "train")
        data = ready(own_root, "test", "predict")
        assert (data.num_classes, len(batches(data.test_dataloader())["index"])) == (4, 12)
        with pytest.raises(FileNotFoundError, match="training and validation needs train or ILSVRC2012_img_train"):
            data.setup("fit")

    def test_training_needs_train_alone(self, own_root):
        shutil.rmtree(own_root / "val")
        data = ready(own_root, "fit")
        with pytest.raises(FileNotFoundError, match=r"testing and predicting needs val .* in root="):
            data.setup("test")

    def test_own_classes_without_a_table(self, tmp_path):
        for name in ("train/b é", "train/a", "val/a", "val/b é", "train/.hidden"):
            (tmp_path / name).mkdir(parents=True)
            Image.new("L", (20, 30)).save(tmp_path / name / "x.PNG")
        data = ready(tmp_path, val_fraction=0)
        assert data.class_names == ["a", "b é"]
        assert batches(data.train_dataloader())["image"].shape == (2, 3, 32, 32)

    def test_nothing_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nowhere' does not exist. Point root"):
            ImageNetDataModule(str(tmp_path / "nowhere"))
        with pytest.raises(FileNotFoundError, match="holds neither train nor val"):
            ImageNetDataModule(str(tmp_path))

    def test_loose_pictures(self, own_root):
        shutil.rmtree(own_root / "val")
        (own_root / "val").mkdir()
        with pytest.raises(ValueError, match=r"root=.*: no class folders in val/\.$"):
            ImageNetDataModule(str(own_root))
        Image.new("RGB", (4, 4)).save(own_root / "val" / "ILSVRC2012_val_00000001.JPEG")
        with pytest.raises(ValueError, match=r"no class folders in .*val.*one folder per class"):
            ImageNetDataModule(str(own_root))

    def test_different_classes_are_named(self, own_root):
        (own_root / "val" / "n01440764").rename(own_root / "val" / "n09999999")
        with pytest.raises(ValueError, match=r"only in .*train: n01440764; only in .*val: n09999999"):
            ImageNetDataModule(str(own_root))

    def test_an_empty_class_is_named(self, own_root):
        for path in (own_root / "train" / "n01443537").iterdir():
            path.unlink()
        with pytest.raises(ValueError, match=r"no pictures in these class folders of .*train: n01443537\. Remove"):
            ready(own_root, "fit")

    def test_synset_words_are_names_without_a_table(self, own_root):
        lines = ["n09999999 some other folder", "n01443537 goldfish, Carassius auratus", "", "n01440764\ttench"]
        (own_root / "synset_words.txt").write_text("\n".join([*lines, "n01484850  great white shark , man-eater"]))
        (own_root / "classes.tsv").write_text("3\tn01491361\tfrom the table\n")
        assert ImageNetDataModule(str(own_root)).class_names == [
            "n01440764",
            "n01443537",
            "n01484850",
            "from the table",
        ]
        (own_root / "classes.tsv").unlink()
        assert ImageNetDataModule(str(own_root)).class_names == ["tench", "goldfish", "great white shark", "n01491361"]

    @pytest.mark.parametrize("line", ["n01443537", "n01443537 ", "n01443537\t, Carassius auratus", "n09999999"])
    def test_a_line_of_synset_words_without_a_name_is_named(self, own_root, line):
        (own_root / "classes.tsv").unlink()
        (own_root / "synset_words.txt").write_text(f"n01440764 tench, Tinca tinca\n{line}\n")
        with pytest.raises(ValueError, match=r"synset_words.txt, line 2: expected a folder and then names .* got 'n0"):
            ImageNetDataModule(str(own_root))

    def test_a_bad_table_is_named(self, own_root):
        (own_root / "classes.tsv").write_text("0\tn01440764\ttench\n1 n01443537 goldfish\n")
        with pytest.raises(ValueError, match=r"classes.tsv, line 2: expected number, folder and name"):
            ImageNetDataModule(str(own_root))

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"image_size": 300, "resize_size": 256}, "image_size must be between 1 and resize_size=256, got 300"),
            ({"image_size": 0}, "image_size must be between 1"),
            ({"on_bad_image": "ignore"}, 'on_bad_image must be "raise" or "skip", got \'ignore\''),
            ({"batch_size": 0}, "batch_size must be at least 1"),
        ],
    )
    def test_bad_arguments(self, imagenet_root, wrong, message):
        with pytest.raises(ValueError, match=message):
            ImageNetDataModule(str(imagenet_root), **wrong)

    def test_long_lists_are_shortened(self):
        assert shorten([str(number) for number in range(7)]) == "0, 1, 2, 3, 4 and 2 more"


class TestBadImages:
    def test_raise_names_the_file(self, own_root):
        path = cut_off(own_root / "train" / "n01443537" / "n01443537_3.JPEG")
        data = ready(own_root, "fit", val_fraction=0)
        with pytest.raises(ValueError, match=f'cannot read the image .*{path.name}.*on_bad_image="skip"'):
            batches(data.train_dataloader())

    def test_raise_in_a_worker_names_the_file(self, own_root):
        path = cut_off(own_root / "train" / "n01443537" / "n01443537_3.JPEG")
        data = ready(own_root, "fit", val_fraction=0, num_workers=2)
        loader = data.train_dataloader()
        with pytest.raises(ValueError, match=path.name):
            batches(loader)
        loader._iterator._shutdown_workers()  # the garbage collector would wait five seconds for each

    def test_the_first_image_is_read_before_training(self, own_root):
        cut_off(own_root / "train" / "n01440764" / "n01440764_0.JPEG")
        cut_off(own_root / "val" / "n01440764" / "ILSVRC2012_val_00000001.JPEG")
        data = ImageNetDataModule(str(own_root), **SMALL)
        with pytest.raises(ValueError, match=r"n01440764_0.JPEG"):
            data.setup("fit")
        with pytest.raises(ValueError, match=r"ILSVRC2012_val_00000001.JPEG"):
            data.setup("test")

    def test_skip_takes_the_next_one_in_training(self, own_root):
        bad = [cut_off(own_root / "train" / "n01443537" / f"n01443537_{number}.JPEG") for number in (2, 3)]
        data = ready(own_root, "fit", val_fraction=0, on_bad_image="skip")
        with pytest.warns(UserWarning, match="skipped: cannot read the image") as caught:
            train = batches(data.train_dataloader())
        batches(data.train_dataloader(), epoch=1)
        assert sorted(str(path) for path in bad) == data.bad_images
        assert data.summary() == {"data/bad_images": 2, "data/bad_image_files": data.bad_images}
        assert len(caught) == 2  # once per file, not per epoch
        counts = train["index"].bincount().tolist()
        assert counts == [1] * 10 + [0, 0, 3] + [1] * 19
        assert train["label"].tolist() == (train["index"] // 8).tolist()

    def test_skip_agrees_between_workers(self, own_root, recwarn):
        cut_off(own_root / "train" / "n01443537" / "n01443537_2.JPEG")
        one = ready(own_root, "fit", on_bad_image="skip")
        two = ready(own_root, "fit", on_bad_image="skip", num_workers=2)
        for epoch in range(2):
            assert_close(batches(two.train_dataloader(), epoch), batches(one.train_dataloader(), epoch))
            assert_close(batches(two.val_dataloader()), batches(one.val_dataloader()))
        assert two.bad_images == one.bad_images  # workers report through shared memory
        assert len(one.bad_images) == 1

    @pytest.mark.parametrize("batch_size", [1, 2, 8])
    def test_skip_leaves_out_in_evaluation(self, own_root, batch_size, make_trainer, recwarn):
        names = [f"val/n01443537/ILSVRC2012_val_{number:08d}.JPEG" for number in (4, 5)]
        bad = [str(cut_off(own_root / name)) for name in names]
        data = ready(own_root, "test", on_bad_image="skip", batch_size=batch_size)
        assert batches(data.test_dataloader())["index"].tolist() == [0, 1, 2, 5, 6, 7, 8, 9, 10, 11]
        assert data.bad_images == bad
        seen = make_trainer().predict(Echo(), data)
        assert torch.cat(seen).tolist() == [0, 1, 2, 5, 6, 7, 8, 9, 10, 11]

    def test_calibration_leaves_out(self, own_root, recwarn):
        cut_off(own_root / "train" / "n01443537" / "n01443537_2.JPEG")
        data = ready(own_root, "fit", val_fraction=0, on_bad_image="skip")
        assert sorted(batches(data.calibration_dataloader(32))["index"].tolist()) == [*range(10), *range(11, 32)]

    def test_no_readable_picture_at_all(self, own_root, recwarn):
        for path in (own_root / "train").glob("*/*"):
            cut_off(path)
        data = ready(own_root, "fit", on_bad_image="skip")
        with pytest.raises(ValueError, match="not one readable picture among the 24 of"):
            batches(data.train_dataloader())

    def test_other_kinds_of_files_become_rgb(self, own_root):
        folder = own_root / "val" / "n01440764"
        for mode, suffix in {"L": "jpg", "P": "png", "RGBA": "png", "CMYK": "jpg", "I;16": "png", "1": "bmp"}.items():
            Image.new(mode, (50, 70)).save(folder / f"z{mode}.{suffix}")
        test = batches(ready(own_root, "test").test_dataloader())
        assert tuple(test["image"].shape) == (18, 3, 32, 32)


def test_the_real_sample(shared):
    data = ImageNetDataModule(str(shared / "data/imagenet_sample"), batch_size=16, num_workers=0)
    data.setup("test")
    assert (data.num_classes, len(data._test)) == (1000, 1000)
    assert data.class_names[:2] == ["tench", "goldfish"]
    assert (data.classes[0], data.classes[-1]) == ("n01440764", "n15075141")
    batch = next(iter(data.test_dataloader()))
    assert tuple(batch["image"].shape) == (16, 3, 224, 224)
    assert batch["label"].tolist() == list(range(16))
    first = Image.open(data._test.path(0))
    assert_close(batch["image"][0].permute(1, 2, 0).numpy(), np.array(first)[16:240, 16:240])
    with pytest.raises(FileNotFoundError, match="training and validation needs train"):
        data.setup("fit")
