"""Where the pictures of an evaluation set come from: files of a folder, or encoded pictures in memory."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from lit_methods.functional.pictures import BadImageError, read_rgb, to_rgb


class Pictures(Protocol):
    """A table of pictures."""

    def __len__(self) -> int:
        """Number of pictures."""

    def read(self, row: int) -> Image.Image:
        """One of them, as RGB; :class:`BadImageError` where it cannot be read."""

    def name(self, row: int) -> str:
        """What a message or a report calls it."""


class PictureFiles:
    """Pictures in files, read when they are needed.

    Args:
        folder: holds the files.
        files: their paths in it.

    Example:
        >>> PictureFiles(Path("faces"), ["Ada/Ada_0001.jpg"]).name(0)
        'faces/Ada/Ada_0001.jpg'
    """

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        self.folder = folder
        # One array rather than many strings: workers would copy those, page by page, as they count references.
        self.files = np.array([os.fsencode(file) for file in files], dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, row: int) -> Image.Image:
        """One of them, as RGB.

        Raises:
            BadImageError: it cannot be read.
        """
        try:
            return read_rgb(self.name(row))
        except BadImageError as error:
            raise BadImageError(
                f"{error}. An evaluation leaves nothing out: replace the file, or take it off the list."
            ) from error

    def name(self, row: int) -> str:
        """The file of a row."""
        return str(self.folder / os.fsdecode(self.files[row]))


class EncodedPictures:
    """Encoded pictures (JPEG, PNG, ...) in memory, decoded when they are needed.

    Args:
        encoded: the bytes of each.
        source: what a message calls the place that they are from.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.new("L", (2, 1), 7).save(buffer, "PNG")
        >>> EncodedPictures([buffer.getvalue()], "lfw.bin").read(0).getpixel((0, 0))
        (7, 7, 7)
    """

    def __init__(self, encoded: Sequence[bytes], source: str) -> None:
        self.source = source
        self.ends = np.cumsum([len(data) for data in encoded], dtype=np.int64)
        # One tensor: workers neither copy it page by page, as they would a list of bytes, nor get a copy by pickle.
        self.data = torch.empty(int(self.ends[-1]) if len(encoded) else 0, dtype=torch.uint8)
        room = self.data.numpy()
        for data, end in zip(encoded, self.ends.tolist(), strict=True):
            room[end - len(data) : end] = np.frombuffer(data, np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def read(self, row: int) -> Image.Image:
        """One of them, as RGB.

        Raises:
            BadImageError: it does not decode.
        """
        start = int(self.ends[row - 1]) if row else 0
        try:
            with Image.open(io.BytesIO(self.data[start : int(self.ends[row])].numpy().tobytes())) as image:
                image.load()
                return to_rgb(image)
        except Exception as error:  # readers of picture formats raise nearly anything
            raise BadImageError(
                f"cannot decode {self.name(row)}: {_without_buffer(error)}. An evaluation leaves nothing out: get the "
                "file again."
            ) from error

    def name(self, row: int) -> str:
        """Place of a row."""
        return f"image {row} of {self.source!r}"


def _without_buffer(error: Exception) -> str:
    """Pillow names the object that it could not read, by its address in memory."""
    return "no known kind of picture" if isinstance(error, UnidentifiedImageError) else str(error)
