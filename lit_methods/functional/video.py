"""Videos to read: a film file, an animated GIF or a folder of pictures, one frame after another."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lit_methods.functional.frames import from_rgb, list_frames, read_frame
from lit_methods.functional.pictures import SUFFIXES, BadImageError, to_rgb
from lit_methods.functional.suggestions import first_line

FILMS = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg")
IMAGE_FOLDERS = ("img", "color")  # in which benchmarks keep the frames of a sequence, beside its ground truth
GROUND_TRUTHS = ("groundtruth.txt", "groundtruth_rect.txt")  # what they call that; the first one that is there counts
FOLDER_FPS = 25.0  # of frames whose rate nobody has noted


class Video:
    """Frames (3, H, W) uint8, BGR, read one by one; iterating opens the video anew each time.

    ``open_video`` makes it.

    Args:
        path: file or folder, as it was given.

    Attributes:
        name: of the file without its ending, or of the folder.
        size: (H, W) of the first frame, which all others have to share.
        fps: frames per second.
        length: number of frames as the container announces it, ``None`` where it does not.
    """

    size: tuple[int, int]
    fps: float
    length: int | None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.name = self.path.stem

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError(f"{str(self.path)!r} does not say how many frames it has")
        return self.length

    def __iter__(self) -> Iterator[Tensor]:
        for frame in self.read():
            if isinstance(frame, BadImageError):
                raise frame
            yield frame

    def frame_name(self, index: int) -> str:
        """The file that a frame is in: the video, or of a folder the picture.

        Args:
            index: of the frame, from 0.
        """
        return str(self.path)

    def read(self, start: int = 0) -> Iterator[Tensor | BadImageError]:
        """The frames, and in the place of one that cannot be decoded the error, which names it.

        Args:
            start: index of the first one wanted; those before it are passed over.

        Raises:
            BadImageError: a frame has another size than the first.
        """
        for index, frame in enumerate(self._frames(start), start):
            if isinstance(frame, Tensor) and tuple(frame.shape[1:]) != self.size:
                height, width = frame.shape[1:]
                raise self._other_size(index, width, height)
            yield frame

    def check(self, decodable: bool = True) -> None:
        """Look for faults that can be seen without decoding: in a folder, the headers of the pictures.

        Args:
            decodable: whether a picture without a sound header is a fault.

        Raises:
            BadImageError: there is one.
        """

    def _other_size(self, index: int, width: int, height: int) -> BadImageError:
        return BadImageError(
            f"frame {index} of {str(self.path)!r} ({self.frame_name(index)}) is {width}x{height}, the first one "
            f"{self.size[1]}x{self.size[0]} (width x height): all frames of a video have one size"
        )

    def _frames(self, start: int) -> Iterator[Tensor | BadImageError]:
        raise NotImplementedError

    def _begin(self) -> None:
        """Learn the size from the first frame."""
        first = next(self._frames(0), None)
        if first is None:
            raise BadImageError(f"cannot read the video {str(self.path)!r}: it has no frames")
        if isinstance(first, BadImageError):
            raise first
        self.size = (int(first.shape[1]), int(first.shape[2]))

    def _bad(self, index: int, error: object) -> BadImageError:
        if isinstance(error, BaseException):
            error = getattr(error, "strerror", None) or first_line(error)
        return BadImageError(f"cannot read frame {index} of the video {str(self.path)!r}: {error}")


def open_video(path: str | os.PathLike[str]) -> Video:
    """Open a video, and decode its first frame.

    Nothing stays open: each pass over the frames opens the file again and holds one frame at a time.

    Args:
        path: a film (``.mp4``, ``.avi``, ``.mkv``, ``.mov``, ``.webm`` ..., with the package ``av``), an animated GIF,
            or a folder of pictures, which are taken in natural order; the pictures may lie in its folder ``img``. The
            rotation that phones note in a film is ignored, as it is in pictures.

    Returns:
        The video, with name, size, frame rate and number of frames.

    Raises:
        FileNotFoundError: ``path`` does not exist.
        ValueError: it is no video, or ``av`` is not installed.
        BadImageError: it cannot be read, or has no frames.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for number in (9, 10):
        ...         Image.new("RGB", (4, 3), (0, 0, number)).save(Path(folder, f"{number}.png"))
        ...     video = open_video(folder)
        ...     video.size, len(video), [int(frame[0].max()) for frame in video]
        ((3, 4), 2, [9, 10])
    """
    path = Path(path)
    if path.is_dir():
        return _Folder(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no video {str(path)!r}")
    suffix = path.suffix.lower()
    if suffix == ".gif":
        return _GIF(path)
    if suffix in FILMS:
        return _Film(path)
    if suffix in SUFFIXES:
        raise ValueError(f"{str(path)!r} is a single picture: give the folder that holds the frames")
    raise ValueError(f"{str(path)!r} is no video: give a film ({', '.join(FILMS)}), a .gif or a folder of frames")


def load_av() -> Any:
    """The package ``av``, which reads and writes films.

    Raises:
        ValueError: it is not installed, or does not work here.
    """
    try:
        return import_module("av")
    except ImportError as error:
        raise ValueError(
            f"films need the package av ({first_line(error)}): pip install 'lit-methods[video]', or use GIFs and "
            "folders of frames"
        ) from None


class _Folder(Video):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.name = path.name if path.name.strip(".") else path.resolve().name  # a folder's name has no ending
        for folder in (path, *(path / name for name in IMAGE_FOLDERS)):
            self.files = [str(folder / name) for name in list_frames(folder)] if folder.is_dir() else []
            if self.files:
                break
        else:
            raise BadImageError(f"the folder {str(path)!r} has no frames ({', '.join(SUFFIXES)})")
        self.length, self.fps = len(self.files), FOLDER_FPS
        self._begin()

    def frame_name(self, index: int) -> str:
        return self.files[index]

    def check(self, decodable: bool = True) -> None:
        for index, file in enumerate(self.files):
            try:
                with Image.open(file) as image:
                    width, height = image.size
            except Exception as error:  # a damaged picture raises nearly anything
                if decodable:
                    raise BadImageError(f"cannot read the image {file!r}: {first_line(error)}") from None
                continue
            if (height, width) != self.size:
                raise self._other_size(index, width, height)

    def _frames(self, start: int) -> Iterator[Tensor | BadImageError]:
        for file in self.files[start:]:
            try:
                yield read_frame(file)
            except BadImageError as error:
                yield error  # names the file


class _GIF(Video):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            with Image.open(path) as image:
                if image.format != "GIF":
                    raise ValueError(f"it is {image.format}")
                duration = image.info.get("duration", 0)
                self.length = int(getattr(image, "n_frames", 1))
        except Exception as error:  # a damaged GIF raises nearly anything
            raise self._bad(0, error) from None
        self.fps = 1000 / duration if duration else 10.0  # as browsers do it
        self._begin()

    def _frames(self, start: int) -> Iterator[Tensor | BadImageError]:
        with Image.open(self.path) as image:
            for index in range(start, self.length or 1):
                try:
                    image.seek(index)
                    frame: Tensor | BadImageError = from_rgb(np.asarray(to_rgb(image)))
                except Exception as error:  # as above
                    frame = self._bad(index, error)
                yield frame


class _Film(Video):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.av = load_av()
        with self._opened() as container:
            stream = container.streams.video[0]
            self.length = int(stream.frames) or None
            self.fps = float(stream.average_rate or stream.guessed_rate or FOLDER_FPS)
        self._begin()

    def _opened(self) -> Any:
        try:
            container = self.av.open(str(self.path))
        except Exception as error:  # FFmpeg's errors derive from several
            raise self._bad(0, error) from None
        if not container.streams.video:
            container.close()
            raise self._bad(0, "there are no pictures in it")
        return container

    def _frames(self, start: int) -> Iterator[Tensor | BadImageError]:
        index = 0
        with self._opened() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for found in self._decoded(container, stream):
                if index >= start:
                    yield self._bad(index, found) if isinstance(found, BaseException) else self._frame(index, found)
                index += 1
        if self.length and index < self.length:
            warnings.warn(
                f"the video {str(self.path)!r} ends after {index} of the {self.length} frames that it announces",
                stacklevel=2,
            )

    def _decoded(self, container: Any, stream: Any) -> Iterator[Any]:
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except Exception:  # cut off: the caller counts
                return
            if packet is None:
                return
            try:
                yield from packet.decode()
            except Exception as error:  # one frame, as a rule; those after it may be whole
                yield error

    def _frame(self, index: int, frame: Any) -> Tensor | BadImageError:
        try:
            pixels = frame.to_ndarray(format="bgr24")
        except Exception as error:
            return self._bad(index, error)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
