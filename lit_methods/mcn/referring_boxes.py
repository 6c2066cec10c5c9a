"""The box that a sentence refers to: decoding, targets, the loss and the choice of one box."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_methods.functional.boxes import box_area
from lit_methods.functional.precision import at_least_float32

LEAST_SIDE = 1e-3  # pixels; a target that is narrower counts as so wide, for its logarithm


def decode_boxes(raw: Tensor, anchors: Tensor, stride: int = 32) -> tuple[Tensor, Tensor]:
    """Boxes and confidences of all anchors in all cells.

    With (tx, ty, tw, th, conf) the five channels of an anchor (pw, ph): centre (sigmoid(tx) + column) stride,
    (sigmoid(ty) + row) stride, sides pw e^tw and ph e^th, confidence sigmoid(conf).

    Args:
        raw: ``(N, 5A, g, g)``, channels 5a to 5a + 4 are those of anchor a.
        anchors: ``(A, 2)`` width and height in pixels.
        stride: pixels of a cell.

    Returns:
        ``boxes`` ``(N, A, g, g, 4)`` x1, y1, x2, y2 in pixels, not cut off at the picture's edge, and ``scores``
        ``(N, A, g, g)`` in [0, 1]; float64 for float64, else float32. A raw value that is not finite, or a side beyond
        the largest number, gives NaN or infinity.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        YOLOv3, as in MCN's official code.

    Example:
        >>> boxes, scores = decode_boxes(torch.zeros(1, 5, 1, 1), torch.tensor([[20.0, 8.0]]))
        >>> boxes.flatten(), scores.flatten()
        (tensor([ 6., 12., 26., 20.]), tensor([0.5000]))
    """
    _check_raw(raw, anchors)
    if stride < 1:
        raise ValueError(f"stride={stride} must be at least 1 pixel")
    raw = at_least_float32(raw).unflatten(1, (-1, 5))
    rows, columns = (torch.arange(n, dtype=raw.dtype, device=raw.device) for n in raw.shape[-2:])
    x, y = (raw[:, :, 0].sigmoid() + columns) * stride, (raw[:, :, 1].sigmoid() + rows[:, None]) * stride
    half = raw[:, :, 2:4].exp() * (anchors.to(raw) / 2)[:, :, None, None]
    w, h = half.unbind(2)
    return torch.stack([x - w, y - h, x + w, y + h], -1), raw[:, :, 4].sigmoid()


def select_top_box(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The box with the highest confidence of each sample.

    Args:
        boxes: ``(N, A, g, g, 4)``.
        scores: ``(N, A, g, g)``; NaN is taken only where there is nothing else.

    Returns:
        ``box`` ``(N, 4)`` and ``score`` ``(N,)``.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        MCN's official code has a non-maximum suppression that leaves one box, which is the same.

    Example:
        >>> boxes = torch.tensor([[1.0, 1, 2, 2], [3, 3, 4, 4]]).view(1, 1, 1, 2, 4)
        >>> select_top_box(boxes, torch.tensor([0.2, 0.7]).view(1, 1, 1, 2))
        (tensor([[3., 3., 4., 4.]]), tensor([0.7000]))
    """
    if boxes.ndim != 5 or boxes.shape[-1] != 4 or scores.shape != boxes.shape[:-1]:
        raise ValueError(
            f"boxes must be (N, A, g, g, 4) and scores (N, A, g, g), got {tuple(boxes.shape)} and {tuple(scores.shape)}"
        )
    scores, boxes = scores.flatten(1), boxes.flatten(1, 3)
    best = scores.detach().nan_to_num(nan=-1).argmax(1, keepdim=True)
    # not take_along_dim, which fixes the batch of an exported graph
    return boxes.gather(1, best[..., None].expand(-1, -1, 4)).squeeze(1), scores.gather(1, best).squeeze(1)


@torch.no_grad()
def round_boxes(boxes: Tensor, size: int) -> Tensor:
    """Whole pixels inside the input: floor(x + 0.5), then clamped to [0, size].

    Args:
        boxes: ``(N, 4)`` x1, y1, x2, y2; NaN becomes 0, infinity the edge that it lies beyond.
        size: side of the input in pixels.

    Returns:
        ``(N, 4)`` int64.

    Raises:
        ValueError: shapes that do not fit, or ``size`` below 1.

    Source:
        MCN's official code, which clamps left and top at 0 and right and bottom at the size alone; here all are
        clamped at both.

    Example:
        >>> round_boxes(torch.tensor([[-3.0, 1.4, 7.5, 99.0]]), 16).tolist()
        [[0, 1, 8, 16]]
    """
    _check_boxes(boxes)
    _check_size(size)
    return (at_least_float32(boxes).nan_to_num(nan=0.0) + 0.5).floor().clamp(0, size).long()


