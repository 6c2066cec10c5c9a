"""Weights of others for SiamBAN: the official tracker, its backbone, and torchvision's ResNets."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lit_methods.backbones.weights import load_weights, read_weights
from lit_methods.siamban.model import SiamBANNet

_NUMBER = re.compile(r"^(neck\.downsample|head\.box)(\d+)\.")
_WIDE_SHORTCUT = re.compile(r"^layer[2-4]\.0\.downsample\.0\.weight$")

Kind = Literal["tracker", "backbone", "torchvision"]


def convert_official(content: Mapping[str, Any], levels: Sequence[int] = (2, 3, 4)) -> dict[str, Tensor]:
    """Weights of the official code under the names of ``SiamBANNet``.

    ==========================================================  =================================================
    official file                                               here
    ==========================================================  =================================================
    ``state_dict`` of a training checkpoint                     its content
    ``module.*`` (saved from several GPUs)                      ``*``
    ``backbone.conv1.weight``, ``backbone.layer4.2.bn3.bias``   the same
    ``neck.downsample2.downsample.{0,1}.*``, ``3``, ``4``       the same for levels 2, 3, 4; else ``levels`` in turn
    ``head.box2.{cls,loc}.conv_kernel.{0,1}.*``, ``3``, ``4``   the same, renumbered likewise
    ``head.box2.{cls,loc}.conv_search.{0,1}.*``                 likewise
    ``head.box2.{cls,loc}.head.{0,1,3}.*``                      likewise
    ``head.cls_weight``, ``head.loc_weight``,                   the same
    ``head.loc_scale``
    ``conv1.weight``, ``features.conv1.weight``                 ``backbone.conv1.weight``: a backbone's file
    ``fc.*``                                                    left out
    ==========================================================  =================================================

    Args:
        content: what the file holds; anything in it but tensors is left out.
        levels: of the network that takes them. The official code numbers its levels from 2 on, whichever they are; a
            file that has our numbers already keeps them.

    Returns:
        Tensors by name, not copied; of a backbone's file those of ``backbone.*`` alone.

    Raises:
        ValueError: it holds no tensors.

    Source:
        Official code (hqucv/siamban), names of its ``ModelBuilder`` and what its ``load_pretrain`` strips.

    Example:
        >>> tensors = {"module.neck.downsample2.downsample.0.weight": torch.zeros(256, 1024, 1, 1)}
        >>> list(convert_official({"epoch": 20, "state_dict": tensors}, levels=[3]))
        ['neck.downsample3.downsample.0.weight']
    """
    nested = content.get("state_dict")
    content = nested if isinstance(nested, Mapping) else content
    tensors = {
        name.removeprefix("module.").removeprefix("features."): value
        for name, value in content.items()
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise ValueError(f"the file holds no tensors; its keys are {', '.join(map(str, list(content)[:5]))}")
    if not any(name.startswith(("backbone.", "neck.", "head.")) for name in tensors):
        return {f"backbone.{name}": value for name, value in tensors.items() if not name.startswith("fc.")}
    numbers = {match[2] for name in tensors if (match := _NUMBER.match(name))}
    ours = dict(zip([str(2 + place) for place in range(len(levels))], map(str, levels), strict=True))
    if numbers != set(ours):  # as many levels as here, numbered in turn; else the names stay, and are found not to fit
        ours = {}
    return {
        _NUMBER.sub(lambda match: f"{match[1]}{ours.get(match[2], match[2])}.", name): value
        for name, value in tensors.items()
    }


def convert_torchvision(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of torchvision's ResNet-18, -34 or -50 for an ``AtrousResNet`` of the same depth.

    The 1x1 shortcuts of ``layer2`` to ``layer4`` become the centres of 3x3 convolutions that are zero elsewhere, which
    compute the same on the same pixels. The other tensors keep name and value; ``fc`` is left out. Strides and padding
    are not torchvision's any more, so that features are of the same kind, but not equal.

    Args:
        tensors: by torchvision's names, not changed.

    Returns:
        Tensors by the names of ``AtrousResNet``; those that stay are not copied.

    Source:
        Section 3 of SiamBAN's specification; the official code has weights of its own instead.

    Example:
        >>> shortcut = convert_torchvision({"layer2.0.downsample.0.weight": torch.ones(1, 1, 1, 1)})
        >>> shortcut["layer2.0.downsample.0.weight"].squeeze().tolist()
        [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    converted = {}
    for name, value in tensors.items():
        if _WIDE_SHORTCUT.match(name) and value.shape[2:] == (1, 1):
            value = torch.nn.functional.pad(value, (1, 1, 1, 1))
        if not name.startswith("fc."):
            converted[name] = value
    return converted


def load_tracker_weights(net: SiamBANNet, source: str) -> Kind:
    """Read trained weights into the whole network or into its backbone, all of them or none.

    Args:
        net: takes them, in place. A backbone's stages behind its last level are left out.
        source: a checkpoint of ours; a file of the official tracker or of its backbone (see ``convert_official``); a
            file of a ResNet with torchvision's names, or an entry such as ``"ResNet50_Weights.IMAGENET1K_V1"``.

    Returns:
        What it was: ``"tracker"``, ours or official, which have the same names; ``"backbone"``, official, for the
        backbone alone; or ``"torchvision"``, likewise.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or does not fit; names and shapes are listed.

    Example:
        >>> import tempfile
        >>> net = SiamBANNet(18, width=4, channels=8, levels=[2])
        >>> with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        ...     torch.save({"state_dict": {f"module.{name}": x for name, x in net.state_dict().items()}}, file.name)
        ...     load_tracker_weights(SiamBANNet(18, width=4, channels=8, levels=[2]), file.name)
        'tracker'
    """
    tensors = convert_official(read_weights(source)[0], net.levels)
    label = f"base_checkpoint={source!r}"
    if any(name.startswith(("neck.", "head.")) for name in tensors):
        load_weights(net, tensors, label)
        return "tracker"
    tensors = {name.removeprefix("backbone."): value for name, value in tensors.items()}
    spare = tuple(f"layer{stage}." for stage in range(1 + net.levels[-1], 5))
    tensors = {name: value for name, value in tensors.items() if not name.startswith(spare)}
    shortcut = tensors.get("layer2.0.downsample.0.weight")
    foreign = shortcut is not None and shortcut.shape[2:] == (1, 1)
    load_weights(net.backbone, convert_torchvision(tensors) if foreign else tensors, label)
    if foreign and not net.normalize:
        warnings.warn(
            f"{label}: torchvision's weights learnt on normalised RGB; set normalize=True, or the crops, BGR from 0 to "
            "255, are strange to them",
            stacklevel=2,
        )
    return "torchvision" if foreign else "backbone"
