import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn

from datamodules import CIFARDataModule
from datamodules.samplers import EpochSampler, ResumableLoader, ShardSampler, refuse_replaced_samplers
from tests.datamodules.each_rank import KeepOfEachRank

EPOCHS, BATCHES = 3, 6  # 180 of the 200 demo images in batches of 32: the last of an epoch has 20


class Linear(LightningModule):
    """Sees every pixel and the order of the batches; no batch norm, nothing random."""

    def __init__(self, fail_at=None):
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.fail_at, self.seen = nn.Linear(3 * 32 * 32, 10), fail_at, []

    def training_step(self, batch, batch_idx):
        if self.global_step == self.fail_at:
            raise RuntimeError("out of memory")
        self.seen.append((self.current_epoch, batch_idx, batch["index"].tolist()))
        return nn.functional.cross_entropy(self.layer(batch["image"].flatten(1)), batch["label"])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", nn.functional.cross_entropy(self.layer(batch["image"].flatten(1)), batch["label"]))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class SaveEverywhere(Callback):
    def __init__(self, folder):
        self.folder, self.paths = folder, []

    def save(self, trainer, hook):
        self.paths.append(self.folder / f"{trainer.global_step:02d}_{hook}.ckpt")
        trainer.save_checkpoint(self.paths[-1])

    def on_train_start(self, trainer, pl_module):
        self.save(trainer, "train_start")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.save(trainer, "batch_end")

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.save(trainer, "validation_end")

    def on_train_epoch_end(self, trainer, pl_module):
        self.save(trainer, "epoch_end")

    def on_train_end(self, trainer, pl_module):
        self.save(trainer, "train_end")


class SaveOnException(Callback):
    def __init__(self, path):
        self.path = path

    def on_exception(self, trainer, pl_module, exception):
        trainer.save_checkpoint(self.path)


@pytest.fixture
def fit(make_trainer, cifar10_root):
    def run(callbacks=(), ckpt_path=None, num_workers=0, module=None, **kwargs):
        data = CIFARDataModule("cifar10", str(cifar10_root), batch_size=32, num_workers=num_workers)
        module = module or Linear()
        trainer = make_trainer(**{"max_epochs": EPOCHS, "callbacks": [*callbacks]} | kwargs)
        trainer.fit(module, data, ckpt_path=ckpt_path)
        return module

    return run


def same(first, second):
    return torch.equal(first.layer.weight, second.layer.weight) and torch.equal(first.layer.bias, second.layer.bias)


@pytest.mark.filterwarnings("ignore:Not the official", "ignore:.*`LightningDataModule`")
class TestResume:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"val_check_interval": 2},
            {"reload_dataloaders_every_n_epochs": 1},
            {"limit_train_batches": 4},
            {"max_steps": 11, "max_epochs": -1},
            {"limit_val_batches": 0},
        ],
        ids=lambda options: next(iter(options), "plain"),
    )
    def test_weights_are_bit_equal_from_every_checkpoint(self, fit, tmp_path, options):
        saver = SaveEverywhere(tmp_path)
        whole = fit([saver], **options)
        few = (
            saver.paths if not options else [path for path in saver.paths if path.name[:2] in ("00", "04", "06", "08")]
        )
        different = [path.name for path in few if not same(whole, fit(ckpt_path=path, **options))]
        assert len(few) >= 5
        assert not different

    def test_two_workers_resume_like_none(self, fit, tmp_path):
        saver = SaveEverywhere(tmp_path)
        whole = fit([saver], num_workers=2)
        assert same(whole, fit())
        for name in ("04_batch_end", "06_batch_end", "12_epoch_end", "18_train_end"):
            assert same(whole, fit(ckpt_path=tmp_path / f"{name}.ckpt", num_workers=2)), name

    def test_a_resumed_run_can_be_resumed_again(self, fit, tmp_path):
        first, second = SaveEverywhere(tmp_path / "first"), SaveEverywhere(tmp_path / "second")
        whole = fit([first])
        fit([second], ckpt_path=tmp_path / "first" / "03_batch_end.ckpt", max_epochs=1)
        for path in second.paths:  # the first of these was written before any batch of the resumed run
            assert same(whole, fit(ckpt_path=path)), path.name

    def test_a_finished_run_goes_on_with_more_epochs(self, fit, tmp_path):
        fit([SaveEverywhere(tmp_path)], max_epochs=2)
        assert same(fit(max_epochs=3), fit(ckpt_path=tmp_path / "12_train_end.ckpt", max_epochs=3))

    def test_a_batch_whose_step_failed_comes_again(self, fit, tmp_path):
        with pytest.raises(RuntimeError, match="out of memory"):
            fit([SaveOnException(tmp_path / "failed.ckpt")], module=Linear(fail_at=8))
        assert same(fit(), fit(ckpt_path=tmp_path / "failed.ckpt"))

    def test_the_resumed_epoch_has_the_missing_images(self, fit, tmp_path):
        whole = fit([SaveEverywhere(tmp_path)])
        rest = fit(ckpt_path=tmp_path / "08_batch_end.ckpt")
        assert rest.seen == whole.seen[8:]
        for epoch in range(EPOCHS):
            seen = [row for at, _, rows in whole.seen if at == epoch for row in rows]
            assert len(seen) == len(set(seen)) == 180

    def test_another_batch_size_in_the_middle_of_an_epoch_warns(self, fit, tmp_path, make_trainer, cifar10_root):
        fit([SaveEverywhere(tmp_path)], max_epochs=1)
        data = CIFARDataModule("cifar10", str(cifar10_root), batch_size=16)
        with pytest.warns(UserWarning, match="batch_size=32 on 1"):
            make_trainer(max_epochs=1).fit(Linear(), data, ckpt_path=tmp_path / "03_batch_end.ckpt")


