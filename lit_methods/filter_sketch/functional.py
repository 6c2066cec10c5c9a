"""FilterSketch's arithmetic: Frequent Directions of a matrix, and of a convolution's filters or input channels."""

import math
from typing import Literal, NamedTuple, get_args, overload

import torch
from torch import Tensor

Tail = Literal["fill", "drop", "zero"]
Layout = Literal["channels", "official"]

__all__ = [
    "Layout",
    "SketchStats",
    "Sketched",
    "Tail",
    "covariance_error",
    "frequent_directions",
    "sketch_conv_weight",
    "sketch_matrices",
    "sketch_width",
    "tail_energy",
]


class SketchStats(NamedTuple):
    """What a sketch did: ``rows_used`` of the matrix entered it; ``deltas`` (shrinks,) float64: amount of each."""

    rows_used: int
    deltas: Tensor


@overload
def frequent_directions(a: Tensor, size: int, *, tail: Tail = ..., return_stats: Literal[False] = ...) -> Tensor: ...
@overload
def frequent_directions(
    a: Tensor, size: int, *, tail: Tail = ..., return_stats: Literal[True]
) -> tuple[Tensor, SketchStats]: ...
def frequent_directions(
    a: Tensor, size: int, *, tail: Tail = "fill", return_stats: bool = False
) -> Tensor | tuple[Tensor, SketchStats]:
    """A matrix of ``size`` rows whose covariance is close to that of ``a``.

    Rows enter a buffer of ``size`` rows. When it is full, the squared singular values are lowered by the
    (size // 2 + 1)-th largest, which empties half of it. Then ``0 <= A^T A - B^T B <= sum(deltas) I`` in the
    semidefinite order over the rows that entered, and ``sum(deltas) <= 2 ||A||_F^2 / size``.

    Args:
        a: (n, m) matrix of a float type; finite.
        size: rows of the sketch, at least 1; from ``n`` on the sketch is ``a`` itself, padded with zero rows.
        tail: what happens to the last rows, when a whole shrink would free more places than there are rows left.
            ``"fill"`` shrinks just as far as they need, ``"drop"`` leaves them out if they are fewer than
            ``size // 2`` (the official code), ``"zero"`` shrinks as ever and leaves zero rows (the textbook).
        return_stats: also return what was done.

    Returns:
        (size, m) in the dtype and on the device of ``a``; with ``return_stats`` a pair with ``SketchStats``.

    Raises:
        ValueError: ``a`` is no finite float matrix, ``size`` is below 1, or ``tail`` is none of the three.

    Source:
        FilterSketch, arXiv 2001.08514, after Liberty, KDD 2013. Differences from the official code: float64 inside, by
        the eigenvalues of the smaller Gram matrix; rows that come out of a shrink have their entry of largest magnitude
        positive (the decomposition leaves signs open); matrices of fewer columns than ``size`` work; and
        ``tail="fill"``, ours, with which every row enters.

    Example:
        >>> frequent_directions(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 2, tail="drop")
        tensor([[2.2361, 0.0000, 0.0000],
                [0.0000, 0.0000, 1.0000]])
    """
    if a.ndim != 2 or a.shape[1] == 0 or not a.is_floating_point():
        raise ValueError(f"a must be a float matrix (n, m), m > 0, got {a.dtype} of shape {tuple(a.shape)}")
    if not a.isfinite().all():
        raise ValueError(f"a of shape {tuple(a.shape)} holds NaN or infinity, which no sketch survives")
    if size < 1:
        raise ValueError(f"size={size} must be at least 1: a sketch without rows holds nothing")
    _check_choice("tail", tail, Tail)
    with torch.no_grad():  # autocast leaves float64 alone
        sketch, stats = _sketch(a.double(), size, tail)
    result = sketch.to(a.dtype)
    return (result, stats) if return_stats else result


def _sketch(a: Tensor, size: int, tail: Tail) -> tuple[Tensor, SketchStats]:
    rows, half = len(a), size // 2
    buffer = a.new_zeros(size, a.shape[1])
    deltas: list[Tensor] = []
    used = min(rows, size)
    buffer[:used] = a[:used]
    while used < rows:
        left = rows - used
        if tail == "drop" and left < half:
            break
        keep = max(half, size - left) if tail == "fill" else half
        delta = _shrink(buffer, keep)
        deltas.append(delta)
        entering = min(left, size - keep)
        buffer[keep : keep + entering] = a[used : used + entering]
        used += entering
    return buffer, SketchStats(used, torch.stack(deltas) if deltas else a.new_zeros(0))


