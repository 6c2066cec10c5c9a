"""What the processes of a run tell each other; a run of one process is a company of one."""

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def in_company() -> bool:
    """Whether this process is one of a group of ``torch.distributed``, which may be a group of one."""
    return dist.is_available() and dist.is_initialized()


def gather_objects(mine: T) -> list[T]:
    """The plain objects of all processes, in the order of their ranks; all of them have to call.

    Args:
        mine: this process's; anything that can be pickled.

    Example:
        >>> gather_objects({"rows": [3]})
        [{'rows': [3]}]
    """
    if not in_company():
        return [mine]
    found: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found  # type: ignore[return-value]


def gather_rows(mine: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks; gradients flow back to the process they came from.

    A loss over all of these rows, whose mean is taken over each process's own anchors, has under DDP, which averages
    gradients, the gradient of one process with all of the rows.

    Args:
        mine: ``(N, ...)``, of one shape on all processes, which all have to call.

    Returns:
        ``(N * processes, ...)``; those of rank r begin at row ``r * N``.

    Example:
        >>> gather_rows(torch.tensor([[1.0], [2.0]])).tolist()
        [[1.0], [2.0]]
    """
    if not in_company() or dist.get_world_size() == 1:
        return mine
    if not mine.requires_grad:
        found = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(found, mine.contiguous())
        return torch.cat(found)
    from torch.distributed.nn.functional import all_gather  # where torch has no distributed, it cannot be imported

    return torch.cat(all_gather(mine.contiguous()))


def average(tensors: Sequence[Tensor], share: float = 1.0) -> list[Tensor]:
    """Means over the processes, all tensors in one exchange; every process gets the same bits.

    For steps that are made without a loop of backward passes, such as those of an architecture search, whose gradients
    DDP does not see.

    Args:
        tensors: of the same shapes on all processes, which all have to call.
        share: this process's weight; 1 in a plain mean.

    Example:
        >>> average([torch.ones(2)])
        [tensor([1., 1.])]
    """
    if not tensors or not in_company() or dist.get_world_size() == 1:
        return list(tensors)
    whole = torch.cat([tensor.flatten() for tensor in tensors]) * share
    dist.all_reduce(whole)
    parts = (whole / dist.get_world_size()).split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
