"""The compiled trees against river's, their memory, and what they do with categories and missing values."""

import numpy as np
import pytest
from river import tree

from moeapps.core.errors import ConfigError, DataError
from moeapps.stream import HoeffdingPool, synthetic_stream
from moeapps.stream.compiled.arena import LEAF
from moeapps.stream.compiled.references import as_reference


def make(features: int, classes: int, **arguments) -> HoeffdingPool:
    pool = HoeffdingPool(**{"n_trees": 1, **arguments})
    pool.add_features(features)
    pool.add_classes(classes)
    return pool


def hits_of(pool: HoeffdingPool, X: np.ndarray, y: np.ndarray, block: int = 1) -> np.ndarray:
    """Test-then-train."""
    hits = np.zeros(len(X), dtype=bool)
    for start in range(0, len(X), block):
        part = slice(start, start + block)
        hits[part] = pool.predict_proba_many(X[part])[:, 0].argmax(axis=1) == y[part]
        pool.learn_many(X[part], y[part])
    return hits


def compare_with_river(X: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    pool = make(X.shape[1], int(y.max()) + 1)
    rival = tree.HoeffdingTreeClassifier(grace_period=50, delta=1e-7, binary_split=True)
    hits = 0
    for x, label in zip(X.tolist(), y.tolist(), strict=True):
        x = dict(enumerate(x))
        hits += rival.predict_one(x) == label
        rival.learn_one(x, label)
    return hits_of(pool, X, y).mean(), hits / len(y)


@pytest.mark.parametrize("name", ["sea_abrupt", "rbf_moderate", "led_abrupt"])
def test_the_tree_is_as_accurate_as_rivers_on_synthetic_streams(name):
    ours, rivers = compare_with_river(*synthetic_stream(name, 4000, seed=2).arrays())
    assert abs(ours - rivers) < 0.005, (ours, rivers)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["elec", "sea_abrupt", "rbf_moderate", "rbf_fast", "led_abrupt"])
def test_the_tree_is_as_accurate_as_rivers_on_whole_streams(name, request):
    if name == "elec":
        X, y = request.getfixturevalue("elec")
    else:
        X, y = synthetic_stream(name, 100_000, seed=0).arrays()
    ours, rivers = compare_with_river(X, y)
    assert abs(ours - rivers) < 0.005, (ours, rivers)


def test_the_first_split_is_rivers_on_the_same_feature_at_the_same_count():
    X, y = synthetic_stream("sea_abrupt", 4000, seed=3).arrays()
    pool = make(3, 2)
    rival = tree.HoeffdingTreeClassifier(grace_period=50, delta=1e-7, binary_split=True)
    for i in range(len(X)):
        pool.learn_many(X[i : i + 1], y[i : i + 1])
        rival.learn_one(dict(enumerate(X[i].tolist())), int(y[i]))
        split = pool.n_nodes[0] > 1
        assert split == (rival.n_branches > 0), i
        if split:
            break
    assert split
    root = pool.state.trees.root[0]
    assert pool.state.trees.feature[root] == rival._root.feature
    assert pool.state.trees.threshold[root] == pytest.approx(rival._root.threshold)


def test_many_rows_at_once_are_the_same_as_one_by_one():
    X, y = synthetic_stream("sea_abrupt", 3000, seed=4).arrays()
    pools = make(3, 2, n_trees=3, feature_share=[1.0, 0.5]), make(3, 2, n_trees=3, feature_share=[1.0, 0.5])
    weight = np.random.default_rng(0).poisson(2, (len(X), 3)).astype(float)
    for i in range(len(X)):
        pools[0].learn_many(X[i : i + 1], y[i : i + 1], weight[i : i + 1])
    pools[1].learn_many(X, y, weight)
    assert np.array_equal(pools[0].n_nodes, pools[1].n_nodes)
    assert np.array_equal(pools[0].predict_proba_many(X), pools[1].predict_proba_many(X))


def test_a_category_is_split_and_an_unseen_one_predicted():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, 3000).astype(float)
    X = np.column_stack([rng.normal(size=3000), codes])
    y = (codes == 2).astype(np.int64)
    pool = HoeffdingPool(1, leaf_prediction="mc")
    pool.add_features(1)
    pool.add_features(1, nominal=True)
    pool.add_values(4)
    pool.add_classes(2)
    pool.learn_many(X, y)
    root = pool.state.trees.root[0]
    assert (pool.state.trees.feature[root], pool.state.trees.threshold[root]) == (1, 2.0)
    assert pool.predict_proba_many(np.array([[0.0, 2.0]]))[0, 0, 1] > 0.99
    assert pool.predict_proba_many(np.array([[0.0, -1.0]]))[0, 0, 1] < 0.1  # a value that has no code


