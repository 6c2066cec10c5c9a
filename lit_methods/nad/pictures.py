"""Pictures of where a sub-architecture looks."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from lit_methods.functional.drawing import caption, grid
from lit_methods.nad.maps import activation_map, focus_mask, overlay_focus

_COLUMNS = 6


def focus_sheet(image: Tensor, layers: Mapping[str, Tensor], rate: float = 0.05) -> Tensor:
    """An image once for each gate point, dark outside of the focus there.

    Args:
        image: (3, S, S) in [0, 1].
        layers: gate point -> (C, h, w) behind it, in the order of the forward pass.
        rate: part of the pixels in the focus, in (0, 1].

    Returns:
        One picture (3, H, W) uint8, each tile with the name of its gate point.

    Raises:
        ValueError: the image is not square.

    Source:
        official code, cam_1x1.py: Lanczos, rate 0.05.

    Example:
        >>> focus_sheet(torch.rand(3, 32, 32), {"a": torch.rand(4, 8, 8), "b": torch.rand(4, 4, 4)}).shape
        torch.Size([3, 184, 326])
    """
    if image.ndim != 3 or image.shape[1] != image.shape[2]:
        raise ValueError(f"image must be square (3, S, S), got {tuple(image.shape)}; give a square input_size")
    pixels = (image.float() * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    tiles = []
    for name, feat in layers.items():
        focus = focus_mask(activation_map(feat, image.shape[1], "lanczos"), rate)
        tiles.append(caption(np.asarray(overlay_focus(pixels, focus.numpy())), name))
    return torch.from_numpy(grid(tiles, _COLUMNS)).permute(2, 0, 1)
