"""One step's gradients of many classes' gates, each as if its class were alone."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lit_methods.nad.functional import nad_loss
from lit_methods.nad.gating import GatedModel


class Learned(NamedTuple):
    """What a step saw, one entry per class in it; detached.

    Args:
        row: (k,) int64, rising: its gates.
        images: (k,) int64, how many there were.
        active: (k,) bool, whether the network got any of them right; else its gates stay.
        loss: (k,) its objective.
        ce: (k,) its cross entropy, nats.
        mse: (k,) its error of the activations, mean over the layers.
    """

    row: Tensor
    images: Tensor
    active: Tensor
    loss: Tensor
    ce: Tensor
    mse: Tensor


def set_gradients(
    gated: GatedModel,
    x: Tensor,
    label: Tensor,
    row: Tensor,
    beta: float,
    chunk_size: int = 256,
    objective: Callable[..., dict[str, Tensor]] = nad_loss,
) -> Learned | None:
    """Set ``grad`` of all gates from one batch; rows without an image there get zeros.

    Args:
        gated: a frozen network and its gates; gradients from before are replaced.
        x: (N, C, H, W), as the network is fed.
        label: (N,) int64, the class of each image.
        row: (N,) int64, the row of its gates.
        beta: weight of the gates.
        chunk_size: images in one pass at most. Classes are not torn apart, so the largest one sets a lower bound.
        objective: ``nad_loss``, or a function with its arguments and results.

    Returns:
        Terms for logging; ``None`` for an empty batch, after which there are no gradients.

    Source:
        official code, findpath.py, which has one class at a time.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> gated = GatedModel(net, ["1"], num_tasks=2, input_size=(3, 8, 8))
        >>> images, label = torch.rand(6, 3, 8, 8), torch.zeros(6, dtype=torch.int64)
        >>> learned = set_gradients(gated, images, label, row=label, beta=0.1)
        >>> learned.images, bool(gated.gate_logits[0].grad[1].any())
        (tensor([6]), False)
    """
    gates = list(gated.gate_logits)
    for gate in gates:
        gate.grad = None
    found: list[Learned] = []
    for rows in _chunks(row, chunk_size):
        chosen = torch.isin(row, rows)
        images, target, task = x[chosen], label[chosen], torch.searchsorted(rows, row[chosen])
        with torch.no_grad():
            plain, orig = gated(images, mode="off", return_activations=True)
        logits, acts = gated(images, task=row[chosen], return_activations=True)
        correct = plain.argmax(1) == target
        own = [gate[rows] for gate in gates]
        terms = objective(logits, target, acts, orig, own, correct, beta, task=task)
        for gate, grad in zip(gates, torch.autograd.grad(terms["loss"], gates), strict=True):
            gate.grad = grad if gate.grad is None else gate.grad.add_(grad)
        loss = terms["act"] + beta * terms["gate"]
        count = torch.bincount(task, minlength=len(rows))
        parts = rows, count, terms["active"], loss, terms["ce"], terms["mse"].mean(0)
        found.append(Learned(*(part.detach() for part in parts)))
    return Learned(*(torch.cat(parts) for parts in zip(*found, strict=True))) if found else None


def _chunks(row: Tensor, chunk_size: int) -> Iterator[Tensor]:
    """The rows present, rising, as many at a time as ``chunk_size`` images allow, and at least one."""
    present, counts = row.unique(return_counts=True)
    start = images = 0
    for end, count in enumerate(counts.tolist()):
        if images and images + count > chunk_size:
            yield present[start:end]
            start, images = end, 0
        images += count
    if images:
        yield present[start:]