class TestEpochSampler:
    @pytest.mark.parametrize(("size", "replicas"), [(10, 1), (10, 2), (11, 3), (2, 5)])
    def test_ranks_share_the_set_and_are_equally_long(self, size, replicas):
        samplers = [EpochSampler(range(size), 3, num_replicas=replicas, rank=rank) for rank in range(replicas)]
        shares = [list(sampler) for sampler in samplers]
        assert {len(share) for share in shares} == {len(samplers[0])}
        assert {position for share in shares for _, position in share} == set(range(size))
        assert sum(map(len, shares)) - size < replicas

    def test_order_depends_on_seed_and_epoch_only(self):
        def order(seed, epoch):
            sampler = EpochSampler(range(20), seed)
            sampler.set_epoch(epoch)
            torch.rand(3)  # the global generator has no say
            pairs = list(sampler)
            assert {at for at, _ in pairs} == {epoch}
            return [position for _, position in pairs]

        assert order(0, 1) == order(0, 1)
        assert order(0, 1) != order(0, 0)
        assert order(0, 1) != order(1, 1)
        assert order(1, 0) != order(0, 1)

    def test_start_leaves_out_samples_once(self):
        sampler = EpochSampler(range(6))
        whole = list(sampler)
        sampler.start = 4
        assert (list(sampler), list(sampler), len(sampler)) == (whole[4:], whole, 6)

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="dataset is empty"):
            EpochSampler([])
        with pytest.raises(ValueError, match="rank must be between 0 and num_replicas - 1 = 1, got 2"):
            EpochSampler(range(3), num_replicas=2, rank=2)


@pytest.mark.parametrize(("size", "replicas"), [(7, 1), (7, 3), (2, 4), (0, 2)])
def test_evaluation_counts_each_sample_once(size, replicas):
    samplers = [ShardSampler(range(size), replicas, rank) for rank in range(replicas)]
    assert sorted(row for sampler in samplers for row in sampler) == list(range(size))
    assert [len(sampler) for sampler in samplers] == [len(list(sampler)) for sampler in samplers]


class TestResumableLoader:
    def loader(self):
        return ResumableLoader(
            {(e, i): i for e in range(3) for i in range(10)}, batch_size=4, sampler=EpochSampler(range(10))
        )

    def test_state_survives_until_it_is_used(self):
        loader = self.loader()
        state = {"epoch": 2, "done": 1, "batch_size": 4, "replicas": 1}
        loader.load_state_dict(state)
        iter(loader)  # Lightning does that before it sets the epoch
        assert (loader.state_dict(), len(loader)) == (state, 3)
        loader.sampler.set_epoch(2)
        assert len(list(loader)) == 2
        assert loader.state_dict()["done"] == 3
        assert len(list(loader)) == 3

    def test_a_finished_epoch_has_nothing_left_and_another_epoch_everything(self):
        loader = self.loader()
        loader.load_state_dict({"epoch": 0, "done": 3, "batch_size": 4, "replicas": 1})
        assert list(loader) == []
        loader.load_state_dict({"epoch": 0, "done": 3, "batch_size": 4, "replicas": 1})
        loader.sampler.set_epoch(1)
        assert len(list(loader)) == 3

    def test_a_broken_off_epoch_does_not_shorten_the_next(self):
        loader = self.loader()
        next(iter(loader))
        assert loader.state_dict()["done"] == 1
        assert len(list(loader)) == 3


@pytest.mark.filterwarnings("ignore:Not the official")
def test_overfit_batches_trains_on_the_same_first_images(fit):
    module = fit(overfit_batches=2, limit_val_batches=0)
    assert [rows for _, _, rows in module.seen[:2]] == [rows for _, _, rows in module.seen[2:4]]


def test_replaced_samplers_are_refused(make_trainer):
    refuse_replaced_samplers(None)
    refuse_replaced_samplers(make_trainer(use_distributed_sampler=True))
    refuse_replaced_samplers(make_trainer(devices=2, strategy="ddp"))
    trainer = make_trainer(devices=2, strategy="ddp", use_distributed_sampler=True)
    data = CIFARDataModule()
    data.trainer = trainer
    with pytest.raises(ValueError, match=r"with 2 processes .* Set Trainer\(use_distributed_sampler=False\)"):
        data.setup("fit")


class SaveAtSteps(KeepOfEachRank):
    def __init__(self, folder, steps=()):
        super().__init__(folder)
        self.steps = steps

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_share_the_epoch_and_resume(make_trainer, cifar10_root, tmp_path):
    def run(steps=(), **kwargs):
        data = CIFARDataModule("cifar10", str(cifar10_root), batch_size=16)
        keep = SaveAtSteps(tmp_path, steps)
        make_trainer(max_epochs=2, devices=2, strategy="ddp_fork", callbacks=[keep]).fit(Linear(), data, **kwargs)
        return [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]

    whole = run((4, 6))  # in the middle and at the end of the first epoch
    assert torch.equal(whole[0]["weight"], whole[1]["weight"])
    for epoch in range(2):
        seen = [row for rank in whole for at, _, rows in rank["seen"] if at == epoch for row in rows]
        assert len(seen) == len(set(seen)) == 180
    for step in (4, 6):
        resumed = run(ckpt_path=tmp_path / f"{step}.ckpt")
        assert all(torch.equal(rank["weight"], whole[0]["weight"]) for rank in resumed)
