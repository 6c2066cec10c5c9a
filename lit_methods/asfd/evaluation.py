"""The figures of found faces: WIDER FACE's average precisions, or FDDB's true positive rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from lit_methods.metrics.face_detection import WIDERFaceAP
from lit_methods.metrics.fddb import FDDBScore


class DetectionFigures:
    """Figures of the images of one stage, all processes together.

    WIDER FACE: ``ap_easy``, ``ap_medium`` and ``ap_hard``, where the data know their levels, and ``ap_all``, in which
    every face counts. FDDB: ``fddb_discrete`` and ``fddb_continuous``, true positive rates at 1,000 false positives.
    Both: ``detections``, how many a picture has on average.

    Example:
        >>> figures = DetectionFigures()
        >>> faces = {"boxes": torch.tensor([[10.0, 10, 30, 30]]), "scores": torch.ones(1)}
        >>> figures.update({"boxes": [faces["boxes"]]}, [faces])
        >>> {name: float(value) for name, value in figures.compute().items()}
        {'ap_all': 1.0, 'detections': 1.0}
    """

    def __init__(self) -> None:
        self.begin()

    def begin(
        self, levels: Sequence[str] = (), ellipses: bool = False, device: torch.device | str = "cpu"
    ) -> DetectionFigures:
        """Forget what was seen, and learn what the data know of their faces.

        Args:
            levels: names of the levels whose faces batches mark under ``keep_<level>``.
            ellipses: whether faces are ellipses, those of FDDB.
            device: of the metrics.
        """
        self.levels = () if ellipses else tuple(levels)
        self.metric: Metric = FDDBScore() if ellipses else WIDERFaceAP(self.levels)
        self.count = MeanMetric()
        for metric in (self.metric, self.count):
            metric.to(device)
        return self

    @property
    def ellipses(self) -> bool:
        """Whether these are FDDB's figures."""
        return isinstance(self.metric, FDDBScore)

    def update(self, batch: Mapping[str, Any], preds: Sequence[Mapping[str, Tensor]]) -> None:
        """Add the images of a batch.

        Args:
            batch: of an evaluation, possibly of no images.
            preds: for each image ``boxes`` (n, 4) xyxy in pixels, and ``scores`` (n,).
        """
        if not preds:
            return
        keys = ["ellipses"] if self.ellipses else ["boxes", *(f"keep_{level}" for level in self.levels)]
        self.metric.update(preds, [{key: batch[key][row] for key in keys} for row in range(len(preds))])
        self.count.update(torch.tensor([float(len(each["scores"])) for each in preds], device=self.count.device))

    def result(self) -> Any:
        """Figures with their curves: of FDDB an ``FDDBResult``, else a ``WiderFaceResult`` for each level.

        As for :meth:`compute`, every process has to call.
        """
        self.metric.compute()
        return self.metric.result

    def compute(self) -> dict[str, Tensor]:
        """All figures by name, 0-d; every process has to call."""
        found = self.metric.compute()
        prefix = "fddb" if self.ellipses else "ap"
        return {f"{prefix}_{name}": value for name, value in found.items()} | {"detections": self.count.compute()}
