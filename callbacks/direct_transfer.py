"""DirectTransfer: what the encoder is worth on the target before it has learnt anything there."""

from __future__ import annotations

from itertools import islice
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.evaluation import batches_within, device_batches
from callbacks.interruption import interruptible
from callbacks.progress import progress
from callbacks.pseudo_label_clustering import ClusterListener, Clusters
from callbacks.surgery import share_buffers
from lit_methods.functional.modes import evaluating
from lit_methods.metrics.reid import ReIDRanking


class DirectTransfer(ClusterListener):
    """Rank the test gallery of the target with the encoder as it comes from the source, before the first adaptation.

    ``summary()`` gives ``test/mAP_direct``, ``test/mINP_direct`` and ``test/rank1_direct`` to ``rank10_direct``, beside
    the figures of the test that follows the fit; nothing is chosen by them. A resumed run has them from its checkpoint.

    Example:
        >>> DirectTransfer().summary()
        {}
    """

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}

    def on_clusters(self, trainer: Trainer, pl_module: LightningModule, clusters: Clusters) -> None:
        """At the first clustering; every process ranks with the features of all."""
        if clusters.iteration > 1 or trainer.limit_test_batches == 0:
            return
        module: Any = pl_module
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        try:
            data.setup("test")
        except FileNotFoundError as ex:
            rank_zero_warn(f"direct transfer is not measured: {ex}")
            return
        loader = data.test_dataloader()
        count = batches_within(trainer.limit_test_batches, len(loader))
        if count == 0:
            return
        ranking = ReIDRanking(ap=module.hparams["ap"]).to(module.device)
        share_buffers(module)
        batches = device_batches(trainer, islice(loader, count))
        with evaluating(module), trainer.precision_plugin.forward_context():
            for batch in interruptible(trainer, progress(trainer, batches, "direct transfer", total=count)):
                module.update_ranking(ranking, batch)
        try:
            found = ranking.compute()  # all processes have the same rows by now, so all raise or none
        except ValueError as ex:  # of a few batches alone; the fit needs no figures of the test
            rank_zero_warn(f"direct transfer is not measured: {ex}")
            return
        self.figures = {f"test/{name}_direct": float(value) for name, value in found.items()}

    def summary(self) -> dict[str, float | str | list]:
        """The figures, as soon as there are any."""
        return dict(self.figures)

    def state_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {"figures": dict(self.figures)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Those of the run that goes on."""
        self.figures = dict(state_dict["figures"])
