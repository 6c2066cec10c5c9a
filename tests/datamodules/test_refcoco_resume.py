"""RefCOCO in fits that stop and go on, and shared out over processes."""

import pytest
from lightning.pytorch.callbacks import OnExceptionCheckpoint

from datamodules import RefCOCODataModule
from tests.every_batch import SaveAfterEveryBatch
from tests.refer_data import SMALL, Seen, ready, write_refer


@pytest.fixture
def root(tmp_path):
    return write_refer(tmp_path / "data")


@pytest.mark.filterwarnings("ignore:.*fit.ckpt_path=")
def test_a_fit_goes_on_after_any_batch_with_the_refs_and_sentences_it_had_not_seen(root, make_trainer, tmp_path):
    def fit(**options):
        seen = Seen()
        trainer = make_trainer(max_epochs=2, limit_val_batches=0, callbacks=options.pop("callbacks", None))
        trainer.fit(seen, RefCOCODataModule(str(root), **SMALL), weights_only=False, **options)
        return seen.batches

    saves = SaveAfterEveryBatch(tmp_path)
    whole = fit(callbacks=[saves])
    assert len(whole) == 6
    assert whole[0][2:] != whole[3][2:]  # another order in the next epoch
    for done, path in enumerate(saves.paths, 1):
        assert fit(ckpt_path=path) == whole[done:]


@pytest.mark.filterwarnings("ignore:.*fit.ckpt_path=")
def test_a_fit_that_failed_in_a_step_gets_its_batch_again(root, make_trainer, tmp_path):
    whole, broken, resumed = Seen(), Seen(fail_at=2), Seen()
    options = {"max_epochs": 1, "limit_val_batches": 0}
    make_trainer(**options).fit(whole, RefCOCODataModule(str(root), **SMALL))
    trainer = make_trainer(**options, callbacks=[OnExceptionCheckpoint(tmp_path, "last")], enable_checkpointing=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.fit(broken, RefCOCODataModule(str(root), **SMALL))
    last = tmp_path / "last.ckpt"
    make_trainer(**options).fit(resumed, RefCOCODataModule(str(root), **SMALL), ckpt_path=last, weights_only=False)
    assert broken.batches + resumed.batches == whole.batches


def test_a_fit_and_a_test_show_every_sentence_once(root, make_trainer):
    seen, data = Seen(), RefCOCODataModule(str(root), **SMALL)
    trainer = make_trainer(max_epochs=1, num_sanity_val_steps=0)
    trainer.fit(seen, data)
    assert seen.shown == [0, 1]
    trainer.test(seen, data)
    assert seen.shown == [0, 1, *range(6)]


def test_processes_share_refs_and_pictures_out_and_one_without_any_takes_part(root, company):
    shares, rows = [], []
    for rank in range(3):
        company(3, rank)
        data = ready(root, "fit", "test", batch_size=2)
        shares.append([position for _, position in data.train_dataloader().sampler])
        loader = data.test_dataloader()
        batches = list(loader)
        assert len(batches) == len(loader) == 1
        rows.append(batches[0]["index"].tolist())
    assert [len(share) for share in shares] == [2, 2, 2]  # whole batches, as many for each
    assert {position for share in shares for position in share} == set(range(5))
    assert rows == [[0, 1, 2, 3], [4, 5], []]  # sentences about a picture stay together


def test_lightnings_own_sampler_is_refused(root):
    class Trainer:
        world_size = 2

        class _accelerator_connector:
            use_distributed_sampler = True

    data = RefCOCODataModule(str(root), **SMALL)
    data.trainer = Trainer()
    with pytest.raises(ValueError, match="use_distributed_sampler"):
        data.setup("fit")
