"""What is left of the user's pictures and films: drawn ones, and detections in text files."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert

from lit_methods.asfd.own_files import OwnFile, unique
from lit_methods.functional.video import Video
from lit_methods.functional.video_writing import VideoWriter
from lit_methods.functional.wider_files import write_predictions

GIF_SIDE, GIF_FRAMES, GIF_FPS = 480, 300, 30.0  # the most of each that a GIF gets: it is large for what it shows


class FaceRecord:
    """Writes into a folder, as results come: ``pictures/<name>.png``, ``videos/<name>.mp4`` and ``detections/``.

    Without the package ``av`` films are ``.gif``, with sides of at most 480 pixels, 30 frames per second, and of a
    longer film 300 frames, evenly spaced.

    Args:
        folder: the run's directory.
        draw: a picture (H, W, 3) uint8 and its result to the drawn picture.
        every: of a film, one of so many frames comes.
        txt: whether detections are written as WIDER FACE's tool reads them: of a picture as
            ``detections/<its folder>/<its name>.txt``, of a frame as ``detections/<film>/<index>.txt``.
    """

    def __init__(self, folder: Path, draw: Callable[..., np.ndarray], every: int = 1, txt: bool = False) -> None:
        self.folder, self.draw, self.every, self.txt = folder, draw, every, txt
        self._film: _Film | None = None
        self._texts: set[str] = set()

    def add(self, file: OwnFile, frame: int | None, image: np.ndarray, result: dict[str, Any]) -> None:
        """A picture, or the next frame of a film.

        Args:
            file: that it is from.
            frame: index in a film.
            image: (H, W, 3) uint8 RGB.
            result: of ``predict_step``.
        """
        if self.txt:
            self._write(file, frame, result["face_boxes"], result["scores"])
        if file.video is None:
            path = self.folder / "pictures" / f"{file.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(self.draw(image, result)).save(path)
            return
        if self._film is None:
            suffix = ".mp4" if find_spec("av") else ".gif"
            self._film = _Film(self.folder / "videos" / f"{file.name}{suffix}", file.video, self.every)
        self._film.add(self.draw(image, result))

    def end_film(self) -> None:
        """Complete the film that is open, if one is."""
        film, self._film = self._film, None
        if film is not None:
            film.writer.close()

    def abandon(self) -> None:
        """Drop a film that is not complete; everything else stays."""
        film, self._film = self._film, None
        if film is not None:
            film.writer.abandon()

    def _write(self, file: OwnFile, frame: int | None, boxes: Tensor, scores: Tensor) -> None:
        if frame is None:
            name = f"{file.path.resolve().parent.name or 'root'}/{file.path.stem}"
        else:
            name = f"{file.name}/{frame:06}"
        name = unique(name, self._texts)
        xywh = box_convert(boxes, "xyxy", "xywh")
        write_predictions(self.folder / "detections" / f"{name}.txt", name.rpartition("/")[2], xywh, scores)


class _Film:
    def __init__(self, path: Path, video: Video, every: int) -> None:
        self.step, self.scale, self.count = 1, 1.0, 0
        fps = video.fps / every
        if path.suffix == ".gif":
            frames = (video.length or 0) / every
            self.step = max(1, math.ceil(frames / GIF_FRAMES), math.ceil(fps / GIF_FPS))
            self.scale = min(1.0, GIF_SIDE / max(video.size))
        self.writer = VideoWriter(path, fps / self.step)

    def add(self, drawn: np.ndarray) -> None:
        if self.count % self.step == 0:
            if self.scale < 1:
                width, height = (max(1, round(side * self.scale)) for side in drawn.shape[1::-1])
                drawn = np.asarray(Image.fromarray(drawn).resize((width, height), Image.Resampling.BILINEAR))
            self.writer.add(drawn)
        self.count += 1
