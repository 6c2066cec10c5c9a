"""PseudoLabelClustering: every few epochs the encoder's own clusters become the labels that it learns from."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from callbacks.features import gathered_features
from callbacks.report import RunReport
from callbacks.resumed_epochs import close_finished_epoch
from callbacks.surgery import renew_training
from lit_methods.ad_cluster.agreement import agreement
from lit_methods.ad_cluster.functional import (
    cluster_centroids,
    dbscan_pseudo_labels,
    k_reciprocal_jaccard,
    select_eps,
    source_distance_term,
)

COLUMNS = ["iteration", "epoch", "clusters", "outliers", "eps", "purity", "nmi", "kept_previous"]


class Clusters(NamedTuple):
    """One clustering, equal on all processes; on the CPU.

    Args:
        iteration: 1 for the first one of a fit.
        labels: (N,) int64, pseudo-label of each training picture, -1 for outliers.
        features: (N, D) of the encoder in evaluation.
        centroids: (C, D), mean feature of each cluster.
    """

    iteration: int
    labels: Tensor
    features: Tensor
    centroids: Tensor


class ClusterListener(Callback):
    """A callback that has something to do whenever ``PseudoLabelClustering`` has clustered.

    What it does must not depend on how often it was begun: a run that is stopped in the middle of it begins the whole
    iteration again, from the same weights.
    """

    @abstractmethod
    def on_clusters(self, trainer: Trainer, pl_module: LightningModule, clusters: Clusters) -> None:
        """Before the first batch that is trained on these labels; on every process, in the order of the callbacks."""


class PseudoLabelClustering(Callback):
    """Give every training picture the number of its cluster, DBSCAN on k-reciprocal Jaccard distances (AD-Cluster).

    Before the first epoch (behind ``source_epochs`` of the module) and then every ``every_n_epochs``, when the Trainer
    asks for the loader of the next epoch: features of all training pictures, each process its share; the first one
    clusters, all train on its answer. True identities are not looked at, except for reports.

    With fewer than two clusters the previous labels stay, with a warning; before there are any, nothing is learnt until
    the next clustering. Labels, eps and what was counted are in the checkpoint, and a run that is stopped in the middle
    clusters again from the same weights: labels do not depend on where it was stopped.

    Logs ``cluster/count``, ``cluster/outliers`` (share of the pictures), ``cluster/eps``, ``cluster/iteration`` and,
    where the true identities are known, ``cluster/purity`` (share of the clustered pictures whose identity is the most
    frequent one of their cluster) and ``cluster/nmi``; ``tables/cluster_iterations.csv`` has them all.

    Args:
        every_n_epochs: epochs of training on one clustering.
        k1: neighbours in the Jaccard distance.
        k2: neighbours over which features of neighbourhoods are averaged; 1: none.
        rho: eps is the mean of this share of the smallest distances.
        min_samples: pictures within eps, itself included, that make one the core of a cluster.
        eps_update: ``"first"`` keeps the eps of the first clustering, ``"every"`` finds it each time.
        source_weight: of the distance to the source, 0 to 1; 0.1 is that of U, and 0 needs no source.
        chunk: rows of the distance matrix that are held at a time; ``None`` chooses. Memory alone, not the result.

    Raises:
        ValueError: an argument is out of range; before a fit: another module, data without pseudo-labels, or a Trainer
            that does not ask for loaders in each epoch.

    Source:
        AD-Cluster, arXiv 2004.08787, with the settings of Theory and Practice of UDA re-ID ("U", public code), which
        computes in float16, always takes one cluster for the outliers, and weighs the source by 0.1.

    Example:
        >>> PseudoLabelClustering(every_n_epochs=2).summary()
        {}
    """

    def __init__(
        self,
        every_n_epochs: int = 70,
        k1: int = 20,
        k2: int = 6,
        rho: float = 1.6e-3,
        min_samples: int = 4,
        eps_update: Literal["first", "every"] = "first",
        source_weight: float = 0.0,
        chunk: int | None = None,
    ) -> None:
        for name, value in {"every_n_epochs": every_n_epochs, "k1": k1, "k2": k2, "min_samples": min_samples}.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if not 0 < rho <= 1:
            raise ValueError(f"rho={rho} must lie in (0, 1]: it is a share of all distances")
        if not 0 <= source_weight < 1:
            raise ValueError(f"source_weight={source_weight} must lie in [0, 1)")
        if eps_update not in ("first", "every"):
            raise ValueError(f"eps_update={eps_update!r} must be 'first' or 'every'")
        self.every_n_epochs, self.k1, self.k2, self.rho = every_n_epochs, k1, k2, rho
        self.min_samples, self.eps_update, self.source_weight = min_samples, eps_update, source_weight
        self.chunk = chunk
        self._forget()

    def _forget(self) -> None:
        self.labels: Tensor | None = None
        self.eps: float | None = None
        self.iteration = 0  # clusterings that are done
        self.history: list[dict[str, Any]] = []
        self._resumed = False

    # -- the Trainer's hooks ------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work, before anything runs."""
        if stage != "fit":
            return
        if trainer.current_epoch == 0:  # a fit of its own, unless a checkpoint is loaded next
            self._forget()
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(pl_module, "adapting"):
            raise ValueError(f"PseudoLabelClustering is for ADCluster, not for {type(pl_module).__name__}")
        if (given := getattr(data, "train_on", None)) != "clusters":
            raise ValueError(f"data.train_on={given!r} has no labels for PseudoLabelClustering to set: give 'clusters'")
        if trainer.reload_dataloaders_every_n_epochs != 1:  # type: ignore[attr-defined]
            raise ValueError(
                "PseudoLabelClustering changes labels between epochs: set trainer.reload_dataloaders_every_n_epochs=1"
            )
        if self.source_weight and not data.source_root:
            raise ValueError(f"source_weight={self.source_weight} needs pictures of the source: give data.source_root")

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A fit that goes on."""
        self._resumed = trainer.state.fn == TrainerFn.FITTING

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on the data ask for the labels of an epoch whenever they make its loader."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        # Not in a hook of an epoch: on resume some are lost, and all come after the loader was made
        data.label_source = partial(self.labels_for_epoch, trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Another clustering gives epochs of another length, which a resumed run may stand between."""
        if self._resumed:
            close_finished_epoch(trainer)
        self._resumed = False

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nobody answers any more."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        data.label_source = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As at the end."""
        if getattr(trainer, "datamodule", None) is not None:
            self.on_fit_end(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what the labels of this epoch are like."""
        if self.history and trainer.is_last_batch:
            figures: dict[str, Any] = self.summary()
            figures = {name: float(value) for name, value in figures.items() if name != "cluster/kept_previous"}
            pl_module.log_dict(figures, on_step=False, on_epoch=True, batch_size=1)

    # -- clustering ---------------------------------------------------------------------------------------------------

    def labels_for_epoch(self, trainer: Trainer, module: Any) -> Tensor | None:
        """The labels of the epoch at hand, from a new clustering where one is due; ``None`` as long as the source is
        trained on."""
        epoch, first = trainer.current_epoch, module.hparams["source_epochs"]
        last = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else epoch + 1
        if epoch < first and not module.adapting:
            return None
        # by the date of the last one: a resumed run may have been given another every_n_epochs or source_epochs
        if epoch < last and (not self.history or epoch >= self.history[-1]["epoch"] + self.every_n_epochs):
            self._iterate(trainer, module)
        return self.labels

    def _iterate(self, trainer: Trainer, module: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        features = gathered_features(trainer, module, data.cluster_dataloader(), "features of the clusters")
        source = self._source_features(trainer, module)
        found, eps = self._cluster_on_first(trainer, module, features, source)
        kept = _count_clusters(found) < 2
        labels = self._previous(found) if kept else found
        clusters = Clusters(self.iteration + 1, labels, features, cluster_centroids(features, labels))
        row = self._count(trainer, clusters, found, eps, kept)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ClusterListener):
                callback.on_clusters(trainer, module, clusters)
        if not module.adapting:
            module.begin_adaptation()
            renew_training(trainer, module)
        # only now: whatever stopped the run before, the next one does all of it
        self.labels, self.iteration = labels, clusters.iteration
        self.eps = self.eps if kept else eps  # that of clusters that nobody took is not kept
        self.history.append(row)
        RunReport.of(trainer).table_beside(
            trainer, "cluster/iterations", COLUMNS, [_cells(row) for row in self.history]
        )

    def _source_features(self, trainer: Trainer, module: Any) -> Tensor | None:
        if not self.source_weight:
            return None
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        return gathered_features(trainer, module, data.source_cluster_dataloader(), "features of the source")

    def _cluster_on_first(
        self, trainer: Trainer, module: Any, features: Tensor, source: Tensor | None
    ) -> tuple[Tensor, float]:
        """Labels and eps of the first process, on all of them; its error, too."""
        answer: tuple[Tensor, float] | str | None = None
        if trainer.is_global_zero:
            try:
                answer = self.cluster(features.to(module.device), None if source is None else source.to(module.device))
            except Exception as ex:  # raised here alone, it would leave the others waiting
                answer = str(ex) if isinstance(ex, ValueError) else f"clustering failed: {type(ex).__name__}: {ex}"
        answer = trainer.strategy.broadcast(answer)
        if isinstance(answer, str):
            raise ValueError(answer)
        assert answer is not None
        return answer

    def cluster(self, features: Tensor, source: Tensor | None = None) -> tuple[Tensor, float]:
        """Labels and eps for features; override it for a clustering of your own.

        Args:
            features: (N, D).
            source: (M, D), features of the source; only with ``source_weight``.

        Returns:
            (N,) int64 on the CPU, -1 for outliers, and eps.
        """
        distances = k_reciprocal_jaccard(features, self.k1, self.k2, chunk=self.chunk, sparse=True)
        if source is not None:
            term = source_distance_term(features, source, chunk=self.chunk)
            distances = distances.with_source_term(term, self.source_weight)
        eps = self.eps if self.eps is not None and self.eps_update == "first" else select_eps(distances, self.rho)
        return dbscan_pseudo_labels(distances, eps, self.min_samples).cpu(), eps

    def _previous(self, found: Tensor) -> Tensor:
        clusters, outliers = _count_clusters(found), int((found < 0).sum())
        what = "the previous labels stay" if self.labels is not None else "nothing is learnt until the next clustering"
        rank_zero_warn(
            f"clustering {self.iteration + 1} found {clusters} cluster(s) and {outliers} outliers among {len(found)} "
            f"pictures: {what}; a larger rho or a smaller min_samples finds more, a smaller rho splits one"
        )
        return torch.full_like(found, -1) if self.labels is None else self.labels

    def _count(self, trainer: Trainer, clusters: Clusters, found: Tensor, eps: float, kept: bool) -> dict[str, Any]:
        """What is reported of a clustering, as plain values; ``None`` where nothing is known."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        truth = data.true_train_ids()  # for these two figures alone
        purity, nmi = agreement(found, truth) if truth is not None else (None, None)
        count, outliers = _count_clusters(found), float((found < 0).float().mean())
        rank_zero_info(f"clustering {clusters.iteration}: {count} clusters, {outliers:.0%} outliers, eps {eps:.4g}")
        values = (clusters.iteration, trainer.current_epoch, count, outliers, eps, purity, nmi, int(kept))
        return dict(zip(COLUMNS, values, strict=True))

    # -- what is left of it -------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, float | str | list]:
        """The figures of the last clustering."""
        if not self.history:
            return {}
        row = {name: value for name, value in self.history[-1].items() if value is not None}
        row["count"] = row.pop("clusters")
        row["kept_previous"] = sum(done["kept_previous"] for done in self.history)
        return {f"cluster/{name}": value for name, value in row.items() if name != "epoch"}

    def state_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {"labels": self.labels, "eps": self.eps, "iteration": self.iteration, "history": list(self.history)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written."""
        self.labels, self.eps = state_dict["labels"], state_dict["eps"]
        self.iteration, self.history = state_dict["iteration"], list(state_dict["history"])


def _count_clusters(labels: Tensor) -> int:
    return len(labels[labels >= 0].unique())


def _cells(row: dict[str, Any]) -> list[Any]:
    return ["" if row[name] is None else row[name] for name in COLUMNS]
