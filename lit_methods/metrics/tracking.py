"""Trackers: curves of one-pass evaluation, and VOT's measures with resets; beside the functions that they rest on.

One ``update`` is one video. States are sums of fixed size, so that a process without a video takes part, and the result
does not depend on how videos were shared out, but for rounding in the last bits. A video that comes twice counts twice.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_methods.functional.ope import (
    REPORTED,
    OPECurves,
    check_protocol,
    norm_precision_curve,
    ope_curves,
    paired_iou_xywh,
    precision_curve,
    success_curve,
    summarize,
)
from lit_methods.functional.polygon_overlap import checked_size, vot_overlap
from lit_methods.functional.vot import (
    FAILURE,
    expected_average_overlap,
    expected_overlap_curve,
    fragment_sums,
    mean_of_fragments,
    vot_overlaps,
    vot_range,
)
from lit_methods.metrics.double import DoubleMetric

__all__ = [
    "OPECurves",
    "OPENormPrecision",
    "OPEPrecision",
    "OPESuccess",
    "VOTReset",
    "expected_average_overlap",
    "expected_overlap_curve",
    "ope_curves",
    "paired_iou_xywh",
    "summarize",
    "vot_overlap",
    "vot_overlaps",
]
BURN_IN = 10  # frames from each start that VOT's accuracy leaves out


class CurveMetric(DoubleMetric):
    """Base of the metrics here, each the area below a curve or a point of one.

    Args:
        kwargs: of ``torchmetrics.Metric``.
    """

    higher_is_better = True
    _curve: Tensor | None = None

    def curve(self) -> Tensor:
        """The curve that ``compute`` takes its number from, for plots; float64.

        It is computed by ``compute``, so of the videos of all processes: where that has not run since the last
        ``update``, every process has to call this.
        """
        self.compute()
        assert self._curve is not None
        return self._curve


class OPEMetric(CurveMetric):
    """Base of the metrics of one-pass evaluation: the mean of the curves of all videos.

    Args:
        label: what the state is called; one name for each rule, else a ``MetricCollection`` takes metrics whose states
            are equal after the first video, as those of a perfect one are, for one and the same.
        points: length of the curve.
        kwargs: of ``torchmetrics.Metric``.
    """

    videos: Tensor

    def __init__(self, label: str, points: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._label = label
        self.add_state(label, torch.zeros(points, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("videos", torch.zeros([], dtype=torch.int64), dist_reduce_fx="sum")

    def _add(self, curve: Tensor) -> None:
        total: Tensor = getattr(self, self._label)
        total += curve.to(total.device)
        self.videos += 1

    def _mean(self) -> Tensor:
        self._curve = getattr(self, self._label) / self.videos
        return self._curve


class OPESuccess(OPEMetric):
    """Area under the success curve: mean over 21 thresholds of the share of frames with IoU above; NaN without video.

    A perfect tracker gets 20/21, since no IoU is above the last threshold, 1. :meth:`curve` gives the (21,) values.

    Args:
        kwargs: of ``torchmetrics.Metric``.

    Source:
        The OPE toolkit, :func:`~lit_methods.functional.ope.success_curve`.

    Example:
        >>> success, box = OPESuccess(), torch.tensor([[10.0, 10.0, 5.0, 5.0]])
        >>> success.update(box, box)
        >>> success.compute()
        tensor(0.9524, dtype=torch.float64)
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("success_curves", 21, **kwargs)

    def update(self, preds_xywh: Tensor, target_xywh: Tensor, present: Tensor | None = None) -> None:
        """Add a video; arguments and errors of :func:`~lit_methods.functional.ope.ope_curves`."""
        self._add(success_curve(preds_xywh, target_xywh, present))

    def compute(self) -> Tensor:
        """0-d float64, a fraction of 1."""
        return self._mean().mean()


