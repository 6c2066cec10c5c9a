"""Coloured squares and sentences about them in batches, and the smallest network that learns to tell them apart."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lit_methods import MCN
from tests.module_fits import loader

SIDE = 64
WORDS = ["blue", "left", "red", "square", "the"]
COLOURS = {"red": (0.9, 0.1, 0.1), "blue": (0.1, 0.2, 0.9)}
SIZES = ((48, 64), (64, 40), (32, 32))  # heights and widths of pictures before letterboxing


def mcn(**arguments: Any) -> MCN:
    """A module with a network of few and narrow layers, in which nothing is frozen."""
    small = {"hidden": 32, "dim": 16, "word_dim": 8, "input_size": [3, SIDE, SIDE], "max_words": 4}
    more = {"freeze_backbone": False, "bn_momentum": 0.1, "anchors": [[20, 20], [30, 30]], "vocabulary": WORDS}
    return MCN(**{"backbone": "tiny"} | small | more | arguments)


def scene(draw: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """A picture (3, S, S) in [0, 1] and the box (4,) of its square of each colour, one in each half."""
    image = torch.rand(3, SIDE, SIDE, generator=draw) * 0.3
    boxes = {}
    swapped = bool(torch.rand((), generator=draw) < 0.5)
    for number, colour in enumerate(COLOURS):
        side, right, down = (torch.rand(3, generator=draw) * torch.tensor([8, 8, 40])).int().tolist()
        side += 16
        x, y = right + 32 * (number ^ swapped), min(down, SIDE - side)
        image[:, y : y + side, x : x + side] = torch.tensor(COLOURS[colour])[:, None, None]
        boxes[colour] = torch.tensor([x, y, min(x + side, SIDE), y + side]).float()
    return image, boxes


def inside(box: Tensor) -> Tensor:
    """The mask (S, S) uint8 of a box in whole pixels."""
    x1, y1, x2, y2 = box.int().tolist()
    mask = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


def views(seed: int = 0, pictures: int = 2, sentence: str = "the {} square") -> dict[str, Any]:
    """A training batch: both squares of each picture, asked for one after the other."""
    draw = torch.Generator().manual_seed(seed)
    scenes = [scene(draw) for _ in range(pictures)]
    boxes = [box for _, found in scenes for box in found.values()]
    return {
        "image": torch.stack([image for image, _ in scenes for _ in COLOURS]),
        "tokens": mcn_tokens([sentence.format(colour) for _ in scenes for colour in COLOURS]),
        "box": torch.stack(boxes),
        "mask": torch.stack([inside(box)[None] for box in boxes]),
        "index": torch.arange(2 * pictures),
    }


def mcn_tokens(sentences: Sequence[str], length: int = 4) -> Tensor:
    """Ids by ``WORDS``."""
    rows = [[2 + WORDS.index(word) for word in sentence.split()] for sentence in sentences]
    return torch.tensor([(row + [0] * length)[:length] for row in rows])


def asked(seed: int = 0, pictures: int = 2, sizes: Sequence[tuple[int, int]] = ((SIDE, SIDE),)) -> dict[str, Any]:
    """The same as a batch of an evaluation, of pictures of these heights and widths in turn; masks are whole pictures
    where those are not the square that the network sees."""
    batch = views(seed, pictures)
    size = [sizes[number // 2 % len(sizes)] for number in range(2 * pictures)]
    masks = [
        mask[0] if hw == (SIDE, SIDE) else torch.ones(hw, dtype=torch.uint8)
        for mask, hw in zip(batch["mask"], size, strict=True)
    ]
    return batch | {
        "mask": masks,
        "size": torch.tensor(size),
        "image_id": torch.arange(2 * pictures) // 2 + 7,
        "ref_id": torch.arange(2 * pictures),
        "sentence": [f"the {colour} square" for _ in range(pictures) for colour in COLOURS],
    }


def nothing() -> dict[str, Any]:
    """What a process gets for which no sentence is left."""
    batch = asked(pictures=1)
    return {name: value[:0] for name, value in batch.items()}


def fit(trainer: Trainer, module: MCN, *batches: dict[str, Any], **more: Any) -> MCN:
    """The module, trained on these batches or on two others."""
    trainer.fit(module, loader(*(batches or (views(0), views(1)))), **more)
    return module


def settled(**arguments: Any) -> MCN:
    """A module whose batch norms have seen pictures, so that its answers differ."""
    module = mcn(**arguments)
    with torch.no_grad():
        for seed in range(3):
            batch = views(seed)
            module(batch["image"], batch["tokens"])
    return module.eval()
