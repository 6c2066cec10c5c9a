"""Crops, flips and sizes of a batch of pictures; what is random is decided by numbers that are passed in."""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def pad_crop(images: Tensor, top: Tensor, left: Tensor, padding: int = 4) -> Tensor:
    """Pad every image with zeros and cut out a window of its own size, each at a place of its own.

    Args:
        images: ``(B, C, H, W)`` of any dtype.
        top: ``(B,)`` int64, first row of the window, 0 to ``2 * padding``; ``padding`` gives the image back.
        left: ``(B,)`` int64, first column, likewise.
        padding: zeros on each side.

    Returns:
        ``(B, C, H, W)`` of the same dtype.

    Example:
        >>> pad_crop(torch.tensor([[[[1, 2], [3, 4]]]]), torch.tensor([2]), torch.tensor([1]), padding=1)
        tensor([[[[3, 4], [0, 0]]]])
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding, padding, padding, padding))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (B, C, 2p + 1, 2p + 1, H, W)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def horizontal_flip(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirror those images of a batch that are chosen.

    Args:
        images: ``(B, C, H, W)`` of any dtype.
        chosen: ``(B,)`` bool.

    Returns:
        ``(B, C, H, W)`` of the same dtype.

    Example:
        >>> horizontal_flip(torch.tensor([[[[1, 2]]], [[[1, 2]]]]), torch.tensor([True, False])).flatten().tolist()
        [2, 1, 1, 2]
    """
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def crop_and_flip(images: Tensor, draws: NDArray[np.float64], padding: int = 4, flip: bool = True) -> Tensor:
    """Give each image of a batch its own padded crop and, with probability 1/2, mirror it.

    Args:
        images: ``(B, C, H, W)`` of any dtype, on any device.
        draws: ``(B, 3)`` in [0, 1): top, left, flip.
        padding: zeros on each side.
        flip: ``False`` for what reads differently in a mirror, such as digits.

    Returns:
        ``(B, C, H, W)`` of the same dtype.

    Example:
        >>> crop_and_flip(torch.tensor([[[[1, 2], [3, 4]]]]), np.array([[0.5, 0.5, 0.4]]), padding=1)
        tensor([[[[2, 1],
                  [4, 3]]]])
    """
    corner = torch.from_numpy((draws[:, :2] * (2 * padding + 1)).astype(np.int64)).to(images.device)
    images = pad_crop(images, corner[:, 0], corner[:, 1], padding)
    return horizontal_flip(images, torch.from_numpy(draws[:, 2] < 0.5).to(images.device)) if flip else images


def resize_batch(images: Tensor, size: int) -> Tensor:
    """Bring the images of a batch to a square, all in one step.

    Args:
        images: ``(B, C, H, W)`` uint8.
        size: side of the square, in pixels.

    Returns:
        ``(B, C, size, size)`` uint8, bilinear with antialiasing; the images themselves where they have that size.

    Source:
        Pillow's ``Image.resize``, bit for bit: rows, then columns, in whole numbers with 22 bits behind the point and
        rounded to 8 bits after either. Torchvision's ``resize`` differs by up to two grey levels.

    Example:
        >>> resize_batch(torch.tensor([[[[0, 100], [50, 150]]]], dtype=torch.uint8), 1)
        tensor([[[[75]]]], dtype=torch.uint8)
    """
    if images.shape[-2:] == (size, size):
        return images
    if images.device.type == "mps":  # which has no float64
        return resize_batch(images.cpu(), size).to(images.device)
    height, width = images.shape[-2:]
    across, down = (_pillow_weights(old, size).to(images.device) for old in (width, height))
    narrow = (images.double() @ across.T).add_(0.5).floor_()
    return (narrow.mT @ down.T).add_(0.5).to(torch.uint8).mT.contiguous()


@cache
def _pillow_weights(old: int, new: int) -> Tensor:
    """``(new, old)`` float64: what each pixel counts for a new one, in whole parts of 2 ** 22."""
    reach = max(old / new, 1.0)
    centers = (np.arange(new)[:, None] + 0.5) * (old / new)
    weights = np.maximum(0, 1 - np.abs(np.arange(old) + 0.5 - centers) / reach)
    return torch.from_numpy(np.floor(weights / weights.sum(1, keepdims=True) * 2**22 + 0.5) / 2**22)
