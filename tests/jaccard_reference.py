"""The widely used re-ranking loop, written plainly from its description: slow, dense, in float64 or in float32."""

import numpy as np


def plain_jaccard(feats, k1=20, k2=6):
    """(N, N) Jaccard distances, and the distances D of each row over its own maximum."""
    feats = np.asarray(feats)
    size = (feats**2).sum(1)
    d2 = np.maximum(size[:, None] + size - 2 * feats @ feats.T, 0)
    np.fill_diagonal(d2, 0)
    distance = d2 / np.maximum(d2.max(1, keepdims=True), np.finfo(d2.dtype).tiny)
    order = distance - 2 * np.eye(len(d2), dtype=d2.dtype)  # a point comes first in its own list
    rank = np.argsort(order, axis=1, kind="stable")
    weight = np.zeros_like(distance)
    for i in range(len(rank)):
        near = reciprocal(rank, i, k1)
        grown = near
        for c in near:
            other = reciprocal(rank, c, int(np.around(k1 / 2)))
            if len(np.intersect1d(other, near)) > 2 / 3 * len(other):
                grown = np.append(grown, other)
        grown = np.unique(grown)
        value = np.exp(-distance[i, grown])
        weight[i, grown] = value / value.sum()
    if k2 > 1:
        weight = np.stack([weight[rank[i, :k2]].mean(0) for i in range(len(rank))])
    columns = [np.nonzero(weight[:, j])[0] for j in range(len(rank))]
    found = np.zeros_like(distance)
    for i in range(len(rank)):
        shared = np.zeros(len(rank), weight.dtype)
        for j in np.nonzero(weight[i])[0]:
            shared[columns[j]] += np.minimum(weight[i, j], weight[columns[j], j])
        found[i] = 1 - shared / (2 - shared)
    return np.maximum(found, 0), distance


def reciprocal(rank, i, k):
    top = rank[i, : k + 1]
    return top[np.nonzero(rank[top, : k + 1] == i)[0]]


def plain_rerank(query, gallery, k1=20, k2=6, lam=0.3):
    """(Q, G): all of both together, cut at the end."""
    jaccard, distance = plain_jaccard(np.concatenate([query, gallery]), k1, k2)
    return ((1 - lam) * jaccard + lam * distance)[: len(query), len(query) :]


def people(count, size, *, images=17, spread=0.5, seed=0, clustered=True):
    """Features like those of a re-ID set: so many images of each person around a place of its own; or plain noise."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, size))
    if clustered:
        noise = spread * noise + rng.normal(size=(-(-count // images), size))[np.arange(count) // images]
    return noise.astype(np.float32)
