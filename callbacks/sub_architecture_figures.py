"""What sub-architectures show: similarity, kept channels, paths, confusions, hit rates. Numbers to figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OPEN, SHARED, MARK, CLOSED = "#2b6cb0", "#1a365d", "#c05621", "#edf2f7"
BAND, LINE = "#d5e2ef", "#80a7d0"  # tints of the first
MOST_NAMES = 40  # of classes along a heat map
MOST_POINTS = 20  # names along the gate points
MOST_LINES = 10  # classes with a line of their own
MOST_DOTS = 2000  # pairs of classes; more are counted in hexagons
CELLS = 160  # of a heat map at most; beyond, neighbours are averaged
BINS = 240  # along the channels of a path


def similarity_figure(similarity: np.ndarray, names: Sequence[str]) -> Figure:
    """A heat map of the similarity of sub-architectures; the diagonal is left out of it and of its colours.

    Args:
        similarity: (K, K), its classes in the order in which they are drawn.
        names: theirs; shown up to 40 classes.
    """
    import matplotlib

    classes = len(names)
    shown = np.where(np.eye(classes, dtype=bool), np.nan, similarity)
    side = 4.6 if classes > MOST_NAMES else 2.6 + 0.11 * classes
    figure = _figure(width=side + 0.9, height=side)
    axes = figure.subplots()
    colours = matplotlib.colormaps["viridis"].resampled(24)
    extent = (-0.5, classes - 0.5, classes - 0.5, -0.5)
    image = axes.imshow(_coarse(shown), cmap=colours, interpolation="nearest", extent=extent)
    figure.colorbar(image, ax=axes, label="similarity", shrink=0.8)
    if classes <= MOST_NAMES:
        size = 8 if classes <= 12 else 6
        labels = [_short(name) for name in names]
        axes.set_xticks(range(classes), labels, rotation=90, fontsize=size)
        axes.set_yticks(range(classes), labels, fontsize=size)
    else:
        axes.set_xlabel(f"{classes} classes, similar ones side by side", fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


def kept_ratio_figure(kept: np.ndarray, gate_points: Sequence[str]) -> Figure:
    """Which part of the channels is open behind each gate: mean over classes, smallest and largest.

    Args:
        kept: (K, L), fractions of 1; up to ten classes have a thin line each.
        gate_points: L names, from input to output.
    """
    figure, axes = _over_points(gate_points)
    place = np.arange(len(gate_points))
    axes.fill_between(place, kept.min(0), kept.max(0), color=BAND, lw=0, label="least to most")
    if 1 < len(kept) <= MOST_LINES:
        for row in kept:
            axes.plot(place, row, color=LINE, lw=0.6)
    axes.plot(place, kept.mean(0), "o-", color=OPEN, ms=3, label=f"mean of {len(kept)} classes")
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("open channels")
    axes.legend(frameon=False, fontsize=7)
    return figure


def paths_figure(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    gate_points: Sequence[str],
    names: tuple[str, str],
    similarity: float,
) -> Figure:
    """The sub-architectures of two classes side by side, and what they share.

    A row is a gate point, the input at the top; its channels are stretched to the common width. Where there are more
    of them than columns, a column's shade is the part that is open.

    Args:
        first: L masks (C_l,) bool of one class.
        second: those of the other.
        gate_points: L names.
        names: of the two classes.
        similarity: of the two.
    """
    from matplotlib.colors import LinearSegmentedColormap

    layers = len(gate_points)
    figure = _figure(width=7.6, height=min(6.0, 1.2 + 0.17 * layers))
    both = [a & b for a, b in zip(first, second, strict=True)]
    panels = [(first, names[0], OPEN), (second, names[1], OPEN), (both, f"shared, similarity {similarity:.2f}", SHARED)]
    for axes, (masks, title, colour) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
        shades = LinearSegmentedColormap.from_list("open", [CLOSED, colour], N=16)
        pixels = np.stack([_stretched(mask) for mask in masks])
        axes.imshow(pixels, cmap=shades, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.set_title(_short(title, 26), fontsize=8)
        axes.set_yticks(np.arange(layers + 1) - 0.5, minor=True)
        axes.grid(axis="y", which="minor", color="white", lw=1.2)
        axes.tick_params(which="both", length=0)
        axes.set_xticks([])
        axes.spines[:].set_visible(False)
    step = -(-layers // MOST_POINTS)
    figure.axes[0].set_yticks(range(0, layers, step), list(gate_points)[::step], fontsize=6)
    figure.supxlabel("channels (dark: open)", fontsize=8)
    return figure


def confusion_figure(
    similarity: np.ndarray,
    confused: np.ndarray,
    rates: np.ndarray,
    intervals: np.ndarray,
    chances: np.ndarray,
) -> Figure:
    """Are similar classes confused? Left: pairs of classes; right: where misclassified images fall.

    Args:
        similarity: (P,) of pairs of classes; more than 2000 pairs are counted in hexagons.
        confused: (P,) which part of their images was taken for the other class.
        rates: (M,) of the errors, that fall to the m = 1 ... M most similar classes.
        intervals: (M, 2) their confidence intervals.
        chances: (M,) where similarity says nothing.
    """
    figure = _figure(width=7.2, height=2.9)
    left, right = figure.subplots(1, 2)
    if len(similarity) > MOST_DOTS:
        cells = left.hexbin(similarity, confused, gridsize=24, bins="log", cmap="viridis", mincnt=1, lw=0.1)
        figure.colorbar(cells, ax=left, label="pairs of classes")
    else:
        left.plot(similarity, confused, "o", color=OPEN, ms=4, alpha=0.5, mew=0)
    left.set_xlabel("similarity of two classes")
    left.set_ylabel("images confused")
    number = np.arange(1, len(rates) + 1)
    spread = np.abs(intervals.T - rates)
    right.errorbar(number, rates, yerr=spread, fmt="o-", color=OPEN, ms=4, capsize=3, label="measured, 95 %")
    right.plot(number, chances, "--", color=MARK, label="chance")
    right.set_xticks(number)
    right.set_xlabel("most similar classes")
    right.set_ylabel("errors that fall to them")
    right.set_ylim(0, 1.05)
    right.legend(frameon=False, fontsize=7)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def hit_rate_figure(mean: np.ndarray, std: np.ndarray, gate_points: Sequence[str]) -> Figure:
    """Which part of the focus lies on the right quarter of a mosaic, behind each gate.

    Args:
        mean: (L,) over mosaics; NaN where there was no focus.
        std: (L,) population standard deviation.
        gate_points: L names, from input to output.
    """
    figure, axes = _over_points(gate_points)
    place = np.arange(len(gate_points))
    axes.errorbar(place, mean, yerr=std, fmt="o-", color=OPEN, ms=3, lw=1.2, elinewidth=0.8, label="mean, std")
    axes.axhline(0.25, ls="--", color=MARK, label="chance")
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("hit rate")
    axes.legend(frameon=False, fontsize=7)
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _over_points(gate_points: Sequence[str]) -> tuple[Figure, Axes]:
    """Axes whose x are the gate points, their names below."""
    figure = _figure(width=min(8.0, max(4.0, 1.5 + 0.28 * len(gate_points))), height=3)
    axes = figure.subplots()
    step = -(-len(gate_points) // MOST_POINTS)
    axes.set_xticks(range(0, len(gate_points), step), list(gate_points)[::step], rotation=90, fontsize=6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    return figure, axes


def _coarse(values: np.ndarray) -> np.ndarray:
    """At most so many cells a side, means of blocks of neighbours; NaN are left out of them."""
    block = -(-len(values) // CELLS)
    if block == 1:
        return values
    edges = np.arange(0, len(values), block)
    known = np.isfinite(values)
    sums, counts = (
        np.add.reduceat(np.add.reduceat(part, edges, 0), edges, 1)
        for part in (np.where(known, values, 0.0), known.astype(float))
    )
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _stretched(mask: np.ndarray) -> np.ndarray:
    """A row of ``BINS`` cells, each the part of its channels that is open."""
    channels = len(mask)
    if channels <= BINS:
        return mask[np.arange(BINS) * channels // BINS].astype(float)
    edges = np.arange(BINS) * channels // BINS
    return np.add.reduceat(mask.astype(float), edges) / np.diff([*edges, channels])


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else f"{name[: most - 3]}..."
