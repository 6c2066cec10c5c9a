"""Boxes and masks of what a sentence refers to, as metrics; beside the functions that they rest on."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_methods.functional.arguments import check_choices, check_ranges
from lit_methods.functional.boxes import box_area
from lit_methods.metrics.double import DoubleMetric

__all__ = [
    "GroundingAccuracy",
    "InconsistencyError",
    "MaskIoU",
    "MaskPrecision",
    "box_ious",
    "mask_counts",
    "mask_ious",
]
BOX_EPS, MASK_EPS = 1e-7, 1e-10  # added to intersection and union, as the official code does
Masks = Tensor | Sequence[Tensor]


@torch.no_grad()
def box_ious(pred: Tensor, target: Tensor) -> Tensor:
    """Overlap of each found box with the true one, (inter + 1e-7) / (union + 1e-7).

    Args:
        pred: ``(B, 4)`` x1, y1, x2, y2, any real type.
        target: ``(B, 4)``.

    Returns:
        ``(B,)`` float64, 0 where a box has NaN. An overlap of exactly one half is a little more than that; two boxes
        without area have 1, wherever they are. On an Apple GPU it comes back on the CPU.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        MCN's official code, without + 1 for pixels. A box whose sides are not in order has no area here, there a
        negative one.

    Example:
        >>> box_ious(torch.tensor([[0, 0, 2, 1], [0, 0, 0, 0]]), torch.tensor([[0.0, 0, 1, 1], [4, 4, 9, 9]]))
        tensor([5.0000e-01, 4.0000e-09], dtype=torch.float64)
    """
    if pred.ndim != 2 or pred.shape[1] != 4 or pred.shape != target.shape:
        raise ValueError(f"both must be (B, 4) boxes x1, y1, x2, y2, got {tuple(pred.shape)} and {tuple(target.shape)}")
    place = _place(pred)
    pred, target = pred.to(place).double(), target.to(place).double()
    shared = (torch.minimum(pred[:, 2:], target[:, 2:]) - torch.maximum(pred[:, :2], target[:, :2])).clamp(min=0)
    inter = shared.prod(1)
    union = box_area(pred) + box_area(target) - inter
    return ((inter + BOX_EPS) / (union + BOX_EPS)).nan_to_num(nan=0.0)


@torch.no_grad()
def mask_counts(pred: Masks, target: Masks, threshold: float = 0.35) -> tuple[Tensor, Tensor]:
    """Pixels in which each found mask and the true one agree, and those of both together.

    Args:
        pred: ``(B, h, w)``, or B of (h, w) of any sizes: bool, whole numbers of which all but 0 are foreground, or
            floating point, foreground above the threshold.
        target: likewise, all but 0 is foreground.
        threshold: for ``pred`` in floating point.

    Returns:
        ``inter`` and ``union``, ``(B,)`` int64 each, on the device of ``pred``.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        MCN's official code.

    Example:
        >>> prob, mask = torch.tensor([[[0.9, 0.3], [0.4, 0.2]]]), torch.tensor([[[1, 1], [0, 0]]])
        >>> mask_counts(prob, mask)
        (tensor([1]), tensor([3]))
    """
    if len(pred) != len(target):
        raise ValueError(f"as many found masks as true ones must come, got {len(pred)} and {len(target)}")
    counts = []
    for row, (found, truth) in enumerate(zip(pred, target, strict=True)):
        if found.ndim != 2 or found.shape != truth.shape:
            raise ValueError(
                f"found and true masks must be (h, w) of one size, got {tuple(found.shape)} and {tuple(truth.shape)} "
                f"in place {row}"
            )
        found = found > threshold if found.is_floating_point() else found.bool()
        truth = truth.bool().to(found.device)
        counts.append(torch.stack([(found & truth).count_nonzero(), (found | truth).count_nonzero()]))
    if not counts:
        none = torch.zeros(0, dtype=torch.int64, device=pred.device if isinstance(pred, Tensor) else None)
        return none, none.clone()
    inter, union = torch.stack(counts, 1)
    return inter, union


def mask_ious(inter: Tensor, union: Tensor) -> Tensor:
    """Overlap of masks, (inter + 1e-10) / (union + 1e-10).

    Args:
        inter: ``(B,)`` pixels, see :func:`mask_counts`.
        union: ``(B,)``.

    Returns:
        ``(B,)`` float64: 1 where both masks are empty, 0 but for 1e-10 where one is. On an Apple GPU it comes back on
        the CPU.

    Source:
        MCN's official code.

    Example:
        >>> mask_ious(torch.tensor([0, 0, 2]), torch.tensor([0, 9, 8]))
        tensor([1.0000e+00, 1.1111e-11, 2.5000e-01], dtype=torch.float64)
    """
    place = _place(inter)
    return (inter.to(place).double() + MASK_EPS) / (union.to(place).double() + MASK_EPS)


def _place(x: Tensor) -> torch.device:
    """Where float64 can be computed: not on Apple's GPUs."""
    return torch.device("cpu") if x.device.type == "mps" else x.device


