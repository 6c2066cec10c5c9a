"""BPE: train one architecture under one recipe, as a LightningModule."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from lit_methods.bpe_mip.functional import cosine_lr, drop_path_at
from lit_methods.bpe_mip.recipe_check import check_size, warn_of_differences
from lit_methods.bpe_mip.search_space import (
    Genotype,
    Recipe,
    genotype_from_sample28,
    named_recipe,
    read_genotypes,
)
from lit_methods.bpe_mip.trial import CLIP, MOMENTUM, WEIGHT_DECAY, build_network, trial_loss
from lit_methods.classification import ImageClassifier, check_rgb
from lit_methods.contract import ExportGraph

# the second-order cell of DARTS (arXiv 1806.09055, figures 4 and 5): an architecture to begin with
DARTS_V2 = Genotype.from_dict(
    {
        "normal": [
            [["sep_conv_3x3", 0], ["sep_conv_3x3", 1]],
            [["sep_conv_3x3", 0], ["sep_conv_3x3", 1]],
            [["sep_conv_3x3", 1], ["skip_connect", 0]],
            [["skip_connect", 0], ["dil_conv_3x3", 2]],
        ],
        "reduce": [
            [["max_pool_3x3", 0], ["max_pool_3x3", 1]],
            [["skip_connect", 2], ["max_pool_3x3", 1]],
            [["max_pool_3x3", 0], ["skip_connect", 2]],
            [["skip_connect", 2], ["max_pool_3x3", 1]],
        ],
    }
)


class BPE(ImageClassifier):
    """One architecture of the DARTS space, trained from scratch under one recipe (arXiv 2005.09917).

    For the last training of a cell that a search has found, or to look at one estimate closely; searches train many
    small networks without a Trainer each, see ``BPEBenchmark``. The recipe gives learning rate, layers, channels and
    image size; its epochs are ``trainer.max_epochs``, its batch size and cutout the datamodule's, its ``fp=16`` the
    Trainer's ``precision``: a run that has others than the recipe says so in one warning.

    Logs what ``ImageClassifier`` logs; ``train/loss`` has the auxiliary head's in it.

    Args:
        genotype: of the cells: a dict with ``normal`` and ``reduce``, a JSON file, or text in the form of DARTS; in
            code also a ``Genotype``. ``None`` is the second-order cell of DARTS.
        recipe: ``"BPE1"``, ``"BPE2"``, ``"FULL"``, ``"DARTS_DEFAULT"``, or a dict of the eight hyper-parameters, or one
            of ``preset`` and what differs from it; in code also a ``Recipe``.
        num_classes: number of classes.
        mean: per channel, for images in [0, 1]; ``None`` hands pixels on as they are.
        std: per channel; given together with ``mean``.
        input_size: (C, H, W) that the network is fed with; ``None``: the recipe's image size.
        class_names: names of the classes, for people.
        base_checkpoint: weights to start from, as in ``ImageClassifier``.

    Raises:
        ValueError: it is no genotype or recipe; before a run: images of another size than the recipe's.
        FileNotFoundError: there is no such file.

    Source:
        official code: SGD with momentum 0.9 and weight decay 3e-4, cosine to 0 by epochs, gradient norm clipped to 5,
        auxiliary head 0.4, drop path rising to 0.2. Ours: the cosine's last epoch has a rate above 0.

    Example:
        >>> module = BPE(recipe="BPE1")
        >>> module(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        genotype: dict[str, Any] | str | Genotype | None = None,
        recipe: str | dict[str, Any] | Recipe = "BPE1",
        num_classes: int = 10,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        input_size: list[int] | None = None,
        class_names: list[str] | None = None,
        base_checkpoint: str | None = None,
    ) -> None:
        self.genotype, self.recipe = as_genotype(genotype), named_recipe(recipe)
        side = self.recipe.image_size
        super().__init__(
            backbone=build_network(self.genotype, self.recipe, num_classes),
            num_classes=num_classes,
            mean=mean,
            std=std,
            input_size=list(input_size or (3, side, side)),
            class_names=class_names,
            base_checkpoint=base_checkpoint,
        )
        self._keep_what_is_trained()

    def _keep_what_is_trained(self) -> None:
        self.hparams.update(genotype=self.genotype.to_dict(), recipe=self.recipe.to_dict())  # as a checkpoint needs it
        self._backbone = (self.model,)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, num_classes) of RGB images (B, 3, H, W) in [0, 1]; H and W multiples of 4."""
        return self.network_output(image)[0]

    def network_output(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits, and in training those of the auxiliary head."""
        check_rgb(image)
        return self.model(self.as_fed(image))

    def as_fed(self, image: Tensor) -> Tensor:
        """Images in [0, 1] as the network takes them."""
        # torch 2.14 corrupts memory in gradients of oneDNN's 1x1 filters of stride 2 with three outputs or fewer
        layout = torch.channels_last if self.recipe.channels > 3 else torch.contiguous_format
        return self.normalize(image).contiguous(memory_format=layout)

    # -- training -----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Refuse images of another size; name where the run is another than the recipe."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if data is not None:
            self._check_data(data, stage)

    def _check_data(self, data: Any, stage: str) -> None:
        check_size(self.recipe, data)
        if stage == "fit":
            warn_of_differences(self.recipe, self.trainer, data)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        self.model.drop_path_prob = drop_path_at(self.current_epoch, self._length())  # type: ignore[assignment]
        loss = trial_loss(*self.network_output(batch["image"]), batch["label"])
        bar = self.trainer.progress_bar_callback is not None
        self.log("train/loss", loss, prog_bar=bar, batch_size=len(batch["label"]))
        return loss

    def _length(self) -> int:
        """Of the run in epochs, over which the schedules stretch."""
        epochs = self.trainer.max_epochs or -1
        return epochs if epochs > 0 else self.recipe.epochs

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD, whose rate falls by a cosine from epoch to epoch."""
        lr, epochs = self.recipe.lr, self._length()
        optimizer = SGD(self.parameters(), lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        schedule = LambdaLR(optimizer, lambda epoch: cosine_lr(min(epoch, epochs), epochs, lr) / lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """To a norm of 5, unless the Trainer says otherwise."""
        value = CLIP if gradient_clip_val is None else gradient_clip_val
        self.clip_gradients(optimizer, value, gradient_clip_algorithm or "norm")

    # -- out of Python, and back --------------------------------------------------------------------------------------

    def export_graphs(self) -> dict[str, ExportGraph]:
        """One graph ``classifier``: ``image`` (B, 3, H, W) in [0, 1] to ``logits``, with a dynamic batch."""
        return {"classifier": self._graph_of(_LogitsAlone(self.model))}

    def _smallest_side(self, height: int, width: int) -> None:
        """The graph has one size of images: sides have to be multiples of 4, which a dynamic size cannot say."""

    def summary(self) -> dict[str, float | str | list]:
        """Which architecture and recipe it was, for ``summary.json``."""
        return {"bpe/genotype": self.genotype.key(), "bpe/recipe": self.recipe.key()}

    def adopt(self, genotype: Genotype, recipe: Recipe, weights: dict[str, Tensor] | None = None) -> None:
        """Become another network.

        Args:
            genotype: of its cells.
            recipe: gives its channels, layers and image size.
            weights: its state dict; ``None`` leaves fresh weights.
        """
        with torch.random.fork_rng(devices=[]):
            network = build_network(genotype, recipe, self.hparams["num_classes"])
        if weights is not None:
            network.load_state_dict(weights)
        self.genotype, self.recipe, self.model = genotype, recipe, network.to(self.device)
        self.model.train(self.training)
        self._keep_what_is_trained()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the checkpoint's architecture before its weights arrive."""
        saved = checkpoint["hyper_parameters"]
        genotype, recipe = as_genotype(saved["genotype"]), named_recipe(saved["recipe"])
        if (genotype, recipe) != (self.genotype, self.recipe):
            self.adopt(genotype, recipe)
        super().on_load_checkpoint(checkpoint)


class _LogitsAlone(nn.Module):
    """A network without what its auxiliary head says."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image)[0]


def as_genotype(given: dict[str, Any] | str | Genotype | None) -> Genotype:
    """A genotype, however it is given.

    Args:
        given: a genotype or its dict; a path of a JSON file, JSON, the text form of DARTS, or 28 operation
            numbers, as in ``genotype.key()``; ``None`` is the second-order cell of DARTS.

    Raises:
        ValueError: it is none, or a file has several.
        FileNotFoundError: there is no such file.

    Example:
        >>> as_genotype(None).normal[3]
        (('skip_connect', 0), ('dil_conv_3x3', 2))
    """
    if given is None:
        return DARTS_V2
    if isinstance(given, Genotype):
        return given
    if not isinstance(given, str):
        return Genotype.from_dict(given)
    if len(digits := given.replace(" ", "")) == 28 and digits.isdigit():
        return genotype_from_sample28([int(digit) for digit in digits])
    found = read_genotypes(given)
    if len(found) != 1:
        raise ValueError(f"genotype={given!r} has {len(found)} genotypes; give a file with one")
    return found[0]
