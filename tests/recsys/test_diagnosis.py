"""Diagnosis: numbers by hand, faults that are made on purpose, a picture."""

import copy
from functools import cache

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from moeapps.core.errors import ConfigError
from moeapps.recsys import Diagnosis, MultiTaskRanker, census_income, census_schema

TARGETS = ["income", "never_married"]


@cache
def trained(name: str) -> MultiTaskRanker:
    model = MultiTaskRanker(name, schema=census_schema(), max_epochs=1, batch_size=512, random_state=0)
    return model.fit(census_income()[:1000], TARGETS)


def fitted(name: str) -> MultiTaskRanker:
    """A copy, which a test may change."""
    return copy.deepcopy(trained(name))


def test_numbers_are_those_of_the_experts_and_gates():
    model, frame = fitted("mmoe"), census_income()[:500]
    found = model.diagnose(frame)
    network, rows = model.model_, model.encoder_.transform(frame)
    with torch.no_grad():
        x = network.embedding(rows)
        outputs, weights = network.model.experts(x), network.model.gate(x)
    assert len(found.experts) == 8
    assert found.experts["variance"].to_numpy() == pytest.approx(outputs.var(dim=(0, 2)).numpy(), rel=1e-4)
    assert found.experts["zeros"].to_numpy() == pytest.approx((outputs == 0).float().mean(dim=(0, 2)).numpy())
    mean = found.gates.set_index(["gate", "expert"])["weight"]
    assert mean["never_married", "expert 3"] == pytest.approx(float(weights[:, 1, 3].mean()), rel=1e-4)
    assert mean["income"].sum() == pytest.approx(1)
    assert isinstance(found.plot("MMoE"), Figure)


def test_a_collapsed_expert_is_reported():
    model = fitted("mmoe")
    with torch.no_grad():
        model.model_.model.experts.biases[-1][2] = -100.0
    hints = model.diagnose(census_income()[:500]).hints()
    assert any("expert 2: 100 % of its outputs are zero" in hint for hint in hints)


def test_dead_units_are_counted():
    model = fitted("mmoe")
    with torch.no_grad():
        model.model_.model.experts.biases[-1][2, :32] = -100.0
    found = model.diagnose(census_income()[:500])
    assert found.experts["dead"][2] >= 0.5
    assert any("of the units of 1 experts are zero on every row" in hint for hint in found.hints())
    assert found.metrics()["experts/zeros"] == found.experts["zeros"].max()
    assert found.metrics()["experts/income/expert 3"] == found.gates["weight"][3]


def test_a_task_that_ignores_its_experts_and_a_captured_shared_one_are_reported():
    model = fitted("cgc")
    gate = model.model_.model.gates[0]
    x = model.model_.embedding(model.encoder_.transform(census_income()[:1])).detach()[0]
    names = model.model_.model.names
    with torch.no_grad():  # logits of 50 for the first shared expert from task 0, for its own from task 1
        gate.weight.zero_()
        gate.weight[0, names.index("shared 0")] = 50 * x / x.square().sum()
        gate.weight[1, names.index("task 1: 0")] = 50 * x / x.square().sum()
    hints = model.diagnose(census_income()[:1]).hints()
    assert any("income hardly uses its own experts" in hint for hint in hints)
    assert any("only income uses shared 0 (degradation)" in hint for hint in hints)


@pytest.mark.parametrize("name", ["cgc", "ple", "adatt", "home"])
def test_every_model_can_be_diagnosed(name):
    found = fitted(name).diagnose(census_income()[:200])
    levels = 1 if name == "cgc" else 2
    assert found.gates["level"].nunique() == levels
    assert found.experts.notna().all().all()


def test_a_task_that_is_called_shared_something_has_no_shared_experts():
    weights = {("shared_posts", "shared_posts: 0"): 0.9, ("shared_posts", "shared 0"): 0.1,
               ("likes", "shared_posts: 0"): 0.0, ("likes", "shared 0"): 1.0}  # fmt: skip
    rows = [{"level": "0", "gate": gate, "expert": e, "weight": w} for (gate, e), w in weights.items()]
    experts = {"level": "0", "expert": ["shared_posts: 0", "shared 0"], "variance": 1.0, "zeros": 0.0, "dead": 0.0}
    assert Diagnosis(pd.DataFrame(experts), pd.DataFrame(rows)).hints() == []


def test_a_model_without_gates_says_so():
    with pytest.raises(ConfigError, match="SharedBottom has no gates"):
        fitted("shared_bottom").diagnose(census_income()[:100])
