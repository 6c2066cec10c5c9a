"""One-pass evaluation of trackers (OPE): curves of success, precision and normalised precision of a video.

Boxes are x, y, w, h in pixels, one per frame. Everything is computed in float64, on the device of the predictions;
Apple's GPUs have no float64, and what lies there is moved to the CPU.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

PROTOCOLS = ("toolkit", "strict")
SUCCESS_THRESHOLDS = torch.from_numpy(np.arange(0, 1.05, 0.05))  # of IoU; 0.05 * i in float64, as the toolkit has them
PRECISION_THRESHOLDS = torch.arange(51, dtype=torch.float64)  # pixels
NORM_PRECISION_THRESHOLDS = PRECISION_THRESHOLDS / 100  # widths and heights of the target
REPORTED = 20  # index of both precision curves that is reported: 20 pixels, or 0.20


class OPECurves(NamedTuple):
    """What :func:`ope_curves` finds: shares of all frames at each threshold, float64.

    ``success`` (21,) is for IoU above 0, 0.05, ..., 1; ``precision`` (51,) for centres within 0, 1, ..., 50 pixels;
    ``norm_precision`` (51,) for centres within 0, 0.01, ..., 0.50 sizes of the target.
    """

    success: Tensor
    precision: Tensor
    norm_precision: Tensor


@torch.no_grad()
def paired_iou_xywh(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes, row by row.

    Args:
        a: (n, 4) x, y, w, h, any real type; cast to float64.
        b: (n, 4).

    Returns:
        (n,) float64 in [0, 1]; 0 where the union has no area, NaN where a box has one.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        The OPE toolkit: sides without + 1. The cut at 1 is needed, since rounding gives 1 + 1e-16.

    Example:
        >>> paired_iou_xywh(torch.tensor([[0, 0, 2, 2], [0, 0, 2, 2]]), torch.tensor([[1, 0, 2, 2], [0, 0, 2, 2]]))
        tensor([0.3333, 1.0000], dtype=torch.float64)
    """
    for name, boxes in (("a", a), ("b", b)):
        if boxes.ndim != 2 or boxes.shape != (len(a), 4):
            raise ValueError(f"{name} must be ({len(a)}, 4) boxes x, y, w, h, as many as a, got {tuple(boxes.shape)}")
    a = _float64(a)
    return _iou(a.T, b.to(a.device).double().T)


@torch.no_grad()
def success_curve(preds_xywh: Tensor, target_xywh: Tensor, present: Tensor | None = None) -> Tensor:
    """Share of the frames whose IoU is above each of ``SUCCESS_THRESHOLDS``.

    Args:
        preds_xywh: see :func:`ope_curves`, here and below.
        target_xywh: (n, 4).
        present: (n,) or ``None``.

    Returns:
        (21,) float64. The last is 0 always: no IoU is above 1.

    Raises:
        ValueError: see :func:`ope_curves`.

    Source:
        The OPE toolkit. A frame whose true width or height is not above 0, or NaN, is no success at any threshold.

    Example:
        >>> box = torch.tensor([[10.0, 10.0, 5.0, 5.0]])
        >>> float(success_curve(box, box).sum())
        20.0
    """
    return _success(*_checked(preds_xywh, target_xywh, present)) / len(preds_xywh)


@torch.no_grad()
def precision_curve(
    preds_xywh: Tensor, target_xywh: Tensor, present: Tensor | None = None, protocol: str = "toolkit"
) -> Tensor:
    """Share of the frames whose centres are within each of ``PRECISION_THRESHOLDS`` of each other.

    Args:
        preds_xywh: see :func:`ope_curves`, here and below.
        target_xywh: (n, 4).
        present: (n,) or ``None``.
        protocol: ``"toolkit"`` or ``"strict"``.

    Returns:
        (51,) float64, for 0, 1, ..., 50 pixels.

    Raises:
        ValueError: see :func:`ope_curves`.

    Source:
        The OPE toolkit: distances of centres x + (w - 1) / 2, at most the threshold.

    Example:
        >>> target = torch.tensor([[10.0, 10.0, 5.0, 5.0]])
        >>> precision_curve(target + torch.tensor([3.0, 4.0, 0.0, 0.0]), target)[4:6]
        tensor([0., 1.], dtype=torch.float64)
    """
    check_protocol(protocol)
    return _precision(*_checked(preds_xywh, target_xywh, present), protocol) / len(preds_xywh)


