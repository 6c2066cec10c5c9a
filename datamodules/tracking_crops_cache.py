"""Cut-out frames on disk, in the layout of the official preparation."""

import io
import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lit_methods.functional.pictures import BadImageError, read_rgb, to_rgb


def crop_name(frame: int, track: str = "00") -> str:
    """The name of a cut-out frame, as the official preparation has it.

    Args:
        frame: its number, from 0.
        track: name of the track.

    Example:
        >>> crop_name(7)
        '000007.00.x.jpg'
    """
    return f"{frame:06d}.{track}.x.jpg"


class CropCache:
    """Cut-out frames, written by whoever needs one first.

    They are ``<folder>/<video>/<frame>.00.x.jpg``. A file is written beside its place and then renamed, so that several
    processes may write at the same time; all of them, the first one too, go on with what a reader of the JPEG sees.
    Each video has a file ``made_from.txt`` beside its crops, so that crops of another annotation are noticed.

    Args:
        folder: made when the first frame is written.
        quality: of the JPEG files, 1 to 100; 95 is that of OpenCV, which the official code writes with.

    Raises:
        ValueError: ``quality`` is out of range.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = CropCache(Path(folder, "crop511"))
        ...     first = cache.get("cat-1", 4, "annotation", lambda: np.full((8, 8, 3), 90, np.uint8))
        ...     again = cache.get("cat-1", 4, "annotation", lambda: np.zeros((8, 8, 3), np.uint8))
        >>> first.getpixel((0, 0)), again.getpixel((0, 0))
        ((90, 90, 90), (90, 90, 90))
    """

    def __init__(self, folder: Path, quality: int = 95) -> None:
        if not 1 <= quality <= 100:
            raise ValueError(f"quality of cached crops must be between 1 and 100, got {quality}")
        self.folder, self.quality = folder, quality
        self._known: dict[str, bool] = {}

    def get(self, video: str, frame: int, source: str, render: Callable[[], NDArray[np.uint8]]) -> Image.Image:
        """A cut-out frame, which is made if it is not there.

        Args:
            video: name of its folder.
            frame: its number.
            source: what the crops of this video depend on, see :func:`fingerprint`.
            render: makes it, (H, W, 3) uint8 RGB.

        Raises:
            ValueError: the folder holds crops of another source, or cannot be written to.
            BadImageError: the file is there but cannot be read.
        """
        path = self.folder / video / crop_name(frame)
        self._check(video, source)
        if path.is_file():
            try:
                return read_rgb(path)
            except BadImageError as error:
                raise BadImageError(f"{error}. Remove this file of cache_dir; it is then made anew.") from error
        written = io.BytesIO()
        Image.fromarray(render()).save(written, "JPEG", quality=self.quality)
        self._write(path, written.getvalue())
        return to_rgb(Image.open(written))

    def _check(self, video: str, source: str) -> None:
        if video in self._known:
            return
        path, words = self.folder / video / "made_from.txt", f"{source} quality={self.quality}\n"
        if not path.is_file():
            self._write(path, words.encode())
        if path.read_text("utf-8") != words:
            raise ValueError(
                f"cache_dir: {str(path.parent)!r} holds crops of other frames, boxes or settings, see made_from.txt "
                "there; remove it, or name another folder"
            )
        self._known[video] = True

    def _write(self, path: Path, content: bytes) -> None:
        part = path.with_name(f".{path.name}.{os.urandom(8).hex()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(content)
            os.replace(part, path)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            raise ValueError(
                f"cache_dir: cannot write {str(path)!r} ({error}); make room, or set cache_dir to null"
            ) from error


def fingerprint(frames: int, boxes: NDArray[np.float64]) -> str:
    """What the crops of a video depend on, in a few words.

    Args:
        frames: how many there are.
        boxes: ``(n, 4)`` of its target.

    Example:
        >>> fingerprint(1, np.zeros((1, 4)))
        'frames=1 boxes=190a55ad'
    """
    return f"frames={frames} boxes={zlib.crc32(np.ascontiguousarray(boxes, np.float64).tobytes()):08x}"
