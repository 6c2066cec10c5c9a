"""One run: parse, build, hand over to the Trainer, leave the results behind."""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from traceback import walk_tb
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks.interruption import interrupted_by, listening
from callbacks.surgery import end_averaging
from lit_methods.checkpoint_io import NO_SPACE, CheckpointError, DiskFullError
from lit_methods.cli import card
from lit_methods.cli.children import end_children
from lit_methods.cli.errors import blame, mismatch, root
from lit_methods.cli.given import collect
from lit_methods.cli.parsing import RunCLI
from lit_methods.cli.quiet import quiet
from lit_methods.cli.run_directory import announced, is_first_process
from lit_methods.functional.pictures import BadImageError

# What a user's mistake looks like before the first batch. Afterwards the same types are faults of the code, with a
# traceback; MisconfigurationException alone is always the user's (a monitored key that nobody logs shows late).
_MISTAKES = (ValueError, OSError, MisconfigurationException)
_MISTAKES_IN_CONSTRUCTORS = (*_MISTAKES, TypeError, RuntimeError)  # Trainer(devices="x"), Linear(-3, 2)
_WARNED = 128 + signal.SIGUSR1  # SLURM's warning: the job goes on in its next start


def run(entry: str, argv: list[str]) -> int:
    """Run one entry; see :func:`lit_methods.cli.main`, which expands the recipe's name first.

    ``LIT_METHODS_DEBUG=1`` in the environment shows the traceback of a mistake, too.
    """
    cli: RunCLI | None = None
    done = False
    try:
        with listening(), quiet():
            cli = RunCLI(entry, argv)
            with announced(cli.directory), closing(cli):
                cli.build()
                code = _ENTRIES[entry](cli)
        done = True
        return code
    except BaseException as ex:
        if (answer := _answer(ex, cli, argv)) is None:
            raise
        return answer
    finally:
        if cli is not None:
            if cli.built:
                end_children(cli.trainer, patience=30 if done or interrupted_by() else 5)
            cli.directory.abandon()  # removes it if it is empty


def _answer(error: BaseException, cli: RunCLI | None, argv: list[str]) -> int | None:
    """The exit code of a run that did not end by itself, after its one line; ``None`` for a fault of the code."""
    first = is_first_process()
    if code := interrupted_by():
        if first:
            print(_stopped(code, cli), file=sys.stderr)
        return code if first and code != _WARNED else 0
    if isinstance(error, SystemExit):  # --print_config, --model.help, and the parser's one line
        return (error.code or 0) if isinstance(error.code, int | None) else None
    line = mistake(error, cli, argv) if isinstance(error, (*_MISTAKES_IN_CONSTRUCTORS, EOFError)) else None
    if line is None or os.environ.get("LIT_METHODS_DEBUG"):
        return None
    where = "" if first else f" in process {getattr(rank_zero_only, 'rank', '?')}"
    print(f"error{where}: {line}", file=sys.stderr)
    return 1 if getattr(root(error), "errno", None) in NO_SPACE else 2


def _stopped(code: int, cli: RunCLI | None) -> str:
    text = f"stopped by {signal.Signals(code - 128).name}"
    if cli is None or cli.entry != "fit" or not any(cli.directory.path.glob("checkpoints/*.ckpt")):
        return text
    return f"{text}; go on with --run_dir {cli.directory.path} --ckpt_path last"


def mistake(error: Exception, cli: RunCLI | None, argv: list[str]) -> str | None:
    """The line for a user's mistake; ``None`` for a fault that deserves its traceback."""
    if text := _loading(error):  # at any time
        return text
    reason = root(error)
    if isinstance(reason, CheckpointError | DiskFullError):  # at any time
        return str(reason)
    if isinstance(reason, OSError) and reason.errno in NO_SPACE:  # whatever else was being written
        return f"{cli.directory.path if cli else reason.filename}: {reason.strerror}"
    if text := mismatch(reason, cli.directory.ckpt_path if cli else None):
        return text
    mistakes: tuple[type[Exception], ...] = _MISTAKES_IN_CONSTRUCTORS
    if cli is not None and cli.built:
        mistakes = (MisconfigurationException,) if cli.start.began else _MISTAKES
    return blame(reason, collect(argv)) if isinstance(reason, mistakes) else None


