"""OwnPictures: find the faces in the user's own pictures and films."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lit_methods.asfd.face_record import FaceRecord
from lit_methods.asfd.own_files import FileBatches, OwnFile, own_files
from lit_methods.functional.box_drawing import draw_detections
from lit_methods.functional.options import CommandOptions


class OwnPictures(CommandOptions):
    """Mixin: ``predict`` finds the faces in pictures, folders of them, films and GIFs.

    ``predict_step`` gives for each picture a dict: ``face_boxes`` (k, 4) float32 xyxy in pixels, ``scores`` (k,), best
    first, ``width`` and ``height`` of the picture; ``file`` where that is known, and of films ``frame``, the index.
    All faces above the module's ``score_threshold`` are in it. Listed and drawn are those from ``min_score`` on:
    ``predictions.csv`` has a row for each face, ``predictions.json`` an entry for each picture, ``pictures/`` and
    ``videos/`` of the run's directory show them.

    The class that takes it has ``detect(images, multi_scale)``.
    """

    trainer: Any
    min_score = 0.5  # of what is listed and drawn
    _multi_scale: bool | None = None
    _files: Sequence[OwnFile] = ()  # of this prediction
    _record: FaceRecord | None = None
    _record_options: dict[str, Any]

    @classmethod
    def add_cli_arguments(cls, parser: Any, entry: str) -> None:
        """The options of ``predict``, beside those of other mixins."""
        super().add_cli_arguments(parser, entry)
        if entry == "predict":
            parser.add_argument("--min_score", type=float, default=0.5, help="faces from this score on are shown")
            parser.add_argument(
                "--multi_scale", type=bool | None, default=None, help="look in many sizes: slow, better"
            )
            parser.add_argument("--every", type=int, default=1, help="of a film, search one of so many frames")
            parser.add_argument("--txt", type=bool, default=False, help="write files for WIDER FACE's tool as well")

    def detect(self, images: Sequence[Tensor] | Tensor, multi_scale: bool | None = None) -> list[Tensor]:
        """Faces (k, 5) of each picture: x1, y1, x2, y2, score."""
        raise NotImplementedError

    def sift_inputs(
        self, paths: Sequence[str | Path], multi_scale: bool | None = None, **options: Any
    ) -> tuple[list[OwnFile], dict[Path, str]]:
        """The user's files that can be searched, and of the others the reason; the arguments are those of
        :meth:`prepare_inputs`."""
        _check(**options)
        hparams: Any = getattr(self, "hparams", {})
        return own_files(paths, hparams.get("multi_scale", False) if multi_scale is None else multi_scale)

    def prepare_inputs(
        self,
        paths: Sequence[str | Path | OwnFile],
        min_score: float = 0.5,
        multi_scale: bool | None = None,
        every: int = 1,
        txt: bool = False,
    ) -> FileBatches:
        """The user's files as batches for ``predict_step``.

        Args:
            paths: pictures, films and GIFs, folders of pictures; or what ``sift_inputs`` made of them. The rotation
                noted in EXIF is ignored.
            min_score: faces with such a score and above are listed and drawn.
            multi_scale: whether pictures are looked at in many sizes; ``None``: as the module says.
            every: of films, the first of so many frames is searched; what is drawn runs as fast as the film.
            txt: whether all faces, whatever their score, are also written to ``detections/`` of the run's directory, as
                WIDER FACE's tool reads them.

        Raises:
            FileNotFoundError: a path does not exist.
            ValueError: a path cannot be read, a side is below 128 pixels, or another argument does not fit.
        """
        _check(min_score=min_score, every=every)
        self.leave()
        files = [path for path in paths if isinstance(path, OwnFile)]
        if others := [path for path in paths if not isinstance(path, OwnFile)]:
            files, faults = self.sift_inputs(others, multi_scale)
            if faults:
                raise ValueError(next(iter(faults.values())))
        self.min_score, self._multi_scale, self._files = min_score, multi_scale, files
        self._record_options = {"every": every, "txt": txt}
        return FileBatches(files, every, self.leave)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, Any]]:
        """A dict per picture, as the class says.

        Args:
            batch: ``image``, (B, 3, H, W) or a list of (3, H, W) of any sizes, RGB, uint8 or in [0, 1]; with ``name``,
                a list of texts, they are the ``file`` of each.
            batch_idx: its number.
        """
        images = batch["image"]
        if not len(images):
            return []
        found = self.detect(_in_unit_range(images), self._multi_scale)
        results = []
        for row, (image, faces) in enumerate(zip(images, found, strict=True)):
            result: dict[str, Any] = {}
            if (names := batch.get("file", batch.get("name"))) is not None:
                result["file"] = names[row]
            if batch.get("frame", [None] * len(images))[row] is not None:
                result["frame"] = batch["frame"][row]
            result |= {"width": image.shape[2], "height": image.shape[1]}
            faces = faces.float().cpu()
            results.append(result | {"face_boxes": faces[:, :4].contiguous(), "scores": faces[:, 4].contiguous()})
        if "own" in batch:
            self._keep(batch, results)
        return results

    def _keep(self, batch: dict[str, Any], results: list[dict[str, Any]]) -> None:
        """Draw and write what has been found in the user's files."""
        if self._record is None:
            try:
                folder = Path(self.trainer.default_root_dir)
            except RuntimeError:  # in a script, without a Trainer
                return
            self._record = FaceRecord(folder, self.draw, **self._record_options)
        for row, result in enumerate(results):
            pixels = batch["image"][row].permute(1, 2, 0).cpu().numpy()
            self._record.add(self._files[batch["own"][row]], batch["frame"][row], pixels, result)
        if batch["ends"]:
            self._record.end_film()

    def leave(self) -> None:
        """Drop a film that is not complete."""
        record, self._record = self._record, None
        if record is not None:
            record.abandon()

    def draw(self, image: np.ndarray, prediction: dict[str, Any]) -> np.ndarray:
        """The picture with the faces from ``min_score`` on and their scores, and below them the true ones.

        Args:
            image: (H, W, 3) uint8 RGB.
            prediction: one dict of ``predict_step``; with ``boxes`` (n, 4) xyxy, these are the truth.

        Returns:
            (H, W, 3) uint8 RGB.
        """
        shown = prediction["scores"] >= self.min_score
        boxes, scores = prediction["face_boxes"][shown], prediction["scores"][shown]
        return draw_detections(image, boxes, scores, prediction.get("boxes"))

    def rows(self, prediction: dict[str, Any]) -> list[dict[str, Any]]:
        """A row for each face from ``min_score`` on: ``x1``, ``y1``, ``x2``, ``y2``, ``score``; of films ``frame`` too.

        Args:
            prediction: one dict of ``predict_step``.
        """
        frame = {"frame": prediction["frame"]} if "frame" in prediction else {}
        names = ("x1", "y1", "x2", "y2")
        return [frame | dict(zip(names, box, strict=True)) | {"score": score} for box, score in self._shown(prediction)]

    def record(self, prediction: dict[str, Any]) -> dict[str, Any]:
        """Size of the picture and its ``faces``, a ``box`` x1, y1, x2, y2 and a ``score`` each, from ``min_score`` on.

        Args:
            prediction: one dict of ``predict_step``.
        """
        told = {key: prediction[key] for key in ("frame", "width", "height") if key in prediction}
        return told | {"faces": [{"box": box, "score": score} for box, score in self._shown(prediction)]}

    def _shown(self, prediction: dict[str, Any]) -> list[tuple[list[float], float]]:
        boxes, scores = prediction["face_boxes"].tolist(), prediction["scores"].tolist()
        pairs = zip(boxes, scores, strict=True)
        return [
            ([round(v, 2) for v in box], round(score, 4)) for box, score in pairs if score >= self.min_score
        ]  # a hundredth of a pixel, and no more digits of float32 than there are


def _in_unit_range(images: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    if isinstance(images, Tensor):
        return images if images.is_floating_point() else images.float() / 255
    return [image if image.is_floating_point() else image.float() / 255 for image in images]


def _check(min_score: float = 0.5, every: int = 1, **options: Any) -> None:
    if not 0 <= min_score <= 1:
        raise ValueError(f"min_score={min_score} must lie in [0, 1]")
    if every < 1:
        raise ValueError(f"every={every} must be at least 1: of so many frames of a film one is searched")
