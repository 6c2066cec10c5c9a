"""New parameters in a running fit: swap the network and refresh everyone who remembers the old one.

The only place that touches Lightning's private strategy members; seen on lightning 2.6.6
(``tests/callbacks/test_surgery.py`` names the version it passed with).
"""

import zlib

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from lit_methods.functional.modes import evaluating as evaluating  # also found here
from lit_methods.functional.processes import gather_objects, in_company


def replace_network(trainer: Trainer, module: LightningModule, network: nn.Module) -> None:
    """Make ``network`` the module's ``model`` in the middle of a fit.

    Without this, DDP goes on waiting for gradients of the old parameters and the optimiser never sees the new ones.
    Call it in ``on_fit_start`` or later, on every process with an equal network. Optimisers and schedulers are built
    anew by ``configure_optimizers``, so the schedule restarts; the hyperparameter ``start_epoch`` tells it where.

    Args:
        trainer: the running trainer.
        module: its module; ``module.model`` is replaced.
        network: the new network, with its weights, on the module's device.

    Raises:
        RuntimeError: the networks of the processes differ; on all of them.
    """
    strategy = trainer.strategy
    module.model = trainer.precision_plugin.convert_module(network)
    if layer_sync := getattr(strategy, "_layer_sync", None):  # trainer.sync_batchnorm
        module.model = layer_sync.apply(module.model)
    refuse_unequal(module)  # DDP would hand the first process's weights to all, and hide it
    renew_training(trainer, module)


def renew_training(trainer: Trainer, module: LightningModule) -> None:
    """Another choice of parameters is trained from here on: tell DDP, build optimisers anew, forget the best scores.

    Args:
        trainer: the running trainer, between two batches.
        module: its module; ``configure_optimizers`` gives the new optimisers.
    """
    renew_wrapper(trainer, module)
    trainer.strategy.setup_optimizers(trainer)
    forget_old_network(trainer, module)


def renew_wrapper(trainer: Trainer, module: LightningModule) -> None:
    """Other parameters have gradients from here on: tell DDP. Optimisers stay, so theirs must be all that ever learn.

    Args:
        trainer: the running trainer, between two batches.
        module: its module.
    """
    strategy = trainer.strategy
    if strategy.model is not module:  # wrapped, as by DDP
        strategy.model = strategy._setup_model(module)


def share_buffers(network: nn.Module) -> None:
    """Give every process the buffers of the first, such as running statistics of batch norm.

    After a training step each process has those of its own batches; DDP evens them out only before the next step. What
    measures the network in between must see one and the same.
    """
    if in_company():
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


def share_weights(network: nn.Module) -> None:
    """Give every process the weights and buffers of the first."""
    share_buffers(network)
    if in_company():
        for parameter in network.parameters():
            dist.broadcast(parameter.data, src=0)


def refuse_unequal(network: nn.Module) -> None:
    """Compare a checksum of all weights and buffers between processes.

    Raises:
        RuntimeError: they differ; on every process.
    """
    if not in_company():
        return
    checksum = 0
    for name, tensor in network.state_dict().items():
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        checksum = zlib.crc32(content, zlib.crc32(f"{name} {tuple(tensor.shape)}".encode(), checksum))
    found = gather_objects(checksum)
    if len(set(found)) > 1:
        raise RuntimeError(
            f"the processes have different networks after surgery (checksums {', '.join(f'{c:08x}' for c in found)}): "
            "decide from values that were reduced over all processes, and broadcast the decision"
        )


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
        elif isinstance(callback, WeightAveraging) and trainer.state.fn == TrainerFn.FITTING:
            callback.setup(trainer, module, "fit")


def refuse_averages_that_cannot_follow(trainer: Trainer, surgeon: Callback) -> None:
    """Weight averages beside a callback that replaces the network: which kinds work, and in which order.

    Args:
        trainer: the trainer that is about to fit.
        surgeon: the callback that replaces the network.

    Raises:
        ValueError: ``StochasticWeightAveraging`` is there, or ``WeightAveraging`` stands before ``surgeon``.
    """
    callbacks, name = trainer.callbacks, type(surgeon).__name__  # type: ignore[attr-defined]
    for place, callback in enumerate(callbacks):
        if isinstance(callback, StochasticWeightAveraging):
            raise ValueError(
                f"trainer.callbacks: StochasticWeightAveraging keeps the network that {name} replaces; "
                "use WeightAveraging or EMAWeightAveraging"
            )
        if isinstance(callback, WeightAveraging) and place < callbacks.index(surgeon):
            # on resume its average is loaded in its turn, and needs the shape of the checkpoint by then
            raise ValueError(f"trainer.callbacks: {name} must stand before {type(callback).__name__}; swap them")


def end_averaging(trainer: Trainer) -> None:
    """Let ``WeightAveraging`` forget its average after a fit; the module has it by then.

    Otherwise it would hand a checkpoint that is tested next the weights of its last step instead of the averaged ones,
    which validation had chosen it by.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):
            callback._average_model = None


def _worst(lowest_is_best: bool) -> Tensor:
    return torch.tensor(torch.inf if lowest_is_best else -torch.inf)
