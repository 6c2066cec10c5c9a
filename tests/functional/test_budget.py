"""A budget takes away as little as it must: against every network there is."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from lit_methods.functional.budget import GRID, Budget

WIDTHS = (8, 12, 10)


def chain(widths):
    """Linear layers, whose parameters and multiply-adds are the same number."""
    sizes = [4, *widths, 3]
    return nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(sizes))).to("meta")


def cost(widths):
    sizes = [4, *widths, 3]
    return sum(a * b for a, b in itertools.pairwise(sizes))


def left(rates):
    """Removing int(rate * n), as HRank counts; a quotient times its divisor may end just below the whole number."""
    return [n - int(rate * n + 1e-9) for n, rate in zip(WIDTHS, rates, strict=True)]


def network_at(rates):
    return chain(left(rates))


def find(scores=None, highest=None, **arguments):
    scores = [torch.zeros(n) for n in WIDTHS] if scores is None else scores
    return Budget(**arguments).rates(network_at, scores, input_size=(4,), highest=highest)


def uniform(step, whole=()):
    return [0.0 if i in whole else step / GRID for i in range(3)]


@pytest.mark.parametrize("name", ["target_macs", "target_params"])
@pytest.mark.parametrize(
    ("target", "keep_ends"), [(0.999, False), (0.7, False), (0.31, False), (0.1, False), (0.9, True), (0.31, True)]
)
def test_uniform_is_the_first_rate_of_the_grid_that_will_do(name, target, keep_ends):
    whole = (0, 2) if keep_ends else ()
    expected = next(s for s in range(GRID) if cost(left(uniform(s, whole))) <= target * cost(WIDTHS))
    assert find(**{name: target}, keep_ends=keep_ends) == uniform(expected, whole)


def test_targets_above_one_are_numbers():
    exact = cost(left(uniform(5000)))
    assert cost(left(find(target_params=exact))) == exact
    assert cost(left(find(target_params=exact - 1))) < exact
    assert find(target_macs=float(cost(WIDTHS))) == find(target_macs=10**9) == find(target_macs=1) == [0.0] * 3


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("target", "keep_ends"), [(0.9, False), (0.5, False), (0.1, False), (0.5, True)])
def test_global_takes_the_lowest_scores_of_all_and_no_more_than_it_must(seed, target, keep_ends):
    generator = np.random.default_rng(seed)
    scores = [generator.integers(0, 6, n) / 5 for n in WIDTHS]  # with ties: the earlier group goes first
    order = sorted((score, group) for group, values in enumerate(scores) for score in values)
    widths, fewest = list(WIDTHS), left([0.9] * 3)  # nine tenths of a group may go
    for _, group in order:
        if cost(widths) <= target * cost(WIDTHS):
            break
        if not (keep_ends and group in (0, 2)) and widths[group] > fewest[group]:
            widths[group] -= 1
    rates = find([torch.from_numpy(s) for s in scores], target_params=target, allocation="global", keep_ends=keep_ends)
    assert left(rates) == widths


def test_global_depends_on_the_order_of_scores_alone():
    scores = [torch.rand(n) for n in WIDTHS]
    plain = find(scores, target_macs=0.5, allocation="global")
    assert find([s**3 for s in scores], target_macs=0.5, allocation="global") == plain
    assert find([s.flip(0) for s in scores], target_macs=0.5, allocation="global") == plain
    assert find([s.float() for s in scores], target_macs=0.5, allocation="global") == plain
    low = [scores[0], scores[1] - 1, scores[2]]
    assert find(low, target_macs=0.8, allocation="global")[::2] == [0.0, 0.0]


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_no_group_goes_beyond_its_highest_fraction(allocation):
    scores = [torch.arange(n) / n for n in WIDTHS]
    rates = find(scores, highest=[0.25, 0.5, 0.9], target_params=0.3, allocation=allocation)
    assert [a <= b for a, b in zip(rates, [0.25, 0.5, 0.9], strict=True)] == [True] * 3
    smallest = cost(left([0.25, 0.5, 0.9]))
    assert cost(left(find(scores, highest=[0.25, 0.5, 0.9], target_params=smallest, allocation=allocation))) == smallest
    with pytest.raises(ValueError, match=f"target_params={smallest - 1} cannot be met: .* has {smallest} of 278, that"):
        find(scores, highest=[0.25, 0.5, 0.9], target_params=smallest - 1, allocation=allocation)


def test_beyond_reach():
    message = (
        r"target_macs=0\.01 cannot be met: .* this pruner makes has 9 of 278, that is 0\.0324; give a larger target"
    )
    with pytest.raises(ValueError, match=message):
        find(target_macs=0.01)
    with pytest.raises(ValueError, match=r"has 80 of 278, that is 0\.2878; try keep_ends=False"):
        find(target_macs=0.2, keep_ends=True)
    fewest = cost(left([0.9] * 3))
    with pytest.raises(
        ValueError, match=f"target_macs=0.01 cannot be met: the smallest network that this pruner makes has {fewest} of"
    ):
        find(target_macs=0.01, allocation="global")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "target_macs=None and target_params=None: give exactly one"),
        ({"target_macs": 0.5, "target_params": 0.5}, r"target_macs=0\.5 and target_params=0\.5: give exactly one"),
        ({"target_macs": 0}, "target_macs=0 must be positive"),
        ({"target_params": -0.5}, r"target_params=-0\.5 must be positive"),
        ({"target_params": float("nan")}, "target_params=nan must be positive"),
        ({"target_macs": 0.5, "allocation": "Global"}, "allocation='Global' must be 'uniform' or 'global'"),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Budget(**arguments)
