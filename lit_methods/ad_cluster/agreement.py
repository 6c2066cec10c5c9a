"""How well clusters agree with true identities; for reports alone."""

import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor


def agreement(labels: Tensor, truth: Tensor) -> tuple[float | None, float | None]:
    """Purity and normalised mutual information of the clustered samples; outliers are left out.

    Args:
        labels: (N,) int64, clusters, -1 for outliers.
        truth: (N,) int64, true identities.

    Returns:
        Purity, the share of samples whose identity is the most frequent one of their cluster, and the mutual
        information divided by the mean of both entropies; both in [0, 1], ``None`` without any cluster.

    Raises:
        ValueError: the lengths differ.

    Example:
        >>> agreement(torch.tensor([0, 0, 0, 1, -1]), torch.tensor([7, 7, 8, 9, 9]))[0]
        0.75
    """
    if labels.shape != truth.shape:
        raise ValueError(f"labels and truth must have one length, got {tuple(labels.shape)} and {tuple(truth.shape)}")
    inside = labels >= 0
    if not inside.any():
        return None, None
    clusters, truth = labels[inside].cpu(), truth[inside].cpu().unique(return_inverse=True)[1]
    counts = torch.zeros(int(clusters.max()) + 1, int(truth.max()) + 1, dtype=torch.int64)
    counts.index_put_((clusters, truth), torch.ones_like(clusters), accumulate=True)
    purity = float(counts.max(1).values.sum()) / len(clusters)
    return purity, float(normalized_mutual_info_score(truth.numpy(), clusters.numpy()))
