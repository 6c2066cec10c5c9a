"""Black boxes for tests of attacks: one whose rows do not depend on the batch, one that remembers, one that fails."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lit_methods.ppba import LowFrequencyProjection, low_frequency_indices

SIDE, CLASSES = 8, 5
PIXELS = 3 * SIDE**2


def load(vectors: Path, name: str) -> dict[str, Tensor]:
    """Reference inputs and outputs of PPBA."""
    return {key: torch.as_tensor(value) for key, value in np.load(vectors / "ppba" / f"{name}.npz").items()}


def low_frequencies(num: int = 24) -> LowFrequencyProjection:
    indices = low_frequency_indices(SIDE, 3, 4, 2, num, torch.Generator().manual_seed(5677))
    return LowFrequencyProjection(indices, SIDE, dtype=torch.float64)


class Linear:
    """Logits in float64, each row of them from its own image alone, bit for bit.

    Args:
        lead: added to the logit of class 0; much of it, and no attack gets away from that class.
    """

    def __init__(self, lead: float = 0.0, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(CLASSES, PIXELS, generator=draw, dtype=torch.float64) / math.sqrt(PIXELS)
        self.bias = torch.zeros(CLASSES, dtype=torch.float64)
        self.bias[0] = lead

    def __call__(self, images: Tensor) -> Tensor:
        return (images.flatten(1)[:, None] * self.weight).sum(-1) + self.bias


class Killed(Exception):
    """What ends a run in the middle."""


class Recorder:
    """Remember every image that was answered, in order; die at a call.

    Args:
        model: answers.
        dies_at: number of the call, from 1, that is never answered.
    """

    def __init__(self, model, dies_at: int | None = None) -> None:
        self.model, self.dies_at = model, dies_at
        self.sizes: list[int] = []
        self.images: list[Tensor] = []

    def __call__(self, images: Tensor):
        if len(self.sizes) + 1 == self.dies_at:
            raise Killed
        scores = self.model(images)
        self.sizes.append(len(images))
        self.images += images.clone().unbind()
        return scores

    def counts(self) -> Counter[bytes]:
        """How often each image was answered."""
        return Counter(image.numpy().tobytes() for image in self.images)


class NaNs:
    """Not a number for whatever is near to one image and at least so far from it.

    Args:
        model: answers otherwise.
        images: the batch that is attacked, far from each other.
        victim: which of them.
        distance: L2.
    """

    def __init__(self, model, images: Tensor, victim: int, distance: float) -> None:
        self.model, self.images, self.victim, self.distance = model, images, victim, distance

    def __call__(self, images: Tensor) -> Tensor:
        near, which = distances(images, self.images).min(1)
        hit = (which == self.victim) & (near >= self.distance)
        return torch.where(hit[:, None], math.nan, self.model(images))


def distances(images: Tensor, clean: Tensor) -> Tensor:
    """(k, N) L2 distances of asked images from those that are attacked."""
    return (images[:, None] - clean).flatten(2).norm(dim=2)


def owners(asked: list[Tensor], clean: Tensor) -> Tensor:
    """(k,) which image each asked one is about: the nearest."""
    return distances(torch.stack(asked), clean).argmin(1)


def picture_batch(number: int = 6, seed: int = 0, model=None) -> tuple[Tensor, Tensor]:
    """Random images (N, 3, 8, 8) float64 and what a model takes them for."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand(number, 3, SIDE, SIDE, generator=draw, dtype=torch.float64)
    return images, (model or Linear())(images).argmax(1)


def small_conv_net(classes: int = CLASSES) -> nn.Sequential:
    """Convolutions with batch norms that are not neutral, float32."""
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, classes),
    )
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(64, 3, SIDE, SIDE))
        for layer in (network[1], network[4]):
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.uniform_(-0.2, 0.2)
    return network.eval()
