"""Verification and identification as metrics: the same from any batches and processes; what comes twice counts once."""

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection

from lit_methods.metrics.verification import (
    PairVerificationAccuracy,
    Rank1Identification,
    TARAtFAR,
    kfold_pair_accuracy,
    rank1_identification,
    tar_at_far,
)
from tests.forked import answers_of

TARGETS = (0.3, 0.1, 0.01)


def faces(count=203, size=8, seed=0):
    """Rows for ``PairVerificationAccuracy``."""
    draw = torch.Generator().manual_seed(seed)
    a, other = (torch.randn(count, size, generator=draw, dtype=torch.float64) for _ in range(2))
    same = torch.rand(count, generator=draw) < 0.5
    b = torch.where(same[:, None], a + 0.9 * other, other)
    return a, b, same, torch.randperm(count, generator=draw) * 3 + 5


def scored(count=203, seed=0):
    """Rows for ``TARAtFAR``; some scores are equal."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=draw)
    scores = torch.randn(count, generator=draw, dtype=torch.float64) + labels
    return scores.round(decimals=1), labels, torch.randperm(count, generator=draw)


def people(count=203, size=6, ids=12, seed=0):
    """Rows for ``Rank1Identification``; some gallery entries are the same picture under two names."""
    draw = torch.Generator().manual_seed(seed)
    labels, group = torch.randint(ids, (count,), generator=draw), torch.randint(-1, 3, (count,), generator=draw)
    centres = torch.randn(ids, size, generator=draw, dtype=torch.float64)
    noise = torch.randn(count, size, generator=draw, dtype=torch.float64)
    embeddings = centres[labels] + noise * (0.2 + 0.4 * group.clamp(min=0))[:, None]
    first, second = (group == -1).nonzero().squeeze(1)[:2]
    embeddings[second], labels[second] = embeddings[first], (labels[first] + 1) % ids
    return embeddings, labels, group, torch.randperm(count, generator=draw)


KINDS = {
    "pairs": (PairVerificationAccuracy, {}, faces),
    "scores": (TARAtFAR, {"targets": TARGETS}, scored),
    "people": (Rank1Identification, {}, people),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def measured(cls, kwargs, rows):
    metric = cls(**kwargs)
    metric.update(*rows)
    return floats(metric.compute())


def floats(values):
    assert {(v.dtype, v.shape) for v in values.values()} == {(torch.float64, ())}
    return {name: float(value) for name, value in values.items()}


@pytest.mark.parametrize("name", ["kfold_lfw_order", "kfold_uneven"])
def test_pairs_of_embeddings_give_the_official_accuracy(vectors, name):
    file = np.load(vectors / "ddl" / f"{name}.npz")
    embeddings, same = torch.from_numpy(file["embeddings"]), torch.from_numpy(file["issame"])
    metric = PairVerificationAccuracy()
    assert metric.result is None
    index = torch.randperm(len(same))
    metric.update(embeddings[::2][index] * 3, embeddings[1::2][index] / 7, same[index], index)
    found = floats(metric.compute())
    assert list(found) == ["accuracy", "std", "threshold"]
    assert list(found.values()) == [file[key] for key in ("accuracy", "accuracy_std", "threshold_mean")]
    assert metric.result.fold_accuracy.tolist() == file["fold_accuracy"].tolist()
    assert metric.result.false_rejects.tolist() == file["false_rejects"].tolist()


def test_false_rejects_are_named_by_their_index():
    a, b, same, index = faces()
    metric = PairVerificationAccuracy()
    metric.update(a, b, same, index)
    metric.compute()
    by_file = index.argsort()
    distances = (a / a.norm(dim=1, keepdim=True) - b / b.norm(dim=1, keepdim=True)).square().sum(1)
    expected = kfold_pair_accuracy(distances[by_file], same[by_file]).false_rejects
    assert len(expected) > 5
    assert metric.result.false_rejects.tolist() == index[by_file][expected].tolist()


def test_scores_give_the_tar_of_the_function():
    scores, labels, _ = scored()
    for method in ("nearest", "conservative"):
        found = measured(TARAtFAR, {"targets": TARGETS, "method": method}, (scores, labels))
        tar, _ = tar_at_far(scores, labels, TARGETS, method)
        assert found == dict(zip(["tar@3e-01", "tar@1e-01", "tar@1e-02"], tar.tolist(), strict=True))
    assert list(floats(TARAtFAR()(scores, labels))) == [f"tar@1e-0{k}" for k in range(6, 0, -1)]


def test_groups_of_probes_give_the_rank1_of_the_function(vectors):
    file = np.load(vectors / "ddl" / "scface_rank1.npz")
    part = {key: torch.from_numpy(file[key]) for key in file}
    metric = Rank1Identification()
    for g in (1, 0, 2):
        metric.update(part[f"probe{g}"], part[f"probe_id{g}"], torch.full((100,), g))
    metric.update(part["gallery"], part["gallery_id"], torch.full((20,), -1))
    found = floats(metric.compute())
    expected = [float(part[f"rank1_{g}"]) for g in range(3)]
    assert found == dict(zip(["d1", "d2", "d3", "mean"], [*expected, np.mean(expected)], strict=True))


@pytest.mark.parametrize("sizes", [[203], [1] * 203, [0, 100, 0, 103]])
def test_any_order_and_any_batches_give_the_same(kind, sizes):
    cls, kwargs, make = kind
    rows = make()
    whole = measured(cls, kwargs, rows)
    order = torch.randperm(203)
    metric = cls(**kwargs)
    for _ in range(2):
        for batch in zip(*(part[order].split(sizes) for part in rows), strict=True):
            metric.update(*batch)
        assert floats(metric.compute()) == whole
        metric.reset()


def test_rows_that_come_twice_count_once(kind):
    cls, kwargs, make = kind
    rows = make()
    again = torch.randint(203, (90,))
    metric = cls(**kwargs)
    metric.update(*rows)
    metric.update(*(part[again] for part in rows))
    assert floats(metric.compute()) == measured(cls, kwargs, rows)
    without = [torch.cat([part, part[again]]) for part in rows[:-1]]
    assert measured(cls, kwargs, without) != measured(cls, kwargs, rows)  # there is nothing to know them by


def test_without_index_the_order_is_that_of_arrival(kind):
    cls, kwargs, make = kind
    rows = make()
    by_index = rows[-1].argsort()
    metric = cls(**kwargs)
    for batch in zip(*(part[by_index].split(50) for part in rows[:-1]), strict=True):
        metric.update(*batch)
    assert floats(metric.compute()) == measured(cls, kwargs, rows)


def test_forward_gives_the_value_of_the_batch_and_keeps_it(kind):
    cls, kwargs, make = kind
    rows = make()
    metric = cls(**kwargs)
    for part in (slice(0, 100), slice(100, None)):
        batch = [column[part] for column in rows]
        assert floats(metric(*batch)) == measured(cls, kwargs, batch)
    assert floats(metric.compute()) == measured(cls, kwargs, rows)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_inputs_of_any_precision_are_taken_as_they_are(kind, dtype):
    cls, kwargs, make = kind
    rows = make()
    given = [part.to(dtype) if part.is_floating_point() else part for part in rows]
    exact = [part.double() if part.is_floating_point() else part for part in given]
    metric = nn.ModuleDict({"metric": cls(**kwargs)}).to(torch.bfloat16)["metric"]  # as in a module that is cast
    metric.update(*(part.requires_grad_() if part.is_floating_point() else part for part in given))
    metric.half()
    assert floats(metric.compute()) == measured(cls, kwargs, exact)
    assert not any(getattr(metric, name)[0].requires_grad for name in cls.columns)


def test_pairs_leave_a_distance_each_behind():
    metric = PairVerificationAccuracy()
    metric.update(*(part.float() if part.is_floating_point() else part for part in faces()))
    assert metric.distances[0].dtype == torch.float64
    assert sum(part.numel() for name in metric.columns for part in getattr(metric, name)) == 3 * 203


def test_one_index_may_be_in_the_gallery_and_among_probes():
    embeddings, labels, group, _ = people()
    index = torch.zeros_like(group)
    for g in range(-1, 3):
        index[group == g] = torch.arange(int((group == g).sum()))
    assert measured(Rank1Identification, {}, (embeddings, labels, group, index)) == measured(
        Rank1Identification, {}, (embeddings, labels, group)
    )


def test_of_equal_gallery_entries_the_lowest_index_counts():
    rows = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    labels, group = torch.tensor([4, 7, 4]), torch.tensor([-1, -1, 0])
    for index, right in (([0, 1, 2], 1), ([1, 0, 2], 0)):
        given = (rows, labels, group, torch.tensor(index))
        assert measured(Rank1Identification, {"groups": ["all"]}, given) == {"all": right, "mean": right}


def test_a_collection_keeps_the_metrics_apart():
    scores, labels, _ = scored()
    metrics = {method: TARAtFAR(targets=(0.2, 0.01), method=method) for method in ("nearest", "conservative")}
    collection = MetricCollection(metrics)
    for _ in range(2):
        for batch in zip(scores.split(70), labels.split(70), strict=True):
            collection.update(*batch)
        found = collection.compute()
        for method in metrics:
            alone = measured(TARAtFAR, {"targets": (0.2, 0.01), "method": method}, (scores, labels))
            assert {name: float(found[f"{method}_{name}"]) for name in alone} == alone
        collection.reset()


def on_rank(rank, jobs, put):
    for name, (cls, kwargs, shares) in jobs.items():
        metric = cls(**kwargs)
        if shares[rank] is not None:
            metric.update(*shares[rank])
        values = {key: float(value) for key, value in metric.compute().items()}
        mine = sum(map(len, getattr(metric, next(iter(metric.columns)))))  # what was gathered is given back
        put((name, rank, values, mine))


SHARES = ["every other row and some twice", "nothing", "an empty batch", "no index"]


def shared_out(rows, share):
    """What each of two processes sees."""
    if share == "every other row and some twice":  # as a sampler deals 203 rows to two, with repeats at the end
        return [[part[place] for part in rows] for place in (torch.arange(0, 203, 2), torch.arange(1, 215, 2) % 203)]
    if share == "no index":
        return [[part[:120] for part in rows[:-1]], [part[120:] for part in rows[:-1]]]
    return [None if share == "nothing" else [part[:0] for part in rows], rows]


@pytest.fixture(scope="module")
def in_two_processes(tmp_path_factory):
    """Per kind and share what either process gives: they start once for all."""
    jobs = {
        (name, share): (cls, kwargs, shared_out(make(), share))
        for name, (cls, kwargs, make) in KINDS.items()
        for share in SHARES
    }
    found = {job: [None, None] for job in jobs}
    for job, rank, *answer in answers_of(on_rank, 2, tmp_path_factory.mktemp("two"), jobs):
        found[job][rank] = answer
    return found


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", KINDS)
def test_two_processes_give_what_one_gives(name, share, in_two_processes):
    cls, kwargs, make = KINDS[name]
    rows = make()
    expected = measured(cls, kwargs, rows[:-1] if share == "no index" else rows)
    sizes = [0 if given is None else len(given[0]) for given in shared_out(rows, share)]
    assert in_two_processes[name, share] == [[expected, size] for size in sizes]


def test_processes_with_other_embeddings_are_an_error_on_all():
    metric = Rank1Identification()
    metric.update(*people())
    with pytest.raises(ValueError, match=r"embeddings must have one size and type on all processes.*D=3"):
        metric._sync_dist(lambda mine, group: [mine, torch.tensor([3, 2])])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PairVerificationAccuracy(n_folds=1), "n_folds=1 must be at least 2"),
        (lambda: TARAtFAR(method="exact"), '"nearest" or "conservative", got \'exact\''),
        (lambda: TARAtFAR(targets=()), "at least one"),
        (lambda: TARAtFAR(targets=(-0.1,)), r"between 0 and 1, got \[-0.1\]"),
        (lambda: TARAtFAR(targets=(1.1e-3, 1.2e-3)), "gives 'tar@1e-03' more than once"),
        (lambda: Rank1Identification(groups=()), "at least one and none"),
        (lambda: Rank1Identification(groups=("a", "a")), "names that differ"),
        (lambda: Rank1Identification(groups=("a", "mean")), 'none "mean"'),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("name", "place", "part", "message"),
    [
        ("pairs", 0, torch.zeros(203), r"embeddings_a must be \(B, D\) floating point, got \(203,\)"),
        ("pairs", 1, torch.zeros(203, 8).long(), "embeddings_b must be .* torch.int64"),
        ("pairs", 1, torch.zeros(203, 7), r"one shape \(B, D\), got \(203, 8\) and \(203, 7\)"),
        ("pairs", 2, torch.zeros(203), "same must be bool, or whole numbers 0 and 1, got torch.float32"),
        ("pairs", 2, torch.zeros(5).bool(), r"same must be \(203,\), one for each row, got \(5,\)"),
        ("pairs", 3, torch.zeros(203).bool(), "index must be whole numbers such as int64, got torch.bool"),
        ("scores", 0, torch.zeros(203, 1), r"scores must be \(B,\) floating point"),
        ("scores", 1, torch.zeros(203, 1).long(), r"labels must be \(203,\)"),
        ("people", 0, torch.zeros(203, 6).bool(), "embeddings must be .* torch.bool"),
        ("people", 2, torch.zeros(203), "group must be whole numbers such as int64, got torch.float32"),
    ],
)
def test_bad_rows_are_named(name, place, part, message):
    cls, kwargs, make = KINDS[name]
    rows = list(make())
    rows[place] = part
    with pytest.raises(ValueError, match=message):
        cls(**kwargs).update(*rows)


def spoilt(name, change):
    cls, kwargs, make = KINDS[name]
    rows = list(make())
    change(rows)
    return measured(cls, kwargs, rows)


def put(column, places, value):
    def change(rows):
        rows[column][places] = value

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("pairs", lambda rows: rows.__setitem__(slice(None), [part[:9] for part in rows]), "9 pairs are fewer than"),
        ("pairs", lambda rows: rows.__setitem__(2, rows[2].long() * 2), "same must be 0 or 1, got 2"),
        ("pairs", lambda rows: (put(2, [0, 1], rows[2].new_tensor([0, 1]))(rows), put(3, [0, 1], 4)(rows)),
         "index=4 of the pairs came with same 0 and with 1; index must be unique"),
        ("scores", lambda rows: (put(1, [0, 1], rows[1].new_tensor([1, 0]))(rows), put(2, [0, 1], 4)(rows)),
         "of the pairs came with label"),
        ("scores", put(1, slice(None), 1), "203 genuine .* and 0 impostor pairs"),
        ("people", put(2, 8, 3), r"group=3 is not one of -1 \(gallery\) to 2, the last of groups=\('d1', 'd2', 'd3'\)"),
        ("people", put(2, slice(None), 0), "no image of gallery; update it with the gallery"),
        ("people", lambda rows: put(2, rows[2] == 1, 2)(rows), "no image of d2"),
        ("people", lambda rows: put(3, rows[2] == 1, 4)(rows), "index=4 of the images of d2 came with label"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_what_cannot_be_computed_says_why(name, change, message):
    with pytest.raises(ValueError, match=message):
        spoilt(name, change)


@pytest.mark.parametrize("name", KINDS)
def test_inputs_that_are_not_finite_are_named_by_their_index(name):
    _, _, make = KINDS[name]
    rows = make()
    where = rows[2] == 1 if name == "people" else torch.ones(203, dtype=torch.bool)
    bad = where.nonzero().squeeze(1)[[3, 9]]
    first = int(rows[-1][bad].min())
    with pytest.raises(ValueError, match=f"has 2 of {int(where.sum())} rows that are not finite.* index {first};"):
        spoilt(name, put(0, bad, torch.nan))


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_a_metric_without_rows_says_so(kind):
    cls, kwargs, make = kind
    with pytest.raises(ValueError, match=f"{cls.__name__} has seen no"):
        cls(**kwargs).compute()
    metric = cls(**kwargs)
    metric.update(*make())
    metric.update(*make(seed=1)[:-1])
    with pytest.raises(ValueError, match=r"203 of 406 .* came without index; give it in every update"):
        metric.compute()


def test_an_identification_is_that_of_its_gallery_alone():
    embeddings, labels, group, index = people()
    order = index.argsort()
    embeddings, labels, group = embeddings[order], labels[order], group[order]
    gallery = embeddings[group == -1], labels[group == -1]
    found = measured(Rank1Identification, {}, (embeddings, labels, group))
    for g, name in enumerate(("d1", "d2", "d3")):
        assert found[name] == float(rank1_identification(*gallery, embeddings[group == g], labels[group == g]))
    assert found["d1"] > found["d3"] > 0
