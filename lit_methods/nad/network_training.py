"""Training of the network itself, for data that come without trained weights: SGD by hand, before the gates."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD


def make_sgd(params: Iterable[nn.Parameter], lr: float) -> SGD:
    """SGD with Nesterov momentum 0.9 and weight decay 5e-4.

    Args:
        params: those of the network that are trained.
        lr: at the start of its cosine.
    """
    group = {"params": list(params), "initial_lr": lr}
    return SGD([group], lr, momentum=0.9, weight_decay=5e-4, nesterov=True)


def sgd_step(
    network: nn.Module,
    optimizer: Any,
    loss: Tensor | None,
    done: float,
    mean: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """One step, at a rate that falls to zero by a cosine; without DDP, whose gradients are of no use to the gates.

    Args:
        network: in training mode.
        optimizer: of ``make_sgd``.
        loss: of a batch; ``None`` where this process has none, and takes part in the means all the same.
        done: part of the training that is over, in [0, 1).
        mean: of a vector over the processes; gradients and running statistics pass through it.

    Example:
        >>> network = nn.Linear(2, 3)
        >>> optimizer = make_sgd(network.parameters(), 0.1)
        >>> before = network(torch.ones(1, 2)).sum()
        >>> sgd_step(network, optimizer, before, done=0.5)
        >>> bool(network(torch.ones(1, 2)).sum() < before), round(optimizer.param_groups[0]["lr"], 4)
        (True, 0.05)
    """
    for group in optimizer.param_groups:
        group["lr"] = 0.5 * group["initial_lr"] * (1 + math.cos(math.pi * done))
    params = [param for group in optimizer.param_groups for param in group["params"]]
    if loss is None:
        grads = [torch.zeros_like(param) for param in params]
    else:  # a network may have parameters that take no part, such as an auxiliary head
        grads = list(torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True))
    for param, grad in zip(params, _averaged(grads, mean), strict=True):
        param.grad = grad
    optimizer.step()
    optimizer.zero_grad()
    statistics = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    for buffer, value in zip(statistics, _averaged(statistics, mean), strict=True):
        buffer.copy_(value)


def _averaged(tensors: Sequence[Tensor], mean: Callable[[Tensor], Tensor] | None) -> Sequence[Tensor]:
    """All of them in one exchange."""
    if mean is None or not tensors:
        return tensors
    whole = mean(torch.cat([tensor.flatten() for tensor in tensors]))
    parts = whole.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
