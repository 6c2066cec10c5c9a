"""LearningRateOnResume: a learning rate changed between two halves of a run is the one that counts."""

import sys
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

_SCALED = ("lr", "max_lr", "min_lr")  # of a parameter group; the last two belong to one-cycle schedules


class LearningRateOnResume(Callback):
    """Honour a learning rate that was changed for a resumed run, and say so.

    Lightning restores optimisers and schedulers as they were, so ``--model.lr 0.9 --ckpt_path ...`` would go on with
    the old rate. Here the rates that ``configure_optimizers`` gives are compared with those it gave when the
    checkpoint was written; where they differ, the restored rates (current, initial, the scheduler's base) are scaled by
    their ratio, so that the schedule keeps its shape. Unchanged rates are not touched, not even in their last bit.

    Each parameter group keeps its first rate under ``initial_lr``, as PyTorch's schedulers do.
    """

    def __init__(self) -> None:
        self._configured: list[list[float]] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the rates of the new optimisers; their old state is not loaded yet."""
        self._remember_initial(trainer)
        self._configured = [[float(group["initial_lr"]) for group in opt.param_groups] for opt in trainer.optimizers]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with what was restored."""
        if trainer.ckpt_path is None or self._configured is None:
            return
        for index, (optimizer, rates) in enumerate(zip(trainer.optimizers, self._configured, strict=False)):
            ratios = [_adopt(group, rate) for group, rate in zip(optimizer.param_groups, rates, strict=False)]
            if any(ratio != 1 for ratio in ratios):
                for config in trainer.lr_scheduler_configs:
                    if getattr(config.scheduler, "optimizer", None) is optimizer:
                        _rescale(config.scheduler, ratios)
                _say(trainer, index, [group["initial_lr"] for group in optimizer.param_groups], ratios)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Optimisers that came in the middle of the fit (pruning) get their note before the first step."""
        self._remember_initial(trainer)

    @staticmethod
    def _remember_initial(trainer: Trainer) -> None:
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", float(group["lr"]))


def _adopt(group: dict[str, Any], rate: float) -> float:
    """Scale one parameter group to its new rate; returns new / old, 1 where nothing changed."""
    old = float(group.get("initial_lr", rate))  # a checkpoint of another program may have none
    if old == rate:
        return 1.0
    ratio = rate / old if old else 1.0
    for name in _SCALED:
        if isinstance(group.get(name), torch.Tensor):
            group[name].mul_(ratio)
        elif name in group:
            group[name] = group[name] * ratio if old else rate
    group["initial_lr"] = rate
    return ratio


def _rescale(scheduler: Any, ratios: list[float]) -> None:
    """The scheduler's own copies of the rates; chained and sequential schedulers have others inside."""
    if hasattr(scheduler, "base_lrs"):  # read at every step by LambdaLR, CosineAnnealingLR and others
        scheduler.base_lrs = [group["initial_lr"] for group in scheduler.optimizer.param_groups]
    for name in ("max_lrs", "min_lrs", "_last_lr"):
        if isinstance(rates := getattr(scheduler, name, None), list) and len(rates) == len(ratios):
            setattr(scheduler, name, [rate * ratio for rate, ratio in zip(rates, ratios, strict=True)])
    for inner in getattr(scheduler, "_schedulers", []):
        _rescale(inner, ratios)


def _say(trainer: Trainer, index: int, rates: list[float], ratios: list[float]) -> None:
    if trainer.is_global_zero:
        new, old = rates[0], rates[0] / ratios[0]
        which = f" of optimizer {index}" if len(trainer.optimizers) > 1 else ""
        print(f"learning rate{which}: {old:g} in the checkpoint, {new:g} now; going on with {new:g}", file=sys.stderr)
