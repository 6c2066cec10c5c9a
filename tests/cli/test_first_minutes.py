"""What somebody meets who tries the commands for the first time: hints that can be copied, answers that say enough."""

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from lightning.pytorch import Callback
from PIL import Image
from toy_method import ToyCallback, ToyData, ToyMethod

from lit_methods.cli import main
from lit_methods.cli.__main__ import main as overview
from lit_methods.cli.changes import config_changes
from lit_methods.cli.given import flatten
from lit_methods.cli.preview import preview
from tests.left_behind import metrics, read_summary


class PressCtrlC(Callback):
    """In the third batch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 2:
            signal.raise_signal(signal.SIGINT)


STOPPED = ["--trainer.callbacks+=test_first_minutes.PressCtrlC"]

# --- going on --------------------------------------------------------------------------------------------------------


def test_after_ctrl_c_the_last_line_is_the_command_that_goes_on(command, tmp_path, capsys):
    run = tmp_path / "my runs" / "a"
    answer = command("fit", "--run_dir", run, *STOPPED)
    assert answer.code == 130
    assert answer.err[-2] == f"stopped by SIGINT; go on with --run_dir {run} --ckpt_path last"
    python, m, module, *words = shlex.split(answer.err[-1])
    assert (python, m, module) == ("python", "-m", "lit_methods.fit")
    assert main("fit", words) == 0
    assert metrics(run)[-1]["step"] == "10"
    assert Path(capsys.readouterr().out.splitlines()[-1]) == run


def test_without_a_configuration_there_is_no_such_command(command, tmp_path, monkeypatch):
    monkeypatch.setattr("lit_methods.cli.parsing.RunCLI.save_config", lambda cli: None)
    answer = command("fit", "--run_dir", "a", *STOPPED)
    assert answer.err[-1] == f"stopped by SIGINT; go on with --run_dir {tmp_path / 'a'} --ckpt_path last"


def test_going_on_with_another_configuration_says_what_changes(command):
    command("fit", "--run_dir", "a")
    with pytest.warns(UserWarning, match=r"^config\.yaml changes: ") as caught:
        command("fit", "--run_dir", "a", "--ckpt_path", "last", "--trainer.max_epochs", 3,
                "--data.batch_size", 5, "--trainer.callbacks.keep", 0.25)  # fmt: skip
    (line,) = [str(w.message) for w in caught if "config.yaml" in str(w.message)]
    said = ["data.batch_size 4 -> 5", "trainer.callbacks.ToyCallback.keep 0.5 -> 0.25"]
    assert sorted(line.removeprefix("config.yaml changes: ").split(", ")) == said


@pytest.mark.filterwarnings("error:config.yaml")
def test_going_on_with_the_same_configuration_says_nothing(command):
    command("fit", "--run_dir", "a")
    assert command("fit", "--run_dir", "a", "--ckpt_path", "last", "--trainer.max_epochs", 3).code == 0
    assert command("fit", "--run_dir", "a", "--ckpt_path", "last", recipe=Path("a/config.yaml")).code == 0
    elsewhere = ["--run_dir", "b", "--ckpt_path", "a/checkpoints/last.ckpt", "--trainer.max_epochs", 4]
    assert command("fit", *elsewhere, "--data.batch_size", 5).code == 0


def test_changes_of_classes_and_of_lists():
    def pairs(data: str, *callbacks: str, **init_args: object) -> list:
        items = [{"class_path": name, "init_args": {"at": 1}} for name in callbacks]
        return flatten({"data": {"class_path": data, "init_args": init_args}, "trainer": {"callbacks": items}})

    assert config_changes(pairs("a.A", "b.B", x=1), pairs("c.C", "b.B", y=2)) == "data a.A -> c.C"
    more = config_changes(pairs("a.A", "b.B", "b.B"), pairs("a.A", "d.D", "b.B", "b.B"))
    assert more == "trainer.callbacks.D none -> d.D"
    many = config_changes(pairs("a", **dict.fromkeys("pqrstuv", 1)), pairs("a", **dict.fromkeys("pqrstuv", [0] * 99)))
    assert many.endswith(" and 2 more")
    assert len(many) < 400


# --- how a run differs from its recipe -------------------------------------------------------------------------------


class OtherData(ToyData):
    """Points of somebody else."""


@pytest.mark.parametrize(
    ("words", "stays"),
    [
        (["--data", "test_first_minutes.OtherData"], False),
        (["--data.class_path", "test_first_minutes.OtherData"], False),
        (["--data", "ToyData"], True),  # the recipe's own
        (["--data.batch_size", 5], True),
        (["--data", "test_first_minutes.OtherData", "--description", "Points on a line of mine"], True),
    ],
)
def test_what_a_recipe_says_about_itself_goes_with_its_data(command, words, stays):
    run = command("fit", *words, "--trainer.max_epochs", 1).run_dir
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert ("description" in config, "Points on a line" in (run / "card.md").read_text()) == (stays, stays)
    papers = stays and "--description" not in words
    assert ("paper" in config, "Toy et al., 2020" in (run / "card.md").read_text()) == (papers, papers)


def test_another_data_set_of_the_same_class(tmp_path, capsys):
    def printed(*words: str) -> dict:
        assert main("fit", ["hrank", *words, "--print_config"]) == 0
        return yaml.safe_load(capsys.readouterr().out)

    assert printed("--data.name", "cifar10")["description"] is None
    assert printed("--data.init_args.name", "cifar10")["description"] is None
    assert "embedded digits" in printed("--data.name", "digits")["description"]
    assert "embedded digits" in printed()["description"]


def test_the_card_says_what_the_command_line_changed(command, tmp_path):
    def changed(*words: object, **where: Path) -> list[str]:
        card = (command("fit", *words, **where).run_dir / "card.md").read_text()
        return [line for line in card.splitlines() if line.startswith("- changed:")]

    assert changed("--run_dir", "a", "--logger=csv") == []
    assert changed("--model.lr", 0.2, "--trainer.callbacks+=ToyCallback", "--model.scores", "[0.1, 0.2]") == [
        "- changed: --model.lr 0.2 --trainer.callbacks+=ToyCallback --model.scores '[0.1, 0.2]'"
    ]
    Path("more.yaml").write_text("model: {init_args: {lr: 0.3}}")
    assert changed("--config", "more.yaml") == ["- changed: --config more.yaml"]
    assert changed(recipe=Path("a/config.yaml")) == ["- changed: --config a/config.yaml"]


def test_a_card_has_no_row_for_an_empty_list(command, monkeypatch):
    monkeypatch.setattr(ToyMethod, "summary", lambda self: {"prune/none": [], "prune/some": [1]}, raising=False)
    card = (command("fit").run_dir / "card.md").read_text()
    assert ("`prune/none`" in card, "`prune/some`" in card) == (False, True)


def test_the_duration_counts_from_the_start_of_the_command(command, monkeypatch):
    real = ToyData.__init__

    def slow(self, root: str | None = None, batch_size: int = 4) -> None:
        time.sleep(0.3)
        real(self, root, batch_size)

    monkeypatch.setattr(ToyData, "__init__", slow)
    assert read_summary(command("predict").run_dir)["duration_s"] >= 0.3


# --- what a prediction says ------------------------------------------------------------------------------------------


def test_predict_shows_ten_answers(command, tmp_path):
    for number in range(12):
        Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8)).save(tmp_path / f"{number:02}.png")
    answer = command("predict", "--input", tmp_path)
    shown, rest = answer.out[:10], answer.out[10:]
    assert [line.split()[0] for line in shown] == [str(tmp_path / f"{number:02}.png") for number in range(10)]
    assert all(line.split()[1] in "012" and 0.3 < float(line.split()[2]) <= 1 for line in shown)
    assert rest[0] == "... and 2 more in predictions.csv"
    assert rest[1].startswith("toy, predict")
    assert answer.run_dir.is_dir()


def test_preview_of_what_has_no_name_or_no_score():
    assert preview([]) == []
    assert preview([{"file": "", "name_1": "cats", "label_1": 0, "score_1": 0.8149}]) == ["0  cats 0.81"]
    attacked = {"file": "long.png", "label": 3, "boxes": "[1, 2]", "success": True, "l2": 0.123456, "queries": 9}
    assert preview([attacked, {"file": "b.png"}]) == ["long.png  label 3, success True, l2 0.1235", "b.png"]


# --- what an error proposes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words", "line"),
    [
        ([0.5, 7], [], "trainer.callbacks.keep=7: keep must"),
        ([7, 0.5], [], "trainer.callbacks[0].init_args.keep=7: keep must"),
        ([7], ["--trainer.callbacks+=ToyPickyCallback", "--trainer.callbacks.name", "x"],
         "trainer.callbacks[0].init_args.keep=7: keep must"),
    ],
)  # fmt: skip
def test_a_value_of_a_file_is_named_by_the_option_that_sets_it(command, tmp_path, values, words, line):
    items = [{"class_path": "toy_method.ToyCallback", "init_args": {"keep": value}} for value in values]
    Path("more.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": items}}))
    answer = command("fit", "--config", "more.yaml", *words)
    assert (answer.code, answer.err[0].startswith(f"error: {line}")) == (2, True), answer.err


def test_an_argument_of_a_file_is_named_by_its_option(command):
    Path("more.yaml").write_text("data: {init_args: {root: nowhere}}")
    assert command("fit", "--config", "more.yaml").err == ["error: data.root='nowhere': no points in root='nowhere'"]


def test_items_of_lists_are_counted_in_files_alone(command):
    answer = command("fit", "--trainer.callbacks[0].init_args.keep", 0.7)
    assert answer.err == [
        "error: trainer.callbacks[0].init_args.keep='0.7': no such option; did you mean trainer.callbacks.keep?"
    ]
    answer = command("fit", "--trainer.callbacks[0].keep=0.7", "--trainer.callbacks+=ToyPickyCallback")
    assert "--trainer.callbacks.NAME VALUE sets an argument of the last one" in answer.err[0]
    assert "did you mean" not in answer.err[0]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--data ImageFolder", "data='ImageFolder': no such class; did you mean FaceFolderDataModule?"),
        ("--data HRank", "data='HRank': not a LightningDataModule"),
        ("--data PPBB", "data='PPBB': no such class; there are CIFARDataModule, DukeMTMCDataModule"),
        ("--model.help CIFARDataModul", "model.help='CIFARDataModul': no such class; there are ADCluster, ASFD, "),
    ],
)  # fmt: skip
def test_a_class_is_proposed_where_it_can_stand(command, words, line):
    answer = command("fit", *words.split())
    assert (answer.code, len(answer.err)) == (2, 1)
    assert answer.err[0].startswith(f"error: {line}")


# --- help without the name of a class --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--model.help"], "learning rate"),
        (["--trainer.max_epochs", 3, "--data.help", "--model.lr", 0.2], "points in a batch"),
        (["--model", "ImageClassifier", "--model.help"], "--model.backbone"),
        (["--trainer.callbacks+=ToyCallback", "--trainer.callbacks.help"], "a share between 0 and 1"),
    ],
)
def test_help_of_the_class_that_was_given(command, words, line):
    answer = command("fit", *words)
    assert (answer.code, answer.err) == (0, [])
    assert any(line in told for told in answer.out), answer.out
    assert answer.out[0].startswith("usage: python -m lit_methods.fit ")


@pytest.mark.parametrize(
    ("key", "recipe", "names"),
    [
        ("trainer.callbacks", True, ["ComplexityLogger", "HRankPruning", "NaNGuard"]),
        ("model", False, ["HRank", "PPBA"]),
        ("data", False, ["CIFARDataModule", "ImageNetDataModule"]),
    ],
)
def test_help_names_the_classes_that_there_are(command, key, recipe, names):
    answer = command("fit", f"--{key}.help", **({} if recipe else {"recipe": None}))
    assert (answer.code, answer.err) == (0, [])
    lines = dict(line.split(maxsplit=1) for line in answer.out)
    assert set(names) <= lines.keys()
    assert not {"Predictor", ToyCallback.__name__} & lines.keys()
    assert not Path("runs").exists()


# --- the package itself as a command ---------------------------------------------------------------------------------


def test_the_package_says_which_commands_there_are(capsys):
    for words in ([], ["--help"]):
        assert overview(words) == 0
        out = capsys.readouterr().out
        for entry in ("fit", "validate", "test", "predict", "export", "doctor"):
            assert f"python -m lit_methods.{entry} " in out
        assert "--list" in out
    assert overview(["test", "hrank"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "python -m lit_methods.test" in said.err


def test_as_a_process_it_imports_nothing_heavy(tmp_path):
    heavy = ("torch", "lightning", "jsonargparse", "numpy", "yaml")
    script = f"import atexit, runpy, sys; atexit.register(lambda: print([m for m in {heavy!r} if m in sys.modules]));"
    script += "runpy.run_module('lit_methods', run_name='__main__', alter_sys=True)"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "python -m lit_methods.fit " in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
