"""Soft histograms of similarities: a kernel density on nodes, as probabilities, with a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_methods.functional.precision import at_least_float32

KERNELS = ("gaussian", "triangular")
_NEVER_UNDERFLOWS = 80.0  # exp(-80) is above the least float32, and cosines are at most 1 from nodes on [0, 1]


def soft_histogram(sims: Tensor, nodes: Tensor, gamma: float = 50.0, kernel: str = "gaussian") -> Tensor:
    """Probabilities at the nodes, to which every similarity gives weight by its distance.

    Args:
        sims: (n,), at least one. float64 stays float64, half precision is computed in float32.
        nodes: (R,), at least two; for the triangular kernel equally spaced and ascending.
        gamma: of the Gaussian kernel ``exp(-gamma (s - t)^2)``; 50 is a standard deviation of 0.1.
        kernel: ``"gaussian"``, or ``"triangular"``: ``max(0, 1 - |s - t| / Delta)`` with Delta = nodes[1] - nodes[0].

    Returns:
        (R,), with sum 1. Only where the triangular kernel reaches no node from any similarity, all zero.

    Raises:
        ValueError: shapes that do not fit, ``gamma`` not above 0, an unknown kernel, descending nodes for the
            triangular kernel (looked at on a CPU alone, as elsewhere that would wait for the device).

    Source:
        DDL, arXiv 2002.03662: P and Q; the triangular kernel is that of the histogram loss. Ours: above a gamma of 80
        the exponents are shifted by their greatest, which the normalisation cancels, so that a narrow kernel far from
        all nodes does not underflow. Gradients are first-order and of the similarities alone with the Gaussian kernel.

    Example:
        >>> soft_histogram(torch.tensor([0.5]), torch.tensor([0.0, 0.5, 1.0]), gamma=4.0)
        tensor([0.2119, 0.5761, 0.2119])
        >>> soft_histogram(torch.tensor([0.25, 1.0]), torch.tensor([0.0, 0.5, 1.0]), kernel="triangular")
        tensor([0.2500, 0.2500, 0.5000])
    """
    if sims.ndim != 1 or not sims.is_floating_point():
        raise ValueError(f"sims must be (n,) in floating point, got {tuple(sims.shape)} {sims.dtype}")
    if len(sims) == 0:
        raise ValueError("sims is empty, which has no distribution; give at least one similarity")
    check_nodes(nodes)
    check_gamma(gamma)
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel!r} is none of {', '.join(KERNELS)}; choose one of them")
    if kernel == "triangular" and nodes.device.type == "cpu" and not nodes[1] > nodes[0]:
        raise ValueError(
            f"nodes begin with {float(nodes[0])}, {float(nodes[1])}; the triangular kernel wants them ascending"
        )
    sims = at_least_float32(sims)[None]
    if not torch.is_autocast_enabled(sims.device.type):  # which few histograms would notice
        return histograms(sims, nodes, gamma, kernel)[0]
    with torch.autocast(sims.device.type, enabled=False):
        return histograms(sims, nodes, gamma, kernel)[0]


def histograms(
    sims: Tensor, nodes: Tensor, gamma: float = 50.0, kernel: str = "gaussian", keep: Tensor | None = None
) -> Tensor:
    """Soft histograms of several sets in one evaluation of the kernel; what ``soft_histogram`` stands on.

    Args:
        sims: of S sets, (S, n), float32 or float64.
        nodes: (R,), taken in the dtype of ``sims``.
        gamma: of the Gaussian kernel.
        kernel: ``"gaussian"`` or ``"triangular"``.
        keep: (S, n) bool, false where a set is filled up or filtered; what lies there has no effect, be it NaN.

    Returns:
        (S, R); each row has the sum 1, or is zero where nothing of the set is left. Nothing here waits for a device.

    Example:
        >>> sims, keep = torch.tensor([[0.2, 0.7], [0.2, 0.7]]), torch.tensor([[True, True], [True, False]])
        >>> histograms(sims, torch.tensor([0.2, 0.7]), gamma=1000.0, keep=keep)
        tensor([[0.5000, 0.5000],
                [1.0000, 0.0000]])
    """
    nodes = nodes.to(sims.dtype)
    if keep is not None:
        sims = torch.where(keep, sims, 0)
    if kernel == "triangular":
        weights = (1 - (sims[..., None] - nodes).abs() / (nodes[1] - nodes[0])).clamp(min=0)
        if keep is not None:
            weights = torch.where(keep[..., None], weights, 0)
        at_nodes = weights.sum(1)
    elif sims.requires_grad and torch.is_grad_enabled():
        at_nodes = _GaussianSums.apply(sims, nodes, gamma, keep)
    else:
        at_nodes = _gaussian(sims, nodes, gamma, keep).sum(1)
    mass = at_nodes.sum(1, keepdim=True)
    if kernel == "gaussian" and keep is None:  # there is always some
        return at_nodes / mass
    return at_nodes / torch.where(mass == 0, 1, mass)


def _gaussian(sims: Tensor, nodes: Tensor, gamma: float, keep: Tensor | None) -> Tensor:
    """The kernel (S, n, R), up to a factor per set."""
    weights = (sims[..., None] - nodes).square_().mul_(-gamma)
    if gamma > _NEVER_UNDERFLOWS:
        exponents = weights if keep is None else weights.masked_fill(~keep[..., None], -torch.inf)
        greatest = exponents.amax((1, 2), keepdim=True)
        weights = exponents - torch.where(greatest == -torch.inf, 0, greatest)
    weights.exp_()
    return weights if keep is None else weights.mul_(keep[..., None])


class _GaussianSums(torch.autograd.Function):
    """The kernel summed over each set, (S, R), up to a factor per set; its gradient is one product with the kernel.

    Autograd's own way writes six arrays of the size of the kernel, this one none.
    """

    @staticmethod
    def forward(ctx: Any, sims: Tensor, nodes: Tensor, gamma: float, keep: Tensor | None) -> Tensor:
        weights = _gaussian(sims, nodes, gamma, keep)
        ctx.save_for_backward(sims, nodes, weights)
        ctx.gamma = gamma
        return weights.sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        sims, nodes, weights = ctx.saved_tensors
        pulled = torch.stack([gradient, gradient * nodes], 2)  # (S, R, 2)
        level, moment = (weights @ pulled).mul_(2 * ctx.gamma).unbind(2)
        return torch.addcmul(moment, sims, level, value=-1), None, None, None


def check_nodes(nodes: Tensor) -> None:
    """Refuse what cannot be the nodes of a histogram.

    Args:
        nodes: what was given.

    Raises:
        ValueError: not (R,) floating point with R at least 2.

    Example:
        >>> check_nodes(torch.linspace(0, 1, 5))
    """
    if nodes.ndim != 1 or len(nodes) < 2 or not nodes.is_floating_point():
        raise ValueError(
            f"nodes must be (R,) in floating point with R of at least 2, got {tuple(nodes.shape)} {nodes.dtype}; "
            "torch.linspace(0, 1, 100) is one choice"
        )


def check_gamma(gamma: float) -> None:
    """Refuse a spread that is none.

    Args:
        gamma: what was given.

    Raises:
        ValueError: not above 0.

    Example:
        >>> check_gamma(50.0)
    """
    if not gamma > 0:
        raise ValueError(f"gamma={gamma} must be above 0; 50 is a standard deviation of 0.1")
