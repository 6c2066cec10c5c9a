"""Metrics of boxes and masks against the official vectors and a plain loop; the same from any batches and processes."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lit_methods.metrics import GroundingAccuracy, InconsistencyError, MaskIoU, MaskPrecision
from lit_methods.metrics.referring import box_ious, mask_counts, mask_ious
from tests.forked import answers_of
from tests.vector_files import tensors

KINDS = {
    "acc": (GroundingAccuracy, ()),
    "miou": (MaskIoU, ()),
    "oiou": (MaskIoU, ("overall",)),
    "prec": (MaskPrecision, ()),
    "ie": (InconsistencyError, ()),
}


@pytest.fixture
def known(vectors):
    return tensors(vectors / "mcn" / "metrics.npz")


def some_sentences(count=30, seed=0):
    """Found and true boxes, and masks of many sizes: lists."""
    draw = torch.Generator().manual_seed(seed)
    corner, sides = (torch.randint(20, (count, 2), generator=draw) for _ in range(2))
    target = torch.cat([corner, corner + sides], 1) + torch.rand(count, 4, generator=draw)
    pred = (target + 6 * torch.rand(count, 4, generator=draw) * torch.tensor([-1, -1, 1, 1])).round().long()
    sizes = torch.randint(1, 40, (count, 2), generator=draw).tolist()
    truth = [(torch.rand(h, w, generator=draw) < 0.6).to(torch.uint8) for h, w in sizes]
    found = [0.4 * mask + 0.45 * torch.rand(mask.shape, generator=draw) for mask in truth]
    found[3], truth[3], truth[4] = torch.zeros(5, 6), torch.zeros(5, 6, dtype=torch.uint8), torch.zeros_like(truth[4])
    return pred, target, found, truth


def updated(kind, pred, target, found, truth):
    cls, arguments = KINDS[kind]
    metric = cls(*arguments)
    metric.update(*((pred, target) if kind in ("acc", "ie") else ()), *((found, truth) if kind != "acc" else ()))
    return metric


def values(metric):
    found = metric.compute()
    found = found if isinstance(found, dict) else {"": found}
    assert {(v.dtype, v.shape) for v in found.values()} == {(torch.float64, ())}
    return {name: float(value) for name, value in found.items()}


def plain(pred, target, found, truth):
    """All figures by a loop over pixels and boxes."""
    boxes, masks, pixels = [], [], np.zeros(2)
    for a, b, p, t in zip(pred.tolist(), target.double().tolist(), found, truth, strict=True):
        inter = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
        union = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b)) - inter
        boxes.append((inter + 1e-7) / (union + 1e-7))
        p, t = p.numpy() > 0.35, t.numpy() > 0
        both, either = (p & t).sum(), (p | t).sum()
        masks.append((both + 1e-10) / (either + 1e-10))
        pixels += both, either
    boxes, masks = np.array(boxes), np.array(masks)
    limits = [k / 100 for k in range(50, 100, 5)]
    return {
        "acc": {"": (boxes > 0.5).mean()},
        "miou": {"": masks.mean()},
        "oiou": {"": pixels[0] / pixels[1]},
        "prec": {f"prec@{x:.2f}": (masks > x).mean() for x in limits},
        "ie": {"": ((boxes > 0.5) != (masks > 0.5)).mean()},
    }


# -- against others ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_list", [False, True])
def test_figures_are_those_of_the_official_code(known, as_list):
    masks = known["pred_prob"], known["gt_mask"]
    if as_list:
        masks = tuple(map(list, masks))
    found = {kind: updated(kind, known["pred_box_xyxy"], known["gt_box_xyxy"], *masks) for kind in KINDS}
    for kind, key in (("acc", "acc"), ("miou", "mean_iou"), ("oiou", "overall_iou"), ("ie", "inconsistency_error")):
        assert values(found[kind])[""] == pytest.approx(float(known[key]), rel=0, abs=1e-9)
    precision = values(found["prec"])
    assert list(precision) == [f"prec@{x:.2f}" for x in known["prec_thresholds"].tolist()]
    assert list(precision.values()) == pytest.approx(known["prec_at"].mean(0).tolist(), rel=0, abs=1e-9)


def test_overlaps_are_those_of_the_official_code(known):
    boxes = box_ious(known["pred_box_xyxy"], known["gt_box_xyxy"])
    assert_close(boxes, known["det_iou"], rtol=0, atol=1e-9)
    assert torch.equal((boxes > 0.5).long(), known["det_correct"])
    masks = mask_ious(*mask_counts(known["pred_prob"], known["gt_mask"]))
    assert_close(masks, known["mask_iou"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_those_of_a_plain_loop_in_batches_of_any_size(kind):
    rows = some_sentences()
    expected = plain(*rows)[kind]
    assert values(updated(kind, *rows)) == pytest.approx(expected, rel=0, abs=1e-12)
    metric = updated(kind, *(part[:7] for part in rows))
    for start, end in ((7, 7), (7, 8), (8, 30)):
        batch = [part[start:end] for part in rows]
        metric.update(*({"acc": batch[:2], "ie": batch}.get(kind, batch[2:])))
    assert values(metric) == pytest.approx(expected, rel=0, abs=1e-12)
    metric.reset()
    assert all(np.isnan(value) for value in values_of_nothing(metric).values())


def values_of_nothing(metric):
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        return values(metric)


# -- edges ------------------------------------------------------------------------------------------------------------


def test_an_overlap_of_exactly_one_half_is_right():
    whole, half = torch.tensor([[3, 5, 303, 205]]), torch.tensor([[3.0, 5, 303, 105]])
    assert values(updated("acc", whole, half, None, None)) == {"": 1}
    assert values(updated("acc", whole, half - torch.tensor([0, 0, 0, 0.01]), None, None)) == {"": 0}
    mask = torch.zeros(1, 20, 20)
    mask[:, :10] = 1
    precision = values(updated("prec", None, None, torch.ones(1, 20, 20), mask))
    assert precision["prec@0.50"] == 1
    assert not any(value for name, value in precision.items() if name != "prec@0.50")
    assert values(updated("ie", whole, half, torch.ones(1, 20, 20), mask)) == {"": 0}


def test_boxes_apart_and_boxes_without_area():
    pred = torch.tensor([[0, 0, 5, 5], [2, 2, 2, 9], [7, 7, 7, 7], [9, 9, 4, 4]])
    target = torch.tensor([[6.0, 0, 9, 5], [0, 0, 9, 9], [7, 7, 7, 7], [0, 0, 20, 20]])
    assert_close(box_ious(pred, target), torch.tensor([0, 0, 1, 0]).double(), rtol=0, atol=1e-8)


def test_boxes_that_are_no_numbers_are_wrong():
    pred = torch.tensor([[torch.nan, 0, 5, 5], [-torch.inf, 0, torch.inf, 5], [torch.inf] * 4, [0, 0, 5, 5]])
    target = torch.tensor([[0.0, 0, 5, 5]]).expand(4, 4)
    assert box_ious(pred, target).tolist() == [0, 0, 0, 1]
    assert values(updated("acc", pred, target, None, None)) == {"": 0.25}


def test_empty_masks():
    nothing, something = torch.zeros(4, 4), torch.ones(4, 4)
    pairs = [(nothing, nothing), (something, nothing), (nothing, something), (torch.full((4, 4), torch.nan), nothing)]
    for (found, truth), expected in zip(pairs, (1, 0, 0, 1), strict=True):
        assert values(updated("miou", None, None, [found], [truth]))[""] == pytest.approx(expected, abs=1e-9)
        assert values(updated("oiou", None, None, [found], [truth]))[""] == pytest.approx(expected, abs=1e-9)


def test_a_pixel_at_the_threshold_is_background_and_parts_that_overlap_count_once():
    truth = torch.tensor([[[2, 1, 0, 0]]])
    for found in (torch.tensor([[[0.4, 0.35, 0.36, 0.1]]]), torch.tensor([[[True, False, True, False]]])):
        assert [count.tolist() for count in mask_counts(found, truth)] == [[1], [3]]
    assert [count.tolist() for count in mask_counts(found.long() * 255, truth)] == [[1], [3]]
    assert [count.tolist() for count in mask_counts(torch.tensor([[[0.4, 0.35, 0.36, 0.1]]]), truth, 0.2)] == [[2], [3]]


@pytest.mark.parametrize("kind", KINDS)
def test_no_precision_of_the_module_around_it_touches_a_metric(kind):
    rows = some_sentences()
    metric = updated(kind, *rows)
    expected = values(metric)
    module = nn.ModuleList([metric]).half().to(torch.bfloat16)
    assert values(module[0]) == expected
    module[0].update(*({"acc": rows[:2], "ie": rows}.get(kind, rows[2:])))
    assert values(module[0]) == pytest.approx(expected, rel=0, abs=1e-12)


# -- processes --------------------------------------------------------------------------------------------------------


SHARES = [slice(7), slice(7, 30)], [slice(30), slice(0)]  # unequal ones, and a process without a sentence


def on_rank(rank, rows, put):
    for shares in SHARES:
        for kind in KINDS:
            put((kind, values(updated(kind, *(part[shares[rank]] for part in rows)))))


def test_two_processes_give_what_one_gives(tmp_path):
    rows = some_sentences()
    expected = {kind: values(updated(kind, *rows)) for kind in KINDS}
    found = answers_of(on_rank, 2, tmp_path, rows)
    assert len(found) == 2 * len(SHARES) * len(KINDS)
    for kind, value in found:
        assert value == pytest.approx(expected[kind], rel=0, abs=1e-12)


# -- mistakes ---------------------------------------------------------------------------------------------------------

BOXES, MASKS = torch.zeros(2, 4), torch.zeros(2, 3, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GroundingAccuracy(1.0), r"iou_threshold=1.0 must lie in \[0, 1\)"),
        (lambda: MaskIoU(threshold=-0.1), r"threshold=-0.1 must lie"),
        (lambda: MaskIoU("sum"), "reduction='sum' must be one of mean, overall"),
        (lambda: MaskPrecision(()), "at least one"),
        (lambda: MaskPrecision((0.5, 0.501)), "differ when written with two digits"),
        (lambda: MaskPrecision((0.5, 50)), r"must be numbers in \[0, 1\)"),
        (lambda: GroundingAccuracy().update(BOXES, BOXES[:1]), r"both must be \(B, 4\).*\(2, 4\) and \(1, 4\)"),
        (lambda: GroundingAccuracy().update(BOXES[0], BOXES[0]), r"got \(4,\) and \(4,\)"),
        (lambda: MaskIoU().update(MASKS, MASKS[:1]), "as many found masks as true ones must come, got 2 and 1"),
        (lambda: MaskIoU().update([MASKS[0], MASKS[0, :2]], list(MASKS)), r"got \(2, 3\) and \(3, 3\) in place 1"),
        (lambda: MaskIoU().update(MASKS[None], MASKS[None]), r"masks must be \(h, w\)"),
        (
            lambda: InconsistencyError().update(BOXES[:1], BOXES[:1], MASKS, MASKS),
            "many boxes as masks, got 1 and 2",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
