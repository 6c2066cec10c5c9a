"""The doctor on the machine: packages, threads, places to write to, W&B."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from doctor_says import lines

from lit_methods.cli import environment
from lit_methods.cli.findings import Finding


def levels(findings) -> list[str]:
    return [finding.level for finding in findings]


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
