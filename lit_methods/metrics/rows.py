"""Metrics that keep one row per sample until they compute."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from lit_methods.metrics.attack import ExactMetric

DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)  # of features; their places here travel between processes
NO_INDEX = torch.iinfo(torch.int64).min  # in a column of indices: none was given


class RowMetric(ExactMetric):
    """Base of metrics whose states are columns of a table with one row per sample, gathered over processes.

    A process that has seen nothing takes part with empty columns. Where several processes have rows, those of the first
    come first, then those of the second, and so on.

    Args:
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: from synchronising: features of several sizes or types.
    """

    columns: ClassVar[Mapping[str, torch.dtype | None]] = {}  # None: (N, D) features of any precision, at most one such

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in self.columns:
            self.add_state(name, [], dist_reduce_fx="cat")

    def keep(self, *parts: Tensor) -> None:
        """Add rows, possibly none, given by column; they go to the device of the first column.

        Args:
            parts: (B, ...) each, in the order of ``columns``.
        """
        if len(parts[0]):
            place = torch.device("cpu") if parts[0].device.type == "mps" else parts[0].device  # which has no float64
            for (name, dtype), part in zip(self.columns.items(), parts, strict=True):
                getattr(self, name).append(part.detach().to(place).to(dtype))

    def table(self) -> list[Tensor]:
        """All rows, by column, in the order of arrival; an empty list without any."""
        parts = [getattr(self, name) for name in self.columns]
        return [dim_zero_cat(part) for part in parts] if len(parts[0]) else []

    def _sync_dist(self, dist_sync_fn: Callable = gather_all_tensors, process_group: Any = None) -> None:
        """Gather the rows of all processes, also from one that has none: it learns their form first."""
        mine = self.table()
        place = mine[0].device if mine else self.device
        width, kind = -1, -1
        for i, (wide, dtype) in enumerate(self.columns.items()):
            if dtype is not None:
                continue
            form = [mine[i].shape[1], DTYPES.index(mine[i].dtype)] if mine else [-1, -1]
            gathered = dist_sync_fn(torch.tensor(form, device=place), group=process_group or self.process_group)
            forms = {(d, k) for d, k in torch.stack(list(gathered)).tolist() if d >= 0}
            if len(forms) > 1:
                found = ", ".join(f"D={d} of {DTYPES[k]}" for d, k in sorted(forms))
                raise ValueError(f"{wide} must have one size and type on all processes, got {found}")
            width, kind = max(forms, default=(0, DTYPES.index(torch.float32)))
        if not mine:
            for name, dtype in self.columns.items():
                shape, dtype = ((0, width), DTYPES[kind]) if dtype is None else ((0,), dtype)
                setattr(self, name, [torch.empty(shape, dtype=dtype, device=place)])
        super()._sync_dist(dist_sync_fn, process_group)


def once(name: str, index: Tensor, answers: Mapping[str, Tensor], rows: Tensor | None = None) -> Tensor:
    """Rows by ascending index, each index once: the first that came.

    Args:
        name: what the rows are, for the message.
        index: (N,) int64.
        answers: (N,) each, what must be equal where an index comes twice.
        rows: (R,) int64, the rows that count, else all.

    Returns:
        (M,) int64, places in ``index``.

    Raises:
        ValueError: an index came with two answers.

    Example:
        >>> once("pairs", torch.tensor([3, 1, 3]), {"same": torch.tensor([1, 0, 1])})
        tensor([1, 0])
    """
    rows = torch.arange(len(index), device=index.device) if rows is None else rows
    rows = rows[index[rows].argsort(stable=True)]
    again = index[rows][1:] == index[rows][:-1]
    before, after = rows[:-1][again], rows[1:][again]
    differ = torch.zeros_like(before, dtype=torch.bool)
    for part in answers.values():
        differ |= part[before] != part[after]
    if differ.any():
        i = int(differ.nonzero()[0])
        several = len(answers) > 1
        names = f"({', '.join(answers)})" if several else next(iter(answers))
        found = [tuple(int(part[row]) for part in answers.values()) for row in (before[i], after[i])]
        first, second = found if several else (values[0] for values in found)
        raise ValueError(
            f"index={int(index[before[i]])} of the {name} came with {names} {first} and with {second}; "
            f"index must be unique within the {name}"
        )
    return torch.cat([rows[:1], rows[1:][~again]])


def in_order(
    name: str, index: Tensor, answers: Mapping[str, Tensor], rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same where an index may be missing: without any, the rows as they came.

    Args:
        name: see :func:`once`, here and below.
        index: (N,) int64, all or none ``NO_INDEX``.
        answers: (N,) each.
        rows: (R,) int64.

    Returns:
        (M,) int64, places in ``index``, and (M,) int64, what stands there; without any index, the places twice.

    Raises:
        ValueError: an index came with two answers, or some rows have none.

    Example:
        >>> in_order("pairs", torch.full((2,), NO_INDEX), {})
        (tensor([0, 1]), tensor([0, 1]))
    """
    missing = index == NO_INDEX
    if missing.all():
        rows = torch.arange(len(index), device=index.device) if rows is None else rows
        return rows, rows
    if missing.any():
        raise ValueError(
            f"{int(missing.sum())} of {len(index)} {name} came without index; give it in every update and on every "
            "process, or in none"
        )
    rows = once(name, index, answers, rows)
    return rows, index[rows]


def index_or_none(index: Tensor | None, count: int, device: torch.device) -> Tensor:
    """The column of an index that may be ``None``, (count,) int64.

    Args:
        index: (count,) whole numbers or ``None``.
        count: rows.
        device: where it goes.

    Returns:
        (count,) int64.

    Raises:
        ValueError: not as many as rows, or no whole numbers.

    Example:
        >>> index_or_none(torch.tensor([4, 2], dtype=torch.int32), 2, torch.device("cpu"))
        tensor([4, 2])
    """
    if index is None:
        return torch.full((count,), NO_INDEX, device=device)
    check_column("index", index, count)
    return index.to(device, torch.int64)


def check_column(name: str, values: Tensor, count: int, flags: bool = False) -> None:
    """Raise ValueError where a column does not belong to so many rows or has no whole numbers.

    Args:
        name: of the column.
        values: should be (count,) whole numbers.
        count: rows.
        flags: bool will do as well.

    Raises:
        ValueError: it does not.

    Example:
        >>> check_column("same", torch.tensor([True, False]), 2, flags=True)
    """
    if values.shape != (count,):
        raise ValueError(f"{name} must be ({count},), one for each row, got {tuple(values.shape)}")
    if values.is_floating_point() or values.is_complex() or (values.dtype == torch.bool and not flags):
        wanted = "bool, or whole numbers 0 and 1" if flags else "whole numbers such as int64"
        raise ValueError(f"{name} must be {wanted}, got {values.dtype}")
