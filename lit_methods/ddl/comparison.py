"""DDLComparison: DDL and its control, ArcFace alone, side by side from several seeds in one run."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_methods.ddl.encoder import build_encoder
from lit_methods.ddl.evaluation import EvaluationFigures
from lit_methods.ddl.module import DDL, Batch, similarities


class Learner(nn.Module):
    """One network with its heads.

    Args:
        model: the network.
        heads: its classifiers.
    """

    def __init__(self, model: nn.Module, heads: nn.ModuleList) -> None:
        super().__init__()
        self.model, self.heads = model, heads


class DDLComparison(DDL):
    """Train by DDL and by the softmax alone from the same weights on the same batches, for several seeds at once.

    What DDL is worth is the difference to a fine-tuning that sees the same hard samples. Each seed is one pair of
    networks that begin equal. In the first ``pretrain_epochs`` both learn from the easy images by the softmax, and stay
    equal; from then on both learn from all images of a batch, one of them with ``ddl_weight``. A seed decides the first
    weights; the order of the data is that of the run.

    Both draw the same random numbers, such as those of dropout. Every figure of evaluations, but for the spread of an
    accuracy over folds, is the mean over the seeds, such as ``test/hard_rank1`` of DDL and
    ``test/hard_rank1_baseline`` of the control, with their sample standard deviations ``test/hard_rank1_std`` and
    ``test/hard_rank1_baseline_std``. ``test/rank1_of_both`` is the mean of all rank-1 rates of both: a checkpoint that
    it chooses favours neither. ``predict`` and ``export`` use the network of the first seed that was trained by DDL.

    Args:
        backbone: by name, as in ``DDL``; so is all that is not named here.
        num_classes: likewise.
        easy: likewise.
        hard: likewise.
        ddl_weight: likewise.
        seeds: of the first weights, one pair of networks each.
        pretrain_epochs: epochs of the softmax on the easy images before the fine-tuning.
        pretrain_lr: learning rate in these epochs.
        backbone_args: as in ``DDL``.
        head: likewise.
        scale: likewise.
        margin: likewise.
        lr: learning rate of the fine-tuning.
        milestones: epochs after which it is multiplied by ``lr_factor``, counted from the first epoch of the
            fine-tuning.
        lr_factor: see there.
        weight_decay: as in ``DDL``.
        mean: likewise.
        std: likewise.
        input_size: likewise.

    Raises:
        ValueError: as in ``DDL``; no seeds, or one twice.

    Source:
        DDL, arXiv 2002.03662, two-stage training; the control experiment is ours.

    Example:
        >>> module = DDLComparison("tiny", 5, seeds=[0, 1], backbone_args={"width": 4}, input_size=[3, 48, 48])
        >>> (_, ours), (_, control), *others = module.learners
        >>> len(others), torch.equal(ours[0].kernel, control[0].kernel)
        (2, True)
    """

    def __init__(
        self,
        backbone: str = "tiny",
        num_classes: int | list[int] = 0,
        easy: str = "easy",
        hard: list[str] | None = None,
        ddl_weight: float = 1.0,
        seeds: list[int] | None = None,
        pretrain_epochs: int = 0,
        pretrain_lr: float = 0.1,
        backbone_args: dict[str, Any] | None = None,
        head: Literal["arcface", "cosface"] = "arcface",
        scale: float = 64.0,
        margin: float | None = None,
        lr: float = 1e-3,
        milestones: list[int] | None = None,
        lr_factor: float = 0.1,
        weight_decay: float = 5e-4,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        input_size: list[int] | None = None,
    ) -> None:
        seeds = [0, 1, 2] if seeds is None else seeds
        if not seeds or len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds={seeds} must be one number or more, each once")
        if pretrain_epochs < 0 or not pretrain_lr > 0:
            raise ValueError(
                f"pretrain_epochs={pretrain_epochs} must not be negative, and pretrain_lr={pretrain_lr} positive"
            )
        super().__init__(
            backbone,
            num_classes,
            easy,
            hard,
            ddl_weight,
            backbone_args,
            head,
            scale,
            margin,
            lr=lr,
            milestones=milestones,
            lr_factor=lr_factor,
            weight_decay=weight_decay,
            mean=mean,
            std=std,
            input_size=input_size,
        )
        if isinstance(num_classes, list) and pretrain_epochs:
            raise ValueError(
                f"pretrain_epochs={pretrain_epochs} would leave all heads of num_classes={num_classes} but the first "
                "unused; set it to 0"
            )
        pairs = [self._twins(seed) for seed in seeds]
        self.model, self.heads = pairs[0][0].model, pairs[0][0].heads
        self.others = nn.ModuleList([learner for pair in pairs for learner in pair][1:])
        self._all_figures: dict[str, list[EvaluationFigures]] = {}

    def _twins(self, seed: int) -> tuple[Learner, Learner]:
        """Two networks with equal weights: for DDL and for the control."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network, _ = build_encoder(
                self.hparams["backbone"], self.hparams["input_size"], self.hparams["backbone_args"]
            )
            learner = Learner(network, self.make_heads())
        return learner, copy.deepcopy(learner)

    @property
    def learners(self) -> list[tuple[nn.Module, nn.ModuleList]]:
        """Networks and their heads, seed by seed: that of DDL, then its control."""
        others: Any = self.others
        return [(self.model, self.heads), *((other.model, other.heads) for other in others)]

    # -- learning -----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """The sum of the losses of all networks, and the similarities that those of the first seed give."""
        names = self.branches(list(batch))
        if self.current_epoch < self.hparams["pretrain_epochs"]:
            names = names[:1]
            batch = {name: {key: value for key, value in batch[name].items() if key != "pair"} for name in names}
        found = []
        for number, (model, heads) in enumerate(self.learners):
            control = number % 2 == 1
            with nullcontext() if control else self._draws_again():
                found.append(self.losses(model, heads, batch, names, 0.0 if control else self.hparams["ddl_weight"]))
        means = {key: torch.stack([parts[key].detach() for parts, _ in found[::2]]).mean() for key in found[0][0]}
        for key in means.copy():
            if key.startswith("gap_"):
                means[f"{key}_baseline"] = torch.stack([parts[key].detach() for parts, _ in found[1::2]]).mean()
        self.log_training(means, sum(len(batch[name]["label"]) for name in names))
        return {
            "loss": sum(parts["loss"] for parts, _ in found),
            "similarities": similarities(names, found[0][1]),
            "baseline": similarities(names, found[1][1]),
        }

    def _draws_again(self) -> AbstractContextManager[None]:
        """Leave random numbers, such as those of dropout, as they were: the control draws the same."""
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])

    def on_fit_start(self) -> None:
        """Refuse to clip gradients: it would be by all networks together."""
        if not self.hparams["pretrain_epochs"]:
            super().on_fit_start()
        if self.trainer.gradient_clip_val:
            raise ValueError(
                f"gradient_clip_val={self.trainer.gradient_clip_val} would clip by the gradients of all networks "
                "together, those of DDL and of their controls; leave it out"
            )

    def rate(self, epoch: int) -> float:
        """Factor on ``lr`` in an epoch."""
        if epoch < self.hparams["pretrain_epochs"]:
            return self.hparams["pretrain_lr"] / self.hparams["lr"]
        return super().rate(epoch - self.hparams["pretrain_epochs"])

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def prepare_figures(self, stage: str, sets: Sequence[Any], fars: Sequence[float]) -> None:
        """Figures of each network; callbacks see those of the first."""
        self._all_figures[stage] = [EvaluationFigures(sets, fars) for _ in self.learners]
        self.figures[stage] = self._all_figures[stage][0]

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep what the figures need, for each network."""
        self._update("val", batch, dataloader_idx)

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """As ``validation_step``."""
        self._update("test", batch, dataloader_idx)

    def _update(self, stage: str, batch: dict[str, Any], dataloader_idx: int) -> None:
        for (model, _), figures in zip(self.learners, self._all_figures[stage], strict=True):
            figures.update(batch, partial(self.embed_by, model), dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Means over the seeds, unless this is only a trial of the first batches."""
        if not self.trainer.sanity_checking:
            self._compare("val")
            self.note_threshold(self.figures["val"])
        self._reset("val")

    def on_test_epoch_end(self) -> None:
        """Means over the seeds."""
        self._compare("test")

    def on_test_end(self) -> None:
        """Let the rows go: callbacks had their look."""
        self._reset("test")

    def _compare(self, stage: str) -> None:
        found = [figures.compute(self.limited(stage)) for figures in self._all_figures[stage]]
        self.log_figures(stage, compared(found))

    def _reset(self, stage: str) -> None:
        for figures in self._all_figures[stage]:
            figures.reset()


