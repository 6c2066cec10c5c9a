"""What every method's module offers to ``predict``, ``draw`` and ``export``, and a checkpoint that knows its class."""

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from lit_methods.functional.suggestions import first_line


@dataclass(frozen=True)
class ExportGraph:
    """One traceable graph of a method.

    Args:
        module: takes ``inputs`` positionally; pictures are RGB in [0, 1].
        inputs: example inputs.
        dynamic_shapes: per input name the axes that may change, as ``torch.export.export`` takes them.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    dynamic_shapes: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Predicts(Protocol):
    """A module that answers for single samples."""

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, Any]]:
        """One dict of plain values or CPU tensors per sample; the keys are in the method's docstring."""

    def draw(self, image: np.ndarray, prediction: dict[str, Any]) -> np.ndarray:
        """The prediction on its picture: (H, W, 3) uint8 RGB in and out; the output may be larger."""


@runtime_checkable
class Exports(Protocol):
    """A module whose forward pass can leave Python."""

    def export_graphs(self) -> dict[str, ExportGraph]:
        """Name to graph; most methods have one."""


class Described:
    """Mixin before ``LightningModule``: its checkpoints say which class wrote them.

    ``Predictor.from_checkpoint`` and the command line rebuild the module from the file alone. Classes of other packages
    are named in the file too, but never imported from it: their users pass ``module_class=``.
    """

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the class's import path under ``checkpoint["lit_methods"]["class"]``."""
        checkpoint["lit_methods"] = {"class": f"{type(self).__module__}.{type(self).__qualname__}"}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's data on the CPU; tensors are mapped from the file and read when they are used.

    Nothing in the file is executed (``weights_only=True``).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint of a run, or not a local file.
    """
    if "://" in str(path):
        raise ValueError(f"ckpt_path={str(path)!r}: only local files are loaded")
    if not Path(path).is_file():
        raise FileNotFoundError(f"ckpt_path={str(path)!r} does not exist")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not {"state_dict", "loops"} <= checkpoint.keys():
            raise ValueError("no weights and loop states in it; plain weights go to model.base_checkpoint")
    except Exception as ex:  # a damaged or foreign file raises nearly anything
        raise ValueError(f"ckpt_path={str(path)!r} is not a checkpoint of a run: {first_line(ex)}") from None
    return checkpoint


def checkpoint_class(checkpoint: dict[str, Any]) -> Any:
    """The class that wrote a checkpoint.

    Args:
        checkpoint: a loaded Lightning checkpoint.

    Returns:
        The module's class, imported from ``lit_methods``.

    Raises:
        ValueError: it names no class, or one outside this package.

    Example:
        >>> checkpoint_class({"lit_methods": {"class": "lit_methods.classification.ImageClassifier"}}).__name__
        'ImageClassifier'
        >>> checkpoint_class({"lit_methods": {"class": "os.system"}})
        Traceback (most recent call last):
            ...
        ValueError: the checkpoint was written by os.system, outside lit_methods: name the class (module_class, --model)
    """
    path = checkpoint.get("lit_methods", {}).get("class")
    if path is None:
        raise ValueError("the checkpoint does not say which class wrote it: name the class (module_class, --model)")
    home, _, name = path.rpartition(".")
    if home.split(".")[0] != "lit_methods":  # a file decides nothing about what is imported
        raise ValueError(
            f"the checkpoint was written by {path}, outside lit_methods: name the class (module_class, --model)"
        )
    return getattr(import_module(home), name)
