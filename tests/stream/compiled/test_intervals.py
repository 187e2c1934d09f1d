"""Prediction intervals of the regressor: their coverage over drifts, the formula, and saving."""

import pickle

import numpy as np
import pandas as pd
import pytest

import moeapps
from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.stream import DriftMoERegressor
from moeapps.stream.compiled.intervals import LEVELS, RATE, WINDOW, ConformalIntervals


def drifting(n: int, seed: int) -> tuple[list[dict[str, float]], list[float]]:
    """Coefficients jump three times, the noise grows fourfold at the half, and a slow trend is added."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 4))
    part = np.arange(n) * 4 // n
    slopes = np.array([[3, 0, 1, 0], [-3, 2, 0, 0], [0, 0, 0, 4], [3, 0, 1, 0]])[part]
    noise = np.where(np.arange(n) < n // 2, 0.5, 2.0) * rng.standard_t(4, size=n)
    y = (X * slopes).sum(axis=1) + 5 * np.arange(n) / n + noise
    return [dict(zip("abcd", row, strict=True)) for row in X.tolist()], y.tolist()


@pytest.fixture(scope="module")
def run() -> tuple[DriftMoERegressor, dict[float | str, np.ndarray], np.ndarray]:
    """A model after 8,000 drifting instances; which targets were inside, by level; widths at 0.9.

    "fixed" is the level 0.9 without adaptation: the quantile of the window.
    """
    rows, targets = drifting(8000, 0)
    model = DriftMoERegressor(seed=0)
    inside: dict[float | str, list[bool]] = {0.8: [], 0.9: [], 0.93: [], 0.95: [], "fixed": []}
    widths, fixed = [], ConformalIntervals()
    for x, y in zip(rows, targets, strict=True):
        lower, upper = model.predict_interval_one(x)
        widths.append(upper - lower)
        prediction = model.predict_one(x)
        for level in (0.8, 0.9, 0.93, 0.95):
            inside[level].append(abs(y - prediction) <= model._intervals.half_width(level))
        inside["fixed"].append(abs(y - prediction) <= fixed.half_width(0.9))
        fixed.update(np.array([abs(y - prediction)]))
        fixed.alphas = 1.0 - LEVELS
        assert inside[0.9][-1] == (lower <= y <= upper)
        model.learn_one(x, y)
    return model, {level: np.array(found) for level, found in inside.items()}, np.array(widths)


def test_coverage_is_the_level_within_two_points_over_drifts(run):
    _, inside, _ = run
    for level in (0.8, 0.9, 0.93, 0.95):
        assert inside[level].mean() == pytest.approx(level, abs=0.02), level
    for quarter in np.split(inside[0.9], 4):  # each begins with a drift
        assert quarter.mean() == pytest.approx(0.9, abs=0.02)


def test_without_adaptation_the_drifts_would_show(run):
    _, inside, _ = run
    after = [slice(drift, drift + 200) for drift in (2000, 4000, 6000)]
    adapted, fixed = (np.concatenate([inside[level][part] for part in after]).mean() for level in (0.9, "fixed"))
    assert fixed < 0.8
    assert adapted > fixed + 0.02


def test_intervals_are_no_wider_than_they_need_to_be(run):
    _, _, widths = run
    noise = np.random.default_rng(0).standard_t(4, size=100_000)
    best = 2 * np.quantile(np.abs(noise), 0.9)
    early, late = np.median(widths[1000:2000]), np.median(widths[7000:])
    assert best * 0.5 <= early < 6 * best * 0.5  # the trees have much to learn yet
    assert best * 2.0 <= late < 2 * best * 2.0
    assert np.isinf(widths[:9]).all()
    assert np.isfinite(widths[20:]).mean() > 0.99


def test_the_update_is_that_of_the_paper():
    rng = np.random.default_rng(0)
    residuals = np.abs(rng.standard_t(3, size=1500)) * np.where(np.arange(1500) % 400 < 200, 1, 3)
    ours = ConformalIntervals()
    alpha, past = 0.1, []
    for residual in residuals:
        window = np.sort(past[-WINDOW:])
        rank = int(np.ceil((len(window) + 1) * (1 - alpha)))
        width = np.inf if rank > len(window) else window[rank - 1]
        assert ours.half_width(0.9) == width
        alpha += RATE * (0.1 - (residual > width))
        past.append(residual)
        ours.update(np.array([residual]))
    assert ours.alphas[list(LEVELS).index(0.9)] == pytest.approx(alpha, abs=1e-12)
    assert np.array_equal(ours._ordered, np.sort(residuals[-WINDOW:]))


def test_a_higher_level_has_a_wider_interval_and_a_level_between_is_between(run):
    model, _, _ = run
    halves = [model._intervals.half_width(level) for level in np.linspace(0.05, 0.995, 60)]
    assert (np.diff(halves) >= 0).all()
    assert model._intervals.half_width(0.3) > 0


def test_batches_and_single_instances_give_the_same_intervals():
    rows, targets = drifting(1500, 1)
    models = [DriftMoERegressor(seed=3) for _ in range(3)]
    for x, y in zip(rows, targets, strict=True):
        models[0].learn_one(x, y)
    models[1].learn_many(pd.DataFrame(rows), targets)
    for start in range(0, 1500, 256):
        models[2].test_then_train(rows[start : start + 256], targets[start : start + 256])
    frame = pd.DataFrame(rows[:20], index=range(100, 120))
    expected = models[0].predict_interval_many(frame)
    assert list(expected) == ["lower", "upper"]
    assert expected.index.equals(frame.index)
    assert tuple(expected.iloc[3]) == models[0].predict_interval_one(rows[3])
    for model in models[1:]:
        pd.testing.assert_frame_equal(model.predict_interval_many(frame), expected, check_exact=True)


def test_a_prediction_changes_nothing_and_a_new_model_knows_nothing():
    model = DriftMoERegressor(seed=0)
    assert model.predict_interval_one({"a": 1.0}) == (-np.inf, np.inf)
    rows, targets = drifting(300, 2)
    model.learn_many(pd.DataFrame(rows), targets)
    before = model._intervals.arrays()
    before = {name: array.copy() for name, array in before.items()}
    first = model.predict_interval_one(rows[0], 0.77)
    assert model.predict_interval_one(rows[0], 0.77) == first
    assert all(np.array_equal(before[name], array) for name, array in model._intervals.arrays().items())
    model.fit(pd.DataFrame(rows[:50]), targets[:50])
    assert model._intervals.seen < 51


def test_saving_restores_the_intervals_exactly(run, tmp_path):
    model, _, _ = run
    path = tmp_path / "model.safetensors"
    model.save(path)
    loaded = moeapps.load(path)
    pickled = pickle.loads(pickle.dumps(model))
    rows, targets = drifting(400, 5)
    for x, y in zip(rows, targets, strict=True):
        for level in (0.5, 0.9, 0.97):
            assert loaded.predict_interval_one(x, level) == model.predict_interval_one(x, level)
            assert pickled.predict_interval_one(x, level) == model.predict_interval_one(x, level)
        for one in (model, loaded, pickled):
            one.learn_one(x, y)


def test_memory_is_constant(run):
    model, _, _ = run
    assert sum(array.size for array in model._intervals.arrays().values()) == WINDOW + len(LEVELS)
    assert model._intervals._ordered.shape == (WINDOW,)


@pytest.mark.parametrize(
    "fault",
    [
        lambda tensors: tensors.pop("interval_residuals"),
        lambda tensors: [tensors.pop("interval_residuals"), tensors.pop("interval_alphas")],
        lambda tensors: tensors.update(interval_residuals=tensors["interval_residuals"][:-1]),
        lambda tensors: tensors.update(interval_residuals=-1 - tensors["interval_residuals"]),
        lambda tensors: tensors.update(interval_alphas=tensors["interval_alphas"] - 3),
        lambda tensors: tensors.update(interval_alphas=tensors["interval_alphas"].astype(np.float32)),
    ],
)
def test_impossible_residuals_in_a_file_are_refused(fault):
    rows, targets = drifting(100, 2)
    model = DriftMoERegressor(seed=0)
    model.learn_many(pd.DataFrame(rows), targets)
    tensors = model.saved_tensors()
    fault(tensors)
    with pytest.raises(FileFormatError, match="residuals of its intervals are (impossible|incomplete)"):
        DriftMoERegressor.from_saved(model.saved_arguments(), model.saved_state(), tensors, "file.safetensors")


def test_old_pickles_and_states_begin_anew():
    model = DriftMoERegressor(seed=0)
    rows, targets = drifting(100, 2)
    model.learn_many(pd.DataFrame(rows), targets)
    state = dict(model.__getstate__())
    state.pop("_intervals")
    old = DriftMoERegressor.__new__(DriftMoERegressor)
    old.__setstate__(state)
    assert old.predict_interval_one(rows[0]) == (-np.inf, np.inf)
    old.learn_many(pd.DataFrame(rows), targets)
    assert np.isfinite(old.predict_interval_one(rows[0])).all()
    # the state and arrays of 0.1
    saved, tensors = model.saved_state(), model.saved_tensors()
    saved.pop("intervals_seen")
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("interval_")}
    again = DriftMoERegressor.from_saved(model.saved_arguments(), saved, tensors, "old.safetensors")
    assert again.predict_one(rows[0]) == model.predict_one(rows[0])
    assert again._intervals.seen == 0
    assert isinstance(next(iter(tensors.values())), np.ndarray)


@pytest.mark.parametrize("level", [0, 1, 1.5, -0.1, True, "90%", float("nan"), None])
def test_an_impossible_level_is_refused(level):
    model = DriftMoERegressor(seed=0)
    with pytest.raises(ConfigError, match="level must be a number above 0 and below 1, got"):
        model.predict_interval_one({"a": 1.0}, level)
    with pytest.raises(ConfigError, match="level must be a number above 0 and below 1, got"):
        model.predict_interval_many(pd.DataFrame({"a": [1.0]}), level)
