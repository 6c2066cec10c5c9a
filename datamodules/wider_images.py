"""Pictures with faces as data sets: random views to train on, whole pictures to evaluate on."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.face_boxes_views import ViewOptions, augment, view_draws
from datamodules.listed_pictures import ListedPictures
from datamodules.samplers import epochs_and_positions
from datamodules.skipped_files import SkippedFiles
from datamodules.wider_files import INVALID
from datamodules.wider_truth import FaceTruth
from lit_methods.functional.pictures import BadImageError, read_rgb

Boxes = NDArray[np.float32]
View = Callable[[Image.Image, Boxes, int, int], tuple[Tensor, Tensor]]
DROPPED = ("small", "outside", "invalid")  # why a face is not trained on


@dataclass(frozen=True)
class RandomView:
    """A random view of a picture, decided by the seed, the epoch and the picture's number alone.

    Args:
        options: of views.
        seed: of the draws.
    """

    options: ViewOptions
    seed: int

    def __call__(self, picture: Image.Image, boxes: Boxes, epoch: int, row: int) -> tuple[Tensor, Tensor]:
        """The view ``(3, S, S)`` uint8 and the boxes in it.

        Args:
            picture: RGB.
            boxes: ``(n, 4)`` float32, xyxy.
            epoch: of training.
            row: number of the picture.
        """
        return augment(picture, boxes, self.options, view_draws(self.seed, epoch, row))


class FaceBoxViews(SkippedFiles, Dataset[dict[str, Any]]):
    """Pictures to train on, a random view of each in every epoch.

    Keys are ``(epoch, position)``, as :class:`~datamodules.samplers.EpochSampler` gives them; a plain position is one
    of epoch 0. A batch has ``image`` (B, 3, S, S) uint8, ``boxes``, a list of (n, 4) float32, xyxy in pixels of the
    view, and ``index`` (B,) int64, the picture's number in the list.

    Args:
        folder: paths count from it.
        files: paths of all pictures of a list.
        boxes: ``(M, 4)`` float32, xyxy, of the faces to train on, picture by picture.
        ends: ``(N,)`` where those of each picture end.
        rows: numbers of the pictures to train on.
        view: picture, its boxes, epoch and number to ``(3, S, S)`` uint8 and the boxes in it.
        skip: in place of a picture that cannot be read take the next one that can, so that batches stay full and every
            rank and every resumed run agrees.
        in_memory: keep the decoded pictures, in each process that reads.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        boxes: Boxes,
        ends: NDArray[np.int64],
        rows: NDArray[np.int64],
        view: View,
        skip: bool = False,
        in_memory: bool = False,
    ) -> None:
        super().__init__(folder, files, skip)
        self.boxes, self.ends, self.rows, self.view = boxes, ends, rows, view
        self._kept: dict[int, Image.Image] | None = {} if in_memory else None

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, rows: NDArray[np.int64]) -> Self:
        """The same pictures, others of them to train on.

        Args:
            rows: their numbers.
        """
        other = copy.copy(self)
        other.rows = rows
        return other

    def boxes_of(self, row: int) -> Boxes:
        """The faces of a picture that are trained on, ``(n, 4)``."""
        return self.boxes[self.ends[row - 1] if row else 0 : self.ends[row]]

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """One picture, as :meth:`__getitems__` without the first dimension."""
        return {name: part[0] for name, part in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> dict[str, Any]:
        """The batch of these keys."""
        images, boxes, rows = [], [], []
        for epoch, position in np.stack(epochs_and_positions(keys), 1).tolist():
            row, picture = self._next(position)
            image, inside = self.view(picture, self.boxes_of(row), epoch, row)
            images.append(image)
            boxes.append(inside)
            rows.append(row)
        return {"image": torch.stack(images), "boxes": boxes, "index": torch.tensor(rows, dtype=torch.int64)}

    def _next(self, position: int) -> tuple[int, Image.Image]:
        """The picture at a position, or the next that can be read, and its number."""
        for step in range(len(self) if self.skip else 1):
            row = int(self.rows[(position + step) % len(self)])
            if (picture := self._read(row)) is not None:
                return row, picture
        raise ValueError(f"not one readable picture among the {len(self)} of {self.folder}")

    def _read(self, row: int) -> Image.Image | None:
        if self._kept is not None and row in self._kept:
            return self._kept[row]
        try:
            picture = read_rgb(self.path(row))
        except BadImageError as error:
            self.leave_out(row, error)
            return None
        if self._kept is not None:
            self._kept[row] = picture
        return picture


class WholePictures(ListedPictures):
    """Pictures as they are, with all of their faces, to evaluate on.

    A batch has ``image``, a list of (3, H, W) uint8 of different sizes, ``boxes``, a list of (n, 4) float32, xyxy in
    pixels with x2 = x + w and y2 = y + h, ``attributes``, a list of (n, 6) int64, ``keep_<level>``, lists of (n,) bool,
    where levels are known, ``name``, a list of event and stem, and ``index`` (B,) int64.

    Args:
        folder: paths count from it; ``None``: the pictures are not read, and there is no ``image``.
        truth: the pictures and their faces.

    Example:
        >>> truth = FaceTruth(["a/1"], [np.array([[1.0, 2, 3, 4]])], [np.zeros((1, 6), np.int64)], {}, [])
        >>> WholePictures(None, truth).__getitems__([0])["boxes"]
        [tensor([[1., 2., 4., 6.]])]
    """

    def __init__(self, folder: Path | None, truth: FaceTruth) -> None:
        super().__init__(folder, truth)
        self.truth = truth

    def known(self, numbers: Sequence[int]) -> dict[str, list[Any]]:
        """``boxes``, ``attributes`` and the levels."""
        truth = self.truth
        found: dict[str, list[Any]] = {
            "boxes": [torch.from_numpy(xyxy(truth.boxes[number])) for number in numbers],
            "attributes": [torch.tensor(truth.attributes[number]) for number in numbers],
        }
        for level, masks in truth.keep.items():
            found[f"keep_{level}"] = [torch.tensor(masks[number]) for number in numbers]
        return found


def xyxy(boxes: NDArray[Any]) -> Boxes:
    """Corners of boxes: x2 = x + w, y2 = y + h.

    Args:
        boxes: ``(n, 4)`` x, y, w, h.

    Returns:
        ``(n, 4)`` float32.

    Example:
        >>> xyxy(np.array([[10, 20, 5, 0]])).tolist()
        [[10.0, 20.0, 15.0, 20.0]]
    """
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:4]], 1).astype(np.float32)


def usable_faces(faces: NDArray[np.int64], keep_invalid: bool = False) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Which faces are trained on.

    Left out are those below 2 pixels in width or height (those of no area among them), those that begin left of or
    above the picture, and those marked as invalid.

    Args:
        faces: ``(M, 10)`` of a list.
        keep_invalid: take those marked as invalid.

    Returns:
        ``(M,)`` bool, and the number of faces left out as ``small``, ``outside`` and ``invalid``, each counted once.

    Source:
        Section 4: the first two are the rule of DSFD, the third is ours.

    Example:
        >>> rows = np.array([[5, 5, 9, 9, 0, 0, 0, 0, 0, 0], [5, 5, 9, 0, 0, 0, 0, 1, 0, 0]])
        >>> usable_faces(rows)
        (array([ True, False]), {'small': 1, 'outside': 0, 'invalid': 0})
    """
    small = (faces[:, 2:4] < 2).any(1)
    outside = (faces[:, :2] < 0).any(1) & ~small
    invalid = (faces[:, 4 + INVALID] == 1) & ~small & ~outside & (not keep_invalid)
    counts = {name: int(each.sum()) for name, each in zip(DROPPED, (small, outside, invalid), strict=True)}
    return ~(small | outside | invalid), counts
