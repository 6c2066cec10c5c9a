"""NAD's arithmetic: gates, loss and step, similarity of sub-architectures (arXiv 2003.13268).

The body of the paper could not be read; what is below the level of its abstracts follows the official code. Maps and
mosaics are in ``maps.py`` and can be imported from here as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_methods.nad.maps import (
    activation_map as activation_map,
    focus_mask as focus_mask,
    overlay_focus as overlay_focus,
    quadrant_hit_rate as quadrant_hit_rate,
)


def channel_gate(x: Tensor, logits: Tensor, hard: bool = False, threshold: float = 0.5) -> Tensor:
    """Multiply each channel by its gate.

    Args:
        x: (N, C, H, W) or (N, C).
        logits: (C,), or one row per image, (N, C); the gate is their sigmoid, computed in the type of ``x``.
        hard: gates of 0 and 1 instead: 1 where the sigmoid is above ``threshold``, so a logit of 0 is off at 0.5.
        threshold: in (0, 1).

    Returns:
        The shape and type of ``x``.

    Raises:
        ValueError: shapes that do not fit, or ``threshold`` out of range.

    Source:
        official code, gate module. Ours: gates per image.

    Example:
        >>> channel_gate(torch.ones(1, 3), torch.tensor([4.0, 0.0, -4.0]), hard=True)
        tensor([[1., 0., 0.]])
    """
    if x.ndim not in (2, 4) or logits.shape not in (x.shape[1:2], x.shape[:2]):
        raise ValueError(
            f"logits must be (C,) or (N, C) for x (N, C, H, W) or (N, C), got {tuple(logits.shape)} for "
            f"{tuple(x.shape)}"
        )
    gate = open_channels(logits, threshold).to(x.dtype) if hard else logits.to(x.dtype).sigmoid()
    return x * gate.view(*gate.shape, *(1,) * (x.ndim - 2))


def open_channels(logits: Tensor, threshold: float = 0.5) -> Tensor:
    """Which gates are above the threshold.

    Args:
        logits: any shape.
        threshold: of their sigmoid, in (0, 1).

    Returns:
        bool of the same shape. The logits themselves are compared: a sigmoid in float32 is 0.5 for all small ones.

    Raises:
        ValueError: ``threshold`` is out of range.

    Example:
        >>> open_channels(torch.tensor([1e-12, 0.0, -1.0]))
        tensor([ True, False, False])
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold={threshold} must lie in (0, 1); 0.5 is the paper's")
    return logits > math.log(threshold / (1 - threshold))


def nad_loss(
    logits: Tensor,
    targets: Tensor,
    gated_acts: Sequence[Tensor],
    orig_acts: Sequence[Tensor],
    gate_logits: Sequence[Tensor],
    correct: Tensor,
    beta: float,
    task: Tensor | None = None,
) -> dict[str, Tensor]:
    """NAD's objective, of one task or of many at once.

    ``loss = (CE + sum_l MSE_l) / L + beta / L * sum_l mean_c gate^2``. The cross entropy is a mean over all images of
    a task, the error of the activations one over those that the original network gets right. Without any such image
    a task is not active: it adds nothing to ``loss``, which stays a finite zero with zero gradients when no task is.

    Args:
        logits: (N, classes) of the gated network.
        targets: (N,) int64, the class of the task.
        gated_acts: L tensors (N, C_l, ...), behind the gates.
        orig_acts: the same with all gates 1; constants.
        gate_logits: L tensors (C_l,); for K tasks (K, C_l).
        correct: (N,) bool, images that the original network gets right.
        beta: weight of the gates, not negative.
        task: (N,) int64, the row of each image, for many tasks.

    Returns:
        ``loss`` (scalar, the sum over active tasks), ``act`` ((CE + MSE) / L), ``gate`` (before ``beta``), ``ce``
        (nats) and ``active`` (bool), scalars or (K,); ``mse`` (L,) or (L, K), not divided. float32 or wider.

    Raises:
        ValueError: numbers of layers, images or channels that do not fit, or a negative ``beta``.

    Source:
        official code, findpath.py. Ours: many tasks at once. Images do not interact in a frozen network, so each
        task's terms and gradients are those it has alone.

    Example:
        >>> x, m = torch.ones(2, 3), torch.zeros(3)
        >>> terms = nad_loss(torch.zeros(2, 4), torch.tensor([1, 1]), [0.5 * x], [x], [m], torch.ones(2).bool(), 2.0)
        >>> round(float(terms["loss"]), 4), float(terms["mse"][0]), float(terms["gate"])
        (2.1363, 0.25, 0.25)
    """
    _check_loss(logits, targets, gated_acts, orig_acts, gate_logits, correct, beta, task)
    rows = [_wide(m).reshape(1, -1) if task is None else _wide(m) for m in gate_logits]
    number, layers = len(rows[0]), len(rows)
    place = torch.zeros_like(targets) if task is None else task
    ce = _task_mean(F.cross_entropy(_wide(logits), targets, reduction="none"), place, number)
    mse = torch.stack(
        [
            _task_mean(_ImageError.apply(_wide(a), _wide(b.detach())), place, number, correct)
            for a, b in zip(gated_acts, orig_acts, strict=True)
        ]
    )
    act = (ce + mse.sum(0)) / layers
    gate = torch.stack([m.sigmoid().square().mean(1) for m in rows]).sum(0) / layers
    active = _count(correct, place, number) > 0
    loss = torch.where(active, act + beta * gate, 0).sum()
    terms = {"act": act, "gate": gate, "ce": ce, "active": active, "mse": mse}
    return {"loss": loss} | {k: v.squeeze(-1) if task is None else v for k, v in terms.items()}


