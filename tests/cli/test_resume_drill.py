"""The doctor's resume drill: a run that is killed and resumed, against one that is not."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from doctor_says import HRANK, lines

from lit_methods.cli import main, recipe_check, resume_drill
from lit_methods.cli.resume_drill import BATCHES, KillInEpoch, Outcome, compare, epochs_of, steps_for

HERE = Path(__file__).parent


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of the drill in forks of this process: the same runs and kills, without the imports."""

    def run_fit(words: list[str], log: int) -> int:
        def child() -> None:
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            code = main("fit", words)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        return process.exitcode

    monkeypatch.setattr(resume_drill, "run_fit", run_fit)


def test_a_recipe_that_resumes(command, forked, tmp_path):
    answer = command("doctor", "--resume")
    assert answer.code == 0, answer.out
    (line,) = lines(answer, "ok", "resume")
    assert "bit-identical" in line
    # of 4 batches in epoch 1 the third is lost: 4 and 2 steps are in the checkpoint
    assert "epochs 0 to 2 trained, killed in epoch 1, resumed from step 6" in line
    assert list(tmp_path.iterdir()) == []  # the runs are gone


def test_a_recipe_that_does_not_resume(command, forked, tmp_path):
    answer = command("doctor", "--data", "toy_faults.ShuffledToyData", "--resume")
    assert answer.code == 1
    (line,) = lines(answer, "FAIL", "resume")
    assert "values differ: layer.weight by " in line
    assert "DataLoader(shuffle=True)" in line
    (kept,) = tmp_path.glob("runs/resume-drill-*")
    assert str(kept) in line
    assert (kept / "killed" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize(("epoch", "steps", "warned"), [(2, None, False), (3, None, True), (3, 20, False)])
def test_the_drill_says_what_it_did_not_reach(command, monkeypatch, epoch, steps, warned):
    def drill(words, steps, root, repeatable):
        return Outcome(epochs_of(steps), 1, 6, 10, {}, None)

    monkeypatch.setattr(recipe_check, "resume_drill", drill)
    words = ["--steps", steps] if steps else []
    answer = command("doctor", "--trainer.callbacks.at_epoch", epoch, "--resume", *words)
    found = lines(answer, "warning", "resume")
    assert len(found) == warned
    assert not warned or "ToyCallback acts in epoch 3, which the drill did not reach; --steps 20 does" in found[0]


def test_runs_of_the_drill_that_fail(command, monkeypatch):
    monkeypatch.setattr(resume_drill, "run_fit", lambda words, log: os.write(log, b"one\nerror: two\n\n") and 1)
    answer = command("doctor", "--resume")
    assert answer.code == 1
    assert "the uninterrupted run ended with exit code 1: error: two" in lines(answer, "FAIL", "resume")[0]

    monkeypatch.setattr(resume_drill, "run_fit", lambda words, log: 0)  # nobody was killed
    assert "the run to be killed ended with exit code 0" in lines(command("doctor", "--resume"), "FAIL", "resume")[0]


def test_the_drill_is_not_tried_where_nothing_trains(command):
    answer = command("doctor", "--data.root", "/nowhere", "--resume")
    assert "not tried" in lines(answer, "FAIL", "resume")[0]


@pytest.mark.parametrize(("batches", "expected"), [(4, 2), (3, 1), (2, 0), (1, 0), (100, 2)])
def test_where_the_kill_comes(monkeypatch, batches, expected):
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda process, number: killed.append(number))
    for epoch in range(3):
        for batch in range(batches):
            trainer = SimpleNamespace(num_training_batches=batches, current_epoch=epoch)
            KillInEpoch(1).on_train_batch_end(trainer, None, None, None, batch)  # type: ignore[arg-type]
            assert killed == ([signal.SIGKILL] if (epoch, batch) >= (1, expected) else [])


@pytest.mark.parametrize("epoch", [1, 8])
def test_steps_for_reaches_the_epoch_before_the_kill(epoch):
    epochs = epochs_of(steps_for(epoch))
    assert epochs - 2 == epoch  # the killed one
    assert epochs_of(steps_for(epoch) - BATCHES) - 2 < epoch


def test_compare_is_exact():
    one = {
        "same": torch.tensor([torch.nan, 1.0]),
        "zero": torch.tensor(0.0),
        "shape": torch.zeros(2),
        "kind": torch.zeros(1),
        "plain": 1,
        "none": None,
    }
    other = one | {
        "same": torch.tensor([torch.nan, 1.0]),
        "zero": torch.tensor(-0.0),
        "shape": torch.zeros(3),
        "kind": torch.zeros(1, dtype=torch.float64),
        "plain": 1.0,
        "more": 1,
    }
    assert compare(one, one) == {}
    assert list(compare(one, other)) == ["zero", "shape", "kind", "plain", "more"]
    assert compare({"w": torch.zeros(3)}, {"w": torch.tensor([0, 0, -0.5])}) == {"w": "0.5"}


# -- in processes of their own -----------------------------------------------------------------------------------------


@pytest.fixture
def own_processes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parents[1])]))
    return monkeypatch.setenv


@pytest.mark.slow
def test_drill_of_the_toy(command, own_processes):
    answer = command("doctor", "--resume")
    assert answer.code == 0, answer.out
    assert "bit-identical" in lines(answer, "ok", "resume")[0]


@pytest.mark.slow
def test_drill_of_the_unresumable_toy(command, own_processes):
    answer = command("doctor", "--data", "toy_faults.ShuffledToyData", "--resume")
    assert answer.code == 1
    assert "layer.weight by" in lines(answer, "FAIL", "resume")[0]


@pytest.mark.slow
def test_drill_of_hrank_across_its_pruning(command, own_processes):
    words = ("--model", "toy_tiny.TinyHRank", "--model.backbone", "tiny", "--trainer.accelerator", "cpu")
    words += ("--trainer.callbacks.at_epoch", 1, "--trainer.callbacks.rates", 0.5, "--trainer.callbacks.num_images", 48)
    answer = command("doctor", *words, "--data.num_workers", 1, "--resume", recipe=HRANK)
    assert answer.code == 0, answer.out
    assert lines(answer, "warning", "resume") == []
    assert "killed in epoch 1, resumed from step 6" in lines(answer, "ok", "resume")[0]
