"""What tells images and networks apart: ids and fingerprints that stay the same from run to run."""

import zlib
from typing import Any

import torch
from torch import Tensor, nn


def content_ids(images: Tensor) -> Tensor:
    """Ids from pixels: the same picture has the same random numbers, whatever stands beside it.

    Args:
        images: (N, C, H, W). Of equal pictures the later ones get other ids.

    Returns:
        ``(N,)`` int64.

    Example:
        >>> a, b, c = content_ids(torch.tensor([0.0, 0.5, 0.0]).view(3, 1, 1, 1)).tolist()
        >>> a == c - 2**32, a == b
        (True, False)
    """
    seen: dict[int, int] = {}
    ids: list[int] = []
    for image in images:
        content = _crc(image.float())
        ids.append(content + (seen.get(content, 0) << 32))
        seen[content] = seen.get(content, 0) + 1
    return torch.tensor(ids, dtype=torch.int64, device=images.device)


def image_key(image: Tensor, label: Any) -> str:
    """An image and what it is attacked for, in one short text.

    Args:
        image: (C, H, W).
        label: a class id, or a set of names.

    Example:
        >>> image_key(torch.zeros(3, 2, 2), {"dog", "cat"})
        "f288b395 ['cat', 'dog']"
    """
    return f"{_crc(image):08x} {sorted(label) if isinstance(label, set | frozenset) else label}"


def tensor_key(tensor: Tensor) -> str:
    """The numbers in a tensor, any shape and dtype, in eight hexadecimal digits.

    Example:
        >>> tensor_key(torch.zeros(3)) == tensor_key(torch.zeros(4))
        False
    """
    return f"{_crc(tensor):08x}"


def fingerprint(network: nn.Module) -> str:
    """Weights and buffers of a network in eight hexadecimal digits.

    Example:
        >>> fingerprint(nn.Flatten())
        '00000000'
    """
    check = 0
    for tensor in (*network.parameters(), *network.buffers()):  # also those that no checkpoint holds: mean and std
        check = _crc(tensor, check)
    return f"{check:08x}"


def _crc(tensor: Tensor, start: int = 0) -> int:
    flat = tensor.detach().cpu().contiguous().view(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy().tobytes(), start)
