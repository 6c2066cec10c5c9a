"""WIDER FACE in fits that stop and go on, and shared out over processes."""

import pytest

from datamodules import WIDERFaceDataModule
from tests.every_batch import failed_and_gone_on, gone_on_after_every_batch
from tests.wider_fits import SMALL, Seen, ready, write_plain


@pytest.fixture
def root(tmp_path):
    return write_plain(tmp_path)


@pytest.mark.filterwarnings("ignore:.*fit.ckpt_path=")
@pytest.mark.parametrize(("split", "size", "batches"), [(False, 3, 6), (True, 2, 4)])
def test_a_fit_goes_on_after_any_batch_with_the_pictures_it_had_not_seen(
    root, make_trainer, tmp_path, split, size, batches
):
    def data():
        return WIDERFaceDataModule(str(root), **SMALL | {"batch_size": size}, split_halves=split)

    assert len(gone_on_after_every_batch(Seen, data, make_trainer, tmp_path)) == batches


@pytest.mark.filterwarnings("ignore:.*fit.ckpt_path=")
def test_a_fit_that_failed_in_a_step_gets_its_batch_again(root, make_trainer, tmp_path):
    failed_and_gone_on(Seen, lambda: WIDERFaceDataModule(str(root), **SMALL), make_trainer, tmp_path)


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
