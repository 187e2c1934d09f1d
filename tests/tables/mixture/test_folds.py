"""Out-of-fold predictions: folds, rare classes, failures, parallel work."""

import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, PredefinedSplit, RepeatedKFold, TimeSeriesSplit
from sklearn.naive_bayes import GaussianNB
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from moeapps import MixtureClassifier, MixtureRegressor
from moeapps.core.errors import ConfigError, DataError
from moeapps.tables.mixture.answers import ClassAnswers
from moeapps.tables.mixture.folds import fit_experts, make_folds
from tests.tables.mixture.toy import FailsIf

X, Y = load_iris(return_X_y=True)
PAIR = [("nb", GaussianNB()), ("tree", DecisionTreeClassifier(max_depth=2))]


def folds_of(cv, y, codes=None):
    return make_folds(cv, np.zeros((len(y), 1)), y, 0, codes, np.ones(len(y), dtype=bool))


def test_every_row_is_predicted_by_experts_that_have_not_seen_it():
    folds = folds_of(5, Y, Y)
    outcome = fit_experts(PAIR, X, Y, None, folds, ClassAnswers(np.unique(Y), 1e-3), [0, 0])
    for train, test in folds:
        assert not set(train) & set(test)
        expected = GaussianNB().fit(X[train], Y[train]).predict_log_proba(X[test])
        assert np.allclose(np.exp(outcome.predictions[test, 0]), np.exp(expected), atol=1e-12)
    assert np.array_equal(outcome.rows, np.arange(150))


@pytest.mark.parametrize("first_fold", [0, -1])
def test_a_predefined_split_is_one_of_all_rows_also_where_some_have_no_weight(first_fold):
    place = np.where(np.arange(150) % 4 == 0, first_fold, np.arange(150) % 4)
    weight = (np.arange(150) % 3 > 0).astype(float)
    rows = np.flatnonzero(weight)
    whole = MixtureClassifier(PAIR, cv=PredefinedSplit(place), random_state=0).fit(X, Y, sample_weight=weight)
    part = MixtureClassifier(PAIR, cv=PredefinedSplit(place[rows]), random_state=0)
    part.fit(X[rows], Y[rows], sample_weight=weight[rows])
    assert np.array_equal(whole.predict_proba(X), part.predict_proba(X))


@pytest.mark.parametrize("cv", [PredefinedSplit([0, 1] * 50), [(np.arange(100), np.arange(100, 200))]])
def test_folds_of_other_rows_than_those_given_are_refused(cv):
    with pytest.raises(ConfigError, match="150"):
        MixtureClassifier(PAIR, cv=cv).fit(X, Y)


def test_folds_have_the_classes_in_equal_ratios():
    for _, test in folds_of(5, Y, Y):
        assert np.bincount(Y[test]).tolist() == [10, 10, 10]


def test_a_class_with_one_row_is_learned_and_keeps_its_column():
    labels = Y.astype(object).copy()
    labels[:] = [f"class {code}" for code in Y]
    labels[17] = "rare"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        mixture = MixtureClassifier([RandomForestClassifier(20), GaussianNB()], gate="constant", random_state=0).fit(
            X, labels
        )
    assert mixture.failed_ == {}
    probabilities = mixture.predict_proba(X)
    assert probabilities.shape == (150, 4)
    assert np.allclose(probabilities.sum(axis=1), 1)


def test_what_a_fold_has_not_seen_is_filled_and_normalised():
    answers = ClassAnswers(np.array(["a", "b", "c"]), 0.001)
    expert = GaussianNB().fit(X[Y < 2], np.array(["a", "c"])[Y[Y < 2]])
    probabilities = np.exp(answers.read(expert, X))
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert np.allclose(probabilities[:, 1], 0.001)


def test_a_fold_of_one_class_predicts_that_class():
    labels = np.array(["no"] * 11 + ["yes"])
    rows = np.arange(12.0)[:, None]
    mixture = MixtureClassifier([LogisticRegression()], cv=12, gate="constant", random_state=0).fit(rows, labels)
    assert mixture.failed_ == {}


def test_fewer_rows_than_folds():
    rows, labels = np.arange(4.0)[:, None], np.array([0, 0, 1, 1])
    assert MixtureClassifier(PAIR, cv=5, gate="constant", random_state=0).fit(rows, labels).predict(rows).shape == (4,)
    with pytest.raises(DataError, match="at least 2 rows, got n_samples=1"):
        MixtureRegressor([Ridge()]).fit(rows[:1], [1.0])


def test_an_expert_that_fails_in_one_fold_is_named_and_the_others_go_on():
    rows = X.copy()
    rows[3, 0] = -99.0  # in one fold this row is not there to be learned from
    with pytest.warns(UserWarning, match="'shaky' is left out, since it failed in fold . of 5: RuntimeError"):
        mixture = MixtureClassifier([*PAIR, ("shaky", FailsIf(row=3))], gate="constant", random_state=0).fit(rows, Y)
    assert list(mixture.failed_) == ["shaky"]
    assert "the marked row is missing" in mixture.failed_["shaky"]
    assert mixture.expert_names_ == ["nb", "tree"]
    assert list(mixture.weights(rows)) == ["nb", "tree"]


def test_if_all_experts_fail_the_first_error_is_raised():
    with pytest.raises(RuntimeError, match="this expert always fails"):
        MixtureClassifier([("a", FailsIf()), ("b", FailsIf())]).fit(X, Y)


