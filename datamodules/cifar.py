"""CIFAR-10, CIFAR-100 and scikit-learn's digits, held in memory as 32 x 32 RGB."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.classification import (
    Batch,
    ImageClassificationDataModule,
    LabelledImages,
    epochs_and_positions,
    stratified_split,
)
from datamodules.draws import AUGMENT, uniforms
from datamodules.pickles import load_arrays
from datamodules.samplers import ResumableLoader
from datamodules.transforms import crop_and_flip, resize_batch
from lit_methods.functional.cutout import cutout as paint_over

Tensors = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class _Layout:
    """The files of one data set, as its authors packed them, and their MD5."""

    folder: str
    archive: str
    label_key: str
    names_key: str
    train: dict[str, str]
    test: dict[str, str]
    meta: str
    meta_md5: str

    @property
    def md5(self) -> dict[str, str]:
        return self.train | self.test | {self.meta: self.meta_md5}

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(self.md5)


LAYOUTS = {
    "cifar10": _Layout(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        label_key="labels",
        names_key="label_names",
        train={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        meta="batches.meta",
        meta_md5="5ff9c542aee3614f3951f8cda6e48888",
    ),
    "cifar100": _Layout(
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        label_key="fine_labels",
        names_key="fine_label_names",
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        meta="meta",
        meta_md5="7973b15100ade9c7d40fb424638fde48",
    ),
}

CLASS_NAMES: dict[str, list[str]] = {
    "cifar10": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    "cifar100": (  # noqa: SIM905 (a hundred quoted words are harder to read)
        "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
        "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
        "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
        "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
        "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
        "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
        "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
    ).split(),
    "digits": list("0123456789"),
}

# cifar10: the values of the HRank paper's code and most others (its std is the mean of the images' own).
# cifar100: all pixels of the training set, the values in common use. digits: measured on the training split below.
STATISTICS: dict[str, tuple[list[float], list[float]]] = {
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
    "cifar100": ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
    "digits": ([0.3062, 0.3062, 0.3062], [0.3764, 0.3764, 0.3764]),
}

_PIXELS = 3 * 32 * 32


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
        if self.download and _find(self.name, self.root)[1]:
            from torchvision.datasets import CIFAR10, CIFAR100

            (CIFAR10 if self.name == "cifar10" else CIFAR100)(str(self.root), download=True)
        _require(self.name, self.root)

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


def read_digits(train: bool) -> tuple[Tensor, NDArray[np.int64]]:
    """Scikit-learn's digits as 32 x 32 RGB.

    Args:
        train: the four fifths for training and validation, or the test fifth.

    Returns:
        ``(N, 3, 32, 32)`` uint8 and ``(N,)`` int64: 1438 for training, 359 for the test.

    Example:
        >>> images, labels = read_digits(train=False)
        >>> tuple(images.shape), labels.dtype
        ((359, 3, 32, 32), dtype('int64'))
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    rows = stratified_split(labels, 0.2, seed=0)[0 if train else 1]  # 0 always: the test set is the same for everyone
    small = torch.from_numpy(np.rint(digits.images[rows] * (255 / 16)).astype(np.uint8))
    large = small.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    return large[:, None].repeat(1, 3, 1, 1), labels[rows]


def read_cifar(name: str, root: str | Path, train: bool) -> tuple[Tensor, NDArray[np.int64]]:
    """Read the original python batches.

    Args:
        name: ``cifar10`` or ``cifar100`` (its 100 fine labels).
        root: the folder that holds the data set's folder, or that folder itself.
        train: the training or the test images.

    Returns:
        ``(N, 3, 32, 32)`` uint8 and ``(N,)`` int64, in the order of the files.

    Raises:
        FileNotFoundError: a file is missing; names all that are.
        ValueError: a file is damaged, asks for code to be run, or holds something else.
    """
    layout, folder = LAYOUTS[name], _require(name, root)
    images, labels, unknown = [], [], []
    for file in (layout.meta, *(layout.train if train else layout.test)):
        data = (folder / file).read_bytes()
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != layout.md5[file]:
            unknown.append(file)
        content = load_arrays(data, str(folder / file))
        if file == layout.meta:
            _check_class_count(content, name, folder / file)
        else:
            batch_images, batch_labels = _parse_batch(content, name, folder / file)
            images.append(batch_images)
            labels.append(batch_labels)
    if unknown:
        rank_zero_warn(
            f"Not the official {name} files (MD5 differs), read all the same: {', '.join(unknown)} in {folder}"
        )
    pixels = torch.from_numpy(np.concatenate(images))
    return pixels.view(-1, 3, 32, 32), np.concatenate(labels)


def _parse_batch(content: Any, name: str, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    key = LAYOUTS[name].label_key
    if not isinstance(content, dict) or "data" not in content or key not in content:
        raise ValueError(f"{path} is not a batch of {name}: it must be a dict with 'data' and {key!r}")
    data, labels = content["data"], content[key]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != _PIXELS:
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(f"{path}: 'data' must be uint8 (N, {_PIXELS}), that is 32 x 32 RGB, got {found}")
    classes = len(CLASS_NAMES[name])
    values = np.asarray(labels)
    if values.shape != data.shape[:1] or values.dtype.kind not in "iu":
        raise ValueError(f"{path}: {key!r} must be {len(data)} whole numbers, one per image")
    if len(values) and not 0 <= values.min() <= values.max() < classes:
        raise ValueError(f"{path}: {key!r} must be 0 to {classes - 1}, got {values.min()} to {values.max()}")
    return data, values.astype(np.int64)


def _check_class_count(content: Any, name: str, path: Path) -> None:
    key = LAYOUTS[name].names_key
    names = content.get(key) if isinstance(content, dict) else None
    if not isinstance(names, list) or len(names) != len(CLASS_NAMES[name]):
        raise ValueError(f"{path}: {key!r} must list the {len(CLASS_NAMES[name])} class names of {name}")


def _find(name: str, root: str | Path) -> tuple[Path, list[str]]:
    """The folder of the data set, and the files that are missing there."""
    layout, root = LAYOUTS[name], Path(root)
    inside = any((root / file).is_file() for file in layout.files)
    folder = root if inside else root / layout.folder
    return folder, [file for file in layout.files if not (folder / file).is_file()]


def _require(name: str, root: str | Path) -> Path:
    layout, (folder, missing) = LAYOUTS[name], _find(name, root)
    if missing:
        raise FileNotFoundError(
            f"{name} is {'incomplete' if folder.is_dir() else 'missing'} in root={str(root)!r}: "
            f"no {', '.join(missing)} in {folder}. Unpack "
            f"https://www.cs.toronto.edu/~kriz/{layout.archive} so that root "
            f"holds {layout.folder}, or set download=True."
        )
    return folder
