"""HRank's arithmetic: scores from feature maps, filters to keep, and the paper's way to count costs."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lit_methods.backbones.plan import PrunePlan, PrunePoint, find_backbone, planned_channels, prune_points
from lit_methods.functional.complexity import call_hooks, layer_uses
from lit_methods.functional.feature_rank import feature_map_rank
from lit_methods.functional.modes import evaluating
from lit_methods.functional.rates import parse_rates, round_up
from lit_methods.functional.suggestions import nearest

__all__ = [
    "batch_ranks",
    "build_plan",
    "feature_map_rank",
    "hrank_counter",
    "load_rank_scores",
    "parse_compress_rate",
    "prune_count",
    "rank_scores",
    "save_rank_scores",
    "select_filters",
]

_CACHE, _ELSEWHERE = 2**23, 2**28  # bytes of working copies: what a CPU keeps in its cache; what fills a GPU


def parse_compress_rate(text: str) -> list[float]:
    """The pruned fractions in a string such as ``"[0.1]+[0.60]*35"``: the official command line.

    Args:
        text: as ``parse_rates`` reads it.

    Raises:
        ValueError: a term cannot be read, or a rate lies outside [0, 1).

    Example:
        >>> parse_compress_rate("[0.95]+[0.5]*2")
        [0.95, 0.5, 0.5]
    """
    rates = parse_rates(text)
    for rate in rates:
        _check_rate(rate)
    return rates


def prune_count(n: int, rate: float) -> int:
    """How many of ``n`` filters go at this rate: the product of Python floats, cut off as the official code does.

    Args:
        n: filters of the convolution.
        rate: fraction to remove, in [0, 1); at least one filter stays.

    Raises:
        ValueError: a rate outside [0, 1).

    Source:
        HRank, arXiv 2002.10179, official code.

    Example:
        >>> prune_count(12, 0.7), prune_count(100, 0.29)
        (8, 28)
    """
    _check_rate(rate)
    return int(rate * n)


def kept_count(n: int, rate: float, round_to: int = 1) -> int:
    """How many of ``n`` filters stay at this rate.

    Args:
        n: filters of the convolution.
        rate: fraction to remove, in [0, 1).
        round_to: their number becomes the next multiple of this, where there are as many.

    Raises:
        ValueError: a rate outside [0, 1).

    Example:
        >>> kept_count(12, 0.7), kept_count(64, 0.7, round_to=8), kept_count(12, 0.2, round_to=8)
        (4, 24, 12)
    """
    return round_up(n - prune_count(n, rate), round_to, n)


def select_filters(scores: Tensor, rate: float) -> Tensor:
    """The filters that stay: those with the lowest scores go.

    Args:
        scores: (C,) mean ranks.
        rate: fraction to remove, in [0, 1).

    Returns:
        (kept,) int64 ids, rising.

    Raises:
        ValueError: ``scores`` is not a non-empty vector, holds NaN, or the rate lies outside [0, 1).

    Source:
        HRank, arXiv 2002.10179, its objective. The official argsort is unstable; here among equal scores the lower
        id goes first.

    Example:
        >>> select_filters(torch.tensor([3.0, 1.0, 2.0, 1.0]), 0.5)
        tensor([0, 2])
    """
    return best_filters(scores, kept_count(len(scores), rate) if scores.ndim else 0)


def best_filters(scores: Tensor, kept: int) -> Tensor:
    """``select_filters`` for a number instead of a rate.

    Args:
        scores: (C,), higher is better.
        kept: how many stay, at most C.

    Returns:
        (kept,) int64 ids, rising.

    Raises:
        ValueError: ``scores`` is not a non-empty vector, or holds NaN.

    Example:
        >>> best_filters(torch.tensor([3.0, 1.0, 2.0, 1.0]), 3)
        tensor([0, 2, 3])
    """
    if scores.ndim != 1 or len(scores) == 0 or scores.isnan().any():
        raise ValueError(f"scores must be a vector (C,) of numbers, got shape {tuple(scores.shape)}: {scores}")
    return scores.argsort(stable=True)[len(scores) - kept :].sort().values


def batch_ranks(
    model: nn.Module, batches: Iterable[Tensor], points: Sequence[PrunePoint], *, max_bytes: int | None = None
) -> Iterator[dict[str, Tensor]]:
    """Ranks of the maps behind every point, batch by batch, all points in one forward pass.

    Between two batches the model is as the caller left it: no hooks, every submodule in its own mode. Maps that two
    points share are ranked once. Ranks are taken inside the hooks, so that no layer's maps outlive the pass. Autocast
    is switched off: rounding to half precision adds noise to maps, and noise has full rank.

    Args:
        model: the unpruned network; it runs in eval mode without gradients.
        batches: image tensors (N, C, H, W), as the network wants them and on its device.
        points: where to look; leave out those whose rate is 0 to save time.
        max_bytes: bound of the float64 working copies (maps and their Gram matrices) of one step, in bytes; a step
            is never less than one image of one layer. ``None`` is 8 MiB on a CPU, which is fastest there, else 256 MiB.

    Yields:
        Convolution name -> (N, channels) int64 ranks on the model's device.

    Raises:
        ValueError: a point's module does not exist, is not called exactly once, or has other channels; its maps are in
            half precision.

    Source:
        HRank, arXiv 2002.10179. The official code runs one pass per layer and calls ``matrix_rank`` per map.

    Example:
        >>> batches = torch.eye(4).repeat(3, 1, 1, 1).split(2)  # three images of one channel
        >>> list(batch_ranks(nn.Sequential(nn.ReLU()), batches, [PrunePoint("conv", "1", "0", (0, 1))]))
        [{'conv': tensor([[4],
                [4]])}, {'conv': tensor([[4]])}]
    """
    places: dict[str, set[tuple[int, int]]] = {}
    modules = dict(model.named_modules())
    for point in points:
        if point.module not in modules:
            raise ValueError(
                f"the point of {point.conv!r} looks at module {point.module!r}, which the model, a "
                f"{type(model).__name__}, does not have{nearest(point.module, modules)}"
            )
        places.setdefault(point.module, set()).add(point.channels)

    for images in batches:
        found: dict[tuple[str, tuple[int, int]], Tensor] = {}

        def rank(name: str, module: nn.Module, _: Tensor, maps: Tensor, found: dict = found) -> None:
            for start, stop in places[name]:
                if (name, (start, stop)) in found:
                    raise ValueError(f"module {name!r} is called more than once; give each use a module of its own")
                if maps.ndim != 4 or maps.shape[1] < stop:
                    raise ValueError(
                        f"{name!r} puts out {tuple(maps.shape)}, but channels {start} to {stop - 1} of (N, C, H, W) "
                        "are to be ranked; scores belong to the full network: rank before pruning"
                    )
                if maps.dtype in (torch.float16, torch.bfloat16):
                    raise ValueError(
                        f"{name!r} puts out {maps.dtype}, whose rounding raises ranks; rank a float32 copy of the "
                        "model: copy.deepcopy(model).float()"
                    )
                found[name, (start, stop)] = _chunked_rank(maps[:, start:stop], max_bytes)

        exact = torch.autocast(images.device.type, enabled=False)
        with evaluating(model), exact, call_hooks(model, list(places), rank):
            model(images)
        if silent := [point.module for point in points if (point.module, point.channels) not in found]:
            raise ValueError(f"module {silent[0]!r} was not called in the forward pass, so its maps cannot be ranked")
        yield {point.conv: found[point.module, point.channels] for point in points}


def rank_scores(
    model: nn.Module, batches: Iterable[Tensor], points: Sequence[PrunePoint], *, max_bytes: int | None = None
) -> dict[str, Tensor]:
    """Mean rank of every filter's maps over all images, in one pass.

    Args:
        model: the unpruned network; modes and gradients are as before afterwards.
        batches: image tensors (N, C, H, W), as the network wants them and on its device.
        points: ``prune_points(arch)``, or your own.
        max_bytes: bound of the working copies of one step, see ``batch_ranks``.

    Returns:
        Convolution name -> (channels,) float64 score between 0 and the smaller side of the map, on the model's
        device; sums are exact, so batch sizes do not matter.

    Raises:
        ValueError: no image in ``batches``; a point that does not fit the model.

    Source:
        HRank, arXiv 2002.10179: the score of a filter, before its objective.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        >>> rank_scores(model, [torch.zeros(2, 3, 8, 8)], [PrunePoint("0", "1", "1", (0, 4))])["0"].shape
        torch.Size([4])
    """
    sums: dict[str, Tensor] = {}
    images = 0
    for ranks in batch_ranks(model, batches, points, max_bytes=max_bytes):
        images += len(next(iter(ranks.values()), ()))
        for conv, rank in ranks.items():
            total = rank.sum(0, dtype=torch.float64)
            sums[conv] = sums[conv] + total if conv in sums else total
    if images == 0 and points:
        raise ValueError("batches holds no image; scores need at least one (the paper takes 500)")
    return {conv: total / images for conv, total in sums.items()}


def build_plan(arch: str, scores: Mapping[str, Tensor], rates: Sequence[float], *, round_to: int = 1) -> PrunePlan:
    """The filters that stay at these rates.

    Args:
        arch: a key of ``BACKBONES``.
        scores: convolution name -> (channels,), from ``rank_scores``; not needed where the rate removes nothing.
        rates: fractions to remove, in [0, 1), in official order: one per convolution; for GoogLeNet one per stage;
            VGG has 12, a 13th is ignored with a warning.
        round_to: the number of filters that stay becomes the next multiple of this, where there are as many.

    Raises:
        ValueError: a wrong number of rates, a rate outside [0, 1), scores that are missing or of another length.

    Source:
        HRank, arXiv 2002.10179. Stage c4 of GoogLeNet has its own rate (the official counter takes d4's).

    Example:
        >>> scores = {point.conv: torch.arange(point.num_filters) for point in prune_points("resnet20")}
        >>> build_plan("resnet20", scores, [0.75] + [0.0] * 18).keep
        {'conv1': [12, 13, 14, 15]}
    """
    backbone = find_backbone(arch)
    points = prune_points(arch)
    groups = list(dict.fromkeys(point.group for point in points))
    spare = len(rates) - len(groups)
    if not 0 <= spare <= backbone.spare_rates:
        raise ValueError(
            f"{arch} takes {len(groups)} rates, got {len(rates)}; give one fraction to remove per convolution"
            + (" stage" if len(groups) < len(points) else "")
        )
    if spare:
        warnings.warn(
            f"{arch}: the last {spare} of {len(rates)} rates belong to convolutions that are never pruned; ignored",
            stacklevel=2,
        )
    rate_of = dict(zip(groups, rates, strict=False))
    keep: dict[str, list[int]] = {}
    for point in points:
        n = point.num_filters
        kept = kept_count(n, rate_of[point.group], round_to)
        if kept == n:
            continue
        if point.conv not in scores or scores[point.conv].shape != (n,):
            got = tuple(scores[point.conv].shape) if point.conv in scores else "none"
            raise ValueError(f"scores of {point.conv!r} must have shape ({n},), got {got}")
        keep[point.conv] = best_filters(scores[point.conv], kept).tolist()
    return PrunePlan(arch, keep)


def save_rank_scores(path: str | Path, scores: Mapping[str, Tensor]) -> None:
    """Write scores to one file, which ``load_rank_scores`` reads.

    Args:
        path: the file; its name stays as it is, whatever its ending.
        scores: convolution name -> (channels,), which become arrays of these names in the format ``.npz``.

    Raises:
        OSError: it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     save_rank_scores(file.name, {"conv1": torch.arange(16.0)})
        ...     load_rank_scores(file.name, "resnet20")["conv1"].dtype
        torch.float64
    """
    arrays: dict[str, Any] = {conv: score.detach().cpu().numpy() for conv, score in scores.items()}
    with open(path, "wb") as file:  # given a name, NumPy would append .npz to it
        np.savez(file, **arrays)


def load_rank_scores(path: str | Path, arch: str | Sequence[PrunePoint]) -> dict[str, Tensor]:
    """Read scores of a network.

    Args:
        path: what ``save_rank_scores`` wrote, or a folder with the official code's arrays: ``rank_conv<i>.npy``, for
            GoogLeNet ``rank_conv1.npy`` and ``rank_conv<i>_{n1x1,n3x3,n5x5,pool_planes}.npy``.
        arch: a key of ``BACKBONES``, or the points of a network.

    Returns:
        Convolution name -> (channels,) float64; from a file those convolutions that are in it.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: files are missing, names are unknown or lengths do not fit.
    """
    path, points = Path(path), prune_points(arch) if isinstance(arch, str) else arch
    network = arch if isinstance(arch, str) else "this network"
    if path.is_dir():
        files = {point.conv: path / f"rank_conv{point.number}.npy" for point in points}
        if missing := sorted({file.name for file in files.values() if not file.is_file()}):
            raise ValueError(f"path={str(path)!r} is incomplete for {network}: no {', '.join(missing)}")
        arrays = {conv: np.load(file, allow_pickle=False) for conv, file in files.items()}
    else:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
    filters = {point.conv: point.num_filters for point in points}
    for conv, array in arrays.items():
        if conv not in filters:
            raise ValueError(f"{path} has scores of {conv!r}, which {network} does not prune{nearest(conv, filters)}")
        if array.shape != (filters[conv],):
            raise ValueError(f"{path}: scores of {conv!r} must have shape ({filters[conv]},), got {array.shape}")
    return {conv: torch.from_numpy(array.astype(np.float64)) for conv, array in arrays.items()}


def hrank_counter(model: nn.Module, plan: PrunePlan | None, input_size: Sequence[int] = (3, 32, 32)) -> tuple[int, int]:
    """Multiply-adds and parameters by the paper's rule, which under-estimates what pruning saves.

    Per convolution the kept filters count with all their original inputs (only DenseNet's transitions with those that
    are left) and without bias; linear layers count whole, with bias; batch norm counts nothing. Kept biases are
    parameters. ``count_macs`` of the pruned network tells the true cost.

    Args:
        model: the *unpruned* network.
        plan: what stays; ``None`` counts the network as it is.
        input_size: (C, H, W) of one image.

    Raises:
        ValueError: the model is pruned already or is not the plan's network.

    Source:
        HRank, arXiv 2002.10179, official counter. In GoogLeNet stage c4 counts with its own keep set; the official
        counter takes the rate of d4 there.

    Example:
        >>> from lit_methods.backbones import resnet56
        >>> hrank_counter(resnet56(), None)
        (125485706, 848954)
    """
    before = getattr(model, "kept_channels", {})
    if any(ids is not None for pair in before.values() for ids in pair):
        raise ValueError("model is pruned already; the paper's counter works on the full network and a plan")
    after = planned_channels(plan) if plan else {}
    thin = find_backbone(plan.arch).counted_thin if plan else ()
    macs = params = 0
    for name, use in layer_uses(model, input_size).items():
        layer = model.get_submodule(name)
        weight = layer.get_parameter("weight")
        if plan and name not in after:
            raise ValueError(f"the plan is for arch {plan.arch!r}, which has no layer {name!r} as the model has")
        if isinstance(layer, nn.Linear):
            macs += use.positions * weight.numel() + use.outputs
            params += weight.numel() + layer.out_features
            continue
        outputs, inputs = after.get(name, (None, None))
        filters = len(weight) if outputs is None else len(outputs)
        per_filter = weight[0].numel()
        if name in thin and inputs is not None:
            per_filter = per_filter // weight.shape[1] * len(inputs)
        macs += use.positions * filters * per_filter
        params += filters * (per_filter + (layer.bias is not None))
    return macs, params


def _check_rate(rate: float) -> None:
    if not 0 <= rate < 1:
        raise ValueError(f"a compress rate is the fraction of filters to remove and lies in [0, 1), got {rate}")


def _chunked_rank(maps: Tensor, max_bytes: int | None) -> Tensor:
    max_bytes = max_bytes or (_CACHE if maps.is_cpu else _ELSEWHERE)
    _, channels, height, width = maps.shape
    side = min(height, width)
    per_image = 8 * channels * (height * width + 2 * side * side)
    return torch.cat([feature_map_rank(part) for part in maps.split(max(1, max_bytes // per_image))])
