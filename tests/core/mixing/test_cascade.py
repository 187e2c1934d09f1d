"""Cascades: experts asked in the order of their cost, the budget, the tolerance, and Mowst's cascade as a case."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from moeapps.core.chain import pass_on
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.core.mixing import Calibration, Cascade, FixedGate, GatedMixture, fit_cascade, fit_mixture
from moeapps.core.mixing.simulation import ASK_ALL
from moeapps.core.routing import Routing
from moeapps.graph.confidence import ConfidenceOutput
from moeapps.graph.inference import mixture as chain_mixture
from moeapps.graph.inference import pass_on as pass_on_graph

# n rows, E experts, K classes
COSTS = np.array([10.0, 1.0, 3.0])


def easy_and_hard(n=600, seed=0):
    """A good expert of cost 10, a cheap one that knows the rows with a positive first feature, and a bad one."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    y = rng.integers(0, 2, n)
    right = np.where(y == 1, 0.95, 0.05)
    flipped = rng.random((n, 3)) < [0.03, 0.03, 0.3]
    p = np.where(flipped, 1 - right[:, None], right[:, None])
    p[:, 1] = np.where(x[:, 0] > 0, p[:, 1], 0.5)
    return x, np.log(np.stack([1 - p, p], axis=2)), y


@pytest.fixture(scope="module")
def mixture():
    x, predictions, y = easy_and_hard()
    return fit_mixture(x, predictions, y, names=["dear", "cheap", "bad"], gate="confidence")


@pytest.fixture(scope="module")
def half(mixture):
    x, predictions, y = easy_and_hard()
    return fit_cascade(mixture, x, predictions, y, costs=COSTS, budget=0.6)


def asker(predictions, log=None):
    def ask(expert, rows):
        if log is not None:
            log.append((expert, rows.copy()))
        return predictions[rows, expert]

    return ask


def test_experts_are_asked_by_cost_and_only_for_rows_that_reach_them(half):
    x, predictions, _ = easy_and_hard(seed=1)
    log = []
    answer = half.run(x, asker(predictions, log))
    assert half.order == (1, 2, 0)
    assert [expert for expert, _ in log] == [1, 2, 0]
    assert len(log[0][1]) == 600
    for expert, rows in log:
        assert (np.flatnonzero(answer.asked[:, expert]) == rows).all()
    assert (answer.asked[:, 0] <= answer.asked[:, 2]).all()


def test_a_budget_is_kept_and_easy_rows_are_those_that_stop(half, mixture):
    x, predictions, y = easy_and_hard(seed=1)
    answer = half.run(x, asker(predictions))
    assert (answer.asked @ COSTS).mean() / COSTS.sum() < 0.65
    assert answer.asked[x[:, 0] < 0, 0].mean() > answer.asked[x[:, 0] > 0, 0].mean() + 0.5
    accuracy = (answer.mixed.argmax(axis=1) == y).mean()
    assert accuracy > (mixture.mix(x, predictions).argmax(axis=1) == y).mean() - 0.02


def test_weights_and_predictions_are_those_of_the_experts_asked(half):
    x, predictions, _ = easy_and_hard(seed=1)
    answer = half.run(x, asker(predictions))
    np.testing.assert_allclose(answer.weights.sum(axis=1), 1)
    np.testing.assert_allclose(answer.mixed.sum(axis=1), 1)
    assert (answer.weights[~answer.asked] == 0).all()


def test_asking_all_is_the_mixture(half, mixture):
    x, predictions, _ = easy_and_hard(seed=1)
    everything = Cascade(**{**vars(half), "threshold": ASK_ALL}).run(x, asker(predictions))
    assert everything.asked.all()
    np.testing.assert_allclose(everything.mixed, mixture.mix(x, predictions), rtol=1e-12)
    np.testing.assert_allclose(everything.weights, mixture.weights(x, predictions), rtol=1e-12)


def test_a_higher_tolerance_costs_less(mixture):
    x, predictions, y = easy_and_hard()
    test_x, test_predictions, _ = easy_and_hard(seed=1)
    costs = []
    for tolerance in (None, 0.05, 10.0):
        cascade = fit_cascade(mixture, x, predictions, y, costs=COSTS, tolerance=tolerance)
        asked = cascade.run(test_x, asker(test_predictions)).asked
        costs.append((asked @ COSTS).mean() / COSTS.sum())
    assert costs[0] > costs[1] > costs[2] == pytest.approx(1 / 14)


