"""DRMC, ASFD's loss of two tasks: a distance between boxes and a classification with a margin."""

from collections.abc import Callable, Sequence
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_methods.asfd.anchors import MIN_SIDE, centre_and_sides, decode, encode
from lit_methods.asfd.matching import mine_negatives
from lit_methods.functional.boxes import box_area
from lit_methods.functional.precision import at_least_float32
from lit_methods.functional.suggestions import nearest

BOX_LOSSES = ("diou", "iou", "giou", "ciou")
REG_LOSSES = (*BOX_LOSSES, "smooth_l1")
MODES = {"logit": 1.0, "cosine": 20.0}  # and their scales
APPLY_TO = ("both", "positives")
REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda loss: loss,
    "sum": lambda loss: loss.sum(),
    "mean": lambda loss: loss.sum() / max(1, len(loss)),
}


def diou_loss(pred: Tensor, target: Tensor, reduction: str = "none") -> Tensor:
    """1 - IoU + rho^2 / c^2, with rho the distance of the centres and c the diagonal of the box around both.

    Args:
        pred: ``(N, 4)`` x1, y1, x2, y2, x1 <= x2 and y1 <= y2.
        target: ``(N, 4)``.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``; the mean of no boxes is 0.

    Returns:
        ``(N,)`` in [0, 2], or a scalar.

    Raises:
        ValueError: shapes that do not fit, or an unknown reduction.

    Source:
        DIoU. That ASFD's "distance-based regression" is this loss is a decision of this project.

    Example:
        >>> diou_loss(torch.tensor([[0.0, 0.0, 4.0, 3.0]]), torch.tensor([[0.0, 0.0, 4.0, 6.0]]))
        tensor([0.5433])
    """
    _check_choice("reduction", reduction, REDUCTIONS)
    return REDUCTIONS[reduction](box_losses("diou", pred, target))


def box_losses(kind: str, pred: Tensor, target: Tensor) -> Tensor:
    """Loss of each box, by one of the losses that begin with the IoU.

    With I the IoU, U the area of the union, E the area and c the diagonal of the box around both, rho the distance of
    the centres: ``"iou"`` is 1 - I; ``"giou"`` 1 - I + (E - U) / E; ``"diou"`` 1 - I + rho^2 / c^2; ``"ciou"`` adds
    alpha v to that, v = 4 / pi^2 (atan(w / h of the target) - atan(w / h))^2 and alpha = v / (1 - I + v).

    Args:
        kind: ``"diou"``, ``"iou"``, ``"giou"`` or ``"ciou"``.
        pred: ``(N, 4)`` x1, y1, x2, y2, x1 <= x2 and y1 <= y2; sides up to 1e9 give finite losses and gradients.
        target: ``(N, 4)``, a box may have no area.

    Returns:
        ``(N,)``; float64 where an input is, else float32, also under autocast.

    Raises:
        ValueError: an unknown kind, or shapes that do not fit.

    Source:
        GIoU, DIoU and CIoU. As published, alpha has no gradient. Denominators are 1e-7 at least; nothing is added.
        The official code of CIoU also leaves 1 / (w^2 + h^2) out of v's gradient; here the gradient is v's own.

    Example:
        >>> pred, target = torch.tensor([[0.0, 0.0, 4.0, 3.0]]), torch.tensor([[0.0, 0.0, 4.0, 6.0]])
        >>> [round(float(box_losses(kind, pred, target)), 4) for kind in ("iou", "giou", "diou", "ciou")]
        [0.5, 0.5, 0.5433, 0.5473]
    """
    _check_choice("kind", kind, BOX_LOSSES)
    if pred.ndim != 2 or pred.shape[1] != 4 or pred.shape != target.shape:
        raise ValueError(f"pred and target must both be (N, 4), got {tuple(pred.shape)} and {tuple(target.shape)}")
    pred, target = at_least_float32(pred), at_least_float32(target)
    low, high = torch.minimum(pred, target), torch.maximum(pred, target)
    shared = (low[:, 2:] - high[:, :2]).clamp(min=0)
    around = high[:, 2:] - low[:, :2]
    inter = shared[:, 0] * shared[:, 1]
    union = box_area(pred) + box_area(target) - inter
    iou = inter / union.clamp(min=MIN_SIDE)
    if kind == "iou":
        return 1 - iou
    if kind == "giou":
        area = around[:, 0] * around[:, 1]
        return 1 - iou + (area - union) / area.clamp(min=MIN_SIDE)
    (pred_centre, pred_side), (target_centre, target_side) = centre_and_sides(pred), centre_and_sides(target)
    distance = (pred_centre - target_centre).square().sum(1) / around.square().sum(1).clamp(min=MIN_SIDE)
    if kind == "diou":
        return 1 - iou + distance
    v = (4 / pi**2) * (_angle(target_side) - _angle(pred_side)).square()
    alpha = (v / (1 - iou + v).clamp(min=MIN_SIDE)).detach()
    return 1 - iou + distance + alpha * v


def _angle(sides: Tensor) -> Tensor:
    return (sides[:, 0] / sides[:, 1].clamp(min=MIN_SIDE)).atan()


