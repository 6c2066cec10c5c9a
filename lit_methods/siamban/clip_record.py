"""What is left of a clip while it is tracked: its rows, written as they come, and its film."""

from __future__ import annotations

import csv
import math
import os
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image
from torch import Tensor

from lit_methods.functional.frames import to_rgb_array
from lit_methods.functional.tracking_overlay import PREDICTED, draw_boxes
from lit_methods.functional.video import Video
from lit_methods.functional.video_writing import VideoWriter
from lit_methods.siamban.clip_rows import ClipRow, write_clip_rows

GIF_SIDE, GIF_FRAMES, GIF_FPS = 480, 300, 30.0  # the most of each that a GIF gets: it is large for what it shows


def film_suffix() -> str:
    """Films are ``.mp4`` where the package ``av`` is installed, else ``.gif``."""
    return ".mp4" if find_spec("av") else ".gif"


def drawn(picture: np.ndarray, row: ClipRow) -> np.ndarray:
    """A picture (H, W, 3) uint8 RGB with the box of its row, and the score in its corner."""
    return draw_boxes(picture, [((row.x, row.y, row.w, row.h), PREDICTED)], f"{row.score:.2f}")


class ClipRecord:
    """Rows and film of one clip.

    Args:
        video: that is tracked.
        done: rows of an earlier run; they come first in the file and are in it from the beginning.
        table: CSV file for the rows, or ``None``.
        film: ``.mp4`` or ``.gif``, or ``None``. A GIF has sides of at most 480 pixels and 30 frames per second, and of
            a longer video at most 300 frames, evenly spaced, so that it runs as fast as the video; of one that does not
            say how long it is, more.
    """

    def __init__(self, video: Video, done: tuple[ClipRow, ...], table: Path | None, film: Path | None) -> None:
        self.table, self.film = table, film
        self._every, self._scale = 1, 1.0
        if film is not None and film.suffix.lower() == ".gif":
            self._every = max(1, math.ceil((video.length or 0) / GIF_FRAMES), math.ceil(video.fps / GIF_FPS))
            self._scale = min(1.0, GIF_SIDE / max(video.size))
        self._writer = VideoWriter(film, video.fps / self._every) if film is not None else None
        self._shown = 0
        self._file: IO[str] | None = None
        if table is not None:
            table.parent.mkdir(parents=True, exist_ok=True)
            part = table.with_name(f".{table.name}.part")
            write_clip_rows(part, done)
            os.replace(part, table)  # at once: ``done`` may come from this very file
            self._file = table.open("a", newline="", encoding="utf-8")

    def show(self, frame: Tensor, row: ClipRow) -> None:
        """Add a frame to the film.

        Args:
            frame: (3, H, W) BGR, 0 to 255.
            row: what was found in it.
        """
        if self._writer is not None and self._shown % self._every == 0:
            image = drawn(to_rgb_array(frame), row)
            if self._scale < 1:
                size = [max(1, round(side * self._scale)) for side in (image.shape[1], image.shape[0])]
                image = np.asarray(Image.fromarray(image).resize((size[0], size[1]), Image.Resampling.BILINEAR))
            self._writer.add(image)
        self._shown += 1

    def write(self, rows: list[ClipRow]) -> None:
        """Append new rows to the file; what is written survives an interruption.

        Args:
            rows: of the frames that follow those written so far.
        """
        if self._file is not None:
            csv.writer(self._file, lineterminator="\n").writerows(rows)
            self._file.flush()

    def close(self) -> None:
        """Complete the film."""
        self._close_file()
        if self._writer is not None:
            self._writer.close()

    def abandon(self) -> None:
        """Keep the rows, drop the film."""
        self._close_file()
        if self._writer is not None:
            self._writer.abandon()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
