"""Importance of hyper-parameters: leaf sums against the grid, the closed form, stored forests and measured trials."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.tree import DecisionTreeRegressor

from lit_methods.bpe_mip.importance import (
    eliminate,
    fanova_importance,
    fanova_tree,
    fit_forest,
    importance_of,
    importance_spread,
    impurity_importance,
    leave_one_out,
)

SIZES = [4, 3, 2, 5]
GRID = np.array(list(itertools.product(*map(range, SIZES))))
FIRST, LAST = {1, 2, 6}, {0, 3, 5}  # batch size, rate, cutout; epochs, layers, channels


def stump(**changes):
    tree = {"children_left": [1, -1, -1], "children_right": [2, -1, -1], "feature": [0, -2, -2]}
    return tree | {"threshold": [0.5, -2.0, -2.0], "value": [2.0, 1.0, 3.0]} | changes


def arrays(tree):
    names = ("children_left", "children_right", "feature", "threshold")
    return {name: getattr(tree, name) for name in names} | {"value": tree.value.reshape(-1)}


def by_brute_force(predictions):
    """Mean, variance, main variances and marginals of a function that is known on the whole grid."""
    values = predictions.reshape(SIZES)
    axes = range(len(SIZES))
    marginals = [values.mean(tuple(i for i in axes if i != j)) for j in axes]
    return values.mean(), values.var(), np.array([curve.var() for curve in marginals]), marginals


@pytest.fixture
def forest():
    rng = np.random.default_rng(1)
    x = GRID[rng.permutation(len(GRID))[:50]]
    return fit_forest(x, x @ [0.5, 1.0, -0.3, 0.2] + x[:, 0] * x[:, 1] + rng.normal(size=50), n_estimators=12)


@pytest.fixture
def trials(vectors):
    return np.load(vectors / "bpe_mip/rf_elimination.npz")


def sizes_of(trials):
    return (trials["X_index"].max(0) + 1).tolist()


def test_stored_forest_is_decomposed_as_in_the_reference(vectors):
    stored = np.load(vectors / "bpe_mip/fanova_forest.npz")
    sizes, trees = stored["n_values"], []
    for t, nodes in enumerate(stored["n_nodes"]):
        names = {"children_left": "left", "children_right": "right"}
        keys = ("children_left", "children_right", "feature", "threshold", "value")
        trees.append({key: stored[names.get(key, key)][t, :nodes] for key in keys})
        found = fanova_tree(trees[-1], sizes)
        assert found["mean"] == pytest.approx(stored["f0"][t], abs=1e-10)
        assert found["variance"] == pytest.approx(stored["total_variance"][t], abs=1e-10)
        np.testing.assert_allclose(found["main_variance"], stored["main_variance"][t], rtol=0, atol=1e-10)
        for j, curve in enumerate(found["marginals"]):
            np.testing.assert_allclose(curve, stored["marginals"][t, j, : sizes[j]], rtol=0, atol=1e-10)
    np.testing.assert_allclose(fanova_importance(trees, sizes), stored["importance"], rtol=0, atol=1e-10)


def test_leaves_say_what_the_whole_grid_says(forest):
    shares = []
    for estimator in forest.estimators_:
        mean, variance, main, marginals = by_brute_force(estimator.predict(GRID))
        found = fanova_tree(arrays(estimator.tree_), SIZES)
        assert [found["mean"], found["variance"]] == pytest.approx([mean, variance], abs=1e-12)
        np.testing.assert_allclose(found["main_variance"], main, rtol=0, atol=1e-12)
        for ours, theirs in zip(found["marginals"], marginals, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
        shares.append(main / variance)
    np.testing.assert_allclose(fanova_importance(forest, SIZES), np.mean(shares, 0), rtol=0, atol=1e-12)


def test_groups_of_trees_do_not_change_the_shares(forest, monkeypatch):
    whole = fanova_importance(forest, SIZES)
    monkeypatch.setattr("lit_methods.bpe_mip.importance._NODES_AT_ONCE", 1)
    np.testing.assert_allclose(fanova_importance(forest, SIZES), whole, rtol=0, atol=1e-14)


def test_shares_of_an_additive_function_are_the_closed_form():
    effects = [np.array(effect) for effect in ([0.0, 1, 4, 2], [1.0, 0, 5], [0.0, 0], [3.0, 1, 2, 2, 9])]
    y = sum(effect[GRID[:, j]] for j, effect in enumerate(effects))
    tree = DecisionTreeRegressor(random_state=0).fit(GRID, y)
    expected = np.array([effect.var() for effect in effects]) / y.var()
    found = fanova_importance([arrays(tree.tree_)], SIZES)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert found.sum() == pytest.approx(1)
    assert found[2] < 1e-12


def test_what_only_interacts_has_no_share():
    x = np.array(list(itertools.product(range(2), repeat=2)))
    tree = DecisionTreeRegressor(random_state=0).fit(x, (x[:, 0] ^ x[:, 1]).astype(float))
    assert fanova_importance([arrays(tree.tree_)], [2, 2]).tolist() == [0, 0]


@pytest.mark.parametrize("method", ["fanova", "impurity"])
def test_importances_are_shares_and_the_same_for_tensors(method):
    rng = np.random.default_rng(2)
    x = GRID[rng.integers(0, len(GRID), 40)]
    y = np.round(rng.normal(size=40), 3)
    found = importance_of(x, y, SIZES, method, 30, seed=3)
    assert ((found >= 0) & (found <= 1)).all()
    same = importance_of(torch.tensor(x), torch.tensor(y), SIZES, method, 30, seed=3)
    assert same.tolist() == found.tolist()


def test_a_large_constant_does_not_eat_the_shares(forest):
    trees = [arrays(estimator.tree_) for estimator in forest.estimators_]
    moved = [tree | {"value": tree["value"] + 1e6} for tree in trees]
    np.testing.assert_allclose(fanova_importance(moved, SIZES), fanova_importance(trees, SIZES), rtol=0, atol=1e-8)


def test_constant_trees_do_not_count():
    leaf = {"children_left": [-1], "children_right": [-1], "feature": [-2], "threshold": [-2.0], "value": [0.1]}
    assert fanova_importance([leaf, stump()], [2, 3]).tolist() == [1, 0]
    assert fanova_importance([leaf, stump(value=[0.1] * 3)], [2, 3]).tolist() == [0, 0]
    assert fanova_tree(stump(value=[0.9] * 3), [11])["variance"] == 0  # the leaves' shares do not add up to 1 exactly
    for method in ("fanova", "impurity"):
        assert importance_of(GRID, np.full(len(GRID), 0.1), SIZES, method, 5).tolist() == [0] * 4


def test_a_split_beyond_the_grid_is_no_split():
    found = fanova_tree(stump(threshold=[7.5, -2.0, -2.0]), [2, 3])
    assert (found["mean"], found["variance"], found["marginals"][0].tolist()) == (1, 0, [1, 1])


def test_impurity_is_that_of_scikit_learn(forest):
    assert impurity_importance(forest).tolist() == forest.feature_importances_.tolist()
    assert impurity_importance(forest, SIZES).sum() == pytest.approx(1)


def test_spread_has_one_forest_for_each_seed():
    y = GRID @ [1.0, 0, 0, 0.1]
    found = importance_spread(GRID[::3], y[::3], SIZES, n_estimators=5, seeds=[4, 9])
    assert found.shape == (2, 4)
    assert found[1].tolist() == importance_of(GRID[::3], y[::3], SIZES, n_estimators=5, seed=9).tolist()
    assert found[0].tolist() != found[1].tolist()


@pytest.mark.parametrize(
    ("method", "trees"), [("fanova", 100), pytest.param("fanova", 500, marks=pytest.mark.slow), ("impurity", 100)]
)
def test_measured_trials_lose_cutout_rate_and_batch_size_first(trials, method, trees):
    order, importances = eliminate(
        trials["X_index"], trials["y"], sizes_of(trials), importance=method, n_estimators=trees, seed=0
    )
    assert set(order[:3]) == FIRST
    assert set(order[-3:]) == LAST
    assert importances.shape == (7, 8)
    for step, row in enumerate(importances):
        assert set(np.flatnonzero(np.isnan(row))) == set(order[:step])
        assert np.nanargmin(row) == order[step]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fanova", "impurity"])
def test_measured_trials_lose_the_same_names_under_every_seed(trials, method):
    for i, seed in enumerate(trials["seeds"].tolist()):
        order, importances = eliminate(trials["X_index"], trials["y"], sizes_of(trials), importance=method, seed=seed)
        assert set(order[:3]) == FIRST
        assert set(order[-3:]) == LAST
        stored = trials[f"{method}_importance"][i, 0]
        assert np.abs(importances[0] - stored).max() < 0.02  # exact only with the scikit-learn that made the vectors


def test_elimination_of_a_constant_target_goes_through_the_columns():
    order, importances = eliminate(GRID, np.ones(len(GRID)), SIZES, n_estimators=3)
    assert order == [0, 1, 2, 3]
    assert np.nansum(importances) == 0


@pytest.mark.parametrize("trees", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_a_forest_predicts_trials_that_it_has_not_seen(trials, trees):
    x, y = trials["X_index"], trials["y"]
    error = np.abs(leave_one_out(x, y, n_estimators=trees) - y).mean()
    means = (y.sum() - y) / (len(y) - 1)
    assert error <= 0.08 < np.abs(means - y).mean()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fanova_importance([], [2]), "forest has no trees"),
        (lambda: fanova_importance([{"feature": [0]}], [2]), "lacks children_left, children_right, threshold, value"),
        (lambda: fanova_importance([stump(value=[1.0])], [2]), "differ in length"),
        (lambda: fanova_importance([stump(feature=[3, -2, -2])], [2]), "splits on feature 3, but n_values has 1"),
        (lambda: fanova_importance([stump(children_left=[0, -1, -1])], [2]), "come after their parent"),
        (lambda: fanova_importance([stump()], []), "must list a whole number"),
        (lambda: fanova_tree(stump(), [2, 0]), "from 1 on for each feature"),
        (lambda: fanova_importance(fit_forest([[0], [1]], [0.0, 1.0], n_estimators=1), [2, 2]), "the forest 1 feat"),
        (lambda: impurity_importance([stump()]), "must be a fitted RandomForestRegressor"),
        (lambda: importance_of([[0], [1]], [0.0, 1.0], [2], "shap"), "importance='shap' is unknown"),
        (lambda: importance_of([[0], [2]], [0.0, 1.0], [2]), "column 0 of x must hold codes 0 to 1"),
        (lambda: importance_of([[0], [1]], [0.0, 1.0], [2, 2]), "2 entries for 1 columns"),
        (lambda: fit_forest([[0.5], [1]], [0.0, 1.0]), "ordinal codes"),
        (lambda: fit_forest([[0], [1]], [0.0, float("nan")]), "y is not finite in row 1"),
        (lambda: fit_forest([[0], [1]], [0.0]), r"got \(2, 1\) and \(1,\)"),
        (lambda: fit_forest([[0], [1]], [0.0, 1.0], n_estimators=0), "n_estimators=0 must be at least 1"),
        (lambda: importance_spread([[0], [1]], [0.0, 1.0], [2], seeds=[]), "seeds is empty"),
        (lambda: leave_one_out([[0]], [0.0]), "two rows or more"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_forest_that_was_not_fitted_is_refused():
    from sklearn.ensemble import RandomForestRegressor

    with pytest.raises(ValueError, match="not fitted"):
        fanova_importance(RandomForestRegressor(), [2])
