"""MCN's masks, their loss and ASNLS against the official vectors and plain loops."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck
from torch.testing import assert_close

from lit_methods.mcn.functional import asnls, letterbox_params, postprocess_masks, res_loss
from tests.vector_files import tensors


def known(folder, name):
    return tensors(folder / "mcn" / f"{name}.npz")


def some_masks(n=4, size=16, seed=0):
    draw = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, size, (n, 2), generator=draw)
    boxes = torch.cat([corner, corner + torch.randint(0, size, (n, 2), generator=draw)], 1)
    return torch.rand(n, size, size, generator=draw), boxes, torch.rand(n, generator=draw)


# -- loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_the_loss_is_that_of_the_official_code(vectors, dtype, tolerance):
    file = known(vectors, "loss")
    logits = file["mask_logits"].to(dtype).requires_grad_()
    loss = res_loss(logits, file["mask_gt"])
    assert loss.dtype == dtype
    assert_close(loss.double(), file["loss_seg64"], rtol=tolerance, atol=0)
    (0.1 * loss).backward()
    assert_close(logits.grad.float(), file["grad_mask_logits"], rtol=1e-5, atol=1e-7)


def test_all_parts_together_are_the_official_loss(vectors):
    from lit_methods.mcn.functional import consistency_energy_loss, rec_loss

    file = known(vectors, "loss")
    energy = file["energy"].requires_grad_()
    cem = consistency_energy_loss(energy)
    assert_close(cem.double(), file["loss_cem64"], rtol=1e-5, atol=0)
    rec = rec_loss(file["raw"], file["target"], file["anchors"], 160)["rec"]
    total = rec + 0.1 * res_loss(file["mask_logits"], file["mask_gt"]) + cem
    assert_close(total, file["loss"], rtol=1e-5, atol=0)
    assert_close(total.double(), file["loss64"], rtol=1e-5, atol=0)
    total.backward()
    assert_close(energy.grad, file["grad_energy"], rtol=1e-5, atol=0)


def test_overlapping_parts_are_foreground_once():
    logits = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.randint(3, (2, 1, 3, 3), dtype=torch.uint8)
    assert (mask == 2).any()
    assert torch.equal(res_loss(logits, mask), res_loss(logits, mask.clamp(max=1)))
    assert torch.equal(res_loss(logits, mask), res_loss(logits, mask > 0))
    assert gradcheck(lambda x: res_loss(x, mask), logits)
    assert res_loss(logits.bfloat16(), mask).dtype == torch.float32


# -- suppression ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "key"), [("adaptive", "out_asnls"), ("hard", "out_hard"), ("soft", "out_soft_fixed")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_suppressed_masks_are_those_of_the_official_code(vectors, mode, key, dtype):
    file = known(vectors, "asnls")
    found = asnls(file["prob"].to(dtype), file["box_xyxy"], file["score"], mode=mode)
    assert found.dtype == dtype
    assert_close(found, file[key].to(dtype), rtol=0, atol=1e-6)
    if mode == "adaptive":
        assert torch.equal((found > float(file["threshold"])).long(), file["mask_asnls"])


def test_a_sure_box_changes_nothing_and_an_unsure_one_clears_the_outside():
    prob, boxes, _ = some_masks()
    assert_close(asnls(prob, boxes, torch.ones(4)), prob)
    unsure = asnls(prob, boxes, torch.zeros(4))
    hard = asnls(prob, boxes, torch.zeros(4), mode="hard")
    assert_close(unsure, 2 * hard)
    for n, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        expected = torch.zeros(16, 16)
        expected[y1 : y2 + 1, x1 : x2 + 1] = prob[n, y1 : y2 + 1, x1 : x2 + 1]
        assert torch.equal(hard[n], expected)
    assert torch.equal(asnls(prob, boxes, torch.zeros(4), mode="none"), prob)


def test_factors_may_be_others():
    prob, boxes, scores = some_masks()
    inside = asnls(torch.ones_like(prob), boxes, scores, mode="hard").bool()
    found = asnls(prob, boxes, scores, lam_au=0.5, lam_bu=1.0, lam_ad=-0.25, lam_bd=0.5)
    scores = scores[:, None, None]
    assert_close(found, torch.where(inside, prob * (0.5 * scores + 1), prob * (0.5 - 0.25 * scores)))
    soft = asnls(prob.double(), boxes, scores.flatten(), mode="soft", soft=(1.3, 0.1))
    assert_close(soft, torch.where(inside, prob.double() * 1.3, prob.double() * 0.1), rtol=0, atol=1e-15)


def test_a_box_beyond_the_map_is_cut_off_and_one_beside_it_holds_nothing():
    prob = torch.ones(3, 4, 5)
    boxes = torch.tensor([[-3, -2, 1, 99], [-4, -4, -1, -1], [3, 1, 3, 1]])
    assert asnls(prob, boxes, torch.ones(3), mode="hard").sum((1, 2)).tolist() == [8, 0, 1]
    assert asnls(prob[:0], boxes[:0], torch.ones(0)).shape == (0, 4, 5)


def test_a_confidence_that_is_no_number_gives_an_empty_mask():
    masks, _ = postprocess_masks(
        torch.full((1, 1, 4, 4), 9.0), torch.zeros(1, 4).long(), torch.tensor([torch.nan]), [(8, 8)], size=32
    )
    assert not masks[0].any()


# -- back to the picture ----------------------------------------------------------------------------------------------


def test_masks_at_the_size_of_the_picture_are_those_of_the_official_code(vectors):
    file = known(vectors, "postprocess")
    logits = torch.stack([file["logits_0"], file["logits_1"]])[:, None]
    boxes = torch.stack([file["box_xyxy_0"], file["box_xyxy_1"]])
    scores = torch.stack([file["score_0"], file["score_1"]])
    sizes = [tuple(file[f"orig_hw_{i}"].tolist()) for i in (0, 1)]
    masks, probs = postprocess_masks(logits, boxes, scores, sizes)
    for i, (mask, prob) in enumerate(zip(masks, probs, strict=True)):
        assert mask.shape == prob.shape == sizes[i]
        assert mask.dtype == torch.bool
        assert prob.dtype == torch.float32
        assert list(letterbox_params(sizes[i][1], sizes[i][0]))[1:] == file[f"letterbox_{i}"].tolist()
        assert_close(prob.sum(1).double(), file[f"prob_row_sum64_{i}"], rtol=0, atol=1e-3)
        assert (mask != file[f"mask_{i}"].bool()).sum() <= file[f"near_threshold_{i}"]
    doubles, _ = postprocess_masks(logits.double(), boxes, scores.double(), torch.tensor(sizes))
    assert [(a != b).sum() < 9 for a, b in zip(masks, doubles, strict=True)] == [True, True]


@pytest.mark.parametrize("mode", ["adaptive", "soft", "hard", "none"])
def test_a_batch_of_many_sizes_gives_what_one_by_one_gives(mode):
    _, boxes, scores = some_masks(5, 64)
    logits = 3 * torch.randn(5, 1, 8, 8, dtype=torch.float64)
    sizes = [(30, 50), (64, 64), (30, 50), (50, 30), (64, 64)]
    masks, probs = postprocess_masks(logits, boxes, scores, sizes, size=64, threshold=0.4, mode=mode)
    for n, (h, w) in enumerate(sizes):
        whole = F.interpolate(logits[n : n + 1].sigmoid(), (64, 64), mode="bilinear", align_corners=False)[0]
        whole = asnls(whole, boxes[n : n + 1], scores[n : n + 1], mode=mode)[None]
        _, new_w, new_h, dx, dy = letterbox_params(w, h, 64)
        crop = whole[..., dy : dy + new_h, dx : dx + new_w]
        expected = F.interpolate(crop, (h, w), mode="bilinear", align_corners=False)[0, 0]
        assert probs[n].dtype == torch.float64
        assert_close(probs[n], expected)
        assert torch.equal(masks[n], probs[n] > 0.4)
    assert postprocess_masks(logits[:0], boxes[:0], scores[:0], [], size=64) == ([], [])


PROB, BOXES, SCORES = some_masks(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: res_loss(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 8, 8)), "goes to the size of the logits"),
        (lambda: res_loss(torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)), r"must both be \(N, 1, m, m\)"),
        (lambda: asnls(PROB, BOXES, SCORES, mode="loud"), "mode='loud' must be one of adaptive, soft, hard, none"),
        (lambda: asnls(PROB[0], BOXES, SCORES), r"prob must be \(N, H, W\), got \(16, 16\)"),
        (
            lambda: asnls(PROB, BOXES.float(), SCORES),
            r"boxes must be \(2, 4\) whole numbers, as round_boxes",
        ),
        (lambda: asnls(PROB, BOXES[:1], SCORES), r"boxes must be \(2, 4\).*got \(1, 4\)"),
        (lambda: asnls(PROB, BOXES, SCORES[:, None]), r"scores must be \(2,\), one per box, got \(2, 1\)"),
        (lambda: postprocess_masks(PROB, BOXES, SCORES, [(4, 4)] * 2), r"logits must be \(N, 1, m, m\)"),
        (lambda: postprocess_masks(PROB[:, None], BOXES, SCORES, [(4, 4)]), "orig_hw has 1 sizes for 2 masks"),
        (lambda: postprocess_masks(PROB[:, None], BOXES, SCORES, [(4, 0)] * 2), "w=0 must be at least 1 pixel"),
        (lambda: postprocess_masks(PROB[:, None], BOXES, SCORES, [(4, 4)] * 2, size=0), "size=0 must be"),
        (lambda: postprocess_masks(PROB[:, None], BOXES, SCORES, [(4, 4)] * 2, mode=""), "mode='' must be one of"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
