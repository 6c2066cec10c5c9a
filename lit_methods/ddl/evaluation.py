"""What an encoder is worth: the figures of every evaluation set, from the batches of their loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric

from lit_methods.metrics.reid import ReIDRanking
from lit_methods.metrics.verification import PairVerificationAccuracy, Rank1Identification, TARAtFAR

Embed = Callable[[Tensor], Tensor]  # images (B, 3, H, W) to unit vectors (B, D), also for B = 0

FOLDS = 10  # of pairs whose list names none to choose thresholds by


class EvaluationFigures:
    """Figures of the evaluation sets of one stage, all processes together.

    The keys of a batch say what its set is:

    - ``pair``: two faces each, the same person or not. ``<set>_accuracy`` (over the folds of its list, ten where it has
      one), ``<set>_accuracy_std`` over them, ``<set>_threshold`` (squared distance of unit vectors), and
      ``<set>_tar@<far>``;
    - ``group``: a gallery and groups of probes. ``<group>_rank1``, with ``<set>_`` in front where several sets have a
      gallery, and their mean ``<set>_rank1``;
    - ``pid``: persons in several cameras. ``mAP``, ``mINP``, ``rank1``, ``rank5``, ``rank10``; where the queries come
      down-sampled besides (``low``), the same with ``low_`` in front.

    Args:
        sets: in the order of the loaders, with ``name``, ``kind`` (``"pairs"`` or ``"probes"``) and ``groups`` (names
            of the groups of probes); sets of persons need none.
        fars: false accept rates of ``tar@``.

    Raises:
        ValueError: two figures would have one name.

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
        self._galleries = sum(one.kind == "probes" for one in self.sets)
        names = [name for one in self.sets for name in self._known(one).names]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"evaluation sets {', '.join(one.name for one in self.sets)} give {', '.join(twice)} twice: a set and "
                "its groups need names of their own; name the set otherwise"
            )
        self._parts: dict[int, Pairs | Probes | Persons] = {}

    def _known(self, one: Any) -> Pairs | Probes:
        if one.kind == "pairs":
            return Pairs(one.name, self.fars, one.folds if one.folds > 1 else FOLDS)
        return Probes(one.name, one.groups, f"{one.name}_" if self._galleries > 1 else "")

    def _part(self, batch: dict[str, Any], number: int) -> Pairs | Probes | Persons:
        if number < len(self.sets):
            return self._known(self.sets[number])
        if "pair" in batch:
            return Pairs(f"set{number}", self.fars, FOLDS)
        if "group" in batch:
            return Probes(f"set{number}", ("probes",), "")
        if "pid" in batch:
            return Persons()
        raise ValueError(
            f"an evaluation batch has keys {', '.join(batch)}; it needs pair and same, or label and group, or pid and "
            "is_query"
        )

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
            part = self._parts[dataloader_idx] = self._part(batch, dataloader_idx)
            for metric in part.metrics:  # once: it moves all rows that were kept
                metric.to(batch["index"].device)
        self._parts[dataloader_idx].update(batch, embed)

    def compute(self, partial: bool = False) -> dict[str, Tensor]:
        """All figures by name, 0-d; every process has to call.

        Args:
            partial: a limit on batches may have left out what a figure needs, such as pairs of two persons: a warning
                takes the place of the error.
        """
        found: dict[str, Tensor] = {}
        for number in sorted(self._parts):
            try:
                found |= self._parts[number].compute()
            except ValueError as ex:  # of the rows of all processes, so all raise or none
                if not partial:
                    raise
                rank_zero_warn(f"a set of which a limit leaves some batches has no figures: {ex}")
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
        self.name = name
        self.accuracy = PairVerificationAccuracy(folds)
        self.tar = TARAtFAR(tuple(fars)) if fars else None

    @property
    def metrics(self) -> list[Metric]:
        """What keeps rows."""
        return [self.accuracy] if self.tar is None else [self.accuracy, self.tar]

    @property
    def names(self) -> list[str]:
        """Of the figures."""
        rates = [] if self.tar is None else self.tar.names
        return [f"{self.name}_{figure}" for figure in ("accuracy", "accuracy_std", "threshold", *rates)]

    def update(self, batch: dict[str, Any], embed: Embed) -> None:
        """Add pairs."""
        first, second = batch["pair"]
        a, b = embed(torch.cat([first, second])).chunk(2) if len(first) else (embed(first), embed(second))
        self.accuracy.update(a, b, batch["same"], batch["index"])
        if self.tar is not None:
            self.tar.update((a * b).sum(1), batch["same"], batch["index"])

    def compute(self) -> dict[str, Tensor]:
        """By name."""
        found = self.accuracy.compute()
        rates: Iterable[Tensor] = () if self.tar is None else self.tar.compute().values()
        return dict(zip(self.names, [found["accuracy"], found["std"], found["threshold"], *rates], strict=True))


class Probes:
    """Figures of a gallery and groups of probes; ``prefix`` is in front of the groups."""

    def __init__(self, name: str, groups: Sequence[str], prefix: str) -> None:
        self.name, self.rank1 = name, Rank1Identification(tuple(groups))
        self.names = [*(f"{prefix}{group}_rank1" for group in groups), f"{name}_rank1"]
        self.metrics: list[Metric] = [self.rank1]

    def update(self, batch: dict[str, Any], embed: Embed) -> None:
        """Add faces."""
        self.rank1.update(embed(batch["image"]), batch["label"], batch["group"], batch["index"])

    def compute(self) -> dict[str, Tensor]:
        """By name; the mean comes last."""
        return dict(zip(self.names, self.rank1.compute().values(), strict=True))


class Persons:
    """Figures of queries and a gallery of persons, and of the queries down-sampled."""

    def __init__(self) -> None:
        self.ranking, self.low = ReIDRanking(), ReIDRanking()
        self.metrics: list[Metric] = [self.ranking, self.low]
        self._degraded = False

    def update(self, batch: dict[str, Any], embed: Embed) -> None:
        """Add persons; the gallery belongs to both."""
        rows = [embed(batch["image"]), batch["pid"], batch["camid"], batch["index"], batch["is_query"]]
        low = batch.get("low")
        if low is None:
            self.ranking.update(*rows)
            return
        self._degraded = True
        gallery = ~batch["is_query"]
        for ranking, chosen in ((self.ranking, ~low), (self.low, low | gallery)):
            ranking.update(*(row[chosen] for row in rows))

    def compute(self) -> dict[str, Tensor]:
        """By name."""
        figures = dict(self.ranking.compute())
        if self._degraded:
            figures |= {f"low_{name}": value for name, value in self.low.compute().items()}
        return figures
