"""What data modules of labelled pictures have in common: splits, loaders and the way from uint8 to [0, 1]."""

import copy
import operator
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, Self, TypeVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.class_batches import ClassBatches, ClassBatchSampler
from datamodules.draws import CALIBRATION, SPLIT, TEST, hash64, permutation
from datamodules.loaders import EvaluationLoader as EvaluationLoader, LoaderOptions, loader_options, ready
from datamodules.samplers import (
    EpochSampler,
    ResumableLoader,
    ShardSampler,
    epochs_and_positions as epochs_and_positions,
    refuse_replaced_samplers,
)
from datamodules.transforms import to_float
from lit_methods.functional.suggestions import shorten

Batch = dict[str, Tensor]
Images = TypeVar("Images", bound="LabelledImages")


class LabelledImages(Dataset[Batch]):
    """Pictures with a class each, fetched a batch at a time; some rows of a source, plain or augmented.

    Keys are positions in this view, or ``(epoch, position)`` pairs from :class:`~datamodules.samplers.EpochSampler`.
    A batch has ``image`` (B, 3, H, W) uint8, ``label`` and ``index`` (B,) int64, the row in the source.

    Args:
        labels: ``(N,)`` class of every row of the source.
        seed: decides the augmentation, together with the epoch and the row.
    """

    def __init__(self, labels: NDArray[np.int64], seed: int = 0) -> None:
        self.labels, self.seed = labels, seed
        self.rows = np.arange(len(labels))
        self.augment = False
        self.replace = False  # a picture that cannot be read gives way to the next one, so that batches stay full

    def view(self, rows: NDArray[np.int64], augment: bool = False, replace: bool = False) -> Self:
        """The same source with other rows; nothing is copied."""
        other = copy.copy(self)
        other.rows, other.augment, other.replace = rows, augment, replace
        return other

    @property
    def targets(self) -> NDArray[np.int64]:
        """Class of each position of this view."""
        return self.labels[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | tuple[int, int]) -> Batch:
        return {name: value[0] for name, value in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> Batch:
        """Fetch a batch: PyTorch's loader calls this instead of one ``__getitem__`` per picture."""
        images, rows = self.fetch(*epochs_and_positions(keys))
        return {"image": images, "label": torch.from_numpy(self.labels[rows]), "index": torch.from_numpy(rows)}

    @abstractmethod
    def fetch(self, epochs: NDArray[np.int64], positions: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int64]]:
        """Pictures (B, 3, H, W) uint8 at these positions of the view, and the rows of the source that they are."""

    @abstractmethod
    def picture(self, position: int) -> Image.Image:
        """The picture at a position of the view as it is stored: RGB, not cropped, not augmented."""