def _check_loss(
    logits: Tensor,
    targets: Tensor,
    gated_acts: Sequence[Tensor],
    orig_acts: Sequence[Tensor],
    gate_logits: Sequence[Tensor],
    correct: Tensor,
    beta: float,
    task: Tensor | None,
) -> None:
    if not beta >= 0:
        raise ValueError(f"beta={beta} must not be negative")
    counts = len(gated_acts), len(orig_acts), len(gate_logits)
    if len({*counts}) > 1 or not counts[0]:
        raise ValueError(f"gated_acts, orig_acts and gate_logits must have one entry per layer, got {counts}")
    images = [len(x) for x in (logits, targets, correct, *gated_acts, *orig_acts, *([] if task is None else [task]))]
    if len({*images}) > 1:
        raise ValueError(f"logits, targets, correct, activations and task must be of the same images, got {images}")
    if correct.dtype != torch.bool or any(x.ndim != 1 for x in (targets, correct, *([] if task is None else [task]))):
        raise ValueError("targets and task must be (N,), correct (N,) bool")
    if any(x.dtype != torch.int64 for x in (targets, *([] if task is None else [task]))):
        raise ValueError("targets and task must be int64")
    for i, (m, a, b) in enumerate(zip(gate_logits, gated_acts, orig_acts, strict=True)):
        wanted = (a.shape[1],) if task is None else (len(gate_logits[0]), a.shape[1])
        if m.shape != wanted or a.shape != b.shape:
            raise ValueError(
                f"layer {i}: gate_logits must be {wanted} and orig_acts {tuple(a.shape)}, as gated_acts has it, got "
                f"{tuple(m.shape)} and {tuple(b.shape)}"
            )


