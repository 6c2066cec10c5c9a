"""Picture files as a data set: read when they are needed, cropped, and left out or replaced where they are broken."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.classification import LabelledImages
from datamodules.draws import AUGMENT, uniforms
from datamodules.skipped_files import SkippedFiles
from datamodules.transforms import CROP_DRAWS, random_resized_crop, resize_and_center_crop, to_uint8
from lit_methods.functional.pictures import BadImageError, list_images, read_rgb
from lit_methods.functional.suggestions import shorten


class ImageFiles(SkippedFiles, LabelledImages):
    """Picture files with a class each, read when they are needed.

    Args:
        folder: holds the files.
        files: their paths in it.
        labels: ``(N,)`` int64 class of each.
        seed: decides the augmentation.
        image_size: side of the square that comes out, in pixels.
        resize_size: short side before the centre crop, in pixels.
        skip: go on without a picture that cannot be read. In training the next readable one of the split takes its
            place, so batches stay full and every rank and every resumed run agrees; in evaluation it is left out,
            so nothing counts twice.
        crop_scale: smallest and largest area of a training crop, as a fraction of the picture's.
    """

    cure = "Remove"

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        labels: NDArray[np.int64],
        seed: int = 0,
        image_size: int = 224,
        resize_size: int = 256,
        skip: bool = False,
        crop_scale: tuple[float, float] = (0.08, 1.0),
    ) -> None:
        SkippedFiles.__init__(self, folder, files, skip)
        LabelledImages.__init__(self, labels, seed)
        self.image_size, self.resize_size, self.crop_scale = image_size, resize_size, crop_scale

    def picture(self, position: int) -> Image.Image:
        """The whole picture at a position of the view, as RGB.

        Raises:
            BadImageError: it cannot be read, whatever ``skip`` says.
        """
        return read_rgb(self.path(int(self.rows[position])))

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
            self.leave_out(row, error)
            return None

    def _transform(self, image: Image.Image, epoch: int, row: int) -> Tensor:
        if self.augment:
            draws = uniforms(CROP_DRAWS + 1, AUGMENT, self.seed, epoch, row)[0]
            return to_uint8(random_resized_crop(image, draws, self.image_size, self.crop_scale))
        return to_uint8(resize_and_center_crop(image, self.resize_size, self.image_size))


class ImageFolders(ImageFiles):
    """Picture files in one folder per class.

    Args:
        folder: holds the class folders.
        classes: their paths in it; the position is the class's number.
        seed, image_size, resize_size, skip, crop_scale: as in :class:`ImageFiles`.
        chosen: numbers of the classes that will be used; ``None`` is all of them. Folders after the last of these are
            not looked into, and others may be empty. Those before it are counted, so that a picture has the same row,
            and so the same split and augmentation, as in the whole set.

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
        crop_scale: tuple[float, float] = (0.08, 1.0),
        chosen: Collection[int] | None = None,
    ) -> None:
        used = range(len(classes)) if chosen is None else chosen
        names = [list_images(folder / name) for name in classes[: max(used) + 1]]
        if empty := [classes[number] for number in sorted(used) if not names[number]]:
            raise ValueError(f"no pictures in these class folders of {folder}: {shorten(empty)}. Remove or fill them.")
        labels = np.repeat(np.arange(len(names)), [len(files) for files in names])
        files = [f"{name}/{file}" for name, files in zip(classes, names, strict=False) for file in files]
        super().__init__(folder, files, labels, seed, image_size, resize_size, skip, crop_scale)
        self.classes = classes
