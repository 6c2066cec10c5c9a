"""The arithmetic of DDL: similarities and their histograms, each in a small file, and the loss that compares them.

Nothing here waits for the device, and NaN in embeddings goes on into the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_methods.ddl.histogram import check_gamma, check_nodes, histograms, soft_histogram
from lit_methods.ddl.similarity import (
    check_labels,
    check_mode,
    hardest_negative_similarity,
    hardest_negatives,
    pair_similarity,
)

__all__ = ["DDLOutput", "ddl_loss", "hardest_negative_similarity", "pair_similarity", "soft_histogram"]

NODES = 1000  # of the official code: 0, 0.001, ..., 0.999


class DDLOutput(NamedTuple):
    """What ``ddl_loss`` finds for a teacher and K students; everything has its gradient.

    ``loss`` is 0-d and weighted; ``pos_kl`` and ``neg_kl``, (K,), and ``order``, (K+1, K+1), are not. ``order[i, j]``
    is the mean of the negatives of branch i minus the mean of the positives of branch j, 0 where one of them is empty.
    ``pos_sims`` and ``neg_sims`` hold K+1 vectors: positives after the filter, and hardest negatives.
    """

    loss: Tensor
    pos_kl: Tensor
    neg_kl: Tensor
    order: Tensor
    pos_sims: tuple[Tensor, ...]
    neg_sims: tuple[Tensor, ...]


def ddl_loss(
    neg: Sequence[Tensor],
    pos: Sequence[tuple[Tensor, Tensor]],
    pos_kl_weight: float = 0.1,
    neg_kl_weight: float = 0.02,
    order_weight: float = 0.5,
    nodes: Tensor | None = None,
    gamma: float = 50.0,
    eps: float = 1e-9,
    negatives: str = "hardest",
    positive_threshold: float | None = None,
    detach_teacher: bool = False,
    neg_labels: Sequence[Tensor] | None = None,
) -> DDLOutput:
    """Pull the similarity distributions of hard branches to those of the easy one, and keep their order.

    Args:
        neg: embeddings of different identities, one tensor (n, d) per branch, the teacher's first; n at least 2.
        pos: embeddings of positive pairs, two tensors (p, d) per branch; p may be 0. Sizes may differ by branch.
        pos_kl_weight: lambda 1, of KL(P+ || Q+), summed over students.
        neg_kl_weight: lambda 2, of KL(P- || Q-).
        order_weight: lambda 3, of the sum of all (K+1)^2 differences of means; it falls without bound, no hinge.
        nodes: (R,) of the histograms; ``None`` are the 1000 of the official code, in the dtype of the features.
        gamma: of the Gaussian kernel.
        eps: added to all probabilities.
        negatives: ``"hardest"`` or ``"official"``, see ``hardest_negative_similarity``.
        positive_threshold: positives up to here are left out; the official code has 0, the paper none.
        detach_teacher: the KL terms give no gradient to the teacher's branch; the order does.
        neg_labels: identities of the rows of ``neg``, one tensor (n,) per branch; ``None``: all of a branch differ.

    Returns:
        ``DDLOutput``. float64 stays float64, half precision is computed in float32, also under autocast. A branch
        whose positives are empty has no positive KL and no order terms of positives; without positives of the teacher
        there is no positive KL at all. The same goes for negatives where ``neg_labels`` show a single identity.

    Raises:
        ValueError: no student, lists of different lengths, shapes that do not fit, fewer than two rows of negatives,
            a weight below 0, ``eps`` or ``gamma`` not above 0, an unknown way to choose negatives.

    Source:
        DDL, arXiv 2002.03662: L_KL and L_order; ``torchkit/loss/ddl.py``. The defaults are those of the paper with the
        nodes and weights of the code; ``negatives="official"`` and ``positive_threshold=0.0`` give the code's values.
        Ours: no NaN for an empty set of positives, all sets in one evaluation of the kernel, ``neg_labels``.

    Example:
        >>> easy, hard = torch.eye(3), torch.eye(3) + 0.5
        >>> out = ddl_loss([easy, hard], [(easy, easy), (easy, hard)])
        >>> out.order
        tensor([[-1.0000, -0.9045],
                [-0.3636, -0.2682]])
        >>> out.pos_kl.shape, out.neg_kl.shape
        (torch.Size([1]), torch.Size([1]))
    """
    check_options(pos_kl_weight, neg_kl_weight, order_weight, nodes, gamma, eps, negatives)
    _check_branches(neg, pos, neg_labels)
    labels = [None] * len(neg) if neg_labels is None else list(neg_labels)
    with torch.autocast(neg[0].device.type, enabled=False):
        found = [hardest_negatives(x, of, negatives) for x, of in zip(neg, labels, strict=True)]
        neg_sims, pos_sims = [sims for sims, _ in found], [pair_similarity(a, b) for a, b in pos]
        # not "> threshold": NaN has to stay
        limit = positive_threshold
        kept = [torch.ones_like(s, dtype=torch.bool) if limit is None else ~(s <= limit) for s in pos_sims]
        sims = _stack([*neg_sims, *pos_sims])
        keep = _stack([*(has_negative for _, has_negative in found), *kept])
        count = keep.sum(1)
        present = (count > 0).view(2, -1)
        neg_mean, pos_mean = (torch.where(keep, sims, 0).sum(1) / count.clamp(min=1)).view(2, -1)
        order = torch.where(present[0][:, None] & present[1], neg_mean[:, None] - pos_mean, 0)
        if nodes is None:
            nodes = torch.arange(NODES, dtype=sims.dtype, device=sims.device) / NODES
        filled = limit is None and neg_labels is None and len({len(s) for s in (*neg_sims, *pos_sims)}) == 1
        parts = histograms(sims, nodes, gamma, keep=None if filled else keep).view(2, len(neg), -1) + eps
        teacher, students = parts[:, :1], parts[:, 1:]
        if detach_teacher:
            teacher = teacher.detach()
        kl = (teacher * (teacher.log() - students.log())).sum(2)
        neg_kl, pos_kl = torch.where(present[:, :1] & present[:, 1:], kl, 0)
        loss = pos_kl_weight * pos_kl.sum() + neg_kl_weight * neg_kl.sum() + order_weight * order.sum()
        if limit is not None:  # the one line that waits for the device: how many are left
            pos_sims = [s[k] for s, k in zip(pos_sims, kept, strict=True)]
    return DDLOutput(loss, pos_kl, neg_kl, order, tuple(pos_sims), tuple(neg_sims))


def check_options(
    pos_kl_weight: float,
    neg_kl_weight: float,
    order_weight: float,
    nodes: Tensor | None,
    gamma: float,
    eps: float,
    negatives: str,
) -> None:
    """Refuse options that ``ddl_loss`` cannot work with.

    Args:
        pos_kl_weight: as in ``ddl_loss``, like the others.
        neg_kl_weight: of the negative KL.
        order_weight: of the order.
        nodes: of the histograms, or ``None``.
        gamma: of the kernel.
        eps: added to all probabilities.
        negatives: how they are chosen.

    Raises:
        ValueError: an option outside its range.

    Example:
        >>> check_options(0.1, 0.02, 0.5, None, 50.0, 1e-9, "hardest")
    """
    weights = {"pos_kl_weight": pos_kl_weight, "neg_kl_weight": neg_kl_weight, "order_weight": order_weight}
    for name, value in weights.items():
        if not value >= 0:
            raise ValueError(f"{name}={value} must not be negative; 0 leaves the term out")
    if not eps > 0:
        raise ValueError(f"eps={eps} must be above 0, as the logarithm of a probability of 0 is infinite; take 1e-9")
    if nodes is not None:
        check_nodes(nodes)
    check_gamma(gamma)
    check_mode(negatives, "negatives")


def _stack(vectors: Sequence[Tensor]) -> Tensor:
    """Vectors of several lengths as rows, filled up with zeros or false."""
    longest = max(len(v) for v in vectors)
    return torch.stack([v if len(v) == longest else F.pad(v, (0, longest - len(v))) for v in vectors])


def _check_branches(
    neg: Sequence[Tensor], pos: Sequence[tuple[Tensor, Tensor]], neg_labels: Sequence[Tensor] | None
) -> None:
    if len(neg) < 2:
        raise ValueError(f"neg has {len(neg)} branches; give the teacher's first and at least one student's")
    if len(pos) != len(neg):
        raise ValueError(f"pos has {len(pos)} branches, neg {len(neg)}; give both for every branch")
    if neg_labels is not None and len(neg_labels) != len(neg):
        raise ValueError(f"neg_labels has {len(neg_labels)} branches, neg {len(neg)}; give one tensor per branch")
    for k, x in enumerate(neg):
        if x.ndim != 2 or not x.is_floating_point():
            raise ValueError(f"neg[{k}] must be embeddings (n, d) in floating point, got {tuple(x.shape)} {x.dtype}")
        if len(x) < 2:
            raise ValueError(f"neg[{k}] has {len(x)} rows, so no negatives; give at least two, of different identities")
        if neg_labels is not None:
            check_labels(neg_labels[k], x, f"neg_labels[{k}]", f"neg[{k}]")
    for k, pair in enumerate(pos):
        if len(pair) != 2 or pair[0].shape != pair[1].shape or pair[0].ndim != 2:
            raise ValueError(f"pos[{k}] must be two tensors of one shape (p, d), got {[tuple(x.shape) for x in pair]}")
