"""Whether a run of the Trainer is what a recipe says."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lit_methods.bpe_mip.search_space import Recipe


def check_size(recipe: Recipe, data: Any) -> None:
    """Refuse images of another size than the recipe's.

    Args:
        recipe: of the network.
        data: a datamodule that may have ``input_size``, or ``None``.

    Raises:
        ValueError: names both sizes.

    Example:
        >>> from lit_methods.bpe_mip.search_space import BPE1
        >>> check_size(BPE1, None)
    """
    size, side = getattr(data, "input_size", None), recipe.image_size
    if size is not None and list(size[1:]) != [side, side]:
        raise ValueError(
            f"the data have images of {size[1]} pixels, the recipe's image_size is {side}; give --data.image_size "
            f"{side}, or another recipe"
        )


def warn_of_differences(recipe: Recipe, trainer: Trainer, data: Any) -> None:
    """Say in one warning what Trainer and data do otherwise: epochs, batch size, cutout and precision.

    Args:
        recipe: what should be done.
        trainer: of the fit.
        data: its datamodule.
    """
    ran = {
        "epochs": trainer.max_epochs,
        "batch_size": getattr(data, "batch_size", None),
        "cutout": getattr(data, "cutout", None),
        "fp": 16 if "16" in str(trainer.precision) else 32,
    }
    said = recipe.to_dict()
    if others := [f"{k}={v} for {said[k]}" for k, v in ran.items() if v is not None and v != said[k]]:
        rank_zero_warn(f"this run differs from its recipe: {', '.join(others)}")
