"""Parts of a mixture: calibration, uncertainty, the rule of choice, the loss, the expected gain."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from moeapps.core.losses import mixture_loss
from moeapps.core.mixing import Calibration, GateConfig, PredictionGate, fit_calibration
from moeapps.core.mixing.calibration import fit_temperature, picked
from moeapps.core.mixing.gain import fit_gain
from moeapps.core.mixing.gate import dense_weights
from moeapps.core.mixing.inputs import MixingData, uncertainty
from moeapps.core.mixing.selection import choose, compare, cut_folds
from moeapps.core.mixing.simulation import last_stage
from moeapps.core.mixing.training import train_gate

# n rows, E experts, K classes


def data_of(predictions, y):
    n, num_experts = predictions.shape[:2]
    names = [str(e) for e in range(num_experts)]
    return MixingData.checked(np.zeros((n, 0)), predictions, y, None, "classification", names)


def drawn(n=2000, sharpness=1.0, seed=0):
    """Log-probabilities ``(n, 1, 3)`` that are ``sharpness`` times too sure, and classes."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 3)) * 2
    y = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return log_softmax(logits * sharpness, axis=1)[:, None], np.minimum(y, 2)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_is_the_one_with_the_least_log_loss(sharpness):
    predictions, y = drawn(sharpness=sharpness)
    temperature, loss = fit_temperature(predictions[:, 0], y, np.ones(len(y)))
    assert temperature == pytest.approx(sharpness, rel=0.1)
    reference = minimize_scalar(
        lambda t: -picked(log_softmax(predictions[:, 0] / t, axis=1), y).mean(), bounds=(0.1, 10), method="bounded"
    )
    assert loss == pytest.approx(reference.fun, abs=1e-5)
    assert temperature == pytest.approx(reference.x, rel=0.01)


def test_an_expert_with_zeros_gets_a_floor():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 1000)
    p = np.where(rng.random(1000) < 0.02, 1 - y, y).astype(float)  # quite sure, and wrong in 2 %
    with np.errstate(divide="ignore"):
        predictions = np.log(np.stack([1 - p, p], axis=1))[:, None]
    calibration = fit_calibration(data_of(predictions, y))
    assert calibration.floors[0] > 1e-4
    probabilities = np.exp(calibration(data_of(predictions, y).predictions))[:, 0]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    wrong = probabilities[np.arange(1000), 1 - y]
    assert np.median(wrong) == pytest.approx(0.02, abs=0.01)


def test_an_expert_without_small_probabilities_needs_no_floor():
    predictions = np.log(np.full((50, 1, 2), 0.5))
    assert fit_calibration(data_of(predictions, np.zeros(50, dtype=int))).floors[0] <= 0.03
    identity = Calibration.identity(1)
    np.testing.assert_allclose(identity(predictions), predictions)


def test_uncertainty_of_probabilities():
    out = uncertainty(np.log([[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]]), "classification")
    entropy = [-sum(p * np.log(p) for p in row) for row in ([0.5, 0.3, 0.2], [0.1, 0.1, 0.8])]
    np.testing.assert_allclose(out, [[0.5, entropy[0], 0.2, 0.8, entropy[1], 0.7]])


def test_uncertainty_of_values_is_the_distance_from_the_mean():
    np.testing.assert_allclose(uncertainty(np.array([[[1.0], [3.0], [5.0]]]), "regression"), [[2, 0, 2]])


def test_the_loss_is_the_likelihood_of_the_mixture():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(7, 3, generator=generator, dtype=torch.float64).softmax(dim=1)
    likelihood = torch.rand(7, 3, generator=generator, dtype=torch.float64)
    expected = -(weights * likelihood).sum(dim=1).log()
    torch.testing.assert_close(mixture_loss(weights, likelihood.log()), expected.mean())
    counts = torch.arange(7, dtype=torch.float64)
    torch.testing.assert_close(
        mixture_loss(weights, likelihood.log(), counts), (counts * expected).sum() / counts.sum()
    )


def test_a_weight_of_zero_gives_a_finite_gradient():
    logits = torch.tensor([[1.0, 2.0], [0.5, 0.1]], requires_grad=True)
    weights = logits.softmax(dim=1) * torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    mixture_loss(weights, torch.tensor([[-1.0, -2.0], [-0.1, -40.0]])).backward()
    assert logits.grad.isfinite().all()