class ImageClassificationDataModule(LightningDataModule):
    """Base of the data modules for image classification.

    Subclasses set the five attributes below in ``__init__`` and implement :meth:`read_split`. The validation split is
    a stratified part of the training set, so the test set never chooses a checkpoint.

    Args:
        batch_size: per process.
        num_workers: worker processes per loader; 0 loads in the main process.
        val_fraction: part of the training images that is held out for validation, in [0, 1); 0 means no validation.
        seed: decides the split, the order of training, the augmentation and the sample of test images.
        num_test_images: size of a sample that takes the place of the test set, for what cannot afford all of it, such
            as an attack; ``None`` is the whole set. It keeps the order of the test set, and ``index`` its rows.
        test_choice: ``"random"`` draws the sample by ``seed``, and a smaller one is part of a larger one; ``"first"``
            takes the first images.
        per_class_batch: with a number, a training batch has up to so many images of each of ``batch_size /
            per_class_batch`` classes, see :class:`~datamodules.class_batches.ClassBatchSampler`; with several processes
            it may be empty. ``None`` mixes all classes.
        class_subset: numbers of the only classes to read images of, in every split. Class numbers, names and
            ``index`` stay those of the whole set, and so do the validation split and the augmentation of each image.
            ``None`` is all classes.

    Raises:
        ValueError: one of these is out of range; from :meth:`setup`: the test set has fewer images, or a split has none
            of ``class_subset``.
    """

    num_classes: int
    mean: list[float]  # per channel, of training images in [0, 1]; applied by the module, not here
    std: list[float]
    class_names: list[str]
    input_size: list[int]  # C, H, W

    def __init__(
        self,
        batch_size: int,
        num_workers: int,
        val_fraction: float,
        seed: int,
        num_test_images: int | None = None,
        test_choice: Literal["random", "first"] = "random",
        per_class_batch: int | None = None,
        class_subset: list[int] | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if per_class_batch is not None:
            _check_per_class_batch(per_class_batch, batch_size)
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 (load in the main process) or more, got {num_workers}")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction must be in [0, 1), got {val_fraction}; 0.1 holds out a tenth of train")
        if num_test_images is not None and num_test_images < 1:
            raise ValueError(
                f"num_test_images must be at least 1, got {num_test_images}; null takes the whole test set"
            )
        if test_choice not in ("random", "first"):
            raise ValueError(f'test_choice must be "random" or "first", got {test_choice!r}')
        self.batch_size, self.num_workers, self.val_fraction, self.seed = batch_size, num_workers, val_fraction, seed
        self.num_test_images, self.test_choice = num_test_images, test_choice
        self.per_class_batch, self.class_subset = per_class_batch, class_subset
        self._train: LabelledImages | None = None
        self._val: LabelledImages | None = None
        self._test: LabelledImages | None = None

    @abstractmethod
    def read_split(self, train: bool) -> LabelledImages:
        """Read the whole training set, or the test set."""

    def setup(self, stage: str) -> None:
        """Read what this stage needs: training and validation images, or the test images."""
        refuse_replaced_samplers(self.trainer)
        self._check_class_subset()
        if stage in ("fit", "validate") and self._train is None:
            self._train, self._val = self._fit_views()
            if not len(self._train):
                self._refuse_empty("training")
        if stage in ("test", "predict"):
            self._test_view()

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled and augmented by (seed, epoch), with ``per_class_batch`` by class; resumes after any batch."""
        return self._training_loader(self._ready(self._train, "fit"))

    def class_counts(self) -> Tensor:
        """How many training images of each class there are, without those held out for validation.

        Returns:
            ``(num_classes,)`` int64; 0 for classes outside ``class_subset``.

        Raises:
            RuntimeError: before ``setup("fit")``.
        """
        targets = torch.from_numpy(self._ready(self._train, "fit").targets)
        return torch.bincount(targets, minlength=self.num_classes)

    @property
    def test_images(self) -> LabelledImages:
        """The test set, or the sample of it: ``rows`` and ``targets`` of its positions, and ``picture(position)``.

        Raises:
            RuntimeError: before ``setup("test")``.
        """
        return self._ready(self._test, "test")

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """The held-out part of the training set; no loader at all when ``val_fraction`` is 0."""
        images = self._ready(self._val, "fit")
        return self._evaluation_loader(images, in_step=True, persistent=True) if len(images) else []

    def test_dataloader(self) -> DataLoader:
        """The test set, or the sample of it, in its own order."""
        return self._evaluation_loader(self._ready(self._test, "test"), in_step=True)

    def predict_dataloader(self) -> DataLoader:
        """The test set, or the sample of it, in its own order."""
        return self._evaluation_loader(self._ready(self._test, "predict"))

    def calibration_dataloader(self, num_images: int, augmented: bool = False) -> DataLoader:
        """A fixed sample of the training images, for passes that measure a network instead of training it.

        The sample is the beginning of a permutation that ``seed`` decides, in the same order every time; each image
        comes once, on one of the ranks. No global random state is read or changed. Run the batches through
        ``trainer.strategy.batch_to_device``, which includes :meth:`on_after_batch_transfer`.

        Args:
            num_images: over all ranks together.
            augmented: as in epoch 0 of training, instead of the plain view of evaluation.

        Raises:
            ValueError: there are not that many training images.
            RuntimeError: before ``setup("fit")``.
        """
        images = self._ready(self._train, "fit")
        if not 1 <= num_images <= len(images):
            raise ValueError(
                f"num_images must be between 1 and the {len(images)} training images that are not held out for "
                f"validation, got {num_images}"
            )
        chosen = images.rows[permutation(len(images), CALIBRATION, self.seed)[:num_images]]
        return self._evaluation_loader(images.view(chosen, augment=augmented))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn uint8 into float32 in [0, 1] on the device: a quarter of the bytes to move there.

        Raises:
            ValueError: the images do not have three channels.
        """
        image = batch["image"]
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"image must be (B, 3, H, W) RGB, got shape {tuple(image.shape)}; repeat grey three times")
        return batch | {"image": to_float(image)}

    def _check_class_subset(self) -> None:
        """Subclasses call this once they know ``num_classes``."""
        if self.class_subset is None:
            return
        chosen = [_plain_integer(number) for number in self.class_subset]
        if not chosen:
            raise ValueError("class_subset=[] leaves nothing; give class numbers, or null for all classes")
        if wrong := [number for number in chosen if type(number) is not int or not 0 <= number < self.num_classes]:
            raise ValueError(
                f"class_subset must hold class numbers from 0 to {self.num_classes - 1}, got "
                f"{shorten(map(repr, wrong))}"
            )
        if repeated := sorted({number for number in chosen if chosen.count(number) > 1}):
            raise ValueError(f"class_subset names some classes more than once: {shorten(repeated)}. Name each once.")
        self.class_subset = chosen

    def _chosen(self, images: Images) -> Images:
        """The part of a view that belongs to ``class_subset``."""
        if self.class_subset is None:
            return images
        chosen = np.isin(images.targets, self.class_subset)
        return images.view(images.rows[chosen], augment=images.augment, replace=images.replace)

    def _refuse_empty(self, split: str) -> None:
        raise ValueError(f"no {split} images of the classes class_subset={self.class_subset}; choose other classes")

    def _fit_views(self) -> tuple[LabelledImages, LabelledImages]:
        """The images for training and those for validation; there may be none of the latter."""
        source = self.read_split(train=True)
        kept, held = stratified_split(source.labels, self.val_fraction, self.seed)  # before classes are chosen
        if self.val_fraction and not len(held):
            raise ValueError(
                f"val_fraction={self.val_fraction} holds nothing out, since no class has two training images. "
                "Set val_fraction=0 to train without validation."
            )
        # In place of a broken picture the next one comes, perhaps of another class: not where classes are apart.
        train = self._chosen(source.view(kept, augment=True, replace=self.per_class_batch is None))
        return train, self._chosen(source.view(held))

    def _test_view(self) -> LabelledImages:
        """The test set, or the sample of it, read when it is first wanted."""
        if self._test is None:
            images = self._chosen(self.read_split(train=False))
            if not len(images):
                self._refuse_empty("test")
            self._test = self._test_sample(images)
        return self._test

    def _test_sample(self, images: LabelledImages) -> LabelledImages:
        if self.num_test_images is None:
            return images
        if self.num_test_images > len(images):
            raise ValueError(
                f"num_test_images={self.num_test_images}, but the test set has {len(images)} images; null takes all"
            )
        order = permutation(len(images), TEST, self.seed) if self.test_choice == "random" else np.arange(len(images))
        return images.view(images.rows[np.sort(order[: self.num_test_images])])

    def _ready(self, images: LabelledImages | None, stage: str) -> LabelledImages:
        return ready(images, self, "these images", stage)

    def _training_loader(self, images: LabelledImages, part: int = 0) -> ResumableLoader:
        options = self._options()
        options["persistent_workers"] = self.num_workers > 0
        if self.per_class_batch is None:
            loader = ResumableLoader(images, sampler=EpochSampler(images, self.seed, part=part), **options)
        else:
            classes = self.batch_size // self.per_class_batch
            sampler = ClassBatchSampler(images.targets, self.per_class_batch, classes, self.seed)
            options["batch_size"] = None  # an item is a batch
            loader = ResumableLoader(ClassBatches(images, sampler), sampler=sampler, **options)
        loader.trainer = self.trainer
        return loader

    def _evaluation_loader(
        self, images: LabelledImages, in_step: bool = False, persistent: bool = False
    ) -> EvaluationLoader:
        options = self._options()
        options["persistent_workers"] = persistent and self.num_workers > 0
        loader = EvaluationLoader(images, sampler=ShardSampler(images), **options)
        loader.in_step = in_step
        return loader

    def _options(self) -> LoaderOptions:
        return loader_options(self.batch_size, self.num_workers, self.seed)


