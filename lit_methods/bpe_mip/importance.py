"""How much each hyper-parameter matters: shares of variance, from random forests on ordinal codes.

A recipe is a row of whole numbers, the position of each value in its sorted list. A forest on such rows is piecewise
constant, so that the functional ANOVA of each tree is a sum over its leaves and needs no grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
METHODS = ("fanova", "impurity")
_NODES_AT_ONCE = 2**15  # their boxes stay in a cache of a few megabytes


def fanova_tree(tree: Mapping[str, Any], n_values: Sequence[int]) -> dict[str, Any]:
    """Decompose the variance of one regression tree over the grid of all recipes, each with the same weight.

    Args:
        tree: 1-D arrays ``children_left``, ``children_right`` (-1 at leaves), ``feature``, ``threshold``, ``value``.
        n_values: number of ordinal values 0..n-1 per feature.

    Returns:
        ``mean`` (f0) and ``variance`` (V) as floats, ``main_variance`` (d,) (V_j, not clipped), and ``marginals``, a
        list of d arrays f_j of length n_j: the mean prediction where feature j has each of its values.

    Raises:
        ValueError: ``n_values`` is not a list of whole numbers from 1 on, arrays of different lengths or missing, a
            feature or child that does not exist.

    Source:
        BPE/MIP specification, section 2.4; Hutter et al., ICML 2014. The same sums, taken around the mean and not
        around 0, so that a constant added to the target changes nothing and V_j does not become negative.

    Example:
        >>> tree = {"children_left": [1, -1, -1], "children_right": [2, -1, -1], "feature": [0, -2, -2]}
        >>> found = fanova_tree(tree | {"threshold": [0.5, -2, -2], "value": [2.0, 1.0, 3.0]}, [2, 3])
        >>> found["mean"], found["variance"], found["main_variance"].tolist(), found["marginals"][0].tolist()
        (2.0, 1.0, [1.0, 0.0], [1.0, 3.0])
    """
    sizes = _sizes(n_values)
    mean, variance, main, curves = _decompose([_nodes(tree, len(sizes))], sizes)
    return {
        "mean": float(mean[0]),
        "variance": float(variance[0]),
        "main_variance": main[0],
        "marginals": [curve[0] for curve in curves],
    }


def fanova_importance(forest: Any, n_values: Sequence[int]) -> Floats:
    """Share of the variance that each feature explains alone, averaged over the trees.

    Shares are in [0, 1] and do not add up to 1: what is left belongs to interactions.

    Args:
        forest: a fitted ``RandomForestRegressor``, or a sequence of trees as in :func:`fanova_tree`.
        n_values: number of ordinal values 0..n-1 per feature.

    Returns:
        (d,) float64. Trees that are constant do not count; if all of them are, every share is 0.

    Raises:
        ValueError: as in :func:`fanova_tree`; a forest without trees, one that is not fitted or has other features.

    Source:
        BPE/MIP specification, section 2.4. All leaves of many trees at once.

    Example:
        >>> tree = {"children_left": [1, -1, -1], "children_right": [2, -1, -1], "feature": [0, -2, -2]}
        >>> fanova_importance([tree | {"threshold": [0.5, -2, -2], "value": [2.0, 1.0, 3.0]}], [2, 3]).tolist()
        [1.0, 0.0]
    """
    sizes = _sizes(n_values)
    total, counted = np.zeros(len(sizes)), 0
    for group in _groups(_trees(forest, len(sizes))):
        _, variance, main, _ = _decompose(group, sizes)
        varied = variance > 0
        total += (main[varied].clip(0) / variance[varied, None]).sum(0)
        counted += int(varied.sum())
    return total / max(counted, 1)


def impurity_importance(forest: Any, n_values: Sequence[int] | None = None) -> Floats:
    """Mean decrease of variance per feature: scikit-learn's ``feature_importances_``, which add up to 1.

    Args:
        forest: a fitted ``RandomForestRegressor``.
        n_values: not needed; here so that both kinds of importance are called alike.

    Returns:
        (d,) float64; zeros where every tree is constant.

    Raises:
        ValueError: the forest is not fitted, or not one of scikit-learn's.

    Source:
        BPE/MIP specification, section 2.4.

    Example:
        >>> forest = fit_forest([[0, 0], [0, 1], [1, 0], [1, 1]], [0.0, 0.0, 1.0, 1.0], n_estimators=10, seed=0)
        >>> impurity_importance(forest).sum().round(6)
        np.float64(1.0)
    """
    if not hasattr(forest, "estimators_"):
        raise ValueError(f"forest={type(forest).__name__} must be a fitted RandomForestRegressor")
    return np.asarray(forest.feature_importances_, np.float64)


def fit_forest(x: ArrayLike, y: ArrayLike, *, n_estimators: int = 500, seed: int = 0) -> Any:
    """A forest from ordinal codes to scores, scikit-learn's defaults otherwise, on one core.

    Args:
        x: (rows, d) whole numbers.
        y: (rows,) finite scores.
        n_estimators: trees.
        seed: of the bootstrap and of the order in which features are tried.

    Returns:
        A fitted ``RandomForestRegressor``.

    Raises:
        ValueError: shapes that do not fit, codes that are not whole numbers, scores that are not finite.

    Source:
        BPE/MIP specification, section 2.3, step 4.

    Example:
        >>> fit_forest([[0], [1]], [0.0, 1.0], n_estimators=3).n_features_in_
        1
    """
    from sklearn.ensemble import RandomForestRegressor

    codes, target = _table(x, y)
    if n_estimators < 1:
        raise ValueError(f"n_estimators={n_estimators} must be at least 1; 500 is usual")
    return RandomForestRegressor(n_estimators, random_state=seed, n_jobs=1).fit(codes, target)


def importance_of(
    x: ArrayLike, y: ArrayLike, n_values: Sequence[int], method: str = "fanova", n_estimators: int = 500, seed: int = 0
) -> Floats:
    """Fit a forest and ask it for its importances.

    Args:
        x: (rows, d) ordinal codes.
        y: (rows,) scores.
        n_values: number of ordinal values per feature.
        method: ``"fanova"`` or ``"impurity"``.
        n_estimators: trees.
        seed: of the forest.

    Returns:
        (d,) float64. A constant target says nothing about any feature: all of them are 0.

    Raises:
        ValueError: as in :func:`fit_forest`; an unknown method, or a code outside its list of values.

    Source:
        BPE/MIP specification, sections 2.3 and 2.4.

    Example:
        >>> importance_of([[0, 0], [0, 1], [1, 0], [1, 1]], [0.0, 0.0, 1.0, 1.0], [2, 2], n_estimators=50).argmax()
        np.int64(0)
        >>> importance_of([[0, 0], [1, 1]], [0.5, 0.5], [2, 2]).tolist()
        [0.0, 0.0]
    """
    if method not in METHODS:
        raise ValueError(f"importance={method!r} is unknown; there are {' and '.join(map(repr, METHODS))}")
    codes, target = _table(x, y, n_values)
    if target.min() == target.max():
        return np.zeros(codes.shape[1])
    forest = fit_forest(codes, target, n_estimators=n_estimators, seed=seed)
    return fanova_importance(forest, n_values) if method == "fanova" else impurity_importance(forest)


def importance_spread(
    x: ArrayLike,
    y: ArrayLike,
    n_values: Sequence[int],
    *,
    importance: str = "fanova",
    n_estimators: int = 500,
    seeds: Iterable[int] = range(5),
) -> Floats:
    """Importances under several forests: how much of a small difference is the forest's own randomness.

    Args:
        x: (rows, d) ordinal codes.
        y: (rows,) scores.
        n_values: number of ordinal values per feature.
        importance: ``"fanova"`` or ``"impurity"``.
        n_estimators: trees of each forest.
        seeds: one forest each.

    Returns:
        (len(seeds), d) float64.

    Raises:
        ValueError: as in :func:`importance_of`; no seeds.

    Source:
        ours.

    Example:
        >>> importance_spread([[0], [1], [2]], [0.0, 1.0, 3.0], [3], n_estimators=5, seeds=[0, 1]).tolist()
        [[1.0], [1.0]]
    """
    rows = [importance_of(x, y, n_values, importance, n_estimators, seed) for seed in seeds]
    if not rows:
        raise ValueError("seeds is empty; give at least one, such as range(5)")
    return np.stack(rows)


def eliminate(
    x: ArrayLike,
    y: ArrayLike,
    n_values: Sequence[int],
    *,
    importance: str = "fanova",
    n_estimators: int = 500,
    seed: int = 0,
) -> tuple[list[int], Floats]:
    """Drop the least important column of a fixed table, fit again, and so on until one is left.

    Args:
        x: (rows, d) ordinal codes.
        y: (rows,) scores.
        n_values: number of ordinal values per column.
        importance: ``"fanova"`` or ``"impurity"``.
        n_estimators: trees of each forest.
        seed: of each forest, the same at every step.

    Returns:
        The d columns in the order in which they were dropped (ties: the first), the survivor last, and the importances
        (d - 1, d) float64 before each step, NaN for columns that were dropped. With a constant target all are 0, and
        the order is that of the columns.

    Raises:
        ValueError: as in :func:`importance_of`.

    Source:
        BPE/MIP specification, section 7.

    Example:
        >>> x = [[a, b] for a in range(2) for b in range(3)]
        >>> order, importances = eliminate(x, [float(b) for a, b in x], [2, 3], n_estimators=20)
        >>> order, importances.shape
        ([0, 1], (1, 2))
    """
    codes, target = _table(x, y, n_values)
    left, order = list(range(codes.shape[1])), []
    importances = np.full((len(left) - 1, len(left)), np.nan)
    for step in range(len(importances)):
        found = importance_of(codes[:, left], target, [n_values[j] for j in left], importance, n_estimators, seed)
        importances[step, left] = found
        order.append(left.pop(int(found.argmin())))
    return order + left, importances


def leave_one_out(x: ArrayLike, y: ArrayLike, *, n_estimators: int = 500, seed: int = 0) -> Floats:
    """Predict every row with a forest that was fitted on the others: how far the importances can be trusted.

    Args:
        x: (rows, d) ordinal codes.
        y: (rows,) scores.
        n_estimators: trees of each forest.
        seed: of each forest.

    Returns:
        (rows,) float64 predictions.

    Raises:
        ValueError: as in :func:`fit_forest`; fewer than two rows.

    Source:
        BPE/MIP specification, section 8, check 4.

    Example:
        >>> leave_one_out([[0], [0], [1], [1]], [0.0, 0.0, 1.0, 1.0], n_estimators=1, seed=1).shape
        (4,)
    """
    codes, target = _table(x, y)
    if len(codes) < 2:
        raise ValueError("leave_one_out needs two rows or more: one is predicted from the others")
    found = np.empty(len(codes))
    for row in range(len(codes)):
        others = np.arange(len(codes)) != row
        forest = fit_forest(codes[others], target[others], n_estimators=n_estimators, seed=seed)
        found[row] = forest.predict(codes[row : row + 1])[0]
    return found


def _table(x: ArrayLike, y: ArrayLike, n_values: Sequence[int] | None = None) -> tuple[Ints, Floats]:
    raw, target = np.asarray(x), np.asarray(y, np.float64)
    if raw.ndim != 2 or target.shape != raw.shape[:1] or not raw.size:
        raise ValueError(f"x must be (rows, d) and y (rows,), both not empty, got {raw.shape} and {target.shape}")
    codes = np.nan_to_num(raw).astype(np.int64)
    if (codes != raw).any():
        raise ValueError("x must hold ordinal codes, the position of each value in its sorted list, not the values")
    if not np.isfinite(target).all():
        raise ValueError(f"y is not finite in row {int(np.flatnonzero(~np.isfinite(target))[0])}; leave that row out")
    if n_values is not None:
        sizes = _sizes(n_values)
        if len(sizes) != codes.shape[1]:
            raise ValueError(f"n_values has {len(sizes)} entries for {codes.shape[1]} columns of x")
        if (codes < 0).any() or (codes >= sizes).any():
            column = int(np.flatnonzero(((codes < 0) | (codes >= sizes)).any(0))[0])
            raise ValueError(f"column {column} of x must hold codes 0 to {sizes[column] - 1}: n_values says so")
    return codes, target


def _sizes(n_values: Sequence[int]) -> Ints:
    raw = np.asarray(n_values)
    sizes = raw.astype(np.int64) if raw.ndim == 1 and raw.size else np.zeros(1, np.int64)
    if (sizes < 1).any() or (sizes != raw).any():
        raise ValueError(f"n_values={n_values!r} must list a whole number from 1 on for each feature")
    return sizes


Nodes = tuple[Ints, Ints, Ints, Floats, Floats]


def _nodes(tree: Mapping[str, Any], d: int) -> Nodes:
    """Left, right, feature, threshold, value of a tree, checked."""
    names = ("children_left", "children_right", "feature", "threshold", "value")
    if missing := [name for name in names if name not in tree]:
        raise ValueError(f"a tree lacks {', '.join(missing)}; it needs {', '.join(names)}")
    left, right, feature = (np.asarray(tree[name], np.int64).reshape(-1) for name in names[:3])
    threshold, value = (np.asarray(tree[name], np.float64).reshape(-1) for name in names[3:])
    lengths = [len(part) for part in (left, right, feature, threshold, value)]
    if len(set(lengths)) > 1 or not lengths[0]:
        raise ValueError(f"arrays of a tree differ in length or are empty: {dict(zip(names, lengths, strict=True))}")
    inner, here = left >= 0, np.arange(len(left))
    if (inner & (feature >= d)).any() or (inner & (feature < 0)).any():
        raise ValueError(f"a tree splits on feature {int(feature[inner].max())}, but n_values has {d} entries")
    sound = (left > here) & (right > here) & (left < len(left)) & (right < len(left))
    if (inner & ~sound).any():
        raise ValueError("a tree's children must come after their parent, as scikit-learn numbers them")
    return left, right, feature, threshold, value


def _trees(forest: Any, d: int) -> Iterator[Nodes]:
    if hasattr(forest, "n_estimators") and not hasattr(forest, "estimators_"):
        raise ValueError("forest is not fitted; call its fit(x, y) first")
    if hasattr(forest, "estimators_"):
        if forest.n_features_in_ != d:
            raise ValueError(f"n_values has {d} entries, the forest {forest.n_features_in_} features")
        for estimator in forest.estimators_:
            tree = estimator.tree_
            yield tree.children_left, tree.children_right, tree.feature, tree.threshold, tree.value.reshape(-1)
        return
    trees = list(forest)
    if not trees:
        raise ValueError("forest has no trees")
    for one in trees:
        yield _nodes(one, d)


def _groups(trees: Iterator[Nodes]) -> Iterator[list[Nodes]]:
    group: list[Nodes] = []
    nodes = 0
    for tree in trees:
        group.append(tree)
        nodes += len(tree[0])
        if nodes >= _NODES_AT_ONCE:
            yield group
            group, nodes = [], 0
    if group:
        yield group


def _boxes(trees: list[Nodes], sizes: Ints) -> tuple[Ints, Floats, Ints, Ints]:
    """All leaves: their tree (L,), value (L,), and the values they cover, from ``low`` to below ``high`` (L, d)."""
    counts = np.array([len(tree[0]) for tree in trees])
    start = np.concatenate([[0], counts.cumsum()[:-1]])
    owner = np.repeat(np.arange(len(trees)), counts)
    left, right, feature = (np.concatenate([tree[i] for tree in trees]) for i in range(3))
    threshold, value = (np.concatenate([tree[i] for tree in trees]) for i in (3, 4))
    first_right = np.floor(threshold).clip(-1, sizes.max()).astype(np.int64) + 1  # v goes left iff v <= threshold
    low, high = np.zeros((len(left), len(sizes)), np.int64), np.tile(sizes, (len(left), 1))
    leaves, level = [], start
    while len(level):
        inner = left[level] >= 0
        leaves.append(level[~inner])
        level = level[inner]
        a, b, j = left[level] + start[owner[level]], right[level] + start[owner[level]], feature[level]
        cut = first_right[level].clip(low[level, j], high[level, j])
        low[a] = low[b] = low[level]
        high[a] = high[b] = high[level]
        high[a, j] = low[b, j] = cut
        level = np.concatenate([a, b])
    leaf = np.concatenate(leaves)
    return owner[leaf], value[leaf], low[leaf], high[leaf]


def _decompose(trees: list[Nodes], sizes: Ints) -> tuple[Floats, Floats, Floats, list[Floats]]:
    """Mean (T,), variance (T,), main variances (T, d) and d marginal curves (T, n_j) of T trees."""
    owner, value, low, high = _boxes(trees, sizes)
    count = len(trees)
    width = (high - low) / sizes
    volume = width.prod(1)
    seen = volume > 0  # a split beyond the grid leaves one child without recipes
    owner, value, low, high, width, volume = (part[seen] for part in (owner, value, low, high, width, volume))
    shift = np.zeros(count)
    shift[owner] = value  # any value of the tree: of a constant one exactly 0 is left
    offset = value - shift[owner]
    inner_mean = _sum(owner, offset * volume, count)
    offset -= inner_mean[owner]
    variance = _sum(owner, offset**2 * volume, count)
    main, curves = np.zeros((count, len(sizes))), []
    for j, size in enumerate(sizes):
        part = offset * (volume / width[:, j])
        key = owner * (size + 1)
        steps = _sum(key + low[:, j], part, count * (size + 1)) - _sum(key + high[:, j], part, count * (size + 1))
        curve = steps.reshape(count, size + 1).cumsum(1)[:, :-1]
        main[:, j] = (curve**2).mean(1)
        curves.append(curve + (shift + inner_mean)[:, None])
    return shift + inner_mean, variance, main, curves


def _sum(index: Ints, weight: Floats, size: int) -> Floats:
    return np.bincount(index, weights=weight, minlength=int(size)).astype(np.float64, copy=False)