def paired(n, gaps, noise, seed=0):
    """Losses ``(n, C)`` with a common part, gaps, and noise of their own."""
    rng = np.random.default_rng(seed)
    return rng.random((n, 1)) * 5 + np.array(gaps) + noise * rng.normal(size=(n, len(gaps)))


def test_the_simplest_candidate_within_the_margin_is_chosen():
    names = ["expert:a", "mean", "constant", "mlp"]
    near = paired(100, [0.3, 0.3, 0.001, 0.0], noise=0.2)
    table = compare(names, near, np.ones(100)).set_index("candidate")
    assert table["difference"]["constant"] <= 0.5 * table["difference_error"]["constant"]
    assert choose(names, near, np.ones(100)) == "constant"


def test_a_clearly_better_candidate_is_chosen_however_complex():
    for best, gaps in (("mlp", [0.3, 0.3, 0.3, 0.0]), ("expert:a", [0.0, 0.3, 0.3, 0.3])):
        losses = paired(100, gaps, noise=0.1)
        assert choose(["expert:a", "mean", "constant", "mlp"], losses, np.ones(100)) == best


def test_of_equally_good_experts_the_one_with_the_lowest_loss_is_chosen():
    losses = paired(200, [0.0, 0.001, 0.5], noise=0.1)
    best = ["expert:a", "expert:b"][int(losses.mean(axis=0)[:2].argmin())]
    assert choose(["expert:a", "expert:b", "mean"], losses, np.ones(200)) == best


def test_standard_errors_are_those_of_the_mean():
    losses = paired(50, [0.1, 0.0], noise=0.3)
    table = compare(["a", "b"], losses, np.ones(50))
    np.testing.assert_allclose(table["standard_error"], losses.std(axis=0) / 50**0.5)
    best = losses.mean(axis=0).argmin()
    paired_error = (losses - losses[:, [best]]).std(axis=0) / 50**0.5
    np.testing.assert_allclose(table["difference_error"], paired_error)


def test_folds_are_stratified_and_cover_all_rows():
    y = np.array([0] * 50 + [1] * 10 + [2])
    data = data_of(np.log(np.full((61, 1, 3), 1 / 3)), y)
    folds = cut_folds(data, None, seed=0)
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(61))
    assert [int((y[held] == 1).sum()) for _, held in folds] == [2] * 5
    assert all(set(train) | set(held) == set(range(61)) and not set(train) & set(held) for train, held in folds)


def test_rows_stop_at_the_first_stage_that_is_not_above_the_threshold():
    scores = np.array([[0.9, 0.1, 0.9], [0.9, 0.9, 0.2]])
    assert last_stage(scores, 0.5).tolist() == [2, 0, 1]
    assert last_stage(np.zeros((0, 4)), 0.5).tolist() == [0] * 4


def test_the_expected_gain_is_learned():
    rng = np.random.default_rng(0)
    known = np.concatenate([rng.uniform(-1, 1, (500, 2)), np.ones((500, 1))], axis=1)
    gains = np.stack([known[:, 0], 2 * known[:, 1] + 1], axis=1)
    estimate = fit_gain(known, gains + 0.1 * rng.normal(size=gains.shape), np.ones(500))
    np.testing.assert_allclose(estimate(known), gains, atol=0.1)
    assert np.isfinite(fit_gain(known[:1], gains[:1], np.ones(1))(known)).all()


@pytest.mark.parametrize("router", ["topk", "topp", "noisy_topk", "null_experts", "shared", "bilevel"])
def test_routers_give_weights_that_sum_to_one(router):
    rng = np.random.default_rng(0)
    predictions = np.log(rng.dirichlet(np.ones(3), size=(40, 4)))
    data = data_of(predictions, rng.integers(0, 3, 40))
    gate = train_gate(GateConfig("confidence", router=router, top_k=2), data)
    assert isinstance(gate, PredictionGate)
    weights = dense_weights(gate(torch.zeros(40, 0), torch.from_numpy(uncertainty(predictions, "classification"))))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(40, dtype=torch.float64))
