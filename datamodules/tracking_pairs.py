"""Pairs of crops to train a tracker on: a template and a search region, mostly of the same target."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.draws import permutation, uniforms
from datamodules.sequence_source import SequenceSource as SequenceSource
from datamodules.track_table import Canvas, TrackTable
from lit_methods.functional.draws import purpose
from lit_methods.functional.pictures import BadImageError
from lit_methods.functional.tracking_views import (
    BLUR_SIZES,
    augment_crop_box,
    canonical_box,
    colour_shift,
    flip_boxes,
    line_blur,
    to_grey,
)

MIX, VIDEOS, AGAIN = (purpose(f"tracking_pairs/{name}") for name in ("mix", "videos", "again"))
FRAMES, NEAR, NEGATIVE = (purpose(f"tracking_pairs/{name}") for name in ("frames", "near", "negative"))
OTHER, GREY, POINTS = (purpose(f"tracking_pairs/{name}") for name in ("other", "grey", "points"))
SIDES = ("template", "search")
WINDOW, COLOUR, BLUR, FLIP = (
    {side: purpose(f"tracking_pairs/{side}/{name}") for side in SIDES} for name in ("window", "colour", "blur", "flip")
)
_TRIES = 20  # pairs that are drawn in the place of one that cannot be read


class PairSource(Protocol):
    """Where crops come from: whole videos or stored crops."""

    table: TrackTable
    frame_range: int
    uses: int

    def wh(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Width and height of targets in their frames, ``(n, 2)``."""

    def path(self, place: int) -> str:
        """The file that a crop is cut from."""

    def cut(self, place: int, canvas: Canvas, window: Sequence[float], out: int) -> Tensor:
        """A crop ``(3, out, out)`` float32 BGR."""

    def check(self, canvas: Canvas) -> None:
        """Raise ``ValueError`` where this canvas cannot be cut."""


@dataclass(frozen=True)
class Pairs:
    """What pairs are made of; column 0 is the template, column 1 the search region.

    Args:
        sources: ``(n, 2)`` number of each one's source.
        places: ``(n, 2)`` in the table of the source.
        negative: ``(n,)`` whether they show different targets.
    """

    sources: NDArray[np.int64]
    places: NDArray[np.int64]
    negative: NDArray[np.bool_]


@dataclass(frozen=True)
class _View:
    """How the crops of one side are changed."""

    size: int
    shift: float
    scale: float
    blur: float
    colour: float
    flip: float


