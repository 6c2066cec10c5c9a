"""Reference inputs and outputs as tensors."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def tensors(path: Path) -> dict[str, Tensor]:
    """Everything in an ``.npz`` file, also single numbers."""
    with np.load(path, allow_pickle=False) as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}
