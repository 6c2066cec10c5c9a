"""Images as files and services hold them: 8 bits per channel."""

import torch
from torch import Tensor


def levels(images: Tensor) -> Tensor:
    """Images in [0, 1] as whole numbers of 255ths, the nearest ones, halves up.

    Args:
        images: float, any shape; values outside are clipped.

    Returns:
        uint8 of the same shape, on the same device.

    Example:
        >>> levels(torch.tensor([-1.0, 0.0021, 0.5, 1.0]))
        tensor([  0,   1, 128, 255], dtype=torch.uint8)
    """
    # in float64: float32 rounds some up that lie just below a half
    return images.double().clamp(0, 1).mul(255).add(0.5).floor().to(torch.uint8)


def to_eight_bits(images: Tensor) -> Tensor:
    """Images in [0, 1] as they are after saving with 8 bits per channel: the nearest multiples of 1/255.

    Args:
        images: float, any shape; values outside are clipped.

    Returns:
        the same shape, dtype and device.

    Example:
        >>> to_eight_bits(torch.tensor([0.0, 0.0021, 1.0])) * 255
        tensor([  0.,   1., 255.])
    """
    return (levels(images).double() / 255).to(images.dtype)
