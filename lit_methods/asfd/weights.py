"""Weights to start from: a detector of ours, or a classifier for the backbone alone."""

from __future__ import annotations

from typing import Literal

from torch import nn

from lit_methods.backbones.weights import load_weights, read_weights

_PARTS = ("neck.", "fem.", "head.")

Kind = Literal["detector", "backbone"]


def load_detector_weights(net: nn.Module, source: str) -> Kind:
    """Read trained weights into the whole network or into its backbone, all of them or none.

    Args:
        net: an ``ASFDNet`` or a ``SearchNet``; takes them in place.
        source: a checkpoint of ours; a file of a backbone with the names of torchvision's ResNets or of our
            MobileNetV1, alone or under ``backbone.``, whose classifier ``fc`` is left out; or a torchvision entry such
            as ``"ResNet50_Weights.IMAGENET1K_V1"``.

    Returns:
        What it was: ``"detector"`` for the whole network, or ``"backbone"``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, is of a pruned network, or does not fit; names and shapes are listed.

    Example:
        >>> import tempfile, torch
        >>> from lit_methods.asfd.model import ASFDNet
        >>> from lit_methods.backbones import mobilenet_v1
        >>> with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        ...     torch.save(mobilenet_v1(num_classes=10).state_dict(), file.name)
        ...     load_detector_weights(ASFDNet("d0", channels=4), file.name)
        'backbone'
    """
    tensors, plan = read_weights(source)
    label = f"base_checkpoint={source!r}"
    if plan is not None:
        raise ValueError(f"{label} is of a pruned network, which fits no detector; give weights of a whole one")
    if any(name.startswith("model.") for name in tensors):  # beside them what else a module keeps
        tensors = {name.removeprefix("model."): x for name, x in tensors.items() if name.startswith("model.")}
    if any(name.startswith(_PARTS) for name in tensors):
        try:
            load_weights(net, tensors, label)
        except ValueError as error:
            raise ValueError(f"{error}\n  A detector fits its own size, genotype, channels and cls_mode.") from None
        return "detector"
    backbone = net.get_submodule("backbone")
    tensors = {name.removeprefix("backbone."): x for name, x in tensors.items()}
    load_weights(backbone, {name: x for name, x in tensors.items() if not name.startswith("fc.")}, label)
    return "backbone"
