"""The built package, installed without the source tree, runs the first command."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_wheel_runs_elsewhere(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if "dist-info" not in name}
    assert tops == {"lit_methods", "datamodules", "callbacks"}
    assert {"lit_methods/py.typed", "lit_methods/recipes/hrank.yaml"} <= set(names)

    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    env = os.environ | {"PYTHONPATH": str(site)}

    def python(*words: str) -> str:
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=elsewhere, env=env, check=True, capture_output=True, text=True).stdout

    for package in ("callbacks", "datamodules", "lit_methods"):
        where = python("-c", f"import {package}; print({package}.__file__)")
        assert where.startswith(str(site)), "the source tree was imported instead"
    run = python("-m", "lit_methods.fit", "hrank")
    directory = Path(run.splitlines()[-1])
    assert directory.parent == elsewhere / "runs"
    assert json.loads((directory / "summary.json").read_text())["test/top1"] >= 0.95
