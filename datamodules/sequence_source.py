"""Training crops that are cut from the frames of whole videos."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from PIL import Image, ImageStat
from torch import Tensor

from datamodules.track_table import Canvas, TrackTable, table_of
from datamodules.tracking_crops_cache import CropCache, fingerprint
from datamodules.tracking_sequences import TrackingSequence
from lit_methods.functional.frames import from_rgb, read_frame, to_rgb_array
from lit_methods.functional.pictures import BadImageError, read_rgb
from lit_methods.functional.suggestions import shorten
from lit_methods.functional.tracking_crops import context_size
from lit_methods.functional.tracking_views import warp_crop

_THREADS = 8  # heads of files, and frames to keep


class SequenceSource:
    """Videos to train on; crops are cut from their frames on the fly.

    A frame is used if its box has an area and lies inside of it; the size is that of the video's first frame that
    can be opened. A video without such a frame is left out, with a warning.

    A crop comes from its frame by one resampling; what is outside of the frame has the mean colour of the frame. Boxes
    keep their fractions.

    Args:
        sequences: the videos.
        frame_range: largest difference between the numbers of the two frames of a pair.
        uses: pairs of a round of mixing that begin with one of these videos.
        in_memory: keep all usable frames decoded, from the start on; processes that are forked from this one share
            them.
        cache_dir: a folder for ``crop511/<video>/<frame>.00.x.jpg``, the canvases that crops are cut from, each written
            when it is first needed; another side than 511 where the sizes of crops are others. It spares decoding whole
            frames. Crops then differ from those without it: they are resampled twice and have been a JPEG.
        cache_quality: of these JPEG files, 1 to 100.
        skip_absent: leave out frames whose target is said to be absent, too.

    Attributes:
        table: the usable frames.
        left_out: names of the videos without one.

    Raises:
        ValueError: no video has a usable frame, or an argument is out of range.
        BadImageError: no frame of a video can be opened; names it.

    Source:
        Section 5. Canvas and scale are those of the official preparation, whose pictures are by 510/511 smaller than
        its boxes say. The official code cuts boxes to whole numbers and cuts crops from stored JPEGs of 511 x 511
        pixels, which is a second resampling.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (64, 48), (30, 20, 10)).save(Path(folder, "1.png"))
        ...     boxes = np.array([[24.0, 16, 16, 16]])
        ...     source = SequenceSource([TrackingSequence("a", [f"{folder}/1.png"], boxes)])
        ...     crop = source.cut(0, Canvas(15, 31), (24.0, 24.0, 38.0, 38.0), 15)
        >>> len(source.table), crop.shape, crop[:, 7, 7].tolist()
        (1, torch.Size([3, 15, 15]), [10.0, 20.0, 30.0])
    """

    def __init__(
        self,
        sequences: Sequence[TrackingSequence],
        frame_range: int = 100,
        uses: int = 200_000,
        in_memory: bool = False,
        cache_dir: str | None = None,
        cache_quality: int = 95,
        skip_absent: bool = False,
    ) -> None:
        check_source(frame_range, uses)
        if in_memory and cache_dir is not None:
            raise ValueError(f"in_memory=True leaves nothing to do for cache_dir={cache_dir!r}; choose one of them")
        if not 1 <= cache_quality <= 100:
            raise ValueError(f"cache_quality must be between 1 and 100, got {cache_quality}")
        self.frame_range, self.uses = frame_range, uses
        self.cache_dir, self.cache_quality = cache_dir, cache_quality
        with ThreadPoolExecutor(_THREADS) as threads:
            usable = list(threads.map(lambda video: usable_frames(video, skip_absent), sequences))
        self.sequences = [video for video, frames in zip(sequences, usable, strict=True) if len(frames)]
        self.left_out = [video.name for video, frames in zip(sequences, usable, strict=True) if not len(frames)]
        if not self.sequences:
            raise ValueError(
                f"none of the {len(sequences)} videos has a frame to train on, with a box that has an area and lies "
                f"inside of the frame: {shorten(self.left_out)}"
            )
        if self.left_out:
            rank_zero_warn(
                f"{len(self.left_out)} of {len(sequences)} videos have no frame to train on, with a box that has an "
                f"area and lies inside of the frame: {shorten(self.left_out)}"
            )
        self.table: TrackTable = table_of([[frames] for frames in usable if len(frames)])
        self._caches: dict[Canvas, CropCache] = {}
        self._kept: dict[int, tuple[Tensor, Tensor]] = self._keep() if in_memory else {}

    def wh(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Width and height of the target in the frame, ``(n, 2)``.

        Args:
            places: ``(n,)`` of the table.
        """
        return np.array([self._box(place)[2:] for place in places.tolist()]).reshape(-1, 2)

    def path(self, place: int) -> str:
        """The file of a frame."""
        return self.sequences[self.table.video(place)].frames[int(self.table.frames[place])]

    def cut(self, place: int, canvas: Canvas, window: Sequence[float], out: int) -> Tensor:
        """Cut a crop.

        Args:
            place: in the table.
            canvas: that the window lies in.
            window: xyxy in pixels of the canvas, see :func:`~lit_methods.functional.tracking_views.warp_crop`.
            out: side of the crop.

        Returns:
            ``(3, out, out)`` float32 BGR, 0 to 255.

        Raises:
            BadImageError: the frame cannot be read; names it.
        """
        if self.cache_dir is None:
            return self._cut_frame(place, canvas, window, out)
        video = self.sequences[self.table.video(place)]
        picture = self._cache(canvas).get(
            video.name,
            int(self.table.frames[place]),
            fingerprint(len(video), video.boxes),
            lambda: to_rgb_array(self._cut_frame(place, canvas, (0, 0, canvas.full - 1, canvas.full - 1)).round_()),
        )
        return warp_crop(from_rgb(np.asarray(picture)), window, out)

    def check(self, canvas: Canvas) -> None:
        """Any canvas can be cut out of a frame."""

    def _box(self, place: int) -> NDArray[np.float64]:
        return self.sequences[self.table.video(place)].boxes[self.table.frames[place]]

    def _cache(self, canvas: Canvas) -> CropCache:
        if canvas not in self._caches:
            name = f"crop{canvas.full}" + ("" if canvas.template_size == 127 else f"_{canvas.template_size}")
            self._caches[canvas] = CropCache(Path(str(self.cache_dir), name), self.cache_quality)
        return self._caches[canvas]

    def _cut_frame(self, place: int, canvas: Canvas, window: Sequence[float], out: int | None = None) -> Tensor:
        """Cut a window of the canvas out of the frame itself."""
        x, y, w, h = self._box(place).tolist()
        context = context_size(torch.tensor([w, h], dtype=torch.float64)).item()
        step = context * canvas.full / canvas.template_size / (canvas.full - 1)  # of a pixel of the canvas
        x0, y0, x1, y1 = ((end - canvas.centre) * step for end in window)
        return self._cut_window(
            place, (x0 + x + w / 2, y0 + y + h / 2, x1 + x + w / 2, y1 + y + h / 2), out or canvas.full
        )

    def _cut_window(self, place: int, window: tuple[float, float, float, float], out: int) -> Tensor:
        """Cut a window in pixels of the frame."""
        if place in self._kept:
            frame, mean = self._kept[place]
            return warp_crop(frame, window, out, mean)
        picture = read_rgb(self.path(place))
        x0, y0, x1, y1 = window
        left, top = max(0, math.floor(x0)), max(0, math.floor(y0))
        right, bottom = min(picture.width, math.floor(x1) + 2), min(picture.height, math.floor(y1) + 2)
        inside = x0 >= 0 and y0 >= 0 and x1 <= picture.width - 1 and y1 <= picture.height - 1
        fill = torch.zeros(3) if inside else torch.tensor(ImageStat.Stat(picture).mean[::-1])
        if left >= right or top >= bottom:
            return fill.view(3, 1, 1).repeat(1, out, out)
        part = from_rgb(np.asarray(picture.crop((left, top, right, bottom))))
        return warp_crop(part, (x0 - left, y0 - top, x1 - left, y1 - top), out, fill)

    def _keep(self) -> dict[int, tuple[Tensor, Tensor]]:
        def read(place: int) -> tuple[Tensor, Tensor] | None:
            try:
                frame = read_frame(self.path(place))
            except BadImageError:
                return None  # whoever needs it finds out again
            return frame, frame.double().mean((1, 2)).float()

        with ThreadPoolExecutor(_THREADS) as threads:
            frames = list(threads.map(read, range(len(self.table.frames))))
        return {place: frame for place, frame in enumerate(frames) if frame is not None}


