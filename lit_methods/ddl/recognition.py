"""FaceRecognition: an embedding network, how well it tells people apart, and the user's own pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lit_methods.backbones.reid import ReIDEncoder
from lit_methods.backbones.weights import load_weights, read_weights
from lit_methods.classification import Normalize, check_rgb
from lit_methods.contract import Described, ExportGraph
from lit_methods.ddl.encoder import build_encoder
from lit_methods.ddl.evaluation import EvaluationFigures, Pairs, Persons
from lit_methods.ddl.faces import OwnFaces
from lit_methods.functional.precision import at_least_float32
from lit_methods.metrics.reid import ReIDRanking
from lit_methods.metrics.verification import TARAtFAR

RATES = [1e-3, 1e-2, 1e-1]  # false accept rates that a few thousand pairs can tell


class FaceRecognition(OwnFaces, Described, LightningModule):
    """Embeddings of faces or persons, and how well they are told apart; the base of ``DDL``.

    Evaluation batches and what is logged of them, ``val/...`` and ``test/...``: see ``EvaluationFigures``. An embedding
    is that of the picture plus that of its mirror image, divided by its length; ``forward`` gives it bare.
    ``predict_step``: see ``OwnFaces``.

    Args:
        backbone: ``"iresnet18"``, ``"iresnet34"``, ``"iresnet50"`` or ``"iresnet101"`` for faces, ``"resnet50"`` or
            ``"resnet18"`` for persons, ``"tiny"``; in code also your own network, which gives (N, D).
        backbone_args: further arguments of the network, such as ``{se: true}``.
        mean: per channel, for images in [0, 1]; ``None`` hands pixels on as they are.
        std: per channel; given together with ``mean``.
        input_size: (C, H, W) that the network is fed with.
        base_checkpoint: weights of the network to start from: a checkpoint of ours, a saved state dict, or for
            ``resnet50`` a torchvision entry such as ``ResNet50_Weights.IMAGENET1K_V1``.
        flip: whether evaluation and prediction add the embedding of the mirror image.
        fars: false accept rates at which true accepts are measured on sets of pairs; ``None`` is 1e-3, 1e-2, 1e-1.

    Raises:
        ValueError: an argument is out of range, or the weights do not fit.
        FileNotFoundError: ``base_checkpoint`` does not exist.

    Source:
        DDL, arXiv 2002.03662, official evaluation code: the sum with the mirror image.

    Example:
        >>> module = FaceRecognition("tiny", {"width": 4}, input_size=[3, 48, 48])
        >>> module(torch.rand(2, 3, 48, 48)).shape
        torch.Size([2, 64])
    """

    model: nn.Module

    def __init__(
        self,
        backbone: str | nn.Module = "iresnet50",
        backbone_args: dict[str, Any] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        input_size: list[int] | None = None,
        base_checkpoint: str | None = None,
        flip: bool = True,
        fars: list[float] | None = None,
    ) -> None:
        if backbone is None:
            raise ValueError(
                "backbone: missing; the checkpoint is of a network given as an object: give backbone=network"
            )
        super().__init__()
        self.keep_arguments()  # here once, for subclasses too
        if (mean is None) != (std is None):
            raise ValueError(f"mean={mean} and std={std} go together: give both or neither")
        if wrong := [rate for rate in fars or [] if not 0 < rate < 1]:
            raise ValueError(f"fars={fars} must lie between 0 and 1, got {wrong[0]}")
        if fars:
            TARAtFAR(tuple(fars))  # names that would be equal are noticed now
        size = list(input_size or (3, 112, 112))
        self.hparams["input_size"] = size
        self.model, self.num_features = build_encoder(backbone, size, backbone_args)
        self.normalize = Normalize(mean, std)
        self.figures = {"val": EvaluationFigures(), "test": EvaluationFigures()}
        if base_checkpoint is not None:
            self._start_from(base_checkpoint)

    def _start_from(self, source: str) -> dict[str, Tensor]:
        """Take the network out of a file; gives all of its tensors."""
        tensors, _ = read_weights(source)
        ours = {name.removeprefix("model."): values for name, values in tensors.items() if name.startswith("model.")}
        named, encoder, given = f"base_checkpoint={source!r}", getattr(self.model, "encoder", None), ours or tensors
        if isinstance(encoder, ReIDEncoder) and not any(name.startswith("encoder.") for name in given):
            encoder.load_backbone(given, named)  # a ResNet with its last layer
        else:
            load_weights(self.model, given, named)
        return tensors

    def forward(self, image: Tensor) -> Tensor:
        """Embeddings (B, D), of any length, of RGB pictures (B, 3, H, W) in [0, 1]."""
        return self.features(self.model, image)

    def features(self, model: nn.Module, image: Tensor) -> Tensor:
        """What a network gives for pictures, normalised first."""
        check_rgb(image)
        return model(self.normalize(image).contiguous(memory_format=torch.channels_last))

    def embed(self, image: Tensor) -> Tensor:
        """Unit vectors (B, D), float32 or better, as evaluations and predictions compare them.

        Args:
            image: (B, 3, H, W) RGB in [0, 1]; B may be 0.
        """
        return self.embed_by(self.model, image)

    def embed_by(self, model: nn.Module, image: Tensor) -> Tensor:
        """The same by a given network."""
        if not len(image):
            return image.new_zeros(0, self.num_features)
        features = self.features(model, torch.cat([image, image.flip(3)]) if self.hparams["flip"] else image)
        features = at_least_float32(features)
        return F.normalize(sum(features.chunk(2)) if self.hparams["flip"] else features)  # type: ignore[arg-type]

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Learn the evaluation sets from the data, and refuse pictures of another size."""
        self._check_size()
        name = {"fit": "val", "validate": "val", "test": "test"}.get(stage)
        if name is not None:
            data: Any = getattr(self.trainer, "datamodule", None)
            sets = data.evaluation_sets(name) if hasattr(data, "evaluation_sets") else ()
            self.prepare_figures(name, sets, RATES if self.hparams["fars"] is None else self.hparams["fars"])

    def _check_size(self) -> None:
        theirs = getattr(getattr(self.trainer, "datamodule", None), "input_size", None)
        if theirs is not None and list(theirs) != list(self.hparams["input_size"]):
            raise ValueError(
                f"the network is for pictures of input_size={list(self.hparams['input_size'])}, but the data give "
                f"{list(theirs)}: set data.image_size (for persons data.height and data.width) to the network's"
            )

    def prepare_figures(self, stage: str, sets: Sequence[Any], fars: Sequence[float]) -> None:
        """Make ``self.figures[stage]`` for these evaluation sets."""
        self.figures[stage] = EvaluationFigures(sets, fars)

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep what the figures need."""
        self.figures["val"].update(batch, self.embed, dataloader_idx)

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """As ``validation_step``."""
        self.figures["test"].update(batch, self.embed, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Compute the figures, unless this is only a trial of the first batches."""
        if not self.trainer.sanity_checking:
            self.log_figures("val", self.figures["val"].compute(self.limited("val")))
            self.note_threshold(self.figures["val"])
        self.figures["val"].reset()

    def on_test_epoch_end(self) -> None:
        """Compute the figures."""
        self.log_figures("test", self.figures["test"].compute(self.limited("test")))

    def on_test_end(self) -> None:
        """Let the rows go: callbacks had their look."""
        self.figures["test"].reset()

    @property
    def test_ranking(self) -> ReIDRanking | None:
        """The ranking of persons of a test, for ``RankedLists``; ``None`` where there are none."""
        persons = self.figures["test"].part(Persons)
        return None if persons is None else persons.ranking

    def limited(self, stage: str) -> bool:
        """Whether the Trainer leaves out some of the batches."""
        limit = getattr(self.trainer, f"limit_{stage}_batches")
        return limit is not None and (isinstance(limit, int) or limit < 1)

    def note_threshold(self, figures: EvaluationFigures) -> None:
        """Remember where the first set of pairs was divided, for predictions."""
        pairs = figures.part(Pairs)
        if pairs is not None and pairs.accuracy.result is not None:  # it is where a limit left too few
            self.threshold = 1 - float(pairs.accuracy.result.threshold) / 2  # |a - b|^2 = 2 - 2 cos

    def log_figures(self, stage: str, figures: dict[str, Tensor]) -> None:
        """Log figures, which are equal on all processes."""
        for name, value in figures.items():
            self.log(f"{stage}/{name}", value, prog_bar=stage == "val" and name.endswith(("rank1", "mAP", "accuracy")))

    def export_graphs(self) -> dict[str, ExportGraph]:
        """One graph ``backbone``: ``image`` (B, 3, H, W) in [0, 1] to ``embedding`` (B, D), not yet of unit length."""
        example = torch.zeros(2, *self.hparams["input_size"], device=self.device)
        axes = {"image": {0: torch.export.Dim("batch")}}
        graph = ExportGraph(_Embedding(self.normalize, self.model), (example,), axes, outputs=("embedding",))
        return {"backbone": graph}

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint holds its weights: the file that they once started from may be gone when it is loaded."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"]["base_checkpoint"] = None
        checkpoint["hyper_parameters"].setdefault("backbone", None)  # an object, which no file holds
        checkpoint["lit_methods"]["threshold"] = self.threshold

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The threshold that validation found."""
        super().on_load_checkpoint(checkpoint)
        self.threshold = checkpoint.get("lit_methods", {}).get("threshold")


class _Embedding(nn.Module):
    """What ``FaceRecognition.forward`` computes, for export."""

    def __init__(self, normalize: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.normalize, self.model = normalize, model

    def forward(self, image: Tensor) -> Tensor:
        return self.model(self.normalize(image))
