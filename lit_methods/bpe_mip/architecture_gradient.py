"""DARTS' gradient of the architecture weights, first and second order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.optim import Optimizer

if TYPE_CHECKING:
    from lit_methods.bpe_mip.supernet import DartsSupernet


def architecture_gradient(
    net: DartsSupernet,
    train_batch: tuple[Tensor, Tensor],
    val_batch: tuple[Tensor, Tensor],
    *,
    optimizer: Optimizer,
    xi: float,
    unrolled: bool = True,
    reduce: Callable[[list[Tensor]], list[Tensor]] | None = None,
) -> list[Tensor]:
    """Gradient of the validation loss by the architecture weights, behind a trial step of the other weights.

    With the weights w, the trial step is w' = w - xi (momentum * buffer + grad L_train(w) + weight decay * w). As w'
    depends on alpha, the gradient is grad_alpha L_val(w') - xi H d, where d = grad_w' L_val(w') and H, the mixed second
    derivative of L_train, times d is a difference of two gradients at w + eps d and w - eps d, eps = 0.01 / |d|.

    The network and the optimizer are only read: weights, buffers such as running statistics, ``.grad`` and the
    optimizer's state are as before, whatever happens in between. Passes run in the mode that the network is in.

    Args:
        net: with ``arch_parameters()`` and ``weight_parameters()``, whose pass gives logits.
        train_batch: images (N, 3, H, W) and labels (N,) of the trial step; not used when ``unrolled`` is off.
        val_batch: images and labels of the validation loss.
        optimizer: SGD of the weights; its groups' momentum and weight decay and its momentum buffers enter w'. A buffer
            that is not there yet counts as 0.
        xi: size of the trial step, at least 0; DARTS takes the weights' current learning rate.
        unrolled: without it, the gradient is grad_alpha L_val(w), first order.
        reduce: ours; gets every list of gradients as soon as it is computed and gives the list to go on with, the
            average over processes, say.

    Returns:
        Gradients of the mean cross-entropy, in the order of ``net.arch_parameters()``.

    Raises:
        ValueError: ``xi`` is negative, or ``optimizer`` lacks a weight.

    Source:
        DARTS, arXiv 1806.09055, equations 7 and 8, with the momentum of the authors' code. The official code of BPE
        multiplies the difference by 2 eps in place of dividing, which makes the second term vanish.

    Example:
        >>> from lit_methods.bpe_mip.supernet import DartsSupernet
        >>> net = DartsSupernet(channels=2, layers=3)
        >>> sgd = torch.optim.SGD(net.weight_parameters(), lr=0.03, momentum=0.9, weight_decay=3e-4)
        >>> batch = torch.rand(2, 3, 8, 8), torch.tensor([3, 8])
        >>> [tuple(g.shape) for g in architecture_gradient(net, batch, batch, optimizer=sgd, xi=0.03)[:2]]
        [(2, 8), (3, 8)]
    """
    if not xi >= 0:
        raise ValueError(f"xi={xi} must be at least 0; DARTS takes the current learning rate of the weights")
    alphas = list(net.arch_parameters())
    passes = _Passes(net, reduce)
    if not unrolled:
        return passes.gradients({}, val_batch, alphas)
    trained = {id(weight) for weight in net.weight_parameters() if weight.requires_grad}
    weights = {name: weight for name, weight in net.named_parameters() if id(weight) in trained}
    if not trained <= {id(weight) for group in optimizer.param_groups for weight in group["params"]}:
        raise ValueError("optimizer lacks some of net.weight_parameters(); give the one that trains them all")

    grads = passes.gradients({}, train_batch, list(weights.values()))
    trial = dict(zip(weights, _trial_step(list(weights.values()), grads, optimizer, xi), strict=True))
    by_all = passes.gradients(trial, val_batch, [*alphas, *trial.values()])
    first, direction = by_all[: len(alphas)], by_all[len(alphas) :]

    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(direction)))
    eps = 0.01 / norm.clamp_min(torch.finfo(norm.dtype).tiny)  # no branch, for which a GPU would have to wait
    shift = torch._foreach_mul(direction, eps)
    here = [weight.detach() for weight in weights.values()]
    above, below = (
        passes.gradients(dict(zip(weights, moved, strict=True)), train_batch, alphas)
        for moved in (torch._foreach_add(here, shift), torch._foreach_sub(here, shift))
    )
    return [g - xi * (up - down) * (norm / 0.02) for g, up, down in zip(first, above, below, strict=True)]


class _Passes:
    """Passes that leave the network alone: its buffers, and weights where others are given, are swapped meanwhile."""

    def __init__(self, net: DartsSupernet, reduce: Callable[[list[Tensor]], list[Tensor]] | None) -> None:
        self.net, self.reduce = net, reduce
        self.buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}

    def gradients(
        self, weights: dict[str, Tensor], batch: tuple[Tensor, Tensor], inputs: Sequence[Tensor]
    ) -> list[Tensor]:
        images, labels = batch
        loss = F.cross_entropy(functional_call(self.net, self.buffers | weights, (images,)), labels)
        grads = list(torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True))
        return self.reduce(grads) if self.reduce else grads


def _trial_step(weights: list[Tensor], grads: list[Tensor], optimizer: Optimizer, xi: float) -> list[Tensor]:
    """w', new leaves that take gradients; lists at once, as there are about a thousand small ones."""
    groups = {id(weight): group for group in optimizer.param_groups for weight in group["params"]}
    here = [weight.detach() for weight in weights]
    step = torch._foreach_add(
        torch._foreach_mul(here, [groups[id(weight)].get("weight_decay", 0.0) for weight in weights]), grads
    )
    buffers = [optimizer.state[w].get("momentum_buffer") if w in optimizer.state else None for w in weights]
    for i, buffer in enumerate(buffers):
        if buffer is not None:
            step[i].add_(buffer, alpha=groups[id(weights[i])].get("momentum", 0.0))
    return [moved.requires_grad_() for moved in torch._foreach_sub(here, torch._foreach_mul(step, xi))]