def compared(found: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Means over the seeds, and how far they are spread.

    Args:
        found: figures of each network, seed by seed: that of DDL, then its control.

    Returns:
        ``<name>`` and ``<name>_baseline``, with ``_std`` behind them sample standard deviations (0 for one seed); and
        ``rank1_of_both``, the mean of all ``..._rank1``, where there are any.

    Example:
        >>> figures = compared([{"hard_rank1": torch.tensor(value)} for value in (0.5, 0.25, 0.75, 0.25)])
        >>> list(figures)[:3]
        ['hard_rank1', 'hard_rank1_std', 'hard_rank1_baseline']
        >>> [round(float(value), 3) for value in figures.values()]
        [0.625, 0.177, 0.25, 0.0, 0.438]
    """
    figures: dict[str, Tensor] = {}
    for name in found[0]:
        if name.endswith("_std"):  # of accuracies over folds: not what is compared
            continue
        for suffix, part in (("", found[::2]), ("_baseline", found[1::2])):
            values = torch.stack([one[name].double() for one in part])
            figures[f"{name}{suffix}"] = values.mean()
            figures[f"{name}{suffix}_std"] = values.std() if len(values) > 1 else torch.zeros_like(values[0])
    if rates := [one[name].double() for one in found for name in one if name.endswith("_rank1")]:
        figures["rank1_of_both"] = torch.stack(rates).mean()
    return figures
