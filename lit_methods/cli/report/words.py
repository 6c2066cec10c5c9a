"""What a run was, in one sentence, and figures and keys as they are read."""

import math
from collections.abc import Iterable
from typing import Any

from lit_methods.cli.figures import show
from lit_methods.cli.given import last
from lit_methods.cli.report.reading import Run

_STAGES = {"test": "tested", "validate": "validated"}


def figure(value: Any) -> str:
    """A figure of the summary: few decimals, long numbers in groups of three; a list as its first entries.

    Args:
        value: of ``summary.json`` or of a recipe's ``paper``.

    Example:
        >>> figure(108610000), figure(0.25), figure("nan"), figure(["a", "b"]), figure(None)
        ('108,610,000', '0.25', 'nan', 'a, b', '')
    """
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(map(figure, value[:4])) + (f" and {len(value) - 4} more" if len(value) > 4 else "") or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) >= 1000):
        return f"{int(value):,}" if abs(value) >= 10_000 else str(int(value))
    return show(value)


def duration(seconds: Any) -> str:
    """Seconds as people say them.

    Args:
        seconds: a number; anything else is told as it is.

    Example:
        >>> duration(3.24), duration(231.06), duration(7260), duration(200000), duration("nan")
        ('3.2 s', '3 min 51 s', '2 h 1 min', '2 d 7 h', 'nan')
    """
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return str(seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, (name, below, part) in ((86400, ("d", 3600, "h")), (3600, ("h", 60, "min")), (60, ("min", 1, "s"))):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {name}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"


def size(number: float) -> str:
    """A file's bytes.

    Args:
        number: how many.

    Example:
        >>> size(999), size(23_456), size(5_461_751)
        ('999 bytes', '23 kB', '5.5 MB')
    """
    if number < 1000:
        return f"{number:.0f} bytes"
    return (
        f"{number / 1e3:.0f} kB"
        if number < 1e6
        else f"{number / 1e6:.1f} MB"
        if number < 1e9
        else f"{number / 1e9:.1f} GB"
    )


def chosen(run: Run) -> str | None:
    """The figure of the test that the checkpoint was chosen by, or of the validation where there was no test."""
    monitor = last(run.pairs, "checkpoint.monitor")
    if not isinstance(monitor, str):
        return None
    return next((key for key in (monitor.replace("val/", "test/", 1), monitor) if key in run.figures), None)


def data_of(run: Run) -> str:
    """The class of the data, and which of its sets.

    Example:
        >>> from pathlib import Path
        >>> init_args = {"name": "digits", "batch_size": 64}
        >>> config = {"data": {"class_path": "datamodules.CIFARDataModule", "init_args": init_args}}
        >>> data_of(Run(Path("a"), "a", config))
        'CIFARDataModule (digits)'
    """
    name = run.named("data")
    told = [last(run.pairs, f"data.init_args.{key}") for key in ("name", "dataset")]
    words = [str(word) for word in told if isinstance(word, str)]
    words += ["drawn demo data"] if last(run.pairs, "data.init_args.demo") is True else []
    return f"{name} ({', '.join(words)})" if name and words else name


def epochs(run: Run) -> str:
    """How many epochs were trained, and of how many; empty where nothing tells.

    Example:
        >>> from pathlib import Path
        >>> epochs(Run(Path("a"), "a", {"trainer": {"max_epochs": 14}}, epochs=9))
        '9 of 14 epochs'
    """
    wanted = last(run.pairs, "trainer.max_epochs")
    if not run.epochs:
        return ""
    if isinstance(wanted, int) and wanted > run.epochs:
        return f"{run.epochs} of {wanted} epochs"
    return "1 epoch" if run.epochs == 1 else f"{run.epochs} epochs"


def ending(run: Run) -> str:
    """How the run ended, as the end of a sentence."""
    if run.summary is None:
        return "it has left no summary: it was stopped, or is still running"
    key = chosen(run)
    tested = any(name.startswith("test/") for name in run.summary)
    if run.facts.get("command", "fit") != "fit":
        return f"{key} is {figure(run.summary[key])}" if key else "it ended by itself"
    if key and tested:
        monitor, value = last(run.pairs, "checkpoint.monitor"), figure(run.summary[key])
        told = f"was tested: {key} is {value}" if key.startswith("test/") else f"({value}) was tested"
        return f"it ended by itself, and its best checkpoint by {monitor} {told}"
    return "it ended by itself and was tested" if tested else "it ended by itself, without a test"


def sentence(run: Run) -> str:
    """What was run, in one sentence.

    Args:
        run: any.

    Example:
        >>> from pathlib import Path
        >>> config = {"model": {"class_path": "lit_methods.HRank"}, "trainer": {"max_epochs": 2}, "seed_everything": 3}
        >>> sentence(Run(Path("a"), "a", config, {"duration_s": 61, "test/top1": 0.5}, epochs=2))
        'HRank was trained for 2 epochs from seed 3, in 1 min 1 s; it ended by itself and was tested.'
    """
    command = run.facts.get("command", "fit")
    verb = "trained" if command == "fit" else _STAGES.get(command, "asked for predictions")
    text = f"{run.named('model') or run.recipe} was {verb}"
    if data := data_of(run):
        text += f" on {data}"
    if command == "fit" and (told := epochs(run)):
        text += f" for {told}"
    if run.facts.get("checkpoint"):
        name = run.facts["checkpoint"].rpartition("/")[2]
        text += f", beginning with the checkpoint {name}," if command == "fit" else f" with the checkpoint {name}"
    seed = run.figures.get("seed", last(run.pairs, "seed_everything"))
    text += f" from seed {seed}" if seed is not None else ""
    if "duration_s" in run.figures:
        text += f", in {duration(run.figures['duration_s'])}"
    return f"{text}; {ending(run)}."


def in_order(keys: Iterable[str]) -> list[str]:
    """Keys of a summary as they are read: the test first, then validation, then all others, training last.

    A figure of the dense network follows the one of the pruned network.

    Args:
        keys: in the order in which the run has them, which stays otherwise.

    Example:
        >>> in_order(["train/loss", "val/top1", "test/dense_top1", "test/loss", "test/top1", "prune/macs"])
        ['test/loss', 'test/top1', 'test/dense_top1', 'val/top1', 'prune/macs', 'train/loss']
    """
    known = list(dict.fromkeys(keys))
    places = {key: place for place, key in enumerate(known)}

    def rank(key: str) -> tuple[int, int, int]:
        stage = key.partition("/")[0]
        twin = key.replace("/dense_", "/", 1)
        order = {"test": 0, "val": 1, "train": 3}.get(stage, 2)
        return order, places.get(twin, places[key]), int(twin != key)

    return sorted(known, key=rank)
