"""RefCOCO in fits that stop and go on, and shared out over processes."""

import pytest

from datamodules import RefCOCODataModule
from tests.every_batch import failed_and_gone_on, gone_on_after_every_batch
from tests.loading import with_own_sampler
from tests.refer_data import SMALL, Seen, ready, write_refer


@pytest.fixture
def root(tmp_path):
    return write_refer(tmp_path / "data")


@pytest.mark.filterwarnings("ignore:.*fit.ckpt_path=")
def test_a_fit_goes_on_after_any_batch_with_the_refs_and_sentences_it_had_not_seen(root, make_trainer, tmp_path):
    whole = gone_on_after_every_batch(Seen, lambda: RefCOCODataModule(str(root), **SMALL), make_trainer, tmp_path)
    assert len(whole) == 6
    assert whole[0][2:] != whole[3][2:]  # another order in the next epoch


@pytest.mark.filterwarnings("ignore:.*fit.ckpt_path=")
def test_a_fit_that_failed_in_a_step_gets_its_batch_again(root, make_trainer, tmp_path):
    failed_and_gone_on(Seen, lambda: RefCOCODataModule(str(root), **SMALL), make_trainer, tmp_path)


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
    data = RefCOCODataModule(str(root), **SMALL)
    data.trainer = with_own_sampler(2)
    with pytest.raises(ValueError, match="use_distributed_sampler"):
        data.setup("fit")
