"""The sentence's vector: a bidirectional GRU over word vectors, pooled by attention in every channel."""

from __future__ import annotations

from torch import Tensor, nn

from lit_methods.mcn.energy import attention_pool


class AttentiveGRUEncoder(nn.Module):
    """Word vectors to one vector per sentence.

    Args:
        word_dim: of word vectors.
        hidden: of the GRU, whose two directions are added up, and of what comes out.
        dropout: on words, and on what attention is computed from.
        mask_padding: whether attention leaves padding out. The GRU runs over it in any case.

    Raises:
        ValueError: from ``forward``: words are not (N, T, word_dim), or ``mask_padding`` without a mask.

    Source:
        Section 2.1 of MCN's specification. The gates are those of ``torch.nn.GRU``, not of the official code's Keras.

    Example:
        >>> import torch
        >>> AttentiveGRUEncoder(word_dim=6, hidden=8)(torch.zeros(2, 5, 6)).shape
        torch.Size([2, 8])
    """

    def __init__(
        self, word_dim: int = 300, hidden: int = 1024, dropout: float = 0.1, mask_padding: bool = False
    ) -> None:
        super().__init__()
        self.gru = nn.GRU(word_dim, hidden, batch_first=True, bidirectional=True)
        self.attention = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.mask_padding = mask_padding

    def forward(self, words: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, T, word_dim) to (N, hidden).

        Args:
            words: padded with zeros at the end.
            mask: (N, T), true where there is a word; used with ``mask_padding`` alone. A sentence of no words is
                pooled over its padding.
        """
        if words.ndim != 3 or words.shape[2] != self.gru.input_size:
            raise ValueError(f"words must be (N, T, {self.gru.input_size}), got {tuple(words.shape)}")
        if self.mask_padding and mask is None:
            raise ValueError("mask=None, but mask_padding=True needs to know where words are; give a mask (N, T)")
        if words.shape[0] == 0:  # nothing to run, and not every kernel takes an empty batch
            return words.new_zeros(0, self.gru.hidden_size)
        both = self.gru(self.dropout(words))[0]
        h = both.unflatten(2, (2, -1)).sum(2)
        dropout = self.dropout.p if self.training else 0.0
        mask = mask if self.mask_padding else None
        return attention_pool(h, self.attention.weight, self.attention.bias, mask, dropout=dropout)
