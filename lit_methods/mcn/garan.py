"""GARAN: a map is read into one vector where a sentence points, and that vector is spread over the map again."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_methods.functional.precision import at_least_float32
from lit_methods.mcn.blocks import EPS, LEAK


class GARAN(nn.Module):
    """Global attentive reasoning: collect a vector by attention over all cells, diffuse it by a gate in each cell.

    Channels and sentence are cut into as many groups as there are heads, and all heads share the four layers.

    Args:
        dim: channels of the map.
        query_dim: size of the sentence's vector.
        num_heads: divides both.

    Raises:
        ValueError: it does not.

    Source:
        Section 2.3 of MCN's specification. The keys and values of cells are never made: since ``key(V_i) . q`` is
        ``V_i . (W^T q) + b . q``, and collecting weights sum to one, each layer is applied to one vector per head. Same
        results; the later PyTorch rewrite by the authors turns the attention maps, which this does not.

    Example:
        >>> features, attention = GARAN(8, 12)(torch.zeros(2, 8, 4, 5), torch.zeros(2, 12))
        >>> features.shape, attention.shape
        (torch.Size([2, 8, 4, 5]), torch.Size([2, 8, 4, 5]))
    """

    def __init__(self, dim: int, query_dim: int, num_heads: int = 2) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads or query_dim % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide dim={dim} and query_dim={query_dim}")
        self.num_heads = num_heads
        width = dim // num_heads
        self.key_collect = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.key_diffuse = nn.Linear(width, width)
        self.query = nn.Linear(query_dim // num_heads, width)
        self.norm = nn.BatchNorm2d(dim, eps=EPS)

    def forward(self, v: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Reason about maps with sentences.

        Args:
            v: maps (N, dim, h, w).
            q: sentences (N, query_dim).

        Returns:
            Features, and the attention features that consistency energy compares; both (N, dim, h, w).
        """
        height, width = v.shape[2:]
        cells = v.permute(0, 2, 3, 1).flatten(1, 2)  # (N, h w, dim): of a channels_last map this is no copy
        query = self.query(q.unflatten(1, (self.num_heads, -1))) / math.sqrt(q.shape[1] // self.num_heads)
        keys = (self.key_collect, self.key_diffuse)
        weights = torch.stack([query @ key.weight for key in keys], 3)  # (N, k, c, 2)
        constants = torch.stack([query @ key.bias for key in keys], 2)  # (N, k, 2)
        heads = []
        # bmm: the broadcasting of @ would forbid an exported graph a batch of one
        for head, part in enumerate(cells.chunk(self.num_heads, 2)):
            collect, diffuse = (torch.bmm(part, weights[:, head]) + constants[:, None, head]).unbind(2)  # each (N, h w)
            shares = at_least_float32(collect).softmax(1).to(v.dtype)
            collected = self.value(torch.bmm(shares[:, None], part)[:, 0])
            heads.append(diffuse.sigmoid()[..., None] * collected[:, None])
        attention = torch.cat(heads, 2).unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return F.leaky_relu(self.norm(v + attention), LEAK, inplace=True), attention  # v first: its memory format stays
