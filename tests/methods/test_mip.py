"""Minimum importance pruning against the stored search, and what it promises to its caller."""

import itertools
import math
import random
import warnings

import numpy as np
import pytest
import torch

from lit_methods.bpe_mip.mip import MIP

SPACE = {"epochs": [1, 2, 4], "cutout": [0, 16], "layers": [2, 3, 5]}


def cost(recipe):
    return recipe["epochs"] * recipe["layers"] * (1.5 if recipe["cutout"] else 1)


def score(recipe):
    """Cutout changes nothing."""
    return math.log(recipe["epochs"]) / 2 + recipe["layers"] / 10


def by_spread(x, y, names, n_values, seed):
    """A cheap stand-in for the forest: how far the mean scores of a name's values lie apart."""
    return [np.ptp([y[column == v].mean() for v in np.unique(column)]) for column in x.T]


def run(mip, measure=score):
    """The caller's loop; returns what was asked for in each round."""
    rounds = []
    while recipes := mip.ask():
        mip.tell(recipes, [measure(recipe) for recipe in recipes])
        rounds.append(recipes)
        if mip.done:
            break
        mip.prune()
    return rounds


def make(**options):
    return MIP(SPACE, cost, **{"importance": by_spread, "k": 5} | options)


class Stored:
    """The table and the traces of ``mip_live.npz``."""

    def __init__(self, path, kind):
        self.all, self.kind = np.load(path), kind
        self.sizes = self.all["n_values"].tolist()
        self.space = {f"h{i}": list(range(n)) for i, n in enumerate(self.sizes)}
        self.order = [self.recipe(flat) for flat in self["order"].tolist()]

    def __getitem__(self, key):
        return self.all[f"{self.kind}_{key}"]

    def recipe(self, flat):
        return dict(zip(self.space, map(int, np.unravel_index(flat, self.sizes)), strict=True))

    def flat(self, recipe):
        return int(np.ravel_multi_index(list(recipe.values()), self.sizes))

    def search(self, importance, sampler):
        """To the last name, whether or not something is left to measure."""
        mip = MIP(
            self.space,
            lambda recipe: self.all["cost"][self.flat(recipe)],
            sampler=sampler,
            k=int(self.all["K"]),
            importance=importance,
            n_estimators=int(self.all["n_estimators"]),
            seed=int(self.all["seed"]),
        )
        samples = []
        while True:
            recipes = mip.ask()
            samples.append([self.flat(recipe) for recipe in recipes])
            mip.tell(recipes, [self.all["rho"][flat] for flat in samples[-1]])
            if len(mip.remaining) == 1:
                return mip, samples
            mip.prune()


@pytest.mark.parametrize(("kind", "sampler"), [("cheapest", "cheapest"), ("cheapest", "list"), ("random", "list")])
def test_search_is_that_of_the_reference(vectors, kind, sampler):
    stored = Stored(vectors / "bpe_mip/mip_live.npz", kind)
    rows, calls = iter(stored["importance"]), []

    def importance(x, y, names, n_values, seed):
        calls.append((names, n_values, seed, x.shape, y.shape))
        row = next(rows)
        return row[~np.isnan(row)]

    mip, samples = stored.search(importance, stored.order if sampler == "list" else sampler)
    assert samples == [[flat for flat in row if flat >= 0] for row in stored["samples"].tolist()]
    assert list(mip.fixed) == [f"h{i}" for i in stored["pruned"]]
    assert list(mip.fixed.values()) == stored["fixed_value"].tolist()
    assert stored.flat(mip.best(float(stored.all["budget"]))) == stored["best"]
    for i, (names, n_values, seed, x_shape, y_shape) in enumerate(calls):
        assert (len(names), seed) == (6 - i, int(stored.all["seed"]) + i)
        assert n_values == [len(stored.space[name]) for name in names]
        assert x_shape == (sum(map(len, samples[: i + 1])), len(names))
        assert y_shape == x_shape[:1]


def test_first_importances_are_those_of_the_reference(vectors):
    stored = Stored(vectors / "bpe_mip/mip_live.npz", "random")
    cost_of, rho = stored.all["cost"], stored.all["rho"]
    options = {"k": int(stored.all["K"]), "n_estimators": int(stored.all["n_estimators"]), "importance": "impurity"}
    mip = MIP(
        stored.space,
        lambda recipe: cost_of[stored.flat(recipe)],
        sampler=stored.order,
        seed=int(stored.all["seed"]),
        **options,
    )
    mip.tell(mip.ask(), [rho[stored.flat(recipe)] for recipe in mip.ask()])
    mip.prune()
    found = list(mip.importances[0].values())
    np.testing.assert_allclose(found, stored["importance"][0], rtol=0, atol=0.05)  # 0 with the same scikit-learn


