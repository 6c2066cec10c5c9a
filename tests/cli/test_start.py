"""What is answered before torch is imported: the list, typos, help."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_methods.cli import main
from lit_methods.cli.recipes import describe, find_recipes, list_recipes
from tests.own_process import run_entry

HEAVY = ("torch", "lightning", "jsonargparse", "numpy", "yaml")


@pytest.mark.parametrize(
    ("words", "code"), [([], 0), (["--list"], 0), (["--help"], 0), (["-h"], 0), (["hrnak_digits_of_pi"], 2)]
)
def test_answers_without_heavy_imports(words: list[str], code: int):
    script = (
        "import sys; from lit_methods.cli import main; code = main('fit', sys.argv[1:]);"
        f"print([name for name in {HEAVY!r} if name in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("entry", ["fit", "validate", "test", "predict", "export", "doctor"])
def test_every_entry_is_a_module(entry: str):
    done = run_entry(entry, "--list", folder=Path(__file__).parents[2])
    assert done.returncode == 0
    assert done.stdout.strip() == list_recipes()


def test_list_has_one_line_per_recipe(capsys):
    assert main("fit", ["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(find_recipes())
    assert all(describe(path) for path in find_recipes().values())


def test_a_typo_gets_the_closest_names(capsys):
    name = next(iter(find_recipes()))
    assert main("test", [name[:-1]]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert f"no recipe '{name[:-1]}'" in said.err
    assert name in said.err


def test_help_names_the_entrys_own_options(capsys):
    assert main("predict", ["--help"]) == 0
    assert "--input PATH" in capsys.readouterr().out
    assert main("fit", ["--help"]) == 0
    assert "--input" not in capsys.readouterr().out


def test_help_all_comes_from_the_parser(command):
    answer = command("fit", "--help_all")
    assert answer.code == 0
    assert any("--trainer.max_epochs" in line for line in answer.out)
    assert any("--checkpoint.monitor" in line for line in answer.out)


def test_descriptions_are_read_from_the_first_line(tmp_path):
    Path(tmp_path, "a.yaml").write_text("# a comment\ndescription: 'Quoted: text'\nmodel: {}\n")
    Path(tmp_path, "bb.yaml").write_text("model: {}\ndescription: too late\n")
    assert list_recipes(tmp_path).splitlines() == ["a   Quoted: text", "bb"]


def test_the_environment_is_left_as_it_was(command):
    before = dict(os.environ)
    command("fit")
    left = {key: value for key, value in os.environ.items() if before.get(key) != value}
    assert not [key for key in left if key.startswith("LIT_METHODS")]
