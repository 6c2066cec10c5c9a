"""Networks within a budget, by both pruners: the largest there is, for exact counts worked out by hand."""

import numpy as np
import pytest
import torch

from callbacks import FilterSketchPruning, HRankPruning
from lit_methods import FilterSketch
from tests.pruning_fits import Untrainable, fit, kind_of, module_of, prune_at_once
from tests.tiny import DEEP

INNER = {"body.conv1": 16, "body.conv3": 8, "body.conv5": 24}  # of tiny_deep: what FilterSketch can narrow


def kept_cost(counts, params):
    """By hand: a chain of 3x3 convolutions of stride 2 with batch norm, then ten classes."""
    streams, pixels = [3, *counts], [256, 64, 16, 4, 1, 1]
    weights = [9 * a * b for a, b in zip(streams, counts, strict=False)]
    if params:
        return sum(weights) + 2 * sum(counts) + 10 * counts[-1] + 10
    return sum(w * p for w, p in zip(weights, pixels, strict=True)) + 10 * counts[-1]


def sketched_cost(widths, params):
    counts = list(DEEP)
    counts[::2] = widths
    return kept_cost(counts, params)


def fewest(width, n):
    """Filters that a layer of ``n`` keeps at least where allocation is global: nine tenths may go."""
    return max(1, width(n, 0.9))


COSTS = {  # widths that can change, their number at a removed fraction, what a network of such widths costs
    FilterSketchPruning: (INNER.values(), lambda n, gone: int(round(1 - gone, 4) * n), sketched_cost),
    HRankPruning: (DEEP, lambda n, gone: n - int(gone * n), kept_cost),
}


def widths_of(module):
    """Filters of the convolutions that can lose some."""
    convs = INNER if module.hparams["plan"].get("mid") is not None else [f"body.conv{i}" for i in range(1, 7)]
    return [len(module.model.get_parameter(f"{conv}.weight")) for conv in convs]


def pruner(kind, **arguments):
    return kind(**arguments, **({"num_images": 16} if kind is HRankPruning else {}))


def named(value):
    return getattr(value, "__name__", str(value))


