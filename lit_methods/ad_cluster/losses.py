"""What AD-Cluster's encoder and generator minimise: the batch-hard triplet, and the loss that wants diverse clusters.

Differences between features are formed before they are squared, so that distances between close points are right in
float32 too. Half precision is computed in float32, outside of autocast, and comes out as float32: as float16 a loss
would overflow where a gradient scaler multiplies it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_methods.functional.precision import at_least_float32

_CLOSEST = 1e-6  # sqrt(1e-12), the smallest distance between two samples
_GUARD = 1e-12  # of a norm


def batch_hard_distances(
    feats: Tensor, labels: Tensor, *, others: Tensor | None = None, other_labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Distance of each sample to its farthest one of the same label and to its nearest one of another label.

    Args:
        feats: the anchors, (N, D).
        labels: (N,) int64, none negative.
        others: candidates in the place of the anchors, (M, D), such as the features of all processes; the anchors have
            to be among them. They get gradients, too, as far as they have a graph.
        other_labels: of the candidates, (M,).

    Returns:
        ``d_ap`` and ``d_an``, (N,) each, Euclidean, at least 1e-6. Only where no other candidate has the label of
        an anchor, its ``d_ap`` is 0. The gradient of a distance below 1e-6 is 0.

    Raises:
        ValueError: shapes or types that do not fit, a negative label, an anchor without a candidate of another label
            or of its own.

    Source:
        open-reid and HHL code, batch-hard. Ours: the search has no graph, only the distances that were found do.

    Example:
        >>> batch_hard_distances(torch.tensor([[0.0], [1.0], [3.0], [7.0]]), torch.tensor([0, 0, 1, 1]))
        (tensor([1., 1., 4., 4.]), tensor([3., 2., 2., 6.]))
    """
    if (others is None) != (other_labels is None):
        raise ValueError("others and other_labels belong together; give both or none of them")
    _check_features(feats, labels, "feats", "labels")
    if others is None or other_labels is None:
        others, other_labels = feats, labels
    else:
        _check_features(others, other_labels, "others", "other_labels")
        if others.shape[1] != feats.shape[1]:
            raise ValueError(f"others have {others.shape[1]} features per sample, feats {feats.shape[1]}")
    same = labels[:, None] == other_labels
    _check_identities(labels, other_labels, same)
    with torch.autocast(feats.device.type, enabled=False):
        feats, others = at_least_float32(feats), at_least_float32(others)
        with torch.no_grad():
            apart = torch.cdist(feats, others, compute_mode="donot_use_mm_for_euclid_dist")
            farthest = apart.masked_fill(~same, -1).argmax(1)
            nearest = apart.masked_fill(same, torch.inf).argmin(1)
        alone = same.sum(1) == 1  # its only candidate is the anchor itself
        d_ap = torch.where(alone, 0, _distance(feats, others[farthest]))
        return d_ap, _distance(feats, others[nearest])


def batch_hard_triplet(
    feats: Tensor,
    labels: Tensor,
    margin: float | None = 0.5,
    *,
    others: Tensor | None = None,
    other_labels: Tensor | None = None,
) -> Tensor:
    """Batch-hard triplet loss: the mean of ``max(0, margin + d_ap - d_an)``.

    Args:
        feats: (N, D).
        labels: (N,) int64, none negative.
        margin: not negative; ``None`` is the soft margin, the mean of ``softplus(d_ap - d_an)``.
        others: as in ``batch_hard_distances``. The mean over processes of this loss and its gradient are those of one
            process with all samples where every process has equally many anchors and ``others`` were gathered with
            their graph.
        other_labels: of the candidates.

    Returns:
        Scalar. Its gradient is zero where all margins hold.

    Raises:
        ValueError: as ``batch_hard_distances``, which has no result for a batch with one identity; a negative margin.

    Source:
        AD-Cluster, L_tri (figure 2); the form is that of open-reid and HHL, the margin U's.

    Example:
        >>> batch_hard_triplet(torch.tensor([[0.0], [1.0], [3.0], [7.0]]), torch.tensor([0, 0, 1, 1]))
        tensor(0.6250)
    """
    return triplet_loss(*batch_hard_distances(feats, labels, others=others, other_labels=other_labels), margin)


def triplet_loss(d_ap: Tensor, d_an: Tensor, margin: float | None = 0.5) -> Tensor:
    """The triplet loss of distances that are known already.

    Args:
        d_ap: of each anchor to its positive, (N,).
        d_an: to its negative, (N,).
        margin: not negative; ``None`` is the soft margin.

    Returns:
        Scalar.

    Raises:
        ValueError: a negative margin.

    Example:
        >>> triplet_loss(torch.tensor([1.0, 2.0]), torch.tensor([1.25, 9.0]))
        tensor(0.1250)
    """
    if margin is not None and not margin >= 0:
        raise ValueError(f"margin={margin} must not be negative; None is the soft margin")
    apart = d_ap - d_an
    return (F.softplus(apart) if margin is None else F.relu(margin + apart)).mean()


