"""Processes that learn different classes tell each other what has changed."""

from collections.abc import Callable, Sequence

from torch import Tensor

from lit_methods.functional.processes import gather_objects


def share_rows(tensors: Sequence[Tensor], rows: Tensor, rank: int, name: Callable[[int], str] = str) -> None:
    """Take over the rows that other processes have changed, and give them one's own; all processes have to call.

    Args:
        tensors: (K, ...) each; changed in place.
        rows: (k,) int64, rising: those that this process has changed, perhaps none.
        rank: of this process.
        name: of a row, for people.

    Raises:
        ValueError: two processes have changed the same row.

    Example:
        >>> import torch
        >>> share_rows([torch.zeros(3, 2)], torch.tensor([1]), rank=0)
    """
    found = gather_objects((rows.tolist(), [tensor.detach()[rows].cpu() for tensor in tensors]))
    changed = [row for theirs, _ in found for row in theirs]
    if len({*changed}) < len(changed):
        twice = next(row for row in changed if changed.count(row) > 1)
        raise ValueError(
            f"two processes have images of class {name(twice)} in one step; share the classes out: "
            "data.per_class_batch=16, or a sampler of your own that gives each class to one process"
        )
    for other, (theirs, values) in enumerate(found):
        if theirs and other != rank:
            for tensor, value in zip(tensors, values, strict=True):
                tensor.data[theirs] = value.to(tensor)
