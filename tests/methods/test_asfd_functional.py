"""ASFD's anchors, codes, matching and mining against the vectors and plain loops."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lit_methods.asfd import matching
from lit_methods.asfd.functional import (
    decode,
    discretize_edges,
    encode,
    make_anchors,
    match_anchors,
    match_batch,
    mine_negatives,
)
from lit_methods.functional.boxes import pairwise_iou
from tests.vector_files import tensors

TOLERANCES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])


@pytest.fixture
def load(vectors):
    return lambda name: tensors(vectors / "asfd" / f"{name}.npz")


def near(found, expected, tolerance):
    assert_close(found, expected.to(found.dtype), rtol=tolerance, atol=tolerance)


def some_faces(count, seed=0, size=256, dtype=torch.float64):
    """Of 6 to 150 pixels, logarithmically."""
    drawn = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    side = 6 * 25 ** drawn[:, :1]
    half = side * torch.tensor([0.4, 0.55], dtype=torch.float64)
    centre = size * drawn[:, 1:]
    return torch.cat([centre - half, centre + half], 1).to(dtype)


# anchors and codes


@TOLERANCES
def test_anchors_are_those_of_the_vectors(load, dtype, tolerance):
    known = load("detector")
    for number in (0, 1):
        anchors = make_anchors(*known[f"hw{number}"].tolist(), dtype=dtype)
        assert anchors.dtype == dtype
        assert len(anchors) == int(known[f"num{number}"])
        near(torch.cat([anchors[:40], anchors[-40:]]), known[f"first_last{number}"], tolerance)
        near(anchors.double().sum(0), known[f"sum{number}"], tolerance)


def test_a_picture_of_640_has_34125_anchors():
    assert len(make_anchors(640, 640)) == 34_125


def test_sides_that_no_stride_divides_are_rounded_up():
    levels = [len(make_anchors(130, 257, strides=[stride])) for stride in (4, 8, 16, 32, 64, 128)]
    assert levels == [33 * 65, 17 * 33, 9 * 17, 5 * 9, 3 * 5, 2 * 3]
    assert len(make_anchors(130, 257)) == sum(levels)


def test_anchors_in_half_precision_are_the_rounded_ones():
    assert torch.equal(make_anchors(64, 4096, dtype=torch.float16), make_anchors(64, 4096).half())


@pytest.mark.parametrize("words", [{"height": 0}, {"strides": ()}, {"ratio": 0}, {"strides": (4, 0)}])
def test_anchors_without_size_are_refused(words):
    with pytest.raises(ValueError, match="height, width, strides, scale and ratio must be positive"):
        make_anchors(**{"height": 8, "width": 8} | words)


@TOLERANCES
def test_codes_and_boxes_are_those_of_the_vectors(load, dtype, tolerance):
    known = load("detector")
    near(decode(known["dec_t"].to(dtype), known["dec_anchor"].to(dtype)), known["dec_box"], tolerance)
    matched = known["match_35"]
    anchors = make_anchors(256, 256, dtype=torch.float64)[matched >= 0]
    codes = encode(known["gt"][matched[matched >= 0]].to(dtype), anchors.to(dtype))
    near(codes, known["encoded"], 1e-9 if dtype == torch.float64 else 1e-4)


def test_decoding_undoes_encoding():
    anchors, faces = make_anchors(64, 64, dtype=torch.float64)[::7], some_faces(9)
    assert_close(decode(encode(faces[:, None], anchors), anchors), faces[:, None].expand(-1, len(anchors), -1))
    other = (0.3, 0.7)
    assert_close(decode(encode(faces[0], anchors, other), anchors, other), faces[:1].expand(len(anchors), -1))


def test_a_wild_code_and_a_box_without_area_stay_finite():
    anchor = torch.tensor([0.0, 0.0, 10.0, 10.0])
    sides = decode(torch.tensor([0.0, 0.0, 1e9, -1e9]), anchor)
    assert_close(sides[2:] - sides[:2], torch.tensor([10 * float(np.exp(4)), 0.0]))
    assert torch.isfinite(encode(torch.tensor([3.0, 3.0, 3.0, 3.0]), anchor)).all()


def test_codes_in_half_precision_are_computed_in_float32():
    anchors = make_anchors(16, 16)
    codes = torch.randn(len(anchors), 4).bfloat16()
    assert torch.equal(decode(codes, anchors), decode(codes.float(), anchors))
    assert encode(anchors.half(), anchors.half()).dtype == torch.float32


def test_codes_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"codes must be \(\.\.\., 4\), got \(2, 3\)"):
        decode(torch.zeros(2, 3), torch.zeros(2, 4))


# matching


def plain_match(faces, anchors, threshold):
    """As DSFD has it: a full matrix, and a loop over faces for their best anchors."""
    labels, owner = np.zeros(len(anchors), np.int64), np.full(len(anchors), -1)
    if len(faces):
        iou = pairwise_iou(faces, anchors).numpy()
        labels[iou.max(0) >= threshold] = 1
        owner = np.where(labels == 1, iou.argmax(0), -1)
        for face, anchor in enumerate(iou.argmax(1)):
            labels[anchor], owner[anchor] = 1, face
    return labels, owner


@pytest.mark.parametrize("threshold", [35, 40, 50])
def test_matches_are_those_of_the_vectors(load, threshold):
    known = load("detector")
    anchors = make_anchors(*known["anchor_hw"].tolist(), dtype=torch.float64)
    assert torch.equal(match_anchors(known["gt"], anchors, threshold / 100), known[f"match_{threshold}"])
    rounded = match_anchors(known["gt"].float(), anchors.float(), threshold / 100)
    other = (rounded != known[f"match_{threshold}"]).nonzero()[:, 0]
    overlaps = pairwise_iou(known["gt"][:1], anchors[other])[0]
    assert len(other) <= 2  # face 0 lies within two anchors of one size: the first, unless rounding finds another
    assert_close(overlaps, overlaps[:1].expand_as(overlaps))


@pytest.mark.parametrize("block", [1, 3 * 5460, 2**24])
def test_a_batch_is_matched_as_each_picture_alone_whatever_the_block(monkeypatch, block):
    monkeypatch.setattr(matching, "BLOCK", {"cpu": block})
    anchors = make_anchors(256, 256, dtype=torch.float64)
    batch = [some_faces(11, 1), some_faces(0), some_faces(1, 2), torch.cat([some_faces(3, 3)] * 2)]
    labels, faces = match_batch(batch, anchors, 0.4)
    for image, boxes in enumerate(batch):
        expected = plain_match(boxes, anchors, 0.4)
        assert labels[image].tolist() == expected[0].tolist()
        assert faces[image].tolist() == expected[1].tolist()


def test_each_face_has_an_anchor_unless_a_later_one_took_it():
    anchors = make_anchors(256, 256)
    faces = torch.cat([some_faces(40, 4, dtype=torch.float32), torch.tensor([[100.0, 100, 100.5, 100.5]])])
    best = pairwise_iou(faces, anchors).argmax(1)
    matched = match_anchors(faces, anchors, 0.9)
    assert [int(matched[anchor]) for anchor in best] == [int((best == anchor).nonzero().max()) for anchor in best]
    assert (matched >= 0).sum() == len(best.unique())


def test_of_two_faces_with_one_best_anchor_the_later_has_it():
    anchors = torch.tensor([[0.0, 0, 10, 10], [100, 100, 110, 110]])
    better, worse = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[0.0, 0, 10, 5]])
    assert match_anchors(torch.cat([better, worse]), anchors).tolist() == [1, -1]
    assert match_anchors(torch.cat([worse, better]), anchors).tolist() == [1, -1]


def test_a_face_that_overlaps_no_anchor_takes_the_first():
    anchors = make_anchors(128, 128)
    for face in ([900.0, 900, 950, 950], [64.0, 64, 64, 64]):
        matched = match_anchors(torch.tensor([face]), anchors)
        assert int(matched[0]) == 0
        assert (matched[1:] == -1).all()


def test_between_two_thresholds_anchors_are_ignored_but_not_a_best_one():
    anchors, faces = make_anchors(256, 256, dtype=torch.float64), some_faces(12, 5)
    labels, matched = match_batch([faces], anchors, 0.5, low_threshold=0.35)
    iou = pairwise_iou(faces, anchors)
    forced = torch.zeros(len(anchors), dtype=torch.bool)
    forced[iou.argmax(1)] = True
    best = iou.amax(0)
    assert torch.equal(labels[0] == -1, (best >= 0.35) & (best < 0.5) & ~forced)
    assert (labels == -1).any()
    assert torch.equal(matched >= 0, labels == 1)


def plain_compensation(labels, owner, iou, enough):
    best, nearest = iou.max(0), iou.argmax(0)
    for face in range(len(iou)):
        free = [a for a in np.argsort(-best, kind="stable") if labels[a] != 1 and nearest[a] == face and best[a] >= 0.1]
        for anchor in free[: max(0, enough - (owner == face).sum())]:
            labels[anchor], owner[anchor] = 1, face
    return labels, owner


@pytest.mark.parametrize("low", [None, 0.3])
def test_faces_with_few_anchors_get_their_next_best(low):
    anchors = make_anchors(256, 256, dtype=torch.float64)
    batch = [some_faces(14, 6), some_faces(0), some_faces(9, 7), torch.tensor([[900.0, 900, 950, 950]]).double()]
    before = match_batch(batch, anchors, 0.4, low)
    labels, faces = match_batch(batch, anchors, 0.4, low, compensate=6)
    added = 0
    for image, boxes in enumerate(batch):
        expected = before[0][image].numpy().copy(), before[1][image].numpy().copy()
        if len(boxes):
            expected = plain_compensation(*expected, pairwise_iou(boxes, anchors).numpy(), 6)
        assert labels[image].tolist() == expected[0].tolist()
        assert faces[image].tolist() == expected[1].tolist()
        added += int((labels[image] == 1).sum() - (before[0][image] == 1).sum())
    assert added > 20
    assert torch.equal(faces >= 0, labels == 1)


def test_pictures_without_faces_are_background_also_with_compensation():
    anchors = make_anchors(64, 64)
    for batch in ([torch.zeros(0, 4)] * 2, []):
        labels, faces = match_batch(batch, anchors, compensate=6, low_threshold=0.2)
        assert labels.shape == faces.shape == (len(batch), len(anchors))
        assert (labels == 0).all()
        assert (faces == -1).all()
    assert (match_anchors(torch.zeros(0, 4), anchors) == -1).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"threshold": 0}, r"threshold=0 is an IoU and must lie in \(0, 1\]"),
        ({"low_threshold": 0.5}, r"low_threshold=0.5 must lie in \(0, 0.4\]"),
        ({"compensate": -1}, "compensate=-1 is a number of anchors"),
        ({"boxes": [torch.zeros(0, 4), torch.zeros(4)]}, r"faces of picture 1 must be \(G, 4\), got \(4,\)"),
        ({"anchors": torch.zeros(0, 4)}, r"anchors must be \(A, 4\) with at least one row, got \(0, 4\)"),
    ],
)
def test_matching_refuses_what_it_cannot_use(words, message):
    with pytest.raises(ValueError, match=message):
        match_batch(**{"boxes": [torch.zeros(0, 4)], "anchors": make_anchors(8, 8)} | words)


# mining


def test_mined_anchors_are_those_of_the_vectors(load):
    known = load("detector")
    labels = known["hnm_label"]
    own = torch.where(labels == 1, 1, 0)[..., None]
    for dtype in (torch.float64, torch.float32):
        ce = -known["hnm_logits"].to(dtype).log_softmax(-1).gather(-1, own)[..., 0]
        assert torch.equal(mine_negatives(ce, labels).long(), known["hnm_selected"])


def test_mining_keeps_three_per_positive_of_the_same_picture():
    labels = torch.zeros(4, 50, dtype=torch.int64)
    labels[0, :4], labels[1, 0], labels[3, :30] = 1, 1, 1
    labels[:, 40:] = -1
    kept = mine_negatives(torch.rand(4, 50), labels)
    assert kept.sum(1).tolist() == [16, 4, 0, 40]  # the last has ten negatives
    assert not (kept & (labels == -1)).any()
    assert mine_negatives(torch.rand(4, 50), labels, ratio=0).equal(labels == 1)


def test_of_equal_negatives_the_first_are_kept():
    labels = torch.zeros(1, 2000, dtype=torch.int64)
    labels[0, 1000] = 1
    kept = mine_negatives(torch.ones(1, 2000), labels)
    assert kept.nonzero()[:, 1].tolist() == [0, 1, 2, 1000]


def test_mining_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"ce and labels must both be \(B, A\), got \(2, 3\) and \(3,\)"):
        mine_negatives(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="ratio=-1 must not be negative"):
        mine_negatives(torch.zeros(2, 3), torch.zeros(2, 3), ratio=-1)


# edges


def test_kept_edges_are_those_of_the_vectors(load):
    known = load("search")
    edges = known["edge_src_dst"]
    kept, ops = discretize_edges(known["weights"][: len(edges)], edges)
    assert torch.equal(kept, known["kept_edges"])
    assert torch.equal(ops, known["kept_ops"])


def test_edges_are_ordered_by_node_and_ties_go_to_the_lower_edge():
    weights = torch.full((5, 3), 1 / 3)
    edges = torch.tensor([[0, 9], [1, 4], [1, 9], [2, 9], [0, 4]])
    kept, ops = discretize_edges(weights, edges)
    assert kept.tolist() == [1, 4, 0, 2]
    assert ops.tolist() == [0, 0, 0, 0]
    assert discretize_edges(weights, edges, keep=1)[0].tolist() == [1, 0]
    assert [part.tolist() for part in discretize_edges(weights[:0], edges[:0])] == [[], []]


def test_edges_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"weights and edges must be \(E, O\) and \(E, 2\), got \(2, 3\) and \(3, 2\)"):
        discretize_edges(torch.zeros(2, 3), torch.zeros(3, 2).long())
    with pytest.raises(ValueError, match="keep=0 must be at least 1"):
        discretize_edges(torch.zeros(2, 3), torch.zeros(2, 2).long(), keep=0)
