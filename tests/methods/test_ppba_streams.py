"""An attack's random numbers: a function of (seed, id, iteration), even or normal, and unrelated to each other."""

import numpy as np
import pytest
import scipy.stats
import torch

from lit_methods.functional.draws import Purpose, uniforms
from lit_methods.ppba.streams import normal_draws, uniform_draws

DRAWS = pytest.mark.parametrize("draw", [uniform_draws, normal_draws])
IDS = torch.tensor([7, 0, -3, 2**40, 12])


def flat(draw, seeds=(0,), ids=(0,), steps=(0,), count=500):
    """One row of numbers for each (seed, id, step)."""
    rows = [draw(seed, torch.tensor(ids), step, (count,)) for seed in seeds for step in steps]
    return torch.cat(rows).numpy()


@DRAWS
def test_company_does_not_matter(draw):
    together = draw(3, IDS, 5, (2, 4))
    assert together.shape == (5, 2, 4)
    assert together.dtype == torch.float64
    for part in ([0], [4, 1], [3, 0, 2], []):
        assert torch.equal(draw(3, IDS[part], 5, (2, 4)), together[part]), part


@DRAWS
def test_neither_what_was_drawn_before_nor_the_global_state_matters(draw):
    first = draw(3, IDS, 5, (8,))
    torch.manual_seed(99)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - that nobody touches it
    draw(3, IDS, 4, (8,))
    assert torch.equal(draw(3, IDS, 5, (8,)), first)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


@DRAWS
def test_the_shape_only_lays_numbers_out(draw):
    assert torch.equal(draw(0, IDS, 1, (2, 3)), draw(0, IDS, 1, (6,)).view(-1, 2, 3))
    assert torch.equal(draw(0, IDS, 1, (6,))[:, :4], draw(0, IDS, 1, (4,)))
    assert draw(0, IDS, 1, ()).shape == (5,)


@DRAWS
def test_every_part_of_the_key_counts(draw):
    seeds, ids, steps = (-1, 0, 1, 2**62), (0, 1, 2, 2**32), (0, 1, 2, 3)
    rows = flat(draw, seeds, ids, steps, count=4)
    assert len(np.unique(rows)) == rows.size == 4**4  # no number comes twice, not even (1, 0, 0) and (0, 1, 0)


@pytest.mark.parametrize("purpose", [purpose for purpose in Purpose if purpose != Purpose.ATTACK])
def test_other_purposes_draw_other_numbers(purpose):
    ours = uniform_draws(1, torch.tensor([2]), 3, (4,)).numpy()
    assert np.array_equal(ours, uniforms(4, Purpose.ATTACK, 1, 2, 3))
    assert not np.isin(ours, uniforms(4, purpose, 1, 2, 3)).any()


@pytest.mark.parametrize(("draw", "law"), [(uniform_draws, scipy.stats.uniform()), (normal_draws, scipy.stats.norm())])
@pytest.mark.parametrize("along", ["seeds", "ids", "steps", "places"])
def test_distribution(draw, law, along):
    """20,000 numbers, most of them along one part of the key."""
    many = range(2000)
    grids = {
        "seeds": {"seeds": many, "count": 10},
        "ids": {"ids": many, "count": 10},
        "steps": {"steps": many, "count": 10},
    }
    numbers = flat(draw, **grids.get(along, {"count": 20000}))
    numbers = numbers.ravel()
    assert len(numbers) == 20000
    assert scipy.stats.kstest(numbers, law.cdf).pvalue > 0.01
    for order in (1, 2, 3, 4):
        deviation = np.sqrt((law.moment(2 * order) - law.moment(order) ** 2) / len(numbers))
        assert abs((numbers**order).mean() - law.moment(order)) < 3.5 * deviation, order
    if draw is uniform_draws:
        assert 0 <= numbers.min() < numbers.max() < 1


@DRAWS
@pytest.mark.parametrize("along", ["seeds", "ids", "steps"])
def test_neighbours_are_unrelated(draw, along):
    rows = flat(draw, **{along: range(40)}, count=500)
    correlations = np.corrcoef(rows)[
        np.triu_indices(40, 1)
    ]  # of 780 pairs, each about normal with deviation 1/sqrt(500)
    assert scipy.stats.kstest(correlations * np.sqrt(500), "norm").pvalue > 0.01
    assert abs(correlations).max() < 4.5 / np.sqrt(500)
    lagged = [abs(np.corrcoef(rows[:-1, shift:].ravel(), rows[1:, : 500 - shift].ravel())[0, 1]) for shift in range(4)]
    assert max(lagged) < 4 / np.sqrt(39 * 497)  # no row is the one before, moved along
