"""Figures of face detectors: precision against recall, true positives against false ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"easy": "tab:green", "medium": "tab:blue", "hard": "tab:red", "all": "tab:gray"}


def precision_recall_figure(results: Mapping[str, Any]) -> Figure:
    """Precision against recall of each level, its average precision in the legend.

    Args:
        results: name of a level to its :class:`~lit_methods.metrics.face_detection.WiderFaceResult`.

    Example:
        >>> import torch
        >>> from lit_methods.metrics.face_detection import wider_face_ap
        >>> box = torch.tensor([[10.0, 10, 20, 20]], dtype=torch.float64)
        >>> found = wider_face_ap([torch.cat([box, box[:, :1]], 1)], [box], [torch.ones(1, dtype=torch.bool)])
        >>> precision_recall_figure({"all": found}).axes[0].get_legend().get_texts()[0].get_text()
        'all [1.000]'
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    for level, result in results.items():
        known = ~result.precision.isnan()
        recall, precision = result.recall[known].cpu(), result.precision[known].cpu()
        axes.plot(recall, precision, color=COLOURS.get(level), label=f"{level} [{float(result.ap):.3f}]")
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.grid(alpha=0.3)
    axes.legend(title="average precision", loc="lower left", fontsize="small")
    return figure


def false_positive_figure(result: Any) -> Figure:
    """True positive rate against false positives, discrete and continuous, as FDDB has it.

    Args:
        result: an :class:`~lit_methods.metrics.fddb.FDDBResult`.

    Example:
        >>> import torch
        >>> from lit_methods.metrics.fddb import fddb_scores
        >>> face, found = torch.tensor([[10.0, 8, 0, 20, 20]]), torch.tensor([[10.0, 12, 20, 16, 0.9]])
        >>> figure = false_positive_figure(fddb_scores([found], [face]))
        >>> figure.axes[0].get_legend().get_texts()[0].get_text()
        'discrete [1.000]'
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    curves = {name: curve.cpu() for name, curve in result.curves.items()}
    for name, colour in (("discrete", "tab:blue"), ("continuous", "tab:orange")):
        label = f"{name} [{float(getattr(result, name)):.3f}]"
        axes.plot(curves["false_positives"], curves[name], color=colour, label=label)
    axes.set(ylim=(0, 1.02), xlabel="false positives", ylabel="true positive rate")
    axes.grid(alpha=0.3)
    axes.legend(title="at 1,000 false positives", loc="lower right", fontsize="small")
    return figure
