"""Market-1501 in low resolution: easy and hard branches, degraded queries beside the clean ones."""

import zlib

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from PIL import Image

from callbacks import RankedLists
from datamodules import DukeMTMCDataModule, Market1501DataModule
from datamodules.low_resolution import low_resolution
from lit_methods import SourceReID
from lit_methods.metrics.reid import ReIDRanking
from tests.loading import batches, flat
from tests.reid_data import SMALL, kinds, ready

LOW = {"lr_query": True}
BRANCHES = {"train_on": "branches", "b": 4}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class TestEvaluation:
    def test_each_query_comes_clean_and_degraded(self, market1501_root):
        data = ready(market1501_root, "test", **LOW)
        batch = batches(data.test_dataloader())
        assert kinds(batch)["low"] == (torch.bool, (len(batch["pid"]),))
        assert not (batch["low"] & ~batch["is_query"]).any()
        low, clean = batch["low"], batch["is_query"] & ~batch["low"]
        for key in ("index", "pid", "camid"):
            assert torch.equal(batch[key][low], batch[key][clean])
        assert sorted(batch["index"][low].tolist()) == list(range(len(data.query_files)))
        assert not torch.equal(batch["image"][low], batch["image"][clean])

    def test_without_the_degraded_ones_it_is_the_evaluation_as_it_was(self, market1501_root):
        for stage in ("test", "fit"):
            parts = []
            for options in (LOW, {}):
                data = ready(market1501_root, stage, **options)
                parts.append(batches(data.test_dataloader() if stage == "test" else data.val_dataloader()))
            degraded, plain = parts
            assert "low" not in plain
            keep = ~degraded.pop("low")
            assert equal({key: value[keep] for key, value in degraded.items()}, plain)

    def test_the_factor_is_that_of_the_file_name(self, market1501_root):
        data = ready(market1501_root, "test", lr_factors=[7], **LOW)  # those are of training alone
        seen = set()
        for batch in data.test_dataloader():
            for row in batch["low"].nonzero().flatten().tolist():
                path = data.query_files[int(batch["index"][row])]
                factor = 2 + zlib.crc32(path.name.encode()) % 3
                stored = Image.open(path)
                assert stored.size == (64, 128)
                small = (round(64 / factor), round(128 / factor))
                expected = stored.resize(small, Image.Resampling.BICUBIC).resize((16, 32), Image.Resampling.BILINEAR)
                assert np.array_equal(batch["image"][row].permute(1, 2, 0).numpy(), expected)
                seen.add(factor)
        assert seen == {2, 3, 4}

    def test_a_limit_on_batches_leaves_whole_persons_out(self, market1501_root):
        batch = next(iter(ready(market1501_root, "test", **LOW | {"batch_size": 12}).test_dataloader()))
        assert batch["pid"].unique().numel() == 1
        assert batch["is_query"].tolist() == [True, True, False, False] * 3
        assert batch["low"].tolist() == [False, True, False, False] * 3

    def test_the_log_and_the_summary_say_what_it_is(self, market1501_root, duke_root, caplog, capsys):
        with caplog.at_level("INFO"):
            data = ready(market1501_root, "test", **LOW)
        assert "lr_query=True: LR-Market (ours): queries down-sampled" in caplog.text + capsys.readouterr().err
        assert str(data.summary()["data/protocol"]).startswith("LR-Market (ours)")
        assert str(ready(duke_root, "test", cls=DukeMTMCDataModule, **LOW).summary()["data/protocol"]).startswith(
            "LR-DukeMTMC-reID (ours)"
        )
        assert "data/protocol" not in ready(market1501_root, "test").summary()

    def test_persons_held_out_have_degraded_queries_too(self, market1501_root):
        data = ready(market1501_root, "fit", val_source="train", val_ids=2, **LOW)
        assert int(batches(data.val_dataloader())["low"].sum()) == len(data.val_query_files)

    def test_processes_share_them_out(self, market1501_root, company):
        seen = []
        for rank in range(2):
            company(2, rank)
            data = Market1501DataModule(str(market1501_root), **SMALL | LOW)
            data.setup("test")
            for batch in data.test_dataloader():
                seen += zip(batch["is_query"].tolist(), batch["low"].tolist(), batch["index"].tolist(), strict=True)
        assert len(seen) == len(set(seen)) == 2 * len(data.query_files) + len(data.gallery_files)


