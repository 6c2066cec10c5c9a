"""The user's own pictures and films, some at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_methods.asfd.detection import size_fault
from lit_methods.functional.pictures import BadImageError, read_rgb
from lit_methods.functional.video import FILMS, Video, open_video
from lit_methods.inference import find_pictures

AT_ONCE = 8  # pictures of one size that go through the network together,
PIXELS_AT_ONCE = 2**23  # and the most that they have


@dataclass(frozen=True)
class OwnFile:
    """A picture or a film that is to be searched for faces.

    Args:
        path: of the file.
        name: what is drawn is called so; no other file of the same prediction has it.
        video: of a film, open.
    """

    path: Path
    name: str
    video: Video | None = None


def own_files(paths: Sequence[str | Path], multi_scale: bool = False) -> tuple[list[OwnFile], dict[Path, str]]:
    """Find the pictures and films, and decode each picture once.

    Args:
        paths: pictures, films and GIFs; folders, which are searched for pictures.
        multi_scale: whether they are looked at in many sizes, of which the main one must do.

    Returns:
        What can be searched for faces, in the order of :func:`~lit_methods.inference.find_pictures`; and for each path
        that cannot, the reason in one line.

    Raises:
        FileNotFoundError: none of ``paths`` exists.
        ValueError: there is no picture and no film among them, or a film needs the package ``av``.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (160, 128)).save(Path(folder, "a.png"))
        ...     Image.new("RGB", (160, 100)).save(Path(folder, "b.png"))
        ...     files, faults = own_files([folder])
        >>> [file.name for file in files], [path.name for path in faults]
        (['a'], ['b.png'])
    """
    given = list(map(Path, paths))
    there = [path for path in given if path.exists()]
    faults = {path: f"input={str(path)!r} does not exist" for path in given if path not in there}
    files: list[OwnFile] = []
    taken: set[str] = set()
    for path in find_pictures(there or given):
        try:
            video = _video(path)
            height, width = read_rgb(path).size[::-1] if video is None else video.size
            if fault := size_fault(height, width, multi_scale):
                raise BadImageError(f"{str(path)!r} is {fault}")
        except BadImageError as error:
            faults[path] = str(error)
            continue
        files.append(OwnFile(path, unique(path.stem, taken), video))
    return files, faults


def _video(path: Path) -> Video | None:
    """An open one, or ``None`` for a picture, which a GIF of one frame is, too."""
    if path.suffix.lower() not in (*FILMS, ".gif"):
        return None
    video = open_video(path)
    return None if path.suffix.lower() == ".gif" and video.length == 1 else video


def unique(name: str, taken: set[str]) -> str:
    """A name that is not taken, on disks that ignore case, too; it is taken from now on.

    Args:
        name: wanted.
        taken: in lower case.

    Example:
        >>> taken = {"a", "a-2"}
        >>> unique("A", taken), sorted(taken)
        ('A-3', ['a', 'a-2', 'a-3'])
    """
    number, found = 1, name
    while found.lower() in taken:
        number += 1
        found = f"{name}-{number}"
    taken.add(found.lower())
    return found


class Frame(NamedTuple):
    """A picture (3, H, W) uint8 RGB, and where it is from: of a film also which frame, from 0."""

    file: OwnFile
    number: int | None
    pixels: Tensor


class FileBatches:
    """Pictures and frames as batches, those of one size that follow each other together, films by themselves.

    A batch has ``image``, a list of (3, H, W) uint8 RGB, ``file``, their paths, ``frame``, of films their indices, else
    ``None``, ``own``, which of ``files`` they are from, and ``ends``, whether that file is done with.

    Args:
        files: one after another.
        every: of a film the first of so many frames is taken.
        ended: called when nobody asks for more.
    """

    def __init__(self, files: Sequence[OwnFile], every: int, ended: Callable[[], None]) -> None:
        self.files, self.every, self.ended = files, every, ended

    def __iter__(self) -> Iterator[dict[str, Any]]:
        held: list[tuple[int, Frame]] = []
        for number, file in enumerate(self.files):
            for frame in self._frames(file):
                if held and not self._joins(frame, [other for _, other in held]):
                    yield self._batch(held, ends=held[-1][0] != number)
                    held = []
                held.append((number, frame))
        if held:
            yield self._batch(held, ends=True)

    def _frames(self, file: OwnFile) -> Iterator[Frame]:
        if file.video is None:
            picture = torch.from_numpy(np.array(read_rgb(file.path)))
            yield Frame(file, None, picture.permute(2, 0, 1))
            return
        bad: list[str] = []
        try:
            for index, frame in enumerate(file.video.read()):
                if isinstance(frame, BadImageError):
                    bad.append(str(frame))
                elif index % self.every == 0:
                    yield Frame(file, index, frame.flip(0))
        except BadImageError as error:  # the frames change their size
            bad.append(f"{error}; it is searched no further")
        if bad:
            warnings.warn(f"{str(file.path)!r} is searched without {len(bad)} of its frames: {bad[0]}", stacklevel=2)

    def _joins(self, frame: Frame, others: list[Frame]) -> bool:
        first = others[0]
        height, width = first.pixels.shape[1:]
        room = max(1, min(AT_ONCE, PIXELS_AT_ONCE // (height * width)))
        apart = frame.file is not first.file and (frame.file.video is not None or first.file.video is not None)
        return len(others) < room and frame.pixels.shape == first.pixels.shape and not apart

    def _batch(self, held: list[tuple[int, Frame]], ends: bool) -> dict[str, Any]:
        frames = [frame for _, frame in held]
        return {
            "image": [frame.pixels for frame in frames],
            "file": [str(frame.file.path) for frame in frames],
            "frame": [frame.number for frame in frames],
            "own": [number for number, _ in held],
            "ends": ends,
        }

    def close(self) -> None:
        """The prediction has ended, in whatever way."""
        self.ended()
