"""From what a network says at every anchor to the faces of a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lit_methods.asfd.functional import box_voting, keep_detections
from lit_methods.asfd.multi_scale import MAX_PIXELS, bring_back, look, scales, that_count

SMALLEST_SIDE = 128  # of a picture, the stride of the top level
Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


def detect(
    forward: Forward,
    images: Tensor | Sequence[Tensor],
    *,
    score_threshold: float = 0.01,
    pre_nms: int = 5000,
    nms_iou: float = 0.3,
    max_boxes: int = 750,
) -> list[Tensor]:
    """Faces in pictures of any sizes.

    Pictures of one size go through the network together, others by themselves, and none is padded: each gets what it
    would get alone. What is not finite, as of a network that has diverged, is no face. Boxes may reach beyond the
    picture, as faces do.

    Args:
        forward: images (B, 3, H, W) in [0, 1] to boxes (B, A, 4), xyxy in pixels, and scores (B, A), as ``ASFD``.
        images: (3, H, W) each, or (B, 3, H, W).
        score_threshold: scores above it count.
        pre_nms: at most so many boxes of a picture, the best ones, enter the suppression.
        nms_iou: a box is dropped where it overlaps a better one by more than that.
        max_boxes: at most so many are kept.

    Returns:
        (k, 5) float32 for each picture in their order: x1, y1, x2, y2, score, highest score first.

    Raises:
        ValueError: a picture is no (3, H, W), holds integers, or has a side below 128 pixels.

    Source:
        Section 3, "Test". Ours: pictures of one size share a pass.

    Example:
        >>> def one_face(images):
        ...     box = images.new_tensor([30.0, 40.0, 60.0, 85.0])
        ...     return box.expand(len(images), 2, 4), images.mean((1, 2, 3))[:, None].repeat(1, 2)
        >>> detect(one_face, [torch.full((3, 128, 160), 0.5), torch.zeros(3, 130, 128)])
        [tensor([[30.0000, 40.0000, 60.0000, 85.0000,  0.5000]]), tensor([], size=(0, 5))]
    """
    same: dict[torch.Size, list[int]] = {}
    for number, image in enumerate(images):
        check_image(image)
        same.setdefault(image.shape, []).append(number)
    found: dict[int, Tensor] = {}
    for numbers in same.values():
        batch = images if isinstance(images, Tensor) else torch.stack([images[number] for number in numbers])
        boxes, scores = forward(batch)
        for number, own_boxes, own_scores in zip(numbers, boxes, scores, strict=True):
            found[number] = best_boxes(own_boxes, own_scores, score_threshold, pre_nms, nms_iou, max_boxes)
    return [found[number] for number in range(len(found))]


def detect_multi_scale(
    forward: Forward,
    image: Tensor,
    *,
    score_threshold: float = 0.01,
    pre_nms: int = 5000,
    nms_iou: float = 0.3,
    max_boxes: int = 750,
    vote_iou: float = 0.3,
    max_scale: float = 3.0,
    max_pixels: float = MAX_PIXELS,
) -> Tensor:
    """Faces of one picture, looked at in many sizes.

    Each view goes through :func:`detect`, suppression included; its boxes are brought back to the picture, and all
    together vote. A face that one view alone has seen is dropped.

    Args:
        forward: as of ``detect``.
        image: (3, H, W) in [0, 1].
        score_threshold: as of ``detect``, in each view.
        pre_nms: likewise.
        nms_iou: likewise.
        max_boxes: likewise, and of all views together.
        vote_iou: boxes that overlap the best one by so much, its pixels inclusive, are one face.
        max_scale: of the largest view, see :func:`scales`; a smaller one saves time.
        max_pixels: of the largest view; fewer save memory.

    Returns:
        (k, 5) float32: x1, y1, x2, y2, score, highest score first.

    Raises:
        ValueError: the picture is none, or the main view has a side below 128 pixels.

    Source:
        DSFD, where each view is suppressed by itself, too. Ours: other views than the main one are left out where a
        side is below 128 pixels; a view is resized bilinearly with antialiasing, and its boxes are divided by its
        actual scale, that of the rounded size; boxes that are not finite are dropped.

    Example:
        >>> def one_face(images):
        ...     sides = images.new_tensor([images.shape[3], images.shape[2]]).repeat(2)
        ...     box = images.new_tensor([0.25, 0.25, 0.75, 0.75]) * sides
        ...     return box.expand(1, 1, 4), images.new_tensor([[0.5]])
        >>> detect_multi_scale(one_face, torch.zeros(3, 160, 128), max_scale=1.5)
        tensor([[ 32.0000,  40.0000,  96.0000, 120.0000,   0.5000]])
    """
    check_image(image)
    height, width = image.shape[1:]
    views = scales(height, width, max_scale=max_scale, max_pixels=max_pixels)
    if min(views[0].size(height, width)) < SMALLEST_SIDE:
        raise ValueError(
            f"a picture of {width}x{height} (width x height), times {views[0].scale:.3g} in its main view, has a side "
            f"below {SMALLEST_SIDE}: raise max_scale={max_scale:g} or max_pixels={max_pixels:g}, or cut it up"
        )
    seen: dict[tuple[float, bool], Tensor] = {}
    found = []
    for view in views:
        if min(view.size(height, width)) < SMALLEST_SIDE:
            continue
        key = view.scale, view.mirrored
        if key not in seen:
            (boxes,) = detect(
                forward,
                look(image, view)[None],
                score_threshold=score_threshold,
                pre_nms=pre_nms,
                nms_iou=nms_iou,
                max_boxes=max_boxes,
            )
            seen[key] = bring_back(boxes, view, height, width)
        found.append(that_count(seen[key], view))
    votes = torch.cat(found)
    return box_voting(votes[:, :4], votes[:, 4], vote_iou, max_boxes)


def best_boxes(
    boxes: Tensor, scores: Tensor, score_threshold: float, pre_nms: int, nms_iou: float, max_boxes: int
) -> Tensor:
    """The faces of one picture, as :func:`detect` gives them.

    Args:
        boxes: (A, 4) xyxy.
        scores: (A,).
        score_threshold: see :func:`detect`, as the others.
        pre_nms: of ``detect``.
        nms_iou: of ``detect``.
        max_boxes: of ``detect``.

    Returns:
        (k, 5) float32.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, torch.nan]])
        >>> best_boxes(boxes, torch.tensor([0.5, 0.75, 0.9]), 0.01, 5000, 0.3, 750).tolist()
        [[0.0, 0.0, 10.0, 9.0, 0.75]]
    """
    boxes, scores = boxes.float(), scores.float()  # half precision has no third digit of a pixel
    scores = scores.where(boxes.isfinite().all(1) & scores.isfinite(), -torch.inf)
    kept = keep_detections(boxes, scores, score_threshold, pre_nms, nms_iou, max_boxes)
    return torch.cat([boxes[kept], scores[kept, None]], 1)


def check_image(image: Tensor) -> None:
    """Refuse what the network cannot look at.

    Args:
        image: (3, H, W).

    Raises:
        ValueError: it is no (3, H, W), holds integers, or has a side below 128 pixels.

    Example:
        >>> check_image(torch.zeros(3, 90, 200))
        Traceback (most recent call last):
            ...
        ValueError: a picture is 200x90 (width x height), below 128, the largest stride: enlarge it, or pad it
    """
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"a picture must be (3, H, W), got {tuple(image.shape)}; several go into a list")
    if not image.is_floating_point():
        raise ValueError(f"a picture must lie in [0, 1], got {image.dtype}: divide it by 255")
    height, width = image.shape[1:]
    if fault := size_fault(height, width):
        raise ValueError(f"a picture is {fault}")


def size_fault(height: int, width: int, multi_scale: bool = False) -> str:
    """What is wrong with the size of a picture, and the cure; or "" where nothing is.

    Args:
        height: pixels.
        width: pixels.
        multi_scale: whether it is looked at in many sizes: a huge one is shrunk for the main view.

    Example:
        >>> size_fault(90, 200), size_fault(128, 128)
        ('200x90 (width x height), below 128, the largest stride: enlarge it, or pad it', '')
        >>> size_fault(130, 200000, multi_scale=True)
        '128527x84 (width x height) in its main view, below 128, the largest stride: cut it up'
    """
    if min(height, width) < SMALLEST_SIDE:
        return f"{width}x{height} (width x height), below {SMALLEST_SIDE}, the largest stride: enlarge it, or pad it"
    if multi_scale:
        rows, columns = scales(height, width)[0].size(height, width)
        if min(rows, columns) < SMALLEST_SIDE:
            size = f"{columns}x{rows} (width x height) in its main view"
            return f"{size}, below {SMALLEST_SIDE}, the largest stride: cut it up"
    return ""
