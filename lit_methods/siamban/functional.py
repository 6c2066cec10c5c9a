"""The arithmetic of SiamBAN: correlation, losses, boxes from distances, penalties and learning rates.

Points and labels, crops, views and regions have files of their own; their names are here, too. float64 stays float64,
all else is computed in float32, and nothing waits for the device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_methods.functional.precision import at_least_float32
from lit_methods.functional.regions import region_to_box
from lit_methods.functional.suggestions import nearest
from lit_methods.functional.tracking_crops import context_size, crop_patch, crop_patches
from lit_methods.functional.tracking_views import augment_crop_box, canonical_box, flip_boxes, warp_crop
from lit_methods.siamban.labels import (
    LABEL_SHAPES,
    assign_labels,
    circle_labels,
    ellipse_labels,
    point_grid,
    rectangle_labels,
    sample_labels,
)

__all__ = [
    "LABEL_SHAPES",
    "LOC_LOSSES",
    "assign_labels",
    "augment_crop_box",
    "canonical_box",
    "circle_labels",
    "context_size",
    "crop_patch",
    "crop_patches",
    "decode_ltrb",
    "ellipse_labels",
    "flip_boxes",
    "learning_rates",
    "ltrb_iou_loss",
    "penalize",
    "point_grid",
    "rectangle_labels",
    "region_to_box",
    "sample_labels",
    "siamban_cls_loss",
    "siamban_loc_loss",
    "warp_crop",
    "xcorr_depthwise",
]

LOC_LOSSES = ("linear_iou", "iou", "giou")


def xcorr_depthwise(x: Tensor, kernel: Tensor) -> Tensor:
    """Depth-wise cross-correlation: each channel is filtered by the same channel of its own kernel, without a flip.

    Args:
        x: ``(B, C, H, W)`` of the search crops.
        kernel: ``(B, C, h, w)`` of the templates, no larger than ``x``.

    Returns:
        ``(B, C, H - h + 1, W - w + 1)``.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        SiamBAN's correlation of each level. One convolution of B C groups, which measured faster on a CPU, forwards
        and back, than ``unfold`` with ``einsum`` and than a sum over shifts.

    Example:
        >>> xcorr_depthwise(torch.arange(6.0).view(1, 1, 2, 3), torch.tensor([[[[1.0, 10.0]]]])).tolist()
        [[[[10.0, 21.0], [43.0, 54.0]]]]
    """
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[:2] != kernel.shape[:2]:
        raise ValueError(
            f"x and kernel must be (B, C, H, W) and (B, C, h, w) with the same B and C, got {tuple(x.shape)} and "
            f"{tuple(kernel.shape)}"
        )
    batch, channels, height, width = kernel.shape
    if height > x.shape[2] or width > x.shape[3]:
        raise ValueError(f"kernel of {height} x {width} is larger than x, {x.shape[2]} x {x.shape[3]}")
    if batch == 0:  # no groups, which a convolution refuses; empty maps with a graph
        return x[:, :, height - 1 :, width - 1 :] * kernel[:, :, :1, :1]
    groups = batch * channels
    maps = x.reshape(1, groups, x.shape[2], x.shape[3])
    out = F.conv2d(maps, kernel.reshape(groups, 1, height, width), groups=groups)
    return out.view(batch, channels, out.shape[2], out.shape[3])


def siamban_cls_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of target against background: half the mean over positives plus half that over negatives.

    Args:
        logits: ``(B, 2, n, n)``, channel 0 = background, 1 = target.
        labels: ``(B, n, n)``, 1 target, 0 background; any other is ignored.

    Returns:
        Scalar. Both means run over the whole batch, not per image; a part without a point counts 0.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        SiamBAN, L_cls. The official code loses the positives of a batch that has exactly one; here it counts.

    Example:
        >>> logits = torch.tensor([[[[0.0, 0.0]], [[0.0, 9.0]]]])
        >>> siamban_cls_loss(logits, torch.tensor([[[0, -1]]]))
        tensor(0.3466)
    """
    if logits.ndim != 4 or logits.shape[1] != 2 or logits[:, 0].shape != labels.shape:
        raise ValueError(
            f"logits and labels must be (B, 2, n, n) and (B, n, n), got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    logits = at_least_float32(logits)
    margin = logits[:, 1] - logits[:, 0]  # of two classes, all that the softmax depends on
    target, background = labels == 1, labels == 0
    return 0.5 * (_masked_mean(-F.logsigmoid(margin), target) + _masked_mean(-F.logsigmoid(-margin), background))


def ltrb_iou_loss(pred: Tensor, target: Tensor, kind: str = "linear_iou", weight: Tensor | None = None) -> Tensor:
    """How little predicted boxes overlap with the true ones, both given by distances from the same point.

    With IoU_s = (intersection + 1) / (union + 1), areas in square pixels: ``"linear_iou"`` is 1 - IoU_s, ``"iou"`` is
    -ln IoU_s, and ``"giou"`` is 1 - IoU_s + (A - union) / A, where A = (enclosing area) + 1e-7.

    Args:
        pred: ``(N, 4)`` distances l, t, r, b to the sides, not negative, in pixels.
        target: ``(N, 4)``.
        kind: ``"linear_iou"``, ``"iou"`` or ``"giou"``.
        weight: ``(N,)``, not negative, or ``None`` for equal weights.

    Returns:
        Scalar: the mean, or sum(weight loss) / sum(weight); 0, connected to the graph, where there is nothing to
        average.

    Raises:
        ValueError: another kind, shapes that do not fit.

    Source:
        SiamBAN, L_reg, which is 1 - IoU in the paper; the 1 in both areas, and the other kinds, are the official
        code's. That code stops at N = 0.

    Example:
        >>> pred, target = torch.tensor([[1.0, 1.0, 1.0, 1.0]]), torch.tensor([[1.0, 1.0, 2.0, 1.0]])
        >>> ltrb_iou_loss(pred, target), ltrb_iou_loss(pred, pred, "giou")
        (tensor(0.2857), tensor(0.))
    """
    if pred.ndim != 2 or pred.shape[1] != 4 or pred.shape != target.shape:
        raise ValueError(f"pred and target must be (N, 4) both, got {tuple(pred.shape)} and {tuple(target.shape)}")
    each = _iou_losses(pred, target, kind)
    if weight is None:
        return each.sum() / max(len(each), 1)
    if weight.shape != each.shape:
        raise ValueError(f"weight must be ({len(each)},), one per row of pred, got {tuple(weight.shape)}")
    total = weight.sum()
    return (weight * each).sum() / torch.where(total == 0, 1, total)


def siamban_loc_loss(pred: Tensor, target: Tensor, labels: Tensor, kind: str = "linear_iou") -> Tensor:
    """``ltrb_iou_loss`` of the points with label 1, mean over the whole batch.

    Args:
        pred: ``(B, 4, n, n)`` distances l, t, r, b, positive, in pixels.
        target: ``(B, 4, n, n)``; what it holds at other points, NaN too, changes nothing.
        labels: ``(B, n, n)``.
        kind: as in ``ltrb_iou_loss``.

    Returns:
        Scalar; 0, connected to the graph, without a positive.

    Raises:
        ValueError: another kind, shapes that do not fit.

    Source:
        SiamBAN, L_reg. Ours: points are masked, not gathered, so that no size depends on what the labels are.

    Example:
        >>> target = torch.tensor([4.0, 4.0, 4.0, 4.0]).view(1, 4, 1, 1).repeat(1, 1, 1, 2)
        >>> siamban_loc_loss(target / 2, target, torch.tensor([[[1, 0]]]))
        tensor(0.7385)
    """
    if pred.ndim != 4 or pred.shape[1] != 4 or pred.shape != target.shape or pred[:, 0].shape != labels.shape:
        raise ValueError(
            f"pred, target and labels must be (B, 4, n, n), the same and (B, n, n), got {tuple(pred.shape)}, "
            f"{tuple(target.shape)} and {tuple(labels.shape)}"
        )
    positive = labels == 1
    inside = positive[:, None]
    return _masked_mean(_iou_losses(torch.where(inside, pred, 1), torch.where(inside, target, 1), kind), positive)


def _iou_losses(pred: Tensor, target: Tensor, kind: str) -> Tensor:
    """Of every box; l, t, r, b along dimension 1."""
    if kind not in LOC_LOSSES:
        raise ValueError(
            f"kind={kind!r} is no loss of boxes; take {' or '.join(map(repr, LOC_LOSSES))}{nearest(kind, LOC_LOSSES)}"
        )
    pred, target = at_least_float32(pred), at_least_float32(target)
    areas = [(sides[:, 0] + sides[:, 2]) * (sides[:, 1] + sides[:, 3]) for sides in (pred, target)]
    shared = torch.minimum(pred, target)
    inter = (shared[:, 0] + shared[:, 2]) * (shared[:, 1] + shared[:, 3])
    union = areas[0] + areas[1] - inter
    iou = (inter + 1) / (union + 1)
    if kind == "linear_iou":
        return 1 - iou
    if kind == "iou":
        return -iou.log()
    around = torch.maximum(pred, target)
    enclosing = (around[:, 0] + around[:, 2]) * (around[:, 1] + around[:, 3]) + 1e-7
    return 1 - iou + (enclosing - union) / enclosing


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values where the mask holds; 0 with a graph where it never does."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


def decode_ltrb(loc: Tensor, points: Tensor) -> Tensor:
    """Boxes of all points from their distances to the sides.

    Args:
        loc: ``(B, 4, n, n)`` distances l, t, r, b in pixels.
        points: ``(2, n, n)`` as ``point_grid`` gives them, or the same row by row, ``(P, 2)``.

    Returns:
        ``(B, P, 4)`` xyxy, P = n n points row by row, in the coordinates of ``points``.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        Official code (the tracker's box conversion), without its detour through the host.

    Example:
        >>> decode_ltrb(torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1), point_grid(8, 1, 10)).tolist()
        [[[9.0, 8.0, 13.0, 14.0]]]
    """
    flat = points.flatten(1) if points.ndim == 3 else points.T
    if loc.ndim != 4 or loc.shape[1] != 4 or flat.shape != (2, loc.shape[2:].numel()):
        raise ValueError(
            f"loc and points must be (B, 4, n, n) and (2, n, n) or (n n, 2), got {tuple(loc.shape)} and "
            f"{tuple(points.shape)}"
        )
    loc = at_least_float32(loc).flatten(2)
    flat = flat.to(loc.dtype)
    return torch.cat([flat - loc[:, :2], flat + loc[:, 2:]], 1).transpose(1, 2)


def penalize(
    score: Tensor,
    boxes: Tensor,
    prev_wh: Tensor,
    k: float | Tensor,
    window: Tensor,
    influence: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """Lower the score of boxes that change size or shape, then prefer points near the centre.

    With change(a) = max(a, 1/a), r = width / height and s = sqrt((w + p)(h + p)), p = (w + h) / 2, a box's penalty is
    exp(-k (change(r_prev / r) change(s / s_prev) - 1)), and its score
    penalty score (1 - influence) + window influence.

    Args:
        score: ``(B, P)``, probabilities of the target.
        boxes: ``(B, P, 4)`` xyxy.
        prev_wh: ``(B, 2)`` sizes in the frame before, in the pixels of ``boxes``.
        k: not negative; 0 punishes no change.
        window: ``(P,)`` in [0, 1], or ``(B, P)``.
        influence: of the window, in [0, 1].

    Returns:
        ``pscore`` and ``penalty``, ``(B, P)`` each; penalties are in [0, 1], 1 for a box of the size before.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        Official code (the tracker), after SiamRPN. Ours: a box without area, or of NaN, has penalty 0, where the ratios
        would be 0/0 and the largest score be found there.

    Example:
        >>> boxes = torch.tensor([[[0.0, 0.0, 4.0, 2.0], [0.0, 0.0, 2.0, 4.0]]])
        >>> pscore, penalty = penalize(torch.ones(1, 2), boxes, torch.tensor([[4.0, 2.0]]), 0.1, torch.zeros(2), 0.5)
        >>> penalty, pscore
        (tensor([[1.0000, 0.7408]]), tensor([[0.5000, 0.3704]]))
    """
    if score.ndim != 2 or boxes.shape != (*score.shape, 4) or prev_wh.shape != (len(score), 2):
        raise ValueError(
            f"score, boxes and prev_wh must be (B, P), (B, P, 4) and (B, 2), got {tuple(score.shape)}, "
            f"{tuple(boxes.shape)} and {tuple(prev_wh.shape)}"
        )
    if window.shape not in (score.shape, score.shape[1:]):
        raise ValueError(f"window must be ({score.shape[1]},), one number per point, got {tuple(window.shape)}")
    size = at_least_float32(boxes[..., 2:] - boxes[..., :2])
    before = at_least_float32(prev_wh)[:, None]
    shape_change = _change((before[..., 0] / before[..., 1]) / (size[..., 0] / size[..., 1]))
    penalty = (-k * (shape_change * _change(context_size(size) / context_size(before)) - 1)).exp()
    penalty = torch.where((size > 0).all(-1), penalty, 0)
    punished = penalty * at_least_float32(score)
    return punished * (1 - influence) + window.to(punished.dtype) * influence, penalty


def _change(ratio: Tensor) -> Tensor:
    return torch.maximum(ratio, 1 / ratio)


def learning_rates(
    epochs: int = 20, warmup_epochs: int = 5, start: float = 0.001, peak: float = 0.005, end: float = 0.00005
) -> list[float]:
    """Learning rate of each epoch: a geometric rise towards the peak, then a geometric fall from it.

    Args:
        epochs: of the whole schedule.
        warmup_epochs: of the rise, from ``start``; epoch e has ``start (peak / start)^(e / warmup_epochs)``.
        start: rate of the first epoch where there is a warm-up.
        peak: rate of the first epoch after it.
        end: rate of the last epoch; a fall of one epoch has ``peak``.

    Returns:
        ``epochs`` numbers.

    Raises:
        ValueError: epochs that do not fit, a rate that is not positive.

    Source:
        Official code: 20 epochs, 5 of them warm-up, and its values.

    Example:
        >>> [round(rate, 5) for rate in learning_rates(epochs=5, warmup_epochs=2)]
        [0.001, 0.00224, 0.005, 0.0005, 5e-05]
    """
    if not 0 <= warmup_epochs <= epochs or epochs < 1:
        raise ValueError(
            f"warmup_epochs={warmup_epochs} must lie between 0 and epochs={epochs}, and epochs be at least 1"
        )
    if not min(start, peak, end) > 0:
        raise ValueError(f"rates must be positive, got start={start}, peak={peak}, end={end}")
    rise = [start * (peak / start) ** (epoch / warmup_epochs) for epoch in range(warmup_epochs)]
    fall = epochs - warmup_epochs
    return rise + [peak * (end / peak) ** (epoch / max(fall - 1, 1)) for epoch in range(fall)]
