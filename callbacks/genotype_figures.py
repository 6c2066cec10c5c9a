"""Figures of a search for architectures: the cells, the course of the search, the weights of the operations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from lit_methods.bpe_mip.edges import CELLS, NONE, Array, as_float64
from lit_methods.bpe_mip.search_space import EDGES, PRIMITIVES, Genotype

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lit_methods.bpe_mip.search_space import CellEdges

POINT, MARK, QUIET, FILL = "#2b6cb0", "#c05621", "#8a94a0", "#edf2f7"
COLOURS = {"max": "#2f855a", "avg": "#2f855a", "skip": "#4a5568", "sep": "#2b6cb0", "dil": "#c05621"}

# The picture of a cell, all in inches: states 0 and 1 at the left, the nodes, and the bar of the output at the right.
STATES = ((0.0, 0.64), (0.0, -0.64), (2.36, 1.45), (3.15, -0.93), (4.71, 1.01), (5.5, 0.01))
RADIUS, BAR = 0.22, (6.15, -1.25, 0.3, 2.95)
LEFT, RIGHT, BOTTOM, TOP = -0.4, 6.6, -1.4, 2.15
# (source, state) -> bend of the edge and where on it its label stands, so that no two of the 14 labels touch
WAYS = {
    (0, 2): (-0.01, 0.5),
    (1, 2): (0.02, 0.31),
    (0, 3): (-0.19, 0.44),
    (1, 3): (0.1, 0.5),
    (2, 3): (-0.04, 0.26),
    (0, 4): (0.39, 0.32),
    (1, 4): (0.29, 0.45),
    (2, 4): (-0.32, 0.49),
    (3, 4): (0.01, 0.4),
    (0, 5): (-0.12, 0.59),
    (1, 5): (-0.11, 0.82),
    (2, 5): (-0.03, 0.44),
    (3, 5): (-0.02, 0.5),
    (4, 5): (0.0, 0.49),
}


def genotype_figure(genotype: Genotype, title: str = "") -> Figure:
    """Both cells of an architecture as graphs, from their two inputs at the left to their output at the right.

    The nodes bear the numbers of their states. A node without edges, which puts out zeros, is dashed. The colour of an
    edge is its kind of operation: pooling, identity, separable or dilated convolution.

    Args:
        genotype: any, from no edges to all 28.
        title: above both cells.

    Example:
        >>> cell = [[["sep_conv_3x3", 0]], [["skip_connect", 2]], [], []]
        >>> [axes.get_title() for axes in genotype_figure(Genotype(cell, cell)).axes]
        ['normal cell', 'reduction cell']
    """
    from matplotlib.figure import Figure

    height = TOP - BOTTOM + (0.3 if title else 0)
    figure = Figure(figsize=(2 * (RIGHT - LEFT), height))
    for number, (cell, name) in enumerate(zip(CELLS, ("normal cell", "reduction cell"), strict=True)):
        axes = figure.add_axes((number / 2, 0, 0.5, (TOP - BOTTOM) / height))
        axes.set_xlim(LEFT, RIGHT)
        axes.set_ylim(BOTTOM, TOP)
        axes.set_axis_off()
        axes.set_title(name, fontsize=12, y=1, pad=-14)
        _draw_cell(axes, getattr(genotype, cell))
    if title:
        figure.suptitle(title, fontsize=13, y=1 - 0.1 / height)
    return figure


def _draw_cell(axes: Axes, cell: CellEdges) -> None:
    from matplotlib.patches import Circle, FancyArrowPatch, Rectangle

    empty = [state >= 2 and not cell[state - 2] for state in range(len(STATES))]
    circles = [
        Circle(place, RADIUS, facecolor=FILL if not hollow else "white", edgecolor=QUIET, ls="--" if hollow else "-")
        for place, hollow in zip(STATES, empty, strict=True)
    ]
    bar = Rectangle(BAR[:2], *BAR[2:], facecolor=FILL, edgecolor=QUIET)
    for patch in (*circles, bar):
        axes.add_patch(patch).set_zorder(3)
    for state, (x, y) in enumerate(STATES):
        name = f"$c_{{k-{2 - state}}}$" if state < 2 else f"{state}"
        axes.text(x, y, name, ha="center", va="center", fontsize=11, zorder=4)
        if state < 2:
            axes.text(x, y - RADIUS - 0.06, f"state {state}", ha="center", va="top", fontsize=8, color=QUIET)
        else:
            dashes = "--" if empty[state] else "-"
            axes.plot([x + RADIUS, BAR[0]], [y, y], color=QUIET, lw=0.8, ls=dashes, zorder=1)
    axes.text(
        BAR[0] + BAR[2] / 2, BAR[1] + BAR[3] / 2, "output", rotation=90, ha="center", va="center", fontsize=11, zorder=4
    )
    for state, node in enumerate(cell, start=2):
        for operation, source in node:
            bend, along = WAYS[source, state]
            label, colour = _label(operation), COLOURS[operation.split("_")[0]]
            arrow = FancyArrowPatch(
                STATES[source],
                STATES[state],
                connectionstyle=f"arc3,rad={bend}",
                patchA=circles[source],
                patchB=circles[state],
                arrowstyle="-|>",
                mutation_scale=10,
                color=colour,
                lw=1.3,
                zorder=2,
            )
            axes.add_patch(arrow)
            x, y = _on_way(source, state, bend, along)
            box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
            axes.text(x, y, label, color=colour, fontsize=9.5, ha="center", va="center", bbox=box, zorder=5)


def _label(operation: str) -> str:
    """``sep_conv_3x3`` as ``sep 3x3``."""
    kind, *_, last = operation.split("_")
    return "skip" if kind == "skip" else f"{kind} {last}"


def _on_way(source: int, state: int, bend: float, along: float) -> tuple[float, float]:
    """A place on the quadratic curve that matplotlib's ``arc3`` draws."""
    (x0, y0), (x1, y1) = STATES[source], STATES[state]
    middle = (x0 + x1) / 2 + bend * (y1 - y0), (y0 + y1) / 2 - bend * (x1 - x0)
    first, second, third = (1 - along) ** 2, 2 * along * (1 - along), along**2
    return first * x0 + second * middle[0] + third * x1, first * y0 + second * middle[1] + third * y1


