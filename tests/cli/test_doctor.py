"""The doctor: every check finds what it is there for, the others go on, and nothing stays behind."""

import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lit_methods.cli import doctor, environment, main, recipe_check, resume_drill
from lit_methods.cli.findings import Finding, Report
from lit_methods.cli.resume_drill import BATCHES, KillInEpoch, Outcome, compare, epochs_of, steps_for

HERE = Path(__file__).parent


def lines(answer, level: str, topic: str = "") -> list[str]:
    return [line for line in answer.out if line.startswith(f"{level:<8}{topic}")]


def levels(findings) -> list[str]:
    return [finding.level for finding in findings]


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


# -- the machine -------------------------------------------------------------------------------------------------------


def test_the_machine_alone(command, tmp_path):
    answer = command("doctor", recipe=None)
    assert answer.code == 0
    assert answer.err == []
    levels = [line[:8].strip() for line in answer.out[:-1]]
    assert set(levels) <= {"ok", "warning"}  # a container with little shared memory, say, is warned of
    versions = lines(answer, "ok", "versions")[0]
    for package in ("python", "lit-methods", *environment.SHOWN):
        assert f"{package} " in versions
    assert torch.__version__.partition("+")[0] in versions
    for topic in ("torchvision", "devices", "threads", "workers", "runs", "temporary", "wandb", "recipe"):
        assert any(line[8:].startswith(f"{topic}:") for line in answer.out), topic
    assert answer.out[-1] == f"doctor: {levels.count('ok')} ok, {levels.count('warning')} warning, 0 FAIL"
    assert list(tmp_path.iterdir()) == []


def packages(monkeypatch, needs: list[str], **versions: str) -> list[Finding]:
    def version(name: str) -> str:
        if name not in versions:
            raise environment.PackageNotFoundError(name)
        return versions[name]

    class About(dict):
        def get_all(self, key: str) -> list[str]:
            return ["video", "test"]

    monkeypatch.setattr(environment, "version", version)
    monkeypatch.setattr(environment, "requires", lambda package: needs)
    monkeypatch.setattr(environment, "metadata", lambda package: About({"Requires-Python": ">=3.11"}))
    return list(environment.package_findings("mine"))


def test_packages_too_old_or_missing(monkeypatch):
    needs = ["torch>=2.11", "numpy>=2.0", "scipy>=1.14", 'av>=14; extra == "video"', 'pytest; extra == "test"']
    found = packages(monkeypatch, needs, mine="1", torch="2.9.1+cpu", numpy="2.4")
    assert levels(found) == ["ok", "FAIL", "FAIL", "ok"]
    assert found[1].text == 'torch 2.9.1+cpu is not >=2.11; pip install "torch>=2.11"'
    assert found[2].text == 'scipy is not installed; pip install "scipy>=1.14"'
    assert "absent: video (no av)" in found[3].text
    assert "test" not in found[3].text

    found = packages(monkeypatch, needs, mine="1", torch="2.11.0+cu130", numpy="2.0", scipy="1.14", av="14")
    assert levels(found) == ["ok", "ok", "ok"]
    assert "present: video" in found[2].text


def test_a_source_tree_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(environment, "requires", lambda package: environment.metadata("no-such-package"))
    assert levels(environment.package_findings()) == ["ok", "warning"]


def test_torchvision_of_another_torch(monkeypatch):
    def absent(*boxes: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    import torchvision

    monkeypatch.setattr(torchvision.ops, "nms", absent)
    (found,) = environment.torchvision_findings()
    assert found.level == "FAIL"
    assert "operator torchvision::nms does not exist; install the two together" in found.text


def test_more_threads_than_cores(monkeypatch):
    monkeypatch.setattr(environment, "usable_cores", lambda: 2.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    (found,) = environment.thread_findings()
    assert found.level == "warning"
    assert "OMP_NUM_THREADS=" in found.text


def test_containers_have_little_shared_memory(monkeypatch):
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**26, total=2**26))
    (found,) = environment.worker_findings()
    assert found.level == "warning"
    assert "0.1 of 0.1 GiB" in found.text


def test_a_place_that_cannot_be_written(command, tmp_path):
    Path(tmp_path, "file").touch()
    answer = command("doctor", "--run_dir", "file/here")
    assert answer.code == 1
    assert "cannot be written" in lines(answer, "FAIL", "runs")[0]
    assert lines(answer, "ok", "step")  # the other checks went on


