"""The doctor's own command: its options, its last line, and that one broken check does not stop the others."""

import pytest
from doctor_says import lines

from lit_methods.cli import doctor, environment
from lit_methods.cli.findings import Finding, Report


def test_a_check_that_breaks_does_not_stop_the_others(command, monkeypatch):
    def broken():
        yield Finding("ok", "threads", "half of it")
        raise ImportError("libcuda.so.1: cannot open shared object file\nmore")

    monkeypatch.setattr(environment, "thread_findings", broken)
    answer = command("doctor", recipe=None)
    assert answer.code == 1
    assert lines(answer, "FAIL", "threads: ")[0].split(None, 2)[2].startswith("ImportError: libcuda.so.1: cannot open")
    assert lines(answer, "ok", "wandb")


def test_help_of_the_parser_is_answered(command):
    answer = command("doctor", "--print_config")
    assert answer.code == 0
    assert any(line.startswith("model:") for line in answer.out)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--resume", "--steps", "7"], "steps='7': a whole number from 8 on"),
        (["--resume", "--steps=x"], "steps='x': a whole number from 8 on"),
        (["--steps", "12"], "steps='12': only with --resume"),
        (["--resume", "--ckpt_path", "last"], "ckpt_path: leave it out with --resume"),
    ],
)
def test_mistakes_in_the_doctors_own_options(command, words, text):
    answer = command("doctor", *words)
    assert answer.code == 2
    assert answer.out == []
    assert len(answer.err) == 1
    assert text in answer.err[0]


def test_resume_needs_a_recipe(capsys):
    assert doctor.examine(["--resume"]) == 2
    assert "name the recipe" in capsys.readouterr().err


def test_report_counts_and_decides():
    report = Report()
    report.ok("a", "fine")
    report.warn("a", "perhaps")
    assert report.close() == 0
    report.fail("a", "no")
    assert report.close() == 1
