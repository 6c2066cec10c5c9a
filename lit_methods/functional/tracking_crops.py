"""Square crops of frames around a target, as Siamese trackers take them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def context_size(wh: Tensor, context: float = 0.5) -> Tensor:
    """Side of the square that a target is shown in with what surrounds it.

    Args:
        wh: ``(..., 2)`` widths and heights of targets, pixels of the frame.
        context: part of width plus height that is added to both.

    Returns:
        ``(...)``: the geometric mean of width and height with their context.

    Source:
        SiamBAN and its forerunners from SiamFC on.

    Example:
        >>> context_size(torch.tensor([[40.0, 40.0], [10.0, 90.0]]))
        tensor([80.0000, 91.6515])
    """
    return (wh + context * wh.sum(-1, keepdim=True)).prod(-1).sqrt()


def crop_patches(images: Sequence[Tensor], centers: Tensor, sides: Tensor, out: int, fill: Tensor) -> Tensor:
    """Cut a square out of each image and resize it; nothing waits for the device.

    Args:
        images: S of ``(3, H, W)``, any sizes and real types, all on one device.
        centers: ``(S, 2)`` x and y, pixels.
        sides: ``(S,)`` whole numbers of pixels, at least 1, of any real type.
        out: side of the results.
        fill: ``(S, 3)``, what is outside of each image; truncated to whole numbers.

    Returns:
        ``(S, 3, out, out)`` float32.

    Source:
        SiamBAN, official code (``get_subwindow``): the square begins at floor(c - (side + 1) / 2 + 0.5); bilinear, with
        the pixels' centres half a pixel from their edges. Ours: values stay fractions, where OpenCV rounds them.

    Example:
        >>> image = torch.arange(12.0).view(1, 3, 4).expand(3, 3, 4)
        >>> crop_patches([image], torch.tensor([[0.0, 1.0]]), torch.tensor([3]), 3, torch.tensor([[9.0] * 3]))[0, 0]
        tensor([[9., 0., 1.],
                [9., 4., 5.],
                [9., 8., 9.]])
    """
    first = (centers - (sides[:, None] + 1) / 2 + 0.5).floor()  # x, y
    steps = torch.arange(out, device=centers.device, dtype=centers.dtype) + 0.5
    places = (steps * (sides[:, None] / out) - 0.5).clamp(min=0).minimum(sides[:, None] - 1)  # in the patch, (S, out)
    lower = places.floor()
    upper = (lower + 1).minimum(sides[:, None] - 1)
    both = torch.cat([lower, upper], 1)
    columns, rows = ((first[:, axis, None] + both).long() for axis in (0, 1))
    weights = (places - lower).float()
    patches = [
        _taken(image, row, column, colour)
        for image, row, column, colour in zip(images, rows, columns, fill.trunc().float(), strict=True)
    ]
    patch = torch.stack(patches)  # (S, 3, 2 out, 2 out): the lower neighbours, then the upper ones
    patch = torch.lerp(patch[:, :, :out], patch[:, :, out:], weights[:, None, :, None])
    return torch.lerp(patch[..., :out], patch[..., out:], weights[:, None, None, :])


def crop_patch(image: Tensor, center: Sequence[float] | Tensor, side: int, out: int, fill: Tensor) -> Tensor:
    """Cut a square out of an image and resize it; see :func:`crop_patches`.

    Args:
        image: ``(3, H, W)``, of any real type.
        center: x and y, pixels.
        side: of the square, pixels.
        out: side of the result; where it is ``side``, pixels are taken as they are.
        fill: ``(3,)`` what is outside of the image, such as its channels' means; truncated to whole numbers.

    Returns:
        ``(3, out, out)`` float32.

    Raises:
        ValueError: ``side`` or ``out`` is below 1.

    Example:
        >>> crop_patch(torch.ones(3, 8, 8), (4, 4), side=4, out=2, fill=torch.zeros(3)).shape
        torch.Size([3, 2, 2])
    """
    if side < 1 or out < 1:
        raise ValueError(f"side={side} and out={out} must be at least 1 pixel")
    exact = torch.float32 if image.device.type == "mps" else torch.float64
    centers = torch.as_tensor(center, dtype=exact, device=image.device).view(1, 2)
    sides = torch.full((1,), side, dtype=exact, device=image.device)
    return crop_patches([image], centers, sides, out, fill.to(image.device).view(1, 3))[0]


def _taken(image: Tensor, rows: Tensor, columns: Tensor, fill: Tensor) -> Tensor:
    """The pixels (3, R, C) of these rows and columns, which may lie outside."""
    height, width = image.shape[1:]
    pixels = image.index_select(1, rows.clamp(0, height - 1)).index_select(2, columns.clamp(0, width - 1))
    outside = ((rows < 0) | (rows >= height))[:, None] | ((columns < 0) | (columns >= width))
    return torch.where(outside, fill[:, None, None], pixels.float())
