"""WIDER FACE's evaluation: how detections of faces are matched, counted and summed up in an average precision.

The order of an image's detections decides its matches; thresholds only decide where to stop in it. So each detection is
matched once, and all thresholds are read off one histogram of scores: the cost grows with the detections alone.
Everything is float64, on the device of the predictions; Apple's GPUs have no float64, and what lies there is moved to
the CPU.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lit_methods.functional.boxes import pairwise_iou

TOGETHER = 2**16  # pairs of a detection and a face in images that are matched at a time, also of different images
AT_ONCE = 2**21  # pairs whose overlaps exist at a time, in an image that has more


class WiderFaceResult(NamedTuple):
    """What :func:`wider_face_ap` finds for one level; T thresholds, the highest first.

    ``ap`` 0-d float64, NaN without a face that counts; ``precision`` (T,) float64, NaN where nothing was proposed;
    ``recall`` (T,) float64; ``counts`` (T, 2) int64, counted proposals and found faces; ``num_faces``, those that
    count.
    """

    ap: Tensor
    precision: Tensor
    recall: Tensor
    counts: Tensor
    num_faces: int


@torch.no_grad()
def wider_face_ap(
    preds: Sequence[Tensor],
    gts: Sequence[Tensor],
    keeps: Sequence[Tensor],
    iou_threshold: float = 0.5,
    num_thresholds: int = 1000,
    normalize: bool = True,
) -> WiderFaceResult:
    """Average precision of one level of WIDER FACE.

    Args:
        preds: for each image (n, 5) x, y, w, h, score in pixels, finite, in any order; equal scores count in the order
            given.
        gts: for each image (m, 4) x, y, w, h, all its faces.
        keeps: for each image (m,) bool, the faces that count in this level. A detection of another one is ignored.
        iou_threshold: least overlap of a detection with its face, above 0 and up to 1.
        num_thresholds: T, at scores 1 - t/T for t = 1, ..., T.
        normalize: scale the scores to [0, 1], by the smallest and the largest of all images; ``False`` takes them as
            they are.

    Returns:
        Average precision, curves and counts, on the device of the predictions (on the CPU for Apple's GPUs).

    Raises:
        ValueError: lists of different lengths, shapes that do not fit, numbers that are not finite, or an argument out
            of range.

    Source:
        WIDER FACE's evaluation tool in MATLAB; papers/asfd.md, section 5. Its common Python port does not sort the
        detections of an image, and spreads NaN over the envelope. Where all scores are equal the tool divides by zero;
        here they are 1.

    Example:
        >>> preds = [torch.tensor([[0.0, 0, 9, 9, 0.8], [50, 50, 9, 9, 0.6]]), torch.tensor([[0.0, 0, 9, 9, 0.4]])]
        >>> gts, keeps = [torch.tensor([[0.0, 0, 9, 9]])] * 2, [torch.tensor([True])] * 2
        >>> result = wider_face_ap(preds, gts, keeps)
        >>> float(result.ap), result.counts[-1].tolist(), result.num_faces
        (0.8333333333333333, [3, 2], 2)
    """
    check_matching(iou_threshold, num_thresholds)
    if not len(preds) == len(gts) == len(keeps):
        raise ValueError(
            f"preds, gts and keeps must have one entry for each image, got {len(preds)}, {len(gts)} and {len(keeps)}"
        )
    rows, row_images = flat_boxes("preds", preds, "x, y, w, h, score", 5)
    faces, face_images = flat_boxes("gts", gts, "x, y, w, h", device=rows.device)
    kept = flat_flags("keeps", keeps, gts).to(rows.device)
    for name, boxes, images in (("preds", rows, row_images), ("gts", faces, face_images)):
        check_finite(name, boxes, images)
    boxes, faces = (torch.cat([part[:, :2], part[:, :2] + part[:, 2:4]], 1) for part in (rows, faces))
    scores = rows[:, 4]
    counted, found = match_detections(boxes, scores, row_images, faces, face_images, kept[None], iou_threshold)
    if normalize:
        scores = normalized_scores(scores)
    return average_over_thresholds(scores, counted[0], found[0], int(kept.sum()), num_thresholds)


def match_detections(
    boxes: Tensor,
    scores: Tensor,
    images: Tensor,
    faces: Tensor,
    face_images: Tensor,
    keeps: Tensor,
    iou_threshold: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """What becomes of the detections of some images in each of L levels.

    In each image, from the highest score down, equal ones in the order given, each detection goes to the face that it
    overlaps most (the first of equals), where that is enough; there is no second choice. A face that does not count
    makes it an ignored one. The first on a face that counts finds it, later ones are false alarms.

    Args:
        boxes: (N, 4) float64 xyxy, finite.
        scores: (N,) finite.
        images: (N,) int64, ascending, in which image each detection is.
        faces: (M, 4) float64 xyxy, all of them.
        face_images: (M,) int64, ascending.
        keeps: (L, M) bool, those that count in each level.
        iou_threshold: least overlap, of sides with + 1; above 0.

    Returns:
        (L, N) bool, detections that are proposals, and (L, N) bool, those that find a face. An image without any face
        has no proposals, whatever was detected in it.

    Source:
        papers/asfd.md, section 5, steps 1 and 4 to 6.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 10], [30, 30, 39, 39]], dtype=torch.float64)
        >>> image, keeps = torch.zeros(3, dtype=torch.int64), torch.tensor([[True]])
        >>> counted, found = match_detections(boxes, torch.tensor([0.5, 0.9, 0.1]), image, boxes[:1], image[:1], keeps)
        >>> counted.tolist(), found.tolist()
        ([[True, True, True]], [[False, True, False]])
    """
    last = max((int(part[-1]) for part in (images, face_images) if len(part)), default=-1)
    sizes = [torch.bincount(part, minlength=last + 1) for part in (images, face_images)]
    counted = torch.zeros(len(keeps), len(boxes), dtype=torch.bool, device=boxes.device)
    found = torch.zeros_like(counted)
    for (a, c), (b, d) in _groups(*(size.cumsum(0).tolist() for size in sizes)):
        if a < b and c < d:
            counted[:, a:b], found[:, a:b] = _match(
                boxes[a:b], scores[a:b], images[a:b], faces[c:d], face_images[c:d], keeps[:, c:d], iou_threshold
            )
    return counted & (sizes[1] > 0)[images], found


def normalized_scores(scores: Tensor) -> Tensor:
    """Scores of all images scaled to [0, 1]; 1 where all are equal.

    Args:
        scores: (N,) floating point, finite.

    Source:
        papers/asfd.md, section 5, step 2.

    Example:
        >>> normalized_scores(torch.tensor([3.0, 1.0, 2.0])), normalized_scores(torch.tensor([7.0, 7.0]))
        (tensor([1.0000, 0.0000, 0.5000]), tensor([1., 1.]))
    """
    if not len(scores):
        return scores
    low, high = scores.aminmax()
    return torch.where(high > low, (scores - low) / (high - low), torch.ones_like(scores))


def average_over_thresholds(
    scores: Tensor, counted: Tensor, found: Tensor, num_faces: int, num_thresholds: int = 1000
) -> WiderFaceResult:
    """Curves and average precision of the detections of all images, which may come in any order.

    Args:
        scores: (N,) float64, what thresholds are compared with.
        counted: (N,) bool, the detections that are proposals.
        found: (N,) bool, those that find a face.
        num_faces: faces that count, in all images.
        num_thresholds: T.

    Returns:
        See :class:`WiderFaceResult`.

    Source:
        papers/asfd.md, section 5, steps 7 to 9. What an image adds at a threshold, the counts at its last detection
        that reaches it, is how many of its detections reach it; so images need not be told apart.

    Example:
        >>> scores = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
        >>> result = average_over_thresholds(scores, torch.ones(3) > 0, torch.tensor([True, False, True]), 2, 4)
        >>> result.counts.tolist(), round(float(result.ap), 4)
        ([[1, 1], [2, 1], [2, 1], [3, 2]], 0.8333)
    """
    steps = torch.arange(1, num_thresholds + 1, dtype=torch.float64, device=scores.device)
    thresholds = (1 - steps / num_thresholds).flip(0)  # ascending, as searchsorted wants them
    at_most = torch.searchsorted(thresholds, scores.contiguous(), right=True)  # thresholds that a score reaches
    reached = num_thresholds - at_most  # place of the highest of them, from the top
    counts = torch.stack(
        [torch.bincount(reached[which], minlength=num_thresholds + 1).cumsum(0)[:-1] for which in (counted, found)], 1
    )
    proposals, hits = counts.double().unbind(1)
    precision, recall = hits / proposals, hits / num_faces
    return WiderFaceResult(_area(precision, hits, num_faces), precision, recall, counts, num_faces)


def check_matching(iou_threshold: float, num_thresholds: int) -> None:
    """Raise ValueError where an argument of the evaluation is out of range.

    Args:
        iou_threshold: above 0 and up to 1.
        num_thresholds: 1 or more.

    Raises:
        ValueError: it is.

    Example:
        >>> check_matching(0.5, 1000)
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be above 0 and at most 1, got {iou_threshold}; WIDER FACE has 0.5")
    if num_thresholds < 1:
        raise ValueError(f"num_thresholds must be 1 or more, got {num_thresholds}; WIDER FACE has 1000")