def margin_softmax_loss(
    inputs: Tensor,
    labels: Tensor,
    weight: Tensor | None = None,
    *,
    scale: float | None = None,
    margin: float | Tensor = 0.2,
    mode: str = "logit",
) -> Tensor:
    """Cross-entropy of face against background, where the true class has to win by a margin.

    L = -ln(e^{s (z_y - m)} / (e^{s (z_y - m)} + e^{s z_(1-y)})), z the logits, or cosines x w_j / (|x| |w_j|).

    Args:
        inputs: ``(N, 2)`` logits of background and face; in mode ``"cosine"`` ``(N, W)`` features.
        labels: ``(N,)``, 1 face, 0 background.
        weight: ``(2, W)`` in mode ``"cosine"``, else ``None``.
        scale: s; ``None`` is 1, and 20 in mode ``"cosine"``.
        margin: m, or ``(N,)`` one for each; 0 is plain cross-entropy.
        mode: ``"logit"`` or ``"cosine"``.

    Returns:
        ``(N,)``; float64 where ``inputs`` is, else float32, also under autocast.

    Raises:
        ValueError: an unknown mode, or shapes that do not fit.

    Source:
        CosFace's additive margin for two classes. The paper's own form could not be read: both modes are decisions of
        this project. Features of length below 1e-7 have cosines of 0 and no gradient.

    Example:
        >>> margin_softmax_loss(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([1, 0]))
        tensor([0.3711, 1.4633])
    """
    values = _values(inputs, weight, scale, mode)
    if labels.shape != values.shape[:-1]:
        raise ValueError(f"labels must be {tuple(values.shape[:-1])}, one per input, got {tuple(labels.shape)}")
    ahead = values[..., 1] - values[..., 0]
    ahead = torch.where(labels == 1, ahead, -ahead) - _scale(scale, mode) * margin
    return -F.logsigmoid(ahead)


def face_probability(
    inputs: Tensor, weight: Tensor | None = None, *, scale: float | None = None, mode: str = "logit"
) -> Tensor:
    """Score of a face at test: the softmax without a margin.

    Args:
        inputs: ``(N, 2)`` logits or ``(N, W)`` features; any leading dimensions.
        weight: see :func:`margin_softmax_loss`, here and below.
        scale: ``None`` is 1, and 20 in mode ``"cosine"``.
        mode: ``"logit"`` or ``"cosine"``.

    Returns:
        ``(N,)`` in [0, 1]; float64 where ``inputs`` is, else float32.

    Raises:
        ValueError: an unknown mode, or shapes that do not fit.

    Source:
        See :func:`margin_softmax_loss`.

    Example:
        >>> face_probability(torch.tensor([[0.0, 1.0], [2.0, 2.0]]))
        tensor([0.7311, 0.5000])
    """
    values = _values(inputs, weight, scale, mode)
    return (values[..., 1] - values[..., 0]).sigmoid()


def _values(inputs: Tensor, weight: Tensor | None, scale: float | None, mode: str) -> Tensor:
    """Logits or cosines of both classes, (..., 2), times the scale."""
    _check_choice("mode", mode, MODES)
    if (weight is None) != (mode == "logit"):
        raise ValueError(f"weight goes with mode='cosine', and only with it; mode={mode!r} got weight={_shape(weight)}")
    width = 2 if weight is None else weight.shape[-1]
    if inputs.ndim < 2 or inputs.shape[-1] != width or (weight is not None and weight.shape != (2, width)):
        raise ValueError(
            f"inputs must be (N, 2) logits, or (N, W) features with a weight (2, W), got {tuple(inputs.shape)} and "
            f"weight={_shape(weight)}"
        )
    inputs = at_least_float32(inputs)
    if weight is not None:
        with torch.autocast(inputs.device.type, enabled=False):
            # each is scaled after the product: no second copy of the features
            weight = _unit(weight.to(inputs.dtype))
            inputs = inputs @ weight.T * _inverse_length(inputs)
    return inputs * _scale(scale, mode)


def _unit(x: Tensor) -> Tensor:
    return x * _inverse_length(x)


