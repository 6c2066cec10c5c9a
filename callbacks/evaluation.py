"""Run a trainer's own batches through a network outside the Trainer's loops."""

import copy
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from callbacks.interruption import interruptible
from callbacks.progress import progress
from lit_methods.classification import ImageClassifier
from lit_methods.functional.modes import evaluating


def device_batches(trainer: Trainer, loader: Iterable[Any]) -> Iterator[Any]:
    """Batches of a loader as a step gets them: on the trainer's device, in its precision, after the transfer hooks."""
    for batch in loader:
        yield trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch), dataloader_idx=0)


def batches_within(limit: int | float, batches: int) -> int:
    """How many batches of a loader a limit of the Trainer leaves, such as ``limit_val_batches``.

    Args:
        limit: a whole number of batches, or a fraction of them in [0, 1].
        batches: of the loader.

    Example:
        >>> batches_within(0.5, 9), batches_within(1.0, 9), batches_within(20, 9)
        (4, 9, 9)
    """
    return min(limit, batches) if isinstance(limit, int) else int(limit * batches)


def validation_top1(trainer: Trainer, module: ImageClassifier) -> float | None:
    """Top-1 accuracy of a classifier on the datamodule's validation split, over all processes.

    Args:
        trainer: the running trainer; ``limit_val_batches`` holds here too.
        module: its module.

    Returns:
        A fraction of 1, equal on every process; ``None`` where there is nothing to validate on, or no datamodule.
    """
    data: Any = getattr(trainer, "datamodule", None)
    loader = data.val_dataloader() if hasattr(data, "val_dataloader") else None
    limit = trainer.limit_val_batches
    if not loader or limit == 0:
        return None
    count = batches_within(limit, len(loader))
    accuracy = MulticlassAccuracy(module.hparams["num_classes"], average="micro").to(module.device)
    batches = progress(trainer, device_batches(trainer, islice(loader, count)), "validation top-1", total=count)
    with evaluating(module), trainer.precision_plugin.forward_context():
        for batch in interruptible(trainer, batches):
            if len(batch["label"]):  # none where there are fewer images than processes
                accuracy.update(module(batch["image"]), batch["label"])
    return float(accuracy.compute())


def in_float32(network: nn.Module) -> nn.Module:
    """The network itself, or a float32 copy of one in half precision, for measurements that rounding would decide.

    Under ``trainer.precision=bf16-true`` the weights are bfloat16, which float32 holds exactly.

    Example:
        >>> layer = nn.Linear(2, 2).bfloat16()
        >>> in_float32(layer).weight.dtype, layer.weight.dtype, in_float32(layer.double()).weight.dtype
        (torch.float32, torch.bfloat16, torch.float64)
    """
    halves = any(t.dtype in (torch.float16, torch.bfloat16) for t in [*network.parameters(), *network.buffers()])
    return copy.deepcopy(network).float() if halves else network


def input_size(trainer: Trainer, module: LightningModule) -> tuple[int, ...]:
    """(C, H, W) of the images: the module's, else the datamodule's, else CIFAR's."""
    data = getattr(trainer, "datamodule", None)
    return tuple(module.hparams.get("input_size") or getattr(data, "input_size", None) or (3, 32, 32))
