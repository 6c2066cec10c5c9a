"""Where a run writes, and from which checkpoint it starts."""

import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_methods import slurm
from lit_methods.checkpoint_io import CheckpointError, read_checkpoint
from lit_methods.cli.checkpoints import resumed_step
from lit_methods.cli.given import Given, last

ROOT = "runs"
EVALUATIONS = ("validate", "test", "predict")
VARIABLE = "LIT_METHODS_RUN_DIR"  # tells the other processes of a ddp run what the first one decided


@dataclass(frozen=True)
class RunDirectory:
    """Where a run writes and what it starts from.

    Args:
        path: absolute.
        ckpt_path: the checkpoint to start from.
        in_place: the run of that checkpoint goes on in its own directory.
        keep_below: rows of an existing ``metrics.csv`` with a lower step stay; ``None`` keeps all.
        log_from: the step under which an evaluation is logged, that of its checkpoint.
    """

    path: Path
    ckpt_path: str | None = None
    in_place: bool = False
    keep_below: int | None = None
    log_from: int = 0

    def abandon(self) -> None:
        """Remove the directory again if nothing was written: a run that never began leaves none."""
        if is_first_process():
            with suppress(OSError):  # not empty, or gone
                if [file.name for file in self.path.iterdir()] == [slurm.MARK]:
                    (self.path / slurm.MARK).unlink()
                self.path.rmdir()


def is_first_process() -> bool:
    """Whether this process is the one that writes."""
    return getattr(rank_zero_only, "rank", 0) == 0  # read from the environment when lightning was imported


def command_for(entry: str, run_dir: Path, *words: object) -> str:
    """The command that runs an entry with the configuration of a run, to be copied into a shell.

    Args:
        entry: such as ``"fit"``.
        run_dir: the run's directory, which holds ``config.yaml``.
        words: options behind it.

    Example:
        >>> command_for("test", Path("my runs/a"), "--ckpt_path", "last")
        "python -m lit_methods.test --config 'my runs/a/config.yaml' --ckpt_path last"
    """
    return shlex.join(map(str, ["python", "-m", f"lit_methods.{entry}", "--config", run_dir / "config.yaml", *words]))


def recipe_name(pairs: list[Given], argv: list[str]) -> str:
    """Under which name runs of this command are kept: ``recipe`` of a saved configuration, else the first file's stem.

    Example:
        >>> recipe_name([], ["--config", "recipes/hrank.yaml", "--config", "mine.yaml"])
        'hrank'
    """
    if name := last(pairs, "recipe"):
        return str(name)
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word == "--config" or word.startswith("--config="):
            return Path(word.partition("=")[2] or following).stem
    return "run"


def place(entry: str, run_dir: str | None, ckpt_path: str | None, recipe: str, root: str | Path = ROOT) -> RunDirectory:
    """Decide where the run writes; the first process makes the directory.

    A SLURM job that is started again goes on in its directory from the last checkpoint there, or begins again. An
    evaluation that was stopped does its work again in its directory, and leaves there what it would in a new one; a
    method that finds notes of its own there may save itself what it had done.

    Args:
        entry: ``"fit"`` cuts ``metrics.csv`` where it goes on in place, the others only add to it.
        run_dir: what the user named; ``None`` makes a new directory below ``root``.
        ckpt_path: a file, ``"last"`` or ``None``.
        recipe: the recipe's name.
        root: where new directories are made and ``"last"`` is looked for.

    Raises:
        ValueError: the directory is not empty and not continued, ``"last"`` finds nothing sound, or the checkpoint is
            damaged or none.
        FileNotFoundError: the checkpoint does not exist.
    """
    again = entry == "fit" and run_dir is not None and slurm.restarted(Path(run_dir))
    if again and any(Path(str(run_dir)).glob("checkpoints/*.ckpt")):
        ckpt_path = "last"  # whatever its first start began with
    if ckpt_path == "last":
        ckpt_path = str(_sound(newest_checkpoint(run_dir, recipe, root)))
    step = _step_of(ckpt_path) if ckpt_path else 0
    log_from = 0 if entry == "fit" else step
    if run_dir is None:
        return RunDirectory(_fresh(recipe, Path(root)), ckpt_path, log_from=log_from)
    path = Path(os.path.abspath(run_dir))
    in_place = again or (ckpt_path is not None and path.resolve() in Path(ckpt_path).resolve().parents)
    if is_first_process():
        if path.exists() and not path.is_dir():
            raise ValueError(f"run_dir={run_dir!r} is a file")
        stopped = entry in EVALUATIONS and _is_stopped_evaluation(path, recipe)
        if not in_place and not stopped and path.is_dir() and any(path.iterdir()):
            raise ValueError(
                f"run_dir={run_dir!r} is not empty; name another, or go on with --ckpt_path last or a checkpoint in it"
            )
        _make(path)
    keep_below = step if in_place and entry == "fit" else None
    return RunDirectory(path, ckpt_path, in_place, keep_below, log_from)


