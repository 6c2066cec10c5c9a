"""TrackingResults: what a test of a tracker leaves: its boxes in files, tables by sequence and attribute, curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.report import RunReport
from callbacks.tracking_figures import expected_overlap_figure, ope_figure
from lit_methods.functional.ope import OPECurves, norm_precision_curve, ope_curves, precision_curve, summarize
from lit_methods.functional.processes import gather_objects
from lit_methods.functional.vot import FAILURE, vot_overlaps
from lit_methods.metrics.tracking import BURN_IN, CurveMetric
from lit_methods.siamban.evaluation import RESETS, TrackingFigures
from lit_methods.siamban.results import result_path, write_boxes, write_vot_run

if TYPE_CHECKING:
    from lit_methods.siamban.runs import Track

FIGURES = ("success_auc", "precision", "norm_precision")
STATIC = "first box kept"  # in the legend


class OPERow(NamedTuple):
    """A video of one-pass evaluation: its figures, and the precisions of a tracker that keeps its first box."""

    position: int
    name: str
    frames: int
    figures: dict[str, float]
    attributes: tuple[str, ...]
    static: tuple[Tensor, Tensor]


class VOTRow(NamedTuple):
    """A VOT sequence: failures, overlaps past the burn-in, NaN where there is none, and the frames that are tagged."""

    position: int
    name: str
    failed: Tensor
    overlaps: Tensor
    tags: dict[str, Tensor]


class TrackingResults(Callback):
    """Files, tables and curves of a test of a tracker.

    - ``results/`` of the run's directory: the boxes as the toolkits have them, ``<video>.txt`` with lines x,y,w,h, or
      of VOT ``baseline/<video>/<video>_001.txt``. ``test --results`` scores them again. They are left out where the
      boxes came from such files.
    - table ``test/sequences``: frames and figures of each video; of VOT failures and mean overlap.
    - table ``test/attributes``: figures over the videos with an attribute, where attributes are known. VOT tags single
      frames: their mean overlap, and the failures in them.
    - picture ``test/curves``: success, precision and normalised precision, beside those of a tracker that keeps its
      first box; of VOT the overlap to expect against the length of a sequence.

    Example:
        >>> TrackingResults().rows
        []
    """

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self._curves: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse videos whose names cannot be those of files, before hours of tracking.

        Raises:
            ValueError: there is one; names it.
        """
        if stage == "test" and _figures(pl_module) is not None:
            for sequence in _sequences(trainer):
                result_path(Path(), sequence.name)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A test of its own."""
        self.rows, self._curves = [], {}

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Write the files of a batch, and keep its rows."""
        figures = _figures(pl_module)
        if figures is None or not outputs:
            return
        tracks: Sequence[Track] = outputs["tracks"]
        known = _sequences(trainer)
        for number, track in enumerate(tracks):
            index, name = int(batch["index"][number]), batch["name"][number]
            if getattr(pl_module, "results", None) is None:
                path = result_path(Path(trainer.default_root_dir, "results"), name, figures.resets)
                if track.state is None:
                    write_boxes(path, track.boxes_xywh)
                else:
                    write_vot_run(path, track.boxes_xywh, track.state)
            sequence = known[index] if known else None
            if figures.resets:
                tags = getattr(sequence, "tags", {})
                self.rows.append(_vot_row(index, name, track, batch["polygons"][number], tags))
            else:
                truth = batch["boxes"][number], batch["present"][number]
                attributes = getattr(sequence, "attributes", ())
                self.rows.append(_ope_row(index, name, track, *truth, figures.protocol, attributes))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put together what the processes have; all of them come here."""
        figures = _figures(pl_module)
        if figures is None:
            return
        rows = [row for part in gather_objects(self.rows) for row in part]
        self.rows = sorted(rows, key=lambda row: row.position)  # however many processes there are
        if rows:  # computed here once: the module logs the same
            self._curves = {
                name: metric.curve().cpu()
                for name, metric in figures.metrics.items()
                if isinstance(metric, CurveMetric)
            }

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write tables and pictures."""
        figures, rows, curves = _figures(pl_module), self.rows, self._curves
        self.rows, self._curves = [], {}
        if figures is None or not rows or not trainer.is_global_zero:
            return
        report, name = RunReport.of(trainer), getattr(pl_module, "tracker_name", None) or type(pl_module).__name__
        if figures.resets:
            report.table(trainer, "test/sequences", ["name", "frames", "failures", "overlap"], _vot_sequences(rows))
            if by_tag := _vot_tags(rows):
                report.table(trainer, "test/attributes", ["attribute", "frames", "failures", "overlap"], by_tag)
            figure = expected_overlap_figure(name, curves["vot"], RESETS[str(figures.benchmark)])
        else:
            listed = [[row.name, row.frames, *(row.figures[each] for each in FIGURES)] for row in rows]
            report.table(trainer, "test/sequences", ["name", "frames", *FIGURES], listed)
            if by_attribute := _ope_attributes(rows):
                report.table(trainer, "test/attributes", ["attribute", "videos", *FIGURES], by_attribute)
            static = [torch.stack(parts).mean(0) for parts in zip(*(row.static for row in rows), strict=True)]
            named = {
                name: OPECurves(*(curves[each] for each in FIGURES)),
                STATIC: OPECurves(curves["success_auc_static"], *static),
            }
            figure = ope_figure(named)
        report.figure(trainer, "test/curves", figure)


