"""The command line run inside the test's own process, on a toy method."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from lit_methods.cli import main

TOY = Path(__file__).parent / "toy.yaml"


class Answer(NamedTuple):
    code: int
    out: list[str]
    err: list[str]

    @property
    def run_dir(self) -> Path:
        return Path(self.out[-1])


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    """``command("fit", "--model.lr", 0.2)`` runs the toy recipe in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def call(entry: str, *words: object, recipe: Path | None = TOY) -> Answer:
        capsys.readouterr()
        argv = [*(["--config", str(recipe)] if recipe else []), *map(str, words)]
        code = main(entry, argv)
        said = capsys.readouterr()
        return Answer(code, said.out.splitlines(), said.err.splitlines())

    return call
