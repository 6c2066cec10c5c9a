"""Ranking against a hand-made gallery, vectors and a plain loop, whatever is tied, removed or missing."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lit_methods.functional.ranking import _places_by_counting, _places_by_order, evaluate_ranking, rank_queries

APS = ("step", "trapezoid")


def plain_loop(dist, q_pid, q_cam, g_pid, g_cam, ap):
    """One query and one gallery image after the other, in plain Python: (ap, first, last, matches) of each query."""
    found = []
    for row, pid, cam in zip(dist.tolist(), q_pid.tolist(), q_cam.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda j: (row[j], j))
        ids = [(int(g_pid[j]), int(g_cam[j])) for j in order]
        hits = [p == pid for p, c in ids if p != -1 and (p, c) != (pid, cam)]
        places = [place for place, hit in enumerate(hits) if hit]
        if not places:
            found.append((-1, -1, -1, 0))
            continue
        precisions = []
        for number, place in enumerate(places, 1):
            after = number / (place + 1)
            before = (number - 1) / place if place else 1
            precisions.append(after if ap == "step" else (before + after) / 2)
        found.append((sum(precisions) / len(places), places[0], places[-1], len(places)))
    return [np.array(column) for column in zip(*found, strict=True)]


def scene(queries=40, gallery=150, ids=12, cameras=3, levels=None, dtype=torch.float32):
    """Random ids from -1 on, and distances; ``levels`` makes many of them equal."""
    dist = torch.rand(queries, gallery) if levels is None else torch.randint(levels, (queries, gallery)) / 4
    q_pid, g_pid = torch.randint(1, ids, (queries,)), torch.randint(-1, ids, (gallery,))
    q_pid[3] = 99  # nobody in the gallery
    return dist.to(dtype), q_pid, torch.randint(cameras, (queries,)), g_pid, torch.randint(cameras, (gallery,))


def test_vectors(vectors):
    file = np.load(vectors / "ad_cluster" / "metrics.npz")
    keys = ("distmat", "query_pid", "query_cam", "gallery_pid", "gallery_cam")
    inputs = [torch.from_numpy(file[key]) for key in keys]
    close = {"rtol": 0, "atol": 1e-9}
    for ap in APS:
        result = evaluate_ranking(*inputs, ap)
        np.testing.assert_array_equal(result.valid, file["valid_query"])
        np.testing.assert_array_equal(result.first_hit, file["first_hit_rank"])
        np.testing.assert_allclose(result.ap, file[f"ap_{ap}"], **close)
        np.testing.assert_allclose(result.mAP, file[f"map_{ap}"], **close)
        np.testing.assert_allclose(result.cmc, file["cmc_market"], **close)
    strict = evaluate_ranking(*inputs, "trapezoid", invalid_as_zero=True)
    np.testing.assert_allclose(strict.mAP, file["map_trapezoid_invalid_as_zero"], **close)


def by_hand():
    """Two queries of id 4 and one of id 5; six gallery images, worked out in the test below."""
    #          id 4   id 4  junk  distr  id 5   id 4
    g_pid = torch.tensor([4, 4, -1, 0, 5, 4])
    g_cam = torch.tensor([0, 1, 1, 2, 0, 2])
    dist = torch.tensor(
        [
            [0.1, 0.5, 0.2, 0.3, 0.4, 0.6],  # id 4, camera 0: own camera, junk, distractor, other id, match, match
            [0.6, 0.1, 0.3, 0.4, 0.5, 0.2],  # id 4, camera 1: own camera, match, junk, distractor, other id, match
            [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],  # id 5, camera 0: its only image is of its own camera
        ]
    )
    return dist, torch.tensor([4, 4, 5]), torch.tensor([0, 1, 0]), g_pid, g_cam


def test_a_gallery_with_junk_distractors_and_own_camera_by_hand():
    # Left of the first: distractor, id 5, match, match; of the second: match, distractor, id 5, match.
    step = evaluate_ranking(*by_hand(), max_rank=5)
    assert_close(step.ap, torch.tensor([(1 / 3 + 2 / 4) / 2, (1 + 2 / 4) / 2, -1], dtype=torch.float64))
    assert_close(step.mAP, torch.tensor((5 / 12 + 3 / 4) / 2, dtype=torch.float64))
    assert step.cmc.tolist() == [0.5, 0.5, 1, 1, 1]
    assert step.first_hit.tolist() == [2, 0, -1]
    assert step.valid.tolist() == [True, True, False]

    trapezoid = evaluate_ranking(*by_hand(), "trapezoid")
    expected = [((0 + 1 / 3) / 2 + (1 / 3 + 2 / 4) / 2) / 2, ((1 + 1) / 2 + (1 / 3 + 2 / 4) / 2) / 2, -1]
    assert_close(trapezoid.ap, torch.tensor(expected, dtype=torch.float64))

    zero = evaluate_ranking(*by_hand(), max_rank=3, invalid_as_zero=True)
    assert_close(zero.mAP, step.mAP * 2 / 3)
    assert_close(zero.cmc, torch.tensor([1 / 3, 1 / 3, 2 / 3], dtype=torch.float64))

    dist, *ids = by_hand()
    ranks = rank_queries(lambda rows: dist[rows], *ids)
    assert ranks.last_hit.tolist() == [3, 3, -1]
    assert ranks.matches.tolist() == [2, 2, 0]
    assert ranks.inverse_penalty.tolist() == [0.5, 0.5, -1]


@pytest.mark.parametrize("ap", APS)
@pytest.mark.parametrize("levels", [None, 40, 3, 1])  # 1: every distance is equal, as after a collapse
def test_every_query_is_as_in_a_plain_loop(ap, levels):
    dist, *ids = scene(levels=levels)
    expected = plain_loop(dist, *ids, ap)
    ranks = rank_queries(lambda rows: dist[rows], *ids, ap=ap, chunk=7)
    assert_close(ranks.ap.numpy(), expected[0], rtol=0, atol=1e-14)
    for ours, theirs in zip(ranks[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    result = evaluate_ranking(dist, *ids, ap, max_rank=400)
    cmc = [(ranks.first_hit[ranks.valid] < r).double().mean() for r in range(1, 401)]
    assert_close(result.cmc, torch.stack(cmc))
    assert_close(result.mAP, torch.tensor(expected[0][expected[3] > 0].mean()))


def test_equal_distances_rank_in_the_order_of_the_gallery():
    dist, one = torch.ones(1, 4), torch.tensor([1])
    for place in range(4):
        g_pid = torch.full((4,), 2)
        g_pid[place] = 1
        assert evaluate_ranking(dist, one, one, g_pid, torch.zeros(4).long()).first_hit == place


@pytest.mark.parametrize("levels", [None, 40, 1])
def test_places_are_the_same_by_counting_and_by_order(levels):
    dist, own, exists = scene(levels=levels)[0], torch.randint(150, (40, 9)), torch.rand(40, 9) < 0.8
    given = (dist, dist.gather(1, own), own, exists)
    (counted, last), (ordered, same_last) = _places_by_counting(*given), _places_by_order(*given)
    assert torch.equal(counted[exists], ordered[exists])
    assert torch.equal(last, same_last)
    assert torch.equal(ordered, dist.argsort(stable=True).argsort().gather(1, own))


def test_one_image_that_is_tied_with_the_own_camera_counts_the_places_that_are_left():
    dist, pid = torch.tensor([[0.5, 0.5, 0.5, 0.1]]), torch.tensor([1])
    g_pid, g_cam = torch.tensor([1, 2, 1, 1]), torch.tensor([0, 1, 1, 0])
    assert evaluate_ranking(dist, pid, torch.tensor([0]), g_pid, g_cam).first_hit == 1


@pytest.mark.parametrize("ap", APS)
def test_blocks_change_no_bit(ap):
    inputs = scene(levels=50)
    whole = evaluate_ranking(*inputs, ap, chunk=1000)
    for chunk in (1, 7, 40):
        assert all(map(torch.equal, evaluate_ranking(*inputs, ap, chunk=chunk), whole))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_are_float64_of_any_precision_and_layout(dtype):
    dist, *ids = scene(dtype=dtype)
    wide = evaluate_ranking(dist.double(), *ids)
    for given in (dist, dist.T.contiguous().T, dist.clone().requires_grad_()):
        result = evaluate_ranking(given, *(part.to(torch.int16) for part in ids))
        assert all(map(torch.equal, result, wide))
        types = {name: part.dtype for name, part in result._asdict().items()}
        real = dict.fromkeys(("mAP", "cmc", "ap"), torch.float64)
        assert types == real | {"first_hit": torch.int64, "valid": torch.bool}
        assert [tuple(part.shape) for part in result] == [(), (50,), (40,), (40,), (40,)]


def test_the_distances_given_stay_as_they_are():
    dist, *ids = scene()
    before = dist.clone()
    evaluate_ranking(dist, *ids)
    assert torch.equal(dist, before)


@pytest.mark.parametrize("ap", APS)
def test_junk_changes_nothing(ap):
    dist, q_pid, q_cam, g_pid, g_cam = scene()
    kept = g_pid != -1
    assert not kept.all()
    without = evaluate_ranking(dist[:, kept], q_pid, q_cam, g_pid[kept], g_cam[kept], ap)
    dist[:, ~kept] = torch.nan  # of any distance
    assert all(map(torch.equal, evaluate_ranking(dist, q_pid, q_cam, g_pid, g_cam, ap), without))


@pytest.mark.parametrize("ap", APS)
def test_distractors_only_lower_what_is_found(ap):
    dist, q_pid, q_cam, g_pid, g_cam = scene()
    lower = 0
    for _ in range(5):
        before = evaluate_ranking(dist, q_pid, q_cam, g_pid, g_cam, ap)
        dist = torch.cat([dist, torch.rand(40, 20)], 1)
        g_pid, g_cam = torch.cat([g_pid, torch.zeros(20).long()]), torch.cat([g_cam, torch.randint(3, (20,))])
        after = evaluate_ranking(dist, q_pid, q_cam, g_pid, g_cam, ap)
        assert (after.ap <= before.ap).all()
        assert (after.cmc <= before.cmc).all()
        lower += bool(after.mAP < before.mAP)
    assert lower == 5


def test_infinite_distances_come_last_and_removed_ones_do_not_count():
    dist, pid = torch.tensor([[torch.inf, torch.inf, 1.0, torch.inf]]), torch.tensor([1])
    g_pid, g_cam = torch.tensor([1, 2, 2, 1]), torch.tensor([0, 1, 1, 1])
    result = evaluate_ranking(dist, pid, torch.tensor([0]), g_pid, g_cam)
    assert result.first_hit == 2  # behind both images of id 2


def test_real_ids_ranked_by_id_are_perfect(shared):
    file = np.load(shared / "data" / "market1501_ids" / "query_gallery_ids.npz")
    keys = ("query_pid", "query_camid", "gallery_pid", "gallery_camid")
    q_pid, q_cam, g_pid, g_cam = ids = [torch.from_numpy(file[key]) for key in keys]
    q_pid, q_cam = ids[:2] = q_pid[::4], q_cam[::4]
    seen = {(int(p), int(c)) for p, c in zip(g_pid, g_cam, strict=True)}
    others = [any((int(p), c) in seen for c in range(10) if c != cam) for p, cam in zip(q_pid, q_cam, strict=True)]
    dist = torch.rand(1, len(g_pid)) + (q_pid[:, None] != g_pid)  # below 1 for the own id
    dist[:, g_pid == -1] = -1  # junk is the nearest of all
    ranks = rank_queries(lambda rows: dist[rows], *ids)
    assert ranks.valid.tolist() == others
    assert sum(others) == 842  # every one
    result = ranks.summary()
    assert result.mAP == 1
    assert result.cmc[0] == 1
    assert (ranks.inverse_penalty == 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dist": torch.zeros(2, 6)}, r"dist must be \(queries, gallery\) = \(3, 6\).*got \(2, 6\)"),
        ({"dist": torch.zeros(18)}, r"dist must be \(queries, gallery\)"),
        ({"dist": torch.zeros(3, 6).long()}, "dist must be floating point.*torch.int64"),
        ({"dist": torch.full((3, 6), torch.nan)}, "dist has NaN"),
        ({"q_cam": torch.zeros(2).long()}, r"q_pid and q_cam must be \(N,\) each.*got \(3,\) and \(2,\)"),
        ({"g_cam": torch.zeros(5).long()}, r"g_pid and g_cam must be \(N,\) each"),
        ({"q_pid": torch.zeros(3, 1).long()}, r"q_pid and q_cam must be \(N,\) each"),
        ({"q_pid": torch.zeros(3)}, "q_pid must be whole numbers such as int64, got torch.float32"),
        ({"g_cam": torch.zeros(6).bool()}, "g_cam must be whole numbers such as int64, got torch.bool"),
        ({"ap": "mean"}, """ap must be "step" or "trapezoid", got 'mean'"""),
        ({"max_rank": 0}, "max_rank=0 must be at least 1"),
        ({"chunk": 0}, "chunk=0 must be at least 1"),
        ({"g_pid": torch.full((6,), -1)}, r"nothing to rank: 3 queries and 0 gallery images without junk"),
        ({"g_pid": torch.tensor([7, 8, -1, 9, 9, 7])}, "none of the 3 queries.*2 ids of the queries and the 3 of the"),
        ({"q_pid": torch.full((3,), -1)}, "none in common"),  # junk as query
        ({"q_cam": torch.zeros(3).long(), "g_cam": torch.zeros(6).long()}, r"all cameras are equal \(0\)"),
        ({"q_pid": torch.tensor([5, 5, 6])}, "2 have images of their id in the gallery, all from the query's own cam"),
    ],
)
def test_bad_input_is_named(change, message):
    inputs = dict(zip(("dist", "q_pid", "q_cam", "g_pid", "g_cam"), by_hand(), strict=True)) | change
    if "own cam" in message:
        inputs["q_cam"] = torch.zeros(3).long()
    with pytest.raises(ValueError, match=message):
        evaluate_ranking(**inputs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("levels", [None, 5])
def test_a_gpu_gives_the_same(levels):
    inputs = scene(queries=200, gallery=3000, levels=levels)
    on_cpu, on_gpu = evaluate_ranking(*inputs), evaluate_ranking(*(part.cuda() for part in inputs))
    assert {part.device.type for part in on_gpu} == {"cuda"}
    assert_close([part.cpu() for part in on_gpu], list(on_cpu), rtol=0, atol=1e-12)