@torch.no_grad()
def norm_precision_curve(
    preds_xywh: Tensor, target_xywh: Tensor, present: Tensor | None = None, protocol: str = "toolkit"
) -> Tensor:
    """The same with centres divided by the target's width and height in that frame.

    Args:
        preds_xywh: see :func:`ope_curves`, here and below.
        target_xywh: (n, 4).
        present: (n,) or ``None``.
        protocol: ``"toolkit"`` or ``"strict"``.

    Returns:
        (51,) float64, for 0, 0.01, ..., 0.50.

    Raises:
        ValueError: see :func:`ope_curves`.

    Source:
        The OPE toolkit, which adds 1e-16 to the sizes.

    Example:
        >>> target = torch.tensor([[10.0, 10.0, 8.0, 8.0]])
        >>> norm_precision_curve(target + torch.tensor([2.0, 0.0, 0.0, 0.0]), target)[24:26]
        tensor([0., 1.], dtype=torch.float64)
    """
    check_protocol(protocol)
    return _norm_precision(*_checked(preds_xywh, target_xywh, present), protocol) / len(preds_xywh)


@torch.no_grad()
def ope_curves(
    preds_xywh: Tensor, target_xywh: Tensor, present: Tensor | None = None, protocol: str = "toolkit"
) -> OPECurves:
    """Curves of one video, from its first frame to its last.

    Args:
        preds_xywh: (n, 4) x, y, w, h in pixels, finite, any real type and device; the first row is the box that the
            tracker was given.
        target_xywh: (n, 4), the annotation; NaN where it is unknown.
        present: (n,) bool or 0/1, whether the target can be seen (LaSOT). Frames without it are no hits and still
            count as frames, so they lower the curves. ``None``: it is there in all (OTB100, UAV123, NFS).
        protocol: of the two precision curves, about frames where a coordinate of the true centre is not above 0, or
            NaN: they are hits at each threshold with ``"toolkit"``, as in published numbers, and at none with
            ``"strict"``.

    Returns:
        The three curves, float64 on the device of ``preds_xywh`` (on the CPU for Apple's GPUs).

    Raises:
        ValueError: shapes that do not fit, no frame, predictions that are not finite, ``present`` that is neither 0 nor
            1, or an unknown protocol.

    Source:
        The OPE toolkit of the official code, to the last bit.

    Example:
        >>> target = torch.tensor([[10.0, 10.0, 5.0, 5.0], [0.0, 0.0, 0.0, 0.0]])
        >>> curves = ope_curves(target, target, present=torch.tensor([1, 0]))
        >>> [float(curve[0]) for curve in curves]
        [0.5, 0.5, 0.5]
    """
    check_protocol(protocol)
    boxes = _checked(preds_xywh, target_xywh, present)
    hits = _success(*boxes), _precision(*boxes, protocol), _norm_precision(*boxes, protocol)
    return OPECurves(*(count / len(preds_xywh) for count in hits))


