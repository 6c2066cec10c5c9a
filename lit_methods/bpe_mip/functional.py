"""BPE/MIP's arithmetic: rank agreement, schedules; importances and the searched gradient can be imported from here too.

Rethinking Performance Estimation in Neural Architecture Search, arXiv 2005.09917.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lit_methods.bpe_mip.architecture_gradient import architecture_gradient as architecture_gradient
from lit_methods.bpe_mip.importance import (
    eliminate as eliminate,
    fanova_importance as fanova_importance,
    fanova_tree as fanova_tree,
)
from lit_methods.functional.cutout import cutout as cutout


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Rank agreement of two lists of numbers: Pearson's correlation of their ranks, ties at their average rank.

    Args:
        a: (N,) finite numbers, an array, a tensor on the CPU or a list.
        b: (N,) the same.

    Returns:
        A number in [-1, 1]. NaN where N < 2 or one of the two is constant: there the correlation is undefined.

    Raises:
        ValueError: different lengths, more than one dimension, or numbers that are not finite.

    Source:
        BPE/MIP specification, section 2.1. The shortcut ``1 - 6 sum d^2 / (N (N^2 - 1))`` is wrong with ties.

    Example:
        >>> spearman([10, 20, 30, 40], [1, 3, 2, 4]), spearman([1, 1], [1, 2])
        (0.8, nan)
    """
    from scipy.stats import rankdata

    x, y = _pair(a, b, ("a", "b"))
    if len(x) < 2 or x.min() == x.max() or y.min() == y.max():
        return math.nan
    p, q = (2 * rankdata(v) - (len(v) + 1) for v in (x, y))  # whole numbers: the sums below are exact
    return float(np.clip((p @ q) / math.sqrt((p @ p) * (q @ q)), -1, 1))


def top_mean(scores: ArrayLike, truth: ArrayLike, k: int = 10) -> float:
    """Mean truth of the ``k`` architectures that the scores rank best.

    Args:
        scores: (N,) what the recipe says.
        truth: (N,) what full training says; any unit.
        k: how many, 1 to N.

    Returns:
        In the unit of ``truth``. Among equal scores the order is not known: each stands for their mean.

    Raises:
        ValueError: as in :func:`spearman`; ``k`` out of range.

    Source:
        the released workbook; BPE/MIP specification, section 10. The average over ties is ours.

    Example:
        >>> top_mean([3, 2, 2, 1], [9.0, 8.0, 6.0, 1.0], k=2)
        8.0
    """
    ranked = _by_score(scores, truth)
    _check_count("k", k, len(ranked))
    return float(ranked[:k].mean())


def expected_pick(scores: ArrayLike, truth: ArrayLike, n: int = 10) -> float:
    """Expected truth of the recipe's best among ``n`` random architectures of the ``N``, drawn without replacement.

    ``sum_r truth_r C(N - 1 - r, n - 1) / C(N, n)`` over the ranks r from 0, the best by the scores. It says what a
    correlation cannot: how good the pick is.

    Args:
        scores: (N,) what the recipe says.
        truth: (N,) what full training says; any unit.
        n: how many are compared, 1 to N.

    Returns:
        In the unit of ``truth``. Among equal scores each one is picked equally often.

    Raises:
        ValueError: as in :func:`spearman`; ``n`` out of range.

    Source:
        the released workbook; BPE/MIP specification, section 10. Exact binomials; the average over ties is ours.

    Example:
        >>> expected_pick([3, 2, 1], [9.0, 6.0, 3.0], n=2)
        8.0
    """
    ranked = _by_score(scores, truth)
    total = len(ranked)
    _check_count("n", n, total)
    draws = math.comb(total, n)
    weights = np.array([math.comb(total - 1 - rank, n - 1) / draws for rank in range(total)])
    return float(ranked @ weights)


def cosine_lr(epoch: int, epochs: int, lr: float, eta_min: float = 0.0, legacy: bool = False) -> float:
    """Learning rate of an epoch, a half cosine from ``lr`` down to ``eta_min``.

    Args:
        epoch: counted from 0; ``epochs`` itself, after the last one, gives ``eta_min``.
        epochs: length of the training.
        lr: rate of epoch 0.
        eta_min: what the cosine goes down to.
        legacy: the released code, which steps before each epoch, so that the last one trains at ``eta_min``.

    Returns:
        ``eta_min + (lr - eta_min) (1 + cos(pi e / epochs)) / 2`` with e = ``epoch``, or one more with ``legacy``.

    Raises:
        ValueError: ``epochs`` below 1, ``epoch`` below 0 or above ``epochs``.

    Source:
        BPE/MIP specification, sections 2.6 and 4. The standard curve is the default here.

    Example:
        >>> cosine_lr(0, 10, 0.03), cosine_lr(5, 10, 0.03), cosine_lr(9, 10, 0.03, legacy=True)
        (0.03, 0.015, 0.0)
    """
    _check_epoch(epoch, epochs)
    at = min(epoch + legacy, epochs)
    return eta_min + (lr - eta_min) * (1 + math.cos(math.pi * at / epochs)) / 2


def drop_path_at(epoch: int, epochs: int, p_max: float = 0.2) -> float:
    """Drop path probability of an epoch: it rises in a line from 0.

    Args:
        epoch: counted from 0.
        epochs: length of the training.
        p_max: what it rises to, in [0, 1); the last epoch is one step below.

    Returns:
        ``p_max epoch / epochs``.

    Raises:
        ValueError: ``epochs`` below 1, ``epoch`` below 0 or above ``epochs``, ``p_max`` outside [0, 1).

    Source:
        BPE/MIP specification, section 3; official code.

    Example:
        >>> drop_path_at(0, 10), drop_path_at(5, 10)
        (0.0, 0.1)
    """
    _check_epoch(epoch, epochs)
    if not 0 <= p_max < 1:
        raise ValueError(f"p_max={p_max} must lie in [0, 1); 0.2 is usual")
    return p_max * epoch / epochs


def _pair(a: ArrayLike, b: ArrayLike, names: tuple[str, str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"{names[0]} and {names[1]} must be lists of the same length, got {x.shape} and {y.shape}")
    for name, values in zip(names, (x, y), strict=True):
        if not np.isfinite(values).all():
            at = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ValueError(f"{name}[{at}] is {values[at]}; leave out what was not measured, in both lists")
    return x, y


def _by_score(scores: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Truth in falling order of the scores; each of several equal scores stands for their mean."""
    x, y = _pair(scores, truth, ("scores", "truth"))
    if not len(x):
        raise ValueError("scores and truth are empty")
    _, group = np.unique(-x, return_inverse=True)
    count = np.bincount(group)
    return np.repeat(np.bincount(group, weights=y) / count, count)


def _check_count(name: str, value: int, total: int) -> None:
    if not 1 <= value <= total:
        raise ValueError(f"{name}={value} must lie between 1 and {total}, the number of architectures")


def _check_epoch(epoch: int, epochs: int) -> None:
    if epochs < 1 or not 0 <= epoch <= epochs:
        raise ValueError(f"epoch={epoch} of epochs={epochs}: epochs must be at least 1, and epoch lie in 0 to epochs")
