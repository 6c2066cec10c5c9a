"""SourceReID: train a re-ID encoder on persons with known identities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from lit_methods.ad_cluster.losses import batch_hard_distances, triplet_loss
from lit_methods.ad_cluster.model import IdentityHead
from lit_methods.ad_cluster.retrieval import PersonRetrieval
from lit_methods.contract import log_rate
from lit_methods.functional.cutout import paint_rectangles
from lit_methods.functional.processes import gather_rows

FINAL_FACTOR = 1e-3  # of the learning rate at the end of its decay


class SourceReID(PersonRetrieval):
    """Supervised re-ID: cross entropy over the identities and a batch-hard triplet loss, ``L_src`` of AD-Cluster.

    Batch: ``image``, ``label`` (number of the identity), ``erased`` (y0, x0, y1, x1 of the rectangle that random
    erasing takes away, painted over after normalising), in batches of P identities with K pictures each. With several
    processes each anchor is held against the pictures of all of them, so P x K may be spread over GPUs; statistics of
    batch norm are each process's own unless ``trainer.sync_batchnorm`` is set.

    Logs ``train/loss``, ``train/identity_loss``, ``train/triplet_loss``, ``train/hard_precision`` (share of anchors
    whose hardest negative is farther away than their hardest positive), ``train/top1``, ``train/lr`` (of the encoder)
    and what ``PersonRetrieval`` logs in evaluations.

    Args:
        encoder: as in ``PersonRetrieval``.
        encoder_args: likewise.
        num_classes: identities in the training set.
        head: classifier on the features, ``"fc"`` or ``"bnneck"``, see ``IdentityHead``.
        margin: of the triplet loss, in units of the features; ``None`` is its soft form.
        lr: learning rate of Adam.
        head_lr_factor: how many times as fast the classifier learns.
        weight_decay: of Adam.
        decay_start: epoch until which the rate is constant.
        decay_epochs: epochs after that in which it falls to a thousandth, exponentially.
        erase_fill: what erased rectangles are filled with, per channel, after normalising.
        mean: per channel, for images in [0, 1]; ``None`` hands pixels on as they are.
        std: per channel; given together with ``mean``.
        input_size: (C, H, W) that the encoder is fed with.
        base_checkpoint: weights of the encoder to start from, as in ``PersonRetrieval``.
        ap: as in ``PersonRetrieval``.
        rerank: likewise.

    Raises:
        ValueError: an argument is out of range; before a fit: data without identities, or with others.
        FileNotFoundError: ``base_checkpoint`` does not exist.

    Source:
        Theory and Practice of UDA re-ID, public code, for all settings; it uses all positive pairs of a group with
        their hardest negative, on two features: batch-hard on the pooled feature is HHL's and, as inferred, the
        paper's. ``bnneck`` is ours.

    Example:
        >>> module = SourceReID("tiny", {"width": 8}, num_classes=5, input_size=[3, 64, 32])
        >>> module.head(module(torch.rand(2, 3, 64, 32))).shape
        torch.Size([2, 5])
    """

    train_on: tuple[str, ...] = ("ids",)  # what the data module may give
    head: nn.Module | None
    erase_fill: Tensor

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        encoder_args: dict[str, Any] | None = None,
        num_classes: int = 751,
        head: Literal["fc", "bnneck"] = "fc",
        margin: float | None = 0.5,
        lr: float = 3e-4,
        head_lr_factor: float = 3.0,
        weight_decay: float = 5e-4,
        decay_start: int = 100,
        decay_epochs: int = 50,
        erase_fill: list[float] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        input_size: list[int] | None = None,
        base_checkpoint: str | None = None,
        ap: Literal["step", "trapezoid"] = "step",
        rerank: bool = False,
    ) -> None:
        super().__init__(encoder, encoder_args, mean, std, input_size, base_checkpoint, ap, rerank)
        self._check_training()
        self.head = IdentityHead(self.model.num_features, num_classes, head) if num_classes else None
        fill = [0.4914, 0.4822, 0.4465] if erase_fill is None else erase_fill
        self.register_buffer("erase_fill", torch.tensor(fill), persistent=False)

    def _check_training(self) -> None:
        rules: dict[str, tuple[Callable[[float], bool], str]] = {
            "margin": (lambda v: v >= 0, "must not be negative; null is the soft form"),
            "lr": (lambda v: v > 0, "must be positive"),
            "head_lr_factor": (lambda v: v > 0, "must be positive"),
            "weight_decay": (lambda v: v >= 0, "must not be negative"),
            "decay_start": (lambda v: v >= 0, "must not be negative"),
            "decay_epochs": (lambda v: v >= 1, "must be at least 1"),
            "num_classes": (lambda v: v == 0 or v >= 2, "must be at least 2: there is nobody to tell apart"),
        }
        for name, (holds, text) in rules.items():
            if (value := self.hparams[name]) is not None and not holds(value):
                raise ValueError(f"{name}={value} {text}")
        fill = self.hparams["erase_fill"]
        if fill is not None and len(fill) != 3:
            raise ValueError(f"erase_fill={fill} needs three values: red, green, blue")

    def setup(self, stage: str) -> None:
        """Refuse data that do not give what is learnt from, before a fit."""
        data = getattr(self.trainer, "datamodule", None)
        given = getattr(data, "train_on", None)
        if stage != "fit" or given is None:
            return
        if given not in self.train_on:
            wanted = " or ".join(map(repr, self.train_on))
            raise ValueError(f"data.train_on={given!r} does not fit {type(self).__name__}: give {wanted}")
        classes, mine = data.num_classes, self.hparams["num_classes"]  # type: ignore[union-attr]
        if mine and classes > mine:
            raise ValueError(
                f"model.num_classes={mine}, but there are {classes} identities; leave num_classes out to take it from "
                "the data"
            )

    # -- learning -----------------------------------------------------------------------------------------------------

    def train_features(self, batch: dict[str, Tensor]) -> Tensor:
        """Features (B, D) of a training batch, its erased rectangles painted over."""
        image = self.normalize(batch["image"])
        if (erased := batch.get("erased")) is not None:
            image = paint_rectangles(image, erased, self.erase_fill)
        return self.model(image.contiguous(memory_format=torch.channels_last))

    def triplet(self, features: Tensor, label: Tensor) -> dict[str, Tensor]:
        """The triplet loss of this process's anchors against the pictures of all, and ``hard_precision``."""
        features = features.float()
        others, other_labels = gather_rows(features), gather_rows(label)
        d_ap, d_an = batch_hard_distances(features, label, others=others, other_labels=other_labels)
        loss = triplet_loss(d_ap, d_an, self.hparams["margin"])
        return {"triplet_loss": loss, "hard_precision": (d_an > d_ap).float().mean().detach()}

    def supervised_losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``loss`` and its parts, for a batch of known identities; override it for losses of your own."""
        assert self.head is not None
        features, label = self.train_features(batch), batch["label"]
        logits = self.head(features).float()
        parts = self.triplet(features, label)
        identity = F.cross_entropy(logits, label)
        top1 = (logits.argmax(1) == label).float().mean()
        return {"loss": identity + parts["triplet_loss"], "identity_loss": identity, "top1": top1, **parts}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        """The loss of one batch."""
        return self._logged(self.supervised_losses(batch), len(batch["label"]))

    def _logged(self, parts: dict[str, Tensor], length: int) -> Tensor:
        bar = self.trainer.progress_bar_callback is not None
        for name, value in parts.items():
            self.log(f"train/{name}", value.detach(), prog_bar=bar and name == "loss", batch_size=length)
        log_rate(self)
        return parts["loss"]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam, the classifier faster than the encoder, constant and then falling exponentially, by epochs."""
        return self.supervised_optimizer(self.hparams["lr"], self.hparams["weight_decay"])

    def supervised_optimizer(self, lr: float, weight_decay: float) -> OptimizerLRScheduler:
        """Of the training with known identities."""
        assert self.head is not None
        groups = [
            {"params": list(self.model.parameters()), "lr": lr},
            {"params": list(self.head.parameters()), "lr": lr * self.hparams["head_lr_factor"]},
        ]
        optimizer = Adam(groups, weight_decay=weight_decay)
        start, length = self.hparams["decay_start"], self.hparams["decay_epochs"]
        schedule = LambdaLR(optimizer, lambda epoch: FINAL_FACTOR ** (max(0, epoch - start) / length))
        return {"optimizer": optimizer, "lr_scheduler": schedule}
