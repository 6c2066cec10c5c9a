"""Frames of a video as trackers take them: (3, H, W) uint8, BGR."""

import os
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_methods.functional.pictures import list_images, read_rgb


def read_frame(path: str | os.PathLike[str]) -> Tensor:
    """Read a picture file as a frame.

    Args:
        path: the file; grey and other modes become colour.

    Returns:
        ``(3, H, W)`` uint8, BGR, contiguous.

    Raises:
        BadImageError: the file is missing, no picture or cut off; the message names it.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
        ...     Image.new("RGB", (4, 2), (1, 2, 3)).save(file.name)
        ...     frame = read_frame(file.name)
        >>> frame.shape, frame[:, 0, 0].tolist()
        (torch.Size([3, 2, 4]), [3, 2, 1])
    """
    return from_rgb(np.asarray(read_rgb(path)))


def from_rgb(picture: np.ndarray) -> Tensor:
    """A picture (H, W, 3) uint8 RGB as a frame (3, H, W) BGR; memory of its own.

    Example:
        >>> from_rgb(np.array([[[1, 2, 3]]], np.uint8)).flatten().tolist()
        [3, 2, 1]
    """
    return torch.from_numpy(np.ascontiguousarray(picture[:, :, ::-1].transpose(2, 0, 1)))


def to_rgb_array(frame: Tensor) -> np.ndarray:
    """A frame (3, H, W) BGR, 0 to 255, as a picture (H, W, 3) uint8 RGB; values outside are clipped.

    Example:
        >>> to_rgb_array(torch.tensor([3.0, 2.0, 300.0]).reshape(3, 1, 1)).flatten().tolist()
        [255, 2, 3]
    """
    pixels = frame.detach().cpu().flip(0).permute(1, 2, 0)
    return pixels.clamp(0, 255).to(torch.uint8).numpy()


def natural_key(name: str) -> tuple[tuple[str, int, str], ...]:
    """By which names sort as people count: numbers in them by value.

    Args:
        name: of a file.

    Example:
        >>> sorted(["10.jpg", "9.jpg", "b1.jpg", "010.jpg"], key=natural_key)
        ['9.jpg', '010.jpg', '10.jpg', 'b1.jpg']
    """
    # the digits themselves come last, so that 010 and 10 always stand in the same order
    return tuple((text, int(digits or -1), digits) for text, digits in re.findall(r"([^0-9]*)([0-9]*)", name))


def list_frames(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the picture files directly inside a folder, in natural order; hidden files are left out.

    Args:
        folder: its own folders are not looked into.

    Raises:
        OSError: there is no such folder, or it cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("10.png", "9.png", "._9.png", "groundtruth.txt"):
        ...         Path(folder, name).touch()
        ...     list_frames(folder)
        ['9.png', '10.png']
    """
    return sorted(list_images(Path(folder)), key=natural_key)
