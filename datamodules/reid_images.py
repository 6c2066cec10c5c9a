"""Pictures of people as data sets: of one size, for training cropped, mirrored and partly erased, or to be ranked."""

import math
import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.draws import AUGMENT, uniforms
from datamodules.low_resolution import factor_of, low_resolution
from datamodules.reid_files import EvaluationFiles, ReIDFiles
from datamodules.transforms import to_uint8
from lit_methods.functional.draws import purpose
from lit_methods.functional.pictures import BadImageError, read_rgb

Batch = dict[str, Tensor]
Key = int | tuple[int, ...]

TRIES = 10
CROP_DRAWS = 2 * TRIES + 2  # numbers that body_crop_box takes
ERASE_DRAWS = 2 * TRIES + 3  # numbers that erased_rectangles takes
CAMERA_AUGMENT = purpose("reid_images/camera")


def body_crop_box(
    width: int,
    height: int,
    draws: NDArray[np.float64],
    area: tuple[float, float] = (0.64, 1.0),
    aspect: tuple[float, float] = (2.0, 3.0),
) -> tuple[int, int, int, int]:
    """Choose a random upright window of a picture, from given numbers.

    Args:
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        draws: ``(CROP_DRAWS,)`` in [0, 1): area and shape of up to ten tries, then the corner.
        area: smallest and largest area, as a fraction of the picture's.
        aspect: smallest and largest height over width, drawn evenly.

    Returns:
        left, top, right, bottom in whole pixels; the whole picture where ten tries find no window.

    Source:
        ``RandomSizedRectCrop`` of open-reid.

    Example:
        >>> body_crop_box(64, 128, np.full(CROP_DRAWS, 0.25))
        (3, 3, 55, 119)
    """
    for area_draw, shape_draw in draws[: 2 * TRIES].reshape(TRIES, 2).tolist():
        size = width * height * (area[0] + area_draw * (area[1] - area[0]))
        shape = aspect[0] + shape_draw * (aspect[1] - aspect[0])
        w, h = round(math.sqrt(size / shape)), round(math.sqrt(size * shape))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draws[-2] * (width - w + 1)), int(draws[-1] * (height - h + 1))
            return left, top, left + w, top + h
    return 0, 0, width, height


def erased_rectangles(
    draws: NDArray[np.float64],
    height: int,
    width: int,
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 0.2),
    aspect: float = 0.3,
) -> NDArray[np.int64]:
    """Choose what random erasing takes away of each picture of a batch, from given numbers.

    Args:
        draws: ``(B, ERASE_DRAWS)`` in [0, 1): whether, then area and shape of up to ten tries, then the corner.
        height: of the pictures, in pixels.
        width: of the pictures, in pixels.
        probability: that something is taken away.
        area: smallest and largest area, as a fraction of the picture's.
        aspect: smallest height over width; the largest is one over it, drawn evenly between them.

    Returns:
        ``(B, 4)`` int64: y0, x0, y1, x1, the ends not included; all 0 where nothing is taken away.

    Source:
        Random erasing (arXiv 1708.04896) as in the "Theory and Practice" code, which tries a hundred times; ten fail as
        good as never.

    Example:
        >>> draws = np.full((2, ERASE_DRAWS), 0.5)
        >>> draws[0, 0] = 0.1
        >>> erased_rectangles(draws, 256, 128).tolist()
        [[88, 42, 169, 87], [0, 0, 0, 0]]
    """
    tries = draws[:, 1 : 1 + 2 * TRIES].reshape(len(draws), TRIES, 2)
    sizes = height * width * (area[0] + tries[..., 0] * (area[1] - area[0]))
    shapes = aspect + tries[..., 1] * (1 / aspect - aspect)
    heights, widths = np.rint(np.sqrt(sizes * shapes)), np.rint(np.sqrt(sizes / shapes))
    fits = (heights < height) & (widths < width) & (heights > 0) & (widths > 0)
    row, first = np.arange(len(draws)), fits.argmax(1)
    h, w = heights[row, first], widths[row, first]
    top, left = np.floor(draws[:, -2] * (height - h + 1)), np.floor(draws[:, -1] * (width - w + 1))
    chosen = (draws[:, 0] < probability) & fits.any(1)
    return np.where(chosen[:, None], np.stack([top, left, top + h, left + w], 1), 0).astype(np.int64)


