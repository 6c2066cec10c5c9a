"""MIP as rounds of trials: what it prunes, measures and spends, and what it says about it."""

import json
from statistics import median

import pytest

from callbacks import MIPSearch
from lit_methods.bpe_mip.cost import gpu_hours
from lit_methods.bpe_mip.functional import expected_pick, spearman, top_mean
from lit_methods.bpe_mip.search_space import Recipe, genotype_from_sample28
from tests.fake_trials import SMALL, architectures, fake_trials, noisy, number, search, truth_of
from tests.left_behind import read_rows

pytestmark = pytest.mark.usefixtures("no_figures")

SPACE = {"epochs": [1, 2, 4], "layers": [3, 4], "cutout": [0, 2]}
COUNT = 6
TEXTS = architectures(COUNT)
GENOTYPES = [genotype_from_sample28([int(n) for n in text.split()]) for text in TEXTS]


def mip(**changes) -> MIPSearch:
    usual = {"space": SPACE, "base": SMALL, "truth_recipe": SMALL | {"epochs": 9}, "n_estimators": 20}
    return MIPSearch(**usual | {"k": 4, "spread_seeds": 2} | changes)


def told(callback: MIPSearch, values: dict, seed: int = 0, score=noisy) -> list[float]:
    return [score(genotype, callback.recipe(values), seed) for genotype in GENOTYPES]


def test_a_hyper_parameter_without_effect_goes_first(make_trainer, tmp_path):
    callback = mip(k=9)
    with fake_trials(tmp_path / "calls", noisy) as calls:
        search(make_trainer, callback, architectures=TEXTS, ground_truth=truth_of(TEXTS))
    assert callback.summary()["mip/pruned_first"] == "cutout"
    assert callback.mip.importances[0]["cutout"] < min(
        callback.mip.importances[0][name] for name in ("epochs", "layers")
    )
    assert len(calls) == calls.different


def test_the_summary_is_what_one_gets_by_hand(make_trainer, tmp_path):
    callback, truth = mip(), truth_of(TEXTS)
    with fake_trials(tmp_path / "calls", noisy) as calls:
        search(make_trainer, callback, architectures=TEXTS, ground_truth=truth)
    values = [dict(zip(SPACE, map(int, row), strict=True)) for row in measured(tmp_path)]
    assert len({tuple(one.values()) for one in values}) == len(values)  # none was measured twice
    scores = [spearman(told(callback, one), truth) for one in values]
    best = max(range(len(values)), key=lambda i: (scores[i], -gpu_hours(callback.recipe(values[i]))))
    recipe, summary = callback.recipe(values[best]), callback.summary()
    fresh = told(callback, values[best], seed=1_000_003)
    spent = sum(gpu_hours(callback.recipe(one)) for one in [*values, values[best]]) * COUNT
    wanted = {
        "mip/found_spearman": scores[best],
        "mip/median_spearman": median(scores),
        "mip/recipes": len(values),
        "mip/hours": spent,
        "mip/cost_saved": 1 - gpu_hours(recipe) / gpu_hours(callback.truth_recipe),
        "mip/best_spearman": spearman(fresh, truth),
        "mip/top_mean": top_mean(fresh, truth, k=1),
        "mip/expected_pick": expected_pick(fresh, truth, n=1),
    }
    for name, value in wanted.items():
        assert summary[name] == pytest.approx(value), name
    assert summary["mip/best_recipe"] == recipe.key()
    assert summary["mip/pruned"] == list(callback.mip.fixed)
    assert summary.keys() == {*wanted, "mip/best_recipe", "mip/pruned", "mip/pruned_first"}
    assert Recipe.from_dict(json.loads((tmp_path / "best_recipe.json").read_text())) == recipe
    assert len(calls) == calls.different == (len(values) + 1) * COUNT


def measured(folder) -> list[list[str]]:
    return [[row[name] for name in SPACE] for row in read_rows(folder / "tables" / "mip_recipes.csv")]


def test_the_truth_is_measured_where_there_is_none(make_trainer, tmp_path):
    callback = mip()
    with fake_trials(tmp_path / "calls", noisy) as calls:
        search(make_trainer, callback, architectures=TEXTS)
    first = list(calls)[:COUNT]
    assert [call[0] for call in first] == [genotype.key() for genotype in GENOTYPES]
    assert {call[1] for call in first} == {callback.truth_recipe.key()}
    assert callback.truth == [noisy(genotype, callback.truth_recipe, 0) for genotype in GENOTYPES]
    measured_hours = sum(one["hours"] for one in callback.found) + callback.mip.cost(callback.mip.best())
    assert callback.spent == pytest.approx(COUNT * (gpu_hours(callback.truth_recipe) + measured_hours))


