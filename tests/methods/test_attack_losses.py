"""PPBA's losses, the ball and the success curve against the reference vectors and slow loops."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lit_methods.ppba import (
    clip_l2,
    label_score_loss,
    margin_loss,
    success_curve,
)
from tests.methods.toy_models import load

# -- losses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "targeted"), [("margin", False), ("margin_targeted", True)])
def test_margin(vectors, key, targeted):
    case = load(vectors, "margin_loss")
    loss = margin_loss(case["logits"], case["labels"], targeted)
    assert loss.dtype == torch.float64
    np.testing.assert_allclose(loss, case[key], rtol=0, atol=1e-12)
    assert (loss >= 0).all()


@pytest.mark.parametrize(("dtype", "top"), [(torch.float16, 40000.0), (torch.bfloat16, 1.0)])
def test_margin_of_half_precision_is_taken_in_float32(dtype, top):
    logits = torch.tensor([[top, -top], [1.0078125, 256.0]], dtype=dtype)
    exact = logits.double()
    expected = torch.stack([exact[0, 0] - exact[0, 1], exact[1, 1] - exact[1, 0]])
    assert (expected != expected.to(dtype)).any()  # half precision would not do
    loss = margin_loss(logits, torch.tensor([0, 1]))
    assert loss.dtype == torch.float32
    assert torch.equal(loss.double(), expected)


def test_margin_where_logits_are_missing():
    nan, inf = math.nan, math.inf
    rows = [[nan, 1.0, 2.0], [0.0, nan, 2.0], [3.0, -inf, 1.0], [3.0, -inf, -inf], [-inf, 0.0, 1.0]]
    logits, target = torch.tensor(rows), torch.zeros(5, dtype=torch.int64)
    assert_close(margin_loss(logits, target), torch.tensor([nan, nan, 2.0, inf, 0.0]), equal_nan=True)
    assert_close(margin_loss(logits, target, targeted=True), torch.tensor([nan, nan, 0.0, 0.0, inf]), equal_nan=True)


def test_margin_leaves_its_input_alone():
    logits = torch.randn(4, 3)
    before = logits.clone()
    margin_loss(logits, torch.tensor([0, 1, 2, 0]))
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("logits", "target"), [((4,), (4,)), ((4, 1), (4,)), ((4, 3), (3,)), ((4, 3), (4, 1)), ((1, 4, 3), (4,))], ids=str
)
def test_margin_refuses(logits, target):
    with pytest.raises(ValueError, match=r"logits must be \(N, classes\) with two classes or more and target"):
        margin_loss(torch.zeros(logits), torch.zeros(target, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clipping_to_the_ball(dtype):
    z = torch.randn(2, 3, 5, dtype=dtype)
    z[0, 0], z[1, 2] = 0, z[1, 2] * 1e-3
    clipped = clip_l2(z, 1.5)
    assert clipped.dtype == dtype
    for row, now in zip(z.flatten(0, 1).tolist(), clipped.flatten(0, 1).tolist(), strict=True):
        norm = math.sqrt(sum(v * v for v in row))
        expected = row if norm <= 1.5 else [v * 1.5 / norm for v in row]
        np.testing.assert_allclose(now, expected, rtol=1e-6 if dtype == torch.float32 else 1e-14)
        assert norm > 1.5 or now == expected  # inside: not a bit changes
    assert (z.norm(dim=-1) > 1.5).any()
    on_the_sphere = torch.tensor([3.0, 4.0], dtype=dtype)
    assert torch.equal(clip_l2(on_the_sphere, 5.0), on_the_sphere)


def test_label_scores():
    nan = math.nan
    cases = [
        ([("cat", 0.2), ("dog", 0.7)], {"cat", "dog"}, 0.7),
        ([("cat", 0.2), ("cat", 0.6), ("dog", 0.9)], {"cat"}, 0.6),  # a label that comes twice
        ([("sky", 0.9)], {"cat"}, 0.0),
        ([("Cat", 0.9)], {"cat"}, 0.0),
        ([], {"cat"}, 0.0),
        ([("cat", 0.9)], frozenset(), 0.0),
        (None, {"cat"}, nan),
        ([("cat", nan), ("dog", 0.3)], {"cat", "dog"}, nan),
        ([("dog", 0.3), ("cat", nan)], {"cat", "dog"}, nan),  # wherever it stands
        ([("dog", 0.3), ("cat", nan)], {"dog"}, 0.3),
        ([("cat", 1)], {"cat"}, 1.0),
    ]
    pairs, labels, expected = zip(*cases, strict=True)
    loss = label_score_loss(pairs, labels)
    assert_close(loss, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=0, equal_nan=True)
    assert label_score_loss([], []).shape == (0,)


def test_label_scores_want_one_set_per_answer():
    with pytest.raises(ValueError, match=r"pairs.*2.*labels.*1"):
        label_score_loss([[("cat", 0.5)], None], [{"cat"}])


# -- the curve ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(4))
def test_reference_curve(vectors, case):
    reference = load(vectors, "metrics")
    queries, success, thresholds = (reference[f"{name}{case}"] for name in ("queries", "success", "thresholds"))
    budget = int(reference["max_queries"])
    curve = success_curve(success, queries, thresholds, budget)
    assert curve.dtype == torch.float64
    np.testing.assert_allclose(curve, reference[f"curve{case}"], rtol=0, atol=1e-12)
    everywhere = success_curve(success, queries, torch.arange(budget), budget)
    np.testing.assert_allclose(everywhere.mean(), reference[f"auc{case}"], rtol=0, atol=1e-12)  # steps at whole numbers
    last = success_curve(success, queries, torch.tensor([budget]), budget)
    np.testing.assert_allclose(last, reference[f"asr{case}"][None], rtol=0, atol=1e-12)


def test_edges_of_the_curve():
    success, queries = torch.tensor([True, False, True, True]), torch.tensor([1, 1, 100, 101])
    at = torch.tensor([0, 1, 99, 100, 101, 10**6])
    expected = torch.tensor([0, 0.25, 0.25, 0.5, 0.5, 0.5], dtype=torch.float64)  # 101 is more than there are
    assert_close(success_curve(success, queries, at, 100), expected)
    assert_close(success_curve(success.int(), queries, at.double(), 100), expected)
    assert success_curve(success, queries, at[:0], 100).shape == (0,)
    empty = success_curve(success[:0], queries[:0], at, 100)
    assert empty.shape == (6,)
    assert empty.isnan().all()
