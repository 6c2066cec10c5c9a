"""DDL's loss as the paper writes it, one sample and one node after the other; not a test."""

import math


def plain_histogram(sims, nodes, gamma):
    heights = [math.fsum(math.exp(-gamma * (s - t) ** 2) for s in sims) for t in nodes]
    return [h / math.fsum(heights) for h in heights]


def plain_kl(p, q, eps):
    return math.fsum((a + eps) * (math.log(a + eps) - math.log(b + eps)) for a, b in zip(p, q, strict=True))


def plain_cosine(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def plain_hardest(rows, labels=None):
    """Per row, over all rows of another identity."""
    ids = range(len(rows)) if labels is None else labels
    return [
        max(plain_cosine(x, y) for y, other in zip(rows, ids, strict=True) if other != own)
        for x, own in zip(rows, ids, strict=True)
    ]


def plain_loss(neg, pos, weights=(0.1, 0.02, 0.5), nodes=None, gamma=50.0, eps=1e-9, labels=None):
    """Lists of branches, the teacher's first; returns the loss, the KL of positives and of negatives, and the order."""
    nodes = [k / 1000 for k in range(1000)] if nodes is None else nodes
    labels = [None] * len(neg) if labels is None else labels
    neg_sims = [plain_hardest(x, of) for x, of in zip(neg, labels, strict=True)]
    pos_sims = [[plain_cosine(x, y) for x, y in zip(a, b, strict=True)] for a, b in pos]
    pos_kl, neg_kl = (
        [plain_kl(first, plain_histogram(sims, nodes, gamma), eps) for sims in rest]
        for (first, rest) in ((plain_histogram(sims[0], nodes, gamma), sims[1:]) for sims in (pos_sims, neg_sims))
    )
    order = [[math.fsum(n) / len(n) - math.fsum(p) / len(p) for p in pos_sims] for n in neg_sims]
    loss = weights[0] * sum(pos_kl) + weights[1] * sum(neg_kl) + weights[2] * sum(map(sum, order))
    return loss, pos_kl, neg_kl, order
