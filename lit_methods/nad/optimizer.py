"""The step of NAD's gates as an optimiser of PyTorch, so that Lightning counts, guards and saves it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lit_methods.nad.functional import normalized_step_


class NormalizedDescent(Optimizer):
    """Gradient descent in which every row of every parameter moves by ``lr``, whatever the length of its gradient.

    Args:
        params: (C,) or (K, C) each; rows without a gradient stay as they are.
        lr: Euclidean length of a step.

    Raises:
        ValueError: ``lr`` is not positive.

    Source:
        official code, as ``normalized_step_``.

    Example:
        >>> gate = nn.Parameter(torch.zeros(2, 2))
        >>> gate.grad = torch.tensor([[0.0, 5.0], [0.0, 0.0]])
        >>> NormalizedDescent([gate], lr=0.5).step()
        >>> gate.detach()
        tensor([[ 0.0000, -0.5000],
                [ 0.0000,  0.0000]])
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 0.1) -> None:
        if not lr > 0:
            raise ValueError(f"lr={lr} must be positive")
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            normalized_step_(group["params"], [param.grad for param in group["params"]], group["lr"])
        return loss
