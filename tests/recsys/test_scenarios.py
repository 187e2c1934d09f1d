"""STAR, PEPNet and HoME by scenario: the papers' formulas, unseen scenarios, metrics per scenario."""

import numpy as np
import pandas as pd
import pytest
import torch

import moeapps
from moeapps.core.errors import ConfigError, DataError
from moeapps.recsys import (
    STAR,
    MultiTaskRanker,
    OnnxRanker,
    PEPNet,
    RankingData,
    RankingModule,
    export_ranker,
)
from moeapps.recsys.scenarios import GateUnit, PartitionedNorm, ScenarioHoME, StarLayers

QUICK = {"max_epochs": 5, "batch_size": 128, "lr": 1e-2, "random_state": 0, "accelerator": "cpu"}
TARGETS = ["click", "buy"]


def moved(module: torch.nn.Module) -> torch.nn.Module:
    """With weights away from the start, where all scenarios are the same."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def test_star_layers_multiply_shared_weights_by_the_scenarios_own():
    layers = moved(StarLayers(5, [7, 3], 2, num_networks=2, last_linear=True))
    x, scenario = torch.randn(9, 5), torch.tensor([0, 1, 2, 1, 0, 2, 2, 1, 1])
    shared = layers.shared
    for n, s in enumerate(scenario.tolist()):
        for e in range(2):
            y = x[n]
            for i in range(2):
                weight, bias = shared.weights[i][e], shared.biases[i][e]
                if s > 0:
                    weight = weight * (1 + layers.own_weights[i][s - 1, e])
                    bias = bias + layers.own_biases[i][s - 1, e]
                y = y @ weight + bias
                y = y.relu() if i == 0 else y
            torch.testing.assert_close(layers(x, scenario)[n, e], y, atol=1e-5, rtol=1e-5)


def test_a_scenario_without_rows_of_its_own_is_the_shared_network():
    layers = moved(StarLayers(5, [3], 2))
    for own in (*layers.own_weights, *layers.own_biases):
        torch.nn.init.zeros_(own)
    x = torch.randn(4, 5)
    torch.testing.assert_close(layers(x, torch.full((4,), 2)), layers(x, torch.zeros(4)))


def test_partitioned_norm_normalises_each_scenario_by_its_own_rows():
    torch.manual_seed(0)
    norm = PartitionedNorm(3, 2)
    scenario = torch.arange(4000) % 2 + 1
    x = (torch.randn(4000, 3) * 5 + 10) * scenario[:, None]
    y = norm(x, scenario)
    for s in (1, 2):
        assert y[scenario == s].mean().abs() < 0.1
        assert 0.9 < y[scenario == s].std() < 1.1
    norm.eval()
    torch.testing.assert_close(norm(x, scenario), y, atol=0.01, rtol=0.01)  # one batch: its statistics are the running
    everything = norm(x, torch.zeros(4000))  # of an unknown scenario: the statistics of all rows
    assert everything.mean().abs() < 0.1
    assert 0.9 < everything.std() < 1.1


def test_partitioned_norm_keeps_what_a_single_row_of_a_scenario_says():
    norm = PartitionedNorm(2, 2)
    scenario = torch.tensor([1] * 63 + [2])
    y = norm(torch.randn(64, 2), scenario)
    assert y[-1].abs().min() > 1e-3  # by its own row alone it would be zero
    assert y.isfinite().all()


def test_statistics_of_a_scenario_that_is_not_in_the_batch_stay():
    norm = PartitionedNorm(2, 2)
    norm(torch.randn(8, 2), torch.ones(8))
    assert torch.equal(norm.mean[2], torch.zeros(2))
    assert torch.equal(norm.batches, torch.tensor([1.0, 1.0, 0.0]))


def test_pepnets_gate_is_between_0_and_2_and_starts_as_1():
    gate = GateUnit(4, 3, 8)
    x = torch.randn(5, 4)
    assert torch.equal(gate(x), torch.ones(5, 3))
    moved(gate)
    expected = 2 / (1 + torch.exp(-(torch.relu(x @ gate.narrow.weight.T + gate.narrow.bias) @ gate.wide.weight.T)
                                  - gate.wide.bias))  # fmt: skip
    torch.testing.assert_close(gate(x), expected)


def test_pepnets_gates_send_gradient_to_the_embeddings_that_they_are_for_only():
    """With the towers' weights zero after the gates nothing but the gates' own inputs could move."""
    model = moved(PEPNet(10, 2, scenario=[0, 1], personal=[2, 3], norm=False))
    x = torch.randn(6, 10, requires_grad=True)
    domain, rest = x[:, :2], x.detach()
    gates = model.input_gate(torch.cat([domain, rest], dim=1))
    (grad,) = torch.autograd.grad(gates.sum(), x)
    gated = (rest * model.input_gate(torch.cat([rest[:, :2], rest], 1))).detach()
    h = rest
    # The whole network, by hand, with detached gate inputs
    a = x * model.input_gate(torch.cat([x[:, :2], x.detach()], 1))
    prior = torch.cat([x[:, 2:4], a.detach()], 1)
    torch.testing.assert_close(a.detach(), gated)
    for layer, gate in zip(model.layers, model.layer_gates, strict=True):
        a = layer(a) * gate(prior).unflatten(1, (2, -1))
    out = model.towers(a)[..., 0]
    torch.testing.assert_close(model(x), out)
    mine, its = (torch.autograd.grad(y.sum(), x)[0] for y in (model(x), out))
    torch.testing.assert_close(mine, its)
    assert grad[:, 2:].abs().max() == 0
    assert h.shape == (6, 10)


def test_home_by_scenario_gives_other_scenarios_task_experts_no_gradient():
    model = ScenarioHoME(8, 2, 3, names=["a", "b", "c"])
    model(torch.randn(10, 8), torch.full((10,), 2))[:, 0].sum().backward()
    grad = model.task_experts.weights[0].grad.abs().flatten(1).sum(1)
    for name, value in zip(model.task_names, grad, strict=True):
        assert (value > 0) == name.startswith(("global", "group b:", "task 2:")), name


@pytest.mark.parametrize("model", [STAR(8, 2, 3), ScenarioHoME(8, 2, 3)])
def test_a_row_does_not_depend_on_the_others_in_evaluation(model):
    moved(model)
    x, scenario = torch.randn(20, 8), torch.arange(20) % 4
    model(x, scenario)
    model.eval()
    torch.testing.assert_close(model(x, scenario)[3:5], model(x[3:5], scenario[3:5]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["star", "home"])
def test_every_weight_of_a_scenario_model_gets_gradient(name):
    model = moved(STAR(8, 2, 3) if name == "star" else ScenarioHoME(8, 2, 3))
    model(torch.randn(40, 8), torch.arange(40) % 4).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """What is clicked depends on the age in one country, and on its opposite in another."""
    rng = np.random.default_rng(0)
    n = 2000
    frame = pd.DataFrame(
        {
            "country": rng.choice(["DE", "FR", "IT"], n, p=[0.6, 0.3, 0.1]),
            "user_id": rng.integers(0, 40, n),
            "age": rng.normal(40, 9, n),
        }
    )
    sign = frame["country"].map({"DE": 1, "FR": -1, "IT": 1})
    frame["click"] = (sign * (frame["age"] - 40) > 0).astype(int)
    frame["buy"] = np.where(rng.random(n) < 0.5, np.nan, (frame["age"] > 45).astype(float))
    return frame


SETTINGS = {
    "star": {"model": "star"},
    "pepnet": {"model": "pepnet"},
    "home": {"model": "home", "groups": "scenario"},
    "mmoe": {"model": "mmoe"},
}


@pytest.fixture(scope="module")
def rankers(frame):
    return {
        name: MultiTaskRanker(**settings, scenario="country", **QUICK).fit(frame, TARGETS)
        for name, settings in SETTINGS.items()
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_a_ranker_learns_what_differs_between_scenarios(frame, rankers, name):
    table = rankers[name].evaluate(frame).set_index(["task", "slice"])["auc"]
    assert table["click", "all"] > 0.9
    assert (table["click"] > 0.85).all()
    assert list(table["click"].index) == ["all", "country=DE", "country=FR", "country=IT"]


@pytest.mark.parametrize("name", SETTINGS)
def test_an_unseen_or_missing_scenario_is_predicted(frame, rankers, name):
    few = frame.head(4).assign(country=["XX", None, "DE", "FR"])
    with pytest.warns(UserWarning, match="country"):
        found = rankers[name].predict_proba(few)
    assert found.notna().all().all()
    alone = rankers[name].predict_proba(few.iloc[2:])
    np.testing.assert_allclose(found.iloc[2:], alone, atol=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_saved_ranker_with_scenarios_predicts_the_same(frame, rankers, name, tmp_path):
    path = tmp_path / "ranker.safetensors"
    rankers[name].save(path)
    loaded = moeapps.load(path)
    pd.testing.assert_frame_equal(loaded.predict_proba(frame), rankers[name].predict_proba(frame))
    assert loaded.scenario == "country"


@pytest.mark.parametrize(  # the two that take longest to export are slow tests
    "name", ["star", "mmoe", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pepnet", "home"))]
)
def test_an_exported_ranker_with_scenarios_predicts_the_same(frame, rankers, name, tmp_path):
    pytest.importorskip("onnxruntime")
    export_ranker(rankers[name], tmp_path)
    expected = rankers[name].predict_proba(frame.head(50))
    np.testing.assert_allclose(OnnxRanker(tmp_path).predict_proba(frame.head(50)), expected, atol=1e-4)


def test_each_epoch_logs_the_auc_of_each_scenario(rankers):
    history = rankers["star"].history_
    names = {name for name in history if name.startswith("val/auc/click/")}
    assert names == {f"val/auc/click/{country}" for country in ("DE", "FR", "IT")}
    assert history["val/auc/click/DE"].iloc[-1] > 0.8


def test_a_report_has_a_map_of_tasks_by_scenario(frame):
    module = RankingModule("pepnet", scenario="country")
    data = RankingData(frame, targets=TARGETS, batch_size=256)
    import lightning as L

    trainer = L.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(module, data)
    found = next(table for table in module.views().maps if table.title == "AUC by task and country")
    assert found.rows == TARGETS
    assert sorted(name.split(" ")[0] for name in found.columns) == ["DE", "FR", "IT"]


def test_evaluate_takes_another_column_or_none(frame, rankers):
    assert set(rankers["star"].evaluate(frame, scenario=False)["slice"]) == {"all"}
    found = rankers["star"].evaluate(frame.assign(half=np.arange(len(frame)) % 2), scenario="half")
    assert set(found["slice"]) == {"all", "half=0", "half=1"}
    with pytest.raises(DataError, match="scenario='town' is not a column"):
        rankers["star"].evaluate(frame, scenario="town")


def test_a_diagnosis_of_home_by_scenario_names_tasks_and_scenarios(frame, rankers):
    gates = rankers["home"].diagnose(frame).gates
    assert {f"{task} in {country}" for task in TARGETS for country in ("DE", "FR", "IT")} <= set(gates["gate"])
    assert {"group DE", "group FR", "group IT"} <= set(gates["gate"])


def test_pepnet_takes_the_columns_named_like_ids_as_personal(rankers):
    embedding, model = rankers["pepnet"].model_.embedding, rankers["pepnet"].model_.model
    sparse = [feature.name for feature in rankers["pepnet"].encoder_.schema.sparse]
    first = embedding.dim * sparse.index("user_id")
    assert model.personal.tolist() == list(range(first, first + embedding.dim))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "star"}, "model='star' needs scenario="),
        ({"model": "home", "groups": "scenario"}, "groups='scenario' needs scenario="),
        ({"model": "star", "scenario": "age"}, "one of the sparse columns country, user_id, got 'age'"),
        ({"model": "mmoe", "scenario": "town"}, "scenario must be one of the sparse columns"),
        ({"model": "home", "groups": "country"}, "groups must be 'scenario' or"),
        (
            {"model": "pepnet", "scenario": "country", "options": {"personal": ["who"]}},
            "personal must name some of the sparse columns",
        ),
    ],
)  # fmt: skip
def test_impossible_scenarios_are_refused_by_name(frame, settings, message):
    with pytest.raises(ConfigError, match=message):
        MultiTaskRanker(**settings, **QUICK).fit(frame, TARGETS)
