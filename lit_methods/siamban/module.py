"""SiamBAN: a Siamese network that finds a target again in each frame, without anchors."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from lit_methods.contract import Described, ExportGraph, log_rate
from lit_methods.functional.arguments import Rules, check_choices, check_ranges
from lit_methods.functional.modes import evaluating
from lit_methods.metrics.stage_figures import StageFigures
from lit_methods.siamban.evaluation import TrackingFigures
from lit_methods.siamban.functional import (
    assign_labels,
    learning_rates,
    point_grid,
    sample_labels,
    siamban_cls_loss,
    siamban_loc_loss,
)
from lit_methods.siamban.model import SearchGraph, SiamBANNet, TemplateGraph
from lit_methods.siamban.own_results import OwnResults
from lit_methods.siamban.own_video import OwnVideo
from lit_methods.siamban.runs import Track
from lit_methods.siamban.tracker import TRACKER_CONSTANTS, SiamBANTracker
from lit_methods.siamban.weights import load_tracker_weights

DEFAULT = TRACKER_CONSTANTS["otb100"]


class SiamBAN(OwnResults, OwnVideo, StageFigures, Described, LightningModule):
    """Siamese box adaptive network for visual tracking (SiamBAN, arXiv 2003.06761).

    The template, the target in the first frame, and a larger region of a later frame go through one network. At each
    point of a grid over the region it says how likely the target is there, and how far the point is from the four
    sides of its box.

    Training batch: ``template`` (B, 3, 127, 127) and ``search`` (B, 3, 255, 255), BGR from 0 to 255, ``box`` (B, 4)
    xyxy in pixels of the search crop, ``negative`` (B,) bool, where the search crop shows another target, and if given
    ``keys`` (B, n, n), random numbers by which the points that count are chosen.
    Evaluation batch: sequences, as ``LaSOTDataModule`` gives them; they are tracked at once.

    Logs ``train/loss``, ``train/cls_loss``, ``train/loc_loss``, ``train/lr`` (of the heads), the weights of the
    levels ``fusion/cls_<level>``, ``fusion/loc_<level>``, ``fusion/scale_<level>``, and in evaluations what
    ``TrackingFigures`` gives.

    Args:
        depth: of the ResNet: 18, 34 or 50.
        width: channels of its first stage; 64 in the paper.
        channels: of the neck and the heads; 256 in the paper.
        levels: stages whose features are used, of 2, 3 and 4; with several their answers are fused.
        weighted: whether the weights of the fusion are learnt, else it is a plain mean.
        template_size: side of the template, pixels.
        search_size: side of the search region, pixels.
        first_distance: pixels from each point to the sides of its box that an untrained network says; ``None``: about
            1, as PyTorch's initialisation has it. A middling one, such as 32, shortens a training from nothing.
        label_shape: ``"ellipse"``, ``"rectangle"`` or ``"circle"``, of what is a target and what is background.
        loc_loss: ``"linear_iou"`` (1 - IoU), ``"iou"`` (its negative logarithm) or ``"giou"``.
        num_pos: points of the target that count, at most, for each search region.
        num_neg: points of the background that count, likewise; of a negative pair ``num_pos``.
        cls_weight: of the classification loss.
        loc_weight: of the regression loss.
        lr: learning rate after the warm-up.
        warmup_epochs: in which the rate rises from ``warmup_lr`` to ``lr``; fewer where a run has no more than these.
        warmup_lr: of the first epoch.
        end_lr: of the last epoch.
        lr_scale_world: whether rates are multiplied by the number of processes: official training adds up gradients.
        momentum: of SGD.
        weight_decay: of SGD.
        penalty_k: of the tracker, on changes of size and shape.
        window_influence: of the tracker, of the window against motion, from 0 to 1.
        tracker_lr: of the tracker, at which the size of the box follows.
        protocol: of precisions where the ground truth has no box: ``"toolkit"``, as published, or ``"strict"``.
        normalize: whether the network wants RGB with ImageNet's mean and std, as torchvision's weights do.
        base_checkpoint: weights to start from: a checkpoint of ours, the official model or backbone, or a torchvision
            entry such as ``ResNet50_Weights.IMAGENET1K_V1`` (with ``normalize: true``).

    Raises:
        ValueError: an argument is out of range, or the weights do not fit.
        FileNotFoundError: ``base_checkpoint`` does not exist.

    Source:
        SiamBAN, arXiv 2003.06761, and its official code (hqucv/siamban). Ours: a batch without any target has a
        regression loss of 0, where the code stops; with one it learns from it, where the code does not; gradients of
        processes are averaged (``lr_scale_world``); ``first_distance`` and ``normalize``.

    Example:
        >>> module = SiamBAN(depth=18, width=4, channels=8, levels=[2, 3], search_size=191)
        >>> cls, loc = module(torch.zeros(1, 3, 127, 127), torch.zeros(1, 3, 191, 191))
        >>> cls.shape, loc.shape
        (torch.Size([1, 2, 17, 17]), torch.Size([1, 4, 17, 17]))
    """

    headline = "success_auc"
    backbone_lr_factor: float = 1.0  # of the backbone's learning rate, for BackboneUnfreeze
    points: Tensor

    def __init__(
        self,
        depth: Literal[18, 34, 50] = 50,
        width: int = 64,
        channels: int = 256,
        levels: list[int] | None = None,
        weighted: bool = True,
        template_size: int = 127,
        search_size: int = 255,
        first_distance: float | None = None,
        label_shape: Literal["ellipse", "rectangle", "circle"] = "ellipse",
        loc_loss: Literal["linear_iou", "iou", "giou"] = "linear_iou",
        num_pos: int = 16,
        num_neg: int = 48,
        cls_weight: float = 1.0,
        loc_weight: float = 1.0,
        lr: float = 0.005,
        warmup_epochs: int = 5,
        warmup_lr: float = 0.001,
        end_lr: float = 0.00005,
        lr_scale_world: bool = False,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        penalty_k: float = DEFAULT["penalty_k"],
        window_influence: float = DEFAULT["window_influence"],
        tracker_lr: float = DEFAULT["lr"],
        protocol: Literal["toolkit", "strict"] = "toolkit",
        normalize: bool = False,
        base_checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.keep_arguments()
        self._check()
        levels = [2, 3, 4] if levels is None else levels
        self.model = SiamBANNet(depth, width, channels, levels, weighted, template_size, search_size, normalize)
        if first_distance is not None:
            self.model.head.begin_with(first_distance)
        grid = point_grid(self.model.stride, self.model.size, search_size // 2)
        self.register_buffer("points", grid, persistent=False)
        self.tracker()  # its constants are checked
        self.figures = {stage: TrackingFigures(protocol) for stage in ("val", "test")}
        if base_checkpoint is not None:
            load_tracker_weights(self.model, base_checkpoint)

    def _check(self) -> None:
        rules: Rules = {
            "first_distance": (lambda v: v is None or v > 0, "must be positive"),
            "num_pos": (lambda v: v >= 1, "must be at least 1"),
            "num_neg": (lambda v: v >= 1, "must be at least 1"),
            "cls_weight": (lambda v: v >= 0, "must not be negative"),
            "loc_weight": (lambda v: v >= 0, "must not be negative"),
            "lr": (lambda v: v > 0, "must be positive"),
            "warmup_epochs": (lambda v: v >= 0, "must not be negative"),
            "warmup_lr": (lambda v: v > 0, "must be positive"),
            "end_lr": (lambda v: v > 0, "must be positive"),
            "momentum": (lambda v: 0 <= v < 1, "must lie in [0, 1)"),
            "weight_decay": (lambda v: v >= 0, "must not be negative"),
        }
        check_ranges(self.hparams, rules)
        choices: dict[str, Collection[str]] = {
            "label_shape": ("ellipse", "rectangle", "circle"),
            "loc_loss": ("linear_iou", "iou", "giou"),
            "protocol": ("toolkit", "strict"),
        }
        check_choices(self.hparams, choices)

    def setup(self, stage: str) -> None:
        """Refuse crops of another size than the network's; read the files that ``test --results`` names."""
        super().setup(stage)
        data: Any = getattr(self.trainer, "datamodule", None)
        for name in ("template_size", "search_size") if stage == "fit" else ():
            theirs, mine = getattr(data, name, None), self.hparams[name]
            if theirs is not None and theirs != mine:
                raise ValueError(
                    f"model.{name}={mine}, but the data give crops of {theirs} pixels: set data.{name} to {mine}"
                )

    def forward(self, template: Tensor, search: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, 2, n, n), of background and target, and distances (B, 4, n, n): left, top, right, bottom.

        Args:
            template: (B, 3, 127, 127) BGR, 0 to 255.
            search: (B, 3, 255, 255) likewise.
        """
        layout = torch.channels_last
        return self.model(template.contiguous(memory_format=layout), search.contiguous(memory_format=layout))

    # -- learning -----------------------------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """The loss of one batch, and its labels (B, n, n) for callbacks."""
        labels, deltas = self.targets(batch)
        cls, loc = self(batch["template"], batch["search"])
        losses = self.losses(cls, loc, labels, deltas)
        bar = self.trainer.progress_bar_callback is not None
        for name, value in losses.items():
            self.log(f"train/{name}", value.detach(), prog_bar=bar and name == "loss", batch_size=len(labels))
        self.log_dict({f"fusion/{name}": value for name, value in self.fusion().items()}, batch_size=len(labels))
        log_rate(self, group=-1)
        return {"loss": losses["loss"], "labels": labels}

    def losses(self, cls: Tensor, loc: Tensor, labels: Tensor, deltas: Tensor) -> dict[str, Tensor]:
        """``loss`` and its parts; override it for losses of your own.

        Args:
            cls: (B, 2, n, n) logits.
            loc: (B, 4, n, n) distances, pixels.
            labels: (B, n, n): 1 target, 0 background, -1 does not count.
            deltas: (B, 4, n, n) true distances; they mean something at targets alone.
        """
        cls_loss = siamban_cls_loss(cls, labels)
        loc_loss = siamban_loc_loss(loc, deltas, labels, self.hparams["loc_loss"])
        loss = self.hparams["cls_weight"] * cls_loss + self.hparams["loc_weight"] * loc_loss
        return {"loss": loss, "cls_loss": cls_loss, "loc_loss": loc_loss}

    def targets(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Labels (B, n, n) of the points that count, 1, 0 or -1, and distances (B, 4, n, n); made on the device.

        Args:
            batch: of a training step.
        """
        negative = batch.get("negative")
        labels, deltas = assign_labels(self.hparams["label_shape"], batch["box"], self.points, negative)
        num_pos, num_neg = self.hparams["num_pos"], self.hparams["num_neg"]
        if negative is not None:
            num_neg = torch.where(negative, num_pos, num_neg)
        return sample_labels(labels, num_pos, num_neg, keys=batch.get("keys")), deltas

    def fusion(self) -> dict[str, Tensor]:
        """The weights of the levels, which sum to 1, and the scale of each level's distances, by name."""
        return {name: value.detach() for name, value in self.model.head.fusion().items()}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD with groups for backbone, neck and head; the rate is constant within an epoch.

        Frozen parameters are in their group, too: without gradients SGD leaves them alone.
        """
        factors = {"backbone": self.backbone_lr_factor, "neck": 1.0, "head": 1.0}
        groups = [
            {"params": list(getattr(self.model, name).parameters()), "lr": factor * self.hparams["lr"], "name": name}
            for name, factor in factors.items()
        ]
        optimizer = SGD(
            groups, lr=self.hparams["lr"], momentum=self.hparams["momentum"], weight_decay=self.hparams["weight_decay"]
        )
        shares = [rate / self.hparams["lr"] for rate in self.rates()]
        scheduler = LambdaLR(optimizer, lambda epoch: shares[min(epoch, len(shares) - 1)])
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def rates(self) -> list[float]:
        """The learning rate of each epoch; of the backbone times ``backbone_lr_factor``."""
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise ValueError("trainer.max_epochs: give the number of epochs: the learning rate falls over all of them")
        warmup = min(self.hparams["warmup_epochs"], epochs - 1)  # a short run has an epoch at the full rate
        rates = learning_rates(epochs, warmup, *(self.hparams[name] for name in ("warmup_lr", "lr", "end_lr")))
        return [rate * (self.trainer.world_size if self.hparams["lr_scale_world"] else 1) for rate in rates]

    # -- tracking -----------------------------------------------------------------------------------------------------

    def tracker(self, **constants: float) -> SiamBANTracker:
        """A tracker with this network.

        Args:
            constants: ``penalty_k``, ``window_influence`` and ``lr``; by default the module's own.
        """
        names = {"penalty_k": "penalty_k", "window_influence": "window_influence", "lr": "tracker_lr"}
        return SiamBANTracker(self.model, **{name: self.hparams[own] for name, own in names.items()} | constants)

    def setup_figures(self, stage: str) -> TrackingFigures:
        """The figures of a stage, ``"val"`` or ``"test"``, which learn from the data what benchmark it is."""
        figures = self.figures[stage]
        figures.begin(getattr(getattr(self.trainer, "datamodule", None), "benchmark", None), self.device)
        return figures

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Track the sequences of a batch at once, and score them; ``tracks`` are for callbacks."""
        return self._scored(self.figures["val"].follow(self.tracker(), batch), batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """As ``validation_step``; the files of ``test --results`` take the place of tracking."""
        given = self.results_of(batch)
        tracks = self.figures["test"].follow(self.tracker(), batch) if given is None else given
        return self._scored(tracks, batch, "test")

    def _scored(self, tracks: list[Track], batch: dict[str, Any], stage: str) -> dict[str, Any]:
        self.figures[stage].update(batch, tracks)
        return {"tracks": tracks}

    # -- files --------------------------------------------------------------------------------------------------------

    def export_graphs(self) -> dict[str, ExportGraph]:
        """Two graphs, of which the second runs on every frame.

        ``template``: crop (B, 3, 127, 127) to ``kernels`` (B, K, channels, 5, 5), two for each level. ``search``: crop
        (B, 3, 255, 255) and these kernels to ``cls`` (B, 2, n, n) and ``loc`` (B, 4, n, n). Crops are BGR, 0 to 255.
        """
        sides = (self.model.template_size, self.model.search_size)
        template, search = (torch.zeros(2, 3, side, side, device=self.device) for side in sides)
        first = TemplateGraph(self.model)
        with evaluating(self):
            kernels = first(template)
        batch, crops = {0: torch.export.Dim("batch")}, "BGR, 0 to 255"
        axes = {"search": batch, "kernels": batch}
        return {
            "template": ExportGraph(first, (template,), {"template": batch}, ("kernels",), crops),
            "search": ExportGraph(SearchGraph(self.model), (search, kernels), axes, ("cls", "loc"), crops),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint holds its weights: the file that they once started from may be gone when it is loaded."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"]["base_checkpoint"] = None
