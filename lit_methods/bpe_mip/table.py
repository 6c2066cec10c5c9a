"""The authors' table of measured recipes: read it, and search in it without training anything."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_methods.bpe_mip.functional import spearman
from lit_methods.bpe_mip.mip import MIP, Importance
from lit_methods.functional.draws import permutation, purpose
from lit_methods.functional.suggestions import shorten

HYPER_PARAMETERS = ("epochs", "batch_size", "lr", "layers", "fp", "channels", "cutout", "image_size")
DEFAULTS = {"batch_size": 128, "lr": 0.03}  # the published recipes keep them, although 1024 is cheaper


@dataclasses.dataclass(frozen=True)
class TrialTable:
    """Recipes, and what each of them says about the same architectures.

    Args:
        names: of the trials.
        recipes: hyper-parameter -> value, one dict for each trial.
        accuracies: (trials, architectures) fractions.
        truth: (architectures,) fractions after full training.
        hours: (trials,) GPU hours for one architecture.
        published: (trials,) printed rank agreement.

    Example:
        >>> table = TrialTable(["a"], [{"epochs": 1}], np.array([[0.5, 0.7]]), np.array([0.8, 0.9]), np.array([2.0]),
        ...                    np.array([1.0]))
        >>> table.scores().tolist(), table.space()
        ([1.0], {'epochs': [1]})
    """

    names: list[str]
    recipes: list[dict[str, Any]]
    accuracies: NDArray[np.float64]
    truth: NDArray[np.float64]
    hours: NDArray[np.float64]
    published: NDArray[np.float64]

    def scores(self) -> NDArray[np.float64]:
        """Rank agreement of each trial with the truth, (trials,), recomputed."""
        return np.array([spearman(row, self.truth) for row in self.accuracies])

    def space(self) -> dict[str, list[Any]]:
        """Hyper-parameter -> sorted list of the values in this table."""
        return {name: sorted({recipe[name] for recipe in self.recipes}) for name in self.recipes[0]}

    def codes(self) -> NDArray[np.int64]:
        """Positions of the values in :meth:`space`, (trials, hyper-parameters)."""
        space = self.space()
        return np.array([[space[name].index(value) for name, value in recipe.items()] for recipe in self.recipes])

    def within(self, budget: float) -> TrialTable:
        """The trials that take at most so many hours for one architecture.

        Args:
            budget: hours.

        Raises:
            ValueError: fewer than two are left.
        """
        rows = np.flatnonzero(self.hours <= budget)
        if len(rows) < 2:
            raise ValueError(
                f"budget={budget} hours leaves {len(rows)} of {len(self.names)} trials; the two cheapest take "
                f"{', '.join(f'{h:g}' for h in sorted(self.hours)[:2])}"
            )
        names, recipes = [self.names[i] for i in rows], [self.recipes[i] for i in rows]
        return TrialTable(names, recipes, self.accuracies[rows], self.truth, self.hours[rows], self.published[rows])


def read_table(folder: str | Path) -> TrialTable:
    """Read ``trials.csv``, ``trial_accuracies.csv`` and ``ground_truth.csv``.

    Args:
        folder: where they are. The accuracies are in percent there.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a column is missing, an entry is no number, or the architectures differ between files.

    Source:
        the workbooks that the authors released with their code, as plain tables.

    Example:
        >>> read_table("nowhere")
        Traceback (most recent call last):
            ...
        FileNotFoundError: no trials.csv in folder='nowhere'; it must hold trials.csv, trial_accuracies.csv and ...
    """
    folder = Path(folder)
    names = ("trials.csv", "trial_accuracies.csv", "ground_truth.csv")
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"no {name} in folder={str(folder)!r}; it must hold {names[0]}, {names[1]} and {names[2]}"
            )
    trials, measured, truth = (folder / name for name in names)
    rows = _rows(trials, ("trial", *HYPER_PARAMETERS, "spearman", "gpu_hours"))
    trial_names = [row["trial"] for row in rows]
    archs, true_archs = _rows(measured, ("arch_id", *trial_names)), _rows(truth, ("arch_id", "accuracy"))
    ids, true_ids = ([row["arch_id"] for row in table] for table in (archs, true_archs))
    if len(set(ids)) < len(ids) or sorted(ids) != sorted(true_ids):
        odd = sorted(set(ids) ^ set(true_ids)) or [name for name in ids if ids.count(name) > 1][:1]
        raise ValueError(
            f"column 'arch_id' of {measured} and of {truth} must hold the same architectures, each once; look at "
            f"{shorten(odd)}"
        )
    place = {name: i for i, name in enumerate(true_ids)}
    columns = [[_number(measured, row, name) for row in archs] for name in trial_names]
    full = np.array([_number(truth, row, "accuracy") for row in true_archs])
    return TrialTable(
        trial_names,
        [{name: _plain(_number(trials, row, name)) for name in HYPER_PARAMETERS} for row in rows],
        np.array(columns) / 100,
        full[[place[name] for name in ids]] / 100,
        np.array([_number(trials, row, "gpu_hours") for row in rows]),
        np.array([_number(trials, row, "spearman") for row in rows]),
    )


@dataclasses.dataclass(frozen=True)
class ReplayResult:
    """One way through a table.

    Args:
        order: names of the trials as they were measured.
        scores: their rank agreement.
        hours: (trials,) GPU hours spent after each, all architectures together.
        pruned: (name, value) as MIP fixed them; empty for a random order.
        own: so many of the trials MIP itself asked for; the others came afterwards, in random order.
        found_after: how many trials it took to come near the best; 0 if that was not reached.
        hours_to_found: GPU hours until then, ``inf`` if that was not reached.

    Example:
        >>> ReplayResult(["a"], [0.5], np.array([1.0]), [], 1, 1, 1.0).found_by_mip
        True
    """

    order: list[str]
    scores: list[float]
    hours: NDArray[np.float64]
    pruned: list[tuple[str, Any]]
    own: int
    found_after: int
    hours_to_found: float

    @property
    def found_by_mip(self) -> bool:
        """Whether the best was reached before MIP had used up its own space."""
        return 0 < self.found_after <= self.own


def replay(
    table: TrialTable,
    *,
    k: int = 4,
    seed: int = 0,
    importance: str | Importance = "fanova",
    n_estimators: int = 500,
    within: float = 0.02,
    budget: float | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> ReplayResult:
    """Run MIP where a measurement is a look into the table.

    A table has few of the recipes of its space, and MIP leaves most of those behind that differ from the cheapest one.
    When its space is used up, the remaining trials follow in the random order, so that every way ends at the best.

    Args:
        table: of :func:`read_table`.
        k: recipes per round.
        seed: of the order, the cheapest recipe first and the rest shuffled, and of the forests.
        importance: as in :class:`MIP`.
        n_estimators: trees of each forest.
        within: so far below the best rank agreement of the table still counts as found.
        budget: hours for one architecture; dearer trials take no part, neither as recipes nor as the best.
        defaults: as in :class:`MIP`; ``None`` keeps batch size 128 and its rate, as the published recipes do, and
            ``{}`` fixes everything at its value in the cheapest recipe.

    Raises:
        ValueError: as in :class:`MIP`; a negative ``within``; a recipe twice in the table.

    Source:
        ours; BPE/MIP specification, section 2.3 for MIP and its pitfall (c) for the defaults.

    Example:
        >>> table = TrialTable(list("abc"), [{"epochs": e} for e in (1, 2, 3)], np.array([[1, 2, 3], [1, 3, 2],
        ...                    [3, 2, 1]]) / 4, np.array([0.2, 0.3, 0.4]), np.array([1.0, 2, 3]), np.zeros(3))
        >>> result = replay(table, defaults={})
        >>> result.order[0], result.found_after, result.hours_to_found
        ('a', 1, 3.0)
    """
    table = table if budget is None else table.within(budget)
    if defaults is None:
        space = table.space()
        defaults = {name: value for name, value in DEFAULTS.items() if value in space.get(name, [])}
    scores = table.scores()
    order = _cheapest_first(table, seed)
    rows = {_key(recipe): row for row, recipe in enumerate(table.recipes)}
    mip = MIP(
        table.space(),
        lambda recipe: float(table.hours[rows[_key(recipe)]]),
        sampler=[table.recipes[i] for i in order],
        k=k,
        importance=importance,
        n_estimators=n_estimators,
        seed=seed,
        defaults=defaults,
    )
    pruned = []
    while recipes := mip.ask():
        mip.tell(recipes, [float(scores[rows[_key(recipe)]]) for recipe in recipes])
        if mip.done:
            break
        pruned.append(mip.prune())
    while len(mip.remaining) == 1 and (recipes := mip.ask()):
        mip.tell(recipes, [float(scores[rows[_key(recipe)]]) for recipe in recipes])
    own = [rows[_key(recipe)] for recipe, _ in mip.trials]
    return _result(table, scores, own + [i for i in order if i not in own], pruned, len(own), within)


def random_hours(
    table: TrialTable, *, seed: int = 0, within: float = 0.02, budget: float | None = None
) -> ReplayResult:
    """Measure the recipes of a table in random order, without MIP and without a cheapest one first.

    Args:
        table: of :func:`read_table`.
        seed: of the order.
        within: as in :func:`replay`.
        budget: as in :func:`replay`.

    Raises:
        ValueError: a negative ``within``, or fewer than two trials within the budget.

    Source:
        ours, what MIP is to be compared with.

    Example:
        >>> table = TrialTable(list("ab"), [{"epochs": e} for e in (1, 2)], np.array([[1, 2, 3], [1, 3, 2]]) / 4,
        ...                    np.array([0.2, 0.3, 0.4]), np.array([1.0, 2]), np.zeros(2))
        >>> random_hours(table).hours[-1]
        np.float64(9.0)
    """
    table = table if budget is None else table.within(budget)
    order = permutation(len(table.names), purpose("bpe_mip/random"), seed).tolist()
    return _result(table, table.scores(), order, [], len(order), within)


def compare(
    table: TrialTable, seeds: int | Iterable[int] = 50, *, within: float = 0.02, **options: Any
) -> dict[str, NDArray[Any]]:
    """GPU hours until a recipe near the best is measured, by MIP and in random order.

    Args:
        table: of :func:`read_table`.
        seeds: how many, or which.
        within: as in :func:`replay`.
        options: further arguments of :func:`replay`; ``budget`` holds for both.

    Returns:
        One entry for each seed: ``mip_hours`` (with what had to be measured after MIP's own space) and
        ``random_hours``, ``mip_trials`` and ``random_trials``, how many recipes were measured until then,
        ``mip_own_hours``, what all recipes that MIP itself asked for took, and ``found_by_mip``; ``mip_best``, the best
        rank agreement among those, and ``random_best``, what the random order has reached by the same hours (NaN if
        its first recipe alone takes longer).

    Raises:
        ValueError: as in :func:`replay`; no seeds.

    Source:
        ours.

    Example:
        >>> table = TrialTable(list("ab"), [{"epochs": e} for e in (1, 2)], np.array([[1, 2, 3], [1, 3, 2]]) / 4,
        ...                    np.array([0.2, 0.3, 0.4]), np.array([1.0, 2]), np.zeros(2))
        >>> compare(table, seeds=2, defaults={})["mip_hours"].tolist()
        [3.0, 3.0]
    """
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not chosen:
        raise ValueError(f"seeds={seeds} names no seed; give a number from 1 on, or a list")
    budget = options.get("budget")
    ours = [replay(table, seed=seed, within=within, **options) for seed in chosen]
    others = [random_hours(table, seed=seed, within=within, budget=budget) for seed in chosen]
    return {
        "mip_hours": np.array([one.hours_to_found for one in ours]),
        "random_hours": np.array([one.hours_to_found for one in others]),
        "mip_trials": np.array([one.found_after for one in ours]),
        "random_trials": np.array([one.found_after for one in others]),
        "mip_own_hours": np.array([one.hours[one.own - 1] for one in ours]),
        "found_by_mip": np.array([one.found_by_mip for one in ours]),
        "mip_best": np.array([max(one.scores[: one.own]) for one in ours]),
        "random_best": np.array(
            [_best_by(other, one.hours[one.own - 1]) for one, other in zip(ours, others, strict=True)]
        ),
    }


def _best_by(result: ReplayResult, hours: float) -> float:
    scores = np.array(result.scores)[result.hours <= hours]
    return float(scores.max()) if len(scores) else math.nan


def _cheapest_first(table: TrialTable, seed: int) -> list[int]:
    first = int(table.hours.argmin())
    shuffled = permutation(len(table.names), purpose("bpe_mip/order"), seed).tolist()
    return [first, *(row for row in shuffled if row != first)]


def _result(
    table: TrialTable,
    scores: NDArray[np.float64],
    order: list[int],
    pruned: list[tuple[str, Any]],
    own: int,
    within: float,
) -> ReplayResult:
    if not within >= 0:
        raise ValueError(f"within={within} must be 0 or more, a difference of rank agreements")
    near = scores[order] >= np.nanmax(scores) - within
    hours = (table.hours[order] * len(table.truth)).cumsum()
    at = int(near.argmax())
    return ReplayResult(
        [table.names[i] for i in order],
        scores[order].tolist(),
        hours,
        pruned,
        own,
        at + 1 if near.any() else 0,
        float(hours[at]) if near.any() else math.inf,
    )


def _key(recipe: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(recipe.values())


def _rows(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        found = list(reader)
    if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
        raise ValueError(f"{path} has no column {shorten(map(repr, missing))}")
    if not found:
        raise ValueError(f"{path} has no rows below its header")
    return found


def _number(path: Path, row: Mapping[str, str], column: str) -> float:
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        first = next(iter(row.values()))
        raise ValueError(f"{path}, row {first!r}: column {column!r} holds {row[column]!r} and not a finite number")
    return value


def _plain(value: float) -> int | float:
    return int(value) if value == int(value) else value
