"""ASFD: a family of face detectors, from small enough for a phone to large, with a searched feature module."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

from lit_methods.asfd.detection import SMALLEST_SIDE, detect, detect_multi_scale, size_fault
from lit_methods.asfd.evaluation import DetectionFigures
from lit_methods.asfd.functional import REG_LOSSES, decode, drmc_loss, face_probability, make_anchors, match_batch
from lit_methods.asfd.genotype import read_genotype
from lit_methods.asfd.graphs import OwnGraphs
from lit_methods.asfd.model import ASFD_SIZES, ASFDNet
from lit_methods.asfd.own_pictures import OwnPictures
from lit_methods.asfd.own_predictions import OwnPredictions
from lit_methods.asfd.pixels import PIXELS, Pixels
from lit_methods.asfd.search import SearchNet
from lit_methods.asfd.weights import load_detector_weights
from lit_methods.contract import Described, log_rate
from lit_methods.functional.arguments import Rules, check_choices, check_ranges
from lit_methods.functional.pictures import BadImageError
from lit_methods.functional.precision import at_least_float32
from lit_methods.functional.run_length import steps_of_run
from lit_methods.metrics.stage_figures import StageFigures

Detections = list[dict[str, Tensor]]  # per image "boxes" (k, 4) xyxy and "scores" (k,)


class ASFD(OwnPredictions, OwnPictures, OwnGraphs, StageFigures, Described, LightningModule):
    """Automatic and scalable face detector (ASFD, arXiv 2003.11228): single stage, one anchor per cell of six levels.

    Training batch: ``image`` (B, 3, S, S) RGB in [0, 1] and ``boxes``, a list of (n, 4) xyxy in pixels. Evaluation
    batch: ``image``, a list of (3, H, W) of any sizes of at least 128 pixels, each detected at its own size, with
    ``boxes`` and, where known, ``keep_<level>``, as ``WIDERFaceDataModule`` gives them; or ``ellipses``, those of
    ``FDDBDataModule``.

    Logs ``train/loss``, ``train/cls_loss``, ``train/reg_loss``, ``train/positives`` (anchors of an image that are
    faces), ``train/lr``, and in evaluations what ``DetectionFigures`` gives.

    ``predict_step`` gives per picture ``face_boxes`` (k, 4) xyxy in pixels and ``scores`` (k,), best first, with its
    ``width`` and ``height``.

    Args:
        size: ``"d0"`` to ``"d6"``, a row of ``ASFD_SIZES``.
        genotype: of the feature module: a dict, or the path of a ``genotype.json`` that ``asfd_search`` has left;
            ``None`` is the default one of the size.
        channels: of the feature module and the heads; ``None``: those of the size.
        cls_mode: ``"logit"``, two logits with a margin, or ``"cosine"``, cosines with a margin and a scale.
        scale: of the logits or cosines; ``None``: 1 and 20.
        margin: taken from the true class in training.
        apply_to: ``"both"`` classes have the margin, or ``"positives"`` alone.
        reg_loss: ``"diou"``, ``"iou"``, ``"giou"``, ``"ciou"``, or ``"smooth_l1"`` on codes.
        reg_weight: of the regression loss.
        neg_ratio: hardest negatives kept for each positive of an image; ``None`` keeps all of them.
        prior: face probability that an untrained network says everywhere, with the anchors as boxes: for training from
            nothing, or without mining; ``None``: its predictions begin by chance.
        match_threshold: IoU of an anchor and its face from which on it is positive.
        low_threshold: IoU from which on an anchor that is not positive does not count; ``None`` is no such range.
        compensate: a face with fewer positives gets its next best anchors until it has so many; 0 is off.
        pixels: what the network wants: ``"imagenet"``, RGB by mean and std as torchvision's weights do, or ``"caffe"``,
            BGR from 0 to 255 less a mean.
        optimizer: ``"sgd"``, as published, or ``"adamw"``, which begins sooner where nothing is pretrained.
        lr: learning rate after the warm-up.
        momentum: of SGD.
        weight_decay: of the optimiser.
        warmup_steps: in which the rate rises linearly to ``lr``; no more than a tenth of the run.
        milestones: parts of the run, in [0, 1], after which the rate is multiplied by ``gamma``; ``None``: 2/3 and 5/6.
        gamma: factor at a milestone.
        score_threshold: faces below it are dropped before suppression.
        pre_nms: best ones that go through suppression, of an image.
        nms_iou: of two faces that overlap by more the better one stays.
        max_boxes: most faces of an image.
        multi_scale: whether images are detected at up to a dozen scales, whose answers vote, which is much slower.
        base_checkpoint: weights to start from: a checkpoint of ours, a file with a backbone's weights, or a torchvision
            entry such as ``ResNet50_Weights.IMAGENET1K_V1``.

    Raises:
        ValueError: an argument is out of range, or genotype or weights do not fit.
        FileNotFoundError: ``genotype`` or ``base_checkpoint`` does not exist.

    Source:
        ASFD, arXiv 2003.11228, of which the abstract could be read; anchors, matching, mining, augmentation and testing
        as in DSFD's official code (arXiv 1810.10220). Ours, as no source settles them: the sizes' widths, the default
        genotype, the exact losses, ``apply_to``, ``neg_ratio=None``, ``prior``, ``optimizer``, milestones as parts of
        the run. The loss is divided by the mean number of positives of all processes, so that several equal one.

    Example:
        >>> module = ASFD(channels=8)
        >>> boxes, scores = module(torch.rand(1, 3, 128, 160))
        >>> boxes.shape, scores.shape  # 32 x 40 cells at stride 4, then 16 x 20 and so on
        (torch.Size([1, 1708, 4]), torch.Size([1, 1708]))
    """

    model: ASFDNet | SearchNet
    headline = "ap_all"
    wants_halves = False  # whether it is trained on two batches in step, of weights and of an architecture

    def __init__(
        self,
        size: Literal["d0", "d1", "d2", "d3", "d4", "d5", "d6"] = "d0",
        genotype: dict[str, Any] | str | None = None,
        channels: int | None = None,
        cls_mode: Literal["logit", "cosine"] = "logit",
        scale: float | None = None,
        margin: float = 0.2,
        apply_to: Literal["both", "positives"] = "both",
        reg_loss: Literal["diou", "iou", "giou", "ciou", "smooth_l1"] = "diou",
        reg_weight: float = 1.0,
        neg_ratio: float | None = 3,
        prior: float | None = None,
        match_threshold: float = 0.4,
        low_threshold: float | None = None,
        compensate: int = 0,
        pixels: Literal["imagenet", "caffe"] = "imagenet",
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        warmup_steps: int = 1000,
        milestones: list[float] | None = None,
        gamma: float = 0.1,
        score_threshold: float = 0.01,
        pre_nms: int = 5000,
        nms_iou: float = 0.3,
        max_boxes: int = 750,
        multi_scale: bool = False,
        base_checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.keep_arguments()
        self._check()
        if genotype is not None:
            self.hparams["genotype"] = read_genotype(genotype).to_dict()  # a checkpoint needs no file beside it
        self.model = self.build_network()
        self.normalize = Pixels(pixels)
        self.figures = {stage: DetectionFigures() for stage in ("val", "test")}
        if base_checkpoint is not None:
            load_detector_weights(self.model, base_checkpoint)

    def _check(self) -> None:
        rules: Rules = {
            "channels": (lambda v: v is None or v >= 1, "must be at least 1"),
            "scale": (lambda v: v is None or v > 0, "must be positive"),
            "margin": (lambda v: v >= 0, "must not be negative"),
            "reg_weight": (lambda v: v >= 0, "must not be negative"),
            "neg_ratio": (lambda v: v is None or v > 0, "must be positive, or null for all negatives"),
            "prior": (lambda v: v is None or 0 < v < 1, "must lie between 0 and 1"),
            "match_threshold": (lambda v: 0 < v <= 1, "must lie in (0, 1]"),
            "compensate": (lambda v: v >= 0, "must not be negative"),
            "lr": (lambda v: v > 0, "must be positive"),
            "momentum": (lambda v: 0 <= v < 1, "must lie in [0, 1)"),
            "weight_decay": (lambda v: v >= 0, "must not be negative"),
            "warmup_steps": (lambda v: v >= 0, "must not be negative"),
            "milestones": (
                lambda v: v is None or all(0 <= part <= 1 for part in v),
                "must be parts of the run, 0 to 1",
            ),
            "gamma": (lambda v: 0 < v <= 1, "must lie in (0, 1]"),
            "score_threshold": (lambda v: 0 <= v < 1, "must lie in [0, 1)"),
            "pre_nms": (lambda v: v >= 1, "must be at least 1"),
            "nms_iou": (lambda v: 0 <= v <= 1, "must lie in [0, 1]"),
            "max_boxes": (lambda v: v >= 1, "must be at least 1"),
        }
        check_ranges(self.hparams, rules)
        choices: dict[str, Collection[str]] = {
            "size": tuple(ASFD_SIZES),
            "cls_mode": ("logit", "cosine"),
            "apply_to": ("both", "positives"),
            "reg_loss": REG_LOSSES,
            "pixels": tuple(PIXELS),
            "optimizer": ("sgd", "adamw"),
        }
        check_choices(self.hparams, choices)
        low, high = self.hparams["low_threshold"], self.hparams["match_threshold"]
        if low is not None and not 0 < low <= high:
            raise ValueError(f"low_threshold={low} must lie between 0 and match_threshold={high}")

    def build_network(self) -> ASFDNet | SearchNet:
        """The network of these hyperparameters; gives classification and codes of every anchor."""
        names = ("size", "genotype", "channels", "cls_mode", "prior")
        return ASFDNet(**{name: self.hparams[name] for name in names})

    def setup(self, stage: str) -> None:
        """Refuse data of a search, small views and half precision; read the files of ``test --predictions``."""
        super().setup(stage)
        precision = str(getattr(self.trainer, "precision", ""))
        if stage != "predict" and precision in ("16-true", "bf16-true"):
            raise ValueError(f"precision={precision} rounds the boxes of a batch, by pixels; take bf16-mixed")
        data: Any = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and data is not None and getattr(data, "split_halves", False) != self.wants_halves:
            word = "needs" if self.wants_halves else "does not take"
            raise ValueError(
                f"{type(self).__name__} {word} two halves of the training set: set data.split_halves to "
                f"{str(self.wants_halves).lower()}"
            )
        side = getattr(data, "image_size", SMALLEST_SIDE)
        if stage == "fit" and side < SMALLEST_SIDE:
            raise ValueError(f"data.image_size={side} must be at least {SMALLEST_SIDE}, the largest stride")

    # -- from images to faces -----------------------------------------------------------------------------------------

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (B, A, 4), xyxy in pixels, and face probabilities (B, A) of all anchors, before suppression.

        Args:
            image: (B, 3, H, W) RGB in [0, 1].
        """
        cls, loc = self.answers(image)
        anchors = make_anchors(*image.shape[-2:], dtype=loc.dtype, device=loc.device)
        return decode(loc, anchors), self.probability(cls)

    def answers(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What the network says of every anchor: (B, A, 2) logits or (B, A, W) features, and (B, A, 4) codes.

        Args:
            image: (B, 3, H, W) RGB in [0, 1].
        """
        count = len(image)
        if self.training and count == 1 and max(image.shape[-2:]) <= SMALLEST_SIDE:
            image = image.expand(2, -1, -1, -1)  # its top level is one value, and batch norm cannot learn from one
        cls, loc = self.model(self.normalize(image).contiguous(memory_format=torch.channels_last))
        return at_least_float32(cls[:count]), at_least_float32(loc[:count])

    def probability(self, cls: Tensor) -> Tensor:
        """Face probabilities (B, A).

        Args:
            cls: as ``answers`` gives it.
        """
        scale, mode = self.hparams["scale"], self.hparams["cls_mode"]
        return face_probability(cls, self.model.cls_weight, scale=scale, mode=mode)

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor] | Tensor, multi_scale: bool | None = None) -> list[Tensor]:
        """Faces of pictures, each at its own size: (k, 5) x1, y1, x2, y2 in pixels and score, best first.

        Args:
            images: (3, H, W) each, RGB in [0, 1]; sizes may differ.
            multi_scale: as the module's, if given.

        Raises:
            ValueError: a side is below 128 pixels.
        """
        names = ("score_threshold", "pre_nms", "nms_iou", "max_boxes")
        options = {name: self.hparams[name] for name in names}
        if self.hparams["multi_scale"] if multi_scale is None else multi_scale:
            return [detect_multi_scale(self, image, **options) for image in images]
        return detect(self, images, **options)

    # -- learning -----------------------------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        losses = self.losses(batch)
        self.log_losses(losses, len(batch["image"]))
        log_rate(self)
        return losses["loss"]

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """``loss``, its parts ``cls_loss`` and ``reg_loss``, and ``positives``; override it for losses of your own.

        Args:
            batch: of a training step.

        Raises:
            ValueError: a side of the images is below 128 pixels.
        """
        if fault := size_fault(*batch["image"].shape[-2:]):
            raise ValueError(f"a training image is {fault.partition(':')[0]}: raise data.image_size")
        cls, loc = self.answers(batch["image"])
        anchors = make_anchors(*batch["image"].shape[-2:], device=loc.device)
        matching = {"threshold": "match_threshold", "low_threshold": "low_threshold", "compensate": "compensate"}
        labels, faces = match_batch(
            batch["boxes"], anchors, **{name: self.hparams[own] for name, own in matching.items()}
        )
        positives = (labels == 1).sum().to(loc.dtype)
        names = ("scale", "margin", "apply_to", "reg_loss", "reg_weight", "neg_ratio")
        losses = drmc_loss(
            cls,
            loc,
            labels,
            faces,
            batch["boxes"],
            anchors,
            cls_weight=self.model.cls_weight,
            mode=self.hparams["cls_mode"],
            num_positives=self._over_processes(positives),
            **{name: self.hparams[name] for name in names},
        )
        return losses | {"positives": positives / len(labels)}

    def _over_processes(self, positives: Tensor) -> Tensor:
        """Their mean, such that gradients, which are averaged, are those of one process; in total at least 1."""
        processes = self.trainer.world_size if self._trainer is not None else 1
        if processes > 1:
            positives = self.trainer.strategy.reduce(positives.clone(), reduce_op="mean")
        return positives.clamp(min=1 / processes)

    def log_losses(self, losses: dict[str, Tensor], count: int) -> None:
        """Log what ``losses`` gave.

        Args:
            losses: name to 0-d.
            count: images in the batch.
        """
        bar = self.trainer.progress_bar_callback is not None
        for name, value in losses.items():
            self.log(f"train/{name}", value.detach(), prog_bar=bar and name == "loss", batch_size=count)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser, whose rate rises, and falls in steps."""
        optimizer = self.weight_optimizer(self.model.parameters())
        scheduler = {"scheduler": LambdaLR(optimizer, self.lr_factor()), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}  # type: ignore[return-value]

    def weight_optimizer(self, parameters: Any) -> SGD | AdamW:
        """The optimiser as the hyperparameters have it.

        Args:
            parameters: to be moved.
        """
        lr, momentum, decay = (self.hparams[name] for name in ("lr", "momentum", "weight_decay"))
        if self.hparams["optimizer"] == "adamw":
            return AdamW(parameters, lr=lr, weight_decay=decay)
        return SGD(parameters, lr=lr, momentum=momentum, weight_decay=decay)

    def lr_factor(self) -> Callable[[int], float]:
        """Factor on the learning rate as a function of the steps made.

        Raises:
            ValueError: nothing says how long the run is.
        """
        steps = steps_of_run(self.trainer)
        if steps == float("inf"):
            raise ValueError("trainer.max_steps or trainer.max_epochs must be given: the rate falls over the run")
        parts = [2 / 3, 5 / 6] if self.hparams["milestones"] is None else self.hparams["milestones"]
        warmup, falls = min(self.hparams["warmup_steps"], int(steps) // 10), [round(part * steps) for part in parts]

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            return self.hparams["gamma"] ** sum(step >= fall for fall in falls)

        return factor

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def setup_figures(self, stage: str) -> DetectionFigures:
        """The figures of a stage, ``"val"`` or ``"test"``, which learn from the data how faces are marked."""
        data: Any = getattr(self.trainer, "datamodule", None)
        levels = getattr(data, "levels", ()) if stage == "test" else ()
        return self.figures[stage].begin(levels, getattr(data, "ellipses", False), self.device)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Find the faces of a batch and score them; ``detections`` are for callbacks."""
        return self._scored(batch, "val", self._detections(batch))

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """As ``validation_step``; the files of ``test --predictions`` take the place of detecting."""
        given = self.predictions_of(batch)
        return self._scored(batch, "test", self._detections(batch) if given is None else given)

    def _detections(self, batch: dict[str, Any]) -> Detections:
        for image, name in zip(batch["image"], batch.get("name", ()), strict=False):
            if fault := size_fault(image.shape[1], image.shape[2], self.hparams["multi_scale"]):
                raise BadImageError(f"the picture {name!r} is {fault}")
        return [{"boxes": found[:, :4], "scores": found[:, 4]} for found in self.detect(batch["image"])]

    def _scored(self, batch: dict[str, Any], stage: str, detections: Detections) -> dict[str, Any]:
        self.figures[stage].update(batch, detections)
        return {"detections": detections}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint holds its weights: the file that they once started from may be gone when it is loaded."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"]["base_checkpoint"] = None
