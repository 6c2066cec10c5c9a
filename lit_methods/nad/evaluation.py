"""How well hard-gated networks know the images of their own class, and of others."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lit_methods.nad.gating import GatedModel


class Hits(NamedTuple):
    """What hard-gated networks made of a batch.

    Args:
        own: (N,) bool, images whose class has gates.
        own_hit: (N,) bool, those of them that the network of their class recognises.
        other_hit: (n, N) bool, whether each of n networks of other classes recognises the image.
        false_own: (n, N) bool, whether it takes the image for its own class.
    """

    own: Tensor
    own_hit: Tensor
    other_hit: Tensor
    false_own: Tensor


@torch.no_grad()
def gated_hits(gated: GatedModel, x: Tensor, label: Tensor, class_ids: Sequence[int], num_others: int = 3) -> Hits:
    """Run each image through the hard-gated network of its class, and through those of some others.

    Args:
        gated: row r of its gates is ``class_ids[r]``.
        x: (N, C, H, W), as the network is fed.
        label: (N,) int64, true classes; images of classes without gates are shown to others alone.
        class_ids: classes with gates.
        num_others: how many other networks, at most all; spread evenly over them, the same ones for every image of a
            class.

    Source:
        ours: the official code has no evaluation.

    Example:
        >>> from torch import nn
        >>> gated = GatedModel(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), ["1"], 3, input_size=(3, 2, 2))
        >>> hits = gated_hits(gated, torch.rand(5, 3, 2, 2), torch.tensor([0, 1, 2, 2, 1]), [0, 1, 2])
        >>> hits.own_hit.shape, hits.other_hit.shape
        (torch.Size([5]), torch.Size([2, 5]))
    """
    classes = torch.tensor(class_ids, device=label.device)
    same = label[:, None] == classes
    own, row = same.any(1), same.int().argmax(1) if len(label) else label
    own_hit = own.clone()
    if own.any():
        own_hit[own] = gated(x[own], task=row[own], mode="hard").argmax(1) == label[own]
    number = len(classes)
    others = min(num_others, number - 1)
    start = torch.where(own, row, label % number)
    other_hit, false_own = (label.new_zeros(others, len(label), dtype=torch.bool) for _ in range(2))
    for i in range(others if len(label) else 0):
        task = (start + 1 + i * (number - 1) // others) % number
        preds = gated(x, task=task, mode="hard").argmax(1)
        other_hit[i], false_own[i] = preds == label, preds == classes[task]
    return Hits(own, own_hit, other_hit, false_own)
