"""The built package, installed without the source tree, runs the first command and every embedded recipe."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.left_behind import read_summary
from tests.small_recipes import EMBEDDED, monitored

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return folder


@pytest.fixture
def python(site: Path, tmp_path: Path) -> Callable[..., str]:
    """Python in a folder with a blank in its name, where only the wheel is installed; returns what it prints."""
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    env = os.environ | {"PYTHONPATH": str(site)}

    def run(*words: str) -> str:
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=elsewhere, env=env, check=True, capture_output=True, text=True).stdout

    return run


def test_wheel_holds_what_is_needed_and_no_more(wheel, site, python):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {
        "lit_methods",
        "datamodules",
        "callbacks",
    }
    assert {"lit_methods/py.typed", "lit_methods/recipes/hrank.yaml"} <= set(names)
    assert {f"lit_methods/{recipe}/dashboard.yaml" for recipe in EMBEDDED} <= set(names)
    for package in ("callbacks", "datamodules", "lit_methods"):
        where = python("-c", f"import {package}; print({package}.__file__)")
        assert where.startswith(str(site)), "the source tree was imported instead"


def test_wheel_runs_elsewhere(python, tmp_path):
    run = python("-m", "lit_methods.fit", "hrank")
    directory = Path(run.splitlines()[-1])
    assert directory.parent == tmp_path / "else where" / "runs"
    assert read_summary(directory)["test/top1"] >= 0.95
    report = python("-m", "lit_methods.report", str(directory))
    assert Path(report.splitlines()[-1]).read_text("utf-8").count("<svg")


@pytest.mark.parametrize("recipe", EMBEDDED)
def test_wheel_runs_every_embedded_recipe(recipe, overrides, python):
    run = python("-m", "lit_methods.fit", recipe, "--trainer.max_epochs", "2", *overrides(recipe))
    assert 0 <= read_summary(Path(run.splitlines()[-1]))[monitored(recipe)] <= 1
