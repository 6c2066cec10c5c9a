"""ImageNet, or any pictures of your own in one folder per class."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from datamodules.classification import ImageClassificationDataModule
from datamodules.image_files import ImageFiles, ImageFolders
from lit_methods.functional.pictures import list_images, resize_side
from lit_methods.functional.processes import gather_objects
from lit_methods.functional.suggestions import shorten

TRAIN_FOLDERS = ("train", "ILSVRC2012_img_train")
TEST_FOLDERS = ("val", "ILSVRC2012_img_val")


class ImageNetDataModule(ImageClassificationDataModule):
    """ILSVRC-2012 (Russakovsky et al., 2015), or own pictures: ``train/<class>/*.jpg`` and ``val/<class>/*.jpg``.

    Batch: ``image`` (B, 3, image_size, image_size) float32 in [0, 1], ``label`` and ``index`` (B,) int64. ``index`` is
    the position in the training set or in the test set, classes and files sorted by name.

    Classes are the sorted names of the class folders, which for ImageNet is the usual order of the 1000 WordNet ids.
    ``val/`` is the test set; validation is a seeded, stratified part of ``train/``. Training images get torchvision's
    random resized crop (area ``crop_scale``, shape 3/4 to 4/3) and flip, decided by (seed, epoch, index); the others
    are resized and cropped in the middle. ``train/`` may be called ``ILSVRC2012_img_train`` and ``val/``
    ``ILSVRC2012_img_val``; for testing alone ``val/`` is enough. A ``classes.tsv`` in ``root`` (number, folder,
    name) gives readable class names, and without it a ``synset_words.txt`` (folder, then names with commas between
    them, of which the first counts). A subclass for another layout of folders overrides :meth:`find_classes`,
    :meth:`find_class_names` and :meth:`list_files`.

    Grey, palette, RGBA, CMYK and 16-bit grey files become RGB; EXIF rotation is ignored, as in torchvision.

    Args:
        root: holds ``train`` and ``val``.
        batch_size: per process.
        num_workers: worker processes per loader; decoding takes several milliseconds per picture.
        val_fraction: stratified part of the training images held out for validation, in [0, 1), at least one of each
            class that has two; 0 means none.
        seed: decides the validation split, the order of training, the augmentation and the sample of test images.
        image_size: side of the pictures, in pixels.
        resize_size: short side before the centre crop of evaluation, in pixels; ``None`` keeps the margin of 256 to 224
            (none up to 64 pixels), which is what ``predict`` does with own pictures.
        on_bad_image: ``raise`` stops at a file that cannot be read and names it. ``skip`` warns once per file, takes
            the next one in training (with ``per_class_batch``: leaves it out), leaves it out in evaluation, and counts
            (:attr:`bad_images`, :meth:`summary`).
        num_test_images: size of a sample that takes the place of the test set; ``None`` is the whole set.
        test_choice: ``"random"`` draws the sample by ``seed``, ``"first"`` takes the first images: of the first classes
            alone, as the files are sorted by class.
        per_class_batch: images of one class in a training batch, which then has ``batch_size / per_class_batch``
            classes; ``None`` mixes all classes.
        class_subset: numbers of the only classes to use, in every split; other class folders may be empty. ``None`` is
            all of them.
        crop_scale: smallest and largest area of a training crop, as a fraction of the picture's. Above 1 no crop fits,
            so that more pictures get the central one after ten tries.

    Raises:
        FileNotFoundError: ``root`` holds neither folder.
        ValueError: an argument is out of range, or train and val have different classes.

    Example:
        >>> import tempfile
        >>> from datamodules.demo import write_imagenet
        >>> with tempfile.TemporaryDirectory() as root:
        ...     data = ImageNetDataModule(str(write_imagenet(root)), batch_size=2, num_workers=0, image_size=64)
        ...     data.setup("test")
        ...     batch = next(iter(data.test_dataloader()))
        >>> data.class_names[:2], tuple(batch["image"].shape), batch["label"].tolist()
        (['tench', 'goldfish'], (2, 3, 64, 64), [0, 0])
    """

    train_folders: tuple[str, ...] = TRAIN_FOLDERS  # the first of them that is there
    test_folders: tuple[str, ...] = TEST_FOLDERS

    def __init__(
        self,
        root: str,
        batch_size: int = 256,
        num_workers: int = 2,
        val_fraction: float = 0.02,
        seed: int = 0,
        image_size: int = 224,
        resize_size: int | None = None,
        on_bad_image: Literal["raise", "skip"] = "raise",
        num_test_images: int | None = None,
        test_choice: Literal["random", "first"] = "random",
        per_class_batch: int | None = None,
        class_subset: list[int] | None = None,
        crop_scale: tuple[float, float] | list[float] = (0.08, 1.0),
    ) -> None:
        super().__init__(
            batch_size, num_workers, val_fraction, seed, num_test_images, test_choice, per_class_batch, class_subset
        )
        resize_size = resize_side(image_size) if resize_size is None else resize_size
        if not 1 <= image_size <= resize_size:
            raise ValueError(f"image_size must be between 1 and resize_size={resize_size}, got {image_size}")
        if on_bad_image not in ("raise", "skip"):
            raise ValueError(f'on_bad_image must be "raise" or "skip", got {on_bad_image!r}')
        self.root, self.on_bad_image = Path(root), on_bad_image
        self.image_size, self.resize_size, self.crop_scale = image_size, resize_size, _checked_scale(crop_scale)
        self.classes = self.find_classes()
        self.class_names = self.find_class_names()
        self.num_classes = len(self.classes)
        self._check_class_subset()
        self.mean, self.std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        self.input_size = [3, image_size, image_size]

    @property
    def bad_images(self) -> list[str]:
        """Files skipped so far by this process and its workers; after a stage, by all processes."""
        return [file for split in self._splits() for file in split.bad_files()]

    def summary(self) -> dict[str, float | str | list]:
        """Number and names of the files that were skipped."""
        return {"data/bad_images": len(self.bad_images), "data/bad_image_files": self.bad_images}

    def teardown(self, stage: str) -> None:
        """Tell all processes what each of them could not read."""
        for split in self._splits():
            found = gather_objects(torch.nonzero(split.bad).flatten())
            split.bad[torch.cat(found)] = True

    def _splits(self) -> list[ImageFiles]:
        return [split for split in (self._train, self._test) if isinstance(split, ImageFiles)]

    def read_split(self, train: bool) -> ImageFiles:
        """List the files of the training or the test set, and read the first as a check.

        Raises:
            FileNotFoundError: the folder is missing.
            ValueError: a class folder is empty, or the first picture cannot be read.
        """
        folder = self._folder(train)
        if folder is None:
            wanted = self.train_folders if train else self.test_folders
            use = "training and validation" if train else "testing and predicting"
            cure = "" if train else "; put some pictures of every class aside there"
            raise FileNotFoundError(
                f"{use} needs {' or '.join(wanted)} with class folders in root={str(self.root)!r}{cure}"
            )
        images = self.list_files(folder, train)
        if not images.skip and len(chosen := self._chosen(images)):
            chosen[0]
        return images

    def list_files(self, folder: Path, train: bool) -> ImageFiles:
        """The pictures of the folder of a split, with class numbers as in :attr:`classes`."""
        return ImageFolders(folder, self.classes, chosen=self.class_subset, **self._view_options())

    def find_classes(self) -> list[str]:
        """The classes in the order of their numbers, as folders are called.

        Raises:
            FileNotFoundError: there is neither a training nor a test folder.
            ValueError: these have different classes, or none.
        """
        train, test = self._folder(train=True), self._folder(train=False)
        if train is None and test is None:
            problem = "holds neither train nor val" if self.root.is_dir() else "does not exist"
            raise FileNotFoundError(
                f"root={str(self.root)!r} {problem}. Point root at the folder with train/<class>/*.jpg and "
                "val/<class>/*.jpg."
            )
        classes, test_classes = _class_folders(train or test), _class_folders(test or train)
        only_train, only_test = sorted(set(classes) - set(test_classes)), sorted(set(test_classes) - set(classes))
        if only_train or only_test:
            parts = [f"only in {train}: {shorten(only_train)}"] if only_train else []
            parts += [f"only in {test}: {shorten(only_test)}"] if only_test else []
            raise ValueError(f"training and test folders must have the same classes; {'; '.join(parts)}")
        return classes

    def find_class_names(self) -> list[str]:
        """The names of :attr:`classes` for people."""
        table = self.root / "classes.tsv"
        readable = _readable_names(table) if table.is_file() else _synset_names(self.root / "synset_words.txt")
        return [readable.get(name, name) for name in self.classes]

    def _folder(self, train: bool) -> Path | None:
        folders = [self.root / name for name in (self.train_folders if train else self.test_folders)]
        return next((folder for folder in folders if folder.is_dir()), None)

    def _view_options(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "image_size": self.image_size,
            "resize_size": self.resize_size,
            "skip": self.on_bad_image == "skip",
            "crop_scale": self.crop_scale,
        }


def _class_folders(folder: Path | None) -> list[str]:
    assert folder is not None
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        loose = " Its pictures lie loose: sort them into one folder per class." if list_images(folder) else ""
        raise ValueError(f"root={str(folder.parent)!r}: no class folders in {folder.name}/.{loose}")
    return names


def _readable_names(path: Path) -> dict[str, str]:
    """Read "number, folder, name" lines, separated by tabs."""
    names = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split("\t")
        if line and len(fields) != 3:
            raise ValueError(f"{path}, line {number}: expected number, folder and name separated by tabs, got {line!r}")
        if line:
            names[fields[1]] = fields[2]
    return names


def _synset_names(path: Path) -> dict[str, str]:
    """Read lines such as "n01440764 tench, Tinca tinca", of any folders; no file, no names."""
    if not path.is_file():
        return {}
    names = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        folder, words = [*line.split(None, 1), ""][:2]
        name = words.split(",")[0].strip()
        if not name:
            raise ValueError(f"{path}, line {number}: expected a folder and then names of its class, got {line!r}")
        names[folder] = name
    return names


def _checked_scale(scale: Sequence[float]) -> tuple[float, float]:
    numbers = [*scale] if isinstance(scale, (tuple, list)) else []
    if len(numbers) != 2 or not 0 < numbers[0] <= numbers[1] < math.inf:
        raise ValueError(
            f"crop_scale must be two numbers with 0 < low <= high, got {scale!r}; [0.08, 1.0] is the usual choice"
        )
    return numbers[0], numbers[1]
