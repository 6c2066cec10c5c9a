"""Where attention lies: over the words of a sentence, and over the cells of the two tasks, which should agree."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_methods.functional.precision import at_least_float32

NORM_FLOOR = 1e-6  # of the squared length of a feature, as in the official code


def attention_pool(
    h: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None = None, *, dropout: float = 0.0
) -> Tensor:
    """A sentence's vector from those of its words: a mean over time with weights of its own for each channel.

    Z = tanh(H W + b), a = softmax of Z over time, f = the sum over time of a H.

    Args:
        h: ``(N, T, C)``, the words.
        weight: ``(C, C)``, out and in, as that of ``nn.Linear``.
        bias: ``(C,)``.
        mask: ``(N, T)`` bool, true where there is a word; ``None`` takes all, padding too. A row without any word is
            pooled as if it had no mask.
        dropout: share of Z that is zeroed, in training.

    Returns:
        ``(N, C)``; half precision becomes float32.

    Raises:
        ValueError: shapes that do not fit, or a mask that is not bool.

    Source:
        MCN's official code, which does not mask padding.

    Example:
        >>> words = torch.tensor([[[1.0], [3.0], [8.0]]])
        >>> attention_pool(words, torch.zeros(1, 1), torch.zeros(1))
        tensor([[4.]])
        >>> attention_pool(words, torch.zeros(1, 1), torch.zeros(1), torch.tensor([[True, True, False]]))
        tensor([[2.]])
    """
    if h.ndim != 3 or weight.shape != 2 * h.shape[2:] or bias.shape != h.shape[2:]:
        raise ValueError(
            f"h must be (N, T, C), weight (C, C) and bias (C,), got {tuple(h.shape)}, {tuple(weight.shape)} and "
            f"{tuple(bias.shape)}"
        )
    h = at_least_float32(h)
    z = at_least_float32(F.linear(h, weight.to(h.dtype), bias.to(h.dtype))).tanh()
    z = F.dropout(z, dropout, training=dropout > 0)
    if mask is not None:
        if mask.shape != h.shape[:2] or mask.dtype != torch.bool:
            raise ValueError(
                f"mask must be {tuple(h.shape[:2])} bool, true for words, got {tuple(mask.shape)} of {mask.dtype}"
            )
        z = z.masked_fill(~(mask | ~mask.any(1, keepdim=True))[..., None], -torch.inf)
    return (z.softmax(1) * h).sum(1)


def spatial_attention(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Where a task looks: the softmax over all cells of a 1x1 convolution to one channel.

    Args:
        features: ``(N, d, h, w)``, GARAN's attention features.
        weight: ``(d,)`` of the convolution.
        bias: ``(1,)``, which the softmax cancels.

    Returns:
        ``(N, h, w)``, each with the sum 1; float64 for float64, else float32, also under autocast.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        MCN, arXiv 2003.08813, E_s and E_c of the consistency energy, as in the official code.

    Example:
        >>> spatial_attention(torch.tensor([[[[0.0, 0.0], [0.0, 2.0]]]]), torch.ones(1), torch.zeros(1))
        tensor([[[0.0963, 0.0963], [0.0963, 0.7112]]])
    """
    _check_map("features", features, weight, bias)
    with torch.autocast(features.device.type, enabled=False):
        features = at_least_float32(features)
        attention = _attention(features.flatten(2), weight.to(features.dtype), bias.to(features.dtype))
    return attention.unflatten(1, features.shape[2:])


def _attention(cells: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(N, P) of cells (N, d, P)."""
    return (weight @ cells + bias).softmax(1)


def consistency_energy(
    f_s: Tensor, f_c: Tensor, w_s: Tensor, b_s: Tensor, w_c: Tensor, b_c: Tensor, *, eps: float = 1e-6
) -> Tensor:
    """How much the two tasks attend to the same: C = sum over i, j of E_s(i) T(i, j) E_c(j).

    E are the attentions of :func:`spatial_attention`, T(i, j) = (cos(f_s_i, f_c_j) + 1) / 2, clipped to
    [eps, 1 - eps], over all pairs of a cell i of the one map and a cell j of the other.

    Args:
        f_s: ``(N, d, h3, w3)``, attention features of the segmentation.
        f_c: ``(N, d, h1, w1)``, of the box; the two maps may differ in size.
        w_s: ``(d,)`` of the 1x1 convolution for ``f_s``.
        b_s: ``(1,)``.
        w_c: ``(d,)``, for ``f_c``.
        b_c: ``(1,)``.
        eps: of the clipping; what is clipped has no gradient.

    Returns:
        ``(N,)`` in (0, 1), with a gradient; float64 where a map is, else float32, also under autocast.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        MCN, arXiv 2003.08813, consistency energy maximization. Scale and shift of the cosine are both 1/2, as in the
        official code; so is the floor of squared lengths, 1e-6, below which a feature counts less.

    Example:
        >>> one = torch.ones(1, 2, 1, 1)
        >>> other = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
        >>> weights = torch.ones(2), torch.zeros(1), torch.ones(2), torch.zeros(1)
        >>> consistency_energy(one, one, *weights), consistency_energy(one, other, *weights)
        (tensor([1.0000]), tensor([0.5000]))
    """
    _check_map("f_s", f_s, w_s, b_s)
    _check_map("f_c", f_c, w_c, b_c)
    if f_s.shape[:2] != f_c.shape[:2]:
        raise ValueError(
            f"f_s and f_c must agree in samples and channels (N, d), got {tuple(f_s.shape)} and {tuple(f_c.shape)}"
        )
    with torch.autocast(f_s.device.type, enabled=False):
        s, c = at_least_float32(f_s).flatten(2), at_least_float32(f_c).flatten(2)
        dtype = torch.promote_types(s.dtype, c.dtype)
        s, c = s.to(dtype), c.to(dtype)
        e_s, e_c = (_attention(x, w.to(dtype), b.to(dtype)) for x, w, b in ((s, w_s, b_s), (c, w_c, b_c)))
        alike = (_unit(s).mT @ _unit(c)).add_(1).div_(2).clamp(eps, 1 - eps)  # (N, P, Q); nothing keeps the cosines
        return (e_s * (alike @ e_c[..., None]).squeeze(-1)).sum(1)


def _unit(cells: Tensor) -> Tensor:
    return cells * cells.square().sum(1, keepdim=True).clamp(min=NORM_FLOOR).rsqrt()


def consistency_energy_loss(energy: Tensor, *, eps: float = 1e-6) -> Tensor:
    """The loss that maximises the energy: -1/N sum log(C_n + eps).

    Args:
        energy: ``(N,)``, see :func:`consistency_energy`.
        eps: added before the logarithm.

    Returns:
        A scalar with a gradient, 0 for N = 0; float64 for float64, else float32.

    Raises:
        ValueError: ``energy`` is not (N,).

    Source:
        MCN, arXiv 2003.08813, with the eps of the official code.

    Example:
        >>> consistency_energy_loss(torch.tensor([0.5, 1.0]))
        tensor(0.3466)
    """
    if energy.ndim != 1:
        raise ValueError(f"energy must be (N,), one per sample, got {tuple(energy.shape)}")
    return -(at_least_float32(energy) + eps).log().sum() / max(1, len(energy))


def _check_map(name: str, features: Tensor, weight: Tensor, bias: Tensor) -> None:
    if features.ndim != 4 or weight.shape != features.shape[1:2] or bias.shape != (1,):
        raise ValueError(
            f"{name} must be (N, d, h, w), its weight (d,) and its bias (1,), got {tuple(features.shape)}, "
            f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        )
