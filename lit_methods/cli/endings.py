"""How a run that did not end by itself is told: one line, and an exit code."""

from __future__ import annotations

import os
import signal
import sys
from traceback import walk_tb
from typing import TYPE_CHECKING

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks.interruption import exit_code, interrupted_by
from lit_methods.checkpoint_io import NO_SPACE, CheckpointError, DiskFullError
from lit_methods.cli.errors import blame, mismatch, root
from lit_methods.cli.given import collect
from lit_methods.cli.run_directory import command_for, is_first_process
from lit_methods.cli.safe import OPTION
from lit_methods.functional.pictures import BadImageError

if TYPE_CHECKING:
    from lit_methods.cli.parsing import RunCLI

# What a user's mistake looks like before the first batch. Afterwards the same types are faults of the code, with a
# traceback; MisconfigurationException alone is always the user's (a monitored key that nobody logs shows late).
_MISTAKES = (ValueError, OSError, MisconfigurationException)
_MISTAKES_IN_CONSTRUCTORS = (*_MISTAKES, TypeError, RuntimeError)  # Trainer(devices="x"), Linear(-3, 2)


def answer(error: BaseException, cli: RunCLI | None, argv: list[str]) -> int | None:
    """Say why a run ended, in one line on stderr; of a stopped ``fit``, below it, the command that goes on.

    Args:
        error: what came out of it.
        cli: the run, as far as it was built.
        argv: the words of the command.

    Returns:
        The exit code: 130 or 143 after a signal, 2 for a user's mistake, 1 for a full disk or a process that failed
        beside this one; 0 for the other processes of a run that a signal ended. ``None`` for a fault of the code, which
        deserves its traceback.
    """
    first = is_first_process()
    where = "" if first else f" in process {getattr(rank_zero_only, 'rank', '?')}"
    if signalled := interrupted_by():
        code = exit_code(first)
        if first or code:
            print(_stopped(signalled, where, cli, argv), file=sys.stderr)
        return code
    if isinstance(error, SystemExit):  # --print_config, --model.help, and the parser's one line
        return (error.code or 0) if isinstance(error.code, int | None) else None
    code, line = 2, mistake(error, cli, argv)
    if line is None and _left_alone(error):
        code, line = 1, "another process of this run has failed, and said why, or was killed"
    if line is None or os.environ.get("LIT_METHODS_DEBUG"):
        return None
    print(f"error{where}: {line}", file=sys.stderr)
    return 1 if getattr(root(error), "errno", None) in NO_SPACE else code


def _stopped(code: int, where: str, cli: RunCLI | None, argv: list[str]) -> str:
    text = f"stopped by {signal.Signals(code - 128).name}{where}"
    if cli is None or cli.entry != "fit" or not any(cli.directory.path.glob("checkpoints/*.ckpt")):
        return text
    path = cli.directory.path
    text = f"{text}; go on with --run_dir {path} --ckpt_path last"
    if where or not (path / "config.yaml").is_file():
        return text
    safe = [OPTION] if OPTION in argv else []
    return f"{text}\n  {command_for('fit', path, '--run_dir', path, '--ckpt_path', 'last', *safe)}"


def mistake(error: BaseException, cli: RunCLI | None, argv: list[str]) -> str | None:
    """The line for a user's mistake; ``None`` for a fault of the code."""
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


def _left_alone(error: BaseException) -> bool:
    """Whether a process waited in vain for one that is gone (gloo's words)."""
    gone = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in gone)
