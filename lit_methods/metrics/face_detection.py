"""Detection of faces by WIDER FACE's rules, over batches and processes; beside the function that it rests on."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import rank_zero_warn

from lit_methods.functional.wider_ap import (
    WiderFaceResult,
    average_over_thresholds,
    check_finite,
    check_matching,
    flat_boxes,
    flat_flags,
    match_detections,
    normalized_scores,
    wider_face_ap,
)
from lit_methods.metrics.rows import RowMetric

__all__ = ["WIDERFaceAP", "WiderFaceResult", "wider_face_ap"]
ALL = "all"  # the level in which every face counts
MOST_LEVELS = 30  # two bits each in an int64, and two for all faces


class WIDERFaceAP(RowMetric):
    """Average precision on each level of WIDER FACE, and ``all``, where every face counts; NaN without a face.

    A detection is matched when it comes, and of it stay its score and what became of it in each level, 16 bytes. Scores
    are scaled over all images of all processes in ``compute``. The result does not depend on the order of images, nor
    on how they are shared out, to the last bit; an image that comes twice counts twice.

    Detections with NaN or infinity, such as those of a network that diverges, are left out, with one warning.
    After ``compute``, ``result`` has the curves, a :class:`~lit_methods.functional.wider_ap.WiderFaceResult` of each
    level; it is ``None`` before and stays until the next ``compute``.

    Args:
        levels: their names, without ``all``; a target says in ``keep_<level>`` which faces count. Empty where the data
            have none.
        iou_threshold: least overlap of a detection with its face.
        num_thresholds: of scores.
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: an argument out of range; from ``update``: shapes that do not fit, targets without a level's flags,
            or faces that are not finite.

    Source:
        See :func:`~lit_methods.functional.wider_ap.wider_face_ap`.

    Example:
        >>> metric = WIDERFaceAP(levels=("easy",))
        >>> boxes = torch.tensor([[0.0, 0, 9, 9], [20, 20, 24, 24], [40, 40, 44, 44]])
        >>> target = {"boxes": boxes[:2], "keep_easy": torch.tensor([True, False])}
        >>> metric.update([{"boxes": boxes, "scores": torch.tensor([0.9, 0.7, 0.8])}], [target])
        >>> {name: round(float(value), 4) for name, value in metric.compute().items()}
        {'easy': 1.0, 'all': 0.8333}
    """

    higher_is_better = True
    columns = {"scores": torch.float64, "outcomes": torch.int64}
    scores: list[Tensor] | Tensor
    outcomes: list[Tensor] | Tensor
    faces: Tensor
    dropped: Tensor

    def __init__(
        self,
        levels: Sequence[str] = ("easy", "medium", "hard"),
        iou_threshold: float = 0.5,
        num_thresholds: int = 1000,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_matching(iou_threshold, num_thresholds)
        if isinstance(levels, str) or len(set(levels)) < len(levels) or ALL in levels or len(levels) > MOST_LEVELS:
            raise ValueError(
                f"levels must be a list of up to {MOST_LEVELS} different names such as easy, medium and hard, without "
                f"{ALL!r}, which is always there; got {levels!r}"
            )
        self.levels = tuple(levels)
        self.iou_threshold, self.num_thresholds = iou_threshold, num_thresholds
        self.add_state("faces", torch.zeros(len(self.levels) + 1, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("dropped", torch.zeros([], dtype=torch.int64), dist_reduce_fx="sum")
        self.result: dict[str, WiderFaceResult] | None = None

    def update(self, preds: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]) -> None:
        """Add images, possibly none; detections in any order, and on any device.

        Args:
            preds: for each image ``boxes`` (n, 4) xyxy in pixels, and ``scores`` (n,).
            targets: for each image ``boxes`` (m, 4) xyxy, where x2 = x + w, and ``keep_<level>`` (m,) bool for each
                level.
        """
        if len(preds) != len(targets):
            raise ValueError(f"preds has {len(preds)} images and targets {len(targets)}; give one of each per image")
        place = torch.device("cpu") if self.device.type == "mps" else self.device  # which has no float64
        found, truth = [pred["boxes"].detach() for pred in preds], [target["boxes"].detach() for target in targets]
        boxes, images = flat_boxes("preds[{}]['boxes']", found, "x1, y1, x2, y2", device=place)
        faces, face_images = flat_boxes("targets[{}]['boxes']", truth, "x1, y1, x2, y2", device=place)
        check_finite("targets[{}]['boxes']", faces, face_images)
        scores = self._scores(preds).to(place)
        keeps = torch.stack(
            [
                *(self._flags(level, targets, truth).to(place) for level in self.levels),
                torch.ones(len(faces), dtype=torch.bool, device=place),
            ]
        )
        finite = boxes.isfinite().all(1) & scores.isfinite()
        boxes, scores, images = boxes[finite], scores[finite], images[finite]
        outcomes = match_detections(boxes, scores, images, faces, face_images, keeps, self.iou_threshold)
        self.keep(scores, self._packed(*outcomes))
        self.faces += keeps.sum(1).to(self.faces.device)
        self.dropped += (~finite).sum().to(self.dropped.device)

    def compute(self) -> dict[str, Tensor]:
        """The levels, in their order, and ``all``: 0-d float64 fractions of 1."""
        if self.dropped:
            rank_zero_warn(
                f"WIDERFaceAP left out {int(self.dropped)} detections with NaN or infinity in box or score; a network "
                "that diverges, or half precision that overflows, gives such"
            )
        table = self.table()
        scores, outcomes = table if table else (torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))
        scores = normalized_scores(scores)
        self.result = {}
        for place, (name, faces) in enumerate(zip((*self.levels, ALL), self.faces.tolist(), strict=True)):
            counted, found = ((outcomes >> (2 * place + bit)) & 1 for bit in (0, 1))
            self.result[name] = average_over_thresholds(
                scores, counted.bool(), found.bool(), faces, self.num_thresholds
            )
        return {name: result.ap for name, result in self.result.items()}

    @staticmethod
    def _scores(preds: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Those of all images, float64; of Apple's GPUs on the CPU."""
        parts = [pred["scores"].detach() for pred in preds]
        for i, (part, pred) in enumerate(zip(parts, preds, strict=True)):
            if part.shape != (count := pred["boxes"].shape[:1]):
                raise ValueError(
                    f"preds[{i}]['scores'] must be ({count[0]},), as many as boxes, got {tuple(part.shape)}"
                )
        flat = torch.cat(parts) if parts else torch.zeros(0)
        return (flat.cpu() if flat.device.type == "mps" else flat).double()

    @staticmethod
    def _flags(level: str, targets: Sequence[Mapping[str, Tensor]], faces: Sequence[Tensor]) -> Tensor:
        """The faces of all images that count in a level, (M,) bool."""
        key = f"keep_{level}"
        for i, target in enumerate(targets):
            if key not in target:
                raise ValueError(
                    f"targets[{i}] lacks {key!r}, the faces that count in the level {level!r}: data with the "
                    "evaluation's .mat files have it; without them, say levels=() and read 'all'"
                )
        return flat_flags(f"targets[{{}}][{key!r}]", [target[key] for target in targets], faces)

    @staticmethod
    def _packed(counted: Tensor, found: Tensor) -> Tensor:
        """Two bits for each level, whether a detection is a proposal and whether it finds a face; (n,) int64."""
        bits = torch.stack([counted, found], 1).flatten(0, 1).long()
        places = torch.arange(len(bits), device=bits.device)
        return (bits << places[:, None]).sum(0)
