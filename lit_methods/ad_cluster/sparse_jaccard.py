"""Jaccard distances of which most are 1, kept as the pairs that share a neighbour."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_methods.ad_cluster.neighbours import blocks


class SparseJaccard:
    """Symmetric distances of N points: pairs (i, j), i < j, in rows; all others are 1, and the diagonal is 0.

    ``with_source_term`` gives the same with the term that is added for the source domain.

    Args:
        start: (N + 1,) int64; the pairs of row i are at ``start[i]`` to ``start[i + 1]``.
        column: (P,) int32 or int64, j of each pair, ascending in each row.
        value: (P,) floating distances.
        absent: what the other pairs have in common.
        term: (N,) of the type of ``value``, or ``None``; other pairs are at ``absent + term[i] + term[j]``.

    Example:
        >>> SparseJaccard(torch.tensor([0, 1, 1, 1]), torch.tensor([2]), torch.tensor([0.25])).to_dense()
        tensor([[0.0000, 1.0000, 0.2500],
                [1.0000, 0.0000, 1.0000],
                [0.2500, 1.0000, 0.0000]])
    """

    def __init__(
        self, start: Tensor, column: Tensor, value: Tensor, absent: float = 1.0, term: Tensor | None = None
    ) -> None:
        self.start, self.column, self.value, self.absent, self.term = start, column, value, absent, term

    def __repr__(self) -> str:
        return f"SparseJaccard(size={self.size}, pairs={len(self.value)}, dtype={self.dtype}, device={self.device})"

    @property
    def size(self) -> int:
        """Number of points, N."""
        return len(self.start) - 1

    @property
    def shape(self) -> torch.Size:
        """(N, N), as ``to_dense()`` has it."""
        return torch.Size((self.size, self.size))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the distances."""
        return self.value.dtype

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.value.device

    @property
    def least_absent(self) -> float:
        """No pair that is not kept is nearer than this (infinite for one point)."""
        if self.size < 2:
            return float("inf")
        return self.absent + (
            0.0 if self.term is None else float(self.term.topk(2, largest=False).values.double().sum())
        )

    def row_of(self, position: Tensor) -> Tensor:
        """i of the pairs at these positions, int64."""
        return torch.searchsorted(self.start, position, right=True) - 1

    def to_dense(self) -> Tensor:
        """All distances, (N, N)."""
        count, own = self.size, torch.arange(self.size, device=self.device)
        dense = self.value.new_full((count, count), self.absent)
        if self.term is not None:
            dense += self.term[:, None] + self.term
        for a, b in blocks(len(self.value), 4, self.device):
            row, column, value = (
                self.row_of(torch.arange(a, b, device=self.device)),
                self.column[a:b].long(),
                self.value[a:b],
            )
            dense[row, column] = value
            dense[column, row] = value
        dense[own, own] = 0 if self.term is None else 2 * self.term
        return dense

    def with_source_term(self, s: Tensor, lam: float = 0.1) -> SparseJaccard:
        """``(1 - lam) J + lam (s_i + s_j)``, still sparse.

        The pairs that are not kept are then at least at ``1 - lam``: ``select_eps`` and ``dbscan_pseudo_labels`` say so
        where they would be needed.

        Args:
            s: (N,) of ``source_distance_term``.
            lam: in [0, 1].

        Raises:
            ValueError: another length of ``s``, ``lam`` out of range, or the term is there already.

        Source:
            the public code of "Theory and Practice", in which lam is 0.1; there dense.

        Example:
            >>> J = SparseJaccard(torch.tensor([0, 1, 1]), torch.tensor([1]), torch.tensor([0.5]))
            >>> J.with_source_term(torch.tensor([0.0, 1.0]), 0.1).to_dense()
            tensor([[0.0000, 0.5500],
                    [0.5500, 0.2000]])
        """
        if self.term is not None:
            raise ValueError("the source term is in these distances already; add it to those of k_reciprocal_jaccard")
        if s.shape != (self.size,):
            raise ValueError(f"s must be ({self.size},), one value per point, got {tuple(s.shape)}")
        if not 0 <= lam <= 1:
            raise ValueError(f"lam={lam} must lie in [0, 1]; 0.1 is the public code's")
        term = lam * s.to(self.value)
        value = torch.empty_like(self.value)
        for a, b in blocks(len(value), 4, self.device):
            row = self.row_of(torch.arange(a, b, device=self.device))
            value[a:b] = (1 - lam) * self.value[a:b] + term[row] + term[self.column[a:b].long()]
        return SparseJaccard(self.start, self.column, value, 1 - lam, term)
