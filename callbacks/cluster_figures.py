"""Figures of ``ClusterReport``: the iterations, and features in two dimensions."""

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

MARKS = "osD^vP*X<>"  # of the cameras
COLOURS = [colormaps["tab20"](place) for place in range(20) if place not in (14, 15)]  # those two are grey
OTHERS = (0.8, 0.8, 0.8, 1)  # grey


def iterations_figure(history: list[dict[str, Any]]) -> Figure:
    """Number of clusters, outliers, eps and purity over the iterations.

    Args:
        history: rows of ``PseudoLabelClustering``; ``None`` in them is not drawn.
    """
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    names = {"clusters": "clusters", "outliers": "outliers, share", "eps": "eps", "purity": "purity"}
    shares = ("outliers", "purity")
    for axes, (name, label) in zip(figure.subplots(1, 4), names.items(), strict=True):
        rows = [(row["iteration"], row[name]) for row in history if row[name] is not None]
        if rows:
            axes.plot(*zip(*rows, strict=True), marker="o", color="tab:blue")
        axes.set(title=label, xlabel="iteration")
        axes.set_xlim(0.5, max(1, len(history)) + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(0, 1.05 if name in shares else 1.1 * max([value for _, value in rows], default=0) or 1)
    return figure


def feature_map_figure(features: np.ndarray, colours: np.ndarray, camids: np.ndarray, what: str = "persons") -> Figure:
    """t-SNE of features, a point for each picture.

    Args:
        features: (N, D), finite, N at least 5.
        colours: (N,) int64; the 18 most frequent numbers from 0 on get a colour of their own, the others are grey.
        camids: (N,) int64, a mark each.
        what: the word for what has a colour.

    Source:
        van der Maaten and Hinton, 2008, by scikit-learn; begun from the principal components, so the same features
        give the same map; where all features are equal, there are none, and the points are scattered at random.
    """
    perplexity = min(20.0, (len(features) - 1) / 3)
    centred = (features - features.mean(0)).astype(np.float32)
    scale = np.abs(centred).max()
    begin = "pca" if scale > 1e-6 * np.abs(features).max() else "random"  # rounding has components of its own
    points = TSNE(init=begin, perplexity=perplexity, random_state=0).fit_transform(centred / (scale or 1))
    numbers, counts = np.unique(colours[colours >= 0], return_counts=True)
    frequent = numbers[np.argsort(-counts, kind="stable")][: len(COLOURS)].tolist()
    palette = np.full((len(points), 4), OTHERS)
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    for number, colour in zip(frequent, COLOURS, strict=False):
        palette[colours == number] = colour
    for camera in np.unique(camids).tolist():
        rows = camids == camera
        mark = MARKS[camera % len(MARKS)]
        x, y = points[rows].T
        axes.scatter(x, y, c=palette[rows], marker=mark, s=22, linewidths=0, label=f"camera {camera + 1}")
    handles: list[Any] = axes.legend(loc="best", fontsize=8).legend_handles
    for handle in handles:
        handle.set_facecolor("grey")
    shown = f"{len(frequent)} most frequent" if len(frequent) < len(numbers) else f"all {len(numbers)}"
    axes.set(xticks=[], yticks=[], title=f"{len(points)} pictures, colours: {shown} {what}")
    return figure
