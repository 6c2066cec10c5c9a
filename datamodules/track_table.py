"""The frames that training pairs are drawn from, as arrays: videos, tracks in them, frames of a track."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Canvas:
    """The square around a target that training crops are cut from.

    Its scale is ``template_size / s_z``, the target is at its middle pixel and its side is ``2 * search_size + 1``:
    511 for the paper's 127 and 255. For other sizes this is ours; shifts are always in pixels of the crop.

    Args:
        template_size: side of the template.
        search_size: side of the search region.

    Example:
        >>> Canvas().full, Canvas().centre, Canvas(127, 191).full
        (511, 255, 383)
    """

    template_size: int = 127
    search_size: int = 255

    @property
    def full(self) -> int:
        """Its side."""
        return 2 * self.search_size + 1

    @property
    def centre(self) -> int:
        """The pixel that the target is at."""
        return self.full // 2


class TrackTable:
    """Usable frames of tracks of videos; all are drawn at once for a batch of numbers.

    A place is a row of the table: one frame of one track.

    Args:
        video_of_track: ``(T,)`` rising from 0 without gaps.
        track_of_frame: ``(F,)`` rising from 0 without gaps.
        frames: ``(F,)`` numbers of the frames, rising within a track.
        by_list: distances are those in a track's list of frames, not those of the frames' numbers.

    Example:
        >>> table = TrackTable(np.array([0, 1]), np.array([0, 0, 0, 1]), np.array([2, 3, 9, 0]))
        >>> places = table.any_frame(np.array([0, 0, 1]), np.array([[0.0, 0.1], [0.0, 0.9], [0.0, 0.9]]))
        >>> places.tolist(), table.near(places, 1, np.array([0.9, 0.9, 0.9])).tolist()
        ([0, 2, 3], [1, 2, 3])
    """

    def __init__(
        self,
        video_of_track: NDArray[np.int64],
        track_of_frame: NDArray[np.int64],
        frames: NDArray[np.int64],
        by_list: bool = False,
    ) -> None:
        self.by_list = by_list
        self.frames = frames.astype(np.int32)
        self.track_of_frame = track_of_frame.astype(np.int32)
        self.video_of_track = video_of_track.astype(np.int32)
        self._first_track, self._tracks = _stretches(video_of_track)
        self._first_frame, self._counts = _stretches(track_of_frame)

    def __len__(self) -> int:
        """How many videos there are."""
        return len(self._tracks)

    def any_frame(self, videos: NDArray[np.int64], draws: NDArray[np.float64]) -> NDArray[np.int64]:
        """A track of each video and a frame of it.

        Args:
            videos: ``(n,)``.
            draws: ``(n, 2)`` in [0, 1): of the track, of the frame.

        Returns:
            ``(n,)`` places.
        """
        tracks = self._first_track[videos] + (draws[:, 0] * self._tracks[videos]).astype(np.int64)
        return self._first_frame[tracks] + (draws[:, 1] * self._counts[tracks]).astype(np.int64)

    def near(self, places: NDArray[np.int64], reach: int, draws: NDArray[np.float64]) -> NDArray[np.int64]:
        """A frame of the same track, at most ``reach`` away from each; the same one is allowed.

        Args:
            places: ``(n,)``.
            reach: the largest distance.
            draws: ``(n,)`` in [0, 1).

        Returns:
            ``(n,)`` places.
        """
        found = np.empty_like(places)
        for row, (place, draw) in enumerate(zip(places.tolist(), draws.tolist(), strict=True)):
            track = self.track_of_frame[place]
            start, count = int(self._first_frame[track]), int(self._counts[track])
            if self.by_list:
                low, high = max(start, place - reach), min(start + count, place + reach + 1)
            else:
                frames = self.frames[start : start + count]  # a view, however long the table is
                number = int(self.frames[place])
                low, high = (start + np.searchsorted(frames, [number - reach, number + reach + 1])).tolist()
            found[row] = low + int(draw * (high - low))
        return found

    def video(self, place: int) -> int:
        """The video of a place."""
        return int(self.video_of_track[self.track_of_frame[place]])


def _stretches(groups: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    counts = np.bincount(groups).astype(np.int64)
    return np.cumsum(counts) - counts, counts


def table_of(videos: Sequence[Sequence[Any]], by_list: bool = False) -> TrackTable:
    """A table from lists: of each video its tracks, of each track the numbers of its frames.

    Args:
        videos: none of them, and none of their tracks, is empty.
        by_list: see there.

    Example:
        >>> table = table_of([[[0, 1]], [[5], [6, 7]]])
        >>> len(table), table.frames.tolist(), table.video(3)
        (2, [0, 1, 5, 6, 7], 1)
    """
    tracks = [np.asarray(track, np.int64) for video in videos for track in video]
    video_of_track = np.repeat(np.arange(len(videos)), [len(video) for video in videos])
    track_of_frame = np.repeat(np.arange(len(tracks)), [len(track) for track in tracks])
    return TrackTable(video_of_track, track_of_frame, np.concatenate(tracks), by_list)