class OPEPrecision(OPEMetric):
    """Share of frames whose centre is within 20 pixels of the true one, mean over videos; NaN without video.

    :meth:`curve` gives it for 0 to 50 pixels, (51,).

    Args:
        protocol: ``"toolkit"``, as published, or ``"strict"``, see :func:`~lit_methods.functional.ope.ope_curves`.
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: an unknown protocol.

    Source:
        The OPE toolkit, :func:`~lit_methods.functional.ope.precision_curve`.

    Example:
        >>> precision, target = OPEPrecision(), torch.tensor([[10.0, 10.0, 5.0, 5.0]]).repeat(2, 1)
        >>> precision.update(target + torch.tensor([[20.0, 0.0, 0.0, 0.0], [21.0, 0.0, 0.0, 0.0]]), target)
        >>> precision.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    def __init__(self, protocol: str = "toolkit", **kwargs: Any) -> None:
        check_protocol(protocol)
        super().__init__(f"precision_curves_{protocol}", 51, **kwargs)
        self.protocol = protocol

    def update(self, preds_xywh: Tensor, target_xywh: Tensor, present: Tensor | None = None) -> None:
        """Add a video; arguments and errors of :func:`~lit_methods.functional.ope.ope_curves`."""
        self._add(precision_curve(preds_xywh, target_xywh, present, self.protocol))

    def compute(self) -> Tensor:
        """0-d float64, a fraction of 1."""
        return self._mean()[REPORTED]


class OPENormPrecision(OPEMetric):
    """The same with distances in widths and heights of the target; NaN without video.

    :meth:`curve` gives it for 0, 0.01, ..., 0.50 sizes, (51,).

    Args:
        protocol: ``"toolkit"``, as published, or ``"strict"``, see :func:`~lit_methods.functional.ope.ope_curves`.
        summary: ``"at_20"``, the share within 0.20 sizes, or ``"auc"``, the mean of the 51 values.
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: an unknown protocol or summary.

    Source:
        The OPE toolkit, :func:`~lit_methods.functional.ope.norm_precision_curve`; LaSOT's own kit reports the area.

    Example:
        >>> precision, target = OPENormPrecision(summary="auc"), torch.tensor([[10.0, 10.0, 8.0, 8.0]])
        >>> precision.update(target + torch.tensor([2.0, 0.0, 0.0, 0.0]), target)  # a quarter of the width
        >>> precision.compute()
        tensor(0.5098, dtype=torch.float64)
    """

    def __init__(
        self,
        protocol: str = "toolkit",
        summary: str = "at_20",
        **kwargs: Any,
    ) -> None:
        check_protocol(protocol)
        if summary not in ("at_20", "auc"):
            raise ValueError(f'summary must be "at_20" (the share within 0.20 sizes) or "auc", got {summary!r}')
        super().__init__(f"norm_precision_curves_{protocol}", 51, **kwargs)
        self.protocol = protocol
        self.summary = summary

    def update(self, preds_xywh: Tensor, target_xywh: Tensor, present: Tensor | None = None) -> None:
        """Add a video; arguments and errors of :func:`~lit_methods.functional.ope.ope_curves`."""
        self._add(norm_precision_curve(preds_xywh, target_xywh, present, self.protocol))

    def compute(self) -> Tensor:
        """0-d float64, a fraction of 1."""
        curve = self._mean()
        return curve[REPORTED] if self.summary == "at_20" else curve.mean()


class VOTReset(CurveMetric):
    """VOT's measures of a tracker that is started again after each failure; one run of each sequence.

    Several runs of one sequence, which the toolkit averages for trackers that are not deterministic, are not told apart
    from sequences. :meth:`curve` gives the overlap to expect against the length, as far as a sequence or the dataset's
    longest usual length goes.

    Args:
        dataset: ``"VOT2018"`` or ``"VOT2019"``, whose usual lengths of sequences EAO is a mean over.
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: an unknown dataset.

    Source:
        The VOT toolkit of the official code, :mod:`lit_methods.functional.vot`.

    Example:
        >>> metric, box = VOTReset("VOT2019"), torch.tensor([[0.0, 0.0, 9.0, 9.0]]).repeat(60, 1)
        >>> polygon = torch.tensor([[0.0, 0, 9, 0, 9, 9, 0, 9]]).repeat(60, 1)
        >>> metric.update(box, torch.tensor([1] + [9] * 59), polygon, image_wh=(320, 240))
        >>> {name: float(value) for name, value in metric.compute().items()}
        {'accuracy': 1.0, 'robustness': 0.0, 'lost': 0.0, 'eao': 1.0}
    """

    overlap: Tensor
    overlap_frames: Tensor
    failures: Tensor
    frames: Tensor
    fragment_overlap: Tensor
    fragments: Tensor
    longest: Tensor

    def __init__(self, dataset: str = "VOT2018", **kwargs: Any) -> None:
        _, self.length = vot_range(dataset)
        super().__init__(**kwargs)
        self.dataset = dataset
        for name in ("overlap_frames", "failures", "frames"):
            self.add_state(name, torch.zeros([], dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("overlap", torch.zeros([], dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("fragment_overlap", torch.zeros(self.length, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("fragments", torch.zeros(self.length, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("longest", torch.zeros([], dtype=torch.int64), dist_reduce_fx="max")

    def update(self, preds_xywh: Tensor, state: Tensor, polygons: Tensor, image_wh: Sequence[float] | Tensor) -> None:
        """Add the run on a sequence.

        Args:
            preds_xywh: (n, 4), see :func:`~lit_methods.functional.vot.vot_overlaps`.
            state: (n,) whole numbers: 9 tracked, 1 started, 2 failure, 0 skipped.
            polygons: (n, 8), the annotation.
            image_wh: (W, H), the image's size.

        Raises:
            ValueError: see :func:`~lit_methods.functional.vot.vot_overlaps`.
        """
        width, height = checked_size("image_wh", image_wh)
        overlaps = vot_overlaps(preds_xywh, state, polygons, (width, height), BURN_IN)
        self.overlap += overlaps.nansum().to(self.overlap.device)
        self.overlap_frames += overlaps.isfinite().sum().to(self.overlap.device)
        self.failures += (state == FAILURE).sum().to(self.overlap.device)
        self.frames += len(state)
        overlaps = vot_overlaps(preds_xywh, state, polygons, (width - 1, height - 1)).to(self.overlap.device)
        sums, counts = fragment_sums(overlaps, state, self.length)
        self.fragment_overlap += sums
        self.fragments += counts
        self.longest.clamp_(min=len(state))

    def compute(self) -> dict[str, Tensor]:
        """``accuracy`` and ``eao``, fractions of 1; ``robustness``, failures per 100 frames; ``lost``, failures.

        0-d float64. NaN stands where there is nothing to average: without any sequence, in ``accuracy`` without a frame
        past the burn-in, in ``eao`` without a sequence of the shortest usual length.
        """
        reach = min(int(self.longest), self.length)
        self._curve = mean_of_fragments(self.fragment_overlap[:reach], self.fragments[:reach])
        return {
            "accuracy": self.overlap / self.overlap_frames,
            "robustness": 100 * self.failures.double() / self.frames,
            "lost": self.failures.double(),
            "eao": expected_average_overlap(self._curve, self.dataset),
        }