def flat_boxes(
    name: str, parts: Sequence[Tensor], layout: str, columns: int = 4, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Boxes of some images as one float64 tensor, on a device that has such.

    Args:
        name: of the argument, for messages; ``{}`` in it stands for the image.
        parts: should be (n, columns) for each image.
        layout: what the columns are.
        columns: how many.
        device: where they go; ``None`` leaves them.

    Returns:
        (N, columns) float64, and (N,) int64, in which image each is.

    Raises:
        ValueError: another shape.

    Example:
        >>> flat_boxes("boxes", [torch.ones(0, 4), torch.tensor([[0, 0, 4, 4]])], "x1, y1, x2, y2")
        (tensor([[0., 0., 4., 4.]], dtype=torch.float64), tensor([1]))
    """
    for i, part in enumerate(parts):
        if part.ndim != 2 or part.shape[1] != columns:
            raise ValueError(f"{_named(name, i)} must be (n, {columns}) with rows {layout}, got {tuple(part.shape)}")
    flat = torch.cat(list(parts)) if len(parts) else torch.zeros(0, columns)
    flat = (flat.cpu() if flat.device.type == "mps" else flat).to(device).double()
    counts = torch.tensor([len(part) for part in parts], dtype=torch.int64)
    return flat, torch.arange(len(counts)).repeat_interleave(counts).to(flat.device)


def flat_flags(name: str, parts: Sequence[Tensor], faces: Sequence[Tensor]) -> Tensor:
    """Which faces of some images count, (M,) bool.

    Args:
        name: see :func:`flat_boxes`.
        parts: should be (m,) bool for each image, or 0 and 1.
        faces: (m, 4) for each image.

    Raises:
        ValueError: they are not, such as the numbers of faces that the evaluation's files have.

    Example:
        >>> flat_flags("keeps", [torch.tensor([0, 1]), torch.tensor([True])], [torch.ones(2, 4), torch.ones(1, 4)])
        tensor([False,  True,  True])
    """
    for i, (part, boxes) in enumerate(zip(parts, faces, strict=True)):
        if part.shape != boxes.shape[:1]:
            raise ValueError(
                f"{_named(name, i)} must be ({len(boxes)},), one flag for each face, got {tuple(part.shape)}"
            )
        if part.dtype != torch.bool and not ((part == 0) | (part == 1)).all():
            raise ValueError(
                f"{_named(name, i)} must be bool, True at the faces that count; it has other values than 0 and 1"
            )
    return torch.cat([part.bool() for part in parts]) if len(parts) else torch.zeros(0, dtype=torch.bool)


def check_finite(name: str, rows: Tensor, images: Tensor) -> None:
    """Raise ValueError where a number of an image is not finite.

    Args:
        name: see :func:`flat_boxes`.
        rows: (N, columns) floating point.
        images: (N,) int64.

    Raises:
        ValueError: there is one; names the first image that has it.

    Example:
        >>> check_finite("boxes", torch.tensor([[0.0, torch.inf]]), torch.tensor([7]))
        Traceback (most recent call last):
        ValueError: boxes[7] has NaN or infinity; leave such boxes out
    """
    if not (finite := rows.isfinite().all(1)).all():
        raise ValueError(f"{_named(name, int(images[~finite][0]))} has NaN or infinity; leave such boxes out")


def _named(name: str, image: int) -> str:
    return name.format(image) if "{}" in name else f"{name}[{image}]"


def _groups(ends: list[int], face_ends: list[int]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where groups of images begin and end, among detections and among faces; one image at least."""
    start, end = (0, 0), (0, 0)
    for place in zip(ends, face_ends, strict=True):
        if end > start and (place[0] - start[0]) * (place[1] - start[1]) > TOGETHER:
            yield start, end
            start = end
        end = place
    if end > start:
        yield start, end


def _match(
    boxes: Tensor,
    scores: Tensor,
    images: Tensor,
    faces: Tensor,
    face_images: Tensor,
    keeps: Tensor,
    iou_threshold: float,
) -> tuple[Tensor, Tensor]:
    """The same for some images, all their detections with all their faces: small images are quicker together."""
    parts = []
    for rows, where in zip(*(part.split(max(1, AT_ONCE // len(faces))) for part in (boxes, images)), strict=True):
        overlaps = pairwise_iou(rows, faces, plus_one=True)
        # where areas overflow it is NaN, which is no hit either
        parts.append(overlaps.masked_fill_(where[:, None] != face_images, 0).max(1))
    hit = torch.cat([part.values for part in parts]) >= iou_threshold
    best = torch.cat([part.indices for part in parts])
    order = scores.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    first = torch.full((len(faces),), len(order), device=order.device)  # rank of the detection that finds each face
    first.scatter_reduce_(0, best, rank.masked_fill(~hit, len(order)), "amin")
    counts_here = keeps[:, best]
    return ~hit | counts_here, (hit & (rank == first[best])) & counts_here


def _area(precision: Tensor, hits: Tensor, num_faces: int) -> Tensor:
    """Area under the envelope of the curve; NaN without a face.

    Recall grows by whole faces, which add up without rounding: divided at the end, perfect detections give 1 exactly.
    """
    # MATLAB's max leaves NaN out, and the curve ends in precision 0: NaN may as well be 0
    envelope = precision.nan_to_num(nan=0.0).flip(0).cummax(0).values.flip(0)
    return (hits.diff(prepend=hits.new_zeros(1)) * envelope).sum() / num_faces
