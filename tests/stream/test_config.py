"""The settings of DriftMoE are declared once."""

import inspect
from dataclasses import fields

import numpy as np
import pytest

from moeapps.core.errors import ConfigError
from moeapps.stream import DriftMoEClassifier, DriftMoERegressor, HoeffdingPool
from moeapps.stream.compiled.mixture_state import MixtureSettings
from moeapps.stream.compiled.pool import TreeConfig
from moeapps.stream.config import DriftMoEConfig, NumberConfig

LEFT_OUT = {
    DriftMoERegressor: {
        "variant": "numbers have no classes that an expert could be for",
        "blend": "the router has no outputs of its own for numbers",
        "archive": "trees of numbers are not kept",
        "n_jobs": "numbers are learned in one thread",
        "leaf_prediction": "leaves predict the mean, or their linear model where that was better",
    },
    HoeffdingPool: {},
    DriftMoEClassifier: {},
}


@pytest.mark.parametrize(
    ("estimator", "config"),
    [(DriftMoEClassifier, DriftMoEConfig), (DriftMoERegressor, NumberConfig), (HoeffdingPool, TreeConfig)],
    ids=lambda cls: cls.__name__,
)
def test_every_setting_is_an_argument_with_the_same_default(estimator, config):
    parameters = inspect.signature(estimator).parameters
    for field in fields(config):
        if field.name in LEFT_OUT[estimator]:
            assert field.name not in parameters
            continue
        assert parameters[field.name].default == field.default, field.name
    if config is not TreeConfig:
        assert set(parameters) <= {field.name for field in fields(config)}


def test_the_settings_of_trees_are_among_those_of_the_mixture():
    assert {field.name for field in fields(TreeConfig)} <= {field.name for field in fields(DriftMoEConfig)}


def test_settings_keep_the_constructors_names_down_to_the_kernels():
    derived = {"blend_window"}
    assert set(MixtureSettings._fields) - derived <= {field.name for field in fields(DriftMoEConfig)}


def test_a_setting_reaches_the_loops():
    settings = DriftMoEConfig(window=40, drift=None, router_lr=0.1, router_inputs="raw").mixture
    assert (settings.window, settings.blend_window, settings.router_lr) == (40, 200, 0.1)
    model = DriftMoERegressor(window=7, grace_period=11, delta=0.5, seed=0)
    model.learn_one({"a": 1.0}, 2.0)
    assert model._engine.settings.window == 7
    assert model._engine.pool.state.trees.grace[0] == 11
    assert model._engine.pool.state.trees.delta[0] == 0.5


def test_the_type_of_a_number_that_was_given_compiles_no_loops_anew():
    """The loops are compiled for each combination of types, which takes half a minute."""
    whole = {"drift_delta": 1, "warning_delta": 1, "tie_threshold": 1, "delta": 1, "bagging": 6, "blend": 30}
    other = DriftMoEConfig(**whole, temperature=1, router_dropout=0, router_lr=1, use_router=np.bool_(True))
    for name in ("mixture", "kind_settings"):
        kinds = [
            {field: type(value) for field, value in getattr(config, name)._asdict().items()}
            for config in (DriftMoEConfig(), DriftMoEConfig(**whole) if name == "kind_settings" else other)
        ]
        assert kinds[0] == kinds[1]
    assert type(other.trees.tie_threshold) is float


def test_an_impossible_setting_is_named():
    with pytest.raises(ConfigError, match="temperature must be above 0, got -1"):
        DriftMoEConfig(temperature=-1)
