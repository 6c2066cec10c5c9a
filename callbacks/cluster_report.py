"""ClusterReport: what the clusters of each iteration look like, and the features before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks.cluster_figures import feature_map_figure, iterations_figure
from callbacks.features import gathered_features
from callbacks.pseudo_label_clustering import ClusterListener, Clusters, PseudoLabelClustering
from callbacks.report import RunReport
from lit_methods.functional.drawing import grid
from lit_methods.functional.draws import permutation, purpose
from lit_methods.functional.framing import PLAIN, RIGHT, WRONG, framed

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
        """The largest clusters, row by row, and some outliers; pictures spread evenly over each."""
        numbers, sizes = labels[labels >= 0].unique(return_counts=True)
        largest = numbers[sizes.argsort(descending=True, stable=True)][: self.num_clusters].tolist()
        truth: Tensor | None = data.true_train_ids()
        cells: list[np.ndarray] = []
        for number in [*largest, -1]:
            members = (labels == number).nonzero().flatten()
            if not len(members):
                continue
            count = min(self.per_cluster, len(members))
            shown = members[torch.arange(count) * len(members) // count].tolist()  # the files go person by person
            usual = int(truth[members].mode().values) if truth is not None and number >= 0 else None
            for index in shown:
                colour = PLAIN
                if truth is not None and usual is not None:
                    colour = RIGHT if int(truth[index]) == usual else WRONG
                cells.append(framed(data.thumbnail(index), colour))
            cells += [np.full_like(cells[0], 255)] * (self.per_cluster - count)
        return grid(cells, columns=self.per_cluster)

    def _map(self, trainer: Trainer, key: str, features: Tensor, labels: Tensor) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        chosen = np.sort(permutation(len(features), purpose("ad_cluster/map"))[: self.num_points])
        chosen = chosen[features[chosen].isfinite().all(1).numpy()]  # a training that diverged ends all the same
        if len(chosen) < 5:  # nothing to see
            return
        camids = data.train_camids.numpy()[chosen]
        truth = data.true_train_ids()
        colours, what = (labels, "clusters") if truth is None else (truth, "persons")
        figure = feature_map_figure(features.numpy()[chosen], colours.numpy()[chosen], camids, what)
        RunReport.of(trainer).figure(trainer, key, figure)


def _rows(labels: Tensor, data: Any) -> list[list[Any]]:
    truth, camids = data.true_train_ids(), data.train_camids
    usual: int | str
    share: int | str
    rows: list[list[Any]] = []
    for number in labels[labels >= 0].unique().tolist():
        members = labels == number
        cameras = " ".join(str(camera + 1) for camera in camids[members].unique().tolist())
        usual, share = "", ""  # nobody knows
        if truth is not None:
            usual = int(truth[members].mode().values)
            share = int((truth[members] == usual).sum())
        rows.append([number, int(members.sum()), cameras, usual, share])
    return rows
