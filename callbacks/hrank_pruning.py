"""HRankPruning: keep the filters whose feature maps have the highest rank."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks.evaluation import device_batches, in_float32, validation_top1
from callbacks.interruption import interruptible
from callbacks.nan_guard import NonFiniteError
from callbacks.progress import progress
from callbacks.pruning import Choices, FilterPruning, prunable
from callbacks.pruning_figures import rank_histograms_figure, rank_spread, rank_stability_figure
from callbacks.report import RunReport
from lit_methods.backbones import (
    Plan,
    PrunePlan,
    PrunePoint,
    TracedPlan,
    WidthPlan,
    cut_network,
    prune_points,
    read_plan,
)
from lit_methods.classification import ImageClassifier
from lit_methods.functional.feature_rank import NonFiniteMapsError
from lit_methods.functional.modes import evaluating
from lit_methods.hrank.functional import batch_ranks, hrank_counter, load_rank_scores, save_rank_scores
from lit_methods.hrank.structure import Structure, TableStructure, TracedStructure

BLOCK_BY_BLOCK = ("resnet50",)  # layer-wise mode takes a whole block at a time, as the official code does
NOTHING_YET: dict[str, Any] = {"top1": -1.0, "weights": None, "seen": -1}  # the best epoch of a stage that just began


class HRankPruning(FilterPruning):
    """Prune an ``ImageClassifier`` by HRank: in each convolution the filters of lowest mean rank go.

    Ranks are taken once, on the network as it is then, in one pass over training images; every process does its share.
    The pass runs in float32 whatever ``trainer.precision`` is, since the rounding of half precision would raise ranks:
    without autocast under ``bf16-mixed``, on a float32 copy of the weights under ``bf16-true``.

    Args:
        rates: removed fraction per convolution in the paper's order, as text (``"[0.1]+[0.60]*35+..."``) or numbers;
            one number alone holds for all. GoogLeNet has one per stage. Or give a target, see below.
        at_epoch: 0 prunes a trained network before training starts, N trains N epochs first.
        mode: ``"oneshot"`` prunes all layers at once; ``"layerwise"`` one after the other from the same ranks, each
            followed by ``epochs_per_layer`` epochs of fine-tuning, the next going on from the best of them.
        epochs_per_layer: only for ``"layerwise"``; a run then needs ``at_epoch`` plus this for every pruned layer.
        num_images: training images for the ranks; the paper uses 500, the official code 640, its shipped arrays 768.
        augmented: take them through the training augmentation, as the official code does.
        scores: ranks taken before: our ``rank_scores.npz``, or a folder of the official ``rank_conv*.npy``.
        freeze_fraction: this part of the kept filters, those of highest rank, is not updated any more.
        residual: ``"live"`` removes every channel that is always zero, ``"scatter"`` keeps the residual stream whole.
        max_bytes: working memory of the rank computation, per chunk of feature maps; ``None`` chooses by device.
        target: ``target_macs`` or ``target_params`` in the place of ``rates``, with ``allocation`` and ``keep_ends``;
            and ``round_to``: see ``FilterPruning``. ``allocation="global"`` compares ranks as fractions of the highest
            mean rank in their layer.

    Raises:
        ValueError: a rate outside [0, 1), the wrong number of rates, a target that cannot be met, an untrained network
            with ``at_epoch=0``, a network in which neither a table nor tracing finds filters that can go.

    Source:
        HRank, arXiv 2002.10179, section 3. Differences from the official code: filters are really removed (it sets
        weights to zero), ranks come from unaugmented images in a fixed order, and the best epoch is chosen on a
        validation split (it uses the test set). ``"oneshot"`` is the authors' later recommendation (HRankPlus).
        Layers with rate 0 get no stage of their own in ``"layerwise"``; ResNet-50 goes block by block, as theirs does.

    Example:
        >>> HRankPruning(rates="[0.1]+[0.4]*18", at_epoch=8).stage_epochs("resnet20")
        [8]
        >>> HRankPruning(rates=0.4, at_epoch=8, mode="layerwise", epochs_per_layer=5).stage_epochs("resnet20")[:3]
        [8, 13, 18]
    """

    meaning = "is outside [0, 1); a rate is the fraction that is removed"
    from_trace = TracedStructure

    @staticmethod
    def usable(rate: float) -> bool:
        """Whether a number is a rate."""
        return 0 <= rate < 1

    def __init__(
        self,
        rates: float | list[float] | str | None = None,
        at_epoch: int = 0,
        mode: Literal["oneshot", "layerwise"] = "oneshot",
        epochs_per_layer: int = 30,
        num_images: int = 640,
        augmented: bool = False,
        scores: str | None = None,
        freeze_fraction: float = 0.0,
        residual: Literal["live", "scatter"] = "live",
        max_bytes: int | None = None,
        **target: Any,
    ) -> None:
        super().__init__(rates, at_epoch, **target)
        if residual not in ("live", "scatter"):
            raise ValueError(f"residual={residual!r} must be 'live' or 'scatter'")
        if mode not in ("oneshot", "layerwise"):
            raise ValueError(f"mode={mode!r} must be 'oneshot' or 'layerwise'")
        if mode == "layerwise" and self.budget is not None:
            raise ValueError(
                f"{self.budget.name}={self.budget.target:g} with mode='layerwise': its stages follow from rates; "
                "give those that a one-shot run finds and prints"
            )
        if epochs_per_layer < 1 or num_images < 1:
            raise ValueError(f"epochs_per_layer={epochs_per_layer} and num_images={num_images} must be at least 1")
        if not 0 <= freeze_fraction <= 1:
            raise ValueError(f"freeze_fraction={freeze_fraction} is outside [0, 1]")
        self.from_table = partial(TableStructure, residual=residual)
        self.mode, self.epochs_per_layer = mode, epochs_per_layer
        self.num_images, self.augmented, self.max_bytes = num_images, augmented, max_bytes
        self.score_file, self.freeze_fraction = scores, freeze_fraction
        self.scores: dict[str, Tensor] | None = None
        self.best: dict[str, Any] = dict(NOTHING_YET)  # of the running stage, for layerwise
        self.batch_means: dict[str, np.ndarray] = {}  # of the rank pass: (batches, C) per convolution
        self._frozen: list[tuple[Tensor, Tensor, Tensor]] | None = None

    def stage_epochs(self, arch: Any) -> list[int]:
        """One epoch for ``"oneshot"``; for ``"layerwise"`` one per group of convolutions with a rate above zero."""
        if self.mode == "oneshot":
            return [self.at_epoch]
        return [self.at_epoch + i * self.epochs_per_layer for i in range(len(self._stages(arch)))]

    def _stages(self, arch: str) -> list[set[str]]:
        """The groups that layer-wise mode prunes together, in order; rate 0 needs no stage."""
        points, stages = prune_points(arch), dict[str, set[str]]()
        groups = list(dict.fromkeys(point.group for point in points))
        rates = dict(zip(groups, self.listed_rates(len(groups)), strict=False))
        for point in points:
            if rates[point.group] > 0:
                block = ".".join(point.conv.split(".")[:2])  # layer1.0 of layer1.0.conv2
                stages.setdefault(block if arch in BLOCK_BY_BLOCK else point.group, set()).add(point.group)
        return list(stages.values())

    def check(self, trainer: Trainer, module: ImageClassifier) -> None:
        """Where the images for the ranks come from, and whether there are as many."""
        super().check(trainer, module)
        if self.score_file is None and not hasattr(getattr(trainer, "datamodule", None), "calibration_dataloader"):
            raise ValueError(
                "HRankPruning needs images for the ranks: a datamodule with calibration_dataloader(num_images, "
                "augmented), or scores=FILE with ranks taken before"
            )
        if self.mode == "layerwise" and module.arch is None:
            raise ValueError("mode='layerwise' needs a network with a table, a key of BACKBONES; leave mode out")
        if self.score_file is None:
            self._images(trainer)

    def choices(self, trainer: Trainer, module: ImageClassifier) -> Choices:
        """The groups of filters that share a rate, scored by rank; by stand-ins as long as no ranks are taken."""
        structure: Structure = self.structure(trainer, module)
        scores = self.scores or self._scores_of_file(structure.points) or _stand_ins(structure.points)
        return Choices(
            convs=[point.conv for point in structure.points],
            groups=len(structure.groups),
            plan=partial(structure.plan, scores, round_to=self.round_to),
            shape=structure.shape,
            scores=partial(structure.group_scores, scores),
        )

    def _scores_of_file(self, points: list[PrunePoint]) -> dict[str, Tensor] | None:
        return None if self.score_file is None else load_rank_scores(self.score_file, points)

    def _images(self, trainer: Trainer) -> DataLoader:
        return trainer.datamodule.calibration_dataloader(self.num_images, augmented=self.augmented)  # type: ignore[attr-defined]

    # -- which ------------------------------------------------------------------------------------------------------

    def decide(self, trainer: Trainer, module: ImageClassifier) -> Plan:
        """Select by rank: all convolutions at once, or those of the stages so far."""
        structure: Structure = self.structure(trainer, module)
        if self.scores is None:
            points = structure.points
            self.scores = self._scores_of_file(points) or self._rank_pass(trainer, module, points)
        if self.settled is None:
            self.settled = self.settle_rates(trainer, module)
            self._show_ranks(trainer, structure.plan(self.scores, self.settled, self.round_to))
        rates = self.settled
        if self.mode == "layerwise" and module.arch is not None:
            self._go_on_from_best(trainer, module)
            due = set().union(*self._stages(module.arch)[: self.stages_done + 1])
            rates = [rate if group in due else 0.0 for group, rate in zip(structure.groups, rates, strict=False)]
        return structure.plan(self.scores, rates, self.round_to)

    def shrink(self, trainer: Trainer, module: ImageClassifier, plan: Plan) -> nn.Module:
        """The kept filters, cut out."""
        return cut_network(module.model, plan)

    def _rank_pass(self, trainer: Trainer, module: ImageClassifier, points: list[PrunePoint]) -> dict[str, Tensor]:
        """Mean rank of every filter over the calibration images of all processes."""
        loader = self._images(trainer)
        zeros = partial(torch.zeros, dtype=torch.float64, device=module.device)
        sums, seen = {point.conv: zeros(point.num_filters) for point in points}, zeros(())
        means: dict[str, list[Tensor]] = {}
        with evaluating(module):
            batches = progress(trainer, device_batches(trainer, loader), "feature map ranks", total=len(loader))
            network, normalize = in_float32(module.model), in_float32(module.normalize)
            images = (normalize(batch["image"]) for batch in interruptible(trainer, batches))
            try:
                for ranks in batch_ranks(network, images, points, max_bytes=self.max_bytes):
                    for conv, rank in ranks.items():  # (N, C)
                        sums[conv] += rank.sum(0)
                        means.setdefault(conv, []).append(rank.double().mean(0))
                    seen += len(rank)
            except NonFiniteMapsError as ex:  # weights may be finite and still too large
                where = f"HRankPruning, before epoch {trainer.current_epoch}"
                raise NonFiniteError(f"{where}: {ex} Training has diverged: lower the learning rate") from None
        self.batch_means = {conv: torch.stack(values).cpu().numpy() for conv, values in means.items()}
        total = trainer.strategy.reduce(seen, reduce_op="sum")  # sums and counts, never means of means
        return {conv: (trainer.strategy.reduce(part, reduce_op="sum") / total).cpu() for conv, part in sums.items()}

    def _show_ranks(self, trainer: Trainer, plan: PrunePlan | TracedPlan) -> None:
        assert self.scores is not None
        kept = {conv: ids for conv in self.scores if (ids := plan.kept(conv)) is not None}
        report, scores = RunReport.of(trainer), {conv: score.numpy() for conv, score in self.scores.items()}
        report.figure(trainer, "prune/rank_histograms", rank_histograms_figure(scores, kept))
        spread = {conv: rank_spread(means) for conv, means in self.batch_means.items() if len(means) > 1}
        columns = ["conv", "mean_rank", "lowest", "highest", "std_between_batches", "std_between_filters"]
        rows = [[c, s.mean(), s.min(), s.max(), *spread.get(c, ("", ""))] for c, s in scores.items()]
        report.table(trainer, "prune/ranks", columns, rows)
        report.histogram(trainer, "prune/mean_rank", scores)
        if trainer.is_global_zero:
            save_rank_scores(Path(trainer.default_root_dir, "rank_scores.npz"), self.scores)
        if spread:  # from a file, or from a single batch, there is nothing to compare
            report.figure(trainer, "prune/rank_stability", rank_stability_figure(self.batch_means))
            between = np.array(list(spread.values())).mean(0)
            self.results["prune/rank_std_between_batches"] = float(between[0])
            self.results["prune/rank_std_between_filters"] = float(between[1])

    def show(self, trainer: Trainer, plan: Plan, filters: dict[str, int]) -> None:
        """Which filters stay."""
        assert not isinstance(plan, WidthPlan)
        ids = {conv: plan.kept(conv) or list(range(n)) for conv, n in filters.items()}
        rows = [[conv, n, len(ids[conv]), " ".join(map(str, ids[conv]))] for conv, n in filters.items()]
        columns = ["conv", "filters", "kept", "kept_ids"]
        RunReport.of(trainer).table(trainer, "prune/kept_filter_ids", columns, rows)  # not the figure's key at W&B

    def measure(self, dense: nn.Module, plan: Plan, size: tuple[int, ...]) -> dict[str, float]:
        """The paper's own count: input channels stay whole; for networks with a table."""
        if not isinstance(plan, PrunePlan):
            return {}
        macs, params = hrank_counter(dense, plan, size)
        return {"prune/macs_counter": macs, "prune/params_counter": params}

    # -- layer by layer -----------------------------------------------------------------------------------------------

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the best weights of the running stage; the next one goes on from them."""
        if self.mode == "oneshot" or self.stages_done == 0 or trainer.sanity_checking:
            return
        module = prunable(pl_module)
        logged = trainer.callback_metrics.get("val/top1")  # a subclass may log something else
        top1 = validation_top1(trainer, module) if logged is None else float(logged)
        if top1 is not None:
            self._consider(trainer.current_epoch, top1, module)

    def _consider(self, epoch: int, top1: float, module: ImageClassifier) -> None:
        self.best["seen"] = epoch
        if top1 > self.best["top1"]:
            weights = {key: value.detach().cpu().clone() for key, value in module.model.state_dict().items()}
            self.best |= {"top1": top1, "weights": weights}

    def _go_on_from_best(self, trainer: Trainer, module: ImageClassifier) -> None:
        epoch = trainer.current_epoch - 1
        missed = self.stages_done > 0 and self.best["seen"] != epoch  # resumed after its last batch, unvalidated
        if missed and (top1 := validation_top1(trainer, module)) is not None:
            self._consider(epoch, top1, module)
        if self.best["weights"] is not None:
            module.model.load_state_dict(self.best["weights"])
        self.best = dict(NOTHING_YET)

    # -- frozen filters -----------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Prune where an epoch is due; note the filters that are frozen from here on."""
        before = self.stages_done
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self.freeze_fraction > 0 and self.stages_done > 0 and (self._frozen is None or self.stages_done > before):
            self._frozen = self._highest_ranked(prunable(pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Put frozen filters back: momentum and weight decay move a weight without a gradient too."""
        with torch.no_grad():
            for weight, positions, values in self._frozen or []:
                weight[positions] = values

    def _highest_ranked(self, module: ImageClassifier) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Weight, positions and values of the kept filters of highest rank in each pruned convolution."""
        assert self.scores is not None
        frozen: list[tuple[Tensor, Tensor, Tensor]] = []
        plan = read_plan(module.hparams["plan"])
        for conv, score in self.scores.items():
            if isinstance(plan, WidthPlan) or (keep := plan.kept(conv)) is None:
                continue
            weight = module.model.get_parameter(f"{conv}.weight")
            best = score[keep].argsort(descending=True, stable=True)
            positions = best[: int(self.freeze_fraction * len(keep))].to(weight.device)
            frozen.append((weight, positions, weight.detach()[positions].clone()))
        return frozen

    # -- checkpoint ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors: what was done, the ranks, the best weights of a running stage."""
        return super().state_dict() | {"scores": self.scores, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Ranks are not taken again."""
        super().load_state_dict(state_dict)
        self.scores, self.best = state_dict["scores"], state_dict["best"]


def _stand_ins(points: list[PrunePoint]) -> dict[str, Tensor]:
    """Scores until there are ranks; random ones, since equal ones would line up along residual streams."""
    generator = torch.Generator().manual_seed(0)
    return {point.conv: torch.rand(point.num_filters, generator=generator) for point in points}