class ReferringMetric(DoubleMetric):
    """Base of the metrics here: ``update`` takes one row per sentence, sums are all that is kept.

    The sums are whole numbers, or float64, and add up over batches and processes; a sentence that comes twice counts
    twice. Without any sentence the results are NaN. Subclasses name their ``counts``.

    Args:
        iou_threshold: a box, or a mask, is right above it.
        threshold: a pixel of a mask in floating point is foreground above it.
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: an argument out of range.
    """

    counts: tuple[str, ...] = ()  # names of states: int64 scalars that start at 0 and are summed over processes
    samples: Tensor

    def __init__(self, iou_threshold: float = 0.5, threshold: float = 0.35, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        values = {"iou_threshold": iou_threshold, "threshold": threshold}
        check_ranges(values, dict.fromkeys(values, (lambda v: 0 <= v < 1, "must lie in [0, 1)")))
        self.iou_threshold, self.threshold = iou_threshold, threshold
        for name in (*self.counts, "samples"):
            self.add_state(name, torch.zeros([], dtype=torch.int64), dist_reduce_fx="sum")

    def _count(self, samples: int) -> None:
        """More samples, which may come by another way than ``update``: results so far are out of date."""
        self.samples += samples
        self._computed, self._update_count = None, self._update_count + 1

    def _share(self, count: Tensor) -> Tensor:
        """Of the samples, float64."""
        return count.double() / self.samples

    def _mask_ious(self, pred_masks: Masks, target_masks: Masks) -> Tensor:
        return mask_ious(*mask_counts(pred_masks, target_masks, self.threshold))


class GroundingAccuracy(ReferringMetric):
    """Share of the sentences whose box is right, by :func:`box_ious`: Acc@0.5 of referring expression comprehension.

    An overlap of exactly 0.5 counts as right. Boxes with NaN are wrong.

    Args:
        iou_threshold: a box is right above it.
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: an argument out of range; from ``update``: shapes that do not fit.

    Source:
        MCN's official code.

    Example:
        >>> metric = GroundingAccuracy()
        >>> metric.update(torch.tensor([[0, 0, 2, 1], [0, 0, 3, 1]]), torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1]]))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = True
    counts = ("right",)
    right: Tensor

    def __init__(self, iou_threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(iou_threshold, **kwargs)

    def update(self, pred_boxes: Tensor, target_boxes: Tensor) -> None:
        """Add sentences, possibly none.

        Args:
            pred_boxes: (B, 4) xyxy, rounded.
            target_boxes: (B, 4) xyxy in the same frame.
        """
        self.add(box_ious(pred_boxes, target_boxes))

    def add(self, ious: Tensor) -> None:
        """Add sentences whose overlaps are known.

        Args:
            ious: (B,), of :func:`box_ious`.
        """
        self._count(len(ious))
        self.right += (ious > self.iou_threshold).sum().to(self.right.device)

    def compute(self) -> Tensor:
        """0-d float64 fraction of 1."""
        return self._share(self.right)


class MaskIoU(ReferringMetric):
    """Overlap of masks: its mean over sentences, or that of all their pixels together.

    Args:
        reduction: ``"mean"``, of :func:`mask_ious`; or ``"overall"``, all intersections by all unions, where large
            objects count more, and 1 where all masks are empty.
        threshold: a pixel of a mask in floating point is foreground above it.
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: an argument out of range; from ``update``: shapes that do not fit.

    Source:
        MCN's official code has the mean; tables of RefCOCO often have the overall one.

    Example:
        >>> pred, target = torch.tensor([[[1, 1, 1, 1]], [[1, 0, 0, 0]]]), torch.tensor([[[1, 0, 0, 0]]] * 2)
        >>> for reduction in ("mean", "overall"):
        ...     metric = MaskIoU(reduction)
        ...     metric.update(pred, target)
        ...     metric.compute()
        tensor(0.6250, dtype=torch.float64)
        tensor(0.4000, dtype=torch.float64)
    """

    higher_is_better = True
    counts = ("inter", "union")
    inter: Tensor
    union: Tensor
    total: Tensor

    def __init__(self, reduction: str = "mean", threshold: float = 0.35, **kwargs: Any) -> None:
        super().__init__(threshold=threshold, **kwargs)
        check_choices({"reduction": reduction}, {"reduction": ("mean", "overall")})
        self.reduction = reduction
        self.add_state("total", torch.zeros([], dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, pred_masks: Masks, target_masks: Masks) -> None:
        """Add sentences, possibly none.

        Args:
            pred_masks: (B, h, w), or B of (h, w), bool or floating point.
            target_masks: likewise, all but 0 is foreground.
        """
        self.add(*mask_counts(pred_masks, target_masks, self.threshold))

    def add(self, inter: Tensor, union: Tensor) -> None:
        """Add sentences whose pixels have been counted.

        Args:
            inter: (B,), of :func:`mask_counts`.
            union: (B,).
        """
        self._count(len(inter))
        self.inter += inter.sum().to(self.inter.device)
        self.union += union.sum().to(self.union.device)
        self.total += mask_ious(inter, union).sum().to(self.total.device)

    def compute(self) -> Tensor:
        """0-d float64 in [0, 1]."""
        if self.reduction == "mean":
            return self._share(self.total)
        return torch.where((self.union == 0) & (self.samples > 0), 1.0, self.inter.double() / self.union)


class MaskPrecision(ReferringMetric):
    """Share of the sentences whose mask overlaps the true one by more than X, for several X: Prec@X.

    Args:
        thresholds: X, fractions of 1 that differ when written with two digits.
        threshold: a pixel of a mask in floating point is foreground above it.
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: an argument out of range; from ``update``: shapes that do not fit.

    Source:
        MCN's official code.

    Example:
        >>> metric = MaskPrecision(thresholds=(0.5, 0.7))
        >>> metric.update(torch.tensor([[[1, 1, 1]]]), torch.tensor([[[1, 1, 0]]]))
        >>> {name: float(value) for name, value in metric.compute().items()}
        {'prec@0.50': 1.0, 'prec@0.70': 0.0}
    """

    higher_is_better = True
    hits: Tensor

    def __init__(
        self,
        thresholds: Sequence[float] = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
        threshold: float = 0.35,
        **kwargs: Any,
    ) -> None:
        super().__init__(threshold=threshold, **kwargs)
        self.thresholds = tuple(thresholds)
        self.names = [f"prec@{x:.2f}" for x in self.thresholds]
        if not self.names or len(set(self.names)) < len(self.names) or not all(0 <= x < 1 for x in self.thresholds):
            raise ValueError(
                f"thresholds={self.thresholds} must be numbers in [0, 1), at least one, that differ when written with "
                "two digits"
            )
        self.add_state("hits", torch.zeros(len(self.names), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, pred_masks: Masks, target_masks: Masks) -> None:
        """Add sentences, possibly none.

        Args:
            pred_masks: (B, h, w), or B of (h, w), bool or floating point.
            target_masks: likewise, all but 0 is foreground.
        """
        self.add(self._mask_ious(pred_masks, target_masks))

    def add(self, ious: Tensor) -> None:
        """Add sentences whose overlaps are known.

        Args:
            ious: (B,), of :func:`mask_ious`.
        """
        self._count(len(ious))
        limits = torch.tensor(self.thresholds, dtype=torch.float64, device=ious.device)
        self.hits += (ious[:, None] > limits).sum(0).to(self.hits.device)

    def compute(self) -> dict[str, Tensor]:
        """``prec@0.50`` and so on, in the order of ``thresholds``: 0-d float64 fractions of 1."""
        return dict(zip(self.names, self._share(self.hits), strict=True))


class InconsistencyError(ReferringMetric):
    """Share of the sentences of which either the box or the mask is right, but not both.

    Args:
        iou_threshold: box and mask are right above it, by :func:`box_ious` and :func:`mask_ious`.
        threshold: a pixel of a mask in floating point is foreground above it.
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: an argument out of range; from ``update``: shapes that do not fit.

    Source:
        MCN, arXiv 2003.08813, IE, as in the official code.

    Example:
        >>> metric = InconsistencyError()
        >>> box, mask = torch.tensor([[0.0, 0, 2, 2]]), torch.ones(1, 4, 4)
        >>> metric.update(box, box, mask, mask)
        >>> metric.update(box, box + 9, mask, mask)
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = False
    counts = ("torn",)
    torn: Tensor

    def update(self, pred_boxes: Tensor, target_boxes: Tensor, pred_masks: Masks, target_masks: Masks) -> None:
        """Add sentences, possibly none.

        Args:
            pred_boxes: (B, 4) xyxy, rounded.
            target_boxes: (B, 4) xyxy in the same frame.
            pred_masks: (B, h, w), or B of (h, w), bool or floating point.
            target_masks: likewise, all but 0 is foreground.
        """
        self.add(box_ious(pred_boxes, target_boxes), self._mask_ious(pred_masks, target_masks))

    def add(self, box_ious: Tensor, mask_ious: Tensor) -> None:
        """Add sentences whose overlaps are known.

        Args:
            box_ious: (B,), of the function of that name.
            mask_ious: (B,), likewise.
        """
        boxes, masks = box_ious > self.iou_threshold, mask_ious > self.iou_threshold
        if len(boxes) != len(masks):
            raise ValueError(f"there must be as many boxes as masks, got {len(boxes)} and {len(masks)}")
        self._count(len(boxes))
        self.torn += (boxes != masks.to(boxes.device)).sum().to(self.torn.device)

    def compute(self) -> Tensor:
        """0-d float64 fraction of 1."""
        return self._share(self.torn)
