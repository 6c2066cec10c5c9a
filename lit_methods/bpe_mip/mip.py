"""Minimum importance pruning: which cheap recipe ranks networks as full training does (arXiv 2005.09917).

MIP measures a few recipes, asks a forest which hyper-parameter matters least, fixes that one at its cheap value and
goes on in the smaller space. The measuring is the caller's, so that it can be a table, a loop or a cluster::

    while recipes := mip.ask():
        mip.tell(recipes, [measure(recipe) for recipe in recipes])
        if mip.done:
            break
        mip.prune()
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_methods.bpe_mip.importance import METHODS, importance_spread
from lit_methods.functional.draws import permutation, purpose
from lit_methods.functional.suggestions import nearest

Recipe = dict[str, Any]  # name -> value
Importance = Callable[[NDArray[np.int64], NDArray[np.float64], list[str], list[int], int], Any]
SAMPLERS = ("random", "cheapest")
MOST_RECIPES = 2_000_000  # codes, order and cost of each are kept in memory
_STATE = ("trials", "remaining", "fixed", "importances", "reasons", "spread")


class MIP:
    """Search a space of recipes by measuring few of them and pruning the least important hyper-parameter.

    A name with one value in ``space`` is fixed from the start. ``cost_fn`` is called once for each recipe of the space.

    Args:
        space: name -> sorted list of values, numbers or strings; recipes are counted row-major over its order.
        cost_fn: recipe -> cost, such as GPU hours for one architecture; finite, 0 or more.
        sampler: the order in which recipes are measured: ``"random"`` (the cheapest first, the rest shuffled by
            ``seed``), ``"cheapest"`` (rising cost), or a sequence of recipes, the order itself; recipes that it leaves
            out do not exist.
        k: recipes that :meth:`ask` gives at most.
        importance: ``"fanova"``, ``"impurity"``, or ``f(x, y, names, n_values, seed)`` -> one float for each name;
            ``x`` (rows, names) ordinal codes of all measured recipes, ``y`` (rows,) their scores.
        n_estimators: trees of the forest.
        seed: of the order; the forest after i prunes has ``seed + i``.
        defaults: name -> value to fix it at instead of its value in the cheapest recipe.
        spread_seeds: so many forests tell the range of each importance, kept in ``spread``; 0 leaves that out.

    Attributes:
        remaining: names that still vary.
        fixed: name -> value of the others.
        importances: one dict, name -> importance, for each prune.
        reasons: one sentence for each prune.
        spread: with ``spread_seeds``, one dict, name -> (lowest, highest), for each prune.
        trials: (recipe, score) in the order in which they were told.

    Raises:
        ValueError: an empty space, a list of values that is empty, unsorted or has duplicates, fewer than two recipes,
            more than ``MOST_RECIPES``; ``k`` or ``n_estimators`` below 1; unknown names or values in ``defaults`` or in
            the sequence; a cost that is not finite.

    Source:
        BPE/MIP specification, sections 2.3 and 7. The authors did not release theirs; open points are decided there:
        K = 4, a name with one value among the measured recipes is not pruned unless all are such.

    Example:
        >>> space = {"epochs": [1, 5, 10], "cutout": [0, 16]}
        >>> mip = MIP(space, lambda recipe: recipe["epochs"], k=6, n_estimators=20)
        >>> recipes = mip.ask()
        >>> recipes[0]
        {'epochs': 1, 'cutout': 0}
        >>> mip.tell(recipes, [0.1 * recipe["epochs"] - 0.001 * recipe["cutout"] for recipe in recipes])
        >>> mip.prune(), mip.remaining, mip.done
        (('cutout', 0), ['epochs'], True)
        >>> mip.best(budget=5)
        {'epochs': 5, 'cutout': 0}
    """

    def __init__(
        self,
        space: Mapping[str, Sequence[Any]],
        cost_fn: Callable[[Recipe], float],
        *,
        sampler: str | Sequence[Mapping[str, Any]] = "random",
        k: int = 4,
        importance: str | Importance = "fanova",
        n_estimators: int = 500,
        seed: int = 0,
        defaults: Mapping[str, Any] | None = None,
        spread_seeds: int = 0,
    ) -> None:
        self.space = _checked_space(space)
        for name, value, least in (
            ("k", k, 1),
            ("n_estimators", n_estimators, 1),
            ("seed", seed, 0),
            ("spread_seeds", spread_seeds, 0),
        ):
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}={value!r} must be a whole number from {least} on")
        if not callable(importance) and importance not in METHODS:
            raise ValueError(f"importance={importance!r} must be one of {', '.join(METHODS)}, or a function")
        if seed >= 2**31:
            raise ValueError(f"seed={seed} must lie below 2**31; forests take no larger one")
        if isinstance(sampler, str) and sampler not in SAMPLERS:
            raise ValueError(f"sampler={sampler!r} must be one of {', '.join(SAMPLERS)}, or a list of recipes")
        self.k, self.n_estimators, self.seed, self.spread_seeds = int(k), int(n_estimators), int(seed), spread_seeds
        self.importance, self.cost_fn = importance, cost_fn
        self.defaults = dict(defaults or {})
        for name, value in self.defaults.items():
            self._code(name, value, "defaults")

        sizes = tuple(map(len, self.space.values()))
        listed = None if isinstance(sampler, str) else [self._flat(recipe, "sampler") for recipe in sampler]
        if listed is not None and len(set(listed)) < len(listed):
            twice = Counter(listed).most_common(1)[0][0]
            raise ValueError(f"sampler lists {self._recipe(twice)} twice; each recipe may stand there once")
        if (count := math.prod(sizes) if listed is None else len(listed)) > MOST_RECIPES:
            raise ValueError(
                f"space has {count} recipes, more than the {MOST_RECIPES} that can be put into order; give fewer "
                "values, or a list of recipes as sampler"
            )
        flats = np.arange(math.prod(sizes)) if listed is None else np.array(sorted(listed), np.int64)
        if len(flats) < 2:
            raise ValueError(f"space: {len(flats)} recipe in all, nothing to search; give some name two values or more")
        self._flats = flats  # row-major; what follows has one entry for each of them
        self._codes = np.stack(np.unravel_index(flats, sizes), 1).astype(np.int32)
        self._costs = np.array([self._cost(flat) for flat in flats.tolist()])
        self._order = self._priorities(str(sampler) if listed is None else listed)
        self._measured, self._warned = np.zeros(len(flats), bool), False
        self._rows: list[int] = []  # of the trials

        self.trials: list[tuple[Recipe, float]] = []
        self.fixed: Recipe = {name: values[0] for name, values in self.space.items() if len(values) == 1}
        self.remaining: list[str] = [name for name in self.space if name not in self.fixed]
        self.importances: list[dict[str, float]] = []
        self.reasons: list[str] = []
        self.spread: list[dict[str, tuple[float, float]]] = []

    def ask(self) -> list[Recipe]:
        """The next recipes to measure: the first ``k`` of the current space that were not, ``[]`` if none is left.

        Until their scores are told, the answer stays the same.

        Example:
            >>> MIP({"epochs": [1, 2], "cutout": [0, 16]}, lambda r: r["epochs"], sampler="cheapest", k=2).ask()
            [{'epochs': 1, 'cutout': 0}, {'epochs': 1, 'cutout': 16}]
        """
        return [self._recipe(self._flats[i]) for i in self._waiting()[: self.k]]

    def tell(self, recipes: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> None:
        """Add measured recipes, those that were asked for or others of the space.

        Args:
            recipes: name -> value, each with all names.
            scores: rank agreement of each, finite.

        Raises:
            ValueError: lengths differ, a recipe is unknown or was told before, or a score is not finite. Nothing is
                added then.

        Example:
            >>> mip = MIP({"epochs": [1, 2]}, lambda recipe: recipe["epochs"])
            >>> mip.tell([{"epochs": 2}], [0.5])
            >>> mip.trials
            [({'epochs': 2}, 0.5)]
        """
        recipes, values = list(recipes), [float(score) for score in scores]
        if len(recipes) != len(values):
            raise ValueError(f"{len(recipes)} recipes were told with {len(values)} scores; give one score for each")
        rows: list[int] = []
        for recipe, value in zip(recipes, values, strict=True):
            row = self._row(recipe)
            if self._measured[row] or row in rows:
                raise ValueError(f"{dict(recipe)} was measured before; a recipe is told once")
            if math.isnan(value):
                raise ValueError(
                    f"the score of {dict(recipe)} is NaN, an undefined correlation: the recipe gave all networks the "
                    "same accuracy, or fewer than two were measured. Measure more networks, or tell 0.0 if the recipe "
                    "cannot tell them apart"
                )
            if math.isinf(value):
                raise ValueError(f"the score of {dict(recipe)} is {value}; scores must be finite")
            rows.append(row)
        self._measured[rows] = True
        self._rows += rows
        self.trials += [(self._recipe(self._flats[row]), value) for row, value in zip(rows, values, strict=True)]

    def prune(self) -> tuple[str, Any]:
        """Fix the least important of the remaining names.

        Returns:
            The name, and the value that it is fixed at: that of the cheapest recipe of the current space (ties:
            row-major), or its default.

        Raises:
            ValueError: nothing was told yet, one name remains, or the importance function does not give one finite
                number for each name.

        Example:
            >>> mip = MIP({"epochs": [1, 2], "cutout": [0, 16]}, lambda recipe: recipe["epochs"], n_estimators=9)
            >>> mip.tell(mip.ask(), [0.1, 0.2, 0.3, 0.4])
            >>> mip.prune()[0] in ("epochs", "cutout"), len(mip.reasons)
            (True, 1)
        """
        if not self.trials:
            raise ValueError("prune() needs measured recipes: call ask() and tell(recipes, scores) first")
        if len(self.remaining) < 2:
            raise ValueError(f"only {self.remaining[0]!r} remains: the search is over, best() gives the recipe")
        names, columns = list(self.remaining), self._columns(self.remaining)
        x = self._codes[self._rows][:, columns].astype(np.int64)
        y = np.array([score for _, score in self.trials])
        if y.min() == y.max() and not self._warned:
            self._warned = True
            warnings.warn(
                f"the target is constant: all {len(y)} measured recipes have the score {y[0]:g}, which says nothing "
                "about importance; the first name that varied is pruned",
                stacklevel=2,
            )
        found = self._importances(x, y, names)
        varied = [bool((column != column[0]).any()) for column in x.T]
        eligible = [i for i in range(len(names)) if varied[i] or not any(varied)]
        least = min(eligible, key=lambda i: found[i])
        name = names[least]
        value, why = self._value_to_fix(name)
        waits = [names[i] for i in range(len(names)) if i not in eligible]
        self.reasons.append(
            f"{name}: importance {found[least]:.3g} is the smallest of {len(eligible)}; fixed at {value}, {why}"
            + (f" ({', '.join(waits)} had one value among the measured recipes and may not go)" if waits else "")
        )
        self.importances.append(dict(zip(names, found, strict=True)))
        self.remaining.remove(name)
        self.fixed[name] = value
        return name, value

    @property
    def done(self) -> bool:
        """Whether to stop after :meth:`tell`: one name remains, or nothing is left to measure.

        Example:
            >>> MIP({"epochs": [1, 2], "cutout": [0, 16]}, lambda recipe: recipe["epochs"]).done
            False
        """
        return len(self.remaining) < 2 or not len(self._waiting())

    def best(self, budget: float | None = None) -> Recipe:
        """The measured recipe with the largest score, the cheaper one of several.

        Args:
            budget: only recipes that cost no more.

        Raises:
            ValueError: nothing was measured, or nothing within the budget.

        Example:
            >>> mip = MIP({"epochs": [1, 2, 3]}, lambda recipe: recipe["epochs"])
            >>> mip.tell([{"epochs": 1}, {"epochs": 3}], [0.4, 0.6])
            >>> mip.best(), mip.best(budget=2)
            ({'epochs': 3}, {'epochs': 1})
        """
        if not self.trials:
            raise ValueError("best() needs measured recipes: call ask() and tell(recipes, scores) first")
        costs = self._costs[self._rows].tolist()
        priced = [(score, cost, recipe) for (recipe, score), cost in zip(self.trials, costs, strict=True)]
        within = [one for one in priced if budget is None or one[1] <= budget]
        if not within:
            raise ValueError(
                f"budget={budget} is below the cost of every measured recipe; the cheapest costs "
                f"{min(cost for _, cost, _ in priced):g}"
            )
        return dict(max(within, key=lambda one: (one[0], -one[1]))[2])

    def cost(self, recipe: Mapping[str, Any]) -> float:
        """What ``cost_fn`` said about a recipe of the space.

        Args:
            recipe: name -> value.

        Raises:
            ValueError: a recipe that is not in the space.

        Example:
            >>> MIP({"epochs": [1, 2]}, lambda recipe: 3 * recipe["epochs"]).cost({"epochs": 2})
            6.0
        """
        return float(self._costs[self._row(recipe)])

    def state_dict(self) -> dict[str, Any]:
        """What was measured and pruned, in plain types; a search that loads it goes on bit for bit.

        Example:
            >>> sorted(MIP({"epochs": [1, 2]}, lambda recipe: recipe["epochs"]).state_dict())
            ['fixed', 'importances', 'reasons', 'remaining', 'seed', 'space', 'spread', 'trials']
        """
        return {
            "space": {name: list(values) for name, values in self.space.items()},
            "seed": self.seed,
            "trials": [[dict(recipe), score] for recipe, score in self.trials],
            "remaining": list(self.remaining),
            "fixed": dict(self.fixed),
            "importances": [dict(found) for found in self.importances],
            "reasons": list(self.reasons),
            "spread": [{name: list(pair) for name, pair in found.items()} for found in self.spread],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another search with the same arguments stood.

        Args:
            state: of :meth:`state_dict`.

        Raises:
            ValueError: the state is incomplete, or that of another space or seed.

        Example:
            >>> mip, other = (MIP({"epochs": [1, 2]}, lambda recipe: recipe["epochs"]) for _ in range(2))
            >>> mip.tell([{"epochs": 2}], [0.5])
            >>> other.load_state_dict(mip.state_dict())
            >>> other.ask()
            [{'epochs': 1}]
        """
        if missing := [name for name in ("space", "seed", *_STATE) if name not in state]:
            raise ValueError(f"the state of MIP lacks {', '.join(missing)}")
        if list(state["space"].items()) != list(self.space.items()) or state["seed"] != self.seed:
            raise ValueError(
                f"the state belongs to another search: space={state['space']} and seed={state['seed']}, here "
                f"{self.space} and {self.seed}; give the same arguments, or start afresh"
            )
        self.trials, self._rows, self._measured = [], [], np.zeros(len(self._flats), bool)
        self.tell([recipe for recipe, _ in state["trials"]], [score for _, score in state["trials"]])
        self.remaining, self.fixed = list(state["remaining"]), dict(state["fixed"])
        self.importances = [dict(found) for found in state["importances"]]
        self.reasons = list(state["reasons"])
        self.spread = [{name: (low, high) for name, (low, high) in found.items()} for found in state["spread"]]

    def _code(self, name: str, value: Any, where: str) -> int:
        if name not in self.space:
            known = ", ".join(self.space)
            raise ValueError(
                f"{where}: {name!r} is no name of the space{nearest(str(name), self.space)}; it has {known}"
            )
        if value not in self.space[name]:
            raise ValueError(f"{where}: {name}={value!r} is none of its values {self.space[name]}")
        return self.space[name].index(value)

    def _flat(self, recipe: Mapping[str, Any], where: str) -> int:
        """Row-major position in the whole space."""
        if not isinstance(recipe, Mapping):
            raise ValueError(f"{where} must hold recipes, dicts of name -> value, got {recipe!r}")
        if missing := [name for name in self.space if name not in recipe]:
            raise ValueError(f"{where}: {dict(recipe)} lacks {', '.join(missing)}")
        codes = {name: self._code(name, value, where) for name, value in recipe.items()}
        flat = 0
        for name, values in self.space.items():
            flat = flat * len(values) + codes[name]
        return flat

    def _row(self, recipe: Mapping[str, Any]) -> int:
        flat = self._flat(recipe, "a recipe")
        row = int(np.searchsorted(self._flats, flat))
        if row == len(self._flats) or self._flats[row] != flat:
            raise ValueError(f"{dict(recipe)} is not among the {len(self._flats)} recipes of sampler")
        return row

    def _recipe(self, flat: int) -> Recipe:
        values, flat = [], int(flat)
        for name in reversed(self.space):
            flat, code = divmod(flat, len(self.space[name]))
            values.append((name, self.space[name][code]))
        return dict(reversed(values))

    def _cost(self, flat: int) -> float:
        recipe = self._recipe(flat)
        cost = float(self.cost_fn(recipe))
        if not 0 <= cost < math.inf:
            raise ValueError(f"cost_fn gives {cost} for {recipe}; a cost is finite and 0 or more")
        return cost

    def _priorities(self, sampler: str | list[int]) -> NDArray[np.int64]:
        """Rows in the order in which they are measured."""
        if isinstance(sampler, list):
            return np.searchsorted(self._flats, sampler)
        if sampler == "cheapest":
            return np.argsort(self._costs, kind="stable")
        first = int(self._costs.argmin())
        shuffled = permutation(len(self._costs), purpose("bpe_mip/order"), self.seed)
        return np.concatenate([[first], shuffled[shuffled != first]])

    def _columns(self, names: Sequence[str]) -> list[int]:
        return [list(self.space).index(name) for name in names]

    def _current(self) -> NDArray[np.bool_]:
        """Which rows have all pruned names at their fixed values."""
        codes = np.array([self.space[name].index(value) for name, value in self.fixed.items()], np.int32)
        return (self._codes[:, self._columns(list(self.fixed))] == codes).all(1)

    def _waiting(self) -> NDArray[np.int64]:
        open_ = self._current() & ~self._measured
        return self._order[open_[self._order]]

    def _importances(self, x: NDArray[np.int64], y: NDArray[np.float64], names: list[str]) -> list[float]:
        sizes, seed = [len(self.space[name]) for name in names], self.seed + len(self.importances)
        seeds = range(seed, seed + max(1, self.spread_seeds))
        if callable(self.importance):
            rows = np.stack([self._ask_importance(x, y, names, sizes, one) for one in seeds])
        else:
            options: dict[str, Any] = {"importance": self.importance, "n_estimators": self.n_estimators}
            rows = importance_spread(x, y, sizes, seeds=seeds, **options)
        if self.spread_seeds:
            low, high = rows.min(0).tolist(), rows.max(0).tolist()
            self.spread.append(dict(zip(names, zip(low, high, strict=True), strict=True)))
        return list(map(float, rows[0]))

    def _ask_importance(
        self, x: NDArray[np.int64], y: NDArray[np.float64], names: list[str], sizes: list[int], seed: int
    ) -> NDArray[np.float64]:
        assert callable(self.importance)
        found = np.asarray(self.importance(x, y, list(names), list(sizes), seed), np.float64)
        if found.shape != (len(names),) or not np.isfinite(found).all():
            raise ValueError(f"importance must give one finite number for each of {names}, got {found.tolist()}")
        return found

    def _value_to_fix(self, name: str) -> tuple[Any, str]:
        rows, column = np.flatnonzero(self._current()), self._columns([name])[0]
        cheapest = rows[self._costs[rows].argmin()]
        value = self.space[name][self._codes[cheapest, column]]
        if name not in self.defaults:
            return value, "its value in the cheapest recipe"
        default = self._code(name, self.defaults[name], "defaults")
        if (self._codes[rows, column] == default).any():
            return self.space[name][default], "its default"
        return value, f"its value in the cheapest recipe: none that is left has its default {self.defaults[name]}"


def _checked_space(space: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    if not isinstance(space, Mapping) or not space:
        raise ValueError(f"space={space!r} must be a dict, name -> sorted list of values, with one name at least")
    found: dict[str, list[Any]] = {}
    for name, given in space.items():
        if isinstance(given, (str, bytes)) or not hasattr(given, "__len__") or not hasattr(given, "__iter__"):
            raise ValueError(f"space[{name!r}]={given!r} must be a list of values")
        values = [value.item() if isinstance(value, np.generic) else value for value in given]
        if not values:
            raise ValueError(f"space[{name!r}] is empty; give one value at least, or leave the name out")
        if odd := [value for value in values if not isinstance(value, (int, float, str)) or value != value]:
            raise ValueError(f"space[{name!r}] holds {odd[0]!r}; values are numbers or words")
        if len({isinstance(value, str) for value in values}) > 1:
            raise ValueError(f"space[{name!r}]={values} mixes numbers and words")
        if len(set(values)) < len(values):
            raise ValueError(f"space[{name!r}]={values} has a value twice; give each once")
        if sorted(values) != values:
            raise ValueError(f"space[{name!r}]={values} is not sorted; give {sorted(values)}")
        found[name] = values
    return found
