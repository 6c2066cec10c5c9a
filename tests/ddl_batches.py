"""Training batches of faces that show nothing, and modules small enough for them."""

from typing import Any

import torch
from torch import nn

from lit_methods import DDL

CLASSES, SIDE, B = 8, 16, 4


class Plain(nn.Module):
    """Pictures to embeddings without batch norm: what several processes compute as one does."""

    def __init__(self, size: int = 3 * SIDE * SIDE, features: int = 12) -> None:
        super().__init__()
        self.layer = nn.Linear(size, features)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layer(image.flatten(1))


def branch(seed: int, b: int = B, side: int = SIDE) -> dict[str, Any]:
    """One branch: identities 0 to ``b`` - 1, and pairs that resemble each other."""
    draw = torch.Generator().manual_seed(seed)
    first = torch.rand(b, 3, side, side, generator=draw)
    second = (first + 0.3 * torch.rand(b, 3, side, side, generator=draw)) / 1.3
    return {"image": torch.rand(b, 3, side, side, generator=draw), "label": torch.arange(b), "pair": (first, second)}


def batch(seed: int = 0, names: tuple[str, ...] = ("easy", "hard"), **sizes: int) -> dict[str, Any]:
    """A step of these branches."""
    return {name: branch(10 * seed + number, **sizes) for number, name in enumerate(names)}


def ddl(**arguments: Any) -> DDL:
    """A module with a linear network."""
    given: dict[str, Any] = {"backbone": Plain(), "num_classes": CLASSES, "input_size": [3, SIDE, SIDE]}
    return DDL(**given | arguments)
