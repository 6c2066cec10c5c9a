"""Saved tensors as data: every byte is checked before it is used, and nothing in a file is ever run."""

import os
import re
import warnings
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from lit_methods.functional.suggestions import first_line


def check_archive(path: str | Path) -> None:
    """Read a zip archive (``.ckpt``, ``.pth``, ``.npz``) once and hold it against its own checksums.

    ``torch.load`` does not: of 300 flipped bits it returned 154 as other numbers, without a word. A file that was
    found sound is not read again until its size or time changes.

    Args:
        path: an existing file.

    Raises:
        ValueError: it is cut off, damaged or no archive; the text does not name the path.
        OSError: it cannot be opened.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     torch.save(torch.zeros(2), file.name)
        ...     check_archive(file.name)
    """
    state = os.stat(path)
    _check(os.path.abspath(path), state.st_ino, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)  # errors are not kept
def _check(path: str, inode: int, size: int, mtime_ns: int) -> None:
    with open(path, "rb") as file:
        try:
            damaged = zipfile.ZipFile(file).testzip()
        except Exception as ex:  # a damaged archive raises nearly anything, OSError too
            raise ValueError(f"damaged, cut off or no archive ({first_line(ex)})") from None
    if damaged is not None:
        raise ValueError(f"damaged (wrong checksum of {damaged})")


def load_plain(path: str | Path, *, legacy: bool = False, map_location: Any = "cpu", mmap: bool = False) -> Any:
    """``torch.load`` for tensors and plain values alone, after ``check_archive``.

    Args:
        path: an existing local file.
        legacy: also take the format before torch 1.6, which is no archive and has no checksums.
        map_location: as in ``torch.load``.
        mmap: leave tensors in the file until they are used.

    Raises:
        ValueError: the file is damaged, or holds anything but data; the text does not name the path.
        OSError: it cannot be opened.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     torch.save({"run": print}, file.name)
        ...     load_plain(file.name)
        Traceback (most recent call last):
            ...
        ValueError: it asks for print, but only tensors and plain values are loaded
    """
    with open(path, "rb") as file:
        archive = file.read(2) == b"PK"
    if archive or not legacy:
        check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # either it can be read or that is said
            return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap and archive)
    except Exception as ex:  # a damaged or hostile file raises nearly anything
        raise ValueError(refusal(ex)) from None


def refusal(error: Exception) -> str:
    """Why ``torch.load`` did not take a file, in one line without its advice to load it unsafely.

    Args:
        error: what it raised.

    Example:
        >>> refusal(EOFError("Ran out of input"))
        'damaged, or not written by torch.save (Ran out of input)'
    """
    if wanted := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it asks for {wanted[1]}, but only tensors and plain values are loaded"
    told = re.search(r"WeightsUnpickler error: (.+)", str(error))
    text = told[1] if told else first_line(error)
    return "damaged, or not written by torch.save" + ("" if text.startswith("Weights only") else f" ({text})")
