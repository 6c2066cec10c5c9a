"""The authors' table: read as it is, refused where it is broken, and searched without training."""

import math

import numpy as np
import pytest

from lit_methods.bpe_mip.table import HYPER_PARAMETERS, TrialTable, compare, random_hours, read_table, replay

TRIALS = (
    "trial,epochs,batch_size,lr,layers,fp,channels,cutout,image_size,mean_accuracy,spearman,gpu_hours,gpu\n"
    "a,10,128,0.03,6,32,8,0,16,65,1.0,0.5,v100\nb,20,256,0.06,6,16,8,16,32,70,-1.0,2,v100\n"
)
FILES = {
    "trials.csv": TRIALS,
    "trial_accuracies.csv": "arch_id,a,b\n2,60,70\n1,50,80\n3,70,60\n",
    "ground_truth.csv": "arch_id,accuracy\n1,95\n2,96\n3,97\n",
}


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def grid():
    """Every recipe of a small space; only epochs and layers matter, and ever larger networks take ever longer."""
    recipes = [{"epochs": e, "layers": n, "cutout": c} for e in (1, 2, 3, 4) for n in (1, 2, 3) for c in (0, 16)]
    rng = np.random.default_rng(0)
    truth = rng.normal(size=60)
    noise = np.array([2.5 / (r["epochs"] + r["layers"]) for r in recipes])
    accuracies = truth + noise[:, None] * rng.normal(size=60)
    hours = np.array([r["epochs"] * r["layers"] + (0.1 if r["cutout"] else 0) for r in recipes])
    return TrialTable([f"t{i}" for i in range(24)], recipes, accuracies, truth, hours, np.zeros(24))


def by_spread(x, y, names, n_values, seed):
    return [np.ptp([y[column == v].mean() for v in np.unique(column)]) for column in x.T]


def test_small_table_is_read_with_types_and_rows_put_right(folder):
    table = read_table(folder)
    assert table.names == ["a", "b"]
    assert table.recipes[1] == dict(zip(HYPER_PARAMETERS, (20, 256, 0.06, 6, 16, 8, 16, 32), strict=True))
    assert type(table.recipes[1]["epochs"]) is int
    assert table.accuracies.tolist() == [[0.6, 0.5, 0.7], [0.7, 0.8, 0.6]]
    assert table.truth.tolist() == [0.96, 0.95, 0.97]  # in the order of the accuracies
    assert table.hours.tolist() == [0.5, 2]
    assert table.scores().tolist() == table.published.tolist() == [1, -1]
    assert table.codes().tolist() == [[0, 0, 0, 0, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0, 1, 1]]


def test_shared_table_has_what_its_page_says(shared):
    table = read_table(shared / "data/bpe_mip")
    assert table.accuracies.shape == (26, 100)
    assert table.truth.shape == (100,)
    assert table.truth.mean() == pytest.approx(0.9699, abs=1e-4)
    assert table.hours[table.names.index("test5")] == 0.0852
    assert len({tuple(r.values()) for r in table.recipes}) == 26
    assert table.codes().max(0).tolist() == [6, 4, 3, 5, 1, 7, 1, 1]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {name} in folder="):
        read_table(folder)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("trials.csv", "gpu_hours", "hours", r"trials.csv has no column 'gpu_hours'"),
        ("trials.csv", "0.03", "fast", r"trials.csv, row 'a': column 'lr' holds 'fast'"),
        ("trials.csv", TRIALS, TRIALS.splitlines()[0], "no rows"),
        ("trial_accuracies.csv", "arch_id,a,b", "arch_id,a,c", "trial_accuracies.csv has no column 'b'"),
        ("trial_accuracies.csv", "1,50,80", "1,50,", "row '1': column 'b' holds ''"),
        ("trial_accuracies.csv", "1,50,80", "1,50", "column 'b' holds None"),
        ("trial_accuracies.csv", "1,50,80", "4,50,80", "same architectures, each once; look at"),
        ("trial_accuracies.csv", "1,50,80", "2,50,80", "same architectures, each once; look at 1"),
        ("ground_truth.csv", "accuracy", "top1", "ground_truth.csv has no column 'accuracy'"),
        ("ground_truth.csv", "97", "nan", "row '3': column 'accuracy' holds 'nan'"),
    ],
)
def test_a_broken_file_is_named_with_its_column(folder, name, old, new, message):
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        read_table(folder)


def test_replay_measures_all_trials_once_the_cheapest_first(grid):
    for seed in range(4):
        result = replay(grid, seed=seed, importance=by_spread, defaults={})
        assert sorted(result.order) == sorted(grid.names)
        assert result.order[0] == "t0"
        hours = [60 * grid.hours[grid.names.index(name)] for name in result.order]
        np.testing.assert_allclose(result.hours, np.cumsum(hours))
        best = max(result.scores)
        first = next(i for i, score in enumerate(result.scores) if score >= best - 0.02)
        assert (result.found_after, result.hours_to_found) == (first + 1, result.hours[first])
        fixed = dict(result.pruned)
        last = grid.recipes[grid.names.index(result.order[result.own - 1])]
        assert fixed.items() <= last.items()
        assert result.found_by_mip == (result.found_after <= result.own)


def test_random_order_is_a_function_of_the_seed(grid):
    orders = [random_hours(grid, seed=seed).order for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(grid.names)


def test_a_budget_holds_for_recipes_and_for_the_best(grid):
    for result in (replay(grid, importance=by_spread, budget=4, defaults={}), random_hours(grid, budget=4)):
        names = {name for name, hours in zip(grid.names, grid.hours, strict=True) if hours <= 4}
        assert set(result.order) == names
        assert result.found_after > 0
    with pytest.raises(ValueError, match=r"budget=1.0 hours leaves 1 of 24 trials; the two cheapest take 1, 1.1"):
        replay(grid, budget=1.0)


def test_comparison_is_one_replay_for_each_seed(grid):
    found = compare(grid, seeds=[3, 5], importance=by_spread, defaults={}, budget=9)
    ours = [replay(grid, seed=s, importance=by_spread, defaults={}, budget=9) for s in (3, 5)]
    others = [random_hours(grid, seed=s, budget=9) for s in (3, 5)]
    assert found["mip_hours"].tolist() == [r.hours_to_found for r in ours]
    assert found["random_hours"].tolist() == [r.hours_to_found for r in others]
    assert found["mip_best"].tolist() == [max(r.scores[: r.own]) for r in ours]
    for one, other, best in zip(ours, others, found["random_best"], strict=True):
        spent = one.hours[one.own - 1]
        assert best == max((s for s, h in zip(other.scores, other.hours, strict=True) if h <= spent), default=math.nan)
    with pytest.raises(ValueError, match="names no seed"):
        compare(grid, seeds=0)
    with pytest.raises(ValueError, match="within=-1 must be 0 or more"):
        replay(grid, importance=by_spread, within=-1)


def test_replay_of_the_shared_table_keeps_the_published_batch_size(shared):
    table = read_table(shared / "data/bpe_mip")
    plain, kept = (replay(table, n_estimators=20, defaults=d, seed=2) for d in ({}, None))
    for result, values in ((plain, (1024, 0.1)), (kept, (128, 0.03))):
        fixed = dict(result.pruned)
        assert {"batch_size", "lr"} & set(fixed)
        assert all(fixed.get(name, value) == value for name, value in zip(("batch_size", "lr"), values, strict=True))
        assert result.found_after > 0