class ReIDImages(Dataset[Batch]):
    """Pictures brought to one size, fetched a batch at a time: the view of evaluation.

    Keys are positions; ``(epoch, position)``; or ``(epoch, number, position)`` and ``(epoch, number, position, style)``
    from the samplers of :mod:`datamodules.identity_batches`. A batch has ``image`` (B, 3, height, width) uint8 and the
    ``columns``.

    Args:
        files: the pictures.
        height: in pixels.
        width: in pixels.
        columns: what a batch says of each picture, ``(N,)`` each; ``camid`` and ``index``, the position, come by
            themselves.
        seed: decides the augmentation, together with the epoch and the number.

    Raises:
        BadImageError: a picture cannot be read, when it is fetched.
    """

    draws = 0  # random numbers per picture
    purpose = int(AUGMENT)

    def __init__(
        self, files: ReIDFiles, height: int, width: int, columns: dict[str, NDArray] | None = None, seed: int = 0
    ) -> None:
        self.files, self.height, self.width, self.seed = files, height, width, seed
        plain = {"camid": files.camids, "index": np.arange(len(files))}
        self.columns = {name: torch.from_numpy(values) for name, values in (plain | (columns or {})).items()}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: Key) -> Batch:
        return {name: value[0] for name, value in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Fetch a batch: PyTorch's loader calls this instead of one ``__getitem__`` per picture."""
        epochs, numbers, positions, styles = _take_apart(keys)
        draws = (
            uniforms(self.draws, self.purpose, self.seed, epochs, numbers) if self.draws else np.empty((len(keys), 0))
        )
        images = [self.view(row, draws[i]) for i, row in enumerate(positions.tolist())]
        empty = torch.empty((0, 3, self.height, self.width), dtype=torch.uint8)
        rows = torch.from_numpy(positions)
        batch = {"image": torch.stack([to_uint8(image) for image in images]) if images else empty}
        return batch | {name: values[rows] for name, values in self.columns.items()} | self.drawn(draws, styles)

    def picture(self, position: int) -> Image.Image:
        """The picture at a position as it is stored, as RGB.

        Raises:
            BadImageError: it cannot be read.
        """
        try:
            return read_rgb(self.files.path(position))
        except BadImageError as error:
            raise BadImageError(f'{error}. Remove the file, or set on_bad_image="skip".') from error

    def view(self, position: int, draws: NDArray[np.float64]) -> Image.Image:
        """What a batch shows of the picture at a position."""
        return self.transform(self.picture(position), draws)

    def transform(self, image: Image.Image, draws: NDArray[np.float64]) -> Image.Image:
        """Bring a picture to its size."""
        return image.resize((self.width, self.height), Image.Resampling.BILINEAR)

    def drawn(self, draws: NDArray[np.float64], styles: NDArray[np.int64]) -> Batch:
        """What a batch says of the augmentation of each picture."""
        return {}


class TrainingImages(ReIDImages):
    """Pictures for training the encoder: cropped where that is wanted, and mirrored.

    The batch has ``erased`` (B, 4) int64, the rectangle that random erasing takes away (y0, x0, y1, x1; all 0 for
    none), which the network's side fills, and ``style`` (B,) int64 from the key, the camera to translate to, or -1.

    Args:
        files, height, width, columns, seed: as in :class:`ReIDImages`.
        crop: take a random upright window before resizing.
        erase_probability: that ``erased`` is a rectangle.
    """

    draws = CROP_DRAWS + 1 + ERASE_DRAWS

    def __init__(
        self,
        files: ReIDFiles,
        height: int,
        width: int,
        columns: dict[str, NDArray] | None = None,
        seed: int = 0,
        crop: bool = False,
        erase_probability: float = 0.5,
    ) -> None:
        super().__init__(files, height, width, columns, seed)
        self.crop, self.erase_probability = crop, erase_probability

    def transform(self, image: Image.Image, draws: NDArray[np.float64]) -> Image.Image:
        """Crop, resize and mirror."""
        if self.crop:
            image = image.crop(body_crop_box(*image.size, draws[:CROP_DRAWS]))
        return mirrored(super().transform(image, draws), draws[CROP_DRAWS])

    def drawn(self, draws: NDArray[np.float64], styles: NDArray[np.int64]) -> Batch:
        """Rectangles and styles."""
        rectangles = erased_rectangles(draws[:, -ERASE_DRAWS:], self.height, self.width, self.erase_probability)
        return {"style": torch.from_numpy(styles), "erased": torch.from_numpy(rectangles)}


class CameraImages(ReIDImages):
    """Pictures for training a generator between cameras: mirrored, resized to 9/8 of the size, and cropped to it.

    Args:
        files, height, width, columns, seed: as in :class:`ReIDImages`.

    Source:
        The HHL code: 288 x 144, then 256 x 128.
    """

    draws = 3
    purpose = CAMERA_AUGMENT

    def transform(self, image: Image.Image, draws: NDArray[np.float64]) -> Image.Image:
        """Resize, crop and mirror."""
        height, width = round(self.height * 9 / 8), round(self.width * 9 / 8)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        top, left = int(draws[0] * (height - self.height + 1)), int(draws[1] * (width - self.width + 1))
        return mirrored(image.crop((left, top, left + self.width, top + self.height)), draws[2])


def mirrored(image: Image.Image, draw: float) -> Image.Image:
    """The picture, or in half of the draws from [0, 1) its mirror image.

    Example:
        >>> mirrored(Image.linear_gradient("L").rotate(90), 0.1).getpixel((0, 0))
        255
    """
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw < 0.5 else image


def _take_apart(keys: Sequence[Key]) -> tuple[NDArray[np.int64], ...]:
    """Epochs, numbers, positions and styles, ``(B,)`` each; plain positions are those of epoch 0."""
    table = np.asarray(keys, np.int64)
    if table.ndim == 1:
        table = np.stack([np.zeros_like(table), table], 1)
    if table.shape[1] == 2:
        table = table[:, [0, 1, 1]]
    if table.shape[1] == 3:
        table = np.pad(table, ((0, 0), (0, 1)), constant_values=-1)
    return tuple(np.ascontiguousarray(column) for column in table.T)


class RankingImages(ReIDImages):
    """Queries and gallery of an evaluation, person by person, with ``pid``, ``is_query`` and ``index`` in each.

    Of a person in a camera queries come first, so that a limit on batches leaves whole persons out, not the gallery.

    Args:
        evaluation: the pictures.
        height: in pixels.
        width: in pixels.
        lr_query: have each query a second time, down-sampled by a factor of its file name before it is resized; there
            is ``low`` (B,) bool then, true for these. Their ``index`` is that of the clean ones.

    Source:
        Down-sampling by 2, 3 and 4 is usual in low-resolution re-identification, where one camera is degraded
        (recalled); here it is all queries, so figures are not those of MLR-Market-1501.
    """

    def __init__(self, evaluation: EvaluationFiles, height: int, width: int, lr_query: bool = False) -> None:
        query, gallery = evaluation
        files = query.beside(query).beside(gallery) if lr_query else query.beside(gallery)
        sizes = [len(query)] * (1 + lr_query) + [len(gallery)]
        columns = {
            "pid": files.pids,
            "index": np.concatenate([np.arange(size) for size in sizes]),
            "is_query": np.arange(len(files)) < len(files) - len(gallery),
        }
        low = (np.arange(len(files)) >= len(query)) & columns["is_query"]
        # stable: of a person in a camera clean queries, degraded ones, gallery
        order = np.lexsort((~columns["is_query"], files.camids, files.pids, files.pids <= 0))
        self.low = low[order]
        if lr_query:
            columns["low"] = low
        super().__init__(files.take(order), height, width, {name: values[order] for name, values in columns.items()})

    def view(self, position: int, draws: NDArray[np.float64]) -> Image.Image:
        """The picture in its size, or what low resolution leaves of it."""
        if not self.low[position]:
            return super().view(position, draws)
        factor = factor_of(os.path.basename(os.fsdecode(self.files.names[position])))
        return low_resolution(self.picture(position), factor, (self.width, self.height))