def _figures(module: Any) -> TrackingFigures | None:
    figures = getattr(module, "figures", None)
    found = figures.get("test") if isinstance(figures, Mapping) else None
    return found if isinstance(found, TrackingFigures) else None


def _sequences(trainer: Trainer) -> Sequence[Any]:
    """The videos in the order of their index, for attributes; nothing where the data do not tell."""
    data: Any = getattr(trainer, "datamodule", None)
    return data.evaluation_sequences("test") if hasattr(data, "evaluation_sequences") else ()


def _ope_row(
    index: int,
    name: str,
    track: Track,
    target: Tensor,
    present: Tensor | None,
    protocol: str,
    attributes: tuple[str, ...],
) -> OPERow:
    boxes, target = track.boxes_xywh.cpu(), target.cpu()
    present = None if present is None else present.cpu()
    figures = summarize([ope_curves(boxes, target, present, protocol)])
    kept = boxes[:1].expand_as(boxes)
    static = (
        precision_curve(kept, target, present, protocol),
        norm_precision_curve(kept, target, present, protocol),
    )
    return OPERow(index, name, len(boxes), figures, attributes, static)


def _ope_attributes(rows: Iterable[OPERow]) -> list[list[Any]]:
    """Means over the videos with each attribute; as figures of mean curves they are the same."""
    rows = list(rows)
    table: list[list[Any]] = []
    for attribute in sorted({attribute for row in rows for attribute in row.attributes}):
        chosen = [row.figures for row in rows if attribute in row.attributes]
        means = [sum(figures[each] for figures in chosen) / len(chosen) for each in FIGURES]
        table.append([attribute, len(chosen), *means])
    return table


def _vot_row(index: int, name: str, track: Track, polygons: Tensor, tags: Mapping[str, Any]) -> VOTRow:
    state = track.state
    assert state is not None  # a run with resets has codes
    overlaps = vot_overlaps(track.boxes_xywh.cpu(), state.cpu(), polygons.cpu(), track.image_wh, BURN_IN)
    return VOTRow(index, name, state.cpu() == FAILURE, overlaps, {tag: torch.as_tensor(on) for tag, on in tags.items()})


def _vot_sequences(rows: Iterable[VOTRow]) -> list[list[Any]]:
    return [[row.name, len(row.overlaps), int(row.failed.sum()), _mean(row.overlaps)] for row in rows]


def _vot_tags(rows: Iterable[VOTRow]) -> list[list[Any]]:
    """Figures of the frames with each tag, over all sequences."""
    rows = list(rows)
    table: list[list[Any]] = []
    for tag in sorted({tag for row in rows for tag in row.tags}):
        chosen = [(row, row.tags[tag]) for row in rows if tag in row.tags]
        frames = sum(int(on.sum()) for _, on in chosen)
        if not frames:
            continue
        failures = sum(int((row.failed & on).sum()) for row, on in chosen)
        table.append([tag, frames, failures, _mean(torch.cat([row.overlaps[on] for row, on in chosen]))])
    return table


def _mean(overlaps: Tensor) -> float | str:
    """The mean of the finite ones; a missing value where there is none."""
    return float(overlaps.nanmean()) if overlaps.isfinite().any() else ""