KINDS = pytest.mark.parametrize("kind", COSTS, ids=named)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (FilterSketchPruning, {"target_macs": 0.5}),
        (FilterSketchPruning, {"target_macs": 0.95, "keep_ends": True}),
        (FilterSketchPruning, {"target_params": 0.95, "round_to": 4, "keep_ends": True}),
        (FilterSketchPruning, {"target_macs": 0.6, "round_to": 8}),
        (HRankPruning, {"target_macs": 0.5}),
        (HRankPruning, {"target_params": 0.5, "round_to": 8, "keep_ends": True}),
    ],
    ids=named,
)
def test_uniform_targets_are_met_by_the_largest_network_there_is(quick_trainer, capsys, kind, arguments):
    callback = pruner(kind, **arguments)
    module = prune_at_once(quick_trainer, callback)
    full, width, cost = COSTS[kind]
    params, step = "target_params" in arguments, arguments.get("round_to", 1)

    def network(removed):
        ends = (0, len(full) - 1) if arguments.get("keep_ends") else ()
        kept = [n if i in ends else width(n, removed) for i, n in enumerate(full)]
        return [min(n, -(-k // step) * step) for k, n in zip(kept, full, strict=True)]

    limit = cost(list(full), params) * (arguments.get("target_params") or arguments["target_macs"])
    grid = (i / 10_000 for i in range(1, 10_000))
    expected = next(net for removed in grid if cost(net := network(removed), params) <= limit)  # one after another
    assert widths_of(module) == expected
    assert callback.summary()["prune/params" if params else "prune/macs"] == cost(expected, params)

    rates = callback.summary()["rates"]
    rounding = f", round_to={step}" if step > 1 else ""
    said = [line for line in capsys.readouterr().out.splitlines() if "is met by" in line]
    assert said == [
        f'{callback.budget.name}={callback.budget.target:g} is met by {kind.__name__}(rates="{rates}"{rounding})'
    ]
    assert callback.state_dict()["settled"] == callback.settled
    if arguments.get("keep_ends"):
        assert {callback.settled[0], callback.settled[-1]} == {1.0 if kind is FilterSketchPruning else 0.0}


@KINDS
def test_found_rates_give_the_same_plan_again(quick_trainer, kind):
    found = pruner(kind, target_macs=0.4, allocation="global", round_to=4)
    torch.manual_seed(1)
    module = prune_at_once(quick_trainer, found)
    torch.manual_seed(1)
    given = pruner(kind, rates=found.summary()["rates"], round_to=4)
    again = prune_at_once(quick_trainer, given)
    assert again.hparams["plan"] == module.hparams["plan"]
    assert given.settled == found.settled
    assert given.summary()["prune/macs"] <= 0.4 * given.summary()["prune/dense_macs"]


@pytest.mark.parametrize("target", [0.4, 0.15])
def test_sketch_globally_takes_the_weakest_directions_of_all_layers(quick_trainer, target):
    callback, module = (
        FilterSketchPruning(target_macs=target, allocation="global"),
        module_of(FilterSketch, "tiny_deep", warm=True),
    )
    tails = []
    for conv in INNER:
        energy = (
            np.linalg.svd(module.model.get_parameter(f"{conv}.weight").detach().flatten(1).double().numpy())[1] ** 2
        )
        missed = [energy[rank:].sum() / energy.sum() for rank in range(INNER[conv])]
        tails += [(value, conv) for value in missed if value > 1e-12]
    fit(quick_trainer, callback, module, epochs=1, limit_train_batches=1)
    widths, width = dict(INNER), COSTS[FilterSketchPruning][1]
    for _, conv in sorted(tails):
        if sketched_cost(widths.values(), False) <= target * sketched_cost(INNER.values(), False):
            break
        widths[conv] = max(fewest(width, INNER[conv]), widths[conv] - 1)
    assert widths_of(module) == list(widths.values())


def test_hrank_globally_takes_the_lowest_relative_ranks(quick_trainer):
    target = 0.2
    callback = HRankPruning(target_params=target, allocation="global", num_images=16)
    module = prune_at_once(quick_trainer, callback)
    ranks = sorted(
        (score.item(), place)
        for place, scores in enumerate(callback.scores.values())
        for score in scores / scores.max()
    )
    counts, width = list(DEEP), COSTS[HRankPruning][1]
    for _, place in ranks:
        if kept_cost(counts, True) <= target * kept_cost(DEEP, True):
            break
        counts[place] = max(fewest(width, DEEP[place]), counts[place] - 1)
    assert widths_of(module) == counts


@KINDS
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_targets_beyond_reach_are_refused_before_training(quick_trainer, kind, allocation):
    full, width, cost = COSTS[kind]
    least = [1 if allocation == "uniform" else fewest(width, n) for n in full]
    smallest, dense = cost(least, False), cost(list(full), False)

    callback = pruner(kind, target_macs=1e-4, allocation=allocation, at_epoch=1)

    class Never(Untrainable, kind_of(callback)):
        pass

    message = (
        f"target_macs=0.0001 cannot be met: the smallest network that this pruner makes has {smallest:,} of {dense:,}"
    )
    with pytest.raises(ValueError, match=message):
        fit(quick_trainer, callback, module_of(Never, "tiny_deep"))


def test_targets_as_numbers(quick_trainer):
    limit = sketched_cost([8, 4, 12], params=True)
    callback = FilterSketchPruning(target_params=limit)
    assert widths_of(prune_at_once(quick_trainer, callback)) == [8, 4, 12]
    nothing = FilterSketchPruning(target_macs=10**9)
    assert prune_at_once(quick_trainer, nothing).hparams["plan"]["mid"] == {}
