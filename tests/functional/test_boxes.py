"""Areas and overlaps of boxes against plain loops."""

import pytest
import torch
from torch.testing import assert_close

from lit_methods.functional.boxes import box_area, pairwise_iou


def some_boxes(count, seed, dtype=torch.float64):
    drawn = 50 * torch.rand(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cat([drawn[:, :2], drawn[:, :2] + drawn[:, 2:]], 1).to(dtype)


def plain_iou(a, b, one):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + one)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + one)
    areas = [(x2 - x1 + one) * (y2 - y1 + one) for x1, y1, x2, y2 in (a, b)]
    return width * height / (sum(areas) - width * height)


@pytest.mark.parametrize("plus_one", [False, True])
def test_overlaps_are_those_of_a_loop_over_pairs(plus_one):
    a, b = some_boxes(12, 0), some_boxes(9, 1)
    expected = [[plain_iou(x, y, int(plus_one)) for y in b.tolist()] for x in a.tolist()]
    found = pairwise_iou(a, b, plus_one)
    assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (found == 0).any()
    assert_close(pairwise_iou(b, a, plus_one), found.T, rtol=0, atol=1e-15)


def test_overlaps_of_the_evaluation_are_those_of_the_vectors(vectors):
    import numpy as np

    with np.load(vectors / "asfd" / "wider_image.npz", allow_pickle=False) as file:
        pred, gt, expected = (torch.from_numpy(file[key]) for key in ("pred", "gt", "iou_plus1"))
    pred, gt = (torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:4]], 1) for xywh in (pred, gt))
    assert_close(pairwise_iou(pred, gt, plus_one=True), expected, rtol=0, atol=1e-9)


def test_neither_input_is_written_to():
    a, b = some_boxes(3, 0), some_boxes(4, 1)
    kept = a.clone(), b.clone()
    pairwise_iou(a, b, plus_one=True)
    assert torch.equal(a, kept[0])
    assert torch.equal(b, kept[1])


@pytest.mark.parametrize("plus_one", [False, True])
def test_boxes_without_area_or_order_give_no_nan(plus_one):
    odd = torch.tensor([[3.0, 3, 3, 3], [5, 5, 1, 1], [5, 5, 1, 9], [4, 4, 3, 3], [-1e6, -1e6, 1e6, 1e6]])
    overlaps = pairwise_iou(odd, odd, plus_one)
    assert torch.isfinite(overlaps).all()
    assert ((overlaps >= 0) & (overlaps <= 1)).all()
    assert (box_area(odd, plus_one) >= 0).all()
    assert box_area(odd)[:4].tolist() == [0, 0, 0, 0]


def test_float64_stays_and_all_else_becomes_float32():
    double, half, whole = torch.ones(2, 4, dtype=torch.float64), torch.ones(2, 4).half(), torch.ones(2, 4).long()
    assert pairwise_iou(double, half).dtype == pairwise_iou(whole, double).dtype == torch.float64
    assert pairwise_iou(half, whole).dtype == box_area(half).dtype == box_area(whole).dtype == torch.float32
    assert box_area(double).dtype == torch.float64


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_no_boxes_overlap_nothing(n, m):
    assert pairwise_iou(torch.zeros(n, 4), torch.zeros(m, 4)).shape == (n, m)


def test_boxes_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"b must be \(N, 4\) boxes x1, y1, x2, y2, got \(4,\)"):
        pairwise_iou(torch.zeros(1, 4), torch.zeros(4))
    with pytest.raises(ValueError, match=r"boxes must be \(\.\.\., 4\) x1, y1, x2, y2, got \(2, 5\)"):
        box_area(torch.zeros(2, 5))
