"""MCN: finds the box and the mask of what a sentence refers to, in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import MultiStepLR

from lit_methods.backbones.weights import untrained
from lit_methods.contract import Described, log_rate
from lit_methods.functional.arguments import Rules, check_choices, check_ranges
from lit_methods.functional.precision import at_least_float32
from lit_methods.mcn.agreement import agreement, picture_box
from lit_methods.mcn.evaluation import GroundingFigures
from lit_methods.mcn.functional import (
    ASNLS_MODES,
    build_rec_targets,
    consistency_energy,
    consistency_energy_loss,
    decode_boxes,
    postprocess_masks,
    rec_loss,
    res_loss,
    round_boxes,
    select_top_box,
)
from lit_methods.mcn.graphs import OwnGraphs
from lit_methods.mcn.model import MCN_BACKBONES, STRIDE, MCNet, VisualMaps
from lit_methods.mcn.own_sentences import OwnSentences
from lit_methods.mcn.vocabulary import OwnWords
from lit_methods.mcn.weights import load_backbone_weights, load_network_weights
from lit_methods.metrics.stage_figures import StageFigures

ANCHORS = ((137.0, 256.0), (248.0, 272.0), (386.0, 271.0))  # width and height at an input of ANCHORS_AT pixels
ANCHORS_AT = 416
MOST_ROWS, MOST_PIXELS = 32, 2**25  # sentences of an evaluation that are computed side by side, and pixels of their
# masks, which limits memory alone


class MCN(OwnWords, OwnSentences, OwnGraphs, StageFigures, Described, LightningModule):
    """Multi-task collaborative network (MCN, arXiv 2003.08813): one box and one mask for a picture and a sentence.

    Batches are those of ``RefCOCODataModule``. Training: ``image`` (B, 3, S, S), letterboxed, RGB in [0, 1], ``tokens``
    (B, T) ids of words, ``box`` (B, 4) xyxy and ``mask`` (B, 1, S, S) in pixels of the letterboxed picture.
    Evaluation: one row per sentence, with ``mask``, a list of (h, w), and ``size`` (B, 2), height and width, of the
    pictures themselves, and ``image_id`` (B,): sentences about one picture share one pass of the backbone.

    Logs ``train/loss`` and its parts ``loss_xy``, ``loss_wh``, ``loss_conf``, ``loss_seg``, ``loss_cem``, unweighted,
    ``train/lr``, and in evaluations the figures of :class:`~lit_methods.mcn.evaluation.GroundingFigures`, such as
    ``val/acc50``.

    ``predict_step`` gives per sentence ``text``, ``pred_box`` (4,) xyxy in pixels of the picture, ``score`` in [0, 1],
    ``pred_mask`` (h, w) bool, and ``agreement``, the IoU of ``pred_box`` and the bounding box of ``pred_mask``.

    Args:
        backbone: ``"darknet53"``, ``"vgg16"`` or, for small pictures on a CPU, ``"tiny"``.
        backbone_weights: file with the weights of the backbone alone, of torch or darknet, or a torchvision entry;
            ``None``: by chance.
        freeze_backbone: whether all of it but the last layers stay as they are, in eval mode.
        word_dim: numbers of a word's vector; those of the data's GloVe file, where it has one.
        hidden: size of the sentence's vector, and of each direction of the GRU.
        dim: channels of the attended maps.
        num_heads: of the attention units.
        mask_padding: whether the words' attention leaves padding out; the official code does not.
        dropout: of the words' vectors and of their attention's hidden layer.
        bn_momentum: weight of a new batch in the running statistics of batch norm.
        anchors: widths and heights in pixels of the input; ``None``: the paper's, scaled to ``input_size``.
        input_size: 3, S, S of the letterboxed picture, S a multiple of 32.
        vocabulary: words in the order of their ids, from 2 on, whose vectors are drawn; ``None``: learnt from the data.
        max_words: words of a sentence that count; those of the data, or of ``base_checkpoint``.
        train_words: whether vectors of words are trained; ``None``: unless they are those of the data's GloVe file.
        rec_weight: of the loss of boxes.
        seg_weight: of the loss of masks.
        cem_weight: of the consistency energy's loss; 0 switches it off.
        ignore_iou: a box without an object is no mistake from such an IoU with the true one on.
        asnls: how a box and its confidence change the mask: ``"adaptive"``, ``"soft"``, ``"hard"``, or ``"none"``.
        threshold: mask probabilities above it are inside.
        lr: learning rate.
        weight_decay: of the convolutions' kernels alone.
        milestones: epochs, from 0, at whose beginning the rate is multiplied by ``gamma``.
        gamma: factor at a milestone.
        base_checkpoint: weights to start from: a checkpoint of ours, with its words, to which those of the data are
            added; or what ``backbone_weights`` takes, in place of it.

    Raises:
        ValueError: an argument is out of range, weights do not fit, or both files of weights are given.
        FileNotFoundError: ``base_checkpoint`` or ``backbone_weights`` does not exist.

    Source:
        MCN, arXiv 2003.08813, and its official Keras code, which the defaults follow. Differs from that code: frozen
        layers use their running statistics; torch's GRU; the target of a mask's cell is the pixel in its middle. Ours:
        ``train_words``, ``bn_momentum``, ``"tiny"``, ``asnls="none"``.

    Example:
        >>> module = MCN("tiny", hidden=32, dim=16, input_size=[3, 64, 64], vocabulary=["circle", "red"], word_dim=8)
        >>> boxes, scores, masks = module.predict_rows(
        ...     torch.rand(1, 3, 64, 64), module.tokens_of(["red circle"]), torch.tensor([[48, 64]])
        ... )
        >>> boxes.shape, scores.shape, masks[0].shape
        (torch.Size([1, 4]), torch.Size([1]), torch.Size([48, 64]))
    """

    model: MCNet
    anchors: Tensor
    headline = "acc50"

    def __init__(
        self,
        backbone: Literal["darknet53", "vgg16", "tiny"] = "darknet53",
        backbone_weights: str | None = None,
        freeze_backbone: bool = True,
        word_dim: int = 300,
        hidden: int = 1024,
        dim: int = 512,
        num_heads: int = 2,
        mask_padding: bool = False,
        dropout: float = 0.1,
        bn_momentum: float = 0.01,
        anchors: list[list[float]] | None = None,
        input_size: list[int] | None = None,
        vocabulary: list[str] | None = None,
        max_words: int = 15,
        train_words: bool | None = None,
        rec_weight: float = 1.0,
        seg_weight: float = 0.1,
        cem_weight: float = 1.0,
        ignore_iou: float = 0.5,
        asnls: Literal["adaptive", "soft", "hard", "none"] = "adaptive",
        threshold: float = 0.35,
        lr: float = 1e-3,
        weight_decay: float = 1e-3,
        milestones: list[int] | None = None,
        gamma: float = 0.1,
        base_checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.keep_arguments()
        self.hparams["input_size"] = list(input_size or (3, ANCHORS_AT, ANCHORS_AT))
        self.hparams["milestones"] = [29, 34, 39] if milestones is None else list(milestones)
        self._check()
        self.size = self.hparams["input_size"][1]
        scaled = [[side * self.size / ANCHORS_AT for side in anchor] for anchor in ANCHORS]
        self.register_buffer("anchors", torch.tensor(anchors or scaled, dtype=torch.float32), persistent=False)
        self.model = MCNet(
            backbone,
            word_dim=word_dim,
            hidden=hidden,
            dim=dim,
            num_heads=num_heads,
            num_anchors=len(self.anchors),
            dropout=dropout,
            mask_padding=mask_padding,
            bn_momentum=bn_momentum,
        )
        self.set_vocabulary(vocabulary or [])
        if base_checkpoint is not None:
            report, trained_words = load_network_weights(self.model, base_checkpoint)
            rank_zero_info(report)
            if trained_words is not None:
                self.start_words(*trained_words)
        if backbone_weights is not None:
            rank_zero_info(load_backbone_weights(self.model.backbone, backbone_weights))
        if freeze_backbone:
            for part in self.model.frozen_part():
                part.requires_grad_(False)
            self.train()  # Trainers leave modes as they find them
        if not cem_weight:  # else processes would wait for gradients that nothing gives
            self.model.cem_s.requires_grad_(False)
            self.model.cem_c.requires_grad_(False)
        self.figures = {stage: GroundingFigures() for stage in ("val", "test")}

    def _check(self) -> None:
        rules: Rules = {
            "word_dim": (lambda v: v >= 1, "must be at least 1"),
            "num_heads": (lambda v: v >= 1, "must be at least 1"),
            "max_words": (lambda v: v >= 1, "must be at least 1"),
            "dropout": (lambda v: 0 <= v < 1, "must lie in [0, 1)"),
            "bn_momentum": (lambda v: 0 < v <= 1, "must lie in (0, 1]"),
            "anchors": (
                lambda v: v is None or (len(v) > 0 and all(len(sides) == 2 and min(sides) > 0 for sides in v)),
                "must be pairs of a width and a height, both positive",
            ),
            "input_size": (
                lambda v: len(v) == 3 and v[0] == 3 and v[1] == v[2] > 0 and v[1] % STRIDE == 0,
                f"must be [3, S, S], S a multiple of {STRIDE}",
            ),
            "rec_weight": (lambda v: v >= 0, "must not be negative"),
            "seg_weight": (lambda v: v >= 0, "must not be negative"),
            "cem_weight": (lambda v: v >= 0, "must not be negative"),
            "ignore_iou": (lambda v: 0 <= v <= 1, "must lie in [0, 1]"),
            "threshold": (lambda v: 0 <= v < 1, "must lie in [0, 1)"),
            "lr": (lambda v: v > 0, "must be positive"),
            "weight_decay": (lambda v: v >= 0, "must not be negative"),
            "milestones": (lambda v: v == sorted(set(v)), "must be epochs, each after the one before"),
            "gamma": (lambda v: 0 < v <= 1, "must lie in (0, 1]"),
        }
        check_ranges(self.hparams, rules)
        for name in ("hidden", "dim"):
            if self.hparams[name] < 1 or self.hparams[name] % self.hparams["num_heads"]:
                raise ValueError(
                    f"{name}={self.hparams[name]} must be a multiple of num_heads={self.hparams['num_heads']}"
                )
        whole, alone = self.hparams["base_checkpoint"], self.hparams["backbone_weights"]
        if whole is not None and alone is not None:
            raise ValueError(
                f"base_checkpoint={whole!r} and backbone_weights={alone!r}: give one of them, the first for all of the "
                "network, the second for its backbone alone"
            )
        choices = {"backbone": tuple(MCN_BACKBONES), "asnls": ASNLS_MODES}
        check_choices(self.hparams, choices)

    def train(self, mode: bool = True) -> MCN:
        """As usual, but what is frozen stays in eval mode."""
        super().train(mode)
        if self.hparams["freeze_backbone"]:
            for part in self.model.frozen_part():
                part.eval()
        return self

    def setup(self, stage: str) -> None:
        """Agree with the data on words; refuse half precision."""
        super().setup(stage)
        precision = str(getattr(self.trainer, "precision", ""))
        if stage != "predict" and precision in ("16-true", "bf16-true"):
            raise ValueError(f"precision={precision} rounds the boxes of a batch, by pixels; take bf16-mixed")

    def on_fit_start(self) -> None:
        """Warn of frozen layers that know nothing; by then a checkpoint's weights are in."""
        if self.hparams["freeze_backbone"] and untrained(nn.ModuleList(self.model.frozen_part())):
            rank_zero_warn(
                "freeze_backbone=True keeps layers as they are that have no trained weights: give "
                "model.backbone_weights of a detector, or set model.freeze_backbone false"
            )

    # -- from pictures and sentences to boxes and masks ---------------------------------------------------------------

    def forward(self, image: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """What the network says, each row of its own picture: ``rec_raw``, ``seg_logits``, ``attn_s``, ``attn_c``.

        Args:
            image: (B, 3, S, S) RGB in [0, 1].
            tokens: (B, T) int64.
        """
        return self.model(self._pixels(image), *self.embedded(tokens))

    def _pixels(self, image: Tensor) -> Tensor:
        """Of the network's type, which under ``precision=64-true`` is not that of the data, in its order."""
        if image.shape[-2:] != (self.size, self.size):  # boxes would be found in the pixels of another square
            raise ValueError(
                f"image is {tuple(image.shape)}, but input_size={self.hparams['input_size']}: letterbox pictures to "
                f"{self.size} pixels, as data.size {self.size} does"
            )
        return image.to(self.words.weight.dtype).contiguous(memory_format=torch.channels_last)

    def boxes_of(self, rec_raw: Tensor) -> tuple[Tensor, Tensor]:
        """The best box of each row (B, 4), xyxy in pixels of the input, not rounded, and its confidence (B,).

        Args:
            rec_raw: (B, 5A, g, g), of the network.
        """
        return select_top_box(*decode_boxes(rec_raw, self.anchors, STRIDE))

    @torch.no_grad()
    def predict_rows(
        self, image: Tensor, tokens: Tensor, size: Tensor, image_id: Tensor | None = None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Boxes (B, 4) int64, rounded, in pixels of the input, confidences (B,), and masks, B of (h, w) bool.

        Args:
            image: (B, 3, S, S) letterboxed, RGB in [0, 1].
            tokens: (B, T) int64, a sentence each.
            size: (B, 2) int64, heights and widths of the pictures.
            image_id: (B,) int64; neighbours with the same one are sentences about one picture, whose features are
                computed once. ``None``: every row is a picture of its own.
        """
        new = torch.ones(len(image), dtype=torch.bool, device=image.device)
        if image_id is not None:
            new[1:] = image_id[1:] != image_id[:-1]
        picture = new.cumsum(0) - 1  # of each row
        step = max(1, min(MOST_ROWS, MOST_PIXELS // int(size.prod(1).max())))
        visual = self.model.visual(self._pixels(image[new]))
        parts = [
            self._predicted(visual.rows(picture[rows]), tokens[rows], size[rows])
            for rows in torch.arange(len(image), device=image.device).split(step)
        ]
        boxes, scores, masks = zip(*parts, strict=True)
        return torch.cat(boxes), torch.cat(scores), [mask for part in masks for mask in part]

    def _predicted(self, visual: VisualMaps, tokens: Tensor, size: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        found = self.model.ground(visual, self.model.language(*self.embedded(tokens)))
        boxes, scores = self.boxes_of(found["rec_raw"])
        rounded = round_boxes(boxes, self.size)
        options = {"threshold": self.hparams["threshold"], "mode": self.hparams["asnls"]}
        masks, _ = postprocess_masks(found["seg_logits"], rounded, scores, size, self.size, **options)
        return rounded, scores, masks

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, Any]]:
        """A dict per sentence, as the class says; with ``file``, where the batch names files.

        Args:
            batch: of an evaluation, or of :meth:`prepare_inputs`.
            batch_idx: its number.

        Raises:
            ValueError: there is no sentence.
        """
        self.require_sentences(batch)
        if not len(batch["image"]):
            return []
        boxes, scores, masks = self.predict_rows(*(batch[name] for name in ("image", "tokens", "size", "image_id")))
        answers = zip(boxes.cpu(), scores.tolist(), masks, batch["size"].tolist(), strict=True)
        results = []
        for row, (found, score, mask, (height, width)) in enumerate(answers):
            box, mask = picture_box(found, height, width, self.size), mask.cpu()
            result = {"file": batch["file"][row]} if "file" in batch else {}
            result |= {"text": batch["sentence"][row], "pred_box": box.float(), "score": score}
            results.append(result | {"pred_mask": mask, "agreement": agreement(box, mask)})
        return results

    # -- learning -----------------------------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        losses = self.losses(batch)
        bar = self.trainer.progress_bar_callback is not None
        for name, value in losses.items():
            shown = bar and name == "loss"
            self.log(f"train/{name}", value.detach(), prog_bar=shown, batch_size=len(batch["image"]))
        log_rate(self)
        return losses["loss"]

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``loss`` and its parts ``loss_xy``, ``loss_wh``, ``loss_conf``, ``loss_seg`` and ``loss_cem``, unweighted;
        override it for losses of your own.

        Args:
            batch: of a training step.
        """
        found = self(batch["image"], batch["tokens"])
        raw, logits = at_least_float32(found["rec_raw"]), at_least_float32(found["seg_logits"])
        target = build_rec_targets(batch["box"].to(raw.dtype), self.anchors, self.size, STRIDE)
        boxes = rec_loss(raw, target, self.anchors, self.size, self.hparams["ignore_iou"])
        mask = F.interpolate(batch["mask"].to(logits.dtype), logits.shape[-2:], mode="nearest-exact")
        losses = {f"loss_{name}": boxes[name] for name in ("xy", "wh", "conf")} | {"loss_seg": res_loss(logits, mask)}
        total = self.hparams["rec_weight"] * boxes["rec"] + self.hparams["seg_weight"] * losses["loss_seg"]
        if self.hparams["cem_weight"]:
            losses["loss_cem"] = self.consistency_loss(found)
            total = total + self.hparams["cem_weight"] * losses["loss_cem"]
        return {"loss": total} | losses

    def consistency_loss(self, found: Mapping[str, Tensor]) -> Tensor:
        """Loss of the consistency energy between the attentions of the two tasks, 0-d.

        Args:
            found: what the network says, with ``attn_s`` and ``attn_c``.
        """
        convs: tuple[nn.Conv2d, ...] = (self.model.cem_s, self.model.cem_c)
        weights = [parameter.flatten() for conv in convs for parameter in conv.parameters()]  # weight and bias of each
        return consistency_energy_loss(consistency_energy(found["attn_s"], found["attn_c"], *weights))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam, whose rate falls at the milestones; the kernels of convolutions decay, but for the energy's."""
        kernels: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, module in self.named_modules():
            for parameter in module.parameters(recurse=False):
                decays = isinstance(module, nn.Conv2d) and parameter.ndim == 4 and not name.startswith("model.cem_")
                if parameter.requires_grad:
                    (kernels if decays else others).append(parameter)
        groups = [{"params": kernels, "weight_decay": self.hparams["weight_decay"]}, {"params": others}]
        optimizer = Adam(groups, lr=self.hparams["lr"], eps=1e-7)
        scheduler = MultiStepLR(optimizer, self.hparams["milestones"], self.hparams["gamma"])
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def setup_figures(self, stage: str) -> GroundingFigures:
        """The figures of a stage, ``"val"`` or ``"test"``, begun anew."""
        return self.figures[stage].begin(self.device)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Find boxes and masks and score them; what it returns is for callbacks."""
        return self._scored(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """As ``validation_step``: ``boxes``, ``scores``, ``masks``, and ``box_iou`` and ``mask_iou`` (B,) float64."""
        return self._scored(batch, "test")

    def _scored(self, batch: dict[str, Any], stage: str) -> dict[str, Any]:
        boxes: Tensor = batch["box"].new_zeros(0, 4)
        scores, masks = boxes.new_zeros(0), list[Tensor]()
        if len(batch["image"]):
            names = ("image", "tokens", "size", "image_id")
            boxes, scores, masks = self.predict_rows(*(batch[name] for name in names))
        box_iou, mask_iou = self.figures[stage].update(boxes, masks, batch)
        return {"boxes": boxes, "scores": scores, "masks": masks, "box_iou": box_iou, "mask_iou": mask_iou}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint holds its weights: the file that they once started from may be gone when it is loaded."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"] |= {"base_checkpoint": None, "backbone_weights": None}
