"""How a network is trained to estimate it: eight hyper-parameters, and the four settings of them that have a name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from numbers import Real
from reprlib import repr as brief
from typing import Any, Self

from lit_methods.functional.suggestions import nearest

_LOWEST = {"epochs": 1, "batch_size": 2, "layers": 3, "channels": 1, "cutout": 0, "image_size": 4}
_RATES = {512: 0.1, 256: 0.06, 128: 0.03, 0: 0.025}  # from this batch size on


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The hyper-parameters of one training from scratch.

    Args:
        epochs: so often all images are seen.
        batch_size: images per step, from 2: batch norm cannot use one.
        lr: learning rate at the start, which falls along a cosine.
        layers: cells of the network, from 3: two of them halve the size.
        fp: bits of its numbers, 16 or 32.
        channels: of its first cells; odd numbers are fine, since they double before anything splits them.
        cutout: side of the square that is blanked in training images, 0 = off.
        image_size: side of the images, a multiple of 4, because the network halves it twice.

    Raises:
        ValueError: a value is out of its range.

    Source:
        Figure 2 of arXiv 2005.09917.

    Example:
        >>> Recipe(epochs=10, batch_size=128, lr=0.03, layers=6, fp=32, channels=8, cutout=0, image_size=16) == BPE1
        True
    """

    epochs: int
    batch_size: int
    lr: float
    layers: int
    fp: int
    channels: int
    cutout: int
    image_size: int

    def __post_init__(self) -> None:
        for name, lowest in _LOWEST.items():
            number = _number(self, name)
            if number is None or number != int(number) or number < lowest:
                raise ValueError(f"{name}={brief(getattr(self, name))}: give a whole number of at least {lowest}")
            object.__setattr__(self, name, int(number))
        if self.image_size % 4:
            near = self.image_size // 4 * 4
            raise ValueError(
                f"image_size={self.image_size} is not a multiple of 4, and the network halves it twice; "
                f"give {near} or {near + 4}"
            )
        fp = _number(self, "fp")
        if fp not in (16, 32):
            raise ValueError(f"fp={brief(self.fp)} bits: give 16 or 32")
        lr = _number(self, "lr")
        if lr is None or lr <= 0:
            raise ValueError(f"lr={brief(self.lr)}: give a learning rate above 0, such as {tied_lr(self.batch_size)}")
        object.__setattr__(self, "fp", int(fp))
        object.__setattr__(self, "lr", lr)

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name.

        Example:
            >>> BPE1.to_dict()["channels"]
            8
        """
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Self:
        """A recipe from values by name.

        Args:
            d: all eight names; ``lr`` may be left out and is then ``tied_lr(batch_size)``.

        Raises:
            ValueError: a name is missing or unknown, or a value is out of its range.

        Example:
            >>> Recipe.from_dict(BPE1.to_dict()) == BPE1
            True
        """
        if not isinstance(d, Mapping):
            raise ValueError(f"this is no recipe: {brief(d)}; give a dict with {', '.join(NAMES)}")
        _known(d)
        if missing := [name for name in NAMES if name not in d and (name != "lr" or "batch_size" not in d)]:
            raise ValueError(f"recipe lacks {', '.join(missing)}; give them, or preset: one of {', '.join(PRESETS)}")
        if "lr" not in d:
            d = {**d, "lr": _tied(d["batch_size"])}
        return cls(**d)

    def replace(self, **changes: Any) -> Self:
        """This recipe with other values; what is not named stays, the learning rate too.

        Args:
            changes: values by name.

        Raises:
            ValueError: there is no such name, or a value is out of its range.

        Example:
            >>> BPE1.replace(epochs=30).epochs
            30
        """
        _known(changes)
        return dataclasses.replace(self, **changes)

    def key(self) -> str:
        """Text that is the same for equal recipes, today and tomorrow.

        Example:
            >>> BPE1.key()
            'epochs=10,batch_size=128,lr=0.03,layers=6,fp=32,channels=8,cutout=0,image_size=16'
        """
        return ",".join(f"{name}={value!r}" for name, value in self.to_dict().items())


NAMES = tuple(field.name for field in dataclasses.fields(Recipe))


def _number(recipe: Recipe, name: str) -> float | None:
    """A finite number, or ``None``; NumPy's count, and so does 10.0 for 10."""
    value = getattr(recipe, name)
    usable = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def _known(names: Mapping[str, Any]) -> None:
    if odd := [name for name in names if name not in NAMES]:
        raise ValueError(f"recipe has no {brief(odd[0])}{nearest(str(odd[0]), NAMES)}; it has {', '.join(NAMES)}")


