"""Videos to write: a film file, an animated GIF or a folder of pictures, one frame after another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import GifImagePlugin, Image
from torch import Tensor

from lit_methods.functional.frames import to_rgb_array
from lit_methods.functional.video import load_av

_FASTEST_GIF = 50.0  # frames per second; players slow down what is faster


class VideoWriter:
    """Writes pictures one by one; the video appears under its name when it is complete, and not before.

    Used in a ``with`` block: an exception in it leaves nothing behind.

    Args:
        path: ``.mp4`` (H.264, with the package ``av``), ``.gif``, or without an ending a new folder of pictures.
        fps: frames per second; a folder does not hold it, and a GIF rounds the time of a frame to 1/100 s.
        suffix: of the pictures in a folder: ``".png"`` or ``".jpg"``.

    Raises:
        ValueError: another ending, ``av`` is not installed, ``fps`` is not positive, or the folder is not empty.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with VideoWriter(f"{folder}/a.gif", fps=10) as writer:
        ...         for level in (0, 255):
        ...             writer.add(np.full((2, 3, 3), level, np.uint8))
        ...     Image.open(f"{folder}/a.gif").n_frames
        2
    """

    def __init__(self, path: str | os.PathLike[str], fps: float = 25.0, suffix: str = ".png") -> None:
        self.path = Path(path)
        if not fps > 0:
            raise ValueError(f"fps={fps} must be positive")
        check_video_path(self.path)
        if suffix not in (".png", ".jpg"):
            raise ValueError(f"suffix={suffix!r} must be '.png' or '.jpg'")
        self.fps, self.suffix = fps, suffix
        self.frames = 0
        self.size: tuple[int, int] | None = None  # (H, W)
        self._part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._sink: Any = None

    def add(self, picture: np.ndarray) -> None:
        """Append a frame.

        Args:
            picture: (H, W, 3) uint8 RGB, of one size for all.

        Raises:
            ValueError: it is no such picture, or has another size than the first.
        """
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise ValueError(f"picture must be (H, W, 3) uint8, got {picture.dtype} {picture.shape}")
        size = (picture.shape[0], picture.shape[1])
        if self.size not in (None, size):
            raise ValueError(f"frame {self.frames} is {size} (height, width), the first one {self.size}")
        if self._sink is None:
            self.size = size
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._sink = _SINKS[self.path.suffix.lower()](self._part, self.fps, self.suffix)
        self._sink.add(picture)
        self.frames += 1

    def close(self) -> None:
        """Complete the video; one without frames is not written."""
        if self._sink is None:
            return
        sink, self._sink = self._sink, None
        try:
            sink.close()
            os.replace(self._part, self.path)
        finally:
            self._sweep()

    def abandon(self) -> None:
        """Leave nothing behind."""
        sink, self._sink = self._sink, None
        try:
            if sink is not None:  # else there were no frames, or the file was begun in vain
                sink.close()
        except Exception:  # the reason for leaving is told already
            pass
        finally:
            self._sweep()

    def _sweep(self) -> None:
        if self._part.is_dir():
            shutil.rmtree(self._part, ignore_errors=True)
        else:
            self._part.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


def write_video(
    path: str | os.PathLike[str], frames: Iterable[Tensor], fps: float = 25.0, suffix: str = ".png"
) -> None:
    """Write frames as a video, holding one at a time.

    Args:
        path: ``.mp4``, ``.gif`` or a new folder; see ``VideoWriter``.
        frames: (3, H, W) BGR, 0 to 255, as ``open_video`` gives them; one size for all.
        fps: frames per second.
        suffix: of the pictures in a folder: ``".png"`` or ``".jpg"``.

    Raises:
        ValueError: as ``VideoWriter``, or there are no frames.

    Example:
        >>> import tempfile
        >>> import torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_video(f"{folder}/clip", [torch.zeros(3, 4, 6), torch.ones(3, 4, 6)])
        ...     sorted(os.listdir(f"{folder}/clip"))
        ['00000000.png', '00000001.png']
    """
    with VideoWriter(path, fps, suffix) as writer:
        for frame in frames:
            writer.add(to_rgb_array(frame))
        if not writer.frames:
            raise ValueError(f"there are no frames to write to {os.fspath(path)!r}")


def check_video_path(path: str | os.PathLike[str]) -> None:
    """Refuse a place where no video can be written.

    Args:
        path: as of ``VideoWriter``.

    Raises:
        ValueError: another ending, ``av`` is not installed, or the folder is not empty.

    Example:
        >>> check_video_path("out.mkv")
        Traceback (most recent call last):
            ...
        ValueError: 'out.mkv' cannot be written: give .mp4, .gif or, without an ending, a folder
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _SINKS:
        raise ValueError(f"{str(path)!r} cannot be written: give .mp4, .gif or, without an ending, a folder")
    if suffix == ".mp4":
        load_av()
    if suffix and path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder: give a file")
    if not suffix and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{str(path)!r} is there already and not empty: give a new folder")


class _FilmSink:
    """H.264 in yuv420p, which every player knows; it wants even sides, so the last row or column may be doubled."""

    def __init__(self, path: Path, fps: float, suffix: str) -> None:
        self.av = load_av()
        self.container = self.av.open(str(path), "w", format="mp4")
        codec = "libx264" if "libx264" in self.av.codecs_available else "mpeg4"
        self.stream = self.container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        self.stream.pix_fmt = "yuv420p"
        if codec == "libx264":
            self.stream.options = {"preset": "veryfast", "crf": "20"}
        self.begun = False

    def add(self, picture: np.ndarray) -> None:
        height, width = picture.shape[:2]
        even = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if not self.begun:
            self.stream.height, self.stream.width = even.shape[:2]
            self.begun = True
        frame = self.av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        try:
            self.container.mux(self.stream.encode(None))
        finally:
            self.container.close()


class _GIFSink:
    """Frames with a palette each. Pillow's own writer holds all frames until the end."""

    def __init__(self, path: Path, fps: float, suffix: str) -> None:
        self.file = path.open("wb")
        self.hundredths = 100 / min(fps, _FASTEST_GIF)  # of a second per frame
        self.count = 0

    def add(self, picture: np.ndarray) -> None:
        image = Image.fromarray(picture).quantize(256)
        if not self.count:
            header, _ = GifImagePlugin.getheader(image.copy(), info={"loop": 0})
            self.file.writelines(header)
        # rounded to where the frame ends, so that rounding does not add up
        duration = round((self.count + 1) * self.hundredths) - round(self.count * self.hundredths)
        self.file.writelines(GifImagePlugin.getdata(image, duration=10 * duration, include_color_table=True))
        self.count += 1

    def close(self) -> None:
        try:
            self.file.write(b";")
        finally:
            self.file.close()


class _FolderSink:
    def __init__(self, path: Path, fps: float, suffix: str) -> None:
        self.folder, self.suffix, self.count = path, suffix, 0
        path.mkdir(exist_ok=True)

    def add(self, picture: np.ndarray) -> None:
        options: dict[str, Any] = {"quality": 90} if self.suffix == ".jpg" else {}
        Image.fromarray(picture).save(self.folder / f"{self.count:08}{self.suffix}", **options)
        self.count += 1

    def close(self) -> None:
        pass


_SINKS: dict[str, Any] = {".mp4": _FilmSink, ".gif": _GIFSink, "": _FolderSink}
