"""Pictures of where a sub-architecture looks."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from lit_methods.functional.drawing import caption, grid
from lit_methods.nad.gating import GatedModel
from lit_methods.nad.maps import activation_map, focus_mask, overlay_focus

_COLUMNS = 6


def largest_crop(image: Tensor, size: Sequence[int] | None) -> Tensor:
    """The largest crop in the middle whose shape lies between 3:4 and 4:3, at the size of the network's input.

    Args:
        image: (3, H, W) in [0, 1].
        size: (C, H, W) that comes out; ``None`` leaves the image as it is.

    Source:
        what the official code's random crop of scale 1 comes to, for its maps.

    Example:
        >>> largest_crop(torch.rand(3, 60, 120), (3, 32, 32)).shape
        torch.Size([3, 32, 32])
    """
    if size is None or tuple(image.shape[1:]) == tuple(size[1:]):
        return image
    height, width = image.shape[1:]
    cut = [min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))]
    return tvf.resize(tvf.center_crop(image, cut), list(size[1:]), antialias=True).clamp(0, 1)


def focus_sheet(image: Tensor, layers: Mapping[str, Tensor], rate: float = 0.05) -> Tensor:
    """An image once for each gate point, dark outside of the focus there.

    Args:
        image: (3, H, W) in [0, 1]; one that is not square is stretched.
        layers: gate point -> (C, h, w) behind it, in the order of the forward pass; (C,) has no focus.
        rate: part of the pixels in the focus, in (0, 1].

    Returns:
        One picture (3, H, W) uint8, each tile with the name of its gate point.

    Source:
        official code, cam_1x1.py: Lanczos, rate 0.05.

    Example:
        >>> focus_sheet(torch.rand(3, 32, 32), {"a": torch.rand(4, 8, 8), "b": torch.rand(4, 4, 4)}).shape
        torch.Size([3, 184, 326])
    """
    side = max(image.shape[1:])
    if image.shape[1:] != (side, side):
        image = tvf.resize(image, [side, side], antialias=True).clamp(0, 1)
    pixels = (image.float() * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    tiles = []
    for name, feat in layers.items():
        maps = feat if feat.ndim == 3 else feat.view(-1, 1, 1)
        focus = focus_mask(activation_map(maps, side, "lanczos"), rate)
        tiles.append(caption(np.asarray(overlay_focus(pixels, focus.numpy())), name))
    return torch.from_numpy(grid(tiles, _COLUMNS)).permute(2, 0, 1)


@torch.no_grad()
def focus_sheets(gated: GatedModel, x: Tensor, image: Tensor, row: Tensor, rate: float = 0.05) -> list[Tensor]:
    """Where the hard-gated network of a class looks, for each image of a batch.

    Args:
        gated: a network and its gates.
        x: (N, C, H, W), as the network is fed.
        image: (N, 3, H, W) in [0, 1], the same to look at.
        row: (N,) int64, whose gates.
        rate: part of the pixels in the focus, in (0, 1].

    Returns:
        N pictures of ``focus_sheet``.
    """
    _, maps = gated(x, task=row, mode="hard", return_activations=True)
    named = dict(zip(gated.gate_points, maps, strict=True))
    return [focus_sheet(one, {name: feat[i] for name, feat in named.items()}, rate) for i, one in enumerate(image)]
