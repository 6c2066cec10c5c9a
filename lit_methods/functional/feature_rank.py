"""Rank of feature maps: the official float32 rule, most maps without a singular value decomposition."""

import torch
from torch import Tensor

_EPS = torch.finfo(torch.float32).eps
# Outside these magnitudes the float32 rule under- or overflows; such maps take the rule itself.
_SMALLEST, _LARGEST = 1e-30, 1e36


class NonFiniteMapsError(ValueError):
    """Feature maps with NaN or infinity have no rank."""


@torch.no_grad()
def feature_map_rank(maps: Tensor, *, rtol: float | None = None) -> Tensor:
    """Numerical rank of every feature map: its singular values above ``rtol`` times the largest one.

    The answer is that of ``torch.linalg.matrix_rank`` on each map in float32. A decomposition is computed only where
    something cheaper cannot decide. A Cholesky factor of the float64 Gram matrix, shifted by four times the
    tolerance, proves that the rows that are not zero are independent; the maps it cannot settle get the eigenvalues of
    the Gram matrix; and the few that have one near the tolerance, where the rounding of the float32 decomposition
    itself counts, get that decomposition.

    Args:
        maps: finite activations ``(N, C, H, W)`` of any float type and scale; cast to float32, also from float64.
        rtol: tolerance relative to the largest singular value; ``None`` is ``max(H, W)`` times the float32 epsilon.

    Returns:
        ``(N, C)`` int64 on the same device: ranks between 0 and ``min(H, W)``, not fractions.

    Raises:
        ValueError: ``maps`` is not 4-D or not of a float type, or holds values that are not finite in float32.

    Source:
        HRank, arXiv 2002.10179, section 3. The official code calls ``matrix_rank`` once per map.

    Example:
        >>> feature_map_rank(torch.eye(3).repeat(1, 2, 1, 1))
        tensor([[3, 3]])
    """
    if maps.ndim != 4 or not maps.is_floating_point():
        raise ValueError(f"maps must be float (N, C, H, W), got {maps.dtype} of shape {tuple(maps.shape)}")
    images, channels, height, width = maps.shape
    if maps.numel() == 0:
        return torch.zeros(images, channels, dtype=torch.int64, device=maps.device)
    with torch.autocast(maps.device.type, enabled=False):
        flat = maps.float().reshape(images * channels, height, width)
        noise = max(height, width) * _EPS
        scale = flat.abs().amax((1, 2))
        if not scale.isfinite().all():
            raise NonFiniteMapsError(
                f"maps of shape {tuple(maps.shape)} hold NaN, inf or values beyond float32; their rank is undefined. "
                "Look at the network's weights and its input."
            )
        finer = rtol is not None and rtol < noise  # than a float64 Gram matrix can tell
        ranks = _svd_rank(flat, rtol) if finer else _gram_rank(flat, scale, rtol, noise)
    return ranks.view(images, channels)


def _gram_rank(maps: Tensor, scale: Tensor, rtol: float | None, noise: float) -> Tensor:
    """Ranks (M,) of maps (M, H, W) whose largest magnitudes are ``scale`` (M,); ``noise``: float32's own error."""
    tolerance = noise if rtol is None else rtol
    above, below = tolerance + 3 * noise, tolerance - 0.75 * noise  # between the two float32 rounding decides
    rows = maps.double() / torch.where(scale > 0, scale, 1.0)[:, None, None]
    if rows.shape[1] > rows.shape[2]:
        rows = rows.mT
    gram = rows @ rows.mT
    ranks, proven = _independent_rows(gram, above)
    rest = (~proven).nonzero().flatten()
    if len(rest):  # fewer columns than rows may be alive: look at the map from the other side
        ranks[rest], proven = _independent_rows(rows[rest].mT @ rows[rest], above)
        rest = rest[~proven]
    recheck = (scale < _SMALLEST) & (scale > 0) | (scale > _LARGEST)
    if len(rest):
        eigenvalues = torch.linalg.eigvalsh(gram[rest])
        eigenvalues = eigenvalues / eigenvalues[:, -1:]
        ranks[rest] = (eigenvalues > above**2).sum(1)
        recheck[rest] |= (eigenvalues > below**2).sum(1) != ranks[rest]
    rest = recheck.nonzero().flatten()
    if len(rest):
        ranks[rest] = _svd_rank(maps[rest], rtol)
    return ranks


def _independent_rows(gram: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Number of non-zero rows, and whether all their singular values provably exceed the relative tolerance.

    The shift uses the trace, which is at least the largest eigenvalue, so that the proof errs on the safe side.
    """
    diagonal = gram.diagonal(dim1=1, dim2=2)
    alive = diagonal > 0
    shift = tolerance**2 * diagonal.sum(1, keepdim=True)
    shifted = gram.clone()
    shifted.diagonal(dim1=1, dim2=2).copy_(torch.where(alive, diagonal - shift, 1.0))
    return alive.sum(1), torch.linalg.cholesky_ex(shifted).info == 0


def _svd_rank(maps: Tensor, rtol: float | None) -> Tensor:
    """Ranks (M,) of maps (M, H, W) by the float32 decomposition, each as if it were computed alone."""
    if maps.is_cpu and maps[0].numel() % 16:  # LAPACK's rounding depends on alignment, so on the neighbours in memory
        return torch.stack([torch.linalg.matrix_rank(one, rtol=rtol) for one in maps])
    return torch.linalg.matrix_rank(maps, rtol=rtol)
