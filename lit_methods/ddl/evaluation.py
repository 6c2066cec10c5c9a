"""What an encoder is worth: the figures of every evaluation set, from the batches of their loaders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_methods.metrics.reid import ReIDRanking
from lit_methods.metrics.verification import PairVerificationAccuracy, Rank1Identification, TARAtFAR

Embed = Callable[[Tensor], Tensor]  # images (B, 3, H, W) to unit vectors (B, D), also for B = 0


class EvaluationFigures:
    """Figures of the evaluation sets of one stage, all processes together.

    The keys of a batch say what its set is:

    - ``pair``: two faces each, the same person or not. ``<set>_accuracy`` (10 folds), ``<set>_accuracy_std`` over them,
      ``<set>_threshold`` (squared distance of unit vectors), and ``<set>_tar@<far>``;
    - ``group``: a gallery and groups of probes. ``<group>_rank1``, and their mean ``<set>_rank1``;
    - ``pid``: persons in several cameras. ``mAP``, ``mINP``, ``rank1``, ``rank5``, ``rank10``; where the queries come
      down-sampled besides (``low``), the same with ``low_`` in front.

    Args:
        sets: in the order of the loaders, with ``name`` and ``groups`` (names of the groups of probes); those of
            persons need none.
        fars: false accept rates of ``tar@``.

    Example:
        >>> same = torch.tensor([True, False] * 5)
        >>> first = torch.eye(10)
        >>> second = torch.where(same[:, None], first, first.roll(1, 0))
        >>> figures = EvaluationFigures(fars=[0.1])
        >>> batch = {"pair": (first, second), "same": same, "index": torch.arange(10)}
        >>> figures.update(batch, embed=lambda image: image)
        >>> {name: round(float(value), 2) for name, value in figures.compute().items()}
        {'set0_accuracy': 1.0, 'set0_accuracy_std': 0.0, 'set0_threshold': 0.01, 'set0_tar@1e-01': 1.0}
    """

    def __init__(self, sets: Sequence[Any] = (), fars: Sequence[float] = ()) -> None:
        self.sets, self.fars = list(sets), list(fars)
        self._parts: dict[int, Pairs | Probes | Persons] = {}

    def update(self, batch: dict[str, Any], embed: Embed, dataloader_idx: int = 0) -> None:
        """Add a batch, which may be of length 0.

        Args:
            batch: from the loader with that number.
            embed: gives the embeddings.
            dataloader_idx: number of the loader.

        Raises:
            ValueError: the batch is of none of these kinds.
        """
        if dataloader_idx not in self._parts:
            self._parts[dataloader_idx] = self._part(batch, dataloader_idx)
        self._parts[dataloader_idx].update(batch, embed)

    def _part(self, batch: dict[str, Any], number: int) -> Pairs | Probes | Persons:
        known = self.sets[number] if number < len(self.sets) else None
        name = getattr(known, "name", f"set{number}")
        if "pair" in batch:
            return Pairs(name, self.fars, getattr(known, "folds", 10))
        if "group" in batch:
            return Probes(name, getattr(known, "groups", ("probes",)))
        if "pid" in batch:
            return Persons()
        raise ValueError(
            f"an evaluation batch has keys {', '.join(batch)}; it needs pair and same, or label and group, or pid and "
            "is_query"
        )

    def compute(self, partial: bool = False) -> dict[str, Tensor]:
        """All figures by name, 0-d; every process has to call.

        Args:
            partial: a limit on batches may have left out what a figure needs, such as pairs of two persons: a warning
                takes the place of the error.
        """
        found: dict[str, Tensor] = {}
        for number in sorted(self._parts):
            try:
                figures = self._parts[number].compute()
            except ValueError as ex:  # of the rows of all processes, so all raise or none
                if not partial:
                    raise
                rank_zero_warn(f"a set of which a limit leaves some batches has no figures: {ex}")
                continue
            if twice := sorted(found.keys() & figures.keys()):
                raise ValueError(f"two evaluation sets give {', '.join(twice)}: name the sets, or their groups, apart")
            found |= figures
        return found

    def reset(self) -> None:
        """Forget what was seen."""
        self._parts = {}

    def part(self, kind: type) -> Any:
        """The first set of a kind that has been seen, or ``None``."""
        return next((part for _, part in sorted(self._parts.items()) if isinstance(part, kind)), None)


class Pairs:
    """Figures of a set of pairs."""

    def __init__(self, name: str, fars: Sequence[float], folds: int) -> None:
        self.name, self.folds, self.seen = name, folds, 0
        self.accuracy = PairVerificationAccuracy(folds)
        self.tar = TARAtFAR(tuple(fars)) if fars else None

    def update(self, batch: dict[str, Any], embed: Embed) -> None:
        """Add pairs."""
        first, second = batch["pair"]
        a, b = embed(torch.cat([first, second])).chunk(2) if len(first) else (embed(first), embed(second))
        self.accuracy.to(a.device).update(a, b, batch["same"], batch["index"])
        if self.tar is not None:
            self.tar.to(a.device).update((a * b).sum(1), batch["same"])

    def compute(self) -> dict[str, Tensor]:
        """By name."""
        found = self.accuracy.compute()
        figures = {
            f"{self.name}_accuracy": found["accuracy"],
            f"{self.name}_accuracy_std": found["std"],
            f"{self.name}_threshold": found["threshold"],
        }
        if self.tar is not None:
            figures |= {f"{self.name}_{key}": value for key, value in self.tar.compute().items()}
        return figures


class Probes:
    """Figures of a gallery and groups of probes."""

    def __init__(self, name: str, groups: Sequence[str]) -> None:
        self.name, self.rank1 = name, Rank1Identification(tuple(groups))

    def update(self, batch: dict[str, Any], embed: Embed) -> None:
        """Add faces."""
        embeddings = embed(batch["image"])
        self.rank1.to(embeddings.device).update(embeddings, batch["label"], batch["group"], batch["index"])

    def compute(self) -> dict[str, Tensor]:
        """By name."""
        found = dict(self.rank1.compute())
        return {f"{self.name}_rank1": found.pop("mean")} | {f"{group}_rank1": value for group, value in found.items()}


class Persons:
    """Figures of queries and a gallery of persons, and of the queries down-sampled."""

    def __init__(self) -> None:
        self.ranking = ReIDRanking()
        self.low: ReIDRanking | None = None

    def update(self, batch: dict[str, Any], embed: Embed) -> None:
        """Add persons; the gallery belongs to both."""
        rows = [embed(batch["image"]), batch["pid"], batch["camid"], batch["index"], batch["is_query"]]
        low = batch.get("low")
        if low is None:
            self.ranking.to(rows[0].device).update(*rows)
            return
        self.low = self.low or ReIDRanking()
        gallery = ~batch["is_query"]
        for ranking, chosen in ((self.ranking, ~low), (self.low, low | gallery)):
            ranking.to(rows[0].device).update(*(row[chosen] for row in rows))

    def compute(self) -> dict[str, Tensor]:
        """By name."""
        figures = dict(self.ranking.compute())
        if self.low is not None:
            figures |= {f"low_{name}": value for name, value in self.low.compute().items()}
        return figures
