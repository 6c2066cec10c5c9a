"""Trained weights from a file or from torchvision into one of our networks, all of them or none."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lit_methods.functional.archives import check_archive, load_plain, refusal
from lit_methods.functional.suggestions import first_line

_TORCHVISION = re.compile(r"\w+_Weights\.\w+")  # ResNet50_Weights.IMAGENET1K_V1
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # keys under which training scripts put the weights
_PREFIXES = ("module.", "model.", "net.")


def read_weights(source: str) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Read trained weights; nothing in the file is executed.

    Args:
        source: a Lightning checkpoint, ``.safetensors``, ``.npz`` or a saved state dict; or the name of a torchvision
            weights entry such as ``"ResNet50_Weights.IMAGENET1K_V1"``, which torchvision downloads and caches.
            ``.safetensors`` and files from before torch 1.6 have no checksums; all others are held against theirs.

    Returns:
        The tensors by name, and the pruning plan that a checkpoint of ours carries (else ``None``).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds no weights, or anything but plain data.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        ...     torch.save({"state_dict": {"module.fc.bias": torch.zeros(2)}}, file.name)
        ...     read_weights(file.name)
        ({'fc.bias': tensor([0., 0.])}, None)
    """
    if _TORCHVISION.fullmatch(source):
        from torchvision.models import get_weight

        try:
            entry = get_weight(source)
        except (AttributeError, KeyError, ValueError) as ex:
            raise ValueError(f"base_checkpoint={source!r} is no torchvision weights entry: {ex}") from None
        try:
            return dict(entry.get_state_dict(progress=False, check_hash=True, weights_only=True)), None
        except OSError as ex:
            raise ValueError(f"base_checkpoint={source!r} cannot be downloaded: {first_line(ex)}") from None
        except Exception as ex:  # a damaged or hostile file in the cache
            raise ValueError(f"base_checkpoint={source!r} cannot be read as weights: {refusal(ex)}") from None
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"base_checkpoint={source!r} does not exist; give a checkpoint, .safetensors, .npz or .pth file, "
            "or a torchvision entry such as ResNet50_Weights.IMAGENET1K_V1"
        )
    try:
        content = _read(path)
    except Exception as ex:  # a damaged or hostile file raises nearly anything
        raise ValueError(f"base_checkpoint={source!r} cannot be read as weights: {first_line(ex)}") from None
    plan = content.get("hyper_parameters", {}).get("plan")
    for key in _WRAPPERS:
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"base_checkpoint={source!r} holds no weights; its keys are {', '.join(list(content)[:5])}")
    return _strip_prefixes(tensors), plan


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    if path.suffix == ".npz":
        check_archive(path)
        with np.load(path, allow_pickle=False) as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    return dict(load_plain(path, legacy=True))


def _strip_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without what wrappers put in front of all of them, such as ``model.`` in our own checkpoints."""
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            return _strip_prefixes({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    return tensors


def load_weights(network: nn.Module, tensors: dict[str, Tensor], source: str = "base_checkpoint") -> None:
    """Copy trained weights into a network: every tensor of both sides, or an error.

    The last layer of CIFAR ResNets may be called ``linear`` (the official code's name at depth 110). Where names differ
    otherwise, but the tensors stand in the same order with equal roles (``weight``, ``running_mean``, ...) and shapes
    as in the official HRank networks, they are matched by position, with a warning. A missing ``num_batches_tracked``
    is left at zero.

    Args:
        network: takes the weights, in place.
        tensors: as ``read_weights`` gives them.
        source: what the error names.

    Raises:
        ValueError: unmatched or reshaped tensors, listed as a table.

    Example:
        >>> load_weights(nn.Linear(2, 1), {"weight": torch.zeros(1, 3), "b": torch.zeros(1)}, "old.pth")
        Traceback (most recent call last):
            ...
        ValueError: old.pth does not fit this Linear: 1 missing, 1 unexpected, 1 of another shape
          weight  file (1, 3)  network (1, 2)
          bias    file -       network (1,)
          b       file (1,)    network -
    """
    wanted = network.state_dict()
    renamed = {re.sub(r"^linear\.", "fc.", k) if "fc.weight" in wanted else k: v for k, v in tensors.items()}
    if _counters_aside(renamed).keys() != _counters_aside(wanted).keys():
        renamed = _by_position(renamed, wanted, source) or renamed
    given = {k: v for k, v in wanted.items() if k.endswith("num_batches_tracked")} | renamed
    reshaped = [k for k, v in wanted.items() if k in given and given[k].shape != v.shape]
    missing = [k for k in wanted if k not in given]
    unexpected = [k for k in given if k not in wanted]
    if reshaped or missing or unexpected:
        table = _table([(k, given.get(k), wanted.get(k)) for k in [*reshaped, *missing, *unexpected]])
        raise ValueError(
            f"{source} does not fit this {type(network).__name__}: {len(missing)} missing, "
            f"{len(unexpected)} unexpected, {len(reshaped)} of another shape\n{table}"
        )
    wanted.update(given)  # which keeps the version marks that state_dict() carries
    network.load_state_dict(wanted)


def untrained(network: nn.Module) -> bool:
    """Whether all batch norms are as they were made: no batch and no checkpoint has ever reached the network.

    A network without batch norm counts as trained: nothing tells.

    Args:
        network: looked at, not changed.

    Example:
        >>> untrained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
        True
    """
    # _BatchNorm, since sync_batchnorm may have replaced the others
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    return bool(norms) and all(not m.running_mean.any() and bool((m.running_var == 1).all()) for m in norms)  # type: ignore[union-attr]


def _counters_aside(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}


def _by_position(given: dict[str, Tensor], wanted: dict[str, Tensor], source: str) -> dict[str, Tensor] | None:
    """``given`` under the names of ``wanted``, or None where the two sequences differ in role or shape."""

    def role(item: tuple[str, Tensor]) -> tuple[str, torch.Size]:
        return item[0].rpartition(".")[2], item[1].shape

    sources, targets = _counters_aside(given).items(), _counters_aside(wanted).items()
    if [role(s) for s in sources] != [role(t) for t in targets]:
        return None
    warnings.warn(f"{source}: layers have other names; matched by their order, roles and shapes", stacklevel=3)
    return {name: tensor for (name, _), (_, tensor) in zip(targets, sources, strict=True)}


def _table(rows: list[tuple[str, Tensor | None, Tensor | None]]) -> str:
    limit = 30  # rows, so that the end of the message is on the screen
    cells = [
        (name, *("-" if tensor is None else str(tuple(tensor.shape)) for tensor in tensors)) for name, *tensors in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [f"  {n:{widths[0]}}  file {f:{widths[1]}}  network {w}" for n, f, w in cells[:limit]]
    return "\n".join([*lines, *([f"  ... and {len(cells) - limit} more"] if len(cells) > limit else [])])
