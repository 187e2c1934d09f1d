"""What corrects a mixture: lines in regression, biases per class, and stacking of both."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import RidgeCV

from moeapps.core.errors import FileFormatError
from moeapps.core.mixing import GatedMixture, fit_cascade, fit_mixture
from moeapps.core.mixing.inputs import MixingData
from moeapps.core.mixing.line import Line, fit_line, fit_stacked

# n rows, E experts, K classes


def log_loss(probabilities, y):
    return -np.log(probabilities[np.arange(len(y)), y]).mean()


def regression_of(mixed, target, weight=None):
    return MixingData.checked(np.zeros((len(mixed), 0)), mixed[:, None], target, weight, "regression", ["0"])


def test_a_row_of_weight_two_counts_as_two_in_a_line():
    rng = np.random.default_rng(0)
    mixed, target = rng.normal(size=(2, 12, 1))
    counts = rng.integers(1, 4, size=12)
    weighted = fit_line(mixed, regression_of(mixed, target, counts))
    mixed, target = mixed.repeat(counts, axis=0), target.repeat(counts, axis=0)
    repeated = fit_line(mixed, regression_of(mixed, target))
    np.testing.assert_allclose([weighted.slope, weighted.intercept], [repeated.slope, repeated.intercept])


def test_a_line_is_the_one_with_the_least_squared_error():
    rng = np.random.default_rng(0)
    mixed = rng.normal(3, 2, size=(4000, 2))
    target = mixed * [1.5, -0.5] + [4, 100] + rng.normal(size=(4000, 2))
    weight = rng.uniform(0.5, 1.5, size=4000)
    weight /= weight.mean()
    line = fit_line(mixed, regression_of(mixed, target, weight))
    for column in range(2):
        slope, intercept = np.polyfit(mixed[:, column], target[:, column], 1, w=np.sqrt(weight))
        assert line.slope[column] == pytest.approx(slope, rel=0.01)
        assert line.intercept[column] == pytest.approx(intercept, rel=0.01)
    np.testing.assert_allclose(line(mixed, mixed[:, None]), mixed * line.slope + line.intercept)


def test_a_line_of_few_rows_changes_little():
    mixed, target = np.array([[0.0], [1.0]]), np.array([[0.0], [3.0]])
    line = fit_line(mixed, regression_of(mixed, target))
    assert 1 < line.slope[0] < 1.5  # two rows against ten that say nothing is to be changed
    constant = np.full((50, 1), 7.0)
    same = fit_line(constant, regression_of(constant, np.arange(50.0)[:, None]))
    assert same.slope[0] == 1  # a constant prediction is moved only
    assert same(np.full((1, 1), 7.0), np.zeros((1, 1, 1)))[0, 0] == pytest.approx(7 + (24.5 - 7) * 50 / 60)
    assert isinstance(same, Line)


def test_a_linear_regression_on_predictions_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    predictions = rng.normal(size=(500, 3, 2))
    target = np.stack([predictions[:, :, 0] @ [1.0, -0.4, 0.0], predictions[:, :, 1] @ [0.2, 0.2, 2.0] + 1], axis=1)
    target += 0.1 * rng.normal(size=target.shape)
    weight = rng.uniform(0.5, 1.5, size=500)
    names = ["a", "b", "c"]
    data = MixingData.checked(np.zeros((500, 0)), predictions, target, weight, "regression", names)
    line = fit_stacked(data)
    for k in range(2):
        reference = RidgeCV().fit(predictions[:, :, k], target[:, k], data.weight)
        found = line(np.full((500, 2), np.pi), predictions)[:, k]  # whatever the gate mixes
        np.testing.assert_allclose(found, reference.predict(predictions[:, :, k]))


def test_a_stacked_mixture_of_two_classes_is_a_penalised_logistic_regression():
    rng = np.random.default_rng(0)
    log_odds = rng.normal(size=(300, 2))
    y = (log_odds @ [1.5, 0.2] + 1 + rng.logistic(size=300) > 0).astype(np.int64)
    predictions = log_softmax(np.stack([np.zeros((300, 2)), log_odds], axis=2), axis=2)
    line = fit_stacked(MixingData.checked(np.zeros((300, 0)), predictions, y, None, "classification", ["a", "b"]))

    def loss(parameters):  # in terms of the log odds: factors of both classes are one, and their biases a difference
        factors, difference = parameters[:2], parameters[2]
        margins = np.where(y == 1, 1, -1) * (log_odds @ factors + difference)
        return np.logaddexp(0, -margins).sum() + 5 * np.square(factors - 0.5).sum() + difference**2 / 4

    found = minimize(loss, np.zeros(3)).x
    np.testing.assert_allclose(line.free, np.stack([found[:2], found[:2]], axis=1), atol=1e-3)
    np.testing.assert_allclose(np.diff(line.intercept), found[2], atol=1e-3)
    np.testing.assert_allclose(line.shares, np.abs(found[:2]) / np.abs(found[:2]).sum(), atol=1e-3)


# other class shares than those that the experts were trained on, and stacking of classes


def balanced_experts(n=400, seed=0, shares=(0.7, 0.2, 0.1)):
    """No features, log-probabilities of two experts that take three classes for equally frequent, and classes."""
    rng = np.random.default_rng(seed)
    y = rng.choice(3, n, p=shares)
    seen = 1.5 * np.eye(3)[y][:, None] + rng.normal(size=(n, 2, 3))
    return np.zeros((n, 0)), log_softmax(1.5 * seen, axis=2), y


@pytest.mark.parametrize("gate", ["best", "mean", "constant"])
def test_a_class_bias_makes_up_for_other_class_shares(gate):
    test = balanced_experts(seed=1)
    losses = []
    for class_bias in (False, True):
        mixture = fit_mixture(*balanced_experts(), gate=gate, class_bias=class_bias)
        assert (mixture.line is not None) == class_bias
        losses.append(log_loss(mixture.mix(*test[:2]), test[2]))
    assert losses[1] < losses[0] - 0.05
    bias = mixture.line.intercept - mixture.line.intercept.mean()
    shift = np.log([0.7, 0.2, 0.1]) - np.log([0.7, 0.2, 0.1]).mean()
    np.testing.assert_allclose(bias, shift, atol=0.4)


def test_no_class_bias_is_taken_where_the_shares_are_those_of_the_training():
    rows = balanced_experts(shares=(1 / 3, 1 / 3, 1 / 3))
    for gate in ("best", "mean", "constant"):
        with_bias = fit_mixture(*rows, gate=gate, class_bias=True)
        assert with_bias.line is None
        assert (with_bias.mix(*rows[:2]) == fit_mixture(*rows, gate=gate).mix(*rows[:2])).all()


def test_stacking_of_classes_competes_only_where_biases_may():
    rows = balanced_experts(120)
    assert "stacked" not in set(fit_mixture(*rows).candidates["candidate"])
    mixture = fit_mixture(*rows, class_bias=True)
    assert "stacked" in set(mixture.candidates["candidate"])
    assert mixture.name == "stacked"  # as good as constant weights with biases, and it comes first
    alone = fit_mixture(rows[0], rows[1][:, :1], rows[2], class_bias=True)
    assert alone.name == "expert:0"
    assert alone.line is not None


def test_stacked_classes_are_a_pool_of_log_probabilities_with_biases():
    rows = balanced_experts()
    mixture = fit_mixture(*rows, gate="stacked")
    x, predictions, y = balanced_experts(seed=1)
    factors = mixture.line.free[:, 0]
    logits = np.einsum("e,nek->nk", factors, mixture.calibrated(predictions)) + mixture.line.intercept
    np.testing.assert_allclose(mixture.mix(x, predictions), softmax(logits, axis=1))
    np.testing.assert_allclose(mixture.weights(x, predictions), np.tile(factors / factors.sum(), (len(y), 1)))
    assert log_loss(mixture.mix(x, predictions), y) < log_loss(fit_mixture(*rows, gate="mean").mix(x, predictions), y)


@pytest.mark.parametrize("n", [1, 10])
def test_a_few_rows_are_enough_for_biases_and_stacking(n):
    x, predictions, y = balanced_experts(n)
    for options in ({"gate": "stacked"}, {"class_bias": True}):
        mixture = fit_mixture(x, predictions, y, **options)
        assert np.isfinite(mixture.mix(x, predictions)).all()
        assert n >= 10 or mixture.line is None


def test_a_class_without_rows_keeps_its_probability_above_zero():
    x, predictions, y = balanced_experts(60)
    y[y == 2] = 0
    for gate in ("constant", "stacked"):
        mixed = fit_mixture(x, predictions, y, gate=gate, class_bias=True).mix(x, predictions)
        assert ((mixed > 0) & (mixed < 1)).all()


def test_a_row_of_weight_two_counts_as_two_rows_in_a_stacked_mixture():
    x, predictions, y = balanced_experts(200)
    twice = np.concatenate([np.arange(200), np.arange(50)])
    weight = np.where(np.arange(200) < 50, 2.0, 1.0)
    weighted = fit_mixture(x, predictions, y, weight, gate="stacked", calibrate=False)
    repeated = fit_mixture(x[twice], predictions[twice], y[twice], gate="stacked", calibrate=False)
    np.testing.assert_allclose(weighted.line.free, repeated.line.free, atol=1e-3)
    np.testing.assert_allclose(weighted.line.intercept, repeated.line.intercept, atol=1e-3)


@pytest.mark.parametrize("gate", ["stacked", "constant", "best"])
def test_a_cascade_ends_with_the_mixture_and_its_early_stages_have_biases_too(gate):
    x, predictions, y = balanced_experts()
    mixture = fit_mixture(x, predictions, y, gate=gate, class_bias=True)
    cascade = fit_cascade(mixture, x, predictions, y, costs=[1.0, 2.0])
    asked = cascade.run(x, lambda expert, rows: predictions[rows, expert])
    last = asked.asked[:, cascade.order[-1]]
    np.testing.assert_allclose(asked.mixed[last], mixture.mix(x, predictions)[last])
    for stage in cascade.stages:
        assert stage.line.intercept.argmax() == 0
        assert stage.line.free is None  # of one expert


@pytest.mark.parametrize("gate", ["constant", "stacked"])
def test_biases_and_factors_survive_the_state(gate):
    rows = balanced_experts(100)
    mixture = fit_mixture(*rows, gate=gate, class_bias=True)
    state, tensors = mixture.state()
    again = GatedMixture.from_state(json.loads(json.dumps(state, allow_nan=False)), tensors)
    assert again.line is not None
    assert (again.mix(*rows[:2]) == mixture.mix(*rows[:2])).all()
    with pytest.raises(FileFormatError, match="line of a mixture must be 3 slopes"):
        GatedMixture.from_state({**state, "line": [[1.0], [2.0]]}, tensors)
