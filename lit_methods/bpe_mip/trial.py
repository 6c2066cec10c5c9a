"""One trial: a network trained from scratch under a recipe, and the accuracy that the recipe estimates for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD

from lit_methods.bpe_mip.functional import cosine_lr, drop_path_at
from lit_methods.bpe_mip.jobs import Job
from lit_methods.bpe_mip.model import DartsCellNetwork
from lit_methods.bpe_mip.search_space import Genotype, Recipe
from lit_methods.bpe_mip.trial_images import TrialImages
from lit_methods.functional.draws import hash64, purpose
from lit_methods.functional.precision import at_least_float32

MOMENTUM, WEIGHT_DECAY, CLIP, AUXILIARY_WEIGHT = 0.9, 3e-4, 5.0, 0.4  # of all stand-alone trainings of the paper
_INIT = purpose("bpe_mip/init")


@dataclass(frozen=True)
class Trial:
    """What came of a trial.

    Args:
        accuracy: best validation top-1 over the epochs, in [0, 1]; the recipe's estimate.
        accuracies: of each epoch.
        seconds: that it took, validation included.
        images_per_second: of training alone.
        weights: state dict of the network at its best epoch, on the CPU.
    """

    accuracy: float
    accuracies: list[float]
    seconds: float
    images_per_second: float
    weights: dict[str, Tensor]


class Trials:
    """Trains one small network after the other on the same images; calling it is the searchers' ``estimate_fn``.

    A trial is a function of (genotype, recipe, seed): it neither reads nor changes torch's global random state, so it
    comes out the same in any order and on any process of one kind of machine. ``fp=16`` is mixed precision on a GPU and
    without effect on a CPU.

    Args:
        images: to train on and to be judged by.
        recipe: of estimates, where a call gives none.
        num_classes: outputs of the networks.
        seed: of estimates.
        half: what ``fp=16`` means on a GPU: ``"mixed"`` scales the loss, ``"true"`` is the official code's
            ``model.half()``.

    Source:
        official code: SGD with momentum 0.9 and weight decay 3e-4, cosine to 0, gradient norm 5,
        drop path up to 0.2, auxiliary head 0.4. Ours: ``"mixed"``; the schedule's last epoch has a rate above 0.

    Example:
        >>> from lit_methods.bpe_mip.search_space import random_genotype
        >>> from lit_methods.bpe_mip.trial_images import LabelledTensor
        >>> pictures = LabelledTensor(torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64))
        >>> images = TrialImages(pictures, pictures, [0.5] * 3, [0.25] * 3)
        >>> recipe = Recipe(epochs=2, batch_size=4, lr=0.1, layers=3, fp=32, channels=4, cutout=0, image_size=8)
        >>> trial = Trials(images).train(random_genotype(torch.Generator()), recipe)
        >>> len(trial.accuracies), 0 <= trial.accuracy <= 1
        (2, True)
    """

    def __init__(
        self,
        images: TrialImages,
        recipe: Recipe | None = None,
        num_classes: int = 10,
        seed: int = 0,
        half: Literal["mixed", "true"] = "mixed",
    ) -> None:
        if half not in ("mixed", "true"):
            raise ValueError(f'half={half!r} must be "mixed" or "true"')
        self.images, self.recipe, self.num_classes, self.seed, self.half = images, recipe, num_classes, seed, half
        self._known: dict[str, float] = {}

    def __call__(self, genotype: Genotype, recipe: Recipe | None = None) -> float:
        """The estimate of an architecture, in [0, 1]; one that was made before is not made again.

        Raises:
            ValueError: neither this call nor the constructor names a recipe.
        """
        if (recipe := recipe or self.recipe) is None:
            raise ValueError("recipe: missing; give Trials(images, recipe) or trials(genotype, recipe)")
        job = Job(genotype, recipe, self.seed)
        if (key := job.key()) not in self._known:
            self._known[key] = self.train(genotype, recipe, self.seed).accuracy
        return self._known[key]

    def build(self, genotype: Genotype, recipe: Recipe, seed: int = 0) -> DartsCellNetwork:
        """The network of a trial with its first weights, on the device of the images."""
        with self._own_randomness(seed):
            network = build_network(genotype, recipe, self.num_classes)
        return network.to(self.images.device, memory_format=self.images.layout)  # type: ignore[call-overload]

    def train(
        self, genotype: Genotype, recipe: Recipe, seed: int = 0, watch: Callable[[], None] | None = None
    ) -> Trial:
        """Train a network from scratch.

        Args:
            genotype: of its cells.
            recipe: how.
            seed: of its weights, the order of the images, augmentation and drop path.
            watch: called after every step; what it raises ends the trial.

        Raises:
            FloatingPointError: the loss is not finite any more.
        """
        device = self.images.device.type
        plain = torch.autocast(device, enabled=False)  # around a trial there may be another precision
        exact = torch.backends.cudnn.flags(deterministic=True, benchmark=False)  # the same again, also on a GPU
        with self._own_randomness(seed + 1), plain, exact:
            return self._train(genotype, recipe, seed, watch)

    @contextmanager
    def _own_randomness(self, seed: int) -> Iterator[None]:
        device = self.images.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int(hash64(_INIT, seed)[0] >> 1))
            yield

    def _train(self, genotype: Genotype, recipe: Recipe, seed: int, watch: Callable[[], None] | None) -> Trial:
        begun, training = time.monotonic(), 0.0
        network = self.build(genotype, recipe, seed)
        on_gpu = self.images.device.type == "cuda"
        true_half = recipe.fp == 16 and on_gpu and self.half == "true"
        mixed = recipe.fp == 16 and on_gpu and not true_half
        if true_half:
            network.half()
        optimizer = SGD(
            network.parameters(), recipe.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, fused=not on_gpu or None
        )
        scaler = torch.amp.GradScaler("cuda", enabled=mixed)
        cast: Any = torch.autocast("cuda", torch.float16) if mixed else nullcontext()
        accuracies: list[float] = []
        weights: dict[str, Tensor] = {}
        for epoch in range(recipe.epochs):
            for group in optimizer.param_groups:
                group["lr"] = cosine_lr(epoch, recipe.epochs, recipe.lr)
            network.drop_path_prob = drop_path_at(epoch, recipe.epochs)
            started = time.monotonic()
            total = torch.zeros((), device=self.images.device)
            for image, label in self.images.epoch(recipe, seed, epoch):
                optimizer.zero_grad()
                with cast:
                    logits, auxiliary = network(image.half() if true_half else image)
                loss = trial_loss(logits, auxiliary, label)
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                clip_grad_norm_(network.parameters(), CLIP)
                scaler.step(optimizer)
                scaler.update()
                total += loss.detach()
                if watch is not None:
                    watch()
            if not torch.isfinite(total):
                raise FloatingPointError(f"the loss is not finite in epoch {epoch}: lr={recipe.lr} may be too high")
            training += time.monotonic() - started
            accuracies.append(self.accuracy(network, recipe.image_size))
            if accuracies[-1] > max(accuracies[:-1], default=-1):
                weights = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
        speed = recipe.epochs * len(self.images) / max(training, 1e-9)
        return Trial(max(accuracies), accuracies, time.monotonic() - begun, speed, weights)

    @torch.no_grad()
    def accuracy(self, network: nn.Module, size: int) -> float:
        """Top-1 of a network on the validation images, in [0, 1]; the network is in training mode again afterwards."""
        network.eval()
        dtype = next(network.parameters()).dtype
        right = torch.zeros((), dtype=torch.int64, device=self.images.device)
        for image, label in self.images.validation(size):
            right += (network(image.to(dtype))[0].argmax(1) == label).sum()
        network.train()
        return int(right) / len(self.images.val.labels)


def build_network(genotype: Genotype, recipe: Recipe, num_classes: int = 10) -> DartsCellNetwork:
    """The network that a recipe trains: cells of a genotype, an auxiliary head, fresh weights.

    Args:
        genotype: of its cells.
        recipe: gives channels, layers and image size.
        num_classes: outputs.
    """
    return DartsCellNetwork(genotype, recipe.channels, recipe.layers, num_classes, recipe.image_size, auxiliary=True)


def trial_loss(logits: Tensor, auxiliary: Tensor | None, label: Tensor) -> Tensor:
    """Cross entropy in nats, that of the auxiliary head added with weight 0.4; never in half precision.

    Args:
        logits: (B, num_classes).
        auxiliary: the auxiliary head's, or ``None`` without one.
        label: (B,) int64.

    Example:
        >>> round(float(trial_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]))), 4)  # 1.4 log 2
        0.9704
    """
    loss = F.cross_entropy(at_least_float32(logits), label)
    if auxiliary is None:
        return loss
    return loss + AUXILIARY_WEIGHT * F.cross_entropy(at_least_float32(auxiliary), label)
