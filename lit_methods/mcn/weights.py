"""Trained weights for MCN and its backbones: from checkpoints, torch files, torchvision, and darknet's binary files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lit_methods.backbones.weights import load_weights, read_weights
from lit_methods.functional.archives import load_plain
from lit_methods.functional.suggestions import first_line
from lit_methods.mcn.model import MCN_BACKBONES, DarkNet53, MCNet, VGG16Features

_NORM = ("bias", "weight", "running_mean", "running_var")  # in the order of a darknet file
_NEWEST = 1000  # no version of darknet's files has such numbers

Backbone = DarkNet53 | VGG16Features


class TrainedWords(NamedTuple):
    """The words that a checkpoint of MCN knows.

    Args:
        words: in the order of their ids.
        vectors: (2 + their number, E), the first two of padding and unknown words.
        train_words: as the argument of ``MCN``.
        max_words: likewise.
    """

    words: list[str]
    vectors: Tensor
    train_words: bool | None
    max_words: int


def load_network_weights(net: MCNet, source: str) -> tuple[str, TrainedWords | None]:
    """Read trained weights into the whole network or into its backbone, all of them or none.

    Args:
        net: takes them, in place.
        source: a checkpoint of ``MCN``, or a saved state dict of its network; anything else is for the backbone alone,
            see ``load_backbone_weights``.

    Returns:
        One line about what was read, and the words of a checkpoint; ``None`` where the file has none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read or does not fit; then nothing is changed.

    Example:
        >>> import tempfile
        >>> net = MCNet("tiny", word_dim=4, hidden=8, dim=8)
        >>> with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        ...     torch.save(net.state_dict(), file.name)
        ...     load_network_weights(net, file.name)[0].split(": ")[1]
        'all of the network, 290 tensors'
    """
    if source.endswith(".weights"):
        return load_backbone_weights(net.backbone, source, "base_checkpoint"), None
    label, tensors = f"base_checkpoint={source!r}", _read(source, "base_checkpoint")
    network = {name.removeprefix("model."): x for name, x in tensors.items() if name.startswith("model.")} or tensors
    parts = {name for name, _ in net.named_children() if name != "backbone"}
    if not any(name.split(".")[0] in parts for name in network):
        return f"{label}: {_load_named(net.backbone, tensors, label)}", None
    try:
        load_weights(net, network, label)
    except ValueError as error:
        raise ValueError(
            f"{error}\n  A network fits its own backbone, hidden, dim, word_dim and number of anchors."
        ) from None
    words = _words_of(source, tensors)
    told = f", and the vectors of {len(words.words)} words" if words else ""
    return f"{label}: all of the network, {len(network)} tensors{told}", words


def _words_of(source: str, tensors: Mapping[str, Tensor]) -> TrainedWords | None:
    if "words.weight" not in tensors or Path(source).suffix in (".npz", ".safetensors"):
        return None
    kept = load_plain(source, legacy=True, mmap=True).get("hyper_parameters", {})
    if not kept.get("vocabulary"):
        return None
    return TrainedWords(kept["vocabulary"], tensors["words.weight"], kept["train_words"], kept["max_words"])


def load_backbone_weights(backbone: Backbone, source: str, argument: str = "backbone_weights") -> str:
    """Read trained weights into MCN's backbone: all that it has, or the 13 convolutions of a VGG16 classifier.

    Weights of a detector that saw COCO's training set saw test images of RefCOCO, too. The paper's were trained
    without the images of all val and test splits.

    Args:
        backbone: of an ``MCNet``; takes the weights in place.
        source: a file with the suffix ``.weights``, see ``read_darknet``; a saved state dict of a backbone; a
            checkpoint of ours, whose backbone alone is taken; or for VGG16 a file with torchvision's names or an entry
            such as ``"VGG16_Weights.IMAGENET1K_V1"``, whose classifier is left out and which has nothing for the tail.
        argument: what errors call it.

    Returns:
        One line about what was read, and what was not.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, is of the other backbone, or does not fit; then nothing is changed.

    Source:
        Section 3.5 of MCN's specification.

    Example:
        >>> import tempfile
        >>> net = DarkNet53(width=1 / 16, depths=[0, 0, 0, 0, 0])
        >>> with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        ...     torch.save({f"model.backbone.{name}": x for name, x in net.state_dict().items()}, file.name)
        ...     load_backbone_weights(net, file.name).split(": ")[1]
        'all of the backbone, 72 tensors'
    """
    label = f"{argument}={source!r}"
    if source.endswith(".weights"):
        tensors, report = read_darknet(backbone, source, argument)
        load_weights(backbone, tensors, label)
        return f"{label}: {report}"
    return f"{label}: {_load_named(backbone, _read(source, argument), label)}"


def _read(source: str, argument: str) -> dict[str, Tensor]:
    try:
        return read_weights(source)[0]
    except (ValueError, FileNotFoundError) as error:
        text = str(error).replace("base_checkpoint=", f"{argument}=")
        raise type(error)(text.replace("ResNet50_Weights", "VGG16_Weights")) from None


def _load_named(backbone: Backbone, tensors: Mapping[str, Tensor], label: str) -> str:
    whole = len(tensors)
    for prefix in ("model.backbone.", "backbone."):  # beside them what else a module keeps
        if any(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
            break
    beside = whole - len(tensors)
    kind = VGG16Features if "features.0.weight" in tensors else DarkNet53 if "stem.conv.weight" in tensors else None
    if kind is not None and not isinstance(backbone, kind):
        raise ValueError(
            f"{label} holds weights of {kind.title}, but the backbone is {backbone.title}; "
            f"take weights of {backbone.title} or the other backbone"
        )
    if kind is VGG16Features and not any(name.startswith("tail.") for name in tensors):
        convs = {name.removeprefix("features."): x for name, x in tensors.items() if name.startswith("features.")}
        load_weights(backbone.get_submodule("features"), convs, label)
        left = whole - len(convs)
        return (
            f"the 13 convolutions of a {VGG16Features.title} classifier, {len(convs)} tensors; the six layers of the "
            f"tail are in no such file and were left as they are; {left} tensors of the file left out"
        )
    load_weights(backbone, dict(tensors), label)
    return f"all of the backbone, {len(tensors)} tensors" + (f"; {beside} of the file left out" if beside else "")


def read_darknet(
    backbone: Backbone, source: str | Path, argument: str = "backbone_weights"
) -> tuple[dict[str, Tensor], str]:
    """Tensors of a darknet ``.weights`` file for a backbone, whose modules stand in the file's order.

    The header is three int32, major, minor and revision, and the number of images seen, int64 if major * 10 + minor is
    at least 2, else int32. Then float32 numbers for each convolution: with batch norm its bias, scale, running mean and
    running variance, then the weight (out, in, k, k); without batch norm its bias, then the weight. All little-endian.

    Args:
        backbone: is not changed.
        source: path of the file; what follows the backbone's numbers in it, such as the rest of YOLOv3, is not used.
        argument: what errors call it.

    Returns:
        The tensors by name, and a line about what was read and what was left over.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is too short, no darknet file, or of another network.

    Source:
        Section 3.5 of MCN's specification. A file does not say of which network it is. What can be told is that there
        are too few numbers, or that they give variances below zero, as weights that are read in another place do.

    Example:
        >>> import tempfile
        >>> net = DarkNet53(width=1 / 16, depths=[0, 0, 0, 0, 0])
        >>> with tempfile.NamedTemporaryFile(suffix=".weights") as file:
        ...     header = np.array([0, 2, 0, 0, 0], "<i4").tobytes()
        ...     _ = Path(file.name).write_bytes(header + np.ones(darknet_numbers(net) + 7, "<f4").tobytes())
        ...     tensors, report = read_darknet(net, file.name)
        >>> report
        '87702 numbers into the 12 convolutions of Darknet-53; 7 numbers left over'
    """
    label = f"{argument}={str(source)!r}"
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{label} does not exist; give a darknet .weights file, a .pth file or a checkpoint")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(12)
            head = np.frombuffer(start[: len(start) // 4 * 4], "<i4")
            if len(head) < 3 or min(head) < 0 or max(head[:2]) >= _NEWEST:
                raise ValueError(f"{label} is no darknet file: its first numbers, the version, are {head.tolist()}")
            begin = 20 if head[0] * 10 + head[1] >= 2 else 16
            body, odd = divmod(max(size - begin, 0), 4)
            needed = darknet_numbers(backbone)
            if body < needed:
                raise ValueError(_too_short(label, backbone, needed, body))
            if odd:
                raise ValueError(f"{label} ends within a number, {odd} bytes behind the last; it is cut off or damaged")
            file.seek(begin)
            numbers = np.fromfile(file, "<f4", needed)
    except OSError as error:
        raise ValueError(f"{label} cannot be read: {first_line(error)}") from None
    tensors: dict[str, Tensor] = {}
    position = 0
    for name, wanted in _order(backbone):
        part = numbers[position : position + wanted.numel()]
        wrong = not np.isfinite(part).all() or (name.endswith("running_var") and part.min() < 0)
        if wrong:
            raise ValueError(
                f"{label} does not fit {backbone.title}: what stands in the place of {name} is below zero or no "
                f"number. It is damaged, or of another network; {_other(backbone).title} is MCN's other backbone"
            )
        tensors[name] = torch.from_numpy(part.astype(np.float32)).view(wanted.shape)
        position += wanted.numel()
    convs = sum(isinstance(part, nn.Conv2d) for part in backbone.modules())
    report = f"{needed} numbers into the {convs} convolutions of {backbone.title}; {body - needed} numbers left over"
    return tensors, report


def darknet_numbers(backbone: Backbone) -> int:
    """How many float32 numbers a darknet file holds for a backbone.

    Args:
        backbone: may be on the meta device.

    Example:
        >>> with torch.device("meta"):
        ...     darknet_numbers(DarkNet53())
        56367712
    """
    return sum(tensor.numel() for _, tensor in _order(backbone))


def _order(backbone: Backbone) -> Iterator[tuple[str, Tensor]]:
    """Names and shapes in the order of a darknet file."""
    state = backbone.state_dict()
    parts = dict(backbone.named_modules())
    for name, part in parts.items():
        if isinstance(part, nn.Conv2d):
            norm = f"{name.removesuffix('conv')}norm"
            names = [f"{norm}.{key}" for key in _NORM] if norm in parts else [f"{name}.bias"]
            for key in (*names, f"{name}.weight"):
                yield key, state[key]


def _other(backbone: Backbone) -> type[DarkNet53] | type[VGG16Features]:
    return VGG16Features if isinstance(backbone, DarkNet53) else DarkNet53


def _too_short(label: str, backbone: Backbone, needed: int, found: int) -> str:
    text = f"{label} is too short for {backbone.title}: {needed} numbers are needed, {found} found"
    with torch.device("meta"):
        fits = [other.title for build in MCN_BACKBONES.values() if darknet_numbers(other := build()) == found]
    if fits:
        return f"{text}, which are those of {fits[0]}; take weights of {backbone.title} or the other backbone"
    return f"{text}; it is cut off, or of another network"