def test_a_missing_value_goes_the_way_of_the_majority():
    rng = np.random.default_rng(0)
    X = np.where(rng.random((3000, 1)) < 0.8, 1.0, -1.0) + rng.normal(0, 0.1, (3000, 1))
    y = (X[:, 0] > 0).astype(np.int64)
    pool = make(1, 2, leaf_prediction="mc")
    pool.learn_many(X, y)
    assert pool.n_nodes[0] >= 3
    assert pool.predict_proba_many(np.array([[np.nan]]))[0, 0, 1] > 0.9
    before = pool.state.trees.numeric.copy()
    pool.learn_many(np.array([[np.nan]]), np.array([1]))
    assert np.array_equal(before, pool.state.trees.numeric)


def test_memory_stays_below_the_caps_and_poor_leaves_are_deactivated():
    rng = np.random.default_rng(0)
    X = rng.random((20_000, 4))
    y = ((X * 4).astype(int).sum(axis=1) % 3).astype(np.int64)
    pool = make(4, 3, n_trees=2, delta=0.5, grace_period=20, max_nodes=41, max_active_leaves=8)
    sizes = []
    for start in range(0, len(X), 1000):
        pool.learn_many(X[start : start + 1000], y[start : start + 1000])
        sizes.append(pool.nbytes)
    assert (pool.n_nodes == 41).all()
    assert sizes[-1] == sizes[len(sizes) // 2]
    t = pool.state.trees
    leaves = t.feature == LEAF
    assert leaves.sum() == 2 * 21
    assert (t.slot[leaves] >= 0).sum() == 8
    assert np.isfinite(pool.predict_proba_many(X[:100])).all()


def test_a_removed_tree_gives_its_rows_back():
    from moeapps.stream.compiled.engine import remove_trees
    from moeapps.stream.compiled.pool import plant

    X, y = synthetic_stream("sea_abrupt", 3000, seed=5).arrays()
    pool = make(3, 2, n_trees=2)
    pool.learn_many(X, y)
    used = pool.state.trees.sizes.copy()
    nodes = pool.n_nodes.copy()
    remove_trees(as_reference(pool.state), 1, 2)
    assert pool.state.trees.sizes[0] == used[0] + nodes[1]
    plant(as_reference(pool.state), 0, 2)
    assert pool.n_nodes.tolist() == [nodes[0], 1]
    assert not pool.predict_proba_many(X[:1])[0, 1].any()


def test_regression_trees_find_a_step_and_predict_its_means():
    rng = np.random.default_rng(0)
    X = rng.uniform(-5, 5, (4000, 2))
    y = np.where(X[:, 1] > 1.0, 10.0, -10.0) + rng.normal(0, 0.5, 4000)
    pool = HoeffdingPool(1, regression=True)
    pool.add_features(2)
    pool.learn_many(X, y)
    root = pool.state.trees.root[0]
    assert pool.state.trees.feature[root] == 1
    assert pool.state.trees.threshold[root] == pytest.approx(1.0, abs=0.4)
    predictions = pool.predict_proba_many(np.array([[0.0, 4.0], [0.0, -4.0]]))[:, 0]
    assert predictions == pytest.approx([10, -10], abs=0.5)


def test_a_regression_observer_holds_everything_however_the_range_grows():
    from moeapps.stream.compiled.regression_trees import BINS, WEIGHT, _observe

    for values in ([3.0] * 5 + [4.0, 1e6, -1e6, 0.0], [1.0, 2.0, -100.0, 100.0, 1e-9], list(range(200))):
        seen = np.zeros((4, BINS))
        for value in values:
            _observe(seen, float(value), 1.0, 1.0)
        assert seen[WEIGHT].sum() == len(values)
        low, width = seen[3, 0], seen[3, 1]
        assert low <= min(values)
        assert max(values) < low + BINS * width
        counts, _ = np.histogram(values, BINS, (low, low + BINS * width))
        assert np.abs(np.cumsum(counts) - np.cumsum(seen[WEIGHT])).max() <= 5  # only the first, equal ones may be moved


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_trees": 0}, "n_trees must be a whole number of at least 1"),
        ({"delta": 0.0}, "delta must be a number above 0"),
        ({"leaf_prediction": "x"}, "leaf_prediction must be one of"),
        ({"feature_share": []}, "an empty list"),
        ({"n_trees": 4, "max_active_leaves": 3}, "at least the number of trees"),
    ],
)
def test_impossible_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        HoeffdingPool(**arguments)


def test_rows_of_another_width_are_refused():
    with pytest.raises(DataError, match=r"X must have shape \(n, 3\), got \(2, 2\)"):
        make(3, 2).learn_many(np.zeros((2, 2)), np.zeros(2, dtype=np.int64))
