"""What an attack can attack: anything that turns images into scores."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lit_methods.functional.modes import evaluating
from lit_methods.ppba.identity import fingerprint


@runtime_checkable
class BlackBox(Protocol):
    """A callable from images to scores; a plain function will do.

    Two attributes are looked at where there are any: ``max_batch``, how many images it takes at once, and
    ``eight_bit``, true where it rounds images to 8 bits itself (then a success is not tried again after rounding).

    Example:
        >>> isinstance(lambda images: images.mean((2, 3)), BlackBox)
        True
    """

    def __call__(self, images: Tensor, /) -> Any:
        """Score images.

        Args:
            images: (N, C, H, W) in [0, 1].

        Returns:
            logits (N, classes), tensor or array; or, for losses on labels, a list of (label, score) pairs per image.
        """


class ModelBlackBox:
    """A network as a black box: evaluation mode, no gradients, normalising inside.

    Args:
        model: takes (N, C, H, W) and gives logits (N, classes).
        mean: per channel, for images in [0, 1]; ``None`` hands pixels on as they are.
        std: per channel.
        max_batch: most images in one forward pass; ``None`` sets no limit.

    Raises:
        ValueError: ``mean`` without ``std``, or the other way round; ``max_batch`` below 1.

    Example:
        >>> box = ModelBlackBox(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), mean=[0.5] * 3, std=[0.25] * 3)
        >>> box(torch.rand(4, 3, 2, 2)).shape
        torch.Size([4, 5])
    """

    eight_bit = False

    def __init__(
        self,
        model: nn.Module,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        max_batch: int | None = None,
    ) -> None:
        if (mean is None) != (std is None):
            raise ValueError(f"mean={mean} and std={std} go together: give both or neither")
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"max_batch={max_batch} must be at least 1, or None")
        self.model, self.max_batch = model, max_batch
        self.mean, self.std = mean or [0.0], std or [1.0]

    def identity(self) -> dict[str, Any]:
        """Which network this is, in plain values: answers of another one are no answers."""
        return {"network": fingerprint(self.model), "mean": self.mean, "std": self.std}

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W) in [0, 1], in the network's own precision."""
        weight = next(self.model.parameters(), images)
        mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        with torch.no_grad(), evaluating(self.model):
            return self.model(((images - mean) / std).to(weight.device, weight.dtype))