@pytest.mark.parametrize("sampler", ["random", "cheapest"])
@pytest.mark.parametrize("importance", ["fanova", "impurity"])
def test_a_name_without_effect_goes_first(sampler, importance):
    for seed in range(3):
        mip = make(sampler=sampler, importance=importance, seed=seed, k=12, n_estimators=40)
        run(mip)
        assert next(iter(mip.importances[0])) == "epochs"
        assert next(iter(mip.fixed.items())) == ("cutout", 0)
        assert mip.reasons[0].startswith("cutout: importance ")
        assert mip.reasons[0].endswith(" is the smallest of 3; fixed at 0, its value in the cheapest recipe")


@pytest.mark.filterwarnings("ignore:the target is constant")  # after a single recipe
@pytest.mark.parametrize("sampler", ["random", "cheapest"])
def test_nothing_is_measured_twice_and_the_space_only_shrinks(sampler):
    for seed, k in itertools.product(range(5), (1, 3, 7)):
        mip = make(sampler=sampler, seed=seed, k=k)
        fixed, told = {}, []
        while recipes := mip.ask():
            assert len(recipes) <= k
            assert fixed.items() <= mip.fixed.items()
            assert set(mip.fixed) | set(mip.remaining) == set(SPACE)
            fixed = dict(mip.fixed)
            assert all(fixed.items() <= recipe.items() for recipe in recipes)
            mip.tell(recipes, list(map(score, recipes)))
            told += map(tuple, map(dict.values, recipes))
            if not mip.done:
                mip.prune()
        assert len(set(told)) == len(told) == len(mip.trials)


def test_the_best_lies_within_the_budget():
    mip = make(k=18)
    run(mip)
    for budget in (2, 4, 7, 12.5, 100):
        best = mip.best(budget)
        within = [recipe for recipe, _ in mip.trials if cost(recipe) <= budget]
        assert cost(best) <= budget
        assert score(best) == max(map(score, within))
        assert best["cutout"] == 0  # of equal ones the cheaper
    assert mip.best() == {"epochs": 4, "cutout": 0, "layers": 5}
    assert mip.cost(mip.best()) == 20
    with pytest.raises(ValueError, match="budget=1 is below the cost of every measured recipe; the cheapest costs 2"):
        mip.best(1)


def test_of_equal_scores_the_cheaper_recipe_is_the_best():
    mip = make()
    dear, cheap = ({"epochs": 4, "cutout": c, "layers": 5} for c in (16, 0))
    mip.tell([dear, cheap, {"epochs": 1, "cutout": 0, "layers": 2}], [0.5, 0.5, 0.4])
    assert mip.best() == cheap


