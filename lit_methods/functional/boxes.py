"""Areas and overlaps of boxes x1, y1, x2, y2 in pixels."""

import torch
from torch import Tensor


def box_area(boxes: Tensor, plus_one: bool = False) -> Tensor:
    """Area of each box; one whose sides are not in order has none.

    Args:
        boxes: ``(..., 4)`` x1, y1, x2, y2, any real type.
        plus_one: count x2 and y2 in, so that a box from pixel 3 to pixel 3 is one pixel wide.

    Returns:
        ``(...)``, not negative; float64 for float64, else float32.

    Raises:
        ValueError: the last dimension is not 4.

    Example:
        >>> box_area(torch.tensor([[0, 0, 3, 2], [5, 5, 5, 5]])), box_area(torch.tensor([5, 5, 5, 5]), plus_one=True)
        (tensor([6., 0.]), tensor(1.))
    """
    if not boxes.ndim or boxes.shape[-1] != 4:
        raise ValueError(f"boxes must be (..., 4) x1, y1, x2, y2, got {tuple(boxes.shape)}")
    boxes = _floating(boxes)
    width, height = (boxes[..., 2:] - boxes[..., :2] + plus_one).clamp(min=0).unbind(-1)
    return width * height


@torch.no_grad()
def pairwise_iou(a: Tensor, b: Tensor, plus_one: bool = False) -> Tensor:
    """Intersection over union of each box of one list with each of another.

    Args:
        a: ``(N, 4)`` x1, y1, x2, y2, any real type.
        b: ``(M, 4)`` on the same device.
        plus_one: count x2 and y2 in, for the overlaps as for the areas.

    Returns:
        ``(N, M)`` in [0, 1] but for rounding, without a gradient; float64 where ``a`` or ``b`` is, else float32. 0
        where the union has no area. It takes three times its memory while it is computed.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        The evaluation of WIDER FACE and the box voting of DSFD count with + 1, anchors are matched without.

    Example:
        >>> faces = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> others = torch.tensor([[1.0, 0.0, 3.0, 2.0], [3.0, 0.0, 4.0, 2.0]])
        >>> pairwise_iou(faces, others), pairwise_iou(faces, others, plus_one=True)
        (tensor([[0.3333, 0.0000]]), tensor([[0.5000, 0.0000]]))
    """
    for name, boxes in (("a", a), ("b", b)):
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{name} must be (N, 4) boxes x1, y1, x2, y2, got {tuple(boxes.shape)}")
    dtype = torch.promote_types(_floating(a).dtype, _floating(b).dtype)
    a, b = a.to(dtype).T, b.to(dtype).T.contiguous()  # columns whose numbers lie side by side: several times faster
    inter, height = (_overlap(a[axis::2], b[axis::2], plus_one) for axis in (0, 1))
    inter.mul_(height)
    union = torch.add(box_area(a.T, plus_one)[:, None], box_area(b.T, plus_one), out=height).sub_(inter)
    return inter.div_(union.clamp_(min=torch.finfo(dtype).tiny))


def _overlap(a: Tensor, b: Tensor, plus_one: bool) -> Tensor:
    """Shared length of (2, N) and (2, M) stretches."""
    shared = torch.minimum(a[1, :, None], b[1]).sub_(torch.maximum(a[0, :, None], b[0]))
    return (shared.add_(1) if plus_one else shared).clamp_(min=0)


def _floating(boxes: Tensor) -> Tensor:
    return boxes if boxes.dtype == torch.float64 else boxes.float()
