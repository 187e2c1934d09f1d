"""Conditional prediction, chains, metrics and class weights through scikit-learn's interface."""

import copy

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score
from torch_geometric.data import Data

import moeapps
from moeapps.core.errors import ConfigError, DataError
from moeapps.demo.made import two_halves
from moeapps.graph import GNNClassifier, MowstClassifier, load_cora, predict_nodes
from moeapps.graph.datasets import PublicGraphData
from moeapps.graph.edges import Edges

QUICK = {"max_epochs": 200, "patience": 10, "random_state": 0, "norm": "batch_norm"}


@pytest.fixture(scope="module")
def halves() -> Data:
    """A graph where half of the nodes are the weak expert's and half the strong one's."""
    return two_halves(seed=0)


@pytest.fixture(scope="module")
def fitted(halves):
    return MowstClassifier("gcn", inference="cascade", threshold="auto", tolerance=0.005, **QUICK).fit(halves)


def test_a_chosen_threshold_spares_the_strong_expert_and_keeps_the_score(fitted, halves):
    full = copy.copy(fitted).set_params(inference="mix")
    assert fitted.champion_ == "mix"
    assert 0 < fitted.cost_.strong < 0.9
    assert fitted.score(halves) > full.score(halves) - 0.02
    budget = MowstClassifier(
        "gcn", inference="cascade", threshold="auto", budget=0.3, **{**QUICK, "max_epochs": 40}
    ).fit(halves)
    assert float(np.mean(budget.predict_confidence(halves)[halves.val_mask] < budget.threshold_)) <= 0.3
    assert budget.cost(halves).strong == pytest.approx(float(budget.route(halves).mean()))


def test_some_nodes_are_predicted_as_they_are_among_all(fitted, halves, tmp_path):
    nodes = np.random.default_rng(0).permutation(halves.num_nodes)[:60]
    every = fitted.predict_proba(halves)
    np.testing.assert_allclose(fitted.predict_proba(halves, nodes=nodes), every[nodes], atol=1e-5)
    in_batches = copy.copy(fitted).set_params(batch_size=16)
    np.testing.assert_allclose(in_batches.predict_proba(halves), every, atol=1e-5)
    assert fitted.cost(halves, nodes=nodes).nodes == 60
    fitted.save(tmp_path / "m")
    loaded = moeapps.load(tmp_path / "m")
    assert loaded.threshold_ == fitted.threshold_
    np.testing.assert_array_equal(loaded.predict_proba(halves), every)


def test_a_cost_curve_goes_from_the_weak_expert_to_the_mixture(fitted, halves):
    curve = fitted.cost_curve(halves)
    assert curve["strong"].is_monotonic_increasing
    assert curve["strong"].iloc[[0, -1]].tolist() == [0.0, 1.0]
    assert curve["edges"].iloc[0] == 0
    assert curve["score"].iloc[-1] == pytest.approx(
        copy.copy(fitted).set_params(inference="mix").score(halves), abs=1e-6
    )
    assert curve["score"].iloc[0] < curve["score"].iloc[-1]
    chosen = fitted.cost_curve(halves, thresholds=[fitted.threshold_])
    assert chosen["score"].iloc[0] == pytest.approx(fitted.score(halves), abs=1e-6)


def test_evaluate_agrees_with_scikit_learn(fitted, halves):
    test = halves.test_mask.numpy()
    proba, truth = fitted.predict_proba(halves)[test], halves.y.numpy()[test]
    found = fitted.evaluate(halves)
    assert found["accuracy"] == pytest.approx(fitted.score(halves), abs=1e-6)
    assert found["macro_f1"] == pytest.approx(
        f1_score(truth, fitted.classes_[proba.argmax(1)], average="macro"), abs=1e-5
    )
    auc = roc_auc_score(truth, proba[:, 1]) if proba.shape[1] == 2 else roc_auc_score(truth, proba, multi_class="ovr")
    assert found["auc"] == pytest.approx(auc, abs=1e-4)
    with pytest.raises(DataError, match="was not fitted with"):
        fitted.evaluate(halves, y=np.full(halves.num_nodes, 77))


def test_a_chain_of_three_experts_learns(halves):
    model = MowstClassifier(medium="sage", strong="gat", inference="cascade", **{**QUICK, "max_epochs": 50}).fit(halves)
    assert list(model.cost_.share) == ["weak", "medium", "strong"]
    weak = GNNClassifier("mlp", **{**QUICK, "max_epochs": 50}).fit(halves)
    assert model.score(halves) > weak.score(halves)


