"""How far two distributions of similarities lie over each other."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_methods.ddl.functional import soft_histogram

NODES = 201  # from -1 to 1


def similarity_overlap(first: Tensor, second: Tensor, gamma: float = 200.0) -> Tensor:
    """The mass that two sets of similarities have in common, from 0 (apart) to 1 (alike).

    Args:
        first: (n,) similarities from -1 to 1, at least one.
        second: (m,) others.
        gamma: of the Gaussian kernel of the histograms; 200 is a standard deviation of 0.05.

    Returns:
        0-d: the sum of the smaller of both probabilities over 201 nodes from -1 to 1.

    Source:
        ours; the histograms are those of DDL, with negative similarities, and a narrower kernel.

    Example:
        >>> round(float(similarity_overlap(torch.zeros(4), torch.zeros(2))), 3)
        1.0
        >>> round(float(similarity_overlap(torch.zeros(4), torch.ones(2))), 3)
        0.0
    """
    nodes = torch.linspace(-1, 1, NODES, dtype=torch.promote_types(first.dtype, torch.float32), device=first.device)
    return torch.minimum(soft_histogram(first, nodes, gamma), soft_histogram(second, nodes, gamma)).sum()
