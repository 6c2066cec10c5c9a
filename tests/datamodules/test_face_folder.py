"""Faces for training in branches, and sets to evaluate on: every way to say what is hard, every loader, every fault."""

import shutil

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch.testing import assert_close

from datamodules import FaceFolderDataModule
from datamodules.demo import write_faces
from datamodules.low_resolution import low_resolution
from lit_methods.functional.pictures import BadImageError
from tests.every_batch import SaveAfterEveryBatch
from tests.face_data import fill, mirrored, who

SMALL = {"b": 3, "batch_size": 4, "image_size": 4, "num_workers": 0}
PEOPLE = {"Ada": 4, "Bo": 5, "Cy": 4, "Di": 6}
SETS = {
    "val_sets": {"probes": "val/probes.csv", "pairs": "val/pairs.txt"},
    "test_sets": {"hard": "test/hard_pairs.txt", "probes": "test/probes.csv", "pairs": "test/pairs.txt"},
}


@pytest.fixture
def root(tmp_path):
    """Four identities; odd pictures are easy, even ones hard."""
    root = fill(tmp_path / "own faces ü", PEOPLE)
    names = [(name, number) for name, count in PEOPLE.items() for number in range(1, count + 1)]
    lines = [f"{name}/{number}.png,{'easy' if number % 2 else 'hard'}" for name, number in names]
    (root / "difficulty.csv").write_text("\n".join(["path,difficulty", *lines]))
    return root


@pytest.fixture(scope="module")
def demo_root(tmp_path_factory):
    return write_faces(
        tmp_path_factory.mktemp("faces") / "drawn", train_ids=3, val_ids=3, test_ids=3, easy=2, hard=1, probes=1,
        size=16, folds=1, pairs=2,
    )  # fmt: skip


def ready(root, *stages, **options):
    data = FaceFolderDataModule(str(root), **SMALL | options)
    data.prepare_data()
    for stage in stages or ("fit",):
        data.setup(stage)
    return data