@pytest.mark.parametrize(("kind", "networks"), [(GNNClassifier, "gcn"), (MowstClassifier, ["gcn", "sage"])])
def test_balanced_weights_find_a_rare_class(kind, networks):
    quick = {**QUICK, "max_epochs": 25, "network" if kind is GNNClassifier else "strong": networks}
    rng = np.random.default_rng(0)
    y = np.where(rng.random(300) < 0.06, "rare", "common")
    x = rng.normal(size=(300, 3)) + np.where(y == "rare", 1.2, 0.0)[:, None]
    plain = kind(**quick).fit(x, y)
    weights = ("balanced", {"rare": 15.0, "common": 1.0}, [1.0, 15.0])
    for weight in weights if kind is GNNClassifier else weights[:1]:
        model = kind(class_weight=weight, **quick).fit(x, y)
        assert (model.predict(x) == "rare").sum() > (plain.predict(x) == "rare").sum()
    with pytest.raises(DataError, match=r"does not have: \['rar'\]"):
        kind(class_weight={"rar": 2.0}, **quick).fit(x, y)
    with pytest.raises(ConfigError, match="class_weight must be"):
        kind(class_weight=[1.0, 2.0, 3.0], **quick).fit(x, y)


@pytest.mark.parametrize("monitor", ["auc", "macro_f1", "loss"])
def test_other_measures_can_select(halves, monitor):
    model = MowstClassifier("gcn", monitor=monitor, **{**QUICK, "max_epochs": 25}).fit(halves)
    assert model.score(halves) > 0.6
    assert f"val/{monitor}" in model.history_


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ({"threshold": "best"}, "threshold must be"), ({"budget": 0.3}, "need threshold='auto'"),
        ({"threshold": "auto", "budget": 0.0}, "budget must be"), ({"monitor": "auroc"}, "monitor must be"),
        ({"threshold": "auto", "tolerance": -1.0}, "tolerance must be"), ({"batch_size": 0}, "batch_size must be"),
        ({"threshold": "auto", "inference": "sample"}, "no threshold"),
    ],
)  # fmt: skip
def test_impossible_arguments_are_named_before_training(halves, arguments, culprit, monkeypatch):
    monkeypatch.setattr("lightning.Trainer.fit", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(ConfigError, match=culprit):
        MowstClassifier("gcn", **{**QUICK, **arguments}).fit(halves)


@pytest.mark.parametrize(
    ("arguments", "culprit"), [({"confidence": "x"}, "confidence must be"), ({"medium": "gnc"}, "network must be")]
)
def test_impossible_networks_are_named(halves, arguments, culprit):
    with pytest.raises(ConfigError, match=culprit):
        MowstClassifier("gcn", **{**QUICK, "max_epochs": 1, **arguments}).fit(halves)


@pytest.mark.parametrize(
    ("name", "strong"),
    [
        ("Cora", "gcn"), ("Cora", "sage"), ("CiteSeer", "sage"), ("tolokers", "gcn"), ("minesweeper", "sage"),
        ("chameleon_filtered", "gin"), ("amherst41", "gcn"), ("johnshopkins55", "sage"),
    ],
)  # fmt: skip
def test_conditional_equals_dense_on_every_public_graph(name, strong, tmp_path, data_folder):
    (tmp_path / name).mkdir()
    (tmp_path / name / "raw").symlink_to(data_folder / "graph" / name / "raw")
    graph = PublicGraphData(name, str(tmp_path)).prepared()
    # a short training: the confidences have to differ, not to be good
    model = MowstClassifier(strong=strong, confidence="given", max_epochs=2, random_state=0).fit(graph)
    network, edges = model.model_, Edges(graph.edge_index, None, graph.num_nodes)
    network.gates["weak"].forced.fill_(float("nan"))
    with torch.no_grad():
        confidence = network(graph.x, edges).confidence
        for share in (0.02, 0.3):
            threshold = float(confidence.quantile(share))
            dense = network(graph.x, edges, mode="cascade", threshold=threshold)
            found, work = predict_nodes(network, graph.x, edges, mode="cascade", threshold=threshold)
            assert float((found.log_probs.exp() - dense.log_probs.exp()).abs().max()) < 1e-5
            assert work.strong == pytest.approx(float((confidence < threshold).float().mean()))
        nodes = torch.randperm(graph.num_nodes)[: graph.num_nodes // 50]
        cut = network.expert("strong").on_nodes(graph.x, edges, nodes, batch_size=100)
        whole = network.run_expert("strong", graph.x, edges)[nodes]
        assert float((cut.softmax(1) - whole.softmax(1)).abs().max()) < 1e-5


def test_the_training_graph_is_what_nothing_else_means():
    cora = load_cora()
    model = MowstClassifier("gcn", norm=None, max_epochs=3, random_state=0).fit(cora)
    np.testing.assert_allclose(model.predict_proba(), model.predict_proba(cora), atol=1e-6)
    np.testing.assert_allclose(model.predict_proba(nodes=[3, 1]), model.predict_proba(cora)[[3, 1]], atol=1e-5)