def check_source(frame_range: int, uses: int) -> None:
    """Refuse numbers that no source can work with.

    Args:
        frame_range: 0 or more.
        uses: 1 or more.

    Example:
        >>> check_source(100, 0)
        Traceback (most recent call last):
        ValueError: uses must be 1 or more, got 0
    """
    for name, value, least in (("frame_range", frame_range, 0), ("uses", uses, 1)):
        if value < least:
            raise ValueError(f"{name} must be {least} or more, got {value}")


def usable_frames(video: TrackingSequence, skip_absent: bool = False) -> NDArray[np.int64]:
    """The frames of a video whose box can be trained on: with an area, and inside of the frame.

    Args:
        video: with frames; none is decoded, the head of one is read.
        skip_absent: leave out those whose target is said to be absent, too.

    Returns:
        Their numbers, from 0.

    Raises:
        BadImageError: no frame can be opened; names the video.

    Source:
        Section 5: dropped if w <= 0, h <= 0, x < 0, y < 0, x + w > W or y + h > H.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (20, 10)).save(Path(folder, "1.png"))
        ...     boxes = np.array([[0.0, 0, 20, 10], [0, 0, 20.5, 10], [0, 0, 0, 0], [np.nan] * 4])
        ...     usable_frames(TrackingSequence("a", [f"{folder}/1.png"] * 4, boxes)).tolist()
        [0]
    """
    x, y, w, h = video.boxes.T
    usable = (w > 0) & (h > 0) & (x >= 0) & (y >= 0)  # not so where NaN
    if skip_absent and video.present is not None:
        usable &= video.present
    if not usable.any():
        return np.empty(0, np.int64)
    width, height = _frame_size(video)
    return np.flatnonzero(usable & (x + w <= width) & (y + h <= height))


def _frame_size(video: TrackingSequence) -> tuple[int, int]:
    try:
        return video.image_wh
    except BadImageError as error:
        first = error
    for path in video.frames[1:]:
        try:
            with Image.open(path) as image:
                return image.size
        except (OSError, SyntaxError, ValueError, IndexError):
            continue
    raise BadImageError(f"{first}; nor any other of its frames. Complete the video, or remove it.") from first