def search_figure(accuracies: Array, best_name: str = "best so far") -> Figure:
    """The course of a search: each estimate, and the best one so far.

    Args:
        accuracies: (T,) in the order of evaluation; NaN where it failed, which is a cross at the bottom.
        best_name: what the legend calls the line of the best.

    Raises:
        ValueError: it has not one dimension.

    Example:
        >>> search_figure([0.4, float("nan"), 0.6]).axes[0].get_xlabel()
        'evaluation'
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    found = np.asarray(accuracies.detach().cpu() if isinstance(accuracies, Tensor) else accuracies, np.float64)
    if found.ndim != 1:
        raise ValueError(f"accuracies must have shape (T,), one per evaluation, got {found.shape}")
    number = np.arange(1, len(found) + 1)
    failed = np.isnan(found)
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(number[~failed], found[~failed], "o", color=POINT, ms=4, alpha=0.6, mew=0, label="estimate")
    axes.step(number, np.fmax.accumulate(found), where="post", color=MARK, lw=1.3, label=best_name)
    if failed.any():
        bottom = np.full(failed.sum(), 0.03)  # of the height, which the axes' own margin leaves free of estimates
        across = axes.get_xaxis_transform()
        axes.plot(number[failed], bottom, "x", color=QUIET, ms=4, transform=across, clip_on=False, label="failed")
        axes.margins(y=0.08)
    axes.set_xlim(0.5, max(len(found), 1) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("evaluation")
    axes.set_ylabel("validation top-1")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))  # above: no point hidden
    return figure


def alpha_figure(probabilities: Array) -> Figure:
    """Weights of the operations on each edge as a heat map; a dot marks the best operation of an edge, "none" aside.

    Args:
        probabilities: (28, 8), or (28, 7) without "none": the softmax of each edge's scores, rows in the order of
            ``EDGES``.

    Raises:
        ValueError: another shape, NaN, or a number outside of [0, 1].

    Example:
        >>> figure = alpha_figure(np.full((28, 7), 1 / 7))
        >>> figure.axes[0].get_yticklabels()[2].get_text()
        'normal 0->3'
    """
    from matplotlib.figure import Figure

    operations = NONE if np.shape(probabilities)[-1:] == (NONE,) else len(PRIMITIVES)
    weights = as_float64(probabilities, (len(EDGES), operations), "probabilities")
    if weights.min() < 0 or weights.max() > 1 + 1e-6:
        worst = weights.min() if weights.min() < 0 else weights.max()
        raise ValueError(f"probabilities has {worst:.4g}, outside of [0, 1]; give the softmax over the operations")
    figure = Figure(figsize=(4.6, 6.4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(weights, cmap="viridis", aspect="auto", interpolation="nearest", vmin=0)
    axes.plot(weights[:, :NONE].argmax(1), range(len(EDGES)), "o", color="white", mec="black", mew=0.5, ms=4)
    axes.set_xticks(range(operations), PRIMITIVES[:operations], rotation=90, fontsize=8)
    rows = [f"{cell} {source}->{node + 2}" for cell, node, source in EDGES]
    axes.set_yticks(range(len(EDGES)), rows, fontsize=7)
    axes.axhline(len(EDGES) / 2 - 0.5, color="white", lw=2)
    figure.colorbar(image, ax=axes, label="weight", shrink=0.8)
    return figure
