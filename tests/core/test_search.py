"""Search spaces: what every model publishes, and what Optuna, scikit-learn and YAML make of them."""

import inspect

import optuna
import pytest
from sklearn.datasets import load_wine
from sklearn.model_selection import RandomizedSearchCV

from moeapps import MoEClassifier, registry
from moeapps.core.errors import ConfigError
from moeapps.core.search import Choice, Float, Int, distributions, read_space, suggest

MODELS = [
    entry.path for entry in registry.ENTRIES.values()
    if entry.kind == "model" and hasattr(registry.resolve(entry.path), "search_space")
]  # fmt: skip


def test_all_estimators_and_modules_publish_a_space():
    names = {path.rpartition(".")[2] for path in MODELS}
    assert {
        "MoEClassifier", "MoERegressor", "MixtureClassifier", "MixtureRegressor", "MowstClassifier", "GNNClassifier",
        "MowstLinkPredictor", "MowstGraphClassifier", "MultiTaskRanker", "AWMoERanker", "WideNetClassifier",
        "SwitchDiTGenerator", "DriftMoEClassifier", "DriftMoERegressor", "TableModule", "MixtureModule", "MowstModule",
        "GNNModule", "LinkModule", "GraphExpertsModule", "RankingModule", "ImageModule", "DiffusionModule",
    } <= names  # fmt: skip


@pytest.mark.parametrize("path", MODELS)
def test_a_space_has_arguments_of_the_constructor_around_their_defaults(path):
    kind = registry.resolve(path)
    arguments = inspect.signature(kind).parameters
    assert kind.search_space()
    for name, distribution in kind.search_space().items():
        default = arguments[name].default
        if isinstance(distribution, Choice):
            assert default in distribution.values
        elif not isinstance(default, str):
            assert distribution.low <= default <= distribution.high, name


def test_optuna_draws_arguments_of_the_constructor():
    space = MoEClassifier.search_space()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    values = suggest(study.ask(), space)
    assert list(values) == list(space)
    assert MoEClassifier(**values).get_params()["lr"] == values["lr"]


def test_scikit_learn_draws_from_the_same_space():
    X, y = load_wine(return_X_y=True)
    space = {name: kind for name, kind in MoEClassifier.search_space().items() if name in ("num_experts", "lr")}
    search = RandomizedSearchCV(
        MoEClassifier(dim=8, max_epochs=1, random_state=0), distributions(space), n_iter=2, cv=2, random_state=0
    )
    found = search.fit(X, y).best_params_
    assert 4 <= found["num_experts"] <= 32
    assert 5e-4 <= found["lr"] <= 1e-2


def test_a_space_is_read_from_yaml():
    content = {
        "lr": {"low": 1e-4, "high": 0.1, "log": True},
        "depth": {"low": 1, "high": 4},
        "router": ["topk", "topp"],
    }
    assert read_space(content) == {"lr": Float(1e-4, 0.1, True), "depth": Int(1, 4), "router": Choice(("topk", "topp"))}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([], "maps names of settings"),
        ({"lr": {"low": 0.1}}, "lr: expected a list of values, or low, high and log"),
        ({"lr": {"low": 0.1, "high": 0.01}}, "lr: low must be below high"),
        ({"lr": {"low": 0.0, "high": 0.01, "log": True}}, "lr: low must be above 0 where log is true"),
        ({"lr": {"low": "a", "high": 0.01}}, "lr: could not convert"),
        ({"lr": []}, "lr: a choice needs at least one value"),
    ],
)
def test_a_wrong_space_names_the_setting(content, text):
    with pytest.raises(ConfigError, match=text):
        read_space(content)
