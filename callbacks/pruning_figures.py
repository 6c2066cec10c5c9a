"""What pruning shows: kept filters, ranks and their stability, sketch errors. Pure functions, numbers to figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KEPT, REMOVED = "#2b6cb0", "#e2a63b"


def kept_filters_figure(filters: dict[str, int], kept: dict[str, int]) -> Figure:
    """Bars per convolution: how many filters stay, how many go.

    Args:
        filters: filters of each convolution of the full network.
        kept: how many of them stay.
    """
    figure = _figure(width=max(6.0, 0.16 * len(filters) + 2), height=3)
    axes = figure.subplots()
    position = np.arange(len(filters))
    stay = np.array([kept[conv] for conv in filters])
    axes.bar(position, stay, color=KEPT, label="kept")
    axes.bar(position, np.array(list(filters.values())) - stay, bottom=stay, color=REMOVED, label="removed")
    step = max(1, len(filters) // 40)
    axes.set_xticks(position[::step], list(filters)[::step], rotation=90, fontsize=6)
    axes.set_ylim(0, 1.15 * max(filters.values()))
    axes.set_ylabel("filters")
    axes.legend(frameon=False, ncols=2, loc="upper left")
    return figure


def rank_histograms_figure(scores: dict[str, np.ndarray], keep: dict[str, list[int]]) -> Figure:
    """One histogram per convolution of its filters' mean ranks, removed filters in another colour.

    Args:
        scores: mean rank (C,) of every convolution.
        keep: ids that stay; a convolution without an entry stays whole.
    """
    from matplotlib.ticker import MaxNLocator

    figure, panels = _panels(list(scores), most=12, height=1.9)
    for conv, axes in panels.items():
        score = scores[conv]
        stays = np.isin(np.arange(len(score)), keep.get(conv, np.arange(len(score))))
        axes.hist([score[stays], score[~stays]], bins=12, stacked=True, color=[KEPT, REMOVED])
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(conv, fontsize=8)
        axes.tick_params(labelsize=6)
    which = f"{len(panels)} of {len(scores)} convolutions"
    figure.supxlabel(f"mean rank of a filter's feature maps; blue: kept, yellow: removed ({which})", fontsize=8)
    figure.supylabel("filters", fontsize=8)
    return figure


def rank_stability_figure(batch_means: dict[str, np.ndarray]) -> Figure:
    """The paper's central claim as a picture: the rank of a filter hardly depends on the batch it is taken on.

    Args:
        batch_means: per convolution the mean rank of each filter on each batch, (batches, C).

    Source:
        HRank, section 3.2 and its figure of ranks against batches.
    """
    from matplotlib.ticker import MaxNLocator

    figure, panels = _panels(list(batch_means), most=8, height=2.2)
    for conv, axes in panels.items():
        means = batch_means[conv]
        axes.imshow(means, aspect="auto", interpolation="nearest", cmap="viridis")
        between_batches, between_filters = rank_spread(means)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(f"{conv}\nstd {between_batches:.2f} batches, {between_filters:.2f} filters", fontsize=7)
        axes.tick_params(labelsize=6)
    figure.supxlabel("filter (bright: high rank; every panel has its own scale)", fontsize=8)
    figure.supylabel("batch", fontsize=8)
    return figure


def sketch_errors_figure(report: Sequence[Mapping[str, Any]]) -> Figure:
    """Bars per sketched tensor: how much of its covariance the sketch misses, filters and input channels apart.

    Args:
        report: dicts with ``layer``, ``dim`` and ``covariance_error``, as ``sketch_model`` gives them.
    """
    layers = list(dict.fromkeys(row["layer"] for row in report))
    figure = _figure(width=max(6.0, 0.16 * len(layers) + 2), height=3)
    axes = figure.subplots()
    for dim, colour, name in ((0, KEPT, "filters"), (1, REMOVED, "input channels")):
        rows = [row for row in report if row["dim"] == dim]
        position = np.array([layers.index(row["layer"]) for row in rows]) + (0.2 if dim else -0.2)
        axes.bar(position, [row["covariance_error"] for row in rows], width=0.4, color=colour, label=name)
    step = max(1, len(layers) // 40)
    axes.set_xticks(range(0, len(layers), step), layers[::step], rotation=90, fontsize=6)
    axes.set_ylabel("missed covariance", fontsize=8)
    axes.legend(frameon=False, ncols=2, loc="upper right")
    return figure


def rank_spread(batch_means: np.ndarray) -> tuple[float, float]:
    """How much mean ranks vary between batches and between filters.

    Args:
        batch_means: (batches, C) mean ranks.

    Returns:
        Standard deviation over batches, averaged over filters; standard deviation over filters of their mean. In ranks.

    Example:
        >>> rank_spread(np.array([[1.0, 5.0], [3.0, 5.0]]))
        (0.5, 1.5)
    """
    return float(batch_means.std(0).mean()), float(batch_means.mean(0).std())


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: no global state, no display
    return figure


def _panels(names: list[str], most: int, height: float) -> tuple[Figure, dict[str, Axes]]:
    """A panel for each of at most so many names, evenly taken from first to last, four in a row."""
    shown = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, most).round().astype(int))]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure = _figure(width=2.7 * columns, height=height * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for empty in axes[len(shown) :]:
        empty.set_axis_off()
    return figure, dict(zip(shown, axes, strict=False))
