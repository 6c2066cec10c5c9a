"""DDL's gradient in several processes beside that of one."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from lit_methods.ddl.functional import ddl_loss
from lit_methods.functional.processes import gather_rows
from tests.forked import answers_of
from tests.methods.test_ddl_functional import OFFICIAL, drawn

ROWS, OPTIONS = 12, {"paper": {}, "official": OFFICIAL}


def encoder():
    torch.manual_seed(3)
    return nn.Linear(6, 4, bias=False).double()


def gradient_of(network, rank=0, world=1, **options):
    """Of the loss on all rows, of which this process embeds its share."""
    neg, pos = drawn([(ROWS, ROWS)] * 3)
    part = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    mine = torch.cat([x[part] for x in (*neg, *(x for pair in pos for x in pair))])
    out = [gather_rows(x) for x in network(mine).chunk(9)]
    loss = ddl_loss(out[:3], [(out[3], out[4]), (out[5], out[6]), (out[7], out[8])], **options).loss
    network.zero_grad()
    loss.backward()
    return next(network.parameters()).grad.tolist()


def _process(rank, world, put):
    network = DistributedDataParallel(encoder())
    put({name: gradient_of(network, rank, world, **words) for name, words in OPTIONS.items()})


@pytest.mark.parametrize("world", [2, 3])
def test_the_gradient_of_several_processes_is_that_of_one(world, tmp_path):
    alone = {name: gradient_of(encoder(), **words) for name, words in OPTIONS.items()}
    for answers in answers_of(_process, world, tmp_path, world):
        for name, found in answers.items():
            one, several = (torch.tensor(gradient, dtype=torch.float64) for gradient in (alone[name], found))
            assert one.abs().max() > 1e-2
            assert_close(several, one, rtol=0, atol=1e-12)
