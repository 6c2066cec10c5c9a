"""FilterPruning: when and how a network is pruned inside a fit. *Which* filters go is the subclass's decision."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from callbacks.complexity_logger import ComplexityLogger
from callbacks.evaluation import DenseReference, input_size, validation_top1
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
from lit_methods.backbones.weights import load_weights, read_weights, untrained
from lit_methods.classification import ImageClassifier
from lit_methods.functional import count_macs, parse_rates
from lit_methods.functional.budget import Allocation, Budget
from lit_methods.functional.rates import format_rates, round_rate_up


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
        self.dense_checkpoint: str | None = None
        self._resumed = False
        self._structure: Any = None
        self._dense: DenseReference | None = None

    @abstractmethod
    def find_structure(self, trainer: Trainer, module: ImageClassifier) -> Any:
        """What the method can remove of this network."""

    def structure(self, trainer: Trainer, module: ImageClassifier) -> Any:
        """The same, looked for once a run: tracing a network takes seconds."""
        if self._structure is None:
            self._structure = self.find_structure(trainer, module)
        return self._structure

    @abstractmethod
    def decide(self, trainer: Trainer, module: ImageClassifier) -> Plan:
        """What stays of the full network after stage ``stages_done``; asked for on every process."""

    @abstractmethod
    def shrink(self, trainer: Trainer, module: ImageClassifier, plan: Plan) -> nn.Module:
        """The small network with its weights, made of the module's."""

    @abstractmethod
    def convolutions(self, trainer: Trainer, module: ImageClassifier) -> list[str]:
        """Names of the convolutions that can lose filters, for the report."""

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
        self._resumed, self._structure = False, None
        if stage == "fit":
            refuse_averages_that_cannot_follow(trainer, self)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Averages and scores of a network of another shape cannot go on; what the checkpoint holds of them follows."""
        self._resumed = True
        forget_old_network(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be pruned; prune at once with ``at_epoch=0``."""
        module = prunable(pl_module)
        if self.stages_done == 0:
            self.check(trainer, module)
        self._bring_dense_along(trainer)
        # a resumed run gets its optimiser state back after this hook, for the network of the checkpoint
        if self.at_epoch == 0 and self.stages_done == 0 and not self._resumed:
            if untrained(module.model):
                raise ValueError(
                    "at_epoch=0 prunes before training starts, but the network has no trained weights: "
                    "give model.base_checkpoint, or an at_epoch after which it is trained"
                )
            self._prune(trainer, module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Prune in the first batch of an epoch that is due; a hook of the epoch itself can be lost on resume."""
        module = prunable(pl_module)
        epochs = self.stage_epochs(module.arch)
        if self.stages_done < len(epochs) and trainer.current_epoch >= epochs[self.stages_done]:
            self._prune(trainer, module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where the run was too short for what was asked."""
        end_averaging(trainer)
        stages = len(self.stage_epochs(prunable(pl_module).arch))
        if self.stages_done < stages:
            rank_zero_warn(
                f"{type(self).__name__}(at_epoch={self.at_epoch}): the run ended after {trainer.current_epoch} epochs "
                f"with {self.stages_done} of {stages} prunings done"
            )

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

    def settle_rates(
        self,
        trainer: Trainer,
        module: ImageClassifier,
        groups: int,
        network_at: Callable[[list[float]], nn.Module],
        scores: Callable[[], Sequence[Tensor]],
        highest: Sequence[float] | None = None,
    ) -> list[float]:
        """One rate per group: those given, or those that meet the target.

        Args:
            trainer: the running trainer.
            module: its module.
            groups: how many rates the network takes.
            network_at: the network at such rates, for its costs.
            scores: gives, per group, one number for each of its filters, comparable between groups.
            highest: per group the highest fraction that can be removed.
        """
        if self.budget is None:
            return self.listed_rates(groups)
        removed = self.budget.rates(
            lambda fractions: network_at([self.from_removed(fraction) for fraction in fractions]),
            scores(),
            input_size=input_size(trainer, module),
            highest=highest,
        )
        return [self.from_removed(fraction) for fraction in removed]

    def listed_rates(self, groups: int) -> list[float]:
        """The given rates, one per group; one number alone holds for all."""
        return list(self.rates) if isinstance(self.rates, list) else [float(self.rates or 0)] * groups

    # -- how --------------------------------------------------------------------------------------------------------

    def _prune(self, trainer: Trainer, module: ImageClassifier) -> None:
        share_buffers(module)  # what is measured from here on is measured on one network
        if self.stages_done == 0:
            self._keep_dense(trainer, module)
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

    def _keep_dense(self, trainer: Trainer, module: ImageClassifier) -> None:
        path = Path(trainer.default_root_dir, "dense.ckpt").absolute()
        trainer.save_checkpoint(path, weights_only=True)
        self.dense_checkpoint = str(path)

    def _bring_dense_along(self, trainer: Trainer) -> None:
        """A run that goes on in another directory, or whose directory was moved, has its dense network there too."""
        if self.dense_checkpoint is None:
            return
        here, there = Path(trainer.default_root_dir, "dense.ckpt").absolute(), Path(self.dense_checkpoint)
        if trainer.is_global_zero and there.is_file() and there != here:
            shutil.copyfile(there, here)
        self.dense_checkpoint = str(here)

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
        convs = self.convolutions(trainer, module)
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
        if self.dense_checkpoint is None:
            return
        # the first process reads: others may have no access to its disk, and all must agree
        found = trainer.is_global_zero and Path(self.dense_checkpoint).is_file()
        tensors = trainer.strategy.broadcast(read_weights(self.dense_checkpoint)[0] if found else None)
        if tensors is None:
            rank_zero_warn(f"{self.dense_checkpoint} is gone: the dense network is not tested beside the pruned one")
            return
        module = prunable(pl_module)
        network = module.full_network()
        load_weights(network, tensors, self.dense_checkpoint)
        network = trainer.precision_plugin.convert_module(network.to(module.device))
        self._dense = DenseReference(network, module.hparams["num_classes"])

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """The dense network's answer to the same batch."""
        if self._dense is not None:
            with trainer.precision_plugin.forward_context():  # as the pruned network
                self._dense.update(prunable(pl_module).normalize(batch["image"]), batch["label"])

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log ``test/dense_top1``."""
        if self._dense is not None:
            pl_module.log("test/dense_top1", self._dense.top1(), sync_dist=True)  # equal on all already
            self._dense = None

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The table ``prune/dense_against_pruned``: accuracies, MACs, parameters, file size, latency."""
        if not self.results:
            return
        logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
        rows: list[list[Any]] = [
            [
                "val/top1 around surgery",
                self.results.get("prune/val_top1_before", ""),
                self.results.get("prune/val_top1_after", ""),
            ],
            ["test/top1", logged.get("test/dense_top1", ""), logged.get("test/top1", "")],
            ["MACs", self.results["prune/dense_macs"], self.results["prune/macs"]],
            ["parameters", self.results["prune/dense_params"], self.results["prune/params"]],
        ]
        if (complexity := ComplexityLogger.of(trainer)) is not None:
            measured = complexity.summary()
            rows += [
                [name, measured.get(f"complexity/dense_{name}", ""), measured.get(f"complexity/{name}", "")]
                for name in ("file_bytes", "latency_ms")
            ]
        RunReport.of(trainer).table(trainer, "prune/dense_against_pruned", ["", "dense", "pruned"], rows)

    def summary(self) -> dict[str, float | str]:
        """``prune/*`` and ``rates`` for ``summary.json``; empty where nothing was pruned."""
        return {**self.results, "rates": format_rates(self.settled)} if self.settled and self.results else {}

    def state_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "stages_done": self.stages_done,
            "settled": self.settled,
            "results": dict(self.results),
            "dense_checkpoint": self.dense_checkpoint,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What was done is not done again."""
        self.stages_done = state_dict["stages_done"]
        self.settled = state_dict.get("settled")
        self.results = dict(state_dict["results"])
        self.dense_checkpoint = state_dict["dense_checkpoint"]


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
