"""Frames of a video as trackers take them: (3, H, W) uint8, BGR."""

import os

import numpy as np
import torch
from torch import Tensor

from lit_methods.functional.pictures import read_rgb


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
