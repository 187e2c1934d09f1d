"""scikit-learn's own checks: tables, and graphs without edges."""

import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks

from moeapps import MixtureClassifier, MixtureRegressor, MoEClassifier, MoERegressor
from moeapps.graph import GNNClassifier, MowstClassifier
from moeapps.stream import DriftMoEClassifier, DriftMoERegressor

TABULAR = {"num_experts": 2, "dim": 8, "num_blocks": 1, "batch_size": 1000, "max_epochs": 2, "lr": 0.1}
GRAPH = {"norm": "batch_norm", "max_epochs": 4, "accelerator": "cpu"}
ESTIMATORS = [
    MoEClassifier(accelerator="cpu", **TABULAR),
    MoERegressor(accelerator="cpu", **TABULAR),
    GNNClassifier("gcn", lr=0.1, **GRAPH),
    MowstClassifier(["gcn", "sage"], gate="mean", lr=0.05, **GRAPH),
    DriftMoEClassifier(n_experts=3, seed=0),
    DriftMoEClassifier(experts=None, n_experts=3, seed=0),
    DriftMoEClassifier("task", n_experts=3, seed=0),
    DriftMoERegressor(n_experts=3, seed=0),
    MixtureClassifier([LogisticRegression(), DecisionTreeClassifier(max_depth=3)], cv=2, gate="mean"),
    MixtureRegressor([Ridge(), DecisionTreeRegressor(max_depth=3)], cv=2, gate="mean"),
]
# two checks ask how well an estimator has learned; the other hundred train as well, and two epochs do for them
LEARNS = {
    "check_classifiers_train": (MoEClassifier, {"max_epochs": 12}),
    "check_regressors_train": (MoERegressor, {"max_epochs": 25, "lr": 0.05}),
}
# networks, norms and gates compete; strong="auto" of MowstClassifier is seven networks, which takes longer still
LONGER = [
    GNNClassifier(lr=0.03, max_epochs=8, patience=4, accelerator="cpu"),
    MowstClassifier(["gcn", "sage"], lr=0.03, max_epochs=6, patience=3, accelerator="cpu"),
]


def excused(estimator) -> dict[str, str]:
    if isinstance(estimator, MixtureClassifier):
        return {
            "check_sample_weight_equivalence_on_dense_data": "temperatures have a prior of half a row, and rows "
            "are counted: a weight of 2 is not exactly the row twice (a weight of 0 does equal leaving the row out)"
        }
    if not isinstance(estimator, GNNClassifier | MowstClassifier):
        return {}
    return {
        "check_classifiers_classes": "labels -1 and 1: here -1 means unlabeled, as in scikit-learn's LabelPropagation, "
        "which this check knows by name and gives other labels"
    }


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*never occur in train_mask.*", "ignore:.*far surer of training nodes.*"),
    pytest.mark.filterwarnings("ignore:.*feature names.*", "ignore:invalid value encountered in cast"),
]


@parametrize_with_checks(ESTIMATORS, expected_failed_checks=excused, xfail_strict=True)
def test_scikit_learn_check(estimator, check):
    kind, training = LEARNS.get(check.func.__name__, (None, {}))
    check(clone(estimator).set_params(**training) if type(estimator) is kind else estimator)


@pytest.mark.slow
@parametrize_with_checks(LONGER, expected_failed_checks=excused, xfail_strict=True)
def test_scikit_learn_check_where_something_is_chosen(estimator, check):
    check(estimator)
