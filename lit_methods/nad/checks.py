"""What NAD refuses: arguments out of range, and data that do not fit the classes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lit_methods.functional.suggestions import shorten

Name = Callable[[int], str]


def check_arguments(hparams: Mapping[str, Any]) -> None:
    """Refuse arguments of ``NAD`` that are out of range.

    Args:
        hparams: all of them, by name.

    Raises:
        ValueError: names argument, value and range.
    """
    class_ids, classes = hparams["class_ids"], hparams["num_classes"]
    if class_ids is not None:
        if not class_ids or len({*class_ids}) < len(class_ids):
            raise ValueError(f"class_ids={class_ids} must name classes, each once")
        if not 0 <= min(class_ids) <= max(class_ids) < classes:
            raise ValueError(f"class_ids={class_ids} must lie between 0 and {classes - 1}, the classes of the network")
    if not hparams["beta"] >= 0:
        raise ValueError(f"beta={hparams['beta']} must not be negative")
    if not 0 < hparams["focus_rate"] <= 1:
        raise ValueError(f"focus_rate={hparams['focus_rate']} must lie in (0, 1]")
    for name, least in {"num_others": 1, "chunk_size": 1, "classifier_epochs": 0}.items():
        if hparams[name] < least:
            raise ValueError(f"{name}={hparams[name]} must be at least {least}")


def check_precision(precision: str) -> None:
    """Refuse what the gates' small, normalised steps do not survive.

    Args:
        precision: of the Trainer.

    Raises:
        ValueError: names it.

    Example:
        >>> check_precision("bf16-mixed")
    """
    if precision == "16-mixed":
        raise ValueError("precision=16-mixed scales the loss, of which NAD's step knows nothing; take bf16-mixed")
    if precision in ("16-true", "bf16-true"):
        raise ValueError(f"precision={precision} loses the small steps of the gates; take bf16-mixed")


def check_counts(counts: Tensor, class_ids: Sequence[int], name: Name = str) -> None:
    """Refuse classes without training images, and images of other classes.

    Args:
        counts: (classes,) training images of each class.
        class_ids: classes to learn.
        name: of a class, for people.

    Raises:
        ValueError: names the classes.

    Example:
        >>> import torch
        >>> check_counts(torch.tensor([4, 0, 2]), [0, 2])
    """
    there = counts.nonzero().flatten().tolist()
    if empty := [name(label) for label in class_ids if not counts[label]]:
        known = f"; there are some of model.class_ids={there}" if 0 < len(there) < 20 else ""
        raise ValueError(f"class_ids: no training images of {shorten(empty)}; leave these classes out{known}")
    if odd := [name(label) for label in there if label not in class_ids]:
        raise ValueError(
            f"class_ids has {len(class_ids)} classes, but there are training images of {shorten(odd)}, too; give "
            f"data.class_subset={list(class_ids)}"
        )


def checked_rows(label: Tensor, row_of: Tensor, class_ids: Sequence[int], name: Name = str) -> Tensor:
    """The row of the gates that each image of a training batch belongs to.

    Args:
        label: (N,) int64.
        row_of: (classes,) int64, -1 for classes without gates.
        class_ids: classes with gates.
        name: of a class, for people.

    Raises:
        ValueError: labels that the network does not have, or without gates.

    Example:
        >>> import torch
        >>> checked_rows(torch.tensor([2, 0]), torch.tensor([1, -1, 0]), [2, 0])
        tensor([0, 1])
    """
    if not len(label):
        return label
    low, high = int(label.min()), int(label.max())
    if low < 0 or high >= len(row_of):
        raise ValueError(
            f"a training batch has labels {low} to {high}; they must be 0 to {len(row_of) - 1}, as many as model gives "
            "logits"
        )
    rows = row_of[label]
    if (rows < 0).any():
        odd = [name(i) for i in label[rows < 0].unique().tolist()]
        raise ValueError(
            f"a training batch has images of {shorten(odd)}, which class_ids leaves out; give "
            f"data.class_subset={list(class_ids)}"
        )
    return rows
