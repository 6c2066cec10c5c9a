"""Cosine similarities of embeddings: of positive pairs, and of each sample to its hardest negative.

Embeddings come as the network gives them. float64 stays float64, half precision is computed in float32, outside of
autocast. A row of norm zero has similarity 0 to all others and gets no gradient; NaN goes on into the similarities.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_methods.functional.precision import at_least_float32

NEGATIVES = ("hardest", "official")
_ZERO = 1e-12  # norms up to here are taken for zero, as torch.nn.functional.normalize does


def pair_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of equal rows.

    Args:
        a: first embeddings of the pairs, (n, d), of any norm.
        b: second ones, (n, d).

    Returns:
        (n,), in [-1, 1] up to rounding.

    Raises:
        ValueError: not (n, d) floating point, or shapes that differ.

    Source:
        DDL, arXiv 2002.03662: s+.

    Example:
        >>> pair_similarity(torch.tensor([[2.0, 0.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([1.0000, 0.8000])
    """
    check_embeddings(a, "a")
    check_embeddings(b, "b")
    if a.shape != b.shape:
        raise ValueError(
            f"a has shape {tuple(a.shape)}, b {tuple(b.shape)}; row i of both is pair i, so make them equal"
        )
    with torch.autocast(a.device.type, enabled=False):
        return (unit_norm(a) * unit_norm(b)).sum(1)


def hardest_negative_similarity(x: Tensor, labels: Tensor | None = None, mode: str = "hardest") -> Tensor:
    """Cosine similarity of each row to the most similar row of another identity.

    Args:
        x: embeddings, (n, d), n at least 2, of any norm.
        labels: identities, (n,) whole numbers: rows of the same one are no negatives; ``None``: all differ.
        mode: ``"hardest"`` looks at all other rows. ``"official"`` looks at later rows alone and takes 0 where
            the best is negative or none is left, as the official code does; such zeros have no gradient.

    Returns:
        (n,), in [-1, 1] up to rounding. 0 without gradient where all rows have one identity; ``ddl_loss`` leaves such
        a branch out.

    Raises:
        ValueError: not (n, d) floating point, fewer than two rows, labels of another shape or type, an unknown mode.

    Source:
        DDL, arXiv 2002.03662: s-; ``"official"``: ``torchkit/loss/ddl.py``. Ours: the search has no graph, only the
        similarities that were found do.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, -1.0]])
        >>> hardest_negative_similarity(x)
        tensor([0.6000, 0.6000, 0.0000])
        >>> hardest_negative_similarity(x, labels=torch.tensor([7, 7, 8]))
        tensor([ 0.0000, -0.8000,  0.0000])
        >>> hardest_negative_similarity(x, mode="official")
        tensor([0.6000, 0.0000, 0.0000])
    """
    return hardest_negatives(x, labels, mode)[0]


def hardest_negatives(x: Tensor, labels: Tensor | None = None, mode: str = "hardest") -> tuple[Tensor, Tensor]:
    """What ``hardest_negative_similarity`` gives, and where it counts.

    Args:
        x: (n, d).
        labels: (n,) or ``None``.
        mode: ``"hardest"`` or ``"official"``.

    Returns:
        The similarities, (n,), and a mask, (n,) bool: false where no row of another identity is left. In mode
        ``"official"``, whose zeros do count, it is true everywhere.

    Raises:
        ValueError: as ``hardest_negative_similarity``.

    Example:
        >>> hardest_negatives(torch.eye(2), torch.tensor([5, 5]))
        (tensor([0., 0.]), tensor([False, False]))
    """
    check_embeddings(x, "x")
    check_mode(mode, "mode")
    if len(x) < 2:
        raise ValueError(f"x has {len(x)} row, which has no negative; give at least two, of different identities")
    with torch.autocast(x.device.type, enabled=False):
        unit = unit_norm(x)
        with torch.no_grad():
            if labels is None:
                same = torch.eye(len(x), dtype=torch.bool, device=x.device)
            else:
                check_labels(labels, x, "labels", "x")
                same = labels[:, None] == labels
            if mode == "official":
                same = same | ~torch.ones_like(same).triu(1)
            best, where = (unit @ unit.t()).masked_fill(same, -torch.inf).max(1)
            found = best != -torch.inf
        sims = torch.where(found, (unit * unit[where]).sum(1), 0)
        if mode == "official":
            return torch.where(sims <= 0, 0, sims), torch.ones_like(found)  # "<=" lets NaN through
        return sims, found


def unit_norm(x: Tensor, dim: int = 1) -> Tensor:
    """The same vectors with norm 1; those of norm zero stay zero and get no gradient.

    Args:
        x: floating point; half precision comes out as float32.
        dim: along which the vectors lie.

    Source:
        ``torch.nn.functional.normalize``, whose gradient at zero is 1e12 times the incoming one.

    Example:
        >>> unit_norm(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    x = at_least_float32(x)
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / norm.clamp(min=_ZERO) * (norm > _ZERO)


def check_mode(mode: str, name: str) -> None:
    """Refuse an unknown way to choose negatives.

    Args:
        mode: what was given.
        name: of the argument, for the message.

    Raises:
        ValueError: not one of ``NEGATIVES``.

    Example:
        >>> check_mode("hardest", "negatives")
    """
    if mode not in NEGATIVES:
        raise ValueError(f"{name}={mode!r} is none of {', '.join(NEGATIVES)}; choose one of them")


def check_embeddings(x: Tensor, name: str) -> None:
    """Refuse what are no embeddings.

    Args:
        x: what was given.
        name: of the argument, for the message.

    Raises:
        ValueError: not (n, d) floating point.

    Example:
        >>> check_embeddings(torch.zeros(3, 2), "x")
    """
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"{name} must be embeddings (n, d) in floating point, got {tuple(x.shape)} {x.dtype}")


def check_labels(labels: Tensor, x: Tensor, name: str, x_name: str) -> None:
    """Refuse labels that do not belong to these embeddings.

    Args:
        labels: what was given.
        x: the embeddings, (n, d).
        name: of the labels, for the message.
        x_name: of the embeddings.

    Raises:
        ValueError: not (n,), or no whole numbers.

    Example:
        >>> check_labels(torch.tensor([3, 4]), torch.zeros(2, 5), "labels", "x")
    """
    if labels.shape != x.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"{name} must be ({len(x)},) whole numbers, one per row of {x_name}, got {tuple(labels.shape)} "
            f"{labels.dtype}"
        )
