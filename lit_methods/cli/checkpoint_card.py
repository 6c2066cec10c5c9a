"""What the doctor tells of a checkpoint: a line per fact, and the commands that go on from it."""

from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any

from lit_methods.checkpoint_io import CheckpointError, readable_size
from lit_methods.cli.card import show
from lit_methods.cli.checkpoint_facts import describe_checkpoint
from lit_methods.cli.findings import Finding, Report, describe
from lit_methods.cli.recipes import find_recipes
from lit_methods.cli.run_directory import command_for, newest_checkpoint
from lit_methods.contract import Exports, Predicts, checkpoint_class

_NETWORK = ("backbone", "model", "encoder", "size", "num_classes", "input_size")  # come first among the arguments
_LONGEST_LIST = 40  # characters; of a longer one, or mapping, the number of entries is told
_UNKNOWN = "not recorded"


def tell_checkpoint(report: Report, ckpt_path: str, run_dir: str | None) -> int:
    """Say what a checkpoint is.

    Args:
        report: takes the lines.
        ckpt_path: a file, or ``"last"`` of ``run_dir``.
        run_dir: a run's directory.

    Returns:
        The exit code: 1 where there is no such file, or it is damaged or no checkpoint of a run.
    """
    path = ckpt_path
    try:
        if ckpt_path == "last":
            path = str(newest_checkpoint(run_dir, ""))
        for finding in _lines(path, describe_checkpoint(path)):
            report.add(finding)
    except (ValueError, OSError) as ex:
        beside = ""
        if isinstance(ex, CheckpointError) and (others := sorted(Path(path).parent.glob("*.ckpt"))):
            beside = f"; beside it: {', '.join(file.name for file in others if file.name != Path(path).name) or 'none'}"
        report.fail("file", f"{ex}{beside}")
    except Exception as ex:  # a file that only looks like one of ours
        report.fail("file", f"ckpt_path={ckpt_path!r} cannot be told: {describe(ex)}")
    return report.close()


def _lines(path: str, facts: dict[str, Any]) -> Iterator[Finding]:
    sizes = facts["bytes"]
    yield _ok("file", f"{path}: {readable_size(sizes['file'])}, every checksum right, written {facts['written']}")
    method = facts["method"]
    if method is None:
        yield Finding("warning", "method", f"{_UNKNOWN}; the commands need the recipe, Predictor a module_class")
    else:
        yield _ok("method", f"{method.rpartition('.')[2]} ({method})")
    name, about = facts["recipe"] or _UNKNOWN, facts["description"]
    yield _ok("recipe", f"{name}{f': {about}' if about else ''}")
    yield _ok("data", _data(facts["data"]))
    yield _ok("progress", _progress(facts["progress"]))
    yield _ok("metrics", _metrics(facts))
    if tested := {k: v for k, v in (facts["summary"] or {}).items() if k.startswith("test/")}:
        yield _ok("tested", f"{_figures(tested)} (the run's summary.json, of the checkpoint that it chose)")
    yield _ok("arguments", _arguments(facts["arguments"]))
    if pruned := facts["pruned"]:
        yield _ok("pruned", _pruned(pruned))
    yield _ok(
        "sizes",
        f"{facts['parameters']:,} parameters; weights and buffers {readable_size(sizes['weights'])}, optimiser state "
        f"{readable_size(sizes['optimisers'])}, the rest {readable_size(sizes['rest'])}",
    )
    yield _ok("callbacks", f"{', '.join(facts['callbacks']) or 'none'} with a state")
    versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items() if version)
    yield _ok("versions", versions or _UNKNOWN)
    if run := facts["wandb"]:
        yield _ok("wandb", f"run {'/'.join(run[k] for k in ('entity', 'project', 'id') if run.get(k))}")
    for topic, command in _commands(path, facts).items():
        yield _ok(topic, command)
    if not facts["resumable"]:
        yield Finding("warning", "resume", "it holds weights alone, from which no run goes on")


def _ok(topic: str, text: str) -> Finding:
    return Finding("ok", topic, text)


def _data(data: dict[str, Any] | None) -> str:
    if data is None:
        return _UNKNOWN
    samples = ", ".join(f"{count:,} {stage} samples" for stage, count in data["samples"].items())
    given = ", ".join(f"{key} {_short(value)}" for key, value in data["arguments"].items() if value not in ("", False))
    return f"{data['class'].rpartition('.')[2]}{f': {samples}' if samples else ''}; {given or 'no arguments'}"


