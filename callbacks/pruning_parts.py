"""HRank and FilterSketch for a part of any module: a re-ID encoder, a detector's or a tracker's backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from lit_methods.backbones import TracedPlan, cut_network
from lit_methods.backbones.parts import Joined, find_part, put_part, refuse_pruned, within
from lit_methods.checkpoint_io import read_checkpoint
from lit_methods.contract import checkpoint_class
from lit_methods.filter_sketch.model import Sketcher
from lit_methods.filter_sketch.structure import TracedStructure as Blocks, group_scores
from lit_methods.functional.budget import Allocation, Budget
from lit_methods.functional.rates import round_rate_up
from lit_methods.hrank.functional import rank_scores
from lit_methods.hrank.structure import TracedStructure as Filters


def prune_part(
    module: nn.Module,
    name: str,
    images: Sequence[Tensor],
    *,
    by: Literal["rank", "sketch"] = "rank",
    removed: float | Sequence[float] | None = None,
    target_macs: float | None = None,
    target_params: float | None = None,
    allocation: Allocation = "uniform",
    round_to: int = 1,
    normalize: Literal["l2"] | None = None,
) -> dict[str, Any]:
    """Prune a part of a module in place, by the scores of HRank or the sketches of FilterSketch.

    The channels that the part gives to the rest stay all, as do those of residual streams that reach an output. What
    is left is noted in ``module.hparams["pruned_parts"]``, in plain types, so every checkpoint carries it.

    Args:
        module: such as a trained ``SiamBAN``; its optimisers are to be built afterwards.
        name: of the part, such as ``"model.backbone"``; it is called with one tensor and gives tensors.
        images: batches (N, C, H, W) as the part is given them (``lit_methods.backbones.parts.inputs_of`` notes them).
            Ranks are taken on all of them; sketches look at their size alone.
        by: ``"rank"`` (HRank: the filters whose maps have the lowest mean rank go) or ``"sketch"`` (FilterSketch:
            blocks become narrower inside, their weights are sketches).
        removed: fraction that goes, of every group of channels, or one for each.
        target_macs: in its place: multiply-adds of the part that may be left, a fraction of 1 or a number.
        target_params: the same for its parameters.
        allocation: how a target is shared out, as in ``HRankPruning``.
        round_to: channel counts become multiples of this, where the layer is as wide.
        normalize: of ``"sketch"``, as in ``FilterSketchPruning``.

    Returns:
        The plan of the part, ``TracedPlan.to_dict()``.

    Raises:
        ValueError: no such part, one that is pruned already or cannot be traced; not exactly one of ``removed`` and the
            targets, one out of range or that cannot be met; no images.

    Example:
        >>> from torch import rand
        >>> net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)))
        >>> plan = prune_part(net, "0", [rand(2, 3, 8, 8)], removed=0.5)
        >>> net[0][0].out_channels, net[0][3].out_channels, sorted(plan["layers"])
        (4, 4, ['0', '1', '3'])
    """
    if by not in ("rank", "sketch"):
        raise ValueError(f"by={by!r} must be 'rank' or 'sketch'")
    if sum(given is not None for given in (removed, target_macs, target_params)) != 1:
        raise ValueError(
            f"removed={removed}, target_macs={target_macs}, target_params={target_params}: give exactly one of them"
        )
    if not images:
        raise ValueError("images is empty: give batches (N, C, H, W) as the part sees them, such as those of inputs_of")
    refuse_pruned(module, name)
    part = find_part(module, name)
    whole, size = Joined(part), tuple(images[0].shape[1:])
    plan_at: Callable[[Sequence[float]], TracedPlan]
    structure: Filters | Blocks
    if by == "rank":
        structure = filters = Filters(whole, size)
        ranks = {conv: score.cpu() for conv, score in rank_scores(whole, images, filters.points).items()}
        scores, highest = filters.group_scores(ranks), None
        plan_at = lambda gone: filters.plan(ranks, gone, round_to)  # noqa: E731
    else:
        structure = blocks = Blocks(whole, size)
        scores, highest = group_scores(blocks, whole), [1 - rate for rate in blocks.lowest]
        plan_at = lambda gone: blocks.plan([round_rate_up(1 - rate) for rate in gone], round_to)  # noqa: E731
    if removed is None:
        budget = Budget(target_macs, target_params, allocation)
        rates = budget.rates(lambda gone: structure.shape(plan_at(gone)), scores, input_size=size, highest=highest)
    else:
        rates = [removed] * len(scores) if isinstance(removed, float | int) else list(removed)
        _check_rates(rates, len(scores), name)
    plan = plan_at(rates)
    small: Any = cut_network(whole, plan) if by == "rank" else blocks.sketch(whole, plan, Sketcher(normalize))
    own = within(plan, part)
    put_part(module, name, small.part, own)
    return own.to_dict()


def load_pruned(path: str | Path, module_class: Any = None) -> Any:
    """A module whose checkpoint has pruned parts, or none, rebuilt from the file alone; needs no torch-pruning.

    Args:
        path: of a checkpoint of ours.
        module_class: for classes of other packages, which a file does not name for us.

    Returns:
        The module, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no sound checkpoint, or names no class of ours.
    """
    made = module_class or checkpoint_class(read_checkpoint(path))
    return made.load_from_checkpoint(path, map_location="cpu", weights_only=True)


def _check_rates(rates: Sequence[float], groups: int, name: str) -> None:
    if len(rates) != groups:
        raise ValueError(f"removed has {len(rates)} numbers; {name!r} has {groups} groups of channels")
    if wrong := [rate for rate in rates if not 0 <= rate < 1]:
        raise ValueError(f"removed={wrong[0]} is outside [0, 1): it is the fraction that goes")


__all__ = ["load_pruned", "prune_part"]
