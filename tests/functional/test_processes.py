"""What processes tell each other, in two of them."""

import pytest
import torch
from torch.testing import assert_close

from lit_methods.functional.processes import gather_objects, gather_rows, in_company
from tests.forked import answers_of


def rows(rank):
    return torch.arange(6.0).reshape(2, 3) + 10 * rank


def _loss(mine):
    """A mean over the own rows, each held against all rows, as a loss within a batch is; and all rows."""
    everybody = gather_rows(mine)
    return (mine[:, None] - everybody).square().mean(), everybody


def _process(rank, put):
    mine = rows(rank).requires_grad_()
    loss, everybody = _loss(mine)
    loss.backward()
    plain = gather_rows(rows(rank).t().long())  # not contiguous, not floating point
    told = gather_objects({"rank": rank})
    put((rank, everybody.tolist(), mine.grad.tolist(), plain.tolist(), plain.requires_grad, told))


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    return {rank: found for rank, *found in answers_of(_process, 2, tmp_path_factory.mktemp("processes"))}


def test_rows_come_in_the_order_of_the_ranks_on_every_process(answers):
    expected = torch.cat([rows(0), rows(1)]).tolist()
    turned = torch.cat([rows(0).t(), rows(1).t()]).long().tolist()
    for everybody, _, plain, learns, told in answers.values():
        assert everybody == expected
        assert plain == turned
        assert not learns
        assert told == [{"rank": 0}, {"rank": 1}]


def test_the_mean_of_the_processes_gradients_is_that_of_one_process(answers):
    alone = torch.cat([rows(0), rows(1)]).requires_grad_()
    loss, _ = _loss(alone)
    loss.backward()
    found = torch.cat([torch.tensor(answers[rank][1]) for rank in range(2)]) / 2  # as DDP averages
    assert_close(found, alone.grad, rtol=1e-6, atol=0)
    assert alone.grad.abs().min() > 0


def test_alone_rows_are_handed_back():
    mine = rows(0).requires_grad_()
    assert gather_rows(mine) is mine
    assert gather_objects(3) == [3]
    assert not in_company()
