"""From fourteen inputs per cell to two per node."""

import numpy as np
import torch
from torch import Tensor

from lit_methods.bpe_mip.edges import EDGES, NODE_EDGES, NONE, Array, as_float64, as_sample

KEPT = 2  # inputs that a node has after slimming


def slim_by_probability(probabilities: Array, actions: Array, rewards: Array) -> list[int]:
    """Slim the best architecture of a REINFORCE search: the two inputs per node that the policy was surest of.

    Args:
        probabilities: (T, 28, 7), the policy after each update.
        actions: (T, 28), the architecture of each step.
        rewards: (T,), its accuracy. Step 0 cannot be the best one, as in the official code.

    Returns:
        Operations of the 28 edges, 7 = dropped. Of equal rewards the first step counts, of equal probabilities the
        lowest edge.

    Raises:
        ValueError: shapes do not fit together, or there are fewer than two steps.

    Source:
        official code; the paper's own description was not available.

    Example:
        >>> sure = torch.full((2, 28, 7), 1 / 7)
        >>> slim_by_probability(sure, torch.zeros(2, 28, dtype=torch.int64), [0.1, 0.2])[:9]
        [0, 0, 0, 0, 7, 0, 0, 7, 7]
    """
    reward = as_float64(rewards, (None,), "rewards")
    if len(reward) < 2:
        raise ValueError(f"rewards has {len(reward)} step(s); slimming ignores the first one, so give at least 2")
    probability = as_float64(probabilities, (len(reward), len(EDGES), NONE), "probabilities")
    if len(actions) != len(reward):
        raise ValueError(f"actions has {len(actions)} steps and rewards {len(reward)}; give one each per step")
    best = 1 + int(reward[1:].argmax())
    sample = as_sample(actions[best], NONE, "actions")
    score = torch.from_numpy(probability[best].max(1))
    return slim_with_masks(sample, _keep(score[None]))[0].tolist()


def slim_masks(generator: torch.Generator, n: int = 10) -> Tensor:
    """Random choices of two inputs per node, each pair as likely as the others.

    Args:
        generator: where the numbers come from.
        n: how many masks.

    Returns:
        (n, 28) int64, 1 = keep.

    Raises:
        ValueError: ``n`` is below 1.

    Source:
        official code of the evolution, which draws from Python's own generator.

    Example:
        >>> slim_masks(torch.Generator().manual_seed(0), n=3).sum(1)
        tensor([16, 16, 16])
    """
    if n < 1:
        raise ValueError(f"n={n} masks; give at least 1")
    return _keep(torch.rand(n, len(EDGES), dtype=torch.float64, generator=generator, device=generator.device).cpu())


def slim_with_masks(sample: Array, masks: Array) -> Tensor:
    """An architecture under each mask.

    Args:
        sample: (28,) operations 0..7.
        masks: (n, 28), 1 or True = keep the edge, 0 = drop it.

    Returns:
        (n, 28) int64, 7 where the mask is 0.

    Raises:
        ValueError: a shape or value is wrong.

    Example:
        >>> slim_with_masks([3] * 28, [[1, 0] * 14])[0, :4]
        tensor([3, 7, 3, 7])
    """
    keep = as_float64(masks, (None, len(EDGES)), "masks")
    if not np.isin(keep, (0, 1)).all():
        raise ValueError("masks must be 0 (drop the edge) or 1 (keep it)")
    return torch.where(torch.from_numpy(keep) == 1, as_sample(sample), NONE)


def _keep(score: Tensor) -> Tensor:
    """(n, 28) scores to masks of the two largest per node; of equal ones the lowest edge."""
    mask = torch.zeros(score.shape, dtype=torch.int64)
    for edges in NODE_EDGES:
        first = score[:, edges].argsort(dim=1, descending=True, stable=True)[:, :KEPT]
        mask[:, edges] = mask[:, edges].scatter(1, first, 1)
    return mask
