"""scikit-learn's and Optuna's searches work on every estimator (Mowst under GridSearchCV: tests/graph, K10)."""

import numpy as np
import optuna
import pandas as pd
import pytest
from sklearn.base import is_regressor
from sklearn.model_selection import GridSearchCV, cross_val_score

from moeapps import (
    AWMoERanker,
    DriftMoEClassifier,
    DriftMoERegressor,
    GNNClassifier,
    MoEClassifier,
    MoERegressor,
    MowstClassifier,
    MultiTaskRanker,
)
from moeapps.vision import SwitchDiTGenerator, WideNetClassifier

QUICK = {"max_epochs": 2, "random_state": 0, "accelerator": "cpu"}
TINY = {"depth": 1, "num_heads": 2, "patch_size": 4, **QUICK}
IMAGES = np.random.default_rng(0).random((40, 8, 8)).astype(np.float32)
CASES = [
    (MoEClassifier(dim=8, num_blocks=1, **QUICK), {"num_experts": [2, 3], "router": ["topk", "topp"]}),
    (MoERegressor(dim=8, num_blocks=1, **QUICK), {"num_experts": [2, 3]}),
    (DriftMoEClassifier(seed=0), {"n_experts": [2, 3]}),
    (DriftMoERegressor(seed=0), {"n_experts": [2, 3]}),
    (WideNetClassifier(embed_dim=8, **TINY), {"num_experts": [2, 3]}),
]


def data_for(estimator):
    if isinstance(estimator, WideNetClassifier):
        return IMAGES, np.arange(40) % 2
    X = np.random.default_rng(0).normal(size=(60, 3))
    return X, X[:, 0] if is_regressor(estimator) else X[:, 0] > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("estimator", "space"), CASES, ids=lambda case: type(case).__name__)
def test_both_search_what_has_fit_and_score(estimator, space):
    X, y = data_for(estimator)
    search = GridSearchCV(estimator, space, cv=2, error_score="raise").fit(X, y)
    assert set(search.best_params_) == set(space)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()

    def objective(trial: optuna.Trial) -> float:
        chosen = {name: trial.suggest_categorical(name, values) for name, values in space.items()}
        return float(cross_val_score(type(estimator)(**{**estimator.get_params(), **chosen}), X, y, cv=2).mean())

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=1)
    assert np.isfinite(study.best_value)


def score_of_a_graph(kind, width, cora):
    network = {"network" if kind is GNNClassifier else "strong": "gcn"}
    model = kind(hidden_channels=width, norm=None, **network, **QUICK).fit(cora)
    return model.evaluate(cora, nodes=cora.val_mask)["accuracy"]


def score_of_a_ranking(kind, width, cora):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"user_id": rng.integers(0, 9, 80), "item_id": rng.integers(0, 9, 80), "click": [0, 1] * 40})
    if kind is AWMoERanker:
        frame["item_id_history"] = [[1, 2]] * 80
        return kind(embedding_dim=width, **QUICK).fit(frame[:60], "click").evaluate(frame[60:])["auc"].mean()
    return kind("mmoe", embedding_dim=width, **QUICK).fit(frame[:60], ["click"]).evaluate(frame[60:])["auc"].mean()


def score_of_drawing(kind, width, cora):
    model = kind(dim=2 * width, validation_fraction=0.25, timesteps=20, **TINY).fit(IMAGES)
    return -model.history_["val/loss"].iloc[-1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "score"),
    [
        (MowstClassifier, score_of_a_graph),
        (GNNClassifier, score_of_a_graph),
        (MultiTaskRanker, score_of_a_ranking),
        (AWMoERanker, score_of_a_ranking),
        (SwitchDiTGenerator, score_of_drawing),
    ],
)
def test_optuna_searches_what_has_a_score_of_its_own(kind, score, cora):
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: score(kind, trial.suggest_categorical("width", [8, 16]), cora), n_trials=2)
    assert np.isfinite(study.best_value)