def _inverse_length(x: Tensor) -> Tensor:
    """1 / |x| along the last dimension, kept; 0 without a gradient where x has no length."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    alive = length >= MIN_SIDE
    return torch.where(alive, 1 / torch.where(alive, length, 1), 0)


def _scale(scale: float | None, mode: str) -> float:
    return MODES[mode] if scale is None else scale


def drmc_loss(
    cls: Tensor,
    loc: Tensor,
    labels: Tensor,
    faces: Tensor,
    boxes: Sequence[Tensor],
    anchors: Tensor,
    *,
    cls_weight: Tensor | None = None,
    mode: str = "logit",
    scale: float | None = None,
    margin: float = 0.2,
    apply_to: str = "both",
    reg_loss: str = "diou",
    reg_weight: float = 1.0,
    neg_ratio: int | None = 3,
    num_positives: Tensor | None = None,
) -> dict[str, Tensor]:
    """Distance of the positives' boxes and margin loss of positives and hard negatives of a batch, over N positives.

    Args:
        cls: ``(B, A, 2)`` logits, or ``(B, A, W)`` features in mode ``"cosine"``.
        loc: ``(B, A, 4)`` codes, see :func:`decode`.
        labels: ``(B, A)``, 1 positive, 0 background, -1 ignored; see :func:`match_batch`.
        faces: ``(B, A)``, index into the picture's boxes where the label is 1.
        boxes: of each picture, ``(G_i, 4)`` x1, y1, x2, y2.
        anchors: ``(A, 4)``.
        cls_weight: ``(2, W)`` in mode ``"cosine"``.
        mode: see :func:`margin_softmax_loss`.
        scale: likewise.
        margin: likewise.
        apply_to: ``"both"`` classes have the margin, or only the ``"positives"``.
        reg_loss: ``"diou"``, ``"iou"``, ``"giou"``, ``"ciou"`` on decoded boxes, or ``"smooth_l1"`` on codes.
        reg_weight: of the regression in the total.
        neg_ratio: see :func:`mine_negatives`; ``None`` keeps every negative.
        num_positives: N, a scalar; where several processes share a batch, their mean number of positives. ``None``
            counts those of this batch. Below 1 it stays as it is, at 0 it counts as 1.

    Returns:
        ``loss`` = ``cls_loss`` + ``reg_weight`` ``reg_loss``, and these two, each divided by N: scalars with a graph.
        Without any positive, N = 0, all three are 0 and give gradients of 0.

    Raises:
        ValueError: shapes that do not fit, or an unknown choice.

    Source:
        Section 2.6 of this project's description of ASFD. Mining sees the cross-entropy without a margin, in mode
        ``"cosine"`` that of the scaled cosines. Official DSFD divides by zero without positives. The margin loss is
        computed at the kept anchors only.

    Example:
        >>> anchors = torch.tensor([[0.0, 0.0, 4.0, 4.0], [4.0, 0.0, 8.0, 4.0]])
        >>> labels, faces, boxes = torch.tensor([[1, 0]]), torch.tensor([[0, -1]]), [anchors[:1]]
        >>> losses = drmc_loss(torch.zeros(1, 2, 2), torch.zeros(1, 2, 4), labels, faces, boxes, anchors, margin=0)
        >>> {name: round(float(loss), 4) for name, loss in losses.items()}
        {'loss': 1.3863, 'cls_loss': 1.3863, 'reg_loss': 0.0}
    """
    _check_choice("reg_loss", reg_loss, REG_LOSSES)
    _check_choice("apply_to", apply_to, APPLY_TO)
    if not labels.shape == faces.shape == cls.shape[:-1] == loc.shape[:-1] == (len(boxes), len(anchors)):
        raise ValueError(
            f"labels, faces, cls and loc must begin with ({len(boxes)}, {len(anchors)}), as many as boxes and anchors, "
            f"got {tuple(labels.shape)}, {tuple(faces.shape)}, {tuple(cls.shape)} and {tuple(loc.shape)}"
        )
    positive = labels == 1
    total = positive.sum() if num_positives is None else num_positives
    some = total > 0
    if neg_ratio is None:
        kept = (labels >= 0) & some
    else:
        with torch.no_grad():
            ce = margin_softmax_loss(cls, labels, cls_weight, scale=scale, margin=0, mode=mode)
            kept = mine_negatives(ce, labels, neg_ratio)
    kept_labels = labels[kept]
    margins = margin if apply_to == "both" else margin * (kept_labels == 1)
    cls_sum = margin_softmax_loss(cls[kept], kept_labels, cls_weight, scale=scale, margin=margins, mode=mode).sum()
    reg_sum = _regression(reg_loss, loc, positive, faces, boxes, anchors).sum()
    count = torch.where(some, total, 1)
    cls_mean, reg_mean = cls_sum / count, reg_sum / count
    return {"loss": cls_mean + reg_weight * reg_mean, "cls_loss": cls_mean, "reg_loss": reg_mean}


def _regression(
    kind: str, loc: Tensor, positive: Tensor, faces: Tensor, boxes: Sequence[Tensor], anchors: Tensor
) -> Tensor:
    """Loss of each positive, (P,)."""
    images, places = positive.nonzero(as_tuple=True)
    every = torch.cat([anchors.new_zeros(0, 4), *boxes])
    first = torch.tensor([0, *map(len, boxes)], device=loc.device).cumsum(0)  # face 0 of each picture among all
    target = every[first[images] + faces[images, places]]
    codes, anchors = at_least_float32(loc[images, places]), anchors[places]
    if kind == "smooth_l1":
        return F.smooth_l1_loss(codes, encode(target, anchors).to(codes.dtype), reduction="none").sum(1)
    return box_losses(kind, decode(codes, anchors), target)


def _check_choice(name: str, value: str, known: Sequence[str] | dict) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r} is unknown; take {' or '.join(map(repr, known))}{nearest(value, known)}")


def _shape(x: Tensor | None) -> tuple[int, ...] | None:
    return None if x is None else tuple(x.shape)
