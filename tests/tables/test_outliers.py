"""Regression with a few targets far from all others."""

import numpy as np
import pytest
from sklearn.datasets import make_friedman1

import moeapps
from moeapps import MoERegressor
from moeapps.core.errors import ConfigError
from moeapps.tables.targets import has_outliers


def with_outliers(y: np.ndarray, times: float = 100.0) -> np.ndarray:
    moved = y.copy()
    moved[:: len(y) // 4] += times * y.std()
    return moved


def test_a_few_targets_far_from_all_others_are_outliers():
    _, y = make_friedman1(1000, noise=1.0, random_state=0)
    assert has_outliers(with_outliers(y), np.ones(1000))
    assert has_outliers(-with_outliers(y, 20), np.ones(1000))


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.normal(size=2000),
        lambda rng: rng.lognormal(sigma=1.0, size=2000),
        lambda rng: rng.lognormal(sigma=2.0, size=2000),
        lambda rng: rng.exponential(size=2000),
        lambda rng: np.where(rng.random(2000) < 0.7, 0, rng.lognormal(5, 1, 2000)),
        lambda rng: np.where(rng.random(2000) < 0.995, 0, 1.0),
        lambda rng: rng.poisson(0.3, 2000).astype(float),
        lambda rng: np.ones(2000),
    ],
)
def test_skewed_targets_and_rare_events_are_none(draw):
    for seed in range(5):
        assert not has_outliers(draw(np.random.default_rng(seed)), np.ones(2000))


def test_the_loss_of_auto_is_not_led_astray_by_outliers(tmp_path):
    X, y = make_friedman1(400, noise=0.5, random_state=0)
    model = MoERegressor(max_epochs=15, random_state=0).fit(X, with_outliers(y))
    assert model.loss_ == "huber"
    squared = MoERegressor(max_epochs=15, random_state=0, loss="squared").fit(X, with_outliers(y))
    error, other = (np.median(np.abs(found.predict(X) - y)) for found in (model, squared))
    assert error < 0.6 * other
    model.save(tmp_path / "m.safetensors")
    loaded = moeapps.load(tmp_path / "m.safetensors")
    assert loaded.loss_ == "huber"
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))


def test_without_outliers_auto_is_the_squared_error():
    X, y = make_friedman1(300, noise=0.5, random_state=0)
    auto, squared = (MoERegressor(max_epochs=2, random_state=0, loss=loss).fit(X, y) for loss in ("auto", "squared"))
    assert auto.loss_ == "squared"
    np.testing.assert_array_equal(auto.predict(X), squared.predict(X))


def test_an_unknown_loss_is_refused():
    with pytest.raises(ConfigError, match="loss must be one of auto, squared, huber"):
        MoERegressor(loss="absolute").fit(np.zeros((30, 1)), np.arange(30.0))
