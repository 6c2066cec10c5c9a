"""CIFAR-10, CIFAR-100 and scikit-learn's digits, held in memory as 32 x 32 RGB."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.cifar_files import (
    CLASS_NAMES,
    LAYOUTS as LAYOUTS,
    STATISTICS,
    find_files,
    read_cifar,
    read_digits,
    require_files,
)
from datamodules.classification import Batch, ImageClassificationDataModule, LabelledImages
from datamodules.draws import AUGMENT, uniforms
from datamodules.samplers import ResumableLoader, epochs_and_positions
from datamodules.transforms import crop_and_flip, resize_batch
from lit_methods.functional.cutout import cutout as paint_over

Tensors = tuple[Tensor, Tensor, Tensor]


class TensorImages(LabelledImages):
    """Small pictures in one uint8 tensor; augmentation is a padded crop and, where it makes sense, a flip.

    Args:
        images: ``(N, 3, H, W)`` uint8.
        labels: ``(N,)`` int64.
        seed: decides the augmentation.
        flip: whether the mirrored picture still shows its class.
        image_size: side to which pictures are brought after the crop and the flip; ``None`` leaves them as they are.
        centers: draw a pixel of each augmented picture, as ``cutout`` (B, 2) int64, row and column, in the batch.

    Example:
        >>> images = TensorImages(torch.arange(12, dtype=torch.uint8).view(2, 3, 1, 2), np.array([7, 8]))
        >>> images[1]["label"], images[1]["image"].flatten().tolist()
        (tensor(8), [6, 7, 8, 9, 10, 11])
    """

    def __init__(
        self,
        images: Tensor,
        labels: NDArray[np.int64],
        seed: int = 0,
        flip: bool = True,
        image_size: int | None = None,
        centers: bool = False,
    ) -> None:
        super().__init__(labels, seed)
        self.images, self.flip, self.image_size, self.centers = images, flip, image_size, centers

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> Batch:
        """Fetch a batch, with ``cutout`` where that is asked for."""
        batch = super().__getitems__(keys)
        if self.augment and self.centers:
            epochs, positions = epochs_and_positions(keys)
            draws = uniforms(5, AUGMENT, self.seed, epochs, self.rows[positions])[:, 3:]  # behind crop and flip
            batch["cutout"] = torch.from_numpy((draws * batch["image"].shape[-2:]).astype(np.int64))
        return batch

    def fetch(self, epochs: NDArray[np.int64], positions: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int64]]:
        """Pictures at these positions; the whole batch is cut and mirrored at once, each picture in its own way."""
        rows = self.rows[positions]
        images = self.images[torch.from_numpy(rows)]
        if self.augment:
            images = crop_and_flip(images, uniforms(3, AUGMENT, self.seed, epochs, rows), flip=self.flip)
        if self.image_size is not None:
            images = resize_batch(images, self.image_size)
        return images, rows

    def picture(self, position: int) -> Image.Image:
        """The picture at a position of the view, as RGB."""
        return Image.fromarray(self.images[int(self.rows[position])].permute(1, 2, 0).numpy())

    def tensors(self) -> Tensors:
        """All of the view as it is stored, without a copy where its rows are neighbours.

        Returns:
            Images ``(N, 3, H, W)`` uint8, labels and rows in the source ``(N,)`` int64, in the order of the positions.
        """
        first, last = (int(self.rows[0]), int(self.rows[-1]) + 1) if len(self) else (0, 0)
        rows = torch.from_numpy(self.rows)
        stretch = np.array_equal(self.rows, np.arange(first, last))
        images = self.images[first:last] if stretch else self.images[rows]
        return images, torch.from_numpy(self.targets), rows


class CIFARDataModule(ImageClassificationDataModule):
    """CIFAR-10 or CIFAR-100 (Krizhevsky, 2009), or scikit-learn's handwritten digits, which need no files.

    Batch: ``image`` (B, 3, 32, 32) float32 in [0, 1], ``label`` and ``index`` (B,) int64. ``index`` is the position in
    the training set or in the test set. Training images get a crop from 4 pixels of zero padding and, except
    digits, a flip, both decided by (seed, epoch, index).

    For cheap estimates and for architecture search (BPE, arXiv 2005.09917) there are four options. With ``image_size``
    the 8-bit images are resized, bilinear with antialiasing, training images after crop and flip. With ``cutout`` a
    square of each training image gets the colour :attr:`mean`, which :meth:`on_after_batch_transfer` paints on the
    device: normalising, as the first thing a network does, makes exactly 0 of it (in float32). Its centre is any pixel
    of the resized image, decided by (seed, epoch, index) too. ``val_source`` and ``split_halves`` choose what is
    validated on; with either of them ``val_fraction`` has no effect.

    With ``split_halves`` the first half of the training images trains weights and the rest trains an architecture: a
    batch is ``{"weights": batch, "alphas": batch}``, each half shuffled in its own way, and the epoch ends with the
    shorter half. Validation, as in the official code, is on the half of the architecture with the training
    augmentation, though in every epoch as it is drawn in epoch 0, so that epochs compare. Calibration images and
    ``class_counts`` are those of the first half.

    The python batches are read without running anything they contain. Files whose MD5 is not the official one, such as
    a subset or data of your own in this format, are read after one warning.

    ``digits`` are 1797 real 8 x 8 scans: each pixel becomes 4 x 4 (nearest neighbour, so no grey value is invented),
    grey becomes RGB, and a fixed stratified fifth, which ``seed`` does not change, is the test set.

    Args:
        name: which data set.
        root: the folder that holds ``cifar-10-batches-py`` (``cifar-100-python``), or that folder itself.
        batch_size: per process.
        num_workers: worker processes; the images are in memory, so 0 is fast enough for most networks.
        val_fraction: stratified part of the training images held out for validation, in [0, 1); 0 means none.
        seed: decides the validation split, the order of training, the augmentation and the sample of test images.
        download: let torchvision fetch missing files.
        num_test_images: size of a sample that takes the place of the test set; ``None`` is the whole set.
        test_choice: ``"random"`` draws the sample by ``seed``, ``"first"`` takes the first images.
        per_class_batch: images of one class in a training batch, which then has ``batch_size / per_class_batch``
            classes; ``None`` mixes all classes.
        class_subset: numbers of the only classes to use, in every split; ``None`` is all of them.
        image_size: side of the images, in pixels.
        cutout: side of the square that is cut out of a training image, in pixels; an odd one is one pixel short, and 0
            or 1 cuts out nothing.
        val_source: ``"test"`` validates on the test images, or the sample of them, and trains on all training images:
            to reproduce papers that did, since figures of a checkpoint chosen so are too good.
        split_halves: train on two halves side by side. Halves go by position in the whole set, before ``class_subset``.

    Attributes:
        flips: whether training images are mirrored, that is whether their mirror image still shows their class.

    Raises:
        ValueError: an argument is out of range, or ``split_halves`` meets one that would have no effect.

    Example:
        >>> data = CIFARDataModule("digits", batch_size=16)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["image"].shape, batch["image"].dtype
        (torch.Size([16, 3, 32, 32]), torch.uint8)
        >>> float(data.on_after_batch_transfer(batch, 0)["image"].max())
        1.0
    """

    def __init__(
        self,
        name: Literal["cifar10", "cifar100", "digits"] = "digits",
        root: str = "data",
        batch_size: int = 128,
        num_workers: int = 0,
        val_fraction: float = 0.1,
        seed: int = 0,
        download: bool = False,
        num_test_images: int | None = None,
        test_choice: Literal["random", "first"] = "random",
        per_class_batch: int | None = None,
        class_subset: list[int] | None = None,
        image_size: int = 32,
        cutout: int = 0,
        val_source: Literal["train", "test"] = "train",
        split_halves: bool = False,
    ) -> None:
        super().__init__(
            batch_size, num_workers, val_fraction, seed, num_test_images, test_choice, per_class_batch, class_subset
        )
        if name not in CLASS_NAMES:
            raise ValueError(f"name must be one of {', '.join(CLASS_NAMES)}, got {name!r}")
        self.name: str = name
        self.root, self.download = Path(root), download
        self.class_names = list(CLASS_NAMES[name])
        self.num_classes = len(self.class_names)
        self.mean, self.std = (list(values) for values in STATISTICS[name])
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {image_size}; 32 is that of the files")
        if cutout < 0:
            raise ValueError(f"cutout must be 0 (nothing) or more pixels, got {cutout}")
        if val_source not in ("train", "test"):
            raise ValueError(f'val_source must be "train" or "test", got {val_source!r}')
        if split_halves and val_source == "test":
            raise ValueError(
                'split_halves=True validates on the second half of the training images: val_source="test" would have '
                'no effect. Set val_source="train".'
            )
        if split_halves and per_class_batch is not None:
            raise ValueError(
                f"split_halves=True mixes all classes: per_class_batch={per_class_batch} would have no effect. "
                "Set per_class_batch=null."
            )
        self.image_size, self.cutout = image_size, cutout
        self.val_source, self.split_halves = val_source, split_halves
        self.flips = name != "digits"
        self.input_size = [3, image_size, image_size]
        self._tensors: dict[str, Tensors] = {}
        self._check_class_subset()

    def prepare_data(self) -> None:
        """Look for the files, and fetch them if ``download`` says so.

        Raises:
            FileNotFoundError: some are missing; names them and where to get them.
        """
        if self.name == "digits":
            return
        if self.download and find_files(self.name, self.root)[1]:
            from torchvision.datasets import CIFAR10, CIFAR100

            (CIFAR10 if self.name == "cifar10" else CIFAR100)(str(self.root), download=True)
        require_files(self.name, self.root)

    def read_split(self, train: bool) -> TensorImages:
        """Read the training or the test images.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged or of another format.
        """
        if self.name == "digits":
            images, labels = read_digits(train)
        else:
            images, labels = read_cifar(self.name, self.root, train)
        return TensorImages(images, labels, self.seed, self.flips, self.image_size, centers=self.cutout > 0)

    def train_dataloader(self) -> ResumableLoader | CombinedLoader:  # type: ignore[override]  # two with split_halves
        """Shuffled and augmented by (seed, epoch), resumable after any batch; two in step with ``split_halves``."""
        weights = super().train_dataloader()
        if not self.split_halves:
            return weights
        alphas = self._training_loader(self._ready(self._val, "fit"), part=1)
        return CombinedLoader({"weights": weights, "alphas": alphas}, mode="min_size")

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Turn uint8 into float32 in [0, 1] on the device and paint over what is cut out, in both halves of a batch.

        Raises:
            ValueError: the images do not have three channels.
        """
        if self.split_halves and "image" not in batch:
            return {half: self.on_after_batch_transfer(part, dataloader_idx) for half, part in batch.items()}
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        if (centers := batch.pop("cutout", None)) is not None:
            batch["image"] = paint_over(batch["image"], centers, self.cutout, torch.tensor(self.mean))
        return batch

    def training_tensors(self) -> Tensors:
        """All training images at once, for training many small networks on a device that holds the data.

        They are neither augmented, resized nor dealt out over processes. With ``split_halves``: the first half.

        Returns:
            Images ``(N, 3, 32, 32)`` uint8, labels ``(N,)`` int64 and ``index`` ``(N,)`` int64, the same tensors at
            each call: do not change them.

        Raises:
            RuntimeError: before ``setup("fit")``.
        """
        return self._whole("training", self._train)

    def validation_tensors(self) -> Tensors:
        """All validation images at once, as :meth:`training_tensors`; with ``split_halves``: the second half.

        Returns:
            Images ``(N, 3, 32, 32)`` uint8, labels ``(N,)`` int64 and ``index`` ``(N,)`` int64; N is 0 where nothing is
            held out. With ``val_source="test"`` the index is that in the test set.

        Raises:
            RuntimeError: before ``setup("fit")``.
        """
        return self._whole("validation", self._val)

    def _whole(self, name: str, images: LabelledImages | None) -> Tensors:
        view = self._ready(images, "fit")
        assert isinstance(view, TensorImages)
        if name not in self._tensors:
            self._tensors[name] = view.tensors()
        return self._tensors[name]

    def _fit_views(self) -> tuple[LabelledImages, LabelledImages]:
        if self.split_halves:
            return self._halves()
        if self.val_source == "test":
            source = self.read_split(train=True)
            return self._chosen(source.view(source.rows, augment=True)), self._test_view()
        return super()._fit_views()

    def _halves(self) -> tuple[LabelledImages, LabelledImages]:
        source = self.read_split(train=True)
        first, second = np.split(source.rows, [len(source) // 2])
        weights, alphas = (self._chosen(source.view(rows, augment=True)) for rows in (first, second))
        if not (len(weights) and len(alphas)):
            raise ValueError(
                f"split_halves=True leaves {len(weights)} and {len(alphas)} images in the two halves (class_subset="
                f"{self.class_subset}): both need some. Choose other classes, or set split_halves=False."
            )
        return weights, alphas