def test_write_trial_leaves_nothing(tmp_path):
    environment.write_trial(tmp_path / "to be" / "made")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({}, "offline: no key"),
        ({"WANDB_API_KEY": "s3cret"}, "online: a key"),
        ({"WANDB_API_KEY": "s3cret", "WANDB_MODE": "offline"}, "offline: a key"),
        ({"WANDB_MODE": "online"}, "offline: no key"),
        ({"WANDB_MODE": "disabled"}, "disabled: no key"),
    ],
)
def test_wandb_mode_without_showing_the_key(monkeypatch, tmp_path, variables, mode):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), **variables}.items():
        monkeypatch.setenv(name, value)
    found = list(environment.wandb_findings())
    assert levels(found) == ["ok"]
    assert f"would be {mode}" in found[0].text
    assert "s3cret" not in found[0].text


def test_wandb_folders_that_cannot_be_written(monkeypatch, tmp_path):
    Path(tmp_path, "file").touch()
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "file" / "cache"))
    found = list(environment.wandb_findings())
    assert levels(found) == ["ok", "warning"]
    assert f"WANDB_CACHE_DIR={tmp_path}/file/cache cannot be written" in found[1].text


def test_a_check_that_breaks_does_not_stop_the_others(command, monkeypatch):
    def broken():
        yield Finding("ok", "threads", "half of it")
        raise ImportError("libcuda.so.1: cannot open shared object file\nmore")

    monkeypatch.setattr(environment, "thread_findings", broken)
    answer = command("doctor", recipe=None)
    assert answer.code == 1
    assert lines(answer, "FAIL", "threads: ")[0].split(None, 2)[2].startswith("ImportError: libcuda.so.1: cannot open")
    assert lines(answer, "ok", "wandb")


# -- a recipe ----------------------------------------------------------------------------------------------------------


def test_a_sound_recipe(command, tmp_path):
    answer = command("doctor")
    assert answer.code == 0
    assert answer.err == []
    assert "ToyMethod with 15 parameters, ToyData, 1 cpu device(s)" in lines(answer, "ok", "recipe")[0]
    train, val, test = lines(answer, "ok", "data")
    assert "train: 5 batches, the first has x (4, 4) float32 " in train
    assert "label (4,) int64 0 to 0" in train
    assert "val: 2 batches" in val
    assert "test: 3 batches" in test
    assert "loss " in lines(answer, "ok", "step")[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "topic", "text"),
    [
        (["--model.lrr", "1"], "recipe", "model.lrr='1': ToyMethod has no argument 'lrr'; did you mean lr?"),
        (["--model.lr", "-1"], "recipe", "model.lr='-1': lr must be positive, got -1.0"),
        (["--trainer.accelerator", "mps"], "recipe", "trainer.accelerator='mps': none here"),
        (["--ckpt_path", "gone.ckpt"], "recipe", "ckpt_path='gone.ckpt' does not exist"),
        (["--data.root", "/nowhere"], "data", "no points in root='/nowhere'"),
        (["--data", "toy_faults.FaultyToyData"], "data", "train: x holds NaN or infinity"),
        (["--data", "toy_faults.FaultyToyData", "--data.fault", "label"], "data", "label must be 0 to 2, got 2 to 3"),
        (["--data", "toy_faults.FaultyToyData", "--data.fault", "image"], "data", "image must be in [0, 1], got 255"),
        (["--model", "toy_faults.DivergedToyMethod"], "step", "loss, gradient not finite. The step was not taken: "),
        (["--model.fail_at", "0"], "step", "ValueError: a fault in the method's own code"),
        (["--model.fail_at", "-2"], "recipe", "AttributeError: "),
    ],
)
def test_faults_of_a_recipe_are_one_line_each(command, tmp_path, words, topic, text):
    answer = command("doctor", *words)
    assert answer.code == 1
    assert any(text in line for line in lines(answer, "FAIL", topic)), answer.out
    assert len({line[8:20] for line in lines(answer, "FAIL")}) == 1
    assert lines(answer, "ok", "runs")
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_nan_guard_lets_pass(command):
    words = ("--model", "toy_faults.DivergedToyMethod", "--trainer.callbacks+=NaNGuard")
    answer = command("doctor", *words, "--trainer.callbacks.action", "skip")
    assert answer.code == 1
    assert "loss inf in the first batch" in lines(answer, "FAIL", "step")[0]


