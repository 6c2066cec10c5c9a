"""Figures of trackers: curves of one-pass evaluation, and the overlap that VOT expects of a length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_methods.functional.ope import (
    NORM_PRECISION_THRESHOLDS,
    PRECISION_THRESHOLDS,
    REPORTED,
    SUCCESS_THRESHOLDS,
    OPECurves,
)
from lit_methods.functional.vot import expected_average_overlap, vot_range

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = (("tab:blue", "-"), ("tab:gray", "--"), ("tab:red", "-"), ("tab:green", "-"))


def ope_figure(curves: Mapping[str, OPECurves]) -> Figure:
    """Success, precision and normalised precision of trackers, each with the reported number in its legend.

    The number is the area under the success curve, the precision at 20 pixels, and the normalised one at 0.20.

    Args:
        curves: name of a tracker to its mean curves.

    Example:
        >>> curves = OPECurves(torch.linspace(1, 0, 21), torch.ones(51), torch.ones(51))
        >>> figure = ope_figure({"mine": curves})
        >>> [axis.get_legend().get_texts()[0].get_text() for axis in figure.axes]
        ['mine [0.500]', 'mine [1.000]', 'mine [1.000]']
    """
    from matplotlib.figure import Figure

    panels = (
        ("Success: area under the curve", "overlap threshold (IoU)", SUCCESS_THRESHOLDS),
        ("Precision at 20 pixels", "distance of centres, pixels", PRECISION_THRESHOLDS),
        ("Normalised precision at 0.20", "distance of centres, target sizes", NORM_PRECISION_THRESHOLDS),
    )
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for number, (axis, panel) in enumerate(zip(figure.subplots(1, 3, sharey=True), panels, strict=True)):
        title, label, thresholds = panel
        for order, (name, of_tracker) in enumerate(curves.items()):
            curve = of_tracker[number].cpu()
            value = curve.mean() if number == 0 else curve[REPORTED]
            colour, line = STYLES[order % len(STYLES)]
            axis.plot(thresholds, curve, color=colour, linestyle=line, label=f"{name} [{float(value):.3f}]")
        if number:
            axis.axvline(float(thresholds[REPORTED]), color="0.8", linewidth=0.8, zorder=0)
        axis.set(title=title, xlabel=label, ylim=(0, 1.02), xlim=(0, float(thresholds[-1])))
        axis.legend(loc="best", fontsize="small")
    figure.axes[0].set_ylabel("share of frames")
    return figure


def expected_overlap_figure(name: str, curve: Tensor, dataset: str) -> Figure:
    """The overlap to expect of a sequence against its length, the range that EAO is a mean over shaded.

    Args:
        name: of the tracker.
        curve: of :meth:`~lit_methods.metrics.tracking.VOTReset.curve`.
        dataset: ``"VOT2018"`` or ``"VOT2019"``.

    Example:
        >>> figure = expected_overlap_figure("mine", torch.full((400,), 0.25), "VOT2018")
        >>> figure.axes[0].get_legend().get_texts()[0].get_text()
        'mine [EAO 0.250]'
    """
    from matplotlib.figure import Figure

    low, high = vot_range(dataset)
    value = float(expected_average_overlap(curve, dataset))
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axis = figure.subplots()
    axis.axvspan(low, high, color="0.92", zorder=0, label=f"usual lengths, {low} to {high}")
    axis.plot(torch.arange(1, len(curve) + 1), curve.cpu(), color=STYLES[0][0], label=f"{name} [EAO {value:.3f}]")
    axis.set(title=f"{dataset}: expected overlap", xlabel="length of a sequence, frames", ylim=(0, 1.02))
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], labels[::-1], loc="upper right", fontsize="small")
    return figure
