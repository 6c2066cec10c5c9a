"""ClusterReport: what the clusters of each iteration look like, and the features before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks.cluster_figures import feature_map_figure, iterations_figure
from callbacks.features import gathered_features
from callbacks.pseudo_label_clustering import ClusterListener, Clusters, PseudoLabelClustering
from callbacks.report import RunReport
from lit_methods.ad_cluster.pictures import PLAIN, RIGHT, WRONG, framed
from lit_methods.functional.drawing import grid
from lit_methods.functional.draws import permutation, purpose

COLUMNS = ["cluster", "size", "cameras", "most_frequent_id", "of_this_id"]


class ClusterReport(ClusterListener):
    """Pictures and tables of the clusters that ``PseudoLabelClustering`` finds.

    - ``cluster/sheet``, at each clustering: a row of pictures for each of the largest clusters, and last one of
      outliers. Where true identities are known, pictures of the most frequent one of a row are framed in green, others
      in red;
    - table ``cluster/clusters``: size, cameras and, where known, the most frequent identity of every cluster;
    - ``cluster/iterations``, at the end of a fit: number, outliers, eps and purity over the iterations;
    - ``cluster/map_before`` and ``cluster/map_after``: t-SNE of some training pictures' features at the first
      clustering and at the end of the fit, coloured by identity (where unknown, by cluster), a mark for each camera.

    Args:
        num_clusters: rows of the sheet.
        per_cluster: pictures in a row.
        num_points: pictures on the maps, at most.

    Raises:
        ValueError: an argument below 1.

    Example:
        >>> ClusterReport(num_clusters=4).num_clusters
        4
    """

    def __init__(self, num_clusters: int = 8, per_cluster: int = 10, num_points: int = 400) -> None:
        sizes = {"num_clusters": num_clusters, "per_cluster": per_cluster, "num_points": num_points}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.num_clusters, self.per_cluster, self.num_points = num_clusters, per_cluster, num_points

    def on_clusters(self, trainer: Trainer, pl_module: LightningModule, clusters: Clusters) -> None:
        """Show the clusters; the first time, the map too."""
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        report = RunReport.of(trainer)
        report.picture(trainer, "cluster/sheet", self.sheet(clusters.labels, data))
        report.table(trainer, "cluster/clusters", COLUMNS, _rows(clusters.labels, data))
        if clusters.iteration == 1:
            self._map(trainer, "cluster/map_before", clusters.features, clusters.labels)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show how the clusters developed, and where the features are now; every process takes part."""
        clustering = next((c for c in trainer.callbacks if isinstance(c, PseudoLabelClustering)), None)  # type: ignore[attr-defined]
        if clustering is None or clustering.labels is None:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        features = gathered_features(trainer, pl_module, data.cluster_dataloader(), "features of the map")
        if trainer.is_global_zero:
            RunReport.of(trainer).figure(trainer, "cluster/iterations", iterations_figure(clustering.history))
            self._map(trainer, "cluster/map_after", features, clustering.labels)

    def sheet(self, labels: Tensor, data: Any) -> np.ndarray:
        """The largest clusters, row by row, and some outliers."""
        numbers, sizes = labels[labels >= 0].unique(return_counts=True)
        largest = numbers[sizes.argsort(descending=True, stable=True)][: self.num_clusters].tolist()
        truth = data.true_train_ids()
        cells: list[np.ndarray] = []
        for number in [*largest, -1]:
            members = (labels == number).nonzero().flatten()
            shown = members[: self.per_cluster].tolist()
            usual = int(truth[members].mode().values) if len(members) and number >= 0 else None
            for index in shown:
                colour = PLAIN if usual is None else RIGHT if int(truth[index]) == usual else WRONG
                cells.append(framed(data.thumbnail(index), colour))
            blank = np.full((134, 70, 3), 255, np.uint8)
            cells += [blank] * (self.per_cluster - len(shown))
        return grid(cells, columns=self.per_cluster)

    def _map(self, trainer: Trainer, key: str, features: Tensor, labels: Tensor) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if len(features) < 5:  # nothing to see
            return
        chosen = np.sort(permutation(len(features), purpose("ad_cluster/map"))[: self.num_points])
        camids = data.train_camids.numpy()[chosen]
        truth = data.true_train_ids()
        colours = (labels if truth is None else truth).numpy()[chosen]
        figure = feature_map_figure(features.numpy()[chosen], colours, camids)
        RunReport.of(trainer).figure(trainer, key, figure)


def _rows(labels: Tensor, data: Any) -> list[list[Any]]:
    truth, camids = data.true_train_ids(), data.train_camids
    rows: list[list[Any]] = []
    for number in labels[labels >= 0].unique().tolist():
        members = labels == number
        usual = truth[members].mode().values
        cameras = " ".join(str(camera + 1) for camera in camids[members].unique().tolist())
        share = int((truth[members] == usual).sum())
        rows.append([number, int(members.sum()), cameras, int(usual), share])
    return rows
