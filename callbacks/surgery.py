"""New parameters in a running fit: swap the network and refresh everyone who remembers the old one.

The only place that touches Lightning's private strategy members; seen on lightning 2.6.6
(``tests/callbacks/test_surgery.py`` names the version it passed with).
"""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, WeightAveraging
from torch import Tensor, nn

from lit_methods.functional.modes import evaluating

__all__ = ["evaluating", "forget_old_network", "replace_network"]


def replace_network(trainer: Trainer, module: LightningModule, network: nn.Module) -> None:
    """Make ``network`` the module's ``model`` in the middle of a fit.

    Without this, DDP goes on waiting for gradients of the old parameters and the optimiser never sees the new ones.
    Call it in ``on_fit_start`` or later, on every process with an equal network. Optimisers and schedulers are built
    anew by ``configure_optimizers``, so the schedule restarts; the hyperparameter ``start_epoch`` tells it where.

    Args:
        trainer: the running trainer.
        module: its module; ``module.model`` is replaced.
        network: the new network, with its weights, on the module's device.
    """
    strategy = trainer.strategy
    module.model = trainer.precision_plugin.convert_module(network)
    if layer_sync := getattr(strategy, "_layer_sync", None):  # trainer.sync_batchnorm
        module.model = layer_sync.apply(module.model)
    if strategy.model is not module:  # wrapped, as by DDP
        strategy.model = strategy._setup_model(module)
    strategy.setup_optimizers(trainer)
    forget_old_network(trainer, module)


def forget_old_network(trainer: Trainer, module: LightningModule) -> None:
    """Reset what callbacks remember of a network that is gone: best scores, patience, averaged weights.

    A callback of yours that remembers one has a method ``start_afresh()``. Old checkpoint files stay where they are.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, "start_afresh"):
            callback.start_afresh()
        elif isinstance(callback, ModelCheckpoint):
            callback.best_k_models, callback.kth_best_model_path, callback.best_model_path = {}, "", ""
            callback.best_model_score = callback.current_score = None
            callback.kth_value = _worst(lowest_is_best=callback.mode == "min")
        elif isinstance(callback, EarlyStopping):
            callback.wait_count = 0
            callback.best_score = _worst(lowest_is_best=callback.monitor_op is torch.lt)
        elif isinstance(callback, WeightAveraging):
            callback.setup(trainer, module, "fit")


def _worst(lowest_is_best: bool) -> Tensor:
    return torch.tensor(torch.inf if lowest_is_best else -torch.inf)