def test_random_order_starts_with_the_cheapest_and_is_a_function_of_the_seed():
    orders = [[tuple(r.values()) for r in make(seed=seed, k=18).ask()] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == sorted(itertools.product(*SPACE.values()))
    assert orders[0][0] == orders[2][0] == (1, 0, 2)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global state is what must not matter
    assert [tuple(r.values()) for r in make(k=18).ask()] == orders[0]


def test_cheapest_order_rises_and_breaks_ties_row_major():
    order = make(sampler="cheapest", k=18).ask()
    index = {values: i for i, values in enumerate(itertools.product(*SPACE.values()))}
    keys = [(cost(r), index[tuple(r.values())]) for r in order]
    assert keys == sorted(keys)


def test_asking_again_gives_the_same_until_scores_are_told():
    mip = make()
    asked = mip.ask()
    asked[0]["epochs"] = 99  # the caller's copy
    assert mip.ask()[1:] == asked[1:]
    assert mip.ask()[0]["epochs"] == 1
    mip.tell(mip.ask()[1:2], [0.5])
    assert len(mip.ask()) == 5
    assert asked[1] not in mip.ask()


def test_a_name_that_was_not_varied_is_protected():
    mip = make(importance=lambda x, y, names, n_values, seed: [0.5, 0.0, 0.4])
    mip.tell([{"epochs": e, "cutout": 0, "layers": layers} for e in (1, 2) for layers in (2, 3)], [0.1, 0.2, 0.3, 0.4])
    assert mip.prune() == ("layers", 2)
    assert "cutout had one value among the measured recipes" in mip.reasons[0]


def test_without_any_varied_name_the_smallest_goes_and_a_warning_says_why():
    mip = make(importance=lambda x, y, names, n_values, seed: [0.5, 0.3, 0.3])
    mip.tell(mip.ask()[:1], [0.5])
    with pytest.warns(UserWarning, match="the target is constant: all 1 measured recipes have the score 0.5"):
        assert mip.prune() == ("cutout", 0)  # the first of equal ones


def test_a_constant_target_warns_once_and_prunes_in_order():
    mip = make(importance="fanova", n_estimators=3, k=18)
    mip.tell(mip.ask(), [0.25] * 18)
    with pytest.warns(UserWarning, match="the target is constant"):
        assert mip.prune()[0] == "epochs"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mip.prune()[0] == "cutout"
    assert set(mip.importances[0].values()) == {0.0}


def test_defaults_stand_instead_of_the_cheapest_value():
    mip = make(defaults={"cutout": 16})
    run(mip)
    assert mip.fixed["cutout"] == 16
    assert any("fixed at 16, its default" in reason for reason in mip.reasons)


def test_a_name_with_one_value_is_fixed_from_the_start():
    mip = MIP({"fp": [32], "epochs": [1, 2], "cutout": [0, 16]}, lambda r: r["epochs"], importance=by_spread)
    assert (mip.fixed, mip.remaining) == ({"fp": 32}, ["epochs", "cutout"])
    mip.tell(mip.ask(), [recipe["epochs"] for recipe in mip.ask()])
    assert mip.prune() == ("cutout", 0)
    assert (mip.fixed, mip.done) == ({"fp": 32, "cutout": 0}, True)


def test_a_list_of_some_recipes_is_a_space_of_its_own():
    some = [{"epochs": 4, "cutout": 16, "layers": 5}, {"epochs": 2, "cutout": 0, "layers": 3},
            {"epochs": 2, "cutout": 16, "layers": 2}, {"epochs": 4, "cutout": 0, "layers": 2}]  # fmt: skip
    mip = make(sampler=some, defaults={"cutout": 16}, k=4)
    assert mip.ask() == some
    mip.tell(some, [0.4, 0.1, 0.2, 0.3])
    while len(mip.remaining) > 1:
        mip.prune()
    left = [r for r in some if mip.fixed.items() <= r.items()]
    assert left  # it never fixes values that no recipe has
    assert mip.done
    with pytest.raises(ValueError, match="not among the 4 recipes of sampler"):
        mip.tell([{"epochs": 1, "cutout": 0, "layers": 2}], [0.5])


def test_a_default_that_no_listed_recipe_has_gives_way():
    some = [{"epochs": e, "cutout": 0, "layers": layers} for e in (1, 2) for layers in (2, 3)]
    mip = make(sampler=some, defaults={"layers": 5}, k=4)
    mip.tell(mip.ask(), [0.1, 0.1, 0.3, 0.3])
    assert mip.prune() == ("layers", 2)
    assert "none that is left has its default 5" in mip.reasons[0]


def test_spread_holds_the_range_over_seeds():
    mip = make(importance="fanova", n_estimators=4, k=12, spread_seeds=3)
    mip.tell(mip.ask(), list(map(score, mip.ask())))
    mip.prune()
    (spread,) = mip.spread
    assert list(spread) == list(SPACE)
    assert all(low <= mip.importances[0][name] <= high for name, (low, high) in spread.items())
    assert any(low < high for low, high in spread.values())


def test_a_resumed_search_goes_on_bit_for_bit(tmp_path):
    def fresh():
        return make(importance="fanova", n_estimators=10, k=3, seed=7, spread_seeds=2)

    whole, begun = fresh(), fresh()
    run(whole)
    begun.tell(begun.ask(), list(map(score, begun.ask())))
    begun.prune()
    begun.tell(begun.ask()[:1], list(map(score, begun.ask()[:1])))  # stopped within a round
    torch.save(begun.state_dict(), tmp_path / "mip.pt")
    resumed = fresh()
    resumed.load_state_dict(torch.load(tmp_path / "mip.pt", weights_only=True))
    assert resumed.state_dict() == begun.state_dict()
    assert resumed.ask()[:2] == begun.ask()[:2]
    rest = resumed.ask()[:2]
    resumed.tell(rest, list(map(score, rest)))
    resumed.prune()
    run(resumed)
    assert resumed.state_dict() == whole.state_dict()
    assert resumed.best() == whole.best()


def test_the_state_of_another_search_is_refused():
    state = make().state_dict()
    with pytest.raises(ValueError, match="belongs to another search"):
        make(seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="belongs to another search"):
        MIP({"epochs": [1, 2]}, lambda r: 1).load_state_dict(state)
    del state["trials"], state["fixed"]
    with pytest.raises(ValueError, match="lacks trials, fixed"):
        make().load_state_dict(state)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "must be a dict"),
        ({"a": []}, r"space\['a'\] is empty"),
        ({"a": 3}, r"space\['a'\]=3 must be a list"),
        ({"a": "32"}, "must be a list of values"),
        ({"a": [2, 1]}, r"is not sorted; give \[1, 2\]"),
        ({"a": [1, 1, 2]}, "has a value twice"),
        ({"a": [1, float("nan")]}, "holds nan"),
        ({"a": [1, "x"]}, "mixes numbers and words"),
        ({"a": [[1], [2]]}, r"holds \[1\]"),
        ({"a": [1], "b": [2]}, "1 recipe in all"),
        ({f"h{i}": list(range(10)) for i in range(7)}, "space has 10000000 recipes, more than the 2000000"),
    ],
)
def test_spaces_that_cannot_be_searched_are_refused(space, message):
    with pytest.raises(ValueError, match=message):
        MIP(space, lambda recipe: 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0 must be a whole number from 1 on"),
        ({"k": 2.5}, "k=2.5 must be"),
        ({"n_estimators": 0}, "n_estimators=0 must be"),
        ({"seed": -1}, "seed=-1 must be"),
        ({"seed": 2**31}, "below"),
        ({"importance": "shap"}, "importance='shap' must be one of fanova, impurity"),
        ({"sampler": "cheap"}, "sampler='cheap' must be one of random, cheapest"),
        ({"sampler": []}, "0 recipe in all"),
        ({"sampler": [{"epochs": 1}]}, "lacks cutout, layers"),
        ({"sampler": [{"epochs": 1, "cutout": 0, "layers": 2}] * 2}, "twice"),
        ({"defaults": {"epoch": 1}}, "'epoch' is no name of the space; did you mean 'epochs'"),
        ({"defaults": {"epochs": 3}}, r"epochs=3 is none of its values \[1, 2, 4\]"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_cost_that_is_no_cost_is_refused():
    for bad in (math.nan, math.inf, -1.0):
        with pytest.raises(ValueError, match=r"cost_fn gives .* for {'epochs': 1}"):
            MIP({"epochs": [1, 2]}, lambda recipe, bad=bad: bad)


@pytest.mark.parametrize(
    ("recipes", "scores", "message"),
    [
        ([{"epochs": 1, "cutout": 0, "layers": 2}], [], "1 recipes were told with 0 scores"),
        ([{"epochs": 3, "cutout": 0, "layers": 2}], [0.1], "epochs=3 is none of its values"),
        ([{"epochs": 1, "cutout": 0, "layers": 2, "fp": 16}], [0.1], "'fp' is no name"),
        ([{"epochs": 1, "cutout": 0}], [0.1], "lacks layers"),
        ([{"epochs": 1, "cutout": 0, "layers": 2}], [math.nan], "undefined correlation: the recipe gave all networks"),
        ([{"epochs": 1, "cutout": 0, "layers": 2}], [math.inf], "scores must be finite"),
        ([{"epochs": 1, "cutout": 0, "layers": 2}] * 2, [0.1, 0.1], "measured before"),
        ([{"epochs": 2, "cutout": 0, "layers": 2}], [0.1], "measured before"),
    ],
)
def test_scores_that_make_no_sense_are_refused_as_a_whole(recipes, scores, message):
    mip = make()
    mip.tell([{"epochs": 2, "cutout": 0, "layers": 2}], [0.4])
    with pytest.raises(ValueError, match=message):
        mip.tell(recipes, scores)
    assert len(mip.trials) == 1
    assert {"epochs": 1, "cutout": 0, "layers": 2} in mip.ask()


def test_pruning_too_early_or_too_late_is_refused():
    mip = make(k=18)
    with pytest.raises(ValueError, match="call ask"):
        mip.prune()
    with pytest.raises(ValueError, match="call ask"):
        mip.best()
    mip.tell(mip.ask(), list(map(score, mip.ask())))
    mip.prune()
    mip.prune()
    with pytest.raises(ValueError, match="only 'epochs' remains"):
        mip.prune()


@pytest.mark.parametrize("answer", [[0.1, 0.2], [0.1, 0.2, math.nan]])
def test_an_importance_function_that_is_wrong_changes_nothing(answer):
    mip = make(importance=lambda *_: answer)
    mip.tell(mip.ask(), list(map(score, mip.ask())))
    with pytest.raises(ValueError, match="one finite number for each of"):
        mip.prune()
    assert (len(mip.remaining), mip.importances, mip.reasons) == (3, [], [])
