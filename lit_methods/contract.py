"""What every method's module offers to ``predict``, ``draw`` and ``export``, and a checkpoint that knows its class.

Offers that a module may leave out:

- ``summary() -> dict[str, float | str | list]``, also of callbacks and datamodules: log key to figure or text, for
  ``summary.json``, card and closing table of every command;
- ``add_cli_arguments(parser, entry)``, a classmethod: options of its own, such as a class id; those of ``predict`` are
  handed to ``prepare_inputs``, those of ``export`` to ``export_graphs``, those of ``fit`` and ``test`` that were given
  to ``take_options(**options)``, before anything runs;
- ``view(image, size)``: what becomes of the user's picture (3, H, W) in [0, 1] before the network is fed with it;
  without it ``lit_methods.inference.fit_size``;
- ``prepare_inputs(paths, **options) -> Iterable[batch]``: the user's files, and those options, as batches for
  ``predict_step``; without it they are pictures (``lit_methods.inference.prepare_inputs``). Where they have a
  ``close()`` it is called when the prediction has ended, in whatever way;
- ``sift_inputs(paths, **options) -> (readable, unreadable)``: of the user's files and folders, those options given, a
  list of what ``prepare_inputs`` shall have, of any kind, and a dict of the others: path to the reason, one line. A
  method that takes something else than pictures, such as a folder as one video, has it; each of its results then
  names its ``file``. Without it folders are searched for pictures, and each is decoded once;
- ``rows(prediction) -> list[dict]``: where a result is a list of things, such as the faces of a picture, the rows of
  ``predictions.csv`` for one result, possibly none, of plain values; without it a result is one row;
- ``record(prediction) -> dict``: one result as plain values that JSON can hold, also where ``rows`` gives none for it;
  with it ``predictions.json`` is a list of them in the order of the results, each after its ``file``.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn


@dataclass(frozen=True)
class ExportGraph:
    """One traceable graph of a method.

    Args:
        module: takes ``inputs`` positionally and gives a tensor or a tuple of them.
        inputs: example inputs; those that share a dynamic batch have two entries or more.
        dynamic_shapes: per input, under its name in ``module.forward`` and in that order, axis -> ``torch.export.Dim``.
        outputs: names of what it gives, in order.
        pictures: what its pictures are, for whoever has the file alone.
        aligned: of outputs whose order rounding decides: ``aligned(expected, got)`` gives those of a file in the order
            of the module's, before they are compared.

    Example:
        >>> import torch
        >>> axes = {"input": {0: torch.export.Dim("batch")}}
        >>> ExportGraph(nn.Linear(4, 2), (torch.zeros(2, 4),), axes, outputs=("logits",)).outputs
        ('logits',)
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    dynamic_shapes: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("output",)
    pictures: str = "RGB in [0, 1]"
    aligned: Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]] | None = None


@runtime_checkable
class Predicts(Protocol):
    """A module that answers for single samples."""

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, Any]]:
        """One dict of plain values or CPU tensors per sample; the keys are in the method's docstring.

        A value that is a (3, H, W) uint8 tensor is a picture: ``predict`` writes it losslessly as ``<key>/<name>.png``,
        called after the user's file or, without one, by a running number from 0 on, and ``predictions.csv`` holds that
        path. So such a key is a folder's name, other than ``pictures``, where the drawn ones are.
        """

    def draw(self, image: np.ndarray, prediction: dict[str, Any]) -> np.ndarray:
        """The prediction on its picture: (H, W, 3) uint8 RGB in and out; the output may be larger.

        Where the truth is known, ``PredictionLogger`` adds it under the keys of the batch, such as ``label`` or
        ``boxes``; so ``predict_step`` gives its answers other names.
        """


@runtime_checkable
class Exports(Protocol):
    """A module whose forward pass can leave Python."""

    def export_graphs(self) -> dict[str, ExportGraph]:
        """Name to graph; most methods have one."""


class Described:
    """Mixin before ``LightningModule``: its checkpoints say which class wrote them, and with which arguments.

    ``Predictor.from_checkpoint`` and the command line rebuild the module from the file alone. Classes of other packages
    are named in the file too, but never imported from it: their users pass ``module_class=``.
    """

    def keep_arguments(self) -> None:
        """Make the constructor's arguments ``self.hparams``, also those that a subclass fixes or adds.

        Call it once, right after ``super().__init__()`` of the class that is the first to have arguments; subclasses do
        not call it again. One that takes ``**kwargs`` and fixes an argument writes ``kwargs.setdefault(name, value)``:
        its checkpoint gives the argument once more. Networks given as objects are left out: a checkpoint holds plain
        values.
        """
        frame: Any = inspect.currentframe()
        made = frame.f_back  # the constructor
        self.save_hyperparameters(frame=made)  # type: ignore[attr-defined]
        hparams: dict[str, Any] = self.hparams  # type: ignore[attr-defined]
        while made.f_code.co_name == "__init__" and made.f_locals.get("self") is self:  # what subclasses hand on, or
            for name in inspect.getargs(made.f_code).args[1:]:  # leave at its default, Lightning forgets
                hparams.setdefault(name, made.f_locals[name])
            made = made.f_back
        for name in [name for name, value in hparams.items() if isinstance(value, nn.Module)]:
            del hparams[name]  # from YAML it is its configuration, which stays

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the class's import path under ``checkpoint["lit_methods"]["class"]``."""
        checkpoint["lit_methods"] = {"class": f"{type(self).__module__}.{type(self).__qualname__}"}


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