def test_the_curve_runs_from_the_cheapest_to_all(half, mixture):
    x, predictions, y = easy_and_hard(seed=1)
    curve = half.curve(x, predictions, y)
    assert list(curve.columns) == ["threshold", "cost", "loss", "accuracy"]
    assert curve["cost"].is_monotonic_increasing
    assert curve["cost"].iloc[[0, -1]].tolist() == pytest.approx([1 / 14, 1])
    p = mixture.mix(x, predictions)
    assert curve["loss"].iloc[-1] == pytest.approx(-np.log(p[np.arange(600), y]).mean())
    assert curve["accuracy"].iloc[-1] == pytest.approx((p.argmax(axis=1) == y).mean())
    here = curve[curve["threshold"] == half.threshold].iloc[0]
    answer = half.run(x, asker(predictions))
    assert here["cost"] == pytest.approx((answer.asked @ COSTS).mean() / 14)
    assert here["accuracy"] == pytest.approx((answer.mixed.argmax(axis=1) == y).mean())


def test_regression_has_a_cascade():
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(400, 2)), rng.normal(size=400)
    noise = np.stack([np.full(400, 0.05), np.where(x[:, 0] > 0, 0.05, 2.0)], axis=1)
    predictions = (target[:, None] + noise * rng.normal(size=(400, 2)))[:, :, None]
    mixture = fit_mixture(x, predictions, target, task="regression", gate="linear")
    cascade = fit_cascade(mixture, x, predictions, target, costs=[9, 1], budget=0.6)
    answer = cascade.run(x, asker(predictions))
    assert answer.mixed.shape == (400, 1)
    assert answer.asked[x[:, 0] < 0, 0].mean() > answer.asked[x[:, 0] > 0, 0].mean() + 0.4
    assert (answer.asked @ [9, 1]).mean() / 10 <= 0.6
    curve = cascade.curve(x, predictions, target)
    assert list(curve.columns) == ["threshold", "cost", "loss", "r2"]
    residual = np.square(mixture.mix(x, predictions)[:, 0] - target).mean()
    assert curve["r2"].iloc[-1] == pytest.approx(1 - residual / target.var())


class _WeakConfidence(nn.Module):
    """Weight of the first of two experts is its highest probability, as Mowst's confidence could be."""

    def forward(self, features, uncertainty):
        c = uncertainty[:, 0]
        weights = torch.stack([c, 1 - c], dim=1)
        return Routing.from_topk(
            torch.arange(2).expand(len(c), 2), weights, logits=weights.log(), probabilities=weights
        )


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.7, 0.9, 2.0])
def test_a_chain_of_two_by_confidence_is_mowsts_cascade(threshold):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(80, 2, 3)) * 2
    log_probs = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    plain = Calibration.identity(2)
    both = GatedMixture("classification", ("weak", "strong"), 3, 0, "mowst", _WeakConfidence(), plain)
    weak = GatedMixture("classification", ("weak",), 3, 0, "expert:weak", FixedGate(np.ones(1)), plain.experts([0]))
    cascade = Cascade(both, (0, 1), (weak,), np.array([0.1, 1.0]), "confidence", (), 1 - threshold)
    answer = cascade.run(np.zeros((80, 0)), asker(log_probs))

    runs = {"weak": torch.from_numpy(logits[:, 0]), "strong": torch.from_numpy(logits[:, 1])}

    def gate(name, z):
        c = z.softmax(-1).max(-1).values
        return ConfidenceOutput(c, torch.logit(c))

    chain = pass_on_graph(
        ("weak", "strong"),
        lambda name, rows: runs[name] if rows is None else runs[name][rows],
        gate,
        lambda i, c: c >= threshold,
        chain_mixture,
    )
    np.testing.assert_allclose(answer.mixed, chain.log_probs.exp().numpy(), rtol=1e-9)
    np.testing.assert_allclose(answer.weights, chain.weights.numpy(), rtol=1e-9, atol=1e-12)
    assert (answer.asked[:, 1] == (chain.last.numpy() == 1)).all()


def test_confidence_can_be_the_criterion(mixture):
    x, predictions, y = easy_and_hard()
    cascade = fit_cascade(mixture, x, predictions, y, costs=COSTS, budget=0.6, criterion="confidence")
    answer = cascade.run(x, asker(predictions))
    assert cascade.gains == ()
    assert (answer.asked @ COSTS).mean() / 14 <= 0.6 + 1e-9
    assert answer.asked[x[:, 0] < 0, 0].mean() > answer.asked[x[:, 0] > 0, 0].mean()


# chains


def test_pass_on_visits_only_rows_that_go_on():
    seen = []

    def visit(i, rows):
        seen.append(None if rows is None else rows.tolist())
        return torch.tensor([True, False, True, True]) if rows is None else rows > 0

    assert pass_on(4, visit).tolist() == [1, 0, 3, 3]
    assert seen == [None, [0, 2, 3], [2, 3], [2, 3]]


