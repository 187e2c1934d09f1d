"""Weights, regions, importance, load and cost, on experts that are right in one half of the table each."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from matplotlib.figure import Figure
from sklearn.exceptions import NotFittedError

from moeapps import MixtureClassifier, MixtureRegressor
from moeapps.core.errors import ConfigError
from moeapps.tables.mixture.inspection import PREDICTIONS
from tests.tables.mixture.toy import FromHint, HalfRight, HalfRightRegressor, plane

EXPERTS = [("left", HalfRight(-1)), ("right", HalfRight(1))]


@pytest.fixture(scope="module")
def halves():
    X, y = plane(400)
    return MixtureClassifier(
        EXPERTS, gate="linear", calibrate=False, costs={"left": 1.0, "right": 3.0}, random_state=0
    ).fit(X, y)


def test_the_gate_wins_where_experts_differ_by_region(halves):
    X, y = plane(300, seed=1)
    alone = max((HalfRight(sign).fit(X, y).predict_proba(X)[:, 1].round() == (y == "up")).mean() for sign in (-1, 1))
    assert alone < 0.6
    assert halves.score(X, y) > 0.95
    losses = halves.candidates_.set_index("candidate")["loss"]
    assert losses["linear"] < 0.5 * losses.drop("linear").min()


def test_the_default_choice_finds_it_too():
    X, y = plane(300)
    mixture = MixtureClassifier(EXPERTS, random_state=0).fit(X, y)
    table = mixture.candidates_.set_index("candidate")
    assert mixture.chosen_ in ("linear", "mlp")
    gap = table["difference"][["expert:left", "expert:right"]] - table["difference"][mixture.chosen_]
    assert (gap > 5 * table["difference_error"][["expert:left", "expert:right"]]).all()
    assert mixture.score(X, y) > 0.8


def test_regions_state_the_rule(halves):
    X, y = plane(300, seed=1)
    regions = halves.regions(X, y, max_depth=1)
    assert len(regions) == 2
    assert set(regions["leader"]) == {"left", "right"}
    left = regions.set_index("leader").loc["left"]
    assert left["where"].startswith("x <= ")
    assert abs(float(left["where"].rpartition(" ")[2])) < 0.3
    assert left["weight left"] > 0.8 > 0.2 > left["weight right"]
    assert left["score left"] > 0.85
    assert left["score right"] < 0.15
    assert regions["rows"].sum() == 300


@pytest.mark.parametrize(
    ("hint", "rules"),
    [
        (("Ulm", "Bonn"), {"hint is Ulm", "hint is not Ulm", "hint is Bonn", "hint is not Bonn"}),
        ((np.nan, 1.5), {"hint <= ", "hint > "}),
        ((pd.Timestamp("2024-03-01"), pd.Timestamp("2020-03-01")), {"hint <= 2022-0", "hint > 2022-0"}),
    ],
)
def test_regions_speak_of_categories_missing_values_and_times(hint, rules):
    X, y = plane(400)
    frame = pd.DataFrame({"z": X["z"], "hint": pd.Series(np.where(X["x"] > 0, *map(np.array, hint)), index=X.index)})
    if isinstance(hint[1], float):
        frame["hint"] += np.linspace(0, 1, 400)
    experts = [(name, FromHint(hint[0], sign)) for name, sign in (("left", -1), ("right", 1))]
    mixture = MixtureClassifier(experts, gate="linear", calibrate=False, random_state=0).fit(frame, y)
    regions = mixture.regions(frame, y, max_depth=1)
    assert all(any(where.startswith(rule) for rule in rules) for where in regions["where"])
    assert regions["score mixture"].min() > 0.9
    if isinstance(hint[1], float):
        assert regions["where"].str.endswith("or missing").sum() == 1


def test_without_a_gate_by_row_there_is_one_region():
    X, y = plane(200)
    regions = MixtureClassifier(EXPERTS, gate="mean", random_state=0).fit(X, y).regions(X)
    assert regions["where"].tolist() == ["everywhere"]
    assert regions["rows"].tolist() == [200]


def test_weights_are_a_column_per_expert_and_sum_to_one(halves):
    X, _ = plane(50, seed=2)
    X.index = range(100, 150)
    weights = halves.weights(X)
    assert list(weights) == ["left", "right"]
    assert weights.index.equals(X.index)
    assert np.allclose(weights.sum(axis=1), 1)
    assert (weights["left"] > 0.5).eq(X["x"] < 0).mean() > 0.9


def test_importance_names_the_column_that_the_gate_uses(halves):
    X, _ = plane(200, seed=2)
    importance = halves.gate_importance(X)
    assert importance["column"][0] == "x"
    table = importance.set_index("column")["importance"]
    assert table["x"] > 0.3
    assert table["x"] > 5 * table["z"]
    assert set(table.index) == {"x", "z", PREDICTIONS}


def test_importance_is_zero_for_a_gate_that_does_not_look():
    X, y = plane(100)
    mixture = MixtureClassifier(EXPERTS, gate="mean", random_state=0).fit(X, y)
    assert (mixture.gate_importance(X)["importance"] == 0).all()


def test_load_by_group_sums_to_one(halves):
    X, _ = plane(200, seed=2)
    load = halves.expert_load(X, groups=np.where(X["x"] > 0, "east", "west"))
    assert np.allclose(load.sum(axis=1), 1)
    assert load.loc["east", "right"] > 0.7
    assert load.loc["west", "left"] > 0.7
    assert set(halves.expert_load(X).index) == {"down", "up"}
    assert isinstance(halves.plot_expert_load(X), Figure)


def test_an_expert_that_cannot_have_weight_is_not_asked():
    class Counts(HalfRight):
        asked = 0

        def predict_proba(self, X):
            Counts.asked += len(X)
            return super().predict_proba(X)

    X, y = plane(200)
    X["x"] = -X["x"].abs()  # the one on the left is always right
    mixture = MixtureClassifier([("left", HalfRight(-1)), ("never", Counts(1))], gate="best", random_state=0).fit(X, y)
    assert mixture.chosen_ == "expert:left"
    Counts.asked = 0
    mixture.predict(X)
    assert Counts.asked == 0
    assert mixture.experts_asked(X).mean().to_dict() == {"left": 1.0, "never": 0.0}
    alone = mixture.named_experts_["left"]
    assert (mixture.predict_proba(X).argmax(axis=1) == alone.predict_proba(X).argmax(axis=1)).all()


def test_other_frames_give_the_same(halves):
    X, _ = plane(60, seed=3)
    assert np.array_equal(halves.predict_proba(pl.from_pandas(X)), halves.predict_proba(X))


def test_nothing_is_shown_before_fit():
    X, y = plane(20)
    mixture = MixtureClassifier(EXPERTS)
    for call in (
        lambda: mixture.predict(X),
        lambda: mixture.weights(X),
        lambda: mixture.experts_asked(X),
        lambda: mixture.regions(X),
        lambda: mixture.gate_importance(X),
        lambda: mixture.expert_load(X),
        lambda: mixture.cost_curve(X, y),
        lambda: mixture.plot_cost_curve(X, y),
        lambda: mixture.column_kinds(),
        lambda: mixture.columns_,
        lambda: mixture.chosen_,
    ):
        with pytest.raises(NotFittedError):
            call()


def test_regression_by_region():
    X, _ = plane(400)
    y = 3 * X["z"]
    truth = pd.DataFrame({"x": X["x"], "z": y})
    experts = [("left", HalfRightRegressor(-1)), ("right", HalfRightRegressor(1))]
    mixture = MixtureRegressor(experts, gate="linear", random_state=0).fit(truth, y)
    assert mixture.score(truth, y) > 0.7
    assert max(expert.score(truth, y) for expert in mixture.experts_) < 0.2
    regions = mixture.regions(truth, y, max_depth=1)
    assert regions["where"].str.startswith("x ").all()
    assert list(mixture.expert_load(truth).index) == ["all"]


def test_ordinary_costs_are_seconds_and_given_ones_are_kept(halves):
    assert halves.costs_.to_dict() == {"left": 1.0, "right": 3.0}
    X, y = plane(60)
    measured = MixtureClassifier(EXPERTS, gate="mean").fit(X, y).costs_
    assert ((measured > 0) & (measured < 1)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"costs": {"left": 1.0}}, "lacks expert 'right'"),
        ({"costs": {"left": 1.0, "right": 1.0, "other": 1.0}}, "'other', which is no expert"),
        ({"costs": [1.0]}, "one number per expert, 2, got 1"),
        ({"costs": [1.0, 0.0]}, "'right' must be a number above 0"),
        ({"costs": "cheap"}, "'measured'"),
        ({"costs": 3}, "'measured'"),
        ({"budget": 0.0}, "budget must be a number above 0"),
        ({"budget": 1.5}, "budget must be a number above 0"),
        ({"tolerance": -1.0}, "tolerance must be"),
        ({"tolerance": 0.1, "budget": 0.5}, "give one of them"),
        ({"inference": "fast"}, "inference must be one of"),
        ({"calibrate": "no"}, "calibrate must be one of"),
        ({"gate": "tree"}, "gate must be one of"),
    ],
)
def test_impossible_arguments_are_refused_at_fit(arguments, message):
    X, y = plane(40)
    with pytest.raises(ConfigError, match=message):
        MixtureClassifier(EXPERTS, **arguments).fit(X, y)
