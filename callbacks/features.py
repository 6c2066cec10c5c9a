"""Features of whole loaders outside the Trainer's loops, each process its share, put together by index."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks.evaluation import device_batches, in_float32
from callbacks.interruption import interruptible
from callbacks.progress import progress
from callbacks.surgery import share_buffers
from lit_methods.functional.modes import evaluating
from lit_methods.functional.processes import gather_objects


def gathered_features(trainer: Trainer, module: LightningModule, loader: Iterable[Any], description: str) -> Tensor:
    """Features of all pictures of a loader that gives each process a share of them.

    In eval mode, float32 or better whatever the Trainer's precision, since clusters are decided by them, and from the
    first process's batch statistics.

    Args:
        trainer: the running trainer.
        module: has ``normalize`` and ``model``.
        loader: batches with ``image`` and ``index``.
        description: for the progress bar.

    Returns:
        (N, D) on the CPU, row i for the picture with index i, equal on all processes.

    Raises:
        RuntimeError: indices are missing or come twice: the loader leaves pictures out or repeats them.
    """
    parts: Any = module
    share_buffers(module)
    normalize, network = in_float32(parts.normalize), in_float32(parts.model)
    dtype = next(network.parameters()).dtype
    mine: list[tuple[Tensor, Tensor]] = []
    batches = progress(trainer, device_batches(trainer, loader), description, total=len(loader))  # type: ignore[arg-type]
    with evaluating(network), torch.autocast(module.device.type, enabled=False):
        for batch in interruptible(trainer, batches):
            if len(batch["index"]):
                image = normalize(batch["image"].to(dtype)).contiguous(memory_format=torch.channels_last)
                mine.append((batch["index"].cpu(), network(image).cpu()))
    found = [part for rank in gather_objects(mine) for part in rank]
    index = torch.cat([part[0] for part in found])
    features = torch.cat([part[1] for part in found])
    size = len(getattr(loader, "dataset", index))
    if sorted(index.tolist()) != list(range(size)):
        raise RuntimeError(f"{description}: {len(index)} rows are not those of the indices 0 to {size - 1}")
    return features[index.argsort()]
