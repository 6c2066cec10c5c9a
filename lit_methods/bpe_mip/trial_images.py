"""The images of many small trainings: one uint8 tensor on the device, augmented there in batches."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lit_methods.bpe_mip.search_space import Recipe
from lit_methods.functional.crops import crop_and_flip, resize_batch
from lit_methods.functional.cutout import cutout
from lit_methods.functional.draws import permutation, purpose, uniforms

PREPARED = 2048  # images that are augmented at once; networks take them in smaller batches
_ORDER, _AUGMENT = purpose("bpe_mip/order"), purpose("bpe_mip/augment")


@dataclass(frozen=True)
class LabelledTensor:
    """Pictures as they are stored, with a class each.

    Args:
        images: (N, 3, H, W) uint8 RGB.
        labels: (N,) int64.
    """

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> LabelledTensor:
        """The same on a device."""
        return LabelledTensor(self.images.to(device), self.labels.to(device))


class TrialImages:
    """What trials train and are judged on, kept on one device for all of them.

    An epoch's order and augmentation are functions of (seed, epoch, position), so they are the same on every device
    and whatever was trained before. The order of the augmentation is that of the official code: crop from 4 pixels of
    padding, flip, resize on 8 bits, normalise, cutout.

    Args:
        train: for training.
        val: the trial's accuracy is the one on these.
        mean: per channel, of images in [0, 1].
        std: per channel.
        flip: whether a mirrored picture still shows its class.

    Raises:
        ValueError: no images for training or validation.

    Source:
        official code. Ours: whole batches on the device instead of
        single pictures in worker processes, and draws by key.

    Example:
        >>> pictures = LabelledTensor(torch.zeros(6, 3, 32, 32, dtype=torch.uint8), torch.arange(6))
        >>> images = TrialImages(pictures, pictures, [0.5] * 3, [0.25] * 3)
        >>> recipe = Recipe(epochs=1, batch_size=4, lr=0.1, layers=3, fp=32, channels=4, cutout=0, image_size=16)
        >>> [tuple(x.shape) for x, y in images.epoch(recipe, seed=0, epoch=0)]
        [(4, 3, 16, 16), (2, 3, 16, 16)]
    """

    def __init__(
        self,
        train: LabelledTensor,
        val: LabelledTensor,
        mean: list[float],
        std: list[float],
        flip: bool = True,
    ) -> None:
        for name, part in (("train", train), ("val", val)):
            if not len(part.labels):
                raise ValueError(f"{name} has no images: a trial trains on some and is judged on others (val_fraction)")
        self.train, self.val, self.flip = train, val, flip
        self.fingerprint = _digest(train, val)
        self._mean, self._std = (torch.tensor(values, device=self.device).view(-1, 1, 1) for values in (mean, std))
        self._resized = {val.images.shape[-1]: val.images}  # validation images, by size

    def __len__(self) -> int:
        return len(self.train.labels)

    @property
    def device(self) -> torch.device:
        """Where the images are, and networks are trained."""
        return self.train.images.device

    @property
    def layout(self) -> torch.memory_format:
        """Of images and networks: channels last is faster on CPUs."""
        return torch.channels_last if self.device.type == "cpu" else torch.contiguous_format

    def to(self, device: torch.device | str) -> TrialImages:
        """The same images on a device."""
        moved = copy.copy(self)
        moved.train, moved.val = self.train.to(device), self.val.to(device)
        moved._mean, moved._std = self._mean.to(device), self._std.to(device)
        moved._resized = {moved.val.images.shape[-1]: moved.val.images}
        return moved

    def epoch(self, recipe: Recipe, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of one epoch of training: normalised images and their labels.

        A last batch of one image is left out: batch norm cannot use it.
        """
        order = permutation(len(self), _ORDER, seed, epoch)
        size = recipe.batch_size
        piece = size * max(1, PREPARED // size)
        for start in range(0, len(order), piece):
            chosen = order[start : start + piece]
            images = self._augmented(chosen, recipe, seed, epoch)
            labels = self.train.labels[torch.from_numpy(chosen).to(self.device)]
            for image, label in zip(images.split(size), labels.split(size), strict=True):
                if len(label) > 1:
                    yield image, label

    def validation(self, size: int, batch_size: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the validation images in a size: normalised images and their labels."""
        if size not in self._resized:
            self._resized[size] = resize_batch(self.val.images, size)
        images = self._resized[size]
        for image, label in zip(images.split(batch_size), self.val.labels.split(batch_size), strict=True):
            yield self._normalized(image), label

    def _augmented(self, positions: np.ndarray, recipe: Recipe, seed: int, epoch: int) -> Tensor:
        draws = uniforms(5, _AUGMENT, seed, np.full(len(positions), epoch), positions)
        images = self.train.images[torch.from_numpy(positions).to(self.device)]
        images = resize_batch(crop_and_flip(images, draws, flip=self.flip), recipe.image_size)
        images = self._normalized(images)
        if recipe.cutout:
            centers = torch.from_numpy((draws[:, 3:] * recipe.image_size).astype(np.int64)).to(self.device)
            images = cutout(images, centers, recipe.cutout)
        return images

    def _normalized(self, images: Tensor) -> Tensor:
        images = (images.float() / 255 - self._mean) / self._std
        return images.contiguous(memory_format=self.layout)


def _digest(*parts: LabelledTensor) -> str:
    """Which pictures these are, whatever they are called."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(str(tuple(part.images.shape)).encode())
        for tensor in (part.images, part.labels):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
