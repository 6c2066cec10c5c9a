"""--safe: what a hostile configuration names is not even imported (drill D10)."""

import sys
from pathlib import Path

import jsonargparse
import pytest
import yaml

from lit_methods.cli.parsing import RunCLI
from lit_methods.cli.recipes import find_recipes
from lit_methods.cli.safe import ALLOWED

HOSTILE = """
from pathlib import Path
from lightning.pytorch import Callback, LightningDataModule, LightningModule
Path(__file__).with_name("touched").touch()
class Guest(Callback): pass
class Method(LightningModule): pass
class Data(LightningDataModule): pass
def function(*_): pass
"""
CONFIG = {
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "use_distributed_sampler": False, "fast_dev_run": True},
    "model": {"class_path": "lit_methods.ImageClassifier", "init_args": {"backbone": "tiny", "num_classes": 10}},
    "data": {"class_path": "datamodules.CIFARDataModule"},
}
LAMBDA = "lightning.pytorch.callbacks.LambdaCallback"


def changed(key: str, value: object) -> dict:
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    node = config
    *parents, leaf = key.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
    node[leaf] = value
    return config


IN_FILES = {
    "method": ("model", {"class_path": "hostile.Method"}),
    "method, short": ("model", "hostile.Method"),
    "data": ("data", {"class_path": "hostile.Data"}),
    "callback": ("trainer.callbacks", [{"class_path": "hostile.Guest"}]),
    "callback, short": ("trainer.callbacks", ["hostile.Guest"]),
    "callback, not in a list": ("trainer.callbacks", "hostile.Guest"),
    "logger": ("trainer.logger", {"class_path": "hostile.Guest"}),
    "plugin": ("trainer.plugins", [{"class_path": "hostile.Guest"}]),
    "plugin, short": ("trainer.plugins", "hostile.Guest"),
    "strategy": ("trainer.strategy", {"class_path": "hostile.Guest"}),
    "in init_args": ("model.init_args.backbone", {"class_path": "hostile.Guest"}),
    "in dict_kwargs": ("model.dict_kwargs", {"x": {"class_path": "hostile.Guest"}}),
    "function": ("trainer.callbacks", [{"class_path": LAMBDA, "init_args": {"on_fit_start": "hostile.function"}}]),
}
ON_COMMAND_LINES = {
    "method": ["--model", "hostile.Method"],
    "method, JSON": ["--model", '{"class_path": "hostile.Method"}'],
    "data": ["--data=hostile.Data"],
    "data, a file": ["--data", "data.yaml"],
    "callback": ["--trainer.callbacks+=hostile.Guest"],
    "callback, JSON": ["--trainer.callbacks", '[{"class_path": "hostile.Guest"}]'],
    "trainer, a file": ["--trainer", "trainer.yaml"],
    "help": ["--model.help", "hostile.Method"],
}


@pytest.fixture
def attack(command, tmp_path, monkeypatch):
    """``attack(config, *words)`` gives the answer, and whether the hostile module was imported."""
    Path("hostile.py").write_text(HOSTILE)
    Path("data.yaml").write_text("class_path: hostile.Data")
    Path("trainer.yaml").write_text("callbacks: [hostile.Guest]")
    monkeypatch.syspath_prepend(tmp_path)
    for name, value in jsonargparse._common.parsing_settings.items():  # --safe is for the rest of a process
        monkeypatch.setitem(jsonargparse._common.parsing_settings, name, value)

    def call(config: dict, *words: str):
        Path("config.yaml").write_text(yaml.safe_dump(config))
        answer = command("fit", "--run_dir", "run", *words, recipe=Path("config.yaml"))
        sys.modules.pop("hostile", None)
        return answer, Path("touched").exists()

    return call


@pytest.mark.parametrize(("key", "value"), IN_FILES.values(), ids=IN_FILES)
def test_a_class_in_a_file(attack, key, value):
    answer, touched = attack(changed(key, value), "--safe")
    assert not touched
    assert answer.code == 2
    (line,) = answer.err
    assert line.startswith(f"error: {key}")
    assert "hostile" in line
    assert f"with --safe classes and functions come from {ALLOWED[0]}" in line


@pytest.mark.parametrize("words", ON_COMMAND_LINES.values(), ids=ON_COMMAND_LINES)
def test_a_class_on_the_command_line(attack, words):
    answer, touched = attack(CONFIG, "--safe", *words)
    assert not touched
    assert answer.code == 2
    assert len(answer.err) == 1


@pytest.mark.parametrize("path", ["os.system", "torch.hub.load", "torch.os.system", "torch.utils.cpp_extension.load"])
def test_what_runs_foreign_code_itself(attack, path):
    """Also under another name: ``torch.os`` is ``os``."""
    guest = {"class_path": LAMBDA, "init_args": {"on_fit_start": path}}
    answer, _ = attack(changed("trainer.callbacks", [guest]), "--safe")
    assert answer.code == 2
    (line,) = answer.err
    assert line.startswith(f"error: trainer.callbacks[0].init_args.on_fit_start={path!r}: with --safe")


def test_a_file_cannot_take_it_back(attack):
    answer, touched = attack(changed("trainer.callbacks", ["hostile.Guest"]) | {"safe": False}, "--safe")
    assert (answer.code, touched) == (2, False)


def test_without_it_a_configuration_is_code(attack):
    """What the tests above would miss if they tested nothing."""
    _, touched = attack(changed("trainer.callbacks", ["hostile.Guest"]))
    assert touched


def test_recipes_of_the_package_are_safe(attack, tmp_path):
    cli = RunCLI("fit", ["--config", str(find_recipes()["hrank"]), "--safe", "--trainer.callbacks+=EarlyStopping",
                         "--trainer.callbacks.monitor", "val/top1", "--run_dir", str(tmp_path / "run"),
                         "--trainer.accelerator", "cpu"])  # fmt: skip
    cli.build()
    assert type(cli.model).__name__ == "HRank"
