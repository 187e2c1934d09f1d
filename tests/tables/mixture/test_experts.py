"""Experts of a mixture: names, parameters, refusals."""

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from moeapps import MixtureClassifier, MixtureRegressor
from moeapps.core.errors import ConfigError, DataError

X, Y = load_iris(return_X_y=True)


def names_of(experts):
    return MixtureClassifier(experts, cv=2, random_state=0, gate="mean").fit(X, Y).expert_names_


def test_experts_are_called_as_their_classes_and_numbered_where_there_are_several():
    assert names_of([GaussianNB(), DecisionTreeClassifier(max_depth=1), DecisionTreeClassifier(max_depth=2)]) == [
        "gaussiannb", "decisiontreeclassifier-1", "decisiontreeclassifier-2"
    ]  # fmt: skip
    assert names_of([("nb", GaussianNB()), DecisionTreeClassifier()]) == ["nb", "decisiontreeclassifier"]


def test_drop_leaves_an_expert_out():
    mixture = MixtureClassifier([("nb", GaussianNB()), ("tree", DecisionTreeClassifier())], cv=2, gate="mean")
    mixture.set_params(tree="drop")
    assert mixture.fit(X, Y).expert_names_ == ["nb"]
    with pytest.raises(ConfigError, match="every expert is 'drop'"):
        mixture.set_params(nb="drop").fit(X, Y)


def test_parameters_are_reached_by_name():
    mixture = MixtureClassifier([("nb", GaussianNB()), DecisionTreeClassifier()])
    assert mixture.get_params()["decisiontreeclassifier__max_depth"] is None
    mixture.set_params(decisiontreeclassifier__max_depth=2, nb__var_smoothing=0.1, gate="mean")
    assert mixture.experts[1].max_depth == 2
    assert mixture.experts[0][1].var_smoothing == 0.1
    copied = clone(mixture)
    assert copied.experts[1].max_depth == 2
    assert copied.experts[1] is not mixture.experts[1]
    with pytest.raises(ValueError, match="Invalid parameter"):
        mixture.set_params(nonsense=1)


def test_grid_search_over_an_expert_and_its_parameters():
    mixture = MixtureClassifier([("nb", GaussianNB()), ("tree", DecisionTreeClassifier(max_depth=1))], cv=2,
                                gate="best", random_state=0)  # fmt: skip
    search = GridSearchCV(mixture, {"tree__max_depth": [1, 3], "nb": ["drop", GaussianNB()]}, cv=2).fit(X, Y)
    assert search.best_score_ > 0.9
    assert len(search.cv_results_["params"]) == 4


def test_fit_leaves_the_given_experts_alone():
    tree = DecisionTreeClassifier()
    mixture = MixtureClassifier([tree], cv=2).fit(X, Y)
    assert not hasattr(tree, "tree_")
    assert mixture.experts_[0] is not tree
    assert tree.random_state is None


def test_experts_without_a_seed_take_it_from_the_mixture_and_others_keep_theirs():
    experts = [("free", DecisionTreeClassifier()), ("set", DecisionTreeClassifier(random_state=7))]
    first, second = (MixtureClassifier(experts, cv=2, gate="constant", random_state=3).fit(X, Y) for _ in range(2))
    assert first.experts_[0].random_state == second.experts_[0].random_state is not None
    assert first.experts_[1].random_state == 7
    assert np.array_equal(first.predict_proba(X), second.predict_proba(X))


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ([LinearSVC()], "'linearsvc'.*no predict_proba.*CalibratedClassifierCV"),
        ([Ridge()], "'ridge' is a regressor"),
        ([("a", GaussianNB()), ("a", GaussianNB())], "'a' 2 times"),
        ([("a__b", GaussianNB())], "two underscores"),
        ([("cv", GaussianNB())], "an argument of the mixture"),
        ([], "list of estimators"),
        (GaussianNB(), "list of estimators"),
        ([GaussianNB], "among them"),
        ([("a", 3)], "expert 'a' must be an estimator"),
    ],
)
def test_refused_experts_are_named(experts, message):
    with pytest.raises(ConfigError, match=message):
        MixtureClassifier(experts).fit(X, Y)


def test_a_classifier_is_no_expert_for_numbers():
    with pytest.raises(ConfigError, match="'gaussiannb' is a classifier"):
        MixtureRegressor([GaussianNB()]).fit(X, X[:, 0])


