"""Which anchor answers for which face, and which negatives a loss sees."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_methods.functional.boxes import pairwise_iou

COMPENSATED_IOU = 0.1  # with its face, of an anchor that compensation may add
BLOCK = {"cpu": 2**18}  # overlaps at once, 1 MiB in float32: what a core has near
BLOCK_ELSEWHERE = 2**24


@torch.no_grad()
def match_anchors(gt: Tensor, anchors: Tensor, threshold: float = 0.4) -> Tensor:
    """Face of each anchor of one picture.

    Args:
        gt: ``(G, 4)`` faces x1, y1, x2, y2, G may be 0.
        anchors: ``(A, 4)``.
        threshold: see :func:`match_batch`, as for all else.

    Returns:
        ``(A,)`` int64: index of the face, -1 = background.

    Raises:
        ValueError: shapes that do not fit, or a threshold outside (0, 1].

    Example:
        >>> anchors = torch.tensor([[0.0, 0.0, 4.0, 4.0], [4.0, 0.0, 8.0, 4.0], [8.0, 0.0, 12.0, 4.0]])
        >>> match_anchors(torch.tensor([[4.0, 1.0, 8.0, 4.0], [0.0, 0.0, 1.0, 1.0]]), anchors)
        tensor([ 1,  0, -1])
    """
    return match_batch([gt], anchors, threshold)[1][0]


@torch.no_grad()
def match_batch(
    boxes: Sequence[Tensor],
    anchors: Tensor,
    threshold: float = 0.4,
    low_threshold: float | None = None,
    compensate: int = 0,
) -> tuple[Tensor, Tensor]:
    """Labels and faces of the anchors of a batch of pictures of one size.

    An anchor takes the face that it overlaps most, and is positive from an IoU of ``threshold``. The best anchor of
    each face is positive for that face in any case; of two faces with the same best anchor the later one has it.

    Args:
        boxes: of each picture, ``(G_i, 4)`` faces x1, y1, x2, y2 in pixels, finite, G_i may be 0.
        anchors: ``(A, 4)``, the same for all.
        threshold: in (0, 1].
        low_threshold: anchors from this IoU that are not positive are ignored; ``None`` ignores none.
        compensate: a face with fewer positives than this gets the best of the other anchors that overlap it most among
            all faces, with an IoU of at least 0.1, until it has so many; 0 adds none.

    Returns:
        ``labels``, ``(B, A)`` int64: 1 positive, 0 background, -1 ignored. ``faces``, ``(B, A)`` int64: index of the
        face where the label is 1, else -1.

    Raises:
        ValueError: shapes that do not fit, thresholds out of order or range, or a negative ``compensate``.

    Source:
        DSFD's code, its optional two thresholds and its compensation included; the default 0.4 is its configuration's.
        Of equal overlaps the first anchor and the first face count, so a face that overlaps no anchor, outside the
        picture or without area, is matched to the first one: the rule knows no exception, and the data module hands out
        no such face. Ours: compensation gives an anchor to no other face than the one that it overlaps most, as the
        threshold does, so the order of the faces does not matter there. Overlaps are computed for a block of faces at a
        time; there is no matrix of all of them.

    Example:
        >>> anchors = torch.tensor([[0.0, 0.0, 4.0, 4.0], [4.0, 0.0, 8.0, 4.0], [5.0, 0.0, 9.0, 4.0]])
        >>> faces = [torch.tensor([[4.0, 0.0, 8.0, 4.0]]), torch.zeros(0, 4)]
        >>> match_batch(faces, anchors, threshold=0.7, low_threshold=0.5)
        (tensor([[ 0,  1, -1],
                 [ 0,  0,  0]]),
         tensor([[-1,  0, -1],
                 [-1, -1, -1]]))
    """
    _check(boxes, anchors, threshold, low_threshold, compensate)
    exact = torch.float64 if torch.float64 in (anchors.dtype, *(faces.dtype for faces in boxes)) else torch.float32
    overlap = anchors.new_full((len(boxes), len(anchors)), -1.0, dtype=exact)
    nearest = torch.full_like(overlap, -1, dtype=torch.int64)
    forced = torch.full_like(nearest, -1)
    for image, faces in enumerate(boxes):
        _closest(faces, anchors, overlap[image], nearest[image], forced[image])
    positive = (overlap >= threshold) | (forced >= 0)
    faces = torch.where(forced >= 0, forced, nearest).masked_fill_(~positive, -1)
    labels = positive.long()
    if low_threshold is not None:
        labels.masked_fill_((overlap >= low_threshold) & ~positive, -1)
    if compensate:
        _compensate(labels, faces, overlap, nearest, max(map(len, boxes), default=0), compensate)
    return labels, faces


def _closest(faces: Tensor, anchors: Tensor, overlap: Tensor, nearest: Tensor, forced: Tensor) -> None:
    """Fill in the largest IoU of each anchor, whose it is, and the face whose best anchor it is, if it is one."""
    step = max(1, BLOCK.get(anchors.device.type, BLOCK_ELSEWHERE) // len(anchors))
    for first in range(0, len(faces), step):
        iou = pairwise_iou(faces[first : first + step], anchors)
        best, which = iou.max(0)
        better = best > overlap  # a later face has to be better, not as good
        overlap.copy_(torch.where(better, best.to(overlap.dtype), overlap))
        nearest.copy_(torch.where(better, which + first, nearest))
        numbers = torch.arange(first, first + len(iou), device=forced.device)
        # the largest number stays where several faces write, in whatever order they do
        forced.scatter_reduce_(0, iou.argmax(1), numbers, "amax")


def _compensate(labels: Tensor, faces: Tensor, overlap: Tensor, nearest: Tensor, num_faces: int, enough: int) -> None:
    """Make the best anchors of faces with few positives positive, in place."""
    offsets = num_faces * torch.arange(len(labels), device=labels.device)[:, None]  # faces of all pictures, numbered on
    missing = enough - torch.bincount((faces + offsets)[faces >= 0], minlength=len(labels) * num_faces)
    images, anchors = ((labels != 1) & (overlap >= COMPENSATED_IOU)).nonzero(as_tuple=True)
    face = (nearest + offsets)[images, anchors]
    order = overlap[images, anchors].argsort(descending=True, stable=True)
    order = order[face[order].argsort(stable=True)]  # face by face, in each the largest IoU first
    face = face[order]
    candidates = torch.bincount(face, minlength=len(missing))
    place = torch.arange(len(face), device=face.device) - (candidates.cumsum(0) - candidates)[face]
    chosen = order[place < missing[face]]
    images, anchors = images[chosen], anchors[chosen]
    labels[images, anchors] = 1
    faces[images, anchors] = nearest[images, anchors]


def _check(
    boxes: Sequence[Tensor], anchors: Tensor, threshold: float, low_threshold: float | None, compensate: int
) -> None:
    if anchors.ndim != 2 or anchors.shape[1] != 4 or not len(anchors):
        raise ValueError(f"anchors must be (A, 4) with at least one row, got {tuple(anchors.shape)}")
    for image, faces in enumerate(boxes):
        if faces.ndim != 2 or faces.shape[1] != 4:
            raise ValueError(f"the faces of picture {image} must be (G, 4), got {tuple(faces.shape)}")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold} is an IoU and must lie in (0, 1]")
    if low_threshold is not None and not 0 < low_threshold <= threshold:
        raise ValueError(f"low_threshold={low_threshold} must lie in (0, {threshold}], the threshold of positives")
    if compensate < 0:
        raise ValueError(f"compensate={compensate} is a number of anchors and must not be negative; 0 adds none")


@torch.no_grad()
def mine_negatives(ce: Tensor, labels: Tensor, ratio: int = 3) -> Tensor:
    """Positives and the hardest negatives of each picture.

    Args:
        ce: ``(B, A)`` cross-entropy of each anchor's own class, without a margin.
        labels: ``(B, A)``, 1 positive, 0 background, -1 ignored.
        ratio: negatives kept for each positive of the same picture.

    Returns:
        ``(B, A)`` bool: True at the anchors of the classification loss. A picture without positives keeps none.

    Raises:
        ValueError: shapes that do not fit, or a negative ratio.

    Source:
        DSFD's code, with its ratio of 3. Ours: of equal values the first anchors are kept.

    Example:
        >>> ce = torch.tensor([[0.1, 0.9, 0.5, 2.0, 0.7]])
        >>> mine_negatives(ce, torch.tensor([[1, 0, 0, -1, 0]]), ratio=2)
        tensor([[ True,  True, False, False,  True]])
    """
    if ce.ndim != 2 or ce.shape != labels.shape:
        raise ValueError(f"ce and labels must both be (B, A), got {tuple(ce.shape)} and {tuple(labels.shape)}")
    if ratio < 0:
        raise ValueError(f"ratio={ratio} must not be negative")
    positive, negative = labels == 1, labels == 0
    count = ratio * positive.sum(1, keepdim=True)
    order = ce.masked_fill(~negative, -torch.inf).argsort(descending=True, stable=True)
    first = torch.arange(ce.shape[1], device=ce.device) < count
    hardest = torch.zeros_like(negative).scatter_(1, order, first)
    return positive | (negative & hardest)
