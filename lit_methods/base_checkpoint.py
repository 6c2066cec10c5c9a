"""What a checkpoint of ours says about the classifier in it, for modules that start from one."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lit_methods.backbones.weights import load_weights
from lit_methods.classification import ImageClassifier, Normalize
from lit_methods.contract import checkpoint_class
from lit_methods.functional.archives import load_plain

PIXELS = ("mean", "std")
SETTINGS = (*PIXELS, "input_size", "class_names")  # how a network wants its pictures, and what its outputs are called
_CLASSIFIERS = "ImageClassifier, HRank, FilterSketch, BPE, PPBA and NAD"


@dataclass
class Trained:
    """A classifier as a checkpoint of ours holds it.

    Args:
        source: path of the file.
        writer: name of the class that wrote it.
        backbone: a key of ``BACKBONES``; ``described`` takes a dict; ``None`` where it was given as an object.
        plan: what pruning left of it, as ``to_dict()`` of a plan gives it.
        num_classes: outputs.
        settings: those of ``SETTINGS`` that it names.
        tensors: of the network alone.
    """

    source: str
    writer: str
    backbone: str | dict[str, Any] | None
    plan: dict[str, Any] | None
    num_classes: int
    settings: dict[str, Any]
    tensors: dict[str, Tensor] = field(repr=False)

    def network(self, given: str | nn.Module | None) -> str | dict[str, Any] | nn.Module:
        """What to build: the network of the checkpoint, whatever a recipe says; an object that was given, as it is.

        Args:
            given: the argument of the module that starts from it.

        Raises:
            ValueError: the checkpoint's was an object, and none is given.
        """
        if isinstance(given, nn.Module):
            return given
        if self.backbone is None:
            raise ValueError(
                f"base_checkpoint={self.source!r} is of a network that was given as an object; give it again, in code: "
                "model=network"
            )
        if given != self.backbone and given is not None:
            name = self.backbone if isinstance(self.backbone, str) else f"the network of {self.writer}"
            rank_zero_info(f"base_checkpoint={self.source!r} holds {name}: model={given!r} is left aside")
        return self.backbone


def read_trained(source: str | None, taker: str = "this module") -> Trained | None:
    """The classifier in a checkpoint of ours; nothing in the file is executed.

    Args:
        source: as ``base_checkpoint`` of ``ImageClassifier``.
        taker: who wants it, for the error.

    Returns:
        ``None`` for all other files, and for names of torchvision's: they hold plain weights.

    Raises:
        ValueError: it is of a method that puts pictures into no classes.

    Example:
        >>> read_trained("ResNet50_Weights.IMAGENET1K_V1") is None
        True
    """
    content = _content(source)
    if content is None or source is None:
        return None
    saved, path = content["hyper_parameters"], content["lit_methods"]["class"]
    if path.split(".")[0] != "lit_methods":  # of another package, which no file decides to import: plain weights
        return None
    made = checkpoint_class(content)
    if not (isinstance(made, type) and issubclass(made, ImageClassifier)):
        raise ValueError(
            f"base_checkpoint={source!r} is of {path.rpartition('.')[2]}, which puts pictures into no classes; {taker} "
            f"takes the checkpoints of classifiers: {_CLASSIFIERS}"
        )
    backbone: Any = saved.get("model", saved.get("backbone"))
    if not isinstance(backbone, str) and not is_description(backbone):
        backbone = None
    tensors = {k.removeprefix("model."): v for k, v in content["state_dict"].items() if k.startswith("model.")}
    if backbone is None and not {"model", "backbone"} & inspect.signature(made).parameters.keys():
        backbone = {"class": path, "arguments": _arguments(made, saved)}  # its own arguments say which network it is
        module = made(**backbone["arguments"])
        module.on_load_checkpoint(content)
        module.load_state_dict(content["state_dict"])
        tensors = dict(_logits_network(module).state_dict())
    return Trained(
        source=source,
        writer=made.__name__,
        backbone=backbone,
        plan=saved.get("plan"),
        num_classes=int(saved["num_classes"]),
        settings={name: saved[name] for name in SETTINGS if name in saved},
        tensors=tensors,
    )


def described(backbone: dict[str, Any]) -> nn.Module:
    """The network that another method's arguments stand for, with fresh weights.

    Args:
        backbone: ``{"class": import path, "arguments": those of its constructor}``, of a class of ours.

    Returns:
        (N, 3, H, W), normalised, to logits.

    Raises:
        ValueError: it is another dict, or of no classifier of ours.

    Example:
        >>> recipe = {"preset": "BPE1", "layers": 3, "channels": 4}
        >>> network = described({"class": "lit_methods.bpe_mip.module.BPE", "arguments": {"recipe": recipe}})
        >>> sum(p.numel() for p in network.parameters()) > 1000
        True
    """
    if not is_description(backbone):
        raise ValueError(f"model has the keys {sorted(backbone)}; a described network has 'class' and 'arguments'")
    made = checkpoint_class({"lit_methods": backbone})
    if not (isinstance(made, type) and issubclass(made, ImageClassifier)):
        raise ValueError(f"model is described as {backbone['class']}, which is no classifier")
    return _logits_network(made(**backbone["arguments"]))


def is_description(backbone: object) -> bool:
    """Whether an argument is what ``described`` takes.

    Example:
        >>> is_description({"class": "lit_methods.bpe_mip.module.BPE", "arguments": {}}), is_description("resnet20")
        (True, False)
    """
    return isinstance(backbone, dict) and backbone.keys() == {"class", "arguments"}


def _content(source: str | None) -> dict[str, Any] | None:
    """All of a Lightning checkpoint whose writer is known; ``None`` for anything else, which others refuse or read."""
    if source is None or Path(source).suffix in (".npz", ".safetensors") or not Path(source).is_file():
        return None
    try:
        content = load_plain(source, legacy=True)
    except ValueError:
        return None
    marks = ("hyper_parameters", "state_dict", "lit_methods")
    return content if isinstance(content, dict) and all(isinstance(content.get(key), dict) for key in marks) else None


def _arguments(made: type, saved: dict[str, Any]) -> dict[str, Any]:
    takes = inspect.signature(made).parameters
    return {name: value for name, value in saved.items() if name in takes and name != "base_checkpoint"}


def _logits_network(module: ImageClassifier) -> nn.Module:
    network: Any = module.export_graphs()["classifier"].module
    return network.model


class CheckpointStart(ImageClassifier):
    """An ``ImageClassifier`` whose ``base_checkpoint`` also says how its network wants the pixels.

    What a checkpoint of ours knows and no argument gives (``mean``, ``std``, ``input_size``, ``class_names``) is taken
    from it. Arguments that differ from it are named in a warning; those that are the data's own, as the command line
    hands them on, give way to the checkpoint's before anything runs.
    """

    _differing: dict[str, Any]  # what the checkpoint says in the place of given arguments

    def _start_from(self, source: str) -> None:
        super()._start_from(source)
        content = _content(source)
        self._settle(source, content["hyper_parameters"] if content else {})

    def start_from_trained(self, trained: Trained) -> None:
        """Take shape, weights and settings of a classifier.

        Args:
            trained: of the network that this module was built with.
        """
        if trained.plan is not None:
            self.set_plan(trained.plan)
        load_weights(self.model, trained.tensors, f"base_checkpoint={trained.source!r}")
        self._settle(trained.source, trained.settings)

    def _settle(self, source: str, theirs: dict[str, Any]) -> None:
        self._differing = {}
        for name in [name for name in SETTINGS if name in theirs]:
            mine, value = self.hparams[name], theirs[name]
            if mine is None:
                self.hparams[name] = value
            elif not _same(mine, value) and (value is not None or name in PIXELS):
                self._differing[name] = value
        self._renew_pixels()
        if told := [name for name in self._differing if name != "class_names"]:  # these are named when there are data
            trained, given = (
                ", ".join(f"{name}={_short(values[name])}" for name in told) for values in (theirs, self.hparams)
            )
            rank_zero_warn(f"base_checkpoint={source!r} was trained with {trained}; the arguments say {given}")

    def _renew_pixels(self) -> None:
        self.normalize = Normalize(self.hparams["mean"], self.hparams["std"]).to(self.device)

    def setup(self, stage: str) -> None:
        """Leave the data's mean, std, size and names aside where the checkpoint started from has its own."""
        data, differing = getattr(self.trainer, "datamodule", None), self.__dict__.get("_differing", {})
        linked = {
            name: value for name, value in differing.items() if _same(self.hparams[name], getattr(data, name, None))
        }
        if linked:
            rank_zero_warn(f"{', '.join(linked)}: those of base_checkpoint are taken, not the data's")
            self.hparams.update(linked)
            self._renew_pixels()
        self._differing = {}
        super().setup(stage)


def _same(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    pairs = list(zip(one, other, strict=False))
    close = all(math.isclose(a, b, abs_tol=1e-6) if isinstance(a, float) else a == b for a, b in pairs)
    return len(one) == len(other) and close


def _short(values: Sequence[Any] | None) -> str:
    return "none" if values is None else "[" + ", ".join(f"{v:.4g}" for v in values) + "]"
