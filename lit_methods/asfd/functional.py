"""The arithmetic of ASFD: anchors, codes, matching, the DRMC loss, detections, and what remains of a search's edges.

Boxes are x1, y1, x2, y2 in pixels. float64 stays float64, all else is computed in float32. Each idea has a file of its
own; the names of all are here.
"""

import torch
from torch import Tensor

from lit_methods.asfd.anchors import decode, encode, make_anchors
from lit_methods.asfd.detections import box_voting, keep_detections
from lit_methods.asfd.losses import (
    REG_LOSSES,
    box_losses,
    diou_loss,
    drmc_loss,
    face_probability,
    margin_softmax_loss,
)
from lit_methods.asfd.matching import match_anchors, match_batch, mine_negatives

__all__ = [
    "REG_LOSSES",
    "box_losses",
    "box_voting",
    "decode",
    "diou_loss",
    "discretize_edges",
    "drmc_loss",
    "encode",
    "face_probability",
    "keep_detections",
    "make_anchors",
    "margin_softmax_loss",
    "match_anchors",
    "match_batch",
    "mine_negatives",
]


@torch.no_grad()
def discretize_edges(weights: Tensor, edges: Tensor, keep: int = 2) -> tuple[Tensor, Tensor]:
    """What a search's graph keeps: the strongest edges into each node, with their strongest operation.

    Args:
        weights: ``(E, O)`` of the operations of each edge, after the softmax.
        edges: ``(E, 2)`` source and destination of each.
        keep: incoming edges of a node that remain: those whose largest weight is largest.

    Returns:
        ``kept_edges`` and ``kept_ops``, ``(K,)`` int64 each: numbers of edges, nodes ascending and within a node
        ascending, and the operation of each.

    Raises:
        ValueError: shapes that do not fit, or ``keep`` below 1.

    Source:
        DARTS's rule. The paper's own could not be read, so this is a decision of this project. Of equal weights the
        first edge and the first operation count.

    Example:
        >>> weights = torch.tensor([[0.6, 0.4], [0.5, 0.5], [0.1, 0.9]])
        >>> discretize_edges(weights, torch.tensor([[0, 3], [1, 3], [2, 3]]))
        (tensor([0, 2]), tensor([0, 1]))
    """
    if weights.ndim != 2 or not weights.shape[1] or edges.shape != (len(weights), 2):
        raise ValueError(
            f"weights and edges must be (E, O) and (E, 2), got {tuple(weights.shape)} and {tuple(edges.shape)}"
        )
    if keep < 1:
        raise ValueError(f"keep={keep} must be at least 1, or nothing would flow into a node")
    best, ops = weights.max(1)
    kept = []
    for node in edges[:, 1].unique():  # sorted
        incoming = (edges[:, 1] == node).nonzero()[:, 0]
        strongest = best[incoming].argsort(descending=True, stable=True)[:keep]
        kept.append(incoming[strongest.sort().values])
    kept_edges = torch.cat(kept) if kept else ops
    return kept_edges, ops[kept_edges]
