"""The sweeps of the examples: what ``wandb agent`` makes of each is a run of its method, whose metric is there."""

import inspect
import itertools
import re
from importlib import import_module
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_methods.cli import main
from tests.left_behind import read_summary
from tests.logged_keys import logged_keys
from tests.small_recipes import EMBEDDED, RECIPES, without_figures
from tests.test_wandb import bare
from tests.wandb_record import read_record

ROOT = Path(__file__).parents[1]
SWEEPS = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in sorted(ROOT.glob("examples/sweeps/*.yaml"))}


def values(parameter: dict[str, Any]) -> list[Any]:
    """What a parameter may be; of a range its middle."""
    if "value" in parameter:
        return [parameter["value"]]
    if "values" in parameter:
        return parameter["values"]
    low, high = parameter["min"], parameter["max"]
    return [{"log_uniform_values": sqrt(low * high), "uniform": (low + high) / 2}[parameter["distribution"]]]


def sweep_commands(method: str) -> list[list[str]]:
    """Every command that ``wandb agent`` makes of a grid; of ranges, one."""
    sweep = SWEEPS[method]
    names = list(sweep["parameters"])
    commands = []
    for chosen in itertools.product(*(values(sweep["parameters"][name]) for name in names)):
        filled = {
            "${env}": ["/usr/bin/env"],
            "${interpreter}": ["python"],
            "${args}": [f"--{name}={value}" for name, value in zip(names, chosen, strict=True)],
        }
        commands.append([word for part in sweep["command"] for word in filled.get(part, [part])])
    return commands


def arguments(path: str) -> set[str]:
    """Names that a class takes, those that it hands on included."""
    package, _, name = path.rpartition(".")
    classes = getattr(import_module(package), name).__mro__
    return {argument for cls in classes for argument in inspect.signature(cls.__init__).parameters}


def test_every_method_has_a_sweep():
    assert set(SWEEPS) == {*EMBEDDED}
    assert (ROOT / "examples" / "wandb_sweep.yaml").resolve() == ROOT / "examples" / "sweeps" / "hrank.yaml"


@pytest.mark.parametrize("method", SWEEPS)
def test_a_sweep_names_what_exists(method):
    sweep = SWEEPS[method]
    assert (ROOT / sweep["program"]).is_file()
    for command in sweep_commands(method):
        assert command[:7] == ["/usr/bin/env", "python", "-m", "lit_methods.fit", method, "--logger", "wandb"]
    recipe = yaml.safe_load(RECIPES[method].read_text("utf-8"))
    parts = {
        "model.": recipe["model"]["class_path"],
        "data.": recipe["data"]["class_path"],
        "trainer.callbacks.": recipe["trainer"]["callbacks"][-1]["class_path"],  # whose options the command line sets
    }
    for name in sweep["parameters"]:
        (place,) = (place for place in parts if name.startswith(place))
        assert name.removeprefix(place) in arguments(parts[place]), name


@pytest.mark.parametrize("method", SWEEPS)
def test_the_metric_of_a_sweep_and_what_its_comment_puts_beside_it_are_logged(method):
    sweep, logged = SWEEPS[method], logged_keys(method)
    assert logged[sweep["metric"]["name"]] == "number"
    assert sweep["metric"]["goal"] in ("maximize", "minimize")
    stages = "|".join({key.partition("/")[0] for key in logged if "/" in key})
    comment = (ROOT / "examples" / "sweeps" / f"{method}.yaml").read_text("utf-8").partition("project:")[0]
    beside = {*re.findall(rf"\b(?:{stages})/\w+", comment)} - {sweep["metric"]["name"]}
    assert beside
    assert beside <= {*logged}
    if any(recipe.startswith(f"{method}_") for recipe in RECIPES):  # then it is told how to sweep at the paper's scale
        assert [word for word in re.findall(r"\w+", comment.partition("in place of")[0]) if word in RECIPES]
    if "early_terminate" in sweep:  # it counts how often the metric is logged
        assert sweep["metric"]["name"].startswith("val/")


def test_the_test_expands_a_sweep_as_the_agent_does():
    utils: Any = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    args = {"trainer.callbacks.rates": {"value": "[0.1]+[0.2]*18"}, "model.finetune_lr": {"value": 0.02}}
    assert utils.create_sweep_command_args({"args": args})["args"] == sweep_commands("hrank")[0][-2:]
    args = {name: {"value": values(given)[0]} for name, given in SWEEPS["ppba"]["parameters"].items()}
    assert utils.create_sweep_command_args({"args": args})["args"] == sweep_commands("ppba")[0][-3:]


def as_agent(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    agent = {"WANDB_SWEEP_ID": "sweep123", "WANDB_RUN_ID": "run45678", "WANDB_PROJECT": "mine", "WANDB_MODE": mode}
    for name, value in agent.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("mode", ["disabled", pytest.param("offline", marks=pytest.mark.slow)])
def test_one_run_of_the_sweep(mode, tmp_path, monkeypatch, capsys):
    bare(monkeypatch, tmp_path)
    as_agent(monkeypatch, mode)
    commands = sweep_commands("hrank")
    assert len(commands) == 8
    words = commands[-1][4:]
    quick = [
        *("--trainer.max_epochs", "2", "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"),
        *("--trainer.limit_test_batches", "1", "--trainer.num_sanity_val_steps", "0", "--trainer.accelerator", "cpu"),
        *("--trainer.callbacks.at_epoch", "1", "--trainer.callbacks.num_images", "16", "--data.batch_size", "16"),
    ]
    with without_figures():
        assert main("fit", [*words, *quick, "--run_dir", str(tmp_path / "run")]) == 0
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["trainer"]["callbacks"][-1]["init_args"]["rates"] == "[0.1]+[0.8]*18"
    assert saved["model"]["init_args"]["finetune_lr"] == 0.05
    summary = read_summary(tmp_path / "run")
    assert "test/top1" in summary
    assert summary["prune/macs"] < 0.3 * summary["prune/dense_macs"]
    assert "wandb" not in capsys.readouterr().err
    if mode == "offline":
        record = read_record(tmp_path / "run")
        assert (record.run_id, record.project) == ("run45678", "mine")  # the agent chose
        assert "test/top1" in record.summary


SMALLER = {  # two epochs where nothing is said
    "bpe_mip": [
        *("--model.architectures", "2", "--model.ground_truth", "[0.5, 0.6]"),
        *("--trainer.callbacks.space", "{epochs: [1, 2], lr: [0.01, 0.1], cutout: [0, 1]}"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("method", [method for method in SWEEPS if method != "hrank"])  # which is above
def test_one_tiny_trial_of_every_sweep(method, overrides, tmp_path, monkeypatch):
    bare(monkeypatch, tmp_path)
    as_agent(monkeypatch, "offline")
    words = sweep_commands(method)[-1][4:]
    tiny = [*overrides(method), *SMALLER.get(method, ["--trainer.max_epochs", "2"])]
    with without_figures():
        assert main("fit", [*words, *tiny, "--run_dir", str(tmp_path / "run")]) == 0
    record = read_record(tmp_path / "run")
    assert record.run_id == "run45678"
    assert isinstance(record.summary[SWEEPS[method]["metric"]["name"]], int | float)
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    for word in words[4:]:
        name, _, value = word.removeprefix("--").partition("=")
        place, _, leaf = name.rpartition(".")
        inner = saved["trainer"]["callbacks"][-1] if place == "trainer.callbacks" else saved[place]
        kept = inner["init_args"][leaf]
        given = yaml.safe_load(value)
        assert kept == given or all(kept[key] == given[key] for key in given)
