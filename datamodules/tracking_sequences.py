"""A video with the boxes of its target, and sets of them to track through."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from lit_methods.functional.pictures import BadImageError
from lit_methods.functional.suggestions import shorten


class NumberedFrames(Sequence[str]):
    """Paths of files that are numbered without gaps; each is made when it is asked for.

    The 1,400 videos of LaSOT have 3.5 million frames: as many strings would take hundreds of megabytes in every worker.

    Args:
        folder: that holds them.
        first: number of the first.
        count: how many.
        digits: of a number, filled up with zeros.
        suffix: with its dot.

    Example:
        >>> frames = NumberedFrames("a/img", 1, 3, 8)
        >>> len(frames), frames[-1], list(frames[:2])
        (3, 'a/img/00000003.jpg', ['a/img/00000001.jpg', 'a/img/00000002.jpg'])
    """

    def __init__(self, folder: str, first: int, count: int, digits: int, suffix: str = ".jpg") -> None:
        self.folder, self.digits, self.suffix = folder, digits, suffix
        self.numbers = range(first, first + count)

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[str, ...]: ...
    def __getitem__(self, key: int | slice) -> str | tuple[str, ...]:
        if isinstance(key, slice):
            return tuple(map(self._path, self.numbers[key]))
        return self._path(self.numbers[key])

    def _path(self, number: int) -> str:
        return f"{self.folder}/{number:0{self.digits}d}{self.suffix}"


@dataclass(frozen=True, eq=False)
class TrackingSequence:
    """A video and where its target is.

    Args:
        name: as in tables of results.
        frames: n paths of the frames in their order; none at all where only the annotation is known.
        boxes: ``(n, 4)`` float64, x, y, w, h in pixels; NaN where the target's place is not known.
        present: ``(n,)`` whether the target can be seen; ``None``: in all frames.
        polygons: ``(n, 8)`` float64, four corners x, y, of data sets that have them.
        attributes: of the whole video, such as "Fast Motion".
        category: of the target; empty where unknown.
        tags: name to ``(n,)`` whether a frame has this property.

    Raises:
        ValueError: these do not have equally many frames.

    Example:
        >>> video = TrackingSequence("a", ("a/1.jpg", "a/2.jpg"), np.array([[5.0, 6, 7, 8]] * 2))
        >>> len(video), len(video.first(1)), video.first_box.tolist()
        (2, 1, [5.0, 6.0, 7.0, 8.0])
    """

    name: str
    frames: Sequence[str]
    boxes: NDArray[np.float64]
    present: NDArray[np.bool_] | None = None
    polygons: NDArray[np.float64] | None = None
    attributes: tuple[str, ...] = ()
    category: str = ""
    tags: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4:
            raise ValueError(f"boxes of {self.name!r} must be (n, 4), got {self.boxes.shape}")
        counts = {"boxes": len(self.boxes), "frames": len(self.frames) or len(self.boxes)}
        parts = {"present": self.present, "polygons": self.polygons, **self.tags}
        counts |= {name: len(part) for name, part in parts.items() if part is not None}
        if len(set(counts.values())) > 1:
            words = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise ValueError(f"{self.name!r} must have as many of each: {words}")

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def first_box(self) -> NDArray[np.float64]:
        """``(4,)`` x, y, w, h of the first frame."""
        return self.boxes[0]

    @cached_property
    def image_wh(self) -> tuple[int, int]:
        """Width and height of the first frame, from the head of its file.

        Raises:
            BadImageError: it cannot be read.
        """
        try:
            with Image.open(self.frames[0]) as image:
                return image.size
        except (OSError, SyntaxError, ValueError, IndexError) as error:
            raise BadImageError(f"cannot read the first frame of {self.name!r}: {error}") from error

    def first(self, count: int | None) -> "TrackingSequence":
        """The first frames alone.

        Args:
            count: how many; ``None``, or more than there are, is all of them.
        """
        if count is None or count >= len(self):
            return self
        return replace(
            self,
            frames=self.frames[:count],
            boxes=self.boxes[:count],
            present=None if self.present is None else self.present[:count],
            polygons=None if self.polygons is None else self.polygons[:count],
            tags={name: tag[:count] for name, tag in self.tags.items()},
        )


class TrackingSequences(Dataset[dict[str, Any]]):
    """Videos to evaluate on, several at a time.

    A batch is a dict of lists with an entry for each of S videos: ``name`` str, ``frames`` list of paths, ``boxes``
    (n, 4) float64 x, y, w, h, ``present`` (n,) bool or ``None``, ``polygons`` (n, 8) float64 or ``None``; and ``index``
    (S,) int64, the position in this set. Frames are read by whoever tracks through them.

    Args:
        sequences: the videos.
        place: the argument that named them and its value, for messages.
        frames_needed: whether they are tracked; not where results are scored against their annotation.

    Raises:
        ValueError: a video to track has no frames, or no box with an area in its first frame; names it.

    Example:
        >>> videos = TrackingSequences([TrackingSequence("a", ("a/1.jpg",), np.array([[5.0, 6, 7, 8]]))])
        >>> batch = videos.__getitems__([0])
        >>> batch["name"], batch["frames"], batch["boxes"][0].tolist(), batch["present"], batch["index"].tolist()
        (['a'], [['a/1.jpg']], [[5.0, 6.0, 7.0, 8.0]], [None], [0])
    """

    def __init__(
        self, sequences: Sequence[TrackingSequence], place: str = "sequences", frames_needed: bool = True
    ) -> None:
        self.sequences = list(sequences)
        if not frames_needed:
            return
        if bare := [sequence.name for sequence in sequences if not len(sequence.frames)]:
            raise ValueError(
                f"{place} has annotations without frames, which results can be scored against, but nothing can be "
                f"tracked: {shorten(bare)}"
            )
        for sequence in sequences:
            if not (np.isfinite(sequence.first_box).all() and (sequence.first_box[2:] > 0).all()):
                raise ValueError(
                    f"{place}: the box of the first frame of {sequence.name!r} must have a width and a height, got x, "
                    f"y, w, h = {', '.join(f'{number:g}' for number in sequence.first_box)}; a tracker starts from it. "
                    "Correct its ground truth, or begin the video where the target can be seen."
                )

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[int]) -> dict[str, Any]:
        """The batch of these videos."""
        chosen = [self.sequences[position] for position in positions]
        return {
            "name": [sequence.name for sequence in chosen],
            "frames": [list(sequence.frames) for sequence in chosen],
            "boxes": [torch.tensor(sequence.boxes, dtype=torch.float64) for sequence in chosen],
            "present": [None if part is None else torch.tensor(part) for part in (each.present for each in chosen)],
            "polygons": [None if part is None else torch.tensor(part) for part in (each.polygons for each in chosen)],
            "index": torch.tensor(positions, dtype=torch.int64),
        }