def steps(data, epoch=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def same(one, other):
    return flat(one) == flat(other)


def flat(batches):
    return [
        (name, part["label"].tolist(), part["image"].tolist(), [picture.tolist() for picture in part.get("pair", ())])
        for batch in batches
        for name, part in batch.items()
    ]


class TestTraining:
    def test_batches(self, root):
        data = ready(root, difficulty="difficulty.csv")
        assert (data.num_classes, data.branch_names, data.input_size) == (4, ["easy", "hard"], [3, 4, 4])
        assert (data.mean, data.std) == ([0.5] * 3, [0.5] * 3)
        batch = steps(data)[0]
        assert list(batch) == ["easy", "hard"]
        for part in batch.values():
            assert list(part) == ["image", "label", "pair"]
            assert {picture.dtype for picture in (part["image"], *part["pair"])} == {torch.uint8}
        batch = data.on_after_batch_transfer(batch, 0)
        for part in batch.values():
            for picture in (part["image"], *part["pair"]):
                assert (picture.shape, picture.dtype) == ((3, 3, 4, 4), torch.float32)
                assert 0 <= picture.min() < picture.max() == 1

    def test_branches_show_what_they_should(self, root):
        for batch in steps(ready(root, difficulty="difficulty.csv")):
            for odd, part in zip((1, 0), batch.values(), strict=True):
                people, numbers = who(part["image"]).T
                assert people.tolist() == part["label"].tolist()
                assert len(set(people.tolist())) == 3
                assert (numbers % 2 == odd).all()
                first, second = map(who, part["pair"])
                assert_close(first[:, 0], second[:, 0])
                assert (first[:, 1] != second[:, 1]).all()
                assert (first[:, 1] % 2 == odd).all()

    @pytest.mark.parametrize(("hard_pairs", "odd"), [("mixed", {0, 1}), ("hard", {0})])
    def test_the_second_picture_of_a_hard_pair(self, root, hard_pairs, odd):
        data = ready(root, difficulty="difficulty.csv", hard_pairs=hard_pairs)
        seconds = torch.cat([batch["hard"]["pair"][1] for epoch in range(3) for batch in steps(data, epoch)])
        assert set((who(seconds)[:, 1] % 2).tolist()) == odd

    def test_each_picture_is_mirrored_on_its_own(self, root):
        data = ready(root, difficulty="difficulty.csv")
        batches = [batch for epoch in range(8) for batch in steps(data, epoch)]
        first, second = (
            torch.cat([mirrored(part["pair"][i]) for batch in batches for part in batch.values()]) for i in range(2)
        )
        alone = torch.cat([mirrored(part["image"]) for batch in batches for part in batch.values()])
        assert len(alone) == 8 * 3 * 3 * 2
        for share in (alone.double().mean(), (first == second).double().mean()):
            assert share == pytest.approx(0.5, abs=0.15)

    def test_what_is_random_depends_on_seed_epoch_and_place_alone(self, root):
        def train(epoch=1, **options):
            return steps(ready(root, difficulty="difficulty.csv", **options), epoch)

        plain = train()
        assert same(train(num_workers=2), plain)
        other = train(seed=1)
        assert not same(other, plain)
        assert [step["easy"]["label"].tolist() for step in other] != [step["easy"]["label"].tolist() for step in plain]
        assert not same(train(epoch=2), plain)

    def test_ranks_share_a_step(self, root, company):
        labels = []
        for rank in range(2):
            company(2, rank)
            batches = steps(ready(root, difficulty="difficulty.csv", b=2))
            labels.append([batch["hard"]["label"].tolist() for batch in batches])
        assert all(set(one).isdisjoint(other) for one, other in zip(*labels, strict=True))

    def test_without_pairs_and_without_a_hard_branch(self, root):
        data = ready(root, pairs=False)
        (part,) = steps(data)[0].values()
        assert (data.branch_names, list(part)) == (["easy"], ["image", "label"])

    def test_pictures_of_other_sizes_are_resized(self, root):
        data = ready(root, image_size=6)
        part = steps(data)[0]["easy"]
        (person, number), flip = who(part["image"])[0].tolist(), bool(mirrored(part["image"])[0])
        name = list(PEOPLE)[person]
        with Image.open(root / "train" / name / f"{number}.png") as image:
            expected = np.asarray(image.resize((6, 6), Image.Resampling.BILINEAR))
        assert np.array_equal(part["image"][0].permute(1, 2, 0).numpy()[:, :: -1 if flip else 1], expected)

    def test_degraded_copies(self, root):
        data = ready(root, hard_scales=[2, 4], image_size=8)
        assert (data.branch_names, data.num_classes) == (["easy", "hard"], 4)
        seen = set()
        for batch in steps(data):
            for image in [*batch["hard"]["image"], *batch["hard"]["pair"][0]]:
                person, number = (image[:2].amax((1, 2)).long() // 20).tolist()
                path = root / "train" / list(PEOPLE)[person] / f"{number}.png"
                with Image.open(path) as stored:
                    plain = stored.resize((8, 8), Image.Resampling.BILINEAR)
                views = {
                    scale: torch.tensor(np.array(low_resolution(plain, scale))).permute(2, 0, 1) for scale in (2, 4)
                }
                found = [s for s, view in views.items() if any(torch.equal(image, v) for v in (view, view.flip(-1)))]
                assert len(found) == 1
                seen.update(found)
        assert seen == {2, 4}
        easy = torch.cat([batch["easy"]["image"] for batch in steps(data)])
        assert set(easy[:, 2].unique().tolist()) >= {0, 255}  # sharp

    def test_separate_heads(self, root):
        fill(root, {"Bo": 2, "Di": 2, "Ed": 2}, folder="dark")
        options = {"easy": "train", "hard": {"dark": "dark"}, "identities": "separate"}
        data = ready(root, **options)
        assert (data.branch_names, data.num_classes) == (["easy", "dark"], [4, 3])
        assert max(int(batch["dark"]["label"].max()) for batch in steps(data)) == 2

    def test_too_few_identities_for_a_batch(self, root):
        with pytest.raises(
            ValueError, match=r"branch 'easy': b=5 on 1 process.* takes 5 different identities in a step"
        ):
            ready(root, b=5).train_dataloader()

    def test_one_picture_where_pairs_are_needed(self, root):
        fill(root, {"Ed": 1, "Flo": 1})
        with pytest.warns(UserWarning, match="branch 'easy': 2 identities have one usable picture .* no pair: Ed, Flo"):
            data = ready(root)
        assert data.summary()["data/easy_without_pair"] == 2
        assert data.num_classes == 6
        assert all(len(part["pair"][0]) == 3 for batch in steps(data) for part in batch.values())

    def test_no_pair_at_all(self, tmp_path):
        fill(tmp_path, {"Ada": 1, "Bo": 1, "Cy": 1})
        with pytest.raises(
            ValueError, match=r"branch 'easy' needs positive pairs .* picture alone: Ada, Bo, Cy. Give them"
        ):
            ready(tmp_path)
        assert ready(tmp_path, pairs=False).num_classes == 3

    def test_a_broken_picture_is_named_or_skipped(self, root):
        for name in ("Ada/1", "Cy/3"):
            (root / f"train/{name}.png").write_bytes(b"cut off")
        with pytest.raises(BadImageError, match=r'cannot read the image .*Ada/1.png.* or set on_bad_image="skip"'):
            ready(root, difficulty="difficulty.csv")
        with (
            pytest.warns(UserWarning, match="have one usable picture and so no pair: Ada, Cy"),
            pytest.warns(UserWarning, match=r"skipped 2 of 19 pictures that cannot be read: .*Ada/1.png, .*Cy/3.png"),
        ):
            data = ready(root, difficulty="difficulty.csv", on_bad_image="skip", hard_pairs="hard")
        summary = data.summary()
        assert (summary["data/bad_images"], summary["data/easy_pictures"]) == (2, 8)
        assert [path[-9:] for path in summary["data/bad_image_files"]] == ["Ada/1.png", "/Cy/3.png"]
        seen = {tuple(pair) for batch in steps(data) for part in batch.values() for pair in who(part["image"]).tolist()}
        assert not seen & {(0, 1), (2, 3)}

    def test_a_file_without_a_size_is_skipped_too(self, root):
        Image.new("RGB", (2, 2)).save(root / "train/Bo/2.png")
        Image.new("RGB", (2, 2)).save(root / "train/Di/2.png")
        (root / "train/Ada/1.png").write_bytes(b"no picture")
        with pytest.warns(UserWarning, match=r"skipped 1 of 19 pictures that cannot be read: .*Ada/1.png"):
            data = ready(root, rule="resolution", easy_side=4, hard_side=3, on_bad_image="skip")
        summary = data.summary()
        assert (summary["data/easy_pictures"], summary["data/hard_pictures"]) == (16, 2)
        assert "data/unused_pictures" not in summary

    def test_what_the_summary_counts(self, root):
        (root / "difficulty.csv").write_text((root / "difficulty.csv").read_text().replace("\nAda/1.png,easy", ""))
        with pytest.warns(UserWarning, match="branch 'easy': 1 identities have one usable picture"):
            data = ready(root, difficulty="difficulty.csv")
        assert data.summary() == {
            "data/easy_pictures": 9, "data/easy_identities": 4, "data/easy_without_pair": 1,
            "data/hard_pictures": 9, "data/hard_identities": 4, "data/hard_without_pair": 0,
            "data/unused_pictures": 1, "data/bad_images": 0, "data/bad_image_files": [],
        }  # fmt: skip


class TestEvaluation:
    def test_a_loader_for_each_set_in_the_order_given(self, demo_root):
        data = ready(demo_root, "fit", "test", b=2, **SETS)
        assert [faces.name for faces in data.evaluation_sets("test")] == ["hard", "probes", "pairs"]
        probes, pairs = (next(iter(loader)) for loader in data.val_dataloader())
        assert list(probes) == ["image", "label", "group", "index"]
        assert (probes["image"].shape, pairs["pair"][1].shape) == ((4, 3, 4, 4), (4, 3, 4, 4))
        assert data.on_after_batch_transfer(pairs, 1)["pair"][0].dtype == torch.float32
        assert [len(loader.dataset) for loader in data.test_dataloader()] == [4, 9, 4]
        fetched = [next(iter(loader)) for loader in ready(demo_root, "test", **SETS, num_workers=1).test_dataloader()]
        assert_close(fetched, [next(iter(loader)) for loader in data.test_dataloader()])

    def test_every_process_has_its_share_and_takes_a_step(self, demo_root, company):
        seen = []
        for rank in range(12):
            company(12, rank)
            loader = ready(demo_root, "test", test_sets={"probes": "test/probes.csv"}).test_dataloader()[0]
            batches = list(loader)
            assert len(batches) == len(loader) == 1
            assert batches[0]["image"].shape[1:] == (3, 4, 4)
            seen += batches[0]["index"].tolist()
        assert sorted(seen) == list(range(9))

    def test_what_a_set_holds_is_said(self, demo_root, caplog):
        with caplog.at_level("INFO"):
            ready(demo_root, "validate", **SETS)
        assert "val_sets: probes has 3 identities, 3 gallery, 3 easy, 3 hard" in caplog.text
        assert "val_sets: pairs has 4 pairs, 2 same" in caplog.text

    def test_no_sets_no_loaders(self, demo_root):
        data = ready(demo_root, "fit", "test", b=2)
        assert (data.val_dataloader(), data.test_dataloader()) == ([], [])

    def test_validation_on_a_test_set_is_said(self, demo_root, caplog):
        sets = {"val_sets": {"chosen_by": "test/../test/pairs.txt"}, "test_sets": {"final": "val/../test/pairs.txt"}}
        with caplog.at_level("INFO"):
            ready(demo_root, "validate", **sets)
        assert (
            "val_sets: chosen_by is the test set final; figures of a checkpoint chosen by it are too go" in caplog.text
        )
        caplog.clear()
        with caplog.at_level("INFO"):
            ready(demo_root, "validate", **SETS)
        assert "is the test set" not in caplog.text

    def test_a_fault_of_a_set_is_told_with_its_line(self, demo_root, tmp_path):
        (tmp_path / "pairs.txt").write_text("1\t1\nAda\t1\tx\nAda\t1\tBo\t1\n")
        with pytest.raises(ValueError, match=r"pairs.txt', line 2"):
            ready(demo_root, "test", test_sets={"pairs": str(tmp_path / "pairs.txt")})


class TestPlaces:
    def test_nothing_there_yet(self, tmp_path):
        data = FaceFolderDataModule(str(tmp_path / "nowhere"), difficulty="difficulty.csv")
        assert (data.num_classes, data.branch_names) == (0, ["easy", "hard"])
        with pytest.raises(
            FileNotFoundError, match=r"root='.*nowhere' does not exist; it should hold train='.*train', diff"
        ):
            data.prepare_data()
        with pytest.raises(FileNotFoundError, match="train='train' is not in root="):
            data.setup("fit")
        with pytest.raises(RuntimeError, match=r'call setup\("fit"\) first'):
            data.train_dataloader()
        with pytest.raises(RuntimeError, match=r'call setup\("test"\) first'):
            data.test_dataloader()

    def test_a_set_that_is_not_there(self, root):
        with pytest.raises(FileNotFoundError, match=r"lacks val_sets.lfw='.*lfw.bin'. Point root at the folder"):
            ready(root, val_sets={"lfw": "lfw.bin"})

    def test_each_stage_asks_for_what_it_needs(self, demo_root, tmp_path, make_trainer):
        tests = shutil.copytree(demo_root / "test", tmp_path / "faces/test").parent

        class Nothing(LightningModule):
            def test_step(self, batch, batch_idx, dataloader_idx=0):
                assert "index" in batch

        make_trainer().test(Nothing(), FaceFolderDataModule(str(tests), **SMALL | SETS), verbose=False)
        with pytest.raises(FileNotFoundError, match=r"lacks train=.*, val_sets.probes=.*, val_sets.pairs="):
            make_trainer(max_epochs=1).fit(Learner(), FaceFolderDataModule(str(tests), **SMALL | SETS))

    def test_the_demo_is_written_where_there_is_nothing(self, tmp_path, monkeypatch):
        calls = []

        def write(root):
            calls.append(root)
            fill(root, {f"p{i:02d}": 1 for i in range(64)})

        monkeypatch.setattr("datamodules.face_folder.write_faces", write)
        options = SMALL | {"demo": True, "pairs": False, "hard_scales": [2]}
        data = FaceFolderDataModule(str(tmp_path / "new"), **options)
        assert data.num_classes == 64
        assert not calls
        data.prepare_data()
        data.prepare_data()
        data.setup("fit")
        assert (data.num_classes, calls) == (64, [tmp_path / "new"])
        separate = FaceFolderDataModule(str(tmp_path / "newer"), identities="separate", **options)
        assert separate.num_classes == [64, 64]
        fill(tmp_path / "newer", {"Ada": 1, "Bo": 1})
        with pytest.raises(
            ValueError, match=r"has \[2, 2\] classes to train on, but \[64, 64\] were expected before d"
        ):
            separate.setup("fit")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"b": 1}, "b must be at least 2, got 1: a batch with one identity has no negatives"),
            ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
            ({"image_size": 0}, "image_size must be at least 1, got 0"),
            ({"num_workers": -1}, r"num_workers must be 0 \(load in the main process\) or more, got -1"),
            ({"hard_pairs": "easy"}, "hard_pairs must be one of mixed, hard, got 'easy'"),
            ({"on_bad_image": "stop"}, "on_bad_image must be one of raise, skip, got 'stop'"),
            ({"difficulty": "a", "hard_scales": [2]}, "difficulty, hard_scales: what is hard must be said in one way"),
        ],
    )
    def test_arguments_out_of_range(self, options, message):
        with pytest.raises(ValueError, match=message):
            FaceFolderDataModule("nowhere", **options)

    def test_several_processes_need_our_samplers(self, root):
        class Trainer:
            world_size = 2
            _accelerator_connector = type("Connector", (), {"use_distributed_sampler": True})

        data = FaceFolderDataModule(str(root), **SMALL)
        data.trainer = Trainer()
        with pytest.raises(ValueError, match="use_distributed_sampler=True with 2 processes"):
            data.setup("fit")


