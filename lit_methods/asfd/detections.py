"""From scored boxes to detections: suppression, and the voting of several scales."""

import torch
from torch import Tensor
from torchvision.ops import nms

from lit_methods.functional.boxes import pairwise_iou


@torch.no_grad()
def keep_detections(
    boxes: Tensor,
    scores: Tensor,
    score_threshold: float = 0.01,
    pre_nms: int = 5000,
    iou_threshold: float = 0.3,
    max_boxes: int = 750,
) -> Tensor:
    """Detections of one picture: the best boxes that no better one overlaps.

    Args:
        boxes: ``(N, 4)`` x1, y1, x2, y2.
        scores: ``(N,)``.
        score_threshold: boxes with a score above it remain.
        pre_nms: so many of the highest scores go into the suppression.
        iou_threshold: a box is dropped if its IoU with a kept one of a higher score is larger.
        max_boxes: so many are kept at most.

    Returns:
        ``(k,)`` int64, indices of the kept boxes, highest score first, equal scores in the order of their indices.

    Raises:
        ValueError: shapes that do not fit, or a negative number of boxes.

    Source:
        DSFD's test: thresholds and numbers.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 1.0, 4.0, 4.0], [9.0, 0.0, 12.0, 4.0]])
        >>> keep_detections(boxes, torch.tensor([0.8, 0.9, 0.1]))
        tensor([1, 2])
    """
    _check(boxes, scores, max_boxes)
    if pre_nms < 0:
        raise ValueError(f"pre_nms={pre_nms} is a number of boxes and must not be negative")
    above = (scores > score_threshold).nonzero()[:, 0]
    best = above[scores[above].argsort(descending=True, stable=True)[:pre_nms]]
    exact = boxes[best] if boxes.dtype == torch.float64 else boxes[best].float()
    # ranks for scores: no tie is left for the suppression to break, on any device
    ranks = torch.arange(len(best), 0, -1, dtype=exact.dtype, device=exact.device)
    return best[nms(exact, ranks, iou_threshold)[:max_boxes]]


@torch.no_grad()
def box_voting(boxes: Tensor, scores: Tensor, iou_threshold: float = 0.3, max_boxes: int = 750) -> Tensor:
    """Means of the boxes that several scales of one picture agree on.

    The box with the highest score takes all that overlap it into its group, and so on with what is left. A group of one
    is discarded; another becomes the mean of its boxes, weighted by their scores, with its highest score.

    Args:
        boxes: ``(N, 4)`` x1, y1, x2, y2, from all scales.
        scores: ``(N,)``, not negative.
        iou_threshold: IoU from which a box belongs to a group; x2 and y2 count in.
        max_boxes: so many are given at most.

    Returns:
        ``(k, 5)`` x1, y1, x2, y2, score, highest score first; float64 where an input is, else float32.

    Raises:
        ValueError: shapes that do not fit, or a negative number of boxes.

    Source:
        DSFD's multi-scale test. With a single scale it would discard what nothing else overlaps. Ours: equal scores in
        the order of their indices, and a group whose scores are all 0 has the plain mean. Groups depend on each other,
        so they are found one by one, on the CPU.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [1.0, 0.0, 5.0, 4.0], [9.0, 0.0, 12.0, 4.0]])
        >>> box_voting(boxes, torch.tensor([0.25, 0.75, 1.0])).tolist()
        [[0.75, 0.0, 4.75, 4.0, 0.75]]
    """
    _check(boxes, scores, max_boxes)
    exact = torch.float64 if torch.float64 in (boxes.dtype, scores.dtype) else torch.float32
    rows = torch.cat([boxes.to(exact), scores.to(exact)[:, None]], 1).cpu()
    rows = rows[rows[:, 4].argsort(descending=True, stable=True)]
    found: list[Tensor] = []
    while len(rows) and len(found) < max_boxes:
        together = pairwise_iou(rows[:1, :4], rows[:, :4], plus_one=True)[0] >= iou_threshold
        together[0] = True  # a box whose sides are out of order overlaps nothing, itself included
        group, rows = rows[together], rows[~together]
        if len(group) > 1:
            weights = group[:, 4:] if group[0, 4] > 0 else torch.ones_like(group[:, 4:])
            found.append(torch.cat([(group[:, :4] * weights).sum(0) / weights.sum(), group[0, 4:]]))
    return (torch.stack(found) if found else rows.new_zeros(0, 5)).to(boxes.device)


def _check(boxes: Tensor, scores: Tensor, max_boxes: int) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
        raise ValueError(
            f"boxes and scores must be (N, 4) and (N,), got {tuple(boxes.shape)} and {tuple(scores.shape)}"
        )
    if max_boxes < 0:
        raise ValueError(f"max_boxes={max_boxes} is a number of boxes and must not be negative")
