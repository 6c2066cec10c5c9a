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
        asked: (n, N) bool, whether the image was shown to an i-th network of another class.
        other_hit: (n, N) bool, whether that one recognises the image.
        false_own: (n, N) bool, whether it takes the image for its own class.
    """

    own: Tensor
    own_hit: Tensor
    asked: Tensor
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
    others = torch.where(own, number - 1, number)  # of each image
    start = torch.where(own, row + 1, label % number)
    turns = min(num_others, int(others.max()) if len(label) else 0)
    asked = torch.arange(turns, device=label.device)[:, None] < others
    other_hit, false_own = torch.zeros_like(asked), torch.zeros_like(asked)
    for i, some in enumerate(asked):
        task = ((start + i * others // others.clamp(max=num_others).clamp(min=1)) % number)[some]
        preds = gated(x[some], task=task, mode="hard").argmax(1)
        other_hit[i, some], false_own[i, some] = preds == label[some], preds == classes[task]
    return Hits(own, own_hit, asked, other_hit, false_own)


@torch.no_grad()
def own_scores(gated: GatedModel, x: Tensor, labels: Tensor, row_of: Tensor) -> Tensor:
    """What the hard-gated networks of some classes say to an image: how probable is their own class?

    Args:
        gated: a network and its gates.
        x: (N, C, H, W), as the network is fed.
        labels: (N, k) int64, k classes for each image.
        row_of: (classes,) int64, the row of a class's gates, -1 without any.

    Returns:
        (N, k) softmax probabilities, float32; NaN for classes without gates.

    Example:
        >>> from torch import nn
        >>> gated = GatedModel(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), ["1"], 1, input_size=(3, 2, 2))
        >>> own_scores(gated, torch.rand(1, 3, 2, 2), torch.tensor([[2, 0]]), torch.tensor([-1, -1, 0])).isnan()
        tensor([[False,  True]])
    """
    found = []
    for label in labels.T:
        rows = row_of[label]
        scores = gated(x, task=rows.clamp(min=0), mode="hard").float().softmax(1).gather(1, label[:, None])[:, 0]
        found.append(scores.masked_fill(rows < 0, torch.nan))
    return torch.stack(found, dim=1)