@torch.no_grad()
def build_rec_targets(boxes: Tensor, anchors: Tensor, size: int, stride: int = 32, floor_center: bool = True) -> Tensor:
    """What the network should say of each sample's one box: zeros but at one anchor of one cell.

    The anchor is that of the largest IoU with the box, both around the origin, the first of equal ones; the cell is the
    one that the centre lies in.

    Args:
        boxes: ``(N, 4)`` x1, y1, x2, y2 in pixels of the input.
        anchors: ``(A, 2)`` width and height in pixels.
        size: side of the input.
        stride: pixels of a cell.
        floor_center: the centre is rounded down to a whole pixel.

    Returns:
        ``(N, A, g, g, 5)``, there (cx / size, cy / size, w / size, h / size, 1); float64 for float64, else float32. A
        centre outside the input counts to the nearest cell.

    Raises:
        ValueError: shapes that do not fit, or ``size`` is no multiple of ``stride``.

    Source:
        MCN's official code, from keras-yolo3, which also rounds the centre down. The cell is found by whole pixels, so
        that rounding never moves a centre on the border of two cells, as the official quotient can at some sizes.

    Example:
        >>> target = build_rec_targets(torch.tensor([[32.0, 0.0, 49.0, 16.0]]), torch.tensor([[16.0, 16.0]]), 64)
        >>> target.nonzero()[:, :4].unique(dim=0).tolist(), target[0, 0, 0, 1]
        ([[0, 0, 0, 1]], tensor([0.6250, 0.1250, 0.2656, 0.2500, 1.0000]))
    """
    _check_boxes(boxes)
    _check_anchors(anchors)
    _check_size(size)
    if stride < 1 or size % stride:
        raise ValueError(f"size={size} must be a multiple of stride={stride}, the pixels of a cell")
    boxes = at_least_float32(boxes if boxes.is_floating_point() else boxes.float())
    grid = size // stride
    sides, centre = boxes[:, 2:] - boxes[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2
    if floor_center:
        centre = centre.floor()
    column, row = (centre / stride).nan_to_num().floor().clamp(0, grid - 1).long().unbind(1)
    anchors = anchors.to(boxes)
    inter = torch.minimum(sides[:, None], anchors).prod(2)
    anchor = (inter / (sides.prod(1)[:, None] + anchors.prod(1) - inter)).argmax(1)
    target = boxes.new_zeros(len(boxes), len(anchors), grid, grid, 5)
    values = torch.cat([centre / size, sides / size, torch.ones_like(sides[:, :1])], 1)
    target[torch.arange(len(boxes), device=boxes.device), anchor, row, column] = values
    return target


def rec_loss(raw: Tensor, target: Tensor, anchors: Tensor, size: int, ignore_iou: float = 0.5) -> dict[str, Tensor]:
    """Loss of the boxes of a batch: sums over cells, divided by the samples.

    At the assigned cell, with s = 2 - (w / size)(h / size): ``xy`` is s times the cross-entropy of sigmoid(tx, ty) with
    the place of the centre within the cell, ``wh`` is s / 2 times the smooth L1 with sigma 3 of tw, th to
    log(w / pw), log(h / ph). ``conf`` is the cross-entropy of the confidence with 1 there and with 0 elsewhere, but for
    predicted boxes that overlap the true one by ``ignore_iou`` or more.

    Args:
        raw: ``(N, 5A, g, g)``, see :func:`decode_boxes`.
        target: ``(N, A, g, g, 5)``, at most one box for each sample, see :func:`build_rec_targets`.
        anchors: ``(A, 2)`` width and height in pixels.
        size: side of the input in pixels.
        ignore_iou: from which overlap on a box is no background; what it decides has no gradient.

    Returns:
        ``xy``, ``wh``, ``conf`` and their sum ``rec``, scalars with a gradient; float64 where ``raw`` is, else float32.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        YOLOv3's loss as in MCN's official code. Three true boxes that the official loss has no lower bound or no number
        for: one narrower than 1e-3 pixel counts as so wide, the centre of one outside the input as on the border of its
        cell, and one larger than the input as large as that.

    Example:
        >>> anchors = torch.tensor([[16.0, 16.0]])
        >>> target = build_rec_targets(torch.tensor([[8.0, 8.0, 24.0, 24.0]]), anchors, 64)
        >>> losses = rec_loss(torch.zeros(1, 5, 2, 2), target, anchors, 64)
        >>> {name: round(float(loss), 4) for name, loss in losses.items()}
        {'xy': 2.6859, 'wh': 0.0, 'conf': 2.7726, 'rec': 5.4585}
    """
    _check_raw(raw, anchors)
    _check_size(size)
    grid = raw.shape[3]
    if raw.shape[2] != grid or size % grid:
        raise ValueError(f"raw must be (N, 5A, g, g) with g a divisor of size={size}, got {tuple(raw.shape)}")
    if target.shape != (shape := (len(raw), len(anchors), grid, grid, 5)):
        raise ValueError(f"target must be {shape} for raw {tuple(raw.shape)}, got {tuple(target.shape)}")
    raw = at_least_float32(raw)
    anchors, target = anchors.to(raw), target.to(raw)
    with torch.no_grad():
        objects = target[..., 4]
        place = objects.flatten(1).argmax(1)  # of each sample's one box
        truth = _at(target, place)
        pixels, weight = truth[:, :4] * size, truth[:, 4] * (2 - truth[:, 2:4].prod(1).clamp(max=1))
        offset = (truth[:, :2] * grid - torch.stack([place % grid, place // grid % grid], 1)).clamp(0, 1)
        log_sides = (pixels[:, 2:].clamp(min=LEAST_SIDE) / anchors[place // grid**2]).log()
        centre, half = pixels[:, :2], pixels[:, 2:] / 2
        boxes, _ = decode_boxes(raw, anchors, size // grid)
        free = _ious(boxes, torch.cat([centre - half, centre + half], 1)[:, None, None, None]) < ignore_iou
        counted = objects + (1 - objects) * free
    said = raw.unflatten(1, (-1, 5)).movedim(2, -1)
    own, count = _at(said, place), max(1, len(raw))
    xy = F.binary_cross_entropy_with_logits(own[:, :2], offset, reduction="none").sum(1)
    wh = F.smooth_l1_loss(own[:, 2:4], log_sides, beta=1 / 9, reduction="none").sum(1)  # beta = 1 / sigma^2
    conf = F.binary_cross_entropy_with_logits(said[..., 4], objects, reduction="none")
    losses = {
        "xy": (weight * xy).sum() / count,
        "wh": (weight * wh).sum() / 2 / count,
        "conf": (counted * conf).sum() / count,
    }
    return losses | {"rec": losses["xy"] + losses["wh"] + losses["conf"]}


def _at(cells: Tensor, place: Tensor) -> Tensor:
    """(N, 5) of (N, A, g, g, 5), each sample's at its own place."""
    return cells.flatten(1, 3).take_along_dim(place[:, None, None], 1).squeeze(1)


def _ious(a: Tensor, b: Tensor) -> Tensor:
    """Of pairs, (..., 4) each, broadcast."""
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    inter = shared[..., 0] * shared[..., 1]
    return inter / (box_area(a) + box_area(b) - inter).clamp(min=torch.finfo(inter.dtype).tiny)


def _check_boxes(boxes: Tensor) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be (N, 4) x1, y1, x2, y2, got {tuple(boxes.shape)}")


def _check_anchors(anchors: Tensor) -> None:
    if anchors.ndim != 2 or anchors.shape[1] != 2 or not len(anchors):
        raise ValueError(f"anchors must be (A, 2), a width and a height in pixels each, got {tuple(anchors.shape)}")


def _check_raw(raw: Tensor, anchors: Tensor) -> None:
    _check_anchors(anchors)
    if raw.ndim != 4 or raw.shape[1] != 5 * len(anchors):
        raise ValueError(
            f"raw must be (N, {5 * len(anchors)}, g, g), five channels for each of {len(anchors)} anchors, got "
            f"{tuple(raw.shape)}"
        )


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"size={size} must be at least 1 pixel, the side of the input")