def _wide(x: Tensor) -> Tensor:
    """Never in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _ImageError(torch.autograd.Function):
    """Mean squared difference of each image's activations, (N, C, ...) twice to (N,), in as few passes as there can be.

    Autograd's own way takes longer on a CPU: it keeps squares, and tears channels-last maps apart.
    """

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.vector_norm(a - b, dim=tuple(range(1, a.ndim))).square() / math.prod(a.shape[1:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        a, b = ctx.saved_tensors
        scale = 2 * grad / math.prod(a.shape[1:])
        return (a - b) * scale.view(-1, *(1,) * (a.ndim - 1)), None


def _task_mean(values: Tensor, place: Tensor, number: int, chosen: Tensor | None = None) -> Tensor:
    """Mean over the (chosen) images of each task, zero without any; an image left out adds no gradient."""
    chosen = torch.ones_like(place, dtype=torch.bool) if chosen is None else chosen
    total = values.new_zeros(number).index_add(0, place, torch.where(chosen, values, 0))
    return total / _count(chosen, place, number).clamp(min=1)


def _count(chosen: Tensor, place: Tensor, number: int) -> Tensor:
    return torch.zeros(number, dtype=torch.int64, device=place.device).index_add(0, place, chosen.long())


@torch.no_grad()
def normalized_step_(params: Sequence[Tensor], grads: Sequence[Tensor | None], lr: float, eps: float = 1e-12) -> None:
    """Move each layer's gates by ``lr`` against its gradient, in place: ``m -= lr * grad / max(|grad|, eps)``.

    Args:
        params: each (C,), or (K, C) whose rows are normalised on their own.
        grads: of the same shapes; ``None``, and a row of zeros, leave the values as they are, bit for bit.
        lr: Euclidean length of the step.
        eps: the least norm that is divided by.

    Raises:
        ValueError: other numbers or shapes of gradients than of parameters.

    Source:
        official code; no momentum, no weight decay, no schedule.

    Example:
        >>> m = torch.tensor([1.0, 1.0])
        >>> normalized_step_([m], [torch.tensor([3.0, 4.0])], lr=0.1)
        >>> m
        tensor([0.9400, 0.9200])
    """
    if len(params) != len(grads):
        raise ValueError(f"params and grads must go together, got {len(params)} and {len(grads)}")
    for param, grad in zip(params, grads, strict=True):
        if grad is not None and grad.shape != param.shape:
            raise ValueError(f"grads must have the shapes of params, got {tuple(grad.shape)} for {tuple(param.shape)}")
        if grad is not None:
            wide = _wide(grad)  # half precision has no eps
            norm = wide.norm(dim=-1, keepdim=True)
            param.sub_(torch.where(norm > 0, lr * (wide / norm.clamp(min=eps)), 0).to(param.dtype))


def subarchitecture_similarity(masks: Sequence[Tensor], empty_value: float = 1.0, per_layer: bool = False) -> Tensor:
    """How much the sub-architectures of any two classes share: intersection over union, averaged over layers.

    Args:
        masks: L tensors (K, C_l), bool or 0 and 1.
        empty_value: of a layer in which both have no channel; ``float("nan")`` is the official code's result.
        per_layer: the values of the layers, not averaged.

    Returns:
        (K, K) float64, symmetric, in [0, 1], 1 on the diagonal; with ``per_layer`` (L, K, K).

    Raises:
        ValueError: no masks, other numbers of classes in them, or values that are neither 0 nor 1.

    Source:
        official code, which loops over pairs and layers and averages in float32.

    Example:
        >>> subarchitecture_similarity([torch.tensor([[1, 1, 0], [0, 1, 1]])])
        tensor([[1.0000, 0.3333],
                [0.3333, 1.0000]], dtype=torch.float64)
    """
    if not len(masks) or any(m.ndim != 2 or len(m) != len(masks[0]) for m in masks):
        raise ValueError(f"masks must be one (K, C) per layer, got {[tuple(m.shape) for m in masks]}")
    if any(not bool(((m == 0) | (m == 1)).all()) for m in masks):
        raise ValueError("masks must be 0 and 1; open_channels(logits) makes them of gate logits")
    classes = len(masks[0])
    found = masks[0].new_zeros(len(masks) if per_layer else 1, classes, classes, dtype=torch.float64)
    for i, mask in enumerate(masks):
        with torch.autocast(mask.device.type, enabled=False):  # half precision cannot count
            b = mask.to(torch.float32)  # in which counts are exact far beyond any number of channels
            shared, size = b @ b.T, b.sum(1)
        union = size[:, None] + size - shared
        iou = torch.where(union > 0, shared.double() / union.clamp(min=1), empty_value)
        found[i if per_layer else 0] += iou
    return found if per_layer else found[0] / len(masks)


def most_similar(similarity: Tensor, number: int = 3) -> Tensor:
    """The classes whose sub-architectures are most like each one's.

    Args:
        similarity: (K, K).
        number: how many, below K.

    Returns:
        (K, number) int64 rows, best first; among equals the lower row comes first, and NaN comes last.

    Raises:
        ValueError: another shape, or there are not so many other classes.

    Source:
        official code, a stable sort.

    Example:
        >>> most_similar(torch.tensor([[1.0, 0.2, 0.2], [0.2, 1.0, 0.9], [0.2, 0.9, 1.0]]), 1).flatten()
        tensor([1, 2, 1])
    """
    classes = len(similarity)
    if similarity.shape != (classes, classes):
        raise ValueError(f"similarity must be (K, K), got {tuple(similarity.shape)}")
    if not 1 <= number < classes:
        raise ValueError(f"number={number} of other classes must be between 1 and {classes - 1}")
    others = similarity.double().nan_to_num(nan=-1.0).fill_diagonal_(-math.inf)
    return others.sort(dim=1, descending=True, stable=True).indices[:, :number]


def concept_diversity(sim: Tensor) -> float:
    """``1 - mean_{i<j} sim(i, j)``: 0 where all classes use the same channels, 1 where no two share any.

    Args:
        sim: (K, K), from ``subarchitecture_similarity``; of one layer for that layer's.

    Raises:
        ValueError: fewer than two classes.

    Source:
        ours: the first version's abstract speaks of the diversity of concepts and does not define it.

    Example:
        >>> concept_diversity(torch.tensor([[1.0, 0.25], [0.25, 1.0]]))
        0.75
    """
    if len(sim) < 2 or sim.shape != (len(sim), len(sim)):
        raise ValueError(f"sim must be (K, K) of two classes or more, got {tuple(sim.shape)}")
    i, j = torch.triu_indices(len(sim), len(sim), 1, device=sim.device)
    return 1 - float(sim[i, j].double().mean())
