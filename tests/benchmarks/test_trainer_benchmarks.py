"""What a run costs besides computing: a step under the command line's Trainer beside one of a bare loop. Prints ratios.

python -m pytest tests/benchmarks/test_trainer_benchmarks.py -m benchmark -s
"""

import statistics
import time
import warnings
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch

from lit_methods.cli.parsing import RunCLI
from lit_methods.cli.quiet import quiet
from lit_methods.cli.recipes import find_recipes

pytestmark = pytest.mark.benchmark

BATCH = 8  # steps of about 50 ms: the shorter a step, the more the Trainer weighs
STEPS, ROUNDS = 60, 9


def build(folder: Path) -> RunCLI:
    """The recipe ``hrank`` as ``fit`` builds it: its own callbacks, those of every run, checkpoints, CSV."""
    limits = {"trainer.max_epochs": 1, "trainer.limit_train_batches": STEPS, "trainer.num_sanity_val_steps": 0}
    words = {"config": find_recipes()["hrank"], "run_dir": folder, "trainer.accelerator": "cpu"} | limits
    cli = RunCLI("fit", [f"--{key}={value}" for key, value in words.items()] + [f"--data.batch_size={BATCH}"])
    cli.build()
    return cli


def steps(clock: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Milliseconds from the start of each step to the start of the next: of the thread, and on the wall."""
    return [tuple(1000 * (b - a) for a, b in zip(*pair, strict=True)) for pair in pairwise(clock)]  # type: ignore[misc]


def tick(clock: list[tuple[float, float]]) -> None:
    clock.append((time.thread_time(), time.perf_counter()))


def bare_loop(folder: Path) -> list[tuple[float, float]]:
    """The same module, data, optimiser and number of steps."""
    cli, clock = build(folder), []
    module, data = cli.model, cli.datamodule
    data.prepare_data()
    data.setup("fit")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    module.train()
    for batch in islice(data.train_dataloader(), STEPS):
        tick(clock)
        batch = data.on_after_batch_transfer(batch, 0)
        optimizer.zero_grad()
        module.loss(module(batch["image"]), batch).backward()
        optimizer.step()
    return steps(clock)


def trained(folder: Path) -> list[tuple[float, float]]:
    """Under the Trainer; what follows the epoch (validation, checkpoints) is no step's."""
    cli, clock = build(folder), []
    step = cli.model.training_step

    def timed(batch, batch_idx):
        tick(clock)
        return step(batch, batch_idx)

    cli.model.training_step = timed
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run is too short for the recipe's pruning
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return steps(clock)


def test_overhead_of_the_trainer(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    medians: list[tuple[list[float], ...]] = []
    for turn in range(1 + ROUNDS):  # in turns, so that a busy machine is fair to both; the first warms up
        both = [run(tmp_path / f"{run.__name__}{turn}") for run in (bare_loop, trained)]
        if turn:
            medians.append(tuple([statistics.median(times) for times in zip(*one, strict=True)] for one in both))
    torch.set_num_threads(threads)
    for which, name in enumerate(("thread", "wall")):
        bare, ours = ([one[side][which] for one in medians] for side in (0, 1))
        low, ratio, high = statistics.quantiles([b / a for a, b in zip(bare, ours, strict=True)], n=4)
        print(
            f"\nResNet-20, {BATCH} digits, {name} time per step: bare loop {statistics.median(bare):.1f} ms, Trainer "
            f"{statistics.median(ours):.1f} ms, ratio {ratio:.3f} ({low:.3f}-{high:.3f}, the middle half of "
            f"{ROUNDS} rounds of {STEPS} steps)"
        )
