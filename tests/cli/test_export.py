"""``export``: files beside the run, a table, and one line where something is wrong."""

import json
import sys
from pathlib import Path

import pytest
import torch

from lit_methods import HRank
from lit_methods.backbones import BACKBONES, Backbone
from tests.own_process import run_entry
from tests.tiny import TinyNet, tiny_points

PLAN = {"arch": "tiny", "keep": {"body.conv1": [0, 3, 5], "body.conv3": [0, 1, 2, 4, 7]}}


class Doubling(TinyNet):
    """Computes something else while it is traced."""

    def forward(self, x):
        y = super().forward(x)
        return 2 * y if torch.compiler.is_exporting() else y


@pytest.fixture
def checkpoint(make_trainer, tmp_path):
    """Writes a checkpoint of a small network into a run of its own."""

    def write(backbone: str = "tiny", plan=None) -> Path:
        path = tmp_path / "run" / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        trainer = make_trainer()
        trainer.strategy.connect(HRank(backbone, num_classes=4, plan=plan, class_names=list("abcd")))
        trainer.save_checkpoint(path)
        return path

    return write


def test_a_pruned_checkpoint_becomes_two_files(command, checkpoint):
    """Into the directory of its run; no recipe is needed, and nothing is said besides the table."""
    pytest.importorskip("onnxscript")
    path = checkpoint(plan=PLAN)
    answer = command("export", "--ckpt_path", path, "--run_dir", "run", recipe=None)
    assert answer.code == 0
    assert answer.err == []
    assert answer.run_dir == Path("run").absolute()
    title, *rows = answer.out[:-1]
    assert title.split() == ["run,", "export", "bytes", "difference", "ms", "PyTorch", "ms"]
    assert [row.split()[0] for row in rows] == ["classifier.onnx", "classifier.pt2"]
    written = {entry.name: entry.stat().st_size for entry in Path("run/export").iterdir()}
    report = json.loads(Path("run/export/export.json").read_text())
    assert report["checkpoint"] == str(path)
    assert written.pop("export.json")
    assert written == {file["path"]: file["bytes"] for file in report["files"]}
    for file, row in zip(report["files"], rows, strict=True):
        assert row.split()[1] == str(file["bytes"])
        assert file["relative"] < 1e-5
        assert min(file["latency_ms"], file["module_ms"]) > 0


def test_only_torch_with_a_recipe_whose_machine_and_data_are_elsewhere(command, checkpoint, tmp_path, monkeypatch):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "model: {class_path: lit_methods.HRank}\n"
        "data: {class_path: datamodules.ImageNetDataModule, init_args: {root: nowhere}}\n"
        "trainer: {accelerator: cuda, devices: 64}\n"
    )
    words = ["--ckpt_path", checkpoint(), "--formats"]
    answer = command("export", *words, "torch", recipe=recipe)
    assert answer.code == 0, answer.err
    assert answer.run_dir.parent == Path("runs").absolute()
    assert {entry.name for entry in (answer.run_dir / "export").iterdir()} == {"classifier.pt2", "export.json"}
    extra = {"metadata.json": ""}
    torch.export.load(answer.run_dir / "export" / "classifier.pt2", extra_files=extra)
    facts = json.loads(extra["metadata.json"])
    assert facts["recipe"] == "mine"
    assert facts["class"] == "lit_methods.hrank.module.HRank"
    assert any(entry.startswith("torch ") for entry in facts["versions"].split(", "))
    refused = command("export", *words, "onnx", recipe=recipe)
    assert refused.code == 2
    assert refused.out == []
    assert len(refused.err) == 1
    assert "needs onnx, onnxscript, onnxruntime; pip install 'lit-methods[export]'" in refused.err[0]
    assert len(list(Path("runs").iterdir())) == 1  # the refused one left none


def test_a_file_that_differs_is_not_there(command, checkpoint, monkeypatch):
    monkeypatch.setitem(BACKBONES, "doubling", Backbone(Doubling, tiny_points))
    answer = command("export", "--ckpt_path", checkpoint("doubling"), "--formats", "torch", recipe=None)
    assert answer.code == 1
    assert answer.out == []
    (line,) = answer.err
    assert line.startswith(
        "error: classifier.pt2: differs from the module by 1 of its largest output for inputs of 1x3x"
    )
    assert not list(Path("runs").iterdir())


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["ckpt_path: missing", "--ckpt_path FILE"]),
        (["--ckpt_path", "nowhere.ckpt"], ["ckpt_path='nowhere.ckpt'", "does not exist"]),
        (["--ckpt_path", "run/checkpoints/last.ckpt", "--formats", "tflite"], ["formats='tflite'", "onnx, torch"]),
        (["--ckpt_path", "run/checkpoints/last.ckpt", "--formats"], ["formats: its value is missing"]),
        (["--ckpt_path", "run/checkpoints/last.ckpt", "--run_dir", "run/checkpoints/x.ckpt"], ["is a file"]),
    ],
)
def test_mistakes_get_one_line(command, checkpoint, words, parts):
    checkpoint()
    Path("run/checkpoints/x.ckpt").write_bytes(b"")
    answer = command("export", *words)
    assert answer.code == 2
    assert answer.out == []
    assert len(answer.err) == 1
    assert all(part in answer.err[0] for part in parts), answer.err
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


def test_a_method_without_graphs(command):
    run = command("fit").run_dir
    answer = command("export", "--ckpt_path", run / "checkpoints/last.ckpt", "--run_dir", run, "--formats", "torch")
    assert answer.code == 2
    assert answer.err == ["error: ToyMethod offers no export_graphs(), so there is nothing to export"]
    assert not (run / "export").exists()


@pytest.mark.slow
def test_nothing_but_the_table_is_printed(make_trainer, tmp_path):
    """By nobody: not by the exporters, nor by ONNX Runtime's own C++ log."""
    pytest.importorskip("onnxscript")
    trainer = make_trainer()
    trainer.strategy.connect(HRank("resnet20", num_classes=4))
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    done = run_entry("export", "--ckpt_path", "some.ckpt", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 4