def _loading(error: BaseException | None) -> str | None:
    """The line for a picture that cannot be read, or for a loader's worker that was killed."""
    while error is not None:
        text = str(error).strip()
        if isinstance(error, BadImageError):  # a worker's comes with its traceback in the text
            return text.splitlines()[-1].removeprefix(f"{BadImageError.__module__}.BadImageError: ")
        died = isinstance(error, RuntimeError) and text.startswith("DataLoader worker (pid")  # torch's words
        if not died and isinstance(error, ConnectionError | EOFError):  # it died while a batch was handed over
            died = any(frame.f_code.co_name == "_try_get_data" for frame, _ in walk_tb(error.__traceback__))
            text = f"DataLoader worker is gone ({text or type(error).__name__})"
        if died:
            return f"{text.rstrip('.')}; memory may be short: lower data.num_workers or data.batch_size"
        error = error.__cause__
    return None


def _fit(cli: RunCLI) -> int:
    started = time.monotonic()
    trainer = cli.trainer
    trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.directory.ckpt_path, weights_only=True)
    metrics = card.numbers(trainer.callback_metrics)  # Lightning clears them before the test
    end_averaging(trainer)  # else the averages of the last step are tested in the place of the checkpoint's
    tested = _can_test(cli) and not trainer.fast_dev_run  # type: ignore[attr-defined]
    if tested:
        best = cli.checkpoint.best_path() if cli.checkpoint else None
        best = trainer.strategy.broadcast(best)
        trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=best, verbose=False, weights_only=True)
        metrics |= card.numbers(trainer.callback_metrics)
    _leave(cli, metrics, started, "test" if tested else "val")
    return 0


def _can_test(cli: RunCLI) -> bool:
    source = cli.datamodule or cli.model
    return is_overridden("test_step", cli.model) and is_overridden("test_dataloader", source)


def _evaluate(function: Callable[..., Any], stage: str) -> Callable[[RunCLI], int]:
    def run_stage(cli: RunCLI) -> int:
        started = time.monotonic()
        if cli.datamodule is None:
            raise ValueError("data: missing; name a recipe that has data, or give --data")
        function(cli.trainer, cli.model, datamodule=cli.datamodule, verbose=False)
        _leave(cli, card.numbers(cli.trainer.callback_metrics), started, stage)
        return 0

    return run_stage


def _predict(cli: RunCLI) -> int:
    from lit_methods.cli.prediction import predict  # brings Pillow and torchvision

    started = time.monotonic()
    outcome = predict(
        cli.trainer, cli.model, cli.datamodule, cli.config.get("input"), cli.module_options(), cli.directory.path
    )
    _leave(cli, {"predict/samples": outcome.samples, "predict/unreadable": len(outcome.unreadable)}, started, "predict")
    return 1 if outcome.unreadable else 0


def _export(cli: RunCLI) -> int:
    from lit_methods.cli.export import export

    assert cli.directory.ckpt_path is not None  # RunCLI.build wants it
    return export(cli.model, cli.config.formats, cli.recipe, cli.directory.ckpt_path, cli.directory.path)


_ENTRIES: dict[str, Callable[[RunCLI], int]] = {
    "fit": _fit,
    "validate": _evaluate(Trainer.validate, "val"),
    "test": _evaluate(Trainer.test, "test"),
    "predict": _predict,
    "export": _export,
}


def _leave(cli: RunCLI, metrics: dict[str, float], started: float, stage: str) -> None:
    """Summary, card, closing table and, as the last line, the run's directory."""
    if not cli.trainer.is_global_zero:
        return
    parts = [cli.model, cli.datamodule, *cli.trainer.callbacks]  # type: ignore[attr-defined]
    summary = card.gather(metrics, parts)
    summary |= {
        "seed": card.plain(cli.config.seed_everything),
        "duration_s": round(time.monotonic() - started, 1),
        "versions": card.versions(),
    }
    path = cli.directory.path
    card.write_summary(path, summary, keep=cli.directory.in_place and cli.entry != "fit")
    facts = {
        "description": cli.config.get("description"),
        "recipe": cli.recipe,
        "command": cli.entry,
        "method": _path_of(cli.model),
        "data": _path_of(cli.datamodule),
        "checkpoint": cli.directory.ckpt_path,
    }
    if cli.entry == "fit" or not cli.directory.in_place:  # an evaluation leaves the card of its run alone
        card.write_card(path, cli.recipe, facts, cli.config.get("paper") or {}, summary)
    card.print_table(f"{cli.recipe}, {stage}", summary, stage)
    print(path, flush=True)


def _path_of(part: Any) -> str:
    return "" if part is None else f"{type(part).__module__}.{type(part).__qualname__}"
