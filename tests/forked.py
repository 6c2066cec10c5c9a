"""A function run by several processes of one gloo group, forked from the test: torch is imported already."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def answers_of(function: Callable[..., None], world: int, folder: Path, *arguments: Any) -> list[Any]:
    """What the processes put into a queue, in whatever order they came.

    Args:
        function: called as ``function(rank, *arguments, put)``; ``put`` takes plain values.
        world: how many processes.
        folder: an empty one, where they meet.
        arguments: of the function, after the rank.

    Raises:
        AssertionError: a process failed, or still ran after a minute.
    """
    fork = multiprocessing.get_context("fork")
    queue = fork.SimpleQueue()
    given = (function, world, folder, arguments, queue)
    processes = [fork.Process(target=_on_rank, args=(rank, *given), daemon=True) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0] * world
    found = []
    while not queue.empty():
        found.append(queue.get())
    return found


def _on_rank(rank: int, function: Any, world: int, folder: Path, arguments: tuple, queue: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    try:
        function(rank, *arguments, queue.put)
    finally:
        torch.distributed.destroy_process_group()
