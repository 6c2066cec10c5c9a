"""The figures of tracked sequences, one-pass or with resets, as their benchmark has it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from lit_methods.metrics.tracking import OPENormPrecision, OPEPrecision, OPESuccess, VOTReset
from lit_methods.siamban.runs import Track, track_sequences, track_with_resets
from lit_methods.siamban.tracker import SiamBANTracker

RESETS = {"vot2018": "VOT2018", "vot2019": "VOT2019"}  # benchmarks that start a lost tracker again


class TrackingFigures:
    """Figures of the sequences of one stage, all processes together.

    One pass: ``success_auc``, ``precision`` at 20 pixels, ``norm_precision`` at 0.20, ``norm_precision_auc``, the same
    area of a tracker that keeps its first box, ``success_auc_static``, and ``score``, the mean over the frames. VOT:
    ``accuracy``, ``robustness`` (percent), ``lost`` and ``eao``.

    Args:
        protocol: of the precisions, ``"toolkit"`` or ``"strict"``.

    Example:
        >>> figures = TrackingFigures()
        >>> boxes = torch.tensor([[10.0, 10, 20, 20]] * 3)
        >>> figures.update({"boxes": [boxes], "present": [None]}, [Track(boxes.double(), torch.ones(3))])
        >>> {name: round(float(value), 2) for name, value in figures.compute().items()}["success_auc"]
        0.95
    """

    def __init__(self, protocol: str = "toolkit") -> None:
        self.protocol = protocol
        self.begin()

    def begin(self, benchmark: str | None = None, device: torch.device | str = "cpu") -> None:
        """Forget what was seen, and learn which benchmark it is.

        Args:
            benchmark: ``"vot2018"`` and ``"vot2019"`` are evaluated with resets, all others in one pass.
            device: of the metrics.
        """
        self.benchmark = benchmark
        if self.resets:
            self.metrics: dict[str, Metric] = {"vot": VOTReset(RESETS[str(benchmark)])}
        else:
            self.metrics = {
                "success_auc": OPESuccess(),
                "precision": OPEPrecision(self.protocol),
                "norm_precision": OPENormPrecision(self.protocol),
                "norm_precision_auc": OPENormPrecision(self.protocol, summary="auc"),
                "success_auc_static": OPESuccess(),
                "score": MeanMetric(nan_strategy="ignore"),
            }
        for metric in self.metrics.values():
            metric.to(device)

    @property
    def resets(self) -> bool:
        """Whether a tracker that has lost its target is started again."""
        return self.benchmark in RESETS

    def follow(self, tracker: SiamBANTracker, batch: dict[str, Any]) -> list[Track]:
        """Track the sequences of a batch as the benchmark has it: at once, or each with resets.

        Args:
            tracker: begins anew.
            batch: of sequences.
        """
        if not batch["boxes"]:  # a process with fewer sequences than another
            return []
        if not self.resets:
            first = torch.stack([boxes[0] for boxes in batch["boxes"]])
            return track_sequences(tracker, batch["frames"], first)
        rows = zip(batch["frames"], batch["polygons"], strict=True)
        return [track_with_resets(tracker, frames, polygons) for frames, polygons in rows]

    def update(self, batch: dict[str, Any], tracks: Sequence[Track]) -> None:
        """Add tracked sequences.

        Args:
            batch: of sequences.
            tracks: of the tracker, one for each.
        """
        for number, track in enumerate(tracks):
            if self.resets:
                polygons = batch["polygons"][number]
                self.metrics["vot"].update(track.boxes_xywh, track.state, polygons, track.image_wh)
                continue
            boxes, present = batch["boxes"][number], batch["present"][number]
            for name in ("success_auc", "precision", "norm_precision", "norm_precision_auc"):
                self.metrics[name].update(track.boxes_xywh, boxes, present)
            self.metrics["success_auc_static"].update(track.boxes_xywh[:1].expand_as(track.boxes_xywh), boxes, present)
            self.metrics["score"].update(track.scores)
            if lost := int(track.scores.isnan().sum()):
                warnings.warn(
                    f"{batch['name'][number]}: the network's answer is not finite in {lost} of {len(boxes)} frames, "
                    "each kept the box before it: training has diverged, or only just begun",
                    stacklevel=2,
                )

    def compute(self) -> dict[str, Tensor]:
        """All figures by name, 0-d; every process has to call."""
        if self.resets:
            return self.metrics["vot"].compute()
        found = {name: metric.compute() for name, metric in self.metrics.items()}
        if found["score"].isnan():  # boxes out of files have no scores
            del found["score"]
        return found
