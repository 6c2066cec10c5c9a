"""WIDER FACE in fits that stop and go on, and shared out over processes."""

import pytest
from lightning.pytorch.callbacks import OnExceptionCheckpoint

from datamodules import WIDERFaceDataModule
from tests.every_batch import SaveAfterEveryBatch
from tests.wider_fits import SMALL, Seen, ready, write_plain


@pytest.fixture
def root(tmp_path):
    return write_plain(tmp_path)


@pytest.mark.filterwarnings("ignore:.*fit.ckpt_path=")
@pytest.mark.parametrize(("split", "size", "batches"), [(False, 3, 6), (True, 2, 4)])
def test_a_fit_goes_on_after_any_batch_with_the_pictures_it_had_not_seen(
    root, make_trainer, tmp_path, split, size, batches
):
    def fit(**options):
        seen = Seen()
        data = WIDERFaceDataModule(str(root), **SMALL | {"batch_size": size}, split_halves=split)
        trainer = make_trainer(max_epochs=2, limit_val_batches=0, callbacks=options.pop("callbacks", None))
        trainer.fit(seen, data, weights_only=False, **options)
        return seen.batches

    saves = SaveAfterEveryBatch(tmp_path)
    whole = fit(callbacks=[saves])
    assert len(whole) == batches
    for done, path in enumerate(saves.paths, 1):
        assert fit(ckpt_path=path) == whole[done:]


@pytest.mark.filterwarnings("ignore:.*fit.ckpt_path=")
def test_a_fit_that_failed_in_a_step_gets_its_batch_again(root, make_trainer, tmp_path):
    whole, broken, resumed = Seen(), Seen(fail_at=2), Seen()
    options = {"max_epochs": 1, "limit_val_batches": 0}
    make_trainer(**options).fit(whole, WIDERFaceDataModule(str(root), **SMALL))
    trainer = make_trainer(**options, callbacks=[OnExceptionCheckpoint(tmp_path, "last")], enable_checkpointing=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.fit(broken, WIDERFaceDataModule(str(root), **SMALL))
    last = tmp_path / "last.ckpt"
    make_trainer(**options).fit(resumed, WIDERFaceDataModule(str(root), **SMALL), ckpt_path=last, weights_only=False)
    assert broken.batches + resumed.batches == whole.batches


def test_processes_share_pictures_out_and_one_without_any_takes_part(root, company):
    shares, names = [], []
    for rank in range(4):
        company(4, rank)
        data = ready(root, "fit", "test")
        shares.append(list(data.train_dataloader().sampler))
        loader = data.test_dataloader()
        batches = list(loader)
        assert len(batches) == len(loader) == 1
        names.append([name for batch in batches for name in batch["name"]])
        assert batches[0]["image"] == [] if rank == 3 else len(batches[0]["image"]) == 1
    assert [len(share) for share in shares] == [2] * 4
    assert {position for share in shares for _, position in share} == set(range(7))
    assert names == [["0--Parade/a"], ["0--Parade/b"], ["1--Handshaking/c"], []]
    empty = data.on_after_batch_transfer(batches[0], 0)
    assert {key: len(value) for key, value in empty.items()} == dict.fromkeys(empty, 0)