def test_nothing_is_downloaded(command):
    answer = command("doctor", "--data", "toy_faults.FaultyToyData", "--data.fault", "missing")
    assert answer.code == 0
    assert "no points in /nowhere/points.bin. It says download=True" in lines(answer, "warning", "data")[0]


def test_weights_that_fit_would_download(command, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    words = ("--model", "lit_methods.ImageClassifier", "--data", "datamodules.CIFARDataModule")
    words += ("--model.backbone", "tiny", "--model.base_checkpoint", "ResNet18_Weights.IMAGENET1K_V1")
    answer = command("doctor", *words, "--checkpoint.monitor", "val/top1")
    assert answer.code == 0
    assert "is not on this machine yet; fit downloads it" in lines(answer, "warning", "recipe")[0]
    assert not Path(tmp_path, "hub").exists()


def test_a_run_directory_that_fit_would_refuse(command, tmp_path):
    Path(tmp_path, "mine").mkdir()
    Path(tmp_path, "mine", "notes.txt").touch()
    answer = command("doctor", "--run_dir", "mine")
    assert "run_dir='mine' is not empty" in lines(answer, "FAIL", "recipe")[0]
    assert [p.name for p in Path(tmp_path, "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("free", "level", "text"),
    [(50, "FAIL", "the checkpoints of this run take"), (500, "warning", "the checkpoints of this run may take")],
)
def test_too_little_space_for_the_checkpoints(command, monkeypatch, free, level, text):
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=free))
    answer = command("doctor")
    assert answer.code == (level == "FAIL")
    assert f"{free} B free" in lines(answer, level, "space")[0]
    assert text in lines(answer, level, "space")[0]
    assert lines(answer, "ok", "space") == []


def test_a_run_without_checkpoints(command):
    assert (
        "enable_checkpointing=False"
        in lines(command("doctor", "--trainer.enable_checkpointing", "false"), "warning", "space")[0]
    )


def test_cifar_names_the_missing_files(command, tmp_path):
    words = ("--model", "lit_methods.ImageClassifier", "--model.backbone", "tiny")
    words += ("--data", "datamodules.CIFARDataModule", "--data.name", "cifar10", "--data.root", "elsewhere")
    answer = command("doctor", *words)
    (line,) = lines(answer, "FAIL", "data")
    assert "no data_batch_1, data_batch_2" in line
    assert "in elsewhere/cifar-10-batches-py" in line


def test_pruning_before_the_first_step_is_tried(command):
    """``at_epoch=0`` without weights is what fit refuses only once the data are read."""
    words = ("--model.backbone", "tiny", "--trainer.callbacks.at_epoch", 0, "--trainer.callbacks.rates", 0.5)
    answer = command("doctor", *words, recipe=hrank_recipe())
    assert "the network has no trained weights" in lines(answer, "FAIL", "step")[0]


def hrank_recipe() -> Path:
    from lit_methods.cli.recipes import find_recipes

    return find_recipes()["hrank"]


def test_help_of_the_parser_is_answered(command):
    answer = command("doctor", "--print_config")
    assert answer.code == 0
    assert any(line.startswith("model:") for line in answer.out)


# -- the resume drill --------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--resume", "--steps", "7"], "steps='7': a whole number from 8 on"),
        (["--resume", "--steps=x"], "steps='x': a whole number from 8 on"),
        (["--steps", "12"], "steps='12': only with --resume"),
        (["--resume", "--ckpt_path", "last"], "ckpt_path: leave it out with --resume"),
    ],
)
def test_mistakes_in_the_doctors_own_options(command, words, text):
    answer = command("doctor", *words)
    assert answer.code == 2
    assert answer.out == []
    assert len(answer.err) == 1
    assert text in answer.err[0]


def test_resume_needs_a_recipe(capsys):
    assert doctor.examine(["--resume"]) == 2
    assert "name the recipe" in capsys.readouterr().err


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


def test_report_counts_and_decides():
    report = Report()
    report.ok("a", "fine")
    report.warn("a", "perhaps")
    assert report.close() == 0
    report.fail("a", "no")
    assert report.close() == 1


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
    answer = command("doctor", *words, "--data.num_workers", 1, "--resume", recipe=hrank_recipe())
    assert answer.code == 0, answer.out
    assert lines(answer, "warning", "resume") == []
    assert "killed in epoch 1, resumed from step 6" in lines(answer, "ok", "resume")[0]
