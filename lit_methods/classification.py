"""ImageClassifier: train or fine-tune a CNN; the base of the pruning methods, and of teachers and victim networks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lit_methods.backbones import BACKBONES, build_backbone, cut_network, read_plan
from lit_methods.backbones.weights import load_weights, read_weights, untrained
from lit_methods.contract import Described, ExportGraph, log_rate
from lit_methods.functional.drawing import caption
from lit_methods.functional.modes import evaluating
from lit_methods.functional.run_length import batches_per_epoch, whole_steps
from lit_methods.functional.schedule import lr_factor


class Normalize(nn.Module):
    """``(image - mean) / std`` per channel, for images (B, C, H, W) in [0, 1], in the network's own dtype.

    Args:
        mean: per channel; ``None`` leaves the pixels as they are.
        std: per channel, positive.

    Example:
        >>> Normalize([0.5] * 3, [0.25] * 3)(torch.ones(1, 3, 1, 1)).flatten()
        tensor([2., 2., 2.])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: list[float] | None, std: list[float] | None) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean or [0.0]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std or [1.0]).view(-1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Normalised images of the same shape."""
        return ((image - self.mean) / self.std).to(self.mean.dtype)  # buffers follow the module to bfloat16 or float64


class _Logits(nn.Module):
    """What ``ImageClassifier.forward`` computes, for export.

    Without its ``channels_last``: tracing that layout would pin the batch to more than one image, and runtimes choose
    a layout of their own.
    """

    def __init__(self, normalize: Normalize, model: nn.Module) -> None:
        super().__init__()
        self.normalize, self.model = normalize, model

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to logits (B, num_classes)."""
        return self.model(self.normalize(image))


class ImageClassifier(Described, LightningModule):
    """Train or fine-tune a CNN on labelled images; the base of HRank and FilterSketch.

    Batch: ``image`` (B, 3, H, W) in [0, 1], ``label`` (B,) int64. Logs ``train/loss`` (nats), ``train/lr``,
    ``val/loss``, ``val/top1``, ``val/top5`` and the same for ``test`` (fractions of 1).
    ``predict_step`` gives per image ``labels`` (the up to five most likely class ids, best first), ``scores`` (their
    softmax probabilities) and ``names``.

    Args:
        backbone: a key of ``lit_methods.backbones.BACKBONES`` such as ``"resnet56"``; in code also your own network,
            which takes (B, 3, H, W) and gives (B, num_classes).
        num_classes: number of classes.
        plan: what pruning left of the network, as ``to_dict()`` of a plan gives it: ``PrunePlan`` (kept filters),
            ``GatedPlan`` (the same, and channels that residual sums drop), ``WidthPlan`` (widths inside blocks),
            ``TracedPlan`` (kept channels of a network given as an object); ``None`` is the full network.
        mean: per channel, for images in [0, 1]; ``None`` hands pixels on as they are.
        std: per channel; given together with ``mean``.
        input_size: (C, H, W) that the network is fed with; ``predict`` resizes to it.
        class_names: names of the classes, for people; those beyond the last name go by their number.
        base_checkpoint: trained weights to start from: a checkpoint, ``.safetensors``, ``.npz`` or state dict on disk,
            or a torchvision entry such as ``"ResNet50_Weights.IMAGENET1K_V1"`` (the only case that may download).
            Weights of the full network are cut to what ``plan`` keeps; a pruned checkpoint brings its own plan.
        label_smoothing: of the cross entropy, in [0, 1).
        lr: learning rate at the start of the schedule.
        finetune_lr: learning rate of a pruned network (one with a plan); ``None`` is ``lr`` again.
        momentum: of SGD.
        weight_decay: of SGD, on all parameters.
        schedule: ``"multistep"`` multiplies the rate by ``gamma`` at each of ``milestones``, ``"cosine"`` falls to
            zero at the last epoch. Both per epoch.
        milestones: epochs after ``start_epoch``, for ``"multistep"``.
        gamma: factor at a milestone.
        warmup_epochs: epochs over which the rate rises linearly, step by step; cosine begins after them.
        start_epoch: epoch in which the schedule starts; callbacks that prune inside a fit set it.

    Raises:
        ValueError: an argument is out of range, or the weights do not fit the network.
        FileNotFoundError: ``base_checkpoint`` does not exist.

    Source:
        fine-tuning settings: HRank, arXiv 2002.10179 (``lr=0.01``, momentum 0.9, weight decay 5e-4); ImageNet schedule
        with warm-up: the authors' HRankPlus. Ours: ``finetune_lr`` and the cosine that falls to zero at the last epoch.

    Example:
        >>> module = ImageClassifier("resnet20", num_classes=10, mean=[0.5] * 3, std=[0.25] * 3)
        >>> module(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    model: nn.Module

    def __init__(
        self,
        backbone: str | nn.Module = "resnet56",
        num_classes: int = 10,
        plan: dict[str, Any] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        input_size: list[int] | None = None,
        class_names: list[str] | None = None,
        base_checkpoint: str | None = None,
        label_smoothing: float = 0.0,
        lr: float = 0.01,
        finetune_lr: float | None = None,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        schedule: Literal["multistep", "cosine"] = "multistep",
        milestones: list[int] | None = None,
        gamma: float = 0.1,
        warmup_epochs: int = 0,
        start_epoch: int = 0,
    ) -> None:
        super().__init__()
        self.keep_arguments()  # here once, for subclasses too
        self.hparams.update(num_classes=num_classes, input_size=input_size)  # a subclass may have found them out
        _check(self.hparams)
        self._backbone = (backbone,)  # a tuple, so that a network in it is no submodule
        self.model = build_backbone(backbone, num_classes, plan)
        self.normalize = Normalize(mean, std)
        accuracy: dict[str, Metric | MetricCollection] = {
            f"top{k}": MulticlassAccuracy(num_classes, top_k=k, average="micro") for k in {1, min(5, num_classes)}
        }
        self.val_metrics = MetricCollection({"loss": MeanMetric(), **accuracy}, prefix="val/")
        self.test_metrics = self.val_metrics.clone(prefix="test/")
        if base_checkpoint is not None:
            self._start_from(base_checkpoint)

    def _start_from(self, source: str) -> None:
        tensors, plan = read_weights(source)
        wanted = self.hparams["plan"]
        if plan is not None and wanted is None:  # a checkpoint of a pruned network brings its shape
            self.set_plan(plan)
        if plan is None and wanted is not None:  # weights of the full network: keep what the plan keeps
            self.set_plan(None)
        load_weights(self.model, tensors, f"base_checkpoint={source!r}")
        if plan is None and wanted is not None:
            self.model = cut_network(self.model, read_plan(wanted))
            self.hparams["plan"] = wanted

    def setup(self, stage: str) -> None:
        """Refuse data with more classes than the network has, before anything runs; warn of other classes."""
        data = getattr(self.trainer, "datamodule", None)
        classes, names = getattr(data, "num_classes", None), getattr(data, "class_names", None)
        mine, my_names = self.hparams["num_classes"], self.hparams["class_names"]
        if classes is not None and classes > mine:
            if stage == "fit" or untrained(self.model):
                raise ValueError(
                    f"model.num_classes={mine}, but the data has {classes} classes; "
                    "leave num_classes out to take it from the data"
                )
            raise ValueError(
                f"the network knows {mine} classes{f' ({_few(my_names)})' if my_names else ''}, the data has "
                f"{classes}; give the data it was trained on, such as --config RUN/config.yaml"
            )
        if names and my_names and list(names) != list(my_names):
            rank_zero_warn(
                f"the data has other classes ({_few(names)}) than those the network was trained on ({_few(my_names)})"
            )

    def _warn_if_untrained(self) -> None:
        if untrained(self.model):
            rank_zero_warn("the network has no trained weights: give a checkpoint, or model.base_checkpoint")

    on_test_start = on_predict_start = _warn_if_untrained  # by then a checkpoint's weights are in

    def on_validation_start(self) -> None:
        """Warn of random weights here as well, except in a fit."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self._warn_if_untrained()

    @property
    def _stage(self) -> RunningStage | None:
        """Of the run that is under way; ``None`` outside of runs, also after one."""
        return self._trainer.state.stage if self._trainer is not None else None

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, num_classes) of RGB images (B, 3, H, W) in [0, 1].

        Raises:
            ValueError: the images have another number of channels than three.
        """
        check_rgb(image)
        # a fifth faster convolutions on CPUs, and what GPUs with tensor cores want
        return self.model(self.normalize(image).contiguous(memory_format=torch.channels_last))

    def loss(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Cross entropy in nats, a scalar; override it for a loss of your own."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # never in half precision
        return F.cross_entropy(logits, batch["label"], label_smoothing=self.hparams["label_smoothing"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        loss = self.loss(self(batch["image"]), batch)
        bar = self.trainer.progress_bar_callback is not None
        self.log("train/loss", loss, prog_bar=bar, batch_size=len(batch["label"]))  # a bar asks the device every step
        log_rate(self)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Update ``val/loss``, ``val/top1`` and ``val/top5``."""
        self._evaluate(self.val_metrics, batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Update ``test/loss``, ``test/top1`` and ``test/top5``."""
        self._evaluate(self.test_metrics, batch)

    def _evaluate(self, metrics: MetricCollection, batch: dict[str, Tensor]) -> Tensor:
        logits, label = self(batch["image"]), batch["label"]
        for name, metric in metrics.items(keep_base=True):
            if not len(label):  # this process has no sample at all, and takes part in the sums all the same
                continue
            if name == "loss":
                metric.update(F.cross_entropy(logits.float(), label), len(label))
            else:
                metric.update(logits, label)
        for key, metric in metrics.items(copy_state=False):
            # the objects, not numbers: summed over batches and processes, then divided
            self.log(key, metric, prog_bar=key == "val/top1")
        return logits

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> list[dict[str, Any]]:
        """Per image: ``labels``, ``scores`` and ``names`` of the up to five most likely classes, best first."""
        scores, labels = self(batch["image"]).float().softmax(1).topk(min(5, self.hparams["num_classes"]))
        return [
            {"labels": label, "scores": score, "names": [self.class_name(i) for i in label]}
            for label, score in zip(labels.tolist(), scores.tolist(), strict=True)
        ]

    def class_name(self, label: int) -> str:
        """The name of a class; its number where no names are known."""
        names = self.hparams["class_names"] or []
        return names[label] if 0 <= label < len(names) else str(label)

    def draw(self, image: np.ndarray, prediction: dict[str, Any]) -> np.ndarray:
        """The picture with its most likely class below it.

        Args:
            image: (H, W, 3) uint8 RGB.
            prediction: one dict of ``predict_step``; with a key ``label`` (the true class id) the truth is drawn too,
                the text in red where they differ.

        Returns:
            (H', W', 3) uint8 RGB; small pictures are enlarged.
        """
        text, right = f"{prediction['names'][0]}  {prediction['scores'][0]:.0%}", True
        if (truth := prediction.get("label")) is not None:
            right = truth == prediction["labels"][0]
            text += "" if right else f", true {self.class_name(truth)}"
        return caption(image, text, colour="black" if right else "crimson")

    def export_graphs(self) -> dict[str, ExportGraph]:
        """One graph ``classifier``: ``image`` (B, 3, H, W) in [0, 1] to ``logits``, with a dynamic batch.

        H and W are dynamic as well where the network takes other sizes than its own, which is tried out.
        """
        return {"classifier": self._graph_of(self.model)}

    def _graph_of(self, network: nn.Module) -> ExportGraph:
        """That of a network of the same inputs and outputs as ``self.model``."""
        published = BACKBONES[self.arch].input_size if self.arch is not None else (3, 32, 32)
        example = torch.zeros(2, *(self.hparams["input_size"] or published), device=self.device)
        axes = {0: torch.export.Dim("batch")}
        if (smallest := self._smallest_side(*example.shape[2:])) is not None:
            axes |= {2: torch.export.Dim("height", min=smallest), 3: torch.export.Dim("width", min=smallest)}
        return ExportGraph(_Logits(self.normalize, network), (example,), {"image": axes}, outputs=("logits",))

    def _smallest_side(self, height: int, width: int) -> int | None:
        """From which side on the network takes pictures of any size; ``None`` if its own is the only one."""
        pools = (part.output_size for part in self.model.modules() if isinstance(part, nn.AdaptiveAvgPool2d))
        if any(size not in (1, (1, 1)) for size in pools):  # as in VGG: ONNX has it for one size of pictures alone
            return None
        own = min(height, width)
        for side in [*(side for side in (8, 16, 32, 64, 128) if side < own), own]:
            try:
                with evaluating(self):
                    self(torch.zeros(1, 3, side, max(height, width) + 5, device=self.device))
                return side
            except Exception:  # whatever a network says to a size that it cannot take
                continue
        return None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD and its schedule, counted from ``start_epoch``."""
        pruned = self.hparams["plan"] is not None
        lr = self.hparams["finetune_lr"] if pruned and self.hparams["finetune_lr"] is not None else self.hparams["lr"]
        optimizer = SGD(
            self.parameters(), lr=lr, momentum=self.hparams["momentum"], weight_decay=self.hparams["weight_decay"]
        )
        warmup = self.hparams["warmup_epochs"]
        factor = lr_factor(
            schedule=self.hparams["schedule"],
            epochs=max(1, self._epochs() - self.hparams["start_epoch"]),
            milestones=self.hparams["milestones"] or [],
            gamma=self.hparams["gamma"],
            warmup=warmup,
            steps_per_epoch=self._steps_per_epoch() if warmup else 1,
        )
        interval = "step" if warmup else "epoch"
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": interval},
        }

    def _epochs(self) -> int:
        """Length of the run in epochs; only the cosine asks for more than one."""
        if self.hparams["schedule"] != "cosine":
            return 1
        if (epochs := self.trainer.max_epochs or -1) > 0:
            return epochs
        if self.trainer.max_steps > 0:
            return math.ceil(self.trainer.max_steps / self._steps_per_epoch())
        raise ValueError("schedule='cosine' needs a run of known length: give trainer.max_epochs or trainer.max_steps")

    def _steps_per_epoch(self) -> int:
        return whole_steps(batches_per_epoch(self.trainer), self.trainer.accumulate_grad_batches)

    def set_plan(self, plan: dict[str, Any] | None) -> None:
        """Rebuild the network for this plan (fresh weights) and remember it for the checkpoint."""
        with torch.random.fork_rng(devices=[]):  # the fresh weights are about to be replaced
            network = build_backbone(self._backbone[0], self.hparams["num_classes"], plan)
        self.model = network.to(self.device)
        self.hparams["plan"] = plan

    @property
    def arch(self) -> str | None:
        """The key of ``BACKBONES``; ``None`` for a network that was given as an object."""
        return self._backbone[0] if isinstance(self._backbone[0], str) else None

    def full_network(self) -> nn.Module:
        """A network as it is before anything is removed, of its own; draws no random numbers.

        Fresh weights for a name. A network that was given as an object is held as long as this module, and has the
        weights it had when something was removed.
        """
        if isinstance(given := self._backbone[0], nn.Module):
            return copy.deepcopy(given)
        with torch.random.fork_rng(devices=[]):
            return build_backbone(given, self.hparams["num_classes"])

    def put_full_network_aside(self) -> None:
        """Move a network that was given as an object, and is no longer the one that runs, to the CPU."""
        if isinstance(given := self._backbone[0], nn.Module) and given is not self.model:
            given.cpu()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint holds its weights: the file that they once started from may be gone when it is loaded."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"]["base_checkpoint"] = None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the checkpoint's shape and schedule start before its weights arrive."""
        saved = checkpoint["hyper_parameters"]
        mine, theirs = self.arch or type(self._backbone[0]).__name__, (saved.get("plan") or {}).get("arch")
        if theirs is not None and theirs != mine:
            raise ValueError(
                f"the checkpoint holds a pruned {theirs}, the network is {mine}: "
                "give the backbone or the checkpoint that belongs to the other"
            )
        if saved.get("plan") != self.hparams["plan"]:
            self.set_plan(saved.get("plan"))
        super().on_load_checkpoint(checkpoint)  # parts of it that were pruned by themselves
        self.hparams["start_epoch"] = saved.get("start_epoch", 0)
        if self._trainer is not None:  # now: else its float64 weights (64-true) pass through float32 ones
            self._trainer.precision_plugin.convert_module(self)