class TestModules:
    def test_figures_of_degraded_queries_stand_beside_the_clean_ones(self, make_trainer, market1501_root):
        torch.manual_seed(0)
        module = SourceReID("tiny", {"width": 4}, num_classes=8, input_size=[3, 32, 16])
        found = []
        for options in ({}, LOW):
            data = Market1501DataModule(str(market1501_root), **SMALL | options)
            (figures,) = make_trainer().test(module, datamodule=data, verbose=False)
            found.append(figures)
        plain, both = found
        assert {f"test/low_{name.removeprefix('test/')}" for name in plain} == both.keys() - plain.keys()
        assert all(both[name] == pytest.approx(value, abs=1e-6) for name, value in plain.items())
        assert both["test/low_mAP"] != both["test/mAP"]
        assert 0 < both["test/low_mAP"] <= 1
        ranking = ReIDRanking()
        for batch in data.test_dataloader():  # the degraded ones first
            flipped = {key: value.flip(0) for key, value in data.on_after_batch_transfer(batch, 0).items()}
            module.eval().update_ranking(ranking, flipped)
        assert float(ranking.compute()["mAP"]) == pytest.approx(plain["test/mAP"], abs=1e-6)

    def test_the_degraded_figures_are_those_of_degraded_files(self, make_trainer, own_root):
        torch.manual_seed(0)
        module = SourceReID("tiny", {"width": 4}, num_classes=8, input_size=[3, 32, 16])
        data = Market1501DataModule(str(own_root), **SMALL | LOW)
        (both,) = make_trainer().test(module, datamodule=data, verbose=False)
        for path in data.query_files:
            factor = 2 + zlib.crc32(path.name.encode()) % 3
            picture = low_resolution(Image.open(path), factor, (16, 32))
            picture.save(path, format="PNG")  # without loss; what a file is, is not read from its name
        (degraded,) = make_trainer().test(
            module, datamodule=Market1501DataModule(str(own_root), **SMALL), verbose=False
        )
        for name in ("mAP", "mINP", "rank1"):
            assert both[f"test/low_{name}"] == pytest.approx(degraded[f"test/{name}"], abs=1e-6)

    def test_ranked_lists_show_clean_queries(self, make_trainer, market1501_root):
        module = SourceReID("tiny", {"width": 4}, num_classes=8, input_size=[3, 32, 16])
        lists = RankedLists(num_queries=4, top=3)
        tables = []
        for options in ({}, LOW):
            data = Market1501DataModule(str(market1501_root), **SMALL | options)
            kept = []
            draw = lists.lists
            lists.lists = lambda *args, draw=draw, kept=kept: kept.append(draw(*args)) or kept[-1]
            make_trainer(callbacks=[lists]).test(module, datamodule=data, verbose=False)
            lists.lists = draw
            tables.append([[*row[:5], row[6]] for row in kept[0][1]])
        assert tables[0] == tables[1]
        assert len({row[0] for row in tables[0]}) == 4