def test_a_calibrated_classifier_is_an_expert():
    assert names_of([CalibratedClassifierCV(LinearSVC())]) == ["calibratedclassifiercv"]


def test_weights_reach_a_pipeline_through_its_last_step_and_are_refused_where_nothing_takes_them():
    weight = np.where(Y == 0, 3.0, 1.0)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    heavy = MixtureClassifier([pipeline], cv=2, gate="constant", random_state=0).fit(X, Y, weight)
    light = MixtureClassifier([pipeline], cv=2, gate="constant", random_state=0).fit(X, Y)
    alone = clone(pipeline).fit(X, Y, logisticregression__sample_weight=weight)
    assert np.allclose(heavy.experts_[0].predict_proba(X), alone.predict_proba(X))
    assert not np.allclose(heavy.experts_[0].predict_proba(X), light.experts_[0].predict_proba(X))
    with pytest.raises(ConfigError, match="'kneighborsclassifier'.*does not take sample_weight"):
        MixtureClassifier([KNeighborsClassifier()]).fit(X, Y, weight)


class OnlyNumbersFromZero(ClassifierMixin, BaseEstimator):
    """Takes labels 0 to K-1 only, as XGBoost."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        if not np.array_equal(self.classes_, np.arange(len(self.classes_))):
            raise ValueError(f"expected classes 0 to K-1, got {self.classes_}")
        self.model_ = GaussianNB().fit(X, y)
        return self

    def predict_proba(self, X):
        return self.model_.predict_proba(X)


def test_an_expert_that_knows_numbers_only_gets_them_whatever_the_labels_are():
    labels = np.array(["a", "b", "c"])[Y]
    mixture = MixtureClassifier([OnlyNumbersFromZero()], cv=3, gate="constant", random_state=0).fit(X, labels)
    assert mixture.failed_ == {}
    assert mixture.experts_[0].classes_.tolist() == ["a", "b", "c"]
    assert (mixture.predict(X) == labels).mean() > 0.9


def test_class_weight_by_label_reaches_the_expert():
    labels = np.array(["a", "b", "c"])[Y]
    weighted = LogisticRegression(class_weight={"a": 1, "b": 9, "c": 1}, max_iter=500)
    mixture = MixtureClassifier([weighted], cv=2, gate="constant", random_state=0).fit(X, labels)
    assert np.allclose(mixture.experts_[0].coef_, clone(weighted).fit(X, labels).coef_)


def test_fitted_experts_are_kept_and_only_the_gate_learns():
    half = np.arange(len(Y)) % 2 == 0
    nb, tree = GaussianNB().fit(X[half], Y[half]), DecisionTreeClassifier(max_depth=2).fit(X[half], Y[half])
    mixture = MixtureClassifier([nb, tree], cv="prefit", gate="constant", random_state=0).fit(X[~half], Y[~half])
    assert mixture.experts_ == [nb, tree]
    assert mixture.experts_[0] is nb
    assert mixture.score(X, Y) > 0.9


def test_experts_that_are_not_fitted_are_named():
    with pytest.raises(NotFittedError, match="'gaussiannb' is not fitted"):
        MixtureClassifier([GaussianNB()], cv="prefit").fit(X, Y)
    with pytest.raises(ConfigError, match="needs fitted experts"):
        MixtureClassifier(cv="prefit").fit(X, Y)


def test_held_out_rows_may_lack_a_class_that_fitted_experts_know():
    nb = GaussianNB().fit(X, Y)
    mixture = MixtureClassifier([nb], cv="prefit", gate="constant", random_state=0).fit(X[Y < 2], Y[Y < 2])
    assert mixture.classes_.tolist() == [0, 1, 2]
    assert mixture.predict_proba(X).shape == (150, 3)
    with pytest.raises(DataError, match="another type"):
        MixtureClassifier([nb], cv="prefit").fit(X, np.array(["a", "b", "c"])[Y].astype(object))


def test_a_frozen_expert_survives_cloning():
    nb = FrozenEstimator(GaussianNB().fit(X, Y))
    assert (
        clone(MixtureClassifier([("nb", nb)], cv="prefit", gate="constant", random_state=0)).fit(X, Y).score(X, Y) > 0.9
    )
