"""FilterPruning: when and how a network is pruned inside a fit. *Which* filters go is the subclass's decision."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from callbacks.dense import COLUMNS, DenseReference, comparison
from callbacks.evaluation import input_size, validation_top1
from callbacks.pruning_figures import kept_filters_figure
from callbacks.report import RunReport
from callbacks.surgery import (
    end_averaging,
    forget_old_network,
    refuse_averages_that_cannot_follow,
    replace_network,
    share_buffers,
)
from lit_methods.backbones import Plan, PrunePlan, find_backbone, planned_channels, read_plan
from lit_methods.backbones.weights import untrained
from lit_methods.classification import ImageClassifier
from lit_methods.functional import count_macs, parse_rates
from lit_methods.functional.budget import Allocation, Budget
from lit_methods.functional.rates import format_rates, round_rate_up


@dataclass(frozen=True)
class Choices:
    """What a method can remove of a network, and what each removal leaves.

    Args:
        convs: names of the convolutions that can lose filters, in forward order.
        groups: how many rates the network takes.
        plan: what stays at one rate per group.
        shape: the network under a plan, for its costs; it may lie on the meta device.
        scores: gives, per group, one number for each of its filters, comparable between groups.
        highest: per group the highest fraction that can be removed; ``None`` is just below 1.
    """

    convs: list[str]
    groups: int
    plan: Callable[[Sequence[float]], Plan]
    shape: Callable[[Plan], nn.Module]
    scores: Callable[[], Sequence[Tensor]]
    highest: Sequence[float] | None = None


class FilterPruning(Callback, ABC):
    """Remove filters from an ``ImageClassifier`` before or during a fit; base of the pruning callbacks.

    The network is replaced by a really smaller one; optimisers, schedules and the best score start afresh. What pruning
    left travels in the module's ``plan``. Right before the first surgery the dense network is kept as
    ``dense.ckpt`` in the run's directory, and the test that follows the fit evaluates it beside the pruned one.

    Args:
        rates: one rate per group of filters in the paper's order, as text (``"[0.1]+[0.60]*35+..."``) or numbers; one
            number alone holds for all. What a rate is, is the subclass's business.
        at_epoch: 0 prunes a trained network before training starts, N trains N epochs first.
        target_macs: in the place of ``rates``: multiply-adds that may be left, as a fraction of the full network's (at
            most 1) or as their number. The largest network within it is found by bisection on exact counts.
        target_params: the same for parameters.
        allocation: how a target is shared out: ``"uniform"`` finds one rate for all, ``"global"`` compares the scores
            of the whole network.
        keep_ends: a target leaves the first and the last group as wide as they are.
        round_to: channel counts become the next multiple of this, such as 8, where the layer is as wide; ``None``
            leaves them as they come. At a grouped convolution of a traced network they stay multiples of its groups.
    """

    meaning: str  # what a number outside the range of rates is told
    from_table: Callable[..., Any]  # key of ``BACKBONES``, number of classes -> the structure of such a network
    from_trace: Callable[..., Any]  # full network, (C, H, W) -> the structure of one that was given as an object

    def __init__(
        self,
        rates: float | list[float] | str | None = None,
        at_epoch: int = 0,
        target_macs: float | None = None,
        target_params: float | None = None,
        allocation: Allocation = "uniform",
        keep_ends: bool = False,
        round_to: int | None = None,
    ) -> None:
        if at_epoch < 0:
            raise ValueError(f"at_epoch={at_epoch} must not be negative; 0 prunes before training starts")
        if sum(given is not None for given in (rates, target_macs, target_params)) != 1:
            raise ValueError(
                f"rates={rates!r}, target_macs={target_macs}, target_params={target_params}: give exactly one of them, "
                "and null (None) for what a recipe sets"
            )
        if rates is not None and (allocation != "uniform" or keep_ends):
            raise ValueError(
                f"allocation={allocation!r}, keep_ends={keep_ends}: only a target is shared out, and rates={rates!r} "
                "are given; leave them out"
            )
        if round_to is not None and (round_to < 1 or round_to != int(round_to)):
            raise ValueError(
                f"round_to={round_to} must be a whole number of at least 1: channel counts become multiples"
            )
        self.given_rates = rates  # as the user wrote them, for messages
        self.rates = _read_rates(rates)
        for rate in self.rates if isinstance(self.rates, list) else [self.rates]:
            if rate is not None and not self.usable(rate):
                raise ValueError(f"rates={rates!r}: {rate} {self.meaning}")
        self.budget = Budget(target_macs, target_params, allocation, keep_ends) if rates is None else None
        self.at_epoch = at_epoch
        self.round_to = round_to or 1
        self.settled: list[float] | None = None  # the rate of every group, once it is known
        self.stages_done = 0
        self.results: dict[str, float] = {}
        self._resumed = False
        self._foretold: int | None = None  # how many prunings the run has time for, where these are not all
        self._structure: Any = None
        self._dense = DenseReference()

    @abstractmethod
    def choices(self, trainer: Trainer, module: ImageClassifier) -> Choices:
        """What can be removed of this network, by all that is known of it so far."""

    @abstractmethod
    def shrink(self, trainer: Trainer, module: ImageClassifier, plan: Plan) -> nn.Module:
        """The small network with its weights, made of the module's."""

    @staticmethod
    @abstractmethod
    def usable(rate: float) -> bool:
        """Whether a number is a rate."""

    @staticmethod
    def from_removed(fraction: float) -> float:
        """The rate that removes this fraction."""
        return round_rate_up(fraction)

    def stage_epochs(self, arch: Any) -> list[int]:
        """The epochs at whose start something is removed, rising."""
        return [self.at_epoch]

    # -- when -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """A new run, until a checkpoint says otherwise; refuse averages that could not follow the network."""
        self._resumed, self._structure, self._foretold = False, None, None
        if stage == "fit":
            refuse_averages_that_cannot_follow(trainer, self)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Averages and scores of a network of another shape cannot go on; what the checkpoint holds of them follows."""
        self._resumed = True
        forget_old_network(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be pruned; prune at once with ``at_epoch=0``; warn of a run too short for what is due."""
        module = prunable(pl_module)
        if self.stages_done == 0:
            self.check(trainer, module)
            self.settle_rates(trainer, module)  # what does not fit is said now, not after hours of training
        self._dense.follow(trainer)
        # a resumed run gets its optimiser state back after this hook, for the network of the checkpoint
        if self.at_epoch == 0 and self.stages_done == 0 and not self._resumed:
            if untrained(module.model):
                raise ValueError(
                    "at_epoch=0 prunes before training starts, but the network has no trained weights: "
                    "give model.base_checkpoint, or an at_epoch after which it is trained"
                )
            self._prune(trainer, module)
        if self._comes_too_late(trainer, module):
            epochs, last = self.stage_epochs(module.arch), trainer.max_epochs or 0
            done = self._foretold = max(self.stages_done, sum(epoch < last for epoch in epochs))
            rank_zero_warn(
                f"{type(self).__name__}(at_epoch={self.at_epoch}): with trainer.max_epochs={last} the run will have "
                f"ended after {last} epochs with {done} of {len(epochs)} prunings done; raise it above {epochs[-1]}, "
                "or lower at_epoch"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Prune in the first batch of an epoch that is due; a hook of the epoch itself can be lost on resume."""
        module = prunable(pl_module)
        epochs = self.stage_epochs(module.arch)
        if self.stages_done < len(epochs) and trainer.current_epoch >= epochs[self.stages_done]:
            self._prune(trainer, module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where the run ended before something that was due, which nothing foretold at its start."""
        end_averaging(trainer)
        module = prunable(pl_module)
        stages = len(self.stage_epochs(module.arch))
        if self.stages_done < (stages if self._foretold is None else self._foretold):
            rank_zero_warn(
                f"{type(self).__name__}(at_epoch={self.at_epoch}): the run ended after {trainer.current_epoch} epochs "
                f"with {self.stages_done} of {stages} prunings done"
            )

    def _comes_too_late(self, trainer: Trainer, module: ImageClassifier) -> bool:
        """Whether a pruning that is yet to come lies behind the run's last epoch, as far as that is known."""
        epochs = self.stage_epochs(module.arch)
        return self.stages_done < len(epochs) and 0 < (trainer.max_epochs or -1) <= epochs[-1]

    def check(self, trainer: Trainer, module: ImageClassifier) -> None:
        """Refuse arguments that do not fit this network or its data; subclasses add theirs."""
        if module.hparams["plan"] is not None:
            raise ValueError(
                f"{type(self).__name__}: the network is pruned already (it has a plan); start from the dense one, or "
                "leave this callback out to fine-tune it"
            )
        self._refuse_nan(trainer, module)
        if module.arch is not None:
            planned_channels(PrunePlan(module.arch, {}))  # can it be rebuilt at all? makes no weights

    # -- how much ---------------------------------------------------------------------------------------------------

    def decide(self, trainer: Trainer, module: ImageClassifier) -> Plan:
        """What stays of the full network after stage ``stages_done``; asked for on every process."""
        self.settled = self.settle_rates(trainer, module)
        return self.choices(trainer, module).plan(self.settled)

    def structure(self, trainer: Trainer, module: ImageClassifier) -> Any:
        """What the method sees in the network: by its table, else by tracing it, which takes seconds; once a run."""
        if self._structure is None and module.arch is not None:
            self._structure = self.from_table(module.arch, module.hparams["num_classes"])
        elif self._structure is None:
            self._structure = self.from_trace(module.full_network(), input_size(trainer, module))
        return self._structure

    def settle_rates(self, trainer: Trainer, module: ImageClassifier) -> list[float]:
        """One rate per group: those given, or those that meet the target.

        Raises:
            ValueError: they do not fit the network, or the target cannot be met.
        """
        choices = self.choices(trainer, module)
        if self.budget is None:
            rates = self.listed_rates(choices.groups)
            try:
                choices.plan(rates)
            except ValueError as ex:
                raise ValueError(f"rates={self.given_rates!r}: {ex}") from None
            return rates

        def network_at(fractions: list[float]) -> nn.Module:
            return choices.shape(choices.plan([self.from_removed(fraction) for fraction in fractions]))

        size = input_size(trainer, module)
        removed = self.budget.rates(network_at, choices.scores(), input_size=size, highest=choices.highest)
        return [self.from_removed(fraction) for fraction in removed]

    def listed_rates(self, groups: int) -> list[float]:
        """The given rates, one per group; one number alone holds for all."""
        return list(self.rates) if isinstance(self.rates, list) else [float(self.rates or 0)] * groups

    # -- how --------------------------------------------------------------------------------------------------------

    def _prune(self, trainer: Trainer, module: ImageClassifier) -> None:
        share_buffers(module)  # what is measured from here on is measured on one network
        if self.stages_done == 0:
            self._dense.keep(trainer)
        self._refuse_nan(trainer, module)
        before = validation_top1(trainer, module)
        plan = read_plan(trainer.strategy.broadcast(self.decide(trainer, module).to_dict()))
        network = self.shrink(trainer, module, plan)
        module.hparams["plan"] = plan.to_dict()
        module.hparams["start_epoch"] = trainer.current_epoch
        replace_network(trainer, module, network)
        module.put_full_network_aside()
        self.stages_done += 1
        self._record(trainer, module, plan, before)
        if self.budget is not None and self.stages_done == 1:
            module.print(
                f"{self.budget.name}={self.budget.target:g} is met by "
                f'{type(self).__name__}(rates="{format_rates(self.settled or [])}"{self._rounding()})'
            )

    def _refuse_nan(self, trainer: Trainer, module: ImageClassifier) -> None:
        if not all(tensor.isfinite().all() for tensor in module.model.state_dict().values()):
            # one line from the command line, also in the middle of a run: nothing is wrong with the code
            raise MisconfigurationException(
                f"{type(self).__name__}: the network holds NaN or infinity before epoch {trainer.current_epoch}: "
                "training has diverged; lower model.lr"
            )

    def _rounding(self) -> str:
        return f", round_to={self.round_to}" if self.round_to > 1 else ""

    def _record(self, trainer: Trainer, module: ImageClassifier, plan: Plan, before: float | None) -> None:
        dense, size = module.full_network(), input_size(trainer, module)
        if before is not None and (after := validation_top1(trainer, module)) is not None:
            self.results.setdefault("prune/val_top1_before", before)  # of the dense network, layer by layer too
            self.results["prune/val_top1_after"] = after
        self.results |= {
            "prune/dense_macs": count_macs(dense, size),
            "prune/macs": count_macs(module.model, size),
            "prune/dense_params": sum(p.numel() for p in dense.parameters()),
            "prune/params": sum(p.numel() for p in module.model.parameters()),
        } | self.measure(dense, plan, size)
        self.results = trainer.strategy.broadcast(self.results)  # some are of one process's own images
        for logger in trainer.loggers:  # not self.log: on_fit_start has no step yet
            logger.log_metrics(self.results, step=trainer.global_step)
        convs = self.choices(trainer, module).convs
        filters, kept = (
            {conv: len(network.get_parameter(f"{conv}.weight")) for conv in convs} for network in (dense, module.model)
        )
        RunReport.of(trainer).figure(trainer, "prune/kept_filters", kept_filters_figure(filters, kept))
        self.show(trainer, plan, filters)

    def measure(self, dense: nn.Module, plan: Plan, size: tuple[int, ...]) -> dict[str, float]:
        """Further figures of the pruned network for log and summary, such as a paper's own way to count."""
        return {}

    def show(self, trainer: Trainer, plan: Plan, filters: dict[str, int]) -> None:
        """Further figures and tables of what was decided."""

    # -- dense against pruned -----------------------------------------------------------------------------------------

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Get the dense network back, after a fit that pruned."""
        if self._dense.path is not None:
            self._dense.load(trainer, prunable(pl_module))

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """The dense network's answer to the same batch."""
        if self._dense.path is not None:
            self._dense.update(trainer, prunable(pl_module), batch)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log ``test/dense_top1``."""
        if (top1 := self._dense.top1()) is not None:
            pl_module.log("test/dense_top1", top1, sync_dist=True)  # equal on all already

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The table ``prune/dense_against_pruned``: accuracies, MACs, parameters, file size, latency."""
        if self.results:
            rows = comparison(trainer, self.results)
            RunReport.of(trainer).table(trainer, "prune/dense_against_pruned", COLUMNS, rows)

    # -- what is left of it -------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, float | str]:
        """``prune/*`` and ``rates`` for ``summary.json``; empty where nothing was pruned."""
        return {**self.results, "rates": format_rates(self.settled)} if self.settled and self.results else {}

    def state_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "stages_done": self.stages_done,
            "settled": self.settled,
            "results": dict(self.results),
            "dense_checkpoint": self._dense.path,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What was done is not done again."""
        self.stages_done = state_dict["stages_done"]
        self.settled = state_dict.get("settled")
        self.results = dict(state_dict["results"])
        self._dense.path = state_dict["dense_checkpoint"]


def _read_rates(rates: Any) -> list[float] | float | None:
    """Text, a number or any sequence of numbers, as numbers."""
    if isinstance(rates, str):
        return parse_rates(rates)
    try:
        numbers = None if rates is None else np.asarray(rates, dtype=float)
    except (TypeError, ValueError):
        numbers = np.empty((0, 0))
    if numbers is not None and (numbers.ndim > 1 or numbers.size == 0):
        raise ValueError(f"rates={rates!r} must be a number, a list of numbers, or text such as '[0.1]+[0.6]*35'")
    return None if numbers is None else numbers.tolist()


def prunable(module: LightningModule) -> ImageClassifier:
    """The module, if its network can be pruned.

    Raises:
        ValueError: it is no ``ImageClassifier``.
    """
    if not isinstance(module, ImageClassifier):
        raise ValueError(f"{type(module).__name__} is no ImageClassifier (HRank, ...): its network cannot be pruned")
    if module.arch is not None:
        find_backbone(module.arch)
    return module
