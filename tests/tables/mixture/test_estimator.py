"""Mixtures as estimators: all or nothing, columns, labels, pickles, targets, the default experts."""

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsRegressor
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from moeapps import MixtureClassifier, MixtureRegressor
from moeapps.core import predict_file
from moeapps.core.errors import ConfigError, DataError
from moeapps.tables.mixture import default_experts

X, Y = load_iris(return_X_y=True, as_frame=True)
PAIR = [("nb", GaussianNB()), ("tree", DecisionTreeClassifier(max_depth=2))]


class Stops(ClassifierMixin, BaseEstimator):
    """Raises what it is told to."""

    def __init__(self, error=None):
        self.error = error

    def fit(self, X, y):
        raise self.error

    def predict_proba(self, X):
        raise NotImplementedError


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no")])
def test_a_fit_that_fails_or_is_stopped_leaves_the_earlier_one(error):
    mixture = MixtureClassifier(PAIR, gate="constant", random_state=0).fit(X, Y)
    before = mixture.predict_proba(X)
    mixture.set_params(experts=[("stops", Stops(error))])
    with pytest.raises(type(error)):
        mixture.fit(X, Y)
    assert np.array_equal(mixture.predict_proba(X), before)


def test_the_chosen_candidate_is_not_worse_than_the_best_expert():
    for seed in range(2):
        table = MixtureClassifier(PAIR, cv=3, random_state=seed).fit(X, Y).candidates_
        experts = table["candidate"].str.startswith("expert:")
        assert table["chosen"].sum() == 1
        chosen = table[table["chosen"]].iloc[0]
        best = table[experts].sort_values("loss").iloc[0]
        assert chosen["loss"] <= best["loss"] + best["standard_error"]


def test_columns_in_another_order_or_number_are_refused():
    mixture = MixtureClassifier(PAIR, gate="mean", cv=2).fit(X, Y)
    assert mixture.feature_names_in_.tolist() == list(X)
    with pytest.raises(ValueError, match="feature names"):
        mixture.predict(X[list(X)[::-1]])
    with pytest.raises(ValueError, match="feature names"):
        mixture.predict(X[list(X)[:2]])


@pytest.mark.parametrize(
    "labels",
    [np.array(["x", "y", "z"])[Y], np.array([-5, 3, 10])[Y], pd.Series(["x", "y", "z"])[Y].astype("string"), Y > 0],
)
def test_labels_of_any_kind_come_back_as_they_were(labels):
    mixture = MixtureClassifier(PAIR, gate="constant", cv=3, random_state=0).fit(X, labels)
    assert mixture.failed_ == {}
    assert set(mixture.predict(X).tolist()) <= set(np.asarray(labels).tolist())
    assert mixture.score(X, np.asarray(labels)) > 0.9


def test_a_pickle_predicts_the_same():
    mixture = MixtureClassifier(PAIR, gate="linear", random_state=0).fit(X, Y)
    assert np.array_equal(pickle.loads(pickle.dumps(mixture)).predict_proba(X), mixture.predict_proba(X))


def test_one_expert_is_a_mixture_of_one():
    mixture = MixtureClassifier([("nb", GaussianNB())], random_state=0, calibrate=False).fit(X, Y)
    assert np.allclose(mixture.predict_proba(X), GaussianNB().fit(X, Y).predict_proba(X))
    assert (mixture.weights(X) == 1).all(axis=None)


def test_arrays_with_holes_are_for_experts_that_take_them():
    holes = X.to_numpy(copy=True)
    holes[::9, 1] = np.nan
    boosting = HistGradientBoostingClassifier(max_iter=5)
    assert MixtureClassifier([boosting], cv=2, random_state=0).fit(holes, Y).score(holes, Y) > 0.9
    with pytest.raises(ValueError, match="NaN"):
        MixtureClassifier([boosting, GaussianNB()]).fit(holes, Y)
    with pytest.raises(ValueError, match="NaN"):
        MixtureClassifier().fit(holes, Y)