def stratified_split(
    labels: NDArray[np.int64], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hold out a part of every class.

    Args:
        labels: ``(N,)`` class of each row.
        fraction: part to hold out, in [0, 1). Each class gives the nearest whole number, but at least one row if it has
            two, and never all of them.
        seed: decides which.

    Returns:
        Kept rows and held-out rows, both sorted; together they are 0 to N - 1.

    Example:
        >>> kept, held = stratified_split(np.array([0, 0, 1, 1, 1, 1]), 0.5, seed=0)
        >>> len(held), sorted([*kept.tolist(), *held.tolist()])
        (3, [0, 1, 2, 3, 4, 5])
    """
    keys = hash64(SPLIT, seed, np.arange(len(labels)))
    order = np.lexsort((keys, labels))  # class by class, each in random order
    held: list[NDArray[np.int64]] = []
    start = 0
    for size in np.unique(labels, return_counts=True)[1].tolist():
        count = min(max(1, round(fraction * size)), size - 1) if fraction else 0
        held.append(order[start : start + count])
        start += size
    chosen = np.zeros(len(labels), bool)
    chosen[np.concatenate(held) if held else []] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _check_per_class_batch(per_class_batch: int, batch_size: int) -> None:
    if per_class_batch < 1:
        raise ValueError(f"per_class_batch must be at least 1, got {per_class_batch}; null mixes the classes")
    if batch_size % per_class_batch:  # also where batch_size is smaller
        cure = -(-batch_size // per_class_batch) * per_class_batch
        raise ValueError(
            f"batch_size must be a multiple of per_class_batch={per_class_batch}, got {batch_size}: a batch holds so "
            f"many images of each of batch_size / per_class_batch classes. Set batch_size={cure}, for instance."
        )


def _plain_integer(number: Any) -> Any:
    """An integer of NumPy or PyTorch as ``int``; what is no integer as it is, a bool among it."""
    if isinstance(number, bool) or getattr(number, "dtype", None) in (np.dtype(bool), torch.bool):
        return number
    try:
        return operator.index(number)
    except TypeError:
        return number
