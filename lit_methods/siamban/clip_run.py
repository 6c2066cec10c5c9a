"""One clip on its way through a tracker, some frames at a time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lit_methods.functional.pictures import BadImageError
from lit_methods.siamban.clip_record import ClipRecord
from lit_methods.siamban.clip_rows import ClipRow
from lit_methods.siamban.own_clips import OwnClip
from lit_methods.siamban.tracker import SiamBANTracker


class ClipRun:
    """Tracks one clip and records it.

    Args:
        clip: the video and its first box.
        tracker: a new one.
        record: takes rows and frames.
        hold: whether a frame that cannot be read keeps the box of the one before, with score 0; else it ends the run.
    """

    def __init__(self, clip: OwnClip, tracker: SiamBANTracker, record: ClipRecord, hold: bool) -> None:
        self.clip, self.tracker, self.record, self.hold = clip, tracker, record, hold
        self.frames = 0
        self._last: Tensor | None = None  # x, y, w, h, score and centre in the last frame
        self._readable: Tensor | None = None  # the last frame that could be read
        self._bad: list[str] = []

    def step(self, first: int, frames: Sequence[Tensor | str], skipped: int = 0) -> list[ClipRow]:
        """Track the next frames.

        Args:
            first: index of the first of them.
            frames: (3, H, W) uint8 BGR on the network's device, or why a frame cannot be read.
            skipped: how many frames after these an earlier run has tracked, and nobody reads again.

        Returns:
            A row for each, those of an earlier run as they were.

        Raises:
            BadImageError: a frame cannot be read, and is not to be passed over.
            MisconfigurationException: the network gives numbers that are not finite.
        """
        found = [self._found(index, frame) for index, frame in enumerate(frames, first)]
        new = [values for values in found if isinstance(values, Tensor)]
        numbers = iter(torch.stack(new).tolist() if new else [])  # one copy from the device for all
        rows = []
        for index, values in enumerate(found, first):
            row = self._row(index, next(numbers)) if isinstance(values, Tensor) else values
            rows.append(row)
            if isinstance(frame := frames[index - first], Tensor):
                self._readable = frame
            assert self._readable is not None  # the first one was
            self.record.show(self._readable, row)
        done = self.clip.done
        self.record.write([row for row in rows if row.frame >= self.clip.start + len(done)])
        rows += done[len(rows) : len(rows) + skipped]
        self.frames += len(rows)
        return rows

    def _found(self, index: int, frame: Tensor | str) -> Tensor | ClipRow:
        clip, known = self.clip, index - self.clip.start
        if index == clip.start:
            if isinstance(frame, str):
                raise BadImageError(frame)
            self.tracker.init(frame, clip.box)
            if clip.done:
                self._restore(clip.done[-1])
                return clip.done[0]
            self._last = self._values(torch.tensor(clip.box, dtype=torch.float64), torch.tensor(1.0))
            return self._last
        if isinstance(frame, str) and not self.hold:
            raise BadImageError(f"{frame}; with --on_bad_frame hold it keeps the box of the frame before")
        if known < len(clip.done):
            return clip.done[known]
        if isinstance(frame, str):
            self._bad.append(frame)
            assert self._last is not None
            self._last = self._last.clone()
            self._last[4] = 0
        else:
            self._last = self._values(*self.tracker.track(frame))
        return self._last

    def _values(self, box: Tensor, score: Tensor) -> Tensor:
        assert self.tracker.state is not None  # after init
        centre = self.tracker.state.centre.flatten()
        return torch.cat([box.to(centre), score.reshape(1).to(centre), centre])

    def _restore(self, row: ClipRow) -> None:
        """Stand where an earlier run stood after this row; template and fill colour are those of the first frame."""
        state: Any = self.tracker.state
        values = torch.tensor(row[2:], dtype=torch.float64).to(state.centre)
        centre, size = (part.reshape(state.centre.shape) for part in (values[5:], values[2:4]))
        self.tracker.state, self._last = replace(state, centre=centre, size=size), values

    def _row(self, index: int, numbers: list[float]) -> ClipRow:
        row = ClipRow(self.clip.video.frame_name(index), index, *numbers)
        if not np.isfinite(numbers).all():
            raise MisconfigurationException(
                f"the box in frame {index} of {str(self.clip.video.path)!r} is not finite: this network is not "
                "trained, its training has diverged, or half precision overflows"
            )
        return row

    def close(self) -> None:
        """Complete the record, and tell which frames could not be read."""
        self.record.close()
        if self._bad:
            frames = f"unreadable frames of {str(self.clip.video.path)!r}, each kept the box before it"
            warnings.warn(f"{frames}: {len(self._bad)}; {self._bad[0]}", stacklevel=2)
