"""ImageNet, or any pictures of your own in one folder per class."""

import os
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.classification import ImageClassificationDataModule, LabelledImages
from datamodules.draws import AUGMENT, uniforms
from datamodules.transforms import CROP_DRAWS, random_resized_crop, resize_and_center_crop, to_uint8
from lit_methods.functional.pictures import BadImageError, list_images, read_rgb, resize_side
from lit_methods.functional.processes import gather_objects
from lit_methods.functional.suggestions import shorten

TRAIN_FOLDERS = ("train", "ILSVRC2012_img_train")
TEST_FOLDERS = ("val", "ILSVRC2012_img_val")


class ImageFolders(LabelledImages):
    """Picture files in one folder per class, read when they are needed.

    Args:
        folder: holds the class folders.
        classes: their names; the position is the class's number.
        seed: decides the augmentation.
        image_size: side of the square that comes out, in pixels.
        resize_size: short side before the centre crop, in pixels.
        skip: go on without a picture that cannot be read. In training the next readable one of the split takes its
            place, so batches stay full and every rank and every resumed run agrees; in evaluation it is left out,
            so nothing counts twice.

    Raises:
        ValueError: a class folder has no pictures.
    """

    def __init__(
        self,
        folder: Path,
        classes: list[str],
        seed: int = 0,
        image_size: int = 224,
        resize_size: int = 256,
        skip: bool = False,
    ) -> None:
        names = [list_images(folder / name) for name in classes]
        if empty := [name for name, files in zip(classes, names, strict=True) if not files]:
            raise ValueError(f"no pictures in these class folders of {folder}: {shorten(empty)}. Remove or fill them.")
        super().__init__(np.repeat(np.arange(len(classes)), [len(files) for files in names]), seed)
        self.folder, self.classes = folder, classes
        # One array rather than a million strings: workers would copy those, page by page, as they count references.
        self.names = np.array([os.fsencode(name) for files in names for name in files])
        self.image_size, self.resize_size, self.skip = image_size, resize_size, skip
        self.bad = torch.zeros(len(self.names), dtype=torch.bool)
        if skip:
            self.bad.share_memory_()  # workers mark here, the main process reads

    def path(self, row: int) -> Path:
        """The file of a row."""
        return self.folder / self.classes[self.labels[row]] / os.fsdecode(self.names[row])

    def bad_files(self) -> list[str]:
        """Files that this process or its workers could not read so far."""
        return [str(self.path(row)) for row in torch.nonzero(self.bad).flatten().tolist()]

    def fetch(self, epochs: NDArray[np.int64], positions: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int64]]:
        """Pictures at these positions; with ``skip``, unreadable ones are replaced in training, else left out."""
        images, rows = [], []
        for epoch, position in zip(epochs.tolist(), positions.tolist(), strict=True):
            for step in range(len(self.rows) if self.skip and self.replace else 1):
                row = int(self.rows[(position + step) % len(self.rows)])
                if (image := self._read(row)) is not None:
                    images.append(self._transform(image, epoch, row))
                    rows.append(row)
                    break
            else:
                if self.replace:
                    raise ValueError(f"not one readable picture among the {len(self.rows)} of {self.folder}")
        size = (0, 3, self.image_size, self.image_size)
        return torch.stack(images) if images else torch.empty(size, dtype=torch.uint8), np.array(rows, np.int64)

    def _read(self, row: int) -> Image.Image | None:
        try:
            return read_rgb(self.path(row))
        except BadImageError as error:
            if not self.skip:
                raise BadImageError(f'{error}. Remove the file, or set on_bad_image="skip".') from error
            if not self.bad[row]:
                self.bad[row] = True
                warnings.warn(f"skipped: {error}", stacklevel=2)
            return None

    def _transform(self, image: Image.Image, epoch: int, row: int) -> Tensor:
        if self.augment:
            draws = uniforms(CROP_DRAWS + 1, AUGMENT, self.seed, epoch, row)[0]
            return to_uint8(random_resized_crop(image, draws, self.image_size))
        return to_uint8(resize_and_center_crop(image, self.resize_size, self.image_size))


