"""Whose face it is: the nearest of a gallery, and templates of many images as in IJB."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_methods.functional.verification import check_finite

TIE = 1e-12  # cosines that differ by less are equal but for rounding


@torch.no_grad()
def rank1_identification(gallery: Tensor, gallery_labels: Tensor, probes: Tensor, probe_labels: Tensor) -> Tensor:
    """Share of probes whose nearest gallery entry by cosine has their identity.

    Of entries that are equally near, up to rounding (1e-12), the first counts. A probe whose identity is not in the
    gallery is wrong.

    Args:
        gallery: (G, D) floating point, G > 0; rows need not have unit length.
        gallery_labels: (G,) whole numbers.
        probes: (P, D) floating point, P > 0.
        probe_labels: (P,) whole numbers.

    Returns:
        0-d float64, a fraction of 1, on the device of ``probes``.

    Raises:
        ValueError: shapes or types that do not fit, nothing to compare, or embeddings that are not finite.

    Source:
        Rank-1 on SCface as in DDL, arXiv 2002.03662.

    Example:
        >>> gallery, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([7, 8])
        >>> rank1_identification(gallery, labels, torch.tensor([[3.0, 1.0], [2.0, 1.0]]), torch.tensor([7, 8]))
        tensor(0.5000, dtype=torch.float64)
    """
    for name, part, labels in (("gallery", gallery, gallery_labels), ("probes", probes, probe_labels)):
        _check_rows(name, part)
        check_whole(f"{name.removesuffix('s')}_labels", labels, len(part), name)
        if not len(part):
            raise ValueError(f"{name} is empty: {len(gallery)} gallery entries and {len(probes)} probes")
        check_finite(name, part)
    if gallery.shape[1] != probes.shape[1]:
        raise ValueError(f"gallery and probes must have one size D, got {gallery.shape[1]} and {probes.shape[1]}")
    device = probes.device
    nearest, _ = nearest_entries(gallery.to(device), probes)
    return (gallery_labels.to(device)[nearest] == probe_labels.to(device)).double().mean()


@torch.no_grad()
def nearest_entries(gallery: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    """The gallery entry that is nearest to each probe by cosine, of equally near ones (up to 1e-12) the first.

    Args:
        gallery: (G, D) finite floating point, G > 0; rows need not have unit length.
        probes: (P, D) likewise, P > 0, on the same device.

    Returns:
        Places in the gallery, (P,) int64, and the greatest cosines, (P,) float64.

    Example:
        >>> nearest_entries(torch.eye(2), torch.tensor([[3.0, 4.0], [1.0, 1.0]]))
        (tensor([1, 0]), tensor([0.8000, 0.7071], dtype=torch.float64))
    """
    entries, places, cosines = unit_rows(gallery), [], []
    for part in unit_rows(probes).split(max(1, 2**22 // len(gallery))):  # bounds the memory
        cosine = part @ entries.T
        greatest = cosine.amax(1, keepdim=True)
        places.append((cosine >= greatest - TIE).to(torch.uint8).argmax(1))
        cosines.append(greatest.squeeze(1))
    return torch.cat(places), torch.cat(cosines)


@torch.no_grad()
def aggregate_templates(features: Tensor, templates: Tensor, medias: Tensor) -> tuple[Tensor, Tensor]:
    """One unit vector per template: the sum over its media of the mean over the images of each.

    Features are taken as they come. The official default gives L2-normalised ones of the upright image
    (``F.normalize``); its switches are the sum with those of the mirrored image before that, no normalising, and the
    product with the detector's score.

    Args:
        features: (N, D) finite floating point, one row per image, N > 0.
        templates: (N,) whole numbers, the template of each image.
        medias: (N,) whole numbers, its media; one number in two templates is two media.

    Returns:
        (T, D) float64 of length 1 (0 where the sum is), and (T,) int64, the ids of the templates, ascending.

    Raises:
        ValueError: shapes or types that do not fit, no image, or features that are not finite.

    Source:
        The official evaluation of IJB (TFace), which loops over templates and media. Here an image weighs 1 / images of
        its media and the weighted rows are added up, which differs by rounding.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
        >>> aggregate_templates(features, torch.tensor([5, 5, 5, 2]), torch.tensor([1, 1, 2, 1]))
        (tensor([[0.0000, 1.0000],
                [0.7071, 0.7071]], dtype=torch.float64), tensor([2, 5]))
    """
    _check_rows("features", features)
    for name, part in (("templates", templates), ("medias", medias)):
        check_whole(name, part, len(features), "features")
    if not len(features):
        raise ValueError("features is empty; give the images of at least one template")
    check_finite("features", features)
    ids, template = templates.to(features.device).long().unique(return_inverse=True)
    kinds, media = medias.to(features.device).unique(return_inverse=True)
    _, group, images = (template * len(kinds) + media).unique(return_inverse=True, return_counts=True)
    order = template.argsort(stable=True)
    first = torch.searchsorted(template[order], torch.arange(len(ids), device=features.device))
    weight = 1 / images[group[order]].double()
    total = torch.nn.functional.embedding_bag(
        order, features.double(), first, mode="sum", per_sample_weights=weight
    )  # fmt: skip
    return unit_rows(total), ids


@torch.no_grad()
def template_scores(template_features: Tensor, template_ids: Tensor, p1: Tensor, p2: Tensor) -> Tensor:
    """Dot products of pairs of templates.

    Args:
        template_features: (T, D) floating point.
        template_ids: (T,) whole numbers, each once.
        p1: (P,) whole numbers, the first template of each pair by its id.
        p2: (P,) whole numbers, the second.

    Returns:
        (P,) float64, on the device of ``template_features``.

    Raises:
        ValueError: shapes or types that do not fit, an id that comes twice, or a pair of a template that is not there.

    Source:
        The official evaluation of IJB (TFace).

    Example:
        >>> features, ids = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([2, 5])
        >>> template_scores(features, ids, torch.tensor([5, 5]), torch.tensor([2, 5]))
        tensor([0.6000, 1.0000], dtype=torch.float64)
    """
    _check_rows("template_features", template_features)
    check_whole("template_ids", template_ids, len(template_features), "template_features")
    check_whole("p1", p1, p1.numel(), "pairs")
    check_whole("p2", p2, len(p1), "p1")
    device = template_features.device
    ids, order = template_ids.to(device).long().sort(stable=True)
    if (again := ids[1:] == ids[:-1]).any():
        raise ValueError(f"template_ids has {int(ids[1:][again][0])} more than once; each template has one row")
    pairs = torch.stack([p1.to(device).long(), p2.to(device).long()])
    place = torch.searchsorted(ids, pairs).clamp(max=max(len(ids) - 1, 0))
    missing = ids[place] != pairs if len(ids) else torch.ones_like(pairs, dtype=torch.bool)
    if missing.any():
        raise ValueError(
            f"template {int(pairs[missing][0])} of p1 and p2 is not among the {len(ids)} template_ids "
            f"({len(pairs[missing].unique())} such); aggregate the images of every template that is paired"
        )
    features = template_features.double()
    a, b = order[place]
    # what is multiplied at a time fits the cache of a CPU, or fills a GPU
    rows = max(1, (2**17 if device.type == "cpu" else 2**26) // max(1, features.shape[1]))
    scores = features.new_empty(len(a))
    for left, right, out in zip(a.split(rows), b.split(rows), scores.split(rows), strict=True):
        torch.sum(features.index_select(0, left).mul_(features.index_select(0, right)), 1, out=out)
    return scores


def unit_rows(rows: Tensor) -> Tensor:
    """Rows of length 1 in float64; rows of zeros stay so.

    Args:
        rows: (N, D) floating point.

    Returns:
        (N, D) float64.

    Example:
        >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]], dtype=torch.float64)
    """
    rows = (rows.cpu() if rows.device.type == "mps" else rows).double()  # Apple's GPUs have no float64
    length = rows.norm(dim=1, keepdim=True)
    return rows / torch.where(length == 0, 1.0, length)


def check_whole(name: str, values: Tensor, count: int, of: str) -> None:
    """Raise ValueError where values are not (count,) whole numbers."""
    if values.ndim != 1 or len(values) != count:
        raise ValueError(f"{name} must be ({count},), as many as {of}, got {tuple(values.shape)}")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"{name} must be whole numbers such as int64, got {values.dtype}")


def _check_rows(name: str, rows: Tensor) -> None:
    if rows.ndim != 2 or not rows.is_floating_point():
        raise ValueError(f"{name} must be (N, D) floating point, got {tuple(rows.shape)} of {rows.dtype}")
