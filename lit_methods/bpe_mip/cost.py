"""What a recipe costs, before anything was trained by it."""

import math
from collections.abc import Mapping
from typing import Any

from lit_methods.bpe_mip.recipe import Recipe, named_recipe
from lit_methods.functional.suggestions import nearest

CONSTANT = -5.79
EXPONENTS = {"epochs": 0.95, "layers": 0.93, "channels": 0.22, "image_size": 0.54, "batch_size": -0.49}
HALF = 0.93  # factor of 16-bit numbers
GPUS = {"v100": 1.0, "2080ti": 0.77}


def gpu_hours(recipe: Recipe | Mapping[str, Any] | str, gpu: str = "v100") -> float:
    """Hours that training ONE architecture takes on one card.

    A fit to the authors' measured hours, in which most of the time is launching and loading, not arithmetic: more
    channels cost next to nothing. The measured hours are up to a factor of 2 away, 1.12 in the median. It says which
    recipe is cheaper and by about what factor, not the hours on your card.

    Args:
        recipe: a recipe, the name of one, or values by name; names that are missing are those of BPE1. Learning rate
            and cutout cost nothing.
        gpu: ``"v100"`` or ``"2080ti"``.

    Returns:
        Hours; ``exp(-5.79) epochs^0.95 layers^0.93 channels^0.22 image_size^0.54 batch_size^-0.49``, times 0.93 for 16
        bits and times 0.77 for the second card.

    Raises:
        ValueError: there is no such name or card, or a value is out of its range.

    Source:
        least squares on the 26 released trials.

    Example:
        >>> round(gpu_hours("BPE1"), 3), round(gpu_hours("BPE2"), 3)  # measured: 0.085, and 0.549 on a 2080ti
        (0.095, 0.778)
    """
    if gpu not in GPUS:
        raise ValueError(f"gpu={gpu!r} was not measured{nearest(str(gpu), GPUS)}; there are {', '.join(GPUS)}")
    values = named_recipe({"preset": "BPE1", **recipe} if isinstance(recipe, Mapping) else recipe).to_dict()
    scale = math.prod(values[name] ** exponent for name, exponent in EXPONENTS.items())
    return math.exp(CONSTANT) * scale * (HALF if values["fp"] == 16 else 1.0) * GPUS[gpu]
