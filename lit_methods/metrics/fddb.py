"""FDDB: how many of the faces, marked by ellipses, a detector finds until it has given so many false alarms."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lit_methods.functional.ellipses import rectangle_ellipse_iou
from lit_methods.metrics.rows import RowMetric

LEAST_OVERLAP = 0.5  # a discrete match has more


class FDDBResult(NamedTuple):
    """What FDDB reports.

    Args:
        discrete: 0-d float64, the share of the faces that are found with an overlap above 0.5, at the last point of the
            curve with so many false positives as asked for; NaN without a face.
        continuous: 0-d float64, the sum of the overlaps in place of the count.
        curves: by threshold, from the highest score down, (T,) each: ``threshold``, ``false_positives`` (int64),
            ``discrete`` and ``continuous``.
    """

    discrete: Tensor
    continuous: Tensor
    curves: dict[str, Tensor]


def fddb_scores(preds: Sequence[Tensor], ellipses: Sequence[Tensor], max_false_positives: int = 1000) -> FDDBResult:
    """True-positive rates of detections at a number of false positives.

    At every threshold, that is at each score there is, the detections of an image that reach it and its faces are
    matched one to one so that the sum of their overlaps is greatest. The overlap of a detection, a rectangle, and a
    face, an ellipse, is their area of intersection over that of union in pixels. A detection is a false positive unless
    it is matched with an overlap above 0.5, for both rates. All images are pooled, without folds.

    Args:
        preds: for each image (n, 5) x, y, w, h, score in any order, n may be 0; the region from x up to x + w.
        ellipses: for each image (m, 5) major radius, minor radius, angle, x and y of the centre, m may be 0, see
            :func:`~lit_methods.functional.ellipses.ellipse_rows`.
        max_false_positives: where the curves are read off.

    Returns:
        The two rates and their curves, on the CPU.

    Raises:
        ValueError: not as many images, shapes that do not fit, or numbers that are not finite.

    Source:
        Section 5 of the paper's file; the matching and what is a false positive as in FDDB's own tool (Results.cpp and
        Matching.cpp). Its regions are rounded before they are drawn, see
        :func:`~lit_methods.functional.ellipses.rectangle_ellipse_iou`.

    Example:
        >>> face = torch.tensor([[20.0, 15.0, 1.57, 50.0, 60.0]])
        >>> found = torch.tensor([[35.0, 40.0, 30.0, 40.0, 0.9], [0.0, 0.0, 9.0, 9.0, 0.8]])
        >>> result = fddb_scores([found], [face], max_false_positives=1)
        >>> float(result.discrete), round(float(result.continuous), 1), result.curves["false_positives"].tolist()
        (1.0, 0.8, [0, 1])
    """
    if len(preds) != len(ellipses):
        raise ValueError(f"preds and ellipses must have an entry for each image, got {len(preds)} and {len(ellipses)}")
    steps = [image_steps(found, faces) for found, faces in zip(preds, ellipses, strict=True)]
    joined = torch.cat([torch.empty(0, 4, dtype=torch.float64), *steps])
    return curves_of(joined, sum(map(len, ellipses)), max_false_positives)


def image_steps(found: Tensor, faces: Tensor) -> Tensor:
    """What each score of an image changes when the threshold comes down to it.

    Args:
        found: (n, 5) x, y, w, h, score.
        faces: (m, 5) ellipses.

    Returns:
        (k, 4) float64 on the CPU, highest score first: the score, and by how much the number of detections, the number
        of discrete matches and the sum of overlaps change.

    Raises:
        ValueError: shapes that do not fit, or numbers that are not finite.

    Example:
        >>> image_steps(torch.tensor([[0.0, 0.0, 4.0, 4.0, 0.5], [9.0, 9.0, 4.0, 4.0, 0.5]]), torch.empty(0, 5))
        tensor([[0.5000, 2.0000, 0.0000, 0.0000]], dtype=torch.float64)
    """
    if found.ndim != 2 or found.shape[1] != 5 or not found.isfinite().all():
        fault = tuple(found.shape) if found.isfinite().all() else "NaN or infinity; leave such detections out"
        raise ValueError(f"preds must be (n, 5) finite numbers x, y, w, h, score, got {fault}")
    found = found.detach().double().cpu()
    overlaps = rectangle_ellipse_iou(found[:, :4], faces).numpy()
    scores = found[:, 4].numpy()
    order = np.argsort(-scores, kind="stable")
    scores, overlaps = scores[order], overlaps[order]
    ends = np.flatnonzero(np.diff(scores, append=-np.inf)) + 1  # of equal scores
    touching: NDArray[np.bool_] = np.any(overlaps > 0, axis=1)  # nothing else changes a matching
    totals = np.zeros((len(ends) + 1, 3))
    totals[1:, 0] = ends
    begin = 0
    for k, end in enumerate(ends.tolist(), 1):
        if touching[begin:end].any():
            near = overlaps[:end][touching[:end]]
            matched = near[linear_sum_assignment(near, maximize=True)]
            totals[k, 1:] = (matched > LEAST_OVERLAP).sum(), matched.sum()
        else:
            totals[k, 1:] = totals[k - 1, 1:]
        begin = end
    return torch.from_numpy(np.concatenate([scores[ends - 1, None], np.diff(totals, axis=0)], 1))


def curves_of(steps: Tensor, faces: int, max_false_positives: int = 1000) -> FDDBResult:
    """Pool what the scores of all images change.

    Args:
        steps: (K, 4) of :func:`image_steps`, in any order.
        faces: how many there are.
        max_false_positives: where the curves are read off.

    Returns:
        The same for every order of the rows, to the last bit.

    Raises:
        ValueError: ``max_false_positives`` is below 0.

    Example:
        >>> steps = torch.tensor([[0.9, 1.0, 1.0, 0.75], [0.8, 2.0, 0.0, 0.0]], dtype=torch.float64)
        >>> float(curves_of(steps, faces=2, max_false_positives=1).discrete)
        0.5
    """
    if max_false_positives < 0:
        raise ValueError(f"max_false_positives must be 0 or more, got {max_false_positives}")
    rows = steps.double().cpu()
    for column in (3, 2, 1):
        rows = rows[rows[:, column].argsort(stable=True)]
    rows = rows[rows[:, 0].argsort(descending=True, stable=True)]
    last = torch.ones(len(rows), dtype=torch.bool)
    last[:-1] = rows[:-1, 0] != rows[1:, 0]
    count, discrete, continuous = rows[:, 1:].cumsum(0)[last].T
    false = (count - discrete).round().long()
    curves = {
        "threshold": rows[last, 0],
        "false_positives": false,
        "discrete": discrete / faces if faces else torch.full_like(discrete, torch.nan),
        "continuous": continuous / faces if faces else torch.full_like(continuous, torch.nan),
    }
    allowed = (false <= max_false_positives).nonzero()
    none = torch.tensor(0.0 if faces else torch.nan, dtype=torch.float64)
    at = int(allowed[-1]) if len(allowed) else None
    rates = [none if at is None else curves[name][at] for name in ("discrete", "continuous")]
    return FDDBResult(rates[0], rates[1], curves)


class FDDBScore(RowMetric):
    """Discrete and continuous true-positive rate of FDDB at a number of false positives.

    An image is matched when it comes, and of it remain four numbers for each of its scores. The result does not depend
    on the order, the batches or the processes in which images came. After ``compute``, ``result``
    (:class:`FDDBResult`) holds the curves; it is ``None`` before.

    Args:
        max_false_positives: where the curves are read off, 0 or more.
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: an argument out of range; from ``update``: see :func:`fddb_scores`.

    Source:
        :func:`fddb_scores`.

    Example:
        >>> metric, face = FDDBScore(), torch.tensor([[20.0, 15.0, 1.57, 50.0, 60.0]])
        >>> pred = {"boxes": torch.tensor([[35.0, 40.0, 65.0, 80.0]]), "scores": torch.tensor([0.9])}
        >>> metric.update([pred], [{"ellipses": face}])
        >>> {name: round(float(value), 1) for name, value in metric.compute().items()}
        {'discrete': 1.0, 'continuous': 0.8}
    """

    higher_is_better = True
    columns = {
        "score": torch.float64,
        "detections": torch.float64,
        "matches": torch.float64,
        "overlap": torch.float64,
    }
    score: list[Tensor] | Tensor
    detections: list[Tensor] | Tensor
    matches: list[Tensor] | Tensor
    overlap: list[Tensor] | Tensor
    faces: Tensor

    def __init__(self, max_false_positives: int = 1000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if max_false_positives < 0:
            raise ValueError(f"max_false_positives must be 0 or more, got {max_false_positives}")
        self.max_false_positives = max_false_positives
        self.add_state("faces", torch.zeros([], dtype=torch.int64), dist_reduce_fx="sum")
        self.result: FDDBResult | None = None

    def update(self, preds: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]) -> None:
        """Add images, possibly none.

        Args:
            preds: for each image ``boxes`` (n, 4), xyxy in pixels, and ``scores`` (n,).
            targets: for each image ``ellipses`` (m, 5).
        """
        if len(preds) != len(targets):
            raise ValueError(f"preds and targets must have an entry for each image, got {len(preds)}, {len(targets)}")
        steps = []
        for pred, target in zip(preds, targets, strict=True):
            boxes, scores = pred["boxes"].detach().double().cpu(), pred["scores"].detach().double().cpu()
            if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
                raise ValueError(
                    f"preds must have boxes (n, 4) and scores (n,), got {tuple(boxes.shape)} and {tuple(scores.shape)}"
                )
            xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
            steps.append(image_steps(torch.cat([xywh, scores[:, None]], 1), target["ellipses"]))
        for rows in steps:
            self.keep(*rows.to(self.faces.device if self.faces.device.type != "mps" else "cpu").T)
        self.faces += sum(len(target["ellipses"]) for target in targets)

    def compute(self) -> dict[str, Tensor]:
        """``discrete`` and ``continuous``: 0-d float64 fractions of 1, NaN without a face."""
        table = self.table()
        steps = torch.stack(table, 1) if table else torch.empty(0, 4, dtype=torch.float64)
        self.result = curves_of(steps, int(self.faces), self.max_false_positives)
        return {"discrete": self.result.discrete, "continuous": self.result.continuous}
