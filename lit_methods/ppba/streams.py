"""The random numbers of an attack: a function of (seed, image id, iteration), so they do not depend on the batch."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lit_methods.functional.draws import Purpose, hash64, uniforms


def uniform_draws(seed: int, ids: Tensor, step: int, shape: Sequence[int]) -> Tensor:
    """Uniform numbers in [0, 1) for one iteration.

    Args:
        seed: of the attack.
        ids: ``(k,)`` int64 ids of the images.
        step: number of the iteration.
        shape: per image.

    Returns:
        ``(k, *shape)`` float64 on the device of ``ids``.

    Example:
        >>> both = uniform_draws(0, torch.tensor([3, 8]), step=1, shape=(2,))
        >>> torch.equal(both[1:], uniform_draws(0, torch.tensor([8]), step=1, shape=(2,)))
        True
    """
    numbers = uniforms(math.prod(shape), Purpose.ATTACK, seed, ids.cpu().numpy(), step)
    return torch.from_numpy(numbers).view(-1, *shape).to(ids.device)


def normal_draws(seed: int, ids: Tensor, step: int, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers for one iteration; arguments and result as in :func:`uniform_draws`.

    Example:
        >>> normal_draws(0, torch.tensor([3, 8]), step=1, shape=(2, 4)).shape
        torch.Size([2, 2, 4])
    """
    keys = hash64(Purpose.ATTACK, seed, ids.cpu().numpy(), step)
    # Philox is made for keys: another key is another stream. Some attacks want 150,000 numbers at a time: ziggurat
    streams = (np.random.Generator(np.random.Philox(key=int(key))) for key in keys)
    numbers = np.array([stream.standard_normal(tuple(shape)) for stream in streams])
    return torch.from_numpy(numbers).view(-1, *shape).to(ids.device)
