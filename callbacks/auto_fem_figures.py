"""Figures of Auto-FEM: the feature module as a graph, and the weights that a search gives to its operations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from lit_methods.asfd.genotype import CPM_EDGES, LEVELS, OPERATIONS, Genotype, Nodes, fpn_edges

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Place = tuple[float, float]
COLOURS = {"identity": "#4a5568", "conv": "#c05621", "sep": "#2b6cb0"}
FILL, QUIET = "#edf2f7", "#8a94a0"


def auto_fem_figure(genotype: Genotype, title: str = "") -> Figure:
    """What is fused across levels, and what enhances the context within a level.

    At the left lateral features go over into fused ones, the coarsest level on top, which is fused first; at the right
    the nodes of the context graph, of which 0 is the fused feature. Where levels have context graphs of their own, that
    of the finest is shown. Branches that sum before they convolve meet in a small dot.

    Args:
        genotype: any.
        title: above both.

    Example:
        >>> from lit_methods.asfd.genotype import default_genotype
        >>> [axes.get_title() for axes in auto_fem_figure(default_genotype()).axes]
        ['fusion across levels', 'context within a level']
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1 + 0.85 * len(genotype.levels)), layout="constrained")
    left, right = figure.subplots(1, 2)
    lateral: dict[int, Place] = {level: (0.0, float(level)) for level in genotype.levels}
    fused: dict[int, Place] = {level: (3.0, float(level)) for level in genotype.levels}
    for axes, name in ((left, "fusion across levels"), (right, "context within a level")):
        axes.set_title(name)
        axes.set_axis_off()
    for level in genotype.levels:
        _circle(left, lateral[level], f"C{level}")
        _circle(left, fused[level], f"P{level}")
    for level, node in zip(genotype.levels, genotype.fpn, strict=True):
        for op, sources in node:
            _branch(left, op, [fused[n] if n > level else lateral[n] for n in sources], fused[level])
    left.set(xlim=(-0.5, 3.5), ylim=(min(genotype.levels) - 0.5, max(genotype.levels) + 0.5))
    _context(right, genotype.context(genotype.levels[0]))
    if title:
        figure.suptitle(title)
    return figure


def _context(axes: Axes, nodes: Nodes) -> None:
    places: list[Place] = [(2.0 * number, 0.0) for number in range(len(nodes) + 1)]
    for number, place in enumerate(places):
        _circle(axes, place, str(number))
    for number, node in enumerate(nodes, start=1):
        for op, sources in node:
            _branch(axes, op, [places[source] for source in sources], places[number], bow=0.35)
    axes.set(xlim=(-0.5, places[-1][0] + 0.5), ylim=(-2.2, 2.2))


def _circle(axes: Axes, place: Place, text: str) -> None:
    box = {"boxstyle": "circle,pad=0.35", "facecolor": FILL, "edgecolor": QUIET}
    axes.text(*place, text, ha="center", va="center", fontsize=9, bbox=box, zorder=4)


def _branch(axes: Axes, op: str, sources: list[Place], target: Place, bow: float = 0.0) -> None:
    """Arrows from what a branch reads; several meet before the operation."""
    colour, label = COLOURS[op.split("_")[0]], op.replace("_conv", "").replace("_", " ")
    start, gap = sources[0], 12
    if len(sources) > 1:
        start, gap = (0.3 * sum(x for x, _ in sources) / len(sources) + 0.7 * target[0] - 0.5, target[1]), 0
        for source in sources:
            axes.annotate("", start, source, arrowprops={"arrowstyle": "-", "color": QUIET, "shrinkA": 12})
        axes.plot(*start, "o", color=QUIET, ms=4)
    (x0, y0), (x1, y1) = start, target
    far = abs(x1 - x0) > 2.5 and y0 == y1  # past other nodes of the context graph
    bend = (bow if round(x0 / 2) % 2 == 0 else -bow) if far else 0.0
    shape = {"arrowstyle": "-|>", "color": colour, "shrinkA": gap, "shrinkB": 12}
    axes.annotate("", target, start, arrowprops=shape | {"connectionstyle": f"arc3,rad={bend}"})
    middle = (0.45 * x0 + 0.55 * x1, 0.45 * y0 + 0.55 * y1 - 0.3 * bend * (x1 - x0))  # arcs are bent on paper
    box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
    axes.text(*middle, label, color=colour, fontsize=8, ha="center", va="center", bbox=box, zorder=5)


def edge_weights_figure(alphas: Mapping[str, Tensor], ops: Mapping[str, Sequence[str]] | None = None) -> Figure:
    """Weights of the operations on each edge as heat maps; a dot marks the best operation of an edge.

    Where edges are weighted against each other, their shares stand behind their names.

    Args:
        alphas: what ``ASFDSearch.alphas`` gives: ``"fpn"`` (E, O) and ``"cpm"`` (E, O), or (levels, E, O), softmax over
            the operations; maybe ``"fpn_shares"`` and ``"cpm_shares"``, the same without the last dimension.
        ops: names of the operations of ``"fpn"`` and ``"cpm"``; ``None``: ``OPERATIONS``, where they are so many.

    Example:
        >>> import torch
        >>> figure = edge_weights_figure({"fpn": torch.full((16, 8), 0.125), "cpm": torch.full((6, 8), 0.125)})
        >>> [axes.get_title() for axes in figure.axes][:2]
        ['fpn', 'cpm']
    """
    from matplotlib.figure import Figure

    panels = list(_panels(alphas))
    figure = Figure(figsize=(3.6 * len(panels), 5), layout="constrained")
    for axes, (name, weights, edges) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.imshow(weights.numpy(), cmap="viridis", aspect="auto", interpolation="nearest", vmin=0)
        axes.plot(weights.argmax(1).numpy(), range(len(weights)), "o", color="white", mec="black", mew=0.5, ms=4)
        axes.set_title(name)
        axes.set_yticks(range(len(weights)), edges, fontsize=7)
        operations = [op.replace("_", " ") for op in (OPERATIONS if ops is None else ops[name[:3]])]
        if weights.shape[1] == len(operations):
            axes.set_xticks(range(len(operations)), operations, rotation=60, ha="right", fontsize=7)
    return figure


def _panels(alphas: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, list[str]]]:
    """Title, (E, O) weights and names of edges; a panel for each level where each has weights of its own."""
    for name, edges in (("fpn", fpn_edges()), ("cpm", CPM_EDGES)):
        weights, shares = alphas[name], alphas.get(f"{name}_shares")
        several = weights.ndim == 3
        for number, part in enumerate(weights if several else weights[None]):
            names = [f"{source}->{node}" for source, node in edges]
            if shares is not None:
                own = (shares[number] if several else shares).tolist()
                names = [f"{edge}  {share:.2f}" for edge, share in zip(names, own, strict=True)]
            yield f"{name} of level {LEVELS[number]}" if several else name, part, names
