"""DDL's gradient in several processes beside that of one."""

import multiprocessing

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from lit_methods.ddl.functional import ddl_loss
from lit_methods.functional.processes import gather_rows
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


def _process(rank, world, folder, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    try:
        network = DistributedDataParallel(encoder())
        results.put((rank, {name: gradient_of(network, rank, world, **words) for name, words in OPTIONS.items()}))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_the_gradient_of_several_processes_is_that_of_one(world, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    processes = [
        context.Process(target=_process, args=(rank, world, tmp_path, results), daemon=True) for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0] * world
    alone = {name: gradient_of(encoder(), **words) for name, words in OPTIONS.items()}
    for _, answers in (results.get() for _ in processes):
        for name, found in answers.items():
            one, several = (torch.tensor(gradient, dtype=torch.float64) for gradient in (alone[name], found))
            assert one.abs().max() > 1e-2
            assert_close(several, one, rtol=0, atol=1e-12)
