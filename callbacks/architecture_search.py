"""ArchitectureSearch: find the best architecture under one cheap recipe."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from callbacks.genotype_figures import genotype_figure, search_figure
from callbacks.genotype_file import write_genotype
from callbacks.report import RunReport
from callbacks.trial_rounds import TrialRounds, accuracies
from lit_methods.bpe_mip.jobs import Job, Record
from lit_methods.bpe_mip.search_space import Genotype, genotype_from_sample28
from lit_methods.bpe_mip.searchers import RandomSearch, RegularizedEvolution, ReinforceSearch, Searcher

SEARCHERS: dict[str, type[Searcher]] = {
    "random": RandomSearch,
    "evolution": RegularizedEvolution,
    "reinforce": ReinforceSearch,
}


class ArchitectureSearch(TrialRounds):
    """Random search, regularised evolution or REINFORCE over the cells of DARTS, with cheap estimates (BPE).

    A round asks the searcher for ``parallel`` architectures, trains them under the module's ``recipe``, and tells it
    what came of them, in the order in which they were asked for; so the outcome does not depend on how many processes
    share a round. An architecture that failed, or whose accuracy a searcher draws again (REINFORCE: at most 0.001),
    is not told, and counts towards the budget. At the end evolution and REINFORCE slim what they found to two inputs
    per node (ten random masks, or the edges of largest probability), and the slimmed cell is estimated too.

    Logs ``search/accuracy`` (mean of a round), ``search/best`` and ``search/evaluations``. Shows ``search/course`` (all
    estimates and the best so far), ``search/genotype`` (the cells found) and the table ``search/evaluations``.
    ``genotype.json`` in the run's directory is a ``genotype`` for ``BPE``. ``summary()`` gives ``search/best``,
    ``search/mean`` (of all estimates before slimming), ``search/evaluations``, ``search/failed``, ``search/genotype``
    and, after slimming, ``search/slimmed``, its estimate.

    Args:
        searcher: ``"random"``, ``"evolution"`` or ``"reinforce"``.
        budget: estimates, slimming not counted; the paper's is 100.
        parallel: architectures that are asked for at once. REINFORCE and evolution learn less from each of them then.
        seed: of the searcher's generator.
        slim: whether evolution and REINFORCE slim what they found; random search finds slim cells.
        arguments: of the searcher, such as ``{"population_size": 10}``.

    Raises:
        ValueError: an unknown searcher or argument, ``budget`` or ``parallel`` below 1.

    Source:
        official code, one estimate after the other. Ours: rounds, failures that do not end a search.

    Example:
        >>> ArchitectureSearch("evolution", budget=3, arguments={"population_size": 2}).searcher.population
        []
    """

    def __init__(
        self,
        searcher: Literal["random", "evolution", "reinforce"] = "random",
        budget: int = 100,
        parallel: int = 1,
        seed: int = 0,
        slim: bool = True,
        arguments: dict[str, int | float] | None = None,
    ) -> None:
        super().__init__()
        if searcher not in SEARCHERS:
            raise ValueError(f"searcher={searcher!r} must be one of {', '.join(SEARCHERS)}")
        for name, value in (("budget", budget), ("parallel", parallel)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1: that is one trial")
        try:
            generator = torch.Generator().manual_seed(seed)
            self.searcher = SEARCHERS[searcher](generator=generator, **(arguments or {}))
        except TypeError as ex:
            raise ValueError(f"arguments={arguments} do not fit {SEARCHERS[searcher].__name__}: {ex}") from None
        self.budget, self.parallel, self.slim = budget, parallel, slim
        self.asked: list[Tensor] = []  # of the round at hand
        self.tried: list[list[int]] = []  # architectures, in the order of asking
        self.estimates: list[float] = []  # of each; NaN: failed
        self.slimmed: list[float] = []
        self.found: tuple[Genotype, float] | None = None

    # -- rounds -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a table, in which there are no other architectures to be found."""
        super().setup(trainer, pl_module, stage)
        if getattr(pl_module, "table", None) is not None:
            raise ValueError("--table is for MIPSearch, such as fit bpe_mip: a table has no estimates to search by")

    def first_jobs(self, trainer: Trainer, module: Any) -> list[Job]:
        """Ask for the first architectures."""
        return self._ask(module, min(self.parallel, self.budget))

    def next_jobs(self, trainer: Trainer, module: Any, records: list[Record]) -> list[Job]:
        """Tell the searcher, and ask again; at the end slim what it found."""
        estimates = accuracies(records)
        if len(self.estimates) >= self.budget:
            self._take_slimmed(estimates)
            self._log(module, estimates)
            self._show(trainer)
            return []
        for sample, accuracy in zip(self.asked, estimates, strict=True):
            if accuracy > self.searcher.redraw_until:  # NaN is not
                self.searcher.tell(sample, accuracy)
        self.tried += [sample.tolist() for sample in self.asked]
        self.estimates += estimates
        self._log(module, estimates)
        if left := self.budget - len(self.estimates):
            return self._ask(module, min(self.parallel, left))
        if not self.searcher.history:
            raise ValueError(f"none of {self.budget} estimates was above {self.searcher.redraw_until}; see the records")
        best, accuracy = self.searcher.best()
        self.found = genotype_from_sample28(best), accuracy
        slim = self._slim() if self.slim else []
        if not slim:
            self._show(trainer)
        return self._jobs(module, slim)

    def _ask(self, module: Any, count: int) -> list[Job]:
        return self._jobs(module, [self.searcher.ask() for _ in range(count)])

    def _jobs(self, module: Any, samples: list[Tensor]) -> list[Job]:
        self.asked = samples
        return [module.job(genotype_from_sample28(sample), module.search_recipe) for sample in samples]

    def _slim(self) -> list[Tensor]:
        if isinstance(self.searcher, RegularizedEvolution):
            return list(self.searcher.slimmed_candidates())
        if isinstance(self.searcher, ReinforceSearch) and len(self.searcher.history) > 1:
            return [torch.tensor(self.searcher.slimmed())]
        return []

    def _take_slimmed(self, estimates: list[float]) -> None:
        """The best slim cell is what the search found, as in the paper, also where it is worse than the full one."""
        known = [(accuracy, number) for number, accuracy in enumerate(estimates) if not math.isnan(accuracy)]
        self.slimmed = estimates
        if known:
            accuracy, number = max(known, key=lambda pair: (pair[0], -pair[1]))
            self.found = genotype_from_sample28(self.asked[number]), accuracy

    def _log(self, module: Any, estimates: list[float]) -> None:
        if known := [value for value in estimates if not math.isnan(value)]:
            module.log("search/accuracy", sum(known) / len(known), batch_size=1)
        if self.searcher.history:
            module.log("search/best", self.searcher.best()[1], batch_size=1)
        module.log("search/evaluations", float(len(self.estimates)), batch_size=1)

    # -- what is shown ------------------------------------------------------------------------------------------------

    def _show(self, trainer: Trainer) -> None:
        assert self.found is not None
        genotype, accuracy = self.found
        report = RunReport.of(trainer)
        report.figure(trainer, "search/course", search_figure(self.estimates))
        title = f"estimated top-1 {accuracy:.3f}"
        report.figure(trainer, "search/genotype", genotype_figure(genotype, title))
        asked = enumerate(zip(self.tried, self.estimates, strict=True), 1)
        rows = [[number, value, " ".join(map(str, sample))] for number, (sample, value) in asked]
        report.table_beside(trainer, "search/evaluations", ["evaluation", "accuracy", "sample28"], rows)
        write_genotype(trainer, genotype.to_dict())
        rank_zero_info(f"search: found {genotype.key()} with an estimate of {accuracy:.4f}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show a search that the end of the run cut short, too."""
        super().on_fit_end(trainer, pl_module)
        if not self.finished and self.searcher.history:
            best, accuracy = self.searcher.best()
            self.found = genotype_from_sample28(best), accuracy
            self._show(trainer)

    def summary(self) -> dict[str, float | str | list]:
        """What the search has found so far."""
        if self.found is None:
            return {}
        genotype, accuracy = self.found
        known = [value for value in self.estimates if not math.isnan(value)]
        found: dict[str, float | str | list] = {
            "search/best": self.searcher.best()[1],
            "search/mean": sum(known) / len(known),
            "search/evaluations": len(self.estimates),
            "search/failed": len(self.estimates) - len(known),
            "search/genotype": genotype.key(),
        }
        return found | ({"search/slimmed": accuracy} if self.slimmed else {})

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types."""
        found = None if self.found is None else [self.found[0].to_dict(), self.found[1]]
        mine = {
            "asked": self.asked,
            "tried": self.tried,
            "estimates": self.estimates,
            "slimmed": self.slimmed,
            "found": found,
        }
        return super().state_dict() | mine | {"searcher": self.searcher.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with a searcher of the same arguments."""
        for name in ("asked", "tried", "estimates", "slimmed"):
            setattr(self, name, list(state[name]))
        if (found := state["found"]) is not None:
            self.found = Genotype.from_dict(found[0]), found[1]
        self.searcher.load_state_dict(state["searcher"])