def _progress(progress: dict[str, Any]) -> str:
    done = "at the end of" if progress["epoch_done"] else "in the middle of"
    of = f", the last is {progress['max_epochs'] - 1}" if progress["max_epochs"] else ""
    text = f"{done} epoch {progress['epoch']} (the first is 0{of}), step {progress['step']:,}"
    steps = progress["optimizer_steps"]
    return text if steps == progress["step"] else f"{text}, {steps:,} steps of optimisers"


def _metrics(facts: dict[str, Any]) -> str:
    best, last, texts = facts["best"], facts["metrics"], []
    if best:
        kept = f" in {best['file']}" if best["file"] else ""
        texts.append(f"best {best['monitor']} so far {show(best['score'])}{kept} ({best['mode']}imum is best)")
    elif last is not None:
        texts.append("no best one is looked for")
    if last is None:
        texts.append(f"the last ones: {_UNKNOWN} in the file")
    else:
        texts.append(f"the last ones: {_figures(last) or 'none yet'}")
    return "; ".join(texts)


def _figures(metrics: dict[str, Any]) -> str:
    return ", ".join(f"{key} {show(value)}" for key, value in metrics.items() if isinstance(value, int | float))


def _arguments(arguments: dict[str, Any]) -> str:
    """The network's first; what is ``None`` says nothing, and a plan has a line of its own."""
    known = {key: arguments[key] for key in _NETWORK if key in arguments} | arguments
    told = {key: value for key, value in known.items() if value is not None and key != "plan"}
    return ", ".join(f"{key} {_short(value)}" for key, value in told.items()) or "none"


def _short(value: Any) -> str:
    text = show(value)
    if isinstance(value, list | tuple | dict) and len(text) > _LONGEST_LIST:
        return f"({len(value)} entries)"
    return text


def _pruned(pruned: dict[str, int | None]) -> str:
    params, dense = pruned["params"], pruned["dense_params"]
    if params is None or dense is None:
        return "a plan of kept filters, of a network that was given as an object"
    return f"{params:,} of {dense:,} parameters of the network ({params / dense:.1%})"


def _commands(path: str, facts: dict[str, Any]) -> dict[str, str]:
    """How to go on; a run's own ``config.yaml`` is better than a recipe, which may have been overridden."""
    written_by = _class_of(facts["method"])
    run, recipe = facts["run_dir"], facts["recipe"]
    ckpt = ("--ckpt_path", path)
    commands: dict[str, str] = {}
    bare = f"--ckpt_path {quote(path)}"
    alone = written_by is not None  # the file is enough
    if recipe not in find_recipes():
        recipe = "RECIPE"
    head = "" if alone else f"{recipe} "
    if written_by is None or issubclass(written_by, Predicts):
        commands["predict"] = f"python -m lit_methods.predict {head}{bare} --input FILE...{_options(written_by)}"
    if run:
        commands["test"] = command_for("test", Path(run), *ckpt)
    else:
        commands["test"] = f"python -m lit_methods.test {recipe} {bare}"
    if written_by is None or issubclass(written_by, Exports):
        commands["export"] = f"python -m lit_methods.export {head}{bare}"
    if facts["resumable"]:
        goes_on = command_for("fit", Path(run), "--run_dir", run, *ckpt) if run else ""
        commands["resume"] = goes_on or f"python -m lit_methods.fit {recipe} {bare}"
        if facts["progress"]["ended"]:
            commands["resume"] += " --trainer.max_epochs N"
    return commands


def _class_of(path: str | None) -> type | None:
    """The class that wrote a checkpoint, where it is one of this package."""
    try:
        return checkpoint_class({"lit_methods": {"class": path}})
    except (ValueError, ImportError, AttributeError):  # another package's, or one that is no more
        return None


def _options(written_by: Any) -> str:
    """What ``predict`` takes for this method besides files."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(add_help=False)
    if hasattr(written_by, "add_cli_arguments"):
        written_by.add_cli_arguments(parser, "predict")
    names = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
    return "".join(f" [{name} ...]" for name in names)
