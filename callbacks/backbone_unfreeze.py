"""BackboneUnfreeze: a tracker's backbone rests while its heads learn, and then learns with them."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.surgery import renew_wrapper
from lit_methods.backbones.weights import untrained


class BackboneUnfreeze(Callback):
    """Train neck and heads alone at first, and the deeper stages of the backbone, too, from an epoch on.

    What is frozen has no gradients, and its batch norms keep their statistics, whoever calls ``train()``; a backbone
    that is frozen as a whole runs without a graph. The first layers (``conv1``, ``bn1``, ``layer1``) stay frozen to the
    end unless they are among ``layers``. Which parts rest follows from the epoch alone, so a run that is resumed in the
    middle of one has the right ones.

    Args:
        at_epoch: first epoch, counted from 0, in which ``layers`` are trained.
        layers: stages of the backbone; ``None`` is ``layer2``, ``layer3`` and ``layer4``, as far as they are there.
        lr_factor: of the backbone's learning rate beside that of the heads.

    Raises:
        ValueError: an argument is out of range; before a fit: the module has no such backbone.

    Source:
        SiamBAN, official code (``BACKBONE.TRAIN_EPOCH`` and ``TRAIN_LAYERS``). There the optimiser is made anew at that
        epoch; here momentum goes on.

    Example:
        >>> BackboneUnfreeze(at_epoch=2).layers
        ('layer2', 'layer3', 'layer4')
    """

    def __init__(self, at_epoch: int = 10, layers: list[str] | None = None, lr_factor: float = 0.1) -> None:
        if at_epoch < 0:
            raise ValueError(f"at_epoch={at_epoch} must not be negative; 0 trains the layers from the start")
        if lr_factor <= 0:
            raise ValueError(f"lr_factor={lr_factor} must be positive; a backbone that never learns: a late at_epoch")
        self.at_epoch, self.lr_factor = at_epoch, lr_factor
        self.layers = ("layer2", "layer3", "layer4") if layers is None else tuple(layers)
        self._given = layers is not None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze before a fit: DDP asks next which parameters are trained."""
        if stage != "fit":
            return
        backbone: Any = getattr(getattr(pl_module, "model", None), "backbone", None)
        if not hasattr(backbone, "set_trainable"):
            raise ValueError(f"BackboneUnfreeze needs a tracker such as SiamBAN, not {type(pl_module).__name__}")
        if self._given and (missing := [name for name in self.layers if name not in backbone.stages]):
            raise ValueError(
                f"layers={list(self.layers)}: the backbone has no {missing[0]!r}, but {', '.join(backbone.stages)}"
            )
        pl_module.backbone_lr_factor = self.lr_factor  # type: ignore[assignment]
        backbone.set_trainable(self._trainable(trainer, backbone))

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Warn of a frozen backbone that knows nothing; by now a checkpoint's weights are in."""
        if trainer.current_epoch < self.at_epoch and untrained(pl_module.model.backbone):
            rank_zero_warn(
                f"the backbone has random weights and rests until epoch {self.at_epoch}: heads learn little from it; "
                "give model.base_checkpoint, or at_epoch=0"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Here and not at the start of an epoch, which a run resumed within one does not see."""
        backbone = pl_module.model.backbone
        wanted = self._trainable(trainer, backbone)
        if backbone.trainable != wanted:
            backbone.set_trainable(wanted)
            renew_wrapper(trainer, pl_module)

    def _trainable(self, trainer: Trainer, backbone: Any) -> tuple[str, ...]:
        resting = trainer.current_epoch < self.at_epoch
        return () if resting else tuple(name for name in backbone.stages if name in self.layers)