class ImageNetDataModule(ImageClassificationDataModule):
    """ILSVRC-2012 (Russakovsky et al., 2015), or own pictures: ``train/<class>/*.jpg`` and ``val/<class>/*.jpg``.

    Batch: ``image`` (B, 3, image_size, image_size) float32 in [0, 1], ``label`` and ``index`` (B,) int64. ``index`` is
    the position in the training set or in the test set, classes and files sorted by name.

    Classes are the sorted names of the class folders, which for ImageNet is the usual order of the 1000 WordNet ids.
    ``val/`` is the test set; validation is a seeded, stratified part of ``train/``. Training images get torchvision's
    random resized crop (area 0.08 to 1, shape 3/4 to 4/3) and flip, decided by (seed, epoch, index); the others are
    resized and cropped in the middle. ``train/`` may be called ``ILSVRC2012_img_train`` and ``val/``
    ``ILSVRC2012_img_val``; for testing alone ``val/`` is enough. A ``classes.tsv`` in ``root`` (number, folder,
    name) gives readable class names.

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
            the next one in training, leaves it out in evaluation, and counts (:attr:`bad_images`, :meth:`summary`).
        num_test_images: size of a sample that takes the place of the test set; ``None`` is the whole set.
        test_choice: ``"random"`` draws the sample by ``seed``, ``"first"`` takes the first images: of the first classes
            alone, as the files are sorted by class.

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
    ) -> None:
        super().__init__(batch_size, num_workers, val_fraction, seed, num_test_images, test_choice)
        resize_size = resize_side(image_size) if resize_size is None else resize_size
        if not 1 <= image_size <= resize_size:
            raise ValueError(f"image_size must be between 1 and resize_size={resize_size}, got {image_size}")
        if on_bad_image not in ("raise", "skip"):
            raise ValueError(f'on_bad_image must be "raise" or "skip", got {on_bad_image!r}')
        self.root, self.on_bad_image = Path(root), on_bad_image
        self.image_size, self.resize_size = image_size, resize_size
        self.classes = self._find_classes()
        readable = _readable_names(self.root / "classes.tsv")
        self.class_names = [readable.get(name, name) for name in self.classes]
        self.num_classes = len(self.classes)
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

    def _splits(self) -> list[ImageFolders]:
        return [split for split in (self._train, self._test) if isinstance(split, ImageFolders)]

    def read_split(self, train: bool) -> ImageFolders:
        """List the files of the training or the test set, and read the first as a check.

        Raises:
            FileNotFoundError: the folder is missing.
            ValueError: a class folder is empty, or the first picture cannot be read.
        """
        folder = self._folder(train)
        if folder is None:
            wanted = TRAIN_FOLDERS if train else TEST_FOLDERS
            use = "training and validation" if train else "testing and predicting"
            cure = "" if train else "; put some pictures of every class aside there"
            raise FileNotFoundError(
                f"{use} needs {' or '.join(wanted)} with class folders in root={str(self.root)!r}{cure}"
            )
        skip = self.on_bad_image == "skip"
        images = ImageFolders(folder, self.classes, self.seed, self.image_size, self.resize_size, skip)
        if not skip:
            images[0]
        return images

    def _folder(self, train: bool) -> Path | None:
        folders = [self.root / name for name in (TRAIN_FOLDERS if train else TEST_FOLDERS)]
        return next((folder for folder in folders if folder.is_dir()), None)

    def _find_classes(self) -> list[str]:
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


def _class_folders(folder: Path | None) -> list[str]:
    assert folder is not None
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        loose = " Its pictures lie loose: sort them into one folder per class." if list_images(folder) else ""
        raise ValueError(f"root={str(folder.parent)!r}: no class folders in {folder.name}/.{loose}")
    return names


def _readable_names(path: Path) -> dict[str, str]:
    """Read "number, folder, name" lines, separated by tabs; no file, no names."""
    if not path.is_file():
        return {}
    names = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split("\t")
        if line and len(fields) != 3:
            raise ValueError(f"{path}, line {number}: expected number, folder and name separated by tabs, got {line!r}")
        if line:
            names[fields[1]] = fields[2]
    return names