def cluster_diversity(gen_feats: Tensor, gen_labels: Tensor, centroids: Tensor) -> Tensor:
    """D_div: the mean distance of generated samples to the centroids of their own clusters.

    Args:
        gen_feats: of generated images, (N, D).
        gen_labels: their pseudo-labels, (N,) int64; rows below 0 are outliers and left out.
        centroids: means of the real members, (C, D); constants.

    Returns:
        Scalar, Euclidean, not squared; 0 without a labelled row. A sample on its centroid has no gradient.

    Raises:
        ValueError: shapes or types that do not fit, a label without a centroid.

    Source:
        AD-Cluster, abstract and figure 2; the formula is inferred.

    Example:
        >>> feats = torch.tensor([[0.0, 3.0], [4.0, 0.0], [9.0, 9.0]])
        >>> cluster_diversity(feats, torch.tensor([0, 0, -1]), torch.zeros(1, 2))
        tensor(3.5000)
    """
    _check_features(gen_feats, gen_labels, "gen_feats", "gen_labels")
    if centroids.ndim != 2 or centroids.shape[1] != gen_feats.shape[1]:
        raise ValueError(
            f"centroids must be (C, {gen_feats.shape[1]}), as gen_feats has it, got {tuple(centroids.shape)}"
        )
    if (gen_labels >= len(centroids)).any():
        raise ValueError(
            f"gen_labels go up to {int(gen_labels.max())}, but there are {len(centroids)} centroids; take labels and "
            "centroids of one clustering"
        )
    with torch.autocast(gen_feats.device.type, enabled=False):
        feats = at_least_float32(gen_feats)
        centroids = centroids.detach().to(feats.dtype)
        labelled = gen_labels >= 0
        if len(centroids) == 0:  # then no row is labelled
            centroids = feats.new_zeros(1, feats.shape[1])
        apart = torch.where(labelled[:, None], feats - centroids[gen_labels.clamp(min=0)], 0)
        distance = torch.linalg.vector_norm(apart, dim=1).clamp(min=_GUARD)
        return torch.where(labelled, distance, 0).sum() / labelled.sum().clamp(min=1)


def diversity_loss(gen_feats: Tensor, gen_labels: Tensor, centroids: Tensor, lam: float = 0.03) -> Tensor:
    """L_div = exp(-lam D_div): pushes generated samples away from their centroids, less the farther they are.

    Args:
        gen_feats: of generated images, (N, D).
        gen_labels: their pseudo-labels, (N,) int64; rows below 0 are left out.
        centroids: (C, D), constants.
        lam: not negative; 0.03 keeps ``lam`` D_div below 1 for features of ResNet-50 that are 10 to 30 apart.

    Returns:
        Scalar in (0, 1]; 1 without a labelled row.

    Raises:
        ValueError: as ``cluster_diversity``; a negative ``lam``.

    Source:
        AD-Cluster, L_div (figure 2); the formula and ``lam`` are inferred.

    Example:
        >>> diversity_loss(torch.tensor([[0.0, 10.0]]), torch.tensor([0]), torch.zeros(1, 2), lam=0.1)
        tensor(0.3679)
    """
    return diversity_weight(cluster_diversity(gen_feats, gen_labels, centroids), lam)


def diversity_weight(diversity: Tensor, lam: float = 0.03) -> Tensor:
    """L_div of a D_div that is known already, such as one over the samples of several processes.

    Args:
        diversity: D_div, a scalar.
        lam: not negative.

    Raises:
        ValueError: a negative ``lam``.

    Example:
        >>> diversity_weight(torch.tensor(10.0), lam=0.1)
        tensor(0.3679)
    """
    if not lam >= 0:
        raise ValueError(f"lam={lam} must not be negative")
    return torch.exp(-lam * diversity)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Row by row, with a gradient of zero where the rows coincide."""
    return (a - b).square().sum(1).clamp(min=_CLOSEST**2).sqrt()


def _check_features(feats: Tensor, labels: Tensor, name: str, label_name: str) -> None:
    if feats.ndim != 2 or not feats.is_floating_point():
        raise ValueError(f"{name} must be (N, D) floating point, got {tuple(feats.shape)} {feats.dtype}")
    if labels.shape != feats.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"{label_name} must be ({len(feats)},) whole numbers, one per row of {name}, got {tuple(labels.shape)} "
            f"{labels.dtype}"
        )


def _check_identities(labels: Tensor, other_labels: Tensor, same: Tensor) -> None:
    # one look at the device for all three
    faults = torch.stack([(other_labels < 0).any() | (labels < 0).any(), same.all(1).any(), ~same.any(1).all()])
    negative, single, absent = faults.tolist()
    if negative:
        raise ValueError("labels hold negative numbers; outliers (-1) and junk have no identity, leave their rows out")
    if single or not len(labels):
        raise ValueError(
            f"labels hold {len(other_labels.unique())} identities; batch-hard triplets need two or more in a batch"
        )
    if absent:
        raise ValueError("others hold no sample with the label of an anchor; the anchors themselves belong among them")
