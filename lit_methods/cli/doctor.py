"""The doctor: look at the machine and at a recipe before a long run, or at a checkpoint after it; one line per check.

A check that finds a fault does not stop the others. Nothing is downloaded, and nothing stays behind: what the checks
write goes into a temporary folder.
"""

import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from lit_methods.cli import environment
from lit_methods.cli.findings import Report, describe

LEAST_STEPS = 8  # two epochs of the resume drill: one to be killed, one after it


def examine(argv: list[str]) -> int:
    """Run the checks.

    Args:
        argv: the words after the command, the recipe's name replaced by ``--config FILE``; with none but the doctor's
            own, only the machine is looked at; with ``--ckpt_path`` and no recipe, only that checkpoint.

    Returns:
        0; 1 where a check failed; 2 for a mistake in the doctor's own options, after one line on stderr.
    """
    try:
        words, drill = _own_options(argv)
        file = _checkpoint_alone(words, drill)
    except ValueError as ex:
        print(f"error: {ex}", file=sys.stderr)
        return 2
    if file is not None:
        return _examine_checkpoint(*file)
    root = Path(_given(words, "run_dir") or "runs/new").parent
    report = Report()
    for name, check in (
        ("versions", environment.package_findings),
        ("torchvision", environment.torchvision_findings),
        ("devices", environment.device_findings),
        ("threads", environment.thread_findings),
        ("workers", environment.worker_findings),
        ("runs", lambda: environment.write_findings(root)),
        ("wandb", environment.wandb_findings),
    ):
        report.run(name, check)
    if not words:
        report.ok("recipe", "none given; name one (--list shows all) to check its data and its first step")
        return report.close()
    try:
        _examine_recipe(report, words, drill, root)
    except SystemExit as ex:  # --print_config, --model.help: answered; or a signal
        return int(ex.code or 0)
    return report.close()


def _examine_recipe(report: Report, words: list[str], drill: "Drill", root: Path) -> None:
    try:
        from callbacks.interruption import listening
        from lit_methods.cli.recipe_check import RecipeCheck
    except Exception as ex:  # torch or lightning is broken, as the lines above say
        report.fail("recipe", describe(ex))
        return
    with listening(), tempfile.TemporaryDirectory(prefix="lit-methods-doctor-") as folder:  # removed on signals, too
        recipe = RecipeCheck(report, words, Path(folder, "run"))
        sound = recipe.build() and all([recipe.space(root), recipe.data()]) and recipe.step()
        if drill.wanted and sound:
            recipe.resume(drill.steps, root)
        elif drill.wanted:
            report.fail("resume", "not tried, since the recipe does not train here: see the lines above")


def _examine_checkpoint(ckpt_path: str, run_dir: str | None) -> int:
    report = Report()
    try:
        from lit_methods.cli.checkpoint_card import tell_checkpoint
    except Exception as ex:  # torch or lightning is broken; without --ckpt_path the doctor says how
        report.fail("file", describe(ex))
        return report.close()
    return tell_checkpoint(report, ckpt_path, run_dir)


class Drill(NamedTuple):
    """Whether the resume drill was asked for, and with how many training batches; ``None`` leaves that to the drill."""

    wanted: bool = False
    steps: int | None = None


def _own_options(argv: list[str]) -> tuple[list[str], Drill]:
    """The words for ``fit``, and what was said about the resume drill.

    Raises:
        ValueError: an option does not fit.

    Example:
        >>> _own_options(["--config", "a.yaml", "--resume", "--steps", "40"])
        (['--config', 'a.yaml'], Drill(wanted=True, steps=40))
    """
    words: list[str] = []
    steps, resume = None, False
    rest = iter(argv)
    for word in rest:
        if word == "--resume":
            resume = True
        elif word == "--steps" or word.startswith("--steps="):
            steps = word.partition("=")[2] if "=" in word else next(rest, "")
        else:
            words.append(word)
    if steps is not None and not (steps.isdecimal() and int(steps) >= LEAST_STEPS):
        raise ValueError(f"steps={steps!r}: a whole number from {LEAST_STEPS} on, the training batches of the drill")
    if steps is not None and not resume:
        raise ValueError(f"steps={steps!r}: only with --resume")
    if resume and not words:
        raise ValueError("resume: name the recipe that is to be trained, killed and resumed")
    if resume and _given(words, "ckpt_path") is not None:
        raise ValueError("ckpt_path: leave it out with --resume, whose runs begin where the recipe begins")
    return words, Drill(resume, int(steps) if steps else None)


def _checkpoint_alone(words: list[str], drill: "Drill") -> tuple[str, str | None] | None:
    """The checkpoint that is to be looked at, and the run's directory; ``None`` where a recipe or no file is given.

    Raises:
        ValueError: an option does not fit a checkpoint without a recipe.

    Example:
        >>> _checkpoint_alone(["--ckpt_path=last", "--run_dir", "runs/a"], Drill())
        ('last', 'runs/a')
        >>> _checkpoint_alone(["--config", "a.yaml", "--ckpt_path", "a.ckpt"], Drill())
    """
    given: dict[str, str] = {}
    for word, following in zip(words, [*words, ""][1:], strict=True):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            given[name] = value if equals else "" if following.startswith("--") else following
    if "--ckpt_path" not in given or drill.wanted or any(_names_a_recipe(name) for name in given):
        return None
    path, run_dir = given["--ckpt_path"], given.get("--run_dir")
    if odd := [name for name in given if name not in ("--ckpt_path", "--run_dir")]:
        raise ValueError(f"{odd[0]}: name a recipe with it; a checkpoint alone takes --ckpt_path and --run_dir")
    if not path:
        raise ValueError("ckpt_path: missing; give a file, or 'last' with --run_dir DIR")
    if run_dir == "":
        raise ValueError("run_dir: missing; give the run's directory")
    if path == "last" and run_dir is None:
        raise ValueError("ckpt_path='last': name the run with --run_dir DIR, or its recipe")
    if path != "last" and run_dir is not None:
        raise ValueError(f"run_dir={run_dir!r}: only with --ckpt_path last; a file says where it is")
    return path, run_dir


def _names_a_recipe(option: str) -> bool:
    return option.rstrip("+").split(".")[0] in ("--config", "--model", "--data", "--print_config")


def _given(words: list[str], key: str) -> str | None:
    """What the user gave for an option, on the command line or in a file."""
    if not words:
        return None
    from lit_methods.cli.given import collect, last  # needs PyYAML, which may be what is missing

    return last(collect(words), key)
