"""Pairs of crops that show nothing, and the smallest tracker that learns from them."""

from typing import Any

import torch
from torch import Tensor

from lit_methods import SiamBAN
from tests.module_fits import loader  # noqa: F401 - goes with the batches

SIDE = 167  # the smallest search region
SMALL: dict[str, Any] = {"depth": 18, "width": 2, "channels": 4, "levels": [2, 3], "search_size": SIDE}


def siamban(**arguments: Any) -> SiamBAN:
    """A module with a network of a few thousand weights."""
    return SiamBAN(**SMALL | {"normalize": True, "warmup_epochs": 1} | arguments)


def pairs(seed: int = 0, count: int = 2) -> dict[str, Tensor]:
    """A training batch; the last pair is a negative one."""
    draw = torch.Generator().manual_seed(seed)
    low = 50 + 20 * torch.rand(count, 2, generator=draw)
    return {
        "template": 255 * torch.rand(count, 3, 127, 127, generator=draw),
        "search": 255 * torch.rand(count, 3, SIDE, SIDE, generator=draw),
        "box": torch.cat([low, low + 40 + 20 * torch.rand(count, 2, generator=draw)], 1),
        "negative": torch.arange(count) == count - 1,
    }


def sequences(*lengths: int, size: tuple[int, int] = (60, 80)) -> dict[str, Any]:
    """An evaluation batch of frames that are in memory; a bright square moves to the right in each."""
    frames, boxes = [], []
    for number, length in enumerate(lengths):
        draw = torch.Generator().manual_seed(number)
        clip = torch.randint(0, 120, (length, 3, *size), generator=draw, dtype=torch.uint8)
        for index in range(length):
            clip[index, :, 20:32, 10 + 2 * index : 26 + 2 * index] = 250
        frames.append(list(clip))
        boxes.append(torch.tensor([[10.0 + 2 * i, 20, 16, 12] for i in range(length)], dtype=torch.float64))
    return {
        "name": [f"square-{number}" for number in range(len(lengths))],
        "frames": frames,
        "boxes": boxes,
        "present": [None] * len(lengths),
        "polygons": [None] * len(lengths),
        "index": torch.arange(len(lengths)),
    }


def some_boxes(count: int = 40, dtype: torch.dtype = torch.float64) -> Tensor:
    """Of all sizes and places in a crop of 255."""
    drawn = torch.rand(count, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    center, size = 60 + 135 * drawn[:, :2], 6 + 120 * drawn[:, 2:]
    return torch.cat([center - size / 2, center + size / 2], 1).to(dtype)
