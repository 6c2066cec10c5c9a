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
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePath
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

PRUNED_PARTS = "pruned_parts"  # where ``lit_methods.backbones.parts`` notes what it has cut


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
        """Write the class's import path under ``checkpoint["lit_methods"]["class"]``, and the run under ``about``.

        Plans of pruned parts go beside the class: they are no arguments of a constructor.
        """
        checkpoint["lit_methods"] = {"class": _path_of(self)}
        if parts := checkpoint.get("hyper_parameters", {}).pop(PRUNED_PARTS, None):
            checkpoint["lit_methods"][PRUNED_PARTS] = parts
        checkpoint["about"] = run_record(getattr(self, "_trainer", None), self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Cut the parts that the checkpoint has pruned, before its weights arrive and optimisers are built.

        Raises:
            ValueError: this module has others pruned, or in another way.
        """
        hparams: dict[str, Any] = self.hparams  # type: ignore[attr-defined]
        places = (hparams, checkpoint.get("lit_methods", {}), checkpoint.get("hyper_parameters", {}))
        if any(place.get(PRUNED_PARTS) for place in places):
            from lit_methods.backbones.parts import restore_parts  # now: it brings torchvision's networks with it

            restore_parts(self, checkpoint)  # type: ignore[arg-type]


def run_record(trainer: Any, module: Any, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of the run that writes it, for people: nothing is loaded from it again.

    Args:
        trainer: the run's; ``None`` outside of one.
        module: whose weights are saved.
        checkpoint: with its ``state_dict``.

    Returns:
        Plain values: ``parameters`` (a count), ``versions`` (package to version), and of a run ``metrics`` (log key to
        what was logged last), ``recipe`` where the command line knows it, and ``data``: its ``class``, those of its
        ``arguments`` that are plain, and the ``samples`` of its training and validation loaders.

    Example:
        >>> layer = nn.BatchNorm1d(3)
        >>> run_record(None, layer, {"state_dict": layer.state_dict()})["parameters"]
        6
    """
    states = checkpoint["state_dict"]
    record: dict[str, Any] = {
        "parameters": sum(states[name].numel() for name, _ in module.named_parameters() if name in states),
        "versions": _versions(),
    }
    if trainer is None:
        return record
    # private: the property computes anew, also in the middle of an epoch; what was logged last lies here
    logged = getattr(trainer._logger_connector, "_callback_metrics", {})
    record["metrics"] = {
        key: float(value) for key, value in logged.items() if not isinstance(value, Tensor) or value.numel() == 1
    }
    if recipe := next((r for c in trainer.checkpoint_callbacks if (r := getattr(c, "recipe", None))), None):
        record["recipe"] = str(recipe)
    if (data := trainer.datamodule) is not None:
        loaders = {"train": trainer.train_dataloader, "val": trainer.val_dataloaders}
        samples = {stage: count for stage, loader in loaders.items() if (count := _samples(loader))}
        record["data"] = {"class": _path_of(data), "arguments": _arguments(data), "samples": samples}
    return record


def log_rate(module: Any, group: int = 0) -> None:
    """Log ``train/lr``, the rate of a parameter group, at the steps at which the Trainer writes a row.

    Args:
        module: in its ``training_step``; the Trainer makes its steps.
        group: place of the group in the optimiser.

    Example:
        >>> from types import SimpleNamespace
        >>> from torch.optim import SGD
        >>> trainer = SimpleNamespace(log_every_n_steps=2, optimizers=[SGD(nn.Linear(1, 1).parameters(), lr=0.5)])
        >>> for step in range(4):
        ...     show = lambda *logged, **_: print(*logged, step)
        ...     log_rate(SimpleNamespace(trainer=trainer, global_step=step, log=show))
        train/lr 0.5 1
        train/lr 0.5 3
    """
    every = module.trainer.log_every_n_steps
    if every and (module.global_step + 1) % every == 0:
        rate = module.trainer.optimizers[0].param_groups[group].get("lr")
        if rate is not None:  # Lightning's stand-in for no optimiser has none
            module.log("train/lr", rate, batch_size=1)


def _path_of(part: Any) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"


@cache
def _versions() -> dict[str, str]:
    found = {}
    for package in ("lit-methods", "torch", "lightning"):
        with suppress(PackageNotFoundError):  # used from a source tree
            found[package] = version(package)
    return found


def _arguments(part: Any) -> dict[str, Any]:
    """Arguments of a constructor that are attributes of the same name and plain, paths as text."""
    values = {name: getattr(part, name, None) for name in inspect.signature(type(part)).parameters}
    values = {name: str(value) if isinstance(value, PurePath) else value for name, value in values.items()}
    return {name: value for name, value in values.items() if type(value) in (str, int, float, bool)}


def _samples(loaders: Any) -> int:
    """How many samples are behind a loader or several; 0 where that is not known."""
    loaders = loaders if isinstance(loaders, list | tuple) else [loaders]
    with suppress(Exception):  # somebody else's code: streams have no length, loaders perhaps no dataset
        return sum(len(loader.dataset) for loader in loaders)
    return 0


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