def check_rgb(image: Tensor) -> None:
    """Refuse what is no batch of RGB images.

    Args:
        image: (B, 3, H, W).

    Raises:
        ValueError: it has another shape.

    Example:
        >>> check_rgb(torch.zeros(2, 3, 8, 8))
    """
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f"image must be RGB (B, 3, H, W), got {tuple(image.shape)}; repeat a grey channel three times")


def _few(names: Sequence[str]) -> str:
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])])


def _check(hparams: Mapping[str, Any]) -> None:
    num_classes, names = hparams["num_classes"], hparams["class_names"]
    mean, std = hparams["mean"], hparams["std"]
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes} must be at least 2: there is nothing to tell apart")
    if (mean is None) != (std is None):
        raise ValueError(f"mean={mean} and std={std} go together: give both or neither")
    if mean is not None and not len(mean) == len(std) == 3:
        raise ValueError(f"mean={mean} and std={std} need one value per channel: red, green, blue")
    if std is not None and min(std) <= 0:
        raise ValueError(f"std={std} must be positive")
    if names is not None and len(names) > num_classes:
        raise ValueError(
            f"num_classes={num_classes} is fewer than the {len(names)} class_names; "
            "leave num_classes out to take it from the data"
        )
    if hparams["schedule"] not in ("multistep", "cosine"):
        raise ValueError(f"schedule={hparams['schedule']!r} must be 'multistep' or 'cosine'")
    rules: dict[str, tuple[Callable[[float], bool], str]] = {
        "label_smoothing": (lambda v: 0 <= v < 1, "must lie in [0, 1)"),
        "lr": (lambda v: v > 0, "must be positive"),
        "finetune_lr": (lambda v: v > 0, "must be positive"),
        "momentum": (lambda v: 0 <= v < 1, "must lie in [0, 1)"),
        "weight_decay": (lambda v: v >= 0, "must not be negative"),
        "gamma": (lambda v: v > 0, "must be positive"),
        "warmup_epochs": (lambda v: v >= 0, "must not be negative"),
    }
    for name, (holds, text) in rules.items():
        if hparams[name] is not None and not holds(hparams[name]):
            raise ValueError(f"{name}={hparams[name]} {text}")
