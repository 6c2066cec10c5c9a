"""ADCluster: adapt a re-ID encoder to cameras whose persons nobody has labelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from lit_methods.ad_cluster.camera_stargan import CameraStarGAN as CameraStarGAN
from lit_methods.ad_cluster.source import SourceReID as SourceReID
from lit_methods.backbones.weights import untrained
from lit_methods.functional.arguments import check_ranges


class ADCluster(SourceReID):
    """Augmented discriminative clustering for domain-adaptive person re-ID (AD-Cluster, arXiv 2004.08787).

    The encoder learns from pseudo-labels: the callback ``PseudoLabelClustering`` clusters its own features of the
    unlabelled pictures every few epochs, ``CameraStyleAugmentation`` has some of the pictures of each cluster drawn in
    the style of other cameras, and this module shrinks the clusters, real and drawn pictures together, by a batch-hard
    triplet loss. Without the second callback it is the paper's baseline, clustering alone.

    ``source_epochs`` first train it on the labelled source, as ``SourceReID``, when no trained encoder is at hand: the
    whole method in one run. With the first clustering the classifier is frozen and the optimiser of the adaptation
    takes over.

    Batch: ``image``, ``label`` (a pseudo-label; in the first epochs an identity of the source) and ``erased``; of
    length 0 in epochs for which there are no two clusters: nothing is learnt then. Logs ``train/loss``,
    ``train/triplet_loss``, ``train/hard_precision`` and what ``SourceReID`` and ``PersonRetrieval`` log.

    Args:
        encoder: as in ``PersonRetrieval``.
        encoder_args: likewise.
        num_classes: identities of the source, for ``source_epochs``.
        source_epochs: epochs of training on the labelled source before the first clustering; 0: none, give
            ``base_checkpoint``.
        margin: of the triplet loss, in units of the features; ``None`` is its soft form.
        lr: learning rate of the adaptation's SGD, constant.
        momentum: of this SGD.
        weight_decay: of this SGD.
        source_lr: learning rate of Adam in ``source_epochs``.
        source_weight_decay: of this Adam.
        head: as in ``SourceReID``; likewise the next four.
        head_lr_factor: of the classifier.
        decay_start: of ``source_lr``.
        decay_epochs: of ``source_lr``.
        erase_fill: of erased rectangles.
        mean: per channel, for images in [0, 1]; ``None`` hands pixels on as they are.
        std: per channel; given together with ``mean``.
        input_size: (C, H, W) that the encoder is fed with.
        base_checkpoint: weights of the encoder to start from, such as a checkpoint of ``SourceReID``.
        ap: as in ``PersonRetrieval``.
        rerank: likewise.

    Raises:
        ValueError: an argument is out of range; before a fit: data that do not give clusters, ``source_epochs``
            without a source.
        FileNotFoundError: ``base_checkpoint`` does not exist.

    Source:
        AD-Cluster, arXiv 2004.08787, abstract and captions; the rest from the public code that it builds on, as far as
        its page says. Ours: ``source_epochs``.

    Example:
        >>> module = ADCluster("tiny", {"width": 8}, num_classes=0, input_size=[3, 64, 32])
        >>> module.adapting, module.head
        (True, None)
    """

    train_on = ("clusters",)

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        encoder_args: dict[str, Any] | None = None,
        num_classes: int = 0,
        source_epochs: int = 0,
        margin: float | None = 0.5,
        lr: float = 6e-5,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        source_lr: float = 3e-4,
        source_weight_decay: float = 5e-4,
        head: Literal["fc", "bnneck"] = "fc",
        head_lr_factor: float = 3.0,
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
        super().__init__(
            encoder=encoder,
            encoder_args=encoder_args,
            num_classes=num_classes if source_epochs else 0,
            head=head,
            margin=margin,
            lr=lr,
            head_lr_factor=head_lr_factor,
            weight_decay=weight_decay,
            decay_start=decay_start,
            decay_epochs=decay_epochs,
            erase_fill=erase_fill,
            mean=mean,
            std=std,
            input_size=input_size,
            base_checkpoint=base_checkpoint,
            ap=ap,
            rerank=rerank,
        )
        self.hparams["num_classes"] = num_classes
        self._check_adaptation()
        self.adapting = source_epochs == 0  # whether the training on the source is over
        self._idle = False

    def _check_adaptation(self) -> None:
        rules: dict[str, tuple[Callable[[float], bool], str]] = {
            "source_epochs": (lambda v: v >= 0, "must not be negative"),
            "momentum": (lambda v: 0 <= v < 1, "must lie in [0, 1)"),
            "source_lr": (lambda v: v > 0, "must be positive"),
            "source_weight_decay": (lambda v: v >= 0, "must not be negative"),
        }
        check_ranges(self.hparams, rules)
        if self.hparams["source_epochs"] and not self.hparams["num_classes"]:
            raise ValueError(
                f"source_epochs={self.hparams['source_epochs']} needs num_classes, identities of labelled pictures: "
                "give data.source_root, or source_epochs=0 and a trained base_checkpoint"
            )

    def setup(self, stage: str) -> None:
        """As in ``SourceReID``; with ``source_epochs`` there must be a source."""
        super().setup(stage)
        if stage == "fit" and self.current_epoch == 0:  # a fit of its own, unless a checkpoint is loaded next
            self.begin_adaptation(False)
        data = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and self.hparams["source_epochs"] and not getattr(data, "num_classes", 1):
            raise ValueError(
                f"source_epochs={self.hparams['source_epochs']} needs labelled pictures: give data.source_root, or "
                "source_epochs=0 and a trained base_checkpoint"
            )

    def on_fit_start(self) -> None:
        """Warn of an encoder that knows nothing: its clusters mean nothing."""
        if not self.hparams["source_epochs"] and untrained(self.model):
            rank_zero_warn(
                "the encoder has no trained weights, so its clusters mean nothing: give model.base_checkpoint, such as "
                "a checkpoint of SourceReID, or source_epochs"
            )

    def begin_adaptation(self, begun: bool = True) -> None:
        """End the training on the source: from here on ``configure_optimizers`` gives the adaptation's SGD.

        Args:
            begun: ``False`` goes back to the source, for a fit that begins anew.
        """
        self.adapting = begun or not self.hparams["source_epochs"]
        if self.head is not None:
            self.head.requires_grad_(not self.adapting)

    # -- learning -----------------------------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        """The loss of one batch."""
        if not self.adapting:
            return super().training_step(batch, batch_idx)
        if self._idle:  # a zero that has gradients: several processes may not return nothing
            return sum(p.sum() * 0 for p in self.model.parameters() if p.requires_grad)  # type: ignore[return-value]
        return self._logged(self.adaptation_losses(batch), len(batch["label"]))

    def adaptation_losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``loss`` and its parts, for a batch of pseudo-labels; override it for losses of your own."""
        parts = self.triplet(self.train_features(batch), batch["label"])
        return {"loss": parts["triplet_loss"], **parts}

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Notice a batch without pictures."""
        self._idle = not len(batch["label"])

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """As Lightning's; a batch without pictures moves nothing, neither by momentum nor by weight decay."""
        if not self._idle:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        elif optimizer_closure is not None:
            optimizer_closure()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam on the source, then SGD with a constant rate."""
        if not self.adapting:
            return self.supervised_optimizer(self.hparams["source_lr"], self.hparams["source_weight_decay"])
        return SGD(
            self.model.parameters(),
            lr=self.hparams["lr"],
            momentum=self.hparams["momentum"],
            weight_decay=self.hparams["weight_decay"],
        )

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Says whether the adaptation has begun: other optimisers belong to it."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lit_methods"]["adapting"] = self.adapting

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Before optimisers are built and several processes are told what is trained."""
        super().on_load_checkpoint(checkpoint)
        self.begin_adaptation(checkpoint.get("lit_methods", {}).get("adapting", False))