class PairDataset(Dataset[dict[str, Tensor]]):
    """Pairs of crops, drawn anew in each epoch.

    Keys are ``(epoch, number)``, as :class:`~datamodules.samplers.EpochSampler` gives them; a plain number is one of
    epoch 0. Everything about a pair is a function of the seed and its key. A batch has ``template`` (B, 3,
    template_size, template_size) and ``search`` (B, 3, search_size, search_size) float32, BGR, about 0 to 255 (another
    colour can go beyond), ``box`` (B, 4) float32, the target of the search region, xyxy in its pixels, perhaps partly
    outside, ``negative`` (B,) bool, and ``keys`` (B, n, n) float32, random numbers by which a loss may choose points of
    the n x n that a network with stride 8 answers for.

    The videos that templates come from are drawn in rounds, which go on over the epochs: in each of them every source
    comes ``uses`` times, in a mixed order, and its videos equally often, give or take one. In a video a track and in
    that a frame are drawn; the search region is of a frame of the track within ``frame_range``, perhaps the same. In a
    negative pair it is of any frame of another video, whose source each of them can be.

    Args:
        sources: :class:`~datamodules.sequence_source.SequenceSource` and :class:`~datamodules.crop_sets.CropSet`.
        pairs_per_epoch: length of the set.
        neg_prob: part of the pairs that are negative.
        template_size: side of the template in pixels, at least 3.
        search_size: side of the search region in pixels, not below ``template_size``.
        template_shift: the template's window moves by up to so many pixels along each side.
        template_scale: its sides change by up to this part, below 1.
        template_blur: part of the templates that are blurred.
        template_colour: part that get another colour.
        template_flip: part that are mirrored.
        search_shift: the same of search regions.
        search_scale: likewise.
        search_blur: likewise.
        search_colour: likewise.
        search_flip: likewise.
        grey: part of the pairs that are grey, both crops.
        on_bad_frame: ``raise``: a file that cannot be read is an error that names it. ``skip``: another pair is drawn
            in its place, with one warning in each process.
        seed: decides everything, with the key.

    Raises:
        ValueError: an argument is out of range, or negative pairs are asked for of a single video.
        BadImageError: from an item, see ``on_bad_frame``.

    Source:
        Section 4. The official code may draw the search region of a negative pair from the video of the template, and
        greys a crop's picture before it is cut, in whole numbers. Windows, shifts and canvas of other sizes than 127
        and 255 are ours: the same in pixels, see :class:`~datamodules.track_table.Canvas`.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from datamodules.tracking_sequences import TrackingSequence
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (64, 48), (30, 20, 10)).save(f"{folder}/1.png")
        ...     video = TrackingSequence("a", [f"{folder}/1.png"], np.array([[24.0, 16, 16, 16]]))
        ...     pairs = PairDataset([SequenceSource([video])], 4, neg_prob=0, template_size=31, search_size=63)
        ...     batch = pairs.__getitems__([(0, 3), (1, 0)])
        >>> {name: tuple(part.shape) for name, part in batch.items()}
        {'template': (2, 3, 31, 31), 'search': (2, 3, 63, 63), 'box': (2, 4), 'negative': (2,), 'keys': (2, 13, 13)}
    """

    def __init__(
        self,
        sources: Sequence[PairSource],
        pairs_per_epoch: int = 60_000,
        neg_prob: float = 0.2,
        template_size: int = 127,
        search_size: int = 255,
        template_shift: float = 4,
        template_scale: float = 0.05,
        template_blur: float = 0.0,
        template_colour: float = 1.0,
        template_flip: float = 0.0,
        search_shift: float = 64,
        search_scale: float = 0.18,
        search_blur: float = 0.2,
        search_colour: float = 1.0,
        search_flip: float = 0.0,
        grey: float = 0.0,
        on_bad_frame: Literal["raise", "skip"] = "raise",
        seed: int = 0,
    ) -> None:
        if not sources:
            raise ValueError("sources is empty: there is nothing to train on")
        if pairs_per_epoch < 1:
            raise ValueError(f"pairs_per_epoch must be 1 or more, got {pairs_per_epoch}")
        if not 3 <= template_size <= search_size:
            raise ValueError(
                "template_size must be at least 3 and search_size no smaller, got "
                f"template_size={template_size} and search_size={search_size}"
            )
        parts = {
            "neg_prob": neg_prob, "template_blur": template_blur, "template_colour": template_colour,
            "template_flip": template_flip, "search_blur": search_blur, "search_colour": search_colour,
            "search_flip": search_flip, "grey": grey,
        }  # fmt: skip
        for name, value in parts.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")
        for name, value in (("template_shift", template_shift), ("search_shift", search_shift)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be 0 or more pixels, got {value}")
        for name, value in (("template_scale", template_scale), ("search_scale", search_scale)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {value}")
        if on_bad_frame not in ("raise", "skip"):
            raise ValueError(f"on_bad_frame must be 'raise' or 'skip', got {on_bad_frame!r}")
        self.sources, self.pairs_per_epoch, self.neg_prob, self.grey = list(sources), pairs_per_epoch, neg_prob, grey
        self.on_bad_frame, self.seed = on_bad_frame, seed
        self.canvas = Canvas(template_size, search_size)
        for source in self.sources:
            source.check(self.canvas)
        if neg_prob and sum(len(source.table) for source in self.sources) == 1:
            raise ValueError(f"neg_prob={neg_prob} needs a second video to take from; add one, or set neg_prob to 0")
        self._views = {
            "template": _View(
                template_size, template_shift, template_scale, template_blur, template_colour, template_flip
            ),
            "search": _View(search_size, search_shift, search_scale, search_blur, search_colour, search_flip),
        }
        self._points = (search_size - template_size) // 8 + 9
        self._uses = np.cumsum([source.uses for source in self.sources])
        self._known: tuple[int, NDArray[np.int64]] = (-1, np.empty((0, 2), np.int64))  # the mix of the last epoch
        self._last: BadImageError | None = None  # what was skipped

    def __len__(self) -> int:
        return self.pairs_per_epoch

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        """One pair, as :meth:`__getitems__` without the first dimension."""
        return {name: part[0] for name, part in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> dict[str, Tensor]:
        """The batch of these keys."""
        pairs = np.array([(0, key) if isinstance(key, int) else key for key in keys], np.int64).reshape(-1, 2)
        epochs, numbers = pairs[:, 0], pairs[:, 1]
        if ((numbers < 0) | (numbers >= len(self))).any():
            raise IndexError(f"pairs {numbers.tolist()} of {len(self)}")
        batch = {side: torch.empty(len(keys), 3, view.size, view.size) for side, view in self._views.items()}
        batch |= {"box": torch.empty(len(keys), 4), "negative": torch.empty(len(keys), dtype=torch.bool)}
        points = uniforms(self._points**2, POINTS, self.seed, epochs, numbers).astype(np.float32)
        batch["keys"] = torch.from_numpy(points).view(-1, self._points, self._points)
        rows = np.arange(len(keys))
        for attempt in range(_TRIES):
            bad = self._fill(batch, rows, epochs[rows], numbers[rows], attempt)
            if not bad:
                return batch
            rows = np.array(bad)
        raise BadImageError(
            f"{_TRIES} pairs in turn have a file that cannot be read, the last one: {self._last}. "
            'on_bad_frame="skip" is for a few such files: replace them.'
        )

    def choose(self, epochs: NDArray[np.int64], numbers: NDArray[np.int64], attempt: int = 0) -> Pairs:
        """What pairs are made of.

        Args:
            epochs: ``(n,)``.
            numbers: ``(n,)`` in their epochs.
            attempt: above 0 for a pair in the place of one that cannot be read.
        """
        key = (self.seed, epochs, numbers, attempt)
        if attempt:
            again = uniforms(2, AGAIN, *key)
            first = np.searchsorted(self._uses, again[:, 0] * self._uses[-1], side="right")
            videos = (again[:, 1] * np.array([len(source.table) for source in self.sources])[first]).astype(np.int64)
        else:
            first, videos = self._mixed(epochs, numbers).T
        sources, places = np.stack([first, first], 1), np.empty((len(numbers), 2), np.int64)
        frames, near = uniforms(2, FRAMES, *key), uniforms(1, NEAR, *key)[:, 0]
        for number in np.unique(first).tolist():
            rows, source = first == number, self.sources[number]
            places[rows, 0] = source.table.any_frame(videos[rows], frames[rows])
            places[rows, 1] = source.table.near(places[rows, 0], source.frame_range, near[rows])
        negative = uniforms(1, NEGATIVE, *key)[:, 0] < self.neg_prob
        others = uniforms(4, OTHER, *key)
        for row in np.flatnonzero(negative).tolist():
            sources[row, 1], places[row, 1] = self._other(int(first[row]), int(videos[row]), others[row])
        return Pairs(sources, places, negative)

    def _mixed(self, epochs: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Source and video of each, ``(n, 2)``."""
        found = np.empty((len(numbers), 2), np.int64)
        for epoch in np.unique(epochs).tolist():
            if self._known[0] != epoch:
                self._known = (epoch, self._mix(epoch))
            rows = epochs == epoch
            found[rows] = self._known[1][numbers[rows]]
        return found

    def _mix(self, epoch: int) -> NDArray[np.int64]:
        """Source and video of all pairs of an epoch, which is a stretch of the endless row of rounds."""
        length = int(self._uses[-1])
        begin = epoch * self.pairs_per_epoch
        end = begin + self.pairs_per_epoch
        stretches = []
        for number in range(begin // length, -(-end // length)):
            start = number * length
            turns = permutation(length, MIX, self.seed, number)[max(begin - start, 0) : end - start]
            mix = np.empty((len(turns), 2), np.int64)
            mix[:, 0] = np.searchsorted(self._uses, turns, side="right")
            for which, source in enumerate(self.sources):
                rows = mix[:, 0] == which
                order = permutation(len(source.table), VIDEOS, self.seed, number, which)
                mix[rows, 1] = order[(turns[rows] - self._uses[which] + source.uses) % len(order)]
            stretches.append(mix)
        return np.concatenate(stretches)

    def _other(self, source: int, video: int, draws: NDArray[np.float64]) -> tuple[int, int]:
        """A source and a place in it, of any video but one."""
        counts = [len(each.table) - (number == source) for number, each in enumerate(self.sources)]
        able = [number for number, count in enumerate(counts) if count]
        number = able[int(draws[0] * len(able))]
        other = int(draws[1] * counts[number])
        other += number == source and other >= video
        return number, int(self.sources[number].table.any_frame(np.array([other]), draws[None, 2:])[0])

    def _fill(
        self,
        batch: dict[str, Tensor],
        rows: NDArray[np.int64],
        epochs: NDArray[np.int64],
        numbers: NDArray[np.int64],
        attempt: int,
    ) -> list[int]:
        """Make pairs and put them into rows of a batch; returns the rows whose files cannot be read."""
        pairs = self.choose(epochs, numbers, attempt)
        grey = uniforms(1, GREY, self.seed, epochs, numbers)[:, 0] < self.grey
        bad: set[int] = set()
        for column, side in enumerate(SIDES):
            view, key = self._views[side], (self.seed, epochs, numbers)
            windows, boxes = self._windows(pairs.sources[:, column], pairs.places[:, column], side, *key)
            colour, flip = uniforms(7, COLOUR[side], *key), uniforms(1, FLIP[side], *key)[:, 0] < view.flip
            blur = uniforms(3, BLUR[side], *key)
            for i, row in enumerate(rows.tolist()):
                if row in bad:
                    continue
                source, place = self.sources[pairs.sources[i, column]], int(pairs.places[i, column])
                try:
                    crop = source.cut(place, self.canvas, windows[i].tolist(), view.size)
                except BadImageError as error:
                    self._put_up_with(error)
                    bad.add(row)
                    continue
                crop = to_grey(crop) if grey[i] else crop
                crop = _recolour(crop, colour[i], view.colour)
                crop = _blur(crop, blur[i], view.blur)
                batch[side][row] = crop.flip(-1) if flip[i] else crop
            if side == "search":
                boxes = torch.where(torch.from_numpy(flip)[:, None], flip_boxes(boxes, view.size), boxes)
                batch["box"][rows] = boxes.float()
        batch["negative"][rows] = torch.from_numpy(pairs.negative)
        return sorted(bad)

    def _windows(
        self,
        sources: NDArray[np.int64],
        places: NDArray[np.int64],
        side: str,
        *key: int | NDArray[np.int64],
    ) -> tuple[Tensor, Tensor]:
        """Windows in the canvas and targets in the crops, ``(n, 4)`` float64 each."""
        wh = np.empty((len(places), 2))
        for number in np.unique(sources).tolist():
            rows = sources == number
            wh[rows] = self.sources[number].wh(places[rows])
        view, full = self._views[side], self.canvas.full
        boxes = canonical_box(torch.from_numpy(wh), self.canvas.template_size, full)
        draws = torch.from_numpy(2 * uniforms(4, WINDOW[side], *key) - 1)
        return augment_crop_box(boxes, draws, view.shift, view.scale, view.size, full)

    def _put_up_with(self, error: BadImageError) -> None:
        if self.on_bad_frame == "raise":
            raise BadImageError(f'{error}. Replace the file, or set on_bad_frame="skip".') from error
        known, self._last = self._last, error
        if known is None:
            rank_zero_warn(f'{error}. With on_bad_frame="skip" other pairs take the place of those with such a file.')


def _recolour(crop: Tensor, draws: NDArray[np.float64], chance: float) -> Tensor:
    """Seven numbers in [0, 1): whether to do it, and three pairs for the normal ones (Box and Muller)."""
    if draws[0] >= chance:
        return crop
    return colour_shift(crop, np.sqrt(-2 * np.log1p(-draws[1:4])) * np.cos(2 * np.pi * draws[4:7]))


def _blur(crop: Tensor, draws: NDArray[np.float64], chance: float) -> Tensor:
    """Three numbers in [0, 1): whether to do it, the size (of those that fit) and the share of columns."""
    if draws[0] >= chance:
        return crop
    sizes = [size for size in BLUR_SIZES if size // 2 < crop.shape[-1]]
    return line_blur(crop, sizes[int(draws[1] * len(sizes))], float(draws[2]))
