"""Re-identification as a metric: the same from any order, batches and processes; rows that come twice count once."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lit_methods.functional.ranking import evaluate_ranking
from lit_methods.metrics import ReIDRanking
from tests.forked import answers_of

KEYS = ["mAP", "mINP", "rank1", "rank5", "rank10"]


def people(queries=30, gallery=120, ids=10, cameras=4, dim=16, noise=1.5, seed=0):
    """Rows of queries and gallery: features near the centre of their id; ids from -1 on."""
    draw = torch.Generator().manual_seed(seed)
    query = torch.arange(queries + gallery) < queries
    pid = torch.randint(-1, ids, (len(query),), generator=draw)
    pid[:queries] = pid[:queries].abs() % ids
    camid = torch.randint(cameras, (len(query),), generator=draw)
    index = torch.cat([torch.arange(queries), torch.arange(gallery)])
    centres = torch.randn(ids + 1, dim, generator=draw)
    features = centres[pid] + noise * torch.randn(len(query), dim, generator=draw)
    return features, pid, camid, index, query


def measured(*rows, **kwargs):
    metric = ReIDRanking(**kwargs)
    metric.update(*rows)
    return metric.compute()


def assert_same(ours, theirs):
    assert list(ours) == list(theirs) == KEYS
    for name in KEYS:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("invalid_as_zero", [False, True])
@pytest.mark.parametrize("ap", ["step", "trapezoid"])
def test_it_is_the_ranking_by_euclidean_distance(ap, invalid_as_zero):
    features, pid, camid, index, query = people()
    pid[4] = 99  # a query that nobody in the gallery matches
    metric = ReIDRanking(ap=ap, invalid_as_zero=invalid_as_zero, max_rank=3)
    assert metric.invalid_queries is None
    metric.update(features, pid, camid, index, query)
    values = metric.compute()
    dist = (features[query, None].double() - features[~query].double()).norm(dim=2)
    ids = (pid[query], camid[query], pid[~query], camid[~query])
    expected = evaluate_ranking(dist, *ids, ap, invalid_as_zero=invalid_as_zero)
    assert list(values) == KEYS
    assert_close(values["mAP"], expected.mAP)
    for k in (1, 5, 10):
        assert_close(values[f"rank{k}"], expected.cmc[k - 1])
    assert {(v.dtype, v.shape) for v in values.values()} == {(torch.float64, ())}
    assert metric.invalid_queries == 1
    assert metric.ranking.cmc.tolist() == expected.cmc[:3].tolist()
    assert_close(metric.ranking.ap, expected.ap)
    assert not metric.ranking.valid[4]


def test_minp_by_hand():
    features = torch.tensor([[0.0], [10.0], [0.1], [0.2], [0.3], [0.4], [10.1]])
    pid, camid = torch.tensor([1, 2, 1, 3, 1, 3, 2]), torch.tensor([0, 0, 1, 1, 2, 2, 1])
    query = torch.arange(7) < 2
    values = measured(features, pid, camid, torch.arange(7), query)
    # id 1 is found at places 1 and 3 of five, id 2 at 1: (2/3 + 1/1) / 2
    assert_close(values["mINP"], torch.tensor(5 / 6, dtype=torch.float64))
    assert_close(values["mAP"], torch.tensor(((1 + 2 / 3) / 2 + 1) / 2, dtype=torch.float64))


@pytest.mark.parametrize("tied", [False, True])
def test_any_order_and_any_batches_give_the_same(tied):
    features, *rest = people()
    features = features.round() if tied else features
    whole = measured(features, *rest)
    for sizes in ([150], [1] * 150, [0, 64, 64, 0, 22]):
        order = torch.randperm(150)
        metric = ReIDRanking()
        for batch in zip(*(part[order].split(sizes) for part in (features, *rest)), strict=True):
            metric.update(*batch)
        assert_same(metric.compute(), whole)
        metric.reset()
        metric.update(features, *rest)
        assert_same(metric.compute(), whole)


def test_equal_distances_rank_by_index():
    features = torch.tensor([[5.0, 0.0], [4.0, 0.0], [6.0, 0.0], [5.0, 1.0]])  # all at distance 1 of the first
    pid, camid, query = torch.tensor([1, 2, 1, 2]), torch.tensor([0, 1, 1, 1]), torch.arange(4) < 1
    for place in range(3):
        index = torch.tensor([0, 0 + (place == 0), place, 2 - (place == 2)])
        index[[1, 3]] = torch.tensor([i for i in range(3) if i != place])
        assert measured(features, pid, camid, index, query)["mAP"] == 1 / (place + 1)


def test_rows_that_come_twice_count_once():
    rows = people()
    whole = measured(*rows)
    metric = ReIDRanking()
    metric.update(*rows)
    again = torch.randint(150, (60,))
    metric.update(*(part[again] for part in rows))  # queries and gallery images
    assert_same(metric.compute(), whole)
    assert len(metric.ranking.valid) == 30


def test_a_query_and_a_gallery_image_may_have_one_index():
    rows = people(queries=30, gallery=30)
    apart = (*rows[:3], torch.arange(60), rows[4])
    assert_same(measured(*rows), measured(*apart))


@pytest.mark.parametrize("offset", [0, 1000])
def test_far_from_the_origin_near_images_are_told_apart(offset):
    features, *rest = people(gallery=2000, ids=200, dim=64)
    features = features + offset  # in float32
    query = rest[-1]
    dist = torch.cdist(features[query].double(), features[~query].double(), compute_mode="donot_use_mm_for_euclid_dist")
    pid, camid = rest[:2]
    expected = evaluate_ranking(dist, pid[query], camid[query], pid[~query], camid[~query])
    metric = ReIDRanking()
    metric.update(features, *rest)
    metric.compute()
    assert torch.equal(metric.ranking.ap, expected.ap)
    found = metric.distances(features[query], features[~query])
    assert_close(found, dist, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_precision_are_ranked_as_they_are(dtype):
    features, *rest = people()
    given = features.to(dtype)
    metric = nn.ModuleDict({"metric": ReIDRanking()}).to(torch.bfloat16)["metric"]  # as in a module that is cast
    metric.update(given, *rest)
    metric.half()
    assert_same(metric.compute(), measured(given.double(), *rest))


def test_features_keep_no_graph():
    features, *rest = people()
    metric = ReIDRanking()
    metric.update(features.requires_grad_(), *rest)
    assert not metric.features[0].requires_grad
    assert not metric.compute()["mAP"].requires_grad


def test_queries_are_compared_a_few_at_a_time():
    class Watched(ReIDRanking):
        chunk = 8

        def distances(self, query_features, gallery_features):
            seen.append(tuple(map(len, (query_features, gallery_features))))
            return super().distances(query_features, gallery_features)

    rows = people()
    seen = []
    metric = Watched()
    metric.update(*rows)
    assert_same(metric.compute(), measured(*rows))
    ranked = int((~rows[4] & (rows[1] != -1)).sum())
    assert seen == [(8, ranked)] * 3 + [(6, ranked)]


def test_a_subclass_ranks_by_its_own_distance():
    class Reversed(ReIDRanking):
        def distances(self, query_features, gallery_features):
            return -super().distances(query_features, gallery_features)

    features, pid, camid, query = torch.tensor([[0.0], [1], [2]]), torch.tensor([1, 1, 2]), torch.arange(3), [0]
    query = torch.arange(3) < 1
    metric = Reversed()
    metric.update(features, pid, camid, torch.arange(3), query)
    assert metric.compute()["rank1"] == 0
    assert measured(features, pid, camid, torch.arange(3), query)["rank1"] == 1


def test_real_ids_with_features_of_their_ids_are_perfect(shared):
    file = np.load(shared / "data" / "market1501_ids" / "query_gallery_ids.npz")
    q_pid, q_cam, g_pid, g_cam = (torch.from_numpy(file[key][::4]) for key in file)
    centres = torch.randn(1502, 8)
    metric = ReIDRanking()
    for pid, cam, query in ((g_pid, g_cam, False), (q_pid, q_cam, True)):
        metric.update(centres[pid.long()], pid, cam, torch.arange(len(pid)), query)
    values = metric.compute()
    assert [float(v) for v in values.values()] == [1] * 5
    seen = {(int(p), int(c)) for p, c in zip(g_pid, g_cam, strict=True)}
    alone = [not any((int(p), c) in seen for c in range(10) if c != cam) for p, cam in zip(q_pid, q_cam, strict=True)]
    assert metric.invalid_queries == sum(alone)


def on_rank(rank, shares, put):
    metric = ReIDRanking()
    if shares[rank] is not None:
        metric.update(*shares[rank])
    values = metric.compute()
    mine = len(metric.features[0]) if metric.features else 0  # what was gathered is given back
    put((rank, {k: float(v) for k, v in values.items()}, metric.invalid_queries, mine))


@pytest.mark.parametrize("share", ["every other row and some twice", "all of it", "nothing but an empty batch"])
def test_two_processes_give_what_one_gives(share, tmp_path):
    rows = people()
    rows = (rows[0].double(), *rows[1:])
    whole = ReIDRanking()
    whole.update(*rows)
    if share == "every other row and some twice":
        # as a sampler deals 150 rows to two, with repeats at the end
        shares = [
            [part[places] for part in rows] for places in (torch.arange(0, 150, 2), torch.arange(1, 161, 2) % 150)
        ]
    else:
        shares = [rows, None if share == "all of it" else [part[:0] for part in rows]]
    expected = {k: float(v) for k, v in whole.compute().items()}
    found = sorted(answers_of(on_rank, 2, tmp_path, shares), key=lambda item: item[0])
    sizes = [0 if s is None else len(s[0]) for s in shares]
    assert found == [(rank, expected, whole.invalid_queries, sizes[rank]) for rank in range(2)]


@pytest.mark.parametrize("forms", [([[3, 2]], "D=3"), ([[16, 3]], "torch.float64")])
def test_processes_with_other_features_are_an_error_on_all(forms):
    other, message = forms
    metric = ReIDRanking()
    metric.update(*people())
    with pytest.raises(ValueError, match=f"one size and type on all processes.*{message}"):
        metric._sync_dist(lambda mine, group: [mine, torch.tensor(other[0])])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"max_rank": 0}, "max_rank=0 must be at least 1"), ({"ap": "mean"}, """"step" or "trapezoid", got 'mean'""")],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ReIDRanking(**kwargs)


@pytest.mark.parametrize(
    ("place", "part", "message"),
    [
        (0, torch.zeros(150), r"features must be \(B, D\) floating point, got \(150,\)"),
        (0, torch.zeros(150, 2).long(), "floating point.*torch.int64"),
        (1, torch.zeros(149).long(), r"pid must be \(150,\), as many as features, got \(149,\)"),
        (2, torch.zeros(150), "camid must be whole numbers such as int64, got torch.float32"),
        (3, torch.zeros(150, 1).long(), r"index must be \(150,\)"),
        (4, torch.zeros(150).long(), "is_query must be bool, got torch.int64"),
        (4, torch.zeros(3).bool(), r"is_query must be \(150,\)"),
    ],
)
def test_bad_rows_are_named(place, part, message):
    rows = list(people())
    rows[place] = part
    with pytest.raises(ValueError, match=message):
        ReIDRanking().update(*rows)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_what_cannot_be_computed_says_why():
    with pytest.raises(ValueError, match="ReIDRanking has seen no image; call update"):
        ReIDRanking().compute()
    features, pid, camid, index, query = people()
    with pytest.raises(ValueError, match="150 queries and 0 gallery images without junk"):
        measured(features, pid, camid, torch.arange(150), True)
    with pytest.raises(ValueError, match="0 queries and"):
        measured(features, pid, camid, torch.arange(150), False)
    with pytest.raises(ValueError, match=r"all cameras are equal \(2\)"):
        measured(features, pid, torch.full((150,), 2), index, query)
    with pytest.raises(ValueError, match=r"none in common"):
        measured(features, torch.where(query, pid + 100, pid), camid, index, query)
    with pytest.raises(ValueError, match=r"index=7 of the gallery images came with \(pid, camid\).*must be unique"):
        measured(features, torch.arange(150), camid, torch.where(query, index, 7), query)
    features[41] = torch.inf
    with pytest.raises(ValueError, match="features of 1 gallery images are not finite, the first has index=11"):
        measured(features, pid.clamp(min=0), camid, index, query)
