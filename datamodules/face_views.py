"""Faces as training wants them: of one size, mirrored by chance, some of them degraded copies."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.draws import uniforms
from datamodules.low_resolution import low_resolution
from datamodules.transforms import to_uint8
from lit_methods.functional.draws import purpose
from lit_methods.functional.pictures import BadImageError, read_rgb
from lit_methods.functional.processes import gather_objects, in_company

VIEW = purpose("face_views/view")


class FaceViews:
    """Pictures of a table for training, for :class:`~datamodules.branches.BranchBatches`.

    A picture is resized (bilinear) to a square, and mirrored in half of the cases, as its seed, epoch and number say.
    Positions beyond the table are copies of its pictures: those are then brought down by a factor that is drawn each
    time, and back to their size.

    Args:
        root: paths count from it.
        names: ``(N,)`` paths of the files, as bytes.
        image_size: side of the square, in pixels.
        seed: decides the views, together with the epoch and the number.
        scales: factors of the copies, which are of ``image_size``, not of the stored picture; empty: there are none.
        in_memory: keep the resized pictures once they were read, in each process that reads.

    Source:
        DDL, arXiv 2002.03662, official code: horizontal flip alone. The copies are ours.
    """

    def __init__(
        self,
        root: Path,
        names: NDArray[np.bytes_],
        image_size: int,
        seed: int = 0,
        scales: Sequence[int] = (),
        in_memory: bool = False,
    ) -> None:
        self.root, self.names, self.image_size, self.seed, self.scales = root, names, image_size, seed, list(scales)
        self._kept: dict[int, Image.Image] | None = {} if in_memory else None

    def __call__(self, positions: NDArray[np.int64], epochs: NDArray[np.int64], numbers: NDArray[np.int64]) -> Tensor:
        """Fetch pictures.

        Args:
            positions: ``(n,)`` places in the table.
            epochs: ``(n,)``.
            numbers: ``(n,)``, different for each picture of an epoch.

        Returns:
            ``(n, 3, image_size, image_size)`` uint8.

        Raises:
            BadImageError: a picture cannot be read.
        """
        views = torch.empty((len(positions), 3, self.image_size, self.image_size), dtype=torch.uint8)
        draws = uniforms(2, VIEW, self.seed, np.asarray(epochs, np.int64), np.asarray(numbers, np.int64))
        for view, position, (flip, scale) in zip(views, positions.tolist(), draws.tolist(), strict=True):
            view.copy_(to_uint8(self._view(position, flip, scale)))
        return views

    def path(self, position: int) -> Path:
        """The file of a place in the table, or of a copy."""
        return self.root / os.fsdecode(self.names[position % len(self.names)])

    def picture(self, position: int) -> Image.Image:
        """The picture of a place as it is stored, as RGB.

        Raises:
            BadImageError: it cannot be read.
        """
        try:
            return read_rgb(self.path(position))
        except BadImageError as error:
            raise BadImageError(f'{error}. Remove the file, or set on_bad_image="skip".') from error

    def unreadable(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of some places whose picture cannot be read: all are read, each by one of the processes.

        Args:
            positions: ``(n,)``, the same in all processes, which all have to call.
        """
        world = torch.distributed.get_world_size() if in_company() else 1
        mine = positions[torch.distributed.get_rank() if in_company() else 0 :: world]
        with ThreadPoolExecutor() as pool:
            bad = [position for position, good in zip(mine, pool.map(self._readable, mine), strict=True) if not good]
        return np.sort(np.concatenate(gather_objects(np.array(bad, np.int64))))

    def _readable(self, position: int) -> bool:
        try:
            read_rgb(self.path(position))
        except BadImageError:
            return False
        return True

    def _sized(self, row: int) -> Image.Image:
        if self._kept is not None and row in self._kept:
            return self._kept[row]
        side = (self.image_size, self.image_size)
        image = self.picture(row)
        image = image if image.size == side else image.resize(side, Image.Resampling.BILINEAR)
        if self._kept is not None:
            self._kept[row] = image
        return image

    def _view(self, position: int, flip: float, scale: float) -> Image.Image:
        image = self._sized(position % len(self.names))
        if position >= len(self.names):
            image = low_resolution(image, self.scales[int(scale * len(self.scales))])
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip < 0.5 else image