def newest_checkpoint(run_dir: str | None, recipe: str, root: str | Path = ROOT) -> Path:
    """The last checkpoint of ``run_dir``, else of the newest run of this recipe below ``root``.

    Times of files decide between runs alone: a copied run keeps the names of its files, not their times.

    Raises:
        ValueError: there is none.
    """
    if run_dir is not None:
        runs, where = [Path(run_dir)], f"{run_dir}/checkpoints"
    else:
        runs, where = [p for p in Path(root).glob("*/") if _recipe_of(p) == recipe], f"the runs of {recipe} in {root}/"
    found = {run: files for run in runs if (files := list(run.glob("checkpoints/*.ckpt")))}
    if not found:
        raise ValueError(f"ckpt_path='last': no checkpoint in {where}")
    newest = max(found, key=lambda run: max(file.stat().st_mtime_ns for file in found[run]))
    return max(found[newest], key=lambda file: (file.name == "last.ckpt", file.stat().st_mtime_ns))


def _sound(newest: Path) -> Path:
    """A run's newest checkpoint; where it is damaged, the one before it, which a warning names.

    Raises:
        ValueError: none is sound.
    """
    chosen, line = newest, f"ckpt_path: the last one is {newest}"
    try:
        _step_of(newest)
    except CheckpointError as ex:
        steps: dict[Path, int] = {}  # inside a run the number of steps decides: a copy keeps names, not times
        for file in newest.parent.glob("*.ckpt"):
            if not file.name.startswith("last"):
                with suppress(CheckpointError):
                    steps[file] = _step_of(file)
        if not steps:
            raise ValueError(f"{ex}; no other checkpoint beside it is sound") from None
        chosen = max(steps, key=lambda file: (steps[file], file.stat().st_mtime_ns))
        line = f"warning: {ex}; going on with {chosen}"
    if is_first_process():
        print(line, file=sys.stderr)
    return chosen


def _step_of(path: str | Path) -> int:
    try:
        return resumed_step(read_checkpoint(path))
    except (KeyError, TypeError, AttributeError):  # a dictionary that only looks like one
        raise CheckpointError(f"ckpt_path={str(path)!r} is not a checkpoint of a run: no loop states in it") from None


def _recipe_of(run: Path) -> str | None:
    """The recipe that a run's ``config.yaml`` names; a line search, since there may be thousands of runs."""
    with suppress(OSError):
        if match := re.search(r"^recipe: *['\"]?(.*?)['\"]?$", (run / "config.yaml").read_text("utf-8"), re.MULTILINE):
            return match[1]
    return None


def _is_stopped_evaluation(run: Path, recipe: str) -> bool:
    """Whether a run of this recipe began there, did not end, and trained nothing that could be lost."""
    ended = (run / "summary.json").exists()
    return not ended and _recipe_of(run) == recipe and not any(run.glob("checkpoints/*"))


def _make(folder: Path) -> None:
    """Make a directory, or see that there is one that can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as ex:
        raise ValueError(f"run_dir={str(folder)!r} cannot be written ({ex.strerror}); name another --run_dir") from None


def _fresh(recipe: str, root: Path) -> Path:
    if not is_first_process():
        if VARIABLE not in os.environ:
            raise ValueError(f"run_dir: {_OUTSIDE}")
        return Path(os.environ[VARIABLE])
    if (
        "LOCAL_RANK" not in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1
    ) or "TORCHELASTIC_RUN_ID" in os.environ:
        raise ValueError(f"run_dir: {_OUTSIDE}")
    stem = f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    _make(root)
    number = 1
    while True:  # mkdir is atomic: of two runs that start in the same second, one goes on to the next number
        path = Path(os.path.abspath(root / (stem if number == 1 else f"{stem}-{number}")))
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1


_OUTSIDE = "processes that torchrun or SLURM started cannot agree on a new directory: give --run_dir"


@contextmanager
def announced(directory: RunDirectory) -> Iterator[None]:
    """Tell the processes that Lightning will start where the run writes; forget it afterwards."""
    if not is_first_process():
        yield
        return
    os.environ[VARIABLE] = str(directory.path)
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