def test_hours_end_the_search_in_the_middle(make_trainer, tmp_path):
    whole = mip()
    costs = [whole.mip.cost(one) for one in whole.mip.ask()]
    hours = COUNT * sum(costs[:2]) * 1.001  # of four recipes that a round would have
    callback = mip(hours=hours)
    with fake_trials(tmp_path / "calls", noisy) as calls:
        search(make_trainer, callback, architectures=TEXTS, ground_truth=truth_of(TEXTS))
    summary = callback.summary()
    assert summary["mip/recipes"] == 2
    again = callback.mip.cost(callback.mip.best()) * COUNT  # the second measurement comes on top
    assert summary["mip/hours"] - again <= hours
    assert len(calls) == 3 * COUNT  # the best one is measured again all the same
    assert "mip/best_spearman" in summary


def test_hours_below_one_trial_end_before_anything_runs(make_trainer, tmp_path):
    with fake_trials(tmp_path / "calls") as calls, pytest.raises(ValueError, match="hours=1e-06 are fewer than"):
        search(make_trainer, mip(hours=1e-6), architectures=TEXTS, ground_truth=truth_of(TEXTS))
    assert len(calls) == 0


def test_hours_below_a_recipe_for_all_architectures_are_refused(make_trainer, tmp_path):
    least = min(mip().mip.cost(one) for one in mip().mip.ask())
    with fake_trials(tmp_path / "calls") as calls, pytest.raises(ValueError, match="than the first recipe takes for 6"):
        search(make_trainer, mip(hours=2 * least), architectures=TEXTS, ground_truth=truth_of(TEXTS))
    assert len(calls) == 0


def test_the_best_recipe_is_within_the_budget(make_trainer, tmp_path):
    callback = mip(k=12)
    costs = sorted(callback.mip.cost(one) for one in callback.mip.ask())
    callback = mip(k=12, budget=costs[3])

    def score(genotype, recipe, seed):
        return noisy(genotype, recipe, seed) if recipe.epochs == 4 else 1 - number(genotype)

    with fake_trials(tmp_path / "calls", score) as calls:
        search(make_trainer, callback, architectures=TEXTS, ground_truth=truth_of(TEXTS))
    best = callback.mip.best(costs[3])
    assert {call[1] for call in list(calls)[-COUNT:]} == {callback.recipe(best).key()}  # measured again
    assert callback.mip.cost(best) <= costs[3] < callback.mip.cost(callback.mip.best())
    assert callback.summary()["mip/best_recipe"] == callback.recipe(best).key()


def test_a_recipe_that_tells_nothing_apart_counts_as_nothing(make_trainer, tmp_path):
    def score(genotype, recipe, seed):
        return 0.1 if recipe.epochs == 1 else number(genotype)

    callback = mip(k=12)
    with fake_trials(tmp_path / "calls", score), pytest.warns(UserWarning, match="rank correlation is undefined"):
        search(make_trainer, callback, architectures=TEXTS, ground_truth=truth_of(TEXTS))
    for one in callback.found:
        assert one["spearman"] == pytest.approx(float(one["values"]["epochs"] > 1))


def test_a_truth_that_comes_out_constant_is_refused(make_trainer, tmp_path):
    told_ = r"ground truth came out constant \(0.1\) under truth_recipe"
    with fake_trials(tmp_path / "calls", lambda *job: 0.1), pytest.raises(ValueError, match=told_):
        search(make_trainer, mip(), architectures=TEXTS)


def test_architectures_that_failed_are_left_out_of_the_ranking(make_trainer, tmp_path):
    def score(genotype, recipe, seed):
        if genotype == GENOTYPES[0] and recipe.epochs == 4:
            raise FloatingPointError("not finite")
        return noisy(genotype, recipe, seed)

    callback, truth = mip(k=12), truth_of(TEXTS)
    with fake_trials(tmp_path / "calls", score):
        search(make_trainer, callback, architectures=TEXTS, ground_truth=truth)
    for one in callback.found:
        failed = int(one["values"]["epochs"] == 4)
        assert one["failed"] == failed
        found = told(callback, one["values"])
        assert one["spearman"] == pytest.approx(spearman(found[failed:], truth[failed:]))


def test_the_learning_rate_follows_the_batch_size_unless_it_is_searched_too():
    assert mip(space={"batch_size": [64, 512]}).recipe({"batch_size": 512}).lr == 0.1
    assert mip(space={"epochs": [1, 2]}).recipe({"epochs": 2}).lr == SMALL["lr"]
    assert mip(space={"batch_size": [64, 512], "lr": [0.2, 0.3]}).recipe({"batch_size": 512, "lr": 0.2}).lr == 0.2


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"space": {"epoch": [1, 2]}}, "epoch"),
        ({"space": {"image_size": [8, 10]}}, "image_size=10"),
        ({"space": {"epochs": [1]}}, "nothing to search"),
        ({"space": {"epochs": [2, 1]}}, "sorted|rising"),
        ({"defaults": {"epochs": 7}}, "epochs=7"),
        ({"sampler": "greedy"}, "sampler='greedy'"),
        ({"base": "BPE9"}, "BPE9"),
    ],
)
def test_wrong_arguments_are_named(changes, text):
    with pytest.raises(ValueError, match=text):
        mip(**changes)
