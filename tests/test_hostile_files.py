"""Drill D10: a file with code in it, wherever a file can be given. Nothing runs, and one line says so."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_methods import HRank
from lit_methods.cli import main
from lit_methods.inference import Predictor

RUN = [
    *("hrank", "--model.backbone", "tiny", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"),
    *("--trainer.callbacks", "[]", "--run_dir", "run"),
]


class Payload:
    """Reading it with an ordinary unpickler creates the file ``ran``."""

    def __init__(self, folder: Path) -> None:
        self.marker = str(folder / "ran")

    def __reduce__(self):
        return (open, (self.marker, "w"))


class Command(Payload):
    """The classic: a shell command."""

    def __reduce__(self):
        return (os.system, (f"touch '{self.marker}'",))


@pytest.fixture
def payload(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile = getattr(request, "param", Command)(tmp_path)
    yield hostile
    assert not Path(hostile.marker).exists()
    loaded = pickle.loads(pickle.dumps(hostile))  # the payload is a live one
    if isinstance(loaded, int):
        assert loaded == 0
    else:
        loaded.close()
    assert Path(hostile.marker).exists()


def refused(capsys, *words: str) -> str:
    capsys.readouterr()
    entry, *rest = words
    assert main(entry, rest) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def checkpoint(make_trainer, tmp_path) -> dict:
    """A sound one of a run."""
    trainer = make_trainer()
    trainer.strategy.connect(HRank("tiny", num_classes=10))
    trainer.save_checkpoint(tmp_path / "sound.ckpt")
    return torch.load(tmp_path / "sound.ckpt", weights_only=True)


@pytest.mark.parametrize(("payload", "where", "zipped"), [
    (Payload, "hyper_parameters", True),
    (Command, "hyper_parameters", True),
    (Command, "state_dict", True),
    (Command, "lit_methods", True),
    (Command, "loops", True),
    (Command, "hyper_parameters", False),
], indirect=["payload"])  # fmt: skip
def test_as_checkpoint(payload, checkpoint, capsys, where, zipped):
    checkpoint[where]["extra"] = payload
    torch.save(checkpoint, "evil.ckpt", _use_new_zipfile_serialization=zipped)
    for entry in ("fit", "test", "predict"):
        line = refused(capsys, entry, *RUN, "--ckpt_path", "evil.ckpt")
        assert "ckpt_path='evil.ckpt' is not a checkpoint of a run" in line
        if zipped:
            assert "but only tensors and plain values are loaded" in line
    with pytest.raises(ValueError, match="is not a checkpoint of a run"):
        Predictor.from_checkpoint("evil.ckpt")


def test_as_last_checkpoint(payload, checkpoint, capsys):
    """A hostile file is no damage to step over in silence: the warning says what it asks for."""
    Path("run/checkpoints").mkdir(parents=True)
    checkpoint["hyper_parameters"]["extra"] = payload
    torch.save(checkpoint, "run/checkpoints/last.ckpt")
    line = refused(capsys, "fit", *RUN, "--ckpt_path", "last")
    assert "asks for" in line
    assert "no other checkpoint beside it is sound" in line


@pytest.mark.parametrize("name", ["evil.ckpt", "evil.pth", "evil.pkl", "old.pth", "evil.npz", "evil.safetensors"])
def test_as_weights(payload, checkpoint, capsys, name):
    checkpoint["state_dict"]["extra"] = payload
    if name == "evil.npz":
        np.savez(name, a=np.array([payload], dtype=object))
    elif name in ("evil.pkl", "evil.safetensors"):
        Path(name).write_bytes(pickle.dumps(checkpoint["state_dict"]))
    else:
        torch.save(checkpoint, name, _use_new_zipfile_serialization=name != "old.pth")
    line = refused(capsys, "fit", *RUN, "--model.base_checkpoint", name)
    assert line.startswith(f"error: model.base_checkpoint={name!r} cannot be read as weights: ")


def test_as_weights_of_torchvision(payload, capsys, monkeypatch, tmp_path):
    """A file in torch's cache that is none of torchvision's."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    cache = tmp_path / "cache" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save({"extra": payload}, cache / "resnet50-0676ba61.pth")
    words = ["--model.base_checkpoint", "ResNet50_Weights.IMAGENET1K_V1"]
    line = refused(capsys, "fit", *RUN, *words)
    assert "cannot be read as weights: it asks for" in line


def test_as_cifar_batch(payload, capsys, cifar10_root):
    shutil.copytree(cifar10_root, "data")
    (batch,) = Path("data").rglob("data_batch_3")
    content = pickle.loads(batch.read_bytes())
    batch.write_bytes(pickle.dumps(content | {"extra": payload}))
    line = refused(capsys, "fit", *RUN, "--data.name", "cifar10", "--data.root", "data")
    assert "data_batch_3" in line
    assert "only arrays and plain values are allowed" in line
