"""PPBA's arithmetic: the low-frequency basis, the losses, and the probability of every move.

arXiv 2005.03837; pure functions and two small modules on tensors, no network and no random state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set as AbstractSet
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pairs = Sequence[tuple[str, float]]  # what a service says of an image: labels with scores, best first
CountUpdate = Literal["both", "ineffective_only", "fixed"]


def dct_basis(size: int) -> Tensor:
    """Orthonormal DCT-II basis.

    Args:
        size: side S of the images.

    Returns:
        ``(S, S)`` float64; row k is ``a_k cos(pi (2p + 1) k / (2S))`` over pixels p: orthonormal rows.

    Raises:
        ValueError: ``size`` is below 1.

    Source:
        PPBA, section 3 of the specification; equals ``scipy.fft.dct(eye, norm="ortho")``.

    Example:
        >>> dct_basis(2).round(decimals=4)
        tensor([[ 0.7071,  0.7071], [ 0.7071, -0.7071]], dtype=torch.float64)
    """
    if size < 1:
        raise ValueError(f"size={size} must be at least 1")
    k, p = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)[None]
    basis = math.sqrt(2 / size) * torch.cos(math.pi * (2 * p + 1) * k / (2 * size))
    basis[0] = math.sqrt(1 / size)
    return basis


def low_frequency_indices(
    size: int,
    channels: int,
    freq_dim: int,
    stride: int,
    num: int | None = None,
    generator: torch.Generator | None = None,
    *,
    permutations: Sequence[Tensor] | None = None,
) -> Tensor:
    """DCT coefficients of an image from low to high frequency, in random order within each shell.

    Shell 0 is the ``freq_dim`` x ``freq_dim`` corner of all channels; each further shell is ``stride`` rows and columns
    wide.

    Args:
        size: side S of the images.
        channels: C.
        freq_dim: side of the lowest shell, 1 to S.
        stride: width of the others; divides ``size - freq_dim``.
        num: how many to take, from the lowest; ``None`` takes all.
        generator: of the random order, one ``torch.randperm`` per shell; ``None`` draws from torch's global one.
        permutations: the order itself instead, one 1-D integer array per shell.

    Returns:
        ``(num,)`` int64, flat indices into (C, S, S).

    Raises:
        ValueError: a number is out of range, the stride does not fit, or a permutation is none of its shell.

    Source:
        PPBA's released code ("strided" order). Its "random" order is the same as this one with
        ``num <= channels * freq_dim ** 2``.

    Example:
        >>> low_frequency_indices(4, 1, 2, 2, num=4, permutations=[torch.tensor([3, 0, 1, 2])])
        tensor([1, 4, 5, 0])
    """
    if not 1 <= freq_dim <= size:
        raise ValueError(f"freq_dim={freq_dim} must lie between 1 and the side of the images, {size}")
    if stride < 1 or (size - freq_dim) % stride:
        raise ValueError(
            f"stride={stride} must divide size - freq_dim = {size} - {freq_dim} = {size - freq_dim}, so that the last "
            "shell ends at the highest frequency"
        )
    if num is not None and not 1 <= num <= channels * size * size:
        raise ValueError(f"num={num} must lie between 1 and the {channels * size * size} coefficients that there are")
    place = torch.arange(channels * size * size).view(channels, size, size)
    shells = [place[:, :freq_dim, :freq_dim].flatten()]
    for i in range(freq_dim, size, stride):
        right, bottom = place[:, : i + stride, i : i + stride], place[:, i : i + stride, :i]
        shells.append(torch.cat([right.flatten(), bottom.flatten()]))
    order: list[Tensor] = []
    for number, shell in enumerate(shells):
        if permutations is None:
            ranks = torch.randperm(len(shell), generator=generator)
        elif num is not None and sum(map(len, order)) >= num:
            break  # the shells that were given are enough
        elif number < len(permutations):
            ranks = torch.as_tensor(permutations[number]).long()
        else:
            raise ValueError(f"permutations has {len(permutations)} entries, but there are {len(shells)} shells")
        if not torch.equal(ranks.sort().values, torch.arange(len(shell))):
            raise ValueError(f"permutations[{number}] is no order of the {len(shell)} coefficients of its shell")
        order.append(shell[ranks.argsort()])
    return torch.cat(order)[:num]


class LowFrequencyProjection(nn.Module):
    """Between perturbations of an image and their low-frequency DCT coefficients.

    Stands for the sensing matrix A (m, D) with orthonormal rows, without storing it: ``forward`` is z A, ``project`` is
    delta A^T. So the L2 norm of ``forward(z)`` is that of ``z``.

    Args:
        indices: ``(m,)`` distinct flat indices into (C, S, S), as :func:`low_frequency_indices` gives them.
        size: side S of the images.
        channels: C.
        dtype: of the basis, which is computed in float64 and then cast.

    Raises:
        ValueError: indices are out of range, or one comes twice.

    Source:
        PPBA, sensing matrix. The official code multiplies with the dense matrix (903 MB at 224 pixels).

    Example:
        >>> projection = LowFrequencyProjection(torch.tensor([0, 17, 40]), size=8)
        >>> delta = projection(torch.tensor([[3.0, 0.0, 4.0]]))
        >>> delta.shape, round(delta.norm().item(), 4), projection.project(delta).round(decimals=4)
        (torch.Size([1, 3, 8, 8]), 5.0, tensor([[3., 0., 4.]]))
    """

    basis: Tensor
    indices: Tensor
    _places: Tensor

    def __init__(self, indices: Tensor, size: int, channels: int = 3, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        indices = torch.as_tensor(indices).long().cpu()
        if indices.ndim != 1 or not len(indices):
            raise ValueError(f"indices must be (m,) with one coefficient at least, got shape {tuple(indices.shape)}")
        if indices.min() < 0 or indices.max() >= channels * size * size:
            raise ValueError(
                f"indices lie between {indices.min()} and {indices.max()}, but channels={channels} and size={size} "
                f"have the coefficients 0 to {channels * size * size - 1}"
            )
        if len(indices.unique()) < len(indices):
            raise ValueError("indices holds a coefficient twice; the rows of the matrix would not be orthonormal")
        self.size, self.channels, self.dim = size, channels, len(indices)
        channel, row, column = indices // size**2, indices // size % size, indices % size
        self._side = side = int(max(row.max(), column.max())) + 1  # the frequencies that are used at all
        self.register_buffer("indices", indices)
        self.register_buffer("basis", dct_basis(size)[:side].to(dtype))
        self.register_buffer("_places", (channel * side + row) * side + column, persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        """Perturbations (..., C, S, S) of coefficients (..., m)."""
        spectrum = z.new_zeros(z.shape[:-1].numel(), self.channels * self._side**2)
        spectrum[:, self._places] = z.reshape(-1, self.dim)
        delta = self._both_sides(self.basis.T, spectrum.view(-1, self._side, self._side), self.basis)
        return delta.view(*z.shape[:-1], *delta.shape[1:])

    def project(self, delta: Tensor) -> Tensor:
        """Coefficients (N, m) of perturbations (N, C, S, S)."""
        spectrum = self._both_sides(self.basis, delta.flatten(0, 1), self.basis.T)
        return spectrum.flatten(1)[:, self._places]

    def _both_sides(self, left: Tensor, planes: Tensor, right: Tensor) -> Tensor:
        """``left @ plane @ right`` for each plane (N * C, ., .), as (N, C, ., .).

        A row is the same bit for bit in any batch. So these are products of single planes, as one large product rounds
        a row differently in another batch, and is not faster; and sides are filled up with zeros to a multiple of 16,
        as MKL rounds differently where a plane begins at an address that is no multiple of 64 bytes.
        """
        rows, columns, number = len(left), right.shape[1], len(planes)
        left, planes, right = _fill_up(left), _fill_up(planes), _fill_up(right)
        product = torch.bmm(left.expand(number, -1, -1), torch.bmm(planes, right.expand(number, -1, -1)))
        return product[:, :rows, :columns].unflatten(0, (-1, self.channels)).contiguous()

    def like(self, images: Tensor) -> LowFrequencyProjection:
        """This projection on the device and in the dtype of some images (N, C, S, S), which it has to fit.

        Raises:
            ValueError: the images have another size or other channels.
        """
        if images.shape[1:] != (self.channels, self.size, self.size):
            raise ValueError(
                f"images are {tuple(images.shape[1:])}, but the projection is for ({self.channels}, {self.size}, "
                f"{self.size}); make one of their size"
            )
        if self.basis.device == images.device and self.basis.dtype == images.dtype:
            return self
        other = LowFrequencyProjection(self.indices, self.size, self.channels, dtype=images.dtype)
        return other.to(images.device)


def _fill_up(matrices: Tensor) -> Tensor:
    """Matrices (..., ., .) with zeros below and to the right, contiguous, their sides multiples of 16."""
    return F.pad(matrices, (0, -matrices.shape[-1] % 16, 0, -matrices.shape[-2] % 16)).contiguous()


def margin_loss(logits: Tensor, target: Tensor, targeted: bool = False) -> Tensor:
    """How far the prediction is from the wanted one, in logits; zero when it is reached.

    Args:
        logits: ``(N, classes)``, any scale; half precision is taken up to float32.
        target: ``(N,)`` int64 classes.
        targeted: ``False``: away from ``target``, ``max(0, logit_y - max of the others)``; ``True``: towards it.

    Returns:
        ``(N,)``, never negative; NaN where a logit is NaN.

    Raises:
        ValueError: the shapes do not belong together.

    Source:
        PPBA, loss. The official code masks the class by multiplying with zero, which is wrong where the true logit or
        all others are negative; here it is masked with minus infinity.

    Example:
        >>> margin_loss(torch.tensor([[-1.0, -3.0], [0.0, 2.0]]), torch.tensor([0, 0]))
        tensor([2., 0.])
    """
    if logits.ndim != 2 or target.shape != logits.shape[:1] or logits.shape[1] < 2:
        raise ValueError(
            f"logits must be (N, classes) with two classes or more and target (N,), got {tuple(logits.shape)} and "
            f"{tuple(target.shape)}"
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    own = logits.gather(1, target[:, None]).squeeze(1)
    others = logits.scatter(1, target[:, None], -math.inf).amax(1)
    return ((others - own) if targeted else (own - others)).clamp_min(0)


def clip_l2(z: Tensor, eps: float) -> Tensor:
    """Vectors pulled back to the L2 ball of radius ``eps``; those inside stay as they are.

    Args:
        z: ``(..., m)``, each row of the last dimension a vector.
        eps: positive.

    Returns:
        the same shape and dtype.

    Source:
        PPBA, rescaling of a candidate.

    Example:
        >>> clip_l2(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), 1.0)
        tensor([[0.6000, 0.8000], [0.0000, 0.0000]])
    """
    norm = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    return z * (eps / norm.clamp_min(eps))


def label_score_loss(pairs: Sequence[Pairs | None], labels: Sequence[AbstractSet[str]]) -> Tensor:
    """The best score that a service still gives to one of an image's original labels.

    Args:
        pairs: per image what the service returned, (label, score); ``None`` where it gave no usable answer.
        labels: per image the set of its original labels.

    Returns:
        ``(N,)`` float64 in the service's own scale; 0 where none of the original labels is returned, NaN for ``None``
        and where one of them has the score NaN.

    Raises:
        ValueError: not as many answers as label sets, or one that is no set of names.

    Source:
        PPBA's released script for a cloud service, where the set is the three best labels of the clean image.

    Example:
        >>> label_score_loss([[("cat", 0.7), ("dog", 0.2)], [("sky", 0.9)], None], [{"dog", "cat"}, {"dog"}, {"dog"}])
        tensor([0.7000, 0.0000, nan], dtype=torch.float64)
    """
    if len(pairs) != len(labels):
        raise ValueError(f"pairs has {len(pairs)} answers and labels {len(labels)} sets; give one set for each answer")
    losses: list[float] = []
    for answer, own in zip(pairs, labels, strict=True):
        if not isinstance(own, AbstractSet):
            raise ValueError(f"labels must hold one set of names per image, got {own!r}")
        scores = [math.nan] if answer is None else [float(score) for label, score in answer if label in own]
        losses.append(math.nan if any(map(math.isnan, scores)) else max(scores, default=0.0))
    return torch.tensor(losses, dtype=torch.float64)


class MoveProbability:
    """The probability that a coordinate moves by -1, 0 or +1, from the moves that helped and those that did not.

    With E and I the counts of effective and ineffective moves, ``p_v = E_v / (E_v + I_v)`` per coordinate and move, and
    the probability is ``p_v`` over the sum of the three.

    Args:
        num_images: N, each with counts of its own.
        dim: m coordinates.
        momentum: what older counts are multiplied with when a move is accepted, in (0, 1].
        count_update: ``"both"`` counts effective and ineffective moves; ``"ineffective_only"`` is what the released
            code does, where effective counts stay at their start; ``"fixed"`` counts nothing: a third each, to compare.
        prior: all counts at the start, positive.
        device: where the counts are.

    Attributes:
        effective: ``(3, N, m)`` float64, moves in the order -1, 0, +1.
        ineffective: the same.

    Raises:
        ValueError: an argument is out of range.

    Source:
        PPBA, probability-driven random walk. ``"both"`` is ours, inferred from the abstract ("all queries").

    Example:
        >>> walk = MoveProbability(1, 2)
        >>> moves = walk.moves(torch.tensor([[[0.9, 0.1]]], dtype=torch.float64))
        >>> walk.update(moves, losses=torch.tensor([[0.5]]), incumbent=torch.tensor([1.0]))
        tensor([True])
        >>> walk.probabilities()[:, 0, 0].round(decimals=3)  # +1 helped the first coordinate
        tensor([0.3000, 0.3000, 0.4000], dtype=torch.float64)
    """

    def __init__(
        self,
        num_images: int,
        dim: int,
        *,
        momentum: float = 1.0,
        count_update: CountUpdate = "both",
        prior: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> None:
        check_walk(momentum, count_update)
        if prior <= 0:
            raise ValueError(f"prior={prior} must be positive, or a move could never be drawn")
        self.momentum, self.count_update = momentum, count_update
        self.effective = torch.full((3, num_images, dim), float(prior), dtype=torch.float64, device=device)
        self.ineffective = self.effective.clone()

    def probabilities(self) -> Tensor:
        """``(3, N, m)`` float64 in (0, 1), summing to one over the three moves."""
        least = torch.finfo(torch.float64).tiny  # where momentum has wiped out all counts, a half
        share = (self.effective + least) / (self.effective + self.ineffective + 2 * least)
        share = share.clamp_min(torch.finfo(torch.float64).eps)  # a move that never helped is drawn seldom, not never
        return share / share.sum(0)

    def moves(self, draws: Tensor) -> Tensor:
        """Moves in {-1, 0, 1} from uniform numbers.

        Args:
            draws: ``(N, n, m)`` in [0, 1), for n candidates per image.

        Returns:
            ``(N, n, m)`` in the dtype of ``draws``.
        """
        down, stay, _ = self.probabilities()[:, :, None]
        return (draws >= down + stay).to(draws.dtype) - (draws < down).to(draws.dtype)

    def update(self, moves: Tensor, losses: Tensor, incumbent: Tensor, active: Tensor | None = None) -> Tensor:
        """Count the moves of one iteration.

        Args:
            moves: ``(N, n, m)``.
            losses: ``(N, n)`` of the candidates; NaN counts as no improvement.
            incumbent: ``(N,)`` losses before.
            active: ``(N,)`` bool; the counts of other images stay as they are.

        Returns:
            ``(N,)`` bool: active, and the best candidate is better than the incumbent.
        """
        losses = losses.nan_to_num(nan=math.inf, posinf=math.inf)
        better = losses < incumbent[:, None]
        accepted = better.any(1)
        if active is not None:
            accepted &= active
        if self.count_update == "fixed":
            return accepted
        counted = torch.ones_like(better) if active is None else active[:, None].expand_as(better)
        helped = better & accepted[:, None]
        taken = torch.stack([moves == v for v in (-1, 0, 1)]).to(torch.float64)  # (3, N, n, m)
        if self.momentum != 1:
            decay = 1 - (1 - self.momentum) * accepted.to(torch.float64)[None, :, None]
            self.ineffective *= decay
            if self.count_update == "both":
                self.effective *= decay
        self.ineffective += (taken * (counted & ~helped)[None, :, :, None]).sum(2)
        if self.count_update == "both":
            self.effective += (taken * helped[None, :, :, None]).sum(2)
        return accepted

    def keep(self, rows: Tensor) -> None:
        """Forget all images but these, ``(N,)`` bool or indices."""
        self.effective, self.ineffective = self.effective[:, rows], self.ineffective[:, rows]


def check_walk(momentum: float, count_update: str) -> None:
    """Refuse what :class:`MoveProbability` cannot count with.

    Raises:
        ValueError: an argument is out of range.
    """
    if not 0 < momentum <= 1:
        raise ValueError(f"momentum={momentum} must lie in (0, 1]; 1 forgets nothing")
    if count_update not in ("both", "ineffective_only", "fixed"):
        raise ValueError(f"count_update={count_update!r} must be 'both', 'ineffective_only' or 'fixed'")


def success_curve(success: Tensor, queries: Tensor, thresholds: Tensor, max_queries: int) -> Tensor:
    """Part of the images whose attack had succeeded after so many queries.

    Args:
        success: ``(N,)`` bool.
        queries: ``(N,)`` spent per image.
        thresholds: ``(T,)`` numbers of queries.
        max_queries: later successes count as failures.

    Returns:
        ``(T,)`` float64 in [0, 1]; NaN without images.

    Source:
        PPBA, evaluation: S(t) of the success curve, whose area is ``SuccessAUC``.

    Example:
        >>> success_curve(torch.tensor([True, True, False]), torch.tensor([5, 50, 99]), torch.tensor([1, 10, 99]), 99)
        tensor([0.0000, 0.3333, 0.6667], dtype=torch.float64)
    """
    counted = success.bool() & (queries <= max_queries)
    return (counted & (queries <= thresholds[:, None])).double().mean(1)