class Learner(LightningModule):
    """Learns from every batch, and remembers it."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(3, 1, 1, dtype=torch.float64)), []

    def training_step(self, batch, batch_idx):
        self.seen += flat([batch])
        return sum((self.weight - part["image"].double()).square().mean() for part in batch.values())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_run_resumed_after_any_batch_equals_an_uninterrupted_one(make_trainer, root, tmp_path):
    def fit(callbacks=(), ckpt_path=None):
        module, data = Learner(), FaceFolderDataModule(str(root), difficulty="difficulty.csv", **SMALL)
        trainer = make_trainer(max_epochs=2, callbacks=list(callbacks))
        trainer.fit(module, data, ckpt_path=ckpt_path)
        assert trainer.train_dataloader.trainer is trainer  # so that a failed step is not counted
        return module

    saver = SaveAfterEveryBatch(tmp_path)
    whole = fit([saver])
    assert len(saver.paths) == 6
    for done in range(1, 6):
        rest = fit(ckpt_path=saver.paths[done - 1])
        assert rest.seen == whole.seen[2 * done :]
        assert torch.equal(rest.weight, whole.weight)


def test_pictures_that_are_kept_in_memory_give_the_same_batches(root):
    kept = ready(root, difficulty="difficulty.csv", in_memory=True)
    plain = ready(root, difficulty="difficulty.csv")
    for epoch in (0, 1, 1):
        assert same(steps(kept, epoch), steps(plain, epoch))


def test_pictures_that_are_kept_are_read_once(root, monkeypatch):
    from datamodules import face_views

    data, seen, read = ready(root, hard_scales=[2], in_memory=True), [], face_views.read_rgb
    monkeypatch.setattr(face_views, "read_rgb", lambda path: seen.append(path) or read(path))
    loader = data.train_dataloader()
    for epoch in range(4):
        loader.sampler.set_epoch(epoch)
        list(loader)
    assert len(seen) == len(set(seen)) > 0
