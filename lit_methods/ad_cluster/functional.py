"""The arithmetic of AD-Cluster in one place; each function lives in a small file of its own kind.

Features are (N, D), results have their dtype and device; labels are (N,) int64, -1 for outliers; losses are scalars
with their gradient.
"""

from lit_methods.ad_cluster.clusters import cluster_centroids, dbscan_pseudo_labels, select_eps
from lit_methods.ad_cluster.jaccard import k_reciprocal_jaccard, k_reciprocal_rerank, source_distance_term
from lit_methods.ad_cluster.losses import batch_hard_distances, batch_hard_triplet, cluster_diversity, diversity_loss
from lit_methods.ad_cluster.star_gan import gradient_penalty, stargan_d_loss, stargan_g_loss
from lit_methods.functional.ranking import RankingResult, evaluate_ranking

__all__ = [
    "RankingResult",
    "batch_hard_distances",
    "batch_hard_triplet",
    "cluster_centroids",
    "cluster_diversity",
    "dbscan_pseudo_labels",
    "diversity_loss",
    "evaluate_ranking",
    "gradient_penalty",
    "k_reciprocal_jaccard",
    "k_reciprocal_rerank",
    "select_eps",
    "source_distance_term",
    "stargan_d_loss",
    "stargan_g_loss",
]
