"""ASFDSearch: search the feature module of the detector by gradient descent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from lit_methods.asfd.genotype import Genotype
from lit_methods.asfd.module import ASFD
from lit_methods.asfd.search import SearchNet
from lit_methods.functional.precision import refuse_half_steps
from lit_methods.functional.processes import average

BETAS = (0.5, 0.999)  # of the architecture weights' Adam


class ASFDSearch(ASFD):
    """Auto-FEM: learn which operations fuse the levels and enhance their context (ASFD, arXiv 2003.11228).

    Every edge of the feature module mixes all operations, by weights that are learnt too. Training batch:
    ``{"weights": batch, "alphas": batch}``, two halves of the training set, as ``split_halves`` of the datamodule gives
    them: each step moves the architecture by the second and all other weights by the first. ``AutoFEMSearch`` says from
    when on the architecture learns, and writes ``genotype.json``, which is a ``genotype`` of ``ASFD`` at every size.

    Logs what ``ASFD`` logs, of the weights, and ``train/arch_loss``, the architecture's, once it learns;
    ``search/entropy``, the mean over the edges in nats, at most ln 8 with eight candidates. Evaluations measure the
    mixed network. The Trainer counts two steps per batch once both are made, so say how long a search is by
    ``trainer.max_epochs``.

    Several processes average gradients and running statistics, and stay equal bit by bit.

    Args:
        size: whose backbone and heads are searched with.
        channels: of the feature module.
        partial: whether a quarter of the channels goes through the operations and the rest passes by, to save memory;
            ``None``: from 64 channels on.
        shared_cpm: whether all levels have one architecture of context.
        fpn_ops: candidates on edges between levels; ``None``: the eight of ``OPERATIONS``.
        cpm_ops: candidates on edges within a level, likewise.
        arch_lr: learning rate of the architecture weights.
        arch_weight_decay: of the architecture weights.
        max_norm: gradients of the other weights are clipped to it; ``None``: not at all. Stands for the Trainer's
            ``gradient_clip_val``, which a search that makes its own steps cannot have.
        kwargs: of ``ASFD``.

    Raises:
        ValueError: an argument is out of range; before a run: no ``AutoFEMSearch``, ``trainer.max_steps``, or a half
            precision other than ``bf16-mixed``.

    Source:
        The bi-level search of DARTS (arXiv 1806.09055), first order; partial channels of PC-DARTS (arXiv 1907.05737).
        The paper's own search space and schedule could not be read: what is searched, and how, is ours.

    Example:
        >>> module = ASFDSearch("d0", channels=8)
        >>> module.genotype() == ASFDSearch("d0", channels=8, genotype=None).genotype()  # each begins by chance
        False
    """

    model: SearchNet
    wants_halves = True

    def __init__(
        self,
        size: str = "d4",
        channels: int = 64,
        partial: bool | None = None,
        shared_cpm: bool = True,
        fpn_ops: list[str] | None = None,
        cpm_ops: list[str] | None = None,
        arch_lr: float = 3e-4,
        arch_weight_decay: float = 1e-3,
        max_norm: float | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("genotype") is not None:
            raise ValueError("genotype is what ASFDSearch looks for: give it to ASFD")
        for name, value in {"arch_lr": arch_lr, "arch_weight_decay": arch_weight_decay}.items():
            if not value >= 0:
                raise ValueError(f"{name}={value} must not be negative")
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"max_norm={max_norm} must be positive, or null for no clipping")
        super().__init__(size=size, channels=channels, **kwargs)  # type: ignore[arg-type]
        self.automatic_optimization = False
        self.learns_architecture: bool | None = None  # set by AutoFEMSearch

    def build_network(self) -> SearchNet:
        """The network that mixes all operations."""
        names = ("size", "channels", "partial", "shared_cpm", "fpn_ops", "cpm_ops", "cls_mode", "prior")
        return SearchNet(**{name: self.hparams[name] for name in names})

    def setup(self, stage: str) -> None:
        """Refuse a search that nothing starts, and precisions in which it would lose its steps."""
        super().setup(stage)
        if stage != "fit":
            return
        if self.learns_architecture is None:  # callbacks are set up before
            raise ValueError("ASFDSearch learns its architecture with AutoFEMSearch: add it to trainer.callbacks")
        if self.trainer.max_steps >= 0:
            raise ValueError(
                f"trainer.max_steps={self.trainer.max_steps}: a search counts two steps per batch; say "
                "how long it is by trainer.max_epochs"
            )
        refuse_half_steps(str(self.trainer.precision), type(self).__name__)

    # -- search -------------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """The optimiser of the weights, whose rate rises and falls, and Adam of the architecture."""
        weights = self.weight_optimizer(self.model.weight_parameters())
        lr, decay = self.hparams["arch_lr"], self.hparams["arch_weight_decay"]
        alphas = Adam(self.model.arch_parameters(), lr, betas=BETAS, weight_decay=decay)
        return [weights, alphas], [LambdaLR(weights, self.lr_factor())]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One step of the architecture, once it learns, then one of the other weights."""
        if not {"weights", "alphas"} <= batch.keys():
            raise ValueError(
                "a batch of a search is {'weights': batch, 'alphas': batch}, of two halves of the training set, but "
                f"has {', '.join(batch)}: take WIDERFaceDataModule(split_halves=True), or a CombinedLoader"
            )
        optimizers: Any = self.optimizers()
        if self.learns_architecture:
            arch = self._step(batch["alphas"], self.model.arch_parameters(), optimizers[1])
            self.log("train/arch_loss", arch["loss"].detach(), batch_size=len(batch["alphas"]["image"]))
        losses = self._step(batch["weights"], self.model.weight_parameters(), optimizers[0], self.hparams["max_norm"])
        count = len(batch["weights"]["image"])
        self.log_losses(losses, count)
        self.log("train/lr", optimizers[0].param_groups[0]["lr"], batch_size=1)
        scheduler: Any = self.lr_schedulers()
        scheduler.step()
        self.log("search/entropy", self.model.entropy().detach(), batch_size=count)
        return losses["loss"].detach()

    def _step(
        self, batch: dict[str, Any], parameters: list[Any], optimizer: Any, max_norm: float | None = None
    ) -> dict[str, Tensor]:
        """Move some parameters by one batch; gives its losses."""
        losses = self.losses(batch)
        gradients = torch.autograd.grad(losses["loss"], parameters, allow_unused=True, materialize_grads=True)
        for parameter, gradient in zip(parameters, average(gradients), strict=True):
            parameter.grad = gradient
        if max_norm is not None:
            clip_grad_norm_(parameters, max_norm)
        optimizer.step()
        optimizer.zero_grad()
        statistics = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        for buffer, value in zip(statistics, average(statistics), strict=True):
            buffer.copy_(value)
        return losses

    # -- what was found -----------------------------------------------------------------------------------------------

    def genotype(self) -> Genotype:
        """The architecture that the weights favour at present."""
        return self.model.genotype()

    def alphas(self) -> dict[str, Tensor]:
        """Weights of the operations on each edge, softmax over them, by part of the feature module."""
        return self.model.alphas()

    def summary(self) -> dict[str, float | str | list]:
        """What is favoured, and how sure: of the checkpoint that was tested, after a test."""
        return super().summary() | {
            "search/genotype": self.genotype().key(),
            "search/entropy": float(self.model.entropy()),
        }
