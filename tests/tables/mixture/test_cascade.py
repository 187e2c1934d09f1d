"""Experts asked in the order of their cost, as far as it pays."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from sklearn.base import BaseEstimator, ClassifierMixin

from moeapps import MixtureClassifier, MixtureRegressor
from moeapps.core.errors import ConfigError
from tests.tables.mixture.toy import HalfRightRegressor, plane

ASKED = {"cheap": 0, "dear": 0}


class SureWhereEasy(ClassifierMixin, BaseEstimator):
    """Knows the class where the first column is above 0 and says so; elsewhere it says one half."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X):
        ASKED["cheap"] += len(X)
        sure = np.where(X["x"] > 0, np.where(X["z"] > 0, 0.99, 0.01), 0.5)
        return np.column_stack([1 - sure, sure])


class AlwaysRight(SureWhereEasy):
    """Knows all classes."""

    def predict_proba(self, X):
        ASKED["dear"] += len(X)
        sure = np.where(X["z"] > 0, 0.99, 0.01)
        return np.column_stack([1 - sure, sure])


EXPERTS = [("dear", AlwaysRight()), ("cheap", SureWhereEasy())]
COSTS = {"cheap": 1.0, "dear": 9.0}


@pytest.fixture(scope="module")
def cascade():
    X, y = plane(600)
    return MixtureClassifier(
        EXPERTS, costs=COSTS, budget=0.6, inference="cascade", gate="mean", calibrate=False, random_state=0
    ).fit(X, y)


def test_only_hard_rows_reach_the_expensive_expert(cascade):
    X, y = plane(400, seed=1)
    for name in ASKED:
        ASKED[name] = 0
    predicted = cascade.predict(X)
    assert ASKED["cheap"] == 400
    assert 150 < ASKED["dear"] < 260
    assert (predicted == y).mean() > 0.97
    dear = ASKED["dear"]
    asked = cascade.experts_asked(X)
    assert asked["cheap"].all()
    assert asked["dear"].sum() == dear
    assert asked["dear"][X["x"] < 0].mean() > 0.9 > 0.2 > asked["dear"][X["x"] > 0].mean()


def test_the_budget_is_kept_on_new_rows(cascade):
    X, _ = plane(2000, seed=2)
    asked = cascade.experts_asked(X)
    cost = (asked["cheap"] * 1 + asked["dear"] * 9).mean() / 10
    assert cost < 0.65


def test_an_expert_that_is_not_asked_has_no_weight(cascade):
    X, _ = plane(100, seed=1)
    weights, asked = cascade.weights(X), cascade.experts_asked(X)
    assert np.allclose(weights.sum(axis=1), 1)
    assert (weights["dear"][~asked["dear"]] == 0).all()


def test_inference_may_be_changed_after_the_fit(cascade):
    X, _ = plane(100, seed=1)
    assert not cascade.experts_asked(X).all(axis=None)
    cascade.set_params(inference="mix")
    try:
        assert cascade.experts_asked(X).all(axis=None)
    finally:
        cascade.set_params(inference="cascade")


def test_the_curve_goes_from_the_cheapest_expert_to_all(cascade):
    X, y = plane(400, seed=1)
    curve = cascade.cost_curve(X, y).sort_values("cost", ignore_index=True)
    assert {"threshold", "cost", "loss", "accuracy"} <= set(curve)
    assert curve["cost"].iloc[0] == pytest.approx(0.1)
    assert curve["cost"].iloc[-1] == pytest.approx(1.0)
    assert curve["accuracy"].iloc[0] < 0.85
    assert curve["accuracy"].max() > 0.97
    figure = cascade.plot_cost_curve(X, y)
    assert isinstance(figure, Figure)
    labels = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
    assert {"cascade", "cheap", "dear"} <= labels


def test_a_budget_below_the_cheapest_expert_is_refused():
    X, y = plane(100)
    with pytest.raises(ConfigError, match="budget"):
        MixtureClassifier(EXPERTS, costs=COSTS, budget=0.05, gate="mean", random_state=0).fit(X, y)


def test_regressors_make_a_cascade_too():
    X, _ = plane(300)
    y = 3 * X["z"]
    truth = pd.DataFrame({"x": X["x"], "z": y})
    experts = [("left", HalfRightRegressor(-1)), ("right", HalfRightRegressor(1))]
    model = MixtureRegressor(
        experts, costs=[1.0, 2.0], tolerance=0.1, inference="cascade", gate="linear", random_state=0
    )
    model.fit(truth, y)
    assert model.predict(truth).shape == (300,)
    assert "r2" in model.cost_curve(truth, y)
    assert isinstance(model.plot_cost_curve(truth, y), Figure)
    assert model.experts_asked(truth)["left"].all()
