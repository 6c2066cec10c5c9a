"""CameraStyleAugmentation: part of each cluster's pictures is drawn in the style of other cameras."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from callbacks.evaluation import device_batches, in_float32
from callbacks.interruption import interruptible
from callbacks.progress import progress
from callbacks.pseudo_label_clustering import ClusterListener, Clusters, PseudoLabelClustering
from callbacks.report import RunReport
from callbacks.surgery import share_weights
from callbacks.translation_figures import translation_sheet
from lit_methods.ad_cluster.camera_translation import CameraTranslation, translation_step
from lit_methods.ad_cluster.shared_draws import drawn
from lit_methods.checkpoint_io import read_checkpoint

SHOWN = 6  # pictures on the sheet


class CameraStyleAugmentation(ClusterListener):
    """Train the generator against the clusters, and have it draw the pictures that the batches ask for (AD-Cluster).

    After each clustering, ``gan_steps`` steps of StarGAN whose generator also maximises how far its pictures lie from
    the centroid of their cluster, in the features of the frozen encoder: the max side of the min-max game. Then every
    training picture with a ``style`` is drawn in the style of that camera, on the device, just before its step.

    The paper's ablation by one option each: ``generated_per_id=0`` of the data is clustering alone (no generator is
    trained), ``w_div=0`` sample augmentation, neither the whole method.

    Several processes average the gradients and stay equal. Networks, optimisers and the step are in the checkpoint: a
    run that is stopped among the steps goes on with the next one.

    Logs ``augment/d_loss``, ``augment/g_loss``, ``augment/g_diversity`` (mean distance to the centroid) and the other
    terms, of the last steps after each clustering. Picture ``augment/translations``: some pictures and what becomes of
    them for each camera.

    Args:
        gan: checkpoint of ``CameraStarGAN`` to start from, with its sizes; ``None``: networks of the sizes below, not
            trained yet.
        gan_steps: steps of the discriminator after each clustering; 0 leaves the generator as it is.
        lam: in ``exp(-lam * D_div)``, the diversity loss.
        w_div: its weight, not negative.
        pretrain_steps: further steps before the first clustering's, without diversity, when ``gan`` is ``None``.
        batch_size: pictures per step, over all processes.
        n_critic: steps of the discriminator per step of the generator.
        lr: of both Adams, constant.
        generator_width: as in ``CameraStarGAN``, as are the next four.
        num_blocks: residual blocks of the generator.
        discriminator_width: channels of the discriminator's first convolution.
        num_layers: its convolutions.
        skip: of the generator.

    Raises:
        ValueError: an argument is out of range; before a fit: no clustering beside it, a ``gan`` of other cameras.
        FileNotFoundError: there is no file ``gan``.

    Source:
        AD-Cluster, arXiv 2004.08787; the losses from HHL's StarGAN. The diversity loss is inferred, its ``lam`` and
        weight are ours, as are ``gan_steps`` and ``pretrain_steps``; pictures are drawn anew for each batch.

    Example:
        >>> CameraStyleAugmentation(gan_steps=0).summary()
        {}
    """

    def __init__(
        self,
        gan: str | None = None,
        gan_steps: int = 2000,
        lam: float = 0.03,
        w_div: float = 1.0,
        pretrain_steps: int = 0,
        batch_size: int = 16,
        n_critic: int = 5,
        lr: float = 1e-4,
        generator_width: int = 64,
        num_blocks: int = 6,
        discriminator_width: int = 64,
        num_layers: int = 6,
        skip: bool = False,
    ) -> None:
        for name, value in {"gan_steps": gan_steps, "w_div": w_div, "pretrain_steps": pretrain_steps}.items():
            if value < 0:
                raise ValueError(f"{name}={value} must not be negative")
        for name, value in {"batch_size": batch_size, "n_critic": n_critic}.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if not lam > 0 or not lr > 0:
            raise ValueError(f"lam={lam} and lr={lr} must be positive")
        if gan is not None and pretrain_steps:
            raise ValueError(f"pretrain_steps={pretrain_steps} are for an untrained generator; leave gan out, or them")
        self.gan, self.gan_steps, self.lam, self.w_div = gan, gan_steps, lam, w_div
        self.pretrain_steps, self.batch_size, self.n_critic, self.lr = pretrain_steps, batch_size, n_critic, lr
        self.sizes: dict[str, Any] = {
            "generator_width": generator_width,
            "num_blocks": num_blocks,
            "discriminator_width": discriminator_width,
            "num_layers": num_layers,
            "skip": skip,
        }
        self._forget()

    def _forget(self) -> None:
        self.translation: CameraTranslation | None = None
        self.optimizers: tuple[Any, Any] | None = None
        self.part = 0  # the clustering for which steps were done last
        self.done = 0  # steps done for it
        self._terms: dict[str, Tensor | float] = {}
        self._state: dict[str, Any] | None = None  # from a checkpoint, until the networks are there

    # -- the Trainer's hooks ------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work, before anything runs."""
        if stage != "fit" or trainer.current_epoch:  # a fit that goes on in its own Trainer
            return
        self._forget()
        data: Any = getattr(trainer, "datamodule", None)
        if not any(isinstance(c, PseudoLabelClustering) for c in trainer.callbacks):  # type: ignore[attr-defined]
            raise ValueError("CameraStyleAugmentation draws pictures of clusters: PseudoLabelClustering is missing")
        if not data.generated_per_id:  # clustering alone, by one word of the command line
            rank_zero_info("data.generated_per_id=0 asks for no drawn pictures: no generator is trained")
            return
        if self.batch_size % trainer.world_size:
            raise ValueError(f"batch_size={self.batch_size} must be a multiple of {trainer.world_size}, the processes")
        with torch.random.fork_rng(devices=[]):  # the same weights in any company, and nobody else's numbers change
            torch.manual_seed(data.seed)
            self.translation = self._make(data)

    def _make(self, data: Any) -> CameraTranslation:
        if self.gan is None:
            return CameraTranslation(data.num_cameras, *data.input_size[1:], **self.sizes)
        if not Path(self.gan).is_file():
            raise FileNotFoundError(f"gan={self.gan!r} does not exist; give a checkpoint of CameraStarGAN")
        checkpoint = read_checkpoint(self.gan)
        wrote = checkpoint.get("lit_methods", {}).get("class", "another program").rpartition(".")[2]
        saved = checkpoint.get("hyper_parameters", {})
        if "num_cameras" not in saved:
            raise ValueError(f"gan={self.gan!r} is a checkpoint of {wrote}, not of CameraStarGAN")
        if saved.get("num_cameras") != data.num_cameras or saved.get("input_size") != list(data.input_size):
            raise ValueError(
                f"gan={self.gan!r} is for {saved.get('num_cameras')} cameras and pictures of "
                f"{saved.get('input_size')}, the data have {data.num_cameras} and {data.input_size}; train "
                "CameraStarGAN on these"
            )
        names = [*self.sizes, "cls_weight", "rec_weight", "gp_weight"]
        pair = CameraTranslation(data.num_cameras, *data.input_size[1:], **{name: saved[name] for name in names})
        prefix = "model."
        weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
        pair.load_state_dict(weights)
        return pair

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn of a generator that draws noise."""
        trained = self.gan is not None or self.pretrain_steps or self.gan_steps
        if self.translation is not None and not trained:
            rank_zero_warn(
                "the generator has no trained weights, and gets no steps: give gan, a checkpoint of CameraStarGAN, "
                "pretrain_steps or gan_steps"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the networks where the module is, as a checkpoint left them."""
        if self.translation is None:
            return
        self.translation.to(pl_module.device)
        if self._state is not None:
            self.translation.load_state_dict(self._state["translation"])
        share_weights(self.translation)
        self.optimizers = self.translation.make_optimizers(self.lr)
        if self._state is not None:
            for optimizer, state in zip(self.optimizers, self._state["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        self._state = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Draw the pictures of the batch that have a style."""
        if "style" in batch and len(rows := (batch["style"] >= 0).nonzero().flatten()):
            batch["image"] = self.translated(batch["image"], batch["style"], rows)

    @torch.no_grad()
    def translated(self, image: Tensor, style: Tensor, rows: Tensor) -> Tensor:
        """A copy of pictures (B, 3, H, W) in [0, 1], those of ``rows`` in their style."""
        assert self.translation is not None
        image = image.clone()
        image[rows] = self.translation.translate(image[rows], style[rows]).clamp(0, 1).to(image.dtype)
        return image

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log how the generator was trained for this epoch's clusters."""
        if self._terms and trainer.is_last_batch:
            pl_module.log_dict(self.figures, on_step=False, on_epoch=True, batch_size=1)

    # -- the max side -------------------------------------------------------------------------------------------------

    def on_clusters(self, trainer: Trainer, pl_module: LightningModule, clusters: Clusters) -> None:
        """Train the generator for these clusters, from where a stopped run left it."""
        if self.translation is None:
            return
        if self.part == 0 and self.pretrain_steps:
            self._train(trainer, pl_module, 0, self.pretrain_steps, None)
        if self.part < clusters.iteration:
            self.part, self.done = clusters.iteration, 0
        if (clusters.labels >= 0).any():
            self._train(trainer, pl_module, self.part, self.gan_steps, clusters if self.w_div else None)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            sheet = translation_sheet(self.translation, data, pl_module.device, SHOWN)
            RunReport.of(trainer).picture(trainer, "augment/translations", sheet)

    def _train(self, trainer: Trainer, module: Any, part: int, steps: int, clusters: Clusters | None) -> None:
        assert self.translation is not None
        assert self.optimizers is not None
        if self.done >= steps:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        encode = None if clusters is None else _frozen(module)
        centroids = None if clusters is None else clusters.centroids.to(module.device)
        labels = None if clusters is None else clusters.labels.to(module.device)
        loader = data.camera_batches(range(self.done, steps), self.batch_size, part)
        bar = progress(trainer, device_batches(trainer, loader), "generator", total=steps - self.done)
        with torch.enable_grad(), torch.autocast(module.device.type, enabled=False):
            for batch in interruptible(trainer, bar):
                target, alpha = drawn(batch["camid"], data.seed, part, self.done)
                terms = translation_step(
                    self.translation,
                    self.optimizers,
                    self.done,
                    batch["image"].float(),
                    batch["camid"],
                    target,
                    alpha,
                    self.n_critic,
                    encode=encode,
                    labels=None if labels is None else labels[batch["index"]],
                    centroids=centroids,
                    lam=self.lam,
                    div_weight=self.w_div,
                )
                self.done += 1
                means = trainer.strategy.reduce(torch.stack([*terms.values()]), reduce_op="mean")  # over processes
                self._terms |= {f"augment/{name}": mean for name, mean in zip(terms, means, strict=True)}

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, float | str | list]:
        """The terms of the last steps."""
        return dict(self.figures)

    @property
    def figures(self) -> dict[str, float]:
        """The terms of the last steps, means over the processes."""
        return {name: float(value) for name, value in self._terms.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain types."""
        if self.translation is None or self.optimizers is None:
            return self._state or {}
        return {
            "translation": self.translation.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "part": self.part,
            "done": self.done,
            "figures": self.figures,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written; networks follow in ``on_fit_start``."""
        if state_dict:
            self._state = state_dict
            self.part, self.done, self._terms = state_dict["part"], state_dict["done"], dict(state_dict["figures"])


def _frozen(module: Any) -> Any:
    """The encoder as it is, pictures in [0, 1] to features; gradients pass through to the pictures alone."""
    network = copy.deepcopy(in_float32(module.model)).eval().requires_grad_(False)
    normalize = copy.deepcopy(in_float32(module.normalize))
    return lambda image: network(normalize(image))
