"""MIPSearch: find a cheap training recipe that ranks architectures as full training does."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from callbacks.mip_figures import agreement_figure, importance_figure
from callbacks.mip_replay import replay_table
from callbacks.report import RunReport
from callbacks.trial_rounds import TrialRounds, accuracies
from lit_methods.bpe_mip.cost import gpu_hours
from lit_methods.bpe_mip.functional import expected_pick, spearman, top_mean
from lit_methods.bpe_mip.jobs import Job, Record
from lit_methods.bpe_mip.mip import MIP
from lit_methods.bpe_mip.search_space import Recipe, named_recipe

TRUTH, MEASURE, CONFIRM = "truth", "measure", "confirm"  # what a round is for
FRESH = 1_000_003  # added to the seed of the trials that confirm
_STATE = ("doing", "asked", "last", "truth", "spent", "found", "fresh")


class MIPSearch(TrialRounds):
    """Minimum importance pruning (MIP, arXiv 2005.09917), as rounds of trials inside a fit of ``BPEBenchmark``.

    Each round trains the module's architectures under a few recipes of the space, compares how each recipe ranks them
    with the ground truth, fits a forest from recipe to rank agreement, and fixes the hyper-parameter of least
    importance. It ends with a round in which one is left, when nothing is left to measure or when ``hours`` are spent;
    then the best recipe is measured once more, with another seed.

    Logs after a round ``mip/spearman`` (the best agreement so far), ``mip/hours`` (spent, by the cost model),
    ``mip/remaining`` and ``mip/importance_<name>``. Shows ``mip/importance`` (bars with their spread over forest seeds,
    round by round), ``mip/agreement`` (cost and agreement of all measured recipes) and the tables ``mip/recipes`` and
    ``mip/pruned``. ``summary()`` gives ``mip/best_spearman`` (of the best recipe, measured afresh),
    ``mip/found_spearman`` (by which it was chosen, so too good), ``mip/median_spearman`` (of all measured recipes),
    ``mip/pruned_first``, ``mip/pruned`` (the order), ``mip/best_recipe``, ``mip/recipes`` (measured), ``mip/hours``,
    ``mip/cost_saved`` (1 - cost of the best recipe over that of ``truth_recipe``), ``mip/top_mean`` and
    ``mip/expected_pick`` (ground truth of what it would pick, see ``functional``). With ``--table`` nothing is trained:
    see ``replay_table``. ``best_recipe.json`` in the run's
    directory is a ``recipe`` for other runs.

    Args:
        space: name -> rising values, of the recipe's hyper-parameters.
        k: recipes per round.
        base: the recipe whose values the others have, as in ``BPE``.
        sampler: ``"random"`` (the cheapest one first) or ``"cheapest"``.
        importance: ``"fanova"`` or ``"impurity"``.
        n_estimators: trees of the forest.
        spread_seeds: forests that the spread of an importance is taken from.
        seed: of the order of the recipes and of the forest.
        defaults: name -> value to fix it at when it is pruned, in the place of its cheapest one.
        budget: cost that the best recipe may have at most, in GPU hours per architecture.
        hours: GPU hours for all trials but those that confirm; a recipe that would exceed them is not measured.
        truth_recipe: how architectures are trained to the end; measures the ground truth where the module has none.

    Raises:
        ValueError: a value of the space is none of a recipe, nothing is left to measure, ``hours`` below the cost of
            one trial, fewer than two architectures; in a fit: a ground truth that came out constant.

    Source:
        figure 2 of the paper and the released trials; the authors did not release MIP (see ``MIP``). Ours: rounds
        inside a fit, the second measurement, a recipe under which all accuracies are equal counts as agreement 0. The
        learning rate follows the batch size (``tied_lr``) where the space has the one and not the other.

    Example:
        >>> search = MIPSearch({"epochs": [1, 2], "cutout": [0, 16]})
        >>> search.recipe({"epochs": 2, "cutout": 0}).channels
        8
    """

    def __init__(
        self,
        space: dict[str, list[int | float]],
        k: int = 4,
        base: str | dict[str, Any] = "BPE1",
        sampler: Literal["random", "cheapest"] = "random",
        importance: Literal["fanova", "impurity"] = "fanova",
        n_estimators: int = 500,
        spread_seeds: int = 5,
        seed: int = 0,
        defaults: dict[str, int | float] | None = None,
        budget: float | None = None,
        hours: float | None = None,
        truth_recipe: str | dict[str, Any] = "FULL",
    ) -> None:
        super().__init__()
        self.base, self.truth_recipe = named_recipe(base), named_recipe(truth_recipe)
        self.budget, self.hours = budget, hours
        if not isinstance(space, dict):
            raise ValueError(f"space={space!r}: give name -> rising list of values")
        for name, values in space.items():
            for value in values if isinstance(values, list) else []:
                self.recipe({name: value})  # says what is wrong with it
        self.settings = {  # what a resumed search has to share
            "base": self.base.to_dict(),
            "truth_recipe": self.truth_recipe.to_dict(),
            "k": k,
            "importance": importance,
            "n_estimators": n_estimators,
            "defaults": defaults or {},
        }
        self.mip = MIP(
            space,
            lambda values: gpu_hours(self.recipe(values)),
            sampler=sampler,
            k=k,
            importance=importance,
            n_estimators=n_estimators,
            seed=seed,
            defaults=defaults,
            spread_seeds=spread_seeds,
        )
        self.doing = MEASURE
        self.asked: list[dict[str, Any]] = []  # recipes of the round at hand
        self.last = False  # whether that round is the last one: one name remains
        self.truth: list[float] = []
        self.spent = 0.0
        self.found: list[dict[str, Any]] = []  # measured recipes, with what they would pick
        self.fresh: dict[str, float] = {}  # of the second measurement
        self.replayed: dict[str, float | str | list] = {}  # of a table

    def recipe(self, values: dict[str, Any]) -> Recipe:
        """The recipe with these values of the space; the rest is ``base``.

        Args:
            values: name -> value; the learning rate follows a batch size that comes without one.

        Raises:
            ValueError: there is no such name or value.
        """
        base = self.base.to_dict()
        if "batch_size" in values:
            del base["lr"]
        return Recipe.from_dict(base | values)

    # -- rounds -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot come to an end."""
        super().setup(trainer, pl_module, stage)
        module: Any = pl_module
        if stage != "fit" or module.table is not None:
            return
        if len(module.architectures) < 2:
            raise ValueError(
                f"MIPSearch ranks architectures, and the module has {len(module.architectures)}: give "
                "model.architectures two or more"
            )
        least = min(self.mip.cost(values) for values in self.mip.ask())
        before = 0.0 if module.ground_truth is not None else gpu_hours(self.truth_recipe)
        first = (before + self.mip.cost(self.mip.ask()[0])) * len(module.architectures)
        if self.hours is not None and self.hours < first:
            what = "the ground truth and the first recipe take" if before else "the first recipe takes"
            raise ValueError(
                f"hours={self.hours} are fewer than {what} for {len(module.architectures)} architectures "
                f"({first:.3g}); give more"
            )
        if self.budget is not None and self.budget < least:
            raise ValueError(f"budget={self.budget} is below the cheapest recipe's cost ({least:.3g}); give more")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin; with ``--table`` search there at once."""
        module: Any = pl_module
        if module.table is None:
            super().on_fit_start(trainer, pl_module)
        else:
            self.replayed = replay_table(trainer, module.table, self.mip.importance, self.mip.seed)

    def first_jobs(self, trainer: Trainer, module: Any) -> list[Job]:
        """The ground truth, or the first recipes."""
        if module.ground_truth is None:
            self.doing = TRUTH
            return [module.job(architecture, self.truth_recipe) for architecture in module.architectures]
        self.truth = list(module.ground_truth)
        return self._measure(module)

    def next_jobs(self, trainer: Trainer, module: Any, records: list[Record]) -> list[Job]:
        """Learn what a round says; then the next recipes, or the best one again, or nothing."""
        if self.doing == TRUTH:
            self.truth = accuracies(records)
            self.spent += gpu_hours(self.truth_recipe) * len(records)
            if not spread_of(self.truth):
                raise ValueError(
                    f"the ground truth came out constant ({self.truth[0]}) under truth_recipe: rank correlation with "
                    "it is undefined; give architectures that differ, or a longer recipe"
                )
            self.doing = MEASURE
            return self._measure(module)
        if self.doing == CONFIRM:
            (best,) = self._judged([self.mip.best(self.budget)], accuracies(records))
            self.fresh = {name: best[name] for name in ("spearman", "top_mean", "expected_pick")}
            self.spent += best["hours"] * len(records)
            rank_zero_info(f"mip: the best recipe, measured afresh, has a rank agreement of {best['spearman']:.3f}")
            self._log(module)
            self._show(trainer, module)
            return []
        self._learn(module, records)
        self._show(trainer, module)
        if jobs := self._measure(module):
            return jobs
        self.doing = CONFIRM
        return self._trials(module, [self.mip.best(self.budget)], module.hparams["seed"] + FRESH)

    def _measure(self, module: Any) -> list[Job]:
        """Trials of the next recipes that ``hours`` are left for; none where the search is over."""
        if self.last:
            return []
        recipes = self.mip.ask()
        while not recipes and len(self.mip.remaining) > 1:  # all of this space is measured: the smaller one may not be
            self._prune()
            recipes = self.mip.ask()
        self.last = len(self.mip.remaining) == 1
        if self.hours is not None:
            count = len(module.architectures)
            while recipes and self.spent + sum(map(self.mip.cost, recipes)) * count > self.hours:
                recipes.pop()
        self.asked = recipes
        return self._trials(module, recipes, module.hparams["seed"])

    def _trials(self, module: Any, recipes: Sequence[dict[str, Any]], seed: int) -> list[Job]:
        return [module.job(one, self.recipe(values), seed) for values in recipes for one in module.architectures]

    def _learn(self, module: Any, records: list[Record]) -> None:
        judged = self._judged(self.asked, accuracies(records))
        self.mip.tell(self.asked, [one["spearman"] for one in judged])
        self.found += judged
        self.spent += sum(one["hours"] for one in judged) * len(module.architectures)
        if not self.last:
            self._prune()
        self._log(module)

    def _prune(self) -> None:
        self.mip.prune()
        rank_zero_info(f"mip: {self.mip.reasons[-1]}")

    def _log(self, module: Any) -> None:
        module.log("mip/spearman", max(score for _, score in self.mip.trials), batch_size=1)
        module.log("mip/hours", self.spent, batch_size=1)
        for name, value in self.mip.importances[-1].items() if self.mip.importances else ():
            module.log(f"mip/importance_{name}", value, batch_size=1)
        module.log("mip/remaining", float(len(self.mip.remaining)), batch_size=1)

    def _judged(self, recipes: Sequence[dict[str, Any]], found: list[float]) -> list[dict[str, Any]]:
        """How each recipe ranks the architectures, from their accuracies recipe by recipe."""
        count = len(self.truth)
        return [self._judge(values, found[i * count : (i + 1) * count]) for i, values in enumerate(recipes)]

    def _judge(self, values: dict[str, Any], found: list[float]) -> dict[str, Any]:
        known = [(a, t) for a, t in zip(found, self.truth, strict=True) if not math.isnan(a + t)]
        scores, truth = [a for a, _ in known], [t for _, t in known]
        rho = spearman(scores, truth)
        if math.isnan(rho):
            reason = "all accuracies are equal" if len(known) > 1 else "fewer than two architectures could be trained"
            rank_zero_warn(f"rank correlation is undefined under {values}: {reason}; it counts as 0")
            rho = 0.0
        return {
            "values": values,
            "spearman": rho,
            "hours": self.mip.cost(values),
            "top_mean": top_mean(scores, truth, k=max(1, len(known) // 10)) if known else 0.0,
            "expected_pick": expected_pick(scores, truth, n=max(1, len(known) // 10)) if known else 0.0,
            "failed": len(found) - len(known),
        }

    # -- what is shown ------------------------------------------------------------------------------------------------

    def _show(self, trainer: Trainer, module: Any) -> None:
        report, names = RunReport.of(trainer), list(self.mip.space)
        if self.mip.importances:
            report.figure(trainer, "mip/importance", importance_figure(self.mip.importances, self.mip.spread))
        costs, scores = [one["hours"] for one in self.found], [one["spearman"] for one in self.found]
        best = next(i for i, one in enumerate(self.found) if one["values"] == self._best())
        report.figure(trainer, "mip/agreement", agreement_figure(costs, scores, best, self.fresh.get("spearman")))
        columns = [*names, "spearman", "hours", "top_mean", "expected_pick", "failed"]
        rows = [[*one["values"].values(), *(one[name] for name in columns[len(names) :])] for one in self.found]
        report.table(trainer, "mip/recipes", columns, rows)
        pruned = [[i + 1, reason.partition(":")[0], reason] for i, reason in enumerate(self.mip.reasons)]
        report.table(trainer, "mip/pruned", ["round", "name", "reason"], pruned)
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir, "best_recipe.json")
            path.write_text(json.dumps(self.recipe(self._best()).to_dict(), indent=1) + "\n", "utf-8")

    def _best(self) -> dict[str, Any]:
        return self.mip.best(self.budget)

    def summary(self) -> dict[str, float | str | list]:
        """What the search has found so far."""
        if not self.found:
            return self.replayed
        best, pruned = self._best(), [reason.partition(":")[0] for reason in self.mip.reasons]
        found: dict[str, float | str | list] = {
            "mip/found_spearman": next(one["spearman"] for one in self.found if one["values"] == best),
            "mip/median_spearman": median(one["spearman"] for one in self.found),
            "mip/recipes": len(self.found),
            "mip/hours": self.spent,
            "mip/cost_saved": 1 - self.mip.cost(best) / gpu_hours(self.truth_recipe),
            "mip/best_recipe": self.recipe(best).key(),
            "mip/pruned": pruned,
        }
        if pruned:
            found["mip/pruned_first"] = pruned[0]
        if self.fresh:
            found |= {f"mip/{name}": value for name, value in self.fresh.items() if name != "spearman"}
            found["mip/best_spearman"] = self.fresh["spearman"]
        return found

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain types."""
        mine = {name: getattr(self, name) for name in _STATE}
        return super().state_dict() | mine | {"mip": self.mip.state_dict(), "settings": self.settings}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with the same space and settings.

        Raises:
            ValueError: the checkpoint's are others.
        """
        for name, mine in self.settings.items():
            if (theirs := state["settings"][name]) != mine:
                raise ValueError(
                    f"{name}={mine}, but the checkpoint's search has {theirs}; give that, or begin anew: with "
                    "model.records no trial is made twice"
                )
        for name in _STATE:
            setattr(self, name, state[name])
        self.mip.load_state_dict(state["mip"])


def spread_of(values: list[float]) -> float:
    """Largest less smallest of those that are numbers; 0 of fewer than two.

    Example:
        >>> spread_of([0.5, float("nan"), 0.75])
        0.25
    """
    known = [value for value in values if not math.isnan(value)]
    return max(known) - min(known) if len(known) > 1 else 0.0