def test_a_column_that_the_gate_cannot_read_is_left_to_the_experts(tmp_path):
    frame = X.assign(tags=[["a"]] * 150)

    class Drops(GaussianNB):
        def fit(self, X, y, sample_weight=None):
            return super().fit(X.drop(columns="tags"), y)

        def predict_proba(self, X):
            return super().predict_proba(X.drop(columns="tags"))

    with pytest.warns(UserWarning, match="gate does not read a column.*'tags' holds lists"):
        mixture = MixtureClassifier([Drops()], random_state=0).fit(frame, Y)
    assert mixture.score(frame, Y) > 0.9
    with pytest.raises(DataError, match="only the experts read 'tags'"):  # a file's cells would get to them as guesses
        mixture.column_kinds()
    frame.assign(tags="a").to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(DataError, match="only the experts read 'tags'"):
        predict_file(mixture, tmp_path / "rows.csv", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    with pytest.raises(DataError, match="'tags' holds lists"):
        MixtureClassifier().fit(frame, Y)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="requires y"):
        MixtureClassifier(PAIR).fit(X, None)
    with pytest.raises(DataError, match="one class"):
        MixtureClassifier(PAIR).fit(X, np.zeros(150, dtype=int))
    with pytest.raises(ValueError, match="inconsistent"):
        MixtureClassifier(PAIR).fit(X, Y[:100])
    with pytest.raises(ConfigError, match="inference"):
        MixtureClassifier(PAIR, gate="mean", cv=2).fit(X, Y).set_params(inference="x").predict(X)


def test_regression_of_one_and_of_several_targets():
    rows, y = load_diabetes(return_X_y=True)
    experts = [("ridge", Ridge()), ("tree", DecisionTreeRegressor(max_depth=4)), ("near", KNeighborsRegressor(15))]
    one = MixtureRegressor(experts, random_state=0, gate="constant").fit(rows, y)
    assert one.predict(rows[:5]).shape == (5,)
    alone = max(float(expert.score(rows, y)) for expert in one.experts_ if not hasattr(expert, "tree_"))
    assert one.score(rows, y) > alone - 0.05
    two = MixtureRegressor(experts, random_state=0, gate="constant").fit(rows, np.column_stack([y, 1000 + 5 * y]))
    predicted = two.predict(rows[:5])
    assert predicted.shape == (5, 2)
    assert np.allclose(predicted[:, 1], 1000 + 5 * predicted[:, 0], rtol=1e-3)


def test_an_expert_for_one_target_is_left_out_where_there_are_two():
    rows, y = load_diabetes(return_X_y=True)
    experts = [("ridge", Ridge()), ("boosting", HistGradientBoostingRegressor(max_iter=3))]
    with pytest.warns(UserWarning, match="'boosting' is left out"):
        mixture = MixtureRegressor(experts, gate="mean", cv=2).fit(rows, np.column_stack([y, -y]))
    assert mixture.expert_names_ == ["ridge"]


def mixed_frame(n=120):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": rng.integers(18, 80, n),
            "income": np.where(rng.random(n) < 0.1, np.nan, rng.lognormal(10, 1, n)),
            "city": rng.choice(["Ulm", "Bonn", "Kiel", None], n),
            "joined": pd.date_range("2020", periods=n).astype(str),
        }
    )
    return frame, np.where((frame["age"] < 40) ^ (frame["city"] == "Ulm"), "yes", "no")


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_default_experts_read_text_dates_missing_values_and_unseen_categories(task):
    frame, y = mixed_frame()
    target = y if task == "classification" else frame["age"] * 2.0
    other = frame.head(20).assign(city="Rom")
    names = []
    for name, expert in default_experts(frame, target, task, random_state=0):
        expert = expert.set_params(max_epochs=2) if name == "moe" else expert
        expert.fit(frame, target)
        with pytest.warns(UserWarning, match="'city'"):
            assert len(expert.predict(other)) == 20
        names.append(name)
    assert names == ["linear", "boosting", "forest", "moe"]


def test_default_experts_are_for_one_of_two_tasks():
    with pytest.raises(ConfigError, match="task must be one of"):
        default_experts(X, Y, "clustering")


@pytest.mark.slow
def test_without_experts_any_table_is_learned():
    frame, y = mixed_frame(300)
    mixture = MixtureClassifier(random_state=0).fit(frame[:200], y[:200])
    assert mixture.expert_names_ == ["linear", "boosting", "forest", "moe"]
    assert mixture.failed_ == {}
    assert mixture.score(frame[200:], y[200:]) > 0.9
    assert mixture.column_kinds() == {"age": "number", "income": "number", "city": "category", "joined": "time"}


def test_an_array_for_a_model_of_a_frame_gets_its_names():
    mixture = MixtureClassifier(PAIR, gate="constant", random_state=0).fit(X, Y)
    with pytest.warns(UserWarning, match="valid feature names") as told:
        assert np.array_equal(mixture.predict_proba(X.to_numpy()), mixture.predict_proba(X))
    assert len(told) == 1  # the experts see a frame


def test_a_model_fitted_on_an_array_has_no_column_names():
    mixture = MixtureClassifier(PAIR, gate="mean", cv=2).fit(X.to_numpy(), Y)
    with pytest.raises(DataError, match="no names"):
        mixture.column_kinds()