def _tied(batch_size: Any) -> float:
    """The tied rate, whatever the batch size; ``Recipe`` says what is wrong with it."""
    usable = isinstance(batch_size, Real) and 1 <= float(batch_size) < math.inf
    return tied_lr(int(batch_size)) if usable else 0.025


def tied_lr(batch_size: int) -> float:
    """The learning rate that belongs to a batch size.

    Args:
        batch_size: images per step.

    Returns:
        The rate of the largest batch size of the published trials that is not above this one: 0.025 for 64 and 96, 0.03
        for 128, 0.06 for 256, 0.1 for 512 and 1024; smaller batches get 0.025.

    Raises:
        ValueError: it is below 1.

    Source:
        the released trials. They say nothing about sizes in between; taking the next lower one is a choice of ours.

    Example:
        >>> tied_lr(96), tied_lr(128), tied_lr(200), tied_lr(4096)
        (0.025, 0.03, 0.03, 0.1)
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: give a whole number of at least 1")
    return next(rate for size, rate in _RATES.items() if batch_size >= size)


BPE1 = Recipe(epochs=10, batch_size=128, lr=0.03, layers=6, fp=32, channels=8, cutout=0, image_size=16)
BPE2 = Recipe(epochs=30, batch_size=128, lr=0.03, layers=16, fp=32, channels=16, cutout=0, image_size=16)
FULL = Recipe(epochs=600, batch_size=96, lr=0.025, layers=20, fp=32, channels=36, cutout=16, image_size=32)
DARTS_DEFAULT = Recipe(epochs=50, batch_size=64, lr=0.025, layers=8, fp=32, channels=16, cutout=0, image_size=32)

PRESETS: dict[str, Recipe] = {"BPE1": BPE1, "BPE2": BPE2, "FULL": FULL, "DARTS_DEFAULT": DARTS_DEFAULT}


def named_recipe(value: str | Mapping[str, Any] | Recipe) -> Recipe:
    """A recipe, however it is given.

    Args:
        value: a key of ``PRESETS`` in any case, also ``"BPE-1"``; or values by name, all eight or those that differ
            from ``preset``. Where they say ``batch_size`` and not ``lr``, the rate is ``tied_lr(batch_size)``.

    Raises:
        ValueError: there is no such preset or name, or a value is out of its range.

    Example:
        >>> named_recipe("bpe1") == BPE1
        True
        >>> named_recipe({"preset": "BPE1", "batch_size": 512}).lr
        0.1
    """
    if isinstance(value, Recipe):
        return value
    if isinstance(value, str):
        return _preset(value)
    if not isinstance(value, Mapping):
        raise ValueError(f"recipe={brief(value)}: give one of {', '.join(PRESETS)}, or a dict with {', '.join(NAMES)}")
    if "preset" not in value:
        return Recipe.from_dict(value)
    changes = {name: given for name, given in value.items() if name != "preset"}
    if "batch_size" in changes and "lr" not in changes:
        changes["lr"] = _tied(changes["batch_size"])
    return named_recipe(value["preset"]).replace(**changes)


def _preset(name: str) -> Recipe:
    plain = {_plain(preset): recipe for preset, recipe in PRESETS.items()}
    if _plain(name) not in plain:
        raise ValueError(
            f"there is no recipe {brief(name)}{nearest(name.upper(), PRESETS)}; there are {', '.join(PRESETS)}"
        )
    return plain[_plain(name)]


def _plain(name: str) -> str:
    return name.strip().upper().replace("-", "").replace("_", "")
