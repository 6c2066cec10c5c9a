"""Attacks by name, and the low frequencies that go with a size of images: what recipes need."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lit_methods.functional.draws import Purpose, hash64
from lit_methods.functional.suggestions import nearest
from lit_methods.ppba.attack import Attack
from lit_methods.ppba.baselines import NES, Bandits, SimBA
from lit_methods.ppba.functional import LowFrequencyProjection, low_frequency_indices
from lit_methods.ppba.random_walk import PPBAAttack

# side, channels -> side of the lowest shell, width of the others, coefficients
FREQUENCIES = {
    (224, 3): (28, 7, 1500),
    (299, 3): (38, 9, 1500),
    (64, 3): (15, 7, 430),
    (32, 3): (11, 7, 230),
    (28, 1): (7, 7, 32),
}
SHELLS = {side: shells[:2] for (side, _), shells in FREQUENCIES.items()}
PROJECTED: dict[str, type[Attack]] = {"ppba": PPBAAttack, "simba": SimBA, "nes_lf": NES, "bandits_lf": Bandits}
IN_PIXELS: dict[str, type[Attack]] = {"nes": NES, "bandits": Bandits}
ATTACKS = PROJECTED | IN_PIXELS
SEED = 5677  # of the coefficients' choice, as in the released code


def low_frequencies(
    size: int,
    channels: int = 3,
    low_dim: int | None = None,
    freq_dim: int | None = None,
    stride: int | None = None,
    seed: int = SEED,
) -> LowFrequencyProjection:
    """The low-frequency space for images of a size.

    Args:
        size: side S of the images.
        channels: C.
        low_dim: m coefficients; ``None``: those of ``FREQUENCIES``, else as large a part of the lowest shell as at 224.
        freq_dim: side of the lowest shell; ``None``: that of ``FREQUENCIES``, else about a quarter of ``size``.
        stride: width of the other shells; ``None``: that of ``FREQUENCIES``, else 7 or what divides.
        seed: of the choice among coefficients.

    Returns:
        The projection, in float32 on the CPU.

    Raises:
        ValueError: the numbers do not fit the size.

    Source:
        Released code for 224 and 299, a port by others for 64 and 32 (but not their numbers of coefficients); the rest
        is ours.

    Example:
        >>> low_frequencies(32).dim, low_frequencies(224).dim, low_frequencies(48).dim
        (230, 1500, 323)
    """
    usual_side, width = SHELLS.get(size, (None, 7))
    if freq_dim is None:
        freq_dim = usual_side or _quarter(size, stride or width)
    if stride is None:
        stride = width if (size - freq_dim) % width == 0 else size - freq_dim  # else all the rest in one shell
    if low_dim is None:
        low_dim = max(1, round(channels * freq_dim**2 * 1500 / 2352))
        if freq_dim == usual_side and (size, channels) in FREQUENCIES:
            low_dim = FREQUENCIES[size, channels][2]
    generator = torch.Generator().manual_seed(seed)
    indices = low_frequency_indices(size, channels, freq_dim, stride, low_dim, generator)
    return LowFrequencyProjection(indices, size, channels)


def _quarter(size: int, stride: int) -> int:
    fitting = range(size % stride or min(stride, size), size + 1, stride)
    return min(fitting, key=lambda side: abs(side - size / 4))


def build_attack(name: str, projection: Callable[[], LowFrequencyProjection], /, **options: Any) -> Attack:
    """An attack by its name.

    Args:
        name: a key of ``ATTACKS``; ``_lf`` is the version that searches among low frequencies.
        projection: makes the space, for those that need one.
        options: arguments of the attack.

    Returns:
        The attack, new.

    Raises:
        ValueError: an unknown name or option, or one that is out of range.

    Example:
        >>> build_attack("nes_lf", lambda: low_frequencies(32), eps=1.0).projection.dim
        230
        >>> build_attack("ppba", lambda: low_frequencies(32), roh=0.1)
        Traceback (most recent call last):
            ...
        ValueError: attack_args holds 'roh', which PPBAAttack does not take; did you mean 'rho'?; it takes rho, eps, ...
    """
    if name not in ATTACKS:
        raise ValueError(f"attack={name!r} is unknown{nearest(name, ATTACKS)}; there are {', '.join(ATTACKS)}")
    takes = [option for option in inspect.signature(ATTACKS[name]).parameters if option != "projection"]
    if odd := [option for option in options if option not in takes]:
        raise ValueError(
            f"attack_args holds {odd[0]!r}, which {ATTACKS[name].__name__} does not take{nearest(odd[0], takes)}; it "
            f"takes {', '.join(takes)}"
        )
    cls: Any = ATTACKS[name]
    space = [projection()] if name in PROJECTED else []
    try:
        return cls(*space, **options)
    except TypeError as ex:  # a text where a number belongs
        raise ValueError(f"attack_args={options} do not fit {cls.__name__}: {ex}") from None


@dataclass(frozen=True)
class AttackPlan:
    """Which attack, on images of whatever size; the arguments are those of ``PPBA``, which explains them.

    Args:
        attack: a key of ``ATTACKS``, or an attack, which brings its own settings.
        eps: radius of the ball.
        max_queries: per image.
        target: class to reach, ``"random"`` or ``None``.
        args: further arguments of the attack.
        low_dim: coefficients.
        freq_dim: side of the lowest shell.
        stride: width of the other shells.
        seed: of the random streams.
        pad_batch: ask about a fixed number of images at once.

    Example:
        >>> AttackPlan("ppba").build(224).rho, AttackPlan("nes", eps=3.0).build(32).eps
        (0.01, 3.0)
    """

    attack: str | Attack = "ppba"
    eps: float | None = None
    max_queries: int = 2000
    target: int | Literal["random"] | None = None
    args: dict[str, Any] = field(default_factory=dict)
    low_dim: int | None = None
    freq_dim: int | None = None
    stride: int | None = None
    seed: int = 0
    pad_batch: bool = False

    def build(self, side: int, **more: Any) -> Attack:
        """The attack for images of this side; ``more`` beats ``args``.

        Raises:
            ValueError: an argument is out of range, or given twice.
        """
        if isinstance(self.attack, Attack):
            return self.attack
        eps = self.eps if self.eps is not None else 5.0 if side >= 200 else 1.0
        common = {"eps": eps, "max_queries": self.max_queries, "targeted": self.target is not None}
        common |= {"seed": self.seed, "pad_batch": self.pad_batch}
        if doubled := [name for name in self.args if name in common]:
            raise ValueError(f"attack_args holds {doubled[0]!r}, which is given by itself")
        # the published values are for a ball of 5 around images of 224 pixels
        usual: dict[str, Any] = {"rho": 0.002 * eps} if self.attack == "ppba" else {}
        if self.attack == "bandits" and side < 100:
            usual["tile"] = max(1, side // 2)
        return build_attack(self.attack, lambda: self.space(side), **common, **usual | self.args | more)

    def space(self, side: int) -> LowFrequencyProjection:
        """The low frequencies of images of this side."""
        return low_frequencies(side, 3, self.low_dim, self.freq_dim, self.stride)

    def check(self, num_classes: int, input_size: Sequence[int] | None = None) -> Attack:
        """Refuse before anything runs what no attack takes; an attack, to look at: on the smallest images if need be.

        Raises:
            ValueError: it does not.
        """
        if isinstance(self.target, str) and self.target != "random":
            raise ValueError(f"target={self.target!r} must be a class id, 'random' or null")
        if isinstance(self.target, int) and not 0 <= self.target < num_classes:
            raise ValueError(f"target={self.target} is no class; there are 0 to {num_classes - 1}")
        if isinstance(self.attack, Attack):
            if self.target is not None and not self.attack.targeted:
                raise ValueError(f"target={self.target!r} needs an attack with targeted=True")
            return self.attack
        if self.eps is not None and not self.eps > 0:
            raise ValueError(f"eps={self.eps} must be positive")  # rho, which goes by it, would be blamed
        for name in ("low_dim", "freq_dim", "stride"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1, or null")
        if input_size is not None:
            return self.build(input_size[-1])
        return AttackPlan(self.attack, self.eps, self.max_queries, self.target, self.args).build(28)

    def targets(self, labels: Tensor, ids: Tensor, num_classes: int) -> Tensor:
        """Classes to reach (N,), for true classes (N,) of images with these ids (N,)."""
        if isinstance(self.target, int):
            return torch.full_like(labels, self.target)
        numbers = hash64(Purpose.TARGET, self.seed, ids.cpu().numpy()) % np.uint64(num_classes - 1)
        others = torch.from_numpy(numbers.astype(np.int64)).to(labels.device)
        return others + (others >= labels)
