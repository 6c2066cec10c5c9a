"""Learning rates over a run: steps or a cosine, both after a linear warm-up."""

import math
from collections.abc import Callable


def lr_factor(
    *, schedule: str, epochs: int, milestones: list[int], gamma: float, warmup: int, steps_per_epoch: int = 1
) -> Callable[[int], float]:
    """Factor on the learning rate as a function of the steps since the schedule began.

    Args:
        schedule: ``"multistep"`` or ``"cosine"``.
        epochs: length of the schedule.
        milestones: epochs at which ``"multistep"`` multiplies by ``gamma``.
        gamma: factor at a milestone.
        warmup: epochs of linear rise; the factor of step k of n is (k + 1) / n there.
        steps_per_epoch: optimiser steps per epoch; 1 where the scheduler is stepped per epoch.

    Returns:
        Factor at a step, counted from 0; behind its last epoch the cosine, where it is longer than the warm-up,
        stays 0.

    Source:
        HRankPlus, ImageNet: linear warm-up over the first 5 epochs per step, then
        ``0.5 (1 + cos(pi (e - 5) / (E - 5)))`` per epoch e, or a tenth per milestone.

    Example:
        >>> f = lr_factor(schedule="multistep", epochs=30, milestones=[5, 10], gamma=0.1, warmup=0)
        >>> [round(f(step), 3) for step in (0, 4, 5, 10)]
        [1.0, 1.0, 0.1, 0.01]
        >>> f = lr_factor(schedule="cosine", epochs=9, milestones=[], gamma=0.1, warmup=5, steps_per_epoch=2)
        >>> [round(f(step), 3) for step in (0, 4, 10, 14, 15)]
        [0.1, 0.5, 1.0, 0.5, 0.5]
    """

    def factor(step: int) -> float:
        epoch = step // steps_per_epoch
        if epoch < warmup:
            return (step + 1) / (warmup * steps_per_epoch)
        if schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (min(epoch, epochs) - warmup) / max(1, epochs - warmup)))
        return gamma ** sum(epoch >= milestone for milestone in milestones)

    return factor
