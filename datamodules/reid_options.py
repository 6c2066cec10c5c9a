"""What a re-identification data module refuses to be built with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datamodules.reid import ReIDDataModule


def check_options(data: ReIDDataModule) -> None:
    """Make sure that the arguments of a data module make sense, each and together.

    Args:
        data: its arguments are set.

    Raises:
        ValueError: one is out of range or contradicts another.

    Example:
        >>> from datamodules import Market1501DataModule
        >>> Market1501DataModule("data", batch_size=0)
        Traceback (most recent call last):
        ValueError: batch_size must be at least 1, got 0
    """
    if data.train_on != "branches":
        more = ', nor "branches", easy and hard pictures'
        _check_choice("train_on", data.train_on, ("ids", "clusters", "cameras"), more)
    _check_choice("val_source", data.val_source, ("test", "train", "none"))
    _check_choice("on_bad_image", data.on_bad_image, ("raise", "skip"))
    _check_choice("hard_pairs", data.hard_pairs, ("mixed", "hard"))
    sizes = {"height": data.height, "width": data.width, "k": data.k, "source_k": data.source_k}
    for name, value in (sizes | {"batch_size": data.batch_size}).items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    for name, value in (("p", data.p), ("source_p", data.source_p), ("b", data.b)):
        if value < 2:
            raise ValueError(f"{name} must be at least 2, got {value}: a batch with one identity has no negatives")
    if data.generated_per_id < 0 or (data.train_on == "clusters" and data.generated_per_id >= data.k):
        raise ValueError(
            f"generated_per_id must be 0 to k - 1 = {data.k - 1}, got {data.generated_per_id}: some are real"
        )
    if data.num_workers < 0:
        raise ValueError(f"num_workers must be 0 (load in the main process) or more, got {data.num_workers}")
    if not 0 <= data.erase_probability <= 1:
        raise ValueError(f"erase_probability must be in [0, 1], got {data.erase_probability}")
    if min(data.lr_factors, default=1) < 1:
        raise ValueError(f"lr_factors must be numbers from 1 up, or empty for no hard branch, got {data.lr_factors}")
    _check_evaluation(data)
    if (
        data.train_on == "clusters"
        and data.source_root is not None
        and data.source_root.resolve() == data.root.resolve()
    ):
        raise ValueError(
            f"source_root={str(data.source_root)!r} is root itself: the persons of the target would be learnt from; "
            "give the labelled set of other cameras, or none"
        )


def _check_evaluation(data: ReIDDataModule) -> None:
    if data.val_source == "train" and data.val_ids < 2:
        raise ValueError(f'val_ids must be at least 2 with val_source="train", got {data.val_ids}: persons to hold out')
    if data.val_source != "train" and data.val_ids:
        raise ValueError(
            f'val_ids={data.val_ids} holds nobody out with val_source="{data.val_source}"; set it to "train"'
        )


def _check_choice(name: str, value: str, choices: tuple[str, ...], more: str = "") -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}{more}")
