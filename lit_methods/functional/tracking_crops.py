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
        >>> crop_patches([image], torch.tensor([[1.0, 2.0]]), torch.tensor([3]), 3, torch.tensor([[9.0] * 3]))[0, 0]
        tensor([[9., 0., 1.],
                [9., 4., 5.],
                [9., 8., 9.]])
    """
    side = sides[:, None].to(centers.dtype)
    first = (centers - (side + 1) / 2 + 0.5).floor()  # x, y
    steps = torch.arange(out, device=centers.device, dtype=centers.dtype) + 0.5
    places = (steps * (side / out) - 0.5).clamp(min=0).minimum(side - 1)  # in the square, (S, out)
    lower = places.floor()
    nearest = torch.stack([lower, lower + 1], 1)  # (S, 2, out); one beyond the square has no share
    columns, rows = ((first[:, axis, None, None] + nearest).long() for axis in (0, 1))
    share = (places - lower).float()
    shares = torch.stack([1 - share, share], 1)
    colours = fill.trunc().float()
    if all(image.shape == images[0].shape for image in images):
        stack = images[0][None] if len(images) == 1 else torch.stack(list(images))
        return _mixed(stack, columns, rows, shares, colours)
    parts = zip(images, *(part.split(1) for part in (columns, rows, shares, colours)), strict=True)
    return torch.cat([_mixed(image[None], *rest) for image, *rest in parts])


def crop_patch(
    image: Tensor, center: Sequence[float] | Tensor, side: int, out: int, fill: Sequence[float] | Tensor
) -> Tensor:
    """Cut a square out of an image and resize it; see :func:`crop_patches`.

    Args:
        image: ``(3, H, W)``, of any real type.
        center: x and y, pixels of the frame.
        side: of the square, pixels.
        out: side of the result; where it is ``side``, pixels are taken as they are.
        fill: ``(3,)``, what is outside of the image, such as its channels' means; truncated to whole numbers.

    Returns:
        ``(3, out, out)`` float32.

    Raises:
        ValueError: ``side`` or ``out`` is below 1, or ``image`` is not ``(3, H, W)``.

    Example:
        >>> crop_patch(torch.ones(3, 8, 8), (4, 4), side=4, out=2, fill=torch.zeros(3)).shape
        torch.Size([3, 2, 2])
    """
    if side < 1 or out < 1:
        raise ValueError(f"side={side} and out={out} must be at least 1 pixel")
    if image.ndim != 3 or not image.numel():
        raise ValueError(f"image must be (3, H, W), got {tuple(image.shape)}")
    exact = torch.float32 if image.device.type == "mps" else torch.float64
    place, colour = (torch.as_tensor(given).to(image.device, exact).view(1, -1) for given in (center, fill))
    return crop_patches([image], place, place.new_full((1,), side), out, colour)[0]


def _mixed(images: Tensor, columns: Tensor, rows: Tensor, shares: Tensor, colours: Tensor) -> Tensor:
    """The four nearest pixels of each place, each with its share; what lies outside has the colour.

    Args:
        images: (S, C, H, W).
        columns: (S, 2, out) the two nearest, which may lie outside.
        rows: likewise.
        shares: (S, 2, out), alike for columns and rows.
        colours: (S, C).
    """
    count, channels, height, width = images.shape
    across, down = (shares * ((at >= 0) & (at < end)) for at, end in ((columns, width), (rows, height)))
    columns, rows = columns.clamp(0, width - 1), rows.clamp(0, height - 1) * width
    pixels = images.flatten(2)
    inside = down.sum(1)[:, :, None] * across.sum(1)[:, None]
    total = colours[:, :, None, None] * (1 - inside[:, None])
    for i in (0, 1):
        for j in (0, 1):
            place = (rows[:, i, :, None] + columns[:, j, None]).view(count, 1, -1).expand(-1, channels, -1)
            share = down[:, i, :, None] * across[:, j, None]
            total += pixels.gather(2, place).view_as(total) * share[:, None]
    return total
