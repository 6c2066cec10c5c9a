"""Figures of a MIP search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def importance_figure(
    importances: Sequence[Mapping[str, float]], spread: Sequence[Mapping[str, tuple[float, float]]]
) -> Figure:
    """Bars of each round's importances, with their range over forest seeds; the one that is pruned is red.

    Args:
        importances: per round, name -> importance; the names of a later round are among those of an earlier one.
        spread: per round, name -> (lowest, highest) over forests; may be empty.

    Example:
        >>> figure = importance_figure([{"a": 0.1, "b": 0.7}], [{"a": (0.0, 0.2), "b": (0.6, 0.8)}])
        >>> len(figure.axes)
        1
    """
    from matplotlib.figure import Figure

    names = list(importances[0])
    figure = Figure(figsize=(1.2 + 1.9 * len(importances), 0.9 + 0.32 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(importances), sharey=True, squeeze=False)[0]
    for number, (axis, found) in enumerate(zip(axes, importances, strict=True)):
        left = importances[number + 1] if number + 1 < len(importances) else {}
        pruned = _pruned(found, left)
        colours = ["tab:red" if name == pruned else "tab:blue" for name in found]
        places = [names.index(name) for name in found]
        axis.barh(places, list(found.values()), color=colours)
        if number < len(spread) and spread[number]:
            for place, name in zip(places, found, strict=True):
                axis.plot(spread[number][name], [place, place], color="black", linewidth=1.5)
        axis.set_title(f"round {number + 1}", fontsize=9)
        axis.set_yticks(range(len(names)), names)
        axis.set_xlabel("importance", fontsize=8)
        axis.tick_params(labelsize=8)
    axes[0].invert_yaxis()
    return figure


def _pruned(found: Mapping[str, float], left: Mapping[str, float]) -> str:
    """The name that the next round has no more; in the last one the least important."""
    gone = [name for name in found if name not in left] if left else []
    return gone[0] if gone else min(found, key=lambda name: found[name])


def agreement_figure(
    costs: Sequence[float], scores: Sequence[float], best: int, confirmed: float | None = None
) -> Figure:
    """Measured recipes in the order in which they were: rank agreement, with cost as colour; the best one marked.

    Args:
        costs: GPU hours per architecture of each recipe.
        scores: its rank agreement.
        best: number of the best.
        confirmed: its agreement when it was measured afresh.

    Example:
        >>> len(agreement_figure([1.0, 2.0], [0.3, 0.5], best=1, confirmed=0.4).axes)
        2
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axis = figure.subplots()
    norm = LogNorm(min(costs), max(max(costs), min(costs) * 1.01)) if min(costs) > 0 else None
    numbers = range(1, len(scores) + 1)
    points = axis.scatter(numbers, scores, c=list(costs), cmap="viridis", norm=norm, s=45, zorder=3)
    axis.scatter([best + 1], [scores[best]], s=150, facecolors="none", edgecolors="tab:red", label="best", zorder=4)
    if confirmed is not None:
        axis.scatter([best + 1], [confirmed], marker="x", color="tab:red", label="measured afresh", zorder=4)
    axis.set_xlabel("measured recipe")
    axis.set_ylabel("Spearman with ground truth")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.colorbar(points, ax=axis, label="GPU hours per architecture")
    return figure