class TestTraining:
    def test_a_batch_has_easy_and_hard_pictures_and_pairs(self, market1501_root):
        data = ready(market1501_root, "fit", **BRANCHES)
        assert (data.num_classes, data.branch_names) == (8, ["easy", "hard"])
        loader = data.train_dataloader()
        assert len(loader) == 72 // 4
        batch = next(iter(loader))
        assert list(batch) == ["easy", "hard"]
        for branch in batch.values():
            assert {key: value.shape for key, value in branch.items() if key != "pair"} == {
                "image": (4, 3, 32, 16),
                "label": (4,),
            }
            assert [part.shape for part in branch["pair"]] == [(4, 3, 32, 16)] * 2
            assert len(branch["label"].unique()) == 4
            assert int(branch["label"].max()) < 8
        floats = data.on_after_batch_transfer(batch, 0)
        torch.testing.assert_close(floats["hard"]["pair"][1], batch["hard"]["pair"][1].float() / 255)

    def test_hard_pictures_are_degraded_by_any_of_the_factors(self, market1501_root):
        data = ready(market1501_root, "fit", source_crop=False, height=128, width=64, **BRANCHES)
        pictures = data.train_dataloader().dataset.pictures
        size = len(data.train_files)
        stored = Image.open(data.train_files[5]).convert("RGB")
        views = {factor: low_resolution(stored, factor) for factor in (1, 2, 3, 4)}
        wanted = {
            (factor, flipped): np.asarray(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else view)
            for factor, view in views.items()
            for flipped in (False, True)
        }
        numbers = np.arange(40)
        for position, factors in ((5, {1}), (5 + size, {2, 3, 4})):
            images = pictures(np.full(40, position), np.zeros(40, np.int64), numbers).permute(0, 2, 3, 1).numpy()
            names = [[key for key, view in wanted.items() if np.array_equal(image, view)] for image in images]
            assert all(len(found) == 1 for found in names)
            assert {key for (key,) in names} == {(factor, flip) for factor in factors for flip in (False, True)}

    def test_crops_follow_the_argument(self, market1501_root):
        views = []
        for crop in (False, True):
            pictures = ready(market1501_root, "fit", source_crop=crop, **BRANCHES).train_dataloader().dataset.pictures
            views.append(len({image.numpy().tobytes() for image in pictures(*np.zeros((3, 1), np.int64).repeat(9, 1))}))
            numbers = np.arange(9)
            found = pictures(numbers * 0, numbers * 0, numbers)
            views.append(len({image.numpy().tobytes() for image in found}))
        assert views == [1, 2, 1, 9]  # one key is one view; without crops there are two, of which one is mirrored

    @pytest.mark.parametrize("hard_pairs", ["mixed", "hard"])
    def test_partners_of_hard_pictures(self, market1501_root, hard_pairs):
        data = ready(market1501_root, "fit", hard_pairs=hard_pairs, **BRANCHES)
        pairs = data.train_dataloader().dataset.pair_sets["hard"].positions(0, np.arange(200))
        size = len(data.train_files)
        persons = np.array([int(path.name[:4]) for path in data.train_files])
        assert (persons[pairs[:, 0] % size] == persons[pairs[:, 1] % size]).all()
        assert (pairs[:, 0] % size != pairs[:, 1] % size).all()
        assert (pairs[:, 0] >= size).all()
        assert set((pairs[:, 1] >= size).tolist()) == ({True} if hard_pairs == "hard" else {False, True})

    def test_without_pairs_and_the_summary(self, market1501_root):
        data = ready(market1501_root, "fit", pairs=False, **BRANCHES)
        assert "data/easy_pictures" not in data.summary()
        assert list(next(iter(data.train_dataloader()))["hard"]) == ["image", "label"]
        assert (data.summary()["data/hard_pictures"], data.summary()["data/hard_identities"]) == (72, 8)

    def test_workers_and_a_second_loader_give_the_same(self, market1501_root):
        plain, again, workers, other = (
            ready(market1501_root, "fit", train_on="branches", b=8, **options).train_dataloader()
            for options in ({}, {}, {"num_workers": 2}, {"seed": 1})
        )
        expected = list(plain)
        assert all(equal(flat(a), flat(b)) for a, b in zip(expected, workers, strict=True))
        assert all(equal(flat(a), flat(b)) for a, b in zip(expected[:2], again, strict=False))
        assert not equal(flat(expected[0]), flat(next(iter(other))))

    def test_persons_held_out_are_not_trained_on(self, market1501_root):
        data = ready(market1501_root, "fit", val_source="train", val_ids=2, **BRANCHES)
        assert data.num_classes == 6
        held = {path.name for path in data.val_query_files + data.val_gallery_files}
        assert not held & {path.name for path in data.train_files}
        seen = {int(x) for batch in data.train_dataloader() for x in batch["hard"]["label"]}
        assert seen == set(range(6))

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"b": 1}, "b must be at least 2, got 1"),
            ({"lr_factors": [2, 0]}, r"lr_factors must be numbers from 1 up, or empty for no hard branch"),
            ({"hard_pairs": "easy"}, "hard_pairs must be one of mixed, hard, got 'easy'"),
            ({"train_on": "branch"}, 'train_on must be one of ids, clusters, cameras, got .branch., nor "branches"'),
        ],
    )
    def test_bad_arguments(self, market1501_root, wrong, message):
        with pytest.raises(ValueError, match=message):
            Market1501DataModule(str(market1501_root), **SMALL | wrong)

    def test_too_few_persons_for_a_batch(self, market1501_root):
        data = ready(market1501_root, "fit", train_on="branches", b=9)
        with pytest.raises(ValueError, match=r"branch 'easy': b=9 on 1 process\(es\) takes 9 .* has 8; set b to 8"):
            data.train_dataloader()


class Seen(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(3, 32, 16, dtype=torch.float64)), []

    def training_step(self, batch, batch_idx):
        self.seen.append(flat(batch))
        return sum((self.weight - part["image"].double()).square().mean() for part in batch.values())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=10.0)


class SaveOnce(Callback):
    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 11:  # the second batch of the second epoch
            trainer.save_checkpoint(self.path)


def test_a_run_resumed_in_the_middle_of_an_epoch_equals_an_uninterrupted_one(make_trainer, market1501_root, tmp_path):
    def fit(callbacks=(), ckpt_path=None):
        module = Seen()
        data = Market1501DataModule(str(market1501_root), **SMALL | {"train_on": "branches", "b": 8})
        trainer = make_trainer(max_epochs=2, limit_val_batches=0, callbacks=list(callbacks))
        trainer.fit(module, data, ckpt_path=ckpt_path)
        return module

    whole = fit([SaveOnce(tmp_path / "11.ckpt")])
    rest = fit(ckpt_path=tmp_path / "11.ckpt")
    assert (len(whole.seen), len(rest.seen)) == (18, 7)
    assert all(equal(a, b) for a, b in zip(rest.seen, whole.seen[11:], strict=True))
    assert torch.equal(rest.weight, whole.weight)
