"""Weights, images and gates for which tests/vectors/nad/arch_probe_*.npz hold what the official networks say."""

from collections.abc import Iterable
from math import sqrt

import numpy as np
import torch
from torch import Tensor, nn

MODES = ("ones", "soft", "hard")


def fill(model: nn.Module) -> nn.Module:
    """The probes' weights, made in float32 and then widened, in a network without state; in place."""
    model.to(torch.float32).to_empty(device="cpu").eval()
    noise = _noise(max(part.weight.numel() for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear)))
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            for name, value in {"weight": 1.0, "bias": 0.05, "running_mean": 0.0, "running_var": 1.0}.items():
                getattr(part, name).data.fill_(value)
        elif isinstance(part, nn.Conv2d | nn.Linear):
            _set(part.weight, noise, sqrt(6 / part.weight[0].numel()))
            if part.bias is not None:
                _set(part.bias, noise, 0.01)
    return model.double()


def _noise(size: int) -> np.ndarray:
    """In [-1, 1)."""
    values = np.arange(1, size + 1, dtype=np.float64)
    np.sin(np.multiply(values, 12.9898, out=values), out=values)
    values *= 43758.5453
    values -= np.floor(values)
    return 2 * values - 1


def _set(parameter: nn.Parameter, noise: np.ndarray, scale: float) -> None:
    values = torch.from_numpy(noise[: parameter.numel()] * scale)
    parameter.data.copy_(values.view_as(parameter))


def probe_image(shift: float, side: int = 224) -> Tensor:
    """(1, 3, side, side) float64."""
    return torch.sin(0.01 * torch.arange(3 * side * side, dtype=torch.float64) + shift).view(1, 3, side, side)


def gate_logits(sizes: Iterable[int], shift: float) -> list[Tensor]:
    """(C_l,) float64 for every gate."""
    return [2 * torch.sin(torch.arange(n, dtype=torch.float64) + i + shift) for i, n in enumerate(map(int, sizes))]


def gates(logits: Tensor) -> Tensor:
    """(3, C): one row for each of ``MODES``."""
    return torch.stack([torch.ones_like(logits), logits.sigmoid(), (logits > 0).to(logits.dtype)])
