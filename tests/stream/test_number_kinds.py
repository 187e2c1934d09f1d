"""DriftMoERegressor with experts of several kinds under an online gate."""

import pickle

import numpy as np
import pandas as pd
import pytest

import moeapps
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.stream import DriftMoERegressor
from moeapps.stream.io.delay import PendingLabels

N = 1200


def stream(n=N, seed=0):
    """A piecewise linear function of two numbers and a category, which changes in the middle."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"a": rng.normal(size=n), "b": rng.normal(size=n), "c": rng.choice(["p", "q"], n)})
    sign = np.where(np.arange(n) < n // 2, 1.0, -1.0)
    y = 50 + sign * 3 * frame.a + np.where(frame.b > 0, 5.0, -2 * frame.b) + 2 * (frame.c == "q")
    return frame, (y + 0.1 * rng.normal(size=n)).to_numpy()


@pytest.fixture(scope="module")
def data():
    return stream()


@pytest.fixture(scope="module")
def run(data):
    """A model, and what it predicted before each instance."""
    model = DriftMoERegressor(n_experts=3, seed=0)
    return model, np.array(model.test_then_train_many(*data)[1:], dtype=float)


def error(predictions, data, first=0):
    return float(np.abs(predictions - data[1][1:])[first:].mean())


def test_the_default_has_all_kinds_and_says_which_expert_is_which(run):
    model, _ = run
    kinds = [name.split()[0] for name in model.expert_names_]
    assert kinds == ["tree"] * 3 + ["mean"] * 3 + ["neighbours"] * 2 + ["linear"] * 3 + ["quadratic"] * 2 + ["network"]
    assert model.activation_.sum() == pytest.approx(N)


def test_the_mixture_is_ahead_of_each_kind_alone(run, data):
    _, predictions = run
    ours = error(predictions, data)
    for experts in (["tree"], ["mean"], ["neighbours"], ["linear"], ["quadratic"], ["network"]):
        alone = DriftMoERegressor(n_experts=3, experts=experts, seed=0).test_then_train_many(*data)[1:]
        assert ours < error(np.array(alone, dtype=float), data)


def test_a_leaf_has_a_linear_model():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=600), "b": rng.normal(size=600)})
    y = (np.where(frame.b > 0, 20.0, -3 * frame.a) + 3 * frame.a).to_numpy()
    leaves, means = (
        DriftMoERegressor(1, experts=experts, top_k=3 if experts else 1, bagging=1.0, drift=None, seed=0)
        for experts in (["tree"], None)
    )
    errors = [np.abs(np.array(one.test_then_train_many(frame, y))[300:] - y[300:]).mean() for one in (leaves, means)]
    assert errors[0] < 0.8 * errors[1]


def test_a_batch_is_the_same_as_one_by_one(run, data):
    model, predictions = run
    frame, y = data
    single = DriftMoERegressor(n_experts=3, seed=0)
    for i, (x, target, before) in enumerate(zip(frame.to_dict("records"), y, [0, *predictions], strict=True)):
        if i > 5:  # both categories are known
            assert single.predict_one(x) == before
        single.learn_one(x, target)
    pd.testing.assert_frame_equal(single.gate_, model.gate_)


def test_features_that_come_late_are_learned(data):
    frame, y = data
    model = DriftMoERegressor(n_experts=2, seed=0)
    model.learn_many(frame[["b"]][:200], y[:200])
    model.learn_many(frame[:600], y[:600])
    assert np.abs(model.predict_many(frame[550:600]) - y[550:600]).mean() < 1.5


def test_saving_and_pickling_go_on_bit_for_bit(data, tmp_path):
    frame, y = data
    model = DriftMoERegressor(n_experts=3, seed=0)
    model.learn_many(frame[:700], y[:700])
    model.save(tmp_path / "model.safetensors")
    loaded, pickled = moeapps.load(tmp_path / "model.safetensors"), pickle.loads(pickle.dumps(model))
    going = model.test_then_train_many(frame[700:], y[700:])
    assert loaded.test_then_train_many(frame[700:], y[700:]) == going
    assert pickled.test_then_train_many(frame[700:], y[700:]) == going


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("mixture.recent", lambda a: a - 1e9, "recent errors are negative"),
        ("mixture.leaves.variances", lambda a: a - 9, "variances of leaves is negative"),
        ("mixture.linear.covariance", lambda a: a - 1e6, "variances of linear are negative"),
        ("mixture.means", lambda a: a + 1, "shares of means"),
        ("mixture.stack.weights", lambda a: a[:, 1:], "mixture.stack.weights has shape"),
        ("mixture.neighbours.labels", lambda a: a.astype(np.int64), "mixture.neighbours.labels is int64"),
    ],
)
def test_impossible_arrays_are_refused(run, name, change, fault):
    model, _ = run
    tensors = {key: array.copy() for key, array in model.saved_tensors().items()}
    tensors[name] = np.ascontiguousarray(change(tensors[name]))
    with pytest.raises((FileFormatError, ValueError), match=fault):
        DriftMoERegressor.from_saved(model.saved_arguments(), model.saved_state(), tensors, "file.safetensors")


def test_a_late_target_is_judged_by_what_the_experts_predicted_when_it_came(data):
    frame, y = data[0][["a", "b"]], data[1]
    rows = frame.to_dict("records")
    at_once, late = (DriftMoERegressor(n_experts=2, seed=0) for _ in range(2))
    waiting = PendingLabels(late)
    for i, (x, target) in enumerate(zip(rows[:300], y[:300], strict=True)):
        at_once.learn_one(x, target)
        waiting.predict(str(i), x)
        if i == 150:  # a checkpoint with waiting events
            state = waiting.state()
            waiting = PendingLabels(late)
            waiting.restore(state)
        waiting.label(str(i), target)
    assert late.predict_many(frame[300:310]).tolist() == at_once.predict_many(frame[300:310]).tolist()
    assert late.votes_one(rows[0]).shape == (len(late.expert_names_), 1)


def test_impossible_votes_are_refused(run):
    model, _ = run
    with pytest.raises(DataError, match="votes must have shape"):
        model.learn_one({"a": 1.0}, 2.0, votes=[[1.0]])
    with pytest.raises(DataError, match="votes must be finite numbers"):
        model.learn_one({"a": 1.0}, 2.0, votes=np.full((len(model.expert_names_), 1), np.nan))


def test_one_wild_target_does_not_ruin_what_comes_after_it(data):
    frame, y = data
    errors = []
    for wild in (y[400], 1e9):
        targets = y[:600].copy()
        targets[400] = wild
        model = DriftMoERegressor(n_experts=2, experts=["linear", "quadratic", "network"], seed=0)
        predictions = np.array(model.test_then_train_many(frame[:600], targets)[1:], dtype=float)
        errors.append(np.abs(predictions - y[1:600])[450:].mean())
    assert errors[1] < 3 * errors[0] + 0.5


@pytest.mark.parametrize("size", [1e-140, 1e140])
def test_any_size_of_numbers_gives_finite_predictions(data, size):
    frame, y = data
    model = DriftMoERegressor(n_experts=2, seed=0)
    model.learn_many(frame[:300].assign(a=frame.a * size), y[:300] * size)
    assert np.isfinite(model.predict_many(frame[:50])).all()
    assert model.saved_tensors()


def test_a_shift_of_the_level_is_followed(data):
    frame, y = data
    model = DriftMoERegressor(n_experts=2, seed=0)
    shifted = np.where(np.arange(600) < 300, y[:600], y[:600] + 1e5)
    predictions = np.array(model.test_then_train_many(frame[:600], shifted), dtype=float)
    assert np.abs(predictions - shifted)[500:].mean() < 0.01 * 1e5


def test_wide_tables_keep_the_diagonal_only_and_are_learned():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 200))
    y = X[:, 0] * 5 + X[:, 1]
    model = DriftMoERegressor(n_experts=1, experts=["linear", "quadratic"], seed=0).fit(X, y)
    assert model._engine.mixture.linear.covariance.shape == (3, 201, 1)
    assert np.abs(model.predict(X[-50:]) - y[-50:]).mean() < 0.5 * np.abs(y).mean()


def test_experts_alone_are_named_and_unknown_ones_refused():
    model = DriftMoERegressor(experts={"linear": 1, "mean": 2}, seed=0)
    model.learn_one({"a": 1.0}, 2.0)
    assert model.expert_names_ == ["mean 0", "mean 1", "linear 0"]
    with pytest.raises(ConfigError, match="linear, quadratic, network, got 'linaer'"):
        DriftMoERegressor(experts=["linaer"]).learn_one({"a": 1.0}, 2.0)
    with pytest.raises(ConfigError, match="experts"):
        DriftMoERegressor(experts=["bayes"]).learn_one({"a": 1.0}, 2.0)
    with pytest.raises(ConfigError, match="router_lr=0.5 is for trees under the neural router"):
        DriftMoERegressor(experts=["tree"], router_lr=0.5).learn_one({"a": 1.0}, 2.0)


def test_an_argument_of_the_router_asks_for_trees_under_it():
    model = DriftMoERegressor(top_k=2, router_period=8, seed=0)
    model.learn_one({"a": 1.0}, 2.0)
    assert model.expert_names_[-1] == "tree 11"
    assert model.torch_router() is not None
