"""DARTSSearch: search for cells by gradient descent on a supernet that is built and trained under a BPE recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam, Optimizer

from lit_methods.bpe_mip.architecture_gradient import architecture_gradient
from lit_methods.bpe_mip.functional import cosine_lr
from lit_methods.bpe_mip.model import DartsSupernet
from lit_methods.bpe_mip.recipe_check import check_size, warn_of_differences
from lit_methods.bpe_mip.search_space import Genotype, Recipe, named_recipe
from lit_methods.bpe_mip.trial import CLIP, MOMENTUM, WEIGHT_DECAY
from lit_methods.classification import ImageClassifier, check_rgb
from lit_methods.functional.precision import refuse_half_steps
from lit_methods.functional.processes import average

LOWEST_LR = 1e-3  # of the weights
BETAS = (0.5, 0.999)  # of the architecture weights' Adam
HALVES = ("weights", "alphas")

Batch = dict[str, Tensor]


class DARTSSearch(ImageClassifier):
    """DARTS with a supernet of a cheap recipe (BPE, arXiv 2005.09917; DARTS, arXiv 1806.09055).

    Batch: ``{"weights": batch, "alphas": batch}``, each with ``image`` and ``label``, as ``split_halves`` of the
    datamodule gives them. Each step first moves the architecture weights by the ``alphas`` half, then all other weights
    by the ``weights`` half. The recipe gives learning rate, layers, channels and image size; its epochs are
    ``trainer.max_epochs``, its batch size the datamodule's, per process: a run that has others says so in one warning.

    The architecture found is that of the epoch with the best ``val/top1``, the checkpoint that the command line tests
    after a fit: ``summary()`` of the tested module gives it as ``darts/genotype`` (28 digits, see ``Genotype.key``),
    with ``darts/skip_connects``, how many of the eight edges of the normal cell are identities; a search that fills it
    with these has collapsed. ``GenotypeLogger`` writes ``genotype.json``, which ``BPE`` takes as its ``genotype``.

    Logs ``train/loss`` (of the weights), ``train/arch_loss`` (of the architecture weights' batch, where their gradient
    is taken: behind the trial step when ``unrolled``), ``train/lr`` and what ``ImageClassifier`` logs in evaluations;
    those measure the supernet, which mixes all operations. The Trainer counts two steps per batch.

    Several processes average all gradients, weighted by the lengths of their batches, and the running statistics, and
    stay equal bit by bit. A step for which any half is empty on all of them is left out. The gradient of the
    architecture weights, a difference of nearly equal numbers, is computed without autocast.

    Args:
        recipe: ``"BPE1"``, ``"BPE2"``, ``"DARTS_DEFAULT"``, ``"FULL"``, or a dict of the eight hyper-parameters, or one
            of ``preset`` and what differs from it; in code also a ``Recipe``.
        unrolled: second order, through a trial step of the weights; without it first order, with two passes per step
            in place of five.
        num_classes: number of classes.
        mean: per channel, for images in [0, 1]; ``None`` hands pixels on as they are.
        std: per channel; given together with ``mean``.
        input_size: (C, H, W) that the network is fed with; ``None``: the recipe's image size.
        class_names: names of the classes, for people.
        base_checkpoint: weights to start from, as in ``ImageClassifier``.
        arch_lr: learning rate of the architecture weights.
        arch_weight_decay: of the architecture weights.

    Raises:
        ValueError: an argument is out of range; before a run: images of another size than the recipe's, data without
            the two halves, a half precision other than ``bf16-mixed``.
        FileNotFoundError: ``base_checkpoint`` does not exist.

    Source:
        official code of BPE and DARTS: Adam with betas 0.5 and 0.999; SGD with momentum 0.9, weight decay 3e-4,
        gradient norm clipped to 5, cosine from the recipe's rate to 0.001 by epochs. Ours: the cosine begins at the
        recipe's rate (there it is one epoch ahead), and a rate below 0.001 stays as it is; the finite difference is
        divided by its length, see ``architecture_gradient``, whose losses are cross entropies whatever ``loss``, that
        of the weights' own step, is in a subclass.

    Example:
        >>> module = DARTSSearch({"preset": "BPE1", "layers": 3, "channels": 2})
        >>> module(torch.rand(2, 3, 16, 16)).shape, module.alphas().shape
        (torch.Size([2, 10]), torch.Size([28, 8]))
    """

    model: DartsSupernet

    def __init__(
        self,
        recipe: str | dict[str, Any] | Recipe = "DARTS_DEFAULT",
        unrolled: bool = True,
        num_classes: int = 10,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        input_size: list[int] | None = None,
        class_names: list[str] | None = None,
        base_checkpoint: str | None = None,
        arch_lr: float = 3e-4,
        arch_weight_decay: float = 1e-3,
    ) -> None:
        self.recipe = named_recipe(recipe)
        for name, value in {"arch_lr": arch_lr, "arch_weight_decay": arch_weight_decay}.items():
            if not value >= 0:
                raise ValueError(f"{name}={value} must not be negative")
        side = self.recipe.image_size
        super().__init__(
            backbone=DartsSupernet(self.recipe.channels, self.recipe.layers, num_classes),
            num_classes=num_classes,
            mean=mean,
            std=std,
            input_size=list(input_size or (3, side, side)),
            class_names=class_names,
            base_checkpoint=base_checkpoint,
        )
        self._keep_recipe()
        self.automatic_optimization = False

    def _keep_recipe(self) -> None:
        self.hparams["recipe"] = self.recipe.to_dict()  # as a checkpoint needs it
        self._backbone = (self.model,)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, num_classes) of RGB images (B, 3, H, W) in [0, 1]; H and W multiples of 4."""
        check_rgb(image)
        return self.model(self.normalize(image))

    # -- before a run -------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Refuse data and precisions that do not fit; name where the run is another than the recipe."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        check_size(self.recipe, data)
        if stage != "fit":
            return
        if not getattr(data, "split_halves", True):
            raise ValueError(f"{type(data).__name__} gives one batch at a time, {_CURE}")
        _check_precision(str(self.trainer.precision))
        warn_of_differences(self.recipe, self.trainer, data)

    # -- search -------------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> list[Optimizer]:
        """SGD of the weights and Adam of the architecture weights."""
        weights = SGD(self.model.weight_parameters(), self.recipe.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        lr, decay = self.hparams["arch_lr"], self.hparams["arch_weight_decay"]
        return [weights, Adam(self.model.arch_parameters(), lr, betas=BETAS, weight_decay=decay)]

    def current_lr(self) -> float:
        """The learning rate of the weights in this epoch."""
        epochs = self.trainer.max_epochs or -1
        epochs = epochs if epochs > 0 else self.recipe.epochs
        lr = self.recipe.lr
        return cosine_lr(min(self.current_epoch, epochs), epochs, lr, min(LOWEST_LR, lr))

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> Tensor | None:  # type: ignore[override]
        """One step of the architecture weights, then one of the other weights."""
        if not {*HALVES} <= batch.keys():
            raise ValueError(f"a training batch has {', '.join(batch)} in place of {' and '.join(HALVES)}; {_CURE}")
        trains, judges = batch["weights"], batch["alphas"]
        lengths = [len(trains["label"]), len(judges["label"])]
        shares = self._shares(lengths)
        if shares is None:
            return None
        lr = self.current_lr()
        optimizers: Any = self.optimizers()
        for group in optimizers[0].param_groups:
            group["lr"] = lr
        arch_loss = self._step_alphas(trains, judges, shares, optimizers, lr)
        loss = self._step_weights(trains, shares[0], optimizers[0])
        self._log_losses(loss, arch_loss, lr, lengths)
        return loss

    def _step_alphas(
        self, trains: Batch, judges: Batch, shares: tuple[float, float], optimizers: Any, lr: float
    ) -> Tensor:
        """Move the architecture weights; gives their loss."""
        unrolled = self.hparams["unrolled"]
        passes = [shares[0], shares[1], shares[0], shares[0]] if unrolled else [shares[1]]  # whose batch each one sees
        left: Iterator[float] = iter(passes)
        seen: list[Tensor] = []
        watch = self.model.register_forward_hook(lambda net, args, logits: seen.append(logits.detach()))
        train_batch, val_batch = (
            (self.normalize(half["image"]), half["label"]) for half in map(_stand_in, (trains, judges))
        )
        try:
            with torch.autocast(self.device.type, enabled=False):
                gradients = architecture_gradient(
                    self.model,
                    train_batch,
                    val_batch,
                    optimizer=optimizers[0].optimizer,
                    xi=lr,
                    unrolled=unrolled,
                    reduce=(lambda grads: average(grads, next(left))) if self.trainer.world_size > 1 else None,
                )
        finally:
            watch.remove()
        for alpha, gradient in zip(self.model.arch_parameters(), gradients, strict=True):
            alpha.grad = gradient
        optimizers[1].step()
        optimizers[1].zero_grad()
        return F.cross_entropy(seen[int(unrolled)].float(), val_batch[1])

    def _step_weights(self, batch: Batch, share: float, optimizer: Any) -> Tensor:
        """Move the weights; gives their loss."""
        batch = _stand_in(batch)
        loss = self.loss(self(batch["image"]), batch)
        weights = self.model.weight_parameters()
        gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        for weight, gradient in zip(weights, average(gradients, share), strict=True):
            weight.grad = gradient
        clip_grad_norm_(weights, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        statistics = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        for buffer, value in zip(statistics, average(statistics, share), strict=True):
            buffer.copy_(value)
        return loss.detach()

    def _log_losses(self, loss: Tensor, arch_loss: Tensor, lr: float, lengths: list[int]) -> None:
        bar = self.trainer.progress_bar_callback is not None
        for name, value, length in zip(("loss", "arch_loss"), (loss, arch_loss), lengths, strict=True):
            if length:
                self.log(f"train/{name}", value, prog_bar=bar and name == "loss", batch_size=length)
        self.log("train/lr", lr, batch_size=1)

    # -- many processes -----------------------------------------------------------------------------------------------

    def _shares(self, lengths: list[int]) -> tuple[float, float] | None:
        """This process's weight in means over the two halves; ``None`` on all of them where a half is empty on all."""
        if self.trainer.world_size > 1:
            own = torch.tensor(lengths, dtype=torch.float32, device=self.device)
            mean = self.trainer.strategy.reduce(own.clone(), reduce_op="mean").tolist()
        else:
            mean = [float(length) for length in lengths]
        if not all(mean):
            return None
        first, second = (length / usual for length, usual in zip(lengths, mean, strict=True))
        return first, second

    # -- what was found -----------------------------------------------------------------------------------------------

    def alphas(self) -> Tensor:
        """The architecture weights, (28, 8) on the CPU, rows in the order of ``EDGES``, columns ``PRIMITIVES``."""
        return torch.cat([alpha.detach() for alpha in self.model.arch_parameters()]).cpu()

    def genotype(self) -> Genotype:
        """The cells that the architecture weights favour at present: per node the two best edges."""
        return self.model.genotype()

    def summary(self) -> dict[str, float | str | list]:
        """What was found, for ``summary.json``: of the checkpoint that was tested, after a test."""
        found = self.genotype()
        skips = sum(name == "skip_connect" for node in found.normal for name, _ in node)
        return {"darts/genotype": found.key(), "darts/skip_connects": skips}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the checkpoint's recipe before its weights arrive, except for what a resumed fit may change."""
        saved = named_recipe(checkpoint["hyper_parameters"]["recipe"])
        fits = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        if not fits or (saved.channels, saved.layers) != (self.recipe.channels, self.recipe.layers):
            self._adopt(saved)
        super().on_load_checkpoint(checkpoint)

    def _adopt(self, recipe: Recipe) -> None:
        if (recipe.channels, recipe.layers) != (self.recipe.channels, self.recipe.layers):
            with torch.random.fork_rng(devices=[]):  # fresh weights, about to be replaced
                network = DartsSupernet(recipe.channels, recipe.layers, self.hparams["num_classes"])
            self.model = network.to(self.device).train(self.training)
        self.recipe = recipe
        self._keep_recipe()


_CURE = "and this search needs two, one for the weights and one for the alphas: give --data.split_halves true"


def _stand_in(batch: Batch) -> Batch:
    """The batch; for an empty one black images, whose gradients count nothing, so that this process takes part."""
    if len(batch["label"]):
        return batch
    image, label = batch["image"], batch["label"]
    return {"image": image.new_zeros(2, *image.shape[1:]), "label": label.new_zeros(2)}


def _check_precision(precision: str) -> None:
    """Refuse what the search does not survive.

    Example:
        >>> _check_precision("bf16-mixed")
    """
    refuse_half_steps(precision, "DARTSSearch")
