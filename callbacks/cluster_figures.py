"""Figures of ``ClusterReport``: the iterations, and features in two dimensions."""

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

MARKS = "osD^vP*X<>"  # of the cameras
MOST_COLOURS = 20  # identities with a colour of their own; the others are grey


def iterations_figure(history: list[dict[str, Any]]) -> Figure:
    """Number of clusters, outliers, eps and purity over the iterations.

    Args:
        history: rows of ``PseudoLabelClustering``.
    """
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    names = {"clusters": "clusters", "outliers": "outliers, share", "eps": "eps", "purity": "purity"}
    for axes, (name, label) in zip(figure.subplots(1, 4), names.items(), strict=True):
        rows = [(row["iteration"], row[name]) for row in history if row[name] is not None]
        if rows:
            axes.plot(*zip(*rows, strict=True), marker="o", color="tab:blue")
        axes.set(title=label, xlabel="iteration")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(bottom=0)
    return figure


def feature_map_figure(features: np.ndarray, colours: np.ndarray, camids: np.ndarray) -> Figure:
    """t-SNE of features, a point for each picture.

    Args:
        features: (N, D), N at least 5.
        colours: (N,) int64; the 20 most frequent numbers from 0 on get a colour of their own.
        camids: (N,) int64, a mark each.

    Source:
        van der Maaten and Hinton, 2008, by scikit-learn; begun from the principal components, so the same features
        give the same map.
    """
    perplexity = min(20.0, (len(features) - 1) / 3)
    points = TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(features.astype(np.float32))
    numbers, counts = np.unique(colours[colours >= 0], return_counts=True)
    frequent = numbers[np.argsort(-counts, kind="stable")][:MOST_COLOURS].tolist()
    palette = np.full((len(points), 4), (0.8, 0.8, 0.8, 1))
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    for place, number in enumerate(frequent):
        palette[colours == number] = colormaps["tab20"](place)
    for camera in np.unique(camids).tolist():
        rows = camids == camera
        mark = MARKS[camera % len(MARKS)]
        axes.scatter(*points[rows].T, c=palette[rows], marker=mark, s=22, linewidths=0, label=f"camera {camera + 1}")
    legend = axes.legend(loc="best", fontsize=8)
    for handle in legend.legend_handles:
        handle.set_facecolor("grey")
    axes.set(xticks=[], yticks=[], title=f"{len(points)} pictures, colours: {len(frequent)} most frequent persons")
    return figure
