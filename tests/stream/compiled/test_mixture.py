"""The rules of DriftMoE, pinned with experts that say what they are told to."""

import numpy as np
import pytest
import torch
from river import base

from moeapps.stream import DriftMoEClassifier, DriftMoERegressor
from moeapps.stream.compiled.mixture_state import WAITING
from moeapps.stream.engine import RiverEngine

LOG: list[tuple[str, int, object]] = []


class Scripted(base.Classifier):
    """Says the probabilities that the instance carries for it, and notes what it is asked and taught."""

    made = 0

    def __init__(self):
        self.number = Scripted.made
        Scripted.made += 1

    def learn_one(self, x, y):
        LOG.append(("learn", self.number, y))

    def predict_proba_one(self, x):
        LOG.append(("predict", self.number, None))
        p = x[f"p{self.number}"]
        return {0: 1 - p, 1: p}


@pytest.fixture(autouse=True)
def _fresh():
    LOG.clear()
    Scripted.made = -1  # the first is the template


def paper(variant="data", n_experts=4, **changes) -> DriftMoEClassifier:
    model = DriftMoEClassifier.paper(variant, n_experts=n_experts, seed=3)
    return model.set_params(expert=Scripted(), **changes)


def row(*p: float, **features: float) -> dict[str, float]:
    return {**{f"p{i}": value for i, value in enumerate(p)}, "z": 0.5, **features}


def engine_of(model) -> RiverEngine:
    assert isinstance(model._engine, RiverEngine)
    return model._engine


def masks(model) -> np.ndarray:
    mixture = engine_of(model).mixture
    return mixture.batch_y[: mixture.counters[WAITING]]


def start(model, n=4):
    """Let it see both labels."""
    model.learn_one(row(*[0.1] * n), 0)
    model.learn_one(row(*[0.9] * n), 1)
    LOG.clear()


def test_the_prediction_is_that_of_the_expert_with_the_largest_weight():
    model = paper()
    start(model)
    for p in ([0.9, 0.1, 0.1, 0.1], [0.1, 0.9, 0.1, 0.1], [0.1, 0.1, 0.9, 0.1], [0.1, 0.1, 0.1, 0.9]):
        x = row(*p)
        weights = model.expert_weights(x).to_numpy()[0]
        best = int(weights.argmax())
        assert model.predict_one(x) == int(p[best] > 0.5)
        assert model.predict_proba_one(x)[1] == pytest.approx(p[best])


def test_weights_are_a_softmax_at_the_temperature():
    model = paper()
    start(model)
    x = row(0.2, 0.4, 0.6, 0.8)
    inputs = torch.tensor([[x[name] for name in model.router_features_]])
    with torch.no_grad():
        logits = model.torch_router().scores(inputs, None, None)
    assert np.allclose(model.expert_weights(x), (logits / 0.8).softmax(-1), atol=1e-6)


def test_the_mask_marks_those_that_were_right_and_else_the_likeliest():
    model = paper()
    start(model)
    model.learn_one(row(0.9, 0.1, 0.7, 0.2), 1)
    assert masks(model)[-1].tolist() == [1, 0, 1, 0]
    model.learn_one(row(0.1, 0.4, 0.3, 0.2), 1)  # nobody: the one that gave label 1 the highest probability
    assert masks(model)[-1].tolist() == [0, 1, 0, 0]


def test_the_k_experts_with_the_largest_weights_learn():
    model = paper()
    start(model)
    x = row(0.9, 0.1, 0.7, 0.2)
    weights = model.expert_weights(x).to_numpy()[0]
    LOG.clear()
    model.learn_one(x, 1)
    taught = {number for what, number, _ in LOG if what == "learn"}
    assert taught == set(np.argsort(-weights)[:3].tolist())


def test_everybody_predicts_before_anybody_learns():
    model = paper()
    start(model)
    model.learn_one(row(0.9, 0.1, 0.7, 0.2), 1)
    kinds = [what for what, _, _ in LOG]
    assert kinds == ["predict"] * 4 + ["learn"] * 3