def _shrink(buffer: Tensor, keep: int) -> Tensor:
    """Lower all squared singular values of a buffer (l, m) by the one after the first ``keep``; in place.

    Rows ``keep`` and after become zero. Returns the amount, a scalar.
    """
    squares, directions = _right_singular(buffer, keep)
    delta = squares[keep] if keep < len(squares) else squares.new_zeros(())
    rows = min(keep, len(squares))
    shrunk = (squares[:rows] - delta).clamp(min=0).sqrt()[:, None] * directions[:rows]
    largest = shrunk.gather(1, shrunk.abs().argmax(1, keepdim=True))
    buffer.zero_()
    buffer[:rows] = torch.where(largest < 0, -shrunk, shrunk)
    return delta


def _right_singular(buffer: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Squared singular values of (l, m), descending, and at least the first ``keep`` right singular vectors as rows."""
    if buffer.shape[0] > buffer.shape[1]:
        squares, vectors = torch.linalg.eigh(buffer.mT @ buffer)
        return squares.flip(0).clamp(min=0), vectors.flip(1).mT
    squares, vectors = torch.linalg.eigh(buffer @ buffer.mT)
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
    lengths = squares[:keep].sqrt()
    directions = vectors[:, :keep].mT @ buffer
    return squares, torch.where(lengths > 0, 1 / lengths, 0.0)[:, None] * directions


def sketch_conv_weight(
    w: Tensor,
    size: int,
    dim: Literal[0, 1],
    *,
    normalize: Literal["l2"] | None = "l2",
    tail: Tail = "fill",
    channel_layout: Layout = "channels",
) -> Tensor:
    """A convolution's weight with fewer filters, or with fewer input channels, by a sketch of it.

    To shrink both, call it twice: filters first.

    Args:
        w: (n, c, k, k) weight of a float type; finite.
        size: filters (``dim=0``, at most n) or input channels (``dim=1``, at most c) that are left.
        dim: 0 sketches the n x (c k k) matrix of filters, 1 the c x (n k k) matrix of input channels.
        normalize: ``"l2"`` divides the result by its Frobenius norm, one number for all; a zero result stays zero.
        tail: see ``frequent_directions``.
        channel_layout: for ``dim=1``. ``"channels"`` moves the channels to the front before the weight is flattened;
            ``"official"`` reads the buffer as c x (n k k) as it lies in memory, so that its rows are chunks of filters:
            a slip of the official code, here to reproduce it.

    Returns:
        (size, c, k, k) or (n, size, k, k), in the dtype and on the device of ``w``.

    Raises:
        ValueError: a wrong shape, ``dim`` or option; a layer narrower than ``size``; ``w`` is not finite.

    Source:
        FilterSketch, arXiv 2001.08514; normalisation: ``l2`` of the official code, in all its commands.

    Example:
        >>> sketch_conv_weight(torch.randn(16, 8, 3, 3), 6, 1).shape
        torch.Size([16, 6, 3, 3])
    """
    return sketch_matrices(w, size, dim, normalize=normalize, tail=tail, channel_layout=channel_layout).weight


class Sketched(NamedTuple):
    """A sketched ``weight``, and the matrices it comes from: ``a`` (n, m) before, ``b`` (size, m) after, float64.

    ``b`` is the sketch before it was normalised.
    """

    weight: Tensor
    a: Tensor
    b: Tensor
    stats: SketchStats


def sketch_matrices(
    w: Tensor, size: int, dim: int, *, normalize: str | None, tail: Tail, channel_layout: Layout
) -> Sketched:
    """``sketch_conv_weight`` with what is needed to judge it; arguments and errors are its own.

    Example:
        >>> sketched = sketch_matrices(
        ...     torch.ones(8, 2, 3, 3), 4, 0, normalize=None, tail="fill", channel_layout="channels"
        ... )
        >>> sketched.a.shape, sketched.b.shape, sketched.stats.rows_used
        (torch.Size([8, 18]), torch.Size([4, 18]), 8)
    """
    if w.ndim != 4 or not w.is_floating_point():
        raise ValueError(f"w must be a float convolution weight (n, c, k, k), got {w.dtype} of shape {tuple(w.shape)}")
    if dim not in (0, 1):
        raise ValueError(f"dim={dim} must be 0 (filters) or 1 (input channels)")
    if normalize not in (None, "l2"):
        raise ValueError(f"normalize={normalize!r} must be None or 'l2'")
    _check_choice("channel_layout", channel_layout, Layout)
    if not 1 <= size <= w.shape[dim]:
        raise ValueError(
            f"size={size} must lie between 1 and the {w.shape[dim]} {('filters', 'input channels')[dim]} of a weight "
            f"of shape {tuple(w.shape)}; a sketch is never wider than its layer"
        )
    n, c, height, width = w.shape
    permuted = dim == 1 and channel_layout == "channels"
    a = (w.transpose(0, 1) if permuted else w).detach().double().reshape(w.shape[dim], -1)
    b, stats = frequent_directions(a, size, tail=tail, return_stats=True)
    scaled = b / norm if normalize == "l2" and (norm := b.norm()) > 0 else b
    if permuted:
        narrow = scaled.view(size, n, height, width).transpose(0, 1).contiguous()
    else:
        narrow = scaled.view(*((size, c) if dim == 0 else (n, size)), height, width)
    return Sketched(narrow.to(w.dtype), a, b, stats)


def covariance_error(a: Tensor, b: Tensor) -> float:
    """How much of a matrix's covariance its sketch misses: ``||A^T A - B^T B||_2 / ||A||_F^2``, 0 for a zero matrix.

    Args:
        a: (n, m) matrix.
        b: (size, m) sketch.

    Returns:
        A number in [0, 1] for a sketch that keeps the bound of ``frequent_directions``.

    Example:
        >>> covariance_error(torch.eye(4), torch.eye(4)[:2])
        0.25
    """
    total = float(a.square().sum())
    if total == 0:
        return 0.0
    both = torch.cat([a, b])
    if both.shape[1] > len(both):  # the same eigenvalues, from a smaller matrix: turn the rows into their own span
        both = torch.linalg.qr(both.mT, mode="r").R.mT
    difference = both[: len(a)].mT @ both[: len(a)] - both[len(a) :].mT @ both[len(a) :]
    return float(torch.linalg.eigvalsh(difference).abs().max()) / total


def tail_energy(w: Tensor) -> Tensor:
    """How much of a layer lies in its weakest directions: tail sums of squared singular values of its filter matrix.

    Args:
        w: (n, ...) weight, one filter per row.

    Returns:
        (n,) float64, falling from 1: entry i is the part of ``||W||_F^2`` that the best matrix of rank i misses. Ours,
        to share a budget out among layers.

    Example:
        >>> tail_energy(torch.diag(torch.tensor([3.0, 1.0])))
        tensor([1.0000, 0.1000], dtype=torch.float64)
    """
    rows = w.detach().double().flatten(1)
    squares = torch.linalg.eigvalsh(rows @ rows.mT).clamp(min=0)  # rising, so that sums from the front are tails
    return (squares.cumsum(0) / squares.sum().clamp(min=1e-300)).flip(0)


def sketch_width(planes: int, rate: float) -> int:
    """Channels that a rate leaves: the product of Python floats, cut off as the official code does.

    Args:
        planes: channels of the layer.
        rate: the fraction that is *kept* (HRank's rates are what is removed), in (0, 1].

    Raises:
        ValueError: a rate outside (0, 1], or one that leaves nothing.

    Source:
        FilterSketch, arXiv 2001.08514, official code.

    Example:
        >>> sketch_width(16, 0.6), sketch_width(64, 0.1)
        (9, 6)
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate={rate} must lie in (0, 1]: the fraction of channels that is kept")
    if (width := int(rate * planes)) == 0:
        raise ValueError(
            f"rate={rate} keeps none of {planes} channels; the smallest usable rate is {_smallest(planes)}"
        )
    return width


def _smallest(planes: int) -> float:
    """The smallest rate of few decimals that keeps a channel."""
    digits = len(str(planes)) + 3
    return math.ceil(10**digits / planes) / 10**digits


def _check_choice(name: str, value: str, choices: object) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, get_args(choices)))}")
