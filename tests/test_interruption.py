"""A run that a signal ends leaves the right exit code and a checkpoint from which it goes on as if nothing had been."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.testing import assert_close

from callbacks import hrank_pruning, interruption
from callbacks.interruption import Interruption, interrupted_by, listening
from datamodules import CIFARDataModule
from lit_methods import ImageClassifier
from lit_methods.cli import main
from lit_methods.cli.parsing import RunCLI
from lit_methods.cli.recipes import find_recipes
from lit_methods.cli.run_directory import place
from lit_methods.slurm import restarted
from tests.left_behind import last_checkpoint, metrics, weights
from tests.signals import SendSignal, send_now
from tests.stops import AT_EPOCH, STEPS
from tests.test_resume import RUN
from tests.tiny import register

CODES = {"SIGTERM": 143, "SIGINT": 130}
WORDS = ["hrank", *RUN, "--trainer.callbacks.at_epoch", str(AT_EPOCH), "--trainer.callbacks.num_images", "48"]
WORDS += ["--trainer.callbacks.rates", "0.5", "--trainer.limit_val_batches", "3", "--checkpoint.save_top_k", "1"]

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    register()
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main("fit", [*WORDS, "--run_dir", str(run)]) == 0
    return run


def signalled(name: str = "SIGTERM", **arguments: object) -> list[str]:
    words = ["--trainer.callbacks+=tests.signals.SendSignal", "--trainer.callbacks.name", name]
    return [*words, *(w for k, v in arguments.items() for w in (f"--trainer.callbacks.{k}", str(v)))]


def goes_on_like(whole: Path, run: Path) -> None:
    """Resume; weights are bit-equal, and nothing is missing or doubled in ``metrics.csv``."""
    assert main("fit", [*WORDS, "--run_dir", str(run), "--ckpt_path", "last"]) == 0
    assert_close(weights(run), weights(whole), rtol=0, atol=0)
    assert metrics(run) == metrics(whole)
    best = [sorted(path.name for path in (r / "checkpoints").glob("epoch*")) for r in (run, whole)]
    assert best[0] == best[1]


@pytest.mark.parametrize(
    ("name", "hook", "step"),
    [
        pytest.param("SIGTERM", "on_fit_start", 0, id="before the first batch", marks=pytest.mark.slow),
        pytest.param("SIGTERM", "on_train_batch_start", 2, id="in a batch"),
        pytest.param(
            "SIGINT", "on_before_optimizer_step", STEPS - 1, id="in the last batch of an epoch", marks=pytest.mark.slow
        ),
        pytest.param("SIGTERM", "on_validation_batch_start", STEPS, id="in a validation", marks=pytest.mark.slow),
        pytest.param("SIGINT", "on_validation_end", STEPS, id="after a validation", marks=pytest.mark.slow),
        pytest.param("SIGTERM", "on_train_epoch_end", 2 * STEPS, id="after an epoch", marks=pytest.mark.slow),
        pytest.param("SIGTERM", "on_before_optimizer_step", 3 * STEPS + 1, id="after pruning", marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_the_run_and_it_goes_on_bit_equal(whole, name, hook, step, tmp_path, capsys):
    run = tmp_path / "run"
    words = [*WORDS, *signalled(name, hook=hook, step=step, times=2)]
    assert main("fit", [*words, "--run_dir", str(run)]) == CODES[name]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stopped by")]
    assert line == f"stopped by {name}; go on with --run_dir {run} --ckpt_path last"
    assert not (run / "summary.json").exists()
    assert (run / "config.yaml").is_file()  # by which --ckpt_path last finds it
    goes_on_like(whole, run)


@pytest.mark.parametrize("batch", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_during_a_rank_pass(whole, batch, tmp_path, monkeypatch):
    """Nothing is pruned then, and the pass is done again from its beginning."""
    real = hrank_pruning.batch_ranks

    def sending(*args, **kwargs):
        for number, ranks in enumerate(real(*args, **kwargs)):
            if number == batch:
                send_now(signal.SIGTERM)
            yield ranks

    run = tmp_path / "run"
    monkeypatch.setattr(hrank_pruning, "batch_ranks", sending)
    assert main("fit", [*WORDS, "--run_dir", str(run)]) == 143
    assert last_checkpoint(run)["hyper_parameters"]["plan"] is None
    assert not (run / "rank_scores.npz").exists()
    monkeypatch.setattr(hrank_pruning, "batch_ranks", real)
    goes_on_like(whole, run)


@pytest.mark.slow
def test_interrupted_again_before_anything_was_done_loses_nothing(whole, tmp_path):
    run = tmp_path / "run"
    assert main("fit", [*WORDS, *signalled(step=6), "--run_dir", str(run)]) == 143
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    again = [*WORDS, *signalled(hook="on_train_start"), "--run_dir", str(run), "--ckpt_path", "last"]
    assert main("fit", again) == 143
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before
    goes_on_like(whole, run)


def test_a_third_ctrl_c_stops_at_once_and_saves_nothing(tmp_path):
    words = [*WORDS, *signalled("SIGINT", step=2, times=3)]
    assert main("fit", [*words, "--run_dir", str(tmp_path / "run")]) == 130
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_in_the_test_after_a_fit_and_before_a_run(tmp_path, monkeypatch):
    run = tmp_path / "run"
    words = [*WORDS, "--trainer.max_epochs", "1", "--run_dir", str(run)]
    assert main("fit", [*words, *signalled(hook="on_test_batch_start")]) == 143
    assert last_checkpoint(run)["global_step"] == STEPS

    def build(cli):
        send_now(signal.SIGTERM)

    monkeypatch.setattr("lit_methods.cli.runtime.RunCLI.build", build)
    assert main("fit", [*WORDS, "--run_dir", str(tmp_path / "second")]) == 143
    assert not (tmp_path / "second").exists()


def test_in_a_script_of_ones_own(make_trainer, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    callbacks = [Interruption(), SendSignal("SIGTERM", step=2), ModelCheckpoint(tmp_path / "kept")]
    trainer = make_trainer(max_epochs=1, limit_train_batches=4, callbacks=callbacks, enable_checkpointing=True)
    with pytest.raises(SystemExit) as stop:
        trainer.fit(ImageClassifier("tiny"), datamodule=CIFARDataModule("digits", batch_size=32))
    assert stop.value.code == 143
    assert torch.load(tmp_path / "kept" / "last.ckpt", weights_only=True)["global_step"] == 3
    assert signal.getsignal(signal.SIGTERM) == before


def test_workers_that_inherit_the_handler_do_nothing(capfd):
    with listening():
        interruption._note.waiting = True
        if not (child := os.fork()):
            send_now(signal.SIGINT)
            os._exit(interrupted_by())
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not capfd.readouterr().err


def test_handlers_are_as_before_afterwards(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
    words = [*WORDS, "--trainer.max_epochs", "1"]
    assert main("fit", [*words, *signalled(), "--run_dir", str(tmp_path / "stopped")]) == 143
    interruption.leave_if_asked()  # of whoever works on in this process without listening, nothing is asked
    assert main("fit", [*words, "--run_dir", str(tmp_path / "whole")]) == 0  # the old signal is forgotten
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)] == before


# --- SLURM ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of a job's only task; ``scontrol`` writes its calls into the file that this returns."""
    calls, stub = tmp_path / "calls", tmp_path / "bin" / "scontrol"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    stub.chmod(0o755)
    for name in ("NTASKS", "NTASKS_PER_NODE", "NNODES"):
        monkeypatch.setenv(f"SLURM_{name}", "1")
    for name in ("PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "0")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    monkeypatch.setenv("PATH", f"{stub.parent}{os.pathsep}{os.environ['PATH']}")
    return calls


def test_a_slurm_job_requeues_itself_and_goes_on(whole, slurm, tmp_path, capsys):
    """The same command, twice: its first start finds no checkpoint, its second goes on."""
    run = tmp_path / "run"
    words = [*WORDS, "--run_dir", str(run)]
    assert main("fit", [*words, *signalled("SIGUSR1", step=6)]) == 0
    assert slurm.read_text() == "requeue 4711\n"
    assert "stopped by SIGUSR1" in capsys.readouterr().err
    assert last_checkpoint(run)["global_step"] == 7
    assert main("fit", words) == 0
    assert slurm.read_text() == "requeue 4711\n"
    assert_close(weights(run), weights(whole), rtol=0, atol=0)
    assert metrics(run) == metrics(whole)


@pytest.mark.slow
def test_a_slurm_job_that_had_no_time_for_a_checkpoint_starts_again(slurm, tmp_path, monkeypatch):
    run = tmp_path / "run"
    words = [*WORDS, "--trainer.max_epochs", "1", "--run_dir", str(run)]
    assert main("fit", [*words, *signalled("SIGINT", times=3)]) == 130  # not even time for this
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    assert main("fit", words) == 0
    assert not slurm.exists()
    monkeypatch.setenv("SLURM_JOB_ID", "4712")  # another job does not go on by itself
    assert main("fit", words) == 2


def test_a_job_that_cannot_be_requeued_does_not_look_finished(slurm, tmp_path):
    Path(tmp_path, "bin", "scontrol").write_text("#!/bin/sh\necho no such job >&2\nexit 1\n")
    run = tmp_path / "run"
    with pytest.warns(UserWarning, match="not requeued: scontrol requeue 4711: no such job"):
        assert main("fit", [*WORDS, "--run_dir", str(run), *signalled("SIGUSR1", step=2)]) == 128 + signal.SIGUSR1
    assert (run / "checkpoints" / "last.ckpt").is_file()


def test_a_warning_during_the_test_after_the_fit_requeues_too(slurm, tmp_path):
    words = [*WORDS, "--trainer.max_epochs", "1", "--run_dir", str(tmp_path / "run")]
    assert main("fit", [*words, *signalled("SIGUSR1", hook="on_test_batch_start")]) == 0
    assert slurm.read_text() == "requeue 4711\n"


def test_a_directory_is_claimed_only_once_all_processes_know_it(slurm, tmp_path):
    place("fit", str(tmp_path / "run"), None, "hrank")
    assert not restarted(tmp_path / "run")


def test_the_example_for_slurm_starts_what_it_says(slurm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bin", "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$@" > words\n')
    Path("bin", "srun").chmod(0o755)
    subprocess.run(["bash", Path(__file__).parents[1] / "examples" / "slurm.sh"], check=True)
    option, *command, recipe = Path("words").read_text().splitlines()[:5]
    assert (option, command, recipe) == (
        "--kill-on-bad-exit=1", ["python", "-m", "lit_methods.fit"], "hrank_cifar10_resnet56"
    )  # fmt: skip
    words = Path("words").read_text().splitlines()[5:]
    cli = RunCLI("fit", ["--config", str(find_recipes()[recipe]), *words])
    assert (int(cli.config.trainer.devices), cli.config.trainer.num_nodes) == (1, 1)
    assert cli.directory.path == tmp_path / "runs" / "train-4711"