def test_pass_on_ends_when_no_row_is_left():
    visited = []
    last = pass_on(3, lambda i, rows: visited.append(i) or torch.zeros(2, dtype=torch.bool))
    assert (last.tolist(), visited) == ([0, 0], [0])


# data at the edge


def test_one_expert_alone_and_experts_without_weight_are_not_asked():
    x, predictions, y = easy_and_hard(100)
    best = fit_mixture(x, predictions, y, gate="best")
    cascade = fit_cascade(best, x, predictions, y, costs=COSTS)
    assert cascade.order == (1, 0)  # the cheapest, at which easy rows may stop, and the one that is needed
    assert not cascade.run(x, asker(predictions)).asked[:, 2].any()
    only = fit_mixture(x, predictions[:, :1], y)
    single = fit_cascade(only, x, predictions[:, :1], y, costs=[1.0], budget=1.0)
    assert single.run(x, asker(predictions)).asked.all()


@pytest.mark.parametrize("n", [1, 2, 12])
def test_a_few_rows_are_enough(n):
    x, predictions, y = easy_and_hard(n)
    cascade = fit_cascade(fit_mixture(x, predictions, y), x, predictions, y, costs=[0, 0, 0])
    assert np.isfinite(cascade.run(x, asker(predictions)).mixed).all()


def test_no_rows_are_predicted_without_asking(half):
    log = []
    answer = half.run(np.zeros((0, 2)), asker(np.zeros((0, 3, 2)), log))
    assert (answer.mixed.shape, answer.asked.shape, log) == ((0, 2), (0, 3), [])


# refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 0}, "budget must be a number above 0"),
        ({"budget": 1.5}, "budget must be"),
        ({"budget": 0.05}, "less than the cheapest expert costs"),
        ({"tolerance": -1}, "tolerance must be a number of at least 0"),
        ({"costs": [1, 2]}, "costs must be 3 finite numbers"),
        ({"costs": [1, 2, np.nan]}, "costs must be 3 finite numbers"),
        ({"criterion": "luck"}, "criterion must be one of"),
    ],
)
def test_impossible_arguments_are_refused(mixture, change, message):
    x, predictions, y = easy_and_hard(60)
    with pytest.raises(ConfigError, match=message):
        fit_cascade(mixture, x, predictions, y, **{"costs": COSTS, **change})


def test_an_expert_that_answers_badly_is_named(half):
    x, predictions, _ = easy_and_hard(20)
    with pytest.raises(DataError, match="expert 'cheap' must predict shape"):
        half.run(x, lambda expert, rows: np.zeros((len(rows), 3)))
    predictions[3, 1] = np.nan
    with pytest.raises(DataError, match="expert 'cheap' predicts nan in row 3"):
        half.run(x, asker(predictions))


# saving


@pytest.mark.parametrize("criterion", ["gain", "confidence"])
def test_a_cascade_survives_its_state(mixture, criterion):
    x, predictions, y = easy_and_hard(200)
    cascade = fit_cascade(mixture, x, predictions, y, costs=COSTS, criterion=criterion)
    state, tensors = cascade.state()
    again = Cascade.from_state(json.loads(json.dumps(state, allow_nan=False)), tensors)
    first, second = (c.run(x, asker(predictions)) for c in (cascade, again))
    assert (first.mixed == second.mixed).all()
    assert (first.weights == second.weights).all()
    assert again.threshold == cascade.threshold


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s, t: s.pop("order"), "lacks 'order'"),
        (lambda s, t: s.update(order=[0, 1, 1]), "order of a cascade"),
        (lambda s, t: s.update(order=[0, 1, 2]), "does not fit its experts"),
        (lambda s, t: s.update(order=[0, 1]), "early stages"),
        (lambda s, t: s.update(criterion="luck"), "criterion of"),
        (lambda s, t: s.update(threshold=float("inf")), "threshold of a cascade"),
        (lambda s, t: s["stages"].pop(), "early stages"),
        (lambda s, t: t.pop("costs"), "costs of a cascade must have shape"),
        (lambda s, t: t["costs"].fill_(1), "must rise"),
        (lambda s, t: t.pop("gain0.weight"), "gain0.weight of a cascade"),
        (lambda s, t: t["gain1.bias"].fill_(torch.nan), "not finite"),
        (lambda s, t: t["gain1.scale"].fill_(0), "above 0"),
        (lambda s, t: t.pop("mixture.temperatures"), "temperatures of a mixture"),
    ],
)
def test_a_damaged_state_is_refused(half, damage, message):
    state, tensors = half.state()
    damage(state, tensors)
    with pytest.raises(FileFormatError, match=message):
        Cascade.from_state(state, tensors)
