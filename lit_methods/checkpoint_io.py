"""Checkpoints on disk: written whole or not at all, and checked before they are read."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins.io import CheckpointIO

from lit_methods.functional.archives import load_plain

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PART = ".lit_methods.part"  # what is being written; never ends in .ckpt


class CheckpointError(ValueError):
    """A file that is no sound checkpoint; its text is one line with the path."""


class DiskFullError(OSError):
    """No space for a file; what stood in its place before is as it was."""

    def __init__(self, path: Path, reason: OSError) -> None:
        free = readable_size(shutil.disk_usage(path.parent).free)
        text = f"{path} was not written: {reason.strerror} ({free} free there)"
        text += "; the one before is whole" if path.exists() else ""
        super().__init__(reason.errno, text)

    def __str__(self) -> str:
        return str(self.strerror)


def readable_size(count: float) -> str:
    """A number of bytes for people.

    Example:
        >>> readable_size(4_700_000), readable_size(12)
        ('4.7 MB', '12 B')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's data on the CPU; tensors are mapped from the file and read when they are used.

    Every byte is checked first, and nothing in the file is executed.

    Args:
        path: a local file that a run wrote.

    Returns:
        Lightning's dict, among others ``state_dict``, ``hyper_parameters``, ``loops`` and ``callbacks``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, not a checkpoint of a run, or not a local file.
    """
    checkpoint = _load(path, mmap=True)
    if not isinstance(checkpoint, dict) or not {"state_dict", "loops"} <= checkpoint.keys():
        raise CheckpointError(
            f"ckpt_path={str(path)!r} is not a checkpoint of a run: no weights and loop states in it; "
            "plain weights go to model.base_checkpoint"
        )
    return checkpoint


def _load(path: str | Path, **options: Any) -> Any:
    if "://" in str(path):
        raise CheckpointError(f"ckpt_path={str(path)!r}: only local files are loaded")
    if Path(path).is_dir():
        raise CheckpointError(_directory(Path(path)))
    if not Path(path).is_file():
        raise FileNotFoundError(f"ckpt_path={str(path)!r} does not exist")
    try:
        return load_plain(path, **options)
    except ValueError as ex:
        raise CheckpointError(f"ckpt_path={str(path)!r} is not a checkpoint of a run: {ex}") from None


def _directory(path: Path) -> str:
    run = path.parent if path.name == "checkpoints" else path
    text = f"ckpt_path={str(path)!r} is a directory"
    if not (files := list(run.glob("checkpoints/*.ckpt"))):
        return f"{text}; name a file"
    newest = max(files, key=lambda file: file.stat().st_mtime_ns)
    return f"{text}; name a file, such as {newest}, or give --run_dir {run} --ckpt_path last"


class SafeCheckpointIO(CheckpointIO):
    """Lightning's reading and writing of checkpoints, made safe; every run uses it unless it brings its own.

    A file is written beside its target and takes its place when all of it is on the disk: a killed process or a full
    disk leaves the older file whole. Lightning's own goes through the system's temporary directory, holds the whole
    file in memory, and on a full disk destroys the older one where that directory lies on another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            DiskFullError: there is no space; nothing of the new file is left.
            ValueError: the target is no local file.
        """
        if storage_options is not None:
            raise TypeError(f"{type(self).__name__} takes no storage_options")
        if "://" in str(path):
            raise ValueError(
                f"{str(path)!r}: checkpoints are written to local files; for others give trainer.plugins a CheckpointIO"
            )
        with replacing(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, always as plain data, whatever ``weights_only`` says.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: it is damaged, holds more than data, or is not a local file.
        """
        return _load(path, map_location=map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint; one that is gone already is fine."""
        Path(path).unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` once the block has ended well and all of it is on the disk.

    What processes that were killed have left behind in the same directory is removed first.

    Args:
        path: of the file; its directory is made where it does not exist.

    Raises:
        DiskFullError: there is no space.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "numbers")
        ...     with replacing(path) as file:
        ...         before, _ = path.exists(), file.write(b"123")
        ...     before, path.read_bytes()
        (False, b'123')
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    part = path.with_name(f".{path.name}.{os.getpid()}{_PART}")
    try:
        with part.open("wb") as file:
            _lock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync(path.parent)
    except BaseException as ex:
        part.unlink(missing_ok=True)
        if reason := _no_space(ex):
            raise DiskFullError(path, reason) from None
        raise


def _no_space(error: BaseException | None) -> OSError | None:
    """The error of the disk behind ``error``: torch's writer answers with one of its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            return error
        error = error.__cause__ or error.__context__
    return None


def _lock(file: BinaryIO) -> bool:
    """Hold a file for this process until it is closed, or the process is gone; whether that worked."""
    try:
        import fcntl  # not on Windows, where leftovers stay

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):  # held by its writer, or a file system without locks
        return False
    return True


def _sweep(folder: Path) -> None:
    for part in folder.glob(f".*{_PART}"):
        with suppress(OSError), part.open("rb") as file:
            if _lock(file):
                part.unlink()


def _sync(folder: Path) -> None:
    """Put the directory's entries on the disk, where the system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