def summarize(curves: Sequence[OPECurves]) -> dict[str, float]:
    """The numbers that are reported of some videos, each from the mean of their curves.

    Args:
        curves: one of each video.

    Returns:
        ``success_auc``, the mean of the success curve (20/21 at best); ``precision`` at 20 pixels; ``norm_precision``
        at 0.20; ``norm_precision_auc``, the mean of that curve. Fractions of 1, NaN without any video.

    Source:
        The OPE toolkit; the area of normalised precision is what LaSOT's own kit reports.

    Example:
        >>> target = torch.tensor([[10.0, 10.0, 5.0, 5.0]])
        >>> summarize([ope_curves(target, target)])["precision"]
        1.0
    """
    if not curves:
        return dict.fromkeys(("success_auc", "precision", "norm_precision", "norm_precision_auc"), float("nan"))
    success, precision, norm_precision = (
        torch.stack([curve.cpu() for curve in kind]).mean(0) for kind in zip(*curves, strict=True)
    )
    return {
        "success_auc": float(success.mean()),
        "precision": float(precision[REPORTED]),
        "norm_precision": float(norm_precision[REPORTED]),
        "norm_precision_auc": float(norm_precision.mean()),
    }


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of float64 boxes, (4, n) each."""
    sides = torch.minimum(a[:2] + a[2:], b[:2] + b[2:]) - torch.maximum(a[:2], b[:2])
    width, height = sides.clamp(min=0)
    intersection = width * height
    union = a[2] * a[3] + b[2] * b[3] - intersection
    return (intersection / union).masked_fill(union == 0, 0).clamp(0, 1)


def _success(preds: Tensor, target: Tensor) -> Tensor:
    """Number of frames with an IoU above each threshold; boxes are (4, m), here and below."""
    iou = _iou(preds, target).nan_to_num(nan=-1)  # and 0 where the true box has no size, which is above none either
    return len(iou) - _at_most(iou, SUCCESS_THRESHOLDS)


def _precision(preds: Tensor, target: Tensor, protocol: str) -> Tensor:
    return _near(_centers(preds), _centers(target), PRECISION_THRESHOLDS, protocol)


def _norm_precision(preds: Tensor, target: Tensor, protocol: str) -> Tensor:
    size = target[2:] + 1e-16
    return _near(_centers(preds) / size, _centers(target) / size, NORM_PRECISION_THRESHOLDS, protocol)


def _centers(boxes: Tensor) -> Tensor:
    return boxes[:2] + (boxes[2:] - 1) / 2


def _near(preds: Tensor, target: Tensor, thresholds: Tensor, protocol: str) -> Tensor:
    """Number of frames whose centres, (2, m) each, are no farther apart than each threshold."""
    x, y = target - preds
    odd = ~(target > 0).all(0)
    distance = (x * x + y * y).sqrt().masked_fill(odd, -1 if protocol == "toolkit" else torch.inf)
    return _at_most(distance, thresholds)


def _at_most(values: Tensor, thresholds: Tensor) -> Tensor:
    """How many values are at most each threshold, which ascend; a histogram instead of a comparison with each."""
    below = torch.searchsorted(thresholds.to(values.device), values)  # thresholds that are below each value
    return torch.bincount(below, minlength=len(thresholds) + 1).cumsum(0)[:-1].double()


def _float64(values: Tensor) -> Tensor:
    """In float64, where there is such a thing."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def check_protocol(protocol: str) -> None:
    """Raise ValueError where a protocol is unknown.

    Args:
        protocol: ``"toolkit"`` or ``"strict"``.

    Raises:
        ValueError: it is neither.

    Example:
        >>> check_protocol("strict")
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f'protocol must be "toolkit" (as published) or "strict", got {protocol!r}')


def _checked(preds: Tensor, target: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """Boxes of the frames where the target is present, as (4, m) float64 on one device."""
    for name, boxes in (("preds_xywh", preds), ("target_xywh", target)):
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{name} must be (n, 4), a box x, y, w, h for each frame, got {tuple(boxes.shape)}")
    if len(preds) != len(target):
        raise ValueError(
            f"preds_xywh has {len(preds)} boxes and target_xywh {len(target)}; give one for each frame, and cut both "
            "to the shorter where files differ in length"
        )
    if not len(preds):
        raise ValueError("preds_xywh has no box; a video has at least one frame")
    preds = _float64(preds)
    if not (finite := preds.isfinite().all(1)).all():
        raise ValueError(
            f"preds_xywh has NaN or infinity in {int((~finite).sum())} of {len(preds)} frames, first in frame "
            f"{int((~finite).nonzero()[0])} (from 0); a tracker gives four finite numbers for every frame"
        )
    target = target.to(preds.device).double()
    if present is None:
        return preds.T.contiguous(), target.T.contiguous()
    if present.shape != preds.shape[:1]:
        raise ValueError(f"present must be ({len(preds)},), one flag for each frame, got {tuple(present.shape)}")
    if present.dtype != torch.bool and not ((present == 0) | (present == 1)).all():
        raise ValueError("present must be bool, or 1 where the target can be seen and 0 elsewhere; it has other values")
    keep = present.to(preds.device).bool()
    return preds[keep].T.contiguous(), target[keep].T.contiguous()