def test_the_router_makes_one_step_after_256_instances_on_their_mean_loss():
    model = paper(router_dropout=0.0)
    start(model)
    rng = np.random.default_rng(0)
    for _ in range(253):
        model.learn_one(row(*rng.random(4)), int(rng.integers(2)))
    mixture = engine_of(model).mixture
    router = model.torch_router()
    before = mixture.network.parameters.copy()
    assert mixture.counters[WAITING] == 255
    model.learn_one(row(*rng.random(4)), 1)
    mixture = engine_of(model).mixture
    assert mixture.counters[WAITING] == 0
    assert mixture.network.steps[0] == 1
    optimizer = torch.optim.Adam(router.parameters(), lr=2e-3)
    router.mask_loss(torch.from_numpy(mixture.batch_x), torch.from_numpy(mixture.batch_y)).backward()
    optimizer.step()
    after = model.torch_router()
    for mine, theirs in zip(after.parameters(), router.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    assert not np.array_equal(before, mixture.network.parameters)


def test_in_the_task_variant_the_router_says_the_class_and_makes_a_step_per_instance():
    model = paper("task")
    start(model, 2)
    x = row(0.9, 0.2)
    inputs = torch.tensor([[x[name] for name in model.router_features_]])
    with torch.no_grad():
        logits = model.torch_router().scores(inputs, None, None)
    assert model.predict_one(x) == int(logits.argmax())
    assert engine_of(model).mixture.network.steps[0] == 2
    LOG.clear()
    model.learn_one(x, 1)
    assert engine_of(model).mixture.network.steps[0] == 3
    assert engine_of(model).mixture.batch_y[0].tolist() == [0, 1]
    assert [(number, y) for what, number, y in LOG if what == "learn"] == [(0, 0), (1, 1)]


def test_a_number_is_right_where_the_error_is_at_most_the_running_median():
    class Says(base.Regressor):
        made = -1

        def __init__(self):
            self.number = Says.made
            Says.made += 1

        def learn_one(self, x, y):
            pass

        def predict_one(self, x):
            return x[f"p{self.number}"]

    model = DriftMoERegressor(4, expert=Says(), drift=None, seed=0)
    rng = np.random.default_rng(0)
    for _ in range(600):
        y = rng.normal()
        model.learn_one(row(*(y + rng.normal(0, 1, 4))), y)
    assert engine_of(model).mixture.error[0] == pytest.approx(0.6745, rel=0.15)  # the median of |N(0, 1)|
    model.learn_one(row(0.01, 5.0, 0.02, 4.0), 0.0)
    assert masks(model)[-1].tolist() == [1, 0, 1, 0]
    model.learn_one(row(9.0, 8.0, 7.0, 6.0), 0.0)  # nobody: the nearest
    assert masks(model)[-1].tolist() == [0, 0, 0, 1]
    x = row(1.0, 2.0, 3.0, 4.0)
    assert model.predict_one(x) == pytest.approx(float(model.expert_weights(x).to_numpy()[0] @ [1, 2, 3, 4]))


def test_an_expert_whose_error_rises_is_replaced_by_the_one_grown_since_the_warning():
    model = paper(n_experts=2).set_params(drift="replace", learn_with="all", drift_delta=1e-4, warning_delta=0.3)
    start(model, 40)
    rng = np.random.default_rng(0)
    for i in range(3000):
        wrong = rng.random() < (0.1 if i < 1500 else 0.3)
        model.learn_one(row(*([0.9] if wrong else [0.1]) * 40), 0)
    events = model.drift_events_
    renewed = events[events["event"] == "renewed"]
    assert set(renewed["expert"]) == {0, 1}
    assert renewed["instance"].between(1500, 1900).any()
    first = events[events["expert"] == 0].reset_index()
    assert "warning" in set(first["event"][: first.index[first["event"] == "renewed"][0]])
    assert all(expert.number >= 2 for expert in engine_of(model).experts)


def test_a_falling_error_is_no_alarm():
    model = paper(n_experts=2).set_params(drift="replace", learn_with="all")
    start(model, 40)
    for i in range(2000):
        model.learn_one(row(*([0.9] if i < 1000 else [0.1]) * 40), 0)
    assert len(model.drift_events_) == 0
