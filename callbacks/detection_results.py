"""DetectionResults: what a test of a face detector leaves: official files, tables by event and by size, curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchvision.ops import box_convert

from callbacks.detection_figures import false_positive_figure, precision_recall_figure
from callbacks.report import RunReport
from lit_methods.asfd.evaluation import DetectionFigures
from lit_methods.functional.boxes import pairwise_iou
from lit_methods.functional.processes import gather_objects
from lit_methods.functional.wider_files import prediction_path, write_predictions
from lit_methods.metrics.face_detection import wider_face_ap

HEIGHTS = (0, 10, 20, 40, 80, 160, float("inf"))  # of faces, pixels: the lower edges of the ranges, and an end
SURE = 0.5  # score from which on a face counts as found in the table of heights
OVERLAP = 0.5


class ImageRow(NamedTuple):
    """An image: its detections x, y, w, h, score, and its faces x, y, w, h, both float64."""

    position: int
    name: str
    detections: Tensor
    faces: Tensor


class DetectionResults(Callback):
    """Files, tables and curves of a test of a face detector.

    - ``detections/<event>/<image>.txt`` of the run's directory: WIDER FACE's official form, x, y, w, h and score in
      each line. ``test --predictions`` scores them again. They are left out where the faces came from such files.
    - table ``test/events``: images, faces and average precision of each event, every face counted.
    - table ``test/heights``: of the faces in each range of heights, how many there are and the part that was found, by
      a detection of score 0.5 or more and IoU of at least 0.5.
    - picture ``test/curves``: precision against recall of each level; of FDDB true positive rates against false ones.

    Example:
        >>> DetectionResults().rows
        []
    """

    def __init__(self) -> None:
        self.rows: list[ImageRow] = []
        self._result: Any = None  # of the metric, on all processes

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse images whose names cannot be those of files, before hours of detecting.

        Raises:
            ValueError: there is one; names it.
        """
        data: Any = getattr(trainer, "datamodule", None)
        if stage == "test" and hasattr(data, "evaluation_names"):
            for name in data.evaluation_names("test"):
                prediction_path(Path(), name)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A test of its own."""
        self.rows, self._result = [], None

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Write the files of a batch, and keep its rows.

        Raises:
            ValueError: the batch does not name its images.
        """
        figures = _figures(pl_module)
        if figures is None or not outputs:
            return
        if absent := [key for key in ("name", "index") if key not in batch]:
            raise ValueError(
                "DetectionResults writes a file for each image and sorts them, so a batch needs 'name', such as "
                f"'0--Parade/1', and 'index'; it lacks {', '.join(absent)}"
            )
        for number, found in enumerate(outputs["detections"]):
            name = batch["name"][number]
            detections = torch.cat([_xywh(found["boxes"]), found["scores"].double().cpu()[:, None]], dim=1)
            if getattr(pl_module, "predictions", None) is None:
                path = prediction_path(Path(trainer.default_root_dir, "detections"), name)
                write_predictions(path, Path(name).name, detections[:, :4], detections[:, 4])
            if not figures.ellipses:
                faces = _xywh(batch["boxes"][number])
                self.rows.append(ImageRow(int(batch["index"][number]), name, detections, faces))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put together what the processes have; all of them come here."""
        figures = _figures(pl_module)
        if figures is None:
            return
        rows = [row for part in gather_objects(self.rows) for row in part]
        self.rows = sorted(rows, key=lambda row: row.position)
        self._result = figures.result()  # computed here once: the module logs the same

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write tables and pictures."""
        figures, rows, result = _figures(pl_module), self.rows, self._result
        self.rows, self._result = [], None
        if figures is None or result is None or not trainer.is_global_zero:
            return
        report = RunReport.of(trainer)
        if figures.ellipses:
            report.figure(trainer, "test/curves", false_positive_figure(result))
            return
        report.table(trainer, "test/events", ["event", "images", "faces", "ap_all"], event_rows(rows))
        report.table(trainer, "test/heights", ["from", "below", "faces", "found"], height_rows(rows))
        report.figure(trainer, "test/curves", precision_recall_figure(result))


def event_rows(rows: Sequence[ImageRow]) -> list[list[Any]]:
    """Average precision of the images of each event, scores normalised over all images as in the whole set.

    Args:
        rows: one per image.

    Returns:
        event, images, faces, average precision or an empty text where there is no face; by event.

    Example:
        >>> box = torch.tensor([[10.0, 10, 20, 20]], dtype=torch.float64)
        >>> event_rows([ImageRow(0, "7--Fair/a", torch.cat([box, box[:, :1] / 20], 1), box)])
        [['7--Fair', 1, 1, 1.0]]
    """
    scores = torch.cat([row.detections[:, 4] for row in rows]) if rows else torch.empty(0)
    low, high = (float(scores.min()), float(scores.max())) if len(scores) else (0.0, 1.0)
    events: dict[str, list[ImageRow]] = {}
    for row in rows:
        events.setdefault(row.name.rpartition("/")[0], []).append(row)
    table: list[list[Any]] = []
    for event in sorted(events, key=_number_first):
        images = events[event]
        found = []
        for row in images:
            scaled = (row.detections[:, 4:] - low) / (high - low) if high > low else row.detections[:, 4:] * 0 + 1
            found.append(torch.cat([row.detections[:, :4], scaled], dim=1))
        faces = [row.faces for row in images]
        keeps = [torch.ones(len(each), dtype=torch.bool) for each in faces]
        ap = float(wider_face_ap(found, faces, keeps, normalize=False).ap)
        table.append([event, len(images), sum(map(len, faces)), ap if ap == ap else ""])
    return table


def height_rows(rows: Iterable[ImageRow]) -> list[list[Any]]:
    """How many faces of each height were found.

    Args:
        rows: one per image.

    Returns:
        lower edge, upper edge or an empty text, faces, part found or an empty text where there are none.

    Example:
        >>> box = torch.tensor([[10.0, 10, 20, 30]], dtype=torch.float64)
        >>> height_rows([ImageRow(0, "a", torch.cat([box, box[:, :1] / 20], 1), box)])[2]
        [20, 40, 1, 1.0]
    """
    heights, hits = [torch.empty(0)], [torch.empty(0, dtype=torch.bool)]
    for row in rows:
        sure = row.detections[row.detections[:, 4] >= SURE]
        overlap = pairwise_iou(*(box_convert(boxes, "xywh", "xyxy") for boxes in (row.faces, sure[:, :4])))
        heights.append(row.faces[:, 3])
        hits.append((overlap >= OVERLAP).any(dim=1))
    height, hit = torch.cat(heights), torch.cat(hits)
    table: list[list[Any]] = []
    for low, high in pairwise(HEIGHTS):
        chosen = (height >= low) & (height < high)
        part = float(hit[chosen].double().mean()) if chosen.any() else ""
        table.append([low, high if high < HEIGHTS[-1] else "", int(chosen.sum()), part])
    return table


def _number_first(event: str) -> tuple[int, str]:
    """``10--People`` behind ``9--Press``; names without a number come last."""
    number = event.partition("--")[0]
    return (int(number), event) if number.isdigit() else (10**9, event)


def _xywh(boxes: Tensor) -> Tensor:
    return box_convert(boxes.detach().cpu().double(), "xyxy", "xywh")


def _figures(module: Any) -> DetectionFigures | None:
    figures = getattr(module, "figures", None)
    found = figures.get("test") if isinstance(figures, Mapping) else None
    return found if isinstance(found, DetectionFigures) else None
