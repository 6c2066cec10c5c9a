"""CameraStarGAN: learn to draw a person's picture in the style of another camera."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric, MetricCollection

from lit_methods.ad_cluster.camera_translation import CameraTranslation, decayed_rate, translation_step
from lit_methods.ad_cluster.retrieval import PersonRetrieval
from lit_methods.ad_cluster.shared_draws import drawn
from lit_methods.contract import Described, ExportGraph
from lit_methods.functional.drawing import caption, grid


class CameraStarGAN(Described, LightningModule):
    """StarGAN with the cameras of a re-ID data set as domains: AD-Cluster's generator before it meets an encoder.

    Each step trains the discriminator, every ``n_critic``-th one the generator, too; the Trainer counts both. Several
    processes average the gradients and equal one with all of the pictures.

    Batch: ``image`` and ``camid``, as ``train_on="cameras"`` of the data gives them. Logs ``train/d_loss``,
    ``train/g_loss``, their terms and ``train/lr``; ``val/reconstruction`` (mean absolute difference, in [0, 1], of
    pictures that were drawn for the next camera and back) and ``val/camera_accuracy`` (share of the drawn pictures that
    the discriminator takes for the camera they were drawn for), the same for ``test``.

    ``predict_step`` gives per picture ``camera_1``, ``camera_2``, ...: the picture in the style of each, (3, H, W)
    uint8.

    Args:
        num_cameras: C; 6 in Market-1501, 8 in DukeMTMC-reID.
        input_size: (C, H, W) of the pictures.
        generator_width: channels of the generator's first convolution.
        num_blocks: its residual blocks.
        discriminator_width: channels of the discriminator's first convolution.
        num_layers: its convolutions; sides of the pictures are multiples of 2 to this power.
        skip: show the picture and the camera to the generator's last convolution, too, see ``CameraGenerator``.
        n_critic: steps of the discriminator per step of the generator.
        lr: of both Adams.
        betas: of both Adams.
        total_steps: of the discriminator, after which the rate is 0; ``trainer.max_epochs`` ends the fit.
        decay_steps: how many of these, the last ones, the rate takes to fall in a straight line.
        cls_weight: of the camera classifier.
        rec_weight: of the reconstruction.
        gp_weight: of the gradient penalty.
        draw_seed: decides target cameras and where the penalty is taken.

    Raises:
        ValueError: an argument is out of range; before a fit: data with other cameras, or without pictures for this.

    Source:
        HHL code and StarGAN, arXiv 1711.09020. Ours: the two figures of the evaluation.

    Example:
        >>> pair = {"generator_width": 4, "num_blocks": 1, "discriminator_width": 4, "num_layers": 3}
        >>> module = CameraStarGAN(num_cameras=3, input_size=[3, 32, 16], **pair)
        >>> module(torch.rand(2, 3, 32, 16), torch.tensor([0, 2])).shape
        torch.Size([2, 3, 32, 16])
    """

    model: CameraTranslation

    def __init__(
        self,
        num_cameras: int = 6,
        input_size: list[int] | None = None,
        generator_width: int = 64,
        num_blocks: int = 6,
        discriminator_width: int = 64,
        num_layers: int = 6,
        skip: bool = False,
        n_critic: int = 5,
        lr: float = 1e-4,
        betas: list[float] | None = None,
        total_steps: int = 220_000,
        decay_steps: int = 110_000,
        cls_weight: float = 1.0,
        rec_weight: float = 10.0,
        gp_weight: float = 10.0,
        draw_seed: int = 0,
    ) -> None:
        super().__init__()
        self.keep_arguments()
        self.hparams.update(input_size=list(input_size or (3, 256, 128)), betas=list(betas or (0.5, 0.999)))
        if num_cameras < 2:
            raise ValueError(f"num_cameras={num_cameras} must be at least 2: there is no other style")
        if n_critic < 1:
            raise ValueError(f"n_critic={n_critic} must be at least 1")
        decayed_rate(0, lr, total_steps, decay_steps)  # refuses what it cannot take
        self.automatic_optimization = False
        _, height, width = self.hparams["input_size"]
        self.model = CameraTranslation(
            num_cameras,
            height,
            width,
            generator_width=generator_width,
            num_blocks=num_blocks,
            discriminator_width=discriminator_width,
            num_layers=num_layers,
            skip=skip,
            cls_weight=cls_weight,
            rec_weight=rec_weight,
            gp_weight=gp_weight,
        )
        figures = {"reconstruction": MeanMetric(), "camera_accuracy": MeanMetric()}
        self.val_metrics = MetricCollection(dict(figures), prefix="val/", compute_groups=False)
        self.test_metrics = self.val_metrics.clone(prefix="test/")

    def setup(self, stage: str) -> None:
        """Refuse data with other cameras."""
        data: Any = getattr(self.trainer, "datamodule", None)
        cameras, mine = getattr(data, "num_cameras", None), self.hparams["num_cameras"]
        if cameras is not None and cameras != mine:
            raise ValueError(f"model.num_cameras={mine}, but the data have {cameras} cameras")
        if stage == "fit" and self.trainer.precision == "16-mixed":
            raise ValueError("precision=16-mixed scales the loss, of which these steps know nothing; take bf16-mixed")
        if stage == "fit" and getattr(data, "train_on", "cameras") != "cameras":
            raise ValueError(f"data.train_on={data.train_on!r} does not fit CameraStarGAN: give 'cameras'")

    def forward(self, image: Tensor, camera: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] in the style of cameras (B,) int64."""
        return self.model.translate(image, camera)

    # -- learning -----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> list[Optimizer]:
        """Adam of the discriminator and Adam of the generator."""
        return [*self.model.make_optimizers(self.hparams["lr"], tuple(self.hparams["betas"]))]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One step of the discriminator, perhaps one of the generator."""
        step = self._step(batch_idx)
        optimizers: Any = self.optimizers()
        rate = decayed_rate(step, self.hparams["lr"], self.hparams["total_steps"], self.hparams["decay_steps"])
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        target, alpha = drawn(batch["camid"], self.hparams["draw_seed"], step)
        terms = translation_step(
            self.model, optimizers, step, batch["image"], batch["camid"], target, alpha, self.hparams["n_critic"]
        )
        bar = self.trainer.progress_bar_callback is not None
        for name, value in terms.items():
            self.log(f"train/{name}", value, prog_bar=bar and name.endswith("loss"), batch_size=len(target))
        self.log("train/lr", rate, batch_size=1)
        return terms["d_loss"]

    def _step(self, batch_idx: int) -> int:
        """Batches done so far: the Trainer's own counter has the generator's steps in it."""
        return self.current_epoch * int(self.trainer.num_training_batches) + batch_idx

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Draw pictures for the next camera and back."""
        self._evaluate(self.val_metrics, batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """As ``validation_step``."""
        self._evaluate(self.test_metrics, batch)

    def _evaluate(self, metrics: MetricCollection, batch: dict[str, Tensor]) -> None:
        image, camid = batch["image"], batch["camid"]
        if len(image):
            target = (camid + 1) % self.hparams["num_cameras"]
            drawn_image = self(image, target)
            there = (self(drawn_image, camid) - image).abs().flatten(1).mean(1)
            _, logits = self.model.discriminator(2 * drawn_image - 1)
            metrics["reconstruction"].update(there.float())
            metrics["camera_accuracy"].update((logits.argmax(1) == target).float())
        for key, metric in metrics.items(copy_state=False):
            self.log(key, metric, on_step=False, on_epoch=True, batch_size=max(1, len(image)))

    # -- the user's own pictures --------------------------------------------------------------------------------------

    view = staticmethod(PersonRetrieval.view)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> list[dict[str, Any]]:
        """Per picture, the picture in the style of each camera."""
        image = batch["image"]
        styles = [
            (self(image, torch.full((len(image),), camera, device=image.device)) * 255).round().byte().cpu()
            for camera in range(self.hparams["num_cameras"])
        ]
        return [{f"camera_{c + 1}": style[row] for c, style in enumerate(styles)} for row in range(len(image))]

    def draw(self, image: np.ndarray, prediction: dict[str, Any]) -> np.ndarray:
        """The picture as each camera would show it, side by side.

        Args:
            image: (H, W, 3) uint8 RGB.
            prediction: one dict of ``predict_step``.

        Returns:
            (H', W', 3) uint8 RGB.
        """
        names = [f"camera_{camera + 1}" for camera in range(self.hparams["num_cameras"])]
        styles = {name: prediction[name].permute(1, 2, 0).numpy() for name in names}
        shown = [caption(image, "picture"), *(caption(style, name) for name, style in styles.items())]
        return grid(shown, columns=len(shown))

    def export_graphs(self) -> dict[str, ExportGraph]:
        """One graph ``generator``: ``image`` (B, 3, H, W) in [0, 1] and ``camera`` (B,) int64 to ``translated``."""
        image = torch.zeros(2, *self.hparams["input_size"], device=self.device)
        camera = torch.zeros(2, dtype=torch.int64, device=self.device)
        batch = torch.export.Dim("batch")
        axes = {"image": {0: batch}, "camera": {0: batch}}
        return {"generator": ExportGraph(_Translator(self.model), (image, camera), axes, outputs=("translated",))}


class _Translator(torch.nn.Module):
    """The generator alone, on pictures in [0, 1]."""

    def __init__(self, pair: CameraTranslation) -> None:
        super().__init__()
        self.generator = pair.generator

    def forward(self, image: Tensor, camera: Tensor) -> Tensor:
        return (self.generator(2 * image - 1, camera) + 1) / 2
