"""Where in an image a sub-architecture looks: activation maps, their focus, and mosaics of four classes."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_RESAMPLE = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
_DARK = 0.2  # of what lies outside the focus


def activation_map(feat: Tensor, size: int, resample: str = "bicubic") -> Tensor:
    """The sum over the channels behind a gate, stretched to 0..255, at the size of the picture.

    Args:
        feat: (C, h, w), finite; summed in float32, channel by channel.
        size: side of the map, in pixels.
        resample: ``"bicubic"`` or ``"lanczos"``, Pillow's.

    Returns:
        (size, size) float64 on the CPU: whole levels divided by 255. Zero where all sums are equal.

    Raises:
        ValueError: another shape, values that are not finite, or another way to resample.

    Source:
        official code, cam_1x1.py (Lanczos) and cam_2x2.py (bicubic). It calls this a CAM; no gradient is involved.
        Ours: zeros where it divides by zero.

    Example:
        >>> activation_map(torch.tensor([[[0.0, 3.0], [1.0, 2.0]]]), 2).mul(255)
        tensor([[  0., 255.],
                [ 85., 170.]], dtype=torch.float64)
    """
    if feat.ndim != 3 or feat.numel() == 0:
        raise ValueError(f"feat must be (C, h, w), got shape {tuple(feat.shape)}")
    if resample not in _RESAMPLE:
        raise ValueError(f"resample={resample!r} must be one of {', '.join(_RESAMPLE)}")
    channels = feat.detach().float().cpu().contiguous().numpy()  # else NumPy would not add them in their order
    total = np.add.reduce(channels, axis=0, dtype=np.float32)
    low, high = total.min(), total.max()
    if not np.isfinite([low, high]).all():
        raise ValueError("feat holds values that are not finite")
    if high == low:
        return torch.zeros(size, size, dtype=torch.float64)
    levels = (255 * ((total - low) / (high - low))).astype(np.uint8)
    picture = Image.fromarray(levels).resize((size, size), _RESAMPLE[resample])
    return torch.from_numpy(np.asarray(picture) / 255.0)


def focus_mask(map: Tensor, rate: float) -> Tensor:
    """The brightest part of a map: above its k-th largest value, ``k = floor(rate * H * W)``.

    Args:
        map: (H, W), from ``activation_map``.
        rate: in (0, 1]; the official code has 0.05 for single images and 0.1 for mosaics.

    Returns:
        (H, W) bool: at most ``k - 1`` pixels, fewer with ties; none at all for a map without contrast.

    Raises:
        ValueError: another shape, or ``rate`` out of range or of less than one pixel.

    Source:
        official code; strictly above.

    Example:
        >>> focus_mask(torch.tensor([[0.1, 0.4], [0.2, 0.3]]), 0.75)
        tensor([[False,  True],
                [False,  True]])
    """
    if map.ndim != 2:
        raise ValueError(f"map must be (H, W), got shape {tuple(map.shape)}")
    k = int(rate * map.numel()) if 0 < rate <= 1 else 0
    if k < 1:
        raise ValueError(f"rate={rate} must lie in (0, 1] and give one of the {map.numel()} pixels at least")
    return map > map.flatten().kthvalue(map.numel() - k + 1).values


def quadrant_hit_rate(focus: Tensor) -> Tensor:
    """Which part of a focus lies in each quarter of the picture.

    Args:
        focus: (H, W) bool, H and W even.

    Returns:
        (4,) float64 that add up to 1: upper left, upper right, lower left, lower right. NaN for an empty focus.

    Raises:
        ValueError: another shape.

    Source:
        official code, cam_2x2.py.

    Example:
        >>> quadrant_hit_rate(torch.tensor([[True, False], [True, True]]))
        tensor([0.3333, 0.0000, 0.3333, 0.3333], dtype=torch.float64)
    """
    if focus.ndim != 2 or focus.shape[0] % 2 or focus.shape[1] % 2:
        raise ValueError(f"focus must be (H, W) with even sides, got shape {tuple(focus.shape)}")
    height, width = focus.shape[0] // 2, focus.shape[1] // 2
    quarters = focus.double().view(2, height, 2, width).sum((1, 3)).flatten()
    return quarters / quarters.sum()


def overlay_focus(image: Tensor | np.ndarray, focus: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """The picture, dark outside of the focus.

    Args:
        image: (H, W, 3) uint8 RGB, a tensor or an array.
        focus: (H, W) bool.

    Returns:
        A new picture of the same kind; pixels outside are cut to ``trunc(0.2 * value)``.

    Raises:
        ValueError: other shapes or types.

    Source:
        official code.

    Example:
        >>> overlay_focus(torch.full((1, 2, 3), 99, dtype=torch.uint8), torch.tensor([[True, False]]))[0, :, 0]
        tensor([99, 19], dtype=torch.uint8)
    """
    pixels, inside = np.asarray(image), np.asarray(focus, dtype=bool)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or pixels.shape[:2] != inside.shape:
        raise ValueError(
            f"image must be (H, W, 3) uint8 and focus (H, W), got {pixels.dtype} {pixels.shape} and {inside.shape}"
        )
    shown = np.where(inside[..., None], pixels, (_DARK * pixels).astype(np.uint8))
    return torch.from_numpy(shown) if isinstance(image, Tensor) else shown
