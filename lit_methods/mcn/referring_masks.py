"""The mask of what a sentence refers to: its loss, the suppression outside the box, and the way back to the picture."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_methods.functional.arguments import check_choices
from lit_methods.functional.letterbox import letterbox_params
from lit_methods.functional.precision import at_least_float32

ASNLS_MODES = ("adaptive", "soft", "hard", "none")


def res_loss(mask_logits: Tensor, mask: Tensor) -> Tensor:
    """Loss of the masks of a batch: cross-entropy, summed over cells and divided by the samples.

    Args:
        mask_logits: ``(N, 1, m, m)``.
        mask: ``(N, 1, m, m)``, above 0 is foreground; any real type.

    Returns:
        A scalar with a gradient, not weighted; float64 where the logits are, else float32.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        MCN's official code, where a pixel in two parts of one mask has a target of 2; here it is 1.

    Example:
        >>> res_loss(torch.zeros(2, 1, 1, 2), torch.tensor([[[[1, 0]]], [[[0, 2]]]]))
        tensor(1.3863)
    """
    if mask_logits.ndim != 4 or mask_logits.shape[1] != 1 or mask.shape != mask_logits.shape:
        raise ValueError(
            f"mask_logits and mask must both be (N, 1, m, m), got {tuple(mask_logits.shape)} and {tuple(mask.shape)}; "
            "the mask goes to the size of the logits by its nearest pixels first"
        )
    logits = at_least_float32(mask_logits)
    loss = F.binary_cross_entropy_with_logits(logits, (mask > 0).to(logits.dtype), reduction="sum")
    return loss / max(1, len(logits))


def asnls(
    prob: Tensor,
    boxes: Tensor,
    scores: Tensor,
    *,
    lam_au: float = -1.0,
    lam_bu: float = 2.0,
    lam_ad: float = 1.0,
    lam_bd: float = 0.0,
    mode: str = "adaptive",
    soft: tuple[float, float] = (1.5, 0.5),
) -> Tensor:
    """Adaptive soft non-located suppression: mask probabilities go up inside the box and down outside it.

    Inside, both ends included, P is multiplied by lam_au p + lam_bu, outside by lam_ad p + lam_bd, with p the box's
    confidence. So a sure box leaves the inside as it is and the outside, too; an unsure one doubles the inside and
    clears the outside.

    Args:
        prob: ``(N, H, W)`` mask probabilities.
        boxes: ``(N, 4)`` int64 x1, y1, x2, y2 in pixels of the map, see :func:`round_boxes`; what lies beyond the map
            does not count.
        scores: ``(N,)`` confidences in [0, 1].
        lam_au: see above, here and below.
        lam_bu: inside, whatever the confidence.
        lam_ad: outside, times the confidence.
        lam_bd: outside, whatever the confidence.
        mode: ``"adaptive"``; ``"soft"`` has the factors of ``soft``; ``"hard"`` clears what lies outside; ``"none"``
            changes nothing.
        soft: factors inside and outside, for that mode.

    Returns:
        ``(N, H, W)``, not clamped, so up to 2; float64 for float64, else float32.

    Raises:
        ValueError: shapes or types that do not fit, or an unknown mode.

    Source:
        MCN, arXiv 2003.08813, with the constants of the official code; those of ``soft`` are a decision of this
        project, and so is the mode ``"none"``.

    Example:
        >>> prob, box = torch.full((1, 1, 4), 0.5), torch.tensor([[1, 0, 2, 0]])
        >>> asnls(prob, box, torch.tensor([0.5])), asnls(prob, box, torch.tensor([0.5]), mode="hard")
        (tensor([[[0.2500, 0.7500, 0.7500, 0.2500]]]), tensor([[[0.0000, 0.5000, 0.5000, 0.0000]]]))
    """
    check_choices({"mode": mode}, {"mode": ASNLS_MODES})
    if prob.ndim != 3:
        raise ValueError(f"prob must be (N, H, W), got {tuple(prob.shape)}")
    _check_rows(boxes, scores, prob.shape[0])  # len() would fix the batch of an exported graph
    prob = at_least_float32(prob)
    if mode == "none":
        return prob
    rows, columns = (torch.arange(n, device=prob.device) for n in prob.shape[1:])
    left, top, right, bottom = boxes[..., None].unbind(1)  # (N, 1) each
    inside = ((rows >= top) & (rows <= bottom))[:, :, None] & ((columns >= left) & (columns <= right))[:, None]
    if mode == "hard":
        return torch.where(inside, prob, 0)
    if mode == "soft":
        return torch.where(inside, prob * soft[0], prob * soft[1])
    scores = scores.to(prob.dtype)[:, None, None]
    return prob * torch.where(inside, lam_au * scores + lam_bu, lam_ad * scores + lam_bd)


def postprocess_masks(
    logits: Tensor,
    boxes: Tensor,
    scores: Tensor,
    orig_hw: Sequence[tuple[int, int]] | Tensor,
    size: int = 416,
    threshold: float = 0.35,
    mode: str = "adaptive",
) -> tuple[list[Tensor], list[Tensor]]:
    """Masks at the size of the pictures: probabilities, :func:`asnls`, the letterbox cut off, resized, binarised.

    Samples of pictures of one size are resized together.

    Args:
        logits: ``(N, 1, m, m)``.
        boxes: ``(N, 4)`` int64 x1, y1, x2, y2 in pixels of the input, rounded.
        scores: ``(N,)`` their confidences.
        orig_hw: height and width of each picture; a ``(N, 2)`` tensor will do.
        size: side of the input in pixels.
        threshold: foreground is above it.
        mode: of :func:`asnls`.

    Returns:
        ``masks``, (h, w) bool each, and ``probs``, (h, w) what was compared with the threshold, which may exceed 1;
        float64 where the logits are, else float32.

    Raises:
        ValueError: shapes or types that do not fit, or an unknown mode.

    Source:
        MCN's official code: both resizings are bilinear, without antialiasing, as OpenCV's.

    Example:
        >>> logits, box = torch.full((1, 1, 4, 4), 9.0), torch.tensor([[0, 0, 15, 32]])
        >>> masks, probs = postprocess_masks(logits, box, torch.tensor([0.2]), [(2, 4)], size=32)
        >>> masks[0].int(), probs[0]
        (tensor([[1, 1, 0, 0],
                 [1, 1, 0, 0]], dtype=torch.int32), tensor([[1.7998, 1.7998, 0.2000, 0.2000],
                [1.7998, 1.7998, 0.2000, 0.2000]]))
    """
    if logits.ndim != 4 or logits.shape[1] != 1:
        raise ValueError(f"logits must be (N, 1, m, m), got {tuple(logits.shape)}")
    pairs = orig_hw.tolist() if isinstance(orig_hw, Tensor) else orig_hw
    places: dict[tuple[int, int], list[int]] = {}
    for row, (height, width) in enumerate(pairs):
        places.setdefault((int(height), int(width)), []).append(row)
    if len(pairs) != len(logits):
        raise ValueError(f"orig_hw has {len(pairs)} sizes for {len(logits)} masks; give height and width of each")
    if size < 1:
        raise ValueError(f"size={size} must be at least 1 pixel, the side of the input")
    prob = F.interpolate(at_least_float32(logits).sigmoid(), (size, size), mode="bilinear", align_corners=False)
    prob = asnls(prob.squeeze(1), boxes, scores, mode=mode)
    masks, probs = [prob.new_zeros(0)] * len(prob), [prob.new_zeros(0)] * len(prob)
    for (height, width), rows in places.items():
        _, new_w, new_h, left, top = letterbox_params(width, height, size)
        some = prob if len(rows) == len(prob) else prob[torch.tensor(rows, device=prob.device)]
        some = some[:, None, top : top + new_h, left : left + new_w]
        some = F.interpolate(some, (height, width), mode="bilinear", align_corners=False).squeeze(1)
        for row, values, mask in zip(rows, some, some > threshold, strict=True):
            probs[row], masks[row] = values, mask
    return masks, probs


def _check_rows(boxes: Tensor, scores: Tensor, count: int) -> None:
    if boxes.shape != (count, 4) or boxes.is_floating_point():
        raise ValueError(
            f"boxes must be ({count}, 4) whole numbers, as round_boxes gives them, got {tuple(boxes.shape)} of "
            f"{boxes.dtype}"
        )
    if scores.shape != (count,):
        raise ValueError(f"scores must be ({count},), one per box, got {tuple(scores.shape)}")
