"""What differs between runs, their recipe, and the recipe with the paper's settings."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from lit_methods.cli.changes import equal, values
from lit_methods.cli.given import flatten
from lit_methods.cli.recipes import find_recipes
from lit_methods.cli.report.defaults import defaults_of
from lit_methods.cli.report.reading import Run

LONGEST = 48  # characters of a value in the table

_TRAINER: dict[str, Any] = {  # the options that change what is computed, with Lightning's defaults
    "max_epochs": None, "max_steps": -1, "max_time": None, "precision": None, "accumulate_grad_batches": 1,
    "gradient_clip_val": None, "limit_train_batches": None, "limit_val_batches": None, "limit_test_batches": None,
    "check_val_every_n_epoch": 1, "devices": "auto", "num_nodes": 1, "strategy": "auto",
}  # fmt: skip
_COMPARED = ("model.", "data.", "trainer.", "checkpoint.monitor", "seed_everything")
_LEFT_OUT = re.compile(  # what changes how it is shown or how fast it is read, not what comes out
    r"callbacks\.\w*Logger\b|\.(num_workers|in_memory|pin_memory|chunk|chunk_size|on_bad_image|every_n_epochs)$"
)
_DEFAULTS = {f"trainer.{name}": value for name, value in _TRAINER.items()} | {"seed_everything": 0}


class _Unknown:
    """The value of an option that a configuration does not name, where the default is not known either."""


UNKNOWN = _Unknown()


@dataclass(frozen=True)
class Recipe:
    """A packaged recipe.

    Args:
        name: its short name.
        config: what its file holds.
    """

    name: str
    config: dict[str, Any]

    @property
    def paper(self) -> dict[str, Any]:
        """Its published figures."""
        paper = self.config.get("paper")
        return paper if isinstance(paper, dict) else {}

    def named(self, part: str) -> str:
        """The class of ``"model"`` or ``"data"``, without its modules."""
        return _named(self.config, part)


@dataclass(frozen=True)
class Row:
    """One option of the table of differences.

    Args:
        option: as the command line has it.
        cells: a text per column; empty where the option is not one of that column's.
        changed: columns of runs that differ from their recipe.
    """

    option: str
    cells: list[str]
    changed: frozenset[int]


@cache
def load_recipe(name: str) -> Recipe | None:
    """A packaged recipe by its short name; ``None`` where there is none.

    Example:
        >>> load_recipe("hrank").named("model"), load_recipe("nobody")
        ('HRank', None)
    """
    path = find_recipes().get(name)
    if path is None:
        return None
    return Recipe(name, yaml.load(path.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def paper_scale(run: Run) -> Recipe | None:
    """The recipe with the paper's settings to hold a run against: of the same method class, named after the run's.

    One on the same class of data is preferred, then one with published figures, then the one that shares most
    settings with the run. Where no recipe is of the same class (a comparison, say), those with published figures are
    asked that are named after the run's. For a run of such a recipe there is none: its own recipe is it.

    Args:
        run: any.

    Example:
        >>> from pathlib import Path
        >>> config = {"recipe": "hrank", "model": {"class_path": "lit_methods.HRank"}}
        >>> paper_scale(Run(Path("a"), "a", config)).name.startswith("hrank_")
        True
    """
    method, data = run.named("model"), run.named("data")
    names = find_recipes()
    own = load_recipe(run.recipe)
    if not method or (own and (own.paper or any(run.recipe.startswith(f"{name}_") for name in names))):
        return None
    named = {name for name in names if name.startswith(f"{run.recipe}_")}
    likely = named if own else {name for name, path in names.items() if method in path.read_text("utf-8")}
    found = [recipe for name in sorted(likely) if (recipe := load_recipe(name))]
    same = [recipe for recipe in found if recipe.named("model") == method and (own or recipe.paper)]
    mine = settings(run.config)

    def rank(recipe: Recipe) -> tuple[bool, bool, float]:
        near = sum(_nearness(key, mine.get(key), value) for key, value in settings(recipe.config).items())
        return recipe.named("data") != data, not recipe.paper, -near

    return min(same or [recipe for recipe in found if recipe.paper and own], key=rank, default=None)


def _nearness(key: str, mine: Any, other: Any) -> float:
    """1 for the same value, a half for relatives such as resnet20 and resnet110."""
    if equal(key, mine, other):
        return 1.0
    letters = [re.match(r"[a-z]+", value) for value in (mine, other) if isinstance(value, str)]
    return 0.5 if len(letters) == 2 and all(letters) and len({match[0] for match in letters if match}) == 1 else 0.0


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """The options of a configuration that matter for what comes out, flat.

    Args:
        config: of a run or a recipe.

    Example:
        >>> settings({"model": {"class_path": "HRank", "init_args": {"lr": 0.1}}, "trainer": {"logger": None}})
        {'model.class_path': 'HRank', 'model.init_args.lr': 0.1}
    """
    found = values(flatten(config), _COMPARED)
    inner = {key.rpartition(".")[0] for key in found}
    return {
        key: value
        for key, value in found.items()
        if not (key.endswith(".init_args") or (value is None and key in inner))
        and not _LEFT_OUT.search(key)
        and (not key.startswith("trainer.") or key.startswith("trainer.callbacks.") or key in _DEFAULTS)
    }


def table(runs: Sequence[Run], recipes: Sequence[Recipe]) -> list[Row]:
    """Where runs and recipes differ: a column for each run, then one for each recipe.

    Shown is what a run sets otherwise than the first recipe, its own, what the recipes set otherwise than the runs,
    and what the runs set otherwise than each other. An option that a recipe does not name has the default of its
    class; where that cannot be read, it is no difference.

    Args:
        runs: one or more.
        recipes: the runs' own recipe first; none where the runs have several or it is not a packaged one.

    Example:
        >>> from pathlib import Path
        >>> config = {"model": {"class_path": "lit_methods.HRank", "init_args": {"lr": 0.2}}}
        >>> for row in table([Run(Path("a"), "a", config)], [load_recipe("hrank")])[:2]:
        ...     print(row.option, row.cells, sorted(row.changed))
        model.lr ['0.2', '0.1'] [0]
        model.backbone ['resnet56', 'resnet20'] []
    """
    said = [settings(config) for config in [run.config for run in runs] + [recipe.config for recipe in recipes]]
    number = len(runs)
    keys = dict.fromkeys(key for column in said for key in column)
    rows = []
    for key in sorted(keys, key=_place):
        found = [_value(column, key) for column in said]
        mine, others = found[:number], found[number:]
        changed = {i for i, value in enumerate(mine) if others and key in said[i] and _differ(key, value, others[0])}
        told = any(key in column for column in said[number:])
        against = told and any(_differ(key, value, other) for value in mine for other in others)
        apart = any(_differ(key, value, mine[0]) for value in mine[1:])
        if changed or against or apart:
            rows.append(Row(_option(key), [_text(key, value) for value in found], frozenset(changed)))
    return sorted(rows, key=lambda row: not row.changed)


def _value(column: dict[str, Any], key: str) -> Any:
    """What a column has under a key: what it says, else the default of the class that it names."""
    if key in column:
        return column[key]
    if key in _DEFAULTS:
        return _DEFAULTS[key]
    part, inside, name = key.partition(".init_args.")
    if f"{part}.class_path" not in column or not inside:
        return UNKNOWN
    return defaults_of(str(column[f"{part}.class_path"])).get(name, UNKNOWN)


def _differ(key: str, one: Any, other: Any) -> bool:
    if isinstance(one, _Unknown) or isinstance(other, _Unknown):
        return key.endswith(".class_path") and one is not other  # a callback that only one of them has
    return not equal(key, _plain(one), _plain(other))


def _plain(value: Any) -> Any:
    """YAML reads ``1e-3`` as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _place(key: str) -> tuple[int, str]:
    """Method, data, callbacks, then the rest; inside them the order in which they were met."""
    starts = ("model.", "data.", "trainer.callbacks.", "trainer.", "")
    return next(place for place, start in enumerate(starts) if key.startswith(start)), ""


def _option(key: str) -> str:
    key = key.removeprefix("trainer.callbacks.")
    return re.sub(r"\.init_args\b|\.class_path$", "", key)


def _text(key: str, value: Any) -> str:
    if isinstance(value, _Unknown):
        return ""
    if key.endswith(".class_path"):
        return "used" if key.startswith("trainer.callbacks.") else str(value).rpartition(".")[2]
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(_whole(value), default=str)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _whole(value: Any) -> Any:
    """16 for 16.0: a configuration has it the one way, a recipe the other."""
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _named(config: dict[str, Any], part: str) -> str:
    inner = config.get(part)
    path = inner.get("class_path", "") if isinstance(inner, dict) else inner or ""
    return str(path).rpartition(".")[2]


def own_recipe(run: Run) -> Recipe | None:
    """The packaged recipe that a run was made from, if the class of its method is still that recipe's."""
    recipe = load_recipe(run.recipe)
    return recipe if recipe and recipe.named("model") == run.named("model") else None
