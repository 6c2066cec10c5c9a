"""Bright ellipses on noise, in batches, and the smallest detector that learns to find them."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lit_methods import ASFD
from tests.module_fits import loader  # noqa: F401 - goes with the batches

SIDE = 128  # the smallest picture
SIMPLE: dict[str, Any] = {  # a genotype of few tensors, whose number is what a step and a checkpoint take
    "fpn": {str(level): [["conv_1x1", *range(level, min(level + 2, 8))]] for level in range(2, 8)},
    "cpm": [[["conv_3x3_d2", 0]], [["identity", 1]]],
}


def asfd(**arguments: Any) -> ASFD:
    """A module with a network of few and small layers."""
    return ASFD(**{"channels": 8, "genotype": SIMPLE, "warmup_steps": 0} | arguments)


def scene(
    draw: torch.Generator, size: tuple[int, int] = (SIDE, SIDE), faces: int | None = None
) -> tuple[Tensor, Tensor]:
    """A picture (3, H, W) in [0, 1] and the boxes (n, 4) of its ellipses, xyxy.

    Args:
        draw: decides everything.
        size: height and width.
        faces: how many; 1 to 3 by chance without it.
    """
    image = torch.rand(3, *size, generator=draw) * 0.4
    count = int(torch.randint(1, 4, (), generator=draw)) if faces is None else faces
    y, x = torch.meshgrid(*(torch.arange(side) + 0.5 for side in size), indexing="ij")
    boxes = torch.zeros(count, 4)
    for number in range(count):
        across, right, down, light = torch.rand(4, generator=draw).tolist()
        w = 12 + 36 * across
        h = 1.3 * w
        cx, cy = w / 2 + right * (size[1] - w), h / 2 + down * (size[0] - h)
        image[:, ((x - cx) / (w / 2)) ** 2 + ((y - cy) / (h / 2)) ** 2 <= 1] = 0.7 + 0.3 * light
        boxes[number] = torch.tensor([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    return image, boxes


def views(seed: int = 0, faces: Sequence[int | None] = (2, 1)) -> dict[str, Any]:
    """A training batch.

    Args:
        seed: decides everything.
        faces: of each picture.
    """
    draw = torch.Generator().manual_seed(seed)
    scenes = [scene(draw, faces=count) for count in faces]
    images, boxes = zip(*scenes, strict=True)
    return {"image": torch.stack(images), "boxes": list(boxes), "index": torch.arange(len(faces))}


def pictures(*sizes: tuple[int, int], seed: int = 0) -> dict[str, Any]:
    """An evaluation batch of pictures of these heights and widths."""
    draw = torch.Generator().manual_seed(seed)
    scenes = [scene(draw, size) for size in sizes]
    return {
        "image": [image for image, _ in scenes],
        "boxes": [boxes for _, boxes in scenes],
        "name": [f"0--Parade/{number}" for number in range(len(sizes))],
        "index": torch.arange(len(sizes)),
    }


def unbegun(steps: int, **more: Any) -> Any:
    """As much of a Trainer as a module asks for the length of its run, before the first of so many steps."""
    return SimpleNamespace(
        estimated_stepping_batches=steps, train_dataloader=(), fit_loop=SimpleNamespace(_combined_loader=None), **more
    )