def test_experts_that_cannot_read_text_are_named_with_what_to_do():
    rows = pd.DataFrame({"city": ["Ulm", "Bonn"] * 6, "age": range(12)})
    with pytest.raises(ValueError, match="could not convert string to float: '") as caught:
        MixtureClassifier([("nb", GaussianNB())], random_state=0).fit(rows, [0, 0, 1] * 4)
    assert caught.value.__notes__[0].startswith("expert 'nb' failed in fold 1 of ")
    assert caught.value.__notes__[0].endswith("make_pipeline(TableFeatures('codes'), expert)")


def test_costs_of_a_failed_expert_are_dropped_with_it():
    with pytest.warns(UserWarning, match="'a' is left out"):
        mixture = MixtureClassifier(
            [("a", FailsIf()), *PAIR], costs=[5.0, 1.0, 2.0], gate="constant", random_state=0
        ).fit(X, Y)
    assert mixture.costs_.to_dict() == {"nb": 1.0, "tree": 2.0}


def same_with_two_jobs(backend):
    experts = [("forest", RandomForestClassifier(5)), *PAIR]
    one = MixtureClassifier(experts, cv=3, gate="constant", random_state=0).fit(X, Y)
    with joblib.parallel_config(backend):
        two = MixtureClassifier(experts, cv=3, n_jobs=2, gate="constant", random_state=0).fit(X, Y)
    assert np.array_equal(one.predict_proba(X), two.predict_proba(X))
    assert one.candidates_.equals(two.candidates_)


def test_threads_in_parallel_give_the_same_numbers():
    same_with_two_jobs("threading")


@pytest.mark.slow  # two processes that import everything
def test_processes_in_parallel_give_the_same_numbers():
    same_with_two_jobs("loky")


def test_splitters_and_given_rows():
    by_splitter = MixtureClassifier(PAIR, cv=KFold(3), gate="constant", random_state=0).fit(X, Y)
    by_rows = MixtureClassifier(PAIR, cv=list(KFold(3).split(X)), gate="constant", random_state=0).fit(X, Y)
    assert np.array_equal(by_splitter.predict_proba(X), by_rows.predict_proba(X))


def test_rows_that_no_fold_predicts_teach_the_gate_nothing():
    t = np.arange(80.0)
    model = MixtureRegressor(
        [Ridge(), DecisionTreeRegressor(max_depth=3)], cv=TimeSeriesSplit(3), gate="constant", random_state=0
    )
    assert model.fit(t[:, None], np.sin(t / 9)).predict(t[:, None]).shape == (80,)


@pytest.mark.parametrize(
    ("cv", "message"),
    [
        (1, "at least 2 folds"),
        (0, "at least 1"),
        (True, "number of folds"),
        ("five", "one of prefit"),
        (2.5, "number of folds"),
        (RepeatedKFold(n_splits=3, n_repeats=2), "at most once"),
        ([], "at most once"),
    ],
)
def test_folds_that_cannot_be_used_are_refused(cv, message):
    with pytest.raises(ConfigError, match=message):
        MixtureClassifier(PAIR, cv=cv).fit(X, Y)


def test_a_weight_of_zero_equals_leaving_the_row_out():
    weight = np.ones(150)
    weight[::7] = 0
    kept = weight > 0
    with_zeros = MixtureClassifier(PAIR, cv=3, gate="constant", random_state=0).fit(X, Y, weight)
    without = MixtureClassifier(PAIR, cv=3, gate="constant", random_state=0).fit(X[kept], Y[kept], weight[kept])
    assert np.array_equal(with_zeros.predict_proba(X), without.predict_proba(X))
    with pytest.raises(ValueError, match="at least one non-zero"):
        MixtureClassifier(PAIR).fit(X, Y, np.zeros(150))


def test_given_rows_count_all_rows_also_those_of_weight_zero():
    weight = np.ones(150)
    weight[:20] = 0
    splits = list(KFold(3, shuffle=True, random_state=0).split(X))
    model = MixtureClassifier(PAIR, cv=splits, gate="constant", random_state=0).fit(X, Y, weight)
    kept = np.arange(20, 150)
    own = [(np.flatnonzero(np.isin(kept, a)), np.flatnonzero(np.isin(kept, b))) for a, b in splits]
    other = MixtureClassifier(PAIR, cv=own, gate="constant", random_state=0).fit(X[20:], Y[20:], weight[20:])
    assert np.array_equal(model.predict_proba(X), other.predict_proba(X))


def test_a_progress_bar_only_if_asked_for(capsys):
    MixtureClassifier(PAIR, cv=2, gate="constant", random_state=0).fit(X, Y)
    silent = capsys.readouterr()
    assert silent.out + silent.err == ""
    MixtureClassifier(PAIR, cv=2, gate="constant", random_state=0, verbose=True).fit(X, Y)
    assert "6/6" in capsys.readouterr().out


def test_a_frame_reaches_the_experts_unchanged():
    seen = []

    class Looks(GaussianNB):
        def fit(self, X, y, sample_weight=None):
            seen.append(X)
            return super().fit(X[["a"]].fillna(0), y)

        def predict_proba(self, X):
            return super().predict_proba(X[["a"]].fillna(0))

    frame = pd.DataFrame({"a": [1.0, np.nan, 3.0, 4.0] * 5, "text": ["x", None, "y", "z"] * 5})
    MixtureClassifier([("looks", Looks())], cv=2, gate="constant", random_state=0).fit(frame, [0, 0, 1, 1] * 5)
    assert all(isinstance(part, pd.DataFrame) and list(part) == ["a", "text"] for part in seen)
    assert seen[-1].equals(frame)
