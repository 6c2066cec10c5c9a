"""Metrics of attacks against one image after the other in plain Python, however the images are dealt."""

import numpy as np
import pytest
import torch
from torch import nn

from lit_methods.metrics import AttackSuccessRate, MeanQueries, MedianQueries, SuccessAUC

BUDGET = 2000


def all_metrics(**kwargs):
    return {
        "asr": AttackSuccessRate(BUDGET, **kwargs),
        "avg_success": MeanQueries("success", BUDGET, **kwargs),
        "avg_all": MeanQueries("all", BUDGET, **kwargs),
        "median": MedianQueries(BUDGET, **kwargs),
        "auc": SuccessAUC(BUDGET, **kwargs),
    }


def images(count=41):
    """A success above the budget among them."""
    success, queries = torch.rand(count) < 0.6, torch.randint(1, BUDGET + 2, (count,))
    success[3], queries[3] = True, BUDGET + 1
    return success, queries


def expected(success, queries):
    """One image after the other, in plain Python."""
    rows = [(bool(s) and q <= BUDGET, q) for s, q in zip(success.tolist(), queries.tolist(), strict=True)]
    won = [q for s, q in rows if s]
    return {
        "asr": len(won) / len(rows),
        "avg_success": np.mean(won) if won else np.nan,
        "avg_all": np.mean([q for _, q in rows]),
        "median": np.median(won) if won else np.nan,
        "auc": sum(1 - q / BUDGET for q in won) / len(rows),
    }


@pytest.mark.parametrize("case", range(4))
def test_vectors(vectors, case):
    reference = np.load(vectors / "ppba" / "metrics.npz")
    assert reference["max_queries"] == BUDGET
    success, queries = (torch.from_numpy(reference[f"{name}{case}"]) for name in ("success", "queries"))
    values = expected(success, queries)
    for name, metric in all_metrics().items():
        metric.update(success, queries)
        assert metric.compute().dtype == torch.float64
        assert metric.compute().shape == ()
        np.testing.assert_allclose(metric.compute(), reference.get(f"{name}{case}", values[name]), rtol=1e-12)


@pytest.mark.parametrize("successes", [16, 17])  # an even number has two in the middle
def test_any_split_and_any_sharing_gives_the_same(successes):
    success, queries = images()
    count = len(success)
    success[:] = torch.arange(count) <= successes  # with the one above the budget
    queries[:3] = BUDGET  # the last that counts
    values = expected(success, queries)
    for name in values:
        for sizes in ([count], [1] * count, [0, 7, 0, count - 7]):
            metric = all_metrics()[name]
            for part in zip(success.split(sizes), queries.split(sizes), strict=True):
                metric.update(*part)
            np.testing.assert_allclose(metric.compute(), values[name], rtol=1e-12)
            metric.reset()
            metric.update(success, queries)
            np.testing.assert_allclose(metric.compute(), values[name], rtol=1e-12)
        one, two = all_metrics()[name], all_metrics()[name]
        one.update(success[:9], queries[:9])
        two.update(success[9:], queries[9:])
        one.merge_state(two)
        np.testing.assert_allclose(one.compute(), values[name], rtol=1e-12)


def test_a_process_without_images_takes_part():
    success, queries = images()
    for name, value in expected(success, queries).items():
        other = all_metrics()[name]
        other.update(success, queries)
        states = iter(other.metric_state.values())  # torchmetrics gathers state by state, in this order
        mine = all_metrics(
            dist_sync_fn=lambda state, group, states=states: [state, next(states)],
            distributed_available_fn=lambda: True,
        )[name]
        mine.update(torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.int64))
        np.testing.assert_allclose(mine.compute(), value, rtol=1e-12)


def test_nothing_attacked_is_not_a_number():
    for metric in all_metrics().values():
        metric.update(torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.int64))
        assert metric.compute().isnan()
        assert metric.compute().dtype == torch.float64


@pytest.mark.parametrize(
    "convert",
    [
        lambda module: module.half(),
        lambda module: module.float(),
        lambda module: module.to(dtype=torch.bfloat16),  # Lightning's precision="bf16-true"
        lambda module: module.type(torch.float16),
        lambda module: [metric.set_dtype(torch.float32) for metric in module],
    ],
)
def test_conversions_of_the_module_leave_sums_exact(convert):
    spent = 2**53 + 1  # no float64 holds it
    metrics = nn.ModuleList([MeanQueries("all", BUDGET), MedianQueries(BUDGET), SuccessAUC(BUDGET)])
    convert(metrics)
    mean, median, auc = metrics
    mean.update(torch.zeros(3, dtype=torch.bool), torch.tensor([2**53, 1, 0]))
    for metric in (median, auc):
        metric.update(torch.ones(1), torch.tensor([1999]))
    convert(metrics)
    assert mean.spent.item() == spent
    assert mean.compute().item() == pytest.approx(spent / 3, rel=1e-15)
    assert median.compute().item() == 1999
    assert auc.compute().item() == 1 / BUDGET
    mean.reset()
    assert mean.spent.dtype == torch.int64


def test_kinds_of_numbers():
    for success in (torch.tensor([1, 0]), torch.tensor([True, False]), torch.tensor([1, 0], dtype=torch.uint8)):
        rate = AttackSuccessRate(300)
        rate.update(success, torch.tensor([255, 3], dtype=torch.int16))
        assert rate.compute() == 0.5


def test_mistakes():
    for kind in (AttackSuccessRate, MedianQueries, SuccessAUC):
        with pytest.raises(ValueError, match=r"max_queries must be at least 1, .* got 0"):
            kind(0)
    with pytest.raises(ValueError, match=r'on must be "success" .* or "all", got \'succes\''):
        MeanQueries("succes", BUDGET)
    rate = AttackSuccessRate(BUDGET)
    with pytest.raises(ValueError, match=r"\(N,\) each, .* got \(2,\) and \(3,\)"):
        rate.update(torch.ones(2), torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got \(1, 2\) and \(1, 2\)"):
        rate.update(torch.ones(1, 2), torch.ones(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"queries must be whole numbers, got torch\.float32"):
        rate.update(torch.ones(1), torch.ones(1))
    with pytest.raises(ValueError, match="queries must be 0 or more, got -1"):
        rate.update(torch.ones(2), torch.tensor([5, -1]))
    assert rate.images == 0
