"""Random and fixed changes to pictures; what is random is decided by numbers that are passed in.

The numbers come from ``datamodules.draws.uniforms`` with the key (seed, epoch, index of the picture), so a picture
looks the same in an epoch whatever the batch, the worker, the rank and the history of the run.
"""

import math
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import center_crop, resize

from lit_methods.functional.crops import crop_and_flip, horizontal_flip, pad_crop, resize_batch

__all__ = [
    "CROP_DRAWS",
    "CROP_TRIES",
    "crop_and_flip",
    "horizontal_flip",
    "pad_crop",
    "random_resized_crop",
    "random_resized_crop_box",
    "resize_and_center_crop",
    "resize_batch",
    "to_float",
    "to_uint8",
]

Nested = TypeVar("Nested")

CROP_TRIES = 10
CROP_DRAWS = 2 * CROP_TRIES + 2  # numbers that random_resized_crop_box takes


def random_resized_crop_box(
    width: int,
    height: int,
    draws: NDArray[np.float64],
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Choose the window of torchvision's ``RandomResizedCrop``, from given numbers instead of a generator.

    Args:
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        draws: ``(CROP_DRAWS,)`` in [0, 1): area and shape of up to ten tries, then the corner.
        scale: smallest and largest area, as a fraction of the picture's. Above 1 no window fits, so that more tries
            fail and more pictures get the central one.
        ratio: smallest and largest width over height.

    Returns:
        left, top, right, bottom in whole pixels, inside the picture.

    Source:
        Inception's augmentation (arXiv 1409.4842, section 6) as in torchvision, including its central fallback for
        pictures so long that ten tries find no window.

    Example:
        >>> random_resized_crop_box(100, 100, np.full(CROP_DRAWS, 0.5))
        (14, 14, 87, 87)
    """
    for area_draw, shape_draw in draws[: 2 * CROP_TRIES].reshape(CROP_TRIES, 2).tolist():
        area = width * height * (scale[0] + area_draw * (scale[1] - scale[0]))
        shape = math.exp(math.log(ratio[0]) + shape_draw * (math.log(ratio[1]) - math.log(ratio[0])))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draws[-2] * (width - w + 1)), int(draws[-1] * (height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def random_resized_crop(
    image: Image.Image, draws: NDArray[np.float64], size: int = 224, scale: tuple[float, float] = (0.08, 1.0)
) -> Image.Image:
    """Cut out a random window, bring it to a square and, with probability 1/2, mirror it.

    Args:
        image: RGB.
        draws: ``(CROP_DRAWS + 1,)`` in [0, 1): the window, then the flip.
        size: side of the square, in pixels.
        scale: smallest and largest area of the window, as a fraction of the picture's.

    Returns:
        RGB, ``size`` x ``size``; bilinear with antialiasing.

    Example:
        >>> random_resized_crop(Image.new("RGB", (50, 40)), np.full(CROP_DRAWS + 1, 0.5), size=32).size
        (32, 32)
    """
    window = image.crop(random_resized_crop_box(*image.size, draws[:CROP_DRAWS], scale))
    window = window.resize((size, size), Image.Resampling.BILINEAR)
    return window.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draws[CROP_DRAWS] < 0.5 else window


def resize_and_center_crop(image: Image.Image, resize_size: int = 256, size: int = 224) -> Image.Image:
    """Bring the short side to ``resize_size`` and cut out the middle: the usual view for evaluation.

    Args:
        image: RGB.
        resize_size: length of the short side, in pixels.
        size: side of the square, in pixels, at most ``resize_size``.

    Returns:
        RGB, ``size`` x ``size``; bilinear with antialiasing, as torchvision's ``Resize`` and ``CenterCrop``.

    Example:
        >>> resize_and_center_crop(Image.new("RGB", (50, 40)), resize_size=36, size=32).size
        (32, 32)
    """
    return center_crop(resize(image, [resize_size]), [size, size])


def to_uint8(image: Image.Image) -> Tensor:
    """Turn an RGB picture into a ``(3, H, W)`` uint8 tensor.

    Example:
        >>> to_uint8(Image.new("RGB", (2, 1), (9, 8, 7))).tolist()
        [[[9, 9]], [[8, 8]], [[7, 7]]]
    """
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def to_float(batch: Nested) -> Nested:
    """Turn the uint8 pictures of a batch into float32 in [0, 1]; for ``on_after_batch_transfer``.

    Args:
        batch: a tensor, or dicts, tuples and lists of tensors, nested in any way; anything else stays as it is.

    Example:
        >>> to_float({"pair": (torch.tensor([255], dtype=torch.uint8), torch.tensor([7]))})
        {'pair': (tensor([1.]), tensor([7]))}
    """
    result: Any = batch
    if isinstance(batch, Tensor) and batch.dtype == torch.uint8:
        result = batch.float() / 255
    elif isinstance(batch, dict):
        result = {name: to_float(value) for name, value in batch.items()}
    elif isinstance(batch, tuple | list):
        result = type(batch)(map(to_float, batch))
    return result
