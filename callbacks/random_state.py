"""RandomState: dropout and other random layers go on where the checkpoint was written."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class RandomState(Callback):
    """Keep the random generators of Python, NumPy and torch in the checkpoint; the command line adds it to every run.

    Data need none of this: their order and augmentation are functions of (seed, epoch, index). A network with dropout
    does. The state is that of the first process, on its current device.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain Python, which ``weights_only`` loads; NumPy's array goes as a list."""
        name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - users may draw from it
        state = {
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
            "numpy": [str(name), np.asarray(keys).tolist(), *rest],
        }
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Hold it until training starts: building optimisers and the like may draw numbers before."""
        self._restored = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the generators back, once."""
        if (state := self._restored) is None:
            return
        self._restored = None
        torch.set_rng_state(state["torch"].cpu())
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"].cpu())
